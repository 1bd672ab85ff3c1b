//! From the projection of queries, keys and values to what attention reads: biases, norms of heads, rotation, and the
//! write into the paged cache. See `cuda/rotary.cu`.

use super::cache::CacheNumbers;
use super::elementwise::{optional, vectors};
use super::launch::{Launch, blocks, int, long_enough, needs};
use super::memory::{Bf16, Misuse, Number, Slice};

/// Threads of a block.
const THREADS: usize = 128;
/// As many blocks as fill a GPU. Fewer rows are divided over several blocks each; in more, a block has a whole row, and
/// works out its angles once.
const BLOCKS_WANTED: usize = 1024;
/// A grid's second and third side are at most so long.
const ROWS_MAX: usize = 65_535;

/// Root-mean-square norms of queries and keys.
#[derive(Clone, Copy, Debug)]
pub struct HeadNorms {
    /// `[head_dim]`, or `[heads * head_dim]` where `full`.
    pub query: Slice<f32>,
    /// `[head_dim]`, or `[kv_heads * head_dim]` where `full`.
    pub key: Slice<f32>,
    /// Are all heads one row, rather than each by itself?
    pub full: bool,
    /// Added to the mean square.
    pub eps: f32,
    /// Added to every weight: 0 or 1.
    pub offset: f32,
}

/// The rotation of queries and keys: pair i turns by `position * frequencies[i]`.
#[derive(Clone, Copy, Debug)]
pub struct Turn {
    /// `[pairs]`; the first `2 * pairs` numbers of a head are rotated.
    pub frequencies: Slice<f32>,
    /// Multiplies sine and cosine.
    pub factor: f32,
    /// Are pairs neighbours, rather than `pairs` numbers apart?
    pub interleaved: bool,
}

/// What attention reads, of a projection. Positions, slots and tables are read before earlier launches have ended: of these,
/// only `embed` and what comes before it may write them.
#[derive(Clone, Copy, Debug)]
pub struct RotaryWrite {
    /// `[rows, heads + 2 * kv_heads, head_dim]`: queries, keys, values.
    pub qkv: Slice<f32>,
    /// `[heads + 2 * kv_heads, head_dim]`, added first.
    pub bias: Option<Slice<f32>>,
    /// Norms, next.
    pub norms: Option<HeadNorms>,
    /// The rotation, last.
    pub turn: Option<Turn>,
    /// `[rows]`; -1 is padding: its queries become zeros, and nothing is written to the cache.
    pub positions: Slice<i32>,
    /// `[rows]`
    pub slots: Slice<i32>,
    /// `[slots, table_stride]`: the cache's blocks of each slot.
    pub tables: Slice<i32>,
    /// Blocks of a slot at most.
    pub table_stride: usize,
    /// `[rows, heads, head_dim]`, written.
    pub queries: Slice<Bf16>,
    /// The layer's keys and values, written at the rows' positions; those that the tables put outside are left out.
    pub cache: CacheNumbers,
    /// Rows.
    pub rows: usize,
    /// Query heads.
    pub heads: usize,
    /// Key heads.
    pub kv_heads: usize,
    /// Numbers of a head.
    pub head_dim: usize,
}

impl RotaryWrite {
    /// Numbers of a head that are rotated.
    fn dims(&self) -> usize {
        self.turn.map_or(0, |turn| 2 * turn.frequencies.len())
    }

    /// Numbers of a row of `qkv`.
    fn width(&self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.head_dim
    }

    /// Are the sizes what the kernel knows, and the slices as long as they say?
    fn check(&self) -> Result<(), Misuse> {
        let (heads, kv_heads, dim) = (self.heads, self.kv_heads, self.head_dim);
        let divides = heads > 0 && kv_heads > 0 && heads.is_multiple_of(kv_heads);
        needs(divides, || format!("{heads} query heads over {kv_heads} key heads"))?;
        needs((8..=256).contains(&dim) && dim.is_multiple_of(8), || format!("heads of {dim}"))?;
        needs((1..=ROWS_MAX).contains(&self.rows), || format!("{} rows", self.rows))?;
        needs(self.dims() <= dim, || format!("a rotation of {} numbers in heads of {dim}", self.dims()))?;
        vectors("qkv", self.qkv, self.rows * self.width())?;
        optional("biases", self.bias, self.width())?;
        if let Some(norms) = self.norms {
            let (query, key) = if norms.full { (heads * dim, kv_heads * dim) } else { (dim, dim) };
            vectors("weights of queries", norms.query, query)?;
            vectors("weights of keys", norms.key, key)?;
        }
        long_enough("positions", self.positions, self.rows)?;
        long_enough("slots", self.slots, self.rows)?;
        needs(self.table_stride > 0, || "tables of no blocks".into())?;
        vectors("queries", self.queries, self.rows * heads * dim)?;
        self.cache.check(kv_heads, dim)
    }
}

/// Queries, and keys and values into the cache.
///
/// # Errors
/// A slice is too short, or a size is none that the kernel knows.
pub fn rotary_write(job: &RotaryWrite) -> Result<Launch, Misuse> {
    job.check()?;
    let (kernel, lanes) = match job.head_dim {
        0..=32 => (job.cache.either("rotary_write_32", "rotary_write_32_e4m3"), 4),
        33..=64 => (job.cache.either("rotary_write_64", "rotary_write_64_e4m3"), 8),
        65..=128 => (job.cache.either("rotary_write_128", "rotary_write_128_e4m3"), 16),
        _ => (job.cache.either("rotary_write_256", "rotary_write_256_e4m3"), 32),
    };
    let dims = job.dims();
    let interleaved = job.turn.is_some_and(|turn| turn.interleaved);
    let at_once = THREADS / lanes;
    let stages = !interleaved && dims > 0 && dims < job.head_dim;
    let shared = (2 + if stages { at_once } else { 0 }) * job.head_dim * f32::BYTES;
    let parts = (job.heads + 2 * job.kv_heads).div_ceil(at_once);
    let parts = if job.rows * parts <= BLOCKS_WANTED { parts } else { 1 };
    let grid = [blocks("parts", parts)?, blocks("rows", job.rows)?, 1];
    let [key_factor, value_factor] = job.cache.scales().map(|scale| 1.0 / scale);
    let launch = Launch::new(kernel, grid, THREADS as u32, shared as u32)
        .slice(job.qkv)
        .optional(job.bias)
        .optional(job.norms.map(|norms| norms.query))
        .optional(job.norms.map(|norms| norms.key))
        .optional(job.turn.map(|turn| turn.frequencies))
        .slice(job.positions)
        .slice(job.slots)
        .slice(job.tables)
        .slice(job.queries);
    Ok(job
        .cache
        .operands(launch)
        .int(int("slots", job.tables.len() / job.table_stride)?)
        .int(int("blocks of a slot", job.table_stride)?)
        .int(int("blocks", job.cache.blocks(job.kv_heads, job.head_dim))?)
        .int(int("heads", job.heads)?)
        .int(int("key heads", job.kv_heads)?)
        .int(int("a head", job.head_dim)?)
        .int(int("rotated numbers", dims)?)
        .int(i32::from(interleaved))
        .int(i32::from(job.norms.is_some_and(|norms| norms.full)))
        .float(job.turn.map_or(1.0, |turn| turn.factor))
        .float(job.norms.map_or(0.0, |norms| norms.eps))
        .float(job.norms.map_or(0.0, |norms| norms.offset))
        .float(key_factor)
        .float(value_factor))
}

/// Bytes that [`rotary_write`] moves.
pub fn rotary_write_bytes(job: &RotaryWrite) -> usize {
    let written = job.heads * Bf16::BYTES + 2 * job.kv_heads * job.cache.number_bytes();
    job.rows * (job.width() * f32::BYTES + written * job.head_dim)
}
