//! What a model takes and gives: ports, accepted types, and how strictly names are matched.

use crate::tensor::DataType;
use std::collections::BTreeMap;

/// Naming and strictness of tensors for models that do not name their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Conventions {
    /// One input under any name and of any numeric type; output `output-0`.
    Kserve,
    /// Input `input__0`, output `output__0`; other names and types are refused.
    Triton,
}

/// A value of a request or model parameter.
#[derive(Clone, Debug, PartialEq)]
pub enum Parameter {
    /// True or false.
    Bool(bool),
    /// A whole number.
    Int(i64),
    /// A whole number too large for [`Parameter::Int`].
    Uint(u64),
    /// A number.
    Double(f64),
    /// Text.
    String(String),
}

/// Named parameters of a request.
pub type Parameters = BTreeMap<String, Parameter>;

/// One input or output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// Its name.
    pub name: String,
    /// The type that metadata states.
    pub datatype: DataType,
    /// Types that are taken besides it, where types are matched exactly.
    pub also: Vec<DataType>,
    /// Its shape; -1 is any length.
    pub shape: Vec<i64>,
    /// May it have any shape? Then `shape` says nothing.
    pub any_shape: bool,
    /// May it be left out?
    pub optional: bool,
    /// One label for each index of the last dimension, for classification.
    pub labels: Vec<String>,
}

/// What a model takes and gives.
#[derive(Clone, Debug)]
pub struct Signature {
    /// Inputs.
    pub inputs: Vec<Port>,
    /// Outputs.
    pub outputs: Vec<Port>,
    /// Are names and types of inputs matched exactly?
    pub strict: bool,
    /// Columns of a tabular model, in order; empty where it has no names.
    pub feature_names: Vec<String>,
    /// The kind of model.
    pub platform: Platform,
}

/// The kind of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Platform {
    /// Trees of XGBoost.
    Xgboost,
    /// Trees of LightGBM.
    LightGbm,
    /// A graph, which ONNX Runtime computes.
    Onnx,
    /// A language model in a directory as those of Hugging Face's hub.
    HuggingFace,
    /// A language model in a GGUF file.
    Gguf,
}

impl Platform {
    /// As metadata's `platform` states it: by Triton's name where it has one.
    pub fn name(self) -> &'static str {
        match self {
            Platform::Xgboost => "xgboost",
            Platform::LightGbm => "lightgbm",
            Platform::Onnx => "onnxruntime_onnx",
            Platform::HuggingFace => "huggingface",
            Platform::Gguf => "gguf",
        }
    }
}
