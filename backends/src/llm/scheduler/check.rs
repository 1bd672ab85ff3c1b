//! Is all in order? The invariants that tests check after every step. Changes nothing.

use super::{Scheduler, State};
use std::collections::BTreeSet;

impl Scheduler {
    /// Checks that the books agree with each other.
    ///
    /// # Errors
    /// Says what does not.
    pub fn check(&self) -> Result<(), String> {
        self.pool.check(self.sequences.values().map(|sequence| sequence.blocks.as_slice()))?;
        for (id, sequence) in &self.sequences {
            let complain = |what: &str| Err(format!("sequence {id} ({:?}) {what}", sequence.state));
            let places = sequence.blocks.len() as u64 * u64::from(self.pool.block_size());
            let running = sequence.state == State::Running;
            if self.running.contains(&sequence.rank) != running {
                return complain("is among the running, or missing there");
            }
            if self.waiting.contains(&sequence.rank) != (sequence.state == State::Waiting) {
                return complain("is among the waiting, or missing there");
            }
            if !running && !sequence.blocks.is_empty() {
                return complain("holds blocks");
            }
            if sequence.slot.is_some() != (running || sequence.pending > 0) {
                return complain("has a slot that it does not need, or none");
            }
            if sequence.computed > sequence.scheduled || u64::from(sequence.scheduled) > places {
                return complain("has computed more than was planned, or than it has blocks for");
            }
            if sequence.state == State::Ended && sequence.pending == 0 {
                return complain("should be forgotten");
            }
            if u64::from(sequence.known() + sequence.unseen) > sequence.request.positions_max() + 1 {
                return complain("has more tokens than were asked for");
            }
        }
        self.check_slots()?;
        self.check_counts()
    }

    fn check_slots(&self) -> Result<(), String> {
        let held = self.sequences.values().filter_map(|sequence| sequence.slot);
        let slots: Vec<u32> = self.free_slots.iter().copied().chain(held).collect();
        let distinct: BTreeSet<u32> = slots.iter().copied().collect();
        match slots.len() == self.settings.max_running as usize && distinct.len() == slots.len() {
            true => Ok(()),
            false => Err(format!("of {} slots these are free or held: {slots:?}", self.settings.max_running)),
        }
    }

    fn check_counts(&self) -> Result<(), String> {
        let queued: u64 = self.sequences.values().map(|sequence| u64::from(sequence.queued_tokens)).sum();
        if queued != self.waiting_tokens {
            return Err(format!("{} tokens count as waiting; it is {queued}", self.waiting_tokens));
        }
        let alive: usize = self.groups.values().map(|group| group.alive.count_ones() as usize).sum();
        if alive != self.waiting.len() + self.running.len() {
            return Err(format!("{alive} sequences of groups are alive; others wait or run"));
        }
        Ok(())
    }
}
