//! Mixtures of experts: which experts a row goes through, products with the weights of all chosen experts in one launch,
//! and the sum of what comes of a row's choices. See `cuda/experts.cu`, `cuda/gemm_skinny.cu` and `cuda/gemm_tiled.cu`.
//!
//! ```text
//! router's logits -> choose -> chosen, shares [rows, top_k], and the list of pairs (row, choice) by expert
//! x [rows] -> product -> [pairs] ... product -> [pairs] -> combine -> [rows]
//! ```
//! Sizes of launches follow from the numbers of rows, choices and experts alone, so that they can be captured.

use super::elementwise::vectors;
use super::gemm::{self, Output, SKINNY_OUTPUTS, SKINNY_ROWS, Workspace};
use super::launch::{Launch, blocks, int, long_enough, needs};
use super::memory::{Bf16, Misuse, Number, Slice};

/// Most experts.
pub const EXPERTS_MAX: usize = 256;
/// Most experts that a row goes through.
pub const CHOICES_MAX: usize = 16;
/// Rows of a launch for which one kernel both chooses and lists.
const FEW_ROWS: usize = 64;

/// Every row's choices, and the list of them by expert.
#[derive(Clone, Copy, Debug)]
pub struct Choices {
    /// `[rows, top_k]`: experts, that of the largest logit first; -1 where the row chose none.
    pub chosen: Slice<i32>,
    /// `[rows, top_k]`: what each result is multiplied by.
    pub shares: Slice<f32>,
    /// `[rows * top_k]`: pairs by expert, and by row within one.
    pub list: Slice<i32>,
    /// `[experts + 1]`: where each expert's pairs begin in the list, and where the last one's end.
    pub offsets: Slice<i32>,
    /// Rows.
    pub rows: usize,
    /// Choices of a row.
    pub top_k: usize,
    /// Experts.
    pub experts: usize,
}

impl Choices {
    /// Pairs of a row and one of its choices.
    pub fn pairs(&self) -> usize {
        self.rows * self.top_k
    }

    /// Units of up to `most` pairs of one expert that there can be.
    pub(super) fn units(&self, most: usize) -> usize {
        let some = self.experts.min(self.pairs());
        some + (self.pairs() - some) / most
    }

    pub(super) fn check(&self) -> Result<(), Misuse> {
        let Choices { rows, top_k, experts, .. } = *self;
        needs(rows > 0 && (1..=CHOICES_MAX.min(experts)).contains(&top_k) && experts <= EXPERTS_MAX, || {
            format!("{top_k} of {experts} experts for {rows} rows")
        })?;
        long_enough("the choices", self.chosen, self.pairs())?;
        long_enough("their shares", self.shares, self.pairs())?;
        long_enough("the list of pairs", self.list, self.pairs())?;
        long_enough("its offsets", self.offsets, experts + 1)
    }
}

/// What a router does.
#[derive(Clone, Copy, Debug)]
pub struct Choose {
    /// `[rows, experts]`
    pub logits: Slice<f32>,
    /// `[rows]`; -1 is a row of padding, which chooses nothing.
    pub positions: Slice<i32>,
    /// All but its sizes is written.
    pub choices: Choices,
    /// Are shares the softmax over the chosen experts, or over all?
    pub of_chosen: bool,
}

/// The experts of every row: those of the largest logits, the lower one first among equals. One launch for up to 64
/// rows, else two.
///
/// # Errors
/// A slice is too short, or a size is none that the kernels know.
pub fn choose(job: &Choose) -> Result<Vec<Launch>, Misuse> {
    let Choices { chosen, shares, list, offsets, rows, top_k, experts } = job.choices;
    job.choices.check()?;
    long_enough("the router's logits", job.logits, rows * experts)?;
    long_enough("positions", job.positions, rows)?;
    let each = blocks("experts", experts)?;
    let sizes = |launch: Launch| {
        let launch = launch.int(int("rows", rows)?).int(int("experts", experts)?);
        Ok(launch.int(int("choices", top_k)?).int(i32::from(job.of_chosen)))
    };
    let threads = |work: usize| work.next_multiple_of(32).min(1024) as u32;
    if rows <= FEW_ROWS {
        let launch = Launch::new("experts_choose_and_list", [each, 1, 1], threads(32 * rows), 0);
        let launch = launch.slice(job.logits).slice(job.positions).slice(chosen).slice(shares);
        return Ok(vec![sizes(launch.slice(list).slice(offsets))?]);
    }
    let grid = [blocks("rows", rows.div_ceil(8))?, 1, 1];
    let launch = Launch::new("experts_choose", grid, 256, 0);
    let choose = sizes(launch.slice(job.logits).slice(job.positions).slice(chosen).slice(shares))?;
    let pairs = job.choices.pairs();
    let launch = Launch::new("experts_list", [each, 1, 1], threads(pairs), 0);
    let launch = launch.slice(chosen).slice(list).slice(offsets).int(int("pairs", pairs)?);
    Ok(vec![choose, launch.int(int("experts", experts)?)])
}

/// Bytes that [`choose`] moves between the device's memory and its caches.
pub fn choose_bytes(job: &Choose) -> usize {
    job.choices.rows * job.choices.experts * f32::BYTES + 3 * job.choices.pairs() * i32::BYTES
}

/// `y[pair] = x weight[expert]^T + bias[expert]` for every pair of a row and an expert that it chose. Rows of `y` whose
/// pairs are of padding are left as they are.
#[derive(Clone, Copy, Debug)]
pub struct Product {
    /// `[rows, inputs]`, or with `of_pairs` `[rows * top_k, inputs]`.
    pub x: Slice<Bf16>,
    /// Has each pair a row of `x` of its own?
    pub of_pairs: bool,
    /// `[experts, outputs, inputs]`
    pub weight: Slice<Bf16>,
    /// `[experts, outputs]`
    pub bias: Option<Slice<f32>>,
    /// `[rows * top_k, outputs]`, written.
    pub y: Output,
    /// See [`sums_len`] and [`counters_len`].
    pub workspace: Workspace,
    /// Which experts.
    pub choices: Choices,
    /// Rows of an expert's weights.
    pub outputs: usize,
    /// Columns of the weights: a multiple of 32.
    pub inputs: usize,
}

/// The product by whatever kernel suits the number of rows. A row's results do not depend on the others, but for their
/// last bits on whether there are more than 64.
///
/// # Errors
/// A slice is too short or not aligned to 16 bytes, or a size is none that the kernels know.
pub fn product(job: &Product) -> Result<Launch, Misuse> {
    job.check()?;
    let choices = &job.choices;
    if choices.rows <= SKINNY_ROWS { skinny(job) } else { tiled(job) }
}

/// Each chosen expert's weights are read once, or a few times where it has more rows than most.
fn skinny(job: &Product) -> Result<Launch, Misuse> {
    let Product { choices, outputs, inputs, workspace, .. } = *job;
    let (tiles, parts) = (outputs.div_ceil(SKINNY_OUTPUTS), parts(outputs, inputs, choices.top_k));
    let most = choices.few();
    let kernel = match (most, job.y) {
        (8, Output::F32(_)) => "gemm_skinny_experts_8_f32",
        (8, Output::Bf16(_)) => "gemm_skinny_experts_8_bf16",
        (16, Output::F32(_)) => "gemm_skinny_experts_16_f32",
        (16, Output::Bf16(_)) => "gemm_skinny_experts_16_bf16",
        (32, Output::F32(_)) => "gemm_skinny_experts_32_f32",
        (32, Output::Bf16(_)) => "gemm_skinny_experts_32_bf16",
        (_, Output::F32(_)) => "gemm_skinny_experts_64_f32",
        (_, Output::Bf16(_)) => "gemm_skinny_experts_64_bf16",
    };
    let units = choices.units(most);
    workspace.check_skinny((tiles, parts), choices.pairs(), units)?;
    let grid = [blocks("outputs", tiles)?, parts as u32, blocks("units", units)?];
    let launch = job.operands(Launch::new(kernel, grid, 256, gemm::skinny_shared(most)));
    let launch = launch.slice(workspace.sums).slice(workspace.counters).slice(choices.list).slice(choices.offsets);
    job.sizes(launch.int(int("pairs", choices.pairs())?))
}

/// The product by tiles. It needs no workspace.
fn tiled(job: &Product) -> Result<Launch, Misuse> {
    /// Rows of an expert from which on a large tile does not stay empty.
    const LARGE: usize = 96;
    let choices = &job.choices;
    let (tile, kernel, stages) = match (choices.pairs() / choices.experts >= LARGE, job.y) {
        (false, Output::F32(_)) => (64, "gemm_tiled_experts_64x64_f32", 6),
        (false, Output::Bf16(_)) => (64, "gemm_tiled_experts_64x64_bf16", 6),
        (true, Output::F32(_)) => (128, "gemm_tiled_experts_128x128_f32", 4),
        (true, Output::Bf16(_)) => (128, "gemm_tiled_experts_128x128_bf16", 4),
    };
    let grid = [blocks("units", choices.units(tile))?, blocks("outputs", job.outputs.div_ceil(tile))?, 1];
    let launch = job.operands(Launch::new(kernel, grid, 128, stages * 2 * tile as u32 * 64));
    job.sizes(launch.slice(choices.list).slice(choices.offsets))
}

/// Into how many parts the inputs are divided where rows are few: as if all experts of a row were one matrix. A function
/// of the weights' shape alone.
pub(super) fn parts(outputs: usize, inputs: usize, top_k: usize) -> usize {
    gemm::parts(outputs.div_ceil(SKINNY_OUTPUTS) * SKINNY_OUTPUTS * top_k, inputs)
}

/// Numbers of [`Workspace::sums`] that a product with such weights needs.
pub fn sums_len(outputs: usize, inputs: usize, top_k: usize) -> usize {
    match parts(outputs, inputs, top_k) {
        1 => 0,
        parts => parts * outputs.div_ceil(SKINNY_OUTPUTS) * SKINNY_OUTPUTS * SKINNY_ROWS * top_k,
    }
}

/// Numbers of [`Workspace::counters`] that a product with such weights needs.
pub fn counters_len(outputs: usize, inputs: usize, top_k: usize) -> usize {
    match parts(outputs, inputs, top_k) {
        1 => 0,
        // No unit is empty.
        _ => outputs.div_ceil(SKINNY_OUTPUTS) * SKINNY_ROWS * top_k,
    }
}

/// Bytes that [`product`] moves where rows choose as different experts as they can.
pub fn product_bytes(job: &Product) -> usize {
    let Product { choices, outputs, inputs, .. } = *job;
    let (experts, pairs) = (choices.experts.min(choices.pairs()), choices.pairs());
    let x = if job.of_pairs { pairs } else { choices.rows } * inputs * Bf16::BYTES;
    experts * outputs * inputs * Bf16::BYTES + x + pairs * outputs * job.y.number_bytes()
}

/// Multiplications and additions of [`product`].
pub fn product_flops(job: &Product) -> usize {
    2 * job.choices.pairs() * job.outputs * job.inputs
}

impl Choices {
    /// Pairs of a unit where rows are few: so many as the most loaded expert is likely to have. All have the same bits.
    pub(super) fn few(&self) -> usize {
        let likely = 2 * self.pairs().div_ceil(self.experts);
        likely.min(self.rows).next_power_of_two().clamp(8, SKINNY_ROWS)
    }
}

impl Product {
    fn check(&self) -> Result<(), Misuse> {
        let Product { choices, outputs, inputs, .. } = *self;
        choices.check()?;
        needs(outputs > 0 && inputs > 0 && inputs.is_multiple_of(gemm::INPUTS), || {
            format!("experts with {inputs} inputs and {outputs} outputs")
        })?;
        vectors("x", self.x, if self.of_pairs { choices.pairs() } else { choices.rows } * inputs)?;
        vectors("the experts' weights", self.weight, choices.experts * outputs * inputs)?;
        // The kernels count biases in 32 bits.
        int("all biases", choices.experts * outputs)?;
        if let Some(bias) = self.bias {
            long_enough("the experts' biases", bias, choices.experts * outputs)?;
        }
        self.y.check(choices.pairs() * outputs)
    }

    fn operands(&self, launch: Launch) -> Launch {
        self.y.onto(launch).slice(self.x).slice(self.weight).optional(self.bias)
    }

    fn sizes(&self, launch: Launch) -> Result<Launch, Misuse> {
        let sharers = if self.of_pairs { 1 } else { self.choices.top_k };
        let launch = launch.int(int("choices", sharers)?).int(int("experts", self.choices.experts)?);
        Ok(launch.int(int("outputs", self.outputs)?).int(int("inputs", self.inputs)?))
    }
}

/// `out[row] = sum of share * added[pair]` over the row's choices; 0 where it has none.
#[derive(Clone, Copy, Debug)]
pub struct Combine {
    /// `[rows * top_k, hidden]`
    pub added: Slice<f32>,
    /// Which experts.
    pub choices: Choices,
    /// `[rows, hidden]`, written.
    pub out: Slice<f32>,
    /// Width of the residual stream: a multiple of 4.
    pub hidden: usize,
}

/// The sum of what comes of each row's choices, in their order.
///
/// # Errors
/// A slice is too short, or a size is none that the kernel knows.
pub fn combine(job: &Combine) -> Result<Launch, Misuse> {
    const THREADS: usize = 256;
    let Combine { choices, hidden, .. } = *job;
    choices.check()?;
    needs(hidden > 0 && hidden.is_multiple_of(4), || format!("rows {hidden} wide, no multiple of 4"))?;
    vectors("what experts add", job.added, choices.pairs() * hidden)?;
    vectors("their sum", job.out, choices.rows * hidden)?;
    let threads = (hidden / 4).next_multiple_of(32).min(THREADS);
    let grid = [blocks("rows", choices.rows)?, blocks("hidden", (hidden / 4).div_ceil(threads))?, 1];
    Ok(Launch::new("experts_combine", grid, threads as u32, 0)
        .slice(job.added)
        .slice(choices.chosen)
        .slice(choices.shares)
        .slice(job.out)
        .int(int("choices", choices.top_k)?)
        .int(int("hidden", hidden)?))
}

/// Bytes that [`combine`] moves.
pub fn combine_bytes(job: &Combine) -> usize {
    (job.choices.pairs() + job.choices.rows) * job.hidden * f32::BYTES
}
