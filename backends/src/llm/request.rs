//! A request for text, in tokens: what the scheduler is asked for. Characters, templates and stop strings are not here.
//!
//! Every limit that does not depend on the load is enforced by [`Request::new`], whichever API the request came by.

use super::blocks::Salt;
use super::sampling::Sampling;
use std::fmt;
use std::sync::Arc;
use std::time::Instant;

/// Most copies of a request, whatever the limits say: a group counts its living copies in 16 bits.
pub const COPIES_MAX: u16 = 16;

/// What requests call what they are about.
pub const PROMPT: &str = "prompt";

/// Bounds on one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Tokens of a prompt.
    pub prompt_tokens: u32,
    /// Copies; never more than [`COPIES_MAX`].
    pub copies: u16,
    /// Tokens that all copies together may generate.
    pub output_tokens: u32,
    /// Tokens that the model knows: ids are below.
    pub vocabulary: u32,
}

/// What is asked for, not yet checked: [`Request::new`] checks.
#[derive(Clone, Debug)]
pub struct Draft {
    /// At least one token.
    pub prompt: Arc<[u32]>,
    /// Tokens to generate at most, for each copy; at least 1. Where the client states none, whoever makes the draft takes
    /// what the context has room for.
    pub max_tokens: u32,
    /// How tokens are chosen.
    pub sampling: Arc<Sampling>,
    /// Answers to one prompt (`n`, `best_of`).
    pub copies: u16,
    /// Smaller goes first.
    pub priority: i32,
    /// When the answer is of no use any more.
    pub deadline: Option<Instant>,
    /// Whose prefixes it may share.
    pub salt: Salt,
    /// May prefixes be shared with other requests?
    pub cache: bool,
    /// Do its tokens count as generated?
    pub counted: bool,
}

impl Draft {
    /// One copy, priority 0, no deadline, prefixes shared under the default salt, its tokens counted.
    pub fn new(prompt: impl Into<Arc<[u32]>>, max_tokens: u32, sampling: Arc<Sampling>) -> Self {
        let (salt, prompt) = (Salt::default(), prompt.into());
        let (copies, priority, deadline) = (1, 0, None);
        Draft { prompt, max_tokens, sampling, copies, priority, deadline, salt, cache: true, counted: true }
    }
}

/// Why a request is refused; each says the numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestError {
    /// There is no token to begin with.
    EmptyPrompt,
    /// The prompt is too long.
    PromptTooLong {
        /// Its tokens.
        tokens: usize,
        /// The limit.
        most: u32,
    },
    /// A token is not one of the model's.
    UnknownToken {
        /// The field it is in.
        field: &'static str,
        /// The token.
        token: u32,
        /// Ids are below this.
        vocabulary: u32,
    },
    /// No token is asked for.
    NoTokens,
    /// None, or too many copies.
    Copies {
        /// What was asked for.
        copies: u16,
        /// The limit.
        most: u16,
    },
    /// All copies together would be too long.
    OutputTooLong {
        /// What was asked for.
        copies: u16,
        /// Tokens of each.
        max_tokens: u32,
        /// The limit of their product.
        most: u32,
    },
    /// It must not end before it has to.
    MinTokens {
        /// Tokens that there must be.
        min_tokens: u32,
        /// Tokens that there may be.
        max_tokens: u32,
    },
}

impl fmt::Display for RequestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.of("the prompt"))
    }
}

impl std::error::Error for RequestError {}

impl RequestError {
    /// What is wrong, where `prompt` is what the prompt is called in a sentence.
    pub fn of(&self, prompt: &str) -> String {
        match self {
            Self::EmptyPrompt => format!("{prompt} has no tokens; expected at least 1"),
            Self::PromptTooLong { tokens, most } => {
                format!("{prompt} has {tokens} tokens; the model's context has room for {most}")
            }
            Self::UnknownToken { field, token, vocabulary } => {
                let field = if *field == PROMPT { prompt } else { field };
                format!("token {token} of {field} is not one of the model's {vocabulary}")
            }
            Self::NoTokens => "max_tokens is 0; expected at least 1".into(),
            Self::Copies { copies, most } => format!("{copies} copies are asked for; expected 1 to {most}"),
            Self::OutputTooLong { copies, max_tokens, most } => {
                let product = u64::from(*copies) * u64::from(*max_tokens);
                format!("{copies} copies of {max_tokens} tokens are {product}; one request may generate {most}")
            }
            Self::MinTokens { min_tokens, max_tokens } => {
                format!("min_tokens is {min_tokens}, but max_tokens is {max_tokens}")
            }
        }
    }

    /// The field that is at fault, as requests of completions have it.
    pub fn field(&self) -> &'static str {
        match self {
            Self::EmptyPrompt | Self::PromptTooLong { .. } => PROMPT,
            Self::UnknownToken { field, .. } => field,
            Self::NoTokens | Self::OutputTooLong { .. } => "max_tokens",
            Self::Copies { .. } => "n",
            Self::MinTokens { .. } => "min_tokens",
        }
    }
}

/// A checked request.
#[derive(Clone, Debug)]
pub struct Request {
    draft: Draft,
}

impl Request {
    /// Checks a draft.
    ///
    /// # Errors
    /// [`RequestError`] says what exceeds which limit.
    pub fn new(draft: Draft, limits: &Limits) -> Result<Self, RequestError> {
        let Draft { max_tokens, copies, .. } = draft;
        let tokens = draft.prompt.len();
        let vocabulary = limits.vocabulary;
        let prompt_token = || draft.prompt.iter().find(|&&token| token >= vocabulary).map(|&token| (PROMPT, token));
        if tokens == 0 {
            return Err(RequestError::EmptyPrompt);
        }
        if tokens > limits.prompt_tokens as usize {
            return Err(RequestError::PromptTooLong { tokens, most: limits.prompt_tokens });
        }
        if let Some((field, token)) = prompt_token().or_else(|| draft.sampling.unknown_token(vocabulary)) {
            return Err(RequestError::UnknownToken { field, token, vocabulary });
        }
        if max_tokens == 0 {
            return Err(RequestError::NoTokens);
        }
        let most = limits.copies.min(COPIES_MAX);
        if copies == 0 || copies > most {
            return Err(RequestError::Copies { copies, most });
        }
        if u64::from(copies) * u64::from(max_tokens) > u64::from(limits.output_tokens) {
            return Err(RequestError::OutputTooLong { copies, max_tokens, most: limits.output_tokens });
        }
        if draft.sampling.min_tokens > max_tokens {
            return Err(RequestError::MinTokens { min_tokens: draft.sampling.min_tokens, max_tokens });
        }
        Ok(Request { draft })
    }

    /// The prompt.
    pub fn prompt(&self) -> &Arc<[u32]> {
        &self.draft.prompt
    }

    /// Tokens of the prompt: at least 1.
    pub fn prompt_tokens(&self) -> u32 {
        self.draft.prompt.len() as u32
    }

    /// Tokens to generate at most, for each copy.
    pub fn max_tokens(&self) -> u32 {
        self.draft.max_tokens
    }

    /// How tokens are chosen.
    pub fn sampling(&self) -> &Arc<Sampling> {
        &self.draft.sampling
    }

    /// Answers to the one prompt.
    pub fn copies(&self) -> u16 {
        self.draft.copies
    }

    /// Smaller goes first.
    pub fn priority(&self) -> i32 {
        self.draft.priority
    }

    /// When the answer is of no use any more.
    pub fn deadline(&self) -> Option<Instant> {
        self.draft.deadline
    }

    /// Do its tokens count as generated?
    pub fn is_counted(&self) -> bool {
        self.draft.counted
    }

    /// Whose prefixes it may share; `None` where nobody's.
    pub fn salt(&self) -> Option<Salt> {
        self.draft.cache.then_some(self.draft.salt)
    }

    /// Positions whose keys and values a copy may come to need. The last token is never computed with.
    pub(super) fn positions_max(&self) -> u64 {
        u64::from(self.prompt_tokens()) + u64::from(self.max_tokens()) - 1
    }

    /// Does a sequence end with `token`, the last of `generated` tokens? `end_tokens` are the model's own.
    pub(super) fn stops(&self, token: u32, generated: usize, end_tokens: &[u32]) -> bool {
        let sampling = self.sampling();
        let ends = !sampling.ignore_eos && end_tokens.contains(&token);
        generated >= sampling.min_tokens as usize && (ends || sampling.stop_tokens.contains(&token))
    }

    /// Must every position of the prompt be computed, because its probabilities are asked for?
    pub(super) fn logs_prompt(&self) -> bool {
        self.sampling().prompt_logprobs.is_some()
    }
}
