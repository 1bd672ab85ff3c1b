//! Matrix products of more than 64 rows by the matrix units of compute capability 9.0, which four warps use together.
//! See `cuda/gemm_wgmma.cu`, and `cuda/gemm_wgmma_e4m3.cu` for weights that are codes of eight bits.

use super::elementwise::vectors;
use super::gemm::{Output, PROCESSORS, Product, Workspace, checked};
use super::launch::{Launch, blocks, int, long_enough, needs};
use super::memory::{Misuse, Slice};
use super::rounded::{CODES_OF_SCALE, Rounded};
use super::stored::group_shift;

/// Rows of a tile.
pub(super) const ROWS: usize = 128;
/// Inputs of a step.
const STEP: usize = 64;
/// Inputs of a step, and outputs of a tile, of products with codes; outputs whose codes lie together.
pub(super) const CODED_STEP: usize = CODES_OF_SCALE;
const CODED_WIDTH: usize = 128;
const BLOCK: usize = 32;
/// Bytes of a row in a stage.
pub(super) const LINE: usize = 128;
/// Bytes of shared memory for stages: as `ROOM` in the kernel.
pub(super) const ROOM: usize = 226 << 10;
/// What the stages need before them, to begin where they must.
pub(super) const ALIGNMENT: usize = 1024;
/// Rows up to which inputs may be divided.
const DIVIDED_ROWS: usize = 256;
/// Most parts of the inputs.
const PARTS_MAX: usize = 8;

/// How a product is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Outputs of a tile: one of [`Plan::WIDTHS`].
    pub width: usize,
    /// Parts of the inputs, summed each by itself.
    pub parts: usize,
}

impl Plan {
    /// Widths of tiles.
    pub const WIDTHS: [usize; 4] = [256, 224, 192, 128];

    /// That with which all is done soonest. Bits depend on the number of parts, and that on the shape of the weights
    /// and on whether there are up to 128 rows, up to 256, or more.
    pub fn best(rows: usize, outputs: usize, inputs: usize) -> Plan {
        Plan::of(&Plan::WIDTHS, rows, outputs, inputs.div_ceil(STEP))
    }

    /// The same for [`coded`] products.
    pub fn coded(rows: usize, outputs: usize, inputs: usize) -> Plan {
        Plan::of(&[CODED_WIDTH], rows, outputs, inputs.div_ceil(CODED_STEP))
    }

    fn of(widths: &[usize], rows: usize, outputs: usize, steps: usize) -> Plan {
        Plan::soonest(widths, rows, steps, PROCESSORS, |plan| (plan.tiles(rows, outputs), ROWS + plan.width))
    }

    /// The plan with which all is done soonest, where so many tiles are made at once. `of` tells the tiles of a plan,
    /// and the lines that go through a multiprocessor for a step.
    pub(super) fn soonest(
        widths: &[usize],
        rows: usize,
        steps: usize,
        at_once: usize,
        of: impl Fn(&Plan) -> (usize, usize),
    ) -> Plan {
        let most = Plan::most_parts(rows, steps);
        let plans = widths.iter().flat_map(|width| (1..=most).map(|parts| Plan { width: *width, parts }));
        let some = plans.filter(|plan| plan.parts == 1 || of(plan).0 * plan.parts <= at_once);
        some.min_by_key(|plan| plan.cost(steps, at_once, of(plan))).unwrap_or(Plan { width: widths[0], parts: 1 })
    }

    /// How long it takes, in kilobytes that go through a multiprocessor, which the second cache limits.
    fn cost(&self, steps: usize, at_once: usize, (tiles, lines): (usize, usize)) -> usize {
        let (waves, ends) = ((tiles * self.parts).div_ceil(at_once), 16 + self.width / 4);
        let sums = if self.parts > 1 { self.parts * self.width * 3 / 8 + 40 } else { 0 };
        waves * (steps.div_ceil(self.parts) * (lines / 8) + ends) + sums
    }

    /// Most parts of so many steps, for a class of numbers of rows.
    fn most_parts(rows: usize, steps: usize) -> usize {
        if rows <= DIVIDED_ROWS { PARTS_MAX.min(steps / 2).max(1) } else { 1 }
    }

    /// Tiles of a product.
    fn tiles(&self, rows: usize, outputs: usize) -> usize {
        rows.div_ceil(ROWS) * outputs.div_ceil(self.width)
    }

    /// Numbers that the workspace needs for sums, and for counters, of so many tiles of 128 rows.
    pub(super) fn sums(&self, tiles: usize) -> (usize, usize) {
        if self.parts == 1 { (0, 0) } else { (self.parts * tiles * ROWS * self.width, tiles) }
    }

    /// Has the workspace room for them?
    pub(super) fn room(&self, workspace: Workspace, tiles: usize) -> Result<(), Misuse> {
        let (sums, counters) = self.sums(tiles);
        workspace.check(sums, counters)
    }

    /// A launch without arguments, after it is known that the workspace has room.
    fn launch(
        &self,
        kernel: &'static str,
        (rows, outputs): (usize, usize),
        workspace: Workspace,
        processors: u32,
    ) -> Result<Launch, Misuse> {
        self.room(workspace, self.tiles(rows, outputs))?;
        let all = blocks("parts of tiles", self.tiles(rows, outputs) * self.parts)?;
        let stage = (ROWS + self.width) * LINE;
        let shared = ROOM / stage * stage + ALIGNMENT;
        Ok(Launch::new(kernel, [all.min(processors.max(1)), 1, 1], 256, shared as u32))
    }
}

/// Does the kernel know products with such weights?
pub fn suits(outputs: usize, inputs: usize) -> bool {
    inputs.is_multiple_of(STEP) && outputs.is_multiple_of(8)
}

/// Numbers of the workspace's sums and counters that any product with such weights needs.
pub(super) fn workspace(outputs: usize, inputs: usize) -> (usize, usize) {
    if !suits(outputs, inputs) {
        return (0, 0);
    }
    let plans = [ROWS, DIVIDED_ROWS].map(|rows| {
        [Plan::best, Plan::coded].map(|plan| {
            let plan = plan(rows, outputs, inputs);
            plan.sums(plan.tiles(rows, outputs))
        })
    });
    plans.into_iter().flatten().fold((0, 0), |most, (sums, counters)| (most.0.max(sums), most.1.max(counters)))
}

/// The product by tiles of 128 rows, on a device of so many multiprocessors.
///
/// # Errors
/// A slice is too short or not aligned to 16 bytes, or a size or the plan is none that the kernel knows.
pub fn product(job: &Product, plan: Plan, processors: u32) -> Result<Launch, Misuse> {
    launch(job, plan, processors, false)
}

/// The same with weights that an earlier launch of the step writes.
///
/// # Errors
/// As those of [`product`].
pub fn product_after(job: &Product, plan: Plan, processors: u32) -> Result<Launch, Misuse> {
    launch(job, plan, processors, true)
}

fn launch(job: &Product, plan: Plan, processors: u32, late: bool) -> Result<Launch, Misuse> {
    checked(job)?;
    let (outputs, inputs) = (job.outputs, job.inputs);
    needs(suits(outputs, inputs), || format!("a product of {inputs} inputs, with {outputs} outputs"))?;
    needs((1..=inputs / STEP).contains(&plan.parts), || format!("{} parts of {inputs} inputs", plan.parts))?;
    let kernel = match (plan.width, job.y) {
        (128, Output::F32(_)) => "gemm_wgmma_128_f32",
        (128, Output::Bf16(_)) => "gemm_wgmma_128_bf16",
        (192, Output::F32(_)) => "gemm_wgmma_192_f32",
        (192, Output::Bf16(_)) => "gemm_wgmma_192_bf16",
        (224, Output::F32(_)) => "gemm_wgmma_224_f32",
        (224, Output::Bf16(_)) => "gemm_wgmma_224_bf16",
        (256, Output::F32(_)) => "gemm_wgmma_256_f32",
        (256, Output::Bf16(_)) => "gemm_wgmma_256_bf16",
        (width, _) => return Err(Misuse(format!("tiles of {width} outputs"))),
    };
    let launch = job.operands(plan.launch(kernel, (job.rows, outputs), job.workspace, processors)?);
    let launch = launch.slice(job.workspace.sums).slice(job.workspace.counters);
    job.sizes(launch.int(int("parts", plan.parts)?).int(i32::from(late)))
}

/// `y = x weight^T + bias`, of weights that are codes of eight bits.
#[derive(Clone, Copy, Debug)]
pub struct Coded {
    /// Rounded rows.
    pub x: Rounded,
    /// `[outputs / 32, inputs / 32, 1024]`, as `cuda/stored.cuh` says.
    pub codes: Slice<u8>,
    /// `[outputs / 32, groups, 32, 2]`, likewise.
    pub scales: Slice<u16>,
    /// `[outputs / 32, 32]`
    pub factors: Slice<f32>,
    /// `[outputs]`
    pub bias: Option<Slice<f32>>,
    /// `[rows, outputs]`, written.
    pub y: Output,
    /// For sums of parts of the inputs: see [`super::gemm::sums_len`] and [`super::gemm::counters_len`].
    pub workspace: Workspace,
    /// Rows.
    pub rows: usize,
    /// Rows of the weights.
    pub outputs: usize,
    /// Columns of the weights.
    pub inputs: usize,
    /// Inputs that share a scale: a power of two, or at least all.
    pub group: usize,
}

/// Does the kernel know products with weights of such codes?
pub fn suits_coded(outputs: usize, inputs: usize, group: usize) -> bool {
    let groups = group >= inputs || (group.is_power_of_two() && group >= CODED_STEP);
    groups && inputs > 0 && inputs.is_multiple_of(CODED_STEP) && outputs.is_multiple_of(8)
}

/// The product with codes by tiles of 128 rows, on a device of so many multiprocessors. [`Plan::coded`] makes a plan.
///
/// # Errors
/// A slice is too short or not aligned to 16 bytes, or a size or the plan is none that the kernel knows.
pub fn coded(job: &Coded, plan: Plan, processors: u32) -> Result<Launch, Misuse> {
    job.check()?;
    let (rows, outputs, inputs) = (job.rows, job.outputs, job.inputs);
    needs(plan.width == CODED_WIDTH && (1..=inputs / CODED_STEP).contains(&plan.parts), || {
        format!("{plan:?} for {inputs} inputs")
    })?;
    let one = job.group >= inputs;
    let kernel = match (job.y, one) {
        (Output::F32(_), true) => "gemm_wgmma_e4m3_f32",
        (Output::F32(_), false) => "gemm_wgmma_e4m3_groups_f32",
        (Output::Bf16(_), true) => "gemm_wgmma_e4m3_bf16",
        (Output::Bf16(_), false) => "gemm_wgmma_e4m3_groups_bf16",
    };
    let launch = job.y.onto(plan.launch(kernel, (rows, outputs), job.workspace, processors)?);
    job.rest(launch.slice(job.x.codes).slice(job.x.scales), plan)
}

impl Coded {
    /// Appends what all kernels have after rows.
    pub(super) fn rest(&self, launch: Launch, plan: Plan) -> Result<Launch, Misuse> {
        let launch = launch.slice(self.codes).slice(self.scales).slice(self.factors).optional(self.bias);
        let launch = launch.slice(self.workspace.sums).slice(self.workspace.counters);
        let launch = launch.int(int("parts", plan.parts)?).int(int("rows", self.rows)?);
        let launch = launch.int(int("outputs", self.outputs)?).int(int("inputs", self.inputs)?);
        Ok(launch.int(group_shift(self.group, self.inputs)))
    }

    pub(super) fn check(&self) -> Result<(), Misuse> {
        let Coded { rows, outputs, inputs, group, .. } = *self;
        needs(rows > 0 && outputs > 0 && suits_coded(outputs, inputs, group), || {
            format!("a product of {rows} rows of {inputs} inputs, {group} to a scale, with {outputs} outputs")
        })?;
        let (together, groups) = (outputs.next_multiple_of(BLOCK), inputs.div_ceil(group));
        self.x.check(rows, inputs)?;
        vectors("the weights' codes", self.codes, together * inputs)?;
        vectors("the weights' scales", self.scales, 2 * together * groups)?;
        long_enough("the weights' factors", self.factors, together)?;
        if let Some(bias) = self.bias {
            long_enough("the bias", bias, outputs)?;
        }
        self.y.check(rows * outputs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plans_suit_the_sizes() {
        let plan = |rows, outputs, inputs| {
            let Plan { width, parts } = Plan::best(rows, outputs, inputs);
            (width, parts)
        };
        // The matrices of an 8B model, for a prompt and for as many sequences as fill a step.
        assert_eq!(plan(1024, 6144, 4096), (192, 1));
        assert_eq!(plan(1024, 4096, 4096), (256, 1));
        assert_eq!(plan(1024, 28672, 4096), (256, 1));
        assert_eq!(plan(1024, 4096, 14336), (256, 1));
        assert_eq!(plan(256, 4096, 14336), (256, 4));
        // Two waves of it leave no multiprocessor without work.
        assert_eq!(plan(256, 28672, 4096), (224, 1));
        assert_eq!(plan(512, 4096, 4096), (128, 1));
        assert_eq!(plan(65, 8, 64), (128, 1));
    }

    #[test]
    fn the_number_of_rows_counts_by_classes() {
        for (outputs, inputs) in [(6144, 4096), (4096, 4096), (28672, 4096), (4096, 14336), (1024, 2048)] {
            for (first, last) in [(65, 128), (129, 256), (257, 5000)] {
                let parts = Plan::best(first, outputs, inputs).parts;
                assert!((first..=last).all(|rows| Plan::best(rows, outputs, inputs).parts == parts));
            }
        }
    }

    #[test]
    fn there_is_room_for_all_parts() {
        let (sums, counters) = workspace(4096, 14336);
        assert_eq!((sums, counters), (4 * 32 * 128 * 256, 64));
        assert_eq!(workspace(4096, 14336 + 32), (0, 0));
    }
}
