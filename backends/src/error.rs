//! What can go wrong with a model, and with a call of it. Protocol statuses are not decided here.

use std::path::{Path, PathBuf};

/// Why a model cannot be loaded: which file, and what is wrong with it.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[error("{}: {reason}{}", file.display(), aside(detail))]
pub struct LoadError {
    /// The file or directory at fault, relative to the repository where possible.
    pub file: PathBuf,
    /// What is wrong.
    pub reason: String,
    /// What whoever runs the server may know besides, and clients may not: it names files of the machine. Often empty.
    pub detail: String,
    /// Is the device lost that it was to be computed on? Then no model is loaded on it any more in this process.
    pub lost: bool,
}

impl LoadError {
    /// `file` is refused for `reason`.
    pub fn new(file: impl AsRef<Path>, reason: impl Into<String>) -> Self {
        LoadError { file: file.as_ref().to_path_buf(), reason: reason.into(), detail: String::new(), lost: false }
    }

    /// The same with what clients are not told.
    #[must_use]
    pub fn with_detail(self, detail: impl Into<String>) -> Self {
        LoadError { detail: detail.into(), ..self }
    }

    /// The same where the device is lost, if it is.
    #[must_use]
    pub fn with_lost(self, lost: bool) -> Self {
        LoadError { lost, ..self }
    }

    /// The detail as it stands behind the reason.
    pub fn aside(&self) -> String {
        aside(&self.detail)
    }
}

fn aside(detail: &str) -> String {
    if detail.is_empty() { String::new() } else { format!(" ({detail})") }
}

/// Why a call failed.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum InferError {
    /// The request is at fault; says what, where, and what would be right.
    #[error("{0}")]
    Invalid(String),
    /// The model cannot do this.
    #[error("{0}")]
    Unsupported(String),
    /// The deadline passed before the answer was ready.
    #[error("the request's deadline passed before its answer was ready")]
    Deadline,
    /// There is not enough memory for it; says how much was asked for.
    #[error("there is not enough memory for what this request asks: {0}")]
    Memory(String),
    /// Nobody waits for the answer.
    #[error("the request was cancelled")]
    Cancelled,
    /// The model does not answer at the moment; it may do so soon. Says why.
    #[error("{0}")]
    Unavailable(String),
    /// The model is at fault.
    #[error("{0}")]
    Internal(String),
    /// It is so badly at fault that nobody knows what state it was left in: what asked for this is not tried again.
    #[error("the model panicked: {0}")]
    Panicked(String),
}

impl InferError {
    /// The request is at fault.
    pub fn invalid(what: impl Into<String>) -> Self {
        InferError::Invalid(what.into())
    }
}
