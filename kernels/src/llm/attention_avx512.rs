//! The AVX-512 path of `attention.rs`. Chunks of 32 positions run on the outside, as in `attention_avx2.rs`; in each,
//! panels of up to four query rows: scores of 4 rows x 4 positions in 16 registers, softmax, then values of 4 rows x 64
//! dimensions in 16.
//!
//! A tile of more than one panel widens a chunk of a half-precision cache to f32 once; a smaller one (decoding) reads
//! the cache itself, since it is read once anyway. Either asks for the next chunk meanwhile: blocks lie anywhere.
#![allow(unsafe_code)]

use super::attention::{Scratch, Storage};
use super::attention_avx2::{Brain, CHUNK, Half, Job, LOOK, RUN, Runs, begin, end, locate, seen};
use super::math::each;
use super::softmax_avx512::{PANEL, Scores, totals, weigh};
use crate::turns;
use std::arch::x86_64::*;
use std::ops::Range;

/// How a cached number is widened.
trait Element: Copy {
    /// # Safety
    /// There is AVX-512F; `at` is good for 16.
    unsafe fn load(at: *const Self) -> __m512;

    /// The upper half is zeros.
    ///
    /// # Safety
    /// There is AVX-512F; `at` is good for 8.
    unsafe fn load_half(at: *const Self) -> __m512;
}

impl Element for f32 {
    #[inline(always)]
    unsafe fn load(at: *const f32) -> __m512 {
        // SAFETY: by the contract of the trait.
        unsafe { _mm512_loadu_ps(at) }
    }
    #[inline(always)]
    unsafe fn load_half(at: *const f32) -> __m512 {
        // SAFETY: by the contract of the trait.
        unsafe { _mm512_zextps256_ps512(_mm256_loadu_ps(at)) }
    }
}
impl Element for Half {
    #[inline(always)]
    unsafe fn load(at: *const Half) -> __m512 {
        // SAFETY: by the contract of the trait.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(at.cast())) }
    }
    #[inline(always)]
    unsafe fn load_half(at: *const Half) -> __m512 {
        // SAFETY: by the contract of the trait.
        unsafe { _mm512_zextps256_ps512(_mm256_cvtph_ps(_mm_loadu_si128(at.cast()))) }
    }
}
impl Element for Brain {
    #[inline(always)]
    unsafe fn load(at: *const Brain) -> __m512 {
        // SAFETY: by the contract of the trait.
        unsafe {
            let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(at.cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
        }
    }
    #[inline(always)]
    unsafe fn load_half(at: *const Brain) -> __m512 {
        // SAFETY: by the contract of the trait.
        unsafe {
            let wide = _mm512_cvtepu16_epi32(_mm256_zextsi128_si256(_mm_loadu_si128(at.cast())));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
        }
    }
}

/// Attends; `attend_on` checked the shapes, and found AVX-512F.
pub(super) fn attend(job: &Job<'_>, scratch: &mut Scratch, out: &mut [f32]) {
    // SAFETY: AVX-512F is there. Positions of `seen` are in blocks of the table that are within keys and values, as is
    // the rest of their runs of four; head_dim is a multiple of 8.
    unsafe {
        match (job.cache.keys, job.cache.values) {
            (Storage::F32(k), Storage::F32(v)) => run(job, (k.as_ptr(), v.as_ptr()), scratch, out),
            (Storage::F16(k), Storage::F16(v)) => {
                run::<Half>(job, (k.as_ptr().cast(), v.as_ptr().cast()), scratch, out);
            }
            (Storage::Bf16(k), Storage::Bf16(v)) => {
                run::<Brain>(job, (k.as_ptr().cast(), v.as_ptr().cast()), scratch, out);
            }
            _ => panic!("keys and values are stored alike"),
        }
    }
}

/// What a thread keeps, where cache lines start.
struct Places {
    /// A copy of the queries.
    queries: *const f32,
    /// A chunk of keys, then of values, widened.
    wide: *mut f32,
    /// Of each row.
    scores: *mut Scores,
    /// What earlier sums of each row are multiplied with.
    factors: *mut f32,
}

impl Places {
    fn new(job: &Job<'_>, all: &mut Vec<f32>) -> Places {
        let (rows, queries) = (job.tile.positions.len(), job.tile.queries);
        let wide = queries.len().next_multiple_of(16);
        let scores = wide + CHUNK * job.cache.head_dim;
        let (factors, end) = (scores + rows * CHUNK, scores + rows * (CHUNK + 1));
        all.resize((end + 16).max(all.len()), 0.0);
        let start = all.as_ptr().align_offset(64).min(16);
        let all = &mut all[start..start + end];
        all[..queries.len()].copy_from_slice(queries);
        let first = all.as_mut_ptr();
        let at = |i: usize| first.wrapping_add(i);
        Places { queries: first, wide: at(wide), scores: at(scores).cast(), factors: at(factors) }
    }
}

/// # Safety
/// See [`attend`].
#[target_feature(enable = "avx512f")]
unsafe fn run<E: Element>(job: &Job<'_>, base: (*const E, *const E), scratch: &mut Scratch, out: &mut [f32]) {
    let (rows, dim) = (job.tile.positions.len(), job.cache.head_dim);
    begin(job, scratch, out);
    let places = Places::new(job, &mut scratch.wide);
    let widen = rows > PANEL && size_of::<E>() < 4;
    let last = job.seen.end.div_ceil(CHUNK);
    // SAFETY: runs are in bounds by the contract; `wide` has room for a chunk.
    unsafe {
        let mut chunk = locate(job, base, job.seen.start / CHUNK);
        for number in job.seen.start / CHUNK..last {
            let next = locate(job, base, (number + 1).min(last - 1));
            if widen {
                let keys = widened((&chunk.keys, &next.keys), dim, places.wide);
                weights(job, number, (&keys, &nothing()), (&places, &mut scratch.state));
                let values = widened((&chunk.values, &next.values), dim, places.wide);
                sums(job, number, (&values, &nothing()), (&places, out));
            } else {
                weights(job, number, (&chunk.keys, &next.keys), (&places, &mut scratch.state));
                sums(job, number, (&chunk.values, &next.values), (&places, out));
            }
            chunk = next;
            if number % LOOK == LOOK - 1 {
                turns::give();
            }
        }
    }
    end(dim, scratch, out);
}

/// Asks for memory; harmless where there is none.
#[inline(always)]
fn fetch<T>(from: *const T, count: usize) {
    for line in 0..(count * size_of::<T>()).div_ceil(64) {
        // SAFETY: never faults.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(from.cast::<i8>().wrapping_add(64 * line)) };
    }
}

/// Runs in f32; those that are not there stay so. Those of `next` are asked for.
#[target_feature(enable = "avx512f")]
#[inline]
unsafe fn widened<E: Element>((runs, next): (&Runs<E>, &Runs<E>), dim: usize, wide: *mut f32) -> Runs<f32> {
    let mut result = nothing();
    for i in 0..CHUNK / RUN {
        if runs[i].is_null() {
            continue;
        }
        // SAFETY: runs are RUN x dim long, and `wide` has room for all of them.
        unsafe {
            let to = wide.add(i * RUN * dim);
            for at in (0..RUN * dim).step_by(32) {
                fetch(next[i].wrapping_add(at), 32);
                _mm512_storeu_ps(to.add(at), E::load(runs[i].add(at)));
                _mm512_storeu_ps(to.add(at + 16), E::load(runs[i].add(at + 16)));
            }
            result[i] = to;
        }
    }
    result
}

/// Calls a function of panels, of which the last may be smaller: `$call::<E, M>($first, $arguments ...)`.
macro_rules! panels {
    ($rows:expr, |$first:ident| $call:ident ($($argument:expr),*)) => {
        for $first in (0..$rows).step_by(PANEL) {
            match $rows - $first {
                1 => $call::<E, 1>($($argument),*),
                2 => $call::<E, 2>($($argument),*),
                3 => $call::<E, 3>($($argument),*),
                _ => $call::<E, PANEL>($($argument),*),
            }
        }
    };
}

/// What the panel that starts with row `first` asks for: the first one does so for all.
#[inline(always)]
fn ahead<E>(next: &Runs<E>, first: usize) -> Runs<E> {
    if first == 0 { *next } else { nothing() }
}

/// Runs that are not there.
#[inline(always)]
fn nothing<E>() -> Runs<E> {
    [std::ptr::null(); CHUNK / RUN]
}

/// What is seen of chunk `number` by `M` rows from `first` on, each and all together.
#[inline(always)]
fn visible<const M: usize>(job: &Job<'_>, number: usize, first: usize) -> ([(usize, usize); M], Range<usize>) {
    let each: [(usize, usize); M] = each!((0, 0), |m| seen(job, first + m, number));
    let low = each.iter().map(|v| v.0).min().unwrap_or(0);
    let high = each.iter().map(|v| v.1).max().unwrap_or(0);
    (each, if each.iter().any(|v| v.0 < v.1) { low..high } else { 0..0 })
}

/// Weights of all rows for one chunk.
#[target_feature(enable = "avx512f")]
#[inline]
unsafe fn weights<E: Element>(
    job: &Job<'_>,
    number: usize,
    keys: (&Runs<E>, &Runs<E>),
    (places, state): (&Places, &mut [[f32; 2]]),
) {
    // SAFETY: by the contract of `attend`.
    unsafe { panels!(state.len(), |first| score(job, (number, first), keys, (places, state))) }
}

/// Weights of `M` rows from `first` on for chunk `number`.
#[target_feature(enable = "avx512f")]
#[inline]
unsafe fn score<E: Element, const M: usize>(
    job: &Job<'_>,
    (number, first): (usize, usize),
    (keys, next): (&Runs<E>, &Runs<E>),
    (places, state): (&Places, &mut [[f32; 2]]),
) {
    let dim = job.cache.head_dim;
    let (visible, range) = visible::<M>(job, number, first);
    // SAFETY: rows are below the number of rows; runs of `range` are there, since they hold positions of `seen`.
    unsafe {
        let scores = places.scores.add(first).cast::<[Scores; M]>();
        let (runs, queries) = (range.start / RUN..range.end.div_ceil(RUN), places.queries.add(first * dim));
        for (i, run) in keys.iter().copied().zip(ahead(next, first)).enumerate().take(runs.end).skip(runs.start) {
            dots((queries, dim), run, i * RUN, &mut *scores);
        }
        if !range.is_empty() {
            let factors = &mut *places.factors.add(first).cast::<[f32; M]>();
            weigh(job.rule, &mut *scores, &visible, &mut state[first..first + M], factors);
        }
    }
}

/// Adds the values of one chunk, weighed, to the sums of all rows.
#[target_feature(enable = "avx512f")]
#[inline]
unsafe fn sums<E: Element>(
    job: &Job<'_>,
    number: usize,
    values: (&Runs<E>, &Runs<E>),
    (places, out): (&Places, &mut [f32]),
) {
    // SAFETY: by the contract of `attend`.
    unsafe { panels!(job.tile.positions.len(), |first| add(job, (number, first), values, (places, out))) }
}

/// [`sums`] of `M` rows from `first` on.
#[target_feature(enable = "avx512f")]
#[inline]
unsafe fn add<E: Element, const M: usize>(
    job: &Job<'_>,
    (number, first): (usize, usize),
    (values, next): (&Runs<E>, &Runs<E>),
    (places, out): (&Places, &mut [f32]),
) {
    let dim = job.cache.head_dim;
    let (_, range) = visible::<M>(job, number, first);
    if range.is_empty() {
        return;
    }
    let next = &ahead(next, first);
    // SAFETY: as in `score`.
    unsafe {
        let weights =
            (&*places.scores.add(first).cast::<[Scores; M]>(), &*places.factors.add(first).cast::<[f32; M]>());
        let out = out.as_mut_ptr().add(first * dim);
        for d in (0..dim / 64).map(|i| 64 * i) {
            blend::<E, M, 4>((values, next, range.clone()), (dim, d), weights, out);
        }
        for d in (dim / 64 * 64..dim / 16 * 16).step_by(16) {
            blend::<E, M, 1>((values, next, range.clone()), (dim, d), weights, out);
        }
        if !dim.is_multiple_of(16) {
            blend_half((values, range), (dim, dim - 8), weights, out);
        }
    }
}

/// `M` queries times four keys, into `scores` from `at` on. Dimension d is summed in lane d mod 16, in order.
#[target_feature(enable = "avx512f")]
#[inline]
unsafe fn dots<E: Element, const M: usize>(
    (queries, dim): (*const f32, usize),
    (keys, next): (*const E, *const E),
    at: usize,
    scores: &mut [Scores; M],
) {
    // SAFETY: by the contract of `attend`.
    unsafe {
        let mut sums = [[_mm512_setzero_ps(); RUN]; PANEL];
        for d in (0..dim / 16).map(|i| 16 * i) {
            let queries: [__m512; M] = each!(_mm512_setzero_ps(), |m| _mm512_loadu_ps(queries.add(m * dim + d)));
            if !next.is_null() {
                fetch(next.wrapping_add(RUN * d), RUN * 16);
            }
            for j in 0..RUN {
                let key = E::load(keys.add(j * dim + d));
                for (sums, query) in sums.iter_mut().zip(queries) {
                    sums[j] = _mm512_fmadd_ps(query, key, sums[j]);
                }
            }
        }
        if !dim.is_multiple_of(16) {
            let d = dim - 8;
            for (m, sums) in sums[..M].iter_mut().enumerate() {
                let query = f32::load_half(queries.add(m * dim + d));
                *sums = each!(_mm512_setzero_ps(), |j| {
                    _mm512_fmadd_ps(query, E::load_half(keys.add(j * dim + d)), sums[j])
                });
            }
        }
        let total = totals(&sums);
        // Lane by lane, for which the number has to be a constant.
        let mut put = |m: usize, four: __m128| {
            if m < M {
                _mm_storeu_ps(scores[m].as_mut_ptr().add(at), four);
            }
        };
        put(0, _mm512_castps512_ps128(total));
        put(1, _mm512_extractf32x4_ps::<1>(total));
        put(2, _mm512_extractf32x4_ps::<2>(total));
        put(3, _mm512_extractf32x4_ps::<3>(total));
    }
}

/// Adds the values of a chunk, weighed, to 16 `N` dimensions of `M` rows, from dimension `d` on.
#[target_feature(enable = "avx512f")]
#[inline]
unsafe fn blend<E: Element, const M: usize, const N: usize>(
    (values, next, range): (&Runs<E>, &Runs<E>, Range<usize>),
    (dim, d): (usize, usize),
    (weights, factors): (&[Scores; M], &[f32; M]),
    out: *mut f32,
) {
    // SAFETY: by the contract of `attend`.
    unsafe {
        let mut sums: [[__m512; N]; M] = each!([_mm512_setzero_ps(); N], |m| {
            let factor = _mm512_set1_ps(factors[m]);
            each!(_mm512_setzero_ps(), |n| _mm512_mul_ps(_mm512_loadu_ps(out.add(m * dim + d + 16 * n)), factor))
        });
        for p in range {
            let row = values.get_unchecked(p / RUN).add(p % RUN * dim + d);
            let ahead = *next.get_unchecked(p / RUN);
            if !ahead.is_null() {
                fetch(ahead.wrapping_add(p % RUN * dim + d), 16 * N);
            }
            let weights: [__m512; M] = each!(_mm512_setzero_ps(), |m| _mm512_set1_ps(*weights[m].get_unchecked(p)));
            for n in 0..N {
                let value = E::load(row.add(16 * n));
                for (sums, weight) in sums.iter_mut().zip(weights) {
                    sums[n] = _mm512_fmadd_ps(weight, value, sums[n]);
                }
            }
        }
        for (m, sums) in sums.into_iter().enumerate() {
            for (n, sum) in sums.into_iter().enumerate() {
                _mm512_storeu_ps(out.add(m * dim + d + 16 * n), sum);
            }
        }
    }
}

/// As [`blend`], for 8 dimensions.
#[target_feature(enable = "avx512f")]
#[inline]
unsafe fn blend_half<E: Element, const M: usize>(
    (values, range): (&Runs<E>, Range<usize>),
    (dim, d): (usize, usize),
    (weights, factors): (&[Scores; M], &[f32; M]),
    out: *mut f32,
) {
    // SAFETY: by the contract of `attend`.
    unsafe {
        let mut sums: [__m512; M] = each!(_mm512_setzero_ps(), |m| {
            _mm512_mul_ps(f32::load_half(out.add(m * dim + d)), _mm512_set1_ps(factors[m]))
        });
        for p in range {
            let value = E::load_half(values.get_unchecked(p / RUN).add(p % RUN * dim + d));
            for (sum, weights) in sums.iter_mut().zip(weights) {
                *sum = _mm512_fmadd_ps(_mm512_set1_ps(*weights.get_unchecked(p)), value, *sum);
            }
        }
        for (m, sum) in sums.into_iter().enumerate() {
            _mm256_storeu_ps(out.add(m * dim + d), _mm512_castps512_ps256(sum));
        }
    }
}
