//! Execution providers: the parts of ONNX Runtime that run a graph's nodes on some device, and their options.
//!
//! Options are those of a list, and no others: among ONNX Runtime's own there are addresses in memory, libraries that
//! are loaded, and files that are written, none of which are a model's to name.

use serde::Deserialize;
use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserializer, Error, MapAccess, Visitor};
use std::collections::BTreeMap;
use std::fmt;

/// An execution provider, and how it is set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Provider {
    /// Which it is.
    pub kind: ProviderKind,
    /// Its options, as ONNX Runtime spells them.
    pub options: BTreeMap<String, String>,
}

/// Execution providers that can be asked for. Which of them there are, ONNX Runtime's library decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum ProviderKind {
    /// ONNX Runtime's own, which every library has.
    Cpu,
    /// NVIDIA GPUs.
    Cuda,
    /// NVIDIA GPUs, through engines that TensorRT builds.
    TensorRt,
    /// Intel's library.
    OpenVino,
}

const CUDA: &[&str] = &[
    "gpu_mem_limit",
    "arena_extend_strategy",
    "cudnn_conv_algo_search",
    "cudnn_conv_use_max_workspace",
    "cudnn_conv1d_pad_to_nc1d",
    "do_copy_in_default_stream",
    "enable_skip_layer_norm_strict_mode",
    "fuse_conv_bias",
    "prefer_nhwc",
    "sdpa_kernel",
    "tunable_op_enable",
    "tunable_op_max_tuning_duration_ms",
    "tunable_op_tuning_enable",
    "use_ep_level_unified_stream",
    "use_tf32",
];

const TENSORRT: &[&str] = &[
    "trt_auxiliary_streams",
    "trt_bf16_enable",
    "trt_build_heuristics_enable",
    "trt_builder_optimization_level",
    "trt_context_memory_sharing_enable",
    "trt_detailed_build_log",
    "trt_dla_core",
    "trt_dla_enable",
    "trt_force_sequential_engine_build",
    "trt_fp16_enable",
    "trt_int8_enable",
    "trt_layer_norm_fp32_fallback",
    "trt_max_partition_iterations",
    "trt_max_workspace_size",
    "trt_min_subgraph_size",
    "trt_op_types_to_exclude",
    "trt_profile_max_shapes",
    "trt_profile_min_shapes",
    "trt_profile_opt_shapes",
    "trt_sparsity_enable",
    "trt_tactic_sources",
];

const OPENVINO: &[&str] = &[
    "device_type",
    "disable_dynamic_shapes",
    "enable_opencl_throttling",
    "enable_qdq_optimizer",
    "model_priority",
    "num_of_threads",
    "num_streams",
    "precision",
];

impl ProviderKind {
    /// All of them.
    pub const ALL: [ProviderKind; 4] =
        [ProviderKind::Cpu, ProviderKind::Cuda, ProviderKind::TensorRt, ProviderKind::OpenVino];

    /// As settings spell it.
    pub fn name(self) -> &'static str {
        match self {
            ProviderKind::Cpu => "cpu",
            ProviderKind::Cuda => "cuda",
            ProviderKind::TensorRt => "tensorrt",
            ProviderKind::OpenVino => "openvino",
        }
    }

    /// Does it run on GPUs alone?
    pub fn is_gpu(self) -> bool {
        matches!(self, ProviderKind::Cuda | ProviderKind::TensorRt)
    }

    fn options(self) -> &'static [&'static str] {
        match self {
            ProviderKind::Cpu => &[],
            ProviderKind::Cuda => CUDA,
            ProviderKind::TensorRt => TENSORRT,
            ProviderKind::OpenVino => OPENVINO,
        }
    }
}

impl fmt::Display for ProviderKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl TryFrom<String> for ProviderKind {
    type Error = String;

    fn try_from(name: String) -> Result<Self, String> {
        ProviderKind::ALL.into_iter().find(|kind| kind.name() == name).ok_or_else(|| {
            let known = ProviderKind::ALL.map(Self::name).join(", ");
            format!("execution provider '{name}' is not known; known are {known}")
        })
    }
}

impl Provider {
    /// It, with options as they are by default.
    pub fn new(kind: ProviderKind) -> Self {
        Provider { kind, options: BTreeMap::new() }
    }

    /// Are its options such as a model may state?
    pub(super) fn check(&self) -> Result<(), String> {
        let known = self.kind.options();
        let Some(key) = self.options.keys().find(|key| !known.contains(&key.as_str())) else { return Ok(()) };
        let what = format!("option '{key}' of execution provider '{}'", self.kind);
        Err(match (key.as_str(), known) {
            ("device_id", _) => format!("{what} is not served: an instance group states the device"),
            (_, []) => format!("{what} is not served: it has none"),
            _ => format!("{what} is not served; known are {}", known.join(", ")),
        })
    }
}

/// In `model.toml` a provider is its name, or a table with its options.
impl<'de> Deserialize<'de> for Provider {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(NameOrTable)
    }
}

struct NameOrTable;

impl<'de> Visitor<'de> for NameOrTable {
    type Value = Provider;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the name of an execution provider, or a table of its kind and options")
    }

    fn visit_str<E: Error>(self, name: &str) -> Result<Provider, E> {
        ProviderKind::try_from(name.to_owned()).map(Provider::new).map_err(E::custom)
    }

    fn visit_map<A: MapAccess<'de>>(self, table: A) -> Result<Provider, A::Error> {
        let ProviderTable { kind, options } = ProviderTable::deserialize(MapAccessDeserializer::new(table))?;
        Ok(Provider { kind, options })
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ProviderTable {
    kind: ProviderKind,
    #[serde(default, deserialize_with = "texts")]
    options: BTreeMap<String, String>,
}

/// ONNX Runtime takes every value as text; numbers may be written as what they are.
pub(super) fn texts<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<String, String>, D::Error> {
    let mut texts = BTreeMap::new();
    for (key, value) in BTreeMap::<String, toml::Value>::deserialize(deserializer)? {
        let text = match value {
            toml::Value::String(text) => text,
            toml::Value::Integer(number) => number.to_string(),
            _ => return Err(D::Error::custom(format!("'{key}' is neither text nor a whole number"))),
        };
        texts.insert(key, text);
    }
    Ok(texts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_those_that_a_model_may_state() {
        let with = |kind, key: &str| {
            let provider = Provider { kind, options: BTreeMap::from([(key.to_owned(), "1".to_owned())]) };
            provider.check().err().unwrap_or_default()
        };
        assert_eq!(with(ProviderKind::Cuda, "gpu_mem_limit"), "");
        assert_eq!(with(ProviderKind::TensorRt, "trt_fp16_enable"), "");
        assert_eq!(with(ProviderKind::OpenVino, "device_type"), "");
        for (kind, key, what) in [
            (ProviderKind::Cpu, "use_arena", "it has none"),
            (ProviderKind::Cuda, "device_id", "an instance group states the device"),
            (ProviderKind::Cuda, "user_compute_stream", "'user_compute_stream' of execution provider 'cuda'"),
            (ProviderKind::Cuda, "gpu_external_alloc", "known are gpu_mem_limit"),
            (ProviderKind::TensorRt, "trt_extra_plugin_lib_paths", "is not served"),
            (ProviderKind::OpenVino, "cache_dir", "known are device_type"),
        ] {
            let error = with(kind, key);
            assert!(error.contains(what), "{key}: {error}");
        }
    }
}
