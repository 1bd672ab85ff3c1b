//! Settings of ONNX models: devices, execution providers, and what ONNX Runtime is told of a session. What they may be
//! is decided here; the backend acts on them.

use super::provider::{Provider, ProviderKind};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::fmt;

/// Instances that a model may have, of all its groups: each may hold the model's memory once more.
const MOST_INSTANCES: usize = 256;
/// Threads that a pool of the model's own may have.
const MOST_THREADS: usize = 1024;

/// What an ONNX model is run with.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Onnx {
    /// Execution providers, the first of which is asked first for each node. What none of them takes, the CPU runs.
    pub providers: Vec<Provider>,
    /// Is the next provider used, with a warning, where one does not load? Without it that is an error.
    pub fallback: bool,
    /// Threads within a node: a pool of the model's own, in place of the one that all models share.
    pub intra_op_threads: Option<usize>,
    /// Threads across nodes, where these run in parallel.
    pub inter_op_threads: Option<usize>,
    /// Do nodes that need nothing of each other run at the same time?
    pub parallel: bool,
    /// How far the graph is optimised when it is loaded; `None` is [`Optimization::All`].
    pub optimization: Option<Optimization>,
    /// Is memory kept from one call for the next?
    pub memory_arena: bool,
    /// Is memory laid out by what calls of the same shapes needed?
    pub memory_pattern: bool,
    /// Is the model run once when it is loaded, so that the first request finds it warm?
    pub warmup: bool,
    /// In whose process it is computed; `None`: as the server is told.
    pub isolation: Option<Isolation>,
    /// Entries of a session's configuration, as ONNX Runtime spells them.
    #[serde(deserialize_with = "super::provider::texts")]
    pub session: BTreeMap<String, String>,
}

impl Default for Onnx {
    fn default() -> Self {
        Onnx {
            providers: Vec::new(),
            fallback: false,
            intra_op_threads: None,
            inter_op_threads: None,
            parallel: false,
            optimization: None,
            memory_arena: true,
            memory_pattern: true,
            warmup: true,
            isolation: None,
            session: BTreeMap::new(),
        }
    }
}

/// Whether a graph is computed in a process of its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Isolation {
    /// Where a request may end the process, as far as can be told before one comes.
    #[default]
    Auto,
    /// In any case: what the graph does, it does to nobody else.
    Always,
    /// In no case: requests that may end the process are refused, as far as they can be told.
    Never,
}

/// How far a graph is optimised when it is loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Optimization {
    /// Not at all.
    Disabled,
    /// What changes no result: constants folded, what is not needed left out.
    Basic,
    /// And nodes fused.
    Extended,
    /// And layouts changed.
    All,
}

/// Instances of a model on one device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InstanceGroup {
    /// How many; at least one.
    #[serde(default = "one")]
    pub count: usize,
    /// Where they run.
    #[serde(default)]
    pub device: Device,
}

fn one() -> usize {
    1
}

/// Where instances run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum Device {
    /// Where the first of the providers runs; on the CPU without any.
    #[default]
    Auto,
    /// The CPU, whatever providers there are for others.
    Cpu,
    /// This GPU.
    Gpu(u32),
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Device::Auto => f.write_str("auto"),
            Device::Cpu => f.write_str("cpu"),
            Device::Gpu(number) => write!(f, "gpu:{number}"),
        }
    }
}

impl TryFrom<String> for Device {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        match text.as_str() {
            "auto" => Ok(Device::Auto),
            "cpu" => Ok(Device::Cpu),
            other => other
                .strip_prefix("gpu:")
                .and_then(|number| number.parse().ok())
                .map(Device::Gpu)
                .ok_or_else(|| format!("device '{other}' is not known; expected auto, cpu or gpu:N, such as gpu:0")),
        }
    }
}

impl Onnx {
    /// The providers that act on a device, in order.
    pub fn providers_on(&self, device: Device) -> impl Iterator<Item = &Provider> {
        self.providers.iter().filter(move |provider| device != Device::Cpu || !provider.kind.is_gpu())
    }

    /// A group on a GPU is run by CUDA where nothing else is stated, and what TensorRT leaves is, too.
    pub(super) fn add_cuda(&mut self, groups: &[InstanceGroup]) {
        let wanted = groups.iter().any(|group| matches!(group.device, Device::Gpu(_)));
        if wanted && self.cuda().is_none() {
            let after = self.providers.iter().rposition(|provider| provider.kind.is_gpu()).map_or(0, |last| last + 1);
            self.providers.insert(after, Provider::new(ProviderKind::Cuda));
        }
    }

    /// The provider for CUDA, if there is one.
    pub(super) fn cuda(&mut self) -> Option<&mut Provider> {
        self.providers.iter_mut().find(|provider| provider.kind == ProviderKind::Cuda)
    }

    /// Sees to it that all of this can be meant, and says what goes without saying.
    pub(super) fn settle(&mut self, groups: &[InstanceGroup]) -> Result<(), String> {
        self.add_cuda(groups);
        for (index, provider) in self.providers.iter().enumerate() {
            provider.check()?;
            if self.providers[..index].iter().any(|earlier| earlier.kind == provider.kind) {
                return Err(format!("execution provider '{}' is listed twice", provider.kind));
            }
        }
        let cpu = self.providers.iter().position(|provider| provider.kind == ProviderKind::Cpu);
        if cpu.is_some_and(|place| place + 1 < self.providers.len()) {
            return Err("execution provider 'cpu' stands before others, which it leaves nothing; list it last".into());
        }
        for provider in self.providers.iter_mut().filter(|provider| provider.kind == ProviderKind::OpenVino) {
            provider.options.entry("device_type".into()).or_insert_with(|| "CPU".into());
        }
        for (what, threads) in
            [("intra_op_threads", self.intra_op_threads), ("inter_op_threads", self.inter_op_threads)]
        {
            if let Some(threads) = threads.filter(|threads| !(1..=MOST_THREADS).contains(threads)) {
                return Err(format!(
                    "{what} is {threads}; expected 1 to {MOST_THREADS}, or nothing for those that all models share"
                ));
            }
        }
        if self.inter_op_threads.is_some() && !self.parallel {
            return Err("inter_op_threads does nothing while nodes run one after another; state parallel, too".into());
        }
        for key in self.session.keys() {
            check_entry(key)?;
        }
        check_counts(groups)
    }
}

fn check_counts(groups: &[InstanceGroup]) -> Result<(), String> {
    let all = groups.iter().fold(0usize, |sum, group| sum.saturating_add(group.count));
    if groups.iter().any(|group| group.count == 0) || all > MOST_INSTANCES {
        return Err(format!(
            "its instance groups have {all} instances; expected at least 1 each, and at most {MOST_INSTANCES} in all"
        ));
    }
    Ok(())
}

/// What entries of a session's configuration begin with. Those of providers begin otherwise: they are options.
const AREAS: [&str; 3] = ["session.", "optimization.", "mlas."];
/// Entries that are served: those that change how a graph is computed. Others write files, read others than the model's, or
/// go round what the server says of threads and of its log.
const ENTRIES: [&str; 19] = [
    "session.set_denormal_as_zero",
    "session.disable_quant_qdq",
    "session.disable_double_qdq_remover",
    "session.enable_quant_qdq_cleanup",
    "session.disable_prepacking",
    "session.use_env_allocators",
    "session.use_device_allocator_for_initializers",
    "session.intra_op.allow_spinning",
    "session.inter_op.allow_spinning",
    "session.force_spinning_stop",
    "session.dynamic_block_base",
    "session.strict_shape_type_inference",
    "session.allow_released_opsets_only",
    "session.disable_aot_function_inlining",
    "session.qdqisint8allowed",
    "session.x64quantprecision",
    "session.disable_cpu_ep_fallback",
    "optimization.enable_gelu_approximation",
    "optimization.disable_specified_optimizers",
];

/// Is this the name of an entry of a session's configuration?
pub(super) fn is_entry(key: &str) -> bool {
    AREAS.iter().any(|area| key.starts_with(area))
}

fn check_entry(key: &str) -> Result<(), String> {
    if !is_entry(key) {
        return Err(format!("session entry '{key}' is not known; expected one of {}", AREAS.join("*, ") + "*"));
    }
    if !ENTRIES.contains(&key) {
        return Err(format!("session entry '{key}' is not served; served are {}", ENTRIES.join(", ")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(count: usize, device: Device) -> InstanceGroup {
        InstanceGroup { count, device }
    }

    fn with(providers: &[ProviderKind]) -> Onnx {
        Onnx { providers: providers.iter().map(|kind| Provider::new(*kind)).collect(), ..Onnx::default() }
    }

    #[test]
    fn a_group_on_a_gpu_has_cuda() {
        use ProviderKind::{Cpu, Cuda, OpenVino, TensorRt};
        let gpu = [group(1, Device::Cpu), group(1, Device::Gpu(1))];
        for (stated, settled) in [
            (&[TensorRt, OpenVino][..], &[TensorRt, Cuda, OpenVino][..]),
            (&[], &[Cuda]),
            (&[OpenVino], &[Cuda, OpenVino]),
            (&[Cuda, TensorRt], &[Cuda, TensorRt]),
        ] {
            let mut onnx = with(stated);
            onnx.settle(&gpu).unwrap();
            let kinds: Vec<_> = onnx.providers.iter().map(|provider| provider.kind).collect();
            assert_eq!(kinds, settled);
        }
        let mut onnx = with(&[TensorRt, OpenVino, Cpu]);
        onnx.settle(&[]).unwrap();
        let on = |device| onnx.providers_on(device).map(|provider| provider.kind).collect::<Vec<_>>();
        assert_eq!(on(Device::Auto), [TensorRt, OpenVino, Cpu]);
        assert_eq!(on(Device::Gpu(0)), [TensorRt, OpenVino, Cpu]);
        assert_eq!(on(Device::Cpu), [OpenVino, Cpu]);
        assert_eq!(onnx.providers[1].options["device_type"], "CPU");
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        let refusal = |mut onnx: Onnx, groups: &[InstanceGroup]| onnx.settle(groups).err().unwrap_or_default();
        let none: &[InstanceGroup] = &[];
        let entry = |key: &str| Onnx { session: [(key.to_owned(), "1".to_owned())].into(), ..Onnx::default() };
        assert_eq!(refusal(entry("session.set_denormal_as_zero"), &[group(256, Device::Auto)]), "");
        for (onnx, groups, what) in [
            (with(&[ProviderKind::Cuda, ProviderKind::Cuda]), none, "'cuda' is listed twice"),
            (Onnx { intra_op_threads: Some(0), ..Onnx::default() }, none, "intra_op_threads is 0; expected 1 to 1024"),
            (Onnx { inter_op_threads: Some(2), ..Onnx::default() }, none, "state parallel"),
            (entry("session.load_model_format"), none, "is not served; served are session."),
            (entry("session.model_external_initializers_file_folder_path"), none, "is not served; served are session."),
            (entry("ep.context_enable"), none, "'ep.context_enable' is not known; expected one of session.*"),
            (Onnx::default(), &[group(0, Device::Cpu)], "have 0 instances"),
            (Onnx::default(), &[group(200, Device::Cpu), group(57, Device::Auto)], "have 257 instances"),
        ] {
            let error = refusal(onnx, groups);
            assert!(error.contains(what), "{what}: {error}");
        }
    }

    #[test]
    fn devices_are_written_as_they_are_read() {
        for device in [Device::Auto, Device::Cpu, Device::Gpu(0), Device::Gpu(13)] {
            assert_eq!(Device::try_from(device.to_string()), Ok(device));
        }
        for text in ["", "gpu", "gpu:", "gpu:x", "cuda:0"] {
            let error = Device::try_from(text.to_owned()).unwrap_err();
            assert!(error.contains(&format!("device '{text}' is not known")), "{error}");
        }
    }
}
