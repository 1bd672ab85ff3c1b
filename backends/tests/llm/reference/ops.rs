//! What attention and the feed-forward block share: weights as tensors, norms, projections, caps.

use backends::LoadError;
use backends::llm::layout::{self, Part};
use backends::llm::spec::DecoderSpec;
use backends::llm::weights::Weights;
use candle_core::{D, Device, Result, Tensor};

/// Reads parts of a model as 32-bit tensors.
pub(super) struct Reader<'a> {
    pub(super) spec: &'a DecoderSpec,
    pub(super) weights: &'a dyn Weights,
}

impl Reader<'_> {
    /// A matrix `[rows, columns]`, or a vector `[rows]`.
    pub(super) fn tensor(&self, part: Part) -> std::result::Result<Tensor, LoadError> {
        let matrix = layout::load(self.spec, self.weights, part)?;
        let numbers = matrix.to_f32();
        let tensor = match layout::shape(self.spec, part.slot) {
            (rows, Some(columns)) => Tensor::from_vec(numbers, (rows, columns), &Device::Cpu),
            (rows, None) => Tensor::from_vec(numbers, rows, &Device::Cpu),
        };
        tensor.map_err(|e| LoadError::new(self.weights.file(), format!("{part:?}: {e}")))
    }

    pub(super) fn norm(&self, part: Part) -> std::result::Result<Norm, LoadError> {
        let mut weight = self.tensor(part)?;
        if self.spec.norm.plus_one {
            let sum = weight.affine(1.0, 1.0);
            weight = sum.map_err(|e| LoadError::new(self.weights.file(), format!("{part:?}: {e}")))?;
        }
        Ok(Norm { weight, eps: self.spec.norm.eps })
    }

    /// A projection; `bias` where it has one.
    pub(super) fn linear(&self, weight: Part, bias: Option<Part>) -> std::result::Result<Linear, LoadError> {
        Ok(Linear { weight: self.tensor(weight)?, bias: bias.map(|part| self.tensor(part)).transpose()? })
    }
}

/// `x / sqrt(mean(x^2) + eps) * weight` over the last dimension.
#[derive(Debug)]
pub(super) struct Norm {
    weight: Tensor,
    eps: f64,
}

impl Norm {
    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let scale = x.sqr()?.mean_keepdim(D::Minus1)?.affine(1.0, self.eps)?.sqrt()?;
        x.broadcast_div(&scale)?.broadcast_mul(&self.weight)
    }
}

/// `x w^T + b`
#[derive(Debug)]
pub(super) struct Linear {
    weight: Tensor,
    bias: Option<Tensor>,
}

impl Linear {
    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let y = x.matmul(&self.weight.t()?)?;
        match &self.bias {
            Some(bias) => y.broadcast_add(bias),
            None => Ok(y),
        }
    }
}

/// `cap * tanh(x / cap)`, where there is a cap.
pub(super) fn softcap(x: &Tensor, cap: Option<f64>) -> Result<Tensor> {
    match cap {
        Some(cap) => x.affine(1.0 / cap, 0.0)?.tanh()?.affine(cap, 0.0),
        None => Ok(x.clone()),
    }
}

/// `exp(x - max) / sum` over the last dimension.
pub(super) fn softmax(x: &Tensor) -> Result<Tensor> {
    let e = x.broadcast_sub(&x.max_keepdim(D::Minus1)?)?.exp()?;
    e.broadcast_div(&e.sum_keepdim(D::Minus1)?)
}
