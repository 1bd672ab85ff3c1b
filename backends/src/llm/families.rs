//! The supported architectures, a row each: how its `config.json` is to be read and what its tensors are called.
//! No code here decides anything; [`super::config`] and [`super::layout`] read the rows.

use super::layout::{Name, Packing, Slot};
use super::spec::{Placement, QkNorm};

/// One architecture.
#[derive(Debug)]
pub struct Family {
    /// As in `architectures` of `config.json`.
    pub architecture: &'static str,
    /// Names that differ from [`HUGGING_FACE`].
    pub names: &'static [Name],
    /// What a field is when `config.json` leaves it out, where that differs from the common defaults.
    pub defaults: &'static [(&'static str, Setting)],
    /// Fields of `config.json` that some architectures have and others ignore: those that this one has.
    pub reads: &'static [&'static str],
    /// Which layers see a window only.
    pub windows: Windows,
    /// Norms of queries and keys.
    pub qk_norm: QkNorm,
    /// Biases of the query, key and value projections.
    pub qkv_bias: Bias,
    /// Bias of the output projection.
    pub out_bias: Bias,
    /// Biases of the feed-forward block.
    pub mlp_bias: Bias,
    /// Where the norms stand.
    pub placement: Placement,
    /// Are norm weights stored less one, embeddings scaled by the root of the width, and scores and logits capped?
    pub gemma: bool,
    /// Experts.
    pub experts: Experts,
    /// Attention sinks.
    pub sinks: bool,
}

/// A default of a field.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Setting {
    /// A number, whole or not.
    Number(f64),
    /// True or false.
    Flag(bool),
}

/// Which layers see a window of `sliding_window` positions only. `layer_types`, where it is read, overrules it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Windows {
    /// None.
    Never,
    /// All of them.
    Every,
    /// All of them, if `use_sliding_window`.
    IfAsked,
    /// From layer `max_window_layers` on, if `use_sliding_window`.
    FromLayer,
    /// All but every `sliding_window_pattern`-th.
    Pattern,
    /// Those without rotation, if `use_sliding_window`.
    Unrotated,
}

/// Whether projections have biases.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bias {
    /// No.
    Never,
    /// Yes.
    Always,
    /// This field of `config.json` says so; absent means no.
    Field(&'static str),
}

/// What `config.json` says about experts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Experts {
    /// None.
    None,
    /// `num_experts`, `moe_intermediate_size`, `norm_topk_prob`, `decoder_sparse_step`, `mlp_only_layers`.
    Qwen,
    /// `num_local_experts` in every layer, as wide as `intermediate_size`, renormalised.
    Mixtral,
    /// As Mixtral, with biases and the clamped activation.
    GptOss,
}

/// Llama 1 to 3.3, and the row that others vary.
const LLAMA: Family = Family {
    architecture: "LlamaForCausalLM",
    names: &[],
    defaults: &[],
    reads: &[],
    windows: Windows::Never,
    qk_norm: QkNorm::None,
    qkv_bias: Bias::Field("attention_bias"),
    out_bias: Bias::Field("attention_bias"),
    mlp_bias: Bias::Field("mlp_bias"),
    placement: Placement::Before,
    gemma: false,
    experts: Experts::None,
    sinks: false,
};

const QWEN3: Family = Family {
    architecture: "Qwen3ForCausalLM",
    defaults: &[("head_dim", Setting::Number(128.0)), ("sliding_window", Setting::Number(4096.0))],
    reads: &["layer_types"],
    windows: Windows::FromLayer,
    qk_norm: QkNorm::PerHead,
    mlp_bias: Bias::Never,
    ..LLAMA
};

const GEMMA2: Family = Family {
    architecture: "Gemma2ForCausalLM",
    names: &[
        (Slot::AttentionNormAfter, "model.layers.{l}.post_attention_layernorm.weight", Packing::Whole),
        (Slot::MlpNormBefore, "model.layers.{l}.pre_feedforward_layernorm.weight", Packing::Whole),
        (Slot::MlpNormAfter, "model.layers.{l}.post_feedforward_layernorm.weight", Packing::Whole),
    ],
    defaults: &[
        ("head_dim", Setting::Number(256.0)),
        ("tie_word_embeddings", Setting::Flag(true)),
        ("query_pre_attn_scalar", Setting::Number(256.0)),
        ("sliding_window", Setting::Number(4096.0)),
        ("sliding_window_pattern", Setting::Number(2.0)),
        ("attn_logit_softcapping", Setting::Number(50.0)),
        ("final_logit_softcapping", Setting::Number(30.0)),
    ],
    reads: &["layer_types", "use_bidirectional_attention"],
    windows: Windows::Pattern,
    mlp_bias: Bias::Never,
    placement: Placement::Both,
    gemma: true,
    ..LLAMA
};

const GEMMA3: Family = Family {
    architecture: "Gemma3ForCausalLM",
    defaults: &[
        ("head_dim", Setting::Number(256.0)),
        ("tie_word_embeddings", Setting::Flag(true)),
        ("query_pre_attn_scalar", Setting::Number(256.0)),
        ("sliding_window", Setting::Number(4096.0)),
        ("sliding_window_pattern", Setting::Number(6.0)),
        ("rope_theta", Setting::Number(1_000_000.0)),
        ("rope_local_base_freq", Setting::Number(10_000.0)),
    ],
    reads: &[
        "layer_types",
        "sliding_window_pattern",
        "_sliding_window_pattern",
        "rope_local_base_freq",
        "use_bidirectional_attention",
    ],
    qk_norm: QkNorm::PerHead,
    ..GEMMA2
};

const MIXTRAL: Family = Family {
    architecture: "MixtralForCausalLM",
    names: &[
        (Slot::Router, "model.layers.{l}.block_sparse_moe.gate.weight", Packing::Whole),
        (Slot::ExpertGate, "model.layers.{l}.block_sparse_moe.experts.{e}.w1.weight", Packing::Whole),
        (Slot::ExpertUp, "model.layers.{l}.block_sparse_moe.experts.{e}.w3.weight", Packing::Whole),
        (Slot::ExpertDown, "model.layers.{l}.block_sparse_moe.experts.{e}.w2.weight", Packing::Whole),
    ],
    defaults: &[("rms_norm_eps", Setting::Number(1e-5)), ("rope_theta", Setting::Number(1_000_000.0))],
    windows: Windows::Every,
    qkv_bias: Bias::Never,
    out_bias: Bias::Never,
    mlp_bias: Bias::Never,
    experts: Experts::Mixtral,
    ..LLAMA
};

const GPT_OSS: Family = Family {
    architecture: "GptOssForCausalLM",
    names: &[
        (Slot::Router, "model.layers.{l}.mlp.router.weight", Packing::Whole),
        (Slot::RouterBias, "model.layers.{l}.mlp.router.bias", Packing::Whole),
        (Slot::ExpertGate, "model.layers.{l}.mlp.experts.gate_up_proj", Packing::EvenRows),
        (Slot::ExpertUp, "model.layers.{l}.mlp.experts.gate_up_proj", Packing::OddRows),
        (Slot::ExpertDown, "model.layers.{l}.mlp.experts.down_proj", Packing::Whole),
        (Slot::ExpertGateBias, "model.layers.{l}.mlp.experts.gate_up_proj_bias", Packing::EvenRows),
        (Slot::ExpertUpBias, "model.layers.{l}.mlp.experts.gate_up_proj_bias", Packing::OddRows),
        (Slot::ExpertDownBias, "model.layers.{l}.mlp.experts.down_proj_bias", Packing::Whole),
    ],
    defaults: &[
        ("rms_norm_eps", Setting::Number(1e-5)),
        ("head_dim", Setting::Number(64.0)),
        ("sliding_window", Setting::Number(128.0)),
        ("sliding_window_pattern", Setting::Number(2.0)),
        ("rope_theta", Setting::Number(150_000.0)),
        ("attention_bias", Setting::Flag(true)),
        ("swiglu_alpha", Setting::Number(1.702)),
        ("swiglu_limit", Setting::Number(7.0)),
    ],
    reads: &["layer_types"],
    windows: Windows::Pattern,
    mlp_bias: Bias::Never,
    experts: Experts::GptOss,
    sinks: true,
    ..LLAMA
};

/// Every supported architecture.
pub static FAMILIES: &[Family] = &[
    QWEN3,
    LLAMA,
    Family {
        architecture: "MistralForCausalLM",
        defaults: &[("sliding_window", Setting::Number(4096.0))],
        // transformers takes a model with them for Ministral.
        reads: &["layer_types"],
        windows: Windows::Every,
        qkv_bias: Bias::Never,
        out_bias: Bias::Never,
        mlp_bias: Bias::Never,
        ..LLAMA
    },
    Family {
        architecture: "Qwen2ForCausalLM",
        defaults: &[("sliding_window", Setting::Number(4096.0))],
        reads: &["layer_types"],
        windows: Windows::FromLayer,
        qkv_bias: Bias::Always,
        out_bias: Bias::Never,
        mlp_bias: Bias::Never,
        ..LLAMA
    },
    GEMMA2,
    GEMMA3,
    Family {
        architecture: "Phi3ForCausalLM",
        names: &[
            (Slot::Query, "model.layers.{l}.self_attn.qkv_proj.weight", Packing::Query),
            (Slot::Key, "model.layers.{l}.self_attn.qkv_proj.weight", Packing::Key),
            (Slot::Value, "model.layers.{l}.self_attn.qkv_proj.weight", Packing::Value),
            (Slot::Gate, "model.layers.{l}.mlp.gate_up_proj.weight", Packing::FirstHalf),
            (Slot::Up, "model.layers.{l}.mlp.gate_up_proj.weight", Packing::SecondHalf),
        ],
        defaults: &[
            ("rms_norm_eps", Setting::Number(1e-5)),
            ("original_max_position_embeddings", Setting::Number(4096.0)),
            ("max_position_embeddings", Setting::Number(4096.0)),
        ],
        reads: &["partial_rotary_factor"],
        windows: Windows::Every,
        qkv_bias: Bias::Never,
        out_bias: Bias::Never,
        mlp_bias: Bias::Never,
        ..LLAMA
    },
    Family {
        architecture: "SmolLM3ForCausalLM",
        defaults: &[
            ("tie_word_embeddings", Setting::Flag(true)),
            ("no_rope_layer_interval", Setting::Number(4.0)),
            ("rope_theta", Setting::Number(2_000_000.0)),
        ],
        reads: &["layer_types", "no_rope_layers", "no_rope_layer_interval"],
        windows: Windows::Unrotated,
        ..LLAMA
    },
    Family {
        architecture: "Olmo2ForCausalLM",
        names: &[
            (Slot::AttentionNormAfter, "model.layers.{l}.post_attention_layernorm.weight", Packing::Whole),
            (Slot::MlpNormAfter, "model.layers.{l}.post_feedforward_layernorm.weight", Packing::Whole),
        ],
        defaults: &[("rms_norm_eps", Setting::Number(1e-5))],
        qk_norm: QkNorm::Full,
        mlp_bias: Bias::Never,
        placement: Placement::After,
        ..LLAMA
    },
    Family {
        architecture: "GraniteForCausalLM",
        defaults: &[("attention_multiplier", Setting::Number(1.0))],
        reads: &["attention_multiplier", "embedding_multiplier", "residual_multiplier", "logits_scaling"],
        ..LLAMA
    },
    Family {
        architecture: "Qwen3MoeForCausalLM",
        defaults: &[("sliding_window", Setting::Number(4096.0)), ("norm_topk_prob", Setting::Flag(false))],
        reads: &[],
        windows: Windows::IfAsked,
        experts: Experts::Qwen,
        ..QWEN3
    },
    MIXTRAL,
    GPT_OSS,
];

/// The names that most checkpoints share. `{l}` is a layer, `{e}` an expert; an expert's tensor without `{e}` is a
/// stack of all of them.
pub static HUGGING_FACE: &[Name] = &[
    (Slot::Embedding, "model.embed_tokens.weight", Packing::Whole),
    (Slot::FinalNorm, "model.norm.weight", Packing::Whole),
    (Slot::Head, "lm_head.weight", Packing::Whole),
    (Slot::AttentionNormBefore, "model.layers.{l}.input_layernorm.weight", Packing::Whole),
    (Slot::MlpNormBefore, "model.layers.{l}.post_attention_layernorm.weight", Packing::Whole),
    (Slot::Query, "model.layers.{l}.self_attn.q_proj.weight", Packing::Whole),
    (Slot::Key, "model.layers.{l}.self_attn.k_proj.weight", Packing::Whole),
    (Slot::Value, "model.layers.{l}.self_attn.v_proj.weight", Packing::Whole),
    (Slot::Output, "model.layers.{l}.self_attn.o_proj.weight", Packing::Whole),
    (Slot::QueryBias, "model.layers.{l}.self_attn.q_proj.bias", Packing::Whole),
    (Slot::KeyBias, "model.layers.{l}.self_attn.k_proj.bias", Packing::Whole),
    (Slot::ValueBias, "model.layers.{l}.self_attn.v_proj.bias", Packing::Whole),
    (Slot::OutputBias, "model.layers.{l}.self_attn.o_proj.bias", Packing::Whole),
    (Slot::QueryNorm, "model.layers.{l}.self_attn.q_norm.weight", Packing::Whole),
    (Slot::KeyNorm, "model.layers.{l}.self_attn.k_norm.weight", Packing::Whole),
    (Slot::Sinks, "model.layers.{l}.self_attn.sinks", Packing::Whole),
    (Slot::Gate, "model.layers.{l}.mlp.gate_proj.weight", Packing::Whole),
    (Slot::Up, "model.layers.{l}.mlp.up_proj.weight", Packing::Whole),
    (Slot::Down, "model.layers.{l}.mlp.down_proj.weight", Packing::Whole),
    (Slot::GateBias, "model.layers.{l}.mlp.gate_proj.bias", Packing::Whole),
    (Slot::UpBias, "model.layers.{l}.mlp.up_proj.bias", Packing::Whole),
    (Slot::DownBias, "model.layers.{l}.mlp.down_proj.bias", Packing::Whole),
    (Slot::Router, "model.layers.{l}.mlp.gate.weight", Packing::Whole),
    (Slot::ExpertGate, "model.layers.{l}.mlp.experts.{e}.gate_proj.weight", Packing::Whole),
    (Slot::ExpertUp, "model.layers.{l}.mlp.experts.{e}.up_proj.weight", Packing::Whole),
    (Slot::ExpertDown, "model.layers.{l}.mlp.experts.{e}.down_proj.weight", Packing::Whole),
];
