//! Strips of eight rows interleaved in vector registers: transposes of 8 x 8 pieces. What goes where, `interleave.rs` says.
#![allow(unsafe_code)]

use super::interleave::{GROUP, Strip};
use std::arch::x86_64::*;

/// Interleaves the pieces of 8 rows that [`Strip::together`] counts. The first row begins with `rows`, the others follow at
/// every `row_bytes`.
///
/// # Panics
/// When they are not within the rows, or within the tile, or there is no AVX2.
pub(super) fn interleave(rows: &[u8], row_bytes: usize, tile: &mut [u8], strip: &Strip) {
    let count = strip.together();
    if count == 0 {
        return;
    }
    assert!(is_x86_feature_detected!("avx2"));
    assert!(rows.len() >= (GROUP - 1) * row_bytes + strip.from + strip.unit * count);
    assert!(tile.len() >= strip.to + strip.stride * (count - 1) + GROUP * strip.unit);
    for i in (0..count).step_by(8) {
        // SAFETY: there is AVX2. Of each row 8 pieces are read and of the tile 8 x 8 pieces are written, `i + 7` the last
        // of them, which is within both.
        unsafe {
            let from = rows.as_ptr().add(strip.from + strip.unit * i);
            let to = tile.as_mut_ptr().add(strip.to + strip.stride * i);
            if strip.unit == 4 {
                words((from, row_bytes), (to, strip.stride));
            } else {
                halves((from, row_bytes), (to, strip.stride));
            }
        }
    }
}

/// 8 x 8 pieces of 4 bytes.
///
/// # Safety
/// There is AVX2; 32 bytes can be read at each of 8 rows, and written at each of 8 places.
#[target_feature(enable = "avx2")]
unsafe fn words((from, row_bytes): (*const u8, usize), (to, stride): (*mut u8, usize)) {
    // SAFETY: by the contract of this function.
    unsafe {
        let row = |i: usize| _mm256_loadu_si256(from.add(i * row_bytes).cast());
        let put = |i: usize, value| _mm256_storeu_si256(to.add(i * stride).cast(), value);
        // Pieces of pairs of rows, then of fours, within each half of a register.
        let pair = |i: usize| {
            let (a, b) = (row(2 * i), row(2 * i + 1));
            (_mm256_unpacklo_epi32(a, b), _mm256_unpackhi_epi32(a, b))
        };
        let four = |i: usize| {
            let ((a, b), (c, d)) = (pair(2 * i), pair(2 * i + 1));
            [
                _mm256_unpacklo_epi64(a, c),
                _mm256_unpackhi_epi64(a, c),
                _mm256_unpacklo_epi64(b, d),
                _mm256_unpackhi_epi64(b, d),
            ]
        };
        for (i, (low, high)) in four(0).into_iter().zip(four(1)).enumerate() {
            put(i, _mm256_permute2x128_si256::<0x20>(low, high));
            put(i + 4, _mm256_permute2x128_si256::<0x31>(low, high));
        }
    }
}

/// 8 x 8 pieces of 2 bytes.
///
/// # Safety
/// There is AVX2; 16 bytes can be read at each of 8 rows, and written at each of 8 places.
#[target_feature(enable = "avx2")]
unsafe fn halves((from, row_bytes): (*const u8, usize), (to, stride): (*mut u8, usize)) {
    // SAFETY: by the contract of this function.
    unsafe {
        let row = |i: usize| _mm_loadu_si128(from.add(i * row_bytes).cast());
        let put = |i: usize, value| _mm_storeu_si128(to.add(i * stride).cast(), value);
        let pair = |i: usize| {
            let (a, b) = (row(2 * i), row(2 * i + 1));
            (_mm_unpacklo_epi16(a, b), _mm_unpackhi_epi16(a, b))
        };
        // [0 1] [2 3] [4 5] [6 7] of rows 4 i .. 4 i + 4.
        let four = |i: usize| {
            let ((a, b), (c, d)) = (pair(2 * i), pair(2 * i + 1));
            [_mm_unpacklo_epi32(a, c), _mm_unpackhi_epi32(a, c), _mm_unpacklo_epi32(b, d), _mm_unpackhi_epi32(b, d)]
        };
        for (i, (low, high)) in four(0).into_iter().zip(four(1)).enumerate() {
            put(2 * i, _mm_unpacklo_epi64(low, high));
            put(2 * i + 1, _mm_unpackhi_epi64(low, high));
        }
    }
}
