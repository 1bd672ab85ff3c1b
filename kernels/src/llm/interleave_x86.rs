//! Strips of rows interleaved in vector registers. A lane of 16 bytes has a piece of a row, the lanes of a register those of
//! rows that lie 4 apart, so that transposing 4 x 4 words in each lane puts words of all rows side by side. What goes where,
//! `interleave.rs` says.
#![allow(unsafe_code)]

use super::blocks::Format;
use super::interleave::{self, Strip, Weave};
use std::arch::x86_64::*;

/// [`interleave::pack`] by the best this machine has; `false` where it has none of it.
pub(super) fn pack(format: Format, rows: &[u8], row_bytes: usize, tile: &mut [u8]) -> bool {
    if is_x86_feature_detected!("avx512f") {
        // SAFETY: there is AVX-512 F.
        unsafe { pack_avx512(format, rows, row_bytes, tile) };
        return true;
    }
    if is_x86_feature_detected!("avx2") {
        // SAFETY: there is AVX2.
        unsafe { pack_avx2(format, rows, row_bytes, tile) };
        return true;
    }
    false
}

#[target_feature(enable = "avx512f")]
unsafe fn pack_avx512(format: Format, rows: &[u8], row_bytes: usize, tile: &mut [u8]) {
    interleave::pack_by::<Avx512>(format, rows, row_bytes, tile);
}

/// # Safety
/// There is AVX2.
#[target_feature(enable = "avx2")]
pub(super) unsafe fn pack_avx2(format: Format, rows: &[u8], row_bytes: usize, tile: &mut [u8]) {
    interleave::pack_by::<Avx2>(format, rows, row_bytes, tile);
}

/// Only within [`pack_avx512`].
struct Avx512;

/// Only within [`pack_avx2`].
struct Avx2;

impl Weave for Avx512 {
    const ROWS: usize = 16;

    #[inline(always)]
    fn weave<const UNIT: usize>(rows: &[u8], row_bytes: usize, tile: &mut [u8], strip: &Strip<UNIT>) {
        // SAFETY: there is AVX-512 F, and `weave` says what can be read and written.
        weave::<Self, UNIT>(rows, row_bytes, tile, strip, |from, to| unsafe {
            if UNIT == 4 {
                words_512(from, to);
            } else {
                halves(from, to);
                halves((from.0.add(8 * row_bytes), row_bytes), (to.0.add(16), to.1));
            }
        });
    }
}

impl Weave for Avx2 {
    const ROWS: usize = 8;

    #[inline(always)]
    fn weave<const UNIT: usize>(rows: &[u8], row_bytes: usize, tile: &mut [u8], strip: &Strip<UNIT>) {
        // SAFETY: there is AVX2, and `weave` says what can be read and written.
        weave::<Self, UNIT>(rows, row_bytes, tile, strip, |from, to| unsafe {
            if UNIT == 4 { words_256(from, to) } else { halves(from, to) }
        });
    }
}

/// Hands pieces that fill a lane to `together`, from the first on, and copies the others. `together` may read 16 bytes of
/// each row of the group, and write to as many places as there are pieces in a lane one piece of each.
///
/// # Panics
/// When the strip is not within the rows, or not within the tile.
#[inline(always)]
fn weave<W: Weave, const UNIT: usize>(
    rows: &[u8],
    row_bytes: usize,
    tile: &mut [u8],
    strip: &Strip<UNIT>,
    together: impl Fn((*const u8, usize), (*mut u8, usize)),
) {
    let Strip { count, stride, next, .. } = *strip;
    if count == 0 {
        return;
    }
    assert!(rows.len() >= (W::ROWS - 1) * row_bytes + strip.from + UNIT * count);
    assert!(tile.len() >= strip.to + stride * (count - 1) + (W::ROWS - 1) * next + UNIT);
    let lane = 16 / UNIT;
    let lanes = if UNIT == 1 || next != UNIT { 0 } else { count / lane * lane };
    // SAFETY: every piece is within the rows and the tile, which was checked of the last one.
    unsafe {
        let (from, to) = (rows.as_ptr().add(strip.from), tile.as_mut_ptr().add(strip.to));
        for i in (0..lanes).step_by(lane) {
            together((from.add(UNIT * i), row_bytes), (to.add(stride * i), stride));
        }
        for i in lanes..count {
            for row in 0..W::ROWS {
                let (from, to) = (from.add(row_bytes * row + UNIT * i), to.add(stride * i + next * row));
                std::ptr::copy_nonoverlapping(from, to, UNIT);
            }
        }
    }
}

/// 4 words of each of 16 rows.
///
/// # Safety
/// There is AVX-512 F; 16 bytes can be read at each of 16 rows, and 64 written at each of 4 places.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn words_512((from, row_bytes): (*const u8, usize), (to, stride): (*mut u8, usize)) {
    // SAFETY: by the contract of this function.
    unsafe {
        let row = |i: usize| _mm_loadu_si128(from.add(i * row_bytes).cast());
        let rows = |i: usize| {
            let first = _mm512_castsi128_si512(row(i));
            let two = _mm512_inserti32x4::<1>(first, row(i + 4));
            _mm512_inserti32x4::<3>(_mm512_inserti32x4::<2>(two, row(i + 8)), row(i + 12))
        };
        let put = |i: usize, value| _mm512_storeu_si512(to.add(i * stride).cast(), value);
        let (a, b, c, d) = (rows(0), rows(1), rows(2), rows(3));
        let (low, high) = (_mm512_unpacklo_epi32(a, b), _mm512_unpacklo_epi32(c, d));
        put(0, _mm512_unpacklo_epi64(low, high));
        put(1, _mm512_unpackhi_epi64(low, high));
        let (low, high) = (_mm512_unpackhi_epi32(a, b), _mm512_unpackhi_epi32(c, d));
        put(2, _mm512_unpacklo_epi64(low, high));
        put(3, _mm512_unpackhi_epi64(low, high));
    }
}

/// 4 words of each of 8 rows.
///
/// # Safety
/// There is AVX2; 16 bytes can be read at each of 8 rows, and 32 written at each of 4 places.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn words_256((from, row_bytes): (*const u8, usize), (to, stride): (*mut u8, usize)) {
    // SAFETY: by the contract of this function.
    unsafe {
        let row = |i: usize| _mm_loadu_si128(from.add(i * row_bytes).cast());
        let rows = |i: usize| _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(row(i)), row(i + 4));
        let put = |i: usize, value| _mm256_storeu_si256(to.add(i * stride).cast(), value);
        let (a, b, c, d) = (rows(0), rows(1), rows(2), rows(3));
        let (low, high) = (_mm256_unpacklo_epi32(a, b), _mm256_unpacklo_epi32(c, d));
        put(0, _mm256_unpacklo_epi64(low, high));
        put(1, _mm256_unpackhi_epi64(low, high));
        let (low, high) = (_mm256_unpackhi_epi32(a, b), _mm256_unpackhi_epi32(c, d));
        put(2, _mm256_unpacklo_epi64(low, high));
        put(3, _mm256_unpackhi_epi64(low, high));
    }
}

/// 8 halves of words of each of 8 rows.
///
/// # Safety
/// There is SSE2; 16 bytes can be read at each of 8 rows, and written at each of 8 places.
#[inline]
#[target_feature(enable = "sse2")]
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
