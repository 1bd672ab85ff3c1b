//! Rows of activations to int8 on AVX2: bit for bit what `activations.rs` makes of them.
#![allow(unsafe_code)]

use super::activations::{Activations, BLOCK, TOGETHER, scale_and_inverse};
use super::packed::Path;
use std::arch::x86_64::*;

/// Quantises every block of `values` into `to`, whose vectors have their lengths; unless this machine has no AVX2.
pub(super) fn quantise_all(to: &mut Activations, values: &[f32]) -> bool {
    if Path::Auto.resolve() == Path::Scalar {
        return false;
    }
    let blocks = to.rows * to.cols / BLOCK;
    assert!(values.len() == blocks * BLOCK && to.quants.len() == blocks * BLOCK);
    assert!(to.scales.len() == blocks && to.sums.len() == blocks && to.halves.len() == blocks);
    // SAFETY: the machine has what is wanted, and everything has its length.
    unsafe { all(to, values) };
    true
}

/// # Safety
/// There is AVX2, FMA and F16C. The vectors of `to` have a place for each block of `values`.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn all(to: &mut Activations, values: &[f32]) {
    let (rows, cols) = (to.rows, to.cols);
    for first in (0..rows).step_by(TOGETHER) {
        for block in 0..cols / BLOCK {
            for row in first..rows.min(first + TOGETHER) {
                let at = block * rows + row;
                // SAFETY: block `block` of row `row`, there and here.
                unsafe {
                    let from = values.as_ptr().add(row * cols + block * BLOCK);
                    let (scale, halves) = quantise(from, to.quants.as_mut_ptr().add(at * BLOCK));
                    *to.scales.as_mut_ptr().add(at) = scale;
                    *to.sums.as_mut_ptr().add(at) = scale * f32::from(halves[0] + halves[1]);
                    *to.halves.as_mut_ptr().add(at) = halves;
                }
            }
        }
    }
}

/// One block: its scale, and the sums of its halves.
///
/// # Safety
/// As [`all`]; 32 values are read, and 32 quants written.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn quantise(from: *const f32, to: *mut i8) -> (f32, [i16; 2]) {
    // SAFETY: by the contract of this function.
    unsafe {
        let values = [0, 8, 16, 24].map(|at| _mm256_loadu_ps(from.add(at)));
        // As integers, magnitudes order like the floats they are, and NaN is above infinity.
        let [a, b, c, d] = values.map(|x| _mm256_and_si256(_mm256_castps_si256(x), _mm256_set1_epi32(0x7fff_ffff)));
        let eight = _mm256_max_epu32(_mm256_max_epu32(a, b), _mm256_max_epu32(c, d));
        let four = _mm_max_epu32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256::<1>(eight));
        let two = _mm_max_epu32(four, _mm_shuffle_epi32::<0b01_00_11_10>(four));
        let one = _mm_max_epu32(two, _mm_shuffle_epi32::<0b10_11_00_01>(two));
        let largest = f32::from_bits(_mm_cvtsi128_si32(one) as u32);
        let (scale, inverse) = scale_and_inverse(largest);
        // Where the block is not finite, zeros: infinity times zero would be no number.
        let finite = _mm256_castsi256_ps(_mm256_set1_epi32(-i32::from(largest.is_finite())));
        let [a, b, c, d] =
            values.map(|x| _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_and_ps(x, finite), _mm256_set1_ps(inverse))));
        // Packing goes by halves of a register: fours in the order 0 2 4 6 1 3 5 7.
        let packed = _mm256_packs_epi16(_mm256_packs_epi32(a, b), _mm256_packs_epi32(c, d));
        let quants = _mm256_permutevar8x32_epi32(packed, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
        _mm256_storeu_si256(to.cast(), quants);
        // Sums of twos, fours, and in each half of eights and sixteens.
        let twos = _mm256_maddubs_epi16(_mm256_set1_epi8(1), quants);
        let fours = _mm256_madd_epi16(twos, _mm256_set1_epi16(1));
        let eights = _mm256_add_epi32(fours, _mm256_shuffle_epi32::<0b10_11_00_01>(fours));
        let sums = _mm256_add_epi32(eights, _mm256_shuffle_epi32::<0b01_00_11_10>(eights));
        (scale, [_mm256_extract_epi32::<0>(sums) as i16, _mm256_extract_epi32::<4>(sums) as i16])
    }
}
