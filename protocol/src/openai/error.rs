//! What is wrong with a request, in OpenAI's words, and the body that says so. Which HTTP status goes with it is the
//! server's to choose.

use super::fields::shorten;
use crate::json::JsonError;
use serde::Serialize;
use std::fmt;

/// Why a body is no request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldError {
    /// The field, as a path (`messages[0].role`); none where the body as a whole is wrong.
    pub param: Option<String>,
    /// What is wrong, and what would be right.
    pub message: String,
    /// OpenAI's word for the kind of mistake.
    pub code: &'static str,
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}
impl std::error::Error for FieldError {}

impl FieldError {
    /// A field whose value, though of the right type, cannot be.
    pub fn invalid(path: &str, message: impl Into<String>) -> Self {
        FieldError { param: Some(path.to_owned()), message: message.into(), code: "invalid_value" }
    }

    pub(crate) fn malformed(error: &JsonError) -> Self {
        let message = format!("We could not parse the JSON body of your request: {error}. It must be one JSON object.");
        FieldError { param: None, message, code: "invalid_json" }
    }

    pub(crate) fn wrong_type(path: &str, expected: &str, got: &str) -> Self {
        let message = format!("Invalid type for '{path}': expected {expected}, but got {got} instead.");
        FieldError { code: "invalid_type", ..Self::invalid(path, message) }
    }

    pub(crate) fn missing(path: &str) -> Self {
        let message = format!("Missing required parameter: '{path}'.");
        FieldError { code: "missing_required_parameter", ..Self::invalid(path, message) }
    }

    /// `kind` is `integer` or `decimal`; `bound` is `<= 2` or the like.
    pub(crate) fn out_of_range(path: &str, kind: &str, bound: &str, got: &str) -> Self {
        let above = bound.starts_with('<');
        let side = if above { "above maximum" } else { "below minimum" };
        let code = match (kind, above) {
            ("integer", true) => "integer_above_max_value",
            ("integer", false) => "integer_below_min_value",
            (_, true) => "decimal_above_max_value",
            (_, false) => "decimal_below_min_value",
        };
        let got = shorten(got);
        let message =
            format!("Invalid '{path}': {kind} {side} value. Expected a value {bound}, but got {got} instead.");
        FieldError { code, ..Self::invalid(path, message) }
    }

    pub(crate) fn array_too_long(path: &str, most: usize, got: usize) -> Self {
        let message = format!(
            "Invalid '{path}': array too long. Expected an array with maximum length {most}, but got an array with \
             length {got} instead."
        );
        FieldError { code: "array_above_max_length", ..Self::invalid(path, message) }
    }

    pub(crate) fn empty_array(path: &str) -> Self {
        let message = format!(
            "Invalid '{path}': empty array. Expected an array with minimum length 1, but got an empty array instead."
        );
        FieldError { code: "empty_array", ..Self::invalid(path, message) }
    }

    pub(crate) fn string_too_long(path: &str, most: usize, got: usize) -> Self {
        let message = format!(
            "Invalid '{path}': string too long. Expected a string with maximum length {most} bytes, but got a string \
             with length {got} instead."
        );
        FieldError { code: "string_above_max_length", ..Self::invalid(path, message) }
    }

    /// A word that is none of `supported`.
    pub(crate) fn unsupported_value(path: &str, got: &str, supported: &[&str]) -> Self {
        let supported = supported.join("', '");
        let message = format!("Invalid value: '{}' for '{path}'. Supported values are: '{supported}'.", shorten(got));
        FieldError { code: "invalid_value", ..Self::invalid(path, message) }
    }

    /// The same error, said of a tool: clients know their tools by name.
    pub(crate) fn of_tool(self, place: &str, name: &str) -> Self {
        FieldError { message: format!("{place} '{name}': {}", self.message), ..self }
    }

    /// A field that this server knows and does not serve.
    pub fn refused(path: &str, reason: &str) -> Self {
        let message = format!("Unsupported parameter: '{path}' is not supported by this server: {reason}.");
        FieldError { code: "unsupported_parameter", ..Self::invalid(path, message) }
    }
}

/// An error as the body of a reply, and as the data of an event in the middle of a stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ErrorBody<'a> {
    /// The error.
    pub error: ErrorDetail<'a>,
}

/// What went wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ErrorDetail<'a> {
    /// In words.
    pub message: &'a str,
    /// Its class: `BadRequestError`, `NotFoundError` and so on.
    #[serde(rename = "type")]
    pub kind: &'a str,
    /// The field, if it is about one.
    pub param: Option<&'a str>,
    /// The HTTP status, as vLLM has it, or OpenAI's word.
    pub code: Option<ErrorCode<'a>>,
}

/// `code` of an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum ErrorCode<'a> {
    /// An HTTP status.
    Status(u16),
    /// A word.
    Word(&'a str),
}

impl<'a> ErrorBody<'a> {
    /// An error that is about no field.
    pub fn new(message: &'a str, kind: &'a str, status: u16) -> Self {
        ErrorBody { error: ErrorDetail { message, kind, param: None, code: Some(ErrorCode::Status(status)) } }
    }
}

impl<'a> From<&'a FieldError> for ErrorBody<'a> {
    /// As vLLM reports every mistake in a body: status 400.
    fn from(error: &'a FieldError) -> Self {
        let mut body = ErrorBody::new(&error.message, "BadRequestError", 400);
        body.error.param = error.param.as_deref();
        body
    }
}
