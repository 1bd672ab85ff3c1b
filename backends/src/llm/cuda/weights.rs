//! A decoder's weights in device memory: matrices as bf16, projections of the same input one below the other, vectors
//! as f32.

use super::arena::{Arena, Sizes};
use crate::error::LoadError;
use crate::llm::layout::{self, Part, Rows, Slot};
use crate::llm::spec::{DecoderSpec, Placement, QkNorm};
use crate::llm::weights::{Format, Weights, blocks};
use kernels::cuda::{Bf16, Device, Slice, setup};
use rayon::prelude::*;
use std::fmt::Display;
use std::ops::Range;

/// Bytes of a file that one thread reads at a time.
const PIECE: usize = 4 << 20;

/// A projection, and its bias where it has one.
#[derive(Clone, Copy, Debug)]
pub(super) struct Linear {
    /// `[outputs, inputs]`
    pub(super) weight: Slice<Bf16>,
    pub(super) outputs: usize,
    pub(super) inputs: usize,
    /// `[outputs]`
    pub(super) bias: Option<Slice<f32>>,
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
trait Visitor {
    fn matrix(&mut self, parts: &[Part]) -> Result<Option<Slice<Bf16>>, LoadError>;
    fn vector(&mut self, parts: &[Part]) -> Result<Option<Slice<f32>>, LoadError>;
}

struct Counter<'a> {
    spec: &'a DecoderSpec,
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

    fn vector(&mut self, parts: &[Part]) -> Result<Option<Slice<f32>>, LoadError> {
        self.sizes.add::<f32>(self.count(parts));
        Ok(None)
    }
}

struct Loader<'a> {
    spec: &'a DecoderSpec,
    weights: &'a dyn Weights,
    device: &'a mut dyn Device,
    arena: Arena,
}

impl Visitor for Loader<'_> {
    fn matrix(&mut self, parts: &[Part]) -> Result<Option<Slice<Bf16>>, LoadError> {
        let sizes = parts.iter().map(|part| layout::shape(self.spec, part.slot));
        let total = sizes.map(|(rows, columns)| rows * columns.unwrap_or(1)).sum();
        let all = self.arena.take::<Bf16>(total).map_err(|error| self.refuse(error))?;
        let (mut at, mut sources) = (0, Vec::new());
        for part in parts {
            let (rows, columns) = layout::shape(self.spec, part.slot);
            let len = rows * columns.unwrap_or(1);
            let to = all.part(at..at + len).map_err(|error| self.refuse(error))?;
            if !self.make_up(*part, to)? {
                sources.push((layout::rows(self.spec, self.weights, *part)?, to));
            }
            at += len;
        }
        self.read(&sources)?;
        Ok(Some(all))
    }

    fn vector(&mut self, parts: &[Part]) -> Result<Option<Slice<f32>>, LoadError> {
        let mut numbers = Vec::new();
        for part in parts {
            numbers.extend(layout::load(self.spec, self.weights, *part)?.to_f32());
        }
        let to = self.arena.take::<f32>(numbers.len()).map_err(|error| self.refuse(error))?;
        let bytes = to.cast().map_err(|error| self.refuse(error))?;
        self.device.upload(bytes, bytemuck::cast_slice(&numbers)).map_err(|error| self.refuse(error))?;
        Ok(Some(to))
    }
}

impl Loader<'_> {
    fn refuse(&self, reason: impl Display) -> LoadError {
        LoadError::new(self.weights.file(), reason.to_string())
    }

    /// Made-up numbers are made where they are needed. `false` where they come from files.
    fn make_up(&mut self, part: Part, to: Slice<Bf16>) -> Result<bool, LoadError> {
        let named = layout::place(self.spec, part, Format::F32);
        let made = named.as_ref().and_then(|place| self.weights.made_up(&place.name));
        let (Some(place), Some(made)) = (named, made) else { return Ok(false) };
        if place.step != 1 || place.transposed {
            return Ok(false);
        }
        let sheet = place.sheet * place.shape.iter().product::<usize>() / place.sheets.max(1);
        let numbers = setup::MakeUp {
            key: made.key,
            first: (sheet + place.first * place.columns) as u64,
            mean: made.mean,
            sigma: made.sigma,
        };
        let launch = setup::make_up_bf16(to, &numbers).map_err(|error| self.refuse(error))?;
        self.device.launch(&launch).map_err(|error| self.refuse(error))?;
        Ok(true)
    }

    /// Reads on all threads while what was read before is copied.
    fn read(&mut self, sources: &[(Rows<'_>, Slice<Bf16>)]) -> Result<(), LoadError> {
        let file = self.weights.file();
        let pieces: Vec<(usize, Range<usize>)> = sources
            .iter()
            .enumerate()
            .flat_map(|(index, (source, _))| pieces(source).map(move |rows| (index, rows)))
            .collect();
        let read = |pieces: &[(usize, Range<usize>)]| {
            let piece = |(index, rows): &(usize, Range<usize>)| {
                let (source, to) = &sources[*index];
                let start = rows.start * source.shape().1;
                Ok((*to, start, as_bf16(source.format(), source.read(rows.clone())?)))
            };
            pieces.par_iter().map(piece).collect::<Result<Vec<_>, LoadError>>()
        };
        let device = &mut *self.device;
        let mut copy = |read: Vec<(Slice<Bf16>, usize, Vec<u8>)>| {
            for (to, start, bytes) in read {
                let slice = to.part(start..start + bytes.len() / 2).and_then(|slice| slice.cast());
                let slice = slice.map_err(|error| LoadError::new(file, error.to_string()))?;
                device.upload(slice, &bytes).map_err(|error| LoadError::new(file, error.to_string()))?;
            }
            Ok::<_, LoadError>(())
        };
        let mut ready = Vec::new();
        for window in pieces.chunks(2 * rayon::current_num_threads()) {
            let (copied, next) = rayon::join(|| copy(std::mem::take(&mut ready)), || read(window));
            copied?;
            ready = next?;
        }
        copy(ready)
    }
}

/// Which rows are read at a time.
fn pieces(source: &Rows<'_>) -> impl Iterator<Item = Range<usize>> + use<> {
    let (rows, columns) = source.shape();
    let together = if source.in_order() { (PIECE / (columns * 2).max(1)).max(1) } else { rows.max(1) };
    (0..rows).step_by(together).map(move |first| first..(first + together).min(rows))
}

/// Numbers of any format, rounded to bf16.
fn as_bf16(format: Format, bytes: Vec<u8>) -> Vec<u8> {
    if format == Format::Bf16 {
        return bytes;
    }
    let numbers = blocks::dequantise(format, &bytes);
    numbers.into_iter().flat_map(|number| Bf16::from_f32(number).0.to_le_bytes()).collect()
}

impl Model {
    /// Bytes that the weights of `spec` take.
    pub(super) fn bytes(spec: &DecoderSpec) -> Result<usize, LoadError> {
        let mut counter = Counter { spec, sizes: Sizes::default() };
        visit(spec, &mut counter)?;
        Ok(counter.sizes.bytes())
    }

    /// Reads all weights; the current rayon pool reads and converts.
    ///
    /// # Errors
    /// A tensor is missing, of the wrong shape, or unreadable; the device has not the memory.
    pub(super) fn load(
        spec: &DecoderSpec,
        weights: &dyn Weights,
        device: &mut (dyn Device + 'static),
    ) -> Result<Self, LoadError> {
        let mut counter = Counter { spec, sizes: Sizes::default() };
        visit(spec, &mut counter)?;
        let arena = Arena::reserve(device, &counter.sizes)
            .map_err(|fault| LoadError::new(weights.file(), format!("its weights: {fault}")))?;
        let mut model = visit(spec, &mut Loader { spec, weights, device, arena })?
            .ok_or_else(|| LoadError::new(weights.file(), "its weights were counted, not read".to_owned()))?;
        model.bytes = counter.sizes.bytes();
        Ok(model)
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
    let head = if spec.tied { embedding } else { visitor.matrix(&[Part::global(Slot::Head)])? };
    let (Some(embedding), Some(head), Some(layers)) = (embedding, head, layers.into_iter().collect()) else {
        return Ok(None);
    };
    let head = Linear { weight: head, outputs: spec.vocab, inputs: spec.hidden, bias: None };
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
        let weight = self.visitor.matrix(&parts(slots))?;
        let bias = if biased { self.visitor.vector(&parts(biases))? } else { None };
        Ok(weight.map(|weight| Linear { weight, outputs, inputs, bias }))
    }
}
