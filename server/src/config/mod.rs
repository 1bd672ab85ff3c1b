//! What the program will do: every setting with a type, checked, and with its origin.
//!
//! [`Args`] is what the user said; [`Config::load`] makes this of it, together with the configuration file and the
//! machine. After that nobody asks the environment again, but for the variables of OpenTelemetry's that are no settings.

mod check;
pub mod libraries;
mod machine;
#[cfg(test)]
mod tests;
mod values;

pub use machine::Machine;
pub use values::{ControlMode, Dtype, GrpcOutputs, InitMode, LoadFormat, LogFormat, LogLevel, ProbeWhen, Profile};

use crate::args::{Args, Environment, Origin, UsageError, file, flags};
use crate::dropin::List;
use crate::rest::Origins;
use backends::llm::device;
use backends::llm::text::output::{Choice, ReasoningParser, ToolParser};
use backends::settings::Isolation;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The settings of a server. Each field is the flag of the same name; see [`flags::GROUPS`] for what it means.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Directories of models; see [`Config::models`].
    pub model_repository: Option<Vec<PathBuf>>,
    /// The directory of the one model; see [`Config::models`].
    pub model_dir: Option<PathBuf>,
    /// Set whenever `model_dir` is.
    pub model_name: Option<String>,
    /// See [`Config::aliases`].
    pub model_alias: Option<Vec<String>>,
    /// Who may load and unload.
    pub model_control_mode: ControlMode,
    /// `repository-poll-secs`.
    pub repository_poll: Duration,
    /// See [`Config::startup`].
    pub load_model: Option<Vec<String>>,
    /// Must the model's directory be there at start?
    pub model_init_mode: InitMode,
    /// `None`: what clients of both accept.
    pub profile: Option<Profile>,
    /// See [`Config::mirrors_grpc_outputs`].
    pub grpc_outputs: Option<GrpcOutputs>,

    /// Of listeners that have no address of their own; see [`Config::http`].
    pub host: IpAddr,
    /// Of the HTTP listener alone.
    pub http_address: Option<IpAddr>,
    /// Of the gRPC listener alone.
    pub grpc_address: Option<IpAddr>,
    /// Of the extra listener for metrics alone.
    pub metrics_address: Option<IpAddr>,
    /// `None`: no HTTP.
    pub http_port: Option<u16>,
    /// `None`: no gRPC.
    pub grpc_port: Option<u16>,
    /// `None`: metrics on the HTTP port only.
    pub metrics_port: Option<u16>,
    /// At least 1.
    pub max_connections: usize,
    /// Never zero.
    pub handshake_timeout: Duration,
    /// Never zero.
    pub header_timeout: Duration,
    /// Never zero.
    pub body_timeout: Duration,
    /// Never zero.
    pub idle_timeout: Duration,

    /// Set exactly when `tls_key` is; see [`Config::tls`].
    pub tls_cert: Option<PathBuf>,
    /// Set exactly when `tls_cert` is.
    pub tls_key: Option<PathBuf>,
    /// One key to a line.
    pub api_keys_file: Option<PathBuf>,
    /// What [`Origins::read`] reads.
    pub allowed_origins: Option<Vec<String>>,

    /// Threads that compute: at least 1.
    pub nthread: usize,
    /// `None`: as many tokens as the model was made for, or as there is room for.
    pub max_model_len: Option<usize>,
    /// Where language models are computed.
    pub device: device::Choice,
    /// 0: what suits the device.
    pub max_num_seqs: usize,
    /// 0: what suits the device.
    pub max_num_batched_tokens: usize,
    /// 0: what suits the device.
    pub kv_cache_bytes: u64,
    /// How keys and values are stored.
    pub kv_cache_dtype: device::CacheFormat,
    /// Are answers to be the same bits whatever is computed beside them?
    pub deterministic: bool,
    /// `None`: beside the binary, or where the system has its libraries.
    pub onnxruntime_lib: Option<PathBuf>,
    /// Which ONNX models have a process of their own, where their settings do not say.
    pub isolation: Isolation,
    /// Which loads are tried in a child process first.
    pub probe: ProbeWhen,
    /// Never zero.
    pub probe_timeout: Duration,
    /// Bytes; 0: what there is.
    pub probe_memory: u64,

    /// `Auto`: as the weights' files have them.
    pub dtype: Dtype,
    /// Are weights read, or made up?
    pub load_format: LoadFormat,
    /// How calls of tools are found.
    pub tool_call_parser: Choice<ToolParser>,
    /// How thoughts are told from answers.
    pub reasoning_parser: Choice<ReasoningParser>,
    /// Streams end with their usage, whether or not it is asked for.
    pub force_include_usage: bool,
    /// Never zero.
    pub generation_timeout: Duration,
    /// Zero: no step is taken to hang.
    pub step_timeout: Duration,
    /// At least 1.
    pub max_batch_rows: Option<usize>,
    /// Shorter than `request_timeout`.
    pub max_batch_delay: Duration,

    /// Bytes; at least 1.
    pub max_body_size: u64,
    /// Bytes; at least `max_body_size` where somebody said how many.
    pub inflight_bytes: u64,
    /// Requests for each model; at least 1.
    pub queue_size: usize,
    /// Never zero.
    pub request_timeout: Duration,

    /// From SIGTERM until connections are refused.
    pub drain_delay: Duration,
    /// From then until what still runs is cancelled.
    pub drain_timeout: Duration,

    /// The least important message that is logged.
    pub log_level: LogLevel,
    /// How messages look.
    pub log_format: LogFormat,
    /// An `http` or `https` URL.
    pub otlp_endpoint: Option<String>,

    /// The file that some of this was read from.
    pub config: Option<PathBuf>,
    /// Who said it, by the flag's name. Complete.
    pub origins: BTreeMap<&'static str, Origin>,
}

/// What is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Models<'a> {
    /// Each subdirectory is a model. Never empty.
    Repository(&'a [PathBuf]),
    /// One model. If there is no model file in it, the directory is a repository: KServe's servers start over an
    /// empty directory that the agent fills later.
    Directory {
        /// Where it lies.
        path: &'a Path,
        /// What clients call it.
        name: &'a str,
    },
}

/// Which models of a repository are loaded at start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Startup<'a> {
    /// Every one.
    All,
    /// These; perhaps none.
    Only(&'a [String]),
}

impl Config {
    /// Reads the configuration file, if one was named, and settles everything.
    ///
    /// # Errors
    /// All that is wrong with the file and the values, and what would be right.
    pub fn load(mut args: Args, machine: &Machine) -> Result<Self, UsageError> {
        if let (_, Some(path)) = args.word("config") {
            let path = PathBuf::from(path);
            file::read(&mut args, &path)?;
        }
        Self::resolve(&args, machine)
    }

    /// Settles everything from what was said; reads no file.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn resolve(args: &Args, machine: &Machine) -> Result<Self, UsageError> {
        let mut config = Self::blank();
        let mut problems = Vec::new();
        for flag in flags::all() {
            let (origin, words) = args.heard(flag);
            for word in words {
                if let Err(reason) = flag.field(&mut config).read(word) {
                    problems.push(format!("{}: `{word}` {reason}", origin.place(flag.name)));
                }
            }
            config.origins.insert(flag.name, origin);
        }
        config.choose_models(&mut problems);
        config.fill_in(machine, &mut problems);
        config.check(&mut problems);
        UsageError::check(problems).map(|()| config)
    }

    /// What is served, or `None` if nobody said.
    #[must_use]
    pub fn models(&self) -> Option<Models<'_>> {
        match (&self.model_repository, &self.model_dir) {
            (Some(repositories), _) => Some(Models::Repository(repositories)),
            (None, Some(path)) => {
                Some(Models::Directory { path, name: self.model_name.as_deref().unwrap_or(DEFAULT_NAME) })
            }
            (None, None) => None,
        }
    }

    /// What is served.
    ///
    /// # Errors
    /// Nobody said.
    pub fn required_models(&self) -> Result<Models<'_>, UsageError> {
        self.models().ok_or_else(|| {
            // Its defaults are there whatever else was said, unless all of them were.
            let of_vllm = |origin: &Origin| *origin == Origin::Program(List::Vllm.program());
            let problem = match self.origins.values().any(of_vllm) {
                true => {
                    "vllm serve: no model is named; give its directory, as in `tensorgate vllm serve ./models/qwen \
                     --served-model-name qwen`"
                }
                false => "nothing to serve: give a directory of models (tensorgate DIR) or one model (--model-dir DIR)",
            };
            problem.to_owned().into()
        })
    }

    /// Names that the one model answers to besides its own.
    #[must_use]
    pub fn aliases(&self) -> Vec<String> {
        let own = self.model_name.as_deref();
        self.model_alias.iter().flatten().filter(|alias| Some(alias.as_str()) != own).cloned().collect()
    }

    /// Which models of a repository are loaded at start.
    #[must_use]
    pub fn startup(&self) -> Startup<'_> {
        match self.load_model.as_deref() {
            None => Startup::All,
            Some([name]) if name == "*" => Startup::All,
            Some(names) => Startup::Only(names),
        }
    }

    /// Where HTTP is served.
    #[must_use]
    pub fn http(&self) -> Option<SocketAddr> {
        self.listener(self.http_address, self.http_port)
    }

    /// Where gRPC is served; `None` also where it shares the port of HTTP, which answers both.
    #[must_use]
    pub fn grpc(&self) -> Option<SocketAddr> {
        self.listener(self.grpc_address, self.grpc_port).filter(|_| !self.shares_port())
    }

    /// Are HTTP and gRPC to be served on one port? Each port of ours answers both anyway.
    #[must_use]
    pub fn shares_port(&self) -> bool {
        let grpc = self.listener(self.grpc_address, self.grpc_port);
        grpc.is_some_and(|address| address.port() != 0) && grpc == self.http()
    }

    /// Is a gRPC request of typed contents answered with typed contents, as KServe does it? Else answers are raw.
    #[must_use]
    pub fn mirrors_grpc_outputs(&self) -> bool {
        match self.grpc_outputs {
            Some(outputs) => outputs == GrpcOutputs::Mirror,
            None => self.profile == Some(Profile::Kserve),
        }
    }

    /// Where metrics are served besides the HTTP port.
    #[must_use]
    pub fn metrics(&self) -> Option<SocketAddr> {
        self.listener(self.metrics_address, self.metrics_port)
    }

    fn listener(&self, address: Option<IpAddr>, port: Option<u16>) -> Option<SocketAddr> {
        port.map(|port| SocketAddr::new(address.unwrap_or(self.host), port))
    }

    /// The certificate and its key.
    #[must_use]
    pub fn tls(&self) -> Option<(&Path, &Path)> {
        self.tls_cert.as_deref().zip(self.tls_key.as_deref())
    }

    /// The longest time from SIGTERM to the end of the last request.
    #[must_use]
    pub fn drain_total(&self) -> Duration {
        self.drain_delay + self.drain_timeout
    }

    /// Who said the setting of this name.
    #[must_use]
    pub fn origin(&self, name: &str) -> &Origin {
        self.origins.get(name).unwrap_or(&Origin::Default)
    }

    /// Web pages that may ask.
    pub fn origins(&self) -> Option<Origins> {
        self.allowed_origins.as_ref().and_then(|texts| Origins::read(&texts.join(",")).ok().flatten())
    }

    /// Before anything is said: what the table's defaults are then written into.
    pub(crate) fn blank() -> Self {
        Config {
            model_repository: None,
            model_dir: None,
            model_name: None,
            model_alias: None,
            model_control_mode: ControlMode::Explicit,
            repository_poll: Duration::ZERO,
            load_model: None,
            model_init_mode: InitMode::Sync,
            profile: None,
            grpc_outputs: None,
            host: Ipv4Addr::UNSPECIFIED.into(),
            http_address: None,
            grpc_address: None,
            metrics_address: None,
            http_port: None,
            grpc_port: None,
            metrics_port: None,
            max_connections: 0,
            handshake_timeout: Duration::ZERO,
            header_timeout: Duration::ZERO,
            body_timeout: Duration::ZERO,
            idle_timeout: Duration::ZERO,
            tls_cert: None,
            tls_key: None,
            api_keys_file: None,
            allowed_origins: None,
            nthread: 0,
            max_model_len: None,
            device: device::Choice::Auto,
            max_num_seqs: 0,
            max_num_batched_tokens: 0,
            kv_cache_bytes: 0,
            kv_cache_dtype: device::CacheFormat::Auto,
            deterministic: false,
            onnxruntime_lib: None,
            isolation: Isolation::Auto,
            probe: ProbeWhen::Auto,
            probe_timeout: Duration::ZERO,
            probe_memory: 0,
            dtype: Dtype::Auto,
            load_format: LoadFormat::Auto,
            tool_call_parser: Choice::Auto,
            reasoning_parser: Choice::Auto,
            force_include_usage: false,
            generation_timeout: Duration::ZERO,
            step_timeout: Duration::ZERO,
            max_batch_rows: None,
            max_batch_delay: Duration::ZERO,
            max_body_size: 0,
            inflight_bytes: 0,
            queue_size: 0,
            request_timeout: Duration::ZERO,
            drain_delay: Duration::ZERO,
            drain_timeout: Duration::ZERO,
            log_level: LogLevel::Info,
            log_format: LogFormat::Auto,
            otlp_endpoint: None,
            config: None,
            origins: BTreeMap::new(),
        }
    }
}

/// OpenSSL's variable for the file of the certificate authorities that are trusted.
pub const SSL_CERT_FILE: &str = "SSL_CERT_FILE";

/// What OpenTelemetry's variables say of how traces are sent, and [`SSL_CERT_FILE`]: those that hold something. None of
/// them is a setting: they are set for whole clusters.
pub fn telemetry_environment() -> Environment {
    let read =
        std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
    let wanted = |name: &str| name.starts_with("OTEL_") || name == SSL_CERT_FILE;
    read.filter(|(name, value)| wanted(name) && !value.is_empty()).collect()
}

/// Of a model in a directory without a name, as `/`.
const DEFAULT_NAME: &str = "model";
