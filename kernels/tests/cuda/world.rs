//! Sequences in a paged cache, for the tests of attention: what kernels make of them, and what should come out. What a
//! row must not see is no number in the cache.

use super::{device, get, nmse, put, random, run, zeros};
use kernels::cuda::attention::{
    Cache, Chunk, Decode, PAGE, Prompt, Rule, counters_len, decode, first_seen, partials_len, prompt_on, tiles, work,
};
use kernels::cuda::{Bf16, CacheNumbers, Device, E4m3, Units};
use kernels::llm::attention::{self as scalar, Path, Scratch, Storage, Tile};

pub(super) const NO_NUMBER: Bf16 = Bf16(0x7fc0);
/// What keys and values of eight bits are times.
pub(super) const SCALES: [f32; 2] = [1.0 / 16.0, 1.0 / 4.0];
/// Weights and results are rounded to bf16.
pub(super) const CLOSE: f64 = 2e-5;

/// What tells one layer from another.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    pub(super) kv_heads: usize,
    pub(super) group: usize,
    pub(super) dim: usize,
    pub(super) window: Option<usize>,
    pub(super) soft_cap: Option<f32>,
    pub(super) sinks: bool,
    /// Has the cache numbers of eight bits?
    pub(super) narrow: bool,
}

pub(super) const PLAIN: Shape =
    Shape { kv_heads: 2, group: 3, dim: 32, window: None, soft_cap: None, sinks: false, narrow: false };

impl Shape {
    pub(super) fn heads(&self) -> usize {
        self.kv_heads * self.group
    }

    pub(super) fn scale(&self) -> f32 {
        1.3 / (self.dim as f32).sqrt()
    }

    /// The query of a position, all heads.
    pub(super) fn query(&self, sequence: usize, position: usize) -> Vec<Bf16> {
        bf16(&random((sequence * 10_000 + position) as u64, self.heads() * self.dim))
    }
}

fn bf16(numbers: &[f32]) -> Vec<Bf16> {
    numbers.iter().map(|number| Bf16::from_f32(*number)).collect()
}

/// The nearest e4m3 of numbers over a scale, which is a power of two.
fn e4m3(numbers: &[Bf16], scale: f32) -> Vec<E4m3> {
    numbers.iter().map(|number| E4m3::from_f32(number.to_f32() / scale)).collect()
}

pub(super) fn floats(numbers: &[Bf16]) -> Vec<f32> {
    numbers.iter().map(|number| number.to_f32()).collect()
}

pub(super) fn bits(numbers: &[Bf16]) -> Vec<u16> {
    numbers.iter().map(|number| number.0).collect()
}

/// Sequences in a cache, whose blocks are scattered.
#[derive(Clone)]
pub(super) struct World {
    pub(super) shape: Shape,
    pub(super) keys: Vec<Bf16>,
    pub(super) values: Vec<Bf16>,
    pub(super) tables: Vec<i32>,
    pub(super) stride: usize,
    pub(super) lengths: Vec<usize>,
    pub(super) sinks: Vec<f32>,
    /// What multiplies matrices in prompts' attention.
    pub(super) units: Units,
}

impl World {
    pub(super) fn new(shape: Shape, lengths: &[usize]) -> World {
        let stride = lengths.iter().max().unwrap().div_ceil(PAGE) + 1;
        let used: usize = lengths.iter().map(|length| length.div_ceil(PAGE)).sum();
        let order = random(5, used + 3);
        let mut scattered: Vec<i32> = (0..used as i32 + 3).collect();
        scattered.sort_by(|a, b| order[*a as usize].total_cmp(&order[*b as usize]));
        // Slot 0 is nobody's; entries that nobody uses lead outside.
        let mut tables = vec![i32::MIN; (lengths.len() + 1) * stride];
        let mut next = scattered.into_iter();
        for (sequence, length) in lengths.iter().enumerate() {
            for index in 0..length.div_ceil(PAGE) {
                tables[(sequence + 1) * stride + index] = next.next().unwrap();
            }
        }
        let len = (used + 3) * shape.kv_heads * PAGE * shape.dim;
        let mut world = World {
            shape,
            keys: bf16(&random(6, len)),
            values: bf16(&random(7, len)),
            tables,
            stride,
            lengths: lengths.to_vec(),
            sinks: random(8, shape.heads()),
            units: Units::Warps,
        };
        if shape.narrow {
            for (numbers, scale) in [(&mut world.keys, SCALES[0]), (&mut world.values, SCALES[1])] {
                *numbers = e4m3(numbers, scale).iter().map(|it| Bf16::from_f32(it.to_f32() * scale)).collect();
            }
        }
        for (sequence, &length) in lengths.iter().enumerate() {
            world.hide(sequence, length..length.next_multiple_of(PAGE));
        }
        world
    }

    /// Makes positions of a sequence no numbers.
    pub(super) fn hide(&mut self, sequence: usize, positions: std::ops::Range<usize>) {
        for position in positions {
            let block = self.tables[(sequence + 1) * self.stride + position / PAGE] as usize;
            for head in 0..self.shape.kv_heads {
                let line = (block * self.shape.kv_heads + head) * PAGE + position % PAGE;
                let numbers = line * self.shape.dim..(line + 1) * self.shape.dim;
                self.keys[numbers.clone()].fill(NO_NUMBER);
                self.values[numbers].fill(NO_NUMBER);
            }
        }
    }

    pub(super) fn cache(&self, device: &mut dyn Device) -> Cache {
        let [key_scale, value_scale] = SCALES;
        let numbers = match self.shape.narrow {
            false => CacheNumbers::Bf16 { keys: put(device, &self.keys), values: put(device, &self.values) },
            true => CacheNumbers::E4m3 {
                keys: put(device, &e4m3(&self.keys, key_scale)),
                values: put(device, &e4m3(&self.values, value_scale)),
                key_scale,
                value_scale,
            },
        };
        Cache {
            numbers,
            tables: put(device, &self.tables),
            table_stride: self.stride,
            kv_heads: self.shape.kv_heads,
            head_dim: self.shape.dim,
        }
    }

    pub(super) fn rule(&self, device: &mut dyn Device) -> Rule {
        Rule {
            heads: self.shape.heads(),
            scale: self.shape.scale(),
            window: self.shape.window,
            soft_cap: self.shape.soft_cap,
            sinks: self.shape.sinks.then(|| put(device, &self.sinks)),
        }
    }

    /// What all heads of a row get.
    pub(super) fn want(&self, sequence: usize, position: usize) -> Vec<f32> {
        let (shape, width) = (&self.shape, self.shape.group * self.shape.dim);
        let (keys, values) = (bits(&self.keys), bits(&self.values));
        let cache = scalar::Cache {
            keys: Storage::Bf16(&keys),
            values: Storage::Bf16(&values),
            kv_heads: shape.kv_heads,
            block_len: PAGE,
            head_dim: shape.dim,
        };
        let window = shape.window.map(|window| window as u32);
        let rule = scalar::Rule { scale: shape.scale(), window, soft_cap: shape.soft_cap };
        let table = &self.tables[(sequence + 1) * self.stride..(sequence + 2) * self.stride];
        let table: Vec<u32> = table.iter().map(|block| *block as u32).collect();
        let queries = floats(&shape.query(sequence, position));
        let positions = vec![position as u32; shape.group];
        let mut out = vec![0.0; shape.heads() * shape.dim];
        for head in 0..shape.kv_heads {
            let part = head * width..(head + 1) * width;
            let sinks = if shape.sinks { &self.sinks[head * shape.group..(head + 1) * shape.group] } else { &[] };
            let tile = Tile { queries: &queries[part.clone()], positions: &positions, sinks, table: &table, head };
            scalar::attend_on(Path::Scalar, (&cache, &rule), &tile, &mut Scratch::default(), &mut out[part]);
        }
        out
    }

    /// Decodes rows: a sequence, and a position or -1.
    pub(super) fn decode(&self, rows: &[(usize, i32)], processors: u32) -> Vec<Bf16> {
        let mut device = device();
        let device = device.as_mut();
        let (shape, positions) = (&self.shape, rows.iter().map(|row| row.1).collect::<Vec<i32>>());
        let queries: Vec<Bf16> =
            rows.iter().flat_map(|row| shape.query(row.0, usize::try_from(row.1).unwrap_or(9999))).collect();
        let mut list = work(&positions);
        let entries = list.len() / 2;
        // Room for more, as a captured launch has it; what stands there is nobody's.
        list.extend([i32::MAX; 6]);
        let counters = zeros(device, counters_len(list.len() / 2, shape.kv_heads));
        let out = put(device, &vec![NO_NUMBER; queries.len()]);
        let job = Decode {
            out,
            queries: put(device, &queries),
            cache: self.cache(device),
            rule: self.rule(device),
            rows: rows.len(),
            slots: put(device, &rows.iter().map(|row| row.0 as i32 + 1).collect::<Vec<i32>>()),
            positions: put(device, &positions),
            work: put(device, &list),
            work_len: put(device, &[entries as i32]),
            partials: put(device, &vec![f32::NAN; partials_len(list.len() / 2, shape.heads(), shape.dim)]),
            counters,
            processors,
        };
        run(device, decode(&job));
        assert!(get(device, counters).iter().all(|count: &u32| *count == 0));
        let first = get(device, out);
        run(device, decode(&job));
        assert_eq!(first, get(device, out), "a second launch");
        first
    }

    /// Rows of chunks of prompts; rows of no chunk are left as they are.
    pub(super) fn prompt(&self, chunks: &[Chunk], rows: usize) -> Vec<Bf16> {
        let mut device = device();
        let device = device.as_mut();
        let (shape, width) = (&self.shape, self.shape.heads() * self.shape.dim);
        let mut queries = vec![NO_NUMBER; rows * width];
        for chunk in chunks {
            for token in 0..chunk.tokens {
                let row = (chunk.row + token) * width;
                queries[row..row + width].copy_from_slice(&shape.query(chunk.slot - 1, chunk.start + token));
            }
        }
        let out = put(device, &vec![NO_NUMBER; queries.len()]);
        let job = Prompt {
            out,
            queries: put(device, &queries),
            cache: self.cache(device),
            rule: self.rule(device),
            rows,
            tiles: put(device, &tiles(chunks, shape.group, shape.dim)),
        };
        run(device, prompt_on(&job, self.units));
        get(device, out)
    }

    /// All sequences from their beginnings, whole; and the row of the first token of each.
    pub(super) fn whole(&self) -> (Vec<Bf16>, Vec<usize>) {
        let (mut chunks, mut firsts, mut rows) = (Vec::new(), Vec::new(), 0);
        for (sequence, &tokens) in self.lengths.iter().enumerate() {
            chunks.push(Chunk { row: rows, tokens, start: 0, slot: sequence + 1 });
            firsts.push(rows);
            rows += tokens;
        }
        (self.prompt(&chunks, rows), firsts)
    }

    pub(super) fn check_decode(&self) {
        let mut rows: Vec<(usize, i32)> = (0..self.lengths.len()).map(|i| (i, self.lengths[i] as i32 - 1)).collect();
        rows.insert(1, (0, -1));
        rows.push((0, -1));
        let (got, width) = (self.decode(&rows, 3), self.shape.heads() * self.shape.dim);
        for (row, got) in rows.iter().zip(got.chunks_exact(width)) {
            if row.1 < 0 {
                assert!(got.iter().all(|number| number.0 == 0), "padding");
                continue;
            }
            let error = nmse(&floats(got), &self.want(row.0, row.1 as usize));
            assert!(error < CLOSE, "{:?}, {row:?}: {error:e}", self.shape);
        }
    }

    pub(super) fn check_prompt(&self) {
        let ((got, firsts), width) = (self.whole(), self.shape.heads() * self.shape.dim);
        for (sequence, &length) in self.lengths.iter().enumerate() {
            for position in (0..length).filter(|p| p % 13 == 0 || p + 1 == length) {
                let row = (firsts[sequence] + position) * width;
                let error = nmse(&floats(&got[row..row + width]), &self.want(sequence, position));
                assert!(error < CLOSE, "{:?}, {position} of {length}: {error:e}", self.shape);
            }
        }
    }

    /// That cutting prompts into chunks of so many tokens, in turn, changes nothing.
    pub(super) fn check_cuts(&self, cuts: &[usize]) {
        let ((whole, firsts), width) = (self.whole(), self.shape.heads() * self.shape.dim);
        let (mut done, mut cuts) = (vec![0usize; self.lengths.len()], cuts.iter().cycle());
        while done != self.lengths {
            let (mut chunks, mut row) = (Vec::new(), 2);
            let mut partly = self.clone();
            for sequence in (0..done.len()).rev() {
                let (start, length) = (done[sequence], self.lengths[sequence]);
                let tokens = (*cuts.next().unwrap()).min(length - start);
                // Neither what comes later has been written, nor is what no window reaches still there.
                partly.hide(sequence, start + tokens..length);
                partly.hide(sequence, 0..first_seen(start, self.shape.window));
                if tokens > 0 {
                    chunks.push(Chunk { row, tokens, start, slot: sequence + 1 });
                }
                row += tokens + 1;
                done[sequence] += tokens;
            }
            let got = partly.prompt(&chunks, row);
            for chunk in chunks {
                let first = firsts[chunk.slot - 1] + chunk.start;
                let want = &whole[first * width..(first + chunk.tokens) * width];
                let (got, before) = (&got[..(chunk.row + chunk.tokens) * width], chunk.row * width);
                assert_eq!(want, &got[before..], "{:?} {chunk:?}", self.shape);
                let nobodys = &got[before - width..before];
                assert!(nobodys.iter().all(|number| *number == NO_NUMBER), "a row of no chunk was written");
            }
        }
    }
}

/// Heads of every size that there is a kernel for, and of sizes between; groups of several sizes.
pub(super) fn shapes() -> Vec<Shape> {
    let sizes = [(2, 1, 32), (1, 4, 40), (2, 7, 64), (1, 2, 80), (2, 3, 96), (1, 5, 112), (1, 4, 128), (1, 16, 256)];
    sizes.into_iter().map(|(kv_heads, group, dim)| Shape { kv_heads, group, dim, ..PLAIN }).collect()
}

/// The same over a cache of eight bits.
pub(super) fn narrow(shapes: Vec<Shape>) -> impl Iterator<Item = Shape> {
    shapes.into_iter().filter(|shape| shape.dim % 16 == 0).map(|shape| Shape { narrow: true, ..shape })
}

/// What models prescribe besides.
pub(super) fn rules() -> Vec<Shape> {
    let windows = [1, 31, 32, 33, 100, 256, 257, 1000];
    let mut all: Vec<Shape> = windows.into_iter().map(|window| Shape { window: Some(window), ..PLAIN }).collect();
    all.push(Shape { soft_cap: Some(2.0), ..PLAIN });
    all.push(Shape { sinks: true, ..PLAIN });
    all.push(Shape { soft_cap: Some(20.0), sinks: true, window: Some(45), ..PLAIN });
    all
}
