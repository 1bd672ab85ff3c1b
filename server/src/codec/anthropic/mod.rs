//! Answers of language models as the Messages API has them, whole or event by event. Its requests are read as chats.

pub mod events;
mod whole;

pub use whole::collect;

use super::openai::Refusal;
use crate::error::Error;
use crate::llm::answer::End;
use protocol::anthropic::response::{Ending, ErrorBody, StopReason, Usage};
use protocol::openai::FieldError;

/// The body of an error, which is also the data of an event in the middle of a stream.
pub fn error_body(refusal: &Refusal) -> Vec<u8> {
    let message = match refusal {
        Refusal::Field(FieldError { param: Some(field), message, .. }) if !message.contains(field.as_str()) => {
            format!("{field}: {message}")
        }
        Refusal::Field(FieldError { message, .. }) => message.clone(),
        Refusal::Server(Error::UnknownModel(name)) => format!("model: {name}"),
        Refusal::Server(error) => error.message(),
    };
    serde_json::to_vec(&ErrorBody::new(refusal.status(), &message)).unwrap_or_default()
}

/// Why an answer ended, for whoever asked.
fn ending(end: &End, called: bool) -> Ending<'_> {
    let (stop_reason, stop_sequence) = match end {
        End::Length => (StopReason::MaxTokens, None),
        End::StopString(text) => (StopReason::StopSequence, Some(text.as_str())),
        _ if called => (StopReason::ToolUse, None),
        End::EndOfText | End::StopToken(_) => (StopReason::EndTurn, None),
    };
    Ending { stop_reason, stop_sequence }
}

fn usage(prompt: usize, cached: u32, output_tokens: u32) -> Usage {
    let prompt = u32::try_from(prompt).unwrap_or(u32::MAX);
    let input_tokens = prompt.saturating_sub(cached);
    Usage { input_tokens, cache_creation_input_tokens: 0, cache_read_input_tokens: cached, output_tokens }
}

/// A new name for a call.
fn call_id() -> String {
    format!("toolu_{}", &uuid::Uuid::new_v4().simple().to_string()[..24])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_that_is_cut_off_says_so() {
        let reason = |end: &End, called| ending(end, called).stop_reason;
        assert_eq!(reason(&End::Length, true), StopReason::MaxTokens);
        assert_eq!(reason(&End::StopString("x".into()), true), StopReason::StopSequence);
        assert_eq!(reason(&End::EndOfText, true), StopReason::ToolUse);
        assert_eq!(reason(&End::EndOfText, false), StopReason::EndTurn);
    }
}
