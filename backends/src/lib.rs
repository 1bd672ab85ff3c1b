//! Models: a directory of files in, tensors in, tensors out.
//!
//! The contract is this page: [`Backend`] turns an [`Artifact`] into a [`Model`], [`load`] picks the backend. Everything
//! here is synchronous and local; there is no wire type, no network, no environment variable and no clock besides the
//! deadline that a [`Call`] carries.

pub mod artifact;
pub mod error;
pub mod llm;
pub mod onnx;
mod pbtxt;
pub mod settings;
pub mod signature;
pub mod tensor;
pub mod tree;

pub use artifact::{Artifact, Format};
pub use error::{InferError, LoadError};
pub use settings::Settings;
pub use signature::{Conventions, Parameter, Parameters, Platform, Port, Signature};
pub use tensor::{DataType, Element, Limits, Tensor};

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// A way to turn files into a running model. The set is open: see [`BACKENDS`].
pub trait Backend: Sync {
    /// Short name, as in metrics and metadata.
    fn name(&self) -> &'static str;
    /// Does it read files of this format?
    fn reads(&self, format: Format) -> bool;
    /// Reads and prepares a model.
    ///
    /// # Errors
    /// [`LoadError`] names the file, the place in it, and what is wrong.
    fn load(&self, artifact: &Artifact, options: &LoadOptions) -> Result<Model, LoadError>;
}

/// Every backend of this build.
pub const BACKENDS: &[&dyn Backend] = &[&tree::TreeBackend, &llm::LanguageBackend, &onnx::OnnxBackend];

/// What a model may use.
#[derive(Clone, Debug)]
pub struct LoadOptions {
    /// The one compute pool: rows of large batches are split over it.
    pub pool: Arc<rayon::ThreadPool>,
    /// Bounds on files and tensors.
    pub limits: Limits,
    /// Tensor names and strictness.
    pub conventions: Conventions,
    /// Of language models.
    pub language: llm::LanguageOptions,
    /// Of ONNX graphs.
    pub onnx: onnx::OnnxOptions,
}

/// A loaded model.
#[derive(Debug)]
pub enum Model {
    /// Tensors in, tensors out.
    Predictor(Box<dyn Predictor>),
    /// Text in, text out, token by token.
    Language(Box<llm::LanguageModel>),
}

/// Set when nobody waits for a call's answer any more.
#[derive(Clone, Debug, Default)]
pub struct CancelFlag {
    left: Arc<AtomicBool>,
    /// Those who wait for a part of the answer each: when all of them have left, nobody waits.
    parts: Option<Arc<[CancelFlag]>>,
}

impl CancelFlag {
    /// The flag of a call that several wait for: set when all of theirs are.
    pub fn of_all(parts: impl IntoIterator<Item = CancelFlag>) -> Self {
        let parts: Arc<[CancelFlag]> = parts.into_iter().collect();
        CancelFlag { left: Arc::default(), parts: Some(parts).filter(|parts| !parts.is_empty()) }
    }
    /// Says that nobody waits.
    pub fn cancel(&self) {
        self.left.store(true, Ordering::Relaxed);
    }
    /// Does nobody wait?
    pub fn is_cancelled(&self) -> bool {
        let gone = |parts: &Arc<[CancelFlag]>| parts.iter().all(CancelFlag::is_cancelled);
        self.left.load(Ordering::Relaxed) || self.parts.as_ref().is_some_and(gone)
    }
}

/// One call of a model.
#[derive(Clone, Copy, Debug)]
pub struct Call<'a> {
    /// Inputs, checked against the signature.
    pub inputs: &'a [Tensor],
    /// Names of the wanted outputs; empty means all.
    pub outputs: &'a [String],
    /// Request parameters.
    pub parameters: &'a Parameters,
    /// When the answer is of no use any more.
    pub deadline: Option<Instant>,
    /// Whether somebody still waits.
    pub cancel: &'a CancelFlag,
}

impl Call<'_> {
    /// Checked between parts of a long computation.
    ///
    /// # Errors
    /// [`InferError::Deadline`] or [`InferError::Cancelled`].
    pub fn check(&self) -> Result<(), InferError> {
        if self.cancel.is_cancelled() {
            return Err(InferError::Cancelled);
        }
        match self.deadline {
            Some(deadline) if Instant::now() >= deadline => Err(InferError::Deadline),
            _ => Ok(()),
        }
    }
}

/// What a model is like to run.
#[derive(Clone, Debug)]
pub struct Profile {
    /// Can calls be stacked along the first dimension?
    pub batchable: bool,
    /// Calls that may run at the same time.
    pub instances: usize,
    /// Measured time of a call of one row.
    pub single_call: Duration,
    /// Is that so for every row, whatever is in it? Only then a short call may run where a request is read.
    pub steady: bool,
    /// Does a call compute on the thread that makes it, and for long? Such a thread is to stand back behind those that
    /// answer. Others compute in the pool, whose threads do.
    pub computes: bool,
    /// Rows worth computing together; more gain nothing. Of a graph, requests are put together up to as many.
    pub preferred_batch: usize,
    /// Where it runs: `cpu`, `cuda:0`.
    pub device: String,
    /// Bytes held.
    pub bytes: usize,
    /// What whoever asked for more should know: it is logged when the model is loaded.
    pub notes: Vec<String>,
}

/// Tensors in, tensors out, no memory between calls.
pub trait Predictor: Send + Sync + std::fmt::Debug {
    /// Names, types and shapes of inputs and outputs.
    fn signature(&self) -> &Signature;
    /// How it runs.
    fn profile(&self) -> Profile;
    /// May the inputs of one call have different numbers of rows, which the model itself brings together? Such a call is
    /// not stacked with others. Otherwise, where calls can be stacked, all inputs have as many.
    fn spreads_rows(&self) -> bool {
        false
    }
    /// Would a call be answered now? Asked by whoever asks whether the model is ready.
    fn is_ready(&self) -> bool {
        true
    }
    /// Computes the outputs of one call.
    ///
    /// # Errors
    /// [`InferError::Invalid`] where the inputs are at fault.
    fn predict(&self, call: &Call<'_>) -> Result<Vec<Tensor>, InferError>;
    /// Explains the outputs of one call.
    ///
    /// # Errors
    /// [`InferError::Unsupported`] where the model has no explainer.
    fn explain(&self, _call: &Call<'_>) -> Result<Vec<Tensor>, InferError> {
        Err(InferError::Unsupported("this model has no explainer".into()))
    }
}

/// Loads the model of `artifact` with the backend that reads its format.
///
/// # Errors
/// [`LoadError`] where no backend reads the files, or the one that does refuses them.
pub fn load(artifact: &Artifact, options: &LoadOptions) -> Result<Model, LoadError> {
    let format = artifact.format();
    let backend = BACKENDS
        .iter()
        .find(|backend| backend.reads(format))
        .ok_or_else(|| LoadError::new(artifact.model_path(), format!("no backend reads {format}")))?;
    backend.load(artifact, options)
}

#[cfg(test)]
mod tests {
    use super::CancelFlag;

    #[test]
    fn several_have_left_when_all_of_them_have() {
        let flags = [CancelFlag::default(), CancelFlag::default()];
        let all = CancelFlag::of_all(flags.clone());
        let copy = all.clone();
        assert!(!all.is_cancelled());
        flags[0].cancel();
        assert!(!all.is_cancelled() && !copy.is_cancelled());
        flags[1].cancel();
        assert!(all.is_cancelled() && copy.is_cancelled());
        // Nobody was there who could leave; but the call itself can be given up.
        let none = CancelFlag::of_all([]);
        assert!(!none.is_cancelled());
        none.cancel();
        assert!(none.is_cancelled());
    }
}
