//! The fields of a `config.json`, read with bounds: an error names the field and says what would be right. Not a
//! deserialiser: a model's file carries dozens of fields that mean nothing here.

use super::families::Setting;
use crate::error::LoadError;
use serde_json::{Map, Value};
use std::path::Path;

/// An object of `config.json`, and what its absent fields mean.
#[derive(Clone, Copy)]
pub(crate) struct Fields<'a> {
    pub(crate) file: &'a Path,
    pub(crate) map: &'a Map<String, Value>,
    pub(crate) defaults: &'static [(&'static str, Setting)],
}

impl<'a> Fields<'a> {
    /// The file is refused for what `field` holds.
    pub(crate) fn refuse(&self, field: &str, reason: impl std::fmt::Display) -> LoadError {
        LoadError::new(self.file, format!("`{field}` {reason}"))
    }

    /// The same file's object `map`, which has no defaults.
    pub(crate) fn within(&self, map: &'a Map<String, Value>) -> Self {
        Fields { map, defaults: &[], ..*self }
    }

    /// Is the field there, and not null?
    pub(crate) fn has(&self, field: &str) -> bool {
        self.get(field).is_some()
    }

    /// The field, unless absent or null.
    pub(crate) fn get(&self, field: &str) -> Option<&'a Value> {
        self.map.get(field).filter(|value| !value.is_null())
    }

    /// The default of a field that is absent. A null is not absent: it says that there is no such thing.
    fn default(&self, field: &str) -> Option<Setting> {
        if self.map.contains_key(field) {
            return None;
        }
        self.defaults.iter().find(|(name, _)| *name == field).map(|(_, setting)| *setting)
    }

    /// A whole number from 1 to `most`; `None` where absent without default, or null.
    pub(crate) fn count(&self, field: &str, most: usize) -> Result<Option<usize>, LoadError> {
        let Some(value) = self.get(field) else {
            return Ok(match self.default(field) {
                Some(Setting::Number(number)) => Some(number as usize),
                _ => None,
            });
        };
        let whole = value.as_u64().or_else(|| value.as_f64().filter(|x| x.fract() == 0.0).map(|x| x as u64));
        match whole.and_then(|x| usize::try_from(x).ok()) {
            Some(whole) if (1..=most).contains(&whole) => Ok(Some(whole)),
            _ => Err(self.refuse(field, format!("is {}; expected a whole number from 1 to {most}", brief(value)))),
        }
    }

    /// A whole number from 1 to `most`.
    pub(crate) fn needed(&self, field: &str, most: usize) -> Result<usize, LoadError> {
        self.count(field, most)?.ok_or_else(|| self.refuse(field, "is missing"))
    }

    /// A number above zero; `None` where absent without default, or null.
    pub(crate) fn positive(&self, field: &str) -> Result<Option<f64>, LoadError> {
        let Some(value) = self.get(field) else {
            return Ok(match self.default(field) {
                Some(Setting::Number(number)) => Some(number),
                _ => None,
            });
        };
        match value.as_f64() {
            Some(number) if number > 0.0 && number <= f64::from(f32::MAX) => Ok(Some(number)),
            _ => Err(self.refuse(field, format!("is {}; expected a number above zero", brief(value)))),
        }
    }

    /// True or false; absent and null mean `false` unless the family says otherwise.
    pub(crate) fn flag(&self, field: &str) -> Result<bool, LoadError> {
        match self.get(field) {
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(value) => Err(self.refuse(field, format!("is {}; expected true or false", brief(value)))),
            None => Ok(matches!(self.default(field), Some(Setting::Flag(true)))),
        }
    }

    /// Text; `None` where absent or null.
    pub(crate) fn text(&self, field: &str) -> Result<Option<&'a str>, LoadError> {
        match self.get(field) {
            Some(Value::String(text)) => Ok(Some(text)),
            Some(value) => Err(self.refuse(field, format!("is {}; expected text", brief(value)))),
            None => Ok(None),
        }
    }

    /// An object; `None` where absent or null.
    pub(crate) fn object(&self, field: &str) -> Result<Option<Fields<'a>>, LoadError> {
        match self.get(field) {
            Some(Value::Object(map)) => Ok(Some(self.within(map))),
            Some(value) => Err(self.refuse(field, format!("is {}; expected an object", brief(value)))),
            None => Ok(None),
        }
    }

    /// A list; `None` where absent or null.
    pub(crate) fn list(&self, field: &str) -> Result<Option<&'a [Value]>, LoadError> {
        match self.get(field) {
            Some(Value::Array(list)) => Ok(Some(list)),
            Some(value) => Err(self.refuse(field, format!("is {}; expected a list", brief(value)))),
            None => Ok(None),
        }
    }

    /// A list of `length` numbers above zero.
    pub(crate) fn positives(&self, field: &str, length: usize) -> Result<Vec<f64>, LoadError> {
        let list = self.list(field)?.ok_or_else(|| self.refuse(field, "is missing"))?;
        if list.len() != length {
            return Err(self.refuse(field, format!("has {} numbers; expected {length}", list.len())));
        }
        let numbers = list.iter().map(|value| value.as_f64().filter(|x| x.is_finite() && *x > 0.0));
        numbers.collect::<Option<_>>().ok_or_else(|| self.refuse(field, "holds something else than numbers above zero"))
    }
}

/// A value as it is quoted in an error: its beginning, since it may be megabytes.
pub(crate) fn brief(value: &Value) -> String {
    match value {
        Value::Array(_) => "a list".into(),
        Value::Object(_) => "an object".into(),
        Value::String(text) => format!("'{}'", text.chars().take(60).collect::<String>().escape_debug()),
        other => other.to_string(),
    }
}
