//! What the scheduler is set to, why it turns requests away, and what it counts.

use crate::llm::request::COPIES_MAX;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// Bounds and habits of a scheduler.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Rows of one step, over all sequences.
    pub token_budget: u32,
    /// Rows of one sequence in one step.
    pub chunk_tokens: u32,
    /// Sequences that run at the same time: the executor's slots.
    pub max_running: u32,
    /// Sequences that wait, each copy counted. A request of more is taken where nothing else waits.
    pub max_waiting: u32,
    /// Tokens that wait to be computed, likewise. The copies of a prompt after the first count as one token each.
    pub max_waiting_tokens: u64,
    /// Tokens of prompt and output that the model can attend to.
    pub context: u32,
    /// Blocks that a sequence leaves free when it starts beside others, for these to grow into.
    pub watermark: u32,
    /// One step of priority is worth so much waiting: a request that is so many steps more urgent goes before those that
    /// arrived less than that many times this before it.
    pub ageing: Duration,
    /// Are prefixes shared between requests? The copies of one request share theirs in any case.
    pub prefix_cache: bool,
    /// The model's own tokens for the end of a text.
    pub end_tokens: Arc<[u32]>,
}

/// Settings that contradict each other: a number is too small.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SettingsError {
    /// Which.
    pub setting: &'static str,
    /// What it is.
    pub value: u64,
    /// The least that works.
    pub least: u64,
    /// Why.
    pub because: &'static str,
}

impl fmt::Display for SettingsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { setting, value, least, because } = self;
        write!(f, "{setting} is {value}; it has to be at least {least}: {because}")
    }
}

impl std::error::Error for SettingsError {}

impl Settings {
    /// Do the numbers fit together, with a pool of so many blocks?
    ///
    /// # Errors
    /// Says which does not.
    pub(super) fn check(&self, blocks: u32) -> Result<(), SettingsError> {
        let (budget, running, context) = (self.token_budget.into(), self.max_running.into(), self.context.into());
        let rules = [
            ("max_running", running, 1, "nothing would run"),
            ("token_budget", budget, running, "each running sequence needs a row of every step"),
            ("chunk_tokens", self.chunk_tokens.into(), 1, "no prompt would advance"),
            ("context", context, 2, "a prompt token and an output token are the least"),
            ("max_waiting", self.max_waiting.into(), 1, "no request would be taken"),
            ("max_waiting_tokens", self.max_waiting_tokens, context + u64::from(COPIES_MAX), "one request has to fit"),
            ("blocks", blocks.into(), 1, "there is nowhere to keep keys and values"),
        ];
        match rules.into_iter().find(|&(_, value, least, _)| value < least) {
            Some((setting, value, least, because)) => Err(SettingsError { setting, value, least, because }),
            None => Ok(()),
        }
    }
}

/// Why a request is turned away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rejected {
    /// Too much waits; later there may be room.
    QueueFull {
        /// Sequences that wait.
        sequences: u32,
        /// The most that may.
        sequences_max: u32,
        /// Tokens that wait.
        tokens: u64,
        /// The most that may.
        tokens_max: u64,
    },
    /// There is never room for it.
    NeverFits {
        /// Tokens of its prompt and output.
        tokens: u64,
        /// The most that there is room for.
        tokens_max: u64,
    },
}

impl fmt::Display for Rejected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::QueueFull { sequences, sequences_max, tokens, tokens_max } => write!(
                f,
                "the queue is full (--queue-size): {sequences} sequences of {sequences_max} and {tokens} tokens of \
                 {tokens_max} wait; try again later"
            ),
            Self::NeverFits { tokens, tokens_max } => {
                write!(f, "prompt and max_tokens are {tokens} tokens together; this model has room for {tokens_max}")
            }
        }
    }
}

impl std::error::Error for Rejected {}

/// Where a scheduler stands, and what it has done, for metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Sequences that wait now.
    pub waiting: u32,
    /// Tokens that wait to be computed now.
    pub waiting_tokens: u64,
    /// Sequences that run now.
    pub running: u32,
    /// Blocks that running sequences hold now.
    pub blocks_used: u32,
    /// All blocks.
    pub blocks_total: u32,
    /// Sequences that gave up their blocks, since the start.
    pub preemptions: u64,
    /// Rows put into steps, since the start: prompts, outputs, and what was computed again.
    pub rows: u64,
    /// Tokens told, since the start.
    pub tokens: u64,
    /// Tokens looked for in the prefix cache, since the start.
    pub prefix_queries: u64,
    /// Tokens of those found.
    pub prefix_hits: u64,
    /// Cached blocks that were given out for other contents, since the start.
    pub evictions: u64,
}
