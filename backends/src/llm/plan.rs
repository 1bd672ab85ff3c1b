//! What one step computes, and what came of it. Plain data: a plan can be logged, replayed, and sent to another rank.
//!
//! ```text
//! sequence   [ prompt ................. | output ...... | not yet sampled ]
//! chunk                [start .. start + length)
//!                       read and written through `blocks`; with `sample`, its last row chooses the next token
//! ```

use super::sampling::Sampling;
use super::sequence::{SequenceId, Unanswered};
use std::sync::Arc;

/// One step: a ragged batch of chunks.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// Counts from 1; steps run in this order.
    pub step: u64,
    /// Those of one row first; within each kind, the most urgent first. A sequence has at most one.
    pub chunks: Vec<Chunk>,
    /// Blocks whose contents mean nothing when this step begins. Nothing needs doing about them; tests poison them.
    pub stale: Vec<u32>,
    /// Sequences that gave up their blocks for this step. Nothing needs doing about them; tests and replays read why others
    /// have them.
    pub preempted: Vec<SequenceId>,
}

/// Consecutive positions of one sequence.
#[derive(Clone, Debug, PartialEq)]
pub struct Chunk {
    /// Whose.
    pub sequence: SequenceId,
    /// Row of the executor's state of this sequence: its last token, what its penalties count.
    pub slot: u32,
    /// Set where the slot's state is another sequence's, or lost.
    pub fill: Option<Fill>,
    /// Position of the first token.
    pub start: u32,
    /// Positions: at least 1.
    pub length: u32,
    /// The tokens at them.
    pub input: Input,
    /// Where keys and values are: position `p` is at `p % block_size` of the block `blocks[p / block_size]`. Shared with
    /// the sequence, so that a long table is not copied for each step.
    pub blocks: Arc<Vec<u32>>,
    /// Is a token chosen after the last position?
    pub sample: bool,
    /// How it is.
    pub sampling: Arc<Sampling>,
    /// Are the probabilities of the prompt's tokens that follow these positions wanted? Then so many of them.
    pub prompt_logprobs: u32,
}

/// The tokens of a chunk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// These: as many as the chunk is long.
    Known(Vec<u32>),
    /// The one that the step before chose for the slot; nobody here has seen it yet.
    Last,
}

/// What a slot starts with: all tokens of the sequence that are known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fill {
    /// Its prompt.
    pub prompt: Arc<[u32]>,
    /// What it has generated: not empty where the sequence was preempted.
    pub output: Vec<u32>,
}

/// A token's natural log probability, and those of the likeliest tokens.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Logprobs {
    /// Of the token.
    pub logprob: f32,
    /// Its place by likelihood, counted from 1.
    pub rank: u32,
    /// The likeliest tokens, likeliest first; as many as were asked for.
    pub top: Vec<(u32, f32)>,
}

/// A token that was chosen, with its probability where that is asked for; or why there is none.
pub type Chosen = Result<(u32, Option<Logprobs>), Unanswered>;

/// What came of one chunk.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampled {
    /// Whose.
    pub sequence: SequenceId,
    /// The token chosen, where the chunk has `sample`.
    pub token: Option<u32>,
    /// Its probability, where the parameters ask for it.
    pub logprobs: Option<Logprobs>,
    /// Of the prompt's tokens at `start + 1` and on: as many as `prompt_logprobs` asks for.
    pub prompt_logprobs: Vec<Logprobs>,
    /// Why no token could be chosen, where the chunk has `sample`: this sequence fails, and no other.
    pub failed: Option<Unanswered>,
}

impl Plan {
    /// Rows of all chunks.
    pub fn rows(&self) -> u32 {
        self.chunks.iter().map(|chunk| chunk.length).sum()
    }
}

impl Sampled {
    /// What is known of a chunk before its token is.
    pub(super) fn of(chunk: &Chunk, prompt_logprobs: Vec<Logprobs>) -> Self {
        Sampled { sequence: chunk.sequence, token: None, logprobs: None, prompt_logprobs, failed: None }
    }

    /// Takes over what was chosen; the token, where there is one.
    pub(super) fn settle(&mut self, chosen: Chosen) -> Option<u32> {
        match chosen {
            Ok((token, logprobs)) => (self.token, self.logprobs) = (Some(token), logprobs),
            Err(reason) => self.failed = Some(reason),
        }
        self.token
    }
}
