//! The forward pass as the specification of every other: naive, 32-bit, one sequence, its cache contiguous.
//!
//! It follows the equations of the models as published and nothing else: no batching, no paging, no fused step. On
//! candle's CPU tensors, whose matrix products use rayon's global pool; that is its only concurrency. Not a way to
//! serve a model.

mod attention;
mod feed_forward;
mod ops;

use attention::Attention;
use backends::llm::layout::{Part, Slot};
use backends::llm::spec::{DecoderSpec, Placement};
use backends::llm::weights::Weights;
use backends::{InferError, LoadError};
use candle_core::{Device, Tensor};
use feed_forward::FeedForward;
use ops::{Norm, Reader, softcap};

/// A decoder with its weights widened to 32 bits.
#[derive(Debug)]
pub struct Reference {
    spec: DecoderSpec,
    embedding: Tensor,
    layers: Vec<Block>,
    norm: Norm,
    head: Tensor,
    context: usize,
}

/// One layer.
#[derive(Debug)]
struct Block {
    attention_before: Option<Norm>,
    attention: Attention,
    attention_after: Option<Norm>,
    mlp_before: Option<Norm>,
    mlp: FeedForward,
    mlp_after: Option<Norm>,
}

/// Keys and values of one sequence: of each layer `[kv_heads, len, head_dim]`, keys rotated.
#[derive(Clone, Debug)]
pub struct Cache {
    layers: Vec<Option<(Tensor, Tensor)>>,
    len: usize,
}

impl Cache {
    /// Positions held.
    pub fn len(&self) -> usize {
        self.len
    }
}

/// Logits of some positions.
#[derive(Clone, Debug, PartialEq)]
pub struct Logits {
    /// Numbers per position.
    pub vocab: usize,
    /// Position after position.
    pub data: Vec<f32>,
}

impl Reference {
    /// Reads every weight of `spec`. `context` is the longest sequence that will be asked for; it decides between
    /// LongRoPE's two sets of divisors.
    ///
    /// # Errors
    /// A tensor is missing, of the wrong shape, or unreadable.
    pub fn new(spec: DecoderSpec, weights: &dyn Weights, context: usize) -> Result<Self, LoadError> {
        let reader = Reader { spec: &spec, weights };
        let embedding = reader.tensor(Part::global(Slot::Embedding))?;
        let head = if spec.tied { embedding.clone() } else { reader.tensor(Part::global(Slot::Head))? };
        let norm = reader.norm(Part::global(Slot::FinalNorm))?;
        let block = |layer: usize| {
            let norm =
                |slot: Slot, wanted: bool| wanted.then(|| reader.norm(Part { slot, layer, expert: 0 })).transpose();
            let before = spec.norm.placement != Placement::After;
            let after = spec.norm.placement != Placement::Before;
            Ok(Block {
                attention_before: norm(Slot::AttentionNormBefore, before)?,
                attention: Attention::new(&reader, layer, context)?,
                attention_after: norm(Slot::AttentionNormAfter, after)?,
                mlp_before: norm(Slot::MlpNormBefore, before)?,
                mlp: FeedForward::new(&reader, layer)?,
                mlp_after: norm(Slot::MlpNormAfter, after)?,
            })
        };
        let layers = (0..spec.layers.len()).map(block).collect::<Result<_, LoadError>>()?;
        Ok(Reference { embedding, layers, norm, head, context, spec })
    }

    /// An empty cache.
    pub fn cache(&self) -> Cache {
        Cache { layers: vec![None; self.layers.len()], len: 0 }
    }

    /// The logits after each of `tokens`, which follow those in the cache and join them there.
    ///
    /// # Errors
    /// [`InferError::Invalid`] for no token, one outside of the vocabulary, or more positions than the context. The
    /// cache is as it was then.
    pub fn forward(&self, tokens: &[u32], cache: &mut Cache) -> Result<Logits, InferError> {
        if let Some(token) = tokens.iter().find(|token| **token as usize >= self.spec.vocab) {
            return Err(InferError::invalid(format!("token {token} is not below {}", self.spec.vocab)));
        }
        if tokens.is_empty() {
            return Err(InferError::invalid("no tokens"));
        }
        let total = cache.len.saturating_add(tokens.len());
        if total > self.context {
            return Err(InferError::invalid(format!("{total} positions; the context is {}", self.context)));
        }
        let mut after = cache.clone();
        let logits = self.run(tokens, &mut after).map_err(|e| InferError::Internal(e.to_string()))?;
        after.len += tokens.len();
        *cache = after;
        Ok(logits)
    }

    /// `x` is `[tokens, hidden]` throughout.
    fn run(&self, tokens: &[u32], cache: &mut Cache) -> candle_core::Result<Logits> {
        let scales = self.spec.scales;
        let ids = Tensor::new(tokens, &Device::Cpu)?;
        let mut x = self.embedding.index_select(&ids, 0)?.affine(scales.embedding, 0.0)?;
        for (block, kept) in self.layers.iter().zip(&mut cache.layers) {
            let added = block.attention.forward(&apply(&block.attention_before, &x)?, cache.len, kept)?;
            x = (x + apply(&block.attention_after, &added)?.affine(scales.residual, 0.0)?)?;
            let added = block.mlp.forward(&apply(&block.mlp_before, &x)?)?;
            x = (x + apply(&block.mlp_after, &added)?.affine(scales.residual, 0.0)?)?;
        }
        let logits = self.norm.forward(&x)?.matmul(&self.head.t()?)?.affine(scales.logits, 0.0)?;
        let logits = softcap(&logits, scales.logit_softcap)?;
        Ok(Logits { vocab: self.spec.vocab, data: logits.flatten_all()?.to_vec1()? })
    }
}

/// The norm, where there is one.
fn apply(norm: &Option<Norm>, x: &Tensor) -> candle_core::Result<Tensor> {
    match norm {
        Some(norm) => norm.forward(x),
        None => Ok(x.clone()),
    }
}
