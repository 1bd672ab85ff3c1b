//! The device memory of an executor besides its weights: one piece, whose size follows from the model and from what is
//! served, so that nothing is asked for while it serves.

use super::arena::{Arena, Counted, Pieces};
use super::sampling;
use super::step::Rows;
use super::weights::{Layer, Linear, Model, Weight};
use crate::error::LoadError;
use crate::llm::blocks;
use crate::llm::sampling::LOGIT_BIAS_MAX;
use crate::llm::spec::DecoderSpec;
use kernels::cuda::attention::{self, PAGE};
use kernels::cuda::experts;
use kernels::cuda::gemm::{self, Workspace};
use kernels::cuda::sampler::{CHOICE_WORDS, EDIT_WORDS, ROW_WORDS, scratch_bytes};
use kernels::cuda::stored;
use kernels::cuda::{Bf16, CacheNumbers, Device, E4m3, Fault, Misuse, Number, Slice};
use std::path::Path;

/// Positions of a block of the cache.
pub(super) const BLOCK: usize = blocks::BLOCK as usize;
const _: () = assert!(BLOCK == PAGE, "the kernels know blocks of other lengths");

/// Positions of each sequence that there is room to decode in parts, even where the cache holds fewer.
const SHARED_CONTEXT: usize = 8192;

/// Most rows that go through a mixture of experts together, since each of them is there as often as it has experts:
/// enough for each expert's weights to be worth reading.
pub(super) const MIXTURE_ROWS: usize = 4096;

/// How keys and values are stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CacheType {
    /// In sixteen bits.
    #[default]
    Bf16,
    /// In eight, e4m3: what is larger than 448 times its scale is cut to that.
    Fp8,
}

impl CacheType {
    /// Bytes of a number.
    pub fn bytes(self) -> usize {
        match self {
            CacheType::Bf16 => Bf16::BYTES,
            CacheType::Fp8 => E4m3::BYTES,
        }
    }

    /// These bytes as keys and values.
    fn numbers(self, keys: Slice<u8>, values: Slice<u8>) -> Result<CacheNumbers, Misuse> {
        Ok(match self {
            CacheType::Bf16 => CacheNumbers::Bf16 { keys: keys.cast()?, values: values.cast()? },
            CacheType::Fp8 => {
                let (key_scale, value_scale) = (1.0, 1.0);
                CacheNumbers::E4m3 { keys: keys.cast()?, values: values.cast()?, key_scale, value_scale }
            }
        })
    }
}

/// How much an executor serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Extent {
    /// Blocks of keys and values.
    pub(super) blocks: usize,
    /// The longest sequence.
    pub(super) context: usize,
    /// Sequences at a time.
    pub(super) slots: usize,
    /// Rows of a step.
    pub(super) rows: usize,
    /// How keys and values are stored.
    pub(super) cache: CacheType,
}

impl Extent {
    /// Blocks of the longest sequence.
    pub(super) fn table_stride(&self) -> usize {
        self.context.div_ceil(BLOCK)
    }

    /// Units of decode attention that a step may have.
    pub(super) fn units(&self) -> usize {
        // Blocks that sequences share are read once for each, so a step's contexts may be longer than the cache. What is
        // more than this goes to the kernel of prompts, which needs no room for parts.
        let positions = (self.blocks * BLOCK).max(self.slots * self.context.min(SHARED_CONTEXT));
        attention::most_work(self.slots, positions)
    }

    /// Numbers of the inputs of a step: see [`Layout`].
    fn inputs(&self) -> usize {
        let updates = 3 * self.slots * self.table_stride();
        // A sequence's tokens are put there, too, when they are counted.
        (Layout::of(self.rows, self.slots, self.units(), self.rows).end + updates).max(self.context)
    }
}

/// Everything but weights and cache that kernels read or write.
#[derive(Clone, Debug)]
pub(super) struct Buffers {
    /// Keys and values of each layer.
    pub(super) layers: Vec<CacheNumbers>,
    /// `[slots + 1, table_stride]`: the blocks of each slot; the last is of padding.
    pub(super) tables: Slice<i32>,
    pub(super) table_stride: usize,
    /// `[slots + 1]`: the last token of each slot.
    pub(super) last: Slice<i32>,
    /// The residual stream, `[rows, hidden]`.
    pub(super) x: Slice<f32>,
    /// What a projection adds to it.
    pub(super) added: Slice<f32>,
    /// `[rows, hidden]`
    pub(super) normed: Slice<Bf16>,
    pub(super) qkv: Slice<f32>,
    pub(super) queries: Slice<Bf16>,
    pub(super) mixed: Slice<Bf16>,
    pub(super) gate_up: Slice<Bf16>,
    pub(super) activated: Slice<Bf16>,
    pub(super) mixture: Mixture,
    /// `[slots, vocab]`
    pub(super) logits: Slice<f32>,
    pub(super) partials: Slice<f32>,
    pub(super) attention_counters: Slice<u32>,
    pub(super) workspace: Workspace,
    /// Room for the largest matrix of codes that a layer has, as bf16; none where no step has the rows for it.
    pub(super) wide: Slice<Bf16>,
    /// Arrays of a step.
    pub(super) inputs: Slice<i32>,
    /// Of the sampler: what the host sends, what it gets, and scratch.
    pub(super) sampler: sampling::Memory,
    /// `[pairs]`, global and local.
    pub(super) frequencies: [Slice<f32>; 2],
    /// Bytes of all.
    pub(super) bytes: usize,
}

/// Of mixtures of experts; empty where a model has none.
#[derive(Clone, Copy, Debug)]
pub(super) struct Mixture {
    /// Of the router: `[rows, experts]`
    pub(super) logits: Slice<f32>,
    /// Of pairs of a row and one of its experts, as `shares` and `list`.
    pub(super) chosen: Slice<i32>,
    pub(super) shares: Slice<f32>,
    pub(super) list: Slice<i32>,
    /// `[experts + 1]`
    pub(super) offsets: Slice<i32>,
    /// `[pairs, hidden]`
    pub(super) added: Slice<f32>,
}

/// Numbers of every buffer.
struct Lengths {
    cache: usize,
    tables: usize,
    stream: usize,
    qkv: usize,
    queries: usize,
    activated: usize,
    router: usize,
    mixed_pairs: usize,
    offsets: usize,
    logits: usize,
    partials: usize,
    attention_counters: usize,
    sums: usize,
    counters: usize,
    wide: usize,
    pairs: [usize; 2],
}

impl Lengths {
    fn of(spec: &DecoderSpec, model: &Model, extent: &Extent) -> Self {
        let (attention, rows) = (&spec.attention, extent.rows);
        let linears: Vec<Linear> = model.layers.iter().flat_map(Layer::linears).chain([model.head]).collect();
        let of_experts: Vec<Linear> = model.layers.iter().flat_map(Layer::experts).collect();
        let mixture = spec.mixture.filter(|_| !of_experts.is_empty());
        let (top_k, experts, width) = mixture.map_or((0, 0, 0), |of| (of.top_k, of.experts, of.intermediate));
        let most = |len: fn(usize, usize) -> usize, of_expert: fn(usize, usize, usize) -> usize| {
            let all = linears.iter().map(|linear| len(linear.outputs, linear.inputs));
            let experts = of_experts.iter().map(|linear| of_expert(linear.outputs, linear.inputs, top_k));
            all.chain(experts).max().unwrap_or(0).max(1)
        };
        let dense = if spec.layers.iter().all(|layer| layer.mixture) { 0 } else { rows * spec.intermediate };
        let pairs = rows.min(MIXTURE_ROWS) * top_k;
        let wide = |linear: Linear| match linear.weight {
            Weight::Codes(matrix) if linear.of_all_rows => stored::wide_len(&matrix.layout, matrix.outputs, rows),
            _ => 0,
        };
        let wide = model.layers.iter().flat_map(Layer::linears).map(wide).max().unwrap_or(0);
        let units = extent.units();
        Lengths {
            cache: extent.blocks * attention.kv_width() * BLOCK,
            tables: (extent.slots + 1) * extent.table_stride(),
            stream: rows * spec.hidden,
            qkv: rows * (attention.query_width() + 2 * attention.kv_width()),
            queries: rows * attention.query_width(),
            activated: dense.max(pairs * width),
            router: rows * experts,
            mixed_pairs: pairs,
            offsets: if experts > 0 { experts + 1 } else { 0 },
            logits: extent.slots * spec.vocab,
            partials: attention::partials_len(units, attention.heads, attention.head_dim),
            attention_counters: attention::counters_len(units, attention.kv_heads),
            sums: most(gemm::sums_len, experts::sums_len),
            counters: most(gemm::counters_len, experts::counters_len),
            wide,
            pairs: [spec.rope.dims / 2, spec.rope_local.as_ref().map_or(0, |rope| rope.dims / 2)].map(|n| n.max(1)),
        }
    }
}

/// Numbers of every buffer of the sampler.
struct SamplerLengths {
    rows: usize,
    choices: usize,
    masks: usize,
    edits: usize,
    saved: usize,
    scratch: usize,
    counts: usize,
}

impl SamplerLengths {
    fn of(spec: &DecoderSpec, extent: &Extent) -> Self {
        let (slots, vocab) = (extent.slots, spec.vocab);
        SamplerLengths {
            rows: slots * ROW_WORDS,
            choices: slots * CHOICE_WORDS,
            masks: slots * vocab.div_ceil(32),
            edits: slots * LOGIT_BIAS_MAX * EDIT_WORDS,
            saved: slots * LOGIT_BIAS_MAX,
            scratch: scratch_bytes(slots, vocab),
            // An even number, since two are added to at once.
            counts: (slots * vocab).next_multiple_of(2),
        }
    }
}

impl Buffers {
    /// Keys and values of eight bits are times these, layer by layer.
    pub(super) fn calibrate(&mut self, scales: &[[f32; 2]]) {
        for (layer, scales) in self.layers.iter_mut().zip(scales) {
            if let CacheNumbers::E4m3 { key_scale, value_scale, .. } = layer {
                [*key_scale, *value_scale] = *scales;
            }
        }
    }

    /// Reserves everything; contents mean nothing yet but for what [`Buffers::zero`] names. `model` is on the device.
    pub(super) fn reserve(
        spec: &DecoderSpec,
        model: &Model,
        extent: &Extent,
        device: &mut (dyn Device + 'static),
    ) -> Result<Self, Error> {
        let mut counted = Counted::new(model.embedding.cast()?)?;
        Self::of(spec, model, extent, &mut counted)?;
        let mut arena = Arena::reserve(device, &counted.sizes)?;
        let buffers = Self::of(spec, model, extent, &mut arena)?;
        Ok(Buffers { bytes: counted.sizes.bytes(), ..buffers })
    }

    /// Everything, in the order in which it lies there.
    fn of(spec: &DecoderSpec, model: &Model, extent: &Extent, from: &mut impl Pieces) -> Result<Self, Misuse> {
        let (len, sampler) = (Lengths::of(spec, model, extent), SamplerLengths::of(spec, extent));
        let (cache, pairs) = (len.cache * extent.cache.bytes(), len.mixed_pairs);
        let layers = spec.layers.iter().map(|_| extent.cache.numbers(from.take(cache)?, from.take(cache)?));
        Ok(Buffers {
            layers: layers.collect::<Result<_, Misuse>>()?,
            tables: from.take(len.tables)?,
            table_stride: extent.table_stride(),
            last: from.take(extent.slots + 1)?,
            attention_counters: from.take(len.attention_counters)?,
            workspace: Workspace { counters: from.take(len.counters)?, sums: from.take(len.sums)? },
            wide: from.take(len.wide)?,
            inputs: from.take(extent.inputs())?,
            x: from.take(len.stream)?,
            added: from.take(len.stream)?,
            normed: from.take(len.stream)?,
            qkv: from.take(len.qkv)?,
            queries: from.take(len.queries)?,
            mixed: from.take(len.queries)?,
            gate_up: from.take(2 * len.activated)?,
            activated: from.take(len.activated)?,
            mixture: Mixture {
                logits: from.take(len.router)?,
                chosen: from.take(pairs)?,
                shares: from.take(pairs)?,
                list: from.take(pairs)?,
                offsets: from.take(len.offsets)?,
                added: from.take(pairs * spec.hidden)?,
            },
            logits: from.take(len.logits)?,
            partials: from.take(len.partials)?,
            frequencies: [from.take(len.pairs[0])?, from.take(len.pairs[1])?],
            sampler: sampling::Memory {
                rows: from.take(sampler.rows)?,
                choices: from.take(sampler.choices)?,
                masks: from.take(sampler.masks)?,
                edits: from.take(sampler.edits)?,
                saved: from.take(sampler.saved)?,
                scratch: from.take(sampler.scratch)?,
                counts: from.take(sampler.counts)?,
            },
            bytes: 0,
        })
    }

    /// Zeros what must be zero before the first step.
    pub(super) fn zero(&self, device: &mut (dyn Device + 'static)) -> Result<(), Error> {
        for ints in [self.tables, self.last, self.attention_counters.cast()?, self.workspace.counters] {
            device.upload(ints.cast()?, &vec![0; ints.byte_len()])?;
        }
        let scratch = self.sampler.scratch;
        device.upload(scratch, &vec![0; scratch.len()])?;
        Ok(())
    }
}

/// Why memory was not given.
#[derive(Clone, Debug)]
pub(super) enum Error {
    Fault(Fault),
    Misuse(Misuse),
}

impl Error {
    /// A model is not loaded because of it; `what` it is of stands before it.
    pub(super) fn refusal(&self, file: &Path, what: &str) -> LoadError {
        let lost = matches!(self, Error::Fault(fault) if fault.is_lost());
        LoadError::new(file, format!("{what}{self}")).with_lost(lost)
    }
}

impl From<Fault> for Error {
    fn from(fault: Fault) -> Self {
        Error::Fault(fault)
    }
}

impl From<Misuse> for Error {
    fn from(misuse: Misuse) -> Self {
        Error::Misuse(misuse)
    }
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Error::Fault(fault) => fault.fmt(f),
            Error::Misuse(misuse) => misuse.fmt(f),
        }
    }
}

/// Where the arrays of a step lie in its inputs. What grows with the context comes last, so that a short step is a short
/// copy; all else has places that follow from the number of rows, for graphs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Layout {
    rows: usize,
    sampled: usize,
    units: usize,
    tiles: usize,
    pub(super) end: usize,
}

/// Arrays begin at multiples of so many numbers: of 16 bytes.
fn aligned(len: usize) -> usize {
    len.next_multiple_of(4)
}

impl Layout {
    pub(super) fn of(rows: usize, sampled: usize, units: usize, tiles: usize) -> Self {
        let mut layout = Layout { rows, sampled, units, tiles, end: 0 };
        layout.end = layout.tiles_at() + 4 * tiles;
        layout
    }

    fn sampled_at(&self) -> usize {
        3 * aligned(self.rows)
    }

    fn count_at(&self) -> usize {
        self.sampled_at() + aligned(self.sampled)
    }

    fn work_at(&self) -> usize {
        self.count_at() + aligned(1)
    }

    fn tiles_at(&self) -> usize {
        self.work_at() + aligned(2 * self.units)
    }

    /// The arrays as one.
    pub(super) fn pack(&self, rows: &Rows, work: &[i32]) -> Vec<i32> {
        let mut all = vec![0; self.end];
        let mut put = |at: usize, numbers: &[i32]| all[at..at + numbers.len()].copy_from_slice(numbers);
        put(0, &rows.tokens);
        put(aligned(self.rows), &rows.slots);
        put(2 * aligned(self.rows), &rows.positions);
        put(self.sampled_at(), &rows.sampled);
        put(self.count_at(), &[(work.len() / 2) as i32]);
        put(self.work_at(), work);
        put(self.tiles_at(), &rows.tiles);
        all
    }

    /// The arrays on the device. `room` is how many units the list may have in another step of this layout.
    pub(super) fn inputs(&self, all: Slice<i32>, room: usize) -> Result<Inputs, Misuse> {
        let part = |at: usize, len: usize| all.part(at..at + len);
        Ok(Inputs {
            tokens: part(0, self.rows)?,
            slots: part(aligned(self.rows), self.rows)?,
            positions: part(2 * aligned(self.rows), self.rows)?,
            sampled: part(self.sampled_at(), self.sampled)?,
            work_len: part(self.count_at(), 1)?,
            work: part(self.work_at(), 2 * room)?,
            tiles: part(self.tiles_at(), 4 * self.tiles)?,
        })
    }
}

/// The arrays of a step on the device.
#[derive(Clone, Copy, Debug)]
pub(super) struct Inputs {
    pub(super) tokens: Slice<i32>,
    pub(super) slots: Slice<i32>,
    pub(super) positions: Slice<i32>,
    /// Rows whose logits are wanted.
    pub(super) sampled: Slice<i32>,
    /// How many units of decode attention there are.
    pub(super) work_len: Slice<i32>,
    /// Pairs (row, split).
    pub(super) work: Slice<i32>,
    pub(super) tiles: Slice<i32>,
}
