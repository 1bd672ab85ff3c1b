//! The gated feed-forward block, alone or as a mixture of experts.

use super::ops::{Linear, Reader};
use backends::LoadError;
use backends::llm::layout::{Part, Slot};
use backends::llm::spec::{self, Activation, Routing};
use candle_core::{Device, Result, Tensor};

/// The block of one layer.
#[derive(Debug)]
pub(super) enum FeedForward {
    Dense(Gated),
    Mixture { spec: spec::Mixture, router: Linear, experts: Vec<Gated> },
}

/// `down(activation(gate(x), up(x)))`
#[derive(Debug)]
pub(super) struct Gated {
    gate: Linear,
    up: Linear,
    down: Linear,
    activation: Activation,
}

impl FeedForward {
    pub(super) fn new(reader: &Reader<'_>, layer: usize) -> std::result::Result<Self, LoadError> {
        let spec = reader.spec;
        let gated = |expert: usize, slots: [[Slot; 2]; 3], biased: bool| {
            let part = |slot| Part { slot, layer, expert };
            let linear = |[weight, bias]: [Slot; 2]| reader.linear(part(weight), biased.then_some(part(bias)));
            let [gate, up, down] = slots;
            Ok(Gated { gate: linear(gate)?, up: linear(up)?, down: linear(down)?, activation: spec.activation })
        };
        let Some(mixture) = spec.mixture.filter(|_| spec.layers[layer].mixture) else {
            let slots = [[Slot::Gate, Slot::GateBias], [Slot::Up, Slot::UpBias], [Slot::Down, Slot::DownBias]];
            return gated(0, slots, spec.mlp_bias).map(FeedForward::Dense);
        };
        let slots = [
            [Slot::ExpertGate, Slot::ExpertGateBias],
            [Slot::ExpertUp, Slot::ExpertUpBias],
            [Slot::ExpertDown, Slot::ExpertDownBias],
        ];
        let part = |slot| Part { slot, layer, expert: 0 };
        let router = reader.linear(part(Slot::Router), mixture.bias.then_some(part(Slot::RouterBias)))?;
        let experts = (0..mixture.experts).map(|expert| gated(expert, slots, mixture.bias));
        Ok(FeedForward::Mixture {
            spec: mixture,
            router,
            experts: experts.collect::<std::result::Result<_, LoadError>>()?,
        })
    }

    /// `x` is `[tokens, hidden]`.
    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match self {
            FeedForward::Dense(gated) => gated.forward(x),
            FeedForward::Mixture { spec, router, experts } => {
                let logits = router.forward(x)?.to_vec2::<f32>()?;
                let chosen: Vec<_> = logits.iter().map(|logits| choose(logits, spec)).collect();
                let mut sum = x.zeros_like()?;
                for (expert, gated) in experts.iter().enumerate() {
                    sum = add_expert(&sum, x, gated, &rows_of(&chosen, expert))?;
                }
                Ok(sum)
            }
        }
    }
}

/// The experts of one token and their weights.
fn choose(logits: &[f32], spec: &spec::Mixture) -> Vec<(usize, f32)> {
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|a, b| logits[*b].total_cmp(&logits[*a])); // stable: the lower index first among equals
    let largest = logits[order[0]];
    let share = |expert: &usize| (logits[*expert] - largest).exp();
    let all: f32 = order.iter().map(share).sum();
    order.truncate(spec.top_k);
    let total = match spec.routing {
        Routing::Softmax => all,
        Routing::SoftmaxOfChosen => order.iter().map(share).sum(),
    };
    order.into_iter().map(|expert| (expert, share(&expert) / total)).collect()
}

/// The tokens that chose `expert`, and its weight for each.
fn rows_of(chosen: &[Vec<(usize, f32)>], expert: usize) -> Vec<(u32, f32)> {
    let find =
        |choice: &Vec<(usize, f32)>| choice.iter().find(|(index, _)| *index == expert).map(|(_, weight)| *weight);
    let rows = chosen.iter().enumerate();
    rows.filter_map(|(row, choice)| find(choice).map(|weight| (row as u32, weight))).collect()
}

/// `sum`, with what `gated` makes of `rows` added to them.
fn add_expert(sum: &Tensor, x: &Tensor, gated: &Gated, rows: &[(u32, f32)]) -> Result<Tensor> {
    if rows.is_empty() {
        return Ok(sum.clone());
    }
    let indices: Vec<u32> = rows.iter().map(|(row, _)| *row).collect();
    let weights: Vec<f32> = rows.iter().map(|(_, weight)| *weight).collect();
    let indices = Tensor::new(indices, &Device::Cpu)?;
    let weights = Tensor::from_vec(weights, (rows.len(), 1), &Device::Cpu)?;
    let added = gated.forward(&x.index_select(&indices, 0)?)?.broadcast_mul(&weights)?;
    sum.index_add(&indices, &added, 0)
}

impl Gated {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (gate, up) = (self.gate.forward(x)?, self.up.forward(x)?);
        let product = match self.activation {
            Activation::Silu => (gate.silu()? * up)?,
            Activation::Gelu => (gate.gelu_erf()? * up)?,
            Activation::GeluTanh => (gate.gelu()? * up)?,
            Activation::ClampedSwiglu { limit } => {
                let gate = gate.minimum(limit)?;
                let up = up.clamp(-limit, limit)?;
                let sigmoid = gate.affine(-1.702, 0.0)?.exp()?.affine(1.0, 1.0)?.recip()?;
                ((gate * sigmoid)? * up.affine(1.0, 1.0)?)?
            }
        };
        self.down.forward(&product)
    }
}
