//! What files cannot tell about a model: `model.toml`, or Triton's `config.pbtxt`, at the model's root.
//!
//! A field that is not known is an error: whoever wrote it expects it to do something.

use crate::error::LoadError;
use crate::pbtxt::{self, Message, Value};
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
        (None, Some(text)) => from_pbtxt(&text, root).map_err(|what| LoadError::new(&pbtxt, what)),
        (Some(_), Some(_)) => Err(LoadError::new(root, "has model.toml and config.pbtxt; one of them is expected")),
    }
}

fn text(path: &Path) -> Result<Option<String>, LoadError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(LoadError::new(path, e.to_string())),
    }
}

/// Fields of Triton's configuration that mean nothing for models that run on the CPU, or that clients never see.
const WITHOUT_EFFECT: [&str; 8] = [
    "platform",
    "default_model_filename",
    "instance_group",
    "optimization",
    "metric_tags",
    "model_warmup",
    "runtime",
    "model_transaction_policy",
];
/// Triton's backends whose models are read here.
const BACKENDS: [&str; 5] = ["", "fil", "xgboost", "lightgbm", "tensorgate"];

fn from_pbtxt(text: &str, root: &Path) -> Result<Settings, String> {
    let config = pbtxt::parse(text)?;
    let mut settings = Settings { name: config.text("name")?.map(str::to_owned), ..Settings::default() };
    let backend = config.text("backend")?.unwrap_or_default();
    if !BACKENDS.contains(&backend) {
        return Err(format!("backend '{backend}' is not served; known are fil, xgboost, lightgbm"));
    }
    for (field, _) in &config.0 {
        let known = [
            "name",
            "backend",
            "max_batch_size",
            "input",
            "output",
            "dynamic_batching",
            "version_policy",
            "parameters",
        ];
        if !known.contains(&field.as_str()) && !WITHOUT_EFFECT.contains(&field.as_str()) {
            return Err(format!("field '{field}' is not known"));
        }
    }
    settings.max_batch_size = config.parsed::<u32>("max_batch_size")?.filter(|size| *size > 0);
    settings.input = port(&config, "input")?;
    settings.output = port(&config, "output")?;
    settings.labels = labels(&config, root)?;
    if let Some(batching) = config.message("dynamic_batching")? {
        let policy = batching.message("default_queue_policy")?;
        settings.batching = Batching {
            max_delay_us: batching.parsed("max_queue_delay_microseconds")?,
            queue_size: policy.map(|p| p.parsed("max_queue_size")).transpose()?.flatten().filter(|size| *size > 0),
        };
    }
    settings.versions = version_policy(&config)?;
    parameters(&config, &mut settings)?;
    Ok(settings)
}

/// The one input or output: its name, after its type was checked.
fn port(config: &Message, field: &str) -> Result<Option<String>, String> {
    let ports: Vec<&Value> = config.all(field).collect();
    let [Value::Message(port)] = ports[..] else {
        return if ports.is_empty() { Ok(None) } else { Err(format!("{} of '{field}'; one is expected", ports.len())) };
    };
    let datatype = port.text("data_type")?.unwrap_or_default();
    let known = DataType::ALL.iter().any(|d| format!("TYPE_{}", d.name()) == datatype) || datatype == "TYPE_STRING";
    if !known {
        return Err(format!("data_type '{datatype}' of '{field}' is not known"));
    }
    Ok(port.text("name")?.map(str::to_owned))
}

/// The lines of the output's label file, which lies beside the configuration.
fn labels(config: &Message, root: &Path) -> Result<Vec<String>, String> {
    let Some(Value::Message(output)) = config.last("output") else { return Ok(Vec::new()) };
    let Some(file) = output.text("label_filename")?.filter(|file| !file.is_empty()) else { return Ok(Vec::new()) };
    let plain = Path::new(file).components().count() == 1 && !file.starts_with('.');
    if !plain {
        return Err(format!("label_filename '{file}' is not the plain name of a file beside config.pbtxt"));
    }
    let text = fs::read_to_string(root.join(file)).map_err(|e| format!("label_filename '{file}': {e}"))?;
    Ok(text.lines().map(str::to_owned).collect())
}

fn version_policy(config: &Message) -> Result<VersionPolicy, String> {
    let Some(policy) = config.message("version_policy")? else { return Ok(VersionPolicy::default()) };
    if let Some(latest) = policy.message("latest")? {
        return Ok(VersionPolicy::Latest(latest.parsed("num_versions")?.unwrap_or(1)));
    }
    if let Some(specific) = policy.message("specific")? {
        let versions: Option<Vec<u64>> = specific
            .all("versions")
            .map(|value| if let Value::Scalar(text) = value { text.parse().ok() } else { None })
            .collect();
        return Ok(VersionPolicy::Specific(versions.ok_or("'versions' are not whole numbers")?));
    }
    if policy.message("all")?.is_some() {
        return Ok(VersionPolicy::All);
    }
    Err("'version_policy' is none of latest, all, specific".into())
}

/// The forest inference library's parameters.
fn parameters(config: &Message, settings: &mut Settings) -> Result<(), String> {
    let (mut classifier, mut probabilities) = (false, false);
    for parameter in config.all("parameters") {
        let Value::Message(parameter) = parameter else { return Err("'parameters' are messages".into()) };
        let key = parameter.text("key")?.ok_or("a parameter has no 'key'")?;
        let value =
            parameter.message("value")?.map(|v| v.text("string_value")).transpose()?.flatten().unwrap_or_default();
        let flag = || match value {
            "true" | "True" | "1" => Ok(true),
            "false" | "False" | "0" => Ok(false),
            other => Err(format!("parameter '{key}' is '{other}', neither true nor false")),
        };
        match key {
            "is_classifier" | "output_class" => classifier = flag()?,
            "predict_proba" => probabilities = flag()?,
            "threshold" => {
                let number = value.parse().map_err(|_| format!("parameter 'threshold' is '{value}', no number"))?;
                settings.threshold = Some(number);
            }
            // The format is told by the file, layout and threads by measurement.
            "model_type"
            | "storage_type"
            | "algo"
            | "layout"
            | "chunk_size"
            | "transfer_threshold"
            | "cpu_nthread"
            | "blocks_per_sm"
            | "threads_per_tree"
            | "use_experimental_optimizations"
            | "xgboost_allow_unknown_field" => {}
            other => return Err(format!("parameter '{other}' is not known")),
        }
    }
    settings.answer = match (classifier, probabilities) {
        (true, false) => Answer::Class,
        (_, true) => Answer::Probability,
        (false, false) => Answer::Value,
    };
    Ok(())
}
