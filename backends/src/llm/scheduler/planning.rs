//! What the next step computes.
//!
//! Running sequences first, by rank: each decode has its row set aside, what is left goes to prompts. Where blocks run
//! out, the sequence of the last rank gives up all of its own and computes them again later. Then, unless somebody had
//! to, waiting sequences start, by rank, none overtaking.

use super::{Scheduler, State};
use crate::llm::plan::{Chunk, Fill, Input, Plan};
use crate::llm::sequence::{CancelReason, Event, Rank, SequenceId};
use std::ops::Bound;
use std::sync::Arc;
use std::time::Instant;

/// A plan in the making.
#[derive(Debug)]
struct Draft {
    chunks: Vec<Chunk>,
    preempted: Vec<SequenceId>,
    /// Rows that are left to give out.
    rows_left: u32,
}

/// How a waiting sequence may start.
#[derive(Clone, Copy, Debug)]
struct Start {
    /// Blocks of its tokens that may be taken from the cache.
    reusable: u32,
    /// Blocks that it needs soon: for its tokens and the next.
    needed: u32,
}

impl Scheduler {
    /// Makes the next step; `None` where there is nothing to compute, or all that there is waits for a step in flight.
    ///
    /// Each plan has to be committed, in the order made. Sequences whose deadline has passed end here.
    pub fn plan(&mut self, now: Instant) -> Option<Plan> {
        while let Some(&(deadline, id)) = self.deadlines.first()
            && deadline <= now
        {
            self.deadlines.pop_first();
            self.cancel(id, CancelReason::DeadlinePassed);
        }
        let mut draft = Draft { chunks: Vec::new(), preempted: Vec::new(), rows_left: self.settings.token_budget };
        self.continue_running(&mut draft);
        // Whoever starts now would take the blocks that somebody just gave up.
        if draft.preempted.is_empty() {
            self.start_waiting(&mut draft);
        }
        if draft.chunks.is_empty() {
            return None;
        }
        let Draft { mut chunks, preempted, rows_left } = draft;
        chunks.sort_by_key(|chunk| chunk.length > 1);
        self.rows += u64::from(self.settings.token_budget - rows_left);
        let step = self.next_step;
        self.next_step += 1;
        Some(Plan { step, chunks, stale: self.pool.take_stale(), preempted })
    }

    /// Gives rows to running sequences. The first always gets some: nothing is set aside for more sequences than
    /// `token_budget` has rows, and all others can be preempted for it.
    fn continue_running(&mut self, draft: &mut Draft) {
        let wanted: Vec<(Rank, u32)> =
            self.running.iter().map(|&rank| (rank, self.sequences[&rank.sequence].wanted())).collect();
        let mut decodes_left = wanted.iter().filter(|&&(_, wanted)| wanted == 1).count() as u32;
        for (rank, wanted) in wanted {
            // Preempted, like all after it.
            if !self.running.contains(&rank) {
                break;
            }
            decodes_left -= u32::from(wanted == 1);
            let most = draft.rows_left.saturating_sub(decodes_left).min(self.settings.chunk_tokens);
            let rows = self.reserve(rank, wanted.min(most), draft);
            self.place(rank.sequence, rows, draft);
        }
    }

    /// Finds room for at most so many further positions of a sequence; less, rather than have somebody preempted. 0
    /// where there is none although all later sequences gave theirs: it keeps what it has, and waits.
    fn reserve(&mut self, rank: Rank, rows: u32, draft: &mut Draft) -> u32 {
        let block_size = self.pool.block_size();
        if rows == 0 {
            return 0;
        }
        loop {
            let Some(sequence) = self.sequences.get_mut(&rank.sequence) else { return 0 };
            while (sequence.blocks.len() as u32 * block_size) < sequence.scheduled + rows
                && let Some(block) = self.pool.allocate()
            {
                // Copies the table where a plan in flight has it, which is once for each block.
                Arc::make_mut(&mut sequence.blocks).push(block);
            }
            let room = sequence.blocks.len() as u32 * block_size - sequence.scheduled;
            if room > 0 {
                return rows.min(room);
            }
            match self.running.last() {
                Some(&last) if last > rank => self.preempt(last, draft),
                _ => return 0,
            }
        }
    }

    /// Takes a sequence's blocks and sends it back into the queue. A token of it that is in flight still counts.
    fn preempt(&mut self, rank: Rank, draft: &mut Draft) {
        let id = rank.sequence;
        let Some(sequence) = self.sequences.get_mut(&id) else { return };
        let tokens = sequence.known();
        self.pool.release(&sequence.rewind());
        self.running.remove(&rank);
        self.enqueue(id, tokens);
        self.settle(id);
        self.preemptions += 1;
        draft.preempted.push(id);
    }

    /// Starts waiting sequences while there are rows, slots and blocks.
    fn start_waiting(&mut self, draft: &mut Draft) {
        // What those that run will take for the tokens they have.
        let mut promised: u32 = self.running.iter().map(|rank| self.promised(rank.sequence)).sum();
        let mut next = self.waiting.first().copied();
        while let Some(rank) = next
            && draft.rows_left > 0
            && !self.free_slots.is_empty()
        {
            next = self.waiting.range((Bound::Excluded(rank), Bound::Unbounded)).next().copied();
            let id = rank.sequence;
            if self.is_held(id) {
                continue;
            }
            let Some(start) = self.may_start(id, promised) else { break };
            self.start(id, start);
            let rows = draft.rows_left.min(self.settings.chunk_tokens);
            let wanted = self.sequences[&id].wanted();
            let rows = self.reserve(rank, rows.min(wanted), draft);
            self.place(id, rows, draft);
            promised += self.promised(id);
        }
    }

    /// Does it wait for another copy to compute their prompt?
    fn is_held(&self, id: SequenceId) -> bool {
        self.groups.get(&id.group).is_some_and(|group| !group.ready && group.leader() != id.copy)
    }

    /// Blocks that a sequence lacks for its tokens and the next.
    fn promised(&self, id: SequenceId) -> u32 {
        let Some(sequence) = self.sequences.get(&id) else { return 0 };
        self.needed(id).saturating_sub(sequence.blocks.len() as u32)
    }

    /// Blocks that a sequence needs for its tokens and the next, if there is a next.
    fn needed(&self, id: SequenceId) -> u32 {
        let Some(sequence) = self.sequences.get(&id) else { return 0 };
        let positions = u64::from(sequence.known() + 1).min(sequence.request.positions_max());
        self.pool.blocks_for(positions as u32)
    }

    /// May a waiting sequence start, `promised` blocks being spoken for?
    fn may_start(&mut self, id: SequenceId, promised: u32) -> Option<Start> {
        let needed = self.needed(id);
        let group = self.groups.get(&id.group)?;
        let sequence = self.sequences.get_mut(&id)?;
        // Until its last step is committed, its tokens are not all known and its slot is in use.
        if sequence.pending > 0 {
            return None;
        }
        // At least one position is computed, or there would be nothing to sample from.
        let mut reusable = sequence.known() - 1;
        if sequence.request.logs_prompt() && group.leader() == id.copy && !group.ready {
            reusable = reusable.min(group.logged);
        }
        let reusable = group.salt.map_or(0, |_| reusable / self.pool.block_size());
        let hit = match group.salt {
            Some(salt) => {
                let key = *self.pool.key();
                self.pool.lookup(sequence.hashes(reusable, self.pool.block_size(), (&key, salt)))
            }
            None => Default::default(),
        };
        let watermark = if self.running.is_empty() { 0 } else { self.settings.watermark };
        let taken = needed - hit.blocks + hit.idle;
        (taken + promised + watermark <= self.pool.free()).then_some(Start { reusable, needed })
    }

    /// Makes a waiting sequence run: its slot, and what the cache has of it.
    fn start(&mut self, id: SequenceId, start: Start) {
        self.dequeue(id);
        let salt = self.groups.get(&id.group).and_then(|group| group.salt);
        let Some(sequence) = self.sequences.get_mut(&id) else { return };
        debug_assert!(start.reusable <= start.needed && sequence.blocks.is_empty() && sequence.slot.is_none());
        if let Some(salt) = salt {
            let key = *self.pool.key();
            // What was preempted finds its own blocks again, which says nothing of how useful the cache is.
            let queried = if sequence.started { 0 } else { sequence.known() };
            let hashes = sequence.hashes(start.reusable, self.pool.block_size(), (&key, salt));
            let found = self.pool.acquire(hashes, queried);
            sequence.published = found.len() as u32;
            sequence.blocks = Arc::new(found);
        }
        sequence.computed = sequence.published * self.pool.block_size();
        sequence.scheduled = sequence.computed;
        sequence.slot = self.free_slots.pop();
        sequence.state = State::Running;
        self.running.insert(sequence.rank);
        if !std::mem::replace(&mut sequence.started, true) {
            self.events.push(Event::Started { sequence: id, cached_tokens: sequence.computed });
        }
    }

    /// Puts the next so many positions of a sequence into the plan.
    fn place(&mut self, id: SequenceId, rows: u32, draft: &mut Draft) {
        let Some(sequence) = self.sequences.get_mut(&id) else { return };
        let (Some(slot), true) = (sequence.slot, rows > 0) else { return };
        let (start, known) = (sequence.scheduled, sequence.known());
        let end = start + rows;
        let fill = std::mem::take(&mut sequence.unfilled)
            .then(|| Fill { prompt: sequence.request.prompt().clone(), output: sequence.output.clone() });
        // A position past the known tokens is that of a token in flight, and there is one at most.
        let input = if start < known { Input::Known(sequence.tokens(start..end)) } else { Input::Last };
        let sample = end == known + sequence.unseen;
        let to_log = self
            .groups
            .get(&id.group)
            .filter(|group| sequence.request.logs_prompt() && group.leader() == id.copy)
            .filter(|group| group.logged + 1 < sequence.request.prompt_tokens())
            .map_or(0, |_| end.min(sequence.request.prompt_tokens() - 1).saturating_sub(start));
        sequence.scheduled = end;
        sequence.unseen += u32::from(sample);
        sequence.pending += 1;
        draft.rows_left -= rows;
        draft.chunks.push(Chunk {
            sequence: id,
            slot,
            fill,
            start,
            length: rows,
            input,
            blocks: sequence.blocks.clone(),
            sample,
            sampling: sequence.request.sampling().clone(),
            prompt_logprobs: to_log,
        });
    }
}
