//! How the next token is chosen: the parameters of a request, checked. The choosing is the executor's.

use std::collections::HashSet;
use std::fmt;
use std::ops::{Deref, RangeInclusive};

/// Most entries of `logit_bias`.
pub const LOGIT_BIAS_MAX: usize = 1024;
/// Most entries of `allowed` and of `banned`.
pub const TOKEN_LIST_MAX: usize = 16_384;
/// Most entries of `stop_tokens`.
pub const STOP_TOKENS_MAX: usize = 128;
/// Most alternatives of `logprobs` and `prompt_logprobs`.
pub const LOGPROBS_MAX: u8 = 20;

/// What errors begin with that say which wishes of a request exclude each other, so that no token can be chosen. Some are
/// seen when it comes, others in the middle of an answer.
pub(super) const NOTHING_LEFT: &str = "no token is left: ";

/// What was asked for, not yet checked: [`Sampling::new`] checks. The default is the likeliest token, nothing else.
#[derive(Clone, Debug, PartialEq)]
pub struct Parameters {
    /// Divides the logits; 0 takes the likeliest token. From 0 to 5.
    pub temperature: f32,
    /// Only so many of the likeliest tokens; 0 is all.
    pub top_k: u32,
    /// Only the likeliest tokens that together have this probability. Above 0, at most 1.
    pub top_p: f32,
    /// Only tokens at least this times as likely as the likeliest. From 0 to 1.
    pub min_p: f32,
    /// Only tokens of typical information content that together have this probability. Above 0, at most 1.
    pub typical_p: f32,
    /// Divides the positive logits of tokens that occurred, multiplies the negative ones. Above 0, at most 100; 1 is off.
    pub repetition_penalty: f32,
    /// Subtracted from the logits of tokens that were generated. From -2 to 2.
    pub presence_penalty: f32,
    /// The same, for each time that they were. From -2 to 2.
    pub frequency_penalty: f32,
    /// Added to the logits of these tokens: those of one token add up. From -100 to 100.
    pub logit_bias: Vec<(u32, f32)>,
    /// Only these tokens.
    pub allowed: Option<Vec<u32>>,
    /// None of these tokens.
    pub banned: Vec<u32>,
    /// With the position and the copy, all that chance depends on.
    pub seed: u64,
    /// Report the logarithm of the token's probability, and of so many alternatives.
    pub logprobs: Option<u8>,
    /// The same for the tokens of the prompt.
    pub prompt_logprobs: Option<u8>,
    /// The sequence does not end before it has so many tokens.
    pub min_tokens: u32,
    /// Tokens that end the sequence, besides the model's own.
    pub stop_tokens: Vec<u32>,
    /// The model's own do not end it.
    pub ignore_eos: bool,
}

impl Default for Parameters {
    fn default() -> Self {
        Parameters {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            typical_p: 1.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: Vec::new(),
            allowed: None,
            banned: Vec::new(),
            seed: 0,
            logprobs: None,
            prompt_logprobs: None,
            min_tokens: 0,
            stop_tokens: Vec::new(),
            ignore_eos: false,
        }
    }
}

/// What requests call lists of tokens.
const ALLOWED: &str = "allowed_token_ids";
const BANNED: &str = "bad_words";
const STOP: &str = "stop_token_ids";
const BIAS: &str = "logit_bias";

/// Why parameters are refused; each says the field, as requests have it.
#[derive(Clone, Debug, PartialEq)]
pub enum SamplingError {
    /// A number is out of its range, or not a number.
    OutOfRange {
        /// The field.
        field: &'static str,
        /// What it was.
        value: f32,
        /// What it may be.
        range: &'static str,
    },
    /// A list is too long, or a count too great.
    TooMany {
        /// The field.
        field: &'static str,
        /// Its length or value.
        count: usize,
        /// The most there may be.
        most: usize,
    },
    /// `allowed` is an empty list: no token could be chosen.
    NothingAllowed,
    /// All of `allowed` are in `banned`.
    AllBanned,
}

impl fmt::Display for SamplingError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OutOfRange { field, value, range } => write!(f, "{field} is {value}; expected a number {range}"),
            Self::TooMany { field, count, most } => write!(f, "{field}: {count}; at most {most} are possible"),
            Self::NothingAllowed => {
                write!(f, "{ALLOWED} is an empty list; expected at least one token, or no list")
            }
            Self::AllBanned => write!(f, "{NOTHING_LEFT}{ALLOWED} and {BANNED} exclude each other"),
        }
    }
}

impl std::error::Error for SamplingError {}

impl SamplingError {
    /// The field that is at fault.
    pub fn field(&self) -> &'static str {
        match self {
            Self::OutOfRange { field, .. } | Self::TooMany { field, .. } => field,
            Self::NothingAllowed | Self::AllBanned => ALLOWED,
        }
    }
}

/// Checked parameters. Reads as [`Parameters`], whose `logit_bias` has each token once by now, in the order of tokens.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sampling(Parameters);

impl Deref for Sampling {
    type Target = Parameters;
    fn deref(&self) -> &Parameters {
        &self.0
    }
}

impl Sampling {
    /// Checks every field.
    ///
    /// # Errors
    /// [`SamplingError`] names the first field that is wrong, and what would be right.
    pub fn new(mut asked: Parameters) -> Result<Self, SamplingError> {
        let p = &asked;
        within("temperature", p.temperature, 0.0..=5.0, "from 0 to 5")?;
        within("top_p", p.top_p, f32::MIN_POSITIVE..=1.0, "above 0, at most 1")?;
        within("min_p", p.min_p, 0.0..=1.0, "from 0 to 1")?;
        within("typical_p", p.typical_p, f32::MIN_POSITIVE..=1.0, "above 0, at most 1")?;
        within("repetition_penalty", p.repetition_penalty, f32::MIN_POSITIVE..=100.0, "above 0, at most 100")?;
        within("presence_penalty", p.presence_penalty, -2.0..=2.0, "from -2 to 2")?;
        within("frequency_penalty", p.frequency_penalty, -2.0..=2.0, "from -2 to 2")?;
        for &(_, bias) in &p.logit_bias {
            within(BIAS, bias, -100.0..=100.0, "from -100 to 100")?;
        }
        at_most(BIAS, p.logit_bias.len(), LOGIT_BIAS_MAX)?;
        at_most(ALLOWED, p.allowed.as_ref().map_or(0, Vec::len), TOKEN_LIST_MAX)?;
        at_most(BANNED, p.banned.len(), TOKEN_LIST_MAX)?;
        at_most(STOP, p.stop_tokens.len(), STOP_TOKENS_MAX)?;
        at_most("logprobs", p.logprobs.unwrap_or(0).into(), LOGPROBS_MAX.into())?;
        at_most("prompt_logprobs", p.prompt_logprobs.unwrap_or(0).into(), LOGPROBS_MAX.into())?;
        match &p.allowed {
            Some(allowed) if allowed.is_empty() => Err(SamplingError::NothingAllowed),
            Some(allowed) if excludes(&p.banned, allowed) => Err(SamplingError::AllBanned),
            _ => {
                add_up(&mut asked.logit_bias);
                Ok(Sampling(asked))
            }
        }
    }

    /// The first token named in a field that a vocabulary of so many tokens lacks.
    pub(super) fn unknown_token(&self, vocabulary: u32) -> Option<(&'static str, u32)> {
        let lists: [(&'static str, &[u32]); 3] =
            [(ALLOWED, self.allowed.as_deref().unwrap_or(&[])), (BANNED, &self.banned), (STOP, &self.stop_tokens)];
        let listed = lists.into_iter().flat_map(|(field, tokens)| tokens.iter().map(move |&token| (field, token)));
        let biased = self.logit_bias.iter().map(|&(token, _)| (BIAS, token));
        listed.chain(biased).find(|&(_, token)| token >= vocabulary)
    }
}

/// Makes one bias of all that a token has, in the order of the request: every sampler then adds the same number.
fn add_up(biases: &mut Vec<(u32, f32)>) {
    // Those of one token stay in their order.
    biases.sort_by_key(|(token, _)| *token);
    biases.dedup_by(|(token, bias), (kept, sum)| {
        let same = token == kept;
        if same {
            *sum += *bias;
        }
        same
    });
}

/// Are all tokens banned that are allowed?
fn excludes(banned: &[u32], allowed: &[u32]) -> bool {
    let banned: HashSet<u32> = banned.iter().copied().collect();
    allowed.iter().all(|token| banned.contains(token))
}

/// NaN is in no range.
fn within(
    field: &'static str,
    value: f32,
    range: RangeInclusive<f32>,
    words: &'static str,
) -> Result<(), SamplingError> {
    match range.contains(&value) {
        true => Ok(()),
        false => Err(SamplingError::OutOfRange { field, value, range: words }),
    }
}

fn at_most(field: &'static str, count: usize, most: usize) -> Result<(), SamplingError> {
    match count <= most {
        true => Ok(()),
        false => Err(SamplingError::TooMany { field, count, most }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn biases_of_a_token_are_added_in_the_order_of_the_request() {
        let bias = |biases: &[(u32, f32)]| {
            let parameters = Parameters { logit_bias: biases.to_vec(), ..Parameters::default() };
            Sampling::new(parameters).map(|sampling| sampling.logit_bias.clone())
        };
        assert_eq!(bias(&[(9, 1.0), (4, 2.0), (9, -4.0), (7, 0.5), (9, 1.0)]), Ok(vec![(4, 2.0), (7, 0.5), (9, -2.0)]));
        // Floats: in another order it would be 0, and all of them together are not held to what one is.
        assert_eq!(bias(&[(1, 100.0), (1, -100.0), (1, 1e-7)]), Ok(vec![(1, 1e-7)]));
        assert_eq!(bias(&[(1, 100.0), (1, 100.0)]), Ok(vec![(1, 200.0)]));
        // What is asked for is counted, not what is left of it.
        let many = vec![(1, 0.0); LOGIT_BIAS_MAX + 1];
        assert_eq!(bias(&many).unwrap_err().field(), BIAS);
    }
}
