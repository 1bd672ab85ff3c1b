//! The block formats of GGUF as plain bytes: sizes, and a scalar dequantiser for each, which is the specification of
//! what a weight is worth. Not here: how the fast kernels lay weights out (`packed.rs`), and reading files.
//!
//! Layouts follow `ggml-common.h` and `dequantize_row_*` in `ggml-quants.c` of llama.cpp. The arithmetic is done in
//! f32 in the same order as there, so that values are equal to the last bit.

/// How the weights of a row are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    /// IEEE single precision.
    F32,
    /// IEEE half precision.
    F16,
    /// The upper half of a single.
    Bf16,
    /// 32 weights: f16 scale, 32 x i8.
    Q8_0,
    /// 32 weights: f16 scale, 32 x 4 bits, offset 8.
    Q4_0,
    /// 256 weights: f16 scale and minimum, 8 x 6-bit scales and minima, 256 x 4 bits.
    Q4K,
    /// As [`Format::Q4K`] with 5 bits.
    Q5K,
    /// 256 weights: 4 + 2 bits, 16 x i8 scales, f16 scale.
    Q6K,
}

impl Format {
    /// Every format, for tests and benchmarks.
    pub const ALL: [Format; 8] =
        [Format::F32, Format::F16, Format::Bf16, Format::Q8_0, Format::Q4_0, Format::Q4K, Format::Q5K, Format::Q6K];

    /// Weights in a block.
    pub const fn block(self) -> usize {
        match self {
            Format::F32 | Format::F16 | Format::Bf16 => 1,
            Format::Q8_0 | Format::Q4_0 => 32,
            Format::Q4K | Format::Q5K | Format::Q6K => 256,
        }
    }

    /// Bytes of a block.
    pub const fn block_bytes(self) -> usize {
        match self {
            Format::F32 => 4,
            Format::F16 | Format::Bf16 => 2,
            Format::Q8_0 => 34,
            Format::Q4_0 => 18,
            Format::Q4K => 144,
            Format::Q5K => 176,
            Format::Q6K => 210,
        }
    }

    /// Are weights stored as floating point, one by one?
    pub const fn is_float(self) -> bool {
        self.block() == 1
    }

    /// Bytes of a row of `cols` weights; none where the row is not whole blocks, or too long to count.
    pub fn row_bytes(self, cols: usize) -> Option<usize> {
        if !cols.is_multiple_of(self.block()) {
            return None;
        }
        (cols / self.block()).checked_mul(self.block_bytes())
    }

    /// The weights that `bytes` stand for. `out` has room for exactly those.
    ///
    /// # Panics
    /// When `bytes` is not whole blocks, or `out` is of another length.
    pub fn dequantise(self, bytes: &[u8], out: &mut [f32]) {
        let (size, block) = (self.block_bytes(), self.block());
        assert_eq!(bytes.len() % size, 0, "whole blocks");
        assert_eq!(out.len(), bytes.len() / size * block, "a value for each weight");
        for (bytes, out) in bytes.chunks_exact(size).zip(out.chunks_exact_mut(block)) {
            match self {
                Format::F32 => out[0] = f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]),
                Format::F16 => out[0] = half(bytes),
                Format::Bf16 => out[0] = bf16_to_f32(u16::from_le_bytes([bytes[0], bytes[1]])),
                Format::Q8_0 => q8_0(bytes, out),
                Format::Q4_0 => q4_0(bytes, out),
                Format::Q4K => q4_k(bytes, out),
                Format::Q5K => q5_k(bytes, out),
                Format::Q6K => q6_k(bytes, out),
            }
        }
    }
}

/// The half-precision value that the first two bytes hold.
fn half(bytes: &[u8]) -> f32 {
    f16_to_f32(u16::from_le_bytes([bytes[0], bytes[1]]))
}

/// `[d: f16][q: 32 x i8]`: w = d q.
fn q8_0(bytes: &[u8], out: &mut [f32]) {
    let d = half(bytes);
    for (out, &q) in out.iter_mut().zip(&bytes[2..]) {
        *out = f32::from(q as i8) * d;
    }
}

/// `[d: f16][q: 16]`: low nibbles are weights 0..16, high ones 16..32; w = d (q - 8).
fn q4_0(bytes: &[u8], out: &mut [f32]) {
    let d = half(bytes);
    for (i, &q) in bytes[2..].iter().enumerate() {
        out[i] = (f32::from(q & 15) - 8.0) * d;
        out[i + 16] = (f32::from(q >> 4) - 8.0) * d;
    }
}

/// The 6-bit scale and minimum of sub-block `at` (0..8) out of the 12 bytes that hold all of a block.
pub(super) fn scale_and_min(packed: &[u8], at: usize) -> (u8, u8) {
    if at < 4 {
        (packed[at] & 63, packed[at + 4] & 63)
    } else {
        let (low, scale, min) = (packed[at + 4], packed[at - 4], packed[at]);
        ((low & 15) | (scale >> 6) << 4, (low >> 4) | (min >> 6) << 4)
    }
}

/// `[d: f16][dmin: f16][scales: 12][q: 128]`: 32 bytes of q are two sub-blocks of 32; w = d s q - dmin m.
fn q4_k(bytes: &[u8], out: &mut [f32]) {
    let (d, dmin) = (half(bytes), half(&bytes[2..]));
    for (at, out) in out.chunks_exact_mut(32).enumerate() {
        let (scale, min) = scale_and_min(&bytes[4..16], at);
        let (scale, min) = (d * f32::from(scale), dmin * f32::from(min));
        for (out, &q) in out.iter_mut().zip(&bytes[16 + at / 2 * 32..]) {
            *out = scale * f32::from(q >> (at % 2 * 4) & 15) - min;
        }
    }
}

/// `[d][dmin][scales: 12][high: 32][q: 128]`: bit i of byte l of `high` is the fifth bit of weight 32 i + l.
fn q5_k(bytes: &[u8], out: &mut [f32]) {
    let (d, dmin) = (half(bytes), half(&bytes[2..]));
    let high = &bytes[16..48];
    for (at, out) in out.chunks_exact_mut(32).enumerate() {
        let (scale, min) = scale_and_min(&bytes[4..16], at);
        let (scale, min) = (d * f32::from(scale), dmin * f32::from(min));
        for (l, (out, &q)) in out.iter_mut().zip(&bytes[48 + at / 2 * 32..]).enumerate() {
            let q = (q >> (at % 2 * 4) & 15) | (high[l] >> at & 1) << 4;
            *out = scale * f32::from(q) - min;
        }
    }
}

/// `[low: 128][high: 64][scales: 16 x i8][d: f16]`, in halves of 128 weights; w = d s (q - 32).
fn q6_k(bytes: &[u8], out: &mut [f32]) {
    let d = half(&bytes[208..]);
    for (at, out) in out.chunks_exact_mut(32).enumerate() {
        let (n, t) = (at / 4, at % 4);
        let low = &bytes[64 * n + 32 * (t % 2)..][..32];
        let high = &bytes[128 + 32 * n..][..32];
        for (l, out) in out.iter_mut().enumerate() {
            let q = (low[l] >> (t / 2 * 4) & 15) | (high[l] >> (2 * t) & 3) << 4;
            let scale = bytes[192 + 2 * at + l / 16] as i8;
            *out = d * f32::from(scale) * (f32::from(q) - 32.0);
        }
    }
}

/// The value of a half-precision number.
pub fn f16_to_f32(bits: u16) -> f32 {
    let sign = u32::from(bits & 0x8000) << 16;
    let magnitude = u32::from(bits & 0x7fff);
    let value = if magnitude >= 0x7c00 {
        // Infinity, or not a number, which becomes a quiet one as in hardware.
        let quiet = if magnitude > 0x7c00 { 0x0040_0000 } else { 0 };
        f32::from_bits(0x7f80_0000 | (magnitude & 0x3ff) << 13 | quiet)
    } else {
        // Exponents differ by 112: exact, subnormal numbers included.
        f32::from_bits(magnitude << 13) * f32::from_bits((254 - 15) << 23)
    };
    f32::from_bits(value.to_bits() | sign)
}

/// The half-precision number nearest to `value`, ties to even.
#[inline(always)]
pub fn f32_to_f16(value: f32) -> u16 {
    let bits = value.to_bits();
    let sign = (bits >> 16 & 0x8000) as u16;
    let magnitude = bits & 0x7fff_ffff;
    let rounded = if magnitude > 0x7f80_0000 {
        0x7e00 | (magnitude >> 13 & 0x1ff)
    } else if magnitude >= 0x477f_f000 {
        0x7c00
    } else if magnitude < 0x3880_0000 {
        // Subnormal: adding 0.5 puts the last place of the result at the last place of the sum.
        (f32::from_bits(magnitude) + 0.5).to_bits() - 0.5f32.to_bits()
    } else {
        (magnitude - (112 << 23) + 0xfff + (magnitude >> 13 & 1)) >> 13
    };
    sign | rounded as u16
}

/// The value of a bf16 number.
#[inline(always)]
pub fn bf16_to_f32(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

/// The bf16 number nearest to `value`, ties to even.
pub fn f32_to_bf16(value: f32) -> u16 {
    let bits = value.to_bits();
    if value.is_nan() {
        return (bits >> 16) as u16 | 0x40;
    }
    ((bits + 0x7fff + (bits >> 16 & 1)) >> 16) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_round_trip() {
        for bits in 0..=u16::MAX {
            let value = f16_to_f32(bits);
            if value.is_nan() {
                assert!(f16_to_f32(f32_to_f16(value)).is_nan());
                continue;
            }
            assert_eq!(f32_to_f16(value), bits);
            // Halfway to the next number goes to the even one.
            let next = f16_to_f32(bits.wrapping_add(1));
            if next.is_finite() && value.is_finite() && bits & 0x7fff != 0x7fff {
                let even = if bits & 1 == 0 { bits } else { bits + 1 };
                assert_eq!(f32_to_f16((value + next) / 2.0), even, "{bits:x}");
            }
        }
        assert_eq!(f16_to_f32(0x3c00), 1.0);
        assert_eq!(f16_to_f32(0x0001), 2f32.powi(-24));
        assert_eq!(f32_to_f16(65520.0), 0x7c00);
        assert_eq!(f32_to_f16(65519.0), 0x7bff);
        assert_eq!(f32_to_f16(1e-30), 0);
    }

    #[test]
    fn bf16_rounds_to_even() {
        assert_eq!(f32_to_bf16(1.0), 0x3f80);
        assert_eq!(f32_to_bf16(f32::from_bits(0x3f80_8000)), 0x3f80);
        assert_eq!(f32_to_bf16(f32::from_bits(0x3f81_8000)), 0x3f82);
        assert_eq!(f32_to_bf16(f32::MAX), 0x7f80);
        assert!(bf16_to_f32(f32_to_bf16(f32::NAN)).is_nan());
    }

    #[test]
    fn a_block_by_hand() {
        // Q4_K: d = 1, dmin = 0.5, sub-block 5 has scale 0b10_0011 and minimum 0b01_0101.
        let mut bytes = [0u8; 144];
        bytes[..2].copy_from_slice(&0x3c00u16.to_le_bytes());
        bytes[2..4].copy_from_slice(&0x3800u16.to_le_bytes());
        bytes[4 + 9] = 0b0101_0011;
        bytes[4 + 1] = 0b1000_0000;
        bytes[4 + 5] = 0b0100_0000;
        bytes[16 + 64 + 7] = 0x90;
        let mut out = [0f32; 256];
        Format::Q4K.dequantise(&bytes, &mut out);
        assert_eq!(out[5 * 32 + 7], 35.0 * 9.0 - 0.5 * 21.0);
        assert_eq!(out[5 * 32 + 8], -0.5 * 21.0);

        // Q6_K: weight 128 + 64 + 3 is the high nibble of low[64 + 3], bits 4..6 of high[32 + 3], scale 12.
        let mut bytes = [0u8; 210];
        bytes[208..].copy_from_slice(&0x3c00u16.to_le_bytes());
        bytes[64 + 3] = 0xa0;
        bytes[128 + 32 + 3] = 0b0011_0000;
        bytes[192 + 12] = -3i8 as u8;
        Format::Q6K.dequantise(&bytes, &mut out);
        assert_eq!(out[128 + 64 + 3], -3.0 * (58.0 - 32.0));

        // Q5_K: the fifth bit of weight 6 * 32 + 1.
        let mut bytes = [0u8; 176];
        bytes[..2].copy_from_slice(&0x3c00u16.to_le_bytes());
        bytes[4 + 10] = 1;
        bytes[16 + 1] = 1 << 6;
        bytes[48 + 96 + 1] = 0x0f;
        Format::Q5K.dequantise(&bytes, &mut out);
        assert_eq!(out[6 * 32 + 1], 31.0);

        let mut out = [0f32; 32];
        let mut bytes = [0x88u8; 18];
        bytes[..2].copy_from_slice(&0x4000u16.to_le_bytes());
        bytes[2 + 4] = 0x1f;
        Format::Q4_0.dequantise(&bytes, &mut out);
        assert_eq!((out[4], out[20], out[5]), (14.0, -14.0, 0.0));

        let mut bytes = [0x80u8; 34];
        bytes[..2].copy_from_slice(&0x4000u16.to_le_bytes());
        Format::Q8_0.dequantise(&bytes, &mut out);
        assert_eq!(out[31], -256.0);
    }
}
