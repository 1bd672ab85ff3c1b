//! How each format of 4 to 6 bits is unpacked and summed on AVX2: the parts that `nibbles_avx2.rs` puts together.
//! Layouts are those of `interleave.rs`.
//!
//! No 16-bit sum overflows: `vpmaddubsw` adds two products; 8 of them stay below 2^15 for weights up to 15
//! (8 x 2 x 15 x 127 = 30,480), 4 for weights up to 31 (31,496), 2 for weights up to 63 (32,004).
#![allow(unsafe_code)]

use super::interleave::{
    K_SCALE_BYTES, K_SCALES, Q4_K_HALF, Q4_K_WORDS, Q5_K_HALF, Q5_K_HIGH, Q5_K_HIGH_BYTES, Q6_K_HALF, Q6_K_HALVES,
    Q6_K_PART, Q6_K_PART_WORDS, Q6_K_SCALES,
};
use super::math::each;
use super::nibbles_avx2::{Factors, Nibbles};
use std::arch::x86_64::*;

pub(super) struct Q4_0;
pub(super) struct Q4K;
pub(super) struct Q5K;
pub(super) struct Q6K;

/// Eight halves as f32.
///
/// # Safety
/// There is F16C; `at` is good for 16 bytes. (The other functions of this file: as [`Nibbles`].)
#[inline(always)]
unsafe fn halves(at: *const u8) -> __m256 {
    // SAFETY: by the contract of this function.
    unsafe { _mm256_cvtph_ps(_mm_loadu_si128(at.cast())) }
}

/// Bits `from` and up of the bytes of 8 registers, 64 bytes from one to the next, moved to bit `to`, where `mask` keeps
/// them. With constants, as in an unrolled loop, a shift is one instruction or none.
#[inline(always)]
unsafe fn bits(at: *const u8, (from, to): (usize, usize), mask: i8) -> [__m256i; 8] {
    // SAFETY: by the contract of this function: 480 bytes.
    unsafe {
        let mask = _mm256_set1_epi8(mask);
        let count = _mm_cvtsi32_si128(from.abs_diff(to) as i32);
        each!(_mm256_setzero_si256(), |j| {
            let word = _mm256_loadu_si256(at.add(64 * j).cast());
            let word = if from >= to { _mm256_srl_epi16(word, count) } else { _mm256_sll_epi16(word, count) };
            _mm256_and_si256(word, mask)
        })
    }
}

/// `low | high`.
#[inline(always)]
unsafe fn join(low: [__m256i; 8], high: [__m256i; 8]) -> [__m256i; 8] {
    // SAFETY: by the contract of this function.
    unsafe { each!(_mm256_setzero_si256(), |j| _mm256_or_si256(low[j], high[j])) }
}

/// i16: the products of register `j` with columns 4 j .. 4 j + 4, added in pairs.
#[inline(always)]
unsafe fn product(weights: &[__m256i; 8], quants: *const i8, j: usize) -> __m256i {
    // SAFETY: by the contract of this function.
    unsafe {
        let a = _mm256_set1_epi32(quants.add(4 * j).cast::<i32>().read_unaligned());
        _mm256_maddubs_epi16(weights[j], a)
    }
}

/// i16: the sum of four registers' products.
#[inline(always)]
unsafe fn four(weights: &[__m256i; 8], quants: *const i8, first: usize) -> __m256i {
    // SAFETY: by the contract of this function.
    unsafe {
        let low = _mm256_add_epi16(product(weights, quants, first), product(weights, quants, first + 1));
        let high = _mm256_add_epi16(product(weights, quants, first + 2), product(weights, quants, first + 3));
        _mm256_add_epi16(low, high)
    }
}

impl Nibbles for Q4_0 {
    const SUBS: usize = 1;
    const BYTES: usize = 32 * 18;
    const MINS: bool = false;
    type Head = [__m256; 2];

    #[inline(always)]
    unsafe fn head(block: *const u8, half: usize) -> [__m256; 2] {
        // SAFETY: by the contract of the trait.
        unsafe { [halves(block.add(32 * half)), halves(block.add(32 * half + 16))] }
    }

    #[inline(always)]
    unsafe fn weights(block: *const u8, (half, group): (usize, usize), _: usize) -> [__m256i; 8] {
        // SAFETY: by the contract of the trait.
        unsafe {
            let mask = _mm256_set1_epi8(15);
            let at = block.add(64 + 256 * half + 32 * group);
            let words: [__m256i; 4] = each!(_mm256_setzero_si256(), |j| _mm256_loadu_si256(at.add(64 * j).cast()));
            each!(_mm256_setzero_si256(), |j| match j {
                0..4 => _mm256_and_si256(words[j], mask),
                _ => _mm256_and_si256(_mm256_srli_epi16::<4>(words[j - 4]), mask),
            })
        }
    }

    #[inline(always)]
    unsafe fn factors(head: &[__m256; 2], group: usize, _: usize) -> Factors {
        // SAFETY: by the contract of the trait.
        unsafe {
            let ints = [_mm256_set1_epi16(1), _mm256_set1_epi16(-8), _mm256_setzero_si256()];
            Factors { scale: head[group], min: head[group], ints }
        }
    }

    #[inline(always)]
    unsafe fn dot(weights: &[__m256i; 8], factors: &Factors, quants: *const i8, halves: i32) -> __m256i {
        // SAFETY: by the contract of the trait.
        unsafe {
            let sum = _mm256_add_epi16(four(weights, quants, 0), four(weights, quants, 4));
            let offset = _mm256_madd_epi16(_mm256_set1_epi32(halves), factors.ints[1]);
            _mm256_add_epi32(_mm256_madd_epi16(sum, factors.ints[0]), offset)
        }
    }
}

/// Scales and minima of a half of Q4_K or Q5_K.
#[derive(Clone, Copy)]
pub(super) struct Scales {
    d: [__m256; 2],
    dmin: [__m256; 2],
    /// 6-bit scales, `[sub][group]` of 8 rows.
    scales: [[u64; 2]; 8],
    mins: [[u64; 2]; 8],
}

impl Scales {
    #[inline(always)]
    unsafe fn new(block: *const u8, half: usize) -> Scales {
        let (mut scales, mut mins) = ([[0; 2]; 8], [[0; 2]; 8]);
        // SAFETY: by the contract of the trait: 192 bytes are read; 32 bytes at each quarter of the arrays are written.
        unsafe {
            let at = block.add(K_SCALES + K_SCALE_BYTES * half);
            let (four, two) = (_mm256_set1_epi8(15), _mm256_set1_epi8(0x30));
            let nibble = |x| _mm256_and_si256(x, four);
            let upper = |x| _mm256_and_si256(x, two);
            let store = |to: *mut [u64; 2], low, high| _mm256_storeu_si256(to.cast(), _mm256_or_si256(low, high));
            // Sub-blocks i, i + 1 and, in the high nibbles, i + 4, i + 5.
            for i in [0, 2] {
                let part = |from: usize| _mm256_loadu_si256(at.add(from + 16 * i).cast());
                let (low, minima, high) = (part(0), part(64), part(128));
                let (low4, minima4) = (_mm256_srli_epi16::<4>(low), _mm256_srli_epi16::<4>(minima));
                store(scales.as_mut_ptr().add(i), nibble(low), upper(_mm256_slli_epi16::<4>(high)));
                store(scales.as_mut_ptr().add(i + 4), nibble(low4), upper(_mm256_slli_epi16::<2>(high)));
                store(mins.as_mut_ptr().add(i), nibble(minima), upper(high));
                store(mins.as_mut_ptr().add(i + 4), nibble(minima4), upper(_mm256_srli_epi16::<2>(high)));
            }
            let f16 = |from: usize| [halves(block.add(from + 32 * half)), halves(block.add(from + 32 * half + 16))];
            Scales { d: f16(0), dmin: f16(64), scales, mins }
        }
    }

    #[inline(always)]
    unsafe fn factors(&self, group: usize, sub: usize) -> Factors {
        // SAFETY: by the contract of the trait.
        unsafe {
            let wide = |bytes: &u64| {
                _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(std::ptr::from_ref(bytes).cast())))
            };
            Factors {
                scale: _mm256_mul_ps(self.d[group], wide(&self.scales[sub][group])),
                min: _mm256_mul_ps(self.dmin[group], wide(&self.mins[sub][group])),
                ints: [_mm256_set1_epi16(1); 3],
            }
        }
    }
}

impl Nibbles for Q4K {
    const SUBS: usize = 8;
    const BYTES: usize = 32 * 144;
    const MINS: bool = true;
    type Head = Scales;

    #[inline(always)]
    unsafe fn head(block: *const u8, half: usize) -> Scales {
        // SAFETY: by the contract of the trait.
        unsafe { Scales::new(block, half) }
    }

    #[inline(always)]
    unsafe fn weights(block: *const u8, (half, group): (usize, usize), sub: usize) -> [__m256i; 8] {
        // SAFETY: by the contract of the trait.
        unsafe { bits(block.add(Q4_K_WORDS + Q4_K_HALF * half + 32 * group + 512 * (sub / 2)), (sub % 2 * 4, 0), 15) }
    }

    #[inline(always)]
    unsafe fn factors(head: &Scales, group: usize, sub: usize) -> Factors {
        // SAFETY: by the contract of the trait.
        unsafe { head.factors(group, sub) }
    }

    #[inline(always)]
    unsafe fn dot(weights: &[__m256i; 8], factors: &Factors, quants: *const i8, _: i32) -> __m256i {
        // SAFETY: by the contract of the trait.
        unsafe {
            let sum = _mm256_add_epi16(four(weights, quants, 0), four(weights, quants, 4));
            _mm256_madd_epi16(sum, factors.ints[0])
        }
    }
}

impl Nibbles for Q5K {
    const SUBS: usize = 8;
    const BYTES: usize = 32 * 176;
    const MINS: bool = true;
    type Head = Scales;

    #[inline(always)]
    unsafe fn head(block: *const u8, half: usize) -> Scales {
        // SAFETY: by the contract of the trait.
        unsafe { Scales::new(block, half) }
    }

    #[inline(always)]
    unsafe fn weights(block: *const u8, (half, group): (usize, usize), sub: usize) -> [__m256i; 8] {
        // SAFETY: by the contract of the trait.
        unsafe {
            let at = block.add(Q5_K_HIGH + Q5_K_HALF * half + 32 * group);
            let low = bits(at.add(Q5_K_HIGH_BYTES + 512 * (sub / 2)), (sub % 2 * 4, 0), 15);
            join(low, bits(at, (sub, 4), 16))
        }
    }

    #[inline(always)]
    unsafe fn factors(head: &Scales, group: usize, sub: usize) -> Factors {
        // SAFETY: by the contract of the trait.
        unsafe { head.factors(group, sub) }
    }

    #[inline(always)]
    unsafe fn dot(weights: &[__m256i; 8], factors: &Factors, quants: *const i8, _: i32) -> __m256i {
        // SAFETY: by the contract of the trait.
        unsafe {
            let ones = factors.ints[0];
            let low = _mm256_madd_epi16(four(weights, quants, 0), ones);
            _mm256_add_epi32(low, _mm256_madd_epi16(four(weights, quants, 4), ones))
        }
    }
}

impl Nibbles for Q6K {
    const SUBS: usize = 8;
    const BYTES: usize = 32 * 210;
    const MINS: bool = false;
    /// The scales of the block, and those of sub-blocks.
    type Head = ([__m256; 2], *const u8);

    #[inline(always)]
    unsafe fn head(block: *const u8, half: usize) -> ([__m256; 2], *const u8) {
        // SAFETY: by the contract of the trait.
        unsafe {
            let scales = [halves(block.add(32 * half)), halves(block.add(32 * half + 16))];
            (scales, block.add(Q6_K_HALVES + Q6_K_HALF * half))
        }
    }

    #[inline(always)]
    unsafe fn weights(block: *const u8, (half, group): (usize, usize), sub: usize) -> [__m256i; 8] {
        let (n, t) = (sub / 4, sub % 4);
        // SAFETY: by the contract of the trait.
        unsafe {
            let at = block.add(Q6_K_HALVES + Q6_K_HALF * half + Q6_K_SCALES + Q6_K_PART * n + 32 * group);
            let low = bits(at.add(512 * (t % 2)), (t / 2 * 4, 0), 15);
            join(low, bits(at.add(Q6_K_PART_WORDS), (2 * t, 4), 0x30))
        }
    }

    #[inline(always)]
    unsafe fn factors(head: &([__m256; 2], *const u8), group: usize, sub: usize) -> Factors {
        // SAFETY: by the contract of the trait: 8 and 8 bytes, scales of columns 0..16 and 16..32 of 8 rows.
        unsafe {
            let wide = |at: *const u8| _mm256_cvtepi8_epi32(_mm_loadl_epi64(at.cast()));
            let (low, high) = (wide(head.1.add(32 * sub + 8 * group)), wide(head.1.add(32 * sub + 16 + 8 * group)));
            let pair = |low, high| _mm256_blend_epi16::<0xaa>(low, _mm256_slli_epi32::<16>(high));
            let offset = _mm256_sub_epi16(_mm256_setzero_si256(), _mm256_slli_epi16::<5>(pair(low, high)));
            Factors { scale: head.0[group], min: head.0[group], ints: [pair(low, low), pair(high, high), offset] }
        }
    }

    #[inline(always)]
    unsafe fn dot(weights: &[__m256i; 8], factors: &Factors, quants: *const i8, halves: i32) -> __m256i {
        // SAFETY: by the contract of the trait.
        unsafe {
            let two = |j, scale| {
                let sum = _mm256_add_epi16(product(weights, quants, j), product(weights, quants, j + 1));
                _mm256_madd_epi16(sum, scale)
            };
            let low = _mm256_add_epi32(two(0, factors.ints[0]), two(2, factors.ints[0]));
            let high = _mm256_add_epi32(two(4, factors.ints[1]), two(6, factors.ints[1]));
            let offset = _mm256_madd_epi16(_mm256_set1_epi32(halves), factors.ints[2]);
            _mm256_add_epi32(_mm256_add_epi32(low, high), offset)
        }
    }
}
