//! The rotations of a `config.json`, in both spellings; what they mean is [`super::rope`]'s business.

use super::config::CONTEXT_MAX;
use super::families::{Experts, Family};
use super::fields::{Fields, brief};
use super::rope::{Rope, Scaling};
use crate::error::LoadError;
use serde_json::{Map, Value, json};

/// The rotation of most layers, and that of windowed layers where it differs.
pub(super) fn ropes(
    fields: Fields<'_>,
    family: &Family,
    head_dim: usize,
    context: usize,
) -> Result<(Rope, Option<Rope>), LoadError> {
    let reader = RopeReader { fields, family, head_dim, context };
    let scaling = fields.object("rope_scaling")?.filter(|scaling| !scaling.map.is_empty());
    let parameters = fields.object("rope_parameters")?;
    let nested = match parameters {
        Some(parameters) => (parameters.object("full_attention")?, parameters.object("sliding_attention")?),
        None => (None, None),
    };
    let theta = fields.positive("rope_theta")?.unwrap_or(10_000.0);
    let theta_local = fields.positive("rope_local_base_freq")?;
    match nested {
        (None, None) => {
            let stated = match (parameters, scaling) {
                (None, None) if family.experts == Experts::GptOss => gpt_oss(),
                _ => merged(parameters, scaling, |name| {
                    name == PARTIAL || (name == "rope_theta" && !fields.has("rope_theta"))
                }),
            };
            let rope = reader.read(Some(fields.within(&stated)), theta)?;
            let local = theta_local.map(|theta| reader.read(None, theta)).transpose()?;
            Ok((rope, local))
        }
        (full, sliding) => {
            let full = merged(full, scaling, |_| true);
            let rope = reader.read(Some(fields.within(&full)), theta)?;
            let local = reader.read(sliding, theta_local.unwrap_or(theta))?;
            let differs = local != rope;
            Ok((rope, differs.then_some(local)))
        }
    }
}

/// The share of a head that is rotated.
const PARTIAL: &str = "partial_rotary_factor";

/// What a `rope_scaling` makes of `rope_parameters` beside it: model cards have users add it to files of either spelling.
/// It says how angles are stretched; of the others' fields, those that are `kept` stay where it has none of that name.
/// transformers 5.24 loses the base there and takes its default, which no model was trained with.
fn merged(
    parameters: Option<Fields<'_>>,
    scaling: Option<Fields<'_>>,
    kept: impl Fn(&str) -> bool,
) -> Map<String, Value> {
    let mut merged = parameters.map(|parameters| parameters.map.clone()).unwrap_or_default();
    if let Some(scaling) = scaling {
        let kind = |name: &str| name == "rope_type" || name == "type";
        let replaced = scaling.has("rope_type") || scaling.has("type");
        merged.retain(|name, _| kept(name) && !(replaced && kind(name)));
        merged.extend(scaling.map.clone());
    }
    merged
}

/// How transformers stretches the angles of gpt-oss where the file says nothing.
fn gpt_oss() -> Map<String, Value> {
    let fields = [
        ("rope_type", json!("yarn")),
        ("factor", json!(32.0)),
        ("original_max_position_embeddings", json!(4096)),
        ("truncate", json!(false)),
    ];
    fields.map(|(name, value)| (name.to_owned(), value)).into_iter().collect()
}

/// Reads `rope_scaling` or `rope_parameters`, or one of the latter's layer types.
struct RopeReader<'a> {
    fields: Fields<'a>,
    family: &'a Family,
    head_dim: usize,
    context: usize,
}

impl RopeReader<'_> {
    fn read(&self, parameters: Option<Fields<'_>>, theta: f64) -> Result<Rope, LoadError> {
        let empty = Map::new();
        let inner = parameters.unwrap_or(Fields { file: self.fields.file, map: &empty, defaults: &[] });
        let theta = inner.positive("rope_theta")?.unwrap_or(theta);
        if theta <= 1.0 {
            return Err(self.fields.refuse("rope_theta", format!("is {theta}; expected a number above 1")));
        }
        let fraction = self.fraction(inner)?;
        let dims = (self.head_dim as f64 * fraction) as usize;
        if fraction > 1.0 || dims == 0 || !dims.is_multiple_of(2) {
            let reason =
                format!("is {fraction}, which rotates {dims} of {} numbers; expected an even share", self.head_dim);
            return Err(self.fields.refuse(PARTIAL, reason));
        }
        let scaling = self.scaling(inner, dims / 2)?;
        Ok(Rope { theta, dims, interleaved: false, scaling })
    }

    /// The share of a head that is rotated: all of it, but in architectures that read the field.
    fn fraction(&self, inner: Fields<'_>) -> Result<f64, LoadError> {
        if !self.family.reads.contains(&PARTIAL) {
            return Ok(1.0);
        }
        match inner.positive(PARTIAL)? {
            Some(fraction) => Ok(fraction),
            None => Ok(self.fields.positive(PARTIAL)?.unwrap_or(1.0)),
        }
    }

    fn scaling(&self, inner: Fields<'_>, pairs: usize) -> Result<Scaling, LoadError> {
        let kind = match inner.text("rope_type")? {
            Some(kind) => kind,
            None => inner.text("type")?.unwrap_or("default"),
        };
        for unread in ["mscale", "mscale_all_dim", "mrope_section"] {
            if inner.has(unread) {
                return Err(inner.refuse(unread, "is not supported"));
            }
        }
        let needed = |field: &str| inner.positive(field)?.ok_or_else(|| inner.refuse(field, "is missing"));
        match kind {
            "default" => Ok(Scaling::None),
            "linear" => Ok(Scaling::Linear { factor: needed("factor")? }),
            "llama3" => {
                let (low, high) = (needed("low_freq_factor")?, needed("high_freq_factor")?);
                if low >= high {
                    return Err(inner.refuse("low_freq_factor", "is not below `high_freq_factor`"));
                }
                Ok(Scaling::Llama3 { factor: needed("factor")?, low, high, original: self.original(inner)? as f64 })
            }
            "longrope" => self.longrope(inner, pairs),
            // Old Phi-3 files call LongRoPE so.
            "su" | "yarn" if self.family.architecture == "Phi3ForCausalLM" => self.longrope(inner, pairs),
            "yarn" => self.yarn(inner),
            other => {
                let reason =
                    format!("is {}; supported are default, linear, llama3, yarn, longrope", brief(&Value::from(other)));
                Err(inner.refuse("rope_type", reason))
            }
        }
    }

    /// The context before stretching.
    fn original(&self, inner: Fields<'_>) -> Result<usize, LoadError> {
        const FIELD: &str = "original_max_position_embeddings";
        let outer = self.fields.count(FIELD, CONTEXT_MAX)?;
        Ok(outer.or(inner.count(FIELD, CONTEXT_MAX)?).unwrap_or(self.context))
    }

    fn yarn(&self, inner: Fields<'_>) -> Result<Scaling, LoadError> {
        let original = self.original(inner)? as f64;
        let factor = inner.positive("factor")?.unwrap_or(self.context as f64 / original);
        let inferred = if factor <= 1.0 { 1.0 } else { 0.1 * factor.ln() + 1.0 };
        Ok(Scaling::Yarn {
            factor,
            beta_fast: inner.positive("beta_fast")?.unwrap_or(32.0),
            beta_slow: inner.positive("beta_slow")?.unwrap_or(1.0),
            original,
            attention: inner.positive("attention_factor")?.unwrap_or(inferred),
            truncate: !inner.has("truncate") || inner.flag("truncate")?,
        })
    }

    fn longrope(&self, inner: Fields<'_>, pairs: usize) -> Result<Scaling, LoadError> {
        let original = self.original(inner)?;
        if original < 2 {
            return Err(inner.refuse("original_max_position_embeddings", "is 1, which stretches to nothing"));
        }
        let factor = inner.positive("factor")?.unwrap_or(self.context as f64 / original as f64);
        let inferred = if factor <= 1.0 { 1.0 } else { (1.0 + factor.ln() / (original as f64).ln()).sqrt() };
        Ok(Scaling::PerPair {
            short: inner.positives("short_factor", pairs)?,
            long: inner.positives("long_factor", pairs)?,
            original,
            attention: inner.positive("attention_factor")?.unwrap_or(inferred),
        })
    }
}
