//! Grouped-query attention over a contiguous cache: biases, norms of queries and keys, rotation, window, cap, sinks.

use super::ops::{Linear, Norm, Reader, softcap, softmax};
use backends::LoadError;
use backends::llm::layout::{Part, Slot};
use backends::llm::spec::{self, QkNorm, Rotation};
use candle_core::{D, Device, Result, Tensor};

#[derive(Debug)]
pub(super) struct Attention {
    spec: spec::Attention,
    window: Option<usize>,
    rotation: Option<Angles>,
    query: Linear,
    key: Linear,
    value: Linear,
    output: Linear,
    norms: Option<(Norm, Norm)>,
    sinks: Option<Tensor>,
}

/// What queries and keys turn by.
#[derive(Debug)]
struct Angles {
    frequencies: Vec<f32>,
    factor: f32,
    interleaved: bool,
}

impl Attention {
    pub(super) fn new(reader: &Reader<'_>, layer: usize, context: usize) -> std::result::Result<Self, LoadError> {
        let spec = reader.spec;
        let part = |slot| Part { slot, layer, expert: 0 };
        let linear = |weight, bias, biased: bool| reader.linear(part(weight), biased.then_some(part(bias)));
        let biased = spec.attention.qkv_bias;
        let rope = match spec.layers[layer].rotation {
            Rotation::Global => Some(&spec.rope),
            Rotation::Local => spec.rope_local.as_ref(),
            Rotation::None => None,
        };
        let norms = match spec.attention.qk_norm {
            QkNorm::None => None,
            _ => Some((reader.norm(part(Slot::QueryNorm))?, reader.norm(part(Slot::KeyNorm))?)),
        };
        Ok(Attention {
            spec: spec.attention,
            window: spec.layers[layer].window,
            rotation: rope.map(|rope| Angles {
                frequencies: rope.frequencies(context),
                factor: rope.attention_factor(),
                interleaved: rope.interleaved,
            }),
            query: linear(Slot::Query, Slot::QueryBias, biased)?,
            key: linear(Slot::Key, Slot::KeyBias, biased)?,
            value: linear(Slot::Value, Slot::ValueBias, biased)?,
            output: linear(Slot::Output, Slot::OutputBias, spec.attention.out_bias)?,
            norms,
            sinks: spec.attention.sinks.then(|| reader.tensor(part(Slot::Sinks))).transpose()?,
        })
    }

    /// `x` is `[tokens, hidden]`, at positions from `past` on; `kept` holds the keys and values before them.
    pub(super) fn forward(&self, x: &Tensor, past: usize, kept: &mut Option<(Tensor, Tensor)>) -> Result<Tensor> {
        let query = self.heads(self.query.forward(x)?, self.spec.heads, self.norms.as_ref().map(|(q, _)| q))?;
        let key = self.heads(self.key.forward(x)?, self.spec.kv_heads, self.norms.as_ref().map(|(_, k)| k))?;
        let value = self.heads(self.value.forward(x)?, self.spec.kv_heads, None)?;
        let (query, mut key, mut value) = (self.rotate(query, past)?, self.rotate(key, past)?, value);
        if let Some((keys, values)) = kept.take() {
            key = Tensor::cat(&[keys, key], 1)?;
            value = Tensor::cat(&[values, value], 1)?;
        }
        *kept = Some((key.clone(), value.clone()));

        // A group's query heads lie one after the other: as one long list of rows they meet their key head.
        let (tokens, total) = (x.dim(0)?, key.dim(1)?);
        let (kv_heads, rows) = (self.spec.kv_heads, self.spec.group() * tokens);
        let scores = query.reshape((kv_heads, rows, self.spec.head_dim))?.matmul(&key.t()?.contiguous()?)?;
        let scores = scores.affine(self.spec.scale, 0.0)?.reshape((self.spec.heads, tokens, total))?;
        let scores = softcap(&scores, self.spec.softcap)?.broadcast_add(&self.mask(past, tokens)?)?;
        let weights = self.softmax(&scores)?.reshape((kv_heads, rows, total))?;
        let mixed = weights.matmul(&value.contiguous()?)?.reshape((self.spec.heads, tokens, self.spec.head_dim))?;
        let mixed = mixed.transpose(0, 1)?.contiguous()?.reshape((tokens, self.spec.query_width()))?;
        self.output.forward(&mixed)
    }

    /// `[tokens, count * head_dim]` to `[count, tokens, head_dim]`, by way of the norm.
    fn heads(&self, x: Tensor, count: usize, norm: Option<&Norm>) -> Result<Tensor> {
        let shape = (x.dim(0)?, count, self.spec.head_dim);
        let x = match (norm, self.spec.qk_norm) {
            (Some(norm), QkNorm::Full) => norm.forward(&x)?.reshape(shape)?,
            (Some(norm), _) => norm.forward(&x.reshape(shape)?)?,
            (None, _) => x.reshape(shape)?,
        };
        x.transpose(0, 1)?.contiguous()
    }

    /// Turns each pair `(a, b)` to `(a cos - b sin, b cos + a sin)`.
    fn rotate(&self, x: Tensor, past: usize) -> Result<Tensor> {
        let Some(angles) = &self.rotation else { return Ok(x) };
        let (heads, tokens, width) = x.dims3()?;
        let pairs = angles.frequencies.len();
        let angle = |position: usize| angles.frequencies.iter().map(move |f| (position as f32 * f, angles.factor));
        let turns: Vec<(f32, f32)> = (past..past + tokens).flat_map(angle).collect();
        let table = |of: fn(f64) -> f64| {
            let numbers = turns.iter().map(|(angle, factor)| of(f64::from(*angle)) as f32 * factor).collect::<Vec<_>>();
            Tensor::from_vec(numbers, (1, tokens, pairs), &Device::Cpu)
        };
        let (cos, sin) = (table(f64::cos)?, table(f64::sin)?);
        let turned = x.narrow(2, 0, 2 * pairs)?;
        let (a, b) = if angles.interleaved {
            let split = turned.contiguous()?.reshape((heads, tokens, pairs, 2))?;
            (split.narrow(3, 0, 1)?.squeeze(3)?, split.narrow(3, 1, 1)?.squeeze(3)?)
        } else {
            (turned.narrow(2, 0, pairs)?, turned.narrow(2, pairs, pairs)?)
        };
        let (a, b) =
            ((a.broadcast_mul(&cos)? - b.broadcast_mul(&sin)?)?, (b.broadcast_mul(&cos)? + a.broadcast_mul(&sin)?)?);
        let turned = if angles.interleaved {
            Tensor::stack(&[a, b], 3)?.reshape((heads, tokens, 2 * pairs))?
        } else {
            Tensor::cat(&[a, b], 2)?
        };
        let passed = x.narrow(2, 2 * pairs, width - 2 * pairs)?;
        Tensor::cat(&[turned, passed], 2)
    }

    /// `[tokens, past + tokens]`: 0 where the position of the row sees that of the column, else minus infinity.
    fn mask(&self, past: usize, tokens: usize) -> Result<Tensor> {
        let window = self.window.unwrap_or(usize::MAX);
        let sees = |row: usize, column: usize| column <= row && row - column < window;
        let row =
            |row: usize| (0..past + tokens).map(move |column| if sees(row, column) { 0.0 } else { f32::NEG_INFINITY });
        let mask: Vec<f32> = (past..past + tokens).flat_map(row).collect();
        Tensor::from_vec(mask, (tokens, past + tokens), &Device::Cpu)
    }

    /// Over the last dimension of `[heads, tokens, total]`; each head's sink takes its share and is dropped.
    fn softmax(&self, scores: &Tensor) -> Result<Tensor> {
        let Some(sinks) = &self.sinks else { return softmax(scores) };
        let (heads, tokens, total) = scores.dims3()?;
        let sinks = sinks.reshape((heads, 1, 1))?.broadcast_as((heads, tokens, 1))?;
        softmax(&Tensor::cat(&[scores, &sinks], D::Minus1)?)?.narrow(D::Minus1, 0, total)?.contiguous()
    }
}
