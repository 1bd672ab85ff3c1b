//! The table of flags: the one place where a setting is named.
//!
//! Each row drives the command line, the environment (`TENSORGATE_HTTP_PORT`), the keys of a `--config` file, `--help`,
//! `config show` and `docs/flags.md`. A new setting is a row here and a field of [`Config`].

use super::field::Field;
use crate::config::Config;

/// One setting.
#[derive(Debug)]
pub struct Flag {
    /// As on the command line, without the leading dashes.
    pub name: &'static str,
    /// What stands for its value in help.
    pub value: &'static str,
    /// Its value when nobody says anything; empty for none.
    pub default: &'static str,
    /// One or two sentences.
    pub help: &'static str,
    /// Environment variables read besides our own: names that other programs gave to the same thing.
    pub environment: &'static [&'static str],
    place: for<'a> fn(&'a mut Config) -> Field<'a>,
}

/// Flags that belong together.
#[derive(Debug)]
pub struct Group {
    /// The heading in help. Empty for flags that only drop-in lists need: they work, and help does not show them.
    pub title: &'static str,
    /// In the order of help.
    pub flags: &'static [Flag],
}

impl Flag {
    const fn new(
        name: &'static str,
        value: &'static str,
        default: &'static str,
        place: for<'a> fn(&'a mut Config) -> Field<'a>,
        help: &'static str,
    ) -> Self {
        Flag { name, value, default, help, environment: &[], place }
    }

    const fn also(mut self, environment: &'static [&'static str]) -> Self {
        self.environment = environment;
        self
    }

    /// Where the value lies in a configuration.
    pub fn field<'a>(&self, config: &'a mut Config) -> Field<'a> {
        (self.place)(config)
    }

    /// The environment variable of this flag.
    #[must_use]
    pub fn variable(&self) -> String {
        format!("{PREFIX}{}", self.name.replace('-', "_").to_ascii_uppercase())
    }
}

/// What our environment variables begin with.
pub const PREFIX: &str = "TENSORGATE_";

/// The flag of this name, spelled with dashes or underscores.
#[must_use]
pub fn find(name: &str) -> Option<&'static Flag> {
    let name = name.replace('_', "-");
    all().find(|flag| flag.name == name)
}

/// Every flag, in the order of help.
pub fn all() -> impl Iterator<Item = &'static Flag> {
    GROUPS.iter().flat_map(|group| group.flags)
}

/// The table.
pub static GROUPS: &[Group] = &[
    Group { title: "Models", flags: MODELS },
    Group { title: "Listening", flags: LISTENING },
    Group { title: "Security", flags: SECURITY },
    Group { title: "Compute and batching", flags: COMPUTE },
    Group { title: "Language models", flags: LANGUAGE },
    Group { title: "ONNX models", flags: ONNX },
    Group { title: "Limits", flags: LIMITS },
    Group { title: "Stopping", flags: STOPPING },
    Group { title: "Observing", flags: OBSERVING },
    Group { title: "Configuration", flags: CONFIGURATION },
    Group { title: "", flags: HIDDEN },
];

static MODELS: &[Flag] = &[
    Flag::new(
        "model-repository",
        "DIR",
        "",
        |c| Field::Paths(&mut c.model_repository),
        "Directory of models: each subdirectory is a model, named after it. `tensorgate DIR` says the same. Of several, \
         the models of all are served.",
    ),
    Flag::new(
        "model-dir",
        "DIR",
        "",
        |c| Field::Path(&mut c.model_dir),
        "Directory of one model. Without a model file in it, it is read as a repository, as KServe's servers do.",
    ),
    Flag::new(
        "model-name",
        "NAME",
        "",
        |c| Field::Text(&mut c.model_name),
        "Name of the model in --model-dir. Without it, the name of the directory.",
    ),
    Flag::new(
        "model-alias",
        "NAME",
        "",
        |c| Field::Names(&mut c.model_alias),
        "Another name that the model in --model-dir answers to; may be repeated. Answers and metrics say --model-name.",
    ),
    Flag::new(
        "model-control-mode",
        "MODE",
        "explicit",
        |c| Field::Choice(&mut c.model_control_mode),
        "explicit: models are loaded and unloaded over the API; poll: the repository is watched; none: neither.",
    ),
    Flag::new(
        "repository-poll-secs",
        "SECONDS",
        "15",
        |c| Field::Seconds(&mut c.repository_poll),
        "Time between two looks at the repository when it is watched.",
    ),
    Flag::new(
        "load-model",
        "NAME",
        "",
        |c| Field::Names(&mut c.load_model),
        "Load this model of the repository at start, and not all; may be repeated. `*` is all, an empty name none.",
    ),
    Flag::new(
        "model-init-mode",
        "MODE",
        "sync",
        |c| Field::Choice(&mut c.model_init_mode),
        "async: wait for the model to appear in its directory, as KServe's modelcars need.",
    )
    .also(&["MODEL_INIT_MODE"]),
    Flag::new(
        "profile",
        "PROFILE",
        "",
        |c| Field::Choice(&mut c.profile),
        "Where KServe and Triton differ, do as kserve or as triton does. Without it: what clients of both accept.",
    ),
    Flag::new(
        "grpc-outputs",
        "FORM",
        "",
        |c| Field::Choice(&mut c.grpc_outputs),
        "raw: gRPC answers in bytes, which every client reads; mirror: typed contents are answered in kind. Without it: \
         mirror with --profile kserve, else raw.",
    ),
];

static LISTENING: &[Flag] = &[
    Flag::new("host", "ADDRESS", "0.0.0.0", |c| Field::Address(&mut c.host), "Address to listen on."),
    Flag::new("http-port", "PORT", "8080", |c| Field::Port(&mut c.http_port), "Port for HTTP, or `off`."),
    Flag::new(
        "grpc-port",
        "PORT",
        "8081",
        |c| Field::Port(&mut c.grpc_port),
        "Port for gRPC, or `off`. Every port answers both HTTP and gRPC: it may be that of HTTP.",
    ),
    Flag::new(
        "metrics-port",
        "PORT",
        "off",
        |c| Field::Port(&mut c.metrics_port),
        "One more port for /metrics, which the HTTP port always serves.",
    ),
    Flag::new(
        "max-connections",
        "N",
        "4096",
        |c| Field::Count(&mut c.max_connections),
        "Connections open at a time, fewer where fewer files may be open; 32 more are answered health and metrics alone.",
    ),
    Flag::new(
        "handshake-timeout",
        "TIME",
        "10s",
        |c| Field::Duration(&mut c.handshake_timeout),
        "Time for a TLS handshake.",
    ),
    Flag::new(
        "header-timeout",
        "TIME",
        "10s",
        |c| Field::Duration(&mut c.header_timeout),
        "Time for the first byte of a connection, and for the head of a request.",
    ),
    Flag::new(
        "body-timeout",
        "TIME",
        "30s",
        |c| Field::Duration(&mut c.body_timeout),
        "Longest pause within the body of a request.",
    ),
    Flag::new(
        "idle-timeout",
        "TIME",
        "75s",
        |c| Field::Duration(&mut c.idle_timeout),
        "How long a connection is kept between requests; longer than the proxy in front keeps it.",
    ),
];

static SECURITY: &[Flag] = &[
    Flag::new(
        "tls-cert",
        "FILE",
        "",
        |c| Field::Path(&mut c.tls_cert),
        "Certificate chain in PEM: HTTP and gRPC are served over TLS.",
    )
    .also(&["KSERVE_TLS_CERT_FILE"]),
    Flag::new("tls-key", "FILE", "", |c| Field::Path(&mut c.tls_key), "Private key of --tls-cert in PEM.")
        .also(&["KSERVE_TLS_KEY_FILE"]),
    Flag::new(
        "api-keys-file",
        "FILE",
        "",
        |c| Field::Path(&mut c.api_keys_file),
        "Keys that clients must show, one to a line. Keys are never given on the command line, where others see them.",
    ),
    Flag::new(
        "allowed-origins",
        "ORIGINS",
        "",
        |c| Field::Names(&mut c.allowed_origins),
        "Web pages of this origin may ask, which browsers call CORS; repeated, or with commas, for more; * for all.",
    ),
];

static COMPUTE: &[Flag] = &[
    Flag::new(
        "nthread",
        "N",
        "0",
        |c| Field::Count(&mut c.nthread),
        "Threads that compute. 0: one for each core that the machine or the container's quota grants.",
    ),
    Flag::new(
        "max-batch-rows",
        "N",
        "",
        |c| Field::OptionalCount(&mut c.max_batch_rows),
        "Rows of waiting requests that are computed together. Without it, the model decides.",
    ),
    Flag::new(
        "max-batch-delay",
        "TIME",
        "0",
        |c| Field::Duration(&mut c.max_batch_delay),
        "How long a request waits for others to be computed with. 0: only while the model is busy.",
    ),
];

static LANGUAGE: &[Flag] = &[
    Flag::new(
        "max-model-len",
        "TOKENS",
        "",
        |c| Field::OptionalCount(&mut c.max_model_len),
        "Longest prompt and answer together. Without it, what the model was made for, or what kv-cache-bytes has room for.",
    ),
    Flag::new(
        "device",
        "DEVICE",
        "auto",
        |c| Field::Choice(&mut c.device),
        "Where language models are computed. auto: on the first GPU of CUDA_VISIBLE_DEVICES where there is one, for models \
         that its kernels know, else on the CPU; cpu; cuda: on a GPU, or not at all.",
    ),
    Flag::new(
        "max-num-seqs",
        "N",
        "0",
        |c| Field::Count(&mut c.max_num_seqs),
        "Answers of one model that are generated at the same time; further requests wait, as queue-size allows. 0: 64 on \
         a CPU, 256 on a GPU.",
    ),
    Flag::new(
        "max-num-batched-tokens",
        "N",
        "0",
        |c| Field::Count(&mut c.max_num_batched_tokens),
        "Tokens, of prompts and answers, that one step computes. More read long prompts faster, and make answers that \
         are under way wait longer. 0: 256 on a CPU, 4096 on a GPU.",
    ),
    Flag::new(
        "kv-cache-bytes",
        "SIZE",
        "0",
        |c| Field::Bytes(&mut c.kv_cache_bytes),
        "Memory of each language model for the keys and values of its requests. 0: a quarter of the memory that the \
         machine or the container has, and at most 4GiB; on a GPU a quarter of what it has left beside the weights.",
    ),
    Flag::new(
        "kv-cache-dtype",
        "TYPE",
        "auto",
        |c| Field::Choice(&mut c.kv_cache_dtype),
        "How keys and values are stored. auto: bfloat16 on a GPU, float16 on a CPU; bfloat16 and fp8, which is e4m3: on \
         GPUs. fp8 has room for twice as many tokens, and costs some accuracy.",
    ),
    Flag::new(
        "deterministic",
        "BOOL",
        "false",
        |c| Field::Choice(&mut c.deterministic),
        "true: answers of GPUs are the same to the last bit whatever else is computed, preempted or cached, and take \
         longer. Those of CPUs always are.",
    ),
    Flag::new(
        "dtype",
        "TYPE",
        "auto",
        |c| Field::Choice(&mut c.dtype),
        "Float format of weights: that of their file, or another. Quantised weights stay as they are.",
    ),
    Flag::new(
        "load-format",
        "FORMAT",
        "auto",
        |c| Field::Choice(&mut c.load_format),
        "auto: the weights beside config.json; dummy: weights made up from config.json alone, for benchmarks. Where no \
         tokenizer lies beside it, tokens are bytes.",
    ),
    Flag::new(
        "tool-call-parser",
        "FORMAT",
        "auto",
        |c| Field::Choice(&mut c.tool_call_parser),
        "How models write calls of tools. auto: as their chat template shows it; none: calls are text.",
    ),
    Flag::new(
        "reasoning-parser",
        "FORMAT",
        "auto",
        |c| Field::Choice(&mut c.reasoning_parser),
        "What stands around the thoughts of models. auto: what their chat template shows; none: thoughts are text.",
    ),
    Flag::new(
        "force-include-usage",
        "BOOL",
        "false",
        |c| Field::Choice(&mut c.force_include_usage),
        "true: streams of chats and completions end with their usage, whether or not stream_options ask for it.",
    ),
    Flag::new(
        "generation-timeout",
        "TIME",
        "10m",
        |c| Field::Duration(&mut c.generation_timeout),
        "Longest time for an answer of a language model.",
    ),
    Flag::new(
        "step-timeout",
        "TIME",
        "60s",
        |c| Field::Duration(&mut c.step_timeout),
        "When a step on a GPU takes longer, the GPU hangs: the process ends with code 71. While a model is loaded, a \
         call of the GPU's driver may take as long, and at least 180s. 0: nothing ends it.",
    ),
];

static ONNX: &[Flag] = &[
    Flag::new(
        "onnxruntime-lib",
        "FILE",
        "",
        |c| Field::Path(&mut c.onnxruntime_lib),
        "ONNX Runtime's library, libonnxruntime.so, 1.24 or later. Without it, beside the binary, in lib/ beside it, or \
         where the system has its libraries. Without any, ONNX models fail and all others serve.",
    ),
    Flag::new(
        "isolation",
        "WHEN",
        "auto",
        |c| Field::Choice(&mut c.isolation),
        "Compute an ONNX model in a process of its own, where its settings do not say. auto: where a request may end the \
         process, as far as the graph tells; always; never.",
    ),
    Flag::new(
        "probe",
        "WHEN",
        "auto",
        |c| Field::Choice(&mut c.probe),
        "Load a model in a process of its own first, which it may crash. auto: while the server serves; always: when it \
         starts, too; never.",
    ),
    Flag::new("probe-timeout", "TIME", "60s", |c| Field::Duration(&mut c.probe_timeout), "Longest time for that."),
    Flag::new("probe-memory", "SIZE", "0", |c| Field::Bytes(&mut c.probe_memory), "Its memory. 0: what is free."),
];

static LIMITS: &[Flag] = &[
    Flag::new(
        "max-body-size",
        "SIZE",
        "64MiB",
        |c| Field::Bytes(&mut c.max_body_size),
        "Largest request, HTTP or gRPC, after decompression.",
    ),
    Flag::new(
        "inflight-bytes",
        "SIZE",
        "0",
        |c| Field::Bytes(&mut c.inflight_bytes),
        "Bytes of requests and of answers that are not taken yet, at a time. 0: a quarter of the memory that the \
         machine or the container has, or as much as the largest body where that is more.",
    ),
    Flag::new(
        "queue-size",
        "N",
        "512",
        |c| Field::Count(&mut c.queue_size),
        "Requests that wait for one model; further ones are answered 429.",
    ),
    Flag::new(
        "request-timeout",
        "TIME",
        "60s",
        |c| Field::Duration(&mut c.request_timeout),
        "Longest time for a request. Clients may ask for less.",
    ),
];

static STOPPING: &[Flag] = &[
    Flag::new(
        "drain-delay",
        "TIME",
        "5s",
        |c| Field::Duration(&mut c.drain_delay),
        "After SIGTERM, how long new connections are still accepted while readiness already says no.",
    ),
    Flag::new(
        "drain-timeout",
        "TIME",
        "45s",
        |c| Field::Duration(&mut c.drain_timeout),
        "How long requests that have begun may take to finish after that. A pod's terminationGracePeriodSeconds must be \
         longer than both together.",
    ),
];

static OBSERVING: &[Flag] = &[
    Flag::new(
        "log-level",
        "LEVEL",
        "info",
        |c| Field::Choice(&mut c.log_level),
        "off, error, warn, info, debug or trace.",
    ),
    Flag::new(
        "log-format",
        "FORMAT",
        "auto",
        |c| Field::Choice(&mut c.log_format),
        "text, json, or auto: text on a terminal and json elsewhere.",
    ),
    Flag::new(
        "otlp-endpoint",
        "URL",
        "",
        |c| Field::Url(&mut c.otlp_endpoint),
        "OpenTelemetry collector that traces are sent to.",
    )
    .also(&["OTEL_EXPORTER_OTLP_ENDPOINT"]),
];

static CONFIGURATION: &[Flag] = &[Flag::new(
    "config",
    "FILE",
    "",
    |c| Field::Path(&mut c.config),
    "TOML or YAML file whose keys are the names of these flags.",
)];

/// Triton's listeners each have an address of their own; without one it is --host.
static HIDDEN: &[Flag] = &[
    Flag::new("http-address", "ADDRESS", "", |c| Field::OptionalAddress(&mut c.http_address), "For HTTP."),
    Flag::new("grpc-address", "ADDRESS", "", |c| Field::OptionalAddress(&mut c.grpc_address), "For gRPC."),
    Flag::new("metrics-address", "ADDRESS", "", |c| Field::OptionalAddress(&mut c.metrics_address), "For metrics."),
];
