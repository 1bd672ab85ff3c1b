//! Tests of `packed.rs`: every path against the specification, and every batch against single rows.

use super::*;
use crate::llm::blocks::{f32_to_bf16, f32_to_f16};

/// splitmix64.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Evenly in -1..1.
    pub(crate) fn symmetric(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1 << 23) as f32 - 1.0
    }

    pub(crate) fn floats(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.symmetric()).collect()
    }
}

/// Sum of squared differences over the sum of squares of the truth.
pub(crate) fn nmse(got: &[f32], want: &[f32]) -> f64 {
    assert_eq!(got.len(), want.len());
    let square = |x: f64| x * x;
    let error: f64 = got.iter().zip(want).map(|(a, b)| square(f64::from(*a) - f64::from(*b))).sum();
    let power: f64 = want.iter().map(|b| square(f64::from(*b))).sum();
    if error == 0.0 { 0.0 } else { error / power }
}

/// Where the f16 fields of a block are.
fn scale_fields(format: Format) -> &'static [usize] {
    match format {
        Format::Q8_0 | Format::Q4_0 => &[0],
        Format::Q4K | Format::Q5K => &[0, 2],
        Format::Q6K => &[208],
        _ => &[],
    }
}

/// Random bytes with scales of a sensible size, or random floats.
pub(crate) fn weights(format: Format, rows: usize, cols: usize, random: &mut Random) -> Vec<u8> {
    match format {
        Format::F32 => random.floats(rows * cols).into_iter().flat_map(f32::to_le_bytes).collect(),
        Format::F16 => random.floats(rows * cols).into_iter().flat_map(|x| f32_to_f16(x).to_le_bytes()).collect(),
        Format::Bf16 => random.floats(rows * cols).into_iter().flat_map(|x| f32_to_bf16(x).to_le_bytes()).collect(),
        _ => {
            let count = rows * format.row_bytes(cols).unwrap();
            let mut bytes: Vec<u8> = (0..count.div_ceil(8)).flat_map(|_| random.next().to_le_bytes()).collect();
            bytes.truncate(count);
            for block in bytes.chunks_exact_mut(format.block_bytes()) {
                for &at in scale_fields(format) {
                    block[at..at + 2].copy_from_slice(&f32_to_f16(random.symmetric() / 64.0).to_le_bytes());
                }
            }
            bytes
        }
    }
}

fn product(packed: &Packed, path: Path, values: &[f32]) -> Vec<f32> {
    let a = Activations::new(packed.operand(), values, packed.cols());
    let mut out = vec![f32::NAN; a.rows() * packed.rows()];
    let mut rows: Vec<&mut [f32]> = out.chunks_exact_mut(packed.rows()).collect();
    packed.multiply_on(path, 0..packed.tiles(), &a, &mut rows);
    out
}

fn shapes(format: Format) -> Vec<(usize, usize)> {
    if format.is_float() {
        vec![(1, 1), (3, 2), (32, 33), (33, 127), (64, 128), (40, 129), (95, 300), (32, 256)]
    } else {
        let block = format.block();
        vec![(1, block), (31, 2 * block), (32, 3 * block), (97, 4 * block), (40, 1024)]
    }
}

#[test]
fn paths_agree_with_the_specification() {
    let mut random = Random(3);
    for format in Format::ALL {
        for (rows, cols) in shapes(format) {
            let packed = Packed::new(format, rows, cols, &weights(format, rows, cols, &mut random)).unwrap();
            for m in [1, 2, 3, 5, 8, 13, 66, 75] {
                let values = random.floats(m * cols);
                let want = product(&packed, Path::Scalar, &values);
                for path in [Path::Avx2, Path::Avx512] {
                    let error = nmse(&product(&packed, path, &values), &want);
                    assert!(error <= 1e-11, "{format:?} {rows} x {cols}, {m} rows, {path:?}: {error:e}");
                }
            }
        }
    }
}

#[test]
fn the_specification_is_the_product_of_dequantised_rows() {
    let mut random = Random(4);
    for format in Format::ALL {
        let (rows, cols) = (37, 512);
        let bytes = weights(format, rows, cols, &mut random);
        let packed = Packed::new(format, rows, cols, &bytes).unwrap();
        let values = random.floats(2 * cols);
        let got = product(&packed, Path::Scalar, &values);
        let mut row = vec![0.0; cols];
        for n in 0..rows {
            let size = format.row_bytes(cols).unwrap();
            format.dequantise(&bytes[n * size..(n + 1) * size], &mut row);
            for m in 0..2 {
                let dot = |x: &[f32]| row.iter().zip(x).map(|(w, x)| f64::from(w * x)).sum::<f64>();
                let norm = row.iter().map(|w| f64::from(w * w)).sum::<f64>().sqrt();
                let error = (dot(&values[m * cols..(m + 1) * cols]) - f64::from(got[m * rows + n])).abs();
                // int8 is off by at most half a step of 1/127 at each of 512 columns: here by chance far less.
                let bound = if format.is_float() { 1e-5 } else { 0.02 * norm };
                assert!(error <= bound, "{format:?}: {error} > {bound}");
            }
        }
    }
}

#[test]
fn a_row_has_the_same_bits_in_every_batch() {
    let mut random = Random(5);
    for format in Format::ALL {
        let cols = if format.is_float() { 301 } else { 768 };
        let rows = 70;
        let packed = Packed::new(format, rows, cols, &weights(format, rows, cols, &mut random)).unwrap();
        let values = random.floats(512 * cols);
        for path in [Path::Scalar, Path::Avx2, Path::Avx512] {
            let most = if path == Path::Scalar { 3 } else { 24 };
            let alone: Vec<u32> = values[..most * cols]
                .chunks_exact(cols)
                .flat_map(|row| product(&packed, path, row))
                .map(f32::to_bits)
                .collect();
            let batches: &[usize] =
                if path == Path::Scalar { &[2, 3] } else { &[2, 3, 4, 5, 6, 7, 9, 24, 65, 131, 512] };
            for &m in batches {
                let together = product(&packed, path, &values[..m * cols]);
                let count = m.min(most) * rows;
                let together: Vec<u32> = together[..count].iter().map(|x| x.to_bits()).collect();
                assert_eq!(together, alone[..count], "{format:?} {path:?} {m}");
            }
        }
    }
}

#[test]
fn tiles_can_be_divided() {
    let mut random = Random(6);
    for format in [Format::Bf16, Format::Q4K] {
        let (rows, cols, m) = (107, 256, 5);
        let packed = Packed::new(format, rows, cols, &weights(format, rows, cols, &mut random)).unwrap();
        let values = random.floats(m * cols);
        let whole = product(&packed, Path::Auto, &values);
        let a = Activations::new(packed.operand(), &values, cols);
        let mut out = vec![f32::NAN; m * rows];
        let cuts = [1, 2, 4];
        let mut start = 0;
        for (i, mut part) in columns(&mut out, rows, &cuts).into_iter().enumerate() {
            let end = *cuts.get(i).unwrap_or(&4);
            packed.multiply(start..end, &a, &mut part);
            start = end;
        }
        assert_eq!(out, whole);
    }
}

#[test]
fn extremes() {
    let mut random = Random(8);
    for format in Format::ALL {
        if format.is_float() {
            continue;
        }
        // The largest integers there are, of either sign, in every place.
        let cols = 512;
        for fill in [0x00u8, 0xff, 0x7f, 0x80, 0x88, 0x08, 0xf0] {
            let mut bytes = vec![fill; 33 * format.row_bytes(cols).unwrap()];
            for block in bytes.chunks_exact_mut(format.block_bytes()) {
                for &at in scale_fields(format) {
                    block[at..at + 2].copy_from_slice(&f32_to_f16(0.5).to_le_bytes());
                }
            }
            let packed = Packed::new(format, 33, cols, &bytes).unwrap();
            let mut values = vec![1.0; cols];
            values.extend(vec![-1e30; cols]);
            values.extend((0..cols).map(|_| random.symmetric().signum()));
            values.extend(vec![0.0; cols]);
            let want = product(&packed, Path::Scalar, &values);
            for path in [Path::Avx2, Path::Avx512] {
                let got = product(&packed, path, &values);
                for (want, got) in want.chunks_exact(33).zip(got.chunks_exact(33)) {
                    assert!(nmse(got, want) <= 1e-9, "{format:?} {fill:x} {path:?}: {got:?} {want:?}");
                }
            }
        }
    }
}

#[test]
fn what_is_not_finite_stays_in_its_row() {
    let mut random = Random(9);
    for format in Format::ALL {
        let cols = 256;
        let packed = Packed::new(format, 33, cols, &weights(format, 33, cols, &mut random)).unwrap();
        let mut values = random.floats(7 * cols);
        values[3 * cols + 200] = f32::NAN;
        let out = product(&packed, Path::Auto, &values);
        for (m, row) in out.chunks_exact(33).enumerate() {
            assert!(row.iter().all(|x| x.is_nan() == (m == 3)), "{format:?} {m}");
        }
    }
}

#[test]
fn bad_shapes_are_refused() {
    let refuse = |format, rows, cols, bytes: &[u8]| Packed::new(format, rows, cols, bytes).unwrap_err();
    assert!(refuse(Format::Q4K, 2, 128, &[]).contains("256"));
    assert!(refuse(Format::Q8_0, 0, 32, &[]).contains("empty"));
    assert!(refuse(Format::Q8_0, 2, 32, &[0; 67]).contains("67 bytes"));
    assert!(refuse(Format::Q8_0, 2, 32, &[0; 36]).contains("36 bytes"));
    assert!(refuse(Format::F32, usize::MAX / 4, 8, &[]).contains("too many"));
    assert!(refuse(Format::Bf16, 1, usize::MAX, &[]).contains("too many"));
}
