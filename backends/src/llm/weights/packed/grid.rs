//! Tables of which one dimension is a matrix's outputs: read by outputs, and integers taken out of the words that they
//! are packed in.

use crate::llm::weights::shards::{Shards, Source};
use std::io;
use std::ops::Range;

/// A stored table: `lines` lines of `width` cells.
#[derive(Clone, Copy, Debug)]
pub(super) struct Grid {
    pub(super) source: Source,
    /// Bytes of a cell.
    pub(super) cell: usize,
    pub(super) lines: usize,
    pub(super) width: usize,
    /// Do outputs lie beside each other, all in every line, or below?
    pub(super) beside: bool,
    /// Outputs that share a cell.
    pub(super) together: usize,
}

impl Grid {
    /// Where the cells of some outputs are: lines, and cells of each.
    fn place(&self, outputs: &Range<usize>) -> (Range<usize>, Range<usize>) {
        let of_outputs = outputs.start / self.together..outputs.end.div_ceil(self.together);
        if self.beside { (0..self.lines, of_outputs) } else { (of_outputs, 0..self.width) }
    }

    /// The cells of some outputs, which the table must have: line by line.
    pub(super) fn read(&self, shards: &Shards, outputs: &Range<usize>) -> io::Result<Vec<u8>> {
        let (lines, cells) = self.place(outputs);
        let at = |line: usize| ((line * self.width + cells.start) * self.cell) as u64;
        if cells.len() == self.width {
            return shards.read(self.source, at(lines.start), lines.len() * self.width * self.cell);
        }
        let mut bytes = Vec::with_capacity(lines.len() * cells.len() * self.cell);
        for line in lines {
            bytes.extend(shards.read(self.source, at(line), cells.len() * self.cell)?);
        }
        Ok(bytes)
    }
}

/// A table of integers, one or more to a cell: those of several outputs, or several of one output.
#[derive(Clone, Copy, Debug)]
pub(super) struct Integers {
    pub(super) grid: Grid,
    /// Bits of each.
    pub(super) bits: usize,
    /// Which integer of a cell, counted from the lowest bits, is the first, the second, and so on.
    pub(super) order: &'static [usize],
    /// What is added to a cell before it is taken apart.
    pub(super) plus: u32,
    /// Integers of an output.
    pub(super) columns: usize,
}

/// The integers of a cell lie in order.
pub(super) const IN_ORDER: [usize; 8] = [0, 1, 2, 3, 4, 5, 6, 7];

/// Cells of [`Integers`] that were read: those of `outputs`.
pub(super) struct Cells<'a> {
    of: &'a Integers,
    outputs: Range<usize>,
    bytes: Vec<u8>,
}

impl Integers {
    /// Those of some outputs, which the table must have.
    pub(super) fn read(&self, shards: &Shards, outputs: &Range<usize>) -> io::Result<Cells<'_>> {
        Ok(Cells { of: self, outputs: outputs.clone(), bytes: self.grid.read(shards, outputs)? })
    }
}

impl Cells<'_> {
    /// The integers of some of the outputs that were read, one a byte: `[outputs, columns]`.
    pub(super) fn unpack(&self, outputs: &Range<usize>) -> Vec<u8> {
        let Integers { grid, bits, order, plus, columns } = *self.of;
        let (read_lines, read_cells) = grid.place(&self.outputs);
        let (lines, cells) = grid.place(outputs);
        let mask = u8::MAX >> (8 - bits);
        let mut integers = vec![0; outputs.len() * columns];
        for line in lines {
            for cell in cells.clone() {
                let at = (line - read_lines.start) * read_cells.len() + cell - read_cells.start;
                let bytes = &self.bytes[at * grid.cell..][..grid.cell];
                let mut word = [0; 4];
                word[..grid.cell].copy_from_slice(bytes);
                let word = u32::from_le_bytes(word).wrapping_add(plus);
                let integers_of_word = order.iter().map(|place| (word >> (place * bits)) as u8 & mask);
                let (output, column) = if grid.beside { (cell, line) } else { (line, cell) };
                if grid.together == 1 {
                    let first = column * order.len();
                    let to = (output - outputs.start) * columns + first;
                    let some = order.len().min(columns - first);
                    integers[to..to + some].iter_mut().zip(integers_of_word).for_each(|(to, integer)| *to = integer);
                    continue;
                }
                for (output, integer) in (output * grid.together..).zip(integers_of_word) {
                    if outputs.contains(&output) {
                        integers[(output - outputs.start) * columns + column] = integer;
                    }
                }
            }
        }
        integers
    }
}
