//! The OpenAI API: every field is accounted for, limits hold, hostile bodies are refused, replies have their shapes.

// The exemption of tests covers only the bodies of `#[test]` functions.
#![allow(clippy::unwrap_used)]

mod docs;
mod fields;
mod hostile;
mod replies;
mod values;

use protocol::openai::table::Endpoint;
use protocol::openai::*;
use serde_json::{Value, json};

const ALL: [Endpoint; 4] = [Endpoint::Chat, Endpoint::Completion, Endpoint::Tokenize, Endpoint::Detokenize];

/// The smallest request of an endpoint.
pub(crate) fn base(endpoint: Endpoint) -> Value {
    match endpoint {
        Endpoint::Chat | Endpoint::Tokenize => json!({"messages": [{"role": "user", "content": "hi"}]}),
        Endpoint::Completion => json!({"prompt": "hi"}),
        Endpoint::Detokenize => json!({"tokens": [1]}),
    }
}

/// A parsed request as text, and what it says of fields that do nothing.
pub(crate) fn parse(endpoint: Endpoint, body: &[u8]) -> Result<(String, Notices), FieldError> {
    Ok(match endpoint {
        Endpoint::Chat => ChatRequest::parse(body).map(|r| (format!("{r:?}"), r.common.notices))?,
        Endpoint::Completion => CompletionRequest::parse(body).map(|r| (format!("{r:?}"), r.common.notices))?,
        Endpoint::Tokenize => TokenizeRequest::parse(body).map(|r| (format!("{r:?}"), r.notices))?,
        Endpoint::Detokenize => DetokenizeRequest::parse(body).map(|r| (format!("{r:?}"), r.notices))?,
    })
}

/// The smallest request of an endpoint, with something more in it.
fn body(endpoint: Endpoint, extra: &Value) -> Vec<u8> {
    let mut body = base(endpoint);
    body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    body.to_string().into_bytes()
}

pub(crate) fn with(endpoint: Endpoint, extra: &Value) -> Result<(String, Notices), FieldError> {
    parse(endpoint, &body(endpoint, extra))
}

pub(crate) fn chat(extra: Value) -> Result<ChatRequest, FieldError> {
    ChatRequest::parse(&body(Endpoint::Chat, &extra))
}

pub(crate) fn completion(extra: Value) -> Result<CompletionRequest, FieldError> {
    CompletionRequest::parse(&body(Endpoint::Completion, &extra))
}

pub(crate) fn tool(name: &str) -> Value {
    json!({"type": "function", "function": {"name": name, "parameters": {"type": "object"}}})
}
