//! Matrices of eight-bit floats (e4m3) and the scales beside them, which publishers lay out in three ways:
//!
//! ```text
//! one for all          [], [1], [1, 1]
//! one for each output  [outputs], [outputs, 1]
//! one for each block   [outputs / 128, inputs / 128], both rounded up
//! ```
//! A number is what is stored times its scale, rounded to bf16.

use super::Format;
use super::blocks::dequantise;
use super::groups::{Code, Groups, Stored, of_e4m3};
use super::safetensors_header::{Described, float};
use kernels::cuda::{Bf16, E4m3};
use std::ops::Range;

/// The name that these numbers have in a header.
pub(super) const DTYPE: &str = "F8_E4M3";
/// What a matrix's scales are called: its name and one of these.
pub(super) const SCALES: [&str; 2] = ["_scale_inv", "_scale"];
/// Scales of inputs, beside a matrix called `weight`. Inputs are not rounded here, so there is no use for them.
pub(super) const OF_INPUTS: [&str; 2] = ["input_scale", "input_scale_ub"];
/// Outputs, and inputs, of a block.
pub(super) const BLOCK: usize = 128;

/// How the scales of one matrix lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Scales {
    format: Format,
    /// Columns of the matrix.
    width: usize,
    /// Rows that share a scale.
    rows: usize,
    /// Columns that do.
    columns: usize,
    /// Scales beside each other.
    across: usize,
}

impl Scales {
    /// Those of a matrix of this shape; `None` where they do not fit it.
    pub(super) fn of(matrix: &[usize], scales: &Described) -> Option<Self> {
        let (format, shape) = (float(&scales.dtype)?, &scales.shape.0[..]);
        let [outputs, width] = *matrix else { return None };
        let blocks = [outputs.div_ceil(BLOCK), width.div_ceil(BLOCK)];
        let (rows, columns, across) = match shape {
            [] | [1] | [1, 1] => (usize::MAX, usize::MAX, 1),
            [all] | [all, 1] if *all == outputs => (1, usize::MAX, 1),
            shape if shape == blocks => (BLOCK, BLOCK, blocks[1]),
            _ => return None,
        };
        (outputs > 0 && width > 0).then_some(Scales { format, width, rows, columns, across })
    }

    /// The bytes of all scales of some numbers, which must not be none.
    pub(super) fn bytes(&self, numbers: &Range<usize>) -> Range<usize> {
        let block = |number: usize| number / self.width / self.rows;
        let size = self.format.block().1 * self.across;
        block(numbers.start) * size..(block(numbers.end - 1) + 1) * size
    }

    /// How the matrix is kept.
    pub(super) fn stored(&self) -> Stored {
        Stored { code: Code::E4m3, group: self.columns.min(self.width), minima: false }
    }

    /// The numbers of whole rows from `first` on, and their scales: what [`Scales::bytes`] names.
    pub(super) fn groups(&self, first: usize, numbers: Vec<u8>, scales: &[u8]) -> Groups {
        let scales = dequantise(self.format, scales);
        let (before, rows) = (first / self.rows, first..first + numbers.len() / self.width);
        // One for all columns, or as many as there are blocks across.
        let place = |row: usize, index: usize| (row / self.rows - before) * self.across + index;
        let scale = |row, index| scales.get(place(row, index)).copied().unwrap_or(0.0);
        of_e4m3(numbers, self.width, self.columns.min(self.width), rows, scale)
    }

    /// Numbers `first` and those that follow it, as bf16; `scales` is what [`Scales::bytes`] names.
    pub(super) fn widen(&self, first: usize, numbers: &[u8], scales: &[u8]) -> Vec<u8> {
        let table: [f32; 256] = std::array::from_fn(|bits| E4m3(bits as u8).to_f32());
        let scales = dequantise(self.format, scales);
        let before = first / self.width / self.rows;
        let mut wide = Vec::with_capacity(2 * numbers.len());
        let mut at = 0;
        while at < numbers.len() {
            let (row, column) = ((first + at) / self.width, (first + at) % self.width);
            let scale = scales[(row / self.rows - before) * self.across + column / self.columns];
            // Up to where the next scale begins, or the next row.
            let end = (column / self.columns + 1).saturating_mul(self.columns).min(self.width);
            let same = &numbers[at..numbers.len().min(at + end - column)];
            wide.extend(same.iter().flat_map(|bits| Bf16::from_f32(table[*bits as usize] * scale).0.to_le_bytes()));
            at += same.len();
        }
        wide
    }
}
