//! What keys and values of a layer were measured to be times: numbers that publishers lay beside the weights, for caches of
//! eight bits. What is stored is a key over its scale.
//!
//! ```text
//! model.layers.3.self_attn.k_scale   model.layers.3.self_attn.k_proj.k_scale    [] or [1]
//! model.layers.3.self_attn.v_scale   model.layers.3.self_attn.v_proj.v_scale
//! ```

use super::layout::{self, Part, Slot};
use super::spec::DecoderSpec;
use super::weights::{Format, Weights, blocks};
use crate::error::LoadError;

/// Names that the scale of a layer's keys or values may have.
fn names(spec: &DecoderSpec, layer: usize, slot: Slot) -> Vec<String> {
    let letter = if slot == Slot::Value { 'v' } else { 'k' };
    let place = layout::place(spec, Part { slot, layer, expert: 0 }, Format::F32);
    // Beside the projection, however that is called: `self_attn.k_proj.weight`, or `self_attn.qkv_proj.weight`.
    let attention = place.as_ref().and_then(|place| place.name.rsplitn(3, '.').nth(2));
    let of = |attention| [format!("{attention}.{letter}_scale"), format!("{attention}.{letter}_proj.{letter}_scale")];
    attention.map(of).into_iter().flatten().collect()
}

/// All names that such a number may have in a model.
pub(super) fn all_names(spec: &DecoderSpec) -> Vec<String> {
    let of_layer = |layer| [names(spec, layer, Slot::Key), names(spec, layer, Slot::Value)].concat();
    (0..spec.layers.len()).flat_map(of_layer).collect()
}

/// The scales of keys and of values, layer by layer; 1 where nobody has measured them.
///
/// # Errors
/// One is no single number above 0, or cannot be read.
pub fn scales(spec: &DecoderSpec, weights: &dyn Weights) -> Result<Vec<[f32; 2]>, LoadError> {
    let scale = |layer, slot| -> Result<f32, LoadError> {
        let all = names(spec, layer, slot);
        let found = all.iter().find_map(|name| Some((name, weights.info(name)?)));
        let Some((name, info)) = found else { return Ok(1.0) };
        let refuse = |what: String| LoadError::new(weights.file(), format!("tensor '{name}' {what}"));
        let bytes = info.format.bytes(&info.shape).filter(|_| info.format.is_float()).unwrap_or(0);
        if info.shape.iter().any(|dim| *dim != 1) || bytes == 0 {
            return Err(refuse(format!("has shape {:?}; a scale of keys or values is one number", info.shape)));
        }
        let number = blocks::dequantise(info.format, &weights.read(name, 0..bytes)?).first().copied().unwrap_or(0.0);
        let good = number.is_normal() && number > 0.0;
        if good { Ok(number) } else { Err(refuse(format!("is {number}; a scale is above 0"))) }
    };
    (0..spec.layers.len()).map(|layer| Ok([scale(layer, Slot::Key)?, scale(layer, Slot::Value)?])).collect()
}
