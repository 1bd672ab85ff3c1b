//! The gated feed-forward block, alone or as a mixture of experts.

use super::forward::{each_row, project};
use super::weights::{FeedForward, Gated, Linear};
use crate::error::LoadError;
use crate::llm::spec::{Activation, DecoderSpec, Mixture, Routing};
use kernels::llm::elementwise;

/// Of every row of `x`, `[rows, hidden]`.
pub(super) fn run(spec: &DecoderSpec, layer: usize, block: &FeedForward, x: &[f32]) -> Result<Vec<f32>, LoadError> {
    match (block, spec.mixture.filter(|_| spec.layers[layer].mixture)) {
        (FeedForward::Mixture { router, experts }, Some(mixture)) => mix(spec, &mixture, (router, experts), x),
        (FeedForward::Mixture { experts, .. }, None) => gated(spec, &experts[0], x),
        (FeedForward::Dense(block), _) => gated(spec, block, x),
    }
}

/// `down(activation(gate(x), up(x)))`
fn gated(spec: &DecoderSpec, block: &Gated, x: &[f32]) -> Result<Vec<f32>, LoadError> {
    let (hidden, width) = (spec.hidden, block.gate.weight.rows());
    let rows = x.len() / hidden;
    let (mut gate, mut up) = (vec![0.0; rows * width], vec![0.0; rows * width]);
    project(x, hidden, &mut [(&block.gate, &mut gate), (&block.up, &mut up)])?;
    each_row(&mut gate, width, |row, gate| activate(spec.activation, gate, &up[row * width..(row + 1) * width]));
    let mut out = vec![0.0; rows * hidden];
    project(&gate, width, &mut [(&block.down, &mut out)])?;
    Ok(out)
}

fn activate(activation: Activation, gate: &mut [f32], up: &[f32]) {
    match activation {
        Activation::Silu => elementwise::silu_mul(gate, up),
        Activation::GeluTanh => elementwise::gelu_mul(gate, up),
        Activation::Gelu => {
            for (gate, up) in gate.iter_mut().zip(up) {
                let x = f64::from(*gate);
                let half = 0.5 * x * (1.0 + libm::erf(x * std::f64::consts::FRAC_1_SQRT_2));
                *gate = half as f32 * up;
            }
        }
        Activation::ClampedSwiglu { limit } => {
            let limit = limit as f32;
            for (gate, up) in gate.iter_mut().zip(up) {
                let (g, u) = (gate.min(limit), up.clamp(-limit, limit));
                *gate = g / (1.0 + (-1.702 * g).exp()) * (u + 1.0);
            }
        }
    }
}

/// Each row through the experts that its router chooses.
fn mix(
    spec: &DecoderSpec,
    mixture: &Mixture,
    (router, experts): (&Linear, &[Gated]),
    x: &[f32],
) -> Result<Vec<f32>, LoadError> {
    let hidden = spec.hidden;
    let rows = x.len() / hidden;
    let mut logits = vec![0.0; rows * mixture.experts];
    project(x, hidden, &mut [(router, &mut logits)])?;
    let mut chosen: Vec<Vec<(usize, f32)>> = vec![Vec::new(); mixture.experts];
    for (row, logits) in logits.chunks_exact(mixture.experts).enumerate() {
        for (expert, weight) in choose(logits, mixture) {
            chosen[expert].push((row, weight));
        }
    }
    let mut out = vec![0.0; x.len()];
    for (expert, rows) in experts.iter().zip(&chosen).filter(|(_, rows)| !rows.is_empty()) {
        let input: Vec<f32> = rows.iter().flat_map(|(row, _)| &x[row * hidden..(row + 1) * hidden]).copied().collect();
        let mut added = gated(spec, expert, &input)?;
        for ((row, weight), added) in rows.iter().zip(added.chunks_exact_mut(hidden)) {
            elementwise::scale(added, *weight);
            elementwise::add(&mut out[row * hidden..(row + 1) * hidden], added);
        }
    }
    Ok(out)
}

/// The experts of one row and their weights; the lower index first among equals.
fn choose(logits: &[f32], mixture: &Mixture) -> Vec<(usize, f32)> {
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|a, b| logits[*b].total_cmp(&logits[*a]));
    let largest = logits[order[0]];
    let share = |expert: &usize| (logits[*expert] - largest).exp();
    let all: f32 = order.iter().map(share).sum();
    order.truncate(mixture.top_k);
    let total = match mixture.routing {
        Routing::Softmax => all,
        Routing::SoftmaxOfChosen => order.iter().map(share).sum(),
    };
    order.into_iter().map(|expert| (expert, share(&expert) / total)).collect()
}
