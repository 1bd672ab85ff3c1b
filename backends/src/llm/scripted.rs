//! An executor without a model: the next token is a function of all tokens of the sequence, read back through its blocks.
//!
//! It is there to find the mistakes of whoever makes the plans. Every position of every block is a cell that knows which
//! token at which position after which prefix was written there; a cell is written once, and unreadable until then and
//! from the moment that its block goes stale. So a table that is too short, shared with the wrong sequence, given out
//! twice, or reused too early gives an error that says where, and never a token. Not fast, and not for serving.

use super::executor::{Executor, Failure, Mask, Masks, Ticket};
use super::plan::{Chunk, Input, Logprobs, Plan, Sampled};
use super::sequence::SequenceId;
use std::collections::{BTreeMap, VecDeque};
use std::fmt;

/// A position's keys and values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Cell {
    position: u32,
    token: u32,
    /// Of this and all tokens before it, as keys and values of a model are.
    digest: u64,
}

/// A sequence's state.
#[derive(Clone, Debug)]
struct Slot {
    sequence: SequenceId,
    /// All tokens, as penalties would count them.
    history: Vec<u32>,
    /// The step that chose the last of them.
    sampled_by: Option<u64>,
}

/// A step under way.
#[derive(Debug)]
struct Flight {
    step: u64,
    chunks: Vec<Chunk>,
    sampled: Option<Vec<Sampled>>,
}

/// A phase of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// The forward pass.
    Launch,
    /// Choosing tokens.
    Sample,
    /// Waiting for them.
    Collect,
}

/// Chooses the next token of a sequence whose tokens are these.
pub type Next = Box<dyn Fn(SequenceId, &[u32]) -> u32 + Send>;

/// The executor without a model.
pub struct Scripted {
    block_size: u32,
    vocabulary: u32,
    cells: Vec<Option<Cell>>,
    slots: BTreeMap<u32, Slot>,
    flights: VecDeque<Flight>,
    next: Next,
    fault: Option<Phase>,
}

impl fmt::Debug for Scripted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Scripted({} cells, {} steps under way)", self.cells.len(), self.flights.len())
    }
}

/// A token that depends on every token before it, and on which copy of a group it is for.
pub fn next_token(copy: u16, history: &[u32], vocabulary: u32) -> u32 {
    let digest = history.iter().fold(u64::from(copy), |digest, &token| mix(digest, token));
    (digest % u64::from(vocabulary)) as u32
}

/// A step of SplitMix64.
fn mix(digest: u64, token: u32) -> u64 {
    let mut z = digest.wrapping_mul(31).wrapping_add(u64::from(token)).wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn broken(what: String) -> Failure {
    Failure::Contract(what)
}

impl Scripted {
    /// An executor of so many blocks, whose tokens are those of [`next_token`].
    pub fn new(blocks: u32, block_size: u32, vocabulary: u32) -> Self {
        let next = move |sequence: SequenceId, history: &[u32]| next_token(sequence.copy, history, vocabulary);
        Scripted {
            block_size,
            vocabulary,
            cells: vec![None; blocks as usize * block_size as usize],
            slots: BTreeMap::new(),
            flights: VecDeque::new(),
            next: Box::new(next),
            fault: None,
        }
    }

    /// Chooses tokens otherwise.
    #[must_use]
    pub fn with_next(mut self, next: Next) -> Self {
        self.next = next;
        self
    }

    /// The next time that this phase comes, it fails; a forward pass when half of it is written.
    pub fn fail(&mut self, phase: Phase) {
        self.fault = Some(phase);
    }

    fn fault(&mut self, phase: Phase) -> Result<(), Failure> {
        match self.fault == Some(phase) {
            true => {
                self.fault = None;
                Err(Failure::Device(format!("{phase:?} was to fail")))
            }
            false => Ok(()),
        }
    }

    fn index(&self, chunk: &Chunk, position: u32) -> Result<usize, Failure> {
        let block = chunk.blocks.get((position / self.block_size) as usize).ok_or_else(|| {
            broken(format!("{}: position {position} is beyond its {} blocks", chunk.sequence, chunk.blocks.len()))
        })?;
        Ok((block * self.block_size + position % self.block_size) as usize)
    }

    /// The tokens of a chunk, and the slot's state brought up to it.
    fn input(&mut self, step: u64, chunk: &Chunk) -> Result<Vec<u32>, Failure> {
        let Chunk { sequence, slot, .. } = chunk;
        if let Some(fill) = &chunk.fill {
            if let Some(busy) = self.flights.iter().find(|f| f.chunks.iter().any(|c| c.slot == *slot)) {
                return Err(broken(format!("{sequence}: slot {slot} is refilled while step {} uses it", busy.step)));
            }
            let history = fill.prompt.iter().chain(&fill.output).copied().collect();
            self.slots.insert(*slot, Slot { sequence: *sequence, history, sampled_by: None });
        }
        let state = self.slots.get(slot).filter(|state| state.sequence == *sequence);
        let state = state.ok_or_else(|| broken(format!("{sequence}: slot {slot} was not filled for it")))?;
        let tokens = match &chunk.input {
            Input::Known(tokens) => tokens.clone(),
            Input::Last if state.sampled_by == Some(step - 1) => state.history.last().copied().into_iter().collect(),
            Input::Last => return Err(broken(format!("{sequence}: the step before {step} chose no token for it"))),
        };
        let end = (chunk.start + chunk.length) as usize;
        if tokens.len() != chunk.length as usize || state.history.get(chunk.start as usize..end) != Some(&tokens) {
            return Err(broken(format!("{sequence}: {tokens:?} at {} are not its tokens", chunk.start)));
        }
        if chunk.sample != (end == state.history.len()) {
            return Err(broken(format!("{sequence}: samples after {end} of {} tokens", state.history.len())));
        }
        Ok(tokens)
    }

    fn write(&mut self, chunk: &Chunk, tokens: &[u32]) -> Result<(), Failure> {
        let mut digest = match chunk.start {
            0 => 0,
            start => self.read(chunk, start - 1)?.digest,
        };
        for (position, &token) in (chunk.start..).zip(tokens) {
            digest = mix(digest, token);
            let at = self.index(chunk, position)?;
            if let Some(cell) = self.cells[at] {
                let block = at / self.block_size as usize;
                return Err(broken(format!("{}: block {block} in use is overwritten: {cell:?}", chunk.sequence)));
            }
            self.cells[at] = Some(Cell { position, token, digest });
        }
        Ok(())
    }

    fn read(&self, chunk: &Chunk, position: u32) -> Result<Cell, Failure> {
        let at = self.index(chunk, position)?;
        let block = at / self.block_size as usize;
        match self.cells[at] {
            Some(cell) if cell.position == position => Ok(cell),
            Some(cell) => Err(broken(format!("{}: block {block} is of position {}", chunk.sequence, cell.position))),
            None => Err(broken(format!("{}: position {position} is poison in block {block}", chunk.sequence))),
        }
    }

    /// As attention does: looks at every position up to the end of the chunk.
    fn attend(&self, chunk: &Chunk) -> Result<(), Failure> {
        let history = &self.slots[&chunk.slot].history;
        let mut digest = 0;
        for position in 0..chunk.start + chunk.length {
            let cell = self.read(chunk, position)?;
            digest = mix(digest, cell.token);
            if cell.digest != digest || cell.token != history[position as usize] {
                return Err(broken(format!("{}: position {position} is of another prefix: {cell:?}", chunk.sequence)));
            }
        }
        Ok(())
    }

    fn choose(&mut self, step: u64, chunk: &Chunk, mask: Option<&Mask>) -> Result<Sampled, Failure> {
        let sequence = chunk.sequence;
        let prompt_logprobs = (0..chunk.prompt_logprobs).map(|i| Logprobs { rank: chunk.start + i + 1, ..one() });
        let mut sampled =
            Sampled { sequence, token: None, logprobs: None, prompt_logprobs: prompt_logprobs.collect(), failed: None };
        let Some(state) = self.slots.get_mut(&chunk.slot).filter(|_| chunk.sample) else { return Ok(sampled) };
        let preferred = (self.next)(sequence, &state.history);
        let mut candidates = (0..self.vocabulary).map(|offset| (preferred + offset) % self.vocabulary);
        let token = candidates
            .find(|&token| mask.is_none_or(|mask| mask.allows(token)))
            .ok_or_else(|| broken(format!("{sequence}: nothing is allowed")))?;
        state.history.push(token);
        state.sampled_by = Some(step);
        sampled.token = Some(token);
        sampled.logprobs = chunk.sampling.logprobs.map(|_| one());
        Ok(sampled)
    }
}

/// Of a token that is certain.
fn one() -> Logprobs {
    Logprobs { logprob: 0.0, rank: 1, top: Vec::new() }
}

impl Executor for Scripted {
    fn launch(&mut self, plan: &Plan) -> Result<Ticket, Failure> {
        if self.flights.len() > 1 || self.flights.iter().any(|flight| flight.sampled.is_none()) {
            return Err(broken(format!("step {} is launched with too many others under way", plan.step)));
        }
        for &block in &plan.stale {
            let from = (block * self.block_size) as usize;
            self.cells[from..from + self.block_size as usize].fill(None);
        }
        for (at, chunk) in plan.chunks.iter().enumerate() {
            let tokens = self.input(plan.step, chunk)?;
            self.write(chunk, &tokens)?;
            self.attend(chunk)?;
            if (at + 1) * 2 >= plan.chunks.len() {
                self.fault(Phase::Launch)?;
            }
        }
        self.flights.push_back(Flight { step: plan.step, chunks: plan.chunks.clone(), sampled: None });
        Ok(Ticket { step: plan.step })
    }

    fn sample(&mut self, ticket: &Ticket, masks: &Masks) -> Result<(), Failure> {
        let Some(mut flight) = self.flights.pop_back().filter(|flight| flight.step == ticket.step) else {
            return Err(broken(format!("step {} is not the last launched", ticket.step)));
        };
        self.fault(Phase::Sample)?;
        let chunks = flight.chunks.iter().enumerate();
        let sampled: Result<_, _> = chunks.map(|(at, chunk)| self.choose(flight.step, chunk, masks.of(at))).collect();
        flight.sampled = Some(sampled?);
        self.flights.push_back(flight);
        Ok(())
    }

    fn collect(&mut self, ticket: Ticket) -> Result<Vec<Sampled>, Failure> {
        let Some(flight) = self.flights.pop_front().filter(|flight| flight.step == ticket.step) else {
            return Err(broken(format!("step {} is not the first under way", ticket.step)));
        };
        self.fault(Phase::Collect)?;
        flight.sampled.ok_or_else(|| broken(format!("step {} was not sampled", ticket.step)))
    }
}
