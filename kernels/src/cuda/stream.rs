//! Matrix products of up to 64 rows by pairs of blocks and by the matrix units of compute capability 9.0. See
//! `cuda/gemm_stream.cu`.

use super::gemm::{Output, PROCESSORS, Product, checked};
use super::launch::{Launch, int, needs};
use super::memory::{Bf16, Misuse, Number};
use super::pairs::{GATE, matrix};
use super::wgmma::{self, ALIGNMENT, LINE, ROOM, ROWS};

/// Most rows.
pub const STREAM_ROWS: usize = 64;
/// Outputs of a pair's tile.
const PAIR_OUTPUTS: usize = 2 * ROWS;
/// Threads of a block.
const THREADS: u32 = 288;
/// Steps that a share has at least, where there are so many.
const LEAST_STEPS: usize = 4;

/// Tiles of a matrix, and steps of all of them.
fn extent(outputs: usize, inputs: usize) -> (usize, usize) {
    let tiles = outputs.div_ceil(PAIR_OUTPUTS);
    (tiles, tiles * (inputs * Bf16::BYTES).div_ceil(LINE))
}

/// Among how many pairs the weights are shared out. A function of their shape alone, for sums depend on it.
pub fn shares(outputs: usize, inputs: usize) -> usize {
    (extent(outputs, inputs).1 / LEAST_STEPS).clamp(1, PROCESSORS / 2)
}

/// Is it for a device of so many multiprocessors? Fewer would have some of the shares only after the others.
pub fn suits_device(processors: u32) -> bool {
    processors as usize >= PROCESSORS
}

/// Does the kernel know such a product, and is it for it?
pub fn suits(rows: usize, outputs: usize, inputs: usize) -> bool {
    rows <= STREAM_ROWS && wgmma::suits(outputs, inputs)
}

/// The product of up to 64 rows, with weights shared out among so many pairs. `late`: an earlier launch of the step
/// writes the weights.
///
/// # Errors
/// There are more rows, a slice is too short or not aligned to 16 bytes, or a size is none that the kernel knows.
pub fn product(job: &Product, shares: usize, late: bool) -> Result<Launch, Misuse> {
    checked(job)?;
    let (rows, outputs, inputs) = (job.rows, job.outputs, job.inputs);
    needs(suits(rows, outputs, inputs), || format!("{rows} rows of {inputs} inputs, with {outputs} outputs"))?;
    let (tiles, steps) = extent(outputs, inputs);
    // The kernel counts in 32 bits.
    let known = (1..=steps).contains(&shares) && shares < i32::MAX as usize / steps;
    needs(known, || format!("{shares} shares of {steps} steps"))?;
    let most = rows.next_power_of_two().max(16);
    let kernel = match (most, job.y) {
        (16, Output::F32(_)) => "gemm_stream_16_f32",
        (16, Output::Bf16(_)) => "gemm_stream_16_bf16",
        (32, Output::F32(_)) => "gemm_stream_32_f32",
        (32, Output::Bf16(_)) => "gemm_stream_32_bf16",
        (_, Output::F32(_)) => "gemm_stream_64_f32",
        (_, Output::Bf16(_)) => "gemm_stream_64_bf16",
    };
    job.workspace.check(sums_len(shares, most), 2 * tiles)?;
    let stage = (ROWS + most) * LINE;
    let stages = ROOM / stage;
    let shared = ALIGNMENT + stages * (stage + 2 * GATE) + GATE;
    let launch = Launch::new(kernel, [2 * shares as u32, 1, 1], THREADS, shared as u32);
    let launch = launch.matrix(matrix(job.x, rows, inputs, most / 2)).matrix(matrix(job.weight, outputs, inputs, ROWS));
    let launch = job.y.onto(launch).optional(job.bias).slice(job.workspace.sums).slice(job.workspace.counters);
    let launch = launch.int(int("shares", shares)?).int(i32::from(late)).int(int("rows", rows)?);
    Ok(launch.int(int("outputs", outputs)?).int(int("bytes of a row", inputs * Bf16::BYTES)?))
}

/// Numbers of sums: what each share has of its first tile and of its last.
fn sums_len(shares: usize, most: usize) -> usize {
    2 * shares * PAIR_OUTPUTS * most
}

/// Numbers of the workspace's sums and counters that any product with such weights needs.
pub(super) fn workspace(outputs: usize, inputs: usize) -> (usize, usize) {
    if !wgmma::suits(outputs, inputs) {
        return (0, 0);
    }
    (sums_len(shares(outputs, inputs), STREAM_ROWS), 2 * extent(outputs, inputs).0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_multiprocessors_have_a_share_of_large_matrices() {
        let shapes = [(6144, 4096), (4096, 4096), (28672, 4096), (4096, 14336), (128_256, 4096)];
        assert!(shapes.into_iter().all(|(outputs, inputs)| shares(outputs, inputs) == 66));
        // Of small ones as many as have something to do.
        assert_eq!(shares(1024, 2048), 32);
        assert_eq!(shares(8, 64), 1);
    }
}
