//! The launches of a step of a few rows, by kernels that do what stands before and after a product themselves: with so
//! little to compute, what costs is that each launch waits for the one before.
//!
//! ```text
//! x [rows, hidden] f32 -> norm, q, k, v -> norm, rotation, cache -> attention -> output, + x
//!                      -> norm, gate, up, activation -> down, + x                (for each layer)
//! x [sampled] -> norm, head -> logits
//! ```

use super::forward::{Batch, Forward, Sink};
use super::step;
use super::weights::{FeedForward, Layer, Linear, Weight};
use kernels::cuda::gemv::{self, GEMV_ROWS, Gemv, Input, Outcome};
use kernels::cuda::{Bf16, Launch, Misuse, Slice, Units};

/// Most rows of such a step, where nothing else is said. None, until they were timed on a GPU beside the others.
pub const SHORT_ROWS: usize = 0;

impl Forward {
    /// Is a step of so many rows one of these? They take other orders of summing, so none is that must not depend on how
    /// many rows there are; matrices must be bf16, and nothing may stand between a product and the residual stream. Rows
    /// count as many as the graph has that they would be run as: launch by launch they have the same bits.
    pub(super) fn is_short(&self, rows: usize) -> bool {
        let rows = step::rounded(rows);
        let able = matches!(self.units, Units::Warpgroups { .. }) && !self.deterministic;
        let few = rows <= self.short_rows.min(GEMV_ROWS);
        able && few && self.model.layers.iter().all(|layer| is_simple(layer, rows))
    }

    pub(super) fn short_step(&self, batch: Batch<'_>, sink: &mut Sink<'_>) -> Result<(), Misuse> {
        let (buffers, rows) = (&self.buffers, batch.shape.rows);
        let added = || Outcome::Added(buffers.x, self.spec.scales.residual as f32);
        for (index, layer) in self.model.layers.iter().enumerate() {
            let FeedForward::Dense { gate_up, down } = layer.feed_forward else {
                return Err(Misuse("a short step has no experts".into()));
            };
            let normed = self.normed(layer.attention_before, None)?;
            // The next kernel adds its bias.
            let qkv = Linear { bias: None, ..layer.qkv };
            sink(short_product(&qkv, normed, Outcome::F32(buffers.qkv), rows)?);
            self.mix_positions(index, layer, batch, sink)?;
            sink(short_product(&layer.output, Input::Rows(buffers.mixed), added(), rows)?);
            let normed = self.normed(layer.mlp_before, None)?;
            sink(short_product(&gate_up, normed, Outcome::Gated(buffers.activated, self.gate()), rows)?);
            sink(short_product(&down, Input::Rows(buffers.activated), added(), rows)?);
        }
        match batch.shape.sampled {
            0 => Ok(()),
            // Logits that take other weights than bf16, or more room, have the usual way.
            count if !fits(&self.model.head, count) => self.logits(count, batch.inputs.sampled, sink),
            count => {
                let normed = self.normed(self.model.norm, Some(batch.inputs.sampled))?;
                sink(short_product(&self.model.head, normed, Outcome::F32(buffers.logits), count)?);
                self.shape_logits(count, sink)
            }
        }
    }

    /// Rows of the residual stream, normed.
    fn normed(&self, weight: Option<Slice<f32>>, row_index: Option<Slice<i32>>) -> Result<Input, Misuse> {
        let norm = self.weighted(weight);
        let weight = weight.ok_or_else(|| Misuse("a short step norms what it multiplies".into()))?;
        Ok(Input::Normed { x: self.buffers.x, weight, eps: norm.eps, offset: norm.offset, row_index })
    }
}

/// Is a layer one whose launches are those of this file?
fn is_simple(layer: &Layer, rows: usize) -> bool {
    let FeedForward::Dense { gate_up, down } = &layer.feed_forward else { return false };
    let before = layer.attention_before.is_some() && layer.mlp_before.is_some();
    let after = layer.attention_after.is_some() || layer.mlp_after.is_some();
    let halves = gate_up.outputs.is_multiple_of(16);
    before && !after && halves && [&layer.qkv, &layer.output, gate_up, down].iter().all(|linear| fits(linear, rows))
}

fn fits(linear: &Linear, rows: usize) -> bool {
    matches!(linear.weight, Weight::Bf16(_)) && gemv::suits(rows, linear.inputs)
}

fn short_product(linear: &Linear, x: Input, y: Outcome, rows: usize) -> Result<Launch, Misuse> {
    let weight = bf16(linear.weight)?;
    gemv::gemv(&Gemv { x, weight, bias: linear.bias, y, rows, outputs: linear.outputs, inputs: linear.inputs })
}

fn bf16(weight: Weight) -> Result<Slice<Bf16>, Misuse> {
    match weight {
        Weight::Bf16(weight) => Ok(weight),
        Weight::Codes(_) => Err(Misuse("a short step has weights of bf16".into())),
    }
}
