//! Products with Q8_0 weights on AVX2. `vpmaddubsw` wants one side unsigned: for up to three rows of activations, which
//! stream through the tile, magnitudes of weights are multiplied with activations that took the weights' signs (two
//! products are at most 2 x 128 x 127 = 32,512, so 16 bits hold them). More rows pass in panels of up to four against 16
//! weight rows, both sides widened to 16 bits once for all of them: `vpmaddwd` then needs one instruction less.
//!
//! Sums of 32 products are exact; they are scaled and added in f32.
#![allow(unsafe_code)]

use super::activations::{Activations, BLOCK};
use super::interleave::{GROUP, ROWS};
use super::math::each;
use super::packed::{Sink, Sums};
use std::arch::x86_64::*;

/// Bytes of a block of a tile: 32 scales, 8 words of 32 rows.
const BYTES: usize = 64 + 1024;
/// Words of a row in a block, and column pairs.
const WORDS: usize = BLOCK / 4;
const PAIRS: usize = BLOCK / 2;
/// Rows of activations that pass at a time; see `nibbles_avx2.rs`.
const CHUNK: usize = 64;
/// Rows of a panel: 4 rows x 2 registers of sums.
const PANEL: usize = 4;
/// How far ahead many rows fetch, in bytes.
const FAR: usize = 16384;
/// How far ahead few rows fetch, in bytes.
const AHEAD: usize = 4096;

/// One tile.
///
/// # Safety
/// There is AVX2, FMA and F16C. `tile` is whole blocks, as many as int8 blocks of `a`; `a` has rows.
pub(super) unsafe fn multiply(tile: &[u8], a: &Activations, sink: &mut Sink<'_, '_>) {
    debug_assert_eq!(tile.len() / BYTES, a.cols / BLOCK);
    // SAFETY: by the contract of this function.
    unsafe {
        match a.rows {
            1 => few::<1>(tile, a, sink),
            2 => few::<2>(tile, a, sink),
            3 => few::<3>(tile, a, sink),
            rows => (0..rows).step_by(CHUNK).for_each(|first| many(tile, a, first..rows.min(first + CHUNK), sink)),
        }
    }
}

/// Two activations of 16 bits, broadcast.
///
/// # Safety
/// As [`multiply`]; `at` is good for 4 bytes.
#[inline(always)]
unsafe fn pair(at: *const i16) -> __m256i {
    // SAFETY: by the contract of this function.
    unsafe { _mm256_set1_epi32(at.cast::<i32>().read_unaligned()) }
}

/// Adds scaled sums of integers.
///
/// # Safety
/// As [`multiply`].
#[inline(always)]
unsafe fn scaled(integers: __m256i, weight: __m256, activation: &f32, sums: __m256) -> __m256 {
    // SAFETY: by the contract of this function.
    unsafe {
        let scale = _mm256_mul_ps(weight, _mm256_broadcast_ss(activation));
        _mm256_fmadd_ps(_mm256_cvtepi32_ps(integers), scale, sums)
    }
}

/// # Safety
/// As [`multiply`]; `a` has `M` rows.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn few<const M: usize>(tile: &[u8], a: &Activations, sink: &mut Sink<'_, '_>) {
    let mut sums = [[_mm256_setzero_ps(); 4]; M];
    let ones = _mm256_set1_epi16(1);
    // SAFETY: `block` runs through whole blocks of the tile, as many as `a` has.
    unsafe {
        for (b, block) in tile.chunks_exact(BYTES).enumerate() {
            let (block, x) = (block.as_ptr(), a.quants.as_ptr().add(b * M * BLOCK));
            let mut integers = [[_mm256_setzero_si256(); 4]; M];
            for j in 0..WORDS {
                _mm_prefetch::<_MM_HINT_T0>(block.wrapping_add(128 * j + AHEAD).cast());
                _mm_prefetch::<_MM_HINT_T0>(block.wrapping_add(128 * j + 64 + AHEAD).cast());
                let x: [__m256i; M] = each!(_mm256_setzero_si256(), |m| {
                    _mm256_set1_epi32(x.add(m * BLOCK + 4 * j).cast::<i32>().read_unaligned())
                });
                for g in 0..4 {
                    let w = _mm256_loadu_si256(block.add(64 + 128 * j + 32 * g).cast());
                    let magnitudes = _mm256_abs_epi8(w);
                    for (integers, x) in integers.iter_mut().zip(x) {
                        let pairs = _mm256_maddubs_epi16(magnitudes, _mm256_sign_epi8(x, w));
                        integers[g] = _mm256_add_epi32(integers[g], _mm256_madd_epi16(pairs, ones));
                    }
                }
            }
            for g in 0..4 {
                let weight = _mm256_cvtph_ps(_mm_loadu_si128(block.add(16 * g).cast()));
                for m in 0..M {
                    sums[m][g] = scaled(integers[m][g], weight, &a.scales[b * M + m], sums[m][g]);
                }
            }
        }
        for (m, sums) in sums.into_iter().enumerate() {
            let mut out = [0.0; ROWS];
            (0..4).for_each(|g| _mm256_storeu_ps(out.as_mut_ptr().add(g * GROUP), sums[g]));
            sink.put(m, &out);
        }
    }
}

/// One block, widened: weights `[pair][32 rows][2]`, activations `[row][32]`.
#[repr(align(64))]
struct Wide {
    weights: [i16; PAIRS * 2 * ROWS],
    activations: [i16; CHUNK * BLOCK],
}

impl Wide {
    /// # Safety
    /// As [`multiply`]; `block` is a block of a tile, and `quants` good for `rows` x 32.
    #[inline(always)]
    unsafe fn fill(&mut self, block: *const u8, quants: *const i8, rows: usize) {
        // SAFETY: by the contract of this function; both arrays have the places that are written.
        unsafe {
            // The first and the second pair of each word, as the upper bytes of 16 bits.
            let lane = |a, b| {
                _mm_set_epi8(b + 13, -1, b + 12, -1, b + 9, -1, b + 8, -1, a + 5, -1, a + 4, -1, a + 1, -1, a, -1)
            };
            let masks = [0, 2].map(|at| _mm256_broadcastsi128_si256(lane(at, at)));
            for j in 0..WORDS {
                for g in 0..4 {
                    let w = _mm256_loadu_si256(block.add(64 + 128 * j + 32 * g).cast());
                    for (p, mask) in masks.into_iter().enumerate() {
                        let to = self.weights.as_mut_ptr().add(2 * ROWS * (2 * j + p) + 16 * g);
                        _mm256_store_si256(to.cast(), _mm256_srai_epi16::<8>(_mm256_shuffle_epi8(w, mask)));
                    }
                }
            }
            for i in 0..rows * 2 {
                let x = _mm256_cvtepi8_epi16(_mm_loadu_si128(quants.add(16 * i).cast()));
                _mm256_store_si256(self.activations.as_mut_ptr().add(16 * i).cast(), x);
            }
        }
    }
}

/// # Safety
/// As [`multiply`]; `rows` is within `a`, and at most [`CHUNK`] long.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn many(tile: &[u8], a: &Activations, rows: std::ops::Range<usize>, sink: &mut Sink<'_, '_>) {
    let mut sums = Sums::<CHUNK>::ZERO;
    let mut wide = Wide { weights: [0; _], activations: [0; _] };
    let count = rows.len();
    // SAFETY: as in `few`; panels end at `count`, for which there are sums.
    unsafe {
        for (b, block) in tile.chunks_exact(BYTES).enumerate() {
            for line in 0..BYTES / 64 {
                _mm_prefetch::<_MM_HINT_T1>(block.as_ptr().wrapping_add(FAR + 64 * line).cast());
            }
            let first = b * a.rows + rows.start;
            wide.fill(block.as_ptr(), a.quants.as_ptr().add(first * BLOCK), count);
            for half in 0..2 {
                let scale = |g: usize| {
                    let at = block.as_ptr().add(32 * half + 16 * g);
                    _mm256_cvtph_ps(_mm_loadu_si128(at.cast()))
                };
                let weights = Half { scales: [scale(0), scale(1)], wide: wide.weights.as_ptr().add(32 * half) };
                for m in (0..count).step_by(PANEL) {
                    let x = (wide.activations.as_ptr().add(m * BLOCK), a.scales.as_ptr().add(first + m));
                    let sums = sums.0.as_mut_ptr().cast::<f32>().add(m * ROWS + 16 * half);
                    match count - m {
                        1 => panel::<1>(&weights, x, sums),
                        2 => panel::<2>(&weights, x, sums),
                        3 => panel::<3>(&weights, x, sums),
                        _ => panel::<4>(&weights, x, sums),
                    }
                }
            }
        }
    }
    for (m, sums) in sums.0[..count].iter().enumerate() {
        sink.put(rows.start + m, sums);
    }
}

/// 16 weight rows of one block.
struct Half {
    scales: [__m256; 2],
    /// `[pair]` with 64 i16 from one to the next, of which 32 are these rows'.
    wide: *const i16,
}

/// `M` rows of widened activations and their scales against 16 weight rows; `sums` are `[M]`, 32 apart.
///
/// # Safety
/// As [`multiply`]; all of that is within bounds.
#[inline(always)]
unsafe fn panel<const M: usize>(weights: &Half, (x, scales): (*const i16, *const f32), sums: *mut f32) {
    // SAFETY: by the contract of this function.
    unsafe {
        let mut integers = [[_mm256_setzero_si256(); 2]; M];
        for p in 0..PAIRS {
            let w: [__m256i; 2] =
                each!(_mm256_setzero_si256(), |g| _mm256_load_si256(weights.wide.add(2 * ROWS * p + 16 * g).cast()));
            for (m, integers) in integers.iter_mut().enumerate() {
                let x = pair(x.add(m * BLOCK + 2 * p));
                for g in 0..2 {
                    integers[g] = _mm256_add_epi32(integers[g], _mm256_madd_epi16(w[g], x));
                }
            }
        }
        for (m, integers) in integers.into_iter().enumerate() {
            for (g, integers) in integers.into_iter().enumerate() {
                let to = sums.add(m * ROWS + GROUP * g);
                _mm256_storeu_ps(to, scaled(integers, weights.scales[g], &*scales.add(m), _mm256_loadu_ps(to)));
            }
        }
    }
}
