//! Norms of heads, rotation, and the write into the paged cache.

use super::{device, get, nmse, put, random, run, zeros};
use kernels::cuda::rotary::{HeadNorms, RotaryWrite, Turn, rotary_write, rotary_write_bytes};
use kernels::cuda::{Bf16, CacheNumbers, Device};

/// Positions of a block of the cache.
const PAGE: usize = 32;
/// Of numbers that are rounded to bf16.
const ROUNDED: f64 = 5e-6;
const EPS: f32 = 1e-3;
const SLOTS: usize = 3;
const STRIDE: usize = 5000;
/// Blocks of the cache.
const BLOCKS: usize = 6;

/// What tells one launch from another.
#[derive(Clone, Copy, Debug)]
struct Case {
    heads: usize,
    kv_heads: usize,
    dim: usize,
    /// Rotated numbers of a head.
    dims: usize,
    interleaved: bool,
    bias: bool,
    /// Full, if there are norms.
    norms: Option<bool>,
    offset: f32,
}

const PLAIN: Case =
    Case { heads: 4, kv_heads: 2, dim: 64, dims: 64, interleaved: false, bias: false, norms: None, offset: 0.0 };

/// Queries, keys and values of the cache.
type Results = [Vec<Bf16>; 3];

impl Case {
    fn width(&self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.dim
    }

    /// Weights for queries and keys.
    fn weights(&self) -> [Vec<f32>; 2] {
        let heads = if self.norms == Some(true) { [self.heads, self.kv_heads] } else { [1, 1] };
        [random(3, heads[0] * self.dim), random(4, heads[1] * self.dim)]
    }

    fn frequencies(&self) -> Vec<f32> {
        (0..self.dims / 2).map(|pair| 1e4f32.powf(-2.0 * pair as f32 / self.dims as f32)).collect()
    }

    fn bias(&self) -> Vec<f32> {
        if self.bias { random(2, self.width()) } else { vec![0.0; self.width()] }
    }

    /// Runs the kernel over rows of (slot, position), whose numbers are `qkv`.
    fn run(&self, device: &mut dyn Device, qkv: &[f32], rows: &[(i32, i32)]) -> Results {
        let [query, key] = self.weights();
        let cache = BLOCKS * self.kv_heads * PAGE * self.dim;
        let (slots, positions): (Vec<i32>, Vec<i32>) = rows.iter().copied().unzip();
        let offset = self.offset;
        let norms = self.norms.map(|full| {
            let (query, key) = (put(device, &query), put(device, &key));
            HeadNorms { query, key, full, eps: EPS, offset }
        });
        let frequencies = self.frequencies();
        let turn = (self.dims > 0).then(|| {
            let frequencies = put(device, &frequencies);
            Turn { frequencies, factor: 1.25, interleaved: self.interleaved }
        });
        let (keys, values) = (zeros(device, cache), zeros(device, cache));
        let job = RotaryWrite {
            qkv: put(device, qkv),
            bias: self.bias.then(|| put(device, &self.bias())),
            norms,
            turn,
            positions: put(device, &positions),
            slots: put(device, &slots),
            tables: put(device, &tables()),
            table_stride: STRIDE,
            queries: put(device, &vec![Bf16(0x3f80); rows.len() * self.heads * self.dim]),
            cache: CacheNumbers::Bf16 { keys, values },
            rows: rows.len(),
            heads: self.heads,
            kv_heads: self.kv_heads,
            head_dim: self.dim,
        };
        run(device, rotary_write(&job));
        assert_eq!(rotary_write_bytes(&job), rows.len() * self.width() * 6);
        assert!(rotary_write(&RotaryWrite { rows: rows.len() + 1, ..job }).is_err());
        assert!(rotary_write(&RotaryWrite { kv_heads: 0, ..job }).is_err());
        [job.queries, keys, values].map(|slice| get(device, slice))
    }

    /// Queries, keys and values as they should be.
    fn want(&self, qkv: &[f32], rows: &[(i32, i32)]) -> [Vec<f32>; 3] {
        let cache = vec![0.0; BLOCKS * self.kv_heads * PAGE * self.dim];
        let mut all = [Vec::new(), cache.clone(), cache];
        for ((slot, position), numbers) in rows.iter().zip(qkv.chunks(self.width())) {
            let numbers = numbers.iter().zip(self.bias()).map(|(number, bias)| f64::from(*number) + f64::from(bias));
            let mut numbers: Vec<f64> = numbers.collect();
            if *position < 0 {
                all[0].extend(vec![0.0; self.heads * self.dim]);
                continue;
            }
            let (queries, rest) = numbers.split_at_mut(self.heads * self.dim);
            let (keys, values) = rest.split_at_mut(self.kv_heads * self.dim);
            for (numbers, weight) in [&mut *queries, &mut *keys].into_iter().zip(self.weights()) {
                self.norm(numbers, &weight);
                self.rotate(numbers, *position);
            }
            all[0].extend(queries.iter().map(|number| *number as f32));
            let place = *position as usize;
            let block = tables()[*slot as usize * STRIDE + place / PAGE] as usize;
            for head in 0..self.kv_heads {
                let line = ((block * self.kv_heads + head) * PAGE + place % PAGE) * self.dim;
                for i in 0..self.dim {
                    all[1][line + i] = keys[head * self.dim + i] as f32;
                    all[2][line + i] = values[head * self.dim + i] as f32;
                }
            }
        }
        all
    }

    fn norm(&self, numbers: &mut [f64], weight: &[f32]) {
        if self.norms.is_none() {
            return;
        }
        for part in numbers.chunks_mut(weight.len()) {
            let mean = part.iter().map(|number| number * number).sum::<f64>() / part.len() as f64;
            for (number, weight) in part.iter_mut().zip(weight) {
                *number *= (f64::from(*weight) + f64::from(self.offset)) / (mean + f64::from(EPS)).sqrt();
            }
        }
    }

    fn rotate(&self, numbers: &mut [f64], position: i32) {
        for head in numbers.chunks_mut(self.dim) {
            for (pair, frequency) in self.frequencies().iter().enumerate() {
                let angle = f64::from(position as f32 * frequency);
                let (sine, cosine) = (1.25 * angle.sin(), 1.25 * angle.cos());
                let (a, b) = if self.interleaved { (2 * pair, 2 * pair + 1) } else { (pair, pair + self.dims / 2) };
                (head[a], head[b]) = (head[a] * cosine - head[b] * sine, head[b] * cosine + head[a] * sine);
            }
        }
    }

    fn check(&self, device: &mut dyn Device, rows: &[(i32, i32)]) {
        let qkv = random(1, rows.len() * self.width());
        let got = self.run(device, &qkv, rows);
        for (got, want) in got.iter().zip(self.want(&qkv, rows)) {
            let got: Vec<f32> = got.iter().map(|number| number.to_f32()).collect();
            assert!(nmse(&got, &want) < ROUNDED, "{self:?}");
            // Nothing is written elsewhere.
            assert!(got.iter().zip(&want).all(|(got, want)| *want != 0.0 || *got == 0.0), "{self:?}");
        }
    }
}

/// Slot 0 has block 4 first, then 1; slot 1 has 0; slot 2 has 2 and, far out, 5.
fn tables() -> Vec<i32> {
    let mut tables = vec![-1; SLOTS * STRIDE];
    (tables[0], tables[1], tables[STRIDE], tables[2 * STRIDE], tables[2 * STRIDE + 4000]) = (4, 1, 0, 2, 5);
    tables
}

/// Slot and position of rows: decoding, a chunk over the end of a block, padding, and far out.
const ROWS: [(i32, i32); 9] =
    [(1, 7), (0, 30), (0, 31), (0, 32), (0, 33), (0, -1), (9, -1), (2, 0), (2, 4000 * PAGE as i32 + 9)];

#[test]
fn heads_of_all_sizes() {
    let mut device = device();
    for dim in [8, 32, 40, 64, 80, 96, 112, 128, 200, 256] {
        for (interleaved, dims) in [(false, dim), (true, dim), (false, dim / 4 * 2), (true, dim / 8 * 2), (false, 0)] {
            Case { dim, dims, interleaved, ..PLAIN }.check(&mut *device, &ROWS);
        }
    }
}

#[test]
fn groups_of_all_sizes() {
    let mut device = device();
    for group in 1..=16 {
        let norms = Some(false);
        Case { heads: 3 * group, kv_heads: 3, dim: 32, dims: 32, norms, ..PLAIN }.check(&mut *device, &ROWS[..4]);
    }
}

#[test]
fn norms_and_biases() {
    let mut device = device();
    for norms in [None, Some(false), Some(true)] {
        for (dim, dims) in [(32, 32), (80, 32), (128, 128), (256, 256), (112, 0)] {
            for (bias, offset) in [(false, 0.0), (true, 1.0)] {
                Case { heads: 6, dim, dims, bias, norms, offset, ..PLAIN }.check(&mut *device, &ROWS[2..6]);
            }
        }
    }
}

#[test]
fn a_row_alone_is_a_row_of_many() {
    let mut device = device();
    // So many rows that each has one block alone, which takes its heads in turns.
    let mut rows = ROWS.to_vec();
    rows.resize(400, (0, -1));
    for (dims, norms) in [(128, Some(false)), (64, Some(true)), (128, None)] {
        let case = Case { heads: 14, kv_heads: 7, dim: 128, dims, norms, bias: true, ..PLAIN };
        let qkv = random(1, rows.len() * case.width());
        let together = case.run(&mut *device, &qkv, &rows);
        let queries = case.heads * case.dim;
        assert!(together[0][ROWS.len() * queries..].iter().all(|number| number.0 == 0));
        for row in [0, 3, 8] {
            let alone = case.run(&mut *device, &qkv[row * case.width()..][..case.width()], &ROWS[row..row + 1]);
            assert_eq!(alone[0], together[0][row * queries..(row + 1) * queries]);
            for which in [1, 2] {
                let written = alone[which].iter().zip(&together[which]).filter(|(alone, _)| alone.0 != 0);
                assert!(written.clone().count() > case.kv_heads * case.dim / 2);
                assert!(written.clone().all(|(alone, together)| alone == together));
            }
        }
    }
}

#[test]
fn nothing_is_written_outside_the_cache() {
    let mut device = device();
    // A slot that is not there, a position past the table, and a block that is none.
    let rows = [(SLOTS as i32, 3), (-1, 3), (0, (STRIDE * PAGE) as i32), (1, 40)];
    let qkv = random(1, rows.len() * PLAIN.width());
    let [queries, keys, values] = PLAIN.run(&mut *device, &qkv, &rows);
    assert!(queries.iter().any(|number| number.0 != 0));
    assert!(keys.iter().chain(&values).all(|number| number.0 == 0));
}
