//! Names every part, starts them in order, and takes them down in order.

use crate::dataplane::{Control, Dataplane};
use crate::edge::activity::Timeouts;
use crate::edge::keys::Keys;
use crate::edge::listener::{self, Phase, Services};
use crate::profile::Profile;
use crate::registry::Registry;
use crate::repository::Repository;
use crate::rest::{BodyLimits, Budget, Rest};
use crate::{batcher, grpc, metrics};
use axum::extract::Request;
use axum::middleware::{Next, from_fn};
use axum::response::IntoResponse;
use backends::{Limits, LoadOptions};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Semaphore, watch};

/// What the program will do, complete and checked.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where models are.
    pub repository: Repository,
    /// Listening address.
    pub host: IpAddr,
    /// REST (and gRPC by content type).
    pub http_port: Option<u16>,
    /// gRPC (and REST by content type).
    pub grpc_port: Option<u16>,
    /// The followed server.
    pub profile: Profile,
    /// Threads of the compute pool.
    pub threads: usize,
    /// May models be loaded by request?
    pub control: Control,
    /// How requests gather.
    pub batching: batcher::Options,
    /// Bounds of bodies.
    pub body: BodyLimits,
    /// Bytes of all bodies at a time.
    pub inflight_bytes: u64,
    /// Connections at a time.
    pub connections: usize,
    /// How long a connection may take over what.
    pub timeouts: Timeouts,
    /// The longest request.
    pub request_timeout: Duration,
    /// How long after the signal new connections are still accepted.
    pub drain_delay: Duration,
    /// How long running requests may take then.
    pub drain_timeout: Duration,
    /// API keys.
    pub api_keys_file: Option<PathBuf>,
    /// Wait for the repository to appear?
    pub wait_for_repository: bool,
}

/// Runs until a signal, and returns the process's exit code.
///
/// # Errors
/// What kept the server from starting.
pub async fn run(settings: Settings) -> Result<u8, String> {
    let start = Instant::now();
    // Before anything else: a signal that comes while models load must be heard.
    let mut signals = Signals::new()?;
    let metrics = metrics::install()?;
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(settings.threads)
        .thread_name(|i| format!("compute-{i}"))
        .build()
        .map_err(|e| format!("compute threads: {e}"))?;
    let load_options =
        LoadOptions { pool: Arc::new(pool), limits: Limits::default(), conventions: settings.profile.conventions() };
    let registry = Arc::new(Registry::new(settings.repository.clone(), load_options, settings.batching));
    let plane =
        Arc::new(Dataplane::new(registry.clone(), settings.profile, settings.control, settings.request_timeout));
    let keys = settings.api_keys_file.as_deref().map(Keys::open).transpose()?;
    if let Some(keys) = keys.clone() {
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(Duration::from_secs(1)).await;
                keys.refresh();
            }
        });
    }
    let budget = Budget::new(settings.inflight_bytes);
    let rest = Rest::new(plane.clone(), settings.body, budget, metrics);
    let services = services(&rest, &plane, settings.body.bytes, keys);
    let (phase, listeners, addresses) = listen(&settings, services).await?;
    load(&settings, &registry, &plane, &mut signals).await?;
    announce(&settings, &registry, &addresses, start);
    signals.first().await;
    Ok(drain(&settings, &plane, phase, listeners, signals).await)
}

fn services(rest: &Rest, plane: &Arc<Dataplane>, message_bytes: usize, keys: Option<Arc<Keys>>) -> Services {
    let mut closed = rest.routes();
    if let Some(keys) = keys.clone() {
        // The layer lies over every route of this router, its fallback included: a route is closed unless it was put
        // among the open ones.
        closed = closed.layer(from_fn(move |request: Request, next: Next| {
            let allowed = keys.check(request.headers());
            async move {
                match allowed {
                    Ok(()) => next.run(request).await,
                    Err(error) => crate::rest::refuse(&error).into_response(),
                }
            }
        }));
    }
    Services { rest: closed.merge(rest.open_routes()), grpc: grpc::router(plane.clone(), message_bytes, keys) }
}

type Listeners = tokio::task::JoinSet<()>;

async fn listen(
    settings: &Settings,
    services: Services,
) -> Result<(watch::Sender<Phase>, Listeners, Vec<SocketAddr>), String> {
    let (phase, watching) = watch::channel(Phase::Serving);
    let options =
        listener::Options { timeouts: settings.timeouts, connections: Arc::new(Semaphore::new(settings.connections)) };
    let (mut listeners, mut addresses) = (Listeners::new(), Vec::new());
    for port in [settings.http_port, settings.grpc_port].into_iter().flatten() {
        let address = SocketAddr::new(settings.host, port);
        let socket = TcpListener::bind(address).await.map_err(|e| format!("cannot listen on {address}: {e}"))?;
        addresses.push(socket.local_addr().map_err(|e| e.to_string())?);
        listeners.spawn(listener::serve(socket, services.clone(), options.clone(), watching.clone()));
    }
    Ok((phase, listeners, addresses))
}

/// Loads what is there; waits for the repository to appear where that is asked for.
async fn load(
    settings: &Settings,
    registry: &Arc<Registry>,
    plane: &Dataplane,
    signals: &mut Signals,
) -> Result<(), String> {
    while settings.wait_for_repository && !settings.repository.exists() {
        tokio::select! {
            _ = tokio::time::sleep(Duration::from_millis(200)) => {}
            _ = signals.first() => return Ok(()),
        }
    }
    registry.load_all().await.map_err(|e| format!("the model repository cannot be read: {e}"))?;
    plane.set_started();
    Ok(())
}

/// The startup summary: what serves, where, and a command that works when pasted.
fn announce(settings: &Settings, registry: &Registry, addresses: &[SocketAddr], start: Instant) {
    let models = registry.names();
    let ready = registry.servables();
    tracing::info!(models = models.len(), ready = ready.len(), ms = start.elapsed().as_millis() as u64, "ready");
    let Some(http) = addresses.first().filter(|_| settings.http_port.is_some()) else { return };
    let host = if http.ip().is_unspecified() { "localhost".to_owned() } else { http.ip().to_string() };
    let mut text = format!("\n  REST   http://{host}:{}\n", http.port());
    if let (Some(_), Some(grpc)) = (settings.grpc_port, addresses.get(1)) {
        text += &format!("  gRPC   {host}:{}\n", grpc.port());
    }
    for servable in &ready {
        text += &format!("  model  {} version {} ({})\n", servable.name, servable.version, servable.signature.platform);
    }
    if let Some(servable) = ready.first()
        && let Some(port) = servable.signature.inputs.first()
    {
        let columns = port.shape.last().copied().unwrap_or(1).max(1) as usize;
        let row = vec!["1.0"; columns].join(",");
        text += &format!(
            "\n  curl http://{host}:{}/v1/models/{}:predict -d '{{\"instances\":[[{row}]]}}'\n",
            http.port(),
            servable.name
        );
    }
    eprintln!("{text}");
}

/// Readiness off, then no new connections, then no connections; a second signal ends it at once.
async fn drain(
    settings: &Settings,
    plane: &Dataplane,
    phase: watch::Sender<Phase>,
    mut listeners: Listeners,
    mut signals: Signals,
) -> u8 {
    plane.set_draining();
    tracing::info!(
        delay_s = settings.drain_delay.as_secs_f64(),
        timeout_s = settings.drain_timeout.as_secs_f64(),
        "shutting down"
    );
    let orderly = async {
        tokio::time::sleep(settings.drain_delay).await;
        let _ = phase.send(Phase::Closing);
        let all = async { while listeners.join_next().await.is_some() {} };
        if tokio::time::timeout(settings.drain_timeout, all).await.is_err() {
            tracing::warn!("requests were still running when the drain timeout passed");
        }
    };
    tokio::select! {
        () = orderly => 0,
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
