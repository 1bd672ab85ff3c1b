//! Replies of the Messages API, whole and event by event, and its errors.

use serde::{Serialize, Serializer};
use serde_json::value::RawValue;

/// A whole message, and what a stream of events begins with.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "type", rename = "message")]
pub struct Message<'a> {
    /// `msg_...`
    pub id: &'a str,
    /// `assistant`
    pub role: &'static str,
    /// Which model.
    pub model: &'a str,
    /// What was said, in its order.
    pub content: Vec<Block<'a>>,
    /// Why it ended; none while it goes on.
    pub stop_reason: Option<StopReason>,
    /// Of the `stop_sequences`, the one that ended it.
    pub stop_sequence: Option<&'a str>,
    /// Tokens that were counted.
    pub usage: Usage,
}

/// A part of a message.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Block<'a> {
    /// Thoughts.
    Thinking {
        /// In words.
        thinking: &'a str,
        /// Nothing here signs thoughts.
        signature: &'static str,
    },
    /// Text.
    Text {
        /// In words.
        text: &'a str,
    },
    /// A call of a tool.
    ToolUse {
        /// What its result refers to.
        id: String,
        /// The tool.
        name: &'a str,
        /// Its arguments.
        input: Input<'a>,
    },
}

/// The arguments of a call: an object.
#[derive(Clone, Copy, Debug)]
pub enum Input<'a> {
    /// There are none, or none yet.
    Empty,
    /// As the model wrote them. Read and written again, numbers of many digits would be others.
    Written(&'a RawValue),
    /// What it wrote, or did not end, is no object: it is kept as Anthropic advises.
    Invalid(&'a str),
}

impl<'a> Input<'a> {
    /// What a model wrote for arguments.
    pub fn read(text: &'a str) -> Self {
        match serde_json::from_str::<&'a RawValue>(text) {
            Ok(written) if written.get().starts_with('{') => Input::Written(written),
            _ => Input::Invalid(text),
        }
    }
}

impl Serialize for Input<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Input::Empty => serializer.collect_map(None::<(&str, &str)>),
            Input::Written(written) => written.serialize(serializer),
            Input::Invalid(text) => serializer.collect_map([("INVALID_JSON", text)]),
        }
    }
}

/// Why a message ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum StopReason {
    /// The model ended it.
    EndTurn,
    /// There was no room for more tokens.
    MaxTokens,
    /// One of `stop_sequences` did.
    StopSequence,
    /// The model waits for results.
    ToolUse,
}

/// Tokens that were counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Usage {
    /// Of the prompt, without those that were found in the cache.
    pub input_tokens: u32,
    /// Stored in the cache: not told apart from those that were not.
    pub cache_creation_input_tokens: u32,
    /// Found in the cache.
    pub cache_read_input_tokens: u32,
    /// Of the answer.
    pub output_tokens: u32,
}

/// An event of a stream. Its name is its `type`.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Event<'a> {
    /// The message begins.
    MessageStart {
        /// Without content.
        message: Message<'a>,
    },
    /// Nothing happened.
    Ping,
    /// A block begins.
    ContentBlockStart {
        /// Which.
        index: u32,
        /// What it is; empty.
        content_block: Block<'a>,
    },
    /// More of a block.
    ContentBlockDelta {
        /// Which.
        index: u32,
        /// More.
        delta: Delta<'a>,
    },
    /// A block is complete.
    ContentBlockStop {
        /// Which.
        index: u32,
    },
    /// The message is complete.
    MessageDelta {
        /// Why it ended.
        delta: Ending<'a>,
        /// Of the whole message.
        usage: Usage,
    },
    /// The stream ends.
    MessageStop,
}

impl Event<'_> {
    /// The name of the event.
    pub fn name(&self) -> &'static str {
        match self {
            Event::MessageStart { .. } => "message_start",
            Event::Ping => "ping",
            Event::ContentBlockStart { .. } => "content_block_start",
            Event::ContentBlockDelta { .. } => "content_block_delta",
            Event::ContentBlockStop { .. } => "content_block_stop",
            Event::MessageDelta { .. } => "message_delta",
            Event::MessageStop => "message_stop",
        }
    }
}

/// More of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
#[allow(clippy::enum_variant_names, reason = "the names are the protocol's")]
pub enum Delta<'a> {
    /// Of thoughts.
    ThinkingDelta {
        /// In words.
        thinking: &'a str,
    },
    /// Of text.
    TextDelta {
        /// In words.
        text: &'a str,
    },
    /// Of the arguments of a call.
    InputJsonDelta {
        /// JSON, in pieces.
        partial_json: &'a str,
    },
}

/// Why a message ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Ending<'a> {
    /// The reason.
    pub stop_reason: StopReason,
    /// Of the `stop_sequences`, the one that ended it.
    pub stop_sequence: Option<&'a str>,
}

/// The reply of `/v1/messages/count_tokens`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Count {
    /// Tokens of the prompt.
    pub input_tokens: usize,
}

/// An error, as a body and as the data of an event.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "type", rename = "error")]
pub struct ErrorBody<'a> {
    /// What went wrong.
    pub error: Error<'a>,
}

/// What went wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Error<'a> {
    /// Its class.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// In words.
    pub message: &'a str,
}

impl<'a> ErrorBody<'a> {
    /// An error with this HTTP status.
    pub fn new(status: u16, message: &'a str) -> Self {
        let kind = match status {
            401 => "authentication_error",
            403 => "permission_error",
            404 => "not_found_error",
            413 => "request_too_large",
            429 => "rate_limit_error",
            503 => "overloaded_error",
            504 => "timeout_error",
            status if status < 500 => "invalid_request_error",
            _ => "api_error",
        };
        ErrorBody { error: Error { kind, message } }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A call as it is written.
    fn written(input: Input<'_>) -> String {
        serde_json::to_string(&Block::ToolUse { id: "toolu_1".to_owned(), name: "f", input }).unwrap()
    }

    #[test]
    fn arguments_are_written_as_they_came() {
        let around = |input: &str| format!(r#"{{"type":"tool_use","id":"toolu_1","name":"f","input":{input}}}"#);
        let as_it_is = r#"{"b": 123456789012345678901, "a": 0.10000000000000000001, "c": 1e400, "a": [{}]}"#;
        assert_eq!(written(Input::read(as_it_is)), around(as_it_is));
        assert_eq!(written(Input::read(" {\"a\":\t1}\n")), around("{\"a\":\t1}"));
        assert_eq!(written(Input::Empty), around("{}"));
        for invalid in ["", "7", "[{}]", r#"{"a": "#, "{} {}", "{\"a\": \"\n\"}", "{'a': 1}", "NaN"] {
            let kept = format!(r#"{{"INVALID_JSON":{}}}"#, serde_json::to_string(invalid).unwrap());
            assert_eq!(written(Input::read(invalid)), around(&kept), "{invalid}");
        }
    }

    #[test]
    fn arguments_in_an_event_are_an_object_too() {
        let content_block = Block::ToolUse { id: "toolu_1".to_owned(), name: "f", input: Input::Empty };
        let event = serde_json::to_string(&Event::ContentBlockStart { index: 0, content_block }).unwrap();
        assert!(event.ends_with(r#""name":"f","input":{}}}"#), "{event}");
    }
}
