//! What files cannot tell about a model: `model.toml`, or Triton's `config.pbtxt`, at the model's root.
//!
//! A field that is not known is an error: whoever wrote it expects it to do something. Whether the model is a tree
//! ensemble or an ONNX graph is not known when its settings are read; what only one of them has is kept apart until
//! then.

mod model_toml;
mod onnx;
mod port;
mod provider;
mod triton;

pub use onnx::{Device, InstanceGroup, Isolation, Onnx, Optimization};
pub use port::{PortSettings, PortType};
pub use provider::{Provider, ProviderKind};

use crate::artifact::check_link;
use crate::error::LoadError;
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

impl VersionPolicy {
    fn check(&self) -> Result<(), String> {
        match self {
            VersionPolicy::Latest(0) => Err("serves no version: it asks for the latest 0".into()),
            VersionPolicy::Specific(versions) if versions.is_empty() => {
                Err("serves no version: its list of specific ones is empty".into())
            }
            _ => Ok(()),
        }
    }
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
    /// A batch of so many rows waits for no more: the largest of Triton's `preferred_batch_size`.
    #[serde(skip)]
    pub preferred: Option<usize>,
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
    /// Name of a tree model's input tensor; stating it makes matching strict.
    pub input: Option<String>,
    /// Name of a tree model's output tensor.
    pub output: Option<String>,
    /// What is said of the inputs of an ONNX model, which has names of its own; or of a tree model's one.
    pub inputs: Vec<PortSettings>,
    /// The same of the outputs.
    pub outputs: Vec<PortSettings>,
    /// Labels of classes, for the classification extension.
    pub labels: Vec<String>,
    /// Rows of a request.
    pub max_batch_size: Option<u32>,
    /// Does `config.pbtxt` say that the first dimension of every tensor is a batch, or that it is none? Where it is,
    /// the dimensions of `inputs` and `outputs` are those of a row. `None` where it says neither, and with
    /// `model.toml`, which states shapes whole.
    #[serde(skip)]
    pub batched: Option<bool>,
    /// Does `config.pbtxt` have `dynamic_batching`? That of `max_batch_size`, which Triton wants of most models, says of one
    /// request what its first dimension is, and not that several may be put together.
    #[serde(skip)]
    pub dynamic_batching: bool,
    /// How requests gather.
    pub batching: Batching,
    /// Which versions are served.
    pub versions: VersionPolicy,
    /// What is answered.
    pub answer: Answer,
    /// The probability from which the second of two classes is the answer.
    pub threshold: Option<f32>,
    /// What is said of a tree model's input besides its name.
    #[serde(skip)]
    pub input_type: PortType,
    /// What is said of a tree model's output besides its name.
    #[serde(skip)]
    pub output_type: PortType,
    /// What an ONNX model is run with.
    pub onnx: Onnx,
    /// Devices that an ONNX model runs on; none is one instance wherever its providers put it.
    #[serde(rename = "instance_group")]
    pub groups: Vec<InstanceGroup>,
    /// The model file, where there could be others beside it.
    pub file: Option<String>,
    /// Are they those of `config.pbtxt`?
    #[serde(skip)]
    pub from_pbtxt: bool,
    /// Fields that were read, and mean nothing here whatever the model is: each with the reason. All that mean nothing
    /// to the model that is there are [`Settings::notes`].
    #[serde(skip)]
    pub without_effect: Vec<String>,
    /// What these settings are to a model that is no ONNX graph.
    #[serde(skip)]
    pub as_tree: Fit,
    /// What they are to an ONNX graph.
    #[serde(skip)]
    pub as_onnx: Fit,
}

/// What settings are to a model of some kind.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fit {
    /// Why it cannot be served with them.
    pub refused: Option<String>,
    /// Fields without effect on it, besides those of [`Settings::without_effect`].
    pub without_effect: Vec<String>,
}

impl Fit {
    fn refused(why: String) -> Self {
        Fit { refused: Some(why), without_effect: Vec::new() }
    }
}

impl Settings {
    /// Does somebody who knows the model say that rows of several requests may be computed together?
    pub fn gathers(&self) -> bool {
        self.dynamic_batching || !self.from_pbtxt && self.max_batch_size.is_some()
    }

    /// Can the model that is there be served with these settings? It is an ONNX graph, or it is none.
    ///
    /// # Errors
    /// What is stated that it cannot have.
    pub fn check_for(&self, onnx: bool) -> Result<(), String> {
        self.fit(onnx).refused.clone().map_or(Ok(()), Err)
    }

    /// Fields that were read and do nothing for the model that is there, each with the reason. They are logged when it
    /// is loaded.
    pub fn notes(&self, onnx: bool) -> impl Iterator<Item = &String> {
        self.without_effect.iter().chain(&self.fit(onnx).without_effect)
    }

    /// Labels of the classes of an output: those of its own, or where no output has any, those of the model, which are
    /// the first output's.
    pub fn labels_of(&self, index: usize, output: &str) -> &[String] {
        let own = self.outputs.iter().any(|port| !port.labels.is_empty());
        match self.outputs.iter().find(|port| port.name == output || port.name.is_empty()) {
            Some(port) if own => &port.labels,
            _ if own || index > 0 => &[],
            _ => &self.labels,
        }
    }

    fn fit(&self, onnx: bool) -> &Fit {
        if onnx { &self.as_onnx } else { &self.as_tree }
    }

    /// What is said of the only input or output is said of a tree model's, which has one of each.
    fn adopt_ports(&mut self) {
        if let [port] = &self.inputs[..] {
            (self.input, self.input_type) = port.alone();
        }
        if let [port] = &self.outputs[..] {
            (self.output, self.output_type) = port.alone();
            if !port.labels.is_empty() {
                self.labels.clone_from(&port.labels);
            }
        }
    }
}

/// Files of settings, at a model's root; of these a model has one at most.
pub const FILES: [&str; 2] = ["model.toml", "config.pbtxt"];

/// Reads the settings of a model; without a file all are as they are.
///
/// # Errors
/// Both files are there, or one cannot be read.
pub fn read(root: &Path) -> Result<Settings, LoadError> {
    let [toml, pbtxt] = FILES.map(|file| root.join(file));
    let (file, settings) = match (text(&toml)?, text(&pbtxt)?) {
        (None, None) => return Ok(Settings::default()),
        (Some(text), None) => (toml, model_toml::read(&text)),
        (None, Some(text)) => (pbtxt, triton::read(&text, root)),
        (Some(_), Some(_)) => {
            return Err(LoadError::new(root, format!("has {}; one of them is expected", FILES.join(" and "))));
        }
    };
    let checked = settings.and_then(|settings| settings.versions.check().map(|()| settings));
    checked.map_err(|what| LoadError::new(&file, what))
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
