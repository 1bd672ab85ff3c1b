//! Matrices as small codes and the numbers that make floats of them: what all quantised formats come to, so that a
//! device needs to know few.
//!
//! ```text
//! number = scale * meaning(code) - minimum, where `group` consecutive inputs of a row share scale and minimum
//!
//! Q8_0   int8,  32            Q4_0   int4,  32               Q6_K   int8,  16 (codes less 32)
//! Q5_K   uint8, 32, minima    Q4_K   uint4, 32, minima       MXFP4  e2m1,  32
//! ```

use super::Format;
use super::blocks::{E2M1, half, scale_and_minimum};
use kernels::cuda::E4m3;
use std::ops::Range;

/// Rows of a matrix as codes.
#[derive(Clone, Debug, PartialEq)]
pub struct Groups {
    /// What a code means.
    pub code: Code,
    /// Consecutive inputs that share a scale: a power of two from 16 on, or all columns.
    pub group: usize,
    /// Numbers of a row.
    pub columns: usize,
    /// `[rows, columns]`, one a byte.
    pub codes: Vec<u8>,
    /// `[rows, columns / group]`, rounded up.
    pub scales: Vec<f32>,
    /// Likewise, or empty where all are 0.
    pub minima: Vec<f32>,
}

/// What the bits of a code mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Code {
    /// -128 to 127, two's complement.
    Int8,
    /// 0 to 255.
    Uint8,
    /// 0 to 15, which mean -8 to 7.
    Int4,
    /// 0 to 15.
    Uint4,
    /// Floats of eight bits: a sign, four of exponent, three of mantissa.
    E4m3,
    /// Floats of four bits: a sign, two of exponent, one of mantissa.
    E2m1,
}

/// How a matrix is kept in its file, known before its bytes are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Stored {
    /// What a code means.
    pub code: Code,
    /// Consecutive inputs that share a scale: a power of two from 16 on, or all columns.
    pub group: usize,
    /// Are there minima?
    pub minima: bool,
}

impl Code {
    /// Bits that a code needs.
    pub fn bits(self) -> usize {
        match self {
            Code::Int8 | Code::Uint8 | Code::E4m3 => 8,
            Code::Int4 | Code::Uint4 | Code::E2m1 => 4,
        }
    }

    /// What `code` means.
    pub fn meaning(self, code: u8) -> f32 {
        match self {
            Code::Int8 => f32::from(code as i8),
            Code::Uint8 => f32::from(code),
            Code::Int4 => f32::from(code & 15) - 8.0,
            Code::Uint4 => f32::from(code & 15),
            Code::E4m3 => E4m3(code).to_f32(),
            Code::E2m1 => E2M1[usize::from(code & 15)],
        }
    }
}

impl Groups {
    /// Scales of a row.
    pub fn across(&self) -> usize {
        self.columns.div_ceil(self.group.max(1))
    }

    /// Rows.
    pub fn rows(&self) -> usize {
        self.codes.len() / self.columns.max(1)
    }

    /// The numbers themselves, row after row: the scalar specification.
    pub fn to_f32(&self) -> Vec<f32> {
        let meanings: [f32; 256] = std::array::from_fn(|code| self.code.meaning(code as u8));
        let mut numbers = Vec::with_capacity(self.codes.len());
        for (row, codes) in self.codes.chunks(self.columns.max(1)).enumerate() {
            for (index, codes) in codes.chunks(self.group.max(1)).enumerate() {
                let place = row * self.across() + index;
                let scale = self.scales.get(place).copied().unwrap_or(0.0);
                let scaled = codes.iter().map(|code| scale * meanings[usize::from(*code)]);
                match self.minima.get(place) {
                    Some(minimum) => numbers.extend(scaled.map(|number| number - minimum)),
                    None => numbers.extend(scaled),
                }
            }
        }
        numbers
    }

    /// The first row, and every `step`-th after it.
    pub fn every(self, step: usize) -> Self {
        if step <= 1 {
            return self;
        }
        let across = self.across();
        Groups {
            codes: self.codes.chunks(self.columns.max(1)).step_by(step).flatten().copied().collect(),
            scales: self.scales.chunks(across.max(1)).step_by(step).flatten().copied().collect(),
            minima: self.minima.chunks(across.max(1)).step_by(step).flatten().copied().collect(),
            ..self
        }
    }
}

/// What [`groups`] makes of a format: codes, inputs that share a scale, and whether there are minima. `None` of floats.
pub fn plan(format: Format) -> Option<(Code, usize, bool)> {
    match format {
        Format::F32 | Format::F16 | Format::Bf16 => None,
        Format::Q8_0 => Some((Code::Int8, 32, false)),
        Format::Q4_0 => Some((Code::Int4, 32, false)),
        Format::Q4K => Some((Code::Uint4, 32, true)),
        Format::Q5K => Some((Code::Uint8, 32, true)),
        Format::Q6K => Some((Code::Int8, 16, false)),
        Format::Mxfp4 => Some((Code::E2m1, 32, false)),
    }
}

/// Whole rows of `columns` numbers as codes; `None` of floats, and where blocks do not divide a row.
pub fn groups(format: Format, columns: usize, bytes: &[u8]) -> Option<Groups> {
    let (code, group, minima) = plan(format)?;
    let (numbers, size) = format.block();
    if columns == 0 || !columns.is_multiple_of(numbers) {
        return None;
    }
    let all = bytes.len() / size * numbers;
    let with_minima = if minima { all / group } else { 0 };
    let (codes, scales) = (Vec::with_capacity(all), Vec::with_capacity(all / group));
    let mut to = Groups { code, group, columns, codes, scales, minima: Vec::with_capacity(with_minima) };
    for block in bytes.chunks_exact(size) {
        match format {
            Format::F32 | Format::F16 | Format::Bf16 => return None,
            Format::Q8_0 => {
                to.scales.push(half(block));
                to.codes.extend_from_slice(&block[2..]);
            }
            Format::Q4_0 => {
                to.scales.push(half(block));
                to.halves(&block[2..]);
            }
            Format::Mxfp4 => {
                to.scales.push(f64::from(i32::from(block[0]) - 127).exp2() as f32);
                to.halves(&block[1..]);
            }
            Format::Q4K => {
                to.scales_and_minima(block);
                block[16..].chunks_exact(32).for_each(|quants| to.halves(quants));
            }
            Format::Q5K => to.q5_k(block),
            Format::Q6K => to.q6_k(block),
        }
    }
    Some(to)
}

/// How each block adds its own: see [`super::blocks`] for how these lie.
impl Groups {
    /// Low nibbles, then high ones.
    fn halves(&mut self, bytes: &[u8]) {
        self.codes.extend(bytes.iter().map(|byte| byte & 15));
        self.codes.extend(bytes.iter().map(|byte| byte >> 4));
    }

    /// Of the eight groups of a block of Q4_K or Q5_K.
    fn scales_and_minima(&mut self, block: &[u8]) {
        let (d, dmin) = (half(block), half(&block[2..]));
        for index in 0..8 {
            let (scale, minimum) = scale_and_minimum(&block[4..16], index);
            self.scales.push(d * scale);
            self.minima.push(dmin * minimum);
        }
    }

    fn q5_k(&mut self, block: &[u8]) {
        self.scales_and_minima(block);
        let fifth = &block[16..48];
        for (pair, quants) in block[48..].chunks_exact(32).enumerate() {
            for (group, shift) in [(2 * pair, 0), (2 * pair + 1, 4)] {
                let numbers = quants.iter().zip(fifth);
                self.codes.extend(numbers.map(|(q, high)| ((q >> shift) & 15) | ((high >> group & 1) << 4)));
            }
        }
    }

    fn q6_k(&mut self, block: &[u8]) {
        let d = half(&block[208..]);
        self.scales.extend(block[192..208].iter().map(|scale| d * f32::from(*scale as i8)));
        for part in 0..2 {
            let low = &block[64 * part..64 * part + 64];
            let high = &block[128 + 32 * part..160 + 32 * part];
            for group in 0..4 {
                for i in 0..32 {
                    let nibble = (low[i + 32 * (group & 1)] >> (4 * (group >> 1))) & 15;
                    let q = nibble | ((high[i] >> (2 * group) & 3) << 4);
                    self.codes.push(q.wrapping_sub(32));
                }
            }
        }
    }
}

/// Rows of a matrix of floats of eight bits. `scale_of` tells the scale of a row and a group of it.
pub(super) fn of_e4m3(
    codes: Vec<u8>,
    columns: usize,
    group: usize,
    rows: Range<usize>,
    scale_of: impl Fn(usize, usize) -> f32,
) -> Groups {
    let across = columns.div_ceil(group.max(1));
    let scale_of = &scale_of;
    let scales = rows.flat_map(|row| (0..across).map(move |index| scale_of(row, index))).collect();
    Groups { code: Code::E4m3, group, columns, codes, scales, minima: Vec::new() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::llm::weights::blocks::dequantise;

    #[test]
    fn codes_mean_what_the_formats_mean() {
        let formats = [Format::Q8_0, Format::Q4_0, Format::Q4K, Format::Q5K, Format::Q6K, Format::Mxfp4];
        for format in formats {
            let mut state = 7u64;
            let mut byte = || {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (state >> 56) as u8
            };
            let (numbers, size) = format.block();
            let columns = 2 * numbers;
            let mut bytes: Vec<u8> = (0..6 * size).map(|_| byte()).collect();
            // Halves that are numbers: no exponent of ones.
            for block in bytes.chunks_exact_mut(size) {
                for high in [1, 3, 209] {
                    if high < size {
                        block[high] &= 0xbf;
                    }
                }
            }
            let found = groups(format, columns, &bytes).unwrap();
            let stored = plan(format).unwrap();
            assert_eq!((found.code, found.group, !found.minima.is_empty()), stored);
            assert_eq!((found.rows(), found.scales.len()), (3, 3 * columns / found.group));
            // The same operations in the same order, so the same numbers; 0 and -0 are one.
            assert_eq!(found.to_f32(), dequantise(format, &bytes), "{format:?}");
            let some = found.clone().every(2);
            let all = found.to_f32();
            assert_eq!(some.to_f32(), [&all[..columns], &all[2 * columns..]].concat(), "{format:?}");
        }
    }

    #[test]
    fn floats_and_broken_rows_are_none() {
        assert_eq!(groups(Format::Bf16, 32, &[0; 64]), None);
        assert_eq!(groups(Format::Q4K, 128, &[0; 144]), None);
    }
}
