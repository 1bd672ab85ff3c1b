//! A GGUF file's tokenizer metadata by key: each of the wanted type and within its bounds, or refused by name. What
//! they mean is [`super::gguf`]'s business.

use crate::llm::weights::gguf::Value;
use std::collections::BTreeMap;

/// Bytes of tokens, or of merges, at most; the largest in use have some five million.
pub(super) const TEXT_BYTES_MAX: usize = 64 << 20;

/// Metadata by key, each of the wanted type or refused.
pub(super) struct Metadata<'a>(pub(super) &'a BTreeMap<String, Value>);

impl<'a> Metadata<'a> {
    fn get<T>(&self, key: &str, wanted: &str, read: fn(&'a Value) -> Option<T>) -> Result<Option<T>, String> {
        let key = format!("tokenizer.ggml.{key}");
        let Some(value) = self.0.get(&key) else { return Ok(None) };
        read(value).map(Some).ok_or_else(|| format!("`{key}` is not {wanted}"))
    }

    pub(super) fn text(&self, key: &str) -> Result<Option<&'a str>, String> {
        self.get(key, "a text", |value| if let Value::Text(text) = value { Some(text.as_str()) } else { None })
    }

    pub(super) fn flag(&self, key: &str) -> Result<Option<bool>, String> {
        self.get(key, "true or false", |value| if let Value::Flag(flag) = value { Some(*flag) } else { None })
    }

    pub(super) fn texts(&self, key: &str) -> Result<Option<&'a [String]>, String> {
        let read = |value: &'a Value| if let Value::Texts(texts) = value { Some(texts.as_slice()) } else { None };
        let texts = self.get(key, "a list of texts", read)?;
        let bytes: usize = texts.unwrap_or_default().iter().map(String::len).sum();
        if bytes > TEXT_BYTES_MAX {
            return Err(format!("`tokenizer.ggml.{key}` has {bytes} bytes; at most {TEXT_BYTES_MAX} are allowed"));
        }
        Ok(texts)
    }

    /// A number for each token.
    pub(super) fn numbers(&self, key: &str, tokens: usize) -> Result<Option<&'a [f32]>, String> {
        let read = |value: &'a Value| if let Value::Numbers(list) = value { Some(list.as_slice()) } else { None };
        let numbers = self.get(key, "a list of numbers", read)?;
        match numbers {
            Some(list) if list.len() != tokens => {
                Err(format!("`tokenizer.ggml.{key}` has {} numbers for {tokens} tokens", list.len()))
            }
            Some(list) if list.iter().any(|number| number.is_nan()) => {
                Err(format!("`tokenizer.ggml.{key}` holds something that is no number"))
            }
            numbers => Ok(numbers),
        }
    }

    /// A token by its id. Converters write that there is none as -1, of either sign.
    pub(super) fn id(&self, key: &str, tokens: usize) -> Result<Option<u32>, String> {
        let id =
            self.get(key, "a whole number", |value| if let Value::Whole(id) = value { Some(*id) } else { None })?;
        match id {
            None | Some(-1) => Ok(None),
            Some(id) if id == i128::from(u32::MAX) => Ok(None),
            Some(id) if (0..tokens as i128).contains(&id) => Ok(Some(id as u32)),
            Some(id) => Err(format!("`tokenizer.ggml.{key}` is {id}, but there are {tokens} tokens")),
        }
    }
}

/// Untrusted text as errors show it: its beginning, on one line.
pub(super) fn shown(text: &str) -> String {
    text.chars().take(60).flat_map(char::escape_debug).collect()
}
