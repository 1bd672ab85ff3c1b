//! The command line of `tritonserver`.
//!
//! Flags that are ours as well (ports, addresses, the model control mode) are not listed.

use super::{Becomes, Foreign, Rewrite, Takes, say, seconds, truth, unless_same};
use crate::args::{Args, Origin};

/// The word, or the name of the executable, that chooses this list.
pub(super) const PROGRAM: &str = "tritonserver";

const GRPC_TLS: &str =
    "TLS on the gRPC port alone is not offered; use --tls-cert and --tls-key, which hold for HTTP and gRPC";
const RESTRICTED: &str = "single APIs cannot be restricted; use --api-keys-file, which holds for all";

/// What is left here of a flag that Triton's own machinery needs.
const fn idle(name: &'static str, takes: Takes) -> Foreign {
    Foreign::new(name, takes, Becomes::Nothing)
}

/// Flags besides ours.
pub(super) const FLAGS: &[Foreign] = &[
    Foreign::new("model-store", Takes::Text, Becomes::Own("model-repository")),
    Foreign::new("allow-http", Takes::Bool, Becomes::Listener("http-port")),
    Foreign::new("allow-grpc", Takes::Bool, Becomes::Listener("grpc-port")),
    Foreign::new("allow-metrics", Takes::Bool, Becomes::Listener("metrics-port")),
    Foreign::new("exit-timeout-secs", Takes::Integer, Becomes::Rewritten("drain-timeout", seconds)),
    Foreign::new("http-max-input-size", Takes::Integer, Becomes::Own("max-body-size")),
    Foreign::new("log-verbose", Takes::Level, Becomes::Rewritten("log-level", verbose)),
    Foreign::new("log-info", Takes::Bool, Becomes::Rewritten("log-level", terse)),
    Foreign::new("log-format", Takes::OneOf(LOG_FORMATS), Becomes::Rewritten("log-format", own_format)),
    Foreign::new("grpc-use-ssl", Takes::Bool, Becomes::Refused(GRPC_TLS)),
    Foreign::new("grpc-use-ssl-mutual", Takes::Bool, Becomes::Refused(GRPC_TLS)),
    Foreign::new("http-restricted-api", Takes::Text, Becomes::Refused(RESTRICTED)),
    Foreign::new("grpc-restricted-protocol", Takes::Text, Becomes::Refused(RESTRICTED)),
    idle("id", Takes::Text),
    idle("exit-on-error", Takes::Bool),
    idle("strict-readiness", Takes::Bool),
    idle("model-config-name", Takes::Text),
    idle("model-load-thread-count", Takes::Integer),
    idle("model-load-retry-count", Takes::Integer),
    idle("model-load-gpu-limit", Takes::Text),
    idle("model-namespacing", Takes::Bool),
    idle("enable-peer-access", Takes::Bool),
    idle("disable-auto-complete-config", Takes::Nothing),
    idle("strict-model-config", Takes::Bool),
    idle("reuse-http-port", Takes::Bool),
    idle("http-header-forward-pattern", Takes::Text),
    idle("http-thread-count", Takes::Integer),
    idle("reuse-grpc-port", Takes::Bool),
    idle("grpc-header-forward-pattern", Takes::Text),
    idle("grpc-infer-thread-count", Takes::Integer),
    idle("grpc-infer-allocation-pool-size", Takes::Integer),
    idle("grpc-max-response-pool-size", Takes::Integer),
    idle("grpc-server-cert", Takes::Text),
    idle("grpc-server-key", Takes::Text),
    idle("grpc-root-cert", Takes::Text),
    idle("grpc-infer-response-compression-level", Takes::Text),
    idle("grpc-keepalive-time", Takes::Integer),
    idle("grpc-keepalive-timeout", Takes::Integer),
    idle("grpc-keepalive-permit-without-calls", Takes::Bool),
    idle("grpc-http2-max-pings-without-data", Takes::Integer),
    idle("grpc-http2-min-recv-ping-interval-without-data", Takes::Integer),
    idle("grpc-http2-max-ping-strikes", Takes::Integer),
    idle("grpc-max-connection-age", Takes::Integer),
    idle("grpc-max-connection-age-grace", Takes::Integer),
    idle("log-warning", Takes::Bool),
    idle("log-error", Takes::Bool),
    idle("log-file", Takes::Text),
    idle("allow-sagemaker", Takes::Bool),
    idle("sagemaker-port", Takes::Integer),
    idle("sagemaker-safe-port-range", Takes::Text),
    idle("sagemaker-thread-count", Takes::Integer),
    idle("allow-vertex-ai", Takes::Bool),
    idle("vertex-ai-port", Takes::Integer),
    idle("vertex-ai-thread-count", Takes::Integer),
    idle("vertex-ai-default-model", Takes::Text),
    idle("allow-gpu-metrics", Takes::Bool),
    idle("allow-cpu-metrics", Takes::Bool),
    idle("metrics-interval-ms", Takes::Number),
    idle("metrics-config", Takes::Text),
    idle("trace-config", Takes::Text),
    idle("trace-file", Takes::Text),
    idle("trace-level", Takes::Text),
    idle("trace-rate", Takes::Integer),
    idle("trace-count", Takes::Integer),
    idle("trace-log-frequency", Takes::Integer),
    idle("cache-config", Takes::Text),
    idle("cache-directory", Takes::Text),
    idle("response-cache-byte-size", Takes::Integer),
    idle("rate-limit", Takes::OneOf(&["off", "execution_count"])),
    idle("rate-limit-resource", Takes::Text),
    idle("pinned-memory-pool-byte-size", Takes::Integer),
    idle("cuda-memory-pool-byte-size", Takes::Text),
    idle("cuda-virtual-address-size", Takes::Text),
    idle("min-supported-compute-capability", Takes::Number),
    idle("buffer-manager-thread-count", Takes::Integer),
    idle("host-policy", Takes::Text),
    idle("backend-directory", Takes::Text),
    // Of its ONNX Runtime backend: one pool of threads for all models is what there is anyway
    // (enable-global-threadpool), and so are batches as large as what waits (default-max-batch-size).
    // intra_op_thread_count is no --nthread: instances that have one thread each compute beside each other there.
    idle("backend-config", Takes::Text),
    idle("repoagent-directory", Takes::Text),
    idle("allow-client-shm", Takes::Bool),
];

/// Triton's two formats are both text for people; ours are meant when they are named.
const LOG_FORMATS: &[&str] = &["default", "ISO8601", "auto", "text", "json"];

fn own_format(value: &str) -> Rewrite {
    unless_same((!matches!(value, "default" | "ISO8601")).then(|| value.to_owned()))
}

fn verbose(value: &str) -> Rewrite {
    let on = truth(value).unwrap_or_else(|| value.parse::<i64>().is_ok_and(|level| level > 0));
    unless_same(on.then(|| "debug".to_owned()))
}

fn terse(value: &str) -> Rewrite {
    unless_same((truth(value) == Some(false)).then(|| "warn".to_owned()))
}

/// Triton's defaults that are not ours.
const DEFAULTS: &[(&str, &str)] = &[
    ("profile", "triton"),
    ("http-port", "8000"),
    ("grpc-port", "8001"),
    ("metrics-port", "8002"),
    ("drain-timeout", "30s"),
    ("model-control-mode", "none"),
];

/// Triton's defaults, and what its control modes mean for start-up. Returns flags that turned out to have no effect.
pub(super) fn finish(args: &mut Args) -> Result<Vec<String>, String> {
    for (name, text) in DEFAULTS {
        say(args, name, text, Origin::Program(PROGRAM))?;
    }
    let explicit = args.word("model-control-mode").1 == Some("explicit");
    let (origin, named) = args.word("load-model");
    match (explicit, named.is_some()) {
        // Explicit control begins with nothing loaded, where ours begins with everything.
        (true, false) => say(args, "load-model", "", Origin::Program(PROGRAM)).map(|()| vec![]),
        (false, true) => {
            let place = origin.place("load-model");
            args.forget("load-model");
            Ok(vec![place])
        }
        _ => Ok(vec![]),
    }
}
