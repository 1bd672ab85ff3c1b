//! The rotations of a `config.json`, in both spellings; what they mean is [`super::rope`]'s business.

use super::config::CONTEXT_MAX;
use super::families::Family;
use super::fields::{Fields, brief};
use super::rope::{Rope, Scaling};
use crate::error::LoadError;
use serde_json::{Map, Value};

/// The rotation of most layers, and that of windowed layers where it differs.
pub(super) fn ropes(
    fields: Fields<'_>,
    family: &Family,
    head_dim: usize,
    context: usize,
) -> Result<(Rope, Option<Rope>), LoadError> {
    let reader = RopeReader { fields, head_dim, context, longrope: family.architecture == "Phi3ForCausalLM" };
    let parameters = fields.object("rope_parameters")?;
    let nested = match parameters {
        Some(parameters) => (parameters.object("full_attention")?, parameters.object("sliding_attention")?),
        None => (None, None),
    };
    let theta = fields.positive("rope_theta")?.unwrap_or(10_000.0);
    let theta_local = fields.positive("rope_local_base_freq")?;
    match nested {
        (None, None) => {
            let scaling = if parameters.is_some() { parameters } else { fields.object("rope_scaling")? };
            let rope = reader.read(scaling, theta)?;
            let local = theta_local.map(|theta| reader.read(None, theta)).transpose()?;
            Ok((rope, local))
        }
        (full, sliding) => {
            let rope = reader.read(full, theta)?;
            let local = reader.read(sliding, theta_local.unwrap_or(theta))?;
            let differs = local != rope;
            Ok((rope, differs.then_some(local)))
        }
    }
}

/// Reads `rope_scaling` or `rope_parameters`, or one of the latter's layer types.
struct RopeReader<'a> {
    fields: Fields<'a>,
    head_dim: usize,
    context: usize,
    /// Old Phi-3 files call LongRoPE "su" or "yarn".
    longrope: bool,
}

impl RopeReader<'_> {
    fn read(&self, parameters: Option<Fields<'_>>, theta: f64) -> Result<Rope, LoadError> {
        let empty = Map::new();
        let inner = parameters.unwrap_or(Fields { file: self.fields.file, map: &empty, defaults: &[] });
        let theta = inner.positive("rope_theta")?.unwrap_or(theta);
        if theta <= 1.0 {
            return Err(self.fields.refuse("rope_theta", format!("is {theta}; expected a number above 1")));
        }
        let fraction = match inner.positive("partial_rotary_factor")? {
            Some(fraction) => fraction,
            None => self.fields.positive("partial_rotary_factor")?.unwrap_or(1.0),
        };
        let dims = (self.head_dim as f64 * fraction) as usize;
        if fraction > 1.0 || dims == 0 || !dims.is_multiple_of(2) {
            let reason =
                format!("is {fraction}, which rotates {dims} of {} numbers; expected an even share", self.head_dim);
            return Err(self.fields.refuse("partial_rotary_factor", reason));
        }
        let scaling = self.scaling(inner, dims / 2)?;
        Ok(Rope { theta, dims, interleaved: false, scaling })
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
            "su" | "yarn" if self.longrope => self.longrope(inner, pairs),
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
