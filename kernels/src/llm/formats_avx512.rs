//! How each quantised format is unpacked to unsigned bytes on AVX-512, and what its sums are scaled with: the parts that
//! `vnni_avx512.rs` puts together. Layouts are those of `interleave.rs`.
#![allow(unsafe_code)]

use super::interleave::{
    HALF, K_SCALE_BYTES, K_SCALES, Q4_K_HALF, Q4_K_WORDS, Q5_K_HALF, Q5_K_HIGH, Q5_K_HIGH_BYTES, Q6_K_HALF,
    Q6_K_HALVES, Q6_K_PART, Q6_K_PART_WORDS, Q6_K_SCALES,
};
use super::vnni_avx512::{Factors, Words};
use std::arch::x86_64::*;

pub(super) struct Q8_0;
pub(super) struct Q4_0;
pub(super) struct Q4K;
pub(super) struct Q5K;
pub(super) struct Q6K;

/// Sixteen f16 as f32.
///
/// # Safety
/// There is AVX-512; `at` is good for 32 bytes. (The other functions of this file: as [`Words`].)
#[inline(always)]
unsafe fn f16(at: *const u8) -> __m512 {
    // SAFETY: by the contract of this function.
    unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(at.cast())) }
}

/// Bits `from` and up of 64 bytes, moved to bit `to`, where `mask` keeps them. A rotation: what it carries over to other
/// bytes is masked.
#[inline(always)]
unsafe fn bits(at: *const u8, (from, to): (usize, usize), mask: i8) -> __m512i {
    // SAFETY: by the contract of this function.
    unsafe {
        let count = _mm512_set1_epi32((32 + from as i32 - to as i32) % 32);
        _mm512_and_si512(_mm512_rorv_epi32(_mm512_loadu_si512(at.cast()), count), _mm512_set1_epi8(mask))
    }
}

impl Words for Q8_0 {
    const PIECES: usize = 1;
    const WORDS: usize = 8;
    const BYTES: usize = 32 * 34;
    const OFFSET: i16 = 128;
    const MINS: bool = false;
    type Head = __m512;

    #[inline(always)]
    unsafe fn head(block: *const u8, half: usize) -> __m512 {
        // SAFETY: by the contract of the trait.
        unsafe { f16(block.add(32 * half)) }
    }

    #[inline(always)]
    unsafe fn word(block: *const u8, half: usize, _: usize, j: usize) -> __m512i {
        // SAFETY: by the contract of the trait.
        unsafe {
            // 128 more, which makes them unsigned, is another highest bit.
            let word = _mm512_loadu_si512(block.add(64 + 64 * half + 128 * j).cast());
            _mm512_xor_si512(word, _mm512_set1_epi8(-128))
        }
    }

    #[inline(always)]
    unsafe fn factors(head: &__m512, _: usize) -> Factors {
        // SAFETY: by the contract of the trait.
        unsafe { Factors::new(*head, *head) }
    }
}

impl Words for Q4_0 {
    const PIECES: usize = 1;
    const WORDS: usize = 8;
    const BYTES: usize = 32 * 18;
    const OFFSET: i16 = 8;
    const MINS: bool = false;
    type Head = __m512;

    #[inline(always)]
    unsafe fn head(block: *const u8, half: usize) -> __m512 {
        // SAFETY: by the contract of the trait.
        unsafe { f16(block.add(32 * half)) }
    }

    #[inline(always)]
    unsafe fn word(block: *const u8, half: usize, _: usize, j: usize) -> __m512i {
        // SAFETY: by the contract of the trait.
        unsafe { bits(block.add(64 + 256 * half + 64 * (j % 4)), (j / 4 * 4, 0), 15) }
    }

    #[inline(always)]
    unsafe fn factors(head: &__m512, _: usize) -> Factors {
        // SAFETY: by the contract of the trait.
        unsafe { Factors::new(*head, *head) }
    }
}

/// Scales and minima of a half of Q4_K or Q5_K.
#[derive(Clone, Copy)]
pub(super) struct Scales {
    d: __m512,
    dmin: __m512,
    /// 6-bit scales, `[piece][row]`: sub-blocks 0 to 4, and the others.
    scales: [__m512i; 2],
    mins: [__m512i; 2],
}

impl Scales {
    #[inline(always)]
    unsafe fn new(block: *const u8, half: usize) -> Scales {
        // SAFETY: by the contract of the trait: 192 bytes are read.
        unsafe {
            let at = block.add(K_SCALES + K_SCALE_BYTES * half);
            let part = |i: usize| _mm512_loadu_si512(at.add(64 * i).cast());
            let (low, minima, high) = (part(0), part(1), part(2));
            let (four, two) = (_mm512_set1_epi8(15), _mm512_set1_epi8(0x30));
            let join = |low, high| _mm512_or_si512(_mm512_and_si512(low, four), _mm512_and_si512(high, two));
            let scales = [
                join(low, _mm512_slli_epi16::<4>(high)),
                join(_mm512_srli_epi16::<4>(low), _mm512_slli_epi16::<2>(high)),
            ];
            let mins = [join(minima, high), join(_mm512_srli_epi16::<4>(minima), _mm512_srli_epi16::<2>(high))];
            Scales { d: f16(block.add(2 * HALF * half)), dmin: f16(block.add(64 + 2 * HALF * half)), scales, mins }
        }
    }

    #[inline(always)]
    unsafe fn factors(&self, d: __m512, piece: usize) -> Factors {
        // SAFETY: by the contract of the trait: 16 bytes of 128.
        unsafe {
            let wide = |all: &[__m512i; 2]| {
                let bytes = _mm_loadu_si128(all.as_ptr().cast::<u8>().add(16 * piece).cast());
                _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(bytes))
            };
            Factors::new(_mm512_mul_ps(d, wide(&self.scales)), _mm512_mul_ps(self.dmin, wide(&self.mins)))
        }
    }
}

impl Words for Q4K {
    const PIECES: usize = 8;
    const WORDS: usize = 8;
    const BYTES: usize = 32 * 144;
    const OFFSET: i16 = 0;
    const MINS: bool = true;
    type Head = Scales;

    #[inline(always)]
    unsafe fn head(block: *const u8, half: usize) -> Scales {
        // SAFETY: by the contract of the trait.
        unsafe { Scales::new(block, half) }
    }

    #[inline(always)]
    unsafe fn word(block: *const u8, half: usize, piece: usize, j: usize) -> __m512i {
        // SAFETY: by the contract of the trait.
        unsafe {
            // High nibbles stay where they are, which makes them 16 times as large: `factors` knows.
            let mask = _mm512_set1_epi8(if piece.is_multiple_of(2) { 0x0f } else { -0x10 });
            let word = block.add(Q4_K_WORDS + Q4_K_HALF * half + 512 * (piece / 2) + 64 * j);
            _mm512_and_si512(_mm512_loadu_si512(word.cast()), mask)
        }
    }

    #[inline(always)]
    unsafe fn factors(head: &Scales, piece: usize) -> Factors {
        // SAFETY: by the contract of the trait.
        unsafe {
            let sixteenth = _mm512_mul_ps(head.d, _mm512_set1_ps(1.0 / 16.0));
            head.factors(if piece.is_multiple_of(2) { head.d } else { sixteenth }, piece)
        }
    }
}

impl Words for Q5K {
    const PIECES: usize = 8;
    const WORDS: usize = 8;
    const BYTES: usize = 32 * 176;
    const OFFSET: i16 = 0;
    const MINS: bool = true;
    type Head = Scales;

    #[inline(always)]
    unsafe fn head(block: *const u8, half: usize) -> Scales {
        // SAFETY: by the contract of the trait.
        unsafe { Scales::new(block, half) }
    }

    #[inline(always)]
    unsafe fn word(block: *const u8, half: usize, piece: usize, j: usize) -> __m512i {
        // SAFETY: by the contract of the trait.
        unsafe {
            let at = block.add(Q5_K_HIGH + Q5_K_HALF * half + 64 * j);
            let low = bits(at.add(Q5_K_HIGH_BYTES + 512 * (piece / 2)), (piece % 2 * 4, 0), 15);
            _mm512_or_si512(low, bits(at, (piece, 4), 16))
        }
    }

    #[inline(always)]
    unsafe fn factors(head: &Scales, piece: usize) -> Factors {
        // SAFETY: by the contract of the trait.
        unsafe { head.factors(head.d, piece) }
    }
}

impl Words for Q6K {
    const PIECES: usize = 16;
    const WORDS: usize = 4;
    const BYTES: usize = 32 * 210;
    const OFFSET: i16 = 32;
    const MINS: bool = false;
    /// The scales of the block, and where those of sub-blocks are.
    type Head = (__m512, *const u8);

    #[inline(always)]
    unsafe fn head(block: *const u8, half: usize) -> (__m512, *const u8) {
        // SAFETY: by the contract of the trait.
        unsafe { (f16(block.add(2 * HALF * half)), block.add(Q6_K_HALVES + Q6_K_HALF * half)) }
    }

    #[inline(always)]
    unsafe fn word(block: *const u8, half: usize, piece: usize, j: usize) -> __m512i {
        // Four times 32 columns of each of two parts.
        let (n, t, j) = (piece / 8, piece / 2 % 4, piece % 2 * 4 + j);
        // SAFETY: by the contract of the trait.
        unsafe {
            let at = block.add(Q6_K_HALVES + Q6_K_HALF * half + Q6_K_SCALES + Q6_K_PART * n + 64 * j);
            let low = bits(at.add(512 * (t % 2)), (t / 2 * 4, 0), 15);
            _mm512_or_si512(low, bits(at.add(Q6_K_PART_WORDS), (2 * t, 4), 0x30))
        }
    }

    #[inline(always)]
    unsafe fn factors(head: &(__m512, *const u8), piece: usize) -> Factors {
        // SAFETY: by the contract of the trait: the scales of 16 rows.
        unsafe {
            let scales = _mm512_cvtepi8_epi32(_mm_loadu_si128(head.1.add(16 * piece).cast()));
            Factors::new(_mm512_mul_ps(head.0, _mm512_cvtepi32_ps(scales)), head.0)
        }
    }
}
