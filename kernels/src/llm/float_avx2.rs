//! Products with f32, f16 and bf16 weights on AVX2: weights are widened to f32 (exactly), products fused and added in
//! f32 from the first column to the last.
//!
//! One or two rows of activations stream through the tile, 32 sums of each in four registers. Of more, panels of up to
//! six rows pass against 16 weight rows: 12 registers of sums. The first panel leaves the columns that it widened in
//! the first-level cache, 64 at a time, for the others to pass.
#![allow(unsafe_code)]

use super::activations::{Activations, PANEL};
use super::interleave::ROWS;
use super::math::each;
use super::packed::{Sink, Sums};
use std::arch::x86_64::*;

/// Pairs of columns that are widened at a time: 8 KiB, beside which as many of 72 rows and their sums lie in the cache.
const DEPTH: usize = 32;
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
    /// Does it come out of memory?
    const COLD: bool = true;

    /// Column `odd` of the 8 rows of group `group`.
    ///
    /// # Safety
    /// There is AVX2 and F16C; `pair` is good for [`Float::BYTES`]; `group < 4` and `odd < 2`.
    unsafe fn load(pair: *const u8, group: usize, odd: usize) -> __m256;
}

pub(super) struct F32;
pub(super) struct F16;
pub(super) struct Bf16;

impl Float for F32 {
    const BYTES: usize = 256;

    #[inline(always)]
    unsafe fn load(pair: *const u8, group: usize, odd: usize) -> __m256 {
        // SAFETY: by the contract of the trait.
        unsafe { _mm256_loadu_ps(pair.add(128 * odd + 32 * group).cast()) }
    }
}

impl Float for Wide {
    const BYTES: usize = 256;
    const COLD: bool = false;

    #[inline(always)]
    unsafe fn load(pair: *const u8, group: usize, odd: usize) -> __m256 {
        // SAFETY: by the contract of the trait.
        unsafe { F32::load(pair, group, odd) }
    }
}

impl Float for F16 {
    const BYTES: usize = 128;

    #[inline(always)]
    unsafe fn load(pair: *const u8, group: usize, odd: usize) -> __m256 {
        // SAFETY: by the contract of the trait.
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(pair.add(64 * odd + 16 * group).cast())) }
    }
}

impl Float for Bf16 {
    const BYTES: usize = 128;

    #[inline(always)]
    unsafe fn load(pair: *const u8, group: usize, odd: usize) -> __m256 {
        // SAFETY: by the contract of the trait.
        unsafe {
            let both = _mm256_loadu_si256(pair.add(32 * group).cast());
            _mm256_castsi256_ps(match odd {
                0 => _mm256_slli_epi32::<16>(both),
                _ => _mm256_and_si256(both, _mm256_set1_epi32(0xffff_0000u32 as i32)),
            })
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
                let w = [F::load(pair.as_ptr(), g, 0), F::load(pair.as_ptr(), g, 1)];
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
struct Wide([f32; 2 * DEPTH * ROWS]);

/// # Safety
/// As [`multiply`]; `panels` is within `a`, and at most [`PANELS`] long.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn many<F: Float>(tile: &[u8], a: &Activations, panels: std::ops::Range<usize>, sink: &mut Sink<'_, '_>) {
    let mut sums = Sums::<{ PANELS * PANEL }>::ZERO;
    let mut wide = Wide([0.0; 2 * DEPTH * ROWS]);
    let first = a.panel(panels.start).0;
    for (part, bytes) in tile.chunks(DEPTH * F::BYTES).enumerate() {
        let (whole, rest) = (bytes.len() / F::BYTES, bytes.len() % F::BYTES);
        let last = padded(&bytes[bytes.len() - rest..]);
        let (odd, to) = (usize::from(rest > 0), wide.0.as_mut_ptr());
        // SAFETY: `bytes` are so many pairs of columns, of which there are as many activations: an odd column is copied
        // to a pair of which the second half is zero, as is the activation that pads an odd row. The first panel
        // leaves that many in `wide`. Panels lie within `a`, and there are sums for all of their rows.
        unsafe {
            for p in panels.clone() {
                let (row, width) = a.panel(p);
                let x = a.floats.as_ptr().add(row * a.padded_cols());
                let pass = Pass { x, width, sums: sums.0.as_mut_ptr().add(row - first) };
                if p > panels.start {
                    pass.run::<Wide, false>((to.cast(), to), (part * DEPTH, whole + odd));
                    continue;
                }
                for (from, at, pairs) in [(bytes.as_ptr(), 0, whole), (last.as_ptr(), whole, odd)] {
                    let at = ((from, to.wrapping_add(2 * ROWS * at)), (part * DEPTH + at, pairs));
                    match panels.len() {
                        1 => pass.run::<F, false>(at.0, at.1),
                        _ => pass.run::<F, true>(at.0, at.1),
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

/// A panel that passes against a tile.
struct Pass {
    /// Where its first column is.
    x: *const f32,
    /// Its rows.
    width: usize,
    /// Of each row.
    sums: *mut [f32; ROWS],
}

impl Pass {
    /// Adds the products with `pairs.1` pairs of columns from `pairs.0` on, which are at `from`. Widened, they are left
    /// at `to` where `KEEP` says so.
    ///
    /// # Safety
    /// There is AVX2, FMA and F16C; all of that is within bounds.
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn run<F: Float, const KEEP: bool>(&self, weights: (*const u8, *mut f32), pairs: (usize, usize)) {
        for half in 0..2 {
            // SAFETY: by the contract of this function.
            unsafe {
                match self.width {
                    1 => self.half::<F, KEEP, 1>(weights, pairs, half),
                    2 => self.half::<F, KEEP, 2>(weights, pairs, half),
                    3 => self.half::<F, KEEP, 3>(weights, pairs, half),
                    4 => self.half::<F, KEEP, 4>(weights, pairs, half),
                    5 => self.half::<F, KEEP, 5>(weights, pairs, half),
                    _ => self.half::<F, KEEP, 6>(weights, pairs, half),
                }
            }
        }
    }

    /// The same for 16 weight rows.
    ///
    /// # Safety
    /// As [`Pass::run`].
    #[inline(always)]
    unsafe fn half<F: Float, const KEEP: bool, const M: usize>(
        &self,
        (from, to): (*const u8, *mut f32),
        (start, pairs): (usize, usize),
        half: usize,
    ) {
        // SAFETY: by the contract of `run`.
        unsafe {
            let place = |m: usize, g: usize| self.sums.add(m).cast::<f32>().add(16 * half + 8 * g);
            let mut all: [[__m256; 2]; M] =
                each!([_mm256_setzero_ps(); 2], |m| each!(_mm256_setzero_ps(), |g| _mm256_loadu_ps(place(m, g))));
            let (mut pair, mut x, mut to) = (from, self.x.add(2 * start * M), to.wrapping_add(16 * half));
            for _ in 0..pairs {
                if F::COLD && half == 0 {
                    for line in 0..F::BYTES / 64 {
                        _mm_prefetch::<_MM_HINT_T1>(pair.wrapping_add(FAR + 64 * line).cast());
                    }
                }
                for odd in 0..2 {
                    let w: [__m256; 2] = each!(_mm256_setzero_ps(), |g| F::load(pair, 2 * half + g, odd));
                    if KEEP {
                        _mm256_store_ps(to, w[0]);
                        _mm256_store_ps(to.add(8), w[1]);
                        to = to.add(ROWS);
                    }
                    for (m, sums) in all.iter_mut().enumerate() {
                        let x = _mm256_broadcast_ss(&*x.add(odd * M + m));
                        *sums = each!(_mm256_setzero_ps(), |g| _mm256_fmadd_ps(w[g], x, sums[g]));
                    }
                }
                (pair, x) = (pair.add(F::BYTES), x.add(2 * M));
            }
            for (m, sums) in all.iter().enumerate() {
                _mm256_storeu_ps(place(m, 0), sums[0]);
                _mm256_storeu_ps(place(m, 1), sums[1]);
            }
        }
    }
}
