//! The AVX2 path of `attention.rs`. Chunks of 32 positions run on the outside; in each, panels of up to three query
//! rows: scores of 3 rows x 4 positions in 12 registers, softmax, then values of 3 rows x 32 dimensions in 12.
//!
//! A tile of more than one panel widens a chunk of a half-precision cache to f32 once; a smaller one (decoding) reads
//! the cache itself, since it is read once anyway. Widening is exact: the bits are equal.
#![allow(unsafe_code)]

use super::attention::{Cache, Rule, Scratch, Storage, Tile};
use super::math::{each, exp, tanh, tree};
use crate::turns;
use std::arch::x86_64::*;
use std::ops::Range;

/// Positions of a chunk.
pub(super) const CHUNK: usize = 32;

/// Chunks between two looks whether others wait for this thread: of one row some 10 us, of a prompt's some 150.
pub(super) const LOOK: usize = 16;
/// Positions that lie one after the other in memory, since blocks are multiples of it.
pub(super) const RUN: usize = 4;
/// Query rows of a panel.
const PANEL: usize = 3;

/// What to attend to.
pub(super) struct Job<'a> {
    pub(super) cache: &'a Cache<'a>,
    pub(super) rule: &'a Rule,
    pub(super) tile: &'a Tile<'a>,
    /// All positions that some row sees.
    pub(super) seen: Range<usize>,
}

/// How a cached number is widened.
trait Element: Copy {
    /// # Safety
    /// There is AVX2 and F16C; `at` is good for 8.
    unsafe fn load(at: *const Self) -> __m256;
}

/// Half precision, as bits.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(super) struct Half(u16);
/// bf16, as bits.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(super) struct Brain(u16);

impl Element for f32 {
    #[inline(always)]
    unsafe fn load(at: *const f32) -> __m256 {
        // SAFETY: by the contract of the trait.
        unsafe { _mm256_loadu_ps(at) }
    }
}
impl Element for Half {
    #[inline(always)]
    unsafe fn load(at: *const Half) -> __m256 {
        // SAFETY: by the contract of the trait.
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(at.cast())) }
    }
}
impl Element for Brain {
    #[inline(always)]
    unsafe fn load(at: *const Brain) -> __m256 {
        // SAFETY: by the contract of the trait.
        unsafe {
            let wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(at.cast()));
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(wide))
        }
    }
}

/// Attends; `attend_on` checked the shapes, and found AVX2, FMA and F16C.
pub(super) fn attend(job: &Job<'_>, scratch: &mut Scratch, out: &mut [f32]) {
    // SAFETY: AVX2, FMA and F16C are there. Positions of `seen` are in blocks of the table that are within keys and
    // values, as is the rest of their runs of four; head_dim is a multiple of 8.
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

/// One row's scores, then weights, of a chunk.
#[repr(align(32))]
struct Scores([f32; CHUNK]);

/// Where the runs of a chunk start.
pub(super) type Runs<E> = [*const E; CHUNK / RUN];

/// Keys and values of a chunk.
pub(super) struct Chunk<E> {
    pub(super) keys: Runs<E>,
    pub(super) values: Runs<E>,
}

impl<E> Chunk<E> {
    pub(super) const NONE: Self =
        Chunk { keys: [std::ptr::null(); CHUNK / RUN], values: [std::ptr::null(); CHUNK / RUN] };
}

/// Sums are zero, and rows have seen nothing but their sinks.
pub(super) fn begin(job: &Job<'_>, scratch: &mut Scratch, out: &mut [f32]) {
    out.fill(0.0);
    scratch.state.clear();
    scratch.state.extend((0..job.tile.positions.len()).map(|row| match job.tile.sinks.get(row) {
        Some(&sink) => [sink, 1.0],
        None => [f32::NEG_INFINITY, 0.0],
    }));
}

/// Divides the sums of values by those of weights.
#[inline(always)]
pub(super) fn end(dim: usize, scratch: &Scratch, out: &mut [f32]) {
    for (out, [_, sum]) in out.chunks_exact_mut(dim).zip(&scratch.state) {
        let inverse = if *sum == 0.0 { 0.0 } else { 1.0 / sum };
        out.iter_mut().for_each(|x| *x *= inverse);
    }
}

/// What row `row` sees of chunk `number`.
#[inline(always)]
pub(super) fn seen(job: &Job<'_>, row: usize, number: usize) -> (usize, usize) {
    let (position, start) = (job.tile.positions[row], number * CHUNK);
    let clip = |p: usize| p.clamp(start, start + CHUNK) - start;
    (clip(job.rule.first(position)), clip(position as usize + 1))
}

/// # Safety
/// See [`attend`].
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn run<E: Element>(job: &Job<'_>, base: (*const E, *const E), scratch: &mut Scratch, out: &mut [f32]) {
    let dim = job.cache.head_dim;
    begin(job, scratch, out);
    let widen = job.tile.positions.len() > PANEL && size_of::<E>() < 4;
    if widen {
        scratch.wide.resize((2 * CHUNK * dim).max(scratch.wide.len()), 0.0);
    }
    for number in job.seen.start / CHUNK..job.seen.end.div_ceil(CHUNK) {
        // SAFETY: runs are in bounds by the contract; `wide` has two chunks.
        unsafe {
            let chunk = locate(job, base, number);
            fetch(&chunk, dim);
            if widen {
                let wide = widen_chunk(&chunk, dim, scratch.wide.as_mut_ptr());
                panels(job, number, &wide, &mut scratch.state, out);
            } else {
                panels(job, number, &chunk, &mut scratch.state, out);
            }
        }
        if number % LOOK == LOOK - 1 {
            turns::give();
        }
    }
    end(dim, scratch, out);
}

/// The runs of chunk `number` that hold a position that some row sees; the others are null.
///
/// # Safety
/// See [`attend`].
#[inline(always)]
pub(super) unsafe fn locate<E>(job: &Job<'_>, base: (*const E, *const E), number: usize) -> Chunk<E> {
    let mut chunk = Chunk::NONE;
    for i in 0..CHUNK / RUN {
        let position = number * CHUNK + i * RUN;
        if position < job.seen.end && position + RUN > job.seen.start {
            let offset = job.cache.offset(job.tile, position);
            // SAFETY: within keys and values, by the contract of `attend`.
            unsafe { (chunk.keys[i], chunk.values[i]) = (base.0.add(offset), base.1.add(offset)) };
        }
    }
    chunk
}

/// Asks for the values of a chunk while its keys are read.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
unsafe fn fetch<E>(chunk: &Chunk<E>, dim: usize) {
    for run in chunk.values {
        for line in 0..(RUN * dim * size_of::<E>()).div_ceil(64) {
            _mm_prefetch::<_MM_HINT_T0>(run.cast::<i8>().wrapping_add(64 * line));
        }
    }
}

/// A chunk in f32; runs that are not there stay so.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
unsafe fn widen_chunk<E: Element>(chunk: &Chunk<E>, dim: usize, wide: *mut f32) -> Chunk<f32> {
    let mut result = Chunk::NONE;
    for i in 0..CHUNK / RUN {
        for (source, result, part) in
            [(chunk.keys[i], &mut result.keys[i], 0), (chunk.values[i], &mut result.values[i], CHUNK / RUN)]
        {
            if source.is_null() {
                continue;
            }
            // SAFETY: runs are RUN x dim long, and `wide` has room for all of them.
            unsafe {
                let to = wide.add((part + i) * RUN * dim);
                for at in (0..RUN * dim).step_by(8) {
                    _mm256_storeu_ps(to.add(at), E::load(source.add(at)));
                }
                *result = to;
            }
        }
    }
    result
}

/// All rows against one chunk.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
unsafe fn panels<E: Element>(job: &Job<'_>, number: usize, chunk: &Chunk<E>, state: &mut [[f32; 2]], out: &mut [f32]) {
    let rows = job.tile.positions.len();
    for first in (0..rows).step_by(PANEL) {
        // SAFETY: by the contract of `attend`.
        unsafe {
            match rows - first {
                1 => panel::<E, 1>(job, (number, first), chunk, state, out),
                2 => panel::<E, 2>(job, (number, first), chunk, state, out),
                _ => panel::<E, 3>(job, (number, first), chunk, state, out),
            }
        }
    }
}

/// `M` rows from `first` on against chunk `number`.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
unsafe fn panel<E: Element, const M: usize>(
    job: &Job<'_>,
    (number, first): (usize, usize),
    chunk: &Chunk<E>,
    state: &mut [[f32; 2]],
    out: &mut [f32],
) {
    let dim = job.cache.head_dim;
    let visible: [(usize, usize); M] = each!((0, 0), |m| seen(job, first + m, number));
    let low = visible.iter().map(|v| v.0).min().unwrap_or(0);
    let high = visible.iter().map(|v| v.1).max().unwrap_or(0);
    if visible.iter().all(|v| v.0 >= v.1) {
        return;
    }
    let mut scores = [const { Scores([0.0; CHUNK]) }; M];
    let mut factors = [0f32; M];
    // SAFETY: rows are below the number of rows; runs between `low` and `high` are there, since they hold positions
    // of `seen`.
    unsafe {
        let queries = job.tile.queries.as_ptr().add(first * dim);
        for i in low / RUN..high.div_ceil(RUN) {
            dots(queries, chunk.keys[i], dim, i * RUN, &mut scores);
        }
        for m in 0..M {
            factors[m] = weigh(job.rule, &mut scores[m], visible[m], &mut state[first + m]);
        }
        let out = out.as_mut_ptr().add(first * dim);
        let range = low..high;
        for d in (0..dim / 32).map(|i| 32 * i) {
            blend::<E, M, 4>((&chunk.values, range.clone()), (dim, d), (&scores, &factors), out);
        }
        for d in (dim / 32 * 32..dim).step_by(8) {
            blend::<E, M, 1>((&chunk.values, range.clone()), (dim, d), (&scores, &factors), out);
        }
    }
}

/// `M` queries times four keys, into `scores` from `at` on. Dimension d is summed in lane d mod 8, in order.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
unsafe fn dots<E: Element, const M: usize>(
    queries: *const f32,
    keys: *const E,
    dim: usize,
    at: usize,
    scores: &mut [Scores; M],
) {
    // SAFETY: by the contract of `attend`.
    unsafe {
        let mut sums = [[_mm256_setzero_ps(); RUN]; M];
        for d in (0..dim).step_by(8) {
            // Three queries, one key at a time, and the sums: 16 registers.
            let queries: [__m256; M] = each!(_mm256_setzero_ps(), |m| _mm256_loadu_ps(queries.add(m * dim + d)));
            for j in 0..RUN {
                let key = E::load(keys.add(j * dim + d));
                for (sums, query) in sums.iter_mut().zip(queries) {
                    sums[j] = _mm256_fmadd_ps(query, key, sums[j]);
                }
            }
        }
        for (sums, scores) in sums.into_iter().zip(scores) {
            let pairs = _mm256_hadd_ps(_mm256_hadd_ps(sums[0], sums[1]), _mm256_hadd_ps(sums[2], sums[3]));
            let total = _mm_add_ps(_mm256_castps256_ps128(pairs), _mm256_extractf128_ps::<1>(pairs));
            _mm_storeu_ps(scores.0.as_mut_ptr().add(at), total);
        }
    }
}

/// Turns one row's scores into weights, and brings its maximum and sum up to date. Returns what earlier sums are
/// multiplied with.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
unsafe fn weigh(rule: &Rule, scores: &mut Scores, visible: (usize, usize), state: &mut [f32; 2]) -> f32 {
    let scores = &mut scores.0;
    match rule.soft_cap {
        None => scores.iter_mut().for_each(|score| *score *= rule.scale),
        Some(cap) => scores.iter_mut().for_each(|score| *score = cap * tanh(*score * rule.scale / cap)),
    }
    scores[..visible.0].fill(f32::NEG_INFINITY);
    scores[visible.1.max(visible.0)..].fill(f32::NEG_INFINITY);
    // SAFETY: by the contract of `attend`; 8 values each are read from 32.
    unsafe {
        let [a, b, c, d] = registers(scores);
        let top = lanes(_mm256_max_ps(_mm256_max_ps(a, b), _mm256_max_ps(c, d)));
        let largest = top.into_iter().fold(state[0], f32::max);
        // Nothing seen so far, or only minus infinities: weights are zero, but those of what is no number.
        let shift = if largest == f32::NEG_INFINITY { 0.0 } else { largest };
        let factor = exp(state[0] - shift);
        for score in scores.iter_mut() {
            *score = exp(*score - shift);
        }
        let [a, b, c, d] = registers(scores);
        let sum = tree(lanes(_mm256_add_ps(_mm256_add_ps(a, b), _mm256_add_ps(c, d))));
        *state = [largest, state[1].mul_add(factor, sum)];
        factor
    }
}

/// A chunk's values in registers.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
unsafe fn registers(scores: &[f32; CHUNK]) -> [__m256; 4] {
    // SAFETY: 8 values each are read from 32.
    unsafe { each!(_mm256_setzero_ps(), |i| _mm256_loadu_ps(scores.as_ptr().add(8 * i))) }
}

/// The values of a register.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
unsafe fn lanes(register: __m256) -> [f32; 8] {
    let mut lanes = [0.0; 8];
    // SAFETY: 8 values are written to 8.
    unsafe { _mm256_storeu_ps(lanes.as_mut_ptr(), register) };
    lanes
}

/// Adds the values of a chunk, weighed, to 8 `N` dimensions of `M` rows, from dimension `d` on.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
unsafe fn blend<E: Element, const M: usize, const N: usize>(
    (values, range): (&[*const E; CHUNK / RUN], Range<usize>),
    (dim, d): (usize, usize),
    (weights, factors): (&[Scores; M], &[f32; M]),
    out: *mut f32,
) {
    // SAFETY: by the contract of `attend`.
    unsafe {
        let mut sums: [[__m256; N]; M] = each!([_mm256_setzero_ps(); N], |m| {
            let factor = _mm256_broadcast_ss(&factors[m]);
            each!(_mm256_setzero_ps(), |n| _mm256_mul_ps(_mm256_loadu_ps(out.add(m * dim + d + 8 * n)), factor))
        });
        for p in range {
            let row = values.get_unchecked(p / RUN).add(p % RUN * dim + d);
            // Three weights, one vector of values at a time, and the sums: 16 registers.
            let weights: [__m256; M] =
                each!(_mm256_setzero_ps(), |m| _mm256_broadcast_ss(weights[m].0.get_unchecked(p)));
            for n in 0..N {
                let value = E::load(row.add(8 * n));
                for (sums, weight) in sums.iter_mut().zip(weights) {
                    sums[n] = _mm256_fmadd_ps(weight, value, sums[n]);
                }
            }
        }
        for (m, sums) in sums.into_iter().enumerate() {
            for (n, sum) in sums.into_iter().enumerate() {
                _mm256_storeu_ps(out.add(m * dim + d + 8 * n), sum);
            }
        }
    }
}
