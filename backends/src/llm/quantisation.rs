//! `quantization_config` of a `config.json`: how matrices are stored that are no floats. What is not understood is
//! refused by name: a model whose scales are read wrong still speaks, badly.

use super::families::{Experts, Family};
use super::fields::{Fields, brief};
use super::weights::packed::{Bits, Scheme};
use crate::error::LoadError;
use serde_json::{Value, json};
use std::num::NonZeroUsize;

/// The methods that are read.
const METHODS: &str = "gptq, awq, compressed-tensors, fp8, fbgemm_fp8, and mxfp4 of gpt-oss";
/// How compressed-tensors' matrices may lie: integers in words, or numbers of a byte.
const FORMATS: [&str; 6] =
    ["pack-quantized", "int-quantized", "float-quantized", "naive-quantized", "mixed-precision", "dense"];

/// How packed matrices are read; `None` where there are none, or floats of eight or four bits, which say it themselves.
pub(super) fn read(fields: Fields<'_>, family: &Family) -> Result<Option<Scheme>, LoadError> {
    let Some(config) = fields.object("quantization_config")? else { return Ok(None) };
    match config.text("quant_method")?.unwrap_or("unknown") {
        "mxfp4" if family.experts == Experts::GptOss => Ok(None),
        "fbgemm_fp8" => Ok(None),
        "fp8" => fp8(config).map(|()| None),
        "gptq" => gptq(config).map(Some),
        "awq" => awq(config).map(Some),
        "compressed-tensors" => compressed_tensors(config).map(|()| Some(Scheme::CompressedTensors)),
        method => {
            let method = brief(&Value::from(method));
            Err(refusal(config, format!("is of method {method}, not supported; supported are {METHODS}")))
        }
    }
}

fn refusal(config: Fields<'_>, reason: impl std::fmt::Display) -> LoadError {
    config.refuse("quantization_config", reason)
}

fn fp8(config: Fields<'_>) -> Result<(), LoadError> {
    match config.text("fmt")? {
        None | Some("e4m3") => blocks(config, "weight_block_size"),
        Some(format) => {
            let format = brief(&Value::from(format));
            Err(refusal(config, format!("has numbers of format {format}; supported is e4m3")))
        }
    }
}

/// Numbers that share a scale.
fn blocks(config: Fields<'_>, field: &str) -> Result<(), LoadError> {
    match config.get(field) {
        Some(size) if *size != json!([128, 128]) => {
            Err(refusal(config, format!("has a {field} of {}; supported are blocks of 128 by 128", shown(size))))
        }
        _ => Ok(()),
    }
}

/// A short list as it is, and anything else in brief.
fn shown(value: &Value) -> String {
    match value {
        Value::Array(list) if list.len() <= 4 => {
            format!("[{}]", list.iter().map(brief).collect::<Vec<_>>().join(","))
        }
        value => brief(value),
    }
}

fn gptq(config: Fields<'_>) -> Result<Scheme, LoadError> {
    let field = if config.has("checkpoint_format") { "checkpoint_format" } else { "format" };
    let less_one = match config.text(field)? {
        None | Some("" | "gptq") => true,
        Some("gptq_v2") => false,
        Some(format) => {
            let format = brief(&Value::from(format));
            return Err(refusal(config, format!("of method 'gptq' has {field} {format}; read are gptq and gptq_v2")));
        }
    };
    if config.text("pack_dtype")?.is_some_and(|dtype| dtype != "int32") {
        return Err(refusal(config, "of method 'gptq' has another pack_dtype than int32"));
    }
    // Changes of what is computed, beside the numbers.
    if let Some(field) = ["is_marlin_format", "rotation", "adapter"].into_iter().find(|field| is_set(config, field)) {
        return Err(refusal(config, format!("of method 'gptq' has `{field}`, not supported")));
    }
    let bits = match config.needed("bits", 64)? {
        4 => Bits::Four,
        8 => Bits::Eight,
        bits => return Err(refusal(config, format!("of method 'gptq' has {bits} bits; read are 4 and 8"))),
    };
    let group = group(config, "group_size")?;
    let modules = config.object("dynamic")?.map(|rules| rules.map.values()).into_iter().flatten();
    for rule in modules.filter_map(Value::as_object) {
        let differs = |field: &str| rule.get(field).is_some_and(|value| Some(value) != config.get(field));
        if let Some(field) = ["bits", "group_size"].into_iter().find(|field| differs(field)) {
            return Err(refusal(
                config,
                format!("of method 'gptq' has another `{field}` for some modules (`dynamic`)"),
            ));
        }
    }
    Ok(Scheme::Gptq { bits, group, less_one })
}

/// Is the field there, and not false?
fn is_set(config: Fields<'_>, field: &str) -> bool {
    config.get(field).is_some_and(|value| *value != Value::Bool(false))
}

fn awq(config: Fields<'_>) -> Result<Scheme, LoadError> {
    let field = if config.has("version") { "version" } else { "format" };
    match config.text(field)? {
        None => {}
        Some(version) if version.eq_ignore_ascii_case("gemm") => {}
        Some(version) => {
            let version = brief(&Value::from(version));
            return Err(refusal(config, format!("of method 'awq' has {field} {version}; read is gemm")));
        }
    }
    let bits = if config.has("w_bit") { "w_bit" } else { "bits" };
    match config.needed(bits, 64)? {
        4 => {}
        bits => return Err(refusal(config, format!("of method 'awq' has {bits} bits; read are 4"))),
    }
    let size = if config.has("q_group_size") { "q_group_size" } else { "group_size" };
    Ok(Scheme::Awq { group: group(config, size)? })
}

/// Inputs that share a scale: -1 is all of them.
fn group(config: Fields<'_>, field: &str) -> Result<Option<NonZeroUsize>, LoadError> {
    if config.get(field).and_then(Value::as_i64) == Some(-1) {
        return Ok(None);
    }
    Ok(NonZeroUsize::new(config.needed(field, 1 << 20)?))
}

fn compressed_tensors(config: Fields<'_>) -> Result<(), LoadError> {
    let refuse = |reason: String| Err(refusal(config, format!("of method 'compressed-tensors' {reason}")));
    let known = |group: Fields<'_>| match group.text("format")? {
        Some(format) if !FORMATS.contains(&format) => {
            refuse(format!("has format {}; read are {}", brief(&Value::from(format)), FORMATS[..5].join(", ")))
        }
        _ => Ok(()),
    };
    known(config)?;
    if let Some(sparse) =
        config.object("sparsity_config")?.map(|sparsity| sparsity.text("format")).transpose()?.flatten()
        && sparse != "dense"
    {
        return refuse(format!("has matrices that are sparse: {}", brief(&Value::from(sparse))));
    }
    let transforms = config.object("transform_config")?.map(|transforms| transforms.object("config_groups"));
    if transforms.transpose()?.flatten().is_some_and(|transforms| !transforms.map.is_empty()) {
        return refuse("has a `transform_config`, not supported".into());
    }
    let groups = config.object("config_groups")?.map(|groups| groups.map.values()).into_iter().flatten();
    for group in groups.filter_map(Value::as_object).map(|group| config.within(group)) {
        known(group)?;
        let weights = group.object("weights")?.unwrap_or(group);
        match (weights.text("type")?, weights.count("num_bits", 64)?) {
            (Some("float"), Some(8)) => blocks(weights, "block_structure")?,
            (Some("int"), Some(4 | 8)) => {}
            (kind, bits) => {
                let bits = bits.map_or("unknown".to_owned(), |bits| bits.to_string());
                let kind = brief(&Value::from(kind.unwrap_or("unknown")));
                return refuse(format!(
                    "has weights of {bits} bits of type {kind}; read are int of 4 and 8 bits, float of 8 bits"
                ));
            }
        }
    }
    Ok(())
}
