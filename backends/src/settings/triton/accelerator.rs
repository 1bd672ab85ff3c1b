//! Execution providers, as `optimization.execution_accelerators` of `config.pbtxt` asks for them.

use super::{Fields, messages, note, only, sort};
use crate::pbtxt::Message;
use crate::settings::{Provider, ProviderKind};
use std::collections::BTreeMap;

const FIELDS: Fields = Fields {
    place: "optimization.execution_accelerators.",
    acting: &["gpu_execution_accelerator", "cpu_execution_accelerator"],
    without_effect: &[],
    refused: &[],
};

const ACCELERATOR: Fields =
    Fields { place: "execution_accelerators.", acting: &["name", "parameters"], without_effect: &[], refused: &[] };

/// Parameters of TensorRT that ask for files to be kept. Which, is not a model's to say.
const CACHES: [&str; 6] = [
    "trt_engine_cache_enable",
    "trt_engine_cache_path",
    "trt_engine_cache_prefix",
    "trt_timing_cache_enable",
    "trt_timing_cache_path",
    "trt_force_timing_cache",
];

/// The providers in the order in which nodes are offered to them: those of GPUs first.
pub(super) fn read(optimization: &Message, notes: &mut Vec<String>) -> Result<Vec<Provider>, String> {
    let mut providers = Vec::new();
    let Some(accelerators) = optimization.message("execution_accelerators")? else { return Ok(providers) };
    sort(accelerators, &[&FIELDS], notes)?;
    for (field, known) in [
        ("gpu_execution_accelerator", &[ProviderKind::TensorRt, ProviderKind::Cuda][..]),
        ("cpu_execution_accelerator", &[ProviderKind::OpenVino][..]),
    ] {
        for accelerator in messages(accelerators, field)? {
            sort(accelerator, &[&ACCELERATOR], notes)?;
            let name = accelerator.text("name")?.unwrap_or_default();
            let Some(kind) = known.iter().find(|kind| kind.name() == name) else {
                let known: Vec<_> = known.iter().map(|kind| kind.name()).collect();
                return Err(format!("accelerator '{name}' of '{field}' is not served; known are {}", known.join(", ")));
            };
            providers.push(Provider { kind: *kind, options: options(*kind, accelerator, notes)? });
        }
    }
    Ok(providers)
}

fn options(
    kind: ProviderKind,
    accelerator: &Message,
    notes: &mut Vec<String>,
) -> Result<BTreeMap<String, String>, String> {
    let mut options = BTreeMap::new();
    for parameter in messages(accelerator, "parameters")? {
        only(parameter, "execution_accelerators.parameters.", &["key", "value"])?;
        let key = parameter.text("key")?.ok_or("a parameter of an accelerator has no 'key'")?;
        let value = parameter.text("value")?.unwrap_or_default();
        let option = if kind == ProviderKind::TensorRt { tensorrt(key, value, notes)? } else { Some((key, value)) };
        options.extend(option.map(|(key, value)| (key.to_owned(), value.to_owned())));
    }
    Ok(options)
}

/// The option that a parameter of Triton's stands for. Some it names in its own way, the others as ONNX Runtime does.
fn tensorrt<'a>(key: &'a str, value: &'a str, notes: &mut Vec<String>) -> Result<Option<(&'a str, &'a str)>, String> {
    Ok(Some(match (key, value) {
        ("precision_mode", "FP32") => return Ok(None),
        ("precision_mode", "FP16") => ("trt_fp16_enable", "1"),
        ("precision_mode", "BF16") => ("trt_bf16_enable", "1"),
        ("precision_mode", "INT8") => ("trt_int8_enable", "1"),
        ("precision_mode", other) => {
            return Err(format!("parameter 'precision_mode' is '{other}'; expected FP32, FP16, BF16 or INT8"));
        }
        ("max_workspace_size_bytes", size) => ("trt_max_workspace_size", size),
        ("int8_calibration_table_name" | "int8_use_native_calibration_table", _) => {
            return Err(format!("parameter '{key}' is not served: quantise the graph itself, with Q and DQ nodes"));
        }
        _ if CACHES.contains(&key) => {
            note(notes, format!("parameter '{key}' has no effect here: engines are built when the model is loaded"));
            return Ok(None);
        }
        option => option,
    }))
}
