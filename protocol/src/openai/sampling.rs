//! What a request says about choosing tokens and about when to stop. `None` leaves a number to the model's
//! `generation_config.json`. The choosing is not here.

use super::common::Notices;
use super::error::FieldError;
use super::fields::{Field, Fields, Range, Result, shorten};
use super::format::{self, Constraint};
use super::limits;
use super::table::Endpoint;
use crate::json::Kind;
use std::collections::BTreeMap;

/// How tokens are chosen, and how many.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sampling {
    /// Divides the logits; 0 takes the likeliest token. From 0 to 5.
    pub temperature: Option<f32>,
    /// Only the likeliest tokens that together have this probability. Above 0, at most 1.
    pub top_p: Option<f32>,
    /// Only so many of the likeliest tokens; 0, also written -1, is all.
    pub top_k: Option<u32>,
    /// Only tokens at least this times as likely as the likeliest. From 0 to 1.
    pub min_p: Option<f32>,
    /// Only tokens of typical information content that together have this probability. Above 0, at most 1.
    pub typical_p: Option<f32>,
    /// Divides the positive logits of tokens that occurred, multiplies the negative ones. From 0.01 to 100.
    pub repetition_penalty: Option<f32>,
    /// Subtracted from the logits of tokens that were generated. From -2 to 2.
    pub presence_penalty: f32,
    /// The same, for each time that they were. From -2 to 2.
    pub frequency_penalty: f32,
    /// Added to the logits of these tokens. From -100 to 100.
    pub logit_bias: BTreeMap<u32, f32>,
    /// Only these tokens.
    pub allowed_token_ids: Option<Vec<u32>>,
    /// Texts that are never generated.
    pub bad_words: Vec<String>,
    /// What chance depends on; none leaves it to the server.
    pub seed: Option<i64>,
    /// Texts that end the generation.
    pub stop: Vec<String>,
    /// Tokens that end the generation, besides the model's own.
    pub stop_token_ids: Vec<u32>,
    /// The model's own do not end it.
    pub ignore_eos: bool,
    /// So many tokens come before it may end.
    pub min_tokens: u32,
    /// After so many tokens it ends. 0 only in a completion request with `echo`: the prompt alone is wanted. None is 16
    /// for completions, and what the context has room for in a chat.
    pub max_tokens: Option<u32>,
    /// The name of the field that says so.
    pub max_tokens_field: MaxTokensField,
    /// So many choices are returned.
    pub n: u32,
    /// So many choices are made, of which the likeliest `n` are returned.
    pub best_of: u32,
    /// Report the logarithm of each token's probability, and of so many alternatives.
    pub logprobs: Option<u32>,
    /// The same for the tokens of the prompt.
    pub prompt_logprobs: Option<u32>,
    /// What the text must be like.
    pub constraint: Option<Constraint>,
}

/// How a request calls the number of tokens after which an answer ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MaxTokensField {
    /// As all may.
    #[default]
    MaxTokens,
    /// As newer chats do.
    MaxCompletionTokens,
}

impl MaxTokensField {
    /// As it is written.
    pub fn as_str(self) -> &'static str {
        match self {
            MaxTokensField::MaxTokens => "max_tokens",
            MaxTokensField::MaxCompletionTokens => "max_completion_tokens",
        }
    }
}

/// What `max_tokens` is in a completion request that says nothing.
pub const COMPLETION_TOKENS: u32 = 16;

const FROM_0_TO_1: Range = Range(0.0, 1.0, true);
const ABOVE_0_TO_1: Range = Range(0.0, 1.0, false);
const PENALTY: Range = Range(-2.0, 2.0, true);

impl Sampling {
    pub(super) fn take(fields: &mut Fields<'_>, endpoint: Endpoint, notices: &mut Notices) -> Result<Self> {
        let tokens = |most| move |f: Field<'_>| f.ids(most);
        let (states_old, states_new) = (fields.has("max_tokens"), fields.has("max_completion_tokens"));
        let newer = endpoint == Endpoint::Chat && states_new;
        let mut sampling = Sampling {
            temperature: fields.opt("temperature", |f| f.decimal(Range(0.0, 5.0, true)))?,
            top_p: fields.opt("top_p", |f| f.decimal(ABOVE_0_TO_1))?,
            top_k: fields.opt("top_k", |f| f.integer(-1..=i64::from(u32::MAX)))?.map(|k| u32::try_from(k).unwrap_or(0)),
            min_p: fields.opt("min_p", |f| f.decimal(FROM_0_TO_1))?,
            typical_p: fields.opt("typical_p", |f| f.decimal(ABOVE_0_TO_1))?,
            // Nearer to zero it makes infinities of logits, and then not-a-number of their differences.
            repetition_penalty: fields.opt("repetition_penalty", |f| f.decimal(Range(0.01, 100.0, true)))?,
            presence_penalty: fields.opt("presence_penalty", |f| f.decimal(PENALTY))?.unwrap_or(0.0),
            frequency_penalty: fields.opt("frequency_penalty", |f| f.decimal(PENALTY))?.unwrap_or(0.0),
            logit_bias: fields.opt("logit_bias", logit_bias)?.unwrap_or_default(),
            allowed_token_ids: fields.opt("allowed_token_ids", allowed)?,
            bad_words: fields.opt("bad_words", |f| words(&f, limits::BAD_WORDS))?.unwrap_or_default(),
            seed: fields.opt("seed", |f| f.integer(i64::MIN..=i64::MAX))?,
            stop: fields.opt("stop", stop)?.unwrap_or_default(),
            stop_token_ids: fields.opt("stop_token_ids", tokens(limits::STOP_TOKENS))?.unwrap_or_default(),
            ignore_eos: fields.flag("ignore_eos", false)?,
            min_tokens: fields.opt("min_tokens", |f| f.count(0..=u32::MAX))?.unwrap_or(0),
            max_tokens: max_tokens(fields, endpoint)?,
            max_tokens_field: if newer { MaxTokensField::MaxCompletionTokens } else { MaxTokensField::MaxTokens },
            logprobs: logprobs(fields, endpoint)?,
            prompt_logprobs: fields.opt("prompt_logprobs", alternatives)?,
            constraint: format::take(fields, notices)?,
            ..Sampling::default()
        };
        sampling.choices(fields)?;
        if let Some(most) = sampling.max_tokens.filter(|most| *most < sampling.min_tokens) {
            let (least, name) = (sampling.min_tokens, sampling.max_tokens_field.as_str());
            let whose = match states_old || newer {
                true => format!("'{name}' is {most}"),
                false => format!("where '{name}' is left out an answer ends after {most}"),
            };
            let message =
                format!("Invalid 'min_tokens': {least} is more than the maximum number of tokens, {most}: {whose}.");
            return Err(FieldError::invalid("min_tokens", message));
        }
        Ok(sampling)
    }

    fn choices(&mut self, fields: &mut Fields<'_>) -> Result<()> {
        self.n = fields.opt("n", choices)?.unwrap_or(1);
        self.best_of = fields.opt("best_of", choices)?.unwrap_or(self.n);
        if self.best_of < self.n {
            let message = format!("Invalid 'best_of': {} is less than 'n', {}.", self.best_of, self.n);
            return Err(FieldError::invalid("best_of", message));
        }
        Ok(())
    }
}

fn choices(field: Field<'_>) -> Result<u32> {
    field.count(1..=limits::CHOICES)
}

fn alternatives(field: Field<'_>) -> Result<u32> {
    field.count(0..=limits::LOGPROBS)
}

/// Chats say whether and how many in two fields, completions in one.
fn logprobs(fields: &mut Fields<'_>, endpoint: Endpoint) -> Result<Option<u32>> {
    if endpoint != Endpoint::Chat {
        return fields.opt("logprobs", alternatives);
    }
    let wanted = fields.flag("logprobs", false)?;
    let top = fields.opt("top_logprobs", alternatives)?.unwrap_or(0);
    if top > 0 && !wanted {
        let message = "Invalid 'top_logprobs': it is only allowed when 'logprobs' is true.";
        return Err(FieldError::invalid("top_logprobs", message));
    }
    Ok(wanted.then_some(top))
}

fn max_tokens(fields: &mut Fields<'_>, endpoint: Endpoint) -> Result<Option<u32>> {
    if endpoint != Endpoint::Chat {
        let most = fields.opt("max_tokens", |f| f.count(0..=u32::MAX))?;
        return Ok(Some(most.unwrap_or(COMPLETION_TOKENS)));
    }
    let old = fields.opt("max_tokens", |f| f.count(1..=u32::MAX))?;
    let new = fields.opt("max_completion_tokens", |f| f.count(1..=u32::MAX))?;
    match (old, new) {
        (Some(old), Some(new)) if old != new => {
            let message = "Setting 'max_tokens' and 'max_completion_tokens' to different values is not supported.";
            Err(FieldError::invalid("max_tokens", message))
        }
        _ => Ok(new.or(old)),
    }
}

fn stop(field: Field<'_>) -> Result<Vec<String>> {
    match field.kind()? {
        Kind::Array => words(&field, limits::STOPS),
        Kind::String => Ok(vec![word(&field)?]),
        _ => Err(field.wrong_type("one of a string or array of strings")),
    }
}

pub(crate) fn words(field: &Field<'_>, most: usize) -> Result<Vec<String>> {
    field.elements(most)?.iter().map(word).collect()
}

fn word(field: &Field<'_>) -> Result<String> {
    let text = field.string(limits::STOP_BYTES)?;
    if text.is_empty() {
        return Err(FieldError::invalid(&field.path, format!("Invalid '{}': empty string.", field.path)));
    }
    Ok(text)
}

fn allowed(field: Field<'_>) -> Result<Vec<u32>> {
    let ids = field.ids(limits::ALLOWED_TOKENS)?;
    if ids.is_empty() { Err(FieldError::empty_array(&field.path)) } else { Ok(ids) }
}

fn logit_bias(field: Field<'_>) -> Result<BTreeMap<u32, f32>> {
    let mut found = BTreeMap::new();
    for (key, bias) in field.object_of(limits::LOGIT_BIAS)?.rest() {
        let digits = key.bytes().all(|b| b.is_ascii_digit());
        let id = key.parse().ok().filter(|_| digits).ok_or_else(|| {
            let message = format!("Invalid key in '{}': expected a token id, but got '{}'.", field.path, shorten(&key));
            FieldError::invalid(&field.path, message)
        })?;
        // "1" and "01" are two keys of one token.
        if found.insert(id, bias.decimal(Range(-100.0, 100.0, true))?).is_some() {
            let message = format!("Invalid '{}': token {id} appears twice.", field.path);
            return Err(FieldError::invalid(&field.path, message));
        }
    }
    Ok(found)
}
