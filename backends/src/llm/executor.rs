//! What computes the steps: the contract of the reference, CPU and CUDA executors, and of the scripted one of the tests.
//! How plans are made, and when, is not decided here.

use super::plan::{Plan, Sampled};
use std::fmt;
use std::sync::Arc;

/// Runs plans, in the order in which they are launched.
///
/// One step is `launch`, `sample`, `collect`. The next step may be launched between `sample` and `collect`, so that a
/// device never waits for the host; never more than two steps are under way. The executor keeps three things between
/// steps: the blocks' keys and values; for each slot the last token chosen; and for each slot what the penalties count.
///
/// **Order.** Steps take effect one after the other. So a block that a plan names may be one that a step still running
/// writes to, for a sequence that has ended since: what is written later counts. Where an executor copies blocks outside
/// this order (to a host tier), it has to wait for the step itself. A slot is refilled only after the step that last
/// named it was collected.
pub trait Executor: Send {
    /// Begins the forward pass.
    ///
    /// # Errors
    /// Nothing of this step counts; the blocks that it would have written are undefined. It has no ticket.
    fn launch(&mut self, plan: &Plan) -> Result<Ticket, Failure>;

    /// Chooses the tokens, once the forward pass is done; does not wait for it. `masks` tell what may come.
    ///
    /// # Errors
    /// As for `launch`. The ticket is void, and will not be collected.
    fn sample(&mut self, ticket: &Ticket, masks: &Masks) -> Result<(), Failure>;

    /// Waits for the tokens: one [`Sampled`] for each chunk of the plan, in its order.
    ///
    /// # Errors
    /// As for `launch`.
    fn collect(&mut self, ticket: Ticket) -> Result<Vec<Sampled>, Failure>;

    /// Does a little of what is better done before it is needed, some milliseconds of it; called while there is nothing
    /// else to do. `false` once nothing is left.
    ///
    /// # Errors
    /// As for `launch`.
    fn prepare(&mut self) -> Result<bool, Failure> {
        Ok(false)
    }

    /// What is worth a line in the log, once.
    fn remark(&mut self) -> Option<String> {
        None
    }
}

impl<E: Executor + ?Sized> Executor for Box<E> {
    fn launch(&mut self, plan: &Plan) -> Result<Ticket, Failure> {
        (**self).launch(plan)
    }

    fn sample(&mut self, ticket: &Ticket, masks: &Masks) -> Result<(), Failure> {
        (**self).sample(ticket, masks)
    }

    fn collect(&mut self, ticket: Ticket) -> Result<Vec<Sampled>, Failure> {
        (**self).collect(ticket)
    }

    fn prepare(&mut self) -> Result<bool, Failure> {
        (**self).prepare()
    }

    fn remark(&mut self) -> Option<String> {
        (**self).remark()
    }
}

/// Stands for a step under way. Not to be copied: it is collected once.
#[derive(Debug, PartialEq, Eq)]
pub struct Ticket {
    /// Of the plan.
    pub step: u64,
}

/// Why a step gave nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The device, or what drives it.
    Device(String),
    /// The device is lost to this process: no step will succeed any more.
    Lost(String),
    /// Weights cannot be read any more, or are those of another model: no step will succeed, of this model alone.
    Weights(String),
    /// The plan, or the executor's answer, breaks the contract: a defect of this program.
    Contract(String),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Device(what) => write!(f, "the device failed: {what}"),
            Failure::Lost(what) => write!(f, "the device is lost: {what}"),
            Failure::Weights(what) => write!(f, "the weights are lost: {what}"),
            Failure::Contract(what) => write!(f, "internal error: {what}"),
        }
    }
}

impl std::error::Error for Failure {}

/// The tokens that may come next: bit `token % 32` of word `token / 32`. Tokens beyond the words are not allowed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mask(pub Arc<[u32]>);

impl Mask {
    /// A mask that allows these tokens of a vocabulary.
    pub fn of(tokens: &[u32], vocabulary: u32) -> Self {
        let mut words = vec![0; vocabulary.div_ceil(32) as usize];
        for &token in tokens.iter().filter(|&&token| token < vocabulary) {
            words[token as usize / 32] |= 1 << (token % 32);
        }
        Mask(words.into())
    }

    /// May `token` come next?
    pub fn allows(&self, token: u32) -> bool {
        self.0.get(token as usize / 32).is_some_and(|word| word >> (token % 32) & 1 == 1)
    }

    /// May some of `tokens` come next, and nothing else?
    pub fn allows_only(&self, tokens: &[u32]) -> bool {
        let bit = |index: usize, token: u32| u32::from(token as usize / 32 == index) << (token % 32);
        let listed = |index: usize| tokens.iter().fold(0, |bits, token| bits | bit(index, *token));
        let mut some = self.0.iter().enumerate().filter(|(_, word)| **word != 0).peekable();
        some.peek().is_some() && some.all(|(index, word)| word & !listed(index) == 0)
    }
}

/// What may come next in a step.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Masks {
    /// What grammars allow, for each chunk of the plan; empty where no chunk has one.
    pub chunks: Vec<Option<Mask>>,
    /// Tokens that end a text, by the model's own account: none is chosen until a sequence has its least number of
    /// tokens.
    pub ends: Arc<[u32]>,
}

impl Masks {
    /// The mask of the chunk at this place in the plan.
    pub fn of(&self, chunk: usize) -> Option<&Mask> {
        self.chunks.get(chunk).and_then(Option::as_ref)
    }
}
