//! The interleaved layout: 32 rows of a matrix become one tile, in which what a vector kernel loads lies side by side.
//! Pure data movement, and its inverse: every bit of the source is kept (only the 6-bit scales of Q4_K and Q5_K are
//! shifted), and a tile takes exactly the bytes of its rows. Not here: arithmetic.
//!
//! A tile is a run of blocks along the columns. `r` is a row of the tile, `h` a half of it, `l` a row of that half:
//!
//! ```text
//! F32           [column][r]                       f32
//! F16           [column][r]                       u16
//! BF16          [column pair][r][2]               u16: a 32-bit lane holds an even and an odd column
//! Q8_0          [d: r]  [word 8][r][4]                                          64 + 1024 bytes a block of 32
//! Q4_0          [d: r]  [h][word 4][l][4]                                       64 +  512
//! Q4_K          [d: r][dmin: r]  [h][scales 192]  [h][word 32][l][4]            128 + 384 + 4096 a block of 256
//! Q5_K          [d: r][dmin: r]  [h][scales 192]  [h]([high 8][l][4] [word 32][l][4])     + 1024
//! Q6_K          [d: r]  [h]([scale 16][l] [part 2]([word 16][l][4] [high 8][l][4]))       64 + 2 (256 + 2 (1024 + 512))
//! ```
//!
//! A word is 4 consecutive bytes of a row's block: words of 16 rows fill a cache line, and a register of AVX-512; AVX2 takes
//! 8 of them. What a half needs lies together, so that a product reads on and on. Scales of a half are
//! `[low 64][low of minima 64][high 64]`: byte `16 s + l` has sub-block s in its low nibble and s + 4 in its high one; the
//! third part holds their upper two bits (scale s, scale s + 4, minimum s, minimum s + 4, from the lowest bits up).

use super::blocks::{Format, scale_and_min};
#[cfg(target_arch = "x86_64")]
use super::interleave_x86;
use std::marker::PhantomData;

/// Rows of a tile.
pub(super) const ROWS: usize = 32;
/// Rows of a half of it, whose words lie side by side.
pub(super) const HALF: usize = 16;
/// Rows whose words share a register of AVX2.
pub(super) const GROUP: usize = 8;

/// Where the scales of the first half start in a block of Q4_K or Q5_K.
pub(super) const K_SCALES: usize = 128;
/// Bytes of a half's scales there.
pub(super) const K_SCALE_BYTES: usize = 192;
/// Where the words of Q4_K start, and the bytes of a half's.
pub(super) const Q4_K_WORDS: usize = K_SCALES + 2 * K_SCALE_BYTES;
pub(super) const Q4_K_HALF: usize = 2048;
/// Where the fifth bits of Q5_K start; their bytes, after which come a half's words; and bytes of a half.
pub(super) const Q5_K_HIGH: usize = Q4_K_WORDS;
pub(super) const Q5_K_HIGH_BYTES: usize = 512;
pub(super) const Q5_K_HALF: usize = Q5_K_HIGH_BYTES + 2048;
/// Where the halves of Q6_K start, the bytes of each, and of its scales. The rest of it are two parts of a block, of 128
/// columns each: words, then upper bits.
pub(super) const Q6_K_HALVES: usize = 64;
pub(super) const Q6_K_HALF: usize = Q6_K_SCALES + 2 * Q6_K_PART;
pub(super) const Q6_K_SCALES: usize = 256;
pub(super) const Q6_K_PART: usize = Q6_K_PART_WORDS + 512;
pub(super) const Q6_K_PART_WORDS: usize = 1024;

/// Columns that are packed at a time: a block, or for floating point what 512 bytes of a row hold.
const fn step(format: Format) -> usize {
    match format {
        Format::F32 => 128,
        Format::F16 | Format::Bf16 => 256,
        _ => format.block(),
    }
}

/// Bytes of a tile of a matrix with `cols` columns; none where they overflow. Odd columns of BF16 are padded.
pub(super) fn tile_bytes(format: Format, cols: usize) -> Option<usize> {
    let cols = if format == Format::Bf16 { cols.checked_next_multiple_of(2)? } else { cols };
    format.row_bytes(cols)?.checked_mul(ROWS)
}

/// Pieces of a row that lie side by side, and in a tile at equal distances: piece `i`, of `UNIT` bytes, is at
/// `from + UNIT i` of the one and `to + stride i` of the other. The next row's piece is `next` bytes further in the tile.
pub(super) struct Strip<const UNIT: usize> {
    pub(super) from: usize,
    pub(super) to: usize,
    pub(super) count: usize,
    pub(super) stride: usize,
    pub(super) next: usize,
}

/// What is done with each strip. In a trait rather than a function, so that all of it is inlined with its sizes known.
trait Visit {
    fn strip<const UNIT: usize>(&mut self, strip: Strip<UNIT>);
}

/// Visits the strips of row `r` in one step. `length` is the bytes of the row that are in this step.
#[inline(always)]
fn strips(format: Format, r: usize, length: usize, visit: &mut impl Visit) {
    #[inline(always)]
    fn put<const UNIT: usize>(visit: &mut impl Visit, count: usize, from: usize, to: usize, stride: usize) {
        visit.strip(Strip::<UNIT> { from, to, count, stride, next: UNIT });
    }
    let (h, l) = (r / HALF, r % HALF);
    match format {
        Format::F32 => put::<4>(visit, length / 4, 0, 4 * r, 128),
        Format::F16 => put::<2>(visit, length / 2, 0, 2 * r, 64),
        Format::Bf16 => {
            put::<4>(visit, length / 4, 0, 4 * r, 128);
            let (from, to) = (length / 4 * 4, 128 * (length / 4) + 4 * r);
            visit.strip(Strip::<2> { from, to, count: length % 4 / 2, stride: 0, next: 4 });
        }
        Format::Q8_0 => {
            put::<4>(visit, 8, 2, 64 + 4 * r, 128);
            put::<2>(visit, 1, 0, 2 * r, 0);
        }
        Format::Q4_0 => {
            put::<4>(visit, 4, 2, 64 + 256 * h + 4 * l, 64);
            put::<2>(visit, 1, 0, 2 * r, 0);
        }
        Format::Q4K => {
            put::<4>(visit, 32, 16, Q4_K_WORDS + Q4_K_HALF * h + 4 * l, 64);
            put::<2>(visit, 2, 0, 2 * r, 64);
        }
        Format::Q5K => {
            let half = Q5_K_HIGH + Q5_K_HALF * h + 4 * l;
            put::<4>(visit, 8, 16, half, 64);
            put::<4>(visit, 32, 48, half + Q5_K_HIGH_BYTES, 64);
            put::<2>(visit, 2, 0, 2 * r, 64);
        }
        Format::Q6K => {
            let half = Q6_K_HALVES + Q6_K_HALF * h;
            for n in 0..2 {
                let part = half + Q6_K_SCALES + Q6_K_PART * n + 4 * l;
                put::<4>(visit, 16, 64 * n, part, 64);
                put::<4>(visit, 8, 128 + 32 * n, part + Q6_K_PART_WORDS, 64);
            }
            put::<1>(visit, 16, 192, half + l, 16);
            put::<2>(visit, 1, 208, 2 * r, 0);
        }
    }
}

/// How several rows are interleaved together.
pub(super) trait Weave {
    /// Rows of a group.
    const ROWS: usize;

    /// Interleaves a strip of a group. The first row begins with `rows`, the others follow at every `row_bytes`.
    fn weave<const UNIT: usize>(rows: &[u8], row_bytes: usize, tile: &mut [u8], strip: &Strip<UNIT>);
}

/// One by one.
struct Plain;

impl Weave for Plain {
    const ROWS: usize = 1;

    #[inline(always)]
    fn weave<const UNIT: usize>(row: &[u8], _row_bytes: usize, tile: &mut [u8], strip: &Strip<UNIT>) {
        for i in 0..strip.count {
            let piece = &row[strip.from + UNIT * i..][..UNIT];
            tile[strip.to + strip.stride * i..][..UNIT].copy_from_slice(piece);
        }
    }
}

/// Interleaves up to 32 rows of `row_bytes` each into `tile`; missing rows stay as `tile` has them.
pub(super) fn pack(format: Format, rows: &[u8], row_bytes: usize, tile: &mut [u8]) {
    #[cfg(target_arch = "x86_64")]
    if interleave_x86::pack(format, rows, row_bytes, tile) {
        return;
    }
    pack_by::<Plain>(format, rows, row_bytes, tile);
}

/// [`pack`], in groups of `W`. Inlined, so that all of it is compiled for the machine that `W` asks for.
#[inline(always)]
pub(super) fn pack_by<W: Weave>(format: Format, rows: &[u8], row_bytes: usize, tile: &mut [u8]) {
    let bytes = step(format) / format.block() * format.block_bytes();
    for start in (0..row_bytes).step_by(bytes) {
        let length = bytes.min(row_bytes - start);
        let tile = &mut tile[start * ROWS..];
        for (g, rows) in rows.chunks(W::ROWS * row_bytes).enumerate() {
            let (first, rows) = (g * W::ROWS, &rows[start..]);
            let whole = rows.len() > (W::ROWS - 1) * row_bytes;
            if whole {
                strips(format, first, length, &mut Into::<W> { rows, row_bytes, tile, weave: PhantomData });
            } else {
                for (rows, r) in rows.chunks(row_bytes).zip(first..) {
                    strips(format, r, length, &mut Into::<Plain> { rows, row_bytes, tile, weave: PhantomData });
                }
            }
            if matches!(format, Format::Q4K | Format::Q5K) {
                for (row, r) in rows.chunks(row_bytes).zip(first..) {
                    let scales = &mut tile[K_SCALES + r / HALF * K_SCALE_BYTES..][..K_SCALE_BYTES];
                    pack_scales(&row[4..16], r % HALF, scales);
                }
            }
        }
    }
}

/// A group of rows, into a tile.
struct Into<'a, W> {
    rows: &'a [u8],
    row_bytes: usize,
    tile: &'a mut [u8],
    weave: PhantomData<W>,
}

impl<W: Weave> Visit for Into<'_, W> {
    #[inline(always)]
    fn strip<const UNIT: usize>(&mut self, strip: Strip<UNIT>) {
        W::weave(self.rows, self.row_bytes, self.tile, &strip);
    }
}

/// A tile, into a row.
struct Back<'a> {
    tile: &'a [u8],
    row: &'a mut [u8],
}

impl Visit for Back<'_> {
    #[inline(always)]
    fn strip<const UNIT: usize>(&mut self, Strip { from, to, count, stride, .. }: Strip<UNIT>) {
        for i in 0..count {
            self.row[from + UNIT * i..][..UNIT].copy_from_slice(&self.tile[to + stride * i..][..UNIT]);
        }
    }
}

/// Row `r` of `tile` as the source had it.
pub(super) fn unpack(format: Format, tile: &[u8], r: usize, row: &mut [u8]) {
    let bytes = step(format) / format.block() * format.block_bytes();
    for (i, row) in row.chunks_mut(bytes).enumerate() {
        let tile = &tile[i * bytes * ROWS..];
        strips(format, r, row.len(), &mut Back { tile, row });
        if matches!(format, Format::Q4K | Format::Q5K) {
            let scales = &tile[K_SCALES + r / HALF * K_SCALE_BYTES..][..K_SCALE_BYTES];
            unpack_scales(scales, r % HALF, &mut row[4..16]);
        }
    }
}

/// One row's 12 bytes of 6-bit scales and minima into its half's 192.
fn pack_scales(source: &[u8], l: usize, scales: &mut [u8]) {
    for s in 0..4 {
        let ((scale, min), (scale4, min4)) = (scale_and_min(source, s), scale_and_min(source, s + 4));
        scales[16 * s + l] = (scale & 15) | (scale4 & 15) << 4;
        scales[64 + 16 * s + l] = (min & 15) | (min4 & 15) << 4;
        scales[128 + 16 * s + l] = scale >> 4 | scale4 >> 4 << 2 | min >> 4 << 4 | min4 >> 4 << 6;
    }
}

/// The inverse of [`pack_scales`].
fn unpack_scales(scales: &[u8], l: usize, row: &mut [u8]) {
    for s in 0..4 {
        let (low, mins, high) = (scales[16 * s + l], scales[64 + 16 * s + l], scales[128 + 16 * s + l]);
        let (scale, scale4) = ((low & 15) | (high & 3) << 4, low >> 4 | (high >> 2 & 3) << 4);
        let (min, min4) = ((mins & 15) | (high >> 4 & 3) << 4, mins >> 4 | high >> 6 << 4);
        row[s] = scale | scale4 >> 4 << 6;
        row[s + 4] = min | min4 >> 4 << 6;
        row[s + 8] = (scale4 & 15) | (min4 & 15) << 4;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bit_survives() {
        let mut random = crate::llm::packed::tests::Random(7);
        for format in Format::ALL {
            let all = if format.is_float() { vec![1, 2, 7, 32, 33, 95, 300] } else { vec![256, 512, 768] };
            for cols in all {
                let bytes = format.row_bytes(cols).unwrap();
                let rows: Vec<u8> = (0..29 * bytes).map(|_| random.next() as u8).collect();
                let mut tile = vec![0; tile_bytes(format, cols).unwrap()];
                pack(format, &rows, bytes, &mut tile);
                let mut back = vec![0; bytes];
                for (r, row) in rows.chunks_exact(bytes).enumerate() {
                    unpack(format, &tile, r, &mut back);
                    assert_eq!(row, back, "{format:?} x {cols}, row {r}");
                }
                unpack(format, &tile, 30, &mut back);
                assert!(back.iter().all(|&b| b == 0));
            }
        }
    }

    /// Row by row, eight at a time, and as this machine does it best.
    #[test]
    fn every_way_gives_the_same_tile() {
        let mut random = crate::llm::packed::tests::Random(11);
        for format in Format::ALL {
            for (cols, count) in [(256, 32), (768, 32), (768, 29), (512, 7)] {
                let cols = if format.is_float() { cols + 45 } else { cols };
                let bytes = format.row_bytes(cols).unwrap();
                let rows: Vec<u8> = (0..count * bytes).map(|_| random.next() as u8).collect();
                let vacant = || vec![0; tile_bytes(format, cols).unwrap()];
                let (mut plain, mut best) = (vacant(), vacant());
                pack_by::<Plain>(format, &rows, bytes, &mut plain);
                pack(format, &rows, bytes, &mut best);
                assert!(plain == best, "{format:?}, {count} rows of {cols}");
                #[cfg(target_arch = "x86_64")]
                if is_x86_feature_detected!("avx2") {
                    let mut eight = vacant();
                    // SAFETY: there is AVX2.
                    #[allow(unsafe_code)]
                    unsafe {
                        interleave_x86::pack_avx2(format, &rows, bytes, &mut eight);
                    }
                    assert!(plain == eight, "{format:?}, {count} rows of {cols}, by AVX2");
                }
            }
        }
    }

    #[test]
    fn a_tile_has_the_bytes_of_its_rows() {
        for format in Format::ALL {
            assert_eq!(tile_bytes(format, 1024), Some(32 * format.row_bytes(1024).unwrap()));
        }
        assert_eq!(Q6_K_HALVES + 2 * Q6_K_HALF, 32 * 210);
        assert_eq!(Q5_K_HIGH + 2 * Q5_K_HALF, 32 * 176);
        assert_eq!(Q4_K_WORDS + 2 * Q4_K_HALF, 32 * 144);
    }
}
