//! A sequence: its name, where it stands, and what is told about it. When it runs is the scheduler's to say.

use super::blocks::{PrefixKey, Salt};
use super::plan::Logprobs;
use super::request::Request;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

/// Names an admitted request: a group of as many sequences as it has copies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GroupId(pub u64);

/// Names one copy of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SequenceId {
    /// The group.
    pub group: GroupId,
    /// Counts from 0.
    pub copy: u16,
}

impl GroupId {
    /// The group's sequence of this number.
    pub fn copy(self, copy: u16) -> SequenceId {
        SequenceId { group: self, copy }
    }
}

impl fmt::Display for SequenceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.group.0, self.copy)
    }
}

/// What happened to a sequence. Each has at most one `Started`, then its tokens in order, and as the last exactly one of
/// `Finished`, `Cancelled` and `Failed`.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// It left the queue for the first time.
    Started {
        /// Which.
        sequence: SequenceId,
        /// Tokens of its prompt that need not be computed, because somebody did before.
        cached_tokens: u32,
    },
    /// Probabilities of its group's prompt. Told once for a group, in order, by the copy that computes the prompt.
    PromptLogprobs {
        /// By which.
        sequence: SequenceId,
        /// Position of the prompt's token that the first is of.
        first: u32,
        /// Of consecutive tokens.
        logprobs: Vec<Logprobs>,
    },
    /// It has one more token. The last one may be a stop token.
    Token {
        /// Which.
        sequence: SequenceId,
        /// The token.
        token: u32,
        /// Its probability, where asked for.
        logprobs: Option<Logprobs>,
    },
    /// It ended by itself.
    Finished {
        /// Which.
        sequence: SequenceId,
        /// Why.
        reason: FinishReason,
    },
    /// Somebody, or its deadline, ended it.
    Cancelled {
        /// Which.
        sequence: SequenceId,
        /// Why.
        reason: CancelReason,
    },
    /// It could not be computed.
    Failed {
        /// Which.
        sequence: SequenceId,
        /// What went wrong.
        reason: Unanswered,
    },
}

/// Why a sequence could not be computed to its end. Its text says what went wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unanswered {
    /// What its request brought leaves no way on: a form that cannot be followed, wishes that exclude each other.
    Request(String),
    /// Its step failed, or its numbers are none.
    Step(String),
}

impl fmt::Display for Unanswered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Unanswered::Request(what) | Unanswered::Step(what) => f.write_str(what),
        }
    }
}

impl std::error::Error for Unanswered {}

impl Event {
    /// The sequence that it happened to.
    pub fn sequence(&self) -> SequenceId {
        match self {
            Event::Started { sequence, .. }
            | Event::PromptLogprobs { sequence, .. }
            | Event::Token { sequence, .. }
            | Event::Finished { sequence, .. }
            | Event::Cancelled { sequence, .. }
            | Event::Failed { sequence, .. } => *sequence,
        }
    }

    /// Is it the last one of its sequence?
    pub fn is_last(&self) -> bool {
        matches!(self, Event::Finished { .. } | Event::Cancelled { .. } | Event::Failed { .. })
    }
}

/// Why a sequence ended by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// With this token, one of the model's own or of the request's.
    Stop(u32),
    /// It has as many tokens as it may.
    Length,
}

/// Why a sequence was ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CancelReason {
    /// Nobody reads it any more.
    ClientGone,
    /// Its text contains a stop string.
    StopString,
    /// Its deadline passed, in the queue or while it ran.
    DeadlinePassed,
    /// The server goes away.
    Draining,
}

/// The order of urgency: smaller goes first, and gives up its blocks last.
///
/// With linear ageing the order of two sequences never changes: `priority - waited / ageing` compares as
/// `arrival + priority * ageing` does. So no later request can go before this one for ever, whatever its priority.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Rank {
    /// Nanoseconds.
    pub(super) due: i128,
    pub(super) sequence: SequenceId,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    Waiting,
    Running,
    /// All is told; a step in flight still names it.
    Ended,
}

/// One copy of a request.
///
/// ```text
/// positions  0 ......... computed ......... scheduled ......... known ... known + unseen
///            in blocks,             in steps in            still to be     sampled in
///            steps committed        flight                 computed        flight
/// ```
#[derive(Debug)]
pub(super) struct Sequence {
    pub(super) rank: Rank,
    pub(super) request: Arc<Request>,
    pub(super) state: State,
    pub(super) output: Vec<u32>,
    /// Positions whose keys and values are in the blocks.
    pub(super) computed: u32,
    /// The same, once the steps in flight are done.
    pub(super) scheduled: u32,
    /// Tokens that steps in flight sample.
    pub(super) unseen: u32,
    /// Steps in flight that name it.
    pub(super) pending: u32,
    pub(super) blocks: Arc<Vec<u32>>,
    /// Held while it runs, and until the last step that names it is committed.
    pub(super) slot: Option<u32>,
    /// Must the slot be filled?
    pub(super) unfilled: bool,
    /// Has it been told that it started?
    pub(super) started: bool,
    /// Of the full blocks of its tokens, as far as they were needed.
    hashes: Vec<u128>,
    /// Leading blocks that others can find.
    pub(super) published: u32,
    /// What it counts for in the queue.
    pub(super) queued_tokens: u32,
}

impl Sequence {
    pub(super) fn new(rank: Rank, request: Arc<Request>) -> Self {
        Sequence {
            rank,
            request,
            state: State::Waiting,
            output: Vec::new(),
            computed: 0,
            scheduled: 0,
            unseen: 0,
            pending: 0,
            blocks: Arc::default(),
            slot: None,
            unfilled: true,
            started: false,
            hashes: Vec::new(),
            published: 0,
            queued_tokens: 0,
        }
    }

    /// Tokens that are known.
    pub(super) fn known(&self) -> u32 {
        self.request.prompt_tokens() + self.output.len() as u32
    }

    /// Positions that remain to be put into steps.
    pub(super) fn wanted(&self) -> u32 {
        // The last token is sampled, or about to be: nothing follows it.
        if self.output.len() as u32 + self.unseen >= self.request.max_tokens() {
            return 0;
        }
        self.known() + self.unseen - self.scheduled
    }

    /// Known tokens at these positions.
    pub(super) fn tokens(&self, positions: Range<u32>) -> Vec<u32> {
        let Range { start, end } = positions;
        let prompt = self.request.prompt();
        let split = prompt.len();
        let (start, end) = (start as usize, end as usize);
        let mut tokens = Vec::with_capacity(end - start);
        tokens.extend_from_slice(&prompt[start.min(split)..end.min(split)]);
        tokens.extend_from_slice(&self.output[start.max(split) - split..end.max(split) - split]);
        tokens
    }

    /// The hashes of its first so many blocks, all of whose tokens are known.
    pub(super) fn hashes(&mut self, blocks: u32, block_size: u32, (key, salt): (&PrefixKey, Salt)) -> &[u128] {
        for block in self.hashes.len() as u32..blocks {
            let tokens = self.tokens(block * block_size..(block + 1) * block_size);
            self.hashes.push(key.block(salt, self.hashes.last().copied(), &tokens));
        }
        &self.hashes[..blocks as usize]
    }

    /// Forgets what was computed. Its blocks are the caller's to give back.
    pub(super) fn rewind(&mut self) -> Arc<Vec<u32>> {
        (self.computed, self.scheduled, self.published) = (0, 0, 0);
        self.unfilled = true;
        std::mem::take(&mut self.blocks)
    }
}
