//! The command line of KServe's Python servers: xgbserver, lgbserver, sklearnserver, predictiveserver. What
//! huggingfaceserver has besides is in `huggingface.rs`.
//!
//! `--model_name`, `--model_dir`, `--http_port`, `--grpc_port` and `--nthread` are ours as well and not listed.

use super::{Becomes, Foreign, Rewrite, Takes, say, wider_body};
use crate::args::flags::PREFIX;
use crate::args::{Args, Origin};

/// How warnings and `config show` name it.
pub(super) const PROGRAM: &str = "KServe's servers";

/// Names that we know with dashes: an underscore in one says that the line is KServe's.
pub(super) const SPELLED: &[&str] = &["model_name", "model_dir", "http_port", "grpc_port"];

const PROTOCOLS: &[&str] = &["v1", "v2", "grpc-v2"];

/// Flags besides ours, as spelled there.
pub(super) const FLAGS: &[Foreign] = &[
    Foreign::new("enable_grpc", Takes::Bool, Becomes::Listener("grpc-port")),
    Foreign::new("ssl_certfile", Takes::Text, Becomes::Own("tls-cert")),
    Foreign::new("ssl_keyfile", Takes::Text, Becomes::Own("tls-key")),
    Foreign::new("timeout-keep-alive", Takes::Integer, Becomes::Rewritten("idle-timeout", keep_alive)),
    Foreign::new("grpc_max_receive_message_length", Takes::Integer, Becomes::Rewritten("max-body-size", wider_body)),
    Foreign::new("grpc_max_send_message_length", Takes::Integer, Becomes::Nothing),
    Foreign::new("workers", Takes::Integer, Becomes::Nothing),
    Foreign::new("max_threads", Takes::Integer, Becomes::Nothing),
    Foreign::new("max_asyncio_workers", Takes::Integer, Becomes::Nothing),
    Foreign::new("enable_docs_url", Takes::Bool, Becomes::Nothing),
    Foreign::new("enable_latency_logging", Takes::Bool, Becomes::Nothing),
    Foreign::new("configure_logging", Takes::Bool, Becomes::Nothing),
    Foreign::new("log_config_file", Takes::Text, Becomes::Nothing),
    Foreign::new("access_log_format", Takes::Text, Becomes::Nothing),
    Foreign::new("event-loop", Takes::OneOf(&["auto", "asyncio", "uvloop"]), Becomes::Nothing),
    Foreign::new("framework", Takes::Text, Becomes::Nothing),
    Foreign::new("protocol", Takes::OneOf(PROTOCOLS), Becomes::Nothing),
    Foreign::new("predictor_host", Takes::Text, Becomes::Nothing),
    Foreign::new("predictor_protocol", Takes::OneOf(PROTOCOLS), Becomes::Nothing),
    Foreign::new("predictor_use_ssl", Takes::Bool, Becomes::Nothing),
    Foreign::new("predictor_request_timeout_seconds", Takes::Integer, Becomes::Nothing),
    Foreign::new("predictor_request_retries", Takes::Integer, Becomes::Nothing),
    Foreign::new("enable_predictor_health_check", Takes::Nothing, Becomes::Nothing),
];

/// 0 is KServe's way of closing a connection right after its answer; a second is the shortest here.
fn keep_alive(value: &str) -> Rewrite {
    let seconds = value.parse::<i64>().unwrap_or(0).max(1);
    Rewrite::To(format!("{seconds}s"))
}

/// With the delay before it, this fits into the 30 s that a pod of KServe's gets to end.
const DRAIN_TIMEOUT: &str = "20s";

/// Where KServe puts a model; its runtime for huggingfaceserver says no more than a name.
const MODEL_DIR: &str = "/mnt/models";

/// KServe's default model and name, the time that its pods have to end, and its port for HTTPS.
pub(super) fn finish(args: &mut Args) -> Result<(), String> {
    say(args, "model-dir", MODEL_DIR, Origin::Program(PROGRAM))?;
    say(args, "model-name", "model", Origin::Program(PROGRAM))?;
    say(args, "drain-timeout", DRAIN_TIMEOUT, Origin::Program(PROGRAM))?;
    let (certificate, _) = args.word("tls-cert");
    let kserves = match &certificate {
        Origin::Flag(spelled) => spelled.contains("ssl"),
        Origin::Env(name) => !name.starts_with(PREFIX),
        _ => false,
    };
    // KServe moves to 8443 when there is a certificate and the port is 8080, even an 8080 that was asked for: the
    // Service in front is made for that.
    let (origin, port) = args.word("http-port");
    if kserves && args.word("tls-key").1.is_some() && port == Some("8080") {
        let origin = if certificate.rank() < origin.rank() { origin } else { certificate };
        say(args, "http-port", "8443", origin)?;
    }
    Ok(())
}
