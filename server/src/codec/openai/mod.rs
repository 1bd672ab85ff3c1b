//! The OpenAI API in the data plane's terms, and back: what a request asks of a language model, and what its answers
//! are written as, whole or event by event.

pub mod ask;
pub mod asking;
pub mod events;
pub mod told;
pub mod tools;
pub mod whole;

use crate::error::Error;
use crate::llm::answer::End;
use protocol::openai::error::ErrorBody;
use protocol::openai::response::{CompletionDetails, FinishReason, PromptDetails, StopReason, Usage};
use protocol::openai::{FieldError, Notices};

/// Why a request is not answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// A field of its body is at fault.
    Field(FieldError),
    /// Anything else.
    Server(Error),
}

impl From<FieldError> for Refusal {
    fn from(error: FieldError) -> Self {
        Refusal::Field(error)
    }
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        match error {
            Error::Field(field, what) => FieldError::invalid(&field, what).into(),
            other => Refusal::Server(other),
        }
    }
}

impl Refusal {
    /// The HTTP status.
    pub fn status(&self) -> u16 {
        match self {
            Refusal::Field(_) => 400,
            Refusal::Server(error) => error.row().0,
        }
    }

    /// The body, which is also the data of an event in the middle of a stream.
    pub fn body(&self) -> Vec<u8> {
        let written = match self {
            Refusal::Field(error) => serde_json::to_vec(&ErrorBody::from(error)),
            Refusal::Server(error) => {
                let message = match error {
                    Error::UnknownModel(name) => format!("The model `{name}` does not exist."),
                    other => other.message(),
                };
                let mut body = ErrorBody::new(&message, kind(self.status()), self.status());
                body.error.param = matches!(error, Error::UnknownModel(_)).then_some("model");
                serde_json::to_vec(&body)
            }
        };
        written.unwrap_or_default()
    }
}

/// Fields that do nothing are told to whoever runs the server.
pub fn noticed(notices: &Notices) {
    if notices != &Notices::default() {
        tracing::debug!(unknown = ?notices.unknown, without_effect = ?notices.without_effect, "fields that do nothing");
    }
}

/// The body of an error that is about no field.
pub fn error_body(message: &str, status: u16) -> Vec<u8> {
    serde_json::to_vec(&ErrorBody::new(message, kind(status), status)).unwrap_or_default()
}

/// OpenAI's and vLLM's word for a status.
fn kind(status: u16) -> &'static str {
    match status {
        401 => "AuthenticationError",
        404 => "NotFoundError",
        405 => "MethodNotAllowedError",
        413 => "RequestTooLargeError",
        429 => "RateLimitError",
        499 => "CancelledError",
        501 => "NotImplementedError",
        503 => "ServiceUnavailableError",
        504 => "TimeoutError",
        status if status < 500 => "BadRequestError",
        _ => "InternalServerError",
    }
}

/// What all replies to one request begin with.
#[derive(Clone, Debug)]
pub struct Head {
    /// `chatcmpl-...` or `cmpl-...`
    pub id: String,
    /// When it came, in seconds since 1970.
    pub created: u64,
    /// The model.
    pub model: String,
}

/// Which server.
const FINGERPRINT: &str = concat!("tensorgate-", env!("CARGO_PKG_VERSION"));

/// Does the answer wait for the results of its calls? Not where the caller named the one call that there is: that is how
/// OpenAI has it.
pub(super) fn finish_reason(end: &End, called: bool) -> FinishReason {
    match end {
        End::Length => FinishReason::Length,
        // A text that ends an answer may stand in the middle of a call.
        End::StopString(_) => FinishReason::Stop,
        _ if called => FinishReason::ToolCalls,
        End::EndOfText | End::StopToken(_) => FinishReason::Stop,
    }
}

fn stop_reason(end: &End) -> Option<StopReason> {
    match end {
        End::StopToken(token) => Some(StopReason::Token(*token)),
        End::StopString(text) => Some(StopReason::Text(text.clone())),
        End::Length | End::EndOfText => None,
    }
}

/// `thought` is told of models that think.
fn usage(prompt: u32, completion: u32, cached: u32, thought: Option<u32>) -> Usage {
    Usage {
        prompt_tokens_details: Some(PromptDetails { cached_tokens: cached }),
        completion_tokens_details: thought.map(|reasoning_tokens| CompletionDetails { reasoning_tokens }),
        ..Usage::new(prompt, completion)
    }
}
