//! One forward pass as launches. All families take this way; what tells them apart is in the spec. The launches of a
//! step follow from its [`Shape`] alone, so those of equal shapes can be captured once and run again.
//!
//! ```text
//! x [rows, hidden] f32 -> norm -> q, k, v -> norm, rotation, cache -> attention -> output -> + x
//!                      -> norm -> gate, up -> activation -> down -> + x          (for each layer)
//!                         or norm -> router -> the same of each expert for the rows that chose it -> sum -> + x
//! x [sampled] -> norm -> head -> logits
//! ```
//! What a block gives to the residual stream is added by the kernel of the next norm. Steps of a few rows have a way of
//! their own: short.rs.

use super::memory::{Buffers, Inputs, MIXTURE_ROWS};
use super::weights::{FeedForward, Layer, Linear, Model, Weight};
use crate::llm::spec::{Activation, DecoderSpec, Mixture, QkNorm, Rotation, Routing};
use kernels::cuda::attention::{self, Cache, Rule};
use kernels::cuda::elementwise::{self, AddNorm, Delta, Embed, Gate, Gated, Norm};
use kernels::cuda::experts::{self, Choices, Choose, Combine};
use kernels::cuda::gemm::{self, Output, Product};
use kernels::cuda::rotary::{self, HeadNorms, RotaryWrite, Turn};
use kernels::cuda::rounded::{self, Rows};
use kernels::cuda::stored::{self, OfExperts};
use kernels::cuda::{Bf16, Launch, Misuse, Slice, Units};

/// What the launches of a step depend on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shape {
    /// Rows, those of padding included.
    pub(super) rows: usize,
    /// Leading rows that decode.
    pub(super) decodes: usize,
    /// Tiles of all other rows.
    pub(super) tiles: usize,
    /// Rows whose logits are wanted.
    pub(super) sampled: usize,
}

/// A step as the device knows it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Batch<'a> {
    pub(super) shape: Shape,
    pub(super) inputs: &'a Inputs,
}

/// A rotation on the device.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rotor {
    pub(super) frequencies: Slice<f32>,
    pub(super) factor: f32,
    pub(super) interleaved: bool,
}

/// A model with its memory.
#[derive(Debug)]
pub(super) struct Forward {
    pub(super) spec: DecoderSpec,
    pub(super) model: Model,
    pub(super) buffers: Buffers,
    /// Global and local.
    pub(super) rotors: [Option<Rotor>; 2],
    /// Multiprocessors of the device.
    pub(super) processors: u32,
    /// What multiplies matrices on it.
    pub(super) units: Units,
    pub(super) deterministic: bool,
    /// Most rows of a step that goes the short way.
    pub(super) short_rows: usize,
}

/// Where launches go.
pub(super) type Sink<'a> = dyn FnMut(Launch) + 'a;

impl Forward {
    /// The launches of a step, up to the logits of the rows that are sampled.
    pub(super) fn step(&self, shape: Shape, inputs: &Inputs, sink: &mut Sink<'_>) -> Result<(), Misuse> {
        sink(self.embed(shape.rows, inputs)?);
        if self.is_short(shape.rows) {
            return self.short_step(Batch { shape, inputs }, sink);
        }
        let mut delta = None;
        for (index, layer) in self.model.layers.iter().enumerate() {
            let normed = self.rows_for(&layer.qkv, self.buffers.normed, shape.rows)?;
            sink(self.norm(shape.rows, delta, layer.attention_before, Some(normed))?);
            self.attention(index, layer, (Batch { shape, inputs }, normed), sink)?;
            let added = self.delta(layer.output.bias, layer.attention_after);
            let normed = match &layer.feed_forward {
                FeedForward::Dense { gate_up, .. } => self.rows_for(gate_up, self.buffers.normed, shape.rows)?,
                FeedForward::Mixture { .. } => self.buffers.normed.into(),
            };
            sink(self.norm(shape.rows, Some(added), layer.mlp_before, Some(normed))?);
            let bias = self.feed_forward(layer, (Batch { shape, inputs }, normed), sink)?;
            delta = Some(self.delta(bias, layer.mlp_after));
        }
        sink(self.norm(shape.rows, delta, None, None)?);
        if shape.sampled > 0 {
            self.logits(shape.sampled, inputs.sampled, sink)?;
        }
        Ok(())
    }

    fn embed(&self, rows: usize, inputs: &Inputs) -> Result<Launch, Misuse> {
        let (spec, buffers) = (&self.spec, &self.buffers);
        elementwise::embed(&Embed {
            table: self.model.embedding,
            tokens: inputs.tokens,
            slots: inputs.slots,
            last: buffers.last,
            x: buffers.x,
            rows,
            hidden: spec.hidden,
            vocab: spec.vocab,
            scale: spec.scales.embedding as f32,
        })
    }

    /// The logits of some rows of the residual stream, after [`Forward::step`].
    pub(super) fn logits(&self, count: usize, rows: Slice<i32>, sink: &mut Sink<'_>) -> Result<(), Misuse> {
        let (spec, buffers) = (&self.spec, &self.buffers);
        sink(elementwise::add_norm(&AddNorm {
            x: buffers.x,
            delta: None,
            norm: self.weighted(self.model.norm),
            out: Some(buffers.normed.into()),
            row_index: Some(rows),
            rows: count,
            hidden: spec.hidden,
        })?);
        self.product(&self.model.head, (buffers.normed.into(), Output::F32(buffers.logits)), count, sink)?;
        self.shape_logits(count, sink)
    }

    pub(super) fn shape_logits(&self, count: usize, sink: &mut Sink<'_>) -> Result<(), Misuse> {
        let (spec, scales) = (&self.spec, self.spec.scales);
        if scales.logits != 1.0 || scales.logit_softcap.is_some() {
            sink(elementwise::shape_logits(&elementwise::ShapeLogits {
                logits: self.buffers.logits,
                count: count * spec.vocab,
                scale: scales.logits as f32,
                cap: scales.logit_softcap.map_or(0.0, |cap| cap as f32),
            })?);
        }
        Ok(())
    }

    pub(super) fn weighted(&self, weight: Option<Slice<f32>>) -> Norm {
        let norm = &self.spec.norm;
        let offset = if norm.plus_one { 1.0 } else { 0.0 };
        Norm { weight, bias: None, centred: false, eps: norm.eps as f32, offset }
    }

    /// What a projection back to the residual stream has left in its buffer.
    fn delta(&self, bias: Option<Slice<f32>>, weight: Option<Slice<f32>>) -> Delta {
        Delta { numbers: self.buffers.added, bias, weight, scale: self.spec.scales.residual as f32 }
    }

    /// The residual addition of the block before, and the norm of the next where there is one.
    fn norm(
        &self,
        rows: usize,
        delta: Option<Delta>,
        weight: Option<Slice<f32>>,
        out: Option<Rows>,
    ) -> Result<Launch, Misuse> {
        elementwise::add_norm(&AddNorm {
            x: self.buffers.x,
            delta,
            norm: self.weighted(weight),
            out,
            row_index: None,
            rows,
            hidden: self.spec.hidden,
        })
    }

    fn attention(
        &self,
        index: usize,
        layer: &Layer,
        (batch, normed): (Batch<'_>, Rows),
        sink: &mut Sink<'_>,
    ) -> Result<(), Misuse> {
        let (buffers, rows) = (&self.buffers, batch.shape.rows);
        self.product(&layer.qkv, (normed, Output::F32(buffers.qkv)), rows, sink)?;
        self.mix_positions(index, layer, batch, sink)?;
        self.product(&layer.output, (buffers.mixed.into(), Output::F32(buffers.added)), rows, sink)
    }

    /// From the projection of queries, keys and values to what attention makes of them.
    pub(super) fn mix_positions(
        &self,
        index: usize,
        layer: &Layer,
        batch: Batch<'_>,
        sink: &mut Sink<'_>,
    ) -> Result<(), Misuse> {
        let Batch { shape, inputs } = batch;
        let (spec, buffers) = (&self.spec, &self.buffers);
        let attention = &spec.attention;
        let rotor = match spec.layers[index].rotation {
            Rotation::Global => self.rotors[0],
            Rotation::Local => self.rotors[1],
            Rotation::None => None,
        };
        let norms = layer.query_norm.zip(layer.key_norm).map(|(query, key)| HeadNorms {
            query,
            key,
            full: attention.qk_norm == QkNorm::Full,
            eps: spec.norm.eps as f32,
            offset: if spec.norm.plus_one { 1.0 } else { 0.0 },
        });
        let numbers = buffers.layers[index];
        sink(rotary::rotary_write(&RotaryWrite {
            qkv: buffers.qkv,
            bias: layer.qkv.bias,
            norms,
            turn: rotor.map(|rotor| Turn {
                frequencies: rotor.frequencies,
                factor: rotor.factor,
                interleaved: rotor.interleaved,
            }),
            positions: inputs.positions,
            slots: inputs.slots,
            tables: buffers.tables,
            table_stride: buffers.table_stride,
            queries: buffers.queries,
            cache: numbers,
            rows: shape.rows,
            heads: attention.heads,
            kv_heads: attention.kv_heads,
            head_dim: attention.head_dim,
        })?);
        let cache = Cache {
            numbers,
            tables: buffers.tables,
            table_stride: buffers.table_stride,
            kv_heads: attention.kv_heads,
            head_dim: attention.head_dim,
        };
        let rule = Rule {
            heads: attention.heads,
            scale: attention.scale as f32,
            window: spec.layers[index].window,
            soft_cap: attention.softcap.map(|cap| cap as f32),
            sinks: layer.sinks,
        };
        self.attend(&cache, &rule, batch, sink)
    }

    fn attend(&self, cache: &Cache, rule: &Rule, batch: Batch<'_>, sink: &mut Sink<'_>) -> Result<(), Misuse> {
        let Batch { shape, inputs } = batch;
        let buffers = &self.buffers;
        if shape.decodes > 0 {
            sink(attention::decode(&attention::Decode {
                out: buffers.mixed,
                queries: buffers.queries,
                cache: *cache,
                rule: *rule,
                rows: shape.decodes,
                slots: inputs.slots,
                positions: inputs.positions,
                work: inputs.work,
                work_len: inputs.work_len,
                partials: buffers.partials,
                counters: buffers.attention_counters,
                processors: self.processors,
            })?);
        }
        if shape.tiles > 0 {
            let job = attention::Prompt {
                out: buffers.mixed,
                queries: buffers.queries,
                cache: *cache,
                rule: *rule,
                rows: shape.rows,
                tiles: inputs.tiles,
            };
            sink(attention::prompt_on(&job, self.units)?);
        }
        Ok(())
    }

    /// Returns the bias that is still to be added.
    fn feed_forward(
        &self,
        layer: &Layer,
        (batch, normed): (Batch<'_>, Rows),
        sink: &mut Sink<'_>,
    ) -> Result<Option<Slice<f32>>, Misuse> {
        let (buffers, rows) = (&self.buffers, batch.shape.rows);
        match (&layer.feed_forward, &self.spec.mixture) {
            (FeedForward::Dense { gate_up, down }, _) => {
                self.product(gate_up, (normed, Output::Bf16(buffers.gate_up)), rows, sink)?;
                let activated = self.rows_for(down, buffers.activated, rows)?;
                sink(self.activation(rows, gate_up.outputs / 2, gate_up.bias, activated)?);
                self.product(down, (activated, Output::F32(buffers.added)), rows, sink)?;
                Ok(down.bias)
            }
            (FeedForward::Mixture { router, gate_up, down }, Some(mixture)) => {
                self.mix(mixture, [router, gate_up, down], batch, sink)?;
                Ok(None)
            }
            (FeedForward::Mixture { .. }, None) => Err(Misuse("experts of no mixture".into())),
        }
    }

    /// Each row through the experts that its router chooses, as many rows at a time as there is room for. With
    /// `deterministic`, as few as keep to the kernel of few rows.
    fn mix(
        &self,
        mixture: &Mixture,
        [router, gate_up, down]: [&Linear; 3],
        batch: Batch<'_>,
        sink: &mut Sink<'_>,
    ) -> Result<(), Misuse> {
        let (buffers, rows, hidden) = (&self.buffers, batch.shape.rows, self.spec.hidden);
        let of = &buffers.mixture;
        let y = Output::F32(of.logits);
        self.products(router, router.bias, (buffers.normed.into(), y), rows)?.into_iter().for_each(&mut *sink);
        let most = if self.deterministic { gemm::SKINNY_ROWS } else { MIXTURE_ROWS };
        for first in (0..rows).step_by(most) {
            let some = first..(first + most).min(rows);
            let choices = Choices {
                chosen: of.chosen,
                shares: of.shares,
                list: of.list,
                offsets: of.offsets,
                rows: some.len(),
                top_k: mixture.top_k,
                experts: mixture.experts,
            };
            let choose = experts::choose(&Choose {
                logits: of.logits.part(some.start * mixture.experts..some.end * mixture.experts)?,
                positions: batch.inputs.positions.part(some.clone())?,
                choices,
                of_chosen: mixture.routing == Routing::SoftmaxOfChosen,
            })?;
            choose.into_iter().for_each(&mut *sink);
            let in_rows = some.start * hidden..some.end * hidden;
            let (x, y) = (buffers.normed.part(in_rows.clone())?, Output::Bf16(buffers.gate_up));
            sink(self.of_experts(gate_up, choices, (x, y), false)?);
            sink(self.activation(choices.pairs(), mixture.intermediate, None, buffers.activated.into())?);
            sink(self.of_experts(down, choices, (buffers.activated, Output::F32(of.added)), true)?);
            sink(experts::combine(&Combine { added: of.added, choices, out: buffers.added.part(in_rows)?, hidden })?);
        }
        Ok(())
    }

    /// A projection of the chosen experts, with its bias. `of_pairs`: has each pair a row of `x` of its own?
    fn of_experts(
        &self,
        linear: &Linear,
        choices: Choices,
        (x, y): (Slice<Bf16>, Output),
        of_pairs: bool,
    ) -> Result<Launch, Misuse> {
        let (bias, workspace) = (linear.bias, self.buffers.workspace);
        let (outputs, inputs) = (linear.outputs, linear.inputs);
        match linear.weight {
            Weight::Bf16(weight) => experts::product(&experts::Product {
                x,
                of_pairs,
                weight,
                bias,
                y,
                workspace,
                choices,
                outputs,
                inputs,
            }),
            Weight::Codes(matrix) => {
                stored::of_experts(&OfExperts { x, of_pairs, matrix, bias, y, workspace, choices })
            }
        }
    }

    fn activation(&self, rows: usize, width: usize, bias: Option<Slice<f32>>, out: Rows) -> Result<Launch, Misuse> {
        elementwise::gated(&Gated { input: self.buffers.gate_up, bias, out, gate: self.gate(), rows, width })
    }

    pub(super) fn gate(&self) -> Gate {
        match self.spec.activation {
            Activation::Silu => Gate::Silu,
            Activation::Gelu => Gate::Gelu,
            Activation::GeluTanh => Gate::GeluTanh,
            Activation::ClampedSwiglu { limit } => Gate::ClampedSwiglu { limit: limit as f32 },
        }
    }

    /// A projection without its bias, which the next kernel adds.
    fn product(&self, linear: &Linear, (x, y): (Rows, Output), rows: usize, sink: &mut Sink<'_>) -> Result<(), Misuse> {
        self.products(linear, None, (x, y), rows)?.into_iter().for_each(sink);
        Ok(())
    }

    fn products(
        &self,
        linear: &Linear,
        bias: Option<Slice<f32>>,
        (x, y): (Rows, Output),
        rows: usize,
    ) -> Result<Vec<Launch>, Misuse> {
        let (workspace, deterministic) = (self.buffers.workspace, self.deterministic);
        let (outputs, inputs) = (linear.outputs, linear.inputs);
        match linear.weight {
            Weight::Bf16(weight) => {
                let x = x.bf16()?;
                let job = Product { x, weight, bias, y, workspace, rows, outputs, inputs, deterministic };
                gemm::product_on(&job, self.units)
            }
            Weight::Codes(matrix) => {
                let wide = self.room_for(linear);
                let job = stored::Product { x, matrix, bias, y, workspace, wide, rows, deterministic };
                stored::product_on(&job, self.units)
            }
        }
    }

    /// Room for weights, or rows, in the form that the units want.
    fn room_for(&self, linear: &Linear) -> Option<Slice<Bf16>> {
        Some(self.buffers.wide).filter(|wide| linear.of_all_rows && !wide.is_empty())
    }

    /// Where rows go that a projection is to take: to their buffer, or, where it wants codes, where these stand.
    fn rows_for(&self, linear: &Linear, buffer: Slice<Bf16>, rows: usize) -> Result<Rows, Misuse> {
        let Weight::Codes(matrix) = linear.weight else { return Ok(buffer.into()) };
        let (room, deterministic) = (self.room_for(linear), self.deterministic);
        let codes = rounded::codes_of_rows(&matrix, rows, room.filter(|_| !deterministic), self.units)?;
        Ok(codes.map_or(buffer.into(), Rows::Rounded))
    }
}
