//! Products with f32, f16 and bf16 weights on AVX2: weights are widened to f32 (exactly), products fused and added in
//! f32 from the first column to the last.
//!
//! Up to three rows of activations stream through the tile, 32 sums of each in four registers. For more, 64 columns of the tile
//! are widened at a time into the first-level cache, and panels of up to six rows of activations pass against 16
//! weight rows: 12 registers of sums.
#![allow(unsafe_code)]

use super::activations::{Activations, PANEL};
use super::interleave::ROWS;
use super::math::each;
use super::packed::{Sink, Sums};
use std::arch::x86_64::*;

/// Columns that are widened at a time: 8 KiB, beside which as many of 72 rows and their sums lie in the cache.
const DEPTH: usize = 64;
/// Panels of activations that pass at a time; their sums are 9 KiB.
const PANELS: usize = 12;
/// How far ahead of what is widened memory is fetched, in bytes: rows pass meanwhile.
const FAR: usize = 16384;
/// How far ahead few rows fetch, in bytes.
const AHEAD: usize = 2048;

/// A floating-point format; two columns of a tile at a time.
pub(super) trait Float {
    /// Bytes of two columns of a tile.
    const BYTES: usize;
    /// Is a tile in memory as it would be after widening?
    const WIDE: bool;

    /// The even and the odd column of the 8 rows of group `group`.
    ///
    /// # Safety
    /// There is AVX2 and F16C; `pair` is good for [`Float::BYTES`]; `group < 4`.
    unsafe fn load(pair: *const u8, group: usize) -> [__m256; 2];
}

pub(super) struct F32;
pub(super) struct F16;
pub(super) struct Bf16;

impl Float for F32 {
    const BYTES: usize = 256;
    const WIDE: bool = true;

    #[inline(always)]
    unsafe fn load(pair: *const u8, group: usize) -> [__m256; 2] {
        // SAFETY: by the contract of the trait.
        unsafe { each!(_mm256_setzero_ps(), |odd| _mm256_loadu_ps(pair.add(128 * odd + 32 * group).cast())) }
    }
}

impl Float for F16 {
    const BYTES: usize = 128;
    const WIDE: bool = false;

    #[inline(always)]
    unsafe fn load(pair: *const u8, group: usize) -> [__m256; 2] {
        // SAFETY: by the contract of the trait.
        unsafe {
            each!(_mm256_setzero_ps(), |odd| _mm256_cvtph_ps(_mm_loadu_si128(pair.add(64 * odd + 16 * group).cast())))
        }
    }
}

impl Float for Bf16 {
    const BYTES: usize = 128;
    const WIDE: bool = false;

    #[inline(always)]
    unsafe fn load(pair: *const u8, group: usize) -> [__m256; 2] {
        // SAFETY: by the contract of the trait.
        unsafe {
            let both = _mm256_loadu_si256(pair.add(32 * group).cast());
            let odd = _mm256_and_si256(both, _mm256_set1_epi32(0xffff_0000u32 as i32));
            [_mm256_castsi256_ps(_mm256_slli_epi32::<16>(both)), _mm256_castsi256_ps(odd)]
        }
    }
}

/// One tile.
///
/// # Safety
/// There is AVX2, FMA and F16C. `tile` has as many columns as `a`, which is in f32 and has rows.
pub(super) unsafe fn multiply<F: Float>(tile: &[u8], a: &Activations, sink: &mut Sink<'_, '_>) {
    // SAFETY: by the contract of this function.
    unsafe {
        match a.rows {
            1 => few::<F, 1>(tile, a, sink),
            2 => few::<F, 2>(tile, a, sink),
            3 => few::<F, 3>(tile, a, sink),
            _ => {
                for first in (0..a.panels()).step_by(PANELS) {
                    many::<F>(tile, a, first..a.panels().min(first + PANELS), sink);
                }
            }
        }
    }
}

/// # Safety
/// As [`multiply`]; `a` has `M` rows, which are one panel.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn few<F: Float, const M: usize>(tile: &[u8], a: &Activations, sink: &mut Sink<'_, '_>) {
    let mut sums = [[_mm256_setzero_ps(); 4]; M];
    let pairs = tile.chunks_exact(F::BYTES);
    let last = padded(pairs.remainder());
    let last = (!pairs.remainder().is_empty()).then_some(&last[..]);
    // SAFETY: pairs of columns are whole, and there are as many activations; an odd column is copied to a whole pair
    // of which the second half is zero, as is the activation that pads an odd row.
    unsafe {
        for (i, pair) in pairs.chain(last).enumerate() {
            let x = a.floats.as_ptr().add(2 * i * M);
            for line in 0..F::BYTES / 64 {
                _mm_prefetch::<_MM_HINT_T0>(pair.as_ptr().wrapping_add(AHEAD + 64 * line).cast());
            }
            for g in 0..4 {
                let w = F::load(pair.as_ptr(), g);
                for (m, sums) in sums.iter_mut().enumerate() {
                    let even = _mm256_fmadd_ps(w[0], _mm256_broadcast_ss(&*x.add(m)), sums[g]);
                    sums[g] = _mm256_fmadd_ps(w[1], _mm256_broadcast_ss(&*x.add(M + m)), even);
                }
            }
        }
        for (m, sums) in sums.into_iter().enumerate() {
            let mut out = [0.0; ROWS];
            (0..4).for_each(|g| _mm256_storeu_ps(out.as_mut_ptr().add(8 * g), sums[g]));
            sink.put(m, &out);
        }
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
struct Wide([f32; DEPTH * ROWS]);

/// # Safety
/// As [`multiply`]; `panels` is within `a`, and at most [`PANELS`] long.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn many<F: Float>(tile: &[u8], a: &Activations, panels: std::ops::Range<usize>, sink: &mut Sink<'_, '_>) {
    let mut sums = Sums::<{ PANELS * PANEL }>::ZERO;
    let mut wide = Wide([0.0; DEPTH * ROWS]);
    let first = a.panel(panels.start).0;
    for (part, bytes) in tile.chunks(DEPTH / 2 * F::BYTES).enumerate() {
        let depth = if F::WIDE { bytes.len() / 128 } else { bytes.len() / 64 };
        // SAFETY: `bytes` are `depth` columns, of which there are as many activations; `widen` fills that many, and
        // one more where they are odd; panels lie within `a`, and there are sums for all of their rows.
        unsafe {
            let weights = if F::WIDE { bytes.as_ptr().cast() } else { widen::<F>(bytes, &mut wide) };
            for p in panels.clone() {
                let (row, width) = a.panel(p);
                let x = a.floats.as_ptr().add(row * a.padded_cols() + part * DEPTH * width);
                let sums = sums.0.as_mut_ptr().add(row - first).cast::<f32>();
                for half in 0..2 {
                    let (weights, sums) = (weights.add(16 * half), sums.add(16 * half));
                    match width {
                        1 => panel::<1>(weights, x, depth, sums),
                        2 => panel::<2>(weights, x, depth, sums),
                        3 => panel::<3>(weights, x, depth, sums),
                        4 => panel::<4>(weights, x, depth, sums),
                        5 => panel::<5>(weights, x, depth, sums),
                        _ => panel::<6>(weights, x, depth, sums),
                    }
                }
            }
        }
    }
    let (last, width) = a.panel(panels.end - 1);
    for (m, sums) in sums.0[..last + width - first].iter().enumerate() {
        sink.put(first + m, sums);
    }
}

/// Widens up to [`DEPTH`] columns.
///
/// # Safety
/// As [`Float::load`].
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn widen<F: Float>(bytes: &[u8], wide: &mut Wide) -> *const f32 {
    let pairs = bytes.chunks_exact(F::BYTES);
    let last = padded(pairs.remainder());
    let last = (!pairs.remainder().is_empty()).then_some(&last[..]);
    for (i, pair) in pairs.chain(last).enumerate() {
        for line in 0..F::BYTES / 64 {
            _mm_prefetch::<_MM_HINT_T1>(pair.as_ptr().wrapping_add(FAR + 64 * line).cast());
        }
        for g in 0..4 {
            // SAFETY: pairs are whole, and at most half of `DEPTH`.
            unsafe {
                let w = F::load(pair.as_ptr(), g);
                _mm256_store_ps(wide.0.as_mut_ptr().add(2 * ROWS * i + 8 * g), w[0]);
                _mm256_store_ps(wide.0.as_mut_ptr().add(2 * ROWS * i + ROWS + 8 * g), w[1]);
            }
        }
    }
    wide.0.as_ptr()
}

/// `depth` columns of `M` rows of activations (`[column][M]`) against 16 weight rows (columns 32 apart); `sums` are
/// `[M]`, 32 apart.
///
/// # Safety
/// There is AVX2 and FMA; all of that is within bounds.
#[inline(always)]
unsafe fn panel<const M: usize>(weights: *const f32, x: *const f32, depth: usize, sums: *mut f32) {
    // SAFETY: by the contract of this function.
    unsafe {
        let mut all: [[__m256; 2]; M] =
            each!([_mm256_setzero_ps(); 2], |m| each!(_mm256_setzero_ps(), |g| _mm256_loadu_ps(
                sums.add(m * ROWS + 8 * g)
            )));
        // Two columns at a time, of which the last may lack the second.
        for k in 0..depth / 2 {
            column(&mut all, weights.add(2 * k * ROWS), x.add(2 * k * M));
            column(&mut all, weights.add((2 * k + 1) * ROWS), x.add((2 * k + 1) * M));
        }
        if depth % 2 == 1 {
            column(&mut all, weights.add((depth - 1) * ROWS), x.add((depth - 1) * M));
        }
        for (m, all) in all.iter().enumerate() {
            _mm256_storeu_ps(sums.add(m * ROWS), all[0]);
            _mm256_storeu_ps(sums.add(m * ROWS + 8), all[1]);
        }
    }
}

/// One column.
///
/// # Safety
/// As [`panel`].
#[inline(always)]
unsafe fn column<const M: usize>(all: &mut [[__m256; 2]; M], weights: *const f32, x: *const f32) {
    // SAFETY: by the contract of `panel`.
    unsafe {
        let w = [_mm256_loadu_ps(weights), _mm256_loadu_ps(weights.add(8))];
        for (m, sums) in all.iter_mut().enumerate() {
            let x = _mm256_broadcast_ss(&*x.add(m));
            *sums = each!(_mm256_setzero_ps(), |g| _mm256_fmadd_ps(w[g], x, sums[g]));
        }
    }
}
