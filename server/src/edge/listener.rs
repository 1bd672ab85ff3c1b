//! The accept loop: own, because axum's has no timeouts and ends on errors. It never ends but on shutdown.

use super::activity::{Activity, Timeouts, Watched};
use super::stream::Stream;
use super::tls::Tls;
use crate::rest::Shortcut;
use crate::telemetry::{self, Exchange};
use axum::Router;
use axum::body::Body;
use axum::response::Response;
use http::Request;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tower::Service;
use tracing::Instrument;

/// How the server is leaving.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// It is not.
    Serving,
    /// Connections close after their running requests; no new ones are accepted.
    Closing,
}

/// Bounds of connections.
#[derive(Clone, Debug)]
pub struct Options {
    /// How long a connection may take over what.
    pub timeouts: Timeouts,
    /// Connections at a time, over all listeners.
    pub connections: Arc<Semaphore>,
    /// Without it connections are in the clear.
    pub tls: Option<Arc<Tls>>,
}

/// What answers: REST and gRPC, told apart by content type.
#[derive(Clone)]
pub struct Services {
    /// All paths of REST.
    pub rest: Router,
    /// A shorter way to one of them.
    pub infer: Option<Shortcut>,
    /// All methods of gRPC.
    pub grpc: Router,
}

impl Services {
    async fn answer(&self, request: Request<Incoming>, exchange: &Exchange) -> Response {
        let kind = request.headers().get(http::header::CONTENT_TYPE);
        if kind.is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc")) {
            return routed(self.grpc.clone(), request, exchange).await;
        }
        if let Some(infer) = &self.infer
            && let Some(servable) = infer.find(&request)
        {
            return infer.infer(servable, request).await;
        }
        routed(self.rest.clone(), request, exchange).await
    }
}

async fn routed(mut router: Router, request: Request<Incoming>, exchange: &Exchange) -> Response {
    let answered = router.call(request.map(Body::new)).instrument(exchange.span()).await;
    answered.unwrap_or_else(|never| match never {})
}

/// Requests of an HTTP/2 connection at a time.
const STREAMS: u32 = 256;
/// Bytes of a request's head.
const HEAD: usize = 16 << 10;
/// Between two looks at a connection's timeouts.
const LOOK: Duration = Duration::from_millis(1000);

/// Accepts connections until `phase` is [`Phase::Closing`], then waits for those that are open.
pub async fn serve(listener: TcpListener, services: Services, options: Options, mut phase: watch::Receiver<Phase>) {
    let services = Services { rest: telemetry::named(services.rest), ..services };
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = phase.wait_for(|phase| *phase == Phase::Closing) => break,
        };
        while connections.try_join_next().is_some() {}
        match accepted {
            Ok((stream, _)) => {
                // Beyond the bound a connection is closed at once: the client learns it without waiting.
                let Ok(permit) = options.connections.clone().try_acquire_owned() else { continue };
                let (services, timeouts, tls) = (services.clone(), options.timeouts, options.tls.clone());
                let mut phase = phase.clone();
                connections.spawn(async move {
                    let _permit = permit;
                    let stream = tokio::select! {
                        biased;
                        stream = Stream::open(stream, tls.as_deref()) => stream,
                        _ = phase.wait_for(|phase| *phase == Phase::Closing) => None,
                    };
                    if let Some(stream) = stream {
                        connection(stream, services, timeouts, phase).await;
                    }
                });
            }
            Err(error) => {
                // Out of descriptors, mostly: others may close theirs.
                tracing::warn!(%error, "a connection cannot be accepted");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

async fn connection(stream: Stream, services: Services, timeouts: Timeouts, mut phase: watch::Receiver<Phase>) {
    let activity = Activity::new();
    let service = {
        let (activity, services) = (activity.clone(), Arc::new(services));
        service_fn(move |mut request: Request<Incoming>| {
            let running = activity.request(request.version() == http::Version::HTTP_2);
            let services = services.clone();
            let exchange = Exchange::begin(&mut request);
            async move {
                let response = services.answer(request, &exchange).await;
                // The request runs until its answer is sent: one that streams for minutes is not idle.
                Ok::<_, Infallible>(exchange.answered(response, running))
            }
        })
    };
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(None).max_buf_size(HEAD.max(64 << 10));
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS)
        .max_header_list_size(HEAD as u32)
        .keep_alive_interval(Some(Duration::from_secs(30)))
        .keep_alive_timeout(Duration::from_secs(10));
    let io = Watched::new(TokioIo::new(stream), activity.clone());
    let mut connection = pin!(builder.serve_connection(io, service));
    let mut look = tokio::time::interval(LOOK);
    look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut closing = false;
    loop {
        tokio::select! {
            // How a connection ended is its client's affair.
            _ = connection.as_mut() => return,
            _ = look.tick() => if activity.overdue(&timeouts) { return },
            _ = phase.wait_for(|phase| *phase == Phase::Closing), if !closing => {
                closing = true;
                connection.as_mut().graceful_shutdown();
            }
        }
    }
}
