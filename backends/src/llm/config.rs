//! `config.json` to [`DecoderSpec`], in both spellings.
//!
//! ```text
//! transformers 4                                     transformers 5
//! rope_theta, rope_scaling {type | rope_type, ...}   rope_parameters {rope_type, rope_theta, ...}
//! rope_local_base_freq (Gemma 3)                     rope_parameters {full_attention {...}, sliding_attention {...}}
//! torch_dtype                                        dtype
//! sliding_window_pattern, max_window_layers          layer_types ["full_attention" | "sliding_attention", ...]
//! ```
//!
//! What is not understood is refused by name: a model that runs with the wrong rotation still speaks, badly.

use super::families::{Bias, Experts, FAMILIES, Family, HUGGING_FACE, Windows};
use super::fields::{Fields, brief};
use super::quantisation;
use super::rope_config::ropes;
use super::spec::{
    Activation, Attention, DecoderSpec, FloatType, Layer, Mixture, Names, Norm, Rotation, Routing, Scales,
};
use crate::error::LoadError;
use serde_json::{Map, Value};
use std::path::Path;

/// Bounds on sizes: far above every model there is, and low enough that a product of any two fits 48 bits.
const VOCAB_MAX: usize = 1 << 22;
const WIDTH_MAX: usize = 1 << 20;
const LAYERS_MAX: usize = 1 << 10;
const HEADS_MAX: usize = 1 << 12;
const HEAD_DIM_MAX: usize = 1 << 12;
const EXPERTS_MAX: usize = 1 << 12;
pub(super) const CONTEXT_MAX: usize = 1 << 28;
/// Bytes of a `config.json`; those of the largest models have some tens of thousands.
const CONFIG_BYTES_MAX: usize = 4 << 20;

impl DecoderSpec {
    /// Reads the text of a `config.json`; `file` is what errors call it.
    ///
    /// # Errors
    /// [`LoadError`] names the field, what it holds and what would be right; for an architecture that is not
    /// supported, those that are.
    pub fn from_config(file: &Path, text: &[u8]) -> Result<Self, LoadError> {
        if text.len() > CONFIG_BYTES_MAX {
            let reason = format!("{} bytes; a configuration has at most {CONFIG_BYTES_MAX}", text.len());
            return Err(LoadError::new(file, reason));
        }
        let map: Map<String, Value> =
            serde_json::from_slice(text).map_err(|e| LoadError::new(file, format!("is no JSON object: {e}")))?;
        Self::from_map(file, &map)
    }

    /// Reads a configuration that is already parsed.
    pub(crate) fn from_map(file: &Path, map: &Map<String, Value>) -> Result<Self, LoadError> {
        let family = family(Fields { file, map, defaults: &[] })?;
        let map = read_by(family, map);
        let fields = Fields { file, map: &map, defaults: family.defaults };
        check_causal(fields)?;
        let packed = quantisation::read(fields, family)?;
        let hidden = fields.needed("hidden_size", WIDTH_MAX)?;
        let context = fields.count("max_position_embeddings", CONTEXT_MAX)?.unwrap_or(2048);
        let attention = attention(fields, family, hidden)?;
        let (rope, rope_local) = ropes(fields, family, attention.head_dim, context)?;
        let context = rope.scaling.context(context).min(CONTEXT_MAX);
        let mixture = mixture(fields, family)?;
        let intermediate = fields.needed("intermediate_size", WIDTH_MAX)?;
        Ok(DecoderSpec {
            family,
            names: Names { tables: [family.names, HUGGING_FACE], transposed: family.experts == Experts::GptOss },
            vocab: fields.needed("vocab_size", VOCAB_MAX)?,
            hidden,
            intermediate,
            context,
            layers: layers(fields, family, rope_local.is_some())?,
            norm: Norm {
                eps: fields.positive("rms_norm_eps")?.unwrap_or(1e-6),
                plus_one: family.gemma,
                placement: family.placement,
            },
            attention,
            rope,
            rope_local,
            activation: activation(fields, family)?,
            mlp_bias: bias(fields, family.mlp_bias)?,
            mixture,
            scales: scales(fields, family, hidden)?,
            tied: fields.flag("tie_word_embeddings")?,
            dtype: dtype(fields)?,
            packed,
        })
    }
}

/// The row of the architecture that the file names.
fn family(fields: Fields<'_>) -> Result<&'static Family, LoadError> {
    let named = fields.list("architectures")?.and_then(|list| list.first()).and_then(Value::as_str);
    let named = named.ok_or_else(|| fields.refuse("architectures", "is missing or holds no name"))?;
    FAMILIES.iter().find(|family| family.architecture == named).ok_or_else(|| {
        let supported: Vec<_> = FAMILIES.iter().map(|family| family.architecture).collect();
        let named = brief(&Value::from(named));
        fields.refuse("architectures", format!("is {named}, not supported; supported are {}", supported.join(", ")))
    })
}

/// The file without what only other architectures read: transformers ignores it, whatever it says.
fn read_by(family: &Family, map: &Map<String, Value>) -> Map<String, Value> {
    let of_others = |name: &str| FAMILIES.iter().any(|other| other.reads.contains(&name));
    let mut map = map.clone();
    map.retain(|name, _| family.reads.contains(&name.as_str()) || !of_others(name));
    map
}

/// Refuses models whose tokens see those after them, which generate no text token by token.
fn check_causal(fields: Fields<'_>) -> Result<(), LoadError> {
    const WANTED: &str = "supported are models whose tokens see those before them only";
    if fields.has("is_causal") && !fields.flag("is_causal")? {
        return Err(fields.refuse("is_causal", format!("is false; {WANTED}")));
    }
    if fields.flag("use_bidirectional_attention")? {
        return Err(fields.refuse("use_bidirectional_attention", format!("is true; {WANTED}")));
    }
    Ok(())
}

fn bias(fields: Fields<'_>, bias: Bias) -> Result<bool, LoadError> {
    match bias {
        Bias::Never => Ok(false),
        Bias::Always => Ok(true),
        Bias::Field(field) => fields.flag(field),
    }
}

fn attention(fields: Fields<'_>, family: &Family, hidden: usize) -> Result<Attention, LoadError> {
    let heads = fields.needed("num_attention_heads", HEADS_MAX)?;
    let kv_heads = fields.count("num_key_value_heads", HEADS_MAX)?.unwrap_or(heads);
    if heads % kv_heads != 0 {
        let reason = format!("is {kv_heads}, which does not divide the {heads} of `num_attention_heads`");
        return Err(fields.refuse("num_key_value_heads", reason));
    }
    let head_dim = match fields.count("head_dim", HEAD_DIM_MAX)? {
        Some(head_dim) => head_dim,
        None if hidden.is_multiple_of(heads) && hidden / heads <= HEAD_DIM_MAX => hidden / heads,
        None => {
            let reason = format!("is missing, and {heads} heads do not divide the {hidden} of `hidden_size`");
            return Err(fields.refuse("head_dim", reason));
        }
    };
    let root = if family.gemma { fields.positive("query_pre_attn_scalar")? } else { None };
    let scale = match (fields.positive("attention_multiplier")?, root) {
        (Some(factor), _) => factor,
        (None, root) => root.unwrap_or(head_dim as f64).powf(-0.5),
    };
    Ok(Attention {
        heads,
        kv_heads,
        head_dim,
        qkv_bias: bias(fields, family.qkv_bias)?,
        out_bias: bias(fields, family.out_bias)?,
        qk_norm: family.qk_norm,
        scale,
        softcap: if family.gemma { fields.positive("attn_logit_softcapping")? } else { None },
        sinks: family.sinks,
    })
}

fn activation(fields: Fields<'_>, family: &Family) -> Result<Activation, LoadError> {
    if family.experts == Experts::GptOss {
        let alpha = fields.positive("swiglu_alpha")?;
        if alpha != Some(1.702) {
            return Err(fields.refuse("swiglu_alpha", "is not 1.702, the only value supported"));
        }
        let limit = fields.positive("swiglu_limit")?.unwrap_or(7.0);
        return Ok(Activation::ClampedSwiglu { limit });
    }
    // Gemma's older files have both fields, and `hidden_act` is wrong in them.
    let field = if family.gemma { "hidden_activation" } else { "hidden_act" };
    match fields.text(field)? {
        None if family.gemma => Ok(Activation::GeluTanh),
        None | Some("silu" | "swish") => Ok(Activation::Silu),
        Some("gelu_pytorch_tanh" | "gelu_new" | "gelu_fast") => Ok(Activation::GeluTanh),
        Some("gelu") => Ok(Activation::Gelu),
        Some(other) => {
            let reason = format!("is {}; supported are silu, gelu, gelu_pytorch_tanh", brief(&Value::from(other)));
            Err(fields.refuse(field, reason))
        }
    }
}

fn scales(fields: Fields<'_>, family: &Family, hidden: usize) -> Result<Scales, LoadError> {
    if family.gemma {
        let logit_softcap = fields.positive("final_logit_softcapping")?;
        return Ok(Scales { embedding: (hidden as f64).sqrt(), residual: 1.0, logits: 1.0, logit_softcap });
    }
    Ok(Scales {
        embedding: fields.positive("embedding_multiplier")?.unwrap_or(1.0),
        residual: fields.positive("residual_multiplier")?.unwrap_or(1.0),
        logits: 1.0 / fields.positive("logits_scaling")?.unwrap_or(1.0),
        logit_softcap: None,
    })
}

fn dtype(fields: Fields<'_>) -> Result<Option<FloatType>, LoadError> {
    let field = if fields.has("dtype") { "dtype" } else { "torch_dtype" };
    match fields.text(field)? {
        None => Ok(None),
        Some(name) => FloatType::parse(name).map(Some).ok_or_else(|| {
            let reason = format!("is {}; supported are float32, float16, bfloat16", brief(&Value::from(name)));
            fields.refuse(field, reason)
        }),
    }
}

fn mixture(fields: Fields<'_>, family: &Family) -> Result<Option<Mixture>, LoadError> {
    let (count, width, routing) = match family.experts {
        Experts::None => return Ok(None),
        Experts::Qwen if fields.flag("norm_topk_prob")? => {
            ("num_experts", "moe_intermediate_size", Routing::SoftmaxOfChosen)
        }
        Experts::Qwen => ("num_experts", "moe_intermediate_size", Routing::Softmax),
        Experts::Mixtral | Experts::GptOss => ("num_local_experts", "intermediate_size", Routing::SoftmaxOfChosen),
    };
    // transformers 5 writes Qwen's count under Mixtral's name.
    let count = if fields.has(count) { count } else { "num_local_experts" };
    let experts = fields.needed(count, EXPERTS_MAX)?;
    let top_k = fields.needed("num_experts_per_tok", experts)?;
    let intermediate = fields.needed(width, WIDTH_MAX)?;
    Ok(Some(Mixture { experts, top_k, intermediate, routing, bias: family.experts == Experts::GptOss }))
}

/// Each layer's window, rotation and kind of feed-forward block.
fn layers(fields: Fields<'_>, family: &Family, local: bool) -> Result<Vec<Layer>, LoadError> {
    let count = fields.needed("num_hidden_layers", LAYERS_MAX)?;
    let rotated = rotated(fields, count)?;
    let windowed = windowed(fields, family, &rotated)?;
    let window = fields.count("sliding_window", CONTEXT_MAX)?;
    let mixture = mixed(fields, family, count)?;
    if window.is_none() && windowed.contains(&true) && family.windows != Windows::Every {
        return Err(fields.refuse("sliding_window", "is missing, and layers are to have one"));
    }
    let layer = |index: usize| Layer {
        window: window.filter(|_| windowed[index]),
        rotation: match (rotated[index], local && windowed[index]) {
            (false, _) => Rotation::None,
            (true, true) => Rotation::Local,
            (true, false) => Rotation::Global,
        },
        mixture: mixture[index],
    };
    Ok((0..count).map(layer).collect())
}

/// Which layers rotate queries and keys. `no_rope_layers` says, despite its name, 1 where a layer does.
fn rotated(fields: Fields<'_>, count: usize) -> Result<Vec<bool>, LoadError> {
    if let Some(list) = fields.list("no_rope_layers")? {
        let flags = list.iter().map(|value| match value.as_u64() {
            Some(0) => Some(false),
            Some(1) => Some(true),
            _ => None,
        });
        let flags: Option<Vec<bool>> = flags.collect();
        return flags
            .filter(|flags| flags.len() == count)
            .ok_or_else(|| fields.refuse("no_rope_layers", format!("is not a list of {count} zeros and ones")));
    }
    let interval = fields.count("no_rope_layer_interval", LAYERS_MAX)?;
    Ok((1..=count).map(|number| interval.is_none_or(|interval| number % interval != 0)).collect())
}

/// Which layers see a window only.
fn windowed(fields: Fields<'_>, family: &Family, rotated: &[bool]) -> Result<Vec<bool>, LoadError> {
    let count = rotated.len();
    let asked = fields.flag("use_sliding_window")?;
    if let Some(list) = fields.list("layer_types")? {
        let types = list.iter().map(|value| match value.as_str() {
            Some("full_attention") => Ok(false),
            Some("sliding_attention") => Ok(true),
            _ => Err(fields.refuse(
                "layer_types",
                format!("holds {}; supported are full_attention and sliding_attention", brief(value)),
            )),
        });
        let types: Vec<bool> = types.collect::<Result<_, _>>()?;
        if types.len() != count {
            return Err(fields.refuse("layer_types", format!("has {} entries for {count} layers", types.len())));
        }
        return Ok(types);
    }
    let from = |first: usize| (0..count).map(|index| index >= first).collect();
    Ok(match family.windows {
        Windows::Never => vec![false; count],
        Windows::Every => vec![true; count],
        Windows::IfAsked => vec![asked; count],
        // The one count that may be 0.
        Windows::FromLayer if asked && fields.get("max_window_layers").and_then(Value::as_u64) == Some(0) => from(0),
        Windows::FromLayer if asked => from(fields.count("max_window_layers", LAYERS_MAX)?.unwrap_or(28)),
        Windows::Unrotated if asked && fields.has("sliding_window") => rotated.iter().map(|rotated| !rotated).collect(),
        Windows::FromLayer | Windows::Unrotated => vec![false; count],
        Windows::Pattern => {
            let field = if fields.has("_sliding_window_pattern") {
                "_sliding_window_pattern"
            } else {
                "sliding_window_pattern"
            };
            let pattern = fields.needed(field, LAYERS_MAX)?;
            (1..=count).map(|number| number % pattern != 0).collect()
        }
    })
}

/// Which layers are mixtures of experts.
fn mixed(fields: Fields<'_>, family: &Family, count: usize) -> Result<Vec<bool>, LoadError> {
    if family.experts != Experts::Qwen {
        return Ok(vec![family.experts != Experts::None; count]);
    }
    let step = fields.count("decoder_sparse_step", LAYERS_MAX)?.unwrap_or(1);
    let dense = fields.list("mlp_only_layers")?.unwrap_or_default();
    let is_dense = |index: usize| dense.iter().any(|value| value.as_u64() == Some(index as u64));
    Ok((0..count).map(|index| !is_dense(index) && (index + 1) % step == 0).collect())
}
