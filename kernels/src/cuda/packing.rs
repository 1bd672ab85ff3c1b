//! Puts codes, scales and minima as the kernels of [`super::stored`] read them: see `cuda/stored.cuh`.

use super::memory::{Bf16, Misuse};
use super::stored::{Kind, Layout, TOGETHER};

/// Rows of a matrix as they come from a file: number = scale * code - minimum.
#[derive(Clone, Copy, Debug)]
pub struct Plain<'a> {
    /// `[rows, inputs]`, one a byte.
    pub codes: &'a [u8],
    /// `[rows, groups]`
    pub scales: &'a [f32],
    /// Likewise, or empty where all are 0.
    pub minima: &'a [f32],
}

/// Rows as the device reads them. Those of whole multiples of [`TOGETHER`] rows may be put one behind the other.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Packed {
    /// See [`Layout::codes_len`].
    pub codes: Vec<u8>,
    /// See [`Layout::scales_len`].
    pub scales: Vec<u16>,
    /// See [`Layout::factors_len`].
    pub factors: Vec<f32>,
}

/// Packs whole rows; what the last [`TOGETHER`] lack is filled with zeros.
///
/// # Errors
/// The layout is none that the kernels know, or arrays do not fit each other.
pub fn pack(layout: &Layout, plain: &Plain<'_>) -> Result<Packed, Misuse> {
    let (inputs, groups) = (layout.inputs, layout.groups());
    let rows = plain.codes.len() / inputs.max(1);
    let fits = plain.codes.len() == rows * inputs && plain.scales.len() == rows * groups;
    let minima = plain.minima.is_empty() || (layout.kind.minima() && plain.minima.len() == rows * groups);
    if !(layout.is_known() && fits && minima) {
        return Err(Misuse(format!("{rows} rows do not fit {layout:?}")));
    }
    let mut packed = Packed {
        codes: vec![0; layout.codes_len(rows)],
        scales: vec![0; layout.scales_len(rows)],
        factors: vec![1.0; layout.factors_len(rows)],
    };
    for row in 0..rows {
        let codes = &plain.codes[row * inputs..(row + 1) * inputs];
        let block = row / TOGETHER * TOGETHER * inputs;
        match layout.kind.bits() {
            8 => eight(&mut packed.codes[block..block + TOGETHER * inputs], row % TOGETHER, codes, layout.kind),
            _ => four(&mut packed.codes[block / 2..(block + TOGETHER * inputs) / 2], row % TOGETHER, codes),
        }
        let of_row = row * groups..(row + 1) * groups;
        let minima = plain.minima.get(of_row.clone()).unwrap_or(&[]);
        packed.factors[row] = put_scales(layout, &mut packed.scales, row, &plain.scales[of_row], minima);
    }
    Ok(packed)
}

/// Puts the codes of a row into its block of 32.
fn eight(block: &mut [u8], row: usize, codes: &[u8], kind: Kind) {
    let flip = if kind == Kind::Int8 { 128 } else { 0 };
    let (set, half, lane) = (row / 16, row / 8 % 2, row % 8 * 4);
    for (unit, codes) in block.chunks_exact_mut(1024).zip(codes.chunks_exact(32)) {
        let of_row = &mut unit[set * 512 + lane * 16..][..64];
        for (t, of_lane) in of_row.chunks_exact_mut(16).enumerate() {
            for (i, word) in of_lane[8 * half..8 * half + 8].chunks_exact_mut(4).enumerate() {
                let from = &codes[16 * i + 2 * t..];
                word.copy_from_slice(&[from[0] ^ flip, from[8] ^ flip, from[1] ^ flip, from[9] ^ flip]);
            }
        }
    }
}

/// The same of half bytes.
fn four(block: &mut [u8], row: usize, codes: &[u8]) {
    let (word, lane) = (row / 8, row % 8 * 4);
    for (unit, codes) in block.chunks_exact_mut(512).zip(codes.chunks_exact(32)) {
        let of_row = &mut unit[lane * 16..][..64];
        for (t, of_lane) in of_row.chunks_exact_mut(16).enumerate() {
            let nibble = |index: usize| codes[8 * (index % 4) + 2 * t + index / 4] & 15;
            let bytes = [0, 1, 2, 3].map(|byte| nibble(2 * byte) | nibble(2 * byte + 1) << 4);
            of_lane[4 * word..4 * word + 4].copy_from_slice(&bytes);
        }
    }
}

/// Puts a row's scales and minima, divided by the factor that is returned.
fn put_scales(layout: &Layout, to: &mut [u16], row: usize, scales: &[f32], minima: &[f32]) -> f32 {
    let (kind, groups) = (layout.kind, layout.groups());
    let largest = scales.iter().fold(0.0f32, |most, scale| most.max(scale.abs()));
    let largest = minima.iter().fold(largest, |most, minimum| most.max(minimum.abs() / 4096.0));
    // One scale needs no other number; several have their power of two in common.
    let factor = match scales {
        [scale] if !kind.minima() && usable(scale.abs()) => *scale,
        _ => power_below(largest),
    };
    let per_row = 4 * kind.numbers_of_scale();
    let (place, lane) = (row % TOGETHER / 8, row % 8);
    let begin = row / TOGETHER * groups * per_row * 8;
    for (group, scale) in scales.iter().enumerate() {
        let at = begin + (group * 8 + lane) * per_row + place;
        let minimum = minima.get(group).copied().unwrap_or(0.0);
        let scaled = scale / factor;
        to[at] = match kind {
            Kind::Int8 | Kind::Uint8 => half(scaled),
            Kind::Int4 | Kind::Uint4 => Bf16::from_f32(scaled).0,
            Kind::E4m3 => Bf16::from_f32(scaled * 2f32.powi(120)).0,
            Kind::E2m1 => Bf16::from_f32(scaled * 2f32.powi(126)).0,
        };
        match kind {
            Kind::Uint8 => to[at + 4] = half(minimum / factor),
            Kind::Uint4 => to[at + 4] = Bf16::from_f32((minimum - 8.0 * scale) / factor).0,
            Kind::E4m3 => {
                let rest = scaled * 2f32.powi(120) - Bf16(to[at]).to_f32();
                to[at + 4] = Bf16::from_f32(rest).0;
            }
            _ => {}
        }
    }
    factor
}

/// Can numbers be divided by it?
fn usable(number: f32) -> bool {
    (f32::MIN_POSITIVE..=f32::MAX).contains(&number)
}

/// The largest power of two that is not above a number; 1 where there is none.
fn power_below(number: f32) -> f32 {
    if usable(number) { f32::from_bits(number.to_bits() & 0x7f80_0000) } else { 1.0 }
}

/// Half precision, rounded to the nearest; what is too large becomes the largest.
fn half(number: f32) -> u16 {
    let (size, sign) = (number.abs().min(65_504.0), (number.to_bits() >> 16) as u16 & 0x8000);
    let bits = size.to_bits();
    // Below 2^-14 the steps are those of floats from 0.5 on.
    let rounded = match size < 2f32.powi(-14) {
        true => (size + 0.5).to_bits() - 0.5f32.to_bits(),
        false => ((bits + 0xfff + (bits >> 13 & 1)) >> 13) - (112 << 10),
    };
    sign | rounded as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_are_rounded_to_the_nearest() {
        let numbers = [0.0, 1.0, -1.0, 65_504.0, 1e9, 2f32.powi(-24), 2f32.powi(-14), 1.0 + 2f32.powi(-11), 0.333];
        let bits = [0, 0x3c00, 0xbc00, 0x7bff, 0x7bff, 1, 0x0400, 0x3c00, 0x3554];
        assert_eq!(numbers.map(half), bits);
    }

    #[test]
    fn what_does_not_fit_is_told() {
        let layout = Layout { kind: Kind::Int8, group: 32, inputs: 64 };
        let plain = Plain { codes: &[0; 64], scales: &[1.0; 2], minima: &[] };
        let packed = pack(&layout, &plain).unwrap();
        assert_eq!((packed.codes.len(), packed.scales.len(), packed.factors.len()), (32 * 64, 64, 32));
        assert!(pack(&layout, &Plain { scales: &[1.0], ..plain }).is_err());
        assert!(pack(&layout, &Plain { minima: &[1.0; 2], ..plain }).is_err());
        assert!(pack(&Layout { group: 24, ..layout }, &plain).is_err());
    }
}
