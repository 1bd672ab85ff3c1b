//! What a decoder model is: about twenty numbers and flags that tell every supported architecture apart.
//!
//! One forward pass reads them; no executor asks for a model's name. Built from `config.json` by [`super::config`] and
//! from GGUF metadata by [`super::weights::gguf`]; every size here has been checked, so products of two of them fit.
//! Nothing here knows a file, a device or a tensor type.

use super::families::Family;
use super::layout::Name;
use super::rope::Rope;
use super::weights::packed::Scheme;

/// A decoder-only transformer.
#[derive(Clone, Debug)]
pub struct DecoderSpec {
    /// The row of [`super::FAMILIES`] that it came from.
    pub family: &'static Family,
    /// What its tensors are called.
    pub names: Names,
    /// Rows of the embedding, and logits per position.
    pub vocab: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Width of the dense feed-forward block; of no meaning where every layer is a mixture.
    pub intermediate: usize,
    /// Most positions that the model was trained for.
    pub context: usize,
    /// What each layer does differently from the others.
    pub layers: Vec<Layer>,
    /// Root-mean-square norms.
    pub norm: Norm,
    /// The attention block.
    pub attention: Attention,
    /// The rotation of layers with [`Rotation::Global`].
    pub rope: Rope,
    /// The rotation of layers with [`Rotation::Local`].
    pub rope_local: Option<Rope>,
    /// What the feed-forward block applies to its gate.
    pub activation: Activation,
    /// Do gate, up and down have biases?
    pub mlp_bias: bool,
    /// The experts of layers with [`Layer::mixture`].
    pub mixture: Option<Mixture>,
    /// Constant factors between the blocks.
    pub scales: Scales,
    /// Is the head the embedding itself?
    pub tied: bool,
    /// The number type that the checkpoint says it was trained in.
    pub dtype: Option<FloatType>,
    /// How the checkpoint packs matrices of integers, where it has any.
    pub packed: Option<Scheme>,
}

/// What a model's tensors are called.
#[derive(Clone, Copy, Debug)]
pub struct Names {
    /// The first table that has a slot says.
    pub tables: [&'static [Name]; 2],
    /// Are stacked experts saved as floats inputs by outputs (gpt-oss in transformers)?
    pub transposed: bool,
}

/// What one layer does differently from the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layer {
    /// A position sees itself and the `window - 1` positions before it; `None` sees all.
    pub window: Option<usize>,
    /// How queries and keys are rotated.
    pub rotation: Rotation,
    /// Is the feed-forward block a mixture of experts?
    pub mixture: bool,
}

/// How the queries and keys of a layer are rotated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rotation {
    /// By [`DecoderSpec::rope`].
    Global,
    /// By [`DecoderSpec::rope_local`].
    Local,
    /// Not at all (SmolLM3's every fourth layer).
    None,
}

/// Root-mean-square norms: `x / sqrt(mean(x^2) + eps) * weight`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Norm {
    /// Added under the root.
    pub eps: f64,
    /// Is one added to the stored weight (Gemma's checkpoints; not its GGUF files, which store the sum)?
    pub plus_one: bool,
    /// Where the norms of a layer stand.
    pub placement: Placement,
}

/// Where the norms of a layer stand. `f` is attention or the feed-forward block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placement {
    /// `x + f(norm(x))`
    Before,
    /// `x + norm(f(x))` (OLMo 2)
    After,
    /// `x + norm(f(norm(x)))` (Gemma 2 and 3)
    Both,
}

/// The attention block.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Attention {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`. Query head `h` reads key head `h / (heads / kv_heads)`.
    pub kv_heads: usize,
    /// Numbers per head.
    pub head_dim: usize,
    /// Do the query, key and value projections have biases?
    pub qkv_bias: bool,
    /// Does the output projection have a bias?
    pub out_bias: bool,
    /// Norms of queries and keys before the rotation.
    pub qk_norm: QkNorm,
    /// Scores are multiplied by this.
    pub scale: f64,
    /// Scores become `cap * tanh(score / cap)` before the mask.
    pub softcap: Option<f64>,
    /// Has each query head a logit that takes part in the softmax and adds nothing (gpt-oss)?
    pub sinks: bool,
}

impl Attention {
    /// Width of all query heads together.
    pub fn query_width(&self) -> usize {
        self.heads * self.head_dim
    }
    /// Width of all key heads together; of all value heads, too.
    pub fn kv_width(&self) -> usize {
        self.kv_heads * self.head_dim
    }
    /// Query heads that read one key head.
    pub fn group(&self) -> usize {
        self.heads / self.kv_heads
    }
}

/// Norms of queries and keys before the rotation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QkNorm {
    /// None.
    None,
    /// Each head by itself, one weight of `head_dim` for all heads (Qwen 3, Gemma 3).
    PerHead,
    /// All heads together, a weight as wide as the projection (OLMo 2).
    Full,
}

/// What the feed-forward block makes of its gate `g` and up projection `u`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Activation {
    /// `silu(g) * u`
    Silu,
    /// `gelu(g) * u`, by the error function.
    Gelu,
    /// `gelu(g) * u`, by the hyperbolic tangent.
    GeluTanh,
    /// gpt-oss: `g` clamped above and `u` on both sides at `limit`, then `g * sigmoid(1.702 * g) * (u + 1)`.
    ClampedSwiglu {
        /// The clamp.
        limit: f64,
    },
}

/// The mixture of experts of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mixture {
    /// Experts.
    pub experts: usize,
    /// Experts that see a token.
    pub top_k: usize,
    /// Width of an expert.
    pub intermediate: usize,
    /// How router logits become the weights of the chosen experts.
    pub routing: Routing,
    /// Have the router and the experts biases (gpt-oss)?
    pub bias: bool,
}

/// How router logits become the weights of the chosen experts. The largest logits are chosen in each case, the lower
/// index first among equals.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Routing {
    /// The softmax over all experts, as it is.
    Softmax,
    /// The softmax over the chosen experts (which equals the softmax over all, renormalised).
    SoftmaxOfChosen,
}

/// Constant factors between the blocks; 1 where a family has none.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scales {
    /// Embeddings are multiplied by this.
    pub embedding: f64,
    /// What a block adds to the residual stream is multiplied by this.
    pub residual: f64,
    /// Logits are multiplied by this.
    pub logits: f64,
    /// Then logits become `cap * tanh(logit / cap)`.
    pub logit_softcap: Option<f64>,
}

/// A floating-point type that weights are stored or computed in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FloatType {
    /// 32 bits.
    F32,
    /// IEEE half precision.
    F16,
    /// The upper half of 32 bits.
    Bf16,
}

impl FloatType {
    /// By its name in `config.json` or on the command line.
    pub fn parse(name: &str) -> Option<Self> {
        match name.strip_prefix("torch.").unwrap_or(name) {
            "float32" | "float" => Some(FloatType::F32),
            "float16" | "half" => Some(FloatType::F16),
            "bfloat16" => Some(FloatType::Bf16),
            _ => None,
        }
    }
}
