//! A plan as the arrays that kernels read: plain data, made on the host without a device.
//!
//! ```text
//! rows       [ one row of each sequence that decodes | chunk | chunk ... | padding ]
//! tokens     what is embedded; -1: the slot's last token, which only the device knows
//! slots      whose; of padding the slot after the last
//! positions  in the sequence; -1: padding
//! ```
//!
//! Attention has two kernels, which sum in different orders: one for rows that decode, whose contexts are read in parts
//! by many blocks, and one for tiles of prompts. Which of them a row comes to depends on how steps were made: how a
//! prompt was cut, what was preempted or found in the cache, how much room others left. Where its bits must not depend
//! on that, all rows are tiles.

use crate::llm::executor::Failure;
use crate::llm::plan::{Input, Plan};
use kernels::cuda::attention;

/// What plans may ask for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    pub(super) slots: usize,
    pub(super) vocab: usize,
    /// Units of decode attention.
    pub(super) units: usize,
    /// Query heads that share a key head.
    pub(super) group: usize,
    pub(super) head_dim: usize,
    /// Are all rows tiles, those that decode among them?
    pub(super) tiled: bool,
}

/// The rows of a step.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Rows {
    pub(super) tokens: Vec<i32>,
    pub(super) slots: Vec<i32>,
    pub(super) positions: Vec<i32>,
    /// Rows whose logits a token is chosen by, in the order of the plan.
    pub(super) sampled: Vec<i32>,
    /// Leading rows that decode; none where all are tiles.
    pub(super) decodes: usize,
    /// The first row of each chunk.
    pub(super) starts: Vec<usize>,
    /// Tiles of the chunks: see [`attention::tiles`].
    pub(super) tiles: Vec<i32>,
    /// Are all rows tiles?
    pub(super) tiled: bool,
}

impl Rows {
    /// Lists the rows of a plan.
    ///
    /// # Errors
    /// The plan breaks its contract.
    pub(super) fn of(plan: &Plan, bounds: &Bounds) -> Result<Self, Failure> {
        let Bounds { slots, vocab, units, group, head_dim, tiled } = *bounds;
        let broken = Failure::Contract;
        let (mut rows, mut chunks, mut room) = (Rows { tiled, ..Rows::default() }, Vec::new(), units);
        for chunk in &plan.chunks {
            if chunk.slot as usize >= slots {
                return Err(broken(format!("slot {} is not there", chunk.slot)));
            }
            let (slot, start) = (chunk.slot as i32, rows.tokens.len());
            match &chunk.input {
                Input::Known(tokens) => rows.tokens.extend(tokens.iter().map(|token| *token as i32)),
                Input::Last => rows.tokens.push(-1),
            }
            let length = chunk.length as usize;
            let known = rows.tokens[start..].iter().all(|token| *token < vocab as i32);
            if rows.tokens.len() != start + length || length == 0 || !known {
                return Err(broken("the tokens of a plan do not fit its chunks or the vocabulary".into()));
            }
            rows.slots.extend(std::iter::repeat_n(slot, length));
            rows.positions.extend((chunk.start..).map(|position| position as i32).take(length));
            rows.starts.push(start);
            if chunk.sample {
                rows.sampled.push((start + length - 1) as i32);
            }
            let units = attention::splits_seen(chunk.start as usize, None).end;
            if !tiled && length == 1 && rows.decodes == start && units <= room {
                rows.decodes += 1;
                room -= units;
            } else {
                let (slot, position) = (chunk.slot as usize, chunk.start as usize);
                chunks.push(attention::Chunk { row: start, tokens: length, start: position, slot });
            }
        }
        rows.tiles = attention::tiles(&chunks, group, head_dim);
        Ok(rows)
    }

    /// Adds rows that mean nothing until there are `count`; they are of slot `slot`.
    pub(super) fn pad(&mut self, count: usize, slot: usize) {
        let rows = self.len() as i32..count as i32;
        self.tokens.resize(count, 0);
        self.slots.resize(count, slot as i32);
        self.positions.resize(count, -1);
        self.sampled.extend(rows.clone());
        if self.tiled {
            // Of no tokens: nothing is read for them, and nothing written.
            self.tiles.extend(rows.flat_map(|row| [row, 0, 0, slot as i32]));
        } else {
            self.decodes = count;
        }
    }

    /// Is each row one that a graph of decoding has a place for?
    pub(super) fn can_replay(&self) -> bool {
        self.tiled || self.decodes == self.len()
    }

    pub(super) fn len(&self) -> usize {
        self.tokens.len()
    }
}

/// What the device's table of blocks lacks: triples (slot, index, block). `known` is how many blocks of each slot the
/// device has.
pub(super) fn updates(plan: &Plan, known: &mut [usize]) -> Vec<i32> {
    let mut triples = Vec::new();
    for chunk in &plan.chunks {
        let Some(known) = known.get_mut(chunk.slot as usize) else { continue };
        if chunk.fill.is_some() {
            *known = 0;
        }
        for (index, block) in chunk.blocks.iter().enumerate().skip(*known) {
            triples.extend([chunk.slot as i32, index as i32, *block as i32]);
        }
        *known = chunk.blocks.len().max(*known);
    }
    triples
}

/// Sizes of batches that graphs are made for.
pub(super) const BUCKETS: [usize; 15] = [1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512];

/// As many slots as the bucket has that so many need, so that their steps are captured, too.
pub(super) fn rounded(slots: usize) -> usize {
    BUCKETS.into_iter().find(|bucket| *bucket >= slots).unwrap_or(slots)
}

/// The smallest bucket for a step; `None` where it is not one of decoding alone.
pub(super) fn bucket(plan: &Plan, most: usize) -> Option<usize> {
    let decoding = |chunk: &crate::llm::plan::Chunk| chunk.length == 1 && chunk.sample && chunk.prompt_logprobs == 0;
    if !plan.chunks.iter().all(decoding) {
        return None;
    }
    BUCKETS.into_iter().find(|bucket| *bucket >= plan.chunks.len() && *bucket <= most)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::llm::plan::{Chunk, Fill};
    use crate::llm::sequence::{GroupId, SequenceId};
    use std::sync::Arc;

    fn chunk(slot: u32, start: u32, tokens: Option<&[u32]>, blocks: &[u32], sample: bool) -> Chunk {
        Chunk {
            sequence: SequenceId { group: GroupId(u64::from(slot)), copy: 0 },
            slot,
            fill: None,
            start,
            length: tokens.map_or(1, |tokens| tokens.len() as u32),
            input: tokens.map_or(Input::Last, |tokens| Input::Known(tokens.to_vec())),
            blocks: Arc::new(blocks.to_vec()),
            sample,
            sampling: Arc::default(),
            prompt_logprobs: 0,
        }
    }

    fn plan(chunks: Vec<Chunk>) -> Plan {
        Plan { step: 1, chunks, stale: Vec::new(), preempted: Vec::new() }
    }

    const BOUNDS: Bounds = Bounds { slots: 4, vocab: 10, units: 8, group: 1, head_dim: 64, tiled: false };

    /// Two splits each, and room for three.
    #[test]
    fn rows_that_there_is_no_room_to_decode_in_parts_are_tiles() {
        let plan = plan((0..3).map(|slot| chunk(slot, 300, None, &[0], true)).collect());
        let rows = Rows::of(&plan, &Bounds { units: 3, ..BOUNDS }).unwrap();
        assert_eq!((rows.decodes, rows.tiles.as_slice()), (1, [1, 1, 300, 1, 2, 1, 300, 2].as_slice()));
        assert_eq!(Rows::of(&plan, &BOUNDS).unwrap().decodes, 3);
    }

    #[test]
    fn decodes_come_first_and_chunks_follow() {
        let plan = plan(vec![chunk(2, 40, None, &[7, 8], true), chunk(0, 3, Some(&[5, 6, 9]), &[1], false)]);
        let rows = Rows::of(&plan, &BOUNDS).unwrap();
        assert_eq!(rows.tokens, [-1, 5, 6, 9]);
        assert_eq!(rows.slots, [2, 0, 0, 0]);
        assert_eq!(rows.positions, [40, 3, 4, 5]);
        assert_eq!((rows.sampled.as_slice(), rows.decodes), ([0].as_slice(), 1));
        assert_eq!(rows.starts, [0, 1]);
        assert_eq!(rows.tiles, [1, 3, 3, 0]);
        assert_eq!(bucket(&plan, 512), None);
    }

    /// A row has one kernel, whether it decodes, is what is left of a prompt, or is computed again.
    #[test]
    fn rows_whose_bits_must_not_depend_on_steps_are_all_tiles() {
        let plan = plan(vec![
            chunk(2, 40, None, &[7, 8], true),
            chunk(1, 3, Some(&[5]), &[2], true),
            chunk(0, 3, Some(&[5, 6, 9]), &[1], false),
        ]);
        let rows = Rows::of(&plan, &Bounds { tiled: true, ..BOUNDS }).unwrap();
        assert_eq!((rows.decodes, rows.can_replay()), (0, true));
        assert_eq!(rows.tiles, [0, 1, 40, 2, 2, 3, 3, 0, 1, 1, 3, 1]);
        let mut decoding =
            Rows::of(&self::plan(vec![plan.chunks[0].clone()]), &Bounds { tiled: true, ..BOUNDS }).unwrap();
        decoding.pad(2, 4);
        assert_eq!((decoding.decodes, decoding.sampled.as_slice()), (0, [0, 1].as_slice()));
        assert_eq!(decoding.tiles, [0, 1, 40, 2, 1, 0, 0, 4]);
    }

    #[test]
    fn padding_is_of_the_slot_after_the_last() {
        let plan = plan(vec![
            chunk(1, 9, None, &[3], true),
            chunk(0, 0, Some(&[4]), &[5], true),
            chunk(2, 1, None, &[6], true),
        ]);
        let mut rows = Rows::of(&plan, &Bounds { slots: 3, ..BOUNDS }).unwrap();
        let size = bucket(&plan, 512).unwrap();
        assert_eq!((size, bucket(&plan, 2)), (4, None));
        rows.pad(size, 3);
        assert_eq!(rows.slots, [1, 0, 2, 3]);
        assert_eq!(rows.positions, [9, 0, 1, -1]);
        assert_eq!(rows.sampled, [0, 1, 2, 3]);
        assert_eq!(rows.decodes, 4);
    }

    #[test]
    fn plans_that_break_the_contract_are_refused() {
        for bad in
            [chunk(9, 0, None, &[0], true), chunk(0, 0, Some(&[10]), &[0], true), chunk(0, 0, Some(&[]), &[0], true)]
        {
            assert!(matches!(Rows::of(&plan(vec![bad]), &BOUNDS), Err(Failure::Contract(_))));
        }
    }

    #[test]
    fn only_new_blocks_are_sent() {
        let mut known = vec![0; 4];
        assert_eq!(updates(&plan(vec![chunk(1, 0, Some(&[1]), &[4, 5], true)]), &mut known), [1, 0, 4, 1, 1, 5]);
        assert_eq!(updates(&plan(vec![chunk(1, 64, None, &[4, 5, 9], true)]), &mut known), [1, 2, 9]);
        assert!(updates(&plan(vec![chunk(1, 65, None, &[4, 5, 9], true)]), &mut known).is_empty());
        let mut anew = chunk(1, 0, Some(&[1]), &[8], true);
        anew.fill = Some(Fill { prompt: Arc::from([1]), output: Vec::new() });
        assert_eq!(updates(&plan(vec![anew]), &mut known), [1, 0, 8]);
        assert_eq!(known, [0, 1, 0, 0]);
    }
}
