//! Products of one to eight rows with a matrix of weights, and what stands before and after them in a layer: the norm of
//! the residual stream, the gated activation, the residual addition. See `cuda/gemv.cu`.

use super::elementwise::{Gate, optional, vectors};
use super::gemm::{INPUTS, PROCESSORS};
use super::launch::{Launch, blocks, int, long_enough, needs};
use super::memory::{Bf16, Misuse, Number, Slice};

/// Most rows.
pub const GEMV_ROWS: usize = 8;
/// Outputs of a unit.
const UNIT: usize = 8;
const THREADS: usize = 256;
/// Inputs of a stage, at most.
const DEEPEST: usize = 128;
/// Bytes of shared memory for the weights that are under way.
const RINGS: usize = 8 * 12_288;
/// Bytes of shared memory that a block may have: with compute capability 9.0, which it is meant for. Others have less.
const SHARED: usize = 226 << 10;

/// What is multiplied.
#[derive(Clone, Copy, Debug)]
pub enum Input {
    /// `[rows, inputs]`, as it is.
    Rows(Slice<Bf16>),
    /// The root-mean-square norm of rows of the residual stream.
    Normed {
        /// `[any number, inputs]`
        x: Slice<f32>,
        /// `[inputs]`
        weight: Slice<f32>,
        /// Added to the mean square.
        eps: f32,
        /// Added to every weight: 0 or 1.
        offset: f32,
        /// `[rows]`: row r is of row `row_index[r]` of `x`; zeros where there is none (-1).
        row_index: Option<Slice<i32>>,
    },
}

/// What becomes of the results, biases included.
#[derive(Clone, Copy, Debug)]
pub enum Outcome {
    /// `[rows, outputs]`, written.
    F32(Slice<f32>),
    /// `[rows, outputs]`, written, rounded.
    Bf16(Slice<Bf16>),
    /// `[rows, outputs]`: so many times the results are added to it.
    Added(Slice<f32>, f32),
    /// `[rows, outputs / 2]`, written: the first half of the outputs are a gate, the second what it lets through.
    Gated(Slice<Bf16>, Gate),
}

/// `y = x weight^T + bias`.
#[derive(Clone, Copy, Debug)]
pub struct Gemv {
    /// What is multiplied.
    pub x: Input,
    /// `[outputs, inputs]`
    pub weight: Slice<Bf16>,
    /// `[outputs]`
    pub bias: Option<Slice<f32>>,
    /// What becomes of it.
    pub y: Outcome,
    /// Rows of `x` that are multiplied, up to [`GEMV_ROWS`].
    pub rows: usize,
    /// Rows of the weights.
    pub outputs: usize,
    /// Columns of the weights: a multiple of 32.
    pub inputs: usize,
}

/// Does a block have room for so many rows, on a device that has what compute capability 9.0 has?
pub fn suits(rows: usize, inputs: usize) -> bool {
    (1..=GEMV_ROWS).contains(&rows) && shared(rows, inputs, 4) <= SHARED
}

/// The product.
///
/// A row's result does not depend on the others.
///
/// # Errors
/// A slice is too short or not aligned to 16 bytes, or a size is none that the kernel knows.
pub fn gemv(job: &Gemv) -> Result<Launch, Misuse> {
    let Gemv { rows, outputs, inputs, .. } = *job;
    needs(outputs > 0 && inputs > 0 && inputs.is_multiple_of(INPUTS) && suits(rows, inputs), || {
        format!("a product of {rows} rows of {inputs} inputs, of which {INPUTS} make a step, with {outputs} outputs")
    })?;
    vectors("the weights", job.weight, outputs * inputs)?;
    optional("the bias", job.bias, outputs)?;
    let (outcome, factor) = job.outcome()?;
    let units = job.width().div_ceil(UNIT);
    let share = units.div_ceil(PROCESSORS);
    let groups = together(share * (outputs / job.width()));
    let kernel = match groups {
        1 => "gemv_1",
        2 => "gemv_2",
        _ => "gemv_4",
    };
    let grid = [blocks("outputs", units.div_ceil(share))?, 1, 1];
    let launch = Launch::new(kernel, grid, THREADS as u32, shared(rows, inputs, groups) as u32);
    let launch = match job.y {
        Outcome::F32(y) | Outcome::Added(y, _) => launch.slice(y),
        Outcome::Bf16(y) | Outcome::Gated(y, _) => launch.slice(y),
    };
    let (launch, norm, row_index, x_rows, offset, eps) = match job.x {
        Input::Rows(x) => {
            vectors("x", x, rows * inputs)?;
            (launch.slice(x), None, None, rows, 0.0, 0.0)
        }
        Input::Normed { x, weight, eps, offset, row_index } => {
            vectors("x", x, if row_index.is_some() { inputs } else { rows * inputs })?;
            vectors("the norm's weights", weight, inputs)?;
            if let Some(index) = row_index {
                long_enough("the index", index, rows)?;
            }
            (launch.slice(x), Some(weight), row_index, x.len() / inputs, offset, eps)
        }
    };
    Ok(launch
        .slice(job.weight)
        .optional(job.bias)
        .optional(norm)
        .optional(row_index)
        .int(int("rows", rows)?)
        .int(int("rows of x", x_rows)?)
        .int(int("outputs", outputs)?)
        .int(int("inputs", inputs)?)
        .int(int("units of a block", share)?)
        .int(outcome)
        .float(offset)
        .float(eps)
        .float(factor))
}

/// Bytes that [`gemv`] moves: weights, x, what it writes, and the bias.
pub fn gemv_bytes(job: &Gemv) -> usize {
    let x = match job.x {
        Input::Rows(_) => Bf16::BYTES,
        Input::Normed { .. } => f32::BYTES,
    };
    let y = match job.y {
        Outcome::F32(_) => f32::BYTES,
        Outcome::Added(..) => 2 * f32::BYTES,
        Outcome::Bf16(_) | Outcome::Gated(..) => Bf16::BYTES,
    };
    let bias = job.bias.map_or(0, |_| job.outputs * f32::BYTES);
    job.outputs * job.inputs * Bf16::BYTES + job.rows * (job.inputs * x + job.width() * y) + bias
}

impl Gemv {
    /// Numbers that are written of a row.
    fn width(&self) -> usize {
        match self.y {
            Outcome::Gated(..) => self.outputs / 2,
            _ => self.outputs,
        }
    }

    /// As the kernel numbers it, with its factor or limit.
    fn outcome(&self) -> Result<(i32, f32), Misuse> {
        let len = self.rows * self.width();
        match self.y {
            Outcome::F32(y) => long_enough("y", y, len).map(|()| (0, 1.0)),
            Outcome::Bf16(y) => long_enough("y", y, len).map(|()| (1, 1.0)),
            Outcome::Added(y, factor) => long_enough("y", y, len).map(|()| (2, factor)),
            Outcome::Gated(y, gate) => {
                needs(self.outputs.is_multiple_of(2 * UNIT), || {
                    format!("a gate of half of {} outputs, of which {UNIT} stand together", self.outputs)
                })?;
                let (number, limit) = gate.numbered();
                long_enough("y", y, len).map(|()| (3 + number as i32, limit))
            }
        }
    }
}

/// How many groups of eight rows of weights are gone over at a time where a block has so many: few of them leave no room
/// unused, and many read x less often.
fn together(groups: usize) -> usize {
    match groups {
        1 => 1,
        2 | 6 => 2,
        _ => 4,
    }
}

/// Bytes of shared memory of a block: as the kernel says.
fn shared(rows: usize, inputs: usize, groups: usize) -> usize {
    let line = inputs.next_multiple_of(DEEPEST) * Bf16::BYTES + 64;
    rows * line + RINGS + 2 * THREADS / 32 * rows * groups * UNIT * f32::BYTES
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_has_room_for_the_rows_of_known_models() {
        let rows = |inputs| (1..=GEMV_ROWS + 1).take_while(|rows| suits(*rows, inputs)).count();
        assert_eq!([1024, 2048, 3072, 4096, 14_336, 28_672].map(rows), [8, 8, 8, 8, 4, 2]);
        assert!(!suits(0, 1024));
    }
}
