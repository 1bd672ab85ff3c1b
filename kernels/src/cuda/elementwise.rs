//! What happens between the matrix products, row by row: embedding, norms with the residual stream, gated activations.
//! See `cuda/elementwise.cu`.

use super::launch::{Launch, blocks, int, long_enough, needs};
use super::memory::{Bf16, Misuse, Number, Slice};
use super::rounded::Rows;

/// Threads of a block of a kernel that has no sums.
const THREADS: usize = 256;
/// Widest residual stream.
pub const HIDDEN_MAX: usize = 16_384;

/// `x = scale * table[token]`.
#[derive(Clone, Copy, Debug)]
pub struct Embed {
    /// `[vocab, hidden]`
    pub table: Slice<Bf16>,
    /// `[rows]`; -1 stands for the last token of the row's slot. One outside the vocabulary reads row 0.
    pub tokens: Slice<i32>,
    /// `[rows]`
    pub slots: Slice<i32>,
    /// `[slots]`: the token that each slot sampled last.
    pub last: Slice<i32>,
    /// `[rows, hidden]`, written.
    pub x: Slice<f32>,
    /// Rows.
    pub rows: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Rows of the table.
    pub vocab: usize,
    /// A factor.
    pub scale: f32,
}

/// The embeddings of tokens.
///
/// # Errors
/// A slice is too short, or a size is none that the kernel knows.
pub fn embed(job: &Embed) -> Result<Launch, Misuse> {
    is_width("hidden", job.hidden)?;
    needs(job.rows > 0 && job.vocab > 0, || format!("an embedding of {} rows by {}", job.rows, job.vocab))?;
    vectors("the table", job.table, job.vocab * job.hidden)?;
    long_enough("tokens", job.tokens, job.rows)?;
    long_enough("slots", job.slots, job.rows)?;
    vectors("x", job.x, job.rows * job.hidden)?;
    let threads = threads(job.hidden / 4).min(THREADS);
    let grid = [blocks("rows", job.rows)?, blocks("hidden", (job.hidden / 4).div_ceil(threads))?, 1];
    Ok(Launch::new("embed", grid, threads as u32, 0)
        .slice(job.table)
        .slice(job.tokens)
        .slice(job.slots)
        .slice(job.last)
        .slice(job.x)
        .int(int("hidden", job.hidden)?)
        .int(int("vocab", job.vocab)?)
        .int(int("slots", job.last.len())?)
        .float(job.scale))
}

/// Bytes that [`embed`] moves.
pub fn embed_bytes(job: &Embed) -> usize {
    job.rows * job.hidden * (Bf16::BYTES + f32::BYTES)
}

/// What a block gives to the residual stream.
#[derive(Clone, Copy, Debug)]
pub struct Delta {
    /// `[rows, hidden]`
    pub numbers: Slice<f32>,
    /// `[hidden]`, added first.
    pub bias: Option<Slice<f32>>,
    /// `[hidden]`: a root-mean-square norm by these weights comes next (with `eps` and `offset` of [`Norm`]).
    pub weight: Option<Slice<f32>>,
    /// A factor, last.
    pub scale: f32,
}

/// A norm of rows: `x / sqrt(mean(x^2) + eps) * (weight + offset) + bias`.
#[derive(Clone, Copy, Debug)]
pub struct Norm {
    /// `[hidden]`; without them rows stay as they are.
    pub weight: Option<Slice<f32>>,
    /// `[hidden]`
    pub bias: Option<Slice<f32>>,
    /// Is the mean taken away first (layer norm)?
    pub centred: bool,
    /// Added to the mean square or variance.
    pub eps: f32,
    /// Added to every weight: 0 or 1.
    pub offset: f32,
}

/// `x += delta`, then `out = norm(x)`.
#[derive(Clone, Copy, Debug)]
pub struct AddNorm {
    /// `[rows, hidden]`, read, and written where there is a delta. With `row_index`, any number of rows.
    pub x: Slice<f32>,
    /// What is added to `x`.
    pub delta: Option<Delta>,
    /// What `out` is of the sum.
    pub norm: Norm,
    /// `[rows, hidden]`, written.
    pub out: Option<Rows>,
    /// `[rows]`: row r of `out` is of row `row_index[r]` of `x`; zeros where there is none (-1). Only without a delta, and
    /// of bf16.
    pub row_index: Option<Slice<i32>>,
    /// Rows of `out`.
    pub rows: usize,
    /// Width of the residual stream.
    pub hidden: usize,
}

/// A residual addition and a norm.
///
/// # Errors
/// A slice is too short, or parts are together that the kernel does not know.
pub fn add_norm(job: &AddNorm) -> Result<Launch, Misuse> {
    is_width("hidden", job.hidden)?;
    needs(job.rows > 0 && job.hidden <= HIDDEN_MAX, || format!("a norm of {} rows by {}", job.rows, job.hidden))?;
    let plain = job.delta.is_none() && matches!(job.out, Some(Rows::Bf16(_)));
    needs(job.row_index.is_none() || plain, || "rows by an index have no delta, and go somewhere as bf16".into())?;
    let without = job.norm.weight.is_none() && job.norm.bias.is_none() && !job.norm.centred;
    needs(job.out.is_some() || without, || "a norm whose result goes nowhere".into())?;
    needs(job.norm.weight.is_some() || !job.norm.centred, || "a layer norm without weights".into())?;
    let numbers = job.rows * job.hidden;
    vectors("x", job.x, if job.row_index.is_some() { job.hidden } else { numbers })?;
    optional("weights", job.norm.weight, job.hidden)?;
    optional("biases", job.norm.bias, job.hidden)?;
    if let Some(out) = job.out {
        out.check("out", job.rows, job.hidden)?;
    }
    if let Some(index) = job.row_index {
        long_enough("the index", index, job.rows)?;
    }
    if let Some(delta) = job.delta {
        vectors("delta", delta.numbers, numbers)?;
        optional("biases of delta", delta.bias, job.hidden)?;
        optional("weights of delta", delta.weight, job.hidden)?;
    }
    let (kernel, each) = match job.hidden {
        0..=1024 => ("add_norm_1", 4),
        1025..=2048 => ("add_norm_2", 8),
        _ => ("add_norm_4", 16),
    };
    let shared = if job.norm.weight.is_some() { job.hidden * f32::BYTES } else { 0 };
    let grid = [blocks("rows", job.rows)?, 1, 1];
    let launch = Launch::new(kernel, grid, threads(job.hidden.div_ceil(each)) as u32, shared as u32)
        .slice(job.x)
        .optional(job.delta.map(|delta| delta.numbers))
        .optional(job.delta.and_then(|delta| delta.bias))
        .optional(job.delta.and_then(|delta| delta.weight))
        .optional(job.norm.weight)
        .optional(job.norm.bias);
    Ok(Rows::onto(job.out, launch)
        .optional(job.row_index)
        .int(int("rows of x", job.x.len() / job.hidden)?)
        .int(int("hidden", job.hidden)?)
        .int(i32::from(job.norm.centred))
        .float(job.norm.eps)
        .float(job.norm.offset)
        .float(job.delta.map_or(1.0, |delta| delta.scale)))
}

/// Bytes that [`add_norm`] moves.
pub fn add_norm_bytes(job: &AddNorm) -> usize {
    let x = if job.delta.is_some() { 3 * f32::BYTES } else { f32::BYTES };
    job.rows * job.hidden * x + job.out.map_or(0, |out| out.bytes(job.rows, job.hidden))
}

/// What a gate and an up projection become.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Gate {
    /// `silu(gate) * up`
    Silu,
    /// `gelu(gate) * up`, by the error function.
    Gelu,
    /// `gelu(gate) * up`, by the hyperbolic tangent.
    GeluTanh,
    /// The gate clamped above and up on both sides, then `gate * sigmoid(1.702 * gate) * (up + 1)`.
    ClampedSwiglu {
        /// The clamp.
        limit: f32,
    },
}

impl Gate {
    /// As kernels number them (`activation.cuh`), and the limit.
    pub(super) fn numbered(self) -> (usize, f32) {
        match self {
            Gate::Silu => (0, 0.0),
            Gate::Gelu => (1, 0.0),
            Gate::GeluTanh => (2, 0.0),
            Gate::ClampedSwiglu { limit } => (3, limit),
        }
    }
}

/// `out = activation(gate, up)`.
#[derive(Clone, Copy, Debug)]
pub struct Gated {
    /// `[rows, 2, width]`: the gate, then up.
    pub input: Slice<Bf16>,
    /// `[2, width]`, added first.
    pub bias: Option<Slice<f32>>,
    /// `[rows, width]`, written.
    pub out: Rows,
    /// Which activation.
    pub gate: Gate,
    /// Rows.
    pub rows: usize,
    /// Width of the gate.
    pub width: usize,
}

/// A gated activation.
///
/// # Errors
/// A slice is too short, or a size is none that the kernel knows.
pub fn gated(job: &Gated) -> Result<Launch, Misuse> {
    is_width("the gate", job.width)?;
    needs(job.rows > 0, || "an activation of no rows".into())?;
    vectors("gate and up", job.input, 2 * job.rows * job.width)?;
    optional("biases", job.bias, 2 * job.width)?;
    job.out.check("out", job.rows, job.width)?;
    let (number, limit) = job.gate.numbered();
    let kernel = ["gated_silu", "gated_gelu", "gated_gelu_tanh", "gated_clamped_swiglu"][number];
    // The kernel counts eights of all rows in 32 bits.
    let eights = int("all of the gate by eights", job.rows * job.width / 8)? as usize;
    let threads = threads(eights).min(THREADS);
    let launch = Launch::new(kernel, [blocks("eights", eights.div_ceil(threads))?, 1, 1], threads as u32, 0)
        .slice(job.input)
        .optional(job.bias);
    Ok(Rows::onto(Some(job.out), launch).int(int("rows", job.rows)?).int(int("the gate", job.width)?).float(limit))
}

/// Bytes that [`gated`] moves.
pub fn gated_bytes(job: &Gated) -> usize {
    2 * job.rows * job.width * Bf16::BYTES + job.out.bytes(job.rows, job.width)
}

/// `logits *= scale`, then `cap * tanh(logits / cap)`.
#[derive(Clone, Copy, Debug)]
pub struct ShapeLogits {
    /// `[count]`, read and written.
    pub logits: Slice<f32>,
    /// Logits, of all rows together.
    pub count: usize,
    /// A factor.
    pub scale: f32,
    /// The cap; 0 is none.
    pub cap: f32,
}

/// The scale and cap of logits.
///
/// # Errors
/// The slice is too short, or there are no logits.
pub fn shape_logits(job: &ShapeLogits) -> Result<Launch, Misuse> {
    needs(job.count > 0, || "no logits".into())?;
    vectors("logits", job.logits, job.count)?;
    let grid = [blocks("logits", job.count.div_ceil(4 * THREADS))?, 1, 1];
    Ok(Launch::new("shape_logits", grid, THREADS as u32, 0)
        .slice(job.logits)
        .int(int("logits", job.count)?)
        .float(job.scale)
        .float(job.cap))
}

/// Bytes that [`shape_logits`] moves.
pub fn shape_logits_bytes(job: &ShapeLogits) -> usize {
    2 * job.count * f32::BYTES
}

/// Whole warps for so much work, a thread for each.
fn threads(work: usize) -> usize {
    work.next_multiple_of(32)
}

/// A width of rows whose numbers kernels move by eights.
fn is_width(what: &str, width: usize) -> Result<(), Misuse> {
    needs(width > 0 && width.is_multiple_of(8), || format!("{what} is {width} wide, no multiple of 8"))
}

/// Is a slice long enough, and aligned for the sixteen bytes that a thread moves at a time?
pub(super) fn vectors<T: Number>(what: &str, slice: Slice<T>, len: usize) -> Result<(), Misuse> {
    needs(slice.address().is_multiple_of(16), || format!("{what} is not aligned to 16 bytes"))?;
    long_enough(what, slice, len)
}

/// The same where there is one.
pub(super) fn optional<T: Number>(what: &str, slice: Option<Slice<T>>, len: usize) -> Result<(), Misuse> {
    slice.map_or(Ok(()), |slice| vectors(what, slice, len))
}
