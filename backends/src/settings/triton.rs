//! What the fields of Triton's `config.pbtxt` mean here. Each field acts, is refused, or is named as one without effect;
//! how the file is written is `pbtxt.rs`.

use super::{Answer, Batching, PortType, Settings, VersionPolicy, text};
use crate::pbtxt::{self, Message, Value};
use crate::tensor::DataType;
use std::path::Path;

/// Triton's backends whose models are read here.
const BACKENDS: [&str; 5] = ["", "fil", "xgboost", "lightgbm", "tensorgate"];

/// Fields that act.
const ACTING: [&str; 11] = [
    "name",
    "backend",
    "platform",
    "max_batch_size",
    "input",
    "output",
    "dynamic_batching",
    "version_policy",
    "parameters",
    "default_model_filename",
    "model_transaction_policy",
];

/// Fields without effect, and why.
const WITHOUT_EFFECT: [(&str, &str); 6] = [
    ("instance_group", "models run on the CPU, one instance on all of --nthread threads"),
    ("optimization", "the fastest path is found by measurement when the model is loaded"),
    ("metric_tags", "metrics carry the model's name and version"),
    ("model_warmup", "loading runs the model already"),
    ("runtime", "the backend is a part of this server"),
    ("response_cache", "answers are not cached"),
];

/// Fields of `dynamic_batching` without effect, and why.
const BATCHING_WITHOUT_EFFECT: [(&str, &str); 5] = [
    ("preferred_batch_size", "a batch takes whatever waits"),
    ("preserve_ordering", "answers go out as they are ready"),
    ("priority_levels", "any number of levels is served"),
    ("default_priority_level", "requests without a priority go last"),
    ("priority_queue_policy", "all priorities share one queue"),
];

/// Fields of `default_queue_policy` without effect, and why.
const POLICY_WITHOUT_EFFECT: [(&str, &str); 3] = [
    ("timeout_action", "a request whose time is over is refused"),
    ("default_timeout_microseconds", "--request-timeout and the request's own timeout bound its time"),
    ("allow_timeout_override", "a request may always state its timeout"),
];

/// Parameters of the forest inference library without effect: the format is told by the file, layout and threads by
/// measurement.
const PARAMETERS_WITHOUT_EFFECT: [&str; 11] = [
    "model_type",
    "storage_type",
    "algo",
    "layout",
    "chunk_size",
    "transfer_threshold",
    "cpu_nthread",
    "blocks_per_sm",
    "threads_per_tree",
    "use_experimental_optimizations",
    "xgboost_allow_unknown_field",
];

/// Reads a `config.pbtxt` that lies in `root`.
pub(super) fn read(text: &str, root: &Path) -> Result<Settings, String> {
    let config = pbtxt::parse(text)?;
    let mut settings = Settings { name: config.text("name")?.map(str::to_owned), ..Settings::default() };
    sort(&config, "", &ACTING, &WITHOUT_EFFECT, &mut settings)?;
    for field in ["backend", "platform"] {
        let stated = config.text(field)?.unwrap_or_default();
        if !BACKENDS.contains(&stated) {
            return Err(format!("{field} '{stated}' is not served; known are fil, xgboost, lightgbm"));
        }
    }
    if let Some(policy) = config.message("model_transaction_policy")?
        && policy.text("decoupled")?.unwrap_or("false") != "false"
    {
        return Err("model_transaction_policy 'decoupled': a tree model gives one answer to a request".into());
    }
    settings.file = config.text("default_model_filename")?.filter(|file| !file.is_empty()).map(str::to_owned);
    settings.max_batch_size = config.parsed::<u32>("max_batch_size")?.filter(|size| *size > 0);
    (settings.input, settings.input_type) = port(&config, "input", &[])?;
    (settings.output, settings.output_type) = port(&config, "output", &["label_filename"])?;
    if let Some(other) = settings.output_type.datatype.filter(|d| !matches!(d, DataType::Fp32 | DataType::Fp64)) {
        return Err(format!("data_type of 'output' is {other}; predictions are TYPE_FP32 or TYPE_FP64"));
    }
    settings.labels = labels(&config, root)?;
    batching(&config, &mut settings)?;
    settings.versions = version_policy(&config)?;
    parameters(&config, &mut settings)?;
    Ok(settings)
}

/// Sees to it that each field of a message is known, and notes those without effect.
fn sort(
    message: &Message,
    place: &str,
    acting: &[&str],
    without_effect: &[(&str, &str)],
    settings: &mut Settings,
) -> Result<(), String> {
    for (field, _) in &message.0 {
        if acting.contains(&field.as_str()) {
            continue;
        }
        let Some((_, why)) = without_effect.iter().find(|(known, _)| known == field) else {
            return Err(format!("field '{place}{field}' is not known"));
        };
        let note = format!("'{place}{field}' has no effect here: {why}");
        if !settings.without_effect.contains(&note) {
            settings.without_effect.push(note);
        }
    }
    Ok(())
}

fn batching(config: &Message, settings: &mut Settings) -> Result<(), String> {
    let Some(batching) = config.message("dynamic_batching")? else { return Ok(()) };
    let acting = ["max_queue_delay_microseconds", "default_queue_policy"];
    sort(batching, "dynamic_batching.", &acting, &BATCHING_WITHOUT_EFFECT, settings)?;
    let mut queue_size = None;
    if let Some(policy) = batching.message("default_queue_policy")? {
        let place = "dynamic_batching.default_queue_policy.";
        sort(policy, place, &["max_queue_size"], &POLICY_WITHOUT_EFFECT, settings)?;
        queue_size = policy.parsed("max_queue_size")?.filter(|size| *size > 0);
    }
    settings.batching = Batching { max_delay_us: batching.parsed("max_queue_delay_microseconds")?, queue_size };
    Ok(())
}

/// The one input or output: its name and type. What would change tensors in a way that is not served is refused.
fn port(config: &Message, field: &str, more: &[&str]) -> Result<(Option<String>, PortType), String> {
    let ports: Vec<&Value> = config.all(field).collect();
    let [Value::Message(port)] = ports[..] else {
        if ports.is_empty() {
            return Ok((None, PortType::default()));
        }
        return Err(format!("{} of '{field}'; one is expected", ports.len()));
    };
    for (name, value) in &port.0 {
        let plain = matches!(value, Value::Scalar(text) if text == "false" || text == "FORMAT_NONE");
        let known = ["name", "data_type", "dims"].contains(&name.as_str()) || more.contains(&name.as_str());
        if !known && !plain {
            return Err(format!("field '{field}.{name}' is not served"));
        }
    }
    let stated = port.text("data_type")?.unwrap_or_default();
    let datatype = match stated.strip_prefix("TYPE_") {
        Some("STRING") => Some(DataType::Bytes),
        Some(name) => DataType::parse(name),
        None => None,
    };
    let datatype = datatype.ok_or_else(|| format!("data_type '{stated}' of '{field}' is not known"))?;
    let mut columns = None;
    for dim in port.all("dims") {
        let Value::Scalar(text) = dim else { return Err(format!("'dims' of '{field}' are whole numbers")) };
        let length: i64 =
            text.parse().map_err(|_| format!("'dims' of '{field}' has '{text}', which is no whole number"))?;
        columns = usize::try_from(length).ok();
    }
    Ok((port.text("name")?.map(str::to_owned), PortType { datatype: Some(datatype), columns }))
}

/// The lines of the output's label file, which lies beside the configuration.
fn labels(config: &Message, root: &Path) -> Result<Vec<String>, String> {
    let Some(Value::Message(output)) = config.last("output") else { return Ok(Vec::new()) };
    let Some(file) = output.text("label_filename")?.filter(|file| !file.is_empty()) else { return Ok(Vec::new()) };
    let plain = Path::new(file).components().count() == 1 && !file.starts_with('.');
    if !plain {
        return Err(format!("label_filename '{file}' is not the plain name of a file beside config.pbtxt"));
    }
    match text(&root.join(file)) {
        Ok(Some(text)) => Ok(text.lines().map(str::to_owned).collect()),
        Ok(None) => Err(format!("label_filename '{file}': there is no such file")),
        Err(error) => Err(format!("label_filename '{file}': {}", error.reason)),
    }
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
            _ if PARAMETERS_WITHOUT_EFFECT.contains(&key) => settings.without_effect.push(format!(
                "parameter '{key}' has no effect here: formats are told by their bytes, layouts are found by measurement"
            )),
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

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(text: &str) -> Result<Settings, String> {
        read(text, Path::new("."))
    }

    #[test]
    fn every_field_acts_or_is_named() {
        let settings = settings(
            r#"backend: "fil" max_batch_size: 64 default_model_filename: "model.txt"
               input [ { name: "in" data_type: TYPE_FP32 dims: [ 4 ] } ]
               output [ { name: "out" data_type: TYPE_FP64 dims: [ 3 ] } ]
               instance_group [ { kind: KIND_GPU } ]
               dynamic_batching { preferred_batch_size: [ 4, 8 ] max_queue_delay_microseconds: 100
                                  default_queue_policy { max_queue_size: 7 timeout_action: REJECT } }
               parameters { key: "layout" value: { string_value: "sparse" } }"#,
        )
        .unwrap();
        assert_eq!(settings.file.as_deref(), Some("model.txt"));
        assert_eq!(settings.input_type, PortType { datatype: Some(DataType::Fp32), columns: Some(4) });
        assert_eq!(settings.output_type, PortType { datatype: Some(DataType::Fp64), columns: Some(3) });
        assert_eq!(settings.batching, Batching { max_delay_us: Some(100), queue_size: Some(7) });
        let named = ["'instance_group'", "'dynamic_batching.preferred_batch_size'", "timeout_action'", "'layout'"];
        assert_eq!(settings.without_effect.len(), named.len(), "{:?}", settings.without_effect);
        for name in named {
            assert!(settings.without_effect.iter().any(|note| note.contains(name)), "{name}");
        }
    }

    #[test]
    fn what_cannot_be_served_is_refused_by_name() {
        for (text, what) in [
            ("ensemble_scheduling { }", "field 'ensemble_scheduling' is not known"),
            ("platform: \"onnxruntime_onnx\"", "platform 'onnxruntime_onnx' is not served"),
            ("model_transaction_policy { decoupled: true }", "decoupled"),
            ("dynamic_batching { max_delay: 3 }", "field 'dynamic_batching.max_delay' is not known"),
            ("input { data_type: TYPE_FP32 reshape { shape: [ 2 ] } }", "field 'input.reshape' is not served"),
            ("input { data_type: TYPE_FP32 dims: [ x ] }", "'x', which is no whole number"),
            ("output { data_type: TYPE_INT8 }", "predictions are TYPE_FP32 or TYPE_FP64"),
            ("output { data_type: TYPE_FP32 label_filename: \"../x\" }", "not the plain name"),
            ("output { data_type: TYPE_FP32 label_filename: \"nothing\" }", "there is no such file"),
        ] {
            let error = settings(text).unwrap_err();
            assert!(error.contains(what), "{text}: {error}");
        }
    }
}
