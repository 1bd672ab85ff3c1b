//! A weight matrix ready to multiply: rows interleaved in tiles of 32 ([`TILE`]), the format's own bits kept. Not
//! here: where weights come from, and threads: a caller gives each thread its own range of tiles.
//!
//! The product is `out[m][n] = sum over k of a[m][k] w[n][k]`. The specification is [`Path::Scalar`]: weights
//! dequantised to f32 by `blocks.rs`, activations as [`Activations::row`] has them, summed in f64. The others are
//! within a normalised mean squared error of 1e-11 of it: for quantised formats the sums over 16 or 32 columns are
//! exact integers, and the scaled sums of blocks are added in f32 from the first column to the last; for
//! floating-point formats products are fused and added in f32 in that order. The AVX-512 path has the bits of the AVX2
//! path for floating-point formats.
//!
//! The order is the same for every number of rows, so each path gives a row the same bits in every batch.

use super::activations::{Activations, Operand};
use super::blocks::Format;
use super::interleave;
use crate::{pages, turns};
use std::ops::Range;

/// Rows of a tile, the unit in which a product is divided.
pub const TILE: usize = interleave::ROWS;

/// Tiles of one row of activations between two looks whether others wait for this thread: some 30 us. A tile of hundreds of
/// rows takes some hundreds.
const LOOK: usize = 16;

/// Alignment of the first tile, in bytes; every tile is a multiple of it for the quantised formats.
const ALIGNMENT: usize = 64;

/// Which kernel computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Path {
    /// The best this machine has.
    Auto,
    /// The specification; runs everywhere, slowly.
    Scalar,
    /// AVX2, FMA and F16C; as [`Path::Scalar`] where they are missing.
    Avx2,
    /// AVX-512 F, BW, VL and VNNI beside those; as [`Path::Avx2`] where they are missing.
    Avx512,
}

impl Path {
    /// Every path, for tests and benchmarks.
    pub const ALL: [Path; 4] = [Path::Auto, Path::Scalar, Path::Avx2, Path::Avx512];

    /// What runs here: never [`Path::Auto`]. The place to choose NEON once it exists.
    pub(super) fn resolve(self) -> Path {
        #[cfg(target_arch = "x86_64")]
        if self != Path::Scalar
            && is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c")
        {
            let wide = is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512vl")
                && is_x86_feature_detected!("avx512vnni");
            return if wide && self != Path::Avx2 { Path::Avx512 } else { Path::Avx2 };
        }
        Path::Scalar
    }
}

/// A weight matrix `[rows, cols]`, in tiles of [`TILE`] rows; the last one is padded with zeros.
pub struct Packed {
    format: Format,
    rows: usize,
    cols: usize,
    tile_bytes: usize,
    /// Tiles from `start` on, which is where memory is aligned; nothing before they are asked for.
    data: Vec<u8>,
    start: usize,
}

impl std::fmt::Debug for Packed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Packed({:?}, {} x {})", self.format, self.rows, self.cols)
    }
}

/// A tile that is still to be filled.
#[derive(Debug)]
pub struct Vacant<'a> {
    /// The rows of the matrix that belong here.
    pub rows: Range<usize>,
    format: Format,
    row_bytes: usize,
    tile: &'a mut [u8],
}

impl Vacant<'_> {
    /// Interleaves `bytes`: `rows.len()` whole rows.
    ///
    /// # Panics
    /// When there are more or fewer.
    pub fn pack(self, bytes: &[u8]) {
        assert_eq!(bytes.len(), self.rows.len() * self.row_bytes, "{} rows", self.rows.len());
        interleave::pack(self.format, bytes, self.row_bytes, self.tile);
    }
}

impl Packed {
    /// Packs a whole matrix: `bytes` is `rows` rows of `cols` weights in `format`, one after the other.
    ///
    /// # Errors
    /// As [`Packed::vacant`], and when `bytes` has another length than that.
    pub fn new(format: Format, rows: usize, cols: usize, bytes: &[u8]) -> Result<Packed, String> {
        let mut packed = Packed::vacant(format, rows, cols)?;
        let row_bytes = bytes.len() / rows;
        if format.row_bytes(cols) != Some(row_bytes) || row_bytes * rows != bytes.len() {
            return Err(format!("{} bytes are not {rows} x {cols} weights in {format:?}", bytes.len()));
        }
        for tile in packed.tiles_mut() {
            let range = tile.rows.start * row_bytes..tile.rows.end * row_bytes;
            tile.pack(&bytes[range]);
        }
        Ok(packed)
    }

    /// A matrix to be filled by [`Packed::tiles_mut`], from several threads if need be. It takes no memory before that, and
    /// has no product.
    ///
    /// # Errors
    /// When it is empty, its rows are not whole blocks, or its size overflows.
    pub fn vacant(format: Format, rows: usize, cols: usize) -> Result<Packed, String> {
        if rows == 0 || cols == 0 {
            return Err(format!("a matrix of {rows} x {cols} weights is empty"));
        }
        if !cols.is_multiple_of(format.block()) {
            return Err(format!("{cols} columns are not whole blocks of {} in {format:?}", format.block()));
        }
        let size = interleave::tile_bytes(format, cols)
            .and_then(|tile| Some((tile, rows.div_ceil(TILE).checked_mul(tile)?.checked_add(ALIGNMENT)?)))
            .filter(|(_, total)| *total <= isize::MAX as usize);
        let Some((tile_bytes, _)) = size else {
            return Err(format!("{rows} x {cols} weights in {format:?} are too many"));
        };
        Ok(Packed { format, rows, cols, tile_bytes, data: Vec::new(), start: 0 })
    }

    /// The tiles to fill, in order; of zeros at first.
    pub fn tiles_mut(&mut self) -> impl Iterator<Item = Vacant<'_>> {
        if self.data.is_empty() {
            self.data = pages::zeros(self.bytes());
            self.start = self.data.as_ptr().align_offset(ALIGNMENT).min(ALIGNMENT);
        }
        let (format, rows, cols) = (self.format, self.rows, self.cols);
        let row_bytes = cols / format.block() * format.block_bytes();
        let tiles = self.data[self.start..].chunks_exact_mut(self.tile_bytes).take(rows.div_ceil(TILE));
        tiles.enumerate().map(move |(i, tile)| {
            let rows = i * TILE..((i + 1) * TILE).min(rows);
            Vacant { rows, format, row_bytes, tile }
        })
    }

    /// The format of the weights.
    pub fn format(&self) -> Format {
        self.format
    }

    /// Number of rows: values that a product has for each row of activations.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Number of tiles.
    pub fn tiles(&self) -> usize {
        self.rows.div_ceil(TILE)
    }

    /// Bytes that it takes once it is filled.
    pub fn bytes(&self) -> usize {
        self.tiles() * self.tile_bytes + ALIGNMENT
    }

    /// The activations that these weights multiply.
    pub fn operand(&self) -> Operand {
        if self.format.is_float() { Operand::Float } else { Operand::Int8 }
    }

    /// The weights of one row, dequantised: an embedding, or the specification.
    ///
    /// # Panics
    /// When there is no such row, or `out` has not `cols` places.
    pub fn row(&self, row: usize, out: &mut [f32]) {
        assert!(row < self.rows && out.len() == self.cols, "row {row} of {self:?}");
        let mut bytes = vec![0; self.cols / self.format.block() * self.format.block_bytes()];
        interleave::unpack(self.format, self.tile(row / TILE), row % TILE, &mut bytes);
        self.format.dequantise(&bytes, out);
    }

    /// The product with `a`, for the rows of `tiles`.
    ///
    /// `out` has a slice for each row of `a`, with a place for each weight row of `tiles`: see [`columns`] for
    /// dividing a row-major matrix between threads.
    ///
    /// # Panics
    /// When the shapes do not fit, or `a` is in another form than [`Packed::operand`].
    pub fn multiply(&self, tiles: Range<usize>, a: &Activations, out: &mut [&mut [f32]]) {
        self.multiply_on(Path::Auto, tiles, a, out);
    }

    /// [`Packed::multiply`] by a given path.
    pub fn multiply_on(&self, path: Path, tiles: Range<usize>, a: &Activations, out: &mut [&mut [f32]]) {
        assert!(tiles.start <= tiles.end && tiles.end <= self.tiles(), "tiles {tiles:?} of {}", self.tiles());
        let width = (tiles.end * TILE).min(self.rows).saturating_sub(tiles.start * TILE);
        assert_eq!((a.cols(), a.operand()), (self.cols, self.operand()), "activations for {self:?}");
        assert_eq!(out.len(), a.rows(), "a slice for each row of activations");
        assert!(out.iter().all(|row| row.len() == width), "a place for each of {width} weight rows");
        if out.is_empty() {
            return;
        }
        let path = path.resolve();
        let breath = (LOOK / out.len()).max(1);
        for tile in tiles.clone() {
            let at = (tile - tiles.start) * TILE;
            let mut sink = Sink { out, at, width: TILE.min(width - at) };
            match path {
                #[cfg(target_arch = "x86_64")]
                Path::Avx2 => avx2(self.format, self.tile(tile), a, &mut sink),
                #[cfg(target_arch = "x86_64")]
                Path::Avx512 => avx512(self.format, self.tile(tile), a, &mut sink),
                _ => self.specification(tile, a, &mut sink),
            }
            if (at / TILE).is_multiple_of(breath) {
                turns::give();
            }
        }
    }

    fn tile(&self, at: usize) -> &[u8] {
        &self.data[self.start + at * self.tile_bytes..][..self.tile_bytes]
    }

    fn specification(&self, tile: usize, a: &Activations, sink: &mut Sink<'_, '_>) {
        let (mut weights, mut row) = (vec![0.0; self.cols], vec![0.0; self.cols]);
        for r in 0..sink.width {
            self.row(tile * TILE + r, &mut weights);
            for m in 0..a.rows() {
                a.row(m, &mut row);
                let sum: f64 = weights.iter().zip(&row).map(|(w, x)| f64::from(*w) * f64::from(*x)).sum();
                sink.out[m][sink.at + r] = sum as f32;
            }
        }
    }
}

/// Runs the AVX2 kernel of `format` on one tile.
#[cfg(target_arch = "x86_64")]
fn avx2(format: Format, tile: &[u8], a: &Activations, sink: &mut Sink<'_, '_>) {
    use super::{float_avx2, formats_avx2, nibbles_avx2, q8_avx2};
    // SAFETY: `Path::resolve` found AVX2, FMA and F16C. The tile is whole blocks of its format, as many as there are
    // blocks of activations, which are in the form that the format wants and have rows: `multiply_on` checked.
    #[allow(unsafe_code)]
    unsafe {
        match format {
            Format::F32 => float_avx2::multiply::<float_avx2::F32>(tile, a, sink),
            Format::F16 => float_avx2::multiply::<float_avx2::F16>(tile, a, sink),
            Format::Bf16 => float_avx2::multiply::<float_avx2::Bf16>(tile, a, sink),
            Format::Q8_0 => q8_avx2::multiply(tile, a, sink),
            Format::Q4_0 => nibbles_avx2::multiply::<formats_avx2::Q4_0>(tile, a, sink),
            Format::Q4K => nibbles_avx2::multiply::<formats_avx2::Q4K>(tile, a, sink),
            Format::Q5K => nibbles_avx2::multiply::<formats_avx2::Q5K>(tile, a, sink),
            Format::Q6K => nibbles_avx2::multiply::<formats_avx2::Q6K>(tile, a, sink),
        }
    }
}

/// Runs the AVX-512 kernel of `format` on one tile.
#[cfg(target_arch = "x86_64")]
fn avx512(format: Format, tile: &[u8], a: &Activations, sink: &mut Sink<'_, '_>) {
    use super::float_avx512;
    use super::formats_avx512::{Q4_0, Q4K, Q5K, Q6K, Q8_0};
    use super::vnni_avx512::multiply;
    // SAFETY: `Path::resolve` found AVX-512 F, BW, VL and VNNI; the rest as in `avx2`.
    #[allow(unsafe_code)]
    unsafe {
        match format {
            Format::F32 => float_avx512::multiply::<float_avx512::F32>(tile, a, sink),
            Format::F16 => float_avx512::multiply::<float_avx512::F16>(tile, a, sink),
            Format::Bf16 => float_avx512::multiply::<float_avx512::Bf16>(tile, a, sink),
            Format::Q8_0 => multiply::<Q8_0>(tile, a, sink),
            Format::Q4_0 => multiply::<Q4_0>(tile, a, sink),
            Format::Q4K => multiply::<Q4K>(tile, a, sink),
            Format::Q5K => multiply::<Q5K>(tile, a, sink),
            Format::Q6K => multiply::<Q6K>(tile, a, sink),
        }
    }
}

/// Sums of `N` rows of activations with the rows of a tile. Aligned, so that no vector crosses a cache line.
#[repr(align(64))]
pub(super) struct Sums<const N: usize>(pub(super) [[f32; TILE]; N]);

impl<const N: usize> Sums<N> {
    pub(super) const ZERO: Self = Sums([[0.0; TILE]; N]);
}

/// Where a kernel puts the sums of one tile.
pub(super) struct Sink<'a, 'b> {
    out: &'a mut [&'b mut [f32]],
    at: usize,
    width: usize,
}

impl Sink<'_, '_> {
    /// Where [`Sink::put`] will write the sums of row `m`, to be fetched early: in a wide matrix each row's place is in
    /// memory of its own.
    #[cfg(target_arch = "x86_64")]
    pub(super) fn place(&self, m: usize) -> *const f32 {
        self.out[m].as_ptr().wrapping_add(self.at)
    }

    /// The sums of row `m` of the activations with the 32 rows of the tile.
    #[inline(always)]
    pub(super) fn put(&mut self, m: usize, sums: &[f32; TILE]) {
        self.out[m][self.at..self.at + self.width].copy_from_slice(&sums[..self.width]);
    }
}

/// Divides a row-major matrix of `width` columns at the given columns (in tiles of [`TILE`]): for each range between
/// two cuts, a slice of every row.
///
/// # Panics
/// When the cuts are not in order, or beyond `width`.
pub fn columns<'a>(matrix: &'a mut [f32], width: usize, cuts: &[usize]) -> Vec<Vec<&'a mut [f32]>> {
    let mut parts: Vec<Vec<&mut [f32]>> = cuts.iter().map(|_| Vec::with_capacity(matrix.len() / width)).collect();
    parts.push(Vec::with_capacity(matrix.len() / width));
    for row in matrix.chunks_exact_mut(width) {
        let (mut rest, mut start) = (row, 0);
        for (cut, part) in cuts.iter().map(|tile| (tile * TILE).min(width)).zip(&mut parts) {
            let (left, right) = rest.split_at_mut(cut - start);
            part.push(left);
            (rest, start) = (right, cut);
        }
        if let Some(last) = parts.last_mut() {
            last.push(rest);
        }
    }
    parts
}

#[cfg(test)]
#[path = "packed_tests.rs"]
pub(super) mod tests;
