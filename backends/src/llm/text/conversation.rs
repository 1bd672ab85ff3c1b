//! What `transformers` does to messages before a template sees them, and the bounds that they keep. Roles and the shapes
//! of content are not checked: that is the API's business, and the template's.

use crate::error::InferError;
use serde_json::{Map, Value};

/// JSON inside each other, at most.
const MAX_JSON_DEPTH: usize = 128;
/// The names under which models are told what was thought; the first is the one that templates should read.
const REASONING: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];
/// What a message says.
const CONTENT: &str = "content";
/// Marks the end of the message that is to be continued.
const CONTINUE: &str = "CONTINUE_FINAL_MESSAGE_TAG ";

/// Messages as templates see them: without fields that are null, and with what was thought under the names that are read.
/// A message that has no content has `instead` for it.
pub(super) fn normalized(messages: &[Value], instead: Option<&Value>) -> Result<Vec<Value>, InferError> {
    let mut seen = Vec::with_capacity(messages.len());
    for (index, message) in messages.iter().enumerate() {
        let Value::Object(fields) = message else {
            return Err(InferError::invalid(format!("messages[{index}] is not an object")));
        };
        let reasoning = REASONING.iter().find_map(|name| fields.get(*name).filter(|value| !value.is_null()));
        let mut out = Map::new();
        if let Some(reasoning) = reasoning {
            out.insert("thinking".to_owned(), reasoning.clone());
        }
        let present = fields.iter().filter(|(_, value)| !value.is_null());
        out.extend(present.map(|(name, value)| (name.clone(), value.clone())));
        if let Some(reasoning) = reasoning {
            out.insert("reasoning_content".to_owned(), reasoning.clone());
        }
        if let Some(instead) = instead.filter(|_| lacks_content(message)) {
            out.insert(CONTENT.to_owned(), instead.clone());
        }
        seen.push(Value::Object(out));
    }
    Ok(seen)
}

/// Is the content of a message null, or absent? That of calls is.
pub(super) fn lacks_content(message: &Value) -> bool {
    message.get(CONTENT).is_none_or(Value::is_null)
}

/// Does a template ask whether content is none, as in `message['content'] is not none`?
pub(super) fn asks_for_none(template: &str) -> bool {
    template.match_indices(CONTENT).any(|(at, word)| {
        let inside = template[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_');
        let rest = template[at + word.len()..].trim_start_matches(['\'', '"', ']', ')', ' ']);
        let mut asked = ["is ", "is not ", "== ", "!= "].iter().filter_map(|test| rest.strip_prefix(test));
        !inside && asked.any(|what| what.starts_with("none") || what.starts_with("None"))
    })
}

/// Bytes of a value, roughly as in JSON.
pub(super) fn weigh(value: &Value) -> Result<usize, InferError> {
    fn walk(value: &Value, depth: usize) -> Option<usize> {
        if depth > MAX_JSON_DEPTH {
            return None;
        }
        match value {
            Value::String(text) => Some(text.len() + 2),
            Value::Array(items) => items.iter().try_fold(2, |sum, item| Some(sum + walk(item, depth + 1)? + 1)),
            Value::Object(fields) => {
                fields.iter().try_fold(2, |sum, (name, item)| Some(sum + name.len() + walk(item, depth + 1)? + 4))
            }
            _ => Some(8),
        }
    }
    walk(value, 0).ok_or_else(|| InferError::invalid(format!("JSON nested more than {MAX_JSON_DEPTH} deep")))
}

/// Marks where the content of the last message ends; gives that content.
pub(super) fn mark_end(messages: &mut [Value]) -> Result<String, InferError> {
    let last = messages.last_mut().and_then(|message| message.get_mut("content"));
    let text = match last {
        Some(Value::String(text)) => text,
        Some(Value::Array(parts)) => {
            let texts = parts.iter_mut().rev().filter_map(|part| part.get_mut("text"));
            match texts.into_iter().next() {
                Some(Value::String(text)) => text,
                _ => {
                    return Err(InferError::invalid(
                        "continue_final_message: the last message has no text to continue",
                    ));
                }
            }
        }
        _ => return Err(InferError::invalid("continue_final_message: the last message has no content to continue")),
    };
    let before = text.clone();
    text.push_str(CONTINUE);
    Ok(before)
}

/// The prompt up to where the last message, whose content is `content`, ends.
pub(super) fn cut_at_end(prompt: &str, content: &str) -> Result<String, InferError> {
    let place = prompt.rfind(CONTINUE.trim_end()).filter(|_| prompt.contains(content.trim()));
    let place = place.ok_or_else(|| {
        InferError::invalid("continue_final_message: the chat template leaves out or changes the last message")
    })?;
    // A template that trims content has trimmed the mark as well, and would have trimmed what is before it.
    let before = &prompt[..place];
    Ok(if prompt[place..].starts_with(CONTINUE) { before } else { before.trim_end() }.to_owned())
}
