//! Triton's generate extension, in the words of its backends for vLLM and TensorRT-LLM: `text_input` and its companions,
//! read into the terms of a completion, which say all that they can say.
//!
//! Companions stand beside `text_input`, in `parameters`, or in `sampling_parameters`, which is JSON or the text of it.

use crate::json::Kind;
use crate::openai::error::FieldError;
use crate::openai::fields::{Field, Fields, Result, shorten};
use crate::openai::{CompletionRequest, limits};
use serde_json::{Map, Value};
use std::time::Duration;

/// A request for text.
#[derive(Clone, Debug, PartialEq)]
pub struct GenerateRequest {
    /// What it asks for. Its model, where it names one, is to be the one of the path.
    pub completion: CompletionRequest,
    /// The client's name for it.
    pub id: Option<String>,
    /// After so long the answer is of no use.
    pub timeout: Option<Duration>,
    /// Piece by piece, where that was said.
    pub stream: Option<bool>,
    /// The answer is told without the prompt.
    pub exclude_input: bool,
    /// What else is told.
    pub tells: Tells,
}

/// What is told beside the text, where it was asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tells {
    /// Why it ended.
    pub finish_reason: bool,
    /// The logarithm of its probability.
    pub cumulative_logprob: bool,
    /// Its tokens.
    pub output_tokens: bool,
    /// The tokens of the prompt.
    pub input_tokens: bool,
}

/// The backends' names of fields, and those of completions.
const NAMES: [(&str, &str); 10] = [
    ("guided_decoding", "structured_outputs"),
    ("stop_words", "stop"),
    ("random_seed", "seed"),
    ("min_length", "min_tokens"),
    ("request_output_len", "max_tokens"),
    ("max_new_tokens", "max_tokens"),
    ("num_return_sequences", "n"),
    ("len_penalty", "length_penalty"),
    ("runtime_top_k", "top_k"),
    ("runtime_top_p", "top_p"),
];

impl GenerateRequest {
    /// Reads the body of `/v2/models/{model}/generate`.
    ///
    /// # Errors
    /// [`FieldError`] names the field, and says what would be right.
    pub fn parse(body: &[u8]) -> Result<Self> {
        let mut map = Map::new();
        for (name, field) in Fields::of_body(body)?.rest() {
            map.insert(name.into_owned(), field.value()?);
        }
        Self::from_fields(map)
    }

    /// Reads fields that came one by one.
    ///
    /// # Errors
    /// As for [`GenerateRequest::parse`].
    pub fn from_fields(mut map: Map<String, Value>) -> Result<Self> {
        let (parameters, sampling) = (nested(&mut map, "parameters")?, nested(&mut map, "sampling_parameters")?);
        // Clients of vLLM's backend send the same companions in both; there the second is the one that is read.
        let companions = parameters.into_iter().filter(|(key, _)| !sampling.contains_key(key)).collect::<Vec<_>>();
        map = map.into_iter().map(|(key, value)| (key.clone(), plain(&key, value))).collect();
        for (key, value) in companions.into_iter().chain(sampling) {
            let value = plain(&key, value);
            if *map.entry(key.clone()).or_insert_with(|| value.clone()) != value {
                return Err(FieldError::invalid(&key, format!("Duplicate parameter: '{key}', with another value.")));
            }
        }
        for (theirs, ours) in NAMES {
            if let Some(value) = map.remove(theirs)
                && *map.entry(ours).or_insert_with(|| value.clone()) != value
            {
                let message = format!("Duplicate parameter: '{theirs}' is '{ours}', which has another value.");
                return Err(FieldError::invalid(theirs, message));
            }
        }
        lists(&mut map);
        map.remove("pad_id");
        let mut own = |name: &str| flag(&mut map, name);
        let stream = own("stream")?;
        let exclude_input = own("exclude_input_in_output")?.unwrap_or(false);
        let tells = Tells {
            finish_reason: own("return_finish_reason")?.unwrap_or(false),
            cumulative_logprob: own("return_cumulative_logprob")?.unwrap_or(false),
            output_tokens: own("return_num_output_tokens")?.unwrap_or(false),
            input_tokens: own("return_num_input_tokens")?.unwrap_or(false),
        };
        unserved(&mut map, tells)?;
        let timeout = timeout(&mut map)?;
        let id = match map.remove("id") {
            Some(Value::String(id)) if id.len() <= limits::NAME_BYTES => Some(id).filter(|id| !id.is_empty()),
            None | Some(Value::Null) => None,
            Some(Value::String(id)) => return Err(FieldError::string_too_long("id", limits::NAME_BYTES, id.len())),
            Some(other) => return Err(FieldError::wrong_type("id", "a string", kind(&other))),
        };
        let prompt = text_input(&mut map)?;
        map.insert("prompt".to_owned(), prompt);
        if tells.cumulative_logprob {
            map.entry("logprobs").or_insert(Value::from(0));
        }
        let body = Value::from(map).to_string();
        let completion = CompletionRequest::parse(body.as_bytes())?;
        Ok(GenerateRequest { completion, id, timeout, stream, exclude_input, tells })
    }
}

/// Lists as completions have them: clients of tensors send a single value without one, and an empty text for none.
fn lists(map: &mut Map<String, Value>) {
    for name in ["stop", "bad_words"] {
        let is_empty = |value: &Value| value == "" || value.as_array().is_some_and(|list| list.iter().all(|w| w == ""));
        if map.get(name).is_some_and(is_empty) {
            map.remove(name);
        } else if let Some(word @ Value::String(_)) = map.get(name).cloned() {
            map.insert(name.to_owned(), Value::from(vec![word]));
        }
    }
    for name in ["stop_token_ids", "allowed_token_ids"] {
        if let Some(token @ Value::Number(_)) = map.get(name).cloned() {
            map.insert(name.to_owned(), Value::from(vec![token]));
        }
    }
    // The one token that ends a text, besides others that do.
    if let Some(end) = map.remove("end_id").filter(|end| !end.is_null()) {
        let tokens = map.entry("stop_token_ids").or_insert(Value::Null);
        match tokens {
            Value::Array(tokens) => tokens.push(end),
            Value::Null => *tokens = Value::from(vec![end]),
            // It is of no type that it may be, and refused for that.
            _ => {}
        }
    }
}

/// In microseconds, of which 0 is none, as inference requests have it.
fn timeout(map: &mut Map<String, Value>) -> Result<Option<Duration>> {
    let Some(value) = map.remove("timeout").filter(|value| !value.is_null()) else { return Ok(None) };
    match value.as_u64() {
        Some(microseconds) => Ok(Some(Duration::from_micros(microseconds)).filter(|timeout| !timeout.is_zero())),
        None => {
            let got = value.to_string();
            let message = format!("Invalid 'timeout': {} is not a whole number of microseconds.", shorten(&got));
            Err(FieldError::invalid("timeout", message))
        }
    }
}

/// The prompt: one text.
fn text_input(map: &mut Map<String, Value>) -> Result<Value> {
    match map.remove("text_input") {
        Some(text @ Value::String(_)) => Ok(text),
        Some(Value::Array(list)) if matches!(list[..], [Value::String(_)]) => Ok(Value::from(list)),
        Some(Value::Array(list)) if list.len() != 1 => {
            let message = format!(
                "Invalid 'text_input': it has {} texts, and 1 is possible; send a request for each.",
                list.len()
            );
            Err(FieldError::invalid("text_input", message))
        }
        None => Err(FieldError::missing("text_input")),
        Some(other) => Err(FieldError::wrong_type("text_input", "a string", kind(&other))),
    }
}

/// What the backends have and this server has not, and what belongs to completions alone.
fn unserved(map: &mut Map<String, Value>, tells: Tells) -> Result<()> {
    if map.remove("beam_width").is_some_and(|width| width != 1) {
        return Err(FieldError::refused("beam_width", "there is no beam search; use best_of"));
    }
    let off = |value: &Value| matches!(value, Value::Null | Value::Bool(false)) || value == 0 || value == "";
    // In vLLM's backend a cumulative one is told only to those who ask for these as well.
    let logprobs = map.remove("logprobs").filter(|_| !tells.cumulative_logprob);
    if logprobs.is_some_and(|value| !off(&value)) {
        return Err(FieldError::refused("logprobs", "use return_cumulative_logprob, or /v1/completions"));
    }
    for (name, why) in [
        ("prompt", "use text_input"),
        ("return_log_probs", "use return_cumulative_logprob, or /v1/completions"),
        ("return_context_logits", "logits are not returned"),
        ("return_generation_logits", "logits are not returned"),
        ("return_logprobs", "use return_cumulative_logprob, or /v1/completions"),
        ("return_token_ids", "use /v1/completions"),
        ("image", "the models served here read text"),
        ("prompt_embedding_table", "prompts are text"),
        ("embedding_bias_words", "use logit_bias"),
        ("embedding_bias_weights", "use logit_bias"),
        ("multi_modal_data", "the models served here read text"),
        ("lora_name", "no adapters are served"),
        ("lora_task_id", "no adapters are served"),
        ("guided_decoding_guide", "use structured_outputs"),
        ("guided_decoding_guide_type", "use structured_outputs"),
        ("draft_input_ids", "drafts are not taken from clients"),
    ] {
        if let Some(value) = map.remove(name)
            && !off(&value)
        {
            return Err(FieldError::refused(name, why));
        }
    }
    Ok(())
}

/// Fields that are text, or lists of it.
const TEXTS: [&str; 8] = ["text_input", "id", "model", "stop", "stop_words", "bad_words", "cache_salt", "request_id"];
/// Fields that are lists, even of one.
const LISTS: [&str; 5] = ["stop", "stop_words", "bad_words", "stop_token_ids", "allowed_token_ids"];

/// A companion as it was meant: values of tensors come in lists, and clients of vLLM's backend write numbers, flags and
/// objects as text.
fn plain(key: &str, value: Value) -> Value {
    match value {
        Value::Array(mut list) if list.len() == 1 && !LISTS.contains(&key) => plain(key, list.remove(0)),
        Value::String(text) if !TEXTS.contains(&key) => match text.trim() {
            "True" => Value::Bool(true),
            "False" => Value::Bool(false),
            "None" => Value::Null,
            trimmed => {
                let is_value = trimmed.starts_with(|c: char| c.is_ascii_digit() || matches!(c, '-' | '{' | 't' | 'f'));
                let parsed = if is_value { serde_json::from_str(trimmed).ok() } else { None };
                parsed.filter(|value: &Value| !value.is_string()).unwrap_or(Value::String(text))
            }
        },
        other => other,
    }
}

fn nested(map: &mut Map<String, Value>, name: &str) -> Result<Map<String, Value>> {
    match map.remove(name) {
        None => Ok(Map::new()),
        Some(Value::Array(mut list)) if list.len() == 1 => object(name, list.remove(0)),
        Some(value) => object(name, value),
    }
}

fn flag(map: &mut Map<String, Value>, name: &str) -> Result<Option<bool>> {
    match map.remove(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Bool(flag)) => Ok(Some(flag)),
        Some(other) => Err(FieldError::wrong_type(name, "a boolean", kind(&other))),
    }
}

fn object(name: &str, value: Value) -> Result<Map<String, Value>> {
    match value {
        Value::Null => Ok(Map::new()),
        Value::Object(map) => Ok(map),
        Value::String(text) if text.trim().is_empty() => Ok(Map::new()),
        Value::String(text) => {
            let field = Field { path: name.to_owned(), raw: text.as_bytes() };
            match field.kind() {
                Ok(Kind::Object) => match field.value()? {
                    Value::Object(map) => Ok(map),
                    _ => Ok(Map::new()),
                },
                _ => Err(FieldError::wrong_type(name, "an object, or the text of one", "other text")),
            }
        }
        other => Err(FieldError::wrong_type(name, "an object, or the text of one", kind(&other))),
    }
}

/// What a value is, as errors call it.
fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(number) if number.is_f64() => "a decimal number",
        Value::Number(_) => "an integer",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::openai::Prompt;

    fn parse(text: &str) -> Result<GenerateRequest> {
        GenerateRequest::parse(text.as_bytes())
    }

    #[test]
    fn companions_stand_in_three_places() {
        for text in [
            r#"{"text_input": "Hi", "max_tokens": 3, "stop_words": "x", "temperature": 0, "stream": true}"#,
            r#"{"text_input": ["Hi"], "parameters": {"max_tokens": 3, "stop": ["x"], "temperature": 0, "stream": true}}"#,
            r#"{"text_input": "Hi", "stream": true,
                "sampling_parameters": "{\"max_new_tokens\": 3, \"stop\": \"x\", \"temperature\": \"0\"}"}"#,
        ] {
            let text = text.replace("\\\"0\\\"", "0");
            let request = parse(&text).unwrap();
            let sampling = &request.completion.common.sampling;
            assert_eq!(request.completion.prompt, Prompt::Texts(vec!["Hi".into()]), "{text}");
            assert_eq!(
                (sampling.max_tokens, &sampling.stop[..], sampling.temperature),
                (Some(3), &["x".into()][..], Some(0.0))
            );
            assert_eq!((request.stream, request.exclude_input), (Some(true), false));
        }
    }

    #[test]
    fn what_cannot_be_is_named() {
        for (text, path) in [
            (r#"{"max_tokens": 3}"#, "text_input"),
            (r#"{"text_input": 3}"#, "text_input"),
            (r#"{"text_input": "a", "stream": "yes"}"#, "stream"),
            (r#"{"text_input": "a", "beam_width": 2}"#, "beam_width"),
            (r#"{"text_input": "a", "temperature": 9}"#, "temperature"),
            (r#"{"text_input": "a", "top_k": 1, "parameters": {"top_k": 2}}"#, "top_k"),
            (r#"{"text_input": "a", "sampling_parameters": "[1]"}"#, "sampling_parameters"),
            (r#"{"text_input": "a", "return_log_probs": true}"#, "return_log_probs"),
            (r#"{"text_input": "a", "prompt": "b"}"#, "prompt"),
            (r#"{"text_input": "a", "parameters": {"logprobs": 2}}"#, "logprobs"),
            (r#"{"text_input": "a", "runtime_top_p": 2}"#, "top_p"),
            (r#"{"text_input": "a", "timeout": -1}"#, "timeout"),
            (r#"{"text_input": "a", "timeout": "soon"}"#, "timeout"),
            (r#"{"text_input": "a", "end_id": 7, "stop_token_ids": "x"}"#, "stop_token_ids"),
        ] {
            assert_eq!(parse(text).unwrap_err().param.as_deref(), Some(path), "{text}");
        }
    }

    #[test]
    fn what_is_of_another_type_is_told_with_its_own() {
        for (text, got) in [
            (r#"{"text_input": 5}"#, "an integer"),
            (r#"{"text_input": [0.5]}"#, "a decimal number"),
            (r#"{"text_input": {"a": 1}}"#, "an object"),
            (r#"{"text_input": "a", "stream": "yes"}"#, "a string"),
            (r#"{"text_input": "a", "parameters": [1, 2]}"#, "an array"),
            (r#"{"text_input": "a", "parameters": true}"#, "a boolean"),
            (r#"{"text_input": "a", "id": 1}"#, "an integer"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.message.ends_with(&format!("but got {got} instead.")), "{text}: {error}");
        }
        let long = format!(r#"{{"text_input": "a", "id": "{}"}}"#, "x".repeat(limits::NAME_BYTES + 1));
        assert!(parse(&long).unwrap_err().message.contains("string too long"));
    }

    #[test]
    fn one_text_at_a_time() {
        for (text, count) in [(r#"["a", "b"]"#, "2 texts"), (r#"[["a", "b", "c"]]"#, "3 texts"), ("[]", "0 texts")] {
            let error = parse(&format!(r#"{{"text_input": {text}}}"#)).unwrap_err();
            assert_eq!(error.param.as_deref(), Some("text_input"));
            assert!(error.message.contains(count) && error.message.contains("1 is possible"), "{error}");
        }
    }

    #[test]
    fn tokens_that_end_a_text_do_so_together() {
        for (text, tokens) in [
            (r#""end_id": 7"#, &[7][..]),
            (r#""end_id": [7], "stop_token_ids": null"#, &[7]),
            (r#""end_id": null, "stop_token_ids": 5"#, &[5]),
            (r#""end_id": 7, "stop_token_ids": [5, 6]"#, &[5, 6, 7]),
            (r#""end_id": 7, "parameters": {"stop_token_ids": "5"}"#, &[5, 7]),
        ] {
            let request = parse(&format!(r#"{{"text_input": "a", {text}}}"#)).unwrap();
            assert_eq!(request.completion.common.sampling.stop_token_ids, tokens, "{text}");
        }
    }

    #[test]
    fn companions_that_act_by_their_own_names() {
        let request = parse(r#"{"text_input": "a", "model": "7", "runtime_top_p": 0.5, "timeout": 1500}"#).unwrap();
        let common = &request.completion.common;
        assert_eq!((common.model.as_deref(), common.sampling.top_p), (Some("7"), Some(0.5)));
        assert_eq!(request.timeout, Some(Duration::from_micros(1500)));
        assert_eq!(parse(r#"{"text_input": "a", "timeout": 0}"#).unwrap().timeout, None);
        let both = parse(r#"{"text_input": "a", "logprobs": 3, "return_cumulative_logprob": true}"#).unwrap();
        assert_eq!(both.completion.common.sampling.logprobs, Some(0));
    }

    #[test]
    fn what_is_off_does_no_harm() {
        let text = r#"{"text_input": "a", "bad_words": "", "stop_words": [""], "beam_width": 1, "pad_id": 2, "end_id": 7,
            "return_log_probs": false, "id": "me", "return_cumulative_logprob": true, "exclude_input_in_output": true}"#;
        let request = parse(text).unwrap();
        let sampling = &request.completion.common.sampling;
        assert!(sampling.stop.is_empty() && sampling.bad_words.is_empty());
        assert_eq!((&sampling.stop_token_ids[..], sampling.logprobs), (&[7][..], Some(0)));
        assert!(request.exclude_input && request.tells.cumulative_logprob && request.id.as_deref() == Some("me"));
    }
}
