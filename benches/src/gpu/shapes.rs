//! Models by their sizes, and what a step of each has to move and to compute.

use super::Needs;
use crate::Failure;
use backends::llm::spec::DecoderSpec;
use backends::llm::weights::Format;
use backends::llm::weights::dummy::{Dummy, Init};
use std::path::Path;

/// Bytes of a bf16 number.
const BF16: usize = 2;

/// A model that is measured.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    /// As rows call it.
    pub(super) name: &'static str,
    config: &'static str,
    toy: &'static str,
    /// Are weights, keys and values floats of eight bits?
    pub(super) eight_bits: bool,
}

/// A small model, whose steps are many short launches.
pub(super) const QWEN: Shape = Shape {
    name: "qwen3-0.6b",
    config: r#"{"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_size": 1024,
        "num_hidden_layers": 28, "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128,
        "intermediate_size": 3072, "vocab_size": 151936, "max_position_embeddings": 40960, "rms_norm_eps": 1e-6,
        "rope_theta": 1e6, "tie_word_embeddings": true, "hidden_act": "silu", "attention_bias": false,
        "torch_dtype": "bfloat16"}"#,
    toy: r#"{"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "intermediate_size": 96, "vocab_size": 300,
        "max_position_embeddings": 4096, "rms_norm_eps": 1e-6, "rope_theta": 1e6, "tie_word_embeddings": true,
        "hidden_act": "silu", "attention_bias": false, "torch_dtype": "bfloat16"}"#,
    eight_bits: false,
};

/// A model of the size that most are served in.
pub(super) const LLAMA: Shape = Shape {
    name: "llama-3.1-8b",
    config: r#"{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 4096,
        "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128,
        "intermediate_size": 14336, "vocab_size": 128256, "max_position_embeddings": 131072, "rms_norm_eps": 1e-5,
        "rope_theta": 5e5, "rope_scaling": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192, "rope_type": "llama3"}, "tie_word_embeddings": false,
        "hidden_act": "silu", "attention_bias": false, "torch_dtype": "bfloat16"}"#,
    // Of a size that all kernels know.
    toy: r#"{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 128, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "intermediate_size": 128, "vocab_size": 300,
        "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "rope_theta": 5e5, "tie_word_embeddings": false,
        "hidden_act": "silu", "attention_bias": false, "torch_dtype": "bfloat16"}"#,
    eight_bits: false,
};

impl Shape {
    /// The same in floats of eight bits.
    pub(super) fn in_eight_bits(self) -> Self {
        Shape { eight_bits: true, ..self }
    }

    /// Weights that nobody trained.
    pub(super) fn weights(&self, spec: &DecoderSpec) -> Result<Dummy, Failure> {
        let weights = Dummy::new(spec, Format::Bf16, Init::FanIn, 0)?;
        Ok(if self.eight_bits { weights.in_eight_bits() } else { weights })
    }

    /// One step of decoding. In eight bits a card moves half of everything, and its units do twice as much.
    pub(super) fn decode(&self, spec: &DecoderSpec, rows: usize, context: usize) -> Needs {
        let Needs { bytes, operations, alone } = decode(spec, rows, context);
        let times = if self.eight_bits { 2 } else { 1 };
        Needs { bytes: bytes / times, operations: operations / times, alone: alone / times }
    }

    /// What it computes.
    pub(super) fn spec(&self, small: bool) -> Result<DecoderSpec, Failure> {
        let config = if small { self.toy } else { self.config };
        Ok(DecoderSpec::from_config(Path::new(self.name), config.as_bytes())?)
    }
}

/// The matrices of a layer, as (name, outputs, inputs).
pub(super) fn matrices(spec: &DecoderSpec) -> [(&'static str, usize, usize); 4] {
    let (query, kv) = (spec.attention.query_width(), spec.attention.kv_width());
    [
        ("qkv", query + 2 * kv, spec.hidden),
        ("output", spec.hidden, query),
        ("gate-up", 2 * spec.intermediate, spec.hidden),
        ("down", spec.hidden, spec.intermediate),
    ]
}

/// Bytes of the matrices of all layers, and of the head.
fn matrix_bytes(spec: &DecoderSpec) -> (usize, usize) {
    let layer: usize = matrices(spec).iter().map(|(_, outputs, inputs)| outputs * inputs).sum();
    (spec.layers.len() * layer * BF16, spec.vocab * spec.hidden * BF16)
}

/// Bytes of keys and values of so many positions.
fn cache_bytes(spec: &DecoderSpec, positions: usize) -> usize {
    2 * spec.layers.len() * spec.attention.kv_width() * positions * BF16
}

/// One step of decoding `rows` sequences whose contexts are so long.
fn decode(spec: &DecoderSpec, rows: usize, context: usize) -> Needs {
    let (layers, head) = matrix_bytes(spec);
    // Two bytes are one number, and two operations for each row.
    let operations = rows * (layers + head);
    Needs { bytes: layers + head, operations, alone: cache_bytes(spec, rows * context) }
}

/// A prompt of so many tokens, and its first token.
pub(super) fn prompt(spec: &DecoderSpec, tokens: usize) -> Needs {
    let (layers, head) = matrix_bytes(spec);
    Needs { bytes: layers, operations: tokens * layers, alone: head + cache_bytes(spec, tokens) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The limits of an H200 that the goals were set by: 4,300 GB/s, 790 TFLOP/s.
    #[test]
    fn limits_are_those_that_goals_were_set_by() {
        let (qwen, llama) = (QWEN.spec(false).unwrap(), LLAMA.spec(false).unwrap());
        let rate = |spec: &DecoderSpec, rows: usize| rows as f64 / decode(spec, rows, 1024).seconds(4300.0, 790.0);
        let near = |got: f64, want: f64| assert!((got / want - 1.0).abs() < 0.01, "{got} is not {want}");
        near(rate(&qwen, 1), 3284.0);
        near(rate(&llama, 1), 284.0);
        near(rate(&llama, 32), 7128.0);
        near(rate(&llama, 256), 19_900.0);
        near(256.0 / LLAMA.in_eight_bits().decode(&llama, 256, 1024).seconds(4300.0, 790.0), 39_800.0);
        near(prompt(&llama, 1024).seconds(4300.0, 790.0) * 1e3, 18.5);
    }
}
