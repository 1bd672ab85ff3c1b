//! A decoder's weights as the kernels want them: matrices packed in their file's own format, or waiting for it; vectors
//! widened.

use super::deferred::Deferred;
use crate::error::LoadError;
use crate::llm::layout::{self, Part, Slot};
use crate::llm::spec::{DecoderSpec, Placement, QkNorm};
use crate::llm::weights::{Format, Matrix, Weights};
use kernels::llm::blocks::Format as PackedFormat;
use kernels::llm::packed::Packed;
use std::sync::Arc;

/// A projection, and its bias where it has one.
#[derive(Debug)]
pub(super) struct Linear {
    pub(super) weight: Deferred,
    pub(super) bias: Vec<f32>,
}

/// Weights of a norm; empty where there is none.
pub(super) type NormWeight = Vec<f32>;

/// Gate, up and down of a feed-forward block or an expert.
#[derive(Debug)]
pub(super) struct Gated {
    pub(super) gate: Linear,
    pub(super) up: Linear,
    pub(super) down: Linear,
}

/// The feed-forward block of a layer.
#[derive(Debug)]
pub(super) enum FeedForward {
    Dense(Gated),
    Mixture { router: Linear, experts: Vec<Gated> },
}

/// One layer.
#[derive(Debug)]
pub(super) struct Layer {
    pub(super) attention_before: NormWeight,
    pub(super) attention_after: NormWeight,
    pub(super) mlp_before: NormWeight,
    pub(super) mlp_after: NormWeight,
    pub(super) query: Linear,
    pub(super) key: Linear,
    pub(super) value: Linear,
    pub(super) output: Linear,
    pub(super) query_norm: NormWeight,
    pub(super) key_norm: NormWeight,
    pub(super) sinks: Vec<f32>,
    pub(super) feed_forward: FeedForward,
}

/// The whole model.
#[derive(Debug)]
pub(super) struct Model {
    pub(super) embedding: Deferred,
    pub(super) layers: Vec<Layer>,
    pub(super) norm: NormWeight,
    /// Absent where the embedding is the head.
    pub(super) head: Option<Deferred>,
    /// Where matrices come from that are not packed yet; gone once there are none.
    weights: Option<Arc<dyn Weights>>,
    /// Of all matrices, when they are packed.
    bytes: usize,
}

/// Reads parts of a model.
struct Loader<'a> {
    spec: &'a DecoderSpec,
    weights: &'a Arc<dyn Weights>,
}

impl Model {
    /// Reads all weights; packs those that cannot wait because the system does not keep their file in memory. On the current
    /// rayon pool.
    ///
    /// # Errors
    /// A tensor is missing, of the wrong shape, or unreadable; or the files were written to meanwhile.
    pub(super) fn load(spec: &DecoderSpec, weights: &Arc<dyn Weights>) -> Result<Self, LoadError> {
        let loader = Loader { spec, weights };
        let head = (!spec.tied).then(|| loader.packed(Part::global(Slot::Head))).transpose()?;
        let mut model = Model {
            embedding: loader.packed(Part::global(Slot::Embedding))?,
            layers: (0..spec.layers.len()).map(|layer| loader.layer(layer)).collect::<Result<_, _>>()?,
            norm: loader.norm(Part::global(Slot::FinalNorm), true)?,
            head,
            weights: Some(weights.clone()),
            bytes: 0,
        };
        model.bytes = model.matrices().map(|matrix| matrix.bytes()).sum();
        weights.check_unchanged()?;
        Ok(model)
    }

    /// What logits are the product with.
    pub(super) fn head(&self) -> &Deferred {
        self.head.as_ref().unwrap_or(&self.embedding)
    }

    /// Bytes of all matrices.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Does something wait to be packed?
    pub(super) fn waits(&self) -> bool {
        self.weights.is_some()
    }

    /// As long as something waits: are the files still what they were when they were opened?
    ///
    /// # Errors
    /// One was written to.
    pub(super) fn check_unchanged(&self) -> Result<(), LoadError> {
        self.weights.as_ref().map_or(Ok(()), |weights| weights.check_unchanged())
    }

    /// Packs about `most` bytes of what has waited; `false` once nothing waits any more.
    ///
    /// # Errors
    /// A file cannot be read, or was written to since it was opened.
    pub(super) fn pack(&mut self, most: usize) -> Result<bool, LoadError> {
        let Some(weights) = self.weights.clone() else { return Ok(false) };
        let mut packed = 0;
        for matrix in self.matrices().filter(|matrix| matrix.is_vacant()) {
            while packed < most && matrix.is_vacant() {
                packed += matrix.pack(most - packed)?;
            }
            if packed >= most {
                return Ok(true);
            }
        }
        weights.check_unchanged()?;
        self.weights = None;
        Ok(false)
    }

    /// All matrices, in the order in which they are needed.
    fn matrices(&mut self) -> impl Iterator<Item = &mut Deferred> {
        let layers = self.layers.iter_mut().flat_map(Layer::matrices);
        std::iter::once(&mut self.embedding).chain(layers).chain(&mut self.head)
    }
}

impl Layer {
    fn matrices(&mut self) -> impl Iterator<Item = &mut Deferred> {
        let attention = [&mut self.query, &mut self.key, &mut self.value, &mut self.output];
        let (router, blocks) = match &mut self.feed_forward {
            FeedForward::Dense(block) => (None, std::slice::from_mut(block)),
            FeedForward::Mixture { router, experts } => (Some(router), &mut experts[..]),
        };
        let blocks = blocks.iter_mut().flat_map(|block| [&mut block.gate, &mut block.up, &mut block.down]);
        attention.into_iter().chain(router).chain(blocks).map(|linear| &mut linear.weight)
    }
}

impl Loader<'_> {
    fn layer(&self, layer: usize) -> Result<Layer, LoadError> {
        let (attention, placement) = (&self.spec.attention, self.spec.norm.placement);
        let (before, after) = (placement != Placement::After, placement != Placement::Before);
        let part = |slot| Part { slot, layer, expert: 0 };
        let linear = |weight, bias, biased| self.linear(part(weight), part(bias), biased);
        let qk_norm = attention.qk_norm != QkNorm::None;
        Ok(Layer {
            attention_before: self.norm(part(Slot::AttentionNormBefore), before)?,
            attention_after: self.norm(part(Slot::AttentionNormAfter), after)?,
            mlp_before: self.norm(part(Slot::MlpNormBefore), before)?,
            mlp_after: self.norm(part(Slot::MlpNormAfter), after)?,
            query: linear(Slot::Query, Slot::QueryBias, attention.qkv_bias)?,
            key: linear(Slot::Key, Slot::KeyBias, attention.qkv_bias)?,
            value: linear(Slot::Value, Slot::ValueBias, attention.qkv_bias)?,
            output: linear(Slot::Output, Slot::OutputBias, attention.out_bias)?,
            query_norm: self.norm(part(Slot::QueryNorm), qk_norm)?,
            key_norm: self.norm(part(Slot::KeyNorm), qk_norm)?,
            sinks: if attention.sinks { self.vector(part(Slot::Sinks))? } else { Vec::new() },
            feed_forward: self.feed_forward(layer)?,
        })
    }

    fn feed_forward(&self, layer: usize) -> Result<FeedForward, LoadError> {
        let gated = |expert: usize, slots: [[Slot; 2]; 3], biased: bool| {
            let part = |slot| Part { slot, layer, expert };
            let linear = |[weight, bias]: [Slot; 2]| self.linear(part(weight), part(bias), biased);
            let [gate, up, down] = slots;
            Ok::<_, LoadError>(Gated { gate: linear(gate)?, up: linear(up)?, down: linear(down)? })
        };
        let Some(mixture) = self.spec.mixture.filter(|_| self.spec.layers[layer].mixture) else {
            let slots = [[Slot::Gate, Slot::GateBias], [Slot::Up, Slot::UpBias], [Slot::Down, Slot::DownBias]];
            return gated(0, slots, self.spec.mlp_bias).map(FeedForward::Dense);
        };
        let slots = [
            [Slot::ExpertGate, Slot::ExpertGateBias],
            [Slot::ExpertUp, Slot::ExpertUpBias],
            [Slot::ExpertDown, Slot::ExpertDownBias],
        ];
        let part = |slot| Part { slot, layer, expert: 0 };
        let router = self.linear(part(Slot::Router), part(Slot::RouterBias), mixture.bias)?;
        let experts = (0..mixture.experts).map(|expert| gated(expert, slots, mixture.bias));
        Ok(FeedForward::Mixture { router, experts: experts.collect::<Result<_, _>>()? })
    }

    fn vector(&self, part: Part) -> Result<Vec<f32>, LoadError> {
        Ok(layout::load(self.spec, self.weights.as_ref(), part)?.to_f32())
    }

    fn norm(&self, part: Part, wanted: bool) -> Result<NormWeight, LoadError> {
        if wanted { self.vector(part) } else { Ok(Vec::new()) }
    }

    fn linear(&self, weight: Part, bias: Part, biased: bool) -> Result<Linear, LoadError> {
        Ok(Linear { weight: self.packed(weight)?, bias: if biased { self.vector(bias)? } else { Vec::new() } })
    }

    /// Packed at once, unless it can wait.
    fn packed(&self, part: Part) -> Result<Deferred, LoadError> {
        let refuse = |reason: String| LoadError::new(self.weights.file(), format!("{part:?}: {reason}"));
        let source = layout::rows(self.spec, self.weights.clone(), part)?;
        if !source.in_order() || source.format() == Format::Mxfp4 {
            let matrix = narrowed(source.matrix()?);
            let format = packed_format(matrix.format)
                .ok_or_else(|| refuse(format!("{:?} is not computed with", matrix.format)))?;
            let packed = Packed::new(format, matrix.rows, matrix.columns, &matrix.bytes).map_err(refuse)?;
            return Ok(Deferred::packed(packed));
        }
        let format = packed_format(source.format())
            .ok_or_else(|| refuse(format!("{:?} is not computed with", source.format())))?;
        let waits = source.fetch();
        let mut matrix = Deferred::new(format, source).map_err(refuse)?;
        if !waits {
            matrix.pack(usize::MAX)?;
        }
        Ok(matrix)
    }
}

/// Four-bit floats as bf16: every product of one and its power of two is a bf16 number, so nothing is lost.
fn narrowed(matrix: Matrix) -> Matrix {
    if matrix.format != Format::Mxfp4 {
        return matrix;
    }
    let bytes = matrix.to_f32().iter().flat_map(|x| ((x.to_bits() >> 16) as u16).to_le_bytes()).collect();
    Matrix { format: Format::Bf16, bytes, ..matrix }
}

fn packed_format(format: Format) -> Option<PackedFormat> {
    Some(match format {
        Format::F32 => PackedFormat::F32,
        Format::F16 => PackedFormat::F16,
        Format::Bf16 => PackedFormat::Bf16,
        Format::Q8_0 => PackedFormat::Q8_0,
        Format::Q4_0 => PackedFormat::Q4_0,
        Format::Q4K => PackedFormat::Q4K,
        Format::Q5K => PackedFormat::Q5K,
        Format::Q6K => PackedFormat::Q6K,
        Format::Mxfp4 => return None,
    })
}
