//! ONNX graphs, through ONNX Runtime.
//!
//! ```text
//! model.onnx --outline--> what the file says of itself; refused here, nothing else sees it
//!            --session--> ONNX Runtime's graph --signature--> names, types, shapes
//! tensors    --values---> its values, without a copy --run--> its outputs --values, flatten--> tensors
//! ```
//!
//! The library is looked for when the first such model is loaded, and nothing here is linked against it. Whatever names
//! it lies in `enabled/`; a build without the feature `onnx` has `disabled` in its place, and knows the files all the
//! same.

#[cfg(not(feature = "onnx"))]
mod disabled;
#[cfg(feature = "onnx")]
mod enabled;
mod outline;

use crate::{Artifact, Backend, Format, LoadError, LoadOptions, Model};
#[cfg(not(feature = "onnx"))]
use disabled as runtime;
#[cfg(feature = "onnx")]
use enabled as runtime;
use std::path::PathBuf;
use std::thread;

pub use outline::external_files;
pub(crate) use outline::looks_like;

/// Where ONNX Runtime is looked for.
#[derive(Clone, Debug, Default)]
pub struct OnnxOptions {
    /// Files, in order; a plain name is looked for where the system has its libraries.
    pub libraries: Vec<PathBuf>,
}

/// ONNX graphs.
#[derive(Debug)]
pub struct OnnxBackend;

impl Backend for OnnxBackend {
    fn name(&self) -> &'static str {
        "onnxruntime"
    }

    fn reads(&self, format: Format) -> bool {
        format == Format::Onnx
    }

    fn load(&self, artifact: &Artifact, options: &LoadOptions) -> Result<Model, LoadError> {
        let path = artifact.model_path();
        let refuse = |reason: String| LoadError::new(path, reason);
        artifact.settings().check_for(true).map_err(refuse)?;
        // Longer ones, which protobuf cannot count, are not even read.
        let model_bytes = options.limits.model_bytes.min(i32::MAX as u64);
        // Both take their time, and neither needs the other.
        let bytes = thread::scope(|scope| {
            // Where the system gives no thread, what it would have prepared is made when it is needed.
            let _ = thread::Builder::new().spawn_scoped(scope, || runtime::prepare(options));
            artifact.read_model(&crate::Limits { model_bytes, ..options.limits })
        })?;
        let outline = outline::read(&bytes).map_err(refuse)?;
        let directory = path.parent().unwrap_or(std::path::Path::new("."));
        outline::check_external(&outline, directory)?;
        let source = Source { bytes, outline, directory: directory.to_path_buf() };
        let predictor = runtime::load(&source, artifact.settings(), options);
        let predictor = predictor.map_err(|why| LoadError::new(path, why.reason).with_detail(why.detail))?;
        Ok(Model::Predictor(predictor))
    }
}

/// Why a graph is not served, and what of it only whoever runs the server is told.
#[derive(Debug)]
struct Refusal {
    reason: String,
    detail: String,
}

impl From<String> for Refusal {
    fn from(reason: String) -> Self {
        Refusal { reason, detail: String::new() }
    }
}

/// A file that was found to be what it should be.
#[cfg_attr(not(feature = "onnx"), expect(dead_code, reason = "nothing is loaded without ONNX Runtime"))]
struct Source {
    bytes: Vec<u8>,
    outline: outline::Outline,
    /// Where it lies, and its external data.
    directory: PathBuf,
}
