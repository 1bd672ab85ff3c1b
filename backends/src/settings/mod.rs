//! What files cannot tell about a model: `model.toml`, or Triton's `config.pbtxt`, at the model's root.
//!
//! A field that is not known is an error: whoever wrote it expects it to do something.

mod triton;

use crate::artifact::check_link;
use crate::error::LoadError;
use crate::tensor::DataType;
use serde::Deserialize;
use std::fs;
use std::path::Path;
use std::time::Duration;

/// Which versions of a model are served.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VersionPolicy {
    /// The greatest so many.
    Latest(u32),
    /// Every one.
    All,
    /// These.
    Specific(Vec<u64>),
}

impl Default for VersionPolicy {
    fn default() -> Self {
        VersionPolicy::Latest(1)
    }
}

/// What a tree model answers with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Answer {
    /// What the library's `predict` gives.
    #[default]
    Value,
    /// The index of the likeliest class.
    Class,
    /// The probability of each class; `[1 - p, p]` where there are two.
    Probability,
}

/// How requests of a model gather.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Batching {
    /// Microseconds that a batch waits to fill.
    pub max_delay_us: Option<u64>,
    /// Requests that may wait.
    pub queue_size: Option<usize>,
}

impl Batching {
    /// How long a batch waits to fill.
    pub fn max_delay(&self) -> Option<Duration> {
        self.max_delay_us.map(Duration::from_micros)
    }
}

/// A model's own settings.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// The model's name, where the file states it: it must be the directory's.
    pub name: Option<String>,
    /// Use only the trees up to the best iteration that early stopping found, as XGBoost's scikit-learn API does.
    pub use_best_iteration: bool,
    /// Name of the input tensor; stating it makes matching strict.
    pub input: Option<String>,
    /// Name of the output tensor.
    pub output: Option<String>,
    /// Labels of classes, for the classification extension.
    pub labels: Vec<String>,
    /// Rows of a request.
    pub max_batch_size: Option<u32>,
    /// How requests gather.
    pub batching: Batching,
    /// Which versions are served.
    pub versions: VersionPolicy,
    /// What is answered.
    pub answer: Answer,
    /// The probability from which the second of two classes is the answer.
    pub threshold: Option<f32>,
    /// What `config.pbtxt` says of the input besides its name.
    #[serde(skip)]
    pub input_type: PortType,
    /// What `config.pbtxt` says of the output besides its name.
    #[serde(skip)]
    pub output_type: PortType,
    /// The model file, where there could be others beside it.
    pub file: Option<String>,
    /// Fields that were read, and mean nothing here: each with the reason. They are logged when the model is loaded.
    #[serde(skip)]
    pub without_effect: Vec<String>,
}

/// The datatype and width of an input or output, as far as they are stated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PortType {
    /// Of its elements.
    pub datatype: Option<DataType>,
    /// Length of its last dimension.
    pub columns: Option<usize>,
}

/// Reads the settings of a model; without a file all are as they are.
///
/// # Errors
/// Both files are there, or one cannot be read.
pub fn read(root: &Path) -> Result<Settings, LoadError> {
    let (toml, pbtxt) = (root.join("model.toml"), root.join("config.pbtxt"));
    match (text(&toml)?, text(&pbtxt)?) {
        (None, None) => Ok(Settings::default()),
        (Some(text), None) => toml::from_str(&text).map_err(|e| LoadError::new(&toml, e.to_string())),
        (None, Some(text)) => triton::read(&text, root).map_err(|what| LoadError::new(&pbtxt, what)),
        (Some(_), Some(_)) => Err(LoadError::new(root, "has model.toml and config.pbtxt; one of them is expected")),
    }
}

/// The text of a file that may be absent, but may not lead elsewhere.
fn text(path: &Path) -> Result<Option<String>, LoadError> {
    check_link(path)?;
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(LoadError::new(path, e.to_string())),
    }
}
