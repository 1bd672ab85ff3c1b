//! In place of ONNX Runtime, in a build without it.

use super::{Refusal, Source};
use crate::{LoadOptions, Predictor, Settings};

/// There is nothing to begin with.
pub(super) fn prepare(_: &LoadOptions) {}

/// Says that there is none.
pub(super) fn load(_: Source, _: &Settings, _: &LoadOptions) -> Result<Box<dyn Predictor>, Refusal> {
    let reason = "this build of the server has no ONNX Runtime; take one that was built with the feature `onnx`";
    Err(reason.to_owned().into())
}
