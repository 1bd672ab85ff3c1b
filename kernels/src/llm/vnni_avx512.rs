//! Products with quantised weights on AVX-512 with VNNI. What differs between formats is a [`Words`] each, in
//! `formats_avx512.rs`; here are the loops.
//!
//! A register holds 16 rows x 4 columns of unsigned weights, and `vpdpbusd` multiplies it with 4 broadcast int8
//! activations, adding each row's products in 32 bits: exactly, over the 32 or 16 columns of a piece, which have a scale
//! in common. The sum of a piece is scaled and added in f32, piece after piece. What a format added to its weights to make
//! them unsigned is taken off before: a sum starts at minus that times the sum of the activations.
//!
//! A sum starts at the bits of the f32 1.5 x 2^23, too. Then its bits are those of the f32 1.5 x 2^23 + sum: no conversion
//! is needed, and one fused operation, which takes 1.5 x 2^23 x scale off, leaves sum x scale, rounded once. This is exact
//! as long as sums stay below 2^22 (they reach 32 x 255 x 127) and scales have at most 22 bits (they have up to 18).
//!
//! Up to 8 rows of activations stream through the tile: their sums over a piece of all 32 weight rows fill 16 registers,
//! and each register of weights is unpacked when it is needed. For more rows, a piece is unpacked once into 16 registers and
//! stays there while panels of up to 6 rows pass; their sums lie in the first-level cache.
#![allow(unsafe_code)]

use super::activations::{Activations, BLOCK};
use super::interleave::{HALF, ROWS};
use super::math::each;
use super::packed::{Sink, Sums};
use std::arch::x86_64::*;

/// Halves of a tile.
const HALVES: usize = ROWS / HALF;
/// Most rows of a panel: 6 rows x 2 registers of sums beside 16 of weights.
const PANEL: usize = 6;
/// Most rows that pass at a time: their sums (8 KiB) and one block of theirs fit the first-level cache.
const CHUNK: usize = 64;
/// How far ahead many rows fetch, in bytes.
const FAR: usize = 4096;
/// How far ahead of the loads of few rows memory is fetched, in bytes.
const AHEAD: usize = 4096;
/// 1.5 x 2^23.
const MAGIC: f32 = 12_582_912.0;

/// What the sums of 16 rows over a piece are multiplied with.
#[derive(Clone, Copy)]
pub(super) struct Factors {
    /// f32 x 16: scale of each row.
    scale: __m512,
    /// [`MAGIC`] times that.
    magic: __m512,
    /// f32 x 16: minimum of each row, if the format has one.
    min: __m512,
}

impl Factors {
    /// # Safety
    /// As [`Words`].
    #[inline(always)]
    pub(super) unsafe fn new(scale: __m512, min: __m512) -> Factors {
        // SAFETY: by the contract of this function.
        unsafe { Factors { scale, magic: _mm512_mul_ps(scale, _mm512_set1_ps(MAGIC)), min } }
    }
}

/// A format whose weights are unpacked to unsigned bytes.
pub(super) trait Words {
    /// Pieces of a block, and words of a row in a piece: 8 or 4.
    const PIECES: usize;
    const WORDS: usize;
    /// Bytes of a block of a tile.
    const BYTES: usize;
    /// What is to be taken off a weight.
    const OFFSET: i16;
    /// Has it minima?
    const MINS: bool;
    /// What the pieces of a half have in common.
    type Head: Copy;

    /// # Safety
    /// For this and the others: there is AVX-512 F, BW, VL and VNNI; `block` is good for `BYTES`; `half < 2`,
    /// `piece < PIECES`.
    unsafe fn head(block: *const u8, half: usize) -> Self::Head;
    /// Weights of a piece: columns 4 j .. 4 j + 4 of a half's 16 rows, `j < WORDS`.
    unsafe fn word(block: *const u8, half: usize, piece: usize, j: usize) -> __m512i;
    /// Their factors.
    unsafe fn factors(head: &Self::Head, piece: usize) -> Factors;
}

/// One tile.
///
/// # Safety
/// There is AVX-512 F, BW, VL and VNNI. `tile` is whole blocks, as many as int8 blocks of `a` make; `a` has rows.
pub(super) unsafe fn multiply<F: Words>(tile: &[u8], a: &Activations, sink: &mut Sink<'_, '_>) {
    debug_assert_eq!(tile.len() / F::BYTES * F::PIECES * F::WORDS * 4, a.cols);
    // SAFETY: by the contract of this function.
    unsafe {
        macro_rules! few {
            ($($rows:literal)*) => {
                match a.rows {
                    $($rows => few::<F, $rows>(tile, a, sink),)*
                    rows => {
                        // As even as can be.
                        let size = rows.div_ceil(rows.div_ceil(CHUNK));
                        (0..rows).step_by(size).for_each(|first| many::<F>(tile, a, first..rows.min(first + size), sink));
                    }
                }
            };
        }
        few!(1 2 3 4 5 6 7 8);
    }
}

/// Where the words of a piece come from.
trait Source {
    /// # Safety
    /// As [`Words::word`].
    unsafe fn word(&self, half: usize, j: usize) -> __m512i;
}

/// A piece of a block as it is in a tile.
struct Tile<F> {
    block: *const u8,
    piece: usize,
    format: std::marker::PhantomData<F>,
}

impl<F: Words> Source for Tile<F> {
    #[inline(always)]
    unsafe fn word(&self, half: usize, j: usize) -> __m512i {
        // SAFETY: by the contract of this function.
        unsafe { F::word(self.block, half, self.piece, j) }
    }
}

/// A piece that is unpacked, in registers: `[half][word]`.
type Unpacked = [[__m512i; 8]; HALVES];

impl Source for Unpacked {
    #[inline(always)]
    unsafe fn word(&self, half: usize, j: usize) -> __m512i {
        self[half][j]
    }
}

/// Rows of activations as [`step`] wants them.
#[derive(Clone, Copy)]
struct Rows<'a> {
    a: &'a Activations,
    /// The first one's place in `[block][row]`.
    at: usize,
    /// Which columns of the block, in pieces.
    part: usize,
}

/// Adds one piece of `M` rows of activations to their sums.
///
/// # Safety
/// As [`Words`]; the rows are within `a`.
#[inline(always)]
unsafe fn step<F: Words, const M: usize>(
    (source, f): (&impl Source, &[Factors; HALVES]),
    Rows { a, at, part }: Rows<'_>,
    sums: &mut [[__m512; HALVES]; M],
) {
    // SAFETY: by the contract of this function; `halves` are two i16 each.
    unsafe {
        let mut dots = [[_mm512_castps_si512(_mm512_set1_ps(MAGIC)); HALVES]; M];
        if F::OFFSET != 0 {
            // Of the sums of a block's halves, those that belong to the piece.
            let off = |half: usize| i32::from(if F::WORDS == 8 || part == half { -F::OFFSET } else { 0 });
            let offsets = _mm512_set1_epi32(off(1) << 16 | off(0) & 0xffff);
            for (m, dots) in dots.iter_mut().enumerate() {
                let halves = a.halves.as_ptr().add(at + m).cast::<i32>().read_unaligned();
                *dots = [_mm512_dpwssd_epi32(dots[0], _mm512_set1_epi32(halves), offsets); HALVES];
            }
        }
        let quants = a.quants.as_ptr().add(at * BLOCK + 4 * F::WORDS * part);
        for j in 0..F::WORDS {
            let w: [__m512i; HALVES] = each!(_mm512_setzero_si512(), |h| source.word(h, j));
            for (m, dots) in dots.iter_mut().enumerate() {
                let x = _mm512_set1_epi32(quants.add(m * BLOCK + 4 * j).cast::<i32>().read_unaligned());
                for h in 0..HALVES {
                    dots[h] = _mm512_dpbusd_epi32(dots[h], w[h], x);
                }
            }
        }
        for (m, (sums, dots)) in sums.iter_mut().zip(dots).enumerate() {
            let scale = _mm512_set1_ps(*a.scales.as_ptr().add(at + m));
            let sum = _mm512_set1_ps(*a.sums.as_ptr().add(at + m));
            for h in 0..HALVES {
                let scaled = _mm512_fmsub_ps(_mm512_castsi512_ps(dots[h]), f[h].scale, f[h].magic);
                sums[h] = _mm512_fmadd_ps(scaled, scale, sums[h]);
                if F::MINS {
                    sums[h] = _mm512_fnmadd_ps(f[h].min, sum, sums[h]);
                }
            }
        }
    }
}

/// Blocks of 32 columns before piece `piece` of block `block`, and which part of such a block it is.
#[inline(always)]
fn place<F: Words>(block: usize, piece: usize) -> (usize, usize) {
    let parts = 8 / F::WORDS;
    ((block * F::PIECES + piece) / parts, piece % parts)
}

/// # Safety
/// As [`multiply`]; `a` has `M` rows.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn few<F: Words, const M: usize>(tile: &[u8], a: &Activations, sink: &mut Sink<'_, '_>) {
    let mut sums = [[_mm512_setzero_ps(); HALVES]; M];
    // SAFETY: `block` runs through whole blocks of the tile; the rest by the contract of `multiply`.
    unsafe {
        for (b, block) in tile.chunks_exact(F::BYTES).enumerate() {
            let block = block.as_ptr();
            let heads = [F::head(block, 0), F::head(block, 1)];
            for piece in 0..F::PIECES {
                fetch::<F>(block, piece, AHEAD);
                let source = Tile::<F> { block, piece, format: std::marker::PhantomData };
                let f = [F::factors(&heads[0], piece), F::factors(&heads[1], piece)];
                let (first, part) = place::<F>(b, piece);
                step::<F, M>((&source, &f), Rows { a, at: first * M, part }, &mut sums);
            }
        }
        for (m, sums) in sums.into_iter().enumerate() {
            let mut out = [0.0; ROWS];
            (0..HALVES).for_each(|h| _mm512_storeu_ps(out.as_mut_ptr().add(h * HALF), sums[h]));
            sink.put(m, &out);
        }
    }
}

/// Fetches the share that piece `piece` has of a block, so many bytes ahead.
#[inline(always)]
fn fetch<F: Words>(block: *const u8, piece: usize, ahead: usize) {
    for line in 0..F::BYTES.div_ceil(64 * F::PIECES) {
        let at = piece * (F::BYTES / F::PIECES) + 64 * line + ahead;
        // SAFETY: fetching does no harm wherever it points.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(block.wrapping_add(at).cast()) };
    }
}

/// [`step`] for sums that lie in memory, `[M][32]`.
///
/// # Safety
/// As [`step`]; the sums are there, and aligned.
#[inline(always)]
unsafe fn panel<F: Words, const M: usize>(weights: (&Unpacked, &[Factors; HALVES]), rows: Rows<'_>, sums: *mut f32) {
    // SAFETY: by the contract of this function.
    unsafe {
        let mut all = [[_mm512_setzero_ps(); HALVES]; M];
        for (m, all) in all.iter_mut().enumerate() {
            *all = each!(_mm512_setzero_ps(), |h| _mm512_load_ps(sums.add(m * ROWS + h * HALF)));
        }
        step::<F, M>(weights, rows, &mut all);
        for (m, all) in all.iter().enumerate() {
            (0..HALVES).for_each(|h| _mm512_store_ps(sums.add(m * ROWS + h * HALF), all[h]));
        }
    }
}

/// # Safety
/// As [`multiply`]; `rows` is within `a`, and at most [`CHUNK`] long.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn many<F: Words>(tile: &[u8], a: &Activations, rows: std::ops::Range<usize>, sink: &mut Sink<'_, '_>) {
    let mut sums = Sums::<CHUNK>::ZERO;
    let count = rows.len();
    // Panels as even as can be.
    let panels = count.div_ceil(PANEL);
    let (shorter, longer) = (count / panels, count % panels);
    // SAFETY: as in `few`; panels end at `count`, for which there are sums.
    unsafe {
        for (b, block) in tile.chunks_exact(F::BYTES).enumerate() {
            let block = block.as_ptr();
            let heads = [F::head(block, 0), F::head(block, 1)];
            for piece in 0..F::PIECES {
                fetch::<F>(block, piece, FAR);
                for m in (2 * (b * F::PIECES + piece)..count).take(2) {
                    let place = sink.place(rows.start + m);
                    _mm_prefetch::<_MM_HINT_ET0>(place.cast());
                    _mm_prefetch::<_MM_HINT_ET0>(place.wrapping_add(HALF).cast());
                }
                let (first, part) = place::<F>(b, piece);
                let first = first * a.rows + rows.start;
                let mut unpacked: Unpacked = [[_mm512_setzero_si512(); 8]; HALVES];
                for (h, half) in unpacked.iter_mut().enumerate() {
                    for (j, word) in half.iter_mut().enumerate().take(F::WORDS) {
                        *word = F::word(block, h, piece, j);
                    }
                }
                let f = [F::factors(&heads[0], piece), F::factors(&heads[1], piece)];
                let mut m = 0;
                for p in 0..panels {
                    let size = shorter + usize::from(p < longer);
                    let rows = Rows { a, at: first + m, part };
                    let sums = sums.0.as_mut_ptr().cast::<f32>().add(m * ROWS);
                    match size {
                        1 => panel::<F, 1>((&unpacked, &f), rows, sums),
                        2 => panel::<F, 2>((&unpacked, &f), rows, sums),
                        3 => panel::<F, 3>((&unpacked, &f), rows, sums),
                        4 => panel::<F, 4>((&unpacked, &f), rows, sums),
                        5 => panel::<F, 5>((&unpacked, &f), rows, sums),
                        _ => panel::<F, PANEL>((&unpacked, &f), rows, sums),
                    }
                    m += size;
                }
            }
        }
    }
    for (m, sums) in sums.0[..count].iter().enumerate() {
        sink.put(rows.start + m, sums);
    }
}
