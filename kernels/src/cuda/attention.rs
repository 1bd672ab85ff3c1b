//! Attention over the paged cache: of rows that are one token each ([`decode`]), and of stretches of prompts
//! ([`prompt`]). What a host has to list for each is made here, too. See `cuda/attention.cuh`.
//!
//! A row's result is the same, bit for bit, whatever rows stand beside it and however its prompt was cut.

use super::attention_wgmma;
use super::cache::CacheNumbers;
pub use super::cache::PAGE;
use super::device::Units;
use super::elementwise::vectors;
use super::launch::{Launch, blocks, int, long_enough, needs};
use super::memory::{Bf16, Misuse, Number, Slice};
use std::ops::Range;

/// Positions of a split: what one unit of work of [`decode`] goes through.
pub const SPLIT: usize = 256;
/// Most query heads that share a key head.
const GROUP_MAX: usize = 16;
/// A grid's second side is at most so long.
const TILES_MAX: usize = 65_535;
/// Threads of a block.
const THREADS: u32 = 128;

/// Keys and values of one layer.
#[derive(Clone, Copy, Debug)]
pub struct Cache {
    /// Theirs.
    pub numbers: CacheNumbers,
    /// `[slots, table_stride]`: the blocks of each slot. Where they lead outside, zeros are read.
    pub tables: Slice<i32>,
    /// Blocks of a slot at most.
    pub table_stride: usize,
    /// Key heads.
    pub kv_heads: usize,
    /// Numbers of a head: a multiple of 8, at most 256.
    pub head_dim: usize,
}

/// What the model prescribes for a layer.
#[derive(Clone, Copy, Debug)]
pub struct Rule {
    /// Query heads; those that follow each other share a key head.
    pub heads: usize,
    /// Scores are multiplied by this.
    pub scale: f32,
    /// A row sees so many positions, its own the last.
    pub window: Option<usize>,
    /// Then scores become `cap * tanh(score / cap)`.
    pub soft_cap: Option<f32>,
    /// `[heads]`: a score of each head that takes part in the softmax and adds nothing.
    pub sinks: Option<Slice<f32>>,
}

/// Attention of rows that are one token each. Positions, slots, tables, work, and the cache of all but a row's last position
/// are read before earlier launches have ended: of these, only `embed` and what comes before it may write them.
#[derive(Clone, Copy, Debug)]
pub struct Decode {
    /// `[rows, heads, head_dim]`, written. Rows with position -1 become zeros.
    pub out: Slice<Bf16>,
    /// `[rows, heads, head_dim]`
    pub queries: Slice<Bf16>,
    /// Keys and values, those of the rows among them.
    pub cache: Cache,
    /// What is computed of them.
    pub rule: Rule,
    /// Rows.
    pub rows: usize,
    /// `[rows]`
    pub slots: Slice<i32>,
    /// `[rows]`; -1 is padding.
    pub positions: Slice<i32>,
    /// `[most, 2]`: what [`work`] lists for the positions.
    pub work: Slice<i32>,
    /// How many entries `work` has.
    pub work_len: Slice<i32>,
    /// What units have found: [`partials_len`] of `most`.
    pub partials: Slice<f32>,
    /// [`counters_len`] of `most`: zeros before the first launch, and after each.
    pub counters: Slice<u32>,
    /// Multiprocessors of the device.
    pub processors: u32,
}

/// Attention of stretches of prompts.
#[derive(Clone, Copy, Debug)]
pub struct Prompt {
    /// `[rows, heads, head_dim]`, written where there are tiles.
    pub out: Slice<Bf16>,
    /// `[rows, heads, head_dim]`
    pub queries: Slice<Bf16>,
    /// Keys and values, those of the rows among them.
    pub cache: Cache,
    /// What is computed of them.
    pub rule: Rule,
    /// Rows.
    pub rows: usize,
    /// `[n, 4]`: all that [`tiles`] lists, and nothing else.
    pub tiles: Slice<i32>,
}

/// Some tokens of a prompt that follow each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// The row of the first, in the batch.
    pub row: usize,
    /// How many.
    pub tokens: usize,
    /// The position of the first.
    pub start: usize,
    /// The sequence's slot.
    pub slot: usize,
}

/// The first position that a row sees.
pub fn first_seen(position: usize, window: Option<usize>) -> usize {
    window.map_or(0, |window| (position + 1).saturating_sub(window))
}

/// The splits of which a row sees something.
pub fn splits_seen(position: usize, window: Option<usize>) -> Range<usize> {
    first_seen(position, window) / SPLIT..position / SPLIT + 1
}

/// The work of a step, for every layer: for each row, all splits of its context, whatever windows hide of them; one
/// for a row that is padding. Pairs of row and split, one after the other.
pub fn work(positions: &[i32]) -> Vec<i32> {
    let mut list = Vec::new();
    for (row, &position) in (0i32..).zip(positions) {
        let last = position.max(0) / SPLIT as i32;
        list.extend((0..=last).flat_map(|split| [row, split]));
    }
    list
}

/// Entries that [`work`] lists at most for so many rows, whose contexts are together so long.
pub fn most_work(rows: usize, positions: usize) -> usize {
    rows + positions / SPLIT
}

/// Numbers that [`Decode::partials`] needs for so many entries of work.
pub fn partials_len(most_work: usize, heads: usize, head_dim: usize) -> usize {
    most_work * heads * (head_dim + 2)
}

/// Numbers that [`Decode::counters`] needs for so many entries of work.
pub fn counters_len(most_work: usize, kv_heads: usize) -> usize {
    most_work * kv_heads
}

/// The tiles of chunks, those with the longest contexts first, for blocks begin in this order: quadruples of row,
/// tokens, position and slot. `group` query heads share a key head.
pub fn tiles(chunks: &[Chunk], group: usize, head_dim: usize) -> Vec<i32> {
    let most = (tile_rows(padded(head_dim)) / group.max(1)).max(1);
    let mut list: Vec<[usize; 4]> = Vec::new();
    for chunk in chunks {
        for first in (0..chunk.tokens).step_by(most) {
            list.push([chunk.row + first, most.min(chunk.tokens - first), chunk.start + first, chunk.slot]);
        }
    }
    list.sort_by_key(|[_, tokens, start, _]| std::cmp::Reverse(start + tokens));
    list.into_iter().flatten().map(|number| i32::try_from(number).unwrap_or(-1)).collect()
}

/// The size of heads that there is a kernel for.
fn padded(head_dim: usize) -> usize {
    [32, 64, 96, 128].into_iter().find(|&size| head_dim <= size).unwrap_or(256)
}

/// Rows of a tile of [`prompt`]: tokens times query heads that share a key head.
pub(super) fn tile_rows(padded: usize) -> usize {
    if padded <= 128 { 128 } else { 64 }
}

/// Dynamic shared memory of a block of [`decode`].
fn decode_shared(padded: usize) -> usize {
    // Tiles of keys, and of values, that each of four warps has room for; twice as many of eight bits.
    let ring = if padded <= 64 { 4 } else { 2 - padded / 256 };
    let tile = 16 * padded * Bf16::BYTES;
    let exchange = padded / 8 * 32 * 4 * f32::BYTES;
    4 * ring * 2 * tile + exchange + if padded > 128 { tile } else { 0 }
}

/// Dynamic shared memory of a block of [`prompt`]. Tiles of keys and values lie there twice: as the next ones, too, or as
/// numbers of eight bits that are widened.
fn prompt_shared(padded: usize, numbers: &CacheNumbers) -> usize {
    let keys = if padded <= 128 { 64 } else { 32 };
    let tiles = 2 * keys * padded * (Bf16::BYTES + numbers.number_bytes());
    tile_rows(padded) * padded * Bf16::BYTES + tiles
}

/// Blocks of [`decode`] that a multiprocessor of an H200 runs at once.
fn blocks_at_once(padded: usize) -> usize {
    match padded {
        32 => 4,
        256 => 2,
        _ => 3,
    }
}

impl Cache {
    /// Blocks.
    fn blocks(&self) -> usize {
        self.numbers.blocks(self.kv_heads, self.head_dim)
    }
}

impl Rule {
    /// The window as the kernels want it.
    fn window(&self) -> Result<i32, Misuse> {
        needs(self.window != Some(0), || "a window of no positions".into())?;
        int("a window", self.window.unwrap_or(0))
    }
}

/// What both kernels need.
fn check(cache: &Cache, rule: &Rule, rows: usize, [out, queries]: [Slice<Bf16>; 2]) -> Result<(), Misuse> {
    let (heads, kv_heads, dim) = (rule.heads, cache.kv_heads, cache.head_dim);
    let fits = kv_heads > 0 && heads.is_multiple_of(kv_heads) && (1..=GROUP_MAX).contains(&(heads / kv_heads));
    needs(fits, || format!("{heads} query heads over {kv_heads} key heads"))?;
    needs((8..=256).contains(&dim) && dim.is_multiple_of(8), || format!("heads of {dim}"))?;
    needs(rule.scale > 0.0 && rule.scale.is_finite(), || format!("scores times {}", rule.scale))?;
    let cap = rule.soft_cap.unwrap_or(1.0);
    needs(cap > 0.0 && cap.is_finite(), || format!("scores capped at {cap}"))?;
    needs(cache.table_stride > 0, || "tables of no blocks".into())?;
    vectors("queries", queries, rows * heads * dim)?;
    vectors("results", out, rows * heads * dim)?;
    cache.numbers.check(kv_heads, dim)?;
    rule.sinks.map_or(Ok(()), |sinks| long_enough("sinks", sinks, heads))
}

/// Attention of rows that are one token each.
///
/// # Errors
/// A slice is too short, or a size is none that the kernel knows.
pub fn decode(job: &Decode) -> Result<Launch, Misuse> {
    let (cache, rule) = (&job.cache, &job.rule);
    check(cache, rule, job.rows, [job.out, job.queries])?;
    let (dim, most) = (cache.head_dim, job.work.len() / 2);
    long_enough("slots", job.slots, job.rows)?;
    long_enough("positions", job.positions, job.rows)?;
    long_enough("work", job.work, 2)?;
    long_enough("the length of work", job.work_len, 1)?;
    vectors("partial results", job.partials, partials_len(most, rule.heads, dim))?;
    long_enough("counters", job.counters, counters_len(most, cache.kv_heads))?;
    let kernel = match padded(dim) {
        32 => cache.numbers.either("attention_decode_32", "attention_decode_32_e4m3"),
        64 => cache.numbers.either("attention_decode_64", "attention_decode_64_e4m3"),
        96 => cache.numbers.either("attention_decode_96", "attention_decode_96_e4m3"),
        128 => cache.numbers.either("attention_decode_128", "attention_decode_128_e4m3"),
        _ => cache.numbers.either("attention_decode_256", "attention_decode_256_e4m3"),
    };
    let units = int("units of work", most * cache.kv_heads)? as usize;
    let grid = (job.processors as usize * blocks_at_once(padded(dim))).clamp(1, units);
    let sums = most * rule.heads * dim;
    let launch = Launch::new(kernel, [blocks("blocks", grid)?, 1, 1], THREADS, decode_shared(padded(dim)) as u32)
        .slice(job.out)
        .slice(job.partials.first(sums)?)
        .slice(job.partials.part(sums..partials_len(most, rule.heads, dim))?)
        .slice(job.counters)
        .slice(job.queries);
    let launch = cache
        .numbers
        .operands(launch)
        .slice(cache.tables)
        .slice(job.slots)
        .slice(job.positions)
        .slice(job.work)
        .slice(job.work_len)
        .optional(rule.sinks)
        .int(int("rows", job.rows)?)
        .int(int("entries of work", most)?);
    sizes(cache, rule, launch)
}

/// Attention of stretches of prompts by what a device multiplies matrices with.
///
/// # Errors
/// A slice is too short, or a size is none that the kernel knows.
pub fn prompt_on(job: &Prompt, units: Units) -> Result<Launch, Misuse> {
    match units {
        Units::Warpgroups { .. } if attention_wgmma::suits(job.cache.head_dim) => attention_wgmma::prompt(job),
        _ => prompt(job),
    }
}

/// Attention of stretches of prompts.
///
/// # Errors
/// A slice is too short, or a size is none that the kernel knows.
pub fn prompt(job: &Prompt) -> Result<Launch, Misuse> {
    let (numbers, size) = (&job.cache.numbers, padded(job.cache.head_dim));
    let name = match size {
        32 => numbers.either("attention_prompt_32", "attention_prompt_32_e4m3"),
        64 => numbers.either("attention_prompt_64", "attention_prompt_64_e4m3"),
        96 => numbers.either("attention_prompt_96", "attention_prompt_96_e4m3"),
        128 => numbers.either("attention_prompt_128", "attention_prompt_128_e4m3"),
        _ => numbers.either("attention_prompt_256", "attention_prompt_256_e4m3"),
    };
    prompt_by(job, &Kernel { name, threads: THREADS, shared: prompt_shared(size, numbers) })
}

/// One of the kernels that know what a [`Prompt`] is.
pub(super) struct Kernel {
    pub(super) name: &'static str,
    pub(super) threads: u32,
    /// Bytes.
    pub(super) shared: usize,
}

/// Attention of stretches of prompts by one of the kernels.
pub(super) fn prompt_by(job: &Prompt, kernel: &Kernel) -> Result<Launch, Misuse> {
    let (cache, rule) = (&job.cache, &job.rule);
    check(cache, rule, job.rows, [job.out, job.queries])?;
    let count = job.tiles.len() / 4;
    needs((1..=TILES_MAX).contains(&count), || format!("{count} tiles"))?;
    let grid = [blocks("key heads", cache.kv_heads)?, blocks("tiles", count)?, 1];
    let launch = Launch::new(kernel.name, grid, kernel.threads, kernel.shared as u32);
    let launch = cache.numbers.operands(launch.slice(job.out).slice(job.queries));
    let launch = launch.slice(cache.tables).slice(job.tiles).optional(rule.sinks);
    sizes(cache, rule, launch.int(int("rows", job.rows)?))
}

/// Appends what all kernels end with.
fn sizes(cache: &Cache, rule: &Rule, launch: Launch) -> Result<Launch, Misuse> {
    let [key_scale, value_scale] = cache.numbers.scales();
    Ok(launch
        .int(int("slots", cache.tables.len() / cache.table_stride)?)
        .int(int("blocks of a slot", cache.table_stride)?)
        .int(int("blocks", cache.blocks())?)
        .int(int("heads", rule.heads)?)
        .int(int("key heads", cache.kv_heads)?)
        .int(int("a head", cache.head_dim)?)
        .int(rule.window()?)
        .float(rule.scale * key_scale)
        .float(rule.soft_cap.unwrap_or(0.0))
        .float(value_scale))
}

/// What the kernels make of positions, all of them 0 or more: `[n, 4]` of [`first_seen`], beginning and end of
/// [`splits_seen`], and how many positions are seen of the last split. For a test of these.
///
/// # Errors
/// A slice is too short.
pub fn splits(out: Slice<i32>, positions: Slice<i32>, window: Option<usize>) -> Result<Launch, Misuse> {
    long_enough("results", out, 4 * positions.len())?;
    Ok(Launch::new("attention_splits", [1, 1, 1], THREADS, 0)
        .slice(out)
        .slice(positions)
        .int(int("positions", positions.len())?)
        .int(int("a window", window.unwrap_or(0))?))
}

/// Bytes that [`decode`] moves for rows at these positions: keys and values that are seen, queries and results. What
/// goes through `partials` is not counted.
pub fn decode_bytes(cache: &Cache, rule: &Rule, positions: &[i32]) -> usize {
    let seen = |position: &i32| {
        usize::try_from(*position).map_or(0, |position| position + 1 - first_seen(position, rule.window))
    };
    let positions_seen: usize = positions.iter().map(seen).sum();
    let keys = positions_seen * cache.kv_heads * cache.numbers.number_bytes();
    2 * (keys + positions.len() * rule.heads * Bf16::BYTES) * cache.head_dim
}

/// Floating-point operations of [`prompt`] for these chunks: two products, of what is seen.
pub fn prompt_operations(cache: &Cache, rule: &Rule, chunks: &[Chunk]) -> usize {
    let seen = |position: usize| position + 1 - first_seen(position, rule.window);
    let pairs: usize = chunks.iter().flat_map(|chunk| chunk.start..chunk.start + chunk.tokens).map(seen).sum();
    4 * pairs * rule.heads * cache.head_dim
}

/// Bytes that [`prompt`] moves at least: every key and value of each chunk's context once, queries and results.
pub fn prompt_bytes(cache: &Cache, rule: &Rule, chunks: &[Chunk]) -> usize {
    let contexts: usize =
        chunks.iter().map(|chunk| chunk.start + chunk.tokens - first_seen(chunk.start, rule.window)).sum();
    let rows: usize = chunks.iter().map(|chunk| chunk.tokens).sum();
    let keys = contexts * cache.kv_heads * cache.numbers.number_bytes();
    2 * (keys + rows * rule.heads * Bf16::BYTES) * cache.head_dim
}
