//! The executor that serves on a CPU: weights in their file's own format, keys and values in blocks, kernels of ours
//! on the one compute pool. A step is done when it is launched; only choosing tokens waits for `sample`.

mod awake;
mod cache;
mod deferred;
mod feed_forward;
mod forward;
mod weights;

pub use cache::{CacheType, Shape};

use super::executor::{Executor, Failure, Masks, Ticket};
use super::flights::{Flight, Flights};
use super::plan::{Chosen, Chunk, Input, Logprobs, Plan, Sampled};
use super::sampler::{self, History, Sampler, Wish};
use super::spec::DecoderSpec;
use super::weights::Weights;
use crate::error::LoadError;
use cache::Cache;
use forward::{Batch, Forward, Run};
use rayon::prelude::*;
use std::sync::Arc;
use std::time::{Duration, Instant};
use weights::Model;

/// Rows whose logits are there at a time when a prompt's probabilities are asked for.
const LOGIT_ROWS: usize = 32;

/// Bytes of weights that are packed at a time: some ten milliseconds.
const PACKED_AT_A_TIME: usize = 16 << 20;
/// While there are requests, weights are packed for so long with each step, or for as long as the one before took: some steps
/// take twice as long by that, whatever the model's size, and all that come after them less.
const PACKING: Duration = Duration::from_millis(100);

/// What an executor is made for.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where keys and values are.
    pub cache: Shape,
    /// The longest sequence that will be served.
    pub context: usize,
    /// Sequences at a time.
    pub slots: usize,
    /// The one compute pool.
    pub pool: Arc<rayon::ThreadPool>,
    /// Are blocks without meaning filled with what is no number? For tests.
    pub poison: bool,
}

/// What is kept of the sequence in a slot.
#[derive(Clone, Debug, Default)]
struct Slot {
    prompt: Arc<[u32]>,
    history: History,
}

/// Runs plans on the CPU.
#[derive(Debug)]
pub struct CpuExecutor {
    forward: Forward,
    vocab: usize,
    slots: Vec<Slot>,
    /// One for each thread that may choose: each keeps its memory.
    samplers: Vec<Sampler>,
    /// With the logits of the chunks that sample, in order: `[_, vocab]`.
    flights: Flights<Vec<f32>>,
    pool: Arc<rayon::ThreadPool>,
    poison: bool,
    /// How long the last step computed, packing aside; none before the first.
    last: Option<Duration>,
    /// Why weights cannot be packed, where they cannot.
    fault: Option<Failure>,
}

impl CpuExecutor {
    /// Loads the weights of `spec`. Those whose file the system keeps in memory are not packed yet: that is done in idle
    /// times, and a little of it between two steps.
    ///
    /// # Errors
    /// A tensor is missing, of the wrong shape, or unreadable.
    pub fn load(spec: DecoderSpec, weights: &Arc<dyn Weights>, options: Options) -> Result<Self, LoadError> {
        let Options { cache, context, slots, pool, poison } = options;
        let model = pool.install(|| Model::load(&spec, weights))?;
        let (vocab, cache) = (spec.vocab, Cache::new(&spec, &cache));
        let forward = Forward::new(spec, model, cache, context);
        let samplers = vec![Sampler::default(); pool.current_num_threads().min(slots).max(1)];
        Ok(CpuExecutor {
            forward,
            vocab,
            slots: vec![Slot::default(); slots],
            samplers,
            flights: Flights::default(),
            pool,
            poison,
            last: None,
            fault: None,
        })
    }

    /// Bytes of the weights.
    pub fn weight_bytes(&self) -> usize {
        self.forward.weight_bytes()
    }

    /// Takes over what a plan says of its slots, and lists its rows.
    fn batch(&mut self, plan: &Plan) -> Result<Batch, Failure> {
        let mut batch = Batch::default();
        for chunk in &plan.chunks {
            let slot = self.slots.get_mut(chunk.slot as usize);
            let slot = slot.ok_or_else(|| Failure::Contract(format!("slot {} is not there", chunk.slot)))?;
            if let Some(fill) = &chunk.fill {
                slot.prompt = fill.prompt.clone();
                slot.history.fill(fill);
            }
            let start = batch.tokens.len();
            match &chunk.input {
                Input::Known(tokens) => batch.tokens.extend_from_slice(tokens),
                Input::Last => {
                    let last = slot.history.last();
                    batch.tokens.push(last.ok_or_else(|| Failure::Contract("a slot has no last token".into()))?);
                }
            }
            batch.positions.extend(chunk.start..chunk.start + chunk.length);
            batch.runs.push(Run { rows: start..batch.tokens.len(), start: chunk.start, blocks: chunk.blocks.clone() });
        }
        if batch.tokens.len() != batch.positions.len() || batch.tokens.iter().any(|t| *t as usize >= self.vocab) {
            return Err(Failure::Contract("the tokens of a plan do not fit its chunks or the vocabulary".into()));
        }
        Ok(batch)
    }

    /// Packs some of what has waited for it; `false` once nothing waits.
    fn pack(&mut self) -> Result<bool, Failure> {
        if let Some(fault) = &self.fault {
            return Err(fault.clone());
        }
        if !self.forward.waits() {
            return Ok(false);
        }
        let pool = self.pool.clone();
        pool.install(|| self.forward.pack(PACKED_AT_A_TIME)).map_err(|error| {
            let fault = unreadable(error);
            self.fault = Some(fault.clone());
            fault
        })
    }

    /// Packs for as long as a step may take longer for it. The first answers of a new server do not wait for it.
    fn pack_beside(&mut self) -> Result<(), Failure> {
        if self.fault.is_none() {
            self.forward.check_unchanged().map_err(unreadable)?;
            let Some(last) = self.last else { return Ok(()) };
            let begun = Instant::now();
            while self.pack()? && begun.elapsed() < last.max(PACKING) {}
        }
        self.fault.clone().map_or(Ok(()), Err)
    }

    /// Probabilities of the prompt tokens that follow the first rows of a chunk.
    fn prompt_logprobs(&self, chunk: &Chunk, first: usize, x: &[f32]) -> Result<Vec<Logprobs>, LoadError> {
        let count = chunk.sampling.prompt_logprobs.unwrap_or(0).into();
        let prompt = &self.slots[chunk.slot as usize].prompt;
        let rows: Vec<usize> = (first..first + chunk.prompt_logprobs as usize).collect();
        let next = chunk.start as usize + 1;
        let mut told = Vec::with_capacity(rows.len());
        for rows in rows.chunks(LOGIT_ROWS) {
            let logits = self.forward.logits(x, rows)?;
            for (row, logits) in rows.iter().zip(logits.chunks_exact(self.vocab)) {
                told.push(sampler::told(logits, prompt[next + row - first], count));
            }
        }
        Ok(told)
    }
}

/// What has waited to be packed cannot be.
fn unreadable(error: LoadError) -> Failure {
    Failure::Weights(error.to_string())
}

impl Executor for CpuExecutor {
    fn launch(&mut self, plan: &Plan) -> Result<Ticket, Failure> {
        self.flights.check_room()?;
        if self.poison {
            self.forward.cache.poison(&plan.stale);
        }
        self.pack_beside()?;
        let begun = Instant::now();
        let pool = self.pool.clone();
        let batch = self.batch(plan)?;
        let x = pool.install(|| self.forward.run(&batch)).map_err(unreadable)?;
        let (mut told, mut rows) = (Vec::with_capacity(plan.chunks.len()), Vec::new());
        for (chunk, run) in plan.chunks.iter().zip(&batch.runs) {
            told.push(match chunk.prompt_logprobs {
                0 => Vec::new(),
                _ => pool.install(|| self.prompt_logprobs(chunk, run.rows.start, &x)).map_err(unreadable)?,
            });
            if chunk.sample {
                rows.push(run.rows.end - 1);
            }
        }
        let logits = match rows.is_empty() {
            true => Vec::new(),
            false => pool.install(|| self.forward.logits(&x, &rows)).map_err(unreadable)?,
        };
        self.last = Some(begun.elapsed());
        Ok(self.flights.begin(plan, told, logits))
    }

    fn sample(&mut self, ticket: &Ticket, masks: &Masks) -> Result<(), Failure> {
        let Flight { plan, mut sampled, own: mut logits } = self.flights.take(ticket)?;
        let (slots, vocab) = (&self.slots, self.vocab);
        let choosing: Vec<(usize, &Chunk)> = plan.chunks.iter().enumerate().filter(|(_, chunk)| chunk.sample).collect();
        // A sampler has a share of the rows, one after the other: its memory is there after the first.
        let share = choosing.len().div_ceil(self.samplers.len()).max(1);
        let shares = choosing.par_chunks(share).zip(logits.par_chunks_mut(share * vocab)).zip(&mut self.samplers);
        let chosen: Vec<Chosen> = self.pool.install(|| {
            let chosen = shares.flat_map_iter(|((rows, logits), sampler)| {
                let pairs = rows.iter().zip(logits.chunks_exact_mut(vocab));
                let chosen = pairs.map(|((place, chunk), logits)| {
                    let (history, mask) = (&slots[chunk.slot as usize].history, masks.of(*place));
                    let (sampling, ends, copy) = (&*chunk.sampling, &*masks.ends, chunk.sequence.copy);
                    sampler.choose(logits, &Wish { sampling, history, mask, ends, copy })
                });
                chosen.collect::<Vec<Chosen>>()
            });
            chosen.collect()
        });
        for ((place, chunk), chosen) in choosing.iter().zip(chosen) {
            if let Some(token) = sampled[*place].settle(chosen) {
                self.slots[chunk.slot as usize].history.push(token);
            }
        }
        self.flights.put_back(Flight { plan, sampled, own: Vec::new() });
        Ok(())
    }

    fn collect(&mut self, ticket: Ticket) -> Result<Vec<Sampled>, Failure> {
        Ok(self.flights.take(&ticket)?.sampled)
    }

    fn prepare(&mut self) -> Result<bool, Failure> {
        self.pack()
    }
}
