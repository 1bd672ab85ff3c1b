//! Matrices of integers of four or eight bits with scales and zeros, as GPTQ, AWQ and compressed-tensors pack them. To
//! all others each is one tensor of bf16, NAME.weight.
//!
//! ```text
//! number = scale * (integer - zero), where the inputs of a group share scale and zero of an output
//!
//! GPTQ                 integers [inputs / 8, outputs]   scales [groups, outputs]   zeros [groups, outputs / 8]
//! AWQ                           [inputs, outputs / 8]          [groups, outputs]         [groups, outputs / 8]
//! compressed-tensors            [outputs, inputs / 8]          [outputs, groups]         [outputs / 8, groups]
//!                     or bytes: [outputs, inputs]              [outputs, groups]         [outputs, groups]
//! ```
//! A word of 32 bits has eight integers, or four of eight bits: the first in its lowest bits, but for AWQ, whose order
//! is 0, 2, 4, 6, 1, 3, 5, 7. A group is a stretch of inputs, unless a list says of which group each input is.

mod find;
mod grid;

use super::Format;
use super::blocks::dequantise;
use super::groups::{Code, Groups, Stored};
use super::shards::Shards;
pub(super) use find::Role;
use grid::{Grid, IN_ORDER, Integers};
use kernels::cuda::Bf16;
use rayon::prelude::*;
use std::io;
use std::num::NonZeroUsize;
use std::ops::Range;

/// How a checkpoint packs its matrices: what its `quantization_config` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// NAME.qweight, NAME.qzeros, NAME.scales, NAME.g_idx, integers packed along inputs.
    Gptq {
        /// Of an integer.
        bits: Bits,
        /// Inputs of a group; `None` is all.
        group: Option<NonZeroUsize>,
        /// Are zeros stored less one?
        less_one: bool,
    },
    /// NAME.qweight, NAME.qzeros, NAME.scales, integers of four bits packed along outputs.
    Awq {
        /// Inputs of a group; `None` is all.
        group: Option<NonZeroUsize>,
    },
    /// NAME.weight_packed, NAME.weight_scale, NAME.weight_shape, or NAME.weight of bytes and NAME.weight_scale. Their
    /// shapes say the rest.
    CompressedTensors,
}

/// Bits of an integer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // the names say it
pub enum Bits {
    Four,
    Eight,
}

impl Bits {
    fn count(self) -> usize {
        match self {
            Bits::Four => 4,
            Bits::Eight => 8,
        }
    }

    /// The integers of a word, first in its lowest bits.
    fn order(self) -> &'static [usize] {
        &IN_ORDER[..32 / self.count()]
    }
}

/// A matrix, and where what it is made of lies.
#[derive(Debug)]
pub(super) struct Matrix {
    /// Outputs.
    pub(super) rows: usize,
    /// Inputs.
    pub(super) columns: usize,
    codes: Integers,
    /// Do the codes of bytes have a sign?
    signed: bool,
    scales: Scales,
    zeros: Zeros,
    /// Inputs of a group.
    group: usize,
    groups: usize,
    /// The group of each input, where groups are no stretches of inputs.
    order: Option<Vec<u32>>,
}

/// A table of scales.
#[derive(Debug)]
struct Scales {
    grid: Grid,
    format: Format,
    /// Is there one for all?
    shared: bool,
}

/// The integers that mean zero.
#[derive(Debug)]
enum Zeros {
    /// The same everywhere.
    Same(u8),
    /// One of each output and group, and what is added to it.
    Table { integers: Integers, signed: bool, plus: u8, shared: bool },
}

/// Scales and zeros of some outputs: `[outputs, groups]` each.
struct Parameters {
    scales: Vec<f32>,
    zeros: Vec<f32>,
}

/// Outputs that a thread makes at a time, so that their integers stay in its cache.
const TOGETHER: usize = 32;

/// What shared tables are read by.
const FIRST: Range<usize> = 0..1;

impl Matrix {
    /// Does reading some outputs read no others?
    pub(super) fn in_order(&self) -> bool {
        !self.codes.grid.beside
    }

    /// The bytes `range` of the numbers as bf16, which are in it.
    pub(super) fn read(&self, shards: &Shards, range: &Range<usize>) -> io::Result<Vec<u8>> {
        let row = 2 * self.columns;
        let rows = range.start / row..range.end.div_ceil(row);
        let mut bytes = self.widen(shards, &rows)?;
        bytes.truncate(range.end - rows.start * row);
        bytes.drain(..range.start - rows.start * row);
        Ok(bytes)
    }

    /// Whole rows as bf16; the current rayon pool makes them.
    fn widen(&self, shards: &Shards, rows: &Range<usize>) -> io::Result<Vec<u8>> {
        let (cells, parameters) = (self.codes.read(shards, rows)?, self.parameters(shards, rows)?);
        let mut bytes = vec![0; rows.len() * 2 * self.columns];
        bytes.par_chunks_mut(TOGETHER * 2 * self.columns).enumerate().for_each(|(index, bytes)| {
            let first = rows.start + index * TOGETHER;
            let some = first..(first + TOGETHER).min(rows.end);
            let codes = cells.unpack(&some);
            let rows_of = codes.chunks_exact(self.columns).zip(bytes.chunks_exact_mut(2 * self.columns));
            for (row, (codes, bytes)) in some.zip(rows_of) {
                let place = (row - rows.start) * self.groups..(row - rows.start + 1) * self.groups;
                self.widen_row(codes, &parameters.scales[place.clone()], &parameters.zeros[place], bytes);
            }
        });
        Ok(bytes)
    }

    fn widen_row(&self, codes: &[u8], scales: &[f32], zeros: &[f32], bytes: &mut [u8]) {
        let meaning = |code: u8| if self.signed { f32::from(code as i8) } else { f32::from(code) };
        let number = |code: u8, group: usize| Bf16::from_f32(scales[group] * (meaning(code) - zeros[group]));
        if let Some(order) = &self.order {
            for ((code, group), to) in codes.iter().zip(order).zip(bytes.chunks_exact_mut(2)) {
                to.copy_from_slice(&number(*code, *group as usize).0.to_le_bytes());
            }
            return;
        }
        for (group, (codes, bytes)) in codes.chunks(self.group).zip(bytes.chunks_mut(2 * self.group)).enumerate() {
            for (code, to) in codes.iter().zip(bytes.chunks_exact_mut(2)) {
                to.copy_from_slice(&number(*code, group).0.to_le_bytes());
            }
        }
    }

    fn parameters(&self, shards: &Shards, rows: &Range<usize>) -> io::Result<Parameters> {
        let all = rows.len() * self.groups;
        let Scales { grid, format, shared } = self.scales;
        let stored = dequantise(format, &grid.read(shards, if shared { &FIRST } else { rows })?);
        let scales = (0..all).map(|at| match (shared, grid.beside) {
            (true, _) => stored[0],
            (false, true) => stored[at % self.groups * rows.len() + at / self.groups],
            (false, false) => stored[at],
        });
        let zeros = match &self.zeros {
            Zeros::Same(zero) => vec![f32::from(*zero); all],
            Zeros::Table { integers, signed, plus, shared } => {
                let rows = if *shared { &FIRST } else { rows };
                let stored = integers.read(shards, rows)?.unpack(rows);
                let meaning = |zero: u8| if *signed { f32::from(zero as i8) } else { f32::from(zero) };
                (0..all).map(|at| meaning(stored[if *shared { 0 } else { at }]) + f32::from(*plus)).collect()
            }
        };
        Ok(Parameters { scales: scales.collect(), zeros })
    }

    /// How it is kept as codes; `None` where its groups are no stretches of inputs that devices know.
    pub(super) fn stored(&self) -> Option<Stored> {
        let known = self.groups == 1 || (self.group.is_power_of_two() && self.group >= 16);
        if !known || self.order.is_some() {
            return None;
        }
        // Zeros in the middle are no zeros, if codes have signs.
        let (code, minima) = match (self.codes.bits, &self.zeros) {
            (4, Zeros::Same(8)) => (Code::Int4, false),
            (4, _) => (Code::Uint4, true),
            (_, Zeros::Same(128)) if !self.signed => (Code::Int8, false),
            (_, zeros) if self.signed => (Code::Int8, !matches!(zeros, Zeros::Same(0))),
            (_, _) => (Code::Uint8, true),
        };
        Some(Stored { code, group: self.group, minima })
    }

    /// Whole rows as codes, where [`Matrix::stored`] says how.
    pub(super) fn groups(&self, shards: &Shards, rows: &Range<usize>) -> io::Result<Option<Groups>> {
        let Some(Stored { code, group, minima }) = self.stored() else { return Ok(None) };
        let (cells, parameters) = (self.codes.read(shards, rows)?, self.parameters(shards, rows)?);
        let mut codes = vec![0; rows.len() * self.columns];
        let flip = if code == Code::Int8 && !self.signed { 0x80 } else { 0 };
        codes.par_chunks_mut(TOGETHER * self.columns).enumerate().for_each(|(index, codes)| {
            let first = rows.start + index * TOGETHER;
            let some = cells.unpack(&(first..(first + TOGETHER).min(rows.end)));
            codes.iter_mut().zip(some).for_each(|(to, code)| *to = code ^ flip);
        });
        let Parameters { scales, zeros } = parameters;
        let minima =
            if minima { scales.iter().zip(zeros).map(|(scale, zero)| scale * zero).collect() } else { Vec::new() };
        Ok(Some(Groups { code, group, columns: self.columns, codes, scales, minima }))
    }
}
