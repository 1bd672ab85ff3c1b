//! Attention over the paged cache against two passes in f64. What a row must not see is no number in the cache.

use super::{device, get, nmse, put, random, run, zeros};
use kernels::cuda::attention::{
    Cache, Chunk, Decode, PAGE, Prompt, Rule, SPLIT, counters_len, decode, decode_bytes, first_seen, most_work,
    partials_len, prompt, prompt_bytes, prompt_operations, splits, splits_seen, tiles, work,
};
use kernels::cuda::{Bf16, CacheNumbers, Device, E4m3};
use kernels::llm::attention::{self as scalar, Path, Scratch, Storage, Tile};

const NO_NUMBER: Bf16 = Bf16(0x7fc0);
/// What keys and values of eight bits are times.
const SCALES: [f32; 2] = [1.0 / 16.0, 1.0 / 4.0];
/// Weights and results are rounded to bf16.
const CLOSE: f64 = 2e-5;

/// What tells one layer from another.
#[derive(Clone, Copy, Debug)]
struct Shape {
    kv_heads: usize,
    group: usize,
    dim: usize,
    window: Option<usize>,
    soft_cap: Option<f32>,
    sinks: bool,
    /// Has the cache numbers of eight bits?
    narrow: bool,
}

const PLAIN: Shape =
    Shape { kv_heads: 2, group: 3, dim: 32, window: None, soft_cap: None, sinks: false, narrow: false };

impl Shape {
    fn heads(&self) -> usize {
        self.kv_heads * self.group
    }

    fn scale(&self) -> f32 {
        1.3 / (self.dim as f32).sqrt()
    }

    /// The query of a position, all heads.
    fn query(&self, sequence: usize, position: usize) -> Vec<Bf16> {
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

fn floats(numbers: &[Bf16]) -> Vec<f32> {
    numbers.iter().map(|number| number.to_f32()).collect()
}

fn bits(numbers: &[Bf16]) -> Vec<u16> {
    numbers.iter().map(|number| number.0).collect()
}

/// Sequences in a cache, whose blocks are scattered.
#[derive(Clone)]
struct World {
    shape: Shape,
    keys: Vec<Bf16>,
    values: Vec<Bf16>,
    tables: Vec<i32>,
    stride: usize,
    lengths: Vec<usize>,
    sinks: Vec<f32>,
}

impl World {
    fn new(shape: Shape, lengths: &[usize]) -> World {
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
    fn hide(&mut self, sequence: usize, positions: std::ops::Range<usize>) {
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

    fn cache(&self, device: &mut dyn Device) -> Cache {
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

    fn rule(&self, device: &mut dyn Device) -> Rule {
        Rule {
            heads: self.shape.heads(),
            scale: self.shape.scale(),
            window: self.shape.window,
            soft_cap: self.shape.soft_cap,
            sinks: self.shape.sinks.then(|| put(device, &self.sinks)),
        }
    }

    /// What all heads of a row get.
    fn want(&self, sequence: usize, position: usize) -> Vec<f32> {
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
    fn decode(&self, rows: &[(usize, i32)], processors: u32) -> Vec<Bf16> {
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
    fn prompt(&self, chunks: &[Chunk], rows: usize) -> Vec<Bf16> {
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
        run(device, prompt(&job));
        get(device, out)
    }

    /// All sequences from their beginnings, whole; and the row of the first token of each.
    fn whole(&self) -> (Vec<Bf16>, Vec<usize>) {
        let (mut chunks, mut firsts, mut rows) = (Vec::new(), Vec::new(), 0);
        for (sequence, &tokens) in self.lengths.iter().enumerate() {
            chunks.push(Chunk { row: rows, tokens, start: 0, slot: sequence + 1 });
            firsts.push(rows);
            rows += tokens;
        }
        (self.prompt(&chunks, rows), firsts)
    }

    fn check_decode(&self) {
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

    fn check_prompt(&self) {
        let ((got, firsts), width) = (self.whole(), self.shape.heads() * self.shape.dim);
        for (sequence, &length) in self.lengths.iter().enumerate() {
            for position in (0..length).filter(|p| p % 13 == 0 || p + 1 == length) {
                let row = (firsts[sequence] + position) * width;
                let error = nmse(&floats(&got[row..row + width]), &self.want(sequence, position));
                assert!(error < CLOSE, "{:?}, {position} of {length}: {error:e}", self.shape);
            }
        }
    }
}

/// Heads of every size that there is a kernel for, and of sizes between; groups of several sizes.
fn shapes() -> Vec<Shape> {
    let sizes = [(2, 1, 32), (1, 4, 40), (2, 7, 64), (1, 2, 80), (2, 3, 96), (1, 5, 112), (1, 4, 128), (1, 16, 256)];
    sizes.into_iter().map(|(kv_heads, group, dim)| Shape { kv_heads, group, dim, ..PLAIN }).collect()
}

/// The same over a cache of eight bits.
fn narrow(shapes: Vec<Shape>) -> impl Iterator<Item = Shape> {
    shapes.into_iter().filter(|shape| shape.dim % 16 == 0).map(|shape| Shape { narrow: true, ..shape })
}

/// What models prescribe besides.
fn rules() -> Vec<Shape> {
    let windows = [1, 31, 32, 33, 100, 256, 257, 1000];
    let mut all: Vec<Shape> = windows.into_iter().map(|window| Shape { window: Some(window), ..PLAIN }).collect();
    all.push(Shape { soft_cap: Some(2.0), ..PLAIN });
    all.push(Shape { sinks: true, ..PLAIN });
    all.push(Shape { soft_cap: Some(20.0), sinks: true, window: Some(45), ..PLAIN });
    all
}

#[test]
fn decoding_is_close_to_the_specification() {
    for shape in shapes().into_iter().chain(narrow(shapes())) {
        World::new(shape, &[1, 17, 32, 270]).check_decode();
    }
}

#[test]
fn decoding_follows_rules() {
    for shape in rules().into_iter().chain(narrow(rules())) {
        let mut world = World::new(shape, &[1, 40, 256, 257, 512, 600]);
        for sequence in 0..world.lengths.len() {
            world.hide(sequence, 0..first_seen(world.lengths[sequence] - 1, shape.window));
        }
        world.check_decode();
    }
}

#[test]
fn a_decoded_row_is_the_same_in_any_company() {
    let windowed = Shape { window: Some(300), sinks: true, dim: 64, ..PLAIN };
    let short = &[800, 3, 256, 300, 17][..];
    // More splits than are added up together, and no multiple of that; seen from the first of them, and from another.
    let long = &[16 * SPLIT, 16 * SPLIT + 1, 33 * SPLIT - 3, 40][..];
    let far = Shape { window: Some(17 * SPLIT + 5), kv_heads: 1, group: 2, sinks: true, ..PLAIN };
    let whole = Shape { window: None, narrow: true, ..far };
    let all =
        [(PLAIN, short), (windowed, short), (Shape { narrow: true, ..windowed }, short), (far, long), (whole, long)];
    for (shape, lengths) in all {
        let world = World::new(shape, lengths);
        world.check_decode();
        let rows: Vec<(usize, i32)> = (0..lengths.len()).map(|i| (i, lengths[i] as i32 - 1)).collect();
        let together = world.decode(&rows, 2);
        let width = shape.heads() * shape.dim;
        for (row, together) in rows.iter().zip(together.chunks_exact(width)) {
            assert_eq!(together, world.decode(&[*row], 1), "alone");
            assert_eq!(together, &world.decode(&[(0, -1), *row, (1, 2)], 50)[width..2 * width], "in other company");
        }
    }
}

#[test]
fn prompts_are_close_to_the_specification() {
    for shape in shapes().into_iter().chain(narrow(shapes())) {
        World::new(shape, &[3, 70]).check_prompt();
    }
    for shape in rules().into_iter().chain(narrow(rules())) {
        World::new(shape, &[1, 150]).check_prompt();
    }
    World::new(Shape { kv_heads: 1, group: 1, dim: 16, ..PLAIN }, &[1100]).check_prompt();
}

#[test]
fn a_prompt_may_be_cut_anywhere() {
    let windowed = Shape { window: Some(50), sinks: true, ..PLAIN };
    let narrow = Shape { narrow: true, ..windowed };
    for shape in [PLAIN, windowed, Shape { kv_heads: 1, group: 2, dim: 256, ..windowed }, narrow] {
        let world = World::new(shape, &[2, 150, 66]);
        let ((whole, firsts), width) = (world.whole(), shape.heads() * shape.dim);
        let (mut done, mut cuts) = (vec![0usize; 3], [1usize, 40, 7, 64, 33, 2].into_iter().cycle());
        while done != world.lengths {
            let (mut chunks, mut row) = (Vec::new(), 2);
            let mut partly = world.clone();
            for sequence in [1, 0, 2] {
                let (start, length) = (done[sequence], world.lengths[sequence]);
                let tokens = cuts.next().unwrap().min(length - start);
                // Neither what comes later has been written, nor is what no window reaches still there.
                partly.hide(sequence, start + tokens..length);
                partly.hide(sequence, 0..first_seen(start, shape.window));
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
                assert_eq!(want, &got[chunk.row * width..(chunk.row + chunk.tokens) * width], "{shape:?} {chunk:?}");
                let before = &got[(chunk.row - 1) * width..chunk.row * width];
                assert!(before.iter().all(|number| *number == NO_NUMBER), "a row of no chunk was written");
            }
        }
    }
}

#[test]
fn tables_that_lead_outside_read_zeros() {
    for shape in [PLAIN, Shape { narrow: true, ..PLAIN }] {
        let mut world = World::new(shape, &[300, 40]);
        world.tables.fill(i32::MAX);
        assert!(world.decode(&[(0, 299), (1, 39), (900, 5)], 3).iter().all(|number| number.to_f32() == 0.0));
        assert!(world.whole().0.iter().all(|number| number.to_f32() == 0.0));
    }
}

#[test]
fn kernels_and_hosts_agree_on_splits() {
    let positions: Vec<i32> = (0..40).map(|i| i * 37).chain([255, 256, 511, 512, 100_000]).collect();
    for window in [None, Some(1), Some(100), Some(256), Some(257), Some(5000)] {
        let mut device = device();
        let device = device.as_mut();
        let out = zeros(device, 4 * positions.len());
        let list = put(device, &positions);
        run(device, splits(out, list, window));
        let got: Vec<i32> = get(device, out);
        for (got, position) in got.chunks_exact(4).zip(&positions) {
            let position = *position as usize;
            let (first, seen) = (first_seen(position, window), splits_seen(position, window));
            let of_last = position + 1 - first.max((seen.end - 1) * SPLIT);
            assert_eq!(got, [first, seen.start, seen.end, of_last].map(|number| number as i32));
        }
    }
}

#[test]
fn work_lists_every_split_of_every_row() {
    assert!(work(&[]).is_empty());
    assert_eq!(work(&[0, -1, 255, 256, 600]), [0, 0, 1, 0, 2, 0, 3, 0, 3, 1, 4, 0, 4, 1, 4, 2]);
    let positions: Vec<i32> = (0..50).map(|i| i * i * 3).collect();
    let contexts = positions.iter().map(|position| *position as usize + 1).sum();
    assert!(work(&positions).len() / 2 <= most_work(positions.len(), contexts));
    assert_eq!(most_work(3, 3 * SPLIT - 1), 5);
    assert_eq!(partials_len(2, 3, 64), 396);
}

#[test]
fn tiles_cover_chunks_and_the_longest_contexts_come_first() {
    let chunks = [
        Chunk { row: 5, tokens: 40, start: 7, slot: 2 },
        Chunk { row: 45, tokens: 1, start: 300, slot: 9 },
        Chunk { row: 46, tokens: 0, start: 300, slot: 8 },
    ];
    // 128 rows of the product are 18 tokens of 7 query heads; 64 are 9.
    assert_eq!(tiles(&chunks, 7, 128), [45, 1, 300, 9, 41, 4, 43, 2, 23, 18, 25, 2, 5, 18, 7, 2]);
    assert_eq!(tiles(&chunks[..1], 7, 256).len(), 4 * 5);
    assert_eq!(tiles(&chunks[..1], 16, 64).len(), 4 * 5);
}

#[test]
fn bytes_and_operations_count_what_is_seen() {
    let world = World::new(Shape { window: Some(10), ..PLAIN }, &[40]);
    let mut device = device();
    let narrow = World { shape: Shape { narrow: true, ..PLAIN }, ..world.clone() }.cache(device.as_mut());
    let (cache, rule) = (world.cache(device.as_mut()), world.rule(device.as_mut()));
    assert_eq!(decode_bytes(&narrow, &rule, &[3, -1, 39]), 2 * 32 * (14 * 2 + 3 * 6 * 2));
    assert_eq!(decode_bytes(&cache, &rule, &[3, -1, 39]), 4 * 32 * (14 * 2 + 3 * 6));
    let chunk = [Chunk { row: 0, tokens: 2, start: 8, slot: 1 }];
    assert_eq!(prompt_operations(&cache, &rule, &chunk), 4 * (9 + 10) * 6 * 32);
    assert_eq!(prompt_bytes(&cache, &rule, &chunk), 4 * 32 * (10 * 2 + 2 * 6));
}

#[test]
fn what_cannot_be_is_refused() {
    let world = World::new(PLAIN, &[40]);
    let mut device = device();
    let device = device.as_mut();
    let (cache, rule) = (world.cache(device), world.rule(device));
    let queries = put(device, &PLAIN.query(0, 0));
    let good = Decode {
        out: queries,
        queries,
        cache,
        rule,
        rows: 1,
        slots: put(device, &[1]),
        positions: put(device, &[39]),
        work: put(device, &[0, 0]),
        work_len: put(device, &[1]),
        partials: zeros(device, partials_len(1, 6, 32)),
        counters: zeros(device, counters_len(1, 2)),
        processors: 1,
    };
    let refused = |job: Decode| decode(&job).unwrap_err().0;
    assert!(decode(&good).is_ok());
    assert!(refused(Decode { rows: 2, ..good }).contains("queries"));
    assert!(refused(Decode { rule: Rule { heads: 5, ..rule }, ..good }).contains("5 query heads over 2"));
    assert!(refused(Decode { rule: Rule { scale: f32::NAN, ..rule }, ..good }).contains("NaN"));
    assert!(refused(Decode { rule: Rule { window: Some(0), ..rule }, ..good }).contains("no positions"));
    assert!(refused(Decode { cache: Cache { head_dim: 36, ..cache }, ..good }).contains("heads of 36"));
    let narrow = |scale: f32| {
        let numbers = good.cache.numbers.bytes().unwrap()[0].cast().unwrap();
        CacheNumbers::E4m3 { keys: numbers, values: numbers, key_scale: 1.0, value_scale: scale }
    };
    assert!(refused(Decode { cache: Cache { numbers: narrow(0.0), ..cache }, ..good }).contains("times 0"));
    let odd = Cache { numbers: narrow(1.0), head_dim: 8, ..cache };
    assert!(refused(Decode { cache: odd, ..good }).contains("heads of 8 numbers of eight bits"));
    assert!(refused(Decode { counters: good.counters.first(1).unwrap(), ..good }).contains("counters"));
    assert!(refused(Decode { partials: good.partials.first(9).unwrap(), ..good }).contains("partial"));
    let none = good.slots.first(0).unwrap();
    let job = Prompt { out: queries, queries, cache, rule, rows: 1, tiles: none };
    assert!(prompt(&job).unwrap_err().0.contains("0 tiles"));
}
