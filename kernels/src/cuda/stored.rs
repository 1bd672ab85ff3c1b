//! Matrix products with weights that stay codes of eight or four bits in device memory. See `cuda/stored.cuh` for how
//! they lie, and `cuda/gemm_stored.cu`.

use super::device::Units;
use super::elementwise::vectors;
use super::experts::{self, Choices};
use super::gemm::{self, INPUTS, Output, SKINNY_OUTPUTS, SKINNY_ROWS, SKINNY_STEP, Workspace};
use super::launch::{Launch, blocks, int, long_enough, needs};
use super::memory::{Bf16, Misuse, Number, Slice};
use super::pairs;
use super::rounded::{self, Rounded, Rows, can_round, codes_of_rows, rounded_bytes};
use super::setup::MakeUp;
use super::wgmma::{self, Coded, Plan};

/// Outputs that lie together: matrices begin and end with whole ones.
pub const TOGETHER: usize = 32;
/// Rows up to which weights are read once for every 64, rather than widened.
pub const SLICED_ROWS: usize = 256;
/// Threads of all kernels.
const THREADS: usize = 256;
/// Groups of this many inputs and of larger powers of two are known.
const GROUP_MIN: usize = 16;

/// Kernels of up to 8, 16, 32 and 64 rows.
macro_rules! names {
    ($begin:literal) => {
        [concat!($begin, "8"), concat!($begin, "16"), concat!($begin, "32"), concat!($begin, "64")]
    };
}

/// What codes mean, and whether they have minima.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// -128 to 127.
    Int8,
    /// 0 to 255, with minima.
    Uint8,
    /// Floats of eight bits.
    E4m3,
    /// 0 to 15, which mean -8 to 7.
    Int4,
    /// 0 to 15, with minima.
    Uint4,
    /// Floats of four bits.
    E2m1,
}

impl Kind {
    /// All of them.
    pub const ALL: [Kind; 6] = [Kind::Int8, Kind::Uint8, Kind::E4m3, Kind::Int4, Kind::Uint4, Kind::E2m1];

    /// Bits of a code.
    pub fn bits(self) -> usize {
        match self {
            Kind::Int8 | Kind::Uint8 | Kind::E4m3 => 8,
            Kind::Int4 | Kind::Uint4 | Kind::E2m1 => 4,
        }
    }

    /// Are there minima?
    pub fn minima(self) -> bool {
        matches!(self, Kind::Uint8 | Kind::Uint4)
    }

    /// Numbers of 16 bits that a group has: its scale, and a minimum or what the scale's 16 bits leave.
    pub(super) fn numbers_of_scale(self) -> usize {
        if self.minima() || self == Kind::E4m3 { 2 } else { 1 }
    }

    /// The kernel of up to `most` rows.
    fn skinny(self, most: usize) -> &'static str {
        let names = match self {
            Kind::Int8 => names!("gemm_stored_int8_"),
            Kind::Uint8 => names!("gemm_stored_uint8_"),
            Kind::E4m3 => names!("gemm_stored_e4m3_"),
            Kind::Int4 => names!("gemm_stored_int4_"),
            Kind::Uint4 => names!("gemm_stored_uint4_"),
            Kind::E2m1 => names!("gemm_stored_e2m1_"),
        };
        of_rows(names, most)
    }

    /// That of experts.
    fn of_experts(self, most: usize) -> &'static str {
        let names = match self {
            Kind::Int8 => names!("gemm_stored_experts_int8_"),
            Kind::Uint8 => names!("gemm_stored_experts_uint8_"),
            Kind::E4m3 => names!("gemm_stored_experts_e4m3_"),
            Kind::Int4 => names!("gemm_stored_experts_int4_"),
            Kind::Uint4 => names!("gemm_stored_experts_uint4_"),
            Kind::E2m1 => names!("gemm_stored_experts_e2m1_"),
        };
        of_rows(names, most)
    }

    fn widen(self) -> &'static str {
        match self {
            Kind::Int8 => "stored_widen_int8",
            Kind::Uint8 => "stored_widen_uint8",
            Kind::E4m3 => "stored_widen_e4m3",
            Kind::Int4 => "stored_widen_int4",
            Kind::Uint4 => "stored_widen_uint4",
            Kind::E2m1 => "stored_widen_e2m1",
        }
    }
}

fn of_rows([eight, sixteen, more, most]: [&'static str; 4], rows: usize) -> &'static str {
    match rows {
        8 => eight,
        16 => sixteen,
        32 => more,
        _ => most,
    }
}

/// How a matrix is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Layout {
    /// What its codes mean.
    pub kind: Kind,
    /// Inputs that share a scale: a power of two from 16 on, or all.
    pub group: usize,
    /// Columns: a multiple of 32.
    pub inputs: usize,
}

impl Layout {
    /// Is it one that the kernels know?
    pub fn is_known(&self) -> bool {
        let power = self.group.is_power_of_two() && (GROUP_MIN..1 << 30).contains(&self.group);
        self.inputs > 0 && self.inputs.is_multiple_of(INPUTS) && (power || self.group >= self.inputs)
    }

    /// Scales of an output.
    pub fn groups(&self) -> usize {
        self.inputs.div_ceil(self.group.max(1))
    }

    /// Bytes of the codes of so many outputs.
    pub fn codes_len(&self, outputs: usize) -> usize {
        outputs.next_multiple_of(TOGETHER) * self.inputs * self.kind.bits() / 8
    }

    /// Numbers of all groups of so many outputs.
    pub fn scales_len(&self, outputs: usize) -> usize {
        outputs.next_multiple_of(TOGETHER) * self.groups() * self.kind.numbers_of_scale()
    }

    /// Factors of so many outputs.
    pub fn factors_len(&self, outputs: usize) -> usize {
        outputs.next_multiple_of(TOGETHER)
    }
}

/// What takes an input to its group, as the kernels shift: where one group has all inputs, every one to 0.
pub(super) fn group_shift(group: usize, inputs: usize) -> i32 {
    if group >= inputs { 30 } else { group.trailing_zeros() as i32 }
}

/// A matrix on the device.
#[derive(Clone, Copy, Debug)]
pub struct Matrix {
    /// How it is stored.
    pub layout: Layout,
    /// Rows of the weights.
    pub outputs: usize,
    /// See [`Layout::codes_len`].
    pub codes: Slice<u8>,
    /// See [`Layout::scales_len`].
    pub scales: Slice<u16>,
    /// See [`Layout::factors_len`].
    pub factors: Slice<f32>,
}

/// `y = x weight^T + bias`.
#[derive(Clone, Copy, Debug)]
pub struct Product {
    /// `[rows, inputs]`. Codes stand where [`rounded::codes_of_rows`] says.
    pub x: Rows,
    /// The weights.
    pub matrix: Matrix,
    /// `[outputs]`
    pub bias: Option<Slice<f32>>,
    /// `[rows, outputs]`, written.
    pub y: Output,
    /// For sums of parts of the inputs: see [`gemm::sums_len`] and [`gemm::counters_len`].
    pub workspace: Workspace,
    /// Room for all weights as bf16, which more rows than [`SLICED_ROWS`] go through, or for rows as codes: see
    /// [`wide_len`]. Where there is none, or with `deterministic`, weights are read once for every 64 rows.
    pub wide: Option<Slice<Bf16>>,
    /// Rows.
    pub rows: usize,
    /// Is a row to have the same bits however many there are?
    pub deterministic: bool,
}

/// Numbers of [`Product::wide`] that a product of so many rows has a use for, whatever the device.
pub fn wide_len(layout: &Layout, outputs: usize, rows: usize) -> usize {
    let weights = if rows > SLICED_ROWS { outputs * layout.inputs } else { 0 };
    let is_rounded = rows > SKINNY_ROWS && can_round(layout, outputs);
    weights.max(if is_rounded { rounded_bytes(rows, layout.inputs).div_ceil(Bf16::BYTES) } else { 0 })
}

/// The product by whatever kernels suit the number of rows. Up to [`SLICED_ROWS`], a row's bits do not depend on how
/// many there are.
///
/// # Errors
/// A slice is too short or not aligned to 16 bytes, or a size is none that the kernels know.
pub fn product(job: &Product) -> Result<Vec<Launch>, Misuse> {
    product_on(job, Units::Warps)
}

/// The same for a device with such units. Where four warps multiply together, more than [`SKINNY_ROWS`] rows are
/// rounded to codes of eight bits where the weights are [`Kind::E4m3`], and a row's last bits depend on whether there
/// are more than 64, 128 or 256.
///
/// # Errors
/// A slice is too short or not aligned to 16 bytes, or a size is none that the kernels know.
pub fn product_on(job: &Product, units: Units) -> Result<Vec<Launch>, Misuse> {
    checked(job)?;
    let room = job.wide.filter(|_| !job.deterministic);
    if let Some(x) = codes_of_rows(&job.matrix, job.rows, room, units)? {
        return rounded(job, x, units);
    }
    let x = job.x.bf16()?;
    match job.wide_weights() {
        Some(wide) => {
            let plain = gemm::Product {
                x,
                weight: wide,
                bias: job.bias,
                y: job.y,
                workspace: job.workspace,
                rows: job.rows,
                outputs: job.matrix.outputs,
                inputs: job.matrix.layout.inputs,
                deterministic: false,
            };
            Ok(vec![widen(&job.matrix, wide)?, gemm::after(&plain, units)?])
        }
        None => {
            let slices = (0..job.rows).step_by(SKINNY_ROWS);
            slices.map(|first| job.slice(x, first).and_then(|(job, x)| skinny(&job, x))).collect()
        }
    }
}

/// The product of codes with codes. Rows of bf16 are rounded first.
fn rounded(job: &Product, x: Rounded, units: Units) -> Result<Vec<Launch>, Misuse> {
    let (Matrix { layout, outputs, codes, scales, factors }, rows) = (job.matrix, job.rows);
    let Layout { group, inputs, .. } = layout;
    let Units::Warpgroups { processors, pairs: by_pairs } = units else {
        return Err(Misuse("a product of codes without the units for it".into()));
    };
    let (bias, y, workspace) = (job.bias, job.y, job.workspace);
    let (x, first) = match job.x {
        Rows::Bf16(rows_of_x) => (x, Some(rounded::round(x, rows_of_x, rows, inputs)?)),
        Rows::Rounded(x) => (x, None),
    };
    let product = Coded { x, codes, scales, factors, bias, y, workspace, rows, outputs, inputs, group };
    let launch = match by_pairs {
        true => pairs::coded(&product, Plan::coded_pairs(rows, outputs, inputs, group >= inputs), processors)?,
        false => wgmma::coded(&product, Plan::coded(rows, outputs, inputs), processors)?,
    };
    Ok(first.into_iter().chain([launch]).collect())
}

/// All weights as bf16, `[outputs, inputs]`.
///
/// # Errors
/// A slice is too short or not aligned to 16 bytes, or a size is none that the kernel knows.
pub fn widen(matrix: &Matrix, to: Slice<Bf16>) -> Result<Launch, Misuse> {
    matrix.checked()?;
    let Matrix { layout, outputs, .. } = *matrix;
    vectors("the wide weights", to, outputs * layout.inputs)?;
    let across = layout.inputs.div_ceil(INPUTS).div_ceil(THREADS / 32);
    let down = outputs.div_ceil(TOGETHER);
    needs(down <= 65_535, || format!("{outputs} outputs are more than a grid is long"))?;
    let grid = [blocks("inputs", across)?, blocks("outputs", down)?, 1];
    let launch = Launch::new(layout.kind.widen(), grid, THREADS as u32, 0).slice(to);
    matrix.sizes(matrix.operands(launch))
}

/// Weights that nobody trained: e4m3 with one scale for all inputs, of numbers whose mean is 0.
///
/// # Errors
/// The matrix is of another kind, a slice is too short or not aligned to 16 bytes, or it is larger than a grid.
pub fn make_up(to: &Matrix, job: &MakeUp) -> Result<Launch, Misuse> {
    to.checked()?;
    let Matrix { layout, outputs, .. } = *to;
    let wanted = layout.kind == Kind::E4m3 && layout.groups() == 1 && job.mean == 0.0;
    needs(wanted, || format!("{layout:?} is not made up"))?;
    let words = layout.codes_len(outputs) / 4;
    let grid = [blocks("made-up weights", words.div_ceil(THREADS))?, 1, 1];
    let launch = to.operands(Launch::new("make_up_e4m3", grid, THREADS as u32, 0));
    let launch = launch.int(int("outputs", outputs)?).int(int("inputs", layout.inputs)?);
    let numbers = [job.key, job.first, job.sigma.to_bits()];
    Ok(numbers.iter().fold(launch, |launch, number| launch.int(*number as i32).int((*number >> 32) as i32)))
}

fn skinny(job: &Product, x: Slice<Bf16>) -> Result<Launch, Misuse> {
    let Matrix { layout, outputs, .. } = job.matrix;
    let (tiles, parts) = (outputs.div_ceil(SKINNY_OUTPUTS), gemm::parts(outputs, layout.inputs));
    let most = job.rows.next_power_of_two().max(8);
    job.workspace.check_skinny((tiles, parts), job.rows, 1)?;
    let grid = [blocks("outputs", tiles)?, parts as u32, 1];
    let launch = Launch::new(layout.kind.skinny(most), grid, THREADS as u32, shared(layout.kind, most));
    let launch = job.matrix.operands(job.y.onto(launch).slice(x)).optional(job.bias);
    let launch = launch.slice(job.workspace.sums).slice(job.workspace.counters).int(int("rows", job.rows)?);
    Ok(job.matrix.sizes(launch)?.int(i32::from(job.y.is_f32())))
}

/// `y[pair] = x weight[expert]^T + bias[expert]` for every pair of a row and an expert that it chose: see
/// [`super::experts::Product`].
#[derive(Clone, Copy, Debug)]
pub struct OfExperts {
    /// `[rows, inputs]`, or with `of_pairs` `[rows * top_k, inputs]`.
    pub x: Slice<Bf16>,
    /// Has each pair a row of `x` of its own?
    pub of_pairs: bool,
    /// The weights of all experts, one below the other; each has a multiple of [`TOGETHER`] outputs.
    pub matrix: Matrix,
    /// `[experts, outputs]`
    pub bias: Option<Slice<f32>>,
    /// `[rows * top_k, outputs]`, written.
    pub y: Output,
    /// See [`experts::sums_len`] and [`experts::counters_len`].
    pub workspace: Workspace,
    /// Which experts.
    pub choices: Choices,
}

/// The product with the weights of all chosen experts. A row's results do not depend on the others, but for their last
/// bits on whether there are more than 64: then inputs are not divided, since there are blocks enough.
///
/// # Errors
/// A slice is too short or not aligned to 16 bytes, or a size is none that the kernels know.
pub fn of_experts(job: &OfExperts) -> Result<Launch, Misuse> {
    let (outputs, choices, workspace) = (job.checked()?, job.choices, job.workspace);
    let Layout { kind, inputs, .. } = job.matrix.layout;
    let tiles = outputs.div_ceil(SKINNY_OUTPUTS);
    let parts = if choices.rows <= SKINNY_ROWS { experts::parts(outputs, inputs, choices.top_k) } else { 1 };
    let most = choices.few();
    let units = choices.units(most);
    workspace.check_skinny((tiles, parts), choices.pairs(), units)?;
    let grid = [blocks("outputs", tiles)?, parts as u32, blocks("units", units)?];
    let launch = Launch::new(kind.of_experts(most), grid, THREADS as u32, shared(kind, most));
    let launch = job.matrix.operands(job.y.onto(launch).slice(job.x)).optional(job.bias);
    let launch = launch.slice(workspace.sums).slice(workspace.counters).slice(choices.list).slice(choices.offsets);
    let sharers = if job.of_pairs { 1 } else { choices.top_k };
    let launch = launch.int(int("pairs", choices.pairs())?).int(int("choices", sharers)?);
    let launch = launch.int(int("experts", choices.experts)?);
    let of_one = Matrix { outputs, ..job.matrix };
    Ok(of_one.sizes(launch)?.int(i32::from(job.y.is_f32())))
}

impl OfExperts {
    /// Returns the outputs of an expert.
    fn checked(&self) -> Result<usize, Misuse> {
        let OfExperts { choices, matrix, .. } = *self;
        choices.check()?;
        matrix.checked()?;
        let outputs = matrix.outputs / choices.experts;
        needs(outputs > 0 && outputs.is_multiple_of(TOGETHER) && outputs * choices.experts == matrix.outputs, || {
            format!("{} experts with {} outputs together", choices.experts, matrix.outputs)
        })?;
        vectors("x", self.x, if self.of_pairs { choices.pairs() } else { choices.rows } * matrix.layout.inputs)?;
        // The kernels count biases in 32 bits.
        int("all biases", matrix.outputs)?;
        if let Some(bias) = self.bias {
            long_enough("the experts' biases", bias, matrix.outputs)?;
        }
        self.y.check(choices.pairs() * outputs)?;
        Ok(outputs)
    }
}

/// Bytes of shared memory of the kernel of up to `most` rows: as `Codes` and `Ring` in it.
fn shared(kind: Kind, most: usize) -> u32 {
    let unit = 32 * 32 * kind.bits() / 8;
    let scales = 2 * 32 * u16::BYTES * kind.numbers_of_scale();
    let stage = THREADS / 32 * (unit + scales) + most * SKINNY_STEP * Bf16::BYTES;
    let room = if most <= 16 { 73_728 } else { 100_352 };
    (room / stage * stage) as u32
}

/// Bytes that [`product`] moves: all weights for each of its launches, or widened and read again; x, y and the bias.
pub fn product_bytes(job: &Product) -> usize {
    let Matrix { layout, outputs, .. } = job.matrix;
    let once = layout.codes_len(outputs) + 2 * layout.scales_len(outputs) + 4 * layout.factors_len(outputs);
    let weights = match job.wide_weights() {
        Some(_) => once + 2 * outputs * layout.inputs * Bf16::BYTES,
        None => job.rows.div_ceil(SKINNY_ROWS) * once,
    };
    let (x, bias) = (job.x.bytes(job.rows, layout.inputs), job.bias.map_or(0, |bias| bias.byte_len()));
    weights + x + job.rows * outputs * job.y.number_bytes() + bias
}

impl Product {
    /// Room for all weights, where they are widened.
    fn wide_weights(&self) -> Option<Slice<Bf16>> {
        let all = self.matrix.outputs * self.matrix.layout.inputs;
        self.wide.filter(|wide| self.rows > SLICED_ROWS && !self.deterministic && wide.len() >= all)
    }

    /// The same of at most 64 rows of `x` from `first` on.
    fn slice(&self, x: Slice<Bf16>, first: usize) -> Result<(Product, Slice<Bf16>), Misuse> {
        let rows = (self.rows - first).min(SKINNY_ROWS);
        let (outputs, inputs) = (self.matrix.outputs, self.matrix.layout.inputs);
        let y = self.y.part(first * outputs..(first + rows) * outputs)?;
        let x = x.part(first * inputs..(first + rows) * inputs)?;
        Ok((Product { x: x.into(), y, rows, ..*self }, x))
    }
}

impl Matrix {
    fn checked(&self) -> Result<(), Misuse> {
        let Matrix { layout, outputs, .. } = *self;
        needs(layout.is_known() && outputs > 0, || {
            format!("{outputs} outputs of {layout:?} are none that kernels know")
        })?;
        vectors("codes", self.codes, layout.codes_len(outputs))?;
        vectors("scales", self.scales, layout.scales_len(outputs))?;
        vectors("factors", self.factors, layout.factors_len(outputs))
    }

    fn operands(&self, launch: Launch) -> Launch {
        launch.slice(self.codes).slice(self.scales).slice(self.factors)
    }

    fn sizes(&self, launch: Launch) -> Result<Launch, Misuse> {
        let launch = launch.int(int("outputs", self.outputs)?).int(int("inputs", self.layout.inputs)?);
        Ok(launch.int(group_shift(self.layout.group, self.layout.inputs)))
    }
}

fn checked(job: &Product) -> Result<(), Misuse> {
    job.matrix.checked()?;
    let (rows, outputs) = (job.rows, job.matrix.outputs);
    needs(rows > 0, || "a product of no rows".into())?;
    job.x.check("x", rows, job.matrix.layout.inputs)?;
    if let Some(bias) = job.bias {
        long_enough("the bias", bias, outputs)?;
    }
    job.y.check(rows * outputs)
}
