//! The right-hand operand of a product with weights, laid out for the kernels. For quantised weights: int8 in blocks
//! of 32 with an f32 scale, as Q8_0 but for the precision of the scale. For floating-point weights: f32 in panels.
//! Not here: the weights, and the products.
//!
//! Each row is converted by itself: what a row becomes does not depend on the rows beside it.

/// Columns that share a scale.
pub(super) const BLOCK: usize = 32;
/// Rows that are quantised together: their places in a block lie side by side, and fill whole cache lines.
pub(super) const TOGETHER: usize = 8;
/// Most rows of an f32 panel: 6 rows x 2 vectors fill the registers of AVX2 with accumulators.
pub(super) const PANEL: usize = 6;

/// Which kind of activations a weight format multiplies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Operand {
    /// Blocks of 32 x int8 and a scale.
    #[default]
    Int8,
    /// f32 as it is.
    Float,
}

/// A matrix `[rows, cols]` of activations. Fill it again and again: it keeps its memory.
///
/// Int8: with scale a = max |x| / 127 of a block, `x ~ a q`, `|q| <= 127`, `|x - a q| <= a / 2` (1 + 2^-22). A block
/// that holds an infinity or a NaN gets the scale NaN, so that every output of that row is NaN, and no other row's.
#[derive(Clone, Debug, Default)]
pub struct Activations {
    pub(super) operand: Operand,
    pub(super) rows: usize,
    pub(super) cols: usize,
    /// `[block][row][32]`.
    pub(super) quants: Vec<i8>,
    /// `[block][row]`: a.
    pub(super) scales: Vec<f32>,
    /// `[block][row]`: a x sum of q.
    pub(super) sums: Vec<f32>,
    /// `[block][row][2]`: sums of q over columns 0..16 and 16..32 of the block.
    pub(super) halves: Vec<[i16; 2]>,
    /// Panels of rows, each `[column][row of the panel]`, columns padded with a zero to an even number.
    pub(super) floats: Vec<f32>,
}

impl Activations {
    /// Takes `values`, `[values.len() / cols, cols]` row-major, in the given form.
    ///
    /// # Panics
    /// When `values` is not whole rows, or int8 is asked for with `cols` not a multiple of 32.
    pub fn fill(&mut self, operand: Operand, values: &[f32], cols: usize) {
        assert!(cols > 0 && values.len().is_multiple_of(cols), "whole rows of {cols}");
        (self.operand, self.rows, self.cols) = (operand, values.len() / cols, cols);
        match operand {
            Operand::Int8 => {
                assert!(cols.is_multiple_of(BLOCK), "{cols} columns are not blocks of {BLOCK}");
                let blocks = self.rows * cols / BLOCK;
                self.quants.resize(blocks * BLOCK, 0);
                self.scales.resize(blocks, 0.0);
                self.sums.resize(blocks, 0.0);
                self.halves.resize(blocks, [0; 2]);
                #[cfg(target_arch = "x86_64")]
                if super::quantise_avx2::quantise_all(self, values) {
                    return;
                }
                quantise_all(self, values);
            }
            Operand::Float => self.fill_floats(values),
        }
    }

    /// A new matrix; see [`Activations::fill`].
    pub fn new(operand: Operand, values: &[f32], cols: usize) -> Self {
        let mut new = Activations::default();
        new.fill(operand, values, cols);
        new
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// The form they are in.
    pub fn operand(&self) -> Operand {
        self.operand
    }

    /// Row `row` as the kernels see it: the specification multiplies this.
    pub fn row(&self, row: usize, out: &mut [f32]) {
        assert!(row < self.rows && out.len() == self.cols, "a row of {} x {}", self.rows, self.cols);
        match self.operand {
            Operand::Int8 => {
                for (block, out) in out.chunks_exact_mut(BLOCK).enumerate() {
                    let at = block * self.rows + row;
                    for (out, &q) in out.iter_mut().zip(&self.quants[at * BLOCK..]) {
                        *out = self.scales[at] * f32::from(q);
                    }
                }
            }
            Operand::Float => {
                let panel = (0..self.panels()).rev().find(|&p| self.panel(p).0 <= row).unwrap_or(0);
                let (first, width) = self.panel(panel);
                let start = first * self.padded_cols() + row - first;
                for (out, value) in out.iter_mut().zip(self.floats[start..].iter().step_by(width)) {
                    *out = *value;
                }
            }
        }
    }

    /// Columns of the f32 form.
    pub(super) fn padded_cols(&self) -> usize {
        self.cols.next_multiple_of(2)
    }

    /// Number of f32 panels.
    pub(super) fn panels(&self) -> usize {
        self.rows.div_ceil(PANEL)
    }

    /// First row and number of rows of a panel: as even as can be.
    pub(super) fn panel(&self, at: usize) -> (usize, usize) {
        let (panels, rows) = (self.panels(), self.rows);
        let (base, longer) = (rows / panels, rows % panels);
        (at * base + at.min(longer), base + usize::from(at < longer))
    }

    fn fill_floats(&mut self, values: &[f32]) {
        let (cols, padded) = (self.cols, self.padded_cols());
        self.floats.resize(self.rows * padded, 0.0);
        for panel in 0..self.panels() {
            let (first, width) = self.panel(panel);
            let out = &mut self.floats[first * padded..(first + width) * padded];
            let rows = &values[first * cols..(first + width) * cols];
            match width {
                1 => interleave::<1>(rows, cols, out),
                2 => interleave::<2>(rows, cols, out),
                3 => interleave::<3>(rows, cols, out),
                4 => interleave::<4>(rows, cols, out),
                5 => interleave::<5>(rows, cols, out),
                _ => interleave::<PANEL>(rows, cols, out),
            }
        }
    }
}

/// `W` rows of `cols` values as one panel; what is left of `out` is zeros.
fn interleave<const W: usize>(rows: &[f32], cols: usize, out: &mut [f32]) {
    let (columns, _) = out.as_chunks_mut::<W>();
    let (columns, padding) = columns.split_at_mut(cols);
    let mut all: [&[f32]; W] = [&[]; W];
    for (row, values) in all.iter_mut().zip(rows.chunks_exact(cols)) {
        *row = values;
    }
    for (k, column) in columns.iter_mut().enumerate() {
        for (place, row) in column.iter_mut().zip(&all) {
            *place = row[k];
        }
    }
    padding.fill([0.0; W]);
}

/// Quantises every block of `values` into `to`, whose vectors have their lengths: the specification of
/// `quantise_avx2.rs`.
fn quantise_all(to: &mut Activations, values: &[f32]) {
    let (rows, cols) = (to.rows, to.cols);
    for first in (0..rows).step_by(TOGETHER) {
        for block in 0..cols / BLOCK {
            for row in first..rows.min(first + TOGETHER) {
                let at = block * rows + row;
                let (values, _) = values[row * cols + block * BLOCK..].split_first_chunk().expect("sized by `fill`");
                let (quants, _) = to.quants[at * BLOCK..].split_first_chunk_mut().expect("sized by `fill`");
                let (scale, halves) = quantise(values, quants);
                to.scales[at] = scale;
                to.halves[at] = halves;
                to.sums[at] = scale * f32::from(halves[0] + halves[1]);
            }
        }
    }
}

/// The scale of a block whose largest magnitude this is, and what its values are multiplied with.
#[inline(always)]
pub(super) fn scale_and_inverse(largest: f32) -> (f32, f32) {
    let inverse = 127.0 / largest;
    // Too small to invert (below 4e-37, zero included): the block is taken for zero.
    match (largest.is_finite(), inverse.is_finite()) {
        (true, true) => (largest / 127.0, inverse),
        (true, false) => (0.0, 0.0),
        (false, _) => (f32::NAN, 0.0),
    }
}

/// One block: its scale, and the sums of its halves.
fn quantise(values: &[f32; BLOCK], quants: &mut [i8; BLOCK]) -> (f32, [i16; 2]) {
    // As integers, magnitudes order like the floats they are, and NaN is above infinity.
    let mut lanes = [0u32; 8];
    for part in values.as_chunks::<8>().0 {
        for (lane, value) in lanes.iter_mut().zip(part) {
            *lane = (*lane).max(value.to_bits() & 0x7fff_ffff);
        }
    }
    let largest = f32::from_bits(lanes.into_iter().fold(0, u32::max));
    let (scale, inverse) = scale_and_inverse(largest);
    // Adding 1.5 x 2^23 leaves the nearest integer, ties to even, in the low bits.
    const MAGIC: f32 = 12_582_912.0;
    let finite = largest.is_finite();
    for (value, q) in values.iter().zip(quants.iter_mut()) {
        let value = if finite { *value } else { 0.0 };
        *q = (value * inverse + MAGIC).to_bits().wrapping_sub(MAGIC.to_bits()) as i8;
    }
    let (low, high) = quants.split_at(BLOCK / 2);
    let sum = |half: &[i8]| half.iter().map(|&q| i16::from(q)).sum();
    (scale, [sum(low), sum(high)])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::llm::packed::tests::Random;

    #[test]
    fn int8_is_within_half_a_step() {
        let mut random = Random(1);
        for scale in [1e-36, 1e-10, 1.0, 1e30, 3e38] {
            let values: Vec<f32> = (0..3 * 96).map(|_| random.symmetric() * scale).collect();
            let a = Activations::new(Operand::Int8, &values, 96);
            let mut row = [0.0; 96];
            for (r, values) in values.chunks_exact(96).enumerate() {
                a.row(r, &mut row);
                for (block, (x, y)) in values.iter().zip(row).enumerate() {
                    let step = a.scales[block / 32 * 3 + r];
                    assert!((x - y).abs() <= step / 2.0 * 1.000_001, "{x} {y} {step}");
                }
            }
            for (at, halves) in a.halves.iter().enumerate() {
                let q = &a.quants[32 * at..32 * at + 32];
                let sum = |q: &[i8]| q.iter().map(|&q| i16::from(q)).sum::<i16>();
                assert_eq!(*halves, [sum(&q[..16]), sum(&q[16..])]);
                assert!(q.iter().any(|q| q.unsigned_abs() == 127) && !q.contains(&-128));
            }
        }
    }

    #[test]
    fn every_machine_quantises_alike() {
        let mut random = Random(3);
        for (rows, cols) in [(1, 32), (3, 64), (9, 96), (17, 256)] {
            let mut values: Vec<f32> = (0..rows * cols).map(|_| random.symmetric() * 100.0).collect();
            // Halves of a step, the smallest and the largest there is, and what is no number.
            values[..6].copy_from_slice(&[127.0, 0.5, -1.5, 2.5, -0.0, 63.5]);
            for (block, value) in
                values.chunks_exact_mut(32).zip([1e-40, f32::NAN, f32::MAX, f32::NEG_INFINITY]).skip(1)
            {
                block[7] = value;
            }
            let fast = Activations::new(Operand::Int8, &values, cols);
            let mut plain = fast.clone();
            plain.quants.fill(99);
            quantise_all(&mut plain, &values);
            let bits = |a: &[f32]| a.iter().map(|x| x.to_bits() & 0x7fff_ffff).collect::<Vec<_>>();
            assert_eq!((&fast.quants, &fast.halves), (&plain.quants, &plain.halves));
            assert_eq!((bits(&fast.scales), bits(&fast.sums)), (bits(&plain.scales), bits(&plain.sums)));
        }
    }

    #[test]
    fn what_is_not_finite_poisons_its_row_alone() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut values = vec![1.0; 128];
            values[70] = bad;
            let a = Activations::new(Operand::Int8, &values, 64);
            assert!(a.scales[1].is_nan() && a.sums[1].is_nan());
            assert_eq!(a.scales.iter().filter(|s| s.is_nan()).count(), 1);
        }
        let a = Activations::new(Operand::Int8, &[1e-40; 32], 32);
        assert_eq!((a.scales[0], a.quants[0]), (0.0, 0));
    }

    #[test]
    fn floats_come_back() {
        let mut random = Random(2);
        for rows in [1, 2, 5, 6, 7, 12, 13, 35] {
            for cols in [1, 2, 9] {
                let values: Vec<f32> = (0..rows * cols).map(|_| random.symmetric()).collect();
                let a = Activations::new(Operand::Float, &values, cols);
                assert_eq!((0..a.panels()).map(|p| a.panel(p).1).sum::<usize>(), rows);
                assert!((0..a.panels()).all(|p| (1..=PANEL).contains(&a.panel(p).1)));
                let mut row = vec![0.0; cols];
                for (r, values) in values.chunks_exact(cols).enumerate() {
                    a.row(r, &mut row);
                    assert_eq!(row, values);
                }
            }
        }
    }
}
