//! `generation_config.json`, and what else a model's files say about generating: which tokens end a text, and how tokens
//! are chosen where a request says nothing.
//!
//! Read as vLLM reads it: `temperature`, `top_k`, `top_p`, `min_p`, `typical_p`, `repetition_penalty` and
//! `max_new_tokens` are defaults, `eos_token_id` adds to the ends; `do_sample` says nothing, because a request's
//! temperature does. Fields that would change answers and are not read, [`GenerationConfig::without_effect`] names.

use super::sampling::{Parameters, Sampling};
use super::text::config::bytes;
use crate::error::LoadError;
use serde_json::{Map, Value};
use std::path::Path;

/// Bytes of a `generation_config.json`, at most.
const BYTES_MAX: u64 = 1 << 20;
/// End tokens of a model, at most; those in use have up to 5.
const ENDS_MAX: usize = 64;

/// What generation is like where a request says nothing.
#[derive(Clone, Debug, PartialEq)]
pub struct GenerationConfig {
    /// Temperature, `top_k`, and so on. Penalties besides `repetition_penalty`, lists and logprobs are never set.
    pub defaults: Parameters,
    /// Tokens to generate at most.
    pub max_new_tokens: Option<u32>,
    /// Tokens that end a text; sorted, each once.
    pub end_tokens: Vec<u32>,
    /// Fields of the file that are not read, although they say something.
    pub without_effect: Vec<&'static str>,
}

/// Fields with which transformers would answer otherwise.
const NOT_READ: [&str; 6] = [
    "suppress_tokens",
    "begin_suppress_tokens",
    "bad_words_ids",
    "min_new_tokens",
    "no_repeat_ngram_size",
    "sequence_bias",
];

impl Default for GenerationConfig {
    /// OpenAI's defaults: temperature 1, nothing cut off.
    fn default() -> Self {
        let defaults = Parameters { temperature: 1.0, ..Parameters::default() };
        GenerationConfig { defaults, max_new_tokens: None, end_tokens: Vec::new(), without_effect: Vec::new() }
    }
}

impl GenerationConfig {
    /// Reads `directory/generation_config.json`, where there is one.
    ///
    /// # Errors
    /// It is no JSON object, or a field holds what no request might say.
    pub fn read(directory: &Path) -> Result<Self, LoadError> {
        let path = directory.join("generation_config.json");
        let Some(text) = bytes(&path, BYTES_MAX)? else { return Ok(GenerationConfig::default()) };
        let refuse = |reason: String| LoadError::new(&path, reason);
        let map: Map<String, Value> =
            serde_json::from_slice(&text).map_err(|e| refuse(format!("is no JSON object: {e}")))?;
        GenerationConfig::parse(&map).map_err(refuse)
    }

    /// Reads the fields of the file.
    ///
    /// # Errors
    /// Names the field, and says what would be right.
    pub fn parse(map: &Map<String, Value>) -> Result<Self, String> {
        let mut config = GenerationConfig::default();
        let number = |name: &str, otherwise: f32| match map.get(name) {
            None | Some(Value::Null) => Ok(otherwise),
            Some(value) => value.as_f64().map(|value| value as f32).ok_or_else(|| format!("{name} is no number")),
        };
        let count = |name: &str| match map.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => {
                let value = value.as_u64().and_then(|value| u32::try_from(value).ok());
                value.map(Some).ok_or_else(|| format!("{name} is no whole number"))
            }
        };
        let defaults = &mut config.defaults;
        defaults.temperature = number("temperature", defaults.temperature)?;
        defaults.top_p = number("top_p", defaults.top_p)?;
        defaults.min_p = number("min_p", defaults.min_p)?;
        defaults.typical_p = number("typical_p", defaults.typical_p)?;
        defaults.repetition_penalty = number("repetition_penalty", defaults.repetition_penalty)?;
        defaults.top_k = count("top_k")?.unwrap_or(defaults.top_k);
        config.max_new_tokens = count("max_new_tokens")?.filter(|tokens| *tokens > 0);
        config.add_ends(map.get("eos_token_id"))?;
        let set = |name: &&str| map.get(*name).is_some_and(says_something);
        config.without_effect = NOT_READ.into_iter().filter(set).collect();
        Sampling::new(config.defaults.clone()).map_err(|error| error.to_string())?;
        Ok(config)
    }

    /// Adds what an `eos_token_id` says, of this file or of `config.json`: a token, a list of tokens, or nothing.
    ///
    /// # Errors
    /// It is something else.
    pub fn add_ends(&mut self, value: Option<&Value>) -> Result<(), String> {
        let token = |value: &Value| value.as_u64().and_then(|token| u32::try_from(token).ok());
        let named = match value {
            None | Some(Value::Null) => Some(Vec::new()),
            Some(Value::Array(list)) if list.len() <= ENDS_MAX => list.iter().map(token).collect(),
            Some(value) => token(value).map(|token| vec![token]),
        };
        self.end_tokens.extend(named.ok_or("eos_token_id is neither a token nor a short list of tokens")?);
        self.end_tokens.sort_unstable();
        self.end_tokens.dedup();
        Ok(())
    }
}

/// Is a field's value another than the one that asks for nothing?
fn says_something(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => false,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::Array(list) => !list.is_empty(),
        Value::Object(map) => !map.is_empty(),
        Value::Bool(true) | Value::String(_) => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn parse(value: Value) -> Result<GenerationConfig, String> {
        GenerationConfig::parse(value.as_object().unwrap())
    }

    #[test]
    fn defaults_and_ends() {
        let config = parse(json!({
            "do_sample": true, "temperature": 0.6, "top_k": 20, "top_p": 0.95, "eos_token_id": [7, 3, 7],
            "transformers_version": "5.0.0", "max_new_tokens": 64,
        }));
        let config = config.unwrap();
        assert_eq!((config.defaults.temperature, config.defaults.top_k, config.defaults.top_p), (0.6, 20, 0.95));
        assert_eq!((config.end_tokens, config.max_new_tokens), (vec![3, 7], Some(64)));
        assert_eq!(parse(json!({})).unwrap(), GenerationConfig::default());
        assert_eq!(parse(json!({"eos_token_id": 2, "top_k": null})).unwrap().end_tokens, [2]);
    }

    #[test]
    fn fields_that_would_change_answers_are_named() {
        let config = parse(json!({
            "suppress_tokens": [7], "begin_suppress_tokens": [], "bad_words_ids": null, "min_new_tokens": 0,
            "no_repeat_ngram_size": 3, "sequence_bias": {}, "do_sample": true,
        }));
        assert_eq!(config.unwrap().without_effect, ["suppress_tokens", "no_repeat_ngram_size"]);
        let config = parse(json!({
            "begin_suppress_tokens": [7], "bad_words_ids": [[7]], "min_new_tokens": 2, "sequence_bias": [[[7], -1.0]],
        }));
        let named = ["begin_suppress_tokens", "bad_words_ids", "min_new_tokens", "sequence_bias"];
        assert_eq!(config.unwrap().without_effect, named);
    }

    #[test]
    fn what_no_request_might_say_is_refused() {
        for (value, what) in [
            (json!({"temperature": 6.0}), "temperature is 6"),
            (json!({"temperature": "hot"}), "temperature is no number"),
            (json!({"top_p": 0.0}), "top_p is 0"),
            (json!({"top_k": -1}), "top_k is no whole number"),
            (json!({"eos_token_id": "x"}), "eos_token_id is neither"),
            (json!({"eos_token_id": [1, "x"]}), "eos_token_id is neither"),
        ] {
            let error = parse(value.clone()).unwrap_err();
            assert!(error.starts_with(what), "{value}: {error}");
        }
    }
}
