//! A decoder's weights in device memory: matrices as bf16, or as the codes of their files; projections of the same
//! input one below the other; vectors as f32.

use super::arena::{Arena, Sizes};
use super::loading::Loader;
use super::memory::Error;
use crate::error::LoadError;
use crate::llm::layout::{self, Part, Slot};
use crate::llm::spec::{DecoderSpec, Placement, QkNorm};
use crate::llm::weights::Weights;
use crate::llm::weights::groups::{Code, Stored};
use kernels::cuda::stored::{Kind, Layout, Matrix, TOGETHER};
use kernels::cuda::{Bf16, Device, Slice};

/// A projection's matrix.
#[derive(Clone, Copy, Debug)]
pub(super) enum Weight {
    Bf16(Slice<Bf16>),
    Codes(Matrix),
}

/// A projection, and its bias where it has one.
#[derive(Clone, Copy, Debug)]
pub(super) struct Linear {
    /// `[outputs, inputs]`; of experts `[experts, outputs, inputs]`.
    pub(super) weight: Weight,
    pub(super) outputs: usize,
    pub(super) inputs: usize,
    /// `[outputs]`
    pub(super) bias: Option<Slice<f32>>,
    /// Do all rows of a step go through it, and does what it gives bear rounded inputs? Not so the head, which few of a
    /// prompt's rows go through, and a router, whose choices tip over.
    pub(super) of_all_rows: bool,
}

/// Weights of a norm, where there is one.
pub(super) type NormWeight = Option<Slice<f32>>;

/// One layer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Layer {
    pub(super) attention_before: NormWeight,
    pub(super) attention_after: NormWeight,
    pub(super) mlp_before: NormWeight,
    pub(super) mlp_after: NormWeight,
    /// Queries, keys and values.
    pub(super) qkv: Linear,
    pub(super) output: Linear,
    pub(super) query_norm: NormWeight,
    pub(super) key_norm: NormWeight,
    pub(super) sinks: Option<Slice<f32>>,
    pub(super) feed_forward: FeedForward,
}

/// What a layer does to each row by itself.
#[derive(Clone, Copy, Debug)]
pub(super) enum FeedForward {
    /// The same for all rows.
    Dense {
        /// Gate and up projection.
        gate_up: Linear,
        down: Linear,
    },
    /// Experts, of which a router chooses some for each row.
    Mixture {
        router: Linear,
        /// Weights are `[experts, outputs, inputs]`, and biases `[experts, outputs]`.
        gate_up: Linear,
        down: Linear,
    },
}

impl Layer {
    /// Its projections that all rows go through.
    pub(super) fn linears(&self) -> impl Iterator<Item = Linear> {
        let feed_forward = match self.feed_forward {
            FeedForward::Dense { gate_up, down } => vec![gate_up, down],
            FeedForward::Mixture { router, .. } => vec![router],
        };
        [self.qkv, self.output].into_iter().chain(feed_forward)
    }

    /// Those of experts.
    pub(super) fn experts(&self) -> impl Iterator<Item = Linear> {
        match self.feed_forward {
            FeedForward::Dense { .. } => Vec::new(),
            FeedForward::Mixture { gate_up, down, .. } => vec![gate_up, down],
        }
        .into_iter()
    }
}

/// The whole model.
#[derive(Clone, Debug)]
pub(super) struct Model {
    pub(super) embedding: Slice<Bf16>,
    pub(super) layers: Vec<Layer>,
    pub(super) norm: NormWeight,
    pub(super) head: Linear,
    /// Bytes of all.
    pub(super) bytes: usize,
}

/// Every tensor in the order in which they are read; the first pass counts, the second reads.
pub(super) trait Visitor {
    /// Numbers of 16 bits, whatever the file has.
    fn matrix(&mut self, parts: &[Part]) -> Result<Option<Slice<Bf16>>, LoadError>;
    /// As codes where they are kept so.
    fn projection(&mut self, parts: &[Part]) -> Result<Option<Weight>, LoadError>;
    fn vector(&mut self, parts: &[Part]) -> Result<Option<Slice<f32>>, LoadError>;
}

struct Counter<'a> {
    spec: &'a DecoderSpec,
    weights: &'a dyn Weights,
    sizes: Sizes,
}

impl Counter<'_> {
    fn count(&self, parts: &[Part]) -> usize {
        let size = |part: &Part| {
            let (rows, columns) = layout::shape(self.spec, part.slot);
            rows * columns.unwrap_or(1)
        };
        parts.iter().map(size).sum()
    }
}

impl Visitor for Counter<'_> {
    fn matrix(&mut self, parts: &[Part]) -> Result<Option<Slice<Bf16>>, LoadError> {
        self.sizes.add::<Bf16>(self.count(parts));
        Ok(None)
    }

    fn projection(&mut self, parts: &[Part]) -> Result<Option<Weight>, LoadError> {
        let Kept::Codes(layout) = kept(self.spec, self.weights, parts)? else {
            return Ok(self.matrix(parts)?.map(Weight::Bf16));
        };
        let outputs = parts.iter().map(|part| layout::shape(self.spec, part.slot).0).sum();
        self.sizes.add::<u8>(layout.codes_len(outputs));
        self.sizes.add::<u16>(layout.scales_len(outputs));
        self.sizes.add::<f32>(layout.factors_len(outputs));
        Ok(None)
    }

    fn vector(&mut self, parts: &[Part]) -> Result<Option<Slice<f32>>, LoadError> {
        self.sizes.add::<f32>(self.count(parts));
        Ok(None)
    }
}

/// How a projection is kept on the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kept {
    /// Widened when it is loaded.
    Bf16,
    /// As the codes of its file.
    Codes(Layout),
}

/// As codes, where the kernels know them. What lies one below the other is one matrix to a kernel, so if parts differ in
/// their codes or groups, or end among outputs that lie together, all are widened. Of files that mix types that is some
/// layers' queries, keys and values, a tenth of all: too few for launches of their own in every step.
///
/// # Errors
/// A tensor is missing or of the wrong shape.
pub(super) fn kept(spec: &DecoderSpec, weights: &dyn Weights, parts: &[Part]) -> Result<Kept, LoadError> {
    let mut found = None;
    for (index, part) in parts.iter().enumerate() {
        let rows = layout::rows(spec, weights, *part)?;
        let (outputs, inputs) = rows.shape();
        let Some(layout) = rows.stored().and_then(|stored| device_layout(stored, inputs)) else {
            return Ok(Kept::Bf16);
        };
        let ends_among_others = index + 1 < parts.len() && !outputs.is_multiple_of(TOGETHER);
        if ends_among_others || found.is_some_and(|found| found != layout) {
            return Ok(Kept::Bf16);
        }
        found = Some(layout);
    }
    Ok(found.map_or(Kept::Bf16, Kept::Codes))
}

/// What the kernels call the codes of a file; `None` where they do not know them.
fn device_layout(stored: Stored, inputs: usize) -> Option<Layout> {
    let kind = match (stored.code, stored.minima) {
        (Code::Int8, false) => Kind::Int8,
        (Code::Uint8, _) => Kind::Uint8,
        (Code::E4m3, false) => Kind::E4m3,
        (Code::Int4, false) => Kind::Int4,
        (Code::Uint4, _) => Kind::Uint4,
        (Code::E2m1, false) => Kind::E2m1,
        (Code::Int8 | Code::E4m3 | Code::Int4 | Code::E2m1, true) => return None,
    };
    let layout = Layout { kind, group: stored.group.min(inputs), inputs };
    layout.is_known().then_some(layout)
}

impl Model {
    /// Bytes that the weights of `spec` take.
    pub(super) fn bytes(spec: &DecoderSpec, weights: &dyn Weights) -> Result<usize, LoadError> {
        let mut counter = Counter { spec, weights, sizes: Sizes::default() };
        visit(spec, &mut counter)?;
        Ok(counter.sizes.bytes())
    }

    /// Reads all weights; the current rayon pool reads and converts. Before that `reserve` takes what else is needed.
    ///
    /// # Errors
    /// A tensor is missing, of the wrong shape, or unreadable; the device has not the memory; or those of `reserve`.
    pub(super) fn load<T>(
        spec: &DecoderSpec,
        weights: &dyn Weights,
        device: &mut (dyn Device + 'static),
        reserve: impl FnOnce(&Model, &mut (dyn Device + 'static)) -> Result<T, LoadError>,
    ) -> Result<(Self, T), LoadError> {
        let mut counter = Counter { spec, weights, sizes: Sizes::default() };
        visit(spec, &mut counter)?;
        let arena = Arena::reserve(device, &counter.sizes)
            .map_err(|fault| Error::from(fault).refusal(weights.file(), "its weights: "))?;
        let mut loader = Loader::new(spec, weights, device, arena);
        let mut model = visit(spec, &mut loader)?
            .ok_or_else(|| LoadError::new(weights.file(), "its weights were counted, not read".to_owned()))?;
        model.bytes = counter.sizes.bytes();
        let reserved = reserve(&model, loader.device())?;
        loader.finish()?;
        Ok((model, reserved))
    }
}

/// Goes through every tensor; `None` where the visitor only counts.
fn visit(spec: &DecoderSpec, visitor: &mut dyn Visitor) -> Result<Option<Model>, LoadError> {
    let embedding = visitor.matrix(&[Part::global(Slot::Embedding)])?;
    let mut layers = Vec::with_capacity(spec.layers.len());
    for layer in 0..spec.layers.len() {
        layers.push(visit_layer(spec, layer, visitor)?);
    }
    let norm = visitor.vector(&[Part::global(Slot::FinalNorm)])?;
    // Rows of the embedding are gathered as bf16; a head that is the same matrix needs no other.
    let head = match spec.tied {
        true => embedding.map(Weight::Bf16),
        false => visitor.projection(&[Part::global(Slot::Head)])?,
    };
    let (Some(embedding), Some(head), Some(layers)) = (embedding, head, layers.into_iter().collect()) else {
        return Ok(None);
    };
    let head = Linear { weight: head, outputs: spec.vocab, inputs: spec.hidden, bias: None, of_all_rows: false };
    Ok(Some(Model { embedding, layers, norm, head, bytes: 0 }))
}

fn visit_layer(spec: &DecoderSpec, layer: usize, visitor: &mut dyn Visitor) -> Result<Option<Layer>, LoadError> {
    let (attention, placement) = (&spec.attention, spec.norm.placement);
    let (before, after) = (placement != Placement::After, placement != Placement::Before);
    let part = |slot: &Slot| Part { slot: *slot, layer, expert: 0 };
    let mut vector = |slots: &[Slot], wanted: bool| match wanted {
        true => visitor.vector(&slots.iter().map(part).collect::<Vec<_>>()),
        false => Ok(None),
    };
    let qk_norm = attention.qk_norm != QkNorm::None;
    let attention_before = vector(&[Slot::AttentionNormBefore], before)?;
    let attention_after = vector(&[Slot::AttentionNormAfter], after)?;
    let mlp_before = vector(&[Slot::MlpNormBefore], before)?;
    let mlp_after = vector(&[Slot::MlpNormAfter], after)?;
    let query_norm = vector(&[Slot::QueryNorm], qk_norm)?;
    let key_norm = vector(&[Slot::KeyNorm], qk_norm)?;
    let sinks = vector(&[Slot::Sinks], attention.sinks)?;
    let mut place = Place { spec, layer, experts: 1, visitor };
    let qkv_biases = [Slot::QueryBias, Slot::KeyBias, Slot::ValueBias];
    let qkv = place.linear(&[Slot::Query, Slot::Key, Slot::Value], &qkv_biases, attention.qkv_bias)?;
    let output = place.linear(&[Slot::Output], &[Slot::OutputBias], attention.out_bias)?;
    let feed_forward = place.feed_forward()?;
    let (Some(qkv), Some(output), Some(feed_forward)) = (qkv, output, feed_forward) else { return Ok(None) };
    Ok(Some(Layer {
        attention_before,
        attention_after,
        mlp_before,
        mlp_after,
        qkv,
        output,
        query_norm,
        key_norm,
        sinks,
        feed_forward,
    }))
}

/// Where the visitor is: in a layer, at a projection that each of so many experts has.
struct Place<'a> {
    spec: &'a DecoderSpec,
    layer: usize,
    experts: usize,
    visitor: &'a mut dyn Visitor,
}

impl Place<'_> {
    fn feed_forward(&mut self) -> Result<Option<FeedForward>, LoadError> {
        let Some(mixture) = self.spec.mixture.filter(|_| self.spec.layers[self.layer].mixture) else {
            let biased = self.spec.mlp_bias;
            let gate_up = self.linear(&[Slot::Gate, Slot::Up], &[Slot::GateBias, Slot::UpBias], biased)?;
            let down = self.linear(&[Slot::Down], &[Slot::DownBias], biased)?;
            return Ok(gate_up.zip(down).map(|(gate_up, down)| FeedForward::Dense { gate_up, down }));
        };
        let router = self.linear(&[Slot::Router], &[Slot::RouterBias], mixture.bias)?;
        self.experts = mixture.experts;
        let biases = [Slot::ExpertGateBias, Slot::ExpertUpBias];
        let gate_up = self.linear(&[Slot::ExpertGate, Slot::ExpertUp], &biases, mixture.bias)?;
        let down = self.linear(&[Slot::ExpertDown], &[Slot::ExpertDownBias], mixture.bias)?;
        let (Some(router), Some(gate_up), Some(down)) = (router, gate_up, down) else { return Ok(None) };
        Ok(Some(FeedForward::Mixture { router, gate_up, down }))
    }

    /// One below the other: the slots, of each expert.
    fn linear(&mut self, slots: &[Slot], biases: &[Slot], biased: bool) -> Result<Option<Linear>, LoadError> {
        let Place { spec, layer, experts, .. } = *self;
        let parts = |slots: &[Slot]| -> Vec<Part> {
            let of = |expert| slots.iter().map(move |slot| Part { slot: *slot, layer, expert });
            (0..experts).flat_map(of).collect()
        };
        let outputs = slots.iter().map(|slot| layout::shape(spec, *slot).0).sum();
        let inputs = layout::shape(spec, slots[0]).1.unwrap_or(1);
        let weight = self.visitor.projection(&parts(slots))?;
        let bias = if biased { self.visitor.vector(&parts(biases))? } else { None };
        let of_all_rows = slots != [Slot::Router];
        Ok(weight.map(|weight| Linear { weight, outputs, inputs, bias, of_all_rows }))
    }
}
