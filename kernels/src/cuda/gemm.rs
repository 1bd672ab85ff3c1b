//! Matrix products with weights. See `cuda/gemm_skinny.cu` (up to 64 rows) and `cuda/gemm_tiled.cu` (more).
//! Devices whose warps multiply by fours have [`wgmma`] for those.

use super::device::Units;
use super::elementwise::vectors;
use super::launch::{Launch, blocks, int, long_enough, needs};
use super::memory::{Bf16, Misuse, Number, Slice};
use super::wgmma::{self, Plan};
use super::{pairs, stream};
use std::ops::Range;

/// Most rows of [`skinny`].
pub const SKINNY_ROWS: usize = 64;
/// Outputs of one of its blocks.
pub(super) const SKINNY_OUTPUTS: usize = 128;
/// Inputs of one of its steps.
pub(super) const SKINNY_STEP: usize = 64;
/// Inputs come in whole multiples of this.
pub(super) const INPUTS: usize = 32;
/// Multiprocessors that every product is cut up for. A constant: sums must not depend on the device.
pub(super) const PROCESSORS: usize = 132;

/// Results in either of two types.
#[derive(Clone, Copy, Debug)]
pub enum Output {
    /// As they were summed.
    F32(Slice<f32>),
    /// Rounded.
    Bf16(Slice<Bf16>),
}

/// What [`skinny`] needs besides: see [`sums_len`] and [`counters_len`]. Products that come one after the other may
/// share it.
#[derive(Clone, Copy, Debug)]
pub struct Workspace {
    /// Its contents mean nothing.
    pub sums: Slice<f32>,
    /// Zeros before the first product; and after each.
    pub counters: Slice<i32>,
}

/// `y = x weight^T + bias`.
#[derive(Clone, Copy, Debug)]
pub struct Product {
    /// `[rows, inputs]`
    pub x: Slice<Bf16>,
    /// `[outputs, inputs]`
    pub weight: Slice<Bf16>,
    /// `[outputs]`
    pub bias: Option<Slice<f32>>,
    /// `[rows, outputs]`, written.
    pub y: Output,
    /// For sums of parts of the inputs.
    pub workspace: Workspace,
    /// Rows.
    pub rows: usize,
    /// Rows of the weights.
    pub outputs: usize,
    /// Columns of the weights: a multiple of 32.
    pub inputs: usize,
    /// Is a row to have the same bits whether it comes with up to 64 rows or with more? Costs the more the more there
    /// are.
    pub deterministic: bool,
}

/// The product by whatever kernel suits the number of rows: one launch, or with `deterministic` one for every 64 rows.
///
/// A row's result does not depend on the others; without `deterministic`, the last bits depend on whether there are
/// more than 64 rows.
///
/// # Errors
/// A slice is too short or not aligned to 16 bytes, or a size is none that the kernels know.
pub fn product(job: &Product) -> Result<Vec<Launch>, Misuse> {
    product_on(job, Units::Warps)
}

/// The same for a device with such units. Where four warps multiply together, the last bits depend on whether there are
/// more than 64, 128 or 256 rows.
///
/// # Errors
/// A slice is too short or not aligned to 16 bytes, or a size is none that the kernels know.
pub fn product_on(job: &Product, units: Units) -> Result<Vec<Launch>, Misuse> {
    let able = matches!(units, Units::Warpgroups { pairs: true, processors } if stream::suits_device(processors));
    if able && !job.deterministic && stream::suits(job.rows, job.outputs, job.inputs) {
        return Ok(vec![stream::product(job, stream::shares(job.outputs, job.inputs), false)?]);
    }
    if job.rows <= SKINNY_ROWS {
        return Ok(vec![skinny(job)?]);
    }
    if !job.deterministic {
        return Ok(vec![match units {
            Units::Warpgroups { .. } if wgmma::suits(job.outputs, job.inputs) => by_warpgroups(job, units, false)?,
            _ => tiled(job, Tile::best(job.rows, job.outputs))?,
        }]);
    }
    checked(job)?;
    (0..job.rows).step_by(SKINNY_ROWS).map(|first| skinny(&job.slice(first)?)).collect()
}

/// The product of up to 64 rows.
///
/// # Errors
/// There are more rows, a slice is too short or not aligned to 16 bytes, or a size is none that the kernel knows.
pub fn skinny(job: &Product) -> Result<Launch, Misuse> {
    checked(job)?;
    needs(job.rows <= SKINNY_ROWS, || format!("{} rows where {SKINNY_ROWS} is the most", job.rows))?;
    let (tiles, parts) = (job.outputs.div_ceil(SKINNY_OUTPUTS), parts(job.outputs, job.inputs));
    let most = job.rows.next_power_of_two().max(8);
    let kernel = match (most, job.y) {
        (8, Output::F32(_)) => "gemm_skinny_8_f32",
        (8, Output::Bf16(_)) => "gemm_skinny_8_bf16",
        (16, Output::F32(_)) => "gemm_skinny_16_f32",
        (16, Output::Bf16(_)) => "gemm_skinny_16_bf16",
        (32, Output::F32(_)) => "gemm_skinny_32_f32",
        (32, Output::Bf16(_)) => "gemm_skinny_32_bf16",
        (_, Output::F32(_)) => "gemm_skinny_64_f32",
        (_, Output::Bf16(_)) => "gemm_skinny_64_bf16",
    };
    job.workspace.check_skinny((tiles, parts), job.rows, 1)?;
    let grid = [blocks("outputs", tiles)?, parts as u32, 1];
    let launch = job.operands(Launch::new(kernel, grid, 256, skinny_shared(most)));
    job.sizes(launch.slice(job.workspace.sums).slice(job.workspace.counters))
}

/// Bytes of shared memory of the kernel of up to `most` rows: as `Ring` in it, whose stages hold the weights and the
/// rows of one step each.
pub(super) fn skinny_shared(most: usize) -> u32 {
    let stages = if most <= 16 { 5 } else { 4 };
    (stages * (SKINNY_OUTPUTS + most) * SKINNY_STEP * Bf16::BYTES) as u32
}

/// Into how many parts [`skinny`] divides the inputs, so that there are enough blocks: the fewest with which the
/// device is about as busy as it can be. A function of the weights' shape alone.
pub(super) fn parts(outputs: usize, inputs: usize) -> usize {
    /// Blocks that run at once.
    const AT_ONCE: usize = 2 * PROCESSORS;
    const MOST: usize = 32;
    let (tiles, steps) = (outputs.div_ceil(SKINNY_OUTPUTS), inputs.div_ceil(SKINNY_STEP));
    // Blocks share the memory's bandwidth. Processors that have none are lost; and where some have two, those with one
    // can make up for three quarters of the difference.
    let cost = |parts: usize| {
        let blocks = tiles * parts;
        let busy = if blocks <= PROCESSORS { PROCESSORS } else { PROCESSORS * 3 / 2 };
        steps.div_ceil(parts) * blocks.max(busy)
    };
    let possible = || (1..=MOST).filter(|parts| *parts == 1 || (steps >= 2 * parts && tiles * parts <= AT_ONCE));
    let least = possible().map(cost).min().unwrap_or(0);
    possible().find(|parts| cost(*parts) * 20 <= least * 21).unwrap_or(1)
}

/// Numbers of [`Workspace::sums`] that a product with such weights needs.
pub fn sums_len(outputs: usize, inputs: usize) -> usize {
    let skinny = match parts(outputs, inputs) {
        1 => 0,
        parts => parts * outputs.div_ceil(SKINNY_OUTPUTS) * SKINNY_ROWS * SKINNY_OUTPUTS,
    };
    of_hopper(outputs, inputs).fold(skinny, |most, (sums, _)| most.max(sums))
}

/// Numbers of [`Workspace::counters`] that a product with such weights needs.
pub fn counters_len(outputs: usize, inputs: usize) -> usize {
    let skinny = if parts(outputs, inputs) == 1 { 0 } else { outputs.div_ceil(SKINNY_OUTPUTS) };
    of_hopper(outputs, inputs).fold(skinny, |most, (_, counters)| most.max(counters))
}

/// Numbers of sums and of counters that each kind of products by four warps needs.
fn of_hopper(outputs: usize, inputs: usize) -> impl Iterator<Item = (usize, usize)> {
    [wgmma::workspace, pairs::workspace, stream::workspace].into_iter().map(move |of| of(outputs, inputs))
}

/// What a block of [`tiled`] makes, rows by outputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tile {
    /// 64 x 64
    Small,
    /// 128 x 128
    Square,
    /// 128 x 256
    Wide,
}

impl Tile {
    /// All of them.
    pub const ALL: [Tile; 3] = [Tile::Small, Tile::Square, Tile::Wide];

    /// That with which all is done soonest. All have the same bits.
    pub fn best(rows: usize, outputs: usize) -> Tile {
        let time = |tile: &Tile| {
            let (height, width) = tile.size();
            // A number of y in a small tile costs more: less is done with what is read.
            let weight = match tile {
                Tile::Small => 16,
                Tile::Square => 11,
                Tile::Wide => 10,
            };
            tile.count(rows, outputs).div_ceil(PROCESSORS) * height * width * weight
        };
        Tile::ALL.into_iter().min_by_key(time).unwrap_or(Tile::Square)
    }

    fn size(self) -> (usize, usize) {
        match self {
            Tile::Small => (64, 64),
            Tile::Square => (128, 128),
            Tile::Wide => (128, 256),
        }
    }

    fn count(self, rows: usize, outputs: usize) -> usize {
        rows.div_ceil(self.size().0) * outputs.div_ceil(self.size().1)
    }
}

/// The product by tiles. It needs no workspace.
///
/// # Errors
/// A slice is too short or not aligned to 16 bytes, or a size is none that the kernel knows.
pub fn tiled(job: &Product, tile: Tile) -> Result<Launch, Misuse> {
    Ok(by_tiles(job, tile)?.int(0))
}

/// The product of many rows with weights that an earlier launch makes: they are waited for.
pub(super) fn after(job: &Product, units: Units) -> Result<Launch, Misuse> {
    match units {
        Units::Warpgroups { .. } if wgmma::suits(job.outputs, job.inputs) => by_warpgroups(job, units, true),
        _ => Ok(by_tiles(job, Tile::best(job.rows, job.outputs))?.int(1)),
    }
}

/// The product of many rows that suits the units. `late`: an earlier launch makes the weights.
fn by_warpgroups(job: &Product, units: Units, late: bool) -> Result<Launch, Misuse> {
    let Product { rows, outputs, inputs, .. } = *job;
    let Units::Warpgroups { processors, pairs: by_pairs } = units else {
        return Err(Misuse("warps of this device do not multiply by fours".into()));
    };
    match late {
        _ if by_pairs && pairs::suits(rows, outputs, inputs) => {
            pairs::product(job, Plan::pairs(rows, outputs, inputs), processors, late)
        }
        false => wgmma::product(job, Plan::best(rows, outputs, inputs), processors),
        true => wgmma::product_after(job, Plan::best(rows, outputs, inputs), processors),
    }
}

fn by_tiles(job: &Product, tile: Tile) -> Result<Launch, Misuse> {
    const STEP: usize = 32;
    checked(job)?;
    let (kernel, threads, stages) = match (tile, job.y) {
        (Tile::Small, Output::F32(_)) => ("gemm_tiled_64x64_f32", 128, 6),
        (Tile::Small, Output::Bf16(_)) => ("gemm_tiled_64x64_bf16", 128, 6),
        (Tile::Square, Output::F32(_)) => ("gemm_tiled_128x128_f32", 128, 4),
        (Tile::Square, Output::Bf16(_)) => ("gemm_tiled_128x128_bf16", 128, 4),
        (Tile::Wide, Output::F32(_)) => ("gemm_tiled_128x256_f32", 256, 4),
        (Tile::Wide, Output::Bf16(_)) => ("gemm_tiled_128x256_bf16", 256, 4),
    };
    let shared = stages * (tile.size().0 + tile.size().1) * STEP * Bf16::BYTES;
    let grid = [blocks("tiles", tile.count(job.rows, job.outputs))?, 1, 1];
    job.sizes(job.operands(Launch::new(kernel, grid, threads, shared as u32)))
}

/// Bytes that [`product`] moves: all weights for each of its launches, x, y and the bias. What the second cache keeps
/// is counted once.
pub fn product_bytes(job: &Product) -> usize {
    let passes = if job.deterministic { job.rows.div_ceil(SKINNY_ROWS) } else { 1 };
    let (x, bias) = (job.rows * job.inputs * Bf16::BYTES, job.bias.map_or(0, |bias| bias.byte_len()));
    let y = job.rows * job.outputs * job.y.number_bytes();
    passes * job.outputs * job.inputs * Bf16::BYTES + x + y + bias
}

/// Multiplications and additions of [`product`].
pub fn product_flops(job: &Product) -> usize {
    2 * job.rows * job.outputs * job.inputs
}

impl Workspace {
    /// Is there room for so many sums and counters?
    pub(super) fn check(&self, sums: usize, counters: usize) -> Result<(), Misuse> {
        vectors("the workspace's sums", self.sums, sums)?;
        long_enough("the workspace's counters", self.counters, counters)
    }

    /// The same for [`skinny`], and for its like with other weights: each part has sums of its own of all tiles and
    /// `rows`, and each tile of each of `units` is counted. One part needs neither.
    pub(super) fn check_skinny(&self, (tiles, parts): (usize, usize), rows: usize, units: usize) -> Result<(), Misuse> {
        if parts == 1 {
            return Ok(());
        }
        self.check(tiles * parts * rows * SKINNY_OUTPUTS, units * tiles)
    }
}

impl Output {
    /// Is there room for so many numbers?
    pub(super) fn check(self, len: usize) -> Result<(), Misuse> {
        match self {
            Output::F32(y) => vectors("y", y, len),
            Output::Bf16(y) => vectors("y", y, len),
        }
    }

    /// Some of its numbers.
    pub(super) fn part(self, range: Range<usize>) -> Result<Output, Misuse> {
        Ok(match self {
            Output::F32(y) => Output::F32(y.part(range)?),
            Output::Bf16(y) => Output::Bf16(y.part(range)?),
        })
    }

    /// Appends where results go.
    pub(super) fn onto(self, launch: Launch) -> Launch {
        match self {
            Output::F32(y) => launch.slice(y),
            Output::Bf16(y) => launch.slice(y),
        }
    }

    /// Are they left as they were summed?
    pub(super) fn is_f32(self) -> bool {
        matches!(self, Output::F32(_))
    }

    /// Bytes of a number.
    pub(super) fn number_bytes(self) -> usize {
        match self {
            Output::F32(_) => f32::BYTES,
            Output::Bf16(_) => Bf16::BYTES,
        }
    }
}

impl Product {
    /// The same of at most 64 rows from `first` on.
    fn slice(&self, first: usize) -> Result<Product, Misuse> {
        let rows = (self.rows - first).min(SKINNY_ROWS);
        let y = self.y.part(first * self.outputs..(first + rows) * self.outputs)?;
        Ok(Product { x: self.x.part(first * self.inputs..(first + rows) * self.inputs)?, y, rows, ..*self })
    }

    /// Appends what all kernels begin with.
    pub(super) fn operands(&self, launch: Launch) -> Launch {
        self.y.onto(launch).slice(self.x).slice(self.weight).optional(self.bias)
    }

    /// Appends what all kernels end with.
    pub(super) fn sizes(&self, launch: Launch) -> Result<Launch, Misuse> {
        let (rows, outputs) = (int("rows", self.rows)?, int("outputs", self.outputs)?);
        Ok(launch.int(rows).int(outputs).int(int("inputs", self.inputs)?))
    }
}

pub(super) fn checked(job: &Product) -> Result<(), Misuse> {
    let Product { rows, outputs, inputs, .. } = *job;
    needs(rows > 0 && outputs > 0 && inputs > 0 && inputs.is_multiple_of(INPUTS), || {
        format!("a product of {rows} rows of {inputs} inputs, of which {INPUTS} make a step, with {outputs} outputs")
    })?;
    vectors("x", job.x, rows * inputs)?;
    vectors("the weights", job.weight, outputs * inputs)?;
    if let Some(bias) = job.bias {
        long_enough("the bias", bias, outputs)?;
    }
    job.y.check(rows * outputs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn enough_blocks_for_the_weights_of_known_models() {
        let shapes = [(6144, 4096), (4096, 4096), (28672, 4096), (4096, 14336), (128_256, 4096), (4096, 1024)];
        let parts = shapes.map(|(outputs, inputs)| parts(outputs, inputs));
        assert_eq!(parts, [4, 4, 1, 4, 1, 4]);
        assert_eq!(super::parts(1024, 2048), 16);
        // A step is a step, however small the matrix.
        assert_eq!(super::parts(100, 32), 1);
        assert_eq!((sums_len(100, 32), counters_len(100, 32)), (0, 0));
        assert_eq!((sums_len(6100, 4096), counters_len(6100, 4096)), (4 * 48 * 64 * 128, 48));
    }

    #[test]
    fn tiles_suit_the_sizes() {
        assert_eq!(Tile::best(128, 4096), Tile::Small);
        assert_eq!(Tile::best(512, 4096), Tile::Square);
        assert_eq!(Tile::best(8192, 4096), Tile::Wide);
    }
}
