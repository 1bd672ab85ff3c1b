//! Configuration files: the names of flags as keys, dashes or underscores, in TOML or YAML.

use super::error::{UsageError, nearest};
use super::field::Field;
use super::flags::{self, Flag};
use super::origin::{Args, Origin};
use crate::config::Config;
use serde::Deserialize;
use serde::de::IgnoredAny;
use std::collections::BTreeMap;
use std::path::Path;
use toml::value::Datetime;

/// What stands behind a key, right or wrong: a wrong value must not hide what is wrong elsewhere.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Value {
    Bool(bool),
    Integer(i64),
    Unsigned(u64),
    Float(f64),
    Text(String),
    List(Vec<Value>),
    /// TOML's. To be tried before tables, which it looks like.
    Date(Datetime),
    Table(BTreeMap<String, IgnoredAny>),
    /// Nothing, in a list of YAML's, or a table whose keys are no texts.
    Other(IgnoredAny),
}

/// YAML writes a key without a value; it counts as not said.
type Document = BTreeMap<String, Option<Value>>;

/// Adds what the file at `path` says.
///
/// # Errors
/// The file cannot be read, is not TOML or YAML, or has an unknown key, one that is said twice or a wrong value; all of
/// those are named.
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
    let mut said: BTreeMap<String, String> = BTreeMap::new();
    for (key, value) in parse(path, text)? {
        let Some(value) = value else { continue };
        // The parser finds equal keys; to it, one with dashes and one with underscores are two.
        if let Some(before) = said.insert(key.replace('_', "-"), key.clone()) {
            let shown = path.display();
            problems.push(format!("{shown}: {before} and {key} are the same key; leave one of them out"));
        } else if let Err(problem) = add_key(args, path, &key, value) {
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
    if let Value::Table(inner) = &value {
        let meant = inner.keys().find_map(|inner| flags::find(&format!("{key}-{inner}")));
        let example = meant.map_or("http-port", |flag| flag.name);
        return Err(format!(
            "{shown}: {key} is a table; the keys are the names of flags and stand in no table, as {example}"
        ));
    }
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
        Value::List(values) if flag.field(&mut Config::blank()).repeats() => {
            // The empty name first: it says that the list is all there is, even when the list is empty.
            args.say(flag, "", origin.clone())?;
            values.into_iter().try_for_each(|each| args.say(flag, &scalar(each, flag, path)?, origin.clone()))
        }
        value => args.say(flag, &scalar(value, flag, path)?, origin),
    }
}

/// The value as it would stand on a command line.
fn scalar(value: Value, flag: &Flag, path: &Path) -> Result<String, String> {
    let place = format!("{} in {}", flag.name, path.display());
    match value {
        Value::Bool(value) => Ok(value.to_string()),
        Value::Integer(value) => Ok(value.to_string()),
        Value::Unsigned(value) => Ok(value.to_string()),
        // What was written as 1.10 is 1.1 by now.
        Value::Float(value) if takes_any_text(flag) => Err(format!(
            "{place}: {value} was read as a number and may have been written otherwise; write it in quotes"
        )),
        // 1e3 and 1000.0 are whole numbers; what is none is refused by the flag, which says what it takes.
        Value::Float(value) => Ok(value.to_string()),
        Value::Text(text) => Ok(text),
        Value::Date(date) => Err(format!("{place}: {date} was read as a date; write it in quotes")),
        Value::List(_) => Err(format!("{place}: takes one value, not a list")),
        Value::Table(_) | Value::Other(_) => Err(format!("{place}: takes a text, a number, true or false")),
    }
}

fn takes_any_text(flag: &Flag) -> bool {
    matches!(
        flag.field(&mut Config::blank()),
        Field::Path(_) | Field::Paths(_) | Field::Url(_) | Field::Text(_) | Field::Names(_)
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::tests::MACHINE;

    fn problems(path: &str, text: &str) -> Vec<String> {
        add(&mut Args::default(), Path::new(path), text).expect_err(text).problems
    }

    #[test]
    fn a_key_is_said_once() {
        for (path, text) in [("c.toml", "http_port = 1\nhttp-port = 2"), ("c.yaml", "http-port: 1\nhttp_port: 1")] {
            let problem = format!("{path}: http-port and http_port are the same key; leave one of them out");
            assert_eq!(problems(path, text), [problem]);
        }
        let mut args = Args::default();
        add(&mut args, Path::new("c.yaml"), "http-port:\nhttp_port: 7").unwrap();
        assert_eq!(args.word("http-port").1, Some("7"), "a key without a value says nothing");
    }

    #[test]
    fn what_is_no_value_hides_no_other_problem() {
        let toml = "queue-size = \"x\"\nmodel-name = 2024-01-01\n[tls]\ncert = \"/c\"\n[a.b]\nc = 1\n";
        let table = "is a table; the keys are the names of flags and stand in no table, as";
        let expected = [
            format!("c.toml: a {table} http-port"),
            "model-name in c.toml: 2024-01-01 was read as a date; write it in quotes".to_owned(),
            "queue-size in c.toml: `x` is not a whole number".to_owned(),
            format!("c.toml: tls {table} tls-cert"),
        ];
        assert_eq!(problems("c.toml", toml), expected);
        let yaml = "tls:\n  key: /k\nload-model: [a, ~]\nqueue-size: [1]\nhttp-port: {a: 1}\n";
        let expected = [
            format!("c.yaml: http-port {table} http-port"),
            "load-model in c.yaml: takes a text, a number, true or false".to_owned(),
            "queue-size in c.yaml: takes one value, not a list".to_owned(),
            format!("c.yaml: tls {table} tls-key"),
        ];
        assert_eq!(problems("c.yaml", yaml), expected);
    }

    #[test]
    fn numbers_with_a_point_or_an_exponent() {
        for (path, text) in [
            ("c.yaml", "queue-size: 1e3"),
            ("c.yaml", "queue-size: 1000.0"),
            ("c.toml", "queue-size = 1e3"),
            ("c.toml", "queue_size = 1_000.0"),
        ] {
            let mut args = Args::default();
            add(&mut args, Path::new(path), text).unwrap();
            assert_eq!(Config::resolve(&args, &MACHINE).unwrap().queue_size, 1000, "{text}");
        }
        for (text, problem) in [
            ("queue-size = 1.5", "queue-size in c.toml: `1.5` is not a whole number"),
            ("max-body-size = 1.5", "max-body-size in c.toml: `1.5` is not a size: write it as 64MiB"),
            ("idle-timeout = 1.5", "idle-timeout in c.toml: `1.5` is not a duration: write it with a unit"),
            ("model-name = 1.10", "model-name in c.toml: 1.1 was read as a number and may have been written otherwise"),
        ] {
            let found = problems("c.toml", text);
            assert!(found.len() == 1 && found[0].starts_with(problem), "{text}: {found:?}");
        }
    }
}
