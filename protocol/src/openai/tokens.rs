//! Requests and replies of `/tokenize` and `/detokenize`. What the tokens are is the model's business.

use super::common::Notices;
use super::error::FieldError;
use super::fields::{Fields, Result};
use super::limits;
use super::request::Conversation;
use super::table::{self, Endpoint};
use serde::Serialize;

/// What is to become tokens.
#[derive(Clone, Debug, PartialEq)]
pub enum TokenizeInput {
    /// A text.
    Text {
        /// The text.
        prompt: String,
        /// The tokenizer adds its special tokens.
        add_special_tokens: bool,
    },
    /// The prompt of a conversation.
    Conversation(Box<Conversation>),
}

/// A request of `/tokenize`.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenizeRequest {
    /// The model; none is the one that is served.
    pub model: Option<String>,
    /// What is to become tokens.
    pub input: TokenizeInput,
    /// Report the text of each token too.
    pub return_token_strs: bool,
    /// What was sent and does nothing.
    pub notices: Notices,
}

impl TokenizeRequest {
    /// Reads a body.
    ///
    /// # Errors
    /// [`FieldError`] names the field, and says what would be right.
    pub fn parse(body: &[u8]) -> Result<Self> {
        let mut fields = Fields::of_body(body)?;
        let input = match fields.take("prompt") {
            Some(prompt) => TokenizeInput::Text {
                prompt: prompt.string(usize::MAX)?,
                add_special_tokens: fields.flag("add_special_tokens", true)?,
            },
            None if fields.has("messages") => TokenizeInput::Conversation(Box::new(Conversation::take(&mut fields)?)),
            None => {
                return Err(FieldError { param: Some("prompt".into()), ..FieldError::missing("prompt' or 'messages") });
            }
        };
        let mut request = TokenizeRequest {
            model: fields.opt("model", |f| f.string(limits::NAME_BYTES))?,
            input,
            return_token_strs: fields.flag("return_token_strs", false)?,
            notices: Notices::default(),
        };
        if let Some(messages) = fields.take("messages") {
            let message = "Invalid 'messages': it cannot be combined with 'prompt'; send one of them.";
            return Err(FieldError::invalid(&messages.path, message));
        }
        table::apply(Endpoint::Tokenize, fields, &mut request.notices)?;
        Ok(request)
    }
}

/// A request of `/detokenize`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DetokenizeRequest {
    /// The model; none is the one that is served.
    pub model: Option<String>,
    /// What is to become text.
    pub tokens: Vec<u32>,
    /// What was sent and does nothing.
    pub notices: Notices,
}

impl DetokenizeRequest {
    /// Reads a body.
    ///
    /// # Errors
    /// [`FieldError`] names the field, and says what would be right.
    pub fn parse(body: &[u8]) -> Result<Self> {
        let mut fields = Fields::of_body(body)?;
        let mut request = DetokenizeRequest {
            model: fields.opt("model", |f| f.string(limits::NAME_BYTES))?,
            tokens: fields.require("tokens")?.ids(usize::MAX)?,
            notices: Notices::default(),
        };
        table::apply(Endpoint::Detokenize, fields, &mut request.notices)?;
        Ok(request)
    }
}

/// The reply of `/tokenize`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TokenizeReply {
    /// How many tokens there are.
    pub count: usize,
    /// How many the model's context has room for.
    pub max_model_len: u32,
    /// Their ids.
    pub tokens: Vec<u32>,
    /// Their texts, if they were asked for.
    pub token_strs: Option<Vec<String>>,
}

/// The reply of `/detokenize`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DetokenizeReply {
    /// The text.
    pub prompt: String,
}
