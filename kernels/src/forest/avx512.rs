//! The block kernel and the threshold search on AVX-512 (F, BW, VL, DQ).
//!
//! Masks of 64 rows are one `u64`; a compare of 64 codes with a rank makes one. Leaf numbers stay in one register,
//! and up to 64 leaf values are looked up by permutes instead of gathers.
#![allow(unsafe_code)]

use super::bitsliced::{BlockNode, BlockTree, Blocks, Masks, Method, Walks};
use super::columns::Columns;
use super::model::{Real, Target};
use super::search::{CHUNK, Lookup, ROWS, Request, Special, WIDTH, ranks};
use std::arch::x86_64::*;

/// Does this machine have what the kernels of this file use?
pub(super) fn available() -> bool {
    is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("bmi1")
        && is_x86_feature_detected!("bmi2")
        && is_x86_feature_detected!("popcnt")
}

/// The leaf numbers of 64 rows in one tree.
///
/// # Safety
/// `codes` has 64 bytes for each column that `nodes` name; slots are at most twice the number of nodes.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,bmi1,bmi2")]
#[inline]
unsafe fn leaves(nodes: &[BlockNode], codes: *const u8, scratch: &mut Masks) -> __m512i {
    let (tests, masks) = (scratch.tests.as_mut_ptr(), scratch.masks.as_mut_ptr());
    // SAFETY: `Blocks` admits trees of at most 256 leaves here: 255 nodes and 511 slots, which `Masks` has.
    unsafe {
        for (i, node) in nodes.iter().enumerate() {
            let column = _mm512_loadu_si512(codes.add(node.column as usize * ROWS).cast());
            *tests.add(i) = _mm512_cmpgt_epu8_mask(column, _mm512_set1_epi32(node.rank4 as i32));
        }
        let mut index = _mm512_setzero_si512();
        *masks = u64::MAX;
        for (i, node) in nodes.iter().enumerate() {
            let (mask, test) = (*masks.add(node.slot as usize), *tests.add(i));
            let right = mask & test;
            *masks.add(2 * i + 1) = mask & !test;
            *masks.add(2 * i + 2) = right;
            index = _mm512_mask_add_epi8(index, right, index, _mm512_set1_epi32(node.delta4 as i32));
        }
        index
    }
}

/// Runs all trees; `add_one` adds one output's 64 values for leaf numbers in a register.
macro_rules! block {
    ($name:ident, $t:ty, $add:ident) => {
        /// All trees over one block.
        ///
        /// # Safety
        /// As [`super::bitsliced::BlockKernel`]; the machine has what [`available`] asks for.
        #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,bmi1,bmi2")]
        pub(super) unsafe fn $name(
            blocks: &Blocks<$t>,
            walks: Walks<'_, $t>,
            codes: &[u8],
            sums: &mut [$t],
            scratch: &mut Masks,
        ) {
            for tree in &blocks.trees {
                match (tree.method, tree.target) {
                    (Method::Walk { tree }, _) => walks.add(tree, codes, sums),
                    (Method::Masks { first, nodes }, target) => {
                        // SAFETY: nodes were compiled against the columns that made `codes`; sums hold 64 values
                        // for each output; values are padded to whole vectors.
                        unsafe {
                            let index = leaves(&blocks.nodes[first..first + nodes], codes.as_ptr(), scratch);
                            match target {
                                Target::One(output) => {
                                    let sums = &mut sums[output as usize * ROWS..][..ROWS];
                                    $add(tree, blocks.values[tree.first_value..].as_ptr(), index, sums.as_mut_ptr());
                                }
                                Target::All => blocks.add(tree, &spread(index), sums),
                            }
                        }
                    }
                }
            }
        }
    };
}
block!(block_f32, f32, add_f32);
block!(block_f64, f64, add_f64);

/// 64 bytes as 64 words.
#[target_feature(enable = "avx512f,avx512bw")]
fn spread(index: __m512i) -> [u32; ROWS] {
    let mut bytes = [0u8; ROWS];
    // SAFETY: 64 bytes are written into 64.
    unsafe { _mm512_storeu_si512(bytes.as_mut_ptr().cast(), index) };
    bytes.map(u32::from)
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,bmi1,bmi2")]
#[inline]
unsafe fn add_f32(tree: &BlockTree, values: *const f32, index: __m512i, sums: *mut f32) {
    let parts = [
        _mm512_castsi512_si128(index),
        _mm512_extracti32x4_epi32::<1>(index),
        _mm512_extracti32x4_epi32::<2>(index),
        _mm512_extracti32x4_epi32::<3>(index),
    ];
    // SAFETY: every tree's values are followed by at least enough padding for 64 (see `Blocks::new`), larger trees
    // are gathered by leaf numbers below `leaves`; `sums` has 64 values.
    unsafe {
        if tree.leaves <= 64 {
            let table: [__m512; 4] = std::array::from_fn(|i| _mm512_loadu_ps(values.add(16 * i)));
            for (i, part) in parts.into_iter().enumerate() {
                let at = _mm512_cvtepu8_epi32(part);
                let low = _mm512_permutex2var_ps(table[0], at, table[1]);
                let high = _mm512_permutex2var_ps(table[2], at, table[3]);
                let value = _mm512_mask_mov_ps(low, _mm512_test_epi32_mask(at, _mm512_set1_epi32(32)), high);
                _mm512_storeu_ps(sums.add(16 * i), _mm512_add_ps(_mm512_loadu_ps(sums.add(16 * i)), value));
            }
        } else {
            for (i, part) in parts.into_iter().enumerate() {
                let value = _mm512_i32gather_ps::<4>(_mm512_cvtepu8_epi32(part), values);
                _mm512_storeu_ps(sums.add(16 * i), _mm512_add_ps(_mm512_loadu_ps(sums.add(16 * i)), value));
            }
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,bmi1,bmi2")]
#[inline]
unsafe fn add_f64(tree: &BlockTree, values: *const f64, index: __m512i, sums: *mut f64) {
    let mut bytes = [0u8; ROWS];
    // SAFETY: as in `add_f32`.
    unsafe {
        _mm512_storeu_si512(bytes.as_mut_ptr().cast(), index);
        if tree.leaves <= 32 {
            let table: [__m512d; 4] = std::array::from_fn(|i| _mm512_loadu_pd(values.add(8 * i)));
            for i in 0..8 {
                let at = _mm512_cvtepu8_epi64(_mm_loadl_epi64(bytes.as_ptr().add(8 * i).cast()));
                let low = _mm512_permutex2var_pd(table[0], at, table[1]);
                let high = _mm512_permutex2var_pd(table[2], at, table[3]);
                let value = _mm512_mask_mov_pd(low, _mm512_test_epi64_mask(at, _mm512_set1_epi64(16)), high);
                _mm512_storeu_pd(sums.add(8 * i), _mm512_add_pd(_mm512_loadu_pd(sums.add(8 * i)), value));
            }
        } else {
            for i in 0..8 {
                let at = _mm256_cvtepu8_epi32(_mm_loadl_epi64(bytes.as_ptr().add(8 * i).cast()));
                let value = _mm512_i32gather_pd::<8>(at, values);
                _mm512_storeu_pd(sums.add(8 * i), _mm512_add_pd(_mm512_loadu_pd(sums.add(8 * i)), value));
            }
        }
    }
}

ranks!(
    "avx512f,avx512bw,avx512vl,avx512dq,bmi1,bmi2,popcnt",
    f32,
    count_f32,
    rank_f32,
    search_f32,
    row_f32,
    special_f32,
    _mm512_set1_ps
);
ranks!(
    "avx512f,avx512bw,avx512vl,avx512dq,bmi1,bmi2,popcnt",
    f64,
    count_f64,
    rank_f64,
    search_f64,
    row_f64,
    special_f64,
    _mm512_set1_pd
);

/// How many of 16 thresholds the value in every lane of `x` lies right of.
///
/// # Safety
/// `table` is good for 16 values.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,bmi1,bmi2,popcnt")]
#[inline]
unsafe fn count_f32<const EQUAL: bool>(table: *const f32, x: __m512) -> u32 {
    // SAFETY: by the contract of this function.
    let t = unsafe { _mm512_loadu_ps(table) };
    let right = if EQUAL { _mm512_cmp_ps_mask::<_CMP_GE_OQ>(x, t) } else { _mm512_cmp_ps_mask::<_CMP_GT_OQ>(x, t) };
    right.count_ones()
}

/// As [`count_f32`].
///
/// # Safety
/// `table` is good for 16 values.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,bmi1,bmi2,popcnt")]
#[inline]
unsafe fn count_f64<const EQUAL: bool>(table: *const f64, x: __m512d) -> u32 {
    // SAFETY: by the contract of this function.
    let halves = unsafe { [_mm512_loadu_pd(table), _mm512_loadu_pd(table.add(8))] };
    let right = halves.map(|t| {
        u32::from(if EQUAL { _mm512_cmp_pd_mask::<_CMP_GE_OQ>(x, t) } else { _mm512_cmp_pd_mask::<_CMP_GT_OQ>(x, t) })
    });
    (right[0] | right[1] << 8).count_ones()
}

#[target_feature(enable = "avx512f,avx512dq")]
#[inline]
fn special_f32(request: &Request<'_, f32>) -> Special {
    let mut special = Special { nan: 0, tiny: 0 };
    for (part, values) in request.values.chunks_exact(16).enumerate() {
        // SAFETY: 16 values are read from 16.
        let x = unsafe { _mm512_loadu_ps(values.as_ptr()) };
        special.nan |= u64::from(_mm512_cmp_ps_mask::<_CMP_UNORD_Q>(x, x)) << (16 * part);
        if request.zeros {
            let tiny = _mm512_cmp_ps_mask::<_CMP_LE_OQ>(_mm512_abs_ps(x), _mm512_set1_ps(f32::TINY));
            special.tiny |= u64::from(tiny) << (16 * part);
        }
    }
    special
}

#[target_feature(enable = "avx512f,avx512dq")]
#[inline]
fn special_f64(request: &Request<'_, f64>) -> Special {
    let mut special = Special { nan: 0, tiny: 0 };
    for (part, values) in request.values.chunks_exact(8).enumerate() {
        // SAFETY: 8 values are read from 8.
        let x = unsafe { _mm512_loadu_pd(values.as_ptr()) };
        special.nan |= u64::from(_mm512_cmp_pd_mask::<_CMP_UNORD_Q>(x, x)) << (8 * part);
        if request.zeros {
            let tiny = _mm512_cmp_pd_mask::<_CMP_LE_OQ>(_mm512_abs_pd(x), _mm512_set1_pd(f64::TINY));
            special.tiny |= u64::from(tiny) << (8 * part);
        }
    }
    special
}
