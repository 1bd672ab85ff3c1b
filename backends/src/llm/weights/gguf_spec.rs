//! GGUF metadata to [`DecoderSpec`]: they are turned back into the `config.json` that they were made from, which
//! [`crate::llm::config`] reads with all its checks; then what converters change in a model is put right.
//!
//! | converters | here |
//! |---|---|
//! | reorder rows of q and k (llama, granite, smollm3), so that pairs are neighbours | [`Rope::interleaved`] |
//! | add the one to Gemma's norm weights | `plus_one` is false |
//! | keep Llama 3's and LongRoPE's divisors as tensors | read into [`Scaling::PerPair`] |
//! | leave out biases' flags and the head's tie | tensors tell |
//!
//! [`Rope::interleaved`]: crate::llm::rope::Rope::interleaved

use super::blocks::dequantise;
use super::gguf::{Gguf, Value};
use super::{Format, Weights};
use crate::error::LoadError;
use crate::llm::layout::{Name, Packing, Slot};
use crate::llm::rope::Scaling;
use crate::llm::spec::{DecoderSpec, Names};
use serde_json::{Map, Value as Json, json};

/// An architecture of GGUF and the row of [`crate::llm::FAMILIES`] that it is.
struct Architecture {
    gguf: &'static str,
    family: &'static str,
    /// Are pairs of the rotation neighbours?
    interleaved: bool,
    /// Names that differ from [`GGUF`].
    names: &'static [Name],
}

const fn row(gguf: &'static str, family: &'static str, interleaved: bool, names: &'static [Name]) -> Architecture {
    Architecture { gguf, family, interleaved, names }
}

static ARCHITECTURES: &[Architecture] = &[
    row("llama", "LlamaForCausalLM", true, &[]),
    row("qwen2", "Qwen2ForCausalLM", false, &[]),
    row("qwen3", "Qwen3ForCausalLM", false, &[]),
    row("qwen3moe", "Qwen3MoeForCausalLM", false, &[]),
    row("gemma2", "Gemma2ForCausalLM", false, &[]),
    row("gemma3", "Gemma3ForCausalLM", false, &[]),
    row("phi3", "Phi3ForCausalLM", false, PHI3),
    row("smollm3", "SmolLM3ForCausalLM", true, &[]),
    row("olmo2", "Olmo2ForCausalLM", false, &[]),
    row("granite", "GraniteForCausalLM", true, &[]),
    row("gpt-oss", "GptOssForCausalLM", false, GPT_OSS),
];

/// The names that architectures share.
static GGUF: &[Name] = &[
    (Slot::Embedding, "token_embd.weight", Packing::Whole),
    (Slot::FinalNorm, "output_norm.weight", Packing::Whole),
    (Slot::Head, "output.weight", Packing::Whole),
    (Slot::AttentionNormBefore, "blk.{l}.attn_norm.weight", Packing::Whole),
    (Slot::AttentionNormAfter, "blk.{l}.post_attention_norm.weight", Packing::Whole),
    (Slot::MlpNormBefore, "blk.{l}.ffn_norm.weight", Packing::Whole),
    (Slot::MlpNormAfter, "blk.{l}.post_ffw_norm.weight", Packing::Whole),
    (Slot::Query, "blk.{l}.attn_q.weight", Packing::Whole),
    (Slot::Key, "blk.{l}.attn_k.weight", Packing::Whole),
    (Slot::Value, "blk.{l}.attn_v.weight", Packing::Whole),
    (Slot::Output, "blk.{l}.attn_output.weight", Packing::Whole),
    (Slot::QueryBias, "blk.{l}.attn_q.bias", Packing::Whole),
    (Slot::KeyBias, "blk.{l}.attn_k.bias", Packing::Whole),
    (Slot::ValueBias, "blk.{l}.attn_v.bias", Packing::Whole),
    (Slot::OutputBias, "blk.{l}.attn_output.bias", Packing::Whole),
    (Slot::QueryNorm, "blk.{l}.attn_q_norm.weight", Packing::Whole),
    (Slot::KeyNorm, "blk.{l}.attn_k_norm.weight", Packing::Whole),
    (Slot::Sinks, "blk.{l}.attn_sinks.weight", Packing::Whole),
    (Slot::Gate, "blk.{l}.ffn_gate.weight", Packing::Whole),
    (Slot::Up, "blk.{l}.ffn_up.weight", Packing::Whole),
    (Slot::Down, "blk.{l}.ffn_down.weight", Packing::Whole),
    (Slot::GateBias, "blk.{l}.ffn_gate.bias", Packing::Whole),
    (Slot::UpBias, "blk.{l}.ffn_up.bias", Packing::Whole),
    (Slot::DownBias, "blk.{l}.ffn_down.bias", Packing::Whole),
    (Slot::Router, "blk.{l}.ffn_gate_inp.weight", Packing::Whole),
    (Slot::RouterBias, "blk.{l}.ffn_gate_inp.bias", Packing::Whole),
    (Slot::ExpertGate, "blk.{l}.ffn_gate_exps.weight", Packing::Whole),
    (Slot::ExpertUp, "blk.{l}.ffn_up_exps.weight", Packing::Whole),
    (Slot::ExpertDown, "blk.{l}.ffn_down_exps.weight", Packing::Whole),
    (Slot::ExpertGateBias, "blk.{l}.ffn_gate_exps.bias", Packing::Whole),
    (Slot::ExpertUpBias, "blk.{l}.ffn_up_exps.bias", Packing::Whole),
    (Slot::ExpertDownBias, "blk.{l}.ffn_down_exps.bias", Packing::Whole),
];

static PHI3: &[Name] = &[
    (Slot::Query, "blk.{l}.attn_qkv.weight", Packing::Query),
    (Slot::Key, "blk.{l}.attn_qkv.weight", Packing::Key),
    (Slot::Value, "blk.{l}.attn_qkv.weight", Packing::Value),
    (Slot::Gate, "blk.{l}.ffn_up.weight", Packing::FirstHalf),
    (Slot::Up, "blk.{l}.ffn_up.weight", Packing::SecondHalf),
];

static GPT_OSS: &[Name] = &[(Slot::MlpNormBefore, "blk.{l}.post_attention_norm.weight", Packing::Whole)];

/// Metadata (after the architecture's name and a dot), and the fields of `config.json` that they were made from.
const FIELDS: &[(&str, &str)] = &[
    ("vocab_size", "vocab_size"),
    ("context_length", "max_position_embeddings"),
    ("embedding_length", "hidden_size"),
    ("block_count", "num_hidden_layers"),
    ("feed_forward_length", "intermediate_size"),
    ("attention.head_count", "num_attention_heads"),
    ("attention.head_count_kv", "num_key_value_heads"),
    ("attention.key_length", "head_dim"),
    ("attention.layer_norm_rms_epsilon", "rms_norm_eps"),
    ("attention.sliding_window", "sliding_window"),
    ("attention.scale", "attention_multiplier"),
    ("attn_logit_softcapping", "attn_logit_softcapping"),
    ("final_logit_softcapping", "final_logit_softcapping"),
    ("embedding_scale", "embedding_multiplier"),
    ("residual_scale", "residual_multiplier"),
    ("logit_scale", "logits_scaling"),
    ("rope.freq_base", "rope_theta"),
    ("rope.freq_base_swa", "rope_local_base_freq"),
    ("expert_count", "num_local_experts"),
    ("expert_used_count", "num_experts_per_tok"),
    ("expert_feed_forward_length", "moe_intermediate_size"),
];

/// The model of a GGUF file.
///
/// # Errors
/// The architecture is not supported (those that are, are named), or a field is missing or out of range: errors name
/// it as `config.json` does.
pub fn spec(gguf: &Gguf) -> Result<DecoderSpec, LoadError> {
    let refuse = |reason: String| LoadError::new(gguf.file(), reason);
    let name = match gguf.get("general.architecture") {
        Some(Value::Text(name)) => name.as_str(),
        _ => return Err(refuse("`general.architecture` is missing".into())),
    };
    let architecture = ARCHITECTURES.iter().find(|row| row.gguf == name).ok_or_else(|| {
        let supported: Vec<_> = ARCHITECTURES.iter().map(|row| row.gguf).collect();
        let name: String = name.chars().take(60).collect();
        let supported = supported.join(", ");
        refuse(format!("`general.architecture` is '{}', not supported; supported are {supported}", name.escape_debug()))
    })?;
    let config = config(gguf, architecture)?;
    let mut spec = DecoderSpec::from_map(gguf.file(), &config)?;
    spec.names = Names { tables: [architecture.names, GGUF], transposed: false };
    spec.norm.plus_one = false;
    rope(gguf, architecture, &mut spec)?;
    Ok(spec)
}

/// The `config.json` of a GGUF file.
fn config(gguf: &Gguf, architecture: &Architecture) -> Result<Map<String, Json>, LoadError> {
    let name = architecture.gguf;
    let mut config = Map::new();
    for (key, field) in FIELDS {
        match gguf.get(&format!("{name}.{key}")) {
            None => {}
            // A window of 0 is how converters write none.
            Some(Value::Whole(0)) if *field == "sliding_window" => drop(config.insert((*field).into(), Json::Null)),
            Some(Value::Whole(number)) => drop(config.insert((*field).into(), json!(*number as f64))),
            Some(Value::Real(number)) => drop(config.insert((*field).into(), json!(shortest(*number)))),
            Some(other) => {
                let shown = format!("{other:?}").chars().take(60).collect::<String>();
                return Err(LoadError::new(gguf.file(), format!("`{name}.{key}` is {shown}, not one number")));
            }
        }
    }
    if let (None, Some(Value::Texts(tokens))) = (config.get("vocab_size"), gguf.get("tokenizer.ggml.tokens")) {
        config.insert("vocab_size".into(), json!(tokens.len()));
    }
    let has = |tensor: &str| gguf.info(tensor).is_some();
    let mixture = name == "llama" && config.get("num_local_experts").is_some_and(|count| count.as_f64() > Some(0.0));
    let family = if mixture { "MixtralForCausalLM" } else { architecture.family };
    config.insert("architectures".into(), json!([family]));
    config.insert("tie_word_embeddings".into(), json!(!has("output.weight")));
    config.insert("attention_bias".into(), json!(has("blk.0.attn_q.bias")));
    config.insert("mlp_bias".into(), json!(has("blk.0.ffn_up.bias")));
    config.insert("norm_topk_prob".into(), json!(true)); // llama.cpp renormalises; all published Qwen mixtures do
    if name == "gpt-oss" {
        // The experts' width has a key of its own, and every layer is a mixture.
        if let Some(width) = config.get("moe_intermediate_size").cloned() {
            config.insert("intermediate_size".into(), width);
        }
    }
    if name == "olmo2" && config.contains_key("sliding_window") {
        return Err(LoadError::new(gguf.file(), "`olmo2.attention.sliding_window` makes it OLMo 3, not supported"));
    }
    if gguf.get(&format!("{name}.attention.causal")) == Some(&Value::Flag(false)) {
        let reason = "is false; supported are models whose tokens see those before them only";
        return Err(LoadError::new(gguf.file(), format!("`{name}.attention.causal` {reason}")));
    }
    match gguf.get(&format!("{name}.attention.sliding_window_pattern")) {
        Some(Value::Whole(number)) => drop(config.insert("sliding_window_pattern".into(), json!(*number as f64))),
        Some(Value::Numbers(flags)) => {
            let kind = |flag: &f32| if *flag == 0.0 { "full_attention" } else { "sliding_attention" };
            config.insert("layer_types".into(), flags.iter().map(kind).collect());
        }
        _ => {}
    }
    if name.starts_with("gemma") {
        config.insert("query_pre_attn_scalar".into(), json!(gemma_scalar(name, &config)));
    }
    scaling(gguf, name, &mut config)?;
    Ok(config)
}

/// Gemma's score scale is no metadata: it is the head's width, but for the 27B models.
fn gemma_scalar(name: &str, config: &Map<String, Json>) -> f64 {
    let number = |field: &str| config.get(field).and_then(Json::as_f64).unwrap_or(0.0);
    let layers = number("num_hidden_layers");
    let large = (name == "gemma2" && layers == 46.0) || (name == "gemma3" && layers == 62.0);
    if large && number("num_attention_heads") > 0.0 {
        (number("hidden_size") / number("num_attention_heads")).floor()
    } else {
        config.get("head_dim").map_or(256.0, |_| number("head_dim"))
    }
}

/// `rope.scaling.*` to `rope_scaling`, with the meanings that llama.cpp gives them.
fn scaling(gguf: &Gguf, name: &str, config: &mut Map<String, Json>) -> Result<(), LoadError> {
    let number = |key: &str| match gguf.get(&format!("{name}.rope.{key}")) {
        Some(Value::Whole(number)) => Some(*number as f64),
        Some(Value::Real(number)) => Some(shortest(*number)),
        _ => None,
    };
    // Older files have it under another name; 0 says that nothing is stretched.
    let factor = number("scaling.factor").or_else(|| number("scale_linear")).filter(|factor| *factor != 0.0);
    let kind = match gguf.get(&format!("{name}.rope.scaling.type")) {
        Some(Value::Text(kind)) => kind.as_str(),
        _ => "linear",
    };
    // Divisors come as tensors and are filled in below; "none" and "longrope" say nothing else.
    if matches!(kind, "none" | "longrope") || (kind == "linear" && factor.is_none()) {
        if name == "gpt-oss" {
            config.insert("rope_parameters".into(), json!({})); // says that there is none: the family's default is YaRN
        }
        return Ok(());
    }
    let wanted = if kind == "yarn" { 1.0 } else { 0.0 };
    if let Some(found) = number("scaling.yarn_ext_factor").filter(|found| *found >= 0.0 && *found != wanted) {
        let kind = kind.escape_debug();
        let reason = format!("is {found}; with scaling of type '{kind}' only {wanted} is supported");
        return Err(LoadError::new(gguf.file(), format!("`{name}.rope.scaling.yarn_ext_factor` {reason}")));
    }
    let mut scaling = Map::new();
    scaling.insert("rope_type".into(), json!(kind));
    factor.map(|factor| scaling.insert("factor".into(), json!(factor)));
    let fields = [
        ("original_context_length", "original_max_position_embeddings"),
        ("yarn_attn_factor", "attention_factor"),
        ("attn_factor", "attention_factor"), // where there are both, this one counts
        ("yarn_beta_fast", "beta_fast"),
        ("yarn_beta_slow", "beta_slow"),
    ];
    for (key, field) in fields {
        number(&format!("scaling.{key}")).map(|number| scaling.insert(field.into(), json!(number)));
    }
    if name == "gpt-oss" {
        scaling.insert("truncate".into(), json!(false));
    }
    config.insert("rope_scaling".into(), Json::Object(scaling));
    Ok(())
}

/// The rotation's width, order of pairs, and divisors that are tensors.
fn rope(gguf: &Gguf, architecture: &Architecture, spec: &mut DecoderSpec) -> Result<(), LoadError> {
    let refuse = |reason: String| LoadError::new(gguf.file(), reason);
    let key = format!("{}.rope.dimension_count", architecture.gguf);
    if let Some(value) = gguf.get(&key) {
        let dims = match value {
            Value::Whole(dims) if (2..=spec.attention.head_dim as i128).contains(dims) && dims % 2 == 0 => {
                *dims as usize
            }
            other => {
                return Err(refuse(format!("`{key}` is {other:?}; expected an even number up to the head's width")));
            }
        };
        spec.rope.dims = dims;
    }
    spec.rope.interleaved = architecture.interleaved;
    if let Some(local) = &mut spec.rope_local {
        (local.dims, local.interleaved) = (spec.rope.dims, architecture.interleaved);
    }
    let pairs = spec.rope.dims / 2;
    let divisors = |name: &str| -> Result<Option<Vec<f64>>, LoadError> {
        let Some(info) = gguf.info(name) else { return Ok(None) };
        if info.format != Format::F32 || info.shape != [pairs] {
            return Err(refuse(format!("tensor '{name}' is no list of {pairs} 32-bit floats")));
        }
        let numbers = dequantise(Format::F32, &gguf.read(name, 0..4 * pairs)?);
        if numbers.iter().any(|number| !(number.is_finite() && *number > 0.0)) {
            return Err(refuse(format!("tensor '{name}' holds something else than numbers above zero")));
        }
        Ok(Some(numbers.into_iter().map(f64::from).collect()))
    };
    if let Some(divisors) = divisors("rope_freqs.weight")? {
        spec.rope.scaling =
            Scaling::PerPair { short: divisors.clone(), long: divisors, original: spec.context, attention: 1.0 };
    }
    if let (Some(short), Some(long)) = (divisors("rope_factors_short.weight")?, divisors("rope_factors_long.weight")?) {
        let number = |key: &str| gguf.get(&format!("{}.rope.scaling.{key}", architecture.gguf));
        let original = match number("original_context_length") {
            Some(Value::Whole(length)) if (1..=1 << 28).contains(length) => *length as usize,
            _ => return Err(refuse("`rope.scaling.original_context_length` is missing".into())),
        };
        let attention = match number("attn_factor") {
            Some(Value::Real(factor)) if factor.is_finite() && *factor > 0.0 => *factor,
            _ => 1.0,
        };
        spec.rope.scaling = Scaling::PerPair { short, long, original, attention };
    }
    Ok(())
}

/// Metadata hold 32-bit floats of what was text: 1e-5 as 0.0000099999997. The shortest text that reads back as the
/// same 32 bits is the number that was meant.
fn shortest(number: f64) -> f64 {
    let narrow = number as f32;
    if f64::from(narrow) == number { narrow.to_string().parse().unwrap_or(number) } else { number }
}
