//! What a request can end in besides an answer: one enum, one table. HTTP status and gRPC code of a failure stand in
//! the same row, so that the protocols cannot disagree. Where KServe or Triton say otherwise is in `profile.rs`.

use backends::InferError;
use backends::tensor::Misfit;
use std::borrow::Cow;
use std::time::Duration;

/// Why a request was not answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Error {
    /// The request is at fault.
    Invalid(String),
    /// This field of a request for text is at fault.
    Field(Cow<'static, str>, String),
    /// The body is no JSON.
    Malformed(String),
    /// The body is JSON; a member lacks, or is of another kind than the protocol has.
    Members(String),
    /// Values are not of the datatype, or not as many as the shape has.
    Values(String),
    /// Numbers of 16 bits cannot stand in JSON: of what that is said, as far as KServe and Triton say the same.
    Halves(String),
    /// The model does not take these inputs.
    Refused(String),
    /// No such route.
    NoRoute,
    /// No such model.
    UnknownModel(String),
    /// The model exists, this version of it does not.
    UnknownVersion(String, String),
    /// The model exists but does not serve at the moment.
    NotReady(String),
    /// The model serves, but not now: why.
    Unavailable(String),
    /// A model that is to be loaded does not lie in the repository.
    NothingToLoad(String),
    /// A model was found, and cannot be loaded.
    LoadFailed(String),
    /// The server or the model cannot do this.
    Unsupported(String),
    /// The request is larger than allowed.
    TooLarge(String),
    /// The request's head is larger than so many bytes.
    HeadTooLarge(usize),
    /// The content encoding is not known.
    UnsupportedEncoding(String),
    /// The server has as much to do as it takes on.
    Overloaded(String),
    /// The server is shutting down.
    Draining,
    /// The deadline passed.
    Deadline,
    /// The client left.
    Cancelled,
    /// No valid key.
    Unauthorized,
    /// There is not enough memory for what the request asks.
    Memory(String),
    /// The operation is not allowed in this mode.
    Forbidden(String),
    /// Something in the server failed; the client learns no more than that.
    Internal(String),
}

/// gRPC codes by number, so that this file needs no gRPC library.
mod code {
    pub(super) const CANCELLED: i32 = 1;
    pub(super) const INVALID_ARGUMENT: i32 = 3;
    pub(super) const DEADLINE_EXCEEDED: i32 = 4;
    pub(super) const NOT_FOUND: i32 = 5;
    pub(super) const RESOURCE_EXHAUSTED: i32 = 8;
    pub(super) const UNIMPLEMENTED: i32 = 12;
    pub(super) const INTERNAL: i32 = 13;
    pub(super) const UNAVAILABLE: i32 = 14;
    pub(super) const UNAUTHENTICATED: i32 = 16;
}

/// An answer ended that had not come to its end.
pub(crate) fn broke_off() -> Error {
    Error::Internal("an answer broke off".into())
}

/// What was answered has no JSON.
pub(crate) fn unwritten(error: &serde_json::Error) -> Error {
    Error::Internal(format!("a reply cannot be written: {error}"))
}

/// A tensor, an input or an output, stands twice in a request.
pub(crate) fn repeated(kind: &str, name: &str) -> Error {
    Error::Invalid(format!("{kind} '{name}' already exists in request"))
}

/// An output is wanted that the model does not have.
pub(crate) fn unknown_output(name: &str, model: &str, known: &[&str]) -> Error {
    let known = known.join(", ");
    Error::Invalid(format!("unexpected inference output '{name}' for model '{model}'; it has {known}"))
}

/// Bytes of a message.
const LONGEST: usize = 1024;

impl Error {
    /// The table: HTTP status, gRPC code.
    pub fn row(&self) -> (u16, i32) {
        match self {
            Error::Invalid(_)
            | Error::Field(..)
            | Error::Malformed(_)
            | Error::Members(_)
            | Error::Values(_)
            | Error::Halves(_)
            | Error::Refused(_) => (400, code::INVALID_ARGUMENT),
            Error::NoRoute => (404, code::UNIMPLEMENTED),
            Error::UnknownModel(_) | Error::UnknownVersion(..) | Error::NothingToLoad(_) => (404, code::NOT_FOUND),
            Error::NotReady(_) | Error::Unavailable(_) | Error::Draining | Error::LoadFailed(_) => {
                (503, code::UNAVAILABLE)
            }
            Error::Unsupported(_) => (501, code::UNIMPLEMENTED),
            Error::TooLarge(_) => (413, code::RESOURCE_EXHAUSTED),
            Error::HeadTooLarge(_) => (431, code::RESOURCE_EXHAUSTED),
            Error::UnsupportedEncoding(_) => (501, code::UNIMPLEMENTED),
            Error::Overloaded(_) => (429, code::RESOURCE_EXHAUSTED),
            Error::Deadline => (504, code::DEADLINE_EXCEEDED),
            Error::Cancelled => (499, code::CANCELLED),
            Error::Unauthorized => (401, code::UNAUTHENTICATED),
            Error::Forbidden(_) => (503, code::UNAVAILABLE),
            Error::Memory(_) => (500, code::RESOURCE_EXHAUSTED),
            Error::Internal(_) => (500, code::INTERNAL),
        }
    }

    /// What the client is told. What it sent may be quoted there, but not at any length.
    pub fn message(&self) -> String {
        let mut message = self.whole_message();
        if message.len() > LONGEST {
            let cut = (0..=LONGEST / 2).rev().find(|at| message.is_char_boundary(*at)).unwrap_or(0);
            let tail = (message.len() - LONGEST / 2..message.len()).find(|at| message.is_char_boundary(*at));
            let tail = message.split_off(tail.unwrap_or(message.len()));
            message.truncate(cut);
            message = format!("{message} [...] {tail}");
        }
        message
    }

    fn whole_message(&self) -> String {
        match self {
            Error::Invalid(what)
            | Error::Field(_, what)
            | Error::Malformed(what)
            | Error::Members(what)
            | Error::Values(what)
            | Error::Refused(what)
            | Error::LoadFailed(what)
            | Error::Unavailable(what)
            | Error::Unsupported(what)
            | Error::TooLarge(what)
            | Error::Overloaded(what)
            | Error::Memory(what)
            | Error::Forbidden(what)
            | Error::UnsupportedEncoding(what) => what.clone(),
            Error::Halves(what) => format!("Sending {what}"),
            Error::NoRoute => "Not Found".into(),
            Error::HeadTooLarge(most) => format!("path and headers are larger than the limit of {most} bytes"),
            Error::UnknownModel(name) | Error::NothingToLoad(name) => format!("Model with name {name} does not exist."),
            Error::UnknownVersion(name, version) => {
                format!("Request for unknown model: '{name}' version {version} is not found")
            }
            Error::NotReady(name) => format!("Model with name {name} is not ready."),
            Error::Draining => "the server is shutting down".into(),
            Error::Deadline => "the request's deadline passed before its answer was ready: what it states itself, as \
                                x-request-timeout-ms or the like, else --request-timeout, or --generation-timeout of \
                                language models"
                .into(),
            Error::Cancelled => "the request was cancelled".into(),
            Error::Unauthorized => "a valid API key is required".into(),
            Error::Internal(_) => "Internal server error".into(),
        }
    }

    /// How long the client should wait before it tries again, where that makes sense.
    pub fn retry_after(&self) -> Option<Duration> {
        matches!(self, Error::Overloaded(_) | Error::NotReady(_) | Error::Unavailable(_) | Error::Draining)
            .then_some(Duration::from_secs(1))
    }

    /// The reason that metrics count it under, as Triton names them.
    pub fn reason(&self) -> &'static str {
        match self {
            Error::Overloaded(_) | Error::Deadline | Error::Draining => "REJECTED",
            Error::Cancelled => "CANCELED",
            Error::Internal(_) | Error::Memory(_) | Error::Unavailable(_) => "BACKEND",
            _ => "OTHER",
        }
    }
}

impl From<InferError> for Error {
    fn from(error: InferError) -> Self {
        match error {
            InferError::Memory(_) => Error::Memory(error.to_string()),
            InferError::Invalid(what) => Error::Refused(what),
            InferError::Unsupported(what) => Error::Unsupported(what),
            InferError::Deadline => Error::Deadline,
            InferError::Cancelled => Error::Cancelled,
            InferError::Unavailable(what) => Error::Unavailable(what),
            InferError::Internal(what) => Error::Internal(what),
            InferError::Panicked(_) => Error::Internal(error.to_string()),
        }
    }
}

impl From<Misfit> for Error {
    fn from(misfit: Misfit) -> Self {
        Error::Values(misfit.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_do_not_repeat_all_that_was_sent() {
        let short = Error::Invalid("what is wrong".into());
        assert_eq!(short.message(), "what is wrong");
        for text in ["x", "\u{1f600}", "\u{e9}a"] {
            let long = Error::UnknownModel(text.repeat(1 << 20)).message();
            assert!(long.len() <= LONGEST + 16, "{}", long.len());
            assert!(long.starts_with("Model with name ") && long.ends_with(" does not exist."), "{long}");
        }
    }
}
