//! Matrix products of many rows by pairs of blocks, which share what they read of one of both matrices. See
//! `cuda/gemm_pairs.cu`, and `cuda/gemm_pairs_e4m3.cu` for weights that are codes of eight bits. With as many parts they
//! have the bits of those of [`super::wgmma`].

use super::gemm::{Output, PROCESSORS, Product, checked};
use super::launch::{Launch, Matrix, blocks, int, needs};
use super::memory::{Bf16, Misuse, Number, Slice};
use super::wgmma::{self, ALIGNMENT, CODED_STEP, Coded, LINE, Plan, ROOM, ROWS};

/// Do servers' products go by pairs, those of this file and of [`super::stream`], on devices that can?
/// `Gpu::multiply_by_pairs` says otherwise. They do not before that was measured to be faster.
pub const PAIRS: bool = false;

/// Rows of a tile of bf16.
const PAIR_ROWS: usize = 2 * ROWS;
/// Pairs of blocks that run at once.
const AT_ONCE: usize = PROCESSORS / 2;
/// Threads of a block.
const THREADS: u32 = 384;
/// Bytes of a gate.
pub(super) const GATE: usize = 8;

/// Outputs of a block's tile of codes. With scales of groups the wider ones have not the registers.
const CODED_WIDTHS: [usize; 2] = [192, 160];
const GROUPED_WIDTHS: [usize; 1] = [160];

impl Plan {
    /// The plan with which a product by pairs is done soonest. Bits depend on the number of parts, and that on the shape
    /// of the weights and on whether there are up to 256 rows, or more.
    pub fn pairs(rows: usize, outputs: usize, inputs: usize) -> Plan {
        let steps = inputs.div_ceil(LINE / Bf16::BYTES);
        // Half of the weights' bytes go through a multiprocessor.
        let of = |plan: &Plan| (pair_tiles(plan.width, rows, outputs), ROWS + plan.width / 2);
        Plan::soonest(&Plan::WIDTHS, rows, steps, AT_ONCE, of)
    }

    /// The same for [`coded`] products, of weights that have one scale for all inputs, or several. Up to 128 rows are a
    /// class, too.
    pub fn coded_pairs(rows: usize, outputs: usize, inputs: usize, one: bool) -> Plan {
        let (widths, steps) = (if one { &CODED_WIDTHS[..] } else { &GROUPED_WIDTHS[..] }, inputs.div_ceil(CODED_STEP));
        let of = |plan: &Plan| (coded_tiles(plan.width, rows, outputs), ROWS / 2 + plan.width);
        Plan::soonest(widths, rows, steps, AT_ONCE, of)
    }
}

/// Tiles of a product.
fn pair_tiles(width: usize, rows: usize, outputs: usize) -> usize {
    rows.div_ceil(PAIR_ROWS) * outputs.div_ceil(width)
}

/// Tiles of a product of codes.
fn coded_tiles(width: usize, rows: usize, outputs: usize) -> usize {
    rows.div_ceil(ROWS) * outputs.div_ceil(2 * width)
}

/// A launch without arguments, for so many tiles of pairs.
fn launch(kernel: &'static str, plan: Plan, tiles: usize, processors: u32) -> Result<Launch, Misuse> {
    let pairs = blocks("parts of tiles", tiles * plan.parts)?.min((processors / 2).max(1));
    let stage = (ROWS + plan.width) * LINE;
    let stages = ROOM / stage;
    let shared = ALIGNMENT + stages * (stage + 2 * GATE) + GATE;
    Ok(Launch::new(kernel, [2 * pairs, 1, 1], THREADS, shared as u32))
}

/// Does the kernel know such a product, and is it for it?
pub fn suits(rows: usize, outputs: usize, inputs: usize) -> bool {
    rows > ROWS && wgmma::suits(outputs, inputs)
}

/// The product by pairs, on a device of so many multiprocessors. `late`: an earlier launch of the step writes the
/// weights.
///
/// # Errors
/// A slice is too short or not aligned to 16 bytes, or a size or the plan is none that the kernel knows.
pub fn product(job: &Product, plan: Plan, processors: u32, late: bool) -> Result<Launch, Misuse> {
    checked(job)?;
    let (rows, outputs, inputs) = (job.rows, job.outputs, job.inputs);
    needs(wgmma::suits(outputs, inputs), || format!("a product of {inputs} inputs, with {outputs} outputs"))?;
    let steps = inputs * Bf16::BYTES / LINE;
    needs((1..=steps).contains(&plan.parts), || format!("{} parts of {inputs} inputs", plan.parts))?;
    let kernel = match (plan.width, job.y) {
        (128, Output::F32(_)) => "gemm_pairs_128_f32",
        (128, Output::Bf16(_)) => "gemm_pairs_128_bf16",
        (192, Output::F32(_)) => "gemm_pairs_192_f32",
        (192, Output::Bf16(_)) => "gemm_pairs_192_bf16",
        (224, Output::F32(_)) => "gemm_pairs_224_f32",
        (224, Output::Bf16(_)) => "gemm_pairs_224_bf16",
        (256, Output::F32(_)) => "gemm_pairs_256_f32",
        (256, Output::Bf16(_)) => "gemm_pairs_256_bf16",
        (width, _) => return Err(Misuse(format!("tiles of {width} outputs"))),
    };
    let tiles = pair_tiles(plan.width, rows, outputs);
    plan.room(job.workspace, 2 * tiles)?;
    let launch = launch(kernel, plan, tiles, processors)?.matrix(matrix(job.x, rows, inputs, ROWS));
    let launch = job.y.onto(launch.matrix(matrix(job.weight, outputs, inputs, plan.width / 2)));
    let launch = launch.optional(job.bias).slice(job.workspace.sums).slice(job.workspace.counters);
    let launch = launch.int(int("parts", plan.parts)?).int(i32::from(late)).int(int("rows", rows)?);
    Ok(launch.int(int("outputs", outputs)?).int(int("bytes of a row", inputs * Bf16::BYTES)?))
}

/// The product of codes by pairs, on a device of so many multiprocessors. [`Plan::coded_pairs`] makes a plan.
///
/// # Errors
/// A slice is too short or not aligned to 16 bytes, or a size or the plan is none that the kernel knows.
pub fn coded(job: &Coded, plan: Plan, processors: u32) -> Result<Launch, Misuse> {
    job.check()?;
    let (rows, outputs, inputs) = (job.rows, job.outputs, job.inputs);
    needs((1..=inputs / CODED_STEP).contains(&plan.parts), || format!("{} parts of {inputs} inputs", plan.parts))?;
    let kernel = match (plan.width, job.y, job.group >= inputs) {
        (160, Output::F32(_), true) => "gemm_pairs_e4m3_160_f32",
        (160, Output::F32(_), false) => "gemm_pairs_e4m3_160_groups_f32",
        (160, Output::Bf16(_), true) => "gemm_pairs_e4m3_160_bf16",
        (160, Output::Bf16(_), false) => "gemm_pairs_e4m3_160_groups_bf16",
        (192, Output::F32(_), true) => "gemm_pairs_e4m3_192_f32",
        (192, Output::Bf16(_), true) => "gemm_pairs_e4m3_192_bf16",
        (width, ..) => return Err(Misuse(format!("tiles of {width} outputs with scales of {} inputs", job.group))),
    };
    let tiles = coded_tiles(plan.width, rows, outputs);
    plan.room(job.workspace, 2 * tiles)?;
    let launch = launch(kernel, plan, tiles, processors)?.matrix(matrix(job.x.codes, rows, inputs, ROWS / 2));
    let launch = job.y.onto(launch).slice(job.x.scales);
    job.rest(launch, plan)
}

/// A matrix of which boxes are brought.
pub(super) fn matrix<T: Number>(of: Slice<T>, rows: usize, columns: usize, box_rows: usize) -> Matrix {
    Matrix { address: of.address(), rows, line: columns * T::BYTES, box_rows }
}

/// Numbers of the workspace's sums and counters that any product with such weights needs.
pub(super) fn workspace(outputs: usize, inputs: usize) -> (usize, usize) {
    if !wgmma::suits(outputs, inputs) {
        return (0, 0);
    }
    let plan = Plan::pairs(PAIR_ROWS, outputs, inputs);
    let wide = plan.sums(2 * pair_tiles(plan.width, PAIR_ROWS, outputs));
    let classes = [(ROWS, true), (ROWS, false), (PAIR_ROWS, true), (PAIR_ROWS, false)];
    classes.into_iter().fold(wide, |most, (rows, one)| {
        let plan = Plan::coded_pairs(rows, outputs, inputs, one);
        let (sums, counters) = plan.sums(2 * coded_tiles(plan.width, rows, outputs));
        (most.0.max(sums), most.1.max(counters))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plans_suit_the_sizes() {
        let plan = |rows, outputs, inputs| {
            let Plan { width, parts } = Plan::pairs(rows, outputs, inputs);
            (width, parts)
        };
        // The matrices of an 8B model, for as many sequences as fill a step, and for a prompt.
        assert_eq!(plan(256, 6144, 4096), (192, 2));
        assert_eq!(plan(256, 4096, 4096), (192, 3));
        assert_eq!(plan(256, 28672, 4096), (224, 1));
        assert_eq!(plan(256, 4096, 14336), (256, 4));
        assert_eq!(plan(1024, 28672, 4096), (256, 1));
        assert_eq!(plan(129, 8, 64), (128, 1));
        let plan = |outputs, inputs, one| {
            let Plan { width, parts } = Plan::coded_pairs(256, outputs, inputs, one);
            (width, parts)
        };
        assert_eq!(plan(6144, 4096, true), (192, 2));
        assert_eq!(plan(28672, 4096, true), (160, 1));
        assert_eq!(plan(4096, 14336, true), (192, 3));
        assert_eq!(plan(6144, 4096, false), (160, 1));
    }

    #[test]
    fn the_number_of_rows_counts_by_classes() {
        for (outputs, inputs) in [(6144, 4096), (4096, 4096), (28672, 4096), (4096, 14336), (1024, 2048)] {
            for (first, last) in [(129, 256), (257, 5000)] {
                let parts = Plan::pairs(first, outputs, inputs).parts;
                assert!((first..=last).all(|rows| Plan::pairs(rows, outputs, inputs).parts == parts));
            }
            for (first, last, one) in [(65, 128, true), (65, 128, false), (129, 256, true), (257, 5000, false)] {
                let parts = Plan::coded_pairs(first, outputs, inputs, one).parts;
                assert!((first..=last).all(|rows| Plan::coded_pairs(rows, outputs, inputs, one).parts == parts));
            }
        }
    }
}
