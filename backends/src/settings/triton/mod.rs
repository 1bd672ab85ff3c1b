//! What the fields of Triton's `config.pbtxt` mean here. Each field acts, is refused, or is named as one without
//! effect; how the file is written is `pbtxt.rs`.
//!
//! A file may leave open what its model is, as Triton allows where the model file's name tells. It is then read twice,
//! as that of a tree model and as that of an ONNX model, and what either makes of it is kept until the model file is
//! known.

mod accelerator;
mod group;
mod onnx;
mod port;
#[cfg(test)]
mod tests;
mod tree;

use super::{Batching, Fit, Settings, VersionPolicy};
use crate::pbtxt::{self, Message, Value, truth};
use std::path::Path;

/// Fields and what is to be said of each.
type Told = &'static [(&'static str, &'static str)];

/// The fields of one kind of message.
struct Fields {
    /// What leads to them, as an error names it.
    place: &'static str,
    acting: &'static [&'static str],
    /// With the reason.
    without_effect: Told,
    /// With what is to be done instead.
    refused: Told,
}

/// What a configuration says to one kind of model: values, and notes on fields without effect.
type Reading<T> = Result<(T, Vec<String>), String>;

/// The kinds of models that a configuration can name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Tree,
    Onnx,
}

/// Triton's backends whose models are trees.
const TREES: [&str; 3] = ["fil", "xgboost", "lightgbm"];

/// Fields that mean the same to every model.
const COMMON: Fields = Fields {
    place: "",
    acting: &[
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
    ],
    without_effect: &[
        ("metric_tags", "metrics carry the model's name and version"),
        ("model_warmup", "loading runs the model already"),
        ("runtime", "the backend is a part of this server"),
        ("response_cache", "answers are not cached"),
        ("model_metrics", "metrics are the same for every model"),
    ],
    refused: &[
        ("sequence_batching", "no model remembers a sequence of requests; make its state an input and an output"),
        ("ensemble_scheduling", "a model is one file; have the client call the steps in turn"),
        ("batch_input", "no input is made up; leave it out, and have the client send it"),
        ("batch_output", "outputs are taken apart by rows; leave it out"),
        ("cc_model_filenames", "one file is served on every GPU; name it in default_model_filename"),
        ("model_repository_agents", "files are read as they lie; leave it out"),
    ],
};

const BATCHING: Fields = Fields {
    place: "dynamic_batching.",
    acting: &["max_queue_delay_microseconds", "default_queue_policy", "preferred_batch_size"],
    without_effect: &[
        ("preserve_ordering", "answers go out as they are ready"),
        ("priority_levels", "any number of levels is served"),
        ("default_priority_level", "requests without a priority go last"),
        ("priority_queue_policy", "all priorities share one queue"),
    ],
    refused: &[],
};

const POLICY: Fields = Fields {
    place: "dynamic_batching.default_queue_policy.",
    acting: &["max_queue_size"],
    without_effect: &[
        ("timeout_action", "a request whose time is over is refused"),
        ("default_timeout_microseconds", "--request-timeout and the request's own timeout bound its time"),
        ("allow_timeout_override", "a request may always state its timeout"),
    ],
    refused: &[],
};

/// Fields that may be there several times, be it in lists or one by one.
const REPEATED: &[&str] = &[
    "input",
    "output",
    "instance_group",
    "parameters",
    "dims",
    "shape",
    "versions",
    "gpus",
    "profile",
    "secondary_devices",
    "preferred_batch_size",
    "priority_queue_policy",
    "gpu_execution_accelerator",
    "cpu_execution_accelerator",
    "metric_tags",
    "model_warmup",
    "batch_input",
    "batch_output",
    "cc_model_filenames",
    "op_library_filename",
];

/// A message that is not there.
static NOTHING: Message = Message(Vec::new());

/// Reads a `config.pbtxt` that lies in `root`.
pub(super) fn read(text: &str, root: &Path) -> Result<Settings, String> {
    let config = pbtxt::parse(text)?;
    let said = kind(&config)?;
    let mut settings = common(&config, root)?;
    let (tree, as_tree) = fit(tree::read(&config, &settings));
    let (onnx, as_onnx) = fit(onnx::read(&config, &settings));
    (settings.as_tree, settings.as_onnx) = (as_tree, as_onnx);
    let mut wins = Kind::Tree;
    if let Some((kind, place)) = said {
        wins = kind;
        let (other, file) = match kind {
            Kind::Tree => (&mut settings.as_onnx, "an ONNX model"),
            Kind::Onnx => (&mut settings.as_tree, "no ONNX model"),
        };
        *other = Fit::refused(format!("config.pbtxt states {place}, and the model file is {file}"));
    }
    if let (Some(tree), Some(onnx)) = (&settings.as_tree.refused, &settings.as_onnx.refused) {
        return Err(if wins == Kind::Onnx { onnx } else { tree }.clone());
    }
    if let Some(tree) = tree.filter(|_| settings.as_tree.refused.is_none()) {
        (settings.answer, settings.threshold) = (tree.answer, tree.threshold);
    }
    if let Some((onnx, groups)) = onnx.filter(|_| settings.as_onnx.refused.is_none()) {
        (settings.onnx, settings.groups) = (onnx, groups);
    }
    share_notes(&mut settings);
    Ok(settings)
}

/// The values of a reading, if it is one, and what it says of the model that it is for.
fn fit<T>(reading: Reading<T>) -> (Option<T>, Fit) {
    match reading {
        Ok((values, without_effect)) => (Some(values), Fit { refused: None, without_effect }),
        Err(why) => (None, Fit::refused(why)),
    }
}

/// What is without effect on every model that there can be is so whatever there is.
fn share_notes(settings: &mut Settings) {
    let (tree, onnx) = (&mut settings.as_tree, &mut settings.as_onnx);
    let shared: Vec<String> = match (&tree.refused, &onnx.refused) {
        (None, None) => {
            let both = tree.without_effect.iter().filter(|note| onnx.without_effect.contains(note)).cloned().collect();
            onnx.without_effect.retain(|note| !tree.without_effect.contains(note));
            both
        }
        (None, Some(_)) => tree.without_effect.clone(),
        _ => std::mem::take(&mut onnx.without_effect),
    };
    tree.without_effect.retain(|note| !shared.contains(note));
    settings.without_effect.extend(shared);
}

/// The kind of model that `backend` and `platform` state, and the field that does. The name of this server's own
/// backend states none.
fn kind(config: &Message) -> Result<Option<(Kind, String)>, String> {
    let mut said: Option<(Kind, String)> = None;
    for (field, onnx) in [("backend", "onnxruntime"), ("platform", "onnxruntime_onnx")] {
        let stated = config.text(field)?.unwrap_or_default();
        let kind = match stated {
            "" | "tensorgate" => continue,
            _ if TREES.contains(&stated) => Kind::Tree,
            _ if stated == onnx => Kind::Onnx,
            _ => return Err(format!("{field} '{stated}' is not served; known are {}, {onnx}", TREES.join(", "))),
        };
        let place = format!("{field} '{stated}'");
        if let Some((_, earlier)) = said.as_ref().filter(|(other, _)| *other != kind) {
            return Err(format!("{earlier} and {place} are of different kinds of models"));
        }
        said = Some((kind, place));
    }
    let policy = config.message("model_transaction_policy")?.unwrap_or(&NOTHING);
    only(policy, "model_transaction_policy.", &["decoupled"])?;
    if policy.flag("decoupled")? == Some(true) {
        let what = if matches!(said, Some((Kind::Onnx, _))) { "an ONNX" } else { "a tree" };
        return Err(format!("model_transaction_policy 'decoupled': {what} model gives one answer to a request"));
    }
    Ok(said)
}

/// What is said to any model.
fn common(config: &Message, root: &Path) -> Result<Settings, String> {
    let most = config.parsed::<u32>("max_batch_size")?;
    // Triton's field is an int32.
    if let Some(size) = most.filter(|size| i32::try_from(*size).is_err()) {
        return Err(format!("'max_batch_size' is '{size}', which does not fit it; expected 0 to {}", i32::MAX));
    }
    let mut settings = Settings {
        name: config.text("name")?.map(str::to_owned),
        file: config.text("default_model_filename")?.filter(|file| !file.is_empty()).map(str::to_owned),
        max_batch_size: most.filter(|size| *size > 0),
        batched: most.map(|size| size > 0),
        inputs: port::read(config, "input", root)?,
        outputs: port::read(config, "output", root)?,
        versions: version_policy(config)?,
        dynamic_batching: config.message("dynamic_batching")?.is_some(),
        from_pbtxt: true,
        ..Settings::default()
    };
    settings.adopt_ports();
    settings.batching = batching(config, &mut settings.without_effect)?;
    Ok(settings)
}

/// Sees to it that each field of a message is known and there as often as it may be, and notes those without effect. An
/// error names the place of the first table.
fn sort(message: &Message, tables: &[&Fields], notes: &mut Vec<String>) -> Result<(), String> {
    let place = tables.first().map_or("", |table| table.place);
    for (index, (field, _)) in message.0.iter().enumerate() {
        let field = field.as_str();
        if !REPEATED.contains(&field) && message.0[..index].iter().any(|(earlier, _)| earlier == field) {
            return Err(format!("field '{place}{field}' is stated twice"));
        }
        if tables.iter().any(|table| table.acting.contains(&field)) {
            continue;
        }
        if let Some(instead) = told(tables, |table| table.refused, field) {
            return Err(format!("field '{place}{field}' is not served: {instead}"));
        }
        let Some(why) = told(tables, |table| table.without_effect, field) else {
            return Err(format!("field '{place}{field}' is not known"));
        };
        note(notes, format!("'{place}{field}' has no effect here: {why}"));
    }
    Ok(())
}

/// The same of a message whose fields all act.
fn only(message: &Message, place: &'static str, acting: &'static [&'static str]) -> Result<(), String> {
    sort(message, &[&Fields { place, acting, without_effect: &[], refused: &[] }], &mut Vec::new())
}

fn told(tables: &[&Fields], column: fn(&Fields) -> Told, field: &str) -> Option<&'static str> {
    tables.iter().flat_map(|table| column(table)).find(|(known, _)| *known == field).map(|(_, what)| *what)
}

/// Each is said once, however often its field is there.
fn note(notes: &mut Vec<String>, what: String) {
    if !notes.contains(&what) {
        notes.push(what);
    }
}

fn batching(config: &Message, notes: &mut Vec<String>) -> Result<Batching, String> {
    let Some(batching) = config.message("dynamic_batching")? else { return Ok(Batching::default()) };
    sort(batching, &[&BATCHING], notes)?;
    let mut queue_size = None;
    if let Some(policy) = batching.message("default_queue_policy")? {
        sort(policy, &[&POLICY], notes)?;
        queue_size = policy.parsed::<usize>("max_queue_size")?;
        if queue_size == Some(0) {
            queue_size = None;
            note(
                notes,
                "'dynamic_batching.default_queue_policy.max_queue_size' 0 is as many as --queue-size says here".into(),
            );
        }
    }
    let preferred = batching.all("preferred_batch_size").map(|value| match value {
        Value::Scalar(text) => text.parse::<u32>().ok().filter(|rows| *rows > 0),
        _ => None,
    });
    let preferred: Option<Vec<u32>> = preferred.collect();
    let preferred = preferred.ok_or("'dynamic_batching.preferred_batch_size' are not whole numbers from 1")?;
    let preferred = preferred.into_iter().max().map(|rows| rows as usize);
    Ok(Batching { max_delay_us: batching.parsed("max_queue_delay_microseconds")?, queue_size, preferred })
}

fn version_policy(config: &Message) -> Result<VersionPolicy, String> {
    let Some(policy) = config.message("version_policy")? else { return Ok(VersionPolicy::default()) };
    only(policy, "version_policy.", &["latest", "all", "specific"])?;
    if policy.0.len() > 1 {
        return Err("'version_policy' is several of latest, all, specific; one is expected".into());
    }
    if let Some(latest) = policy.message("latest")? {
        only(latest, "version_policy.latest.", &["num_versions"])?;
        return Ok(VersionPolicy::Latest(latest.parsed("num_versions")?.unwrap_or(1)));
    }
    if let Some(specific) = policy.message("specific")? {
        only(specific, "version_policy.specific.", &["versions"])?;
        let versions: Option<Vec<u64>> = specific
            .all("versions")
            .map(|value| if let Value::Scalar(text) = value { text.parse().ok() } else { None })
            .collect();
        return Ok(VersionPolicy::Specific(versions.ok_or("'versions' are not whole numbers")?));
    }
    if let Some(all) = policy.message("all")? {
        only(all, "version_policy.all.", &[])?;
        return Ok(VersionPolicy::All);
    }
    Err("'version_policy' is none of latest, all, specific".into())
}

/// The messages of a field that has nothing else.
fn messages<'a>(message: &'a Message, field: &'a str) -> Result<Vec<&'a Message>, String> {
    let mut messages = Vec::new();
    for value in message.all(field) {
        let Value::Message(inner) = value else {
            return Err(format!("'{field}' is a value; expected fields in braces"));
        };
        messages.push(inner);
    }
    Ok(messages)
}

/// Keys and values of `parameters`, whose values are texts within messages.
fn parameters(config: &Message) -> Result<Vec<(&str, &str)>, String> {
    let mut parameters = Vec::new();
    for parameter in messages(config, "parameters")? {
        only(parameter, "parameters.", &["key", "value"])?;
        let key = parameter.text("key")?.ok_or("a parameter has no 'key'")?;
        let mut text = "";
        if let Some(value) = parameter.message("value")? {
            only(value, "parameters.value.", &["string_value"])?;
            text = value.text("string_value")?.unwrap_or_default();
        }
        parameters.push((key, text));
    }
    Ok(parameters)
}

/// A parameter that is true or false.
fn flag(key: &str, value: &str) -> Result<bool, String> {
    truth(value).ok_or_else(|| format!("parameter '{key}' is '{value}', neither true nor false"))
}
