//! Rows as codes of eight bits, which products with weights of such codes take. See `cuda/rounded.cuh`, and
//! `cuda/elementwise.cu` for the kernels that write them.

use super::device::Units;
use super::elementwise::vectors;
use super::gemm::SKINNY_ROWS;
use super::launch::{Launch, blocks, int, long_enough, needs};
use super::memory::{Bf16, E4m3, Misuse, Number, Slice};
use super::stored::{Kind, Layout, Matrix};
use super::wgmma;

/// Numbers of a row that share a scale.
pub const CODES_OF_SCALE: usize = 128;

/// Rows as codes.
#[derive(Clone, Copy, Debug)]
pub struct Rounded {
    /// `[rows, width]`: each 32 in the order in which the weights' codes lie.
    pub codes: Slice<E4m3>,
    /// `[rows, width / 128]`
    pub scales: Slice<f32>,
}

impl Rounded {
    /// Numbers of the scales of so many rows.
    pub fn scales_len(rows: usize, width: usize) -> usize {
        rows * (width / CODES_OF_SCALE)
    }

    /// Is there room for such rows?
    pub(super) fn check(&self, rows: usize, width: usize) -> Result<(), Misuse> {
        needs(width.is_multiple_of(CODES_OF_SCALE), || format!("codes of rows of {width}, no multiple of 128"))?;
        vectors("the rows' codes", self.codes, rows * width)?;
        long_enough("the rows' scales", self.scales, Rounded::scales_len(rows, width))
    }
}

/// Rows of either kind.
#[derive(Clone, Copy, Debug)]
pub enum Rows {
    /// `[rows, width]`
    Bf16(Slice<Bf16>),
    /// As codes; the width is a multiple of 128.
    Rounded(Rounded),
}

impl From<Slice<Bf16>> for Rows {
    fn from(rows: Slice<Bf16>) -> Self {
        Rows::Bf16(rows)
    }
}

impl Rows {
    /// Is there room for them?
    pub(super) fn check(&self, what: &str, rows: usize, width: usize) -> Result<(), Misuse> {
        match self {
            Rows::Bf16(to) => vectors(what, *to, rows * width),
            Rows::Rounded(to) => to.check(rows, width),
        }
    }

    /// Appends where they go, and scales or null.
    pub(super) fn onto(to: Option<Rows>, launch: Launch) -> Launch {
        match to {
            None => launch.optional::<Bf16>(None).optional::<f32>(None),
            Some(Rows::Bf16(to)) => launch.slice(to).optional::<f32>(None),
            Some(Rows::Rounded(to)) => launch.slice(to.codes).slice(to.scales),
        }
    }

    /// Bytes of so many.
    pub fn bytes(&self, rows: usize, width: usize) -> usize {
        match self {
            Rows::Bf16(_) => rows * width * Bf16::BYTES,
            Rows::Rounded(_) => rows * width + Rounded::scales_len(rows, width) * f32::BYTES,
        }
    }

    /// The same as bf16.
    ///
    /// # Errors
    /// They are codes.
    pub fn bf16(&self) -> Result<Slice<Bf16>, Misuse> {
        match self {
            Rows::Bf16(rows) => Ok(*rows),
            Rows::Rounded(_) => Err(Misuse("rows are codes where the kernel needs bf16".into())),
        }
    }
}

/// Rounds rows to codes that a kernel has left as bf16.
///
/// # Errors
/// A slice is too short or not aligned to 16 bytes, or the width is no multiple of 128.
pub fn round(to: Rounded, x: Slice<Bf16>, rows: usize, width: usize) -> Result<Launch, Misuse> {
    /// Groups of a block.
    const AT_ONCE: usize = 8;
    needs(rows > 0 && width > 0, || format!("{rows} rows of {width}"))?;
    vectors("x", x, rows * width)?;
    to.check(rows, width)?;
    let groups = Rounded::scales_len(rows, width);
    let grid = [blocks("groups of numbers", groups.div_ceil(AT_ONCE))?, 1, 1];
    let launch = Launch::new("round_rows", grid, 256, 0).slice(to.codes).slice(to.scales).slice(x);
    Ok(launch.int(int("rows", rows)?).int(int("width", width)?))
}

/// Where the codes of rows stand, of a product of codes with codes: in the room for wide weights. Who makes the rows may
/// write them there; none where the device or the matrix are such that there is no such product.
///
/// # Errors
/// The room is not aligned.
pub fn codes_of_rows(
    matrix: &Matrix,
    rows: usize,
    wide: Option<Slice<Bf16>>,
    units: Units,
) -> Result<Option<Rounded>, Misuse> {
    let Layout { inputs, .. } = matrix.layout;
    let room = wide.filter(|_| can_round(&matrix.layout, matrix.outputs) && rows > SKINNY_ROWS);
    let (Some(room), Units::Warpgroups { .. }) = (room, units) else { return Ok(None) };
    let (of_codes, of_scales) = (rows * inputs, Rounded::scales_len(rows, inputs) * f32::BYTES);
    let bytes = room.cast::<u8>()?;
    if bytes.len() < rounded_bytes(rows, inputs) {
        return Ok(None);
    }
    let scales = bytes.part(of_codes..of_codes + of_scales)?.cast()?;
    Ok(Some(Rounded { codes: bytes.first(of_codes)?.cast()?, scales }))
}

/// Are these weights of a kind that codes of rows can be multiplied with?
pub(super) fn can_round(layout: &Layout, outputs: usize) -> bool {
    layout.kind == Kind::E4m3 && wgmma::suits_coded(outputs, layout.inputs, layout.group)
}

/// Bytes of rows as codes, and their scales.
pub(super) fn rounded_bytes(rows: usize, inputs: usize) -> usize {
    rows * inputs + Rounded::scales_len(rows, inputs) * f32::BYTES
}
