//! What is done before a model computes, or between its steps: weights that are made up, and the tables of the cache's
//! blocks. See `cuda/setup.cu`.

use super::elementwise::vectors;
use super::launch::{Launch, blocks, int, long_enough, needs};
use super::memory::{Bf16, Misuse, Number, Slice};

/// Numbers that nobody trained: a function of the tensor's key and each number's index, in 64 bits, then rounded to
/// 32 bits, then to the tensor's type.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MakeUp {
    /// The hash of the tensor.
    pub key: u64,
    /// The index of the slice's first number.
    pub first: u64,
    /// The mean.
    pub mean: f64,
    /// The standard deviation.
    pub sigma: f64,
}

/// Fills all of a slice with made-up numbers.
///
/// # Errors
/// The slice is empty, not aligned to 16 bytes, or larger than a grid.
pub fn make_up_bf16(to: Slice<Bf16>, job: &MakeUp) -> Result<Launch, Misuse> {
    make_up("make_up_bf16", to, job)
}

/// The same in 32 bits.
///
/// # Errors
/// The slice is empty, not aligned to 16 bytes, or larger than a grid.
pub fn make_up_f32(to: Slice<f32>, job: &MakeUp) -> Result<Launch, Misuse> {
    make_up("make_up_f32", to, job)
}

fn make_up<T: Number>(kernel: &'static str, to: Slice<T>, job: &MakeUp) -> Result<Launch, Misuse> {
    const THREADS: usize = 256;
    const EACH: usize = 4;
    vectors("made-up weights", to, 1)?;
    let grid = [blocks("made-up weights", to.len().div_ceil(THREADS * EACH))?, 1, 1];
    let launch = Launch::new(kernel, grid, THREADS as u32, 0).slice(to);
    let numbers = [to.len() as u64, job.key, job.first, job.mean.to_bits(), job.sigma.to_bits()];
    Ok(numbers.iter().fold(launch, |launch, number| launch.int(*number as i32).int((*number >> 32) as i32)))
}

/// Bytes that are written to make up a slice.
pub fn make_up_bytes<T: Number>(to: Slice<T>) -> usize {
    to.byte_len()
}

/// New blocks of sequences.
#[derive(Clone, Copy, Debug)]
pub struct UpdateTables {
    /// `[count, 3]`: slot, index, block. Block `block` becomes block `index` of the slot's sequence; no place comes
    /// twice, and what is outside the tables is left out.
    pub updates: Slice<i32>,
    /// Updates; where there are none, there is nothing to launch.
    pub count: usize,
    /// `[slots, table_stride]`, written.
    pub tables: Slice<i32>,
    /// Blocks of a slot at most.
    pub table_stride: usize,
}

/// Updates of the tables of the cache's blocks.
///
/// # Errors
/// A slice is too short, or there are no updates.
pub fn update_tables(job: &UpdateTables) -> Result<Launch, Misuse> {
    const THREADS: usize = 128;
    needs(job.count > 0, || "no updates of tables".into())?;
    long_enough("updates", job.updates, 3 * job.count)?;
    needs(job.table_stride > 0, || "tables of no blocks".into())?;
    let grid = [blocks("updates", job.count.div_ceil(THREADS))?, 1, 1];
    Ok(Launch::new("update_tables", grid, THREADS as u32, 0)
        .slice(job.updates)
        .int(int("updates", job.count)?)
        .slice(job.tables)
        .int(int("slots", job.tables.len() / job.table_stride)?)
        .int(int("blocks of a slot", job.table_stride)?))
}
