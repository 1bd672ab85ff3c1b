//! From products of queries and keys to weights, on AVX-512, for a panel of rows: part of `attention_avx512.rs`.
//!
//! A row is summed in the same order whatever rows are beside it: registers of rows are combined side by side.
#![allow(unsafe_code)]

use super::attention::Rule;
use super::attention_avx2::{CHUNK, RUN};
use super::math::{each, exp, tanh};
use std::arch::x86_64::*;

/// Query rows of a panel.
pub(super) const PANEL: usize = 4;

/// One row's scores, then weights, of a chunk.
pub(super) type Scores = [f32; CHUNK];

/// Of four registers, in every lane of four: that of the first, combined, then of the second, the third, the fourth.
macro_rules! combined {
    ($combine:ident, $four:expr) => {{
        let [a, b, c, d] = $four;
        let ab = _mm512_castps_pd($combine(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b)));
        let cd = _mm512_castps_pd($combine(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d)));
        let [low, high] = [_mm512_unpacklo_pd(ab, cd), _mm512_unpackhi_pd(ab, cd)];
        $combine(_mm512_castpd_ps(low), _mm512_castpd_ps(high))
    }};
}

/// The sums of 4 x 4 registers.
#[target_feature(enable = "avx512f")]
#[inline]
pub(super) fn totals(sums: &[[__m512; RUN]; PANEL]) -> __m512 {
    let [a, b, c, d]: [__m512; PANEL] = each!(_mm512_setzero_ps(), |m| combined!(_mm512_add_ps, sums[m]));
    lanes(lanes(a, b), lanes(c, d))
}

/// Neighbouring lanes added: two of `a`, then two of `b`.
#[target_feature(enable = "avx512f")]
#[inline]
fn lanes(a: __m512, b: __m512) -> __m512 {
    _mm512_add_ps(_mm512_shuffle_f32x4::<0x88>(a, b), _mm512_shuffle_f32x4::<0xdd>(a, b))
}

/// Lanes 8 to 15.
#[target_feature(enable = "avx512f")]
#[inline]
fn upper(all: __m512) -> __m256 {
    _mm256_castpd_ps(_mm512_extractf64x4_pd::<1>(_mm512_castps_pd(all)))
}

/// Turns the scores of `M` rows into weights, and brings their maxima and sums up to date. What earlier sums are
/// multiplied with is left in `factors`.
///
/// # Safety
/// There is AVX-512F.
#[target_feature(enable = "avx512f")]
#[inline]
pub(super) unsafe fn weigh<const M: usize>(
    rule: &Rule,
    scores: &mut [Scores; M],
    visible: &[(usize, usize); M],
    state: &mut [[f32; 2]],
    factors: &mut [f32; M],
) {
    let mut largest = [f32::NEG_INFINITY; PANEL];
    // SAFETY: 16 values each are read from 32, and written to them.
    unsafe {
        let mut tops = [_mm512_set1_ps(f32::NEG_INFINITY); PANEL];
        for ((scores, (low, high)), top) in scores.iter_mut().zip(visible).zip(&mut tops) {
            match rule.soft_cap {
                None => scores.iter_mut().for_each(|score| *score *= rule.scale),
                Some(cap) => scores.iter_mut().for_each(|score| *score = cap * tanh(*score * rule.scale / cap)),
            }
            let seen = ((1u64 << high) - (1 << low.min(high))) as u32;
            for (scores, seen) in scores.as_chunks_mut::<16>().0.iter_mut().zip([seen as u16, (seen >> 16) as u16]) {
                let unseen = _mm512_set1_ps(f32::NEG_INFINITY);
                let masked = _mm512_mask_loadu_ps(unseen, seen, scores.as_ptr());
                _mm512_storeu_ps(scores.as_mut_ptr(), masked);
                *top = _mm512_max_ps(*top, masked);
            }
        }
        let all = combined!(_mm512_max_ps, tops);
        let all = _mm256_max_ps(_mm512_castps512_ps256(all), upper(all));
        let all = _mm_max_ps(_mm256_castps256_ps128(all), _mm256_extractf128_ps::<1>(all));
        _mm_storeu_ps(largest.as_mut_ptr(), all);

        let mut shifts = [0.0; PANEL];
        for (((largest, shift), state), factor) in largest.iter_mut().zip(&mut shifts).zip(&*state).zip(&mut *factors) {
            *largest = largest.max(state[0]);
            // Nothing seen so far, or only minus infinities: weights are zero, but those of what is no number.
            *shift = if *largest == f32::NEG_INFINITY { 0.0 } else { *largest };
            *factor = exp(state[0] - *shift);
        }
        let mut sums = [_mm512_setzero_ps(); PANEL];
        for ((scores, shift), sum) in scores.iter_mut().zip(shifts).zip(&mut sums) {
            scores.iter_mut().for_each(|score| *score = exp(*score - shift));
            let [a, b] = [0, 16].map(|at| _mm512_loadu_ps(scores.as_ptr().add(at)));
            *sum = _mm512_add_ps(a, b);
        }
        let all = combined!(_mm512_add_ps, sums);
        let all = _mm256_add_ps(_mm512_castps512_ps256(all), upper(all));
        let all = _mm_add_ps(_mm256_castps256_ps128(all), _mm256_extractf128_ps::<1>(all));
        let mut sums = [0.0; PANEL];
        _mm_storeu_ps(sums.as_mut_ptr(), all);
        for (((state, largest), sum), factor) in state.iter_mut().zip(largest).zip(sums).zip(factors) {
            *state = [largest, state[1].mul_add(*factor, sum)];
        }
    }
}
