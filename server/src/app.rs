//! Names every part, starts them in order, and takes them down in order.

use crate::budget::Budget;
use crate::config::libraries;
use crate::config::{self, Config, ControlMode, Dtype, InitMode, LoadFormat, Machine, Models, ProbeWhen, Startup};
use crate::dataplane::{Control, Dataplane};
use crate::edge::activity::Timeouts;
use crate::edge::keys::Keys;
use crate::edge::listener::{self, Phase, Services};
use crate::edge::tls::{Files, Tls};
use crate::llm::watch::Loading;
use crate::probe::Probe;
use crate::profile::Profile;
use crate::registry::Registry;
use crate::repository::{Repository, watch};
use crate::rest::{BodyLimits, Origins, Rest, Shortcut};
use crate::summary::{self, Addresses};
use crate::threads::blocking;
use crate::worker::Workers;
use crate::{batcher, grpc, metrics, process, telemetry};
use axum::Router;
use axum::extract::Request;
use axum::middleware::{Next, from_fn};
use backends::llm::LanguageOptions;
use backends::llm::progress::Calls;
use backends::llm::spec::FloatType;
use backends::onnx::{OnnxOptions, Place};
use backends::{Limits, LoadError, LoadOptions};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch as watch_channel;

/// Runs until a signal, and returns the process's exit code.
///
/// # Errors
/// What kept the server from starting.
pub async fn run(config: Config) -> Result<u8, String> {
    let start = Instant::now();
    let repository = repository(&config)?;
    if let Some(line) = Loading::announce(config.device, config.step_timeout)? {
        tracing::info!("{line}");
    }
    // Before anything else: a signal that comes while models load must be heard.
    let mut signals = Signals::new()?;
    let metrics = metrics::install()?;
    let registry = Registry::new(repository, load_options(&config)?, batching(&config))
        .with_aliases(config.aliases())
        .with_probe(probe(&config))
        .with_workers(workers(&config));
    let registry = Arc::new(registry);
    let control = match config.model_control_mode {
        ControlMode::Explicit => Control::Explicit,
        ControlMode::None | ControlMode::Poll => Control::Fixed,
    };
    let longest = [config.request_timeout, config.generation_timeout];
    let plane = Arc::new(Dataplane::new(registry.clone(), profile(&config), control, longest));
    let keys = config.api_keys_file.as_deref().map(Keys::open).transpose()?;
    if let Some(keys) = keys.clone() {
        tokio::spawn(keys.watch());
    }
    let body =
        BodyLimits { bytes: usize::try_from(config.max_body_size).unwrap_or(usize::MAX), idle: config.body_timeout };
    let budget = Budget::new(config.inflight_bytes);
    let bounds = grpc::Bounds {
        message_bytes: body.bytes,
        budget: budget.clone(),
        idle: body.idle,
        mirrors: config.mirrors_grpc_outputs(),
    };
    let rest = Rest::new(plane.clone(), body, budget, metrics).with_usage_forced(config.force_include_usage);
    let services = services(&rest, &plane, bounds, keys, config.origins());
    let (phase, listeners, addresses) = listen(&config, services).await?;
    if let Some(lay) = load(&config, &registry, &plane, &mut signals).await? {
        let keyed = config.api_keys_file.is_some();
        summary::announce(&registry, &addresses, keyed, start);
        if config.model_control_mode == ControlMode::Poll {
            tokio::spawn(watch::poll(registry.clone(), lay, config.repository_poll));
        }
        tokio::select! {
            _ = signals.first() => {}
            () = process::given_up() => {}
        }
    }
    Ok(drain(&config, &plane, phase, listeners, signals).await)
}

/// How models are loaded.
pub(crate) fn load_options(config: &Config) -> Result<LoadOptions, String> {
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(config.nthread)
        .thread_name(|i| format!("compute-{i}"))
        .start_handler(|_| crate::threads::stand_back())
        .build()
        .map_err(|e| format!("compute threads: {e}"))?;
    Ok(LoadOptions {
        pool: Arc::new(pool),
        limits: Limits::default(),
        conventions: profile(config).conventions(),
        language: language(config),
        onnx: OnnxOptions {
            libraries: libraries::onnxruntime(config.onnxruntime_lib.as_deref()),
            isolation: config.isolation,
            place: Place::Here,
        },
    })
}

/// What models are computed with that have a process of their own.
fn workers(config: &Config) -> Workers {
    Workers {
        model: String::new(),
        threads: config.nthread,
        libraries: libraries::onnxruntime(config.onnxruntime_lib.as_deref()),
        conventions: profile(config).conventions(),
    }
}

/// How models are tried before they are loaded; `None`: not at all.
fn probe(config: &Config) -> Option<Probe> {
    (config.probe != ProbeWhen::Never).then(|| Probe {
        at_start: config.probe == ProbeWhen::Always,
        timeout: config.probe_timeout,
        memory: Some(config.probe_memory).filter(|bytes| *bytes > 0),
        machine: Machine::detect().memory,
        libraries: libraries::onnxruntime(config.onnxruntime_lib.as_deref()),
    })
}

/// Where models lie.
pub(crate) fn repository(config: &Config) -> Result<Repository, String> {
    let repository = match config.required_models().map_err(|error| error.problems.join("; "))? {
        Models::Repository(path) => Repository::many(path),
        Models::Directory { path, name } => Repository::single_or_many(path, name),
    };
    let shown = repository.root().display().to_string();
    // What is at the other end of a URL will not appear here either.
    if !repository.exists() && (config.model_init_mode == InitMode::Sync || shown.contains("://")) {
        return Err(if is_remote(&shown) {
            format!(
                "{shown} is no directory here: models are read from disk, and not fetched from a hub or a bucket; \
                 download it, as KServe's storage initializer does, and say where it lies"
            )
        } else {
            format!("{shown} is not a directory of models")
        });
    }
    Ok(repository)
}

/// Does this name a model elsewhere: by a URL, or as hubs do, `Qwen/Qwen3-0.6B`?
fn is_remote(model: &str) -> bool {
    let parts: Vec<&str> = model.split('/').collect();
    let of_a_hub = parts.len() == 2 && parts.iter().all(|part| !part.is_empty()) && !model.starts_with(['.', '~']);
    of_a_hub || model.contains("://")
}

fn profile(config: &Config) -> Profile {
    match config.profile {
        None => Profile::Merged,
        Some(config::Profile::Kserve) => Profile::Kserve,
        Some(config::Profile::Triton) => Profile::Triton,
    }
}

fn batching(config: &Config) -> batcher::Options {
    let default = batcher::Options::default();
    batcher::Options {
        queue: config.queue_size,
        max_rows: config.max_batch_rows.unwrap_or(default.max_rows),
        max_delay: config.max_batch_delay,
        ..default
    }
}

/// What keys and values of a model take on a CPU at most, where nobody says.
const KV_CACHE_BYTES: u64 = 4 << 30;

/// How language models run. Numbers are checked to fit.
fn language(config: &Config) -> LanguageOptions {
    let number = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
    let stated = Some(config.kv_cache_bytes).filter(|bytes| *bytes > 0);
    LanguageOptions {
        context: config.max_model_len.map(number),
        device: config.device,
        running: Some(config.max_num_seqs).filter(|count| *count > 0).map(number),
        waiting: number(config.queue_size),
        step_tokens: Some(config.max_num_batched_tokens).filter(|count| *count > 0).map(number),
        cache_bytes: stated.unwrap_or_else(|| (Machine::detect().memory / 4).min(KV_CACHE_BYTES)),
        gpu_cache_bytes: stated,
        cache: config.kv_cache_dtype,
        deterministic: config.deterministic,
        step_timeout: Some(config.step_timeout).filter(|time| !time.is_zero()),
        calls: Calls::default(),
        dtype: match config.dtype {
            Dtype::Auto => None,
            Dtype::Float32 => Some(FloatType::F32),
            Dtype::Float16 => Some(FloatType::F16),
            Dtype::Bfloat16 => Some(FloatType::Bf16),
        },
        dummy: config.load_format == LoadFormat::Dummy,
        tool_parser: config.tool_call_parser,
        reasoning_parser: config.reasoning_parser,
        key: *uuid::Uuid::new_v4().as_bytes(),
    }
}

fn services(
    rest: &Rest,
    plane: &Arc<Dataplane>,
    bounds: grpc::Bounds,
    keys: Option<Arc<Keys>>,
    origins: Option<Origins>,
) -> Services {
    let mut closed = rest.routes();
    if let Some(keys) = keys.clone() {
        // The layer lies over every route of this router, its fallback included: a route is closed unless it was put
        // among the open ones.
        closed = closed.layer(from_fn(move |request: Request, next: Next| {
            let checked = keys.check(request.headers());
            let refused = checked.err().map(|error| crate::rest::refuse_at(request.uri().path(), &error));
            async move {
                match refused {
                    None => next.run(request).await,
                    Some(response) => response,
                }
            }
        }));
    }
    let mut all = closed.merge(rest.open_routes());
    // Browsers ask without a key whether they may ask with one.
    if let Some(origins) = &origins {
        all = origins.before(all);
    }
    let (rest_routes, grpc) = (all, grpc::routers(plane.clone(), bounds, keys.clone()));
    Services {
        infer: (!telemetry::spans_wanted()).then(|| Shortcut::new(rest.clone(), keys, origins.is_some())),
        reserve: rest.open_routes(),
        grpc_reserve: grpc.reserve,
        profile: plane.profile(),
        ..Services::new(rest_routes, grpc.all)
    }
}

type Listeners = tokio::task::JoinSet<()>;

async fn listen(
    config: &Config,
    services: Services,
) -> Result<(watch_channel::Sender<Phase>, Listeners, Addresses), String> {
    let (phase, watching) = watch_channel::channel(Phase::Serving);
    let timeouts = Timeouts { header: config.header_timeout, idle: config.idle_timeout, stalled: STALLED };
    let options = listener::Options::new(timeouts, connections(config)?, tls(config)?).within(config.inflight_bytes);
    // Who scrapes metrics expects them in the clear on a port of their own, as Triton has it.
    let in_the_clear = listener::Options { tls: None, ..options.clone() };
    let only_metrics =
        Services { infer: None, rest: services.reserve.clone(), grpc: Router::new(), ..services.clone() };
    let only_metrics = Services { grpc_reserve: Router::new(), ..only_metrics };
    let mut listeners = Listeners::new();
    let mut bind = async |address: Option<SocketAddr>, services: Services, options: &listener::Options| {
        let Some(address) = address else { return Ok(None) };
        let socket = TcpListener::bind(address).await.map_err(|e| format!("cannot listen on {address}: {e}"))?;
        let address = socket.local_addr().map_err(|e| e.to_string())?;
        listeners.spawn(listener::serve(socket, services, options.clone(), watching.clone()));
        Ok::<_, String>(Some(address))
    };
    let http = bind(config.http(), services.clone(), &options).await?;
    let grpc = bind(config.grpc(), services, &options).await?;
    bind(config.metrics(), only_metrics, &in_the_clear).await?;
    let scheme = if options.tls.is_some() { "https" } else { "http" };
    Ok((phase, listeners, Addresses { http, grpc, scheme }))
}

/// As many connections as are wished for, or as files may be open: beyond that none could be accepted, and a client would
/// wait for an answer instead of being told to come again.
fn connections(config: &Config) -> Result<usize, String> {
    let wanted = config.max_connections;
    let Some(files) = process::raise_max_files() else { return Ok(wanted) };
    let kept = process::open_files().unwrap_or(0) + listener::RESERVE + SPARE_FILES;
    let room = room(files, kept, wanted)?;
    if room < wanted {
        tracing::warn!(
            "--max-connections is lowered from {wanted} to {room}: {files} files may be open (ulimit -n), {kept} of \
             which are kept for health, models and other files"
        );
    }
    Ok(room)
}

/// How many of the connections that are wished for there are files for. A server that could hardly be asked anything does not
/// start.
fn room(files: u64, kept: usize, wanted: usize) -> Result<usize, String> {
    let least = wanted.min(LEAST_CONNECTIONS);
    let room = usize::try_from(files).unwrap_or(usize::MAX).saturating_sub(kept).min(wanted);
    if room < least {
        return Err(format!(
            "no more than {files} files may be open (ulimit -n), which is too few: {kept} are kept for health, models \
             and other files, and {least} are needed for connections; allow {} or more",
            kept + least
        ));
    }
    Ok(room)
}

/// TLS as configured, and the task that looks for new certificates.
fn tls(config: &Config) -> Result<Option<Arc<Tls>>, String> {
    let Some((certificate, key)) = config.tls() else { return Ok(None) };
    let files = Files { certificate: certificate.into(), key: key.into() };
    let tls = Tls::open(files, config.handshake_timeout)?;
    tokio::spawn(tls.clone().watch());
    Ok(Some(tls))
}

/// With fewer connections than this a server is of no use, unless no more are wished for.
const LEAST_CONNECTIONS: usize = 16;

/// Files that are opened besides connections: listeners, models while they load, certificates, the collector.
const SPARE_FILES: usize = 64;

/// How long a client may leave what is written to it untaken.
const STALLED: Duration = Duration::from_secs(60);

/// Loads what is there; waits for the repository to appear where that is asked for. Says what lay there just before;
/// nothing when a signal came first.
async fn load(
    config: &Config,
    registry: &Arc<Registry>,
    plane: &Dataplane,
    signals: &mut Signals,
) -> Result<Option<watch::Sight>, String> {
    tokio::select! {
        loaded = load_what_lies_there(config, registry) => {
            let lay = loaded?;
            registry.set_awaited(false);
            plane.set_started();
            Ok(Some(lay))
        }
        _ = signals.first() => Ok(None),
    }
}

async fn load_what_lies_there(config: &Config, registry: &Arc<Registry>) -> Result<watch::Sight, String> {
    let only = match config.startup() {
        Startup::All => None,
        Startup::Only(names) => Some(names),
    };
    // What loads nothing at start waits for nothing but the directory.
    let waits = config.model_init_mode == InitMode::Async && only != Some(&[]);
    let polled = config.model_control_mode == ControlMode::Poll;
    let unreadable = |error: LoadError| format!("the model repository cannot be read: {error}");
    let mut arrival = watch::Arrival::default();
    let mut told: Option<Instant> = None;
    loop {
        loop {
            // Signals are heard though a file system hangs.
            let repository = registry.repository().clone();
            let look = move || {
                let is_there = if waits { arrival.is_complete(&repository) } else { repository.exists() };
                (arrival, is_there)
            };
            let is_there;
            (arrival, is_there) = blocking(look).await?;
            if is_there {
                break;
            }
            if told.is_none_or(|told| told.elapsed() > REMINDER) {
                told = Some(Instant::now());
                registry.set_awaited(true);
                let root = registry.repository().root().display();
                tracing::info!(directory = %root, "waiting for a model to appear");
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        let lay = match polled.then(|| registry.clone()) {
            Some(registry) => blocking(move || watch::sight(&registry)).await?.map_err(unreadable)?,
            None => watch::Sight::default(),
        };
        registry.load_all(only).await.map_err(unreadable)?;
        // A copy that paused was read too soon: it is read again when it has changed.
        if !waits || registry.ready() {
            return Ok(lay);
        }
    }
}

/// Between two lines that say what is waited for.
const REMINDER: Duration = Duration::from_secs(30);

/// How long it may take to send the ends of answers that the drain timeout has cut off.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// Readiness off, then no new connections, then no connections; a second signal ends it at once.
async fn drain(
    config: &Config,
    plane: &Dataplane,
    phase: watch_channel::Sender<Phase>,
    mut listeners: Listeners,
    mut signals: Signals,
) -> u8 {
    plane.set_draining();
    tracing::info!(
        delay_s = config.drain_delay.as_secs_f64(),
        timeout_s = config.drain_timeout.as_secs_f64(),
        "shutting down"
    );
    // Whoever asks meanwhile is answered, and told to connect elsewhere for the next request.
    let _ = phase.send(Phase::Draining);
    let orderly = async {
        tokio::time::sleep(config.drain_delay).await;
        plane.set_closing();
        let _ = phase.send(Phase::Closing);
        let mut all = std::pin::pin!(async { while listeners.join_next().await.is_some() {} });
        if tokio::time::timeout(config.drain_timeout, all.as_mut()).await.is_err() {
            tracing::warn!("requests were still running when the drain timeout passed");
            if plane.end_answers() {
                let _ = tokio::time::timeout(LAST_WORDS, all).await;
            }
        }
    };
    tokio::select! {
        () = orderly => process::giving_up().unwrap_or(0),
        code = signals.first() => code,
    }
}

/// SIGTERM and SIGINT.
struct Signals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

impl Signals {
    fn new() -> Result<Self, String> {
        let hear = |kind| signal(kind).map_err(|e| format!("signals: {e}"));
        Ok(Signals { terminate: hear(SignalKind::terminate())?, interrupt: hear(SignalKind::interrupt())? })
    }

    /// The next signal, as the exit code of a process that it ends.
    async fn first(&mut self) -> u8 {
        tokio::select! {
            _ = self.terminate.recv() => 143,
            _ = self.interrupt.recv() => 130,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_are_as_many_as_files_allow_or_enough() {
        assert_eq!(room(1 << 20, 106, 4096), Ok(4096));
        assert_eq!(room(u64::MAX, 106, 4096), Ok(4096));
        assert_eq!(room(200, 106, 4096), Ok(94));
        assert_eq!(room(122, 106, 4096), Ok(16));
        assert_eq!(room(108, 106, 2), Ok(2), "no more are wished for");
        let refused = room(64, 106, 4096).unwrap_err();
        assert!(refused.starts_with("no more than 64 files may be open (ulimit -n)"), "{refused}");
        assert!(refused.ends_with("allow 122 or more"), "{refused}");
    }
}
