//! Products with weights of 4, 5 and 6 bits on AVX2. What differs between formats is a [`Nibbles`] each, in
//! `formats_avx2.rs`; here are the loops.
//!
//! A register holds 8 rows x 4 columns of unsigned weights, and `vpmaddubsw` multiplies it with 4 broadcast int8
//! activations; 8 such registers are a sub-block of 32 columns, whose sum is exact in 16 and then in 32 bits. It is
//! scaled and added in f32, sub-block after sub-block.
//!
//! One row of activations streams through the tile with its sums in registers. For more rows, a sub-block is unpacked
//! once into 8 registers and stays there while all rows pass; their sums lie in the first-level cache. Either way weights
//! are read in the order in which they lie in memory.
#![allow(unsafe_code)]

use super::activations::{Activations, BLOCK};
use super::interleave::{GROUP, HALF, ROWS};
use super::packed::{Sink, Sums};
use std::arch::x86_64::*;

/// Halves of a tile, and groups of a half.
const HALVES: usize = ROWS / HALF;
const GROUPS: usize = HALF / GROUP;
/// Rows of activations that pass at a time: their sums (8 KiB) and one block of theirs fit the first-level cache,
/// and 64 rows of 3072 columns the second.
const CHUNK: usize = 64;
/// How far ahead many rows fetch, in bytes.
const FAR: usize = 4096;
/// How far ahead of the loads of a single row memory is fetched, in bytes.
const AHEAD: usize = 4096;

/// What 8 rows x 32 columns are multiplied with after the sum of integers.
#[derive(Clone, Copy)]
pub(super) struct Factors {
    /// f32 x 8: scale of each row.
    pub(super) scale: __m256,
    /// f32 x 8: minimum of each row, if the format has one.
    pub(super) min: __m256,
    /// Integers that the format's `dot` wants.
    pub(super) ints: [__m256i; 3],
}

/// A format whose weights are unpacked to unsigned bytes.
pub(super) trait Nibbles {
    /// Sub-blocks of 32 columns in a block.
    const SUBS: usize;
    /// Bytes of a block of a tile.
    const BYTES: usize;
    /// Has it minima?
    const MINS: bool;
    /// What the sub-blocks of a half have in common.
    type Head: Copy;

    /// # Safety
    /// For this and the others: there is AVX2, FMA and F16C; `block` is good for `BYTES`; `half < 2`, `group < 2`,
    /// `sub < SUBS`; `quants` is good for 32.
    unsafe fn head(block: *const u8, half: usize) -> Self::Head;
    /// The weights of a sub-block: register j has columns 4 j .. 4 j + 4 of a group's 8 rows.
    unsafe fn weights(block: *const u8, half_and_group: (usize, usize), sub: usize) -> [__m256i; 8];
    /// Their factors.
    unsafe fn factors(head: &Self::Head, group: usize, sub: usize) -> Factors;
    /// i32 x 8: the exact sum of 32 products, sub-scales and offset included, for each row.
    unsafe fn dot(weights: &[__m256i; 8], factors: &Factors, quants: *const i8, halves: i32) -> __m256i;
}

/// One tile.
///
/// # Safety
/// There is AVX2, FMA and F16C. `tile` is whole blocks, as many as int8 blocks of `a` make; `a` has rows.
pub(super) unsafe fn multiply<F: Nibbles>(tile: &[u8], a: &Activations, sink: &mut Sink<'_, '_>) {
    debug_assert_eq!(tile.len() / F::BYTES * F::SUBS, a.cols / BLOCK);
    // SAFETY: by the contract of this function.
    unsafe {
        if a.rows == 1 {
            single::<F>(tile, a, sink);
        } else {
            for first in (0..a.rows).step_by(CHUNK) {
                many::<F>(tile, a, first..a.rows.min(first + CHUNK), sink);
            }
        }
    }
}

/// Adds one sub-block of activation row `at` (of `[block][row]`) to 8 sums.
///
/// # Safety
/// As [`Nibbles`]; `at` is within `a`.
#[inline(always)]
unsafe fn step<F: Nibbles>(w: &[__m256i; 8], f: &Factors, a: &Activations, at: usize, sums: __m256) -> __m256 {
    // SAFETY: by the contract of this function; `halves` are two i16 each.
    unsafe {
        let halves = a.halves.as_ptr().cast::<i32>().add(at).read_unaligned();
        let dot = _mm256_cvtepi32_ps(F::dot(w, f, a.quants.as_ptr().add(at * BLOCK), halves));
        let scale = _mm256_mul_ps(f.scale, _mm256_broadcast_ss(&*a.scales.as_ptr().add(at)));
        let sums = _mm256_fmadd_ps(dot, scale, sums);
        if F::MINS { _mm256_fnmadd_ps(f.min, _mm256_broadcast_ss(&*a.sums.as_ptr().add(at)), sums) } else { sums }
    }
}

/// Fetches share `part` of the bytes of a block, so many bytes ahead.
#[inline(always)]
fn fetch(block: *const u8, part: usize, (bytes, parts): (usize, usize), ahead: usize) {
    for line in 0..bytes.div_ceil(64 * parts) {
        let at = part * (bytes / parts) + 64 * line + ahead;
        // SAFETY: fetching does no harm wherever it points.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(block.wrapping_add(at).cast()) };
    }
}

/// # Safety
/// As [`multiply`].
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn single<F: Nibbles>(tile: &[u8], a: &Activations, sink: &mut Sink<'_, '_>) {
    let mut sums = [[_mm256_setzero_ps(); GROUPS]; HALVES];
    // SAFETY: `block` runs through whole blocks of the tile; the rest by the contract of `multiply`.
    unsafe {
        for (b, block) in tile.chunks_exact(F::BYTES).enumerate() {
            let block = block.as_ptr();
            for (h, sums) in sums.iter_mut().enumerate() {
                let head = F::head(block, h);
                for (g, sums) in sums.iter_mut().enumerate() {
                    fetch(block, h * GROUPS + g, (F::BYTES, HALVES * GROUPS), AHEAD);
                    // Unrolled by hand, which makes every shift a constant.
                    let mut sum = *sums;
                    macro_rules! unrolled {
                        ($($sub:literal)*) => {$(
                            if $sub < F::SUBS {
                                let (w, f) = (F::weights(block, (h, g), $sub), F::factors(&head, g, $sub));
                                sum = step::<F>(&w, &f, a, b * F::SUBS + $sub, sum);
                            }
                        )*};
                    }
                    unrolled!(0 1 2 3 4 5 6 7);
                    *sums = sum;
                }
            }
        }
        let mut out = [0.0; ROWS];
        for (g, sums) in sums.into_iter().flatten().enumerate() {
            _mm256_storeu_ps(out.as_mut_ptr().add(g * GROUP), sums);
        }
        sink.put(0, &out);
    }
}

/// # Safety
/// As [`multiply`]; `rows` is within `a`, and at most [`CHUNK`] long.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn many<F: Nibbles>(tile: &[u8], a: &Activations, rows: std::ops::Range<usize>, sink: &mut Sink<'_, '_>) {
    let mut sums = Sums::<CHUNK>::ZERO;
    let count = rows.len();
    // SAFETY: as in `single`; `m` is below `count`, for which there are sums.
    unsafe {
        for (b, block) in tile.chunks_exact(F::BYTES).enumerate() {
            let block = block.as_ptr();
            for h in 0..HALVES {
                let head = F::head(block, h);
                for sub in 0..F::SUBS {
                    fetch(block, h * F::SUBS + sub, (F::BYTES, HALVES * F::SUBS), FAR);
                    let first = (b * F::SUBS + sub) * a.rows + rows.start;
                    for g in 0..GROUPS {
                        let (w, f) = (F::weights(block, (h, g), sub), F::factors(&head, g, sub));
                        for m in 0..count {
                            let at = sums.0.as_mut_ptr().cast::<f32>().add(m * ROWS + h * HALF + g * GROUP);
                            _mm256_storeu_ps(at, step::<F>(&w, &f, a, first + m, _mm256_loadu_ps(at)));
                        }
                    }
                }
            }
        }
    }
    for (m, sums) in sums.0[..count].iter().enumerate() {
        sink.put(rows.start + m, sums);
    }
}
