//! The threshold search on AVX2.
#![allow(unsafe_code)]

use super::columns::Columns;
use super::model::Real;
use super::search::{CHUNK, Lookup, ROWS, Request, Special, WIDTH, ranks};
use std::arch::x86_64::*;

/// Does this machine have what the kernels of this file use?
pub(super) fn available() -> bool {
    is_x86_feature_detected!("avx2") && is_x86_feature_detected!("popcnt")
}

ranks!("avx2,popcnt", f32, count_f32, rank_f32, search_f32, row_f32, special_f32, _mm256_set1_ps);
ranks!("avx2,popcnt", f64, count_f64, rank_f64, search_f64, row_f64, special_f64, _mm256_set1_pd);

/// How many of 16 thresholds the value in every lane of `x` lies right of.
///
/// # Safety
/// `table` is good for 16 values.
#[target_feature(enable = "avx2,popcnt")]
#[inline]
unsafe fn count_f32<const EQUAL: bool>(table: *const f32, x: __m256) -> u32 {
    let right = [0, 8].map(|at| {
        // SAFETY: by the contract of this function.
        let t = unsafe { _mm256_loadu_ps(table.add(at)) };
        let right = if EQUAL { _mm256_cmp_ps::<_CMP_GE_OQ>(x, t) } else { _mm256_cmp_ps::<_CMP_GT_OQ>(x, t) };
        _mm256_movemask_ps(right) as u32
    });
    (right[0] | right[1] << 8).count_ones()
}

/// As [`count_f32`].
///
/// # Safety
/// `table` is good for 16 values.
#[target_feature(enable = "avx2,popcnt")]
#[inline]
unsafe fn count_f64<const EQUAL: bool>(table: *const f64, x: __m256d) -> u32 {
    let right = [0, 4, 8, 12].map(|at| {
        // SAFETY: by the contract of this function.
        let t = unsafe { _mm256_loadu_pd(table.add(at)) };
        let right = if EQUAL { _mm256_cmp_pd::<_CMP_GE_OQ>(x, t) } else { _mm256_cmp_pd::<_CMP_GT_OQ>(x, t) };
        _mm256_movemask_pd(right) as u32
    });
    (right[0] | right[1] << 4 | right[2] << 8 | right[3] << 12).count_ones()
}

#[target_feature(enable = "avx2")]
#[inline]
fn special_f32(request: &Request<'_, f32>) -> Special {
    let mut special = Special { nan: 0, tiny: 0 };
    for (part, values) in request.values.chunks_exact(8).enumerate() {
        // SAFETY: 8 values are read from 8.
        let x = unsafe { _mm256_loadu_ps(values.as_ptr()) };
        special.nan |= (_mm256_movemask_ps(_mm256_cmp_ps::<_CMP_UNORD_Q>(x, x)) as u64) << (8 * part);
        if request.zeros {
            let magnitude = _mm256_andnot_ps(_mm256_set1_ps(-0.0), x);
            let tiny = _mm256_cmp_ps::<_CMP_LE_OQ>(magnitude, _mm256_set1_ps(f32::TINY));
            special.tiny |= (_mm256_movemask_ps(tiny) as u64) << (8 * part);
        }
    }
    special
}

#[target_feature(enable = "avx2")]
#[inline]
fn special_f64(request: &Request<'_, f64>) -> Special {
    let mut special = Special { nan: 0, tiny: 0 };
    for (part, values) in request.values.chunks_exact(4).enumerate() {
        // SAFETY: 4 values are read from 4.
        let x = unsafe { _mm256_loadu_pd(values.as_ptr()) };
        special.nan |= (_mm256_movemask_pd(_mm256_cmp_pd::<_CMP_UNORD_Q>(x, x)) as u64) << (4 * part);
        if request.zeros {
            let magnitude = _mm256_andnot_pd(_mm256_set1_pd(-0.0), x);
            let tiny = _mm256_cmp_pd::<_CMP_LE_OQ>(magnitude, _mm256_set1_pd(f64::TINY));
            special.tiny |= (_mm256_movemask_pd(tiny) as u64) << (4 * part);
        }
    }
    special
}
