//! Configuration files: the names of flags as keys, dashes or underscores, in TOML or YAML.

use super::error::{UsageError, nearest};
use super::flags;
use super::origin::{Args, Origin};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::Path;

/// What a key may hold.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Value {
    Bool(bool),
    Integer(i64),
    Float(f64),
    Text(String),
    List(Vec<Value>),
}

/// YAML writes a key without a value; it counts as not said.
type Document = BTreeMap<String, Option<Value>>;

/// Adds what the file at `path` says.
///
/// # Errors
/// The file cannot be read, is not TOML or YAML, or has an unknown key or a wrong value; all of those are named.
pub fn read(args: &mut Args, path: &Path) -> Result<(), UsageError> {
    let shown = path.display();
    let text = std::fs::read_to_string(path).map_err(|error| format!("configuration file {shown}: {error}"))?;
    add(args, path, &text)
}

/// Adds what a file with this text says.
///
/// # Errors
/// As [`read`].
pub fn add(args: &mut Args, path: &Path, text: &str) -> Result<(), UsageError> {
    let mut problems = Vec::new();
    for (key, value) in parse(path, text)? {
        if let Some(Err(problem)) = value.map(|value| add_key(args, path, &key, value)) {
            problems.push(problem);
        }
    }
    UsageError::check(problems)
}

fn parse(path: &Path, text: &str) -> Result<Document, String> {
    let shown = path.display();
    let hint = "the keys are the names of flags, each with a text, a number or a list of texts";
    match path.extension().and_then(|extension| extension.to_str()) {
        Some("toml") => toml::from_str(text).map_err(|error| format!("{shown}: {error}; {hint}")),
        // An empty document is a null in YAML.
        Some("yaml" | "yml") => serde_saphyr::from_str_with_options::<Option<Document>>(text, yaml())
            .map(Option::unwrap_or_default)
            .map_err(|error| format!("{shown}: {error}; {hint}")),
        _ => Err(format!("configuration file {shown}: its name must end in .toml, .yaml or .yml")),
    }
}

/// YAML 1.2, in which only `true` and `false` are no texts: a model may be named `n`, a port `off`.
fn yaml() -> serde_saphyr::Options {
    serde_saphyr::options! { strict_booleans: true }
}

fn add_key(args: &mut Args, path: &Path, key: &str, value: Value) -> Result<(), String> {
    let shown = path.display();
    let Some(flag) = flags::find(key) else {
        let known = flags::all().map(|flag| flag.name);
        let hint =
            nearest(&key.replace('_', "-"), known).map_or(String::new(), |name| format!("; did you mean {name}?"));
        return Err(format!("{shown}: unknown key {key}{hint}"));
    };
    if flag.name == "config" {
        return Err(format!("{shown}: a configuration file cannot name another; put the keys into one"));
    }
    let origin = Origin::File(shown.to_string());
    match value {
        Value::List(values) if flag.field(&mut crate::config::Config::blank()).repeats() => {
            // The empty name first: it says that the list is all there is, even when the list is empty.
            args.say(flag, "", origin.clone())?;
            values.into_iter().try_for_each(|each| args.say(flag, &scalar(each, flag.name, path)?, origin.clone()))
        }
        value => args.say(flag, &scalar(value, flag.name, path)?, origin),
    }
}

fn scalar(value: Value, name: &str, path: &Path) -> Result<String, String> {
    match value {
        Value::Bool(value) => Ok(value.to_string()),
        Value::Integer(value) => Ok(value.to_string()),
        // What was written as 1.10 is 1.1 by now; no flag takes a fraction without a unit.
        Value::Float(value) => {
            Err(format!("{name} in {}: {value} is a number with a fraction; write the value in quotes", path.display()))
        }
        Value::Text(text) => Ok(text),
        Value::List(_) => Err(format!("{name} in {}: takes one value, not a list", path.display())),
    }
}
