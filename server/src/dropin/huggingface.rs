//! What KServe's huggingfaceserver has besides the flags of KServe's servers (`kserve.rs`) and of vLLM's engine
//! (`engine.rs`). It serves several tasks, of which text generation is built.

use super::vllm::idle;
use super::{Becomes, Foreign, Takes};

const TASK: &str = "not built yet: this server does text generation";

/// Flags, as spelled there.
pub(super) const FLAGS: &[Foreign] = &[
    // A model of a hub is no directory, and that is said when it is looked for.
    Foreign::new("model_id", Takes::Text, Becomes::Own("model-dir")),
    Foreign::new("max_length", Takes::Integer, Becomes::Own("max-model-len")),
    Foreign::new("task", Takes::Text, Becomes::RefusedUnless(is_built, TASK)),
    idle("model_revision", Takes::Text),
    idle("backend", Takes::OneOf(&["auto", "huggingface", "vllm", "triton"])),
    idle("disable_lower_case", Takes::Nothing),
    idle("disable_special_tokens", Takes::Nothing),
    idle("tensor_input_names", Takes::Text),
    idle("return_token_type_ids", Takes::Nothing),
    idle("return_offsets_mapping", Takes::Nothing),
    idle("return_probabilities", Takes::Nothing),
    idle("return_raw_logits", Takes::Nothing),
];

fn is_built(task: &str) -> bool {
    task == "text_generation"
}

/// Does only huggingfaceserver spell a flag so?
pub(super) fn spells(name: &str) -> bool {
    name.contains('_') && FLAGS.iter().any(|row| row.name == name)
}
