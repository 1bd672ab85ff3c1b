//! In place of ONNX Runtime, in a build without it.

use super::Source;
use crate::{LoadOptions, Predictor, Settings};

/// Says that there is none.
pub(super) fn load(_: &Source, _: &Settings, _: &LoadOptions) -> Result<Box<dyn Predictor>, String> {
    Err("this build of the server has no ONNX Runtime; take one that was built with the feature `onnx`".into())
}
