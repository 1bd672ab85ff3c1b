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

use crate::settings::Isolation;
use crate::{Artifact, Backend, Format, LoadError, LoadOptions, Model, Predictor};
#[cfg(not(feature = "onnx"))]
use disabled as runtime;
#[cfg(feature = "onnx")]
use enabled as runtime;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;

use outline::Past;
pub use outline::external_files;
pub(crate) use outline::looks_like;

/// Where ONNX Runtime is looked for, and in whose process it computes.
#[derive(Clone, Debug, Default)]
pub struct OnnxOptions {
    /// Files, in order; a plain name is looked for where the system has its libraries.
    pub libraries: Vec<PathBuf>,
    /// Which graphs have a process of their own, where their settings do not say.
    pub isolation: Isolation,
    /// What there is besides this process.
    pub place: Place,
}

/// Where a graph is computed that may end the process that it is computed in. ONNX Runtime is native code: some of its
/// operators end the process over a tensor without elements, and a graph may bring one about by itself; and where a request
/// says how large a tensor is, the system may end the process for want of memory.
#[derive(Clone, Debug, Default)]
pub enum Place {
    /// In this process, which serves others, too: requests that may end it are refused, as far as they can be told.
    #[default]
    Here,
    /// In this process, which is there for the graph alone: it takes every request.
    Own,
    /// What may end this process is computed in another.
    Elsewhere(Arc<dyn Elsewhere>),
}

/// Whoever starts processes for graphs.
pub trait Elsewhere: Send + Sync + std::fmt::Debug {
    /// Loads a graph in a process of its own, and waits until it is ready. It lives as long as what is given back.
    ///
    /// # Errors
    /// There is no process to be had, or it refuses the graph.
    fn start(&self, artifact: &Artifact) -> Result<Box<dyn Predictor>, LoadError>;
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
        let isolation = artifact.settings().onnx.isolation.unwrap_or(options.onnx.isolation);
        let elsewhere = match &options.onnx.place {
            Place::Elsewhere(elsewhere) if isolation != Isolation::Never => Some(elsewhere),
            _ => None,
        };
        if let Some(elsewhere) = elsewhere.filter(|_| isolation == Isolation::Always) {
            return elsewhere.start(artifact).map(Model::Predictor);
        }
        // Longer ones, which protobuf cannot count, are not even read.
        let model_bytes = options.limits.model_bytes.min(i32::MAX as u64);
        // Both take their time, and neither needs the other.
        let mut bytes = thread::scope(|scope| {
            // Where the system gives no thread, what it would have prepared is made when it is needed.
            let _ = thread::Builder::new().spawn_scoped(scope, || runtime::prepare(options));
            artifact.read_model(&crate::Limits { model_bytes, ..options.limits })
        })?;
        let outline = outline::read(&bytes).map_err(refuse)?;
        let directory = path.parent().unwrap_or(std::path::Path::new("."));
        outline::check_external(&outline, directory)?;
        let risky = outline.past == Past::Starves || !outline.risks().is_empty();
        if let Some(elsewhere) = elsewhere.filter(|_| risky) {
            drop(bytes);
            return elsewhere.start(artifact).map(Model::Predictor);
        }
        if !matches!(options.onnx.place, Place::Own) {
            outline::conceal(&mut bytes, &outline.stated);
        }
        let files = outline::read_external(&outline, directory, options.limits.model_bytes)?;
        let source = Source { bytes, outline, directory: directory.to_path_buf(), files };
        let predictor = runtime::load(source, artifact.settings(), options);
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
    /// Of that, what is given from memory.
    files: outline::Files,
}
