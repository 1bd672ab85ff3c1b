//! Stored numbers to 32-bit floats: the scalar specification of every format. Not fast, and not meant to be.
//!
//! Block layouts are those of ggml (`ggml-common.h`): little-endian, scales in half precision.

use super::Format;
use half::{bf16, f16};

/// The numbers of whole blocks. Bytes after the last whole block are left out.
pub fn dequantise(format: Format, bytes: &[u8]) -> Vec<f32> {
    let (numbers, size) = format.block();
    let mut out = Vec::with_capacity(bytes.len() / size * numbers);
    for block in bytes.chunks_exact(size) {
        match format {
            Format::F32 => out.push(f32::from_le_bytes([block[0], block[1], block[2], block[3]])),
            Format::F16 => out.push(half(block)),
            Format::Bf16 => out.push(bf16::from_le_bytes([block[0], block[1]]).to_f32()),
            Format::Q8_0 => out.extend(block[2..].iter().map(|q| half(block) * f32::from(*q as i8))),
            Format::Q4_0 => q4_0(block, &mut out),
            Format::Q4K => q4_k(block, &mut out),
            Format::Q5K => q5_k(block, &mut out),
            Format::Q6K => q6_k(block, &mut out),
            Format::Mxfp4 => mxfp4(block, &mut out),
        }
    }
    out
}

/// The half-precision number at the beginning of `bytes`.
pub(super) fn half(bytes: &[u8]) -> f32 {
    f16::from_le_bytes([bytes[0], bytes[1]]).to_f32()
}

/// `d` (2 bytes), 16 bytes: low nibbles are numbers 0 to 15, high ones 16 to 31; `d * (q - 8)`.
fn q4_0(block: &[u8], out: &mut Vec<f32>) {
    let d = half(block);
    let quants = &block[2..];
    out.extend(quants.iter().map(|q| d * (f32::from(q & 15) - 8.0)));
    out.extend(quants.iter().map(|q| d * (f32::from(q >> 4) - 8.0)));
}

/// Scale and minimum `index` of the eight that Q4_K and Q5_K pack in 12 bytes, six bits each.
///
/// ```text
/// bytes 0..4   low 6 bits scales 0..4, high 2 bits: bits 4, 5 of scales 4..8
/// bytes 4..8   the same of minima
/// bytes 8..12  low nibbles: bits 0..4 of scales 4..8, high nibbles: of minima 4..8
/// ```
pub(super) fn scale_and_minimum(packed: &[u8], index: usize) -> (f32, f32) {
    let (scale, minimum) = if index < 4 {
        (packed[index] & 63, packed[index + 4] & 63)
    } else {
        let low = packed[index + 4];
        ((low & 15) | (packed[index - 4] >> 6 << 4), (low >> 4) | (packed[index] >> 6 << 4))
    };
    (f32::from(scale), f32::from(minimum))
}

/// `d`, `dmin`, 12 bytes of scales, 128 bytes: each 32 bytes are two groups of 32, low nibbles then high ones.
fn q4_k(block: &[u8], out: &mut Vec<f32>) {
    let (d, dmin) = (half(block), half(&block[2..]));
    for (pair, quants) in block[16..].chunks_exact(32).enumerate() {
        for (group, shift) in [(2 * pair, 0), (2 * pair + 1, 4)] {
            let (scale, minimum) = scale_and_minimum(&block[4..16], group);
            let (scale, minimum) = (d * scale, dmin * minimum);
            out.extend(quants.iter().map(|q| scale * f32::from((q >> shift) & 15) - minimum));
        }
    }
}

/// As Q4_K, with 32 bytes of fifth bits before the nibbles: bit `group` of byte `i` belongs to number `i` of the group.
fn q5_k(block: &[u8], out: &mut Vec<f32>) {
    let (d, dmin) = (half(block), half(&block[2..]));
    let fifth = &block[16..48];
    for (pair, quants) in block[48..].chunks_exact(32).enumerate() {
        for (group, shift) in [(2 * pair, 0), (2 * pair + 1, 4)] {
            let (scale, minimum) = scale_and_minimum(&block[4..16], group);
            let (scale, minimum) = (d * scale, dmin * minimum);
            let numbers = quants.iter().zip(fifth).map(|(q, high)| ((q >> shift) & 15) | ((high >> group & 1) << 4));
            out.extend(numbers.map(|q| scale * f32::from(q) - minimum));
        }
    }
}

/// 128 bytes of low nibbles, 64 of upper bit pairs, 16 signed scales, `d`. Each half of the block is four groups of 32
/// whose nibbles lie in 64 bytes (groups 0 and 2 in the first 32, 1 and 3 in the second) and whose upper bits in 32.
fn q6_k(block: &[u8], out: &mut Vec<f32>) {
    let d = half(&block[208..]);
    for part in 0..2 {
        let low = &block[64 * part..64 * part + 64];
        let high = &block[128 + 32 * part..160 + 32 * part];
        let scales = &block[192 + 8 * part..200 + 8 * part];
        for group in 0..4 {
            for i in 0..32 {
                let nibble = (low[i + 32 * (group & 1)] >> (4 * (group >> 1))) & 15;
                let q = nibble | ((high[i] >> (2 * group) & 3) << 4);
                let scale = f32::from(scales[2 * group + i / 16] as i8);
                out.push(d * scale * (f32::from(q) - 32.0));
            }
        }
    }
}

/// What the sixteen four-bit floats (two bits of exponent, one of mantissa) mean.
pub(super) const E2M1: [f32; 16] =
    [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0];

/// An exponent (`2^(e - 127)`), 16 bytes: low nibbles are numbers 0 to 15, high ones 16 to 31.
fn mxfp4(block: &[u8], out: &mut Vec<f32>) {
    let scale = f64::from(i32::from(block[0]) - 127).exp2() as f32;
    let quants = &block[1..];
    out.extend(quants.iter().map(|q| scale * E2M1[usize::from(q & 15)]));
    out.extend(quants.iter().map(|q| scale * E2M1[usize::from(q >> 4)]));
}
