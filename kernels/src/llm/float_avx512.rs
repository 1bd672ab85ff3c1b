//! Products with f32, f16 and bf16 weights on AVX-512: as `float_avx2.rs` in everything that makes up the result, and
//! so with its bits, but 16 lanes wide. A block of registers is a whole tile, two vectors of 16 weight rows, against
//! two panels of up to six rows of activations: 24 registers of sums.
//!
//! Up to twelve rows of activations stream through the tile, whose weights are widened on the way. Of more, the first
//! two panels leave the columns that they widened in the first-level cache, some at a time, for the others to pass.
//!
//! `vdpbf16ps` is not used: Sapphire Rapids starts one in two cycles, and four fused multiplications of f32 meanwhile,
//! which are twice as many products and lose nothing of the activations.
#![allow(unsafe_code)]

use super::activations::{Activations, PANEL};
use super::interleave::ROWS;
use super::math::each;
use super::packed::{Sink, Sums};
use std::arch::x86_64::*;
use std::ops::Range;

/// Pairs of columns that are widened at a time.
const DEPTH: usize = 64;
/// Panels of activations that pass at a time.
const PANELS: usize = 12;
/// How far ahead memory is fetched, in bytes, into the second-level cache.
const AHEAD: usize = 6144;

/// A floating-point format; two columns of a tile at a time.
pub(super) trait Float {
    /// Bytes of two columns of a tile.
    const BYTES: usize;
    /// Does it come out of memory?
    const COLD: bool = true;

    /// The even and the odd column of 16 rows, those of `half`.
    ///
    /// # Safety
    /// There is AVX-512F; `pair` is good for [`Float::BYTES`]; `half < 2`.
    unsafe fn load(pair: *const u8, half: usize) -> [__m512; 2];
}

pub(super) struct F32;
pub(super) struct F16;
pub(super) struct Bf16;

impl Float for F32 {
    const BYTES: usize = 256;

    #[inline(always)]
    unsafe fn load(pair: *const u8, half: usize) -> [__m512; 2] {
        // SAFETY: by the contract of the trait.
        unsafe { each!(_mm512_setzero_ps(), |odd| _mm512_loadu_ps(pair.add(128 * odd + 64 * half).cast())) }
    }
}

impl Float for Wide {
    const BYTES: usize = 256;
    const COLD: bool = false;

    #[inline(always)]
    unsafe fn load(pair: *const u8, half: usize) -> [__m512; 2] {
        // SAFETY: by the contract of the trait.
        unsafe { F32::load(pair, half) }
    }
}

impl Float for F16 {
    const BYTES: usize = 128;

    #[inline(always)]
    unsafe fn load(pair: *const u8, half: usize) -> [__m512; 2] {
        // SAFETY: by the contract of the trait.
        unsafe {
            each!(_mm512_setzero_ps(), |odd| {
                _mm512_cvtph_ps(_mm256_loadu_si256(pair.add(64 * odd + 32 * half).cast()))
            })
        }
    }
}

impl Float for Bf16 {
    const BYTES: usize = 128;

    #[inline(always)]
    unsafe fn load(pair: *const u8, half: usize) -> [__m512; 2] {
        // SAFETY: by the contract of the trait.
        unsafe {
            let both = _mm512_loadu_si512(pair.add(64 * half).cast());
            let odd = _mm512_and_si512(both, _mm512_set1_epi32(0xffff_0000u32 as i32));
            [_mm512_castsi512_ps(_mm512_slli_epi32::<16>(both)), _mm512_castsi512_ps(odd)]
        }
    }
}

/// One tile.
///
/// # Safety
/// There is AVX-512F. `tile` has as many columns as `a`, which is in f32 and has rows.
pub(super) unsafe fn multiply<F: Float>(tile: &[u8], a: &Activations, sink: &mut Sink<'_, '_>) {
    // SAFETY: by the contract of this function.
    unsafe {
        if a.panels() <= 2 {
            few::<F>(tile, a, sink);
        } else {
            for first in (0..a.panels()).step_by(PANELS) {
                many::<F>(tile, a, first..a.panels().min(first + PANELS), sink);
            }
        }
    }
}

/// # Safety
/// As [`multiply`]; `a` has at most two panels.
#[target_feature(enable = "avx512f")]
unsafe fn few<F: Float>(tile: &[u8], a: &Activations, sink: &mut Sink<'_, '_>) {
    let mut sums = Sums::<{ 2 * PANEL }>::ZERO;
    // SAFETY: whole pairs of columns, of which there are as many activations; an odd column is copied to a pair of
    // which the second half is zero, as is the activation that pads an odd row.
    unsafe {
        let pass = Pass::new(a, 0..a.panels());
        let (whole, to) = (tile.len() / F::BYTES, std::ptr::null_mut());
        pass.run::<F, false>((tile.as_ptr(), to), (0, whole), sums.0.as_mut_ptr());
        if whole * F::BYTES < tile.len() {
            let last = padded(&tile[whole * F::BYTES..]);
            pass.run::<F, false>((last.as_ptr(), to), (whole, 1), sums.0.as_mut_ptr());
        }
    }
    for (m, sums) in sums.0[..a.rows].iter().enumerate() {
        sink.put(m, sums);
    }
}

/// A last column without a partner, and zeros.
fn padded(column: &[u8]) -> [u8; 256] {
    let mut pair = [0; 256];
    pair[..column.len()].copy_from_slice(column);
    pair
}

/// Widened columns: `[column][32 rows]`.
#[repr(align(64))]
struct Wide([f32; 2 * DEPTH * ROWS]);

/// # Safety
/// As [`multiply`]; `panels` is within `a`, and at most [`PANELS`] long.
#[target_feature(enable = "avx512f")]
unsafe fn many<F: Float>(tile: &[u8], a: &Activations, panels: Range<usize>, sink: &mut Sink<'_, '_>) {
    let mut sums = Sums::<{ PANELS * PANEL }>::ZERO;
    let mut wide = Wide([0.0; 2 * DEPTH * ROWS]);
    let first = a.panel(panels.start).0;
    for (part, bytes) in tile.chunks(DEPTH * F::BYTES).enumerate() {
        let pairs = bytes.len().div_ceil(F::BYTES);
        let last = padded(&bytes[bytes.len() / F::BYTES * F::BYTES..]);
        // SAFETY: `bytes` are `pairs` pairs of columns, of which there are as many activations; the first pass leaves
        // that many in `wide`; panels lie within `a`, and there are sums for all of their rows.
        unsafe {
            let to = wide.0.as_mut_ptr();
            for p in panels.clone().step_by(2) {
                let pass = Pass::new(a, p..panels.end.min(p + 2));
                let sums = sums.0.as_mut_ptr().add(pass.first - first);
                if p == panels.start {
                    let whole = bytes.len() / F::BYTES;
                    pass.run::<F, true>((bytes.as_ptr(), to), (part * DEPTH, whole), sums);
                    if whole < pairs {
                        let to = to.add(2 * ROWS * whole);
                        pass.run::<F, true>((last.as_ptr(), to), (part * DEPTH + whole, 1), sums);
                    }
                } else {
                    pass.run::<Wide, false>((to.cast(), std::ptr::null_mut()), (part * DEPTH, pairs), sums);
                }
            }
        }
    }
    let (last, width) = a.panel(panels.end - 1);
    for (m, sums) in sums.0[..last + width - first].iter().enumerate() {
        sink.put(first + m, sums);
    }
}

/// One or two panels that pass against a tile.
struct Pass {
    /// Where their first columns are.
    x: [*const f32; 2],
    /// Rows of each.
    widths: (usize, usize),
    /// The first row of all.
    first: usize,
}

impl Pass {
    /// # Safety
    /// `panels` are one or two of `a`.
    unsafe fn new(a: &Activations, panels: Range<usize>) -> Pass {
        let (first, width) = a.panel(panels.start);
        let second = if panels.len() == 2 { a.panel(panels.start + 1).1 } else { 0 };
        // SAFETY: where the next panel starts is at most the end.
        let x = [first, first + width].map(|row| unsafe { a.floats.as_ptr().add(row * a.padded_cols()) });
        Pass { x, widths: (width, second), first }
    }

    /// Adds the products with `pairs.1` pairs of columns from `pairs.0` on, which are at `from`. Widened, they are left
    /// at `to` where `KEEP` says so.
    ///
    /// # Safety
    /// There is AVX-512F; columns are within bounds, and `sums` has a place for each row.
    #[target_feature(enable = "avx512f")]
    unsafe fn run<F: Float, const KEEP: bool>(
        &self,
        weights: (*const u8, *mut f32),
        pairs: (usize, usize),
        sums: *mut [f32; ROWS],
    ) {
        macro_rules! pass {
            ($($a:literal $b:literal)*) => {
                match self.widths {
                    // SAFETY: by the contract of this function.
                    $(($a, $b) => unsafe { self.block::<F, KEEP, $a, $b>(weights, pairs, sums) },)*
                    _ => unreachable!("panels are of 1 to 6 rows, as even as can be"),
                }
            };
        }
        pass!(1 0 2 0 3 0 4 0 5 0 6 0 4 3 4 4 5 4 5 5 6 5 6 6);
    }

    /// # Safety
    /// As [`Pass::run`].
    #[inline(always)]
    unsafe fn block<F: Float, const KEEP: bool, const A: usize, const B: usize>(
        &self,
        (from, to): (*const u8, *mut f32),
        (start, pairs): (usize, usize),
        sums: *mut [f32; ROWS],
    ) {
        // SAFETY: by the contract of `run`.
        unsafe {
            let mut a: [[__m512; 2]; A] = load(sums);
            let mut b: [[__m512; 2]; B] = load(sums.add(A));
            let (mut x, mut y) = (self.x[0].add(2 * start * A), self.x[1].add(2 * start * B));
            let (mut pair, mut to) = (from, to);
            for _ in 0..pairs {
                if F::COLD {
                    for line in 0..F::BYTES / 64 {
                        _mm_prefetch::<_MM_HINT_T1>(pair.wrapping_add(AHEAD + 64 * line).cast());
                    }
                }
                let (low, high) = (F::load(pair, 0), F::load(pair, 1));
                for odd in 0..2 {
                    let w = [low[odd], high[odd]];
                    column(&mut a, w, x.add(odd * A));
                    column(&mut b, w, y.add(odd * B));
                    if KEEP {
                        _mm512_store_ps(to.add(ROWS * odd), w[0]);
                        _mm512_store_ps(to.add(ROWS * odd + 16), w[1]);
                    }
                }
                (pair, x, y) = (pair.add(F::BYTES), x.add(2 * A), y.add(2 * B));
                if KEEP {
                    to = to.add(2 * ROWS);
                }
            }
            store(&a, sums);
            store(&b, sums.add(A));
        }
    }
}

/// # Safety
/// There is AVX-512F; `sums` is good for `M` rows.
#[inline(always)]
unsafe fn load<const M: usize>(sums: *const [f32; ROWS]) -> [[__m512; 2]; M] {
    // SAFETY: by the contract of this function.
    unsafe {
        each!([_mm512_setzero_ps(); 2], |m| {
            each!(_mm512_setzero_ps(), |half| _mm512_loadu_ps(sums.add(m).cast::<f32>().add(16 * half)))
        })
    }
}

/// # Safety
/// As [`load`].
#[inline(always)]
unsafe fn store<const M: usize>(all: &[[__m512; 2]; M], sums: *mut [f32; ROWS]) {
    for (m, row) in all.iter().enumerate() {
        for (half, sum) in row.iter().enumerate() {
            // SAFETY: by the contract of this function.
            unsafe { _mm512_storeu_ps(sums.add(m).cast::<f32>().add(16 * half), *sum) };
        }
    }
}

/// One column.
///
/// # Safety
/// There is AVX-512F; `x` is good for `M`.
#[inline(always)]
unsafe fn column<const M: usize>(all: &mut [[__m512; 2]; M], w: [__m512; 2], x: *const f32) {
    for (m, sums) in all.iter_mut().enumerate() {
        // SAFETY: by the contract of this function.
        unsafe {
            let x = _mm512_set1_ps(*x.add(m));
            *sums = each!(_mm512_setzero_ps(), |half| _mm512_fmadd_ps(w[half], x, sums[half]));
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::llm::packed::tests::{Random, weights};
    use crate::llm::{Activations, Format, Packed, Path};

    fn product(packed: &Packed, path: Path, values: &[f32]) -> Vec<u32> {
        let a = Activations::new(packed.operand(), values, packed.cols());
        let mut out = vec![f32::NAN; a.rows() * packed.rows()];
        let mut rows: Vec<&mut [f32]> = out.chunks_exact_mut(packed.rows()).collect();
        packed.multiply_on(path, 0..packed.tiles(), &a, &mut rows);
        out.into_iter().map(f32::to_bits).collect()
    }

    /// Where AVX-512 is missing, this compares AVX2 with itself.
    #[test]
    fn every_batch_has_the_bits_of_the_avx2_path() {
        let mut random = Random(31);
        for format in [Format::F32, Format::F16, Format::Bf16] {
            for (rows, cols) in [(1, 1), (33, 2), (70, 63), (32, 64), (64, 65), (40, 129), (95, 300)] {
                let packed = Packed::new(format, rows, cols, &weights(format, rows, cols, &mut random)).unwrap();
                let values = random.floats(150 * cols);
                let expected = product(&packed, Path::Avx2, &values);
                for m in (1..40).chain([71, 72, 73, 78, 79, 84, 85, 143, 144, 145, 150]) {
                    let found = product(&packed, Path::Avx512, &values[..m * cols]);
                    assert_eq!(found, expected[..m * rows], "{format:?} {rows} x {cols}, {m} rows");
                }
            }
        }
    }

    #[test]
    fn what_is_not_finite_stays_in_its_row() {
        let mut random = Random(32);
        for format in [Format::F32, Format::F16, Format::Bf16] {
            let packed = Packed::new(format, 33, 65, &weights(format, 33, 65, &mut random)).unwrap();
            for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                for m in [1, 2, 7, 12, 13, 30] {
                    let mut values = random.floats(m * 65);
                    values[(m - 1) * 65 + 64] = bad;
                    let found = product(&packed, Path::Avx512, &values);
                    for (row, found) in found.chunks_exact(33).enumerate() {
                        assert!(
                            found.iter().all(|x| f32::from_bits(*x).is_finite() == (row != m - 1)),
                            "{format:?} {m}"
                        );
                    }
                }
            }
        }
    }
}
