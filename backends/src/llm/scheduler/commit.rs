//! What came of a step: tokens are told, full blocks can be found from now on, sequences end.
//!
//! One step later is when the answer comes, so a sequence may have ended, or been preempted, since. A token for one that
//! has ended is dropped; one for a preempted sequence counts, what was computed with it does not.

use super::{Scheduler, State};
use crate::llm::executor::Failure;
use crate::llm::plan::{Chunk, Plan, Sampled};
use crate::llm::sequence::{Event, FinishReason, SequenceId, Unanswered};

impl Scheduler {
    /// Takes the outcome of a step, and tells what happened since the last call. Where the step failed, its sequences
    /// fail, and no others.
    pub fn commit(&mut self, plan: &Plan, outcome: Result<Vec<Sampled>, Failure>) -> Vec<Event> {
        let outcome = outcome.and_then(|sampled| fitting(plan, sampled));
        for chunk in &plan.chunks {
            if let Some(sequence) = self.sequences.get_mut(&chunk.sequence) {
                sequence.pending -= 1;
                sequence.unseen -= u32::from(chunk.sample);
            }
        }
        match outcome {
            Ok(sampled) => {
                for (chunk, sampled) in plan.chunks.iter().zip(sampled) {
                    self.advance(chunk, sampled);
                }
            }
            Err(failure) => {
                for chunk in &plan.chunks {
                    self.fail(chunk.sequence, Unanswered::Step(failure.to_string()));
                }
            }
        }
        for chunk in &plan.chunks {
            self.settle(chunk.sequence);
        }
        self.take_events()
    }

    fn advance(&mut self, chunk: &Chunk, sampled: Sampled) {
        let id = chunk.sequence;
        let Some(sequence) = self.sequences.get_mut(&id) else { return };
        if sequence.state == State::Ended {
            return;
        }
        // Since a preempted sequence starts again only after this, one that runs still has the blocks of the plan.
        if sequence.state == State::Running {
            sequence.computed = chunk.start + chunk.length;
            self.publish(id);
        }
        self.tell_prompt_logprobs(chunk, &sampled);
        if let Some(reason) = sampled.failed {
            self.fail(id, reason);
            return;
        }
        if let Some(token) = sampled.token {
            self.events.push(Event::Token { sequence: id, token, logprobs: sampled.logprobs });
            self.append(id, token);
        }
    }

    /// Makes the blocks that are full by now findable. Only committed positions count: of those in flight, the step may
    /// yet fail, or the token turn out to be surplus.
    fn publish(&mut self, id: SequenceId) {
        let Some(sequence) = self.sequences.get_mut(&id) else { return };
        let Some(group) = self.groups.get_mut(&id.group) else { return };
        if let Some(salt) = group.salt {
            let (key, block_size) = (*self.pool.key(), self.pool.block_size());
            let (from, full) = (sequence.published as usize, sequence.computed / block_size);
            sequence.published = full;
            let table = sequence.blocks.clone();
            let hashes = sequence.hashes(full, block_size, (&key, salt));
            for (&block, &hash) in table.iter().zip(hashes).skip(from) {
                self.pool.publish(block, hash);
            }
        }
        group.ready |= sequence.computed >= sequence.request.prompt_tokens();
    }

    fn tell_prompt_logprobs(&mut self, chunk: &Chunk, sampled: &Sampled) {
        let Some(group) = self.groups.get_mut(&chunk.sequence.group) else { return };
        // Computed twice, after a preemption, they are told once.
        let told = group.logged.saturating_sub(chunk.start) as usize;
        if let Some(news) = sampled.prompt_logprobs.get(told..)
            && !news.is_empty()
        {
            let first = group.logged + 1;
            group.logged += news.len() as u32;
            let (sequence, logprobs) = (chunk.sequence, news.to_vec());
            self.events.push(Event::PromptLogprobs { sequence, first, logprobs });
        }
    }

    fn append(&mut self, id: SequenceId, token: u32) {
        let Some(sequence) = self.sequences.get_mut(&id) else { return };
        sequence.output.push(token);
        self.tokens += u64::from(sequence.request.is_counted());
        if sequence.state == State::Waiting {
            // What it counts for in the queue has grown with it.
            sequence.queued_tokens += 1;
            self.waiting_tokens += 1;
        }
        let generated = sequence.output.len();
        let reason = match sequence.request.stops(token, generated, &self.settings.end_tokens) {
            true => Some(FinishReason::Stop(token)),
            false => (generated as u32 >= sequence.request.max_tokens()).then_some(FinishReason::Length),
        };
        if let Some(reason) = reason {
            self.end(id, Event::Finished { sequence: id, reason });
        }
    }
}

/// The answer to a plan, where it is one.
///
/// # Errors
/// It breaks the contract.
pub(in crate::llm) fn fitting(plan: &Plan, sampled: Vec<Sampled>) -> Result<Vec<Sampled>, Failure> {
    match fits(plan, &sampled) {
        true => Ok(sampled),
        false => Err(Failure::Contract(format!("the answer to step {} does not fit its plan", plan.step))),
    }
}

/// Is there one answer for each chunk, of its shape?
fn fits(plan: &Plan, sampled: &[Sampled]) -> bool {
    plan.chunks.len() == sampled.len()
        && plan.chunks.iter().zip(sampled).all(|(chunk, sampled)| {
            chunk.sequence == sampled.sequence
                && chunk.sample == (sampled.token.is_some() || sampled.failed.is_some())
                && chunk.prompt_logprobs as usize == sampled.prompt_logprobs.len()
        })
}
