//! What every request for text has, whether it is a chat or not: the model, how tokens are chosen, how the answer is
//! delivered, and where the request stands among others. The choosing of tokens has a file of its own.

use super::error::FieldError;
use super::fields::{Field, Fields, Result};
use super::limits;
use super::sampling::Sampling;
use super::table::Endpoint;

/// What was sent and does nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Notices {
    /// Fields, as paths, that nobody knows.
    pub unknown: Vec<String>,
    /// Fields that are known to change no answer, and why.
    pub without_effect: Vec<(&'static str, &'static str)>,
}

impl Notices {
    /// Lists what is left of a nested object.
    pub(super) fn unknown(&mut self, left: Fields<'_>) {
        self.unknown.extend(left.rest().map(|(_, field)| field.path));
    }
}

/// Which end of a prompt that is too long is cut off.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TruncationSide {
    /// Its beginning.
    #[default]
    Left,
    /// Its end.
    Right,
}

/// How far a prompt is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Truncation {
    /// So many tokens are kept; none is as many as the model's context has room for.
    pub tokens: Option<u32>,
    /// What is cut off.
    pub side: TruncationSide,
}

/// How the answer is delivered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Delivery {
    /// As events, while it is generated.
    pub stream: bool,
    /// The last event reports usage.
    pub include_usage: bool,
    /// Every event does. Only together with `include_usage`.
    pub continuous_usage: bool,
    /// The answer begins with the prompt; in a chat, with the message that it continues.
    pub echo: bool,
    /// Stop strings stay in the text.
    pub include_stop: bool,
    /// Special tokens do not become text.
    pub skip_special_tokens: bool,
    /// The ids of tokens are reported beside the text.
    pub token_ids: bool,
    /// In logprobs, tokens are written as `token_id:42`.
    pub tokens_as_ids: bool,
}

/// What all requests for text have.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Common {
    /// The model; none is the one that is served.
    pub model: Option<String>,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// How the answer is delivered.
    pub delivery: Delivery,
    /// How far the prompt may be cut; none refuses one that is too long.
    pub truncation: Option<Truncation>,
    /// Lower runs first.
    pub priority: i32,
    /// Keeps cached prompts apart from those with another salt.
    pub cache_salt: Option<String>,
    /// The client's name for the request: visible ASCII.
    pub request_id: Option<String>,
    /// What was sent and does nothing.
    pub notices: Notices,
}

impl Common {
    pub(super) fn take(fields: &mut Fields<'_>, endpoint: Endpoint) -> Result<Self> {
        let mut notices = Notices::default();
        let name = |f: Field<'_>| f.string(limits::NAME_BYTES);
        let common = Common {
            model: fields.opt("model", name)?,
            sampling: Sampling::take(fields, endpoint, &mut notices)?,
            delivery: Delivery::take(fields, &mut notices)?,
            truncation: Truncation::take(fields)?,
            priority: fields.opt("priority", priority)?.unwrap_or(0),
            cache_salt: fields.opt("cache_salt", cache_salt)?,
            request_id: fields.opt("request_id", request_id)?,
            notices,
        };
        let Common { sampling, delivery, .. } = &common;
        if delivery.stream && sampling.best_of > sampling.n {
            let message = "Invalid 'best_of': it cannot be more than 'n' when 'stream' is true.";
            return Err(FieldError::invalid("best_of", message));
        }
        if delivery.stream && sampling.prompt_logprobs.is_some() {
            let message = "Invalid 'prompt_logprobs': they are not available when 'stream' is true.";
            return Err(FieldError::invalid("prompt_logprobs", message));
        }
        Ok(common)
    }
}

fn priority(field: Field<'_>) -> Result<i32> {
    let value = field.integer(i32::MIN.into()..=i32::MAX.into())?;
    i32::try_from(value).map_err(|_| field.wrong_type("an integer"))
}

fn cache_salt(field: Field<'_>) -> Result<String> {
    let salt = field.string(limits::NAME_BYTES)?;
    if salt.is_empty() {
        return Err(FieldError::invalid(&field.path, "Invalid 'cache_salt': expected a string that is not empty."));
    }
    Ok(salt)
}

/// It becomes part of ids, of headers and of lines of the log.
fn request_id(field: Field<'_>) -> Result<String> {
    let id = field.string(limits::REQUEST_ID_BYTES)?;
    if id.is_empty() || !id.bytes().all(|b| b.is_ascii_graphic()) {
        let message = "Invalid 'request_id': expected a string of visible ASCII characters.";
        return Err(FieldError::invalid(&field.path, message));
    }
    Ok(id)
}

impl Truncation {
    fn take(fields: &mut Fields<'_>) -> Result<Option<Self>> {
        const SIDES: &[(&str, TruncationSide)] = &[("left", TruncationSide::Left), ("right", TruncationSide::Right)];
        let side = fields.opt("truncation_side", |f| f.choice(SIDES))?.unwrap_or_default();
        let Some(field) = fields.take("truncate_prompt_tokens") else { return Ok(None) };
        match field.integer(-1..=u32::MAX.into())? {
            0 => Err(FieldError::out_of_range(&field.path, "integer", ">= 1 (or -1 for all that fit)", "0")),
            // -1 is all that fit.
            tokens => Ok(Some(Truncation { tokens: u32::try_from(tokens).ok(), side })),
        }
    }
}

impl Delivery {
    fn take(fields: &mut Fields<'_>, notices: &mut Notices) -> Result<Self> {
        let mut delivery = Delivery {
            stream: fields.flag("stream", false)?,
            echo: fields.flag("echo", false)?,
            include_stop: fields.flag("include_stop_str_in_output", false)?,
            skip_special_tokens: fields.flag("skip_special_tokens", true)?,
            token_ids: fields.flag("return_token_ids", false)?,
            tokens_as_ids: fields.flag("return_tokens_as_token_ids", false)?,
            ..Delivery::default()
        };
        if let Some(field) = fields.take("stream_options") {
            if !delivery.stream {
                let message = "Invalid 'stream_options': it is only allowed when 'stream' is true.";
                return Err(FieldError::invalid(&field.path, message));
            }
            let mut options = field.object()?;
            delivery.include_usage = options.flag("include_usage", false)?;
            delivery.continuous_usage = options.flag("continuous_usage_stats", false)? && delivery.include_usage;
            // Padding against guessing text from the length of packets.
            if options.flag("include_obfuscation", false)? {
                notices.without_effect.push(("stream_options.include_obfuscation", "events are not padded"));
            }
            notices.unknown(options);
        }
        Ok(delivery)
    }
}
