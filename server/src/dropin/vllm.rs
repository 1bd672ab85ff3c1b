//! The command line of `vllm serve`: its server and front end, what its values mean here, and its defaults. The flags
//! of its engine, which KServe's huggingfaceserver has as well, are in `engine.rs`.
//!
//! Flags that are ours as well are not listed: `--host`, `--grpc-port`.

use super::{Becomes, Foreign, Rewrite, Takes, say, seconds, truth, unless_same};
use crate::args::{Args, Origin};

/// The word, or the name of the executable, that chooses this list.
pub(super) const PROGRAM: &str = "vllm";

/// The release whose flags are in these tables. KServe asks vLLM for its release before it starts it, and leaves out the
/// flags that an older one did not have.
pub(super) const RELEASE: &str = "0.33.0";

/// Flags with one dash, by their long names.
pub(super) const SHORT: &[(&str, &str)] = &[
    ("-tp", "tensor-parallel-size"),
    ("-pp", "pipeline-parallel-size"),
    ("-dcp", "decode-context-parallel-size"),
    ("-pcp", "prefill-context-parallel-size"),
    ("-dp", "data-parallel-size"),
    ("-dpl", "data-parallel-size-local"),
    ("-dpn", "data-parallel-rank"),
    ("-dpr", "data-parallel-start-rank"),
    ("-dpa", "data-parallel-address"),
    ("-dpp", "data-parallel-rpc-port"),
    ("-dpb", "data-parallel-backend"),
    ("-dph", "data-parallel-hybrid-lb"),
    ("-dpe", "data-parallel-external-lb"),
    ("-dpm", "data-parallel-multi-port-external-lb"),
    ("-ep", "enable-expert-parallel"),
    ("-n", "nnodes"),
    ("-r", "node-rank"),
    ("-q", "quantization"),
    ("-O", "optimization-level"),
    ("-cc", "compilation-config"),
    ("-ac", "attention-config"),
    ("-sc", "speculative-config"),
    ("-asc", "api-server-count"),
];

const KEYS: &str = "keys come from a file that others cannot read; use --api-keys-file, with one key to a line";
const CERTIFICATES: &str = "clients are not asked for certificates here; use --api-keys-file";
const SOCKET: &str = "a port in place of a socket would be open to others; use --host 127.0.0.1 and --port";
const GRPC: &str = "vLLM's gRPC service is not served; leave it out, and --grpc-port serves KServe's";
const ALONE: &str = "engines of one deployment do not work together here; start each as a server of its own";
pub(super) const PYTHON: &str = "Python is not run here; leave it out";
const ADAPTERS: &str = "adapters are not served yet; merge it into the model, or leave it out";
const TEMPLATE: &str = "the chat template comes from the model's files; put it there as chat_template.jinja";
const OF_REQUESTS: &str = "a default for all requests cannot be set; requests may say it";
const ROLE: &str = "answers are those of the assistant";

const LOG_LEVELS: &[&str] = &["critical", "error", "warning", "info", "debug", "trace"];

/// What is left here of a flag that vLLM's own machinery needs.
pub(super) const fn idle(name: &'static str, takes: Takes) -> Foreign {
    Foreign::new(name, takes, Becomes::Nothing)
}

/// What is so here in any case.
pub(super) const fn always(name: &'static str, takes: Takes) -> Foreign {
    Foreign::new(name, takes, Becomes::Always)
}

/// What would change answers, or be unsafe to pass over.
pub(super) const fn refused(name: &'static str, takes: Takes, reason: &'static str) -> Foreign {
    Foreign::new(name, takes, Becomes::Refused(reason))
}

/// Flags of the server, which huggingfaceserver does not have: it is one itself.
pub(super) const SERVER: &[Foreign] = &[
    Foreign::new("model", Takes::Text, Becomes::Own("model-dir")),
    Foreign::new("served-model-name", Takes::Words, Becomes::Names("model-name", "model-alias")),
    Foreign::new("port", Takes::Integer, Becomes::Own("http-port")),
    Foreign::new("ssl-certfile", Takes::Text, Becomes::Rewritten("tls-cert", unless_empty)),
    Foreign::new("ssl-keyfile", Takes::Text, Becomes::Rewritten("tls-key", unless_empty)),
    Foreign::new("shutdown-timeout", Takes::Integer, Becomes::Rewritten("drain-timeout", seconds)),
    Foreign::new("uvicorn-log-level", Takes::OneOf(LOG_LEVELS), Becomes::Rewritten("log-level", level)),
    Foreign::new("ssl-cert-reqs", Takes::Integer, Becomes::RefusedUnless(is_zero, CERTIFICATES)),
    Foreign::new("allowed-origins", Takes::Text, Becomes::Rewritten("allowed-origins", origins)),
    refused("api-key", Takes::Words, KEYS),
    refused("uds", Takes::Text, SOCKET),
    refused("grpc", Takes::Switch, GRPC),
    refused("headless", Takes::Switch, ALONE),
    refused("middleware", Takes::Text, PYTHON),
    always("enable-ssl-refresh", Takes::Switch),
    always("enable-request-id-headers", Takes::Switch),
    // Requests are in the log at level debug alone, and there are no pages to try the API on.
    always("disable-uvicorn-access-log", Takes::Switch),
    always("disable-access-log-for-endpoints", Takes::Text),
    always("disable-fastapi-docs", Takes::Switch),
    idle("ssl-ca-certs", Takes::Text),
    idle("ssl-ciphers", Takes::Text),
    idle("allow-credentials", Takes::Switch),
    idle("allowed-methods", Takes::Text),
    idle("allowed-headers", Takes::Text),
    idle("root-path", Takes::Text),
    idle("h11-max-incomplete-event-size", Takes::Integer),
    idle("h11-max-header-count", Takes::Integer),
    idle("enable-offline-docs", Takes::Switch),
    idle("enable-flash-late-interaction", Takes::Switch),
    idle("api-server-count", Takes::Integer),
    idle("disable-frontend-multiprocessing", Takes::Switch),
    idle("data-parallel-supervisor-port", Takes::Integer),
    idle("dp-supervisor-probe-interval-s", Takes::Number),
    idle("dp-supervisor-probe-timeout-s", Takes::Number),
    idle("dp-supervisor-probe-failure-threshold", Takes::Integer),
];

/// Flags of what stands between the API and the engine.
pub(super) const FRONT_END: &[Foreign] = &[
    Foreign::new("tool-call-parser", Takes::Text, Becomes::Own("tool-call-parser")),
    Foreign::new("enable-force-include-usage", Takes::Switch, Becomes::Rewritten("force-include-usage", switch)),
    Foreign::new("response-role", Takes::Text, Becomes::RefusedUnless(is_assistant, ROLE)),
    refused("chat-template", Takes::Text, TEMPLATE),
    refused("default-chat-template-kwargs", Takes::Text, OF_REQUESTS),
    refused("return-tokens-as-token-ids", Takes::Switch, OF_REQUESTS),
    refused("lora-modules", Takes::Words, ADAPTERS),
    refused("tool-parser-plugin", Takes::Text, PYTHON),
    always("enable-auto-tool-choice", Takes::Switch),
    always("enable-prompt-tokens-details", Takes::Switch),
    always("enable-server-load-tracking", Takes::Switch),
    idle("chat-template-content-format", Takes::OneOf(&["auto", "string", "openai"])),
    idle("trust-request-chat-template", Takes::Switch),
    idle("exclude-tools-when-tool-choice-none", Takes::Switch),
    idle("tool-server", Takes::Text),
    idle("log-config-file", Takes::Text),
    idle("max-log-len", Takes::Integer),
    idle("enable-log-outputs", Takes::Switch),
    idle("enable-log-deltas", Takes::Switch),
    idle("log-error-stack", Takes::Switch),
    idle("enable-per-request-metrics", Takes::Switch),
    idle("sse-keep-alive-interval", Takes::Number),
    idle("enable-tokenizer-info-endpoint", Takes::Switch),
    idle("tokens-only", Takes::Switch),
    idle("enable-scale-out", Takes::Switch),
    idle("fingerprint-mode", Takes::OneOf(&["full", "hash", "custom", "none"])),
    idle("fingerprint-value", Takes::Text),
    idle("cohere-is-reasoning-model", Takes::Switch),
    idle("cohere-format", Takes::Text),
];

/// Its variables that mean something here. Most of the others choose among vLLM's kernels.
pub(super) const VARIABLES: &[Foreign] = &[
    Foreign::new("VLLM_API_KEY", Takes::Text, Becomes::Refused(KEYS)),
    Foreign::new("VLLM_LOGGING_LEVEL", Takes::Text, Becomes::Rewritten("log-level", level)),
    Foreign::new("VLLM_CPU_KVCACHE_SPACE", Takes::Integer, Becomes::Rewritten("kv-cache-bytes", gibibytes)),
    Foreign::new("VLLM_HTTP_TIMEOUT_KEEP_ALIVE", Takes::Integer, Becomes::Rewritten("idle-timeout", seconds)),
];

/// As our own flags write it.
fn switch(value: &str) -> Rewrite {
    Rewrite::To((truth(value) == Some(true)).to_string())
}

/// A path that a template left out is none.
fn unless_empty(value: &str) -> Rewrite {
    unless_same((!value.is_empty()).then(|| value.to_owned()))
}

/// Python's levels, in either case.
fn level(value: &str) -> Rewrite {
    Rewrite::To(match value.to_ascii_lowercase().as_str() {
        "critical" | "fatal" => "error".to_owned(),
        "warning" => "warn".to_owned(),
        other => other.to_owned(),
    })
}

/// A list in JSON.
fn origins(value: &str) -> Rewrite {
    Rewrite::To(match serde_json::from_str::<Vec<String>>(value) {
        Ok(none) if none.is_empty() => "none".to_owned(),
        Ok(all) if all.iter().any(|origin| origin == "*") => "*".to_owned(),
        Ok(these) => these.join(","),
        Err(_) => value.to_owned(),
    })
}

/// 0 is vLLM's way of leaving it to the server.
fn gibibytes(value: &str) -> Rewrite {
    unless_same((value != "0").then(|| format!("{value}GiB")))
}

fn is_zero(value: &str) -> bool {
    value == "0"
}

fn is_assistant(value: &str) -> bool {
    value == "assistant"
}

/// Letters after numbers: small ones count in thousands, capitals in 1024s.
const LETTERS: &[(char, u64)] = &[
    ('k', 1_000),
    ('m', 1_000_000),
    ('g', 1_000_000_000),
    ('t', 1_000_000_000_000),
    ('K', 1 << 10),
    ('M', 1 << 20),
    ('G', 1 << 30),
    ('T', 1 << 40),
];

/// A whole number as vLLM reads it: `8192`, `8K`, `25.6k`. Only thousands have fractions.
pub(super) fn human(value: &str) -> Option<u64> {
    let lettered = LETTERS.iter().find_map(|(letter, factor)| Some((value.strip_suffix(*letter)?, *factor)));
    let (number, factor) = lettered.unwrap_or((value, 1));
    let plain = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    match number.split_once('.') {
        None if plain(number) => number.parse::<u64>().ok()?.checked_mul(factor),
        Some((whole, fraction)) if plain(whole) && plain(fraction) && factor.is_multiple_of(10) => {
            Some((number.parse::<f64>().ok()? * factor as f64) as u64)
        }
        _ => None,
    }
}

/// As many as the model, or the memory, has room for.
pub(super) fn is_auto(value: &str) -> bool {
    matches!(value, "auto" | "-1")
}

/// vLLM's defaults that are not ours: nobody loads or unloads models there, and any web page may ask. As with KServe's
/// servers, stopping fits into the 30 s that a pod gets.
const DEFAULTS: &[(&str, &str)] = &[
    ("http-port", "8000"),
    ("grpc-port", "off"),
    ("model-control-mode", "none"),
    ("drain-timeout", "20s"),
    ("allowed-origins", "*"),
];

/// vLLM's defaults, and what follows from what was said.
pub(super) fn finish(args: &mut Args) -> Result<(), String> {
    let program = || Origin::Program(PROGRAM);
    for (name, text) in DEFAULTS {
        say(args, name, text, program())?;
    }
    // The model is called what it was called on the command line.
    let model = args.word("model-dir").1.map(str::to_owned);
    if let Some(model) = model {
        say(args, "model-name", &model, program())?;
    }
    // Who says how long stopping may take means all of it; KServe's own hook has waited for the load balancers by then.
    if matches!(args.word("drain-timeout").0, Origin::Flag(spelled) if spelled.contains("shutdown")) {
        say(args, "drain-delay", "0s", program())?;
    }
    Ok(())
}
