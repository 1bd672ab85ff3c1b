//! The flags of vLLM's engine, for `vllm serve` and for KServe's huggingfaceserver.
//!
//! What only makes vLLM faster, or fit its devices, has no use here and is named. What would make answers others than
//! asked for (another tokenizer, another configuration, defaults of requests) is refused.

use super::vllm::{PYTHON, always, human, idle, is_auto, refused};
use super::{Becomes, Foreign, Rewrite, Takes, unless_same};

const TOKENIZER: &str = "the tokenizer comes from the model's files; put its files there";
const CONFIGURATION: &str = "what is computed comes from the model's config.json; change it there";
const GENERATION: &str = "defaults of requests come from the model's generation_config.json; change it there";
const TEXT_ALONE: &str = "not built yet: this server does text generation";
const LOGPROBS: &str = "logprobs are those before temperature and penalties, raw_logprobs";
const NODES: &str = "this server is one process on one machine; start another for each further one";

/// Formats of weights: those that the files themselves tell are read as auto. The others are not read.
const FORMATS: &[&str] = &[
    "auto",
    "dummy",
    "hf",
    "safetensors",
    "gguf",
    "mistral",
    "fastsafetensors",
    "instanttensor",
    "pt",
    "npcache",
    "tensorizer",
    "sharded_state",
    "bitsandbytes",
    "runai_streamer",
    "runai_streamer_sharded",
];

/// How keys and values are stored here.
const KEYS_AND_VALUES: &[&str] = &["auto", "bfloat16", "fp8", "fp8_e4m3"];

/// Flags besides ours.
pub(super) const FLAGS: &[Foreign] = &[
    Foreign::new("max-model-len", Takes::Human, Becomes::Rewritten("max-model-len", unless_auto)),
    Foreign::new("max-num-seqs", Takes::Human, Becomes::Rewritten("max-num-seqs", count)),
    Foreign::new("max-num-batched-tokens", Takes::Human, Becomes::Rewritten("max-num-batched-tokens", count)),
    Foreign::new("max-num-queued-reqs", Takes::Human, Becomes::Rewritten("queue-size", count)),
    Foreign::new("kv-cache-memory-bytes", Takes::Human, Becomes::Rewritten("kv-cache-bytes", count)),
    Foreign::new("kv-cache-dtype", Takes::OneOf(KEYS_AND_VALUES), Becomes::Own("kv-cache-dtype")),
    Foreign::new("device", Takes::OneOf(&["auto", "cpu", "cuda"]), Becomes::Own("device")),
    Foreign::new("load-format", Takes::OneOf(FORMATS), Becomes::Rewritten("load-format", format)),
    Foreign::new("reasoning-parser", Takes::Text, Becomes::Own("reasoning-parser")),
    Foreign::new("otlp-traces-endpoint", Takes::Text, Becomes::Rewritten("otlp-endpoint", collector)),
    Foreign::new("runner", Takes::Text, Becomes::RefusedUnless(generates, TEXT_ALONE)),
    Foreign::new("task", Takes::Text, Becomes::RefusedUnless(generates, TEXT_ALONE)),
    Foreign::new("convert", Takes::Text, Becomes::RefusedUnless(converts_nothing, TEXT_ALONE)),
    Foreign::new("tokenizer-mode", Takes::Text, Becomes::RefusedUnless(is_usual_tokenizer, TOKENIZER)),
    Foreign::new("config-format", Takes::Text, Becomes::RefusedUnless(is_usual_configuration, CONFIGURATION)),
    Foreign::new("generation-config", Takes::Text, Becomes::RefusedUnless(is_auto, GENERATION)),
    Foreign::new("hf-overrides", Takes::Text, Becomes::RefusedUnless(is_empty_object, CONFIGURATION)),
    Foreign::new("logprobs-mode", Takes::Text, Becomes::RefusedUnless(is_raw, LOGPROBS)),
    Foreign::new("nnodes", Takes::Integer, Becomes::RefusedUnless(is_one, NODES)),
    Foreign::new("node-rank", Takes::Integer, Becomes::RefusedUnless(is_first, NODES)),
    refused("tokenizer", Takes::Text, TOKENIZER),
    refused("hf-config-path", Takes::Text, CONFIGURATION),
    refused("rope-scaling", Takes::Text, CONFIGURATION),
    refused("rope-theta", Takes::Number, CONFIGURATION),
    refused("override-generation-config", Takes::Text, GENERATION),
    refused("logits-processors", Takes::Words, PYTHON),
    refused("reasoning-parser-plugin", Takes::Text, PYTHON),
    always("enable-prefix-caching", Takes::Switch),
    always("enable-chunked-prefill", Takes::Switch),
    always("async-scheduling", Takes::Switch),
    always("disable-log-requests", Takes::Switch),
    // Where the model and its files come from: a directory, and nowhere else.
    idle("revision", Takes::Text),
    idle("code-revision", Takes::Text),
    idle("tokenizer-revision", Takes::Text),
    idle("hf-token", Takes::Text),
    idle("download-dir", Takes::Text),
    idle("trust-remote-code", Takes::Switch),
    idle("model-impl", Takes::Text),
    idle("model-weights", Takes::Text),
    idle("model-loader-extra-config", Takes::Text),
    idle("safetensors-load-strategy", Takes::Text),
    idle("ignore-patterns", Takes::Words),
    idle("use-tqdm-on-load", Takes::Switch),
    idle("pt-load-map-location", Takes::Text),
    idle("max-parallel-loading-workers", Takes::Integer),
    // Numbers: they are computed in the format that the files have.
    idle("quantization", Takes::Text),
    idle("quantization-config", Takes::Text),
    idle("allow-deprecated-quantization", Takes::Switch),
    idle("override-attention-dtype", Takes::Text),
    idle("kv-cache-dtype-skip-layers", Takes::Words),
    idle("calculate-kv-scales", Takes::Switch),
    idle("seed", Takes::Integer),
    // Memory.
    idle("gpu-memory-utilization", Takes::Number),
    idle("swap-space", Takes::Number),
    idle("cpu-offload-gb", Takes::Number),
    idle("cpu-offload-params", Takes::Words),
    idle("offload-backend", Takes::Text),
    idle("kv-offloading-size", Takes::Number),
    idle("kv-offloading-backend", Takes::Text),
    idle("block-size", Takes::Integer),
    idle("num-gpu-blocks-override", Takes::Integer),
    idle("prefix-caching-hash-algo", Takes::Text),
    idle("kv-sharing-fast-prefill", Takes::Switch),
    idle("disable-hybrid-kv-cache-manager", Takes::Switch),
    idle("mamba-cache-dtype", Takes::Text),
    idle("mamba-ssm-cache-dtype", Takes::Text),
    idle("mamba-block-size", Takes::Integer),
    idle("mamba-cache-mode", Takes::Text),
    idle("enable-sleep-mode", Takes::Switch),
    idle("enable-cumem-allocator", Takes::Switch),
    // Several devices and machines.
    idle("tensor-parallel-size", Takes::Integer),
    idle("pipeline-parallel-size", Takes::Integer),
    idle("decode-context-parallel-size", Takes::Integer),
    idle("prefill-context-parallel-size", Takes::Integer),
    idle("data-parallel-size", Takes::Integer),
    idle("data-parallel-size-local", Takes::Integer),
    idle("data-parallel-rank", Takes::Integer),
    idle("data-parallel-start-rank", Takes::Integer),
    idle("data-parallel-address", Takes::Text),
    idle("data-parallel-rpc-port", Takes::Integer),
    idle("data-parallel-backend", Takes::Text),
    idle("data-parallel-hybrid-lb", Takes::Switch),
    idle("data-parallel-external-lb", Takes::Switch),
    idle("data-parallel-multi-port-external-lb", Takes::Switch),
    idle("enable-expert-parallel", Takes::Switch),
    idle("all2all-backend", Takes::Text),
    idle("enable-dbo", Takes::Switch),
    idle("enable-eplb", Takes::Switch),
    idle("eplb-config", Takes::Text),
    idle("expert-placement-strategy", Takes::Text),
    idle("distributed-executor-backend", Takes::Text),
    idle("distributed-timeout-seconds", Takes::Integer),
    idle("disable-custom-all-reduce", Takes::Switch),
    idle("ray-workers-use-nsight", Takes::Switch),
    idle("master-addr", Takes::Text),
    idle("master-port", Takes::Integer),
    idle("device-ids", Takes::Words),
    idle("worker-cls", Takes::Text),
    idle("worker-extension-cls", Takes::Text),
    // How steps are put together and computed.
    idle("enforce-eager", Takes::Switch),
    idle("max-logprobs", Takes::Integer),
    idle("max-num-queued-tokens", Takes::Human),
    idle("max-num-scheduled-tokens", Takes::Human),
    idle("max-num-partial-prefills", Takes::Integer),
    idle("max-long-partial-prefills", Takes::Integer),
    idle("long-prefill-token-threshold", Takes::Integer),
    idle("max-seq-len-to-capture", Takes::Integer),
    idle("cudagraph-capture-sizes", Takes::Words),
    idle("max-cudagraph-capture-size", Takes::Integer),
    idle("scheduling-policy", Takes::OneOf(&["fcfs", "priority"])),
    idle("scheduler-cls", Takes::Text),
    idle("stream-interval", Takes::Integer),
    idle("disable-cascade-attn", Takes::Switch),
    idle("disable-sliding-window", Takes::Switch),
    idle("disable-chunked-mm-input", Takes::Switch),
    idle("attention-backend", Takes::Text),
    idle("attention-config", Takes::Text),
    idle("kernel-config", Takes::Text),
    idle("moe-backend", Takes::Text),
    idle("compilation-config", Takes::Text),
    idle("optimization-level", Takes::Text),
    idle("performance-mode", Takes::Text),
    idle("additional-config", Takes::Text),
    idle("speculative-config", Takes::Text),
    idle("spec-method", Takes::Text),
    idle("spec-model", Takes::Text),
    idle("spec-tokens", Takes::Integer),
    idle("kv-transfer-config", Takes::Text),
    idle("kv-events-config", Takes::Text),
    idle("ec-transfer-config", Takes::Text),
    idle("weight-transfer-config", Takes::Text),
    idle("numa-bind", Takes::Switch),
    idle("renderer-num-workers", Takes::Integer),
    // What is not served: a request that asks for it is told.
    idle("enable-lora", Takes::Switch),
    idle("max-loras", Takes::Integer),
    idle("max-lora-rank", Takes::Integer),
    idle("max-cpu-loras", Takes::Integer),
    idle("lora-dtype", Takes::Text),
    idle("lora-extra-vocab-size", Takes::Integer),
    idle("lora-target-modules", Takes::Words),
    idle("fully-sharded-loras", Takes::Switch),
    idle("default-mm-loras", Takes::Text),
    idle("enable-prompt-embeds", Takes::Switch),
    idle("skip-tokenizer-init", Takes::Switch),
    idle("pooler-config", Takes::Text),
    idle("override-pooler-config", Takes::Text),
    idle("language-model-only", Takes::Switch),
    idle("limit-mm-per-prompt", Takes::Text),
    idle("enable-mm-embeds", Takes::Switch),
    idle("interleave-mm-strings", Takes::Switch),
    idle("media-io-kwargs", Takes::Text),
    idle("mm-processor-kwargs", Takes::Text),
    idle("mm-processor-cache-gb", Takes::Number),
    idle("mm-processor-cache-type", Takes::Text),
    idle("mm-shm-cache-max-object-size-mb", Takes::Integer),
    idle("mm-encoder-tp-mode", Takes::Text),
    idle("mm-encoder-attn-backend", Takes::Text),
    idle("disable-mm-preprocessor-cache", Takes::Switch),
    idle("skip-mm-profiling", Takes::Switch),
    idle("video-pruning-rate", Takes::Number),
    idle("allowed-local-media-path", Takes::Text),
    idle("allowed-media-domains", Takes::Words),
    idle("io-processor-plugin", Takes::Text),
    idle("logits-processor-pattern", Takes::Text),
    // How forms are compiled, and thoughts are limited.
    idle("structured-outputs-config", Takes::Text),
    idle("guided-decoding-backend", Takes::Text),
    idle("reasoning-config", Takes::Text),
    idle("enable-reasoning", Takes::Switch),
    // What is logged and counted.
    idle("collect-detailed-traces", Takes::Words),
    idle("disable-log-stats", Takes::Switch),
    idle("enable-log-requests", Takes::Switch),
    idle("aggregate-engine-logging", Takes::Switch),
    idle("show-hidden-metrics-for-version", Takes::Text),
    idle("kv-cache-metrics", Takes::Switch),
    idle("cudagraph-metrics", Takes::Switch),
    idle("enable-mfu-metrics", Takes::Switch),
    idle("profiler-config", Takes::Text),
    idle("fail-on-environ-validation", Takes::Switch),
];

/// The number itself; what is none is left to our own flag to refuse.
fn count(value: &str) -> Rewrite {
    Rewrite::To(human(value).map_or_else(|| value.to_owned(), |number| number.to_string()))
}

fn unless_auto(value: &str) -> Rewrite {
    if is_auto(value) { Rewrite::Same } else { count(value) }
}

fn format(value: &str) -> Rewrite {
    let ours = match value {
        "auto" | "hf" | "safetensors" | "gguf" | "mistral" | "fastsafetensors" | "instanttensor" => "auto",
        other => other,
    };
    Rewrite::To(ours.to_owned())
}

/// vLLM's own examples say `grpc://`.
fn collector(value: &str) -> Rewrite {
    let bare = value.strip_prefix("grpc://").map(|rest| format!("http://{rest}"));
    unless_same((!value.is_empty()).then(|| bare.unwrap_or_else(|| value.to_owned())))
}

fn generates(value: &str) -> bool {
    matches!(value, "auto" | "generate")
}

fn converts_nothing(value: &str) -> bool {
    matches!(value, "auto" | "none")
}

fn is_usual_tokenizer(value: &str) -> bool {
    matches!(value, "auto" | "hf" | "slow")
}

fn is_usual_configuration(value: &str) -> bool {
    matches!(value, "auto" | "hf")
}

/// It overrides nothing.
fn is_empty_object(value: &str) -> bool {
    type Fields = serde_json::Map<String, serde_json::Value>;
    serde_json::from_str::<Fields>(value).is_ok_and(|fields| fields.is_empty())
}

fn is_raw(value: &str) -> bool {
    value == "raw_logprobs"
}

fn is_one(value: &str) -> bool {
    value == "1"
}

fn is_first(value: &str) -> bool {
    value == "0"
}
