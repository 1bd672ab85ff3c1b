//! The accept loop: own, because axum's has no timeouts and ends on errors. It never ends but on shutdown.

use super::activity::{Activity, Overdue, Timeouts, Watched};
use super::again::Again;
use super::host;
use super::stream::Stream;
use super::tls::Tls;
use super::unread::Back;
use crate::error::Error;
use crate::metrics::Answers;
use crate::profile::Profile;
use crate::rest::Shortcut;
use crate::telemetry::{self, Exchange};
use axum::Router;
use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use http::{HeaderValue, Request};
use hyper::body::{Body as _, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use std::convert::Infallible;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, watch};
use tower::Service;
use tracing::Instrument;

/// How the server is leaving.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// It is not.
    Serving,
    /// New connections are accepted, and all are told to be the last.
    Draining,
    /// Connections close after their running requests; no new ones are accepted.
    Closing,
}

/// Bounds of connections.
#[derive(Clone, Debug)]
pub struct Options {
    /// How long a connection may take over what.
    pub timeouts: Timeouts,
    /// Bytes that a connection of HTTP/2 may have unread.
    pub window: u32,
    /// Connections at a time, over all listeners.
    pub connections: Arc<Semaphore>,
    /// Connections beyond them, on which health and metrics alone are answered.
    pub reserve: Arc<Semaphore>,
    /// Without it connections are in the clear.
    pub tls: Option<Arc<Tls>>,
}

impl Options {
    /// At most so many connections, over all listeners that these options are cloned for.
    pub fn new(timeouts: Timeouts, connections: usize, tls: Option<Arc<Tls>>) -> Self {
        let (connections, reserve) = (Arc::new(Semaphore::new(connections)), Arc::new(Semaphore::new(RESERVE)));
        Options { timeouts, window: WINDOW_MOST, connections, reserve, tls }
    }

    /// With windows that fit to a budget of so many bytes.
    pub fn within(mut self, budget: u64) -> Self {
        self.window = (budget / WINDOW_PART).clamp(WINDOW_LEAST.into(), WINDOW_MOST.into()) as u32;
        self
    }

    /// A place for one connection more; `None` where there is none.
    fn admit(&self, services: &Services) -> Option<Admitted> {
        if let Ok(place) = self.connections.clone().try_acquire_owned() {
            let (services, timeouts, window) = (services.clone(), self.timeouts, self.window);
            return Some(Admitted { services, timeouts, window, handshake: Duration::MAX, reserved: false, place });
        }
        // Beyond the bound a client is told so, and a probe is answered: being busy is not being dead.
        let place = self.reserve.clone().try_acquire_owned().ok()?;
        let (services, timeouts) = (services.reserved(), self.timeouts.shortened(RESERVED));
        Some(Admitted { services, timeouts, window: WINDOW_LEAST, handshake: RESERVED, reserved: true, place })
    }
}

/// A connection that has a place.
struct Admitted {
    services: Services,
    timeouts: Timeouts,
    window: u32,
    /// A handshake takes no longer, whatever else is set.
    handshake: Duration,
    /// The place is one of the reserve: it has to be free again soon, for the next probe.
    reserved: bool,
    place: OwnedSemaphorePermit,
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
    /// Health and metrics: what is answered when there are too many connections.
    pub reserve: Router,
    /// The same of gRPC.
    pub grpc_reserve: Router,
    /// Counts answers.
    pub answers: Answers,
    /// Whose manner of answering REST has.
    pub profile: Profile,
}

impl Services {
    /// `rest` and `grpc`, and nothing beyond the bound of connections.
    pub fn new(rest: Router, grpc: Router) -> Self {
        Services {
            rest,
            infer: None,
            grpc,
            reserve: Router::new(),
            grpc_reserve: Router::new(),
            answers: Answers::register(),
            profile: Profile::default(),
        }
    }

    /// What is answered when there are too many connections.
    fn reserved(&self) -> Self {
        let refuse = || async {
            crate::rest::refuse(&Error::Overloaded("too many connections (--max-connections); try again later".into()))
        };
        let rest = self.reserve.clone().fallback(refuse);
        Services { grpc: self.grpc_reserve.clone(), rest, infer: None, ..self.clone() }
    }

    async fn answer(&self, request: Request<Incoming>, exchange: &Exchange) -> Response {
        let grpc = is_grpc(&request);
        let manner = if grpc { None } else { self.profile.manner(request.uri().path()) };
        let response = self.lend(request, exchange).await;
        let response = match manner {
            Some(manner) => manner.restate(response),
            None => response,
        };
        if grpc {
            let code = response.headers().get("grpc-status").and_then(|code| code.to_str().ok()?.parse().ok());
            self.answers.grpc(code.unwrap_or(0));
        } else {
            self.answers.rest(response.status().as_u16());
        }
        response
    }

    /// Answers a request whose body may be answered before it was read.
    async fn lend(&self, request: Request<Incoming>, exchange: &Exchange) -> Response {
        // Over HTTP/2 a body is in nobody's way.
        if request.version() >= http::Version::HTTP_2 || request.body().is_end_stream() {
            return self.route(request, exchange).await;
        }
        let asks = request.headers().contains_key(http::header::EXPECT);
        let back = Back::default();
        let mut response = self.route(request.map(|body| back.lend(body)), exchange).await;
        if !back.settle(asks).await {
            response.headers_mut().insert(http::header::CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }

    async fn route<B>(&self, request: Request<B>, exchange: &Exchange) -> Response
    where
        B: hyper::body::Body<Data = Bytes, Error = hyper::Error> + Send + Unpin + 'static,
    {
        if head_bytes(&request) > HEAD {
            return crate::rest::refuse(&Error::HeadTooLarge(HEAD));
        }
        if let Err(error) = host::check(&request) {
            return crate::rest::refuse(&error);
        }
        if is_grpc(&request) {
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

fn is_grpc<B>(request: &Request<B>) -> bool {
    let kind = request.headers().get(http::header::CONTENT_TYPE);
    kind.is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"))
}

/// What HTTP/2 calls the size of a header list, without its allowance for each entry.
fn head_bytes<B>(request: &Request<B>) -> usize {
    let path = request.uri().path_and_query().map_or(0, |path| path.as_str().len());
    path + request.headers().iter().map(|(name, value)| name.as_str().len() + value.len()).sum::<usize>()
}

async fn routed<B>(mut router: Router, request: Request<B>, exchange: &Exchange) -> Response
where
    B: hyper::body::Body<Data = Bytes, Error = hyper::Error> + Send + 'static,
{
    let answered = router.call(request.map(Body::new)).instrument(exchange.span()).await;
    answered.unwrap_or_else(|never| match never {})
}

/// Requests of an HTTP/2 connection at a time.
const STREAMS: u32 = 256;
/// Bytes of an HTTP/2 connection's streams that may come before they are read, which no budget counts: a share of the
/// budget, within these bounds. Half of it is what their unread frames may cost beyond their bytes (h2 counts what each
/// lacks to 256 of them); beyond that the connection ends, with everything on it. So a stream whose client is faster than its
/// model has to be held back by its own window first: with an eighth, that does for frames of 52 bytes and more, or several
/// such streams with larger ones. Less would make large messages slow, of which a window comes in a round trip.
const WINDOW_LEAST: u32 = 1 << 20;
const WINDOW_MOST: u32 = 8 << 20;
const WINDOW_PART: u64 = 64;
const STREAM_PART: u32 = 8;
/// Bytes of a request's head.
const HEAD: usize = 16 << 10;
/// Connections beyond the bound, for health and metrics.
pub const RESERVE: usize = 32;
/// How long each of them may do nothing.
const RESERVED: Duration = Duration::from_secs(1);
/// How long each of them is kept, whatever it asks; after twice that it is closed, whatever it does.
const RESERVED_LIFE: Duration = Duration::from_secs(5);
/// Between two looks whether a new connection's first request has come, once the listener closes.
const FIRST: Duration = Duration::from_millis(10);
/// How long a connection without a request may stay once the listener closes: its client ought to close it, too.
const LEAVING: Duration = Duration::from_secs(1);
/// Between two looks at a connection's timeouts.
const LOOK: Duration = Duration::from_millis(1000);
/// Between two lines that say that connections cannot be accepted.
const REMINDER: Duration = Duration::from_secs(10);

/// Accepts connections until `phase` is [`Phase::Closing`], then waits for those that are open.
pub async fn serve(listener: TcpListener, services: Services, options: Options, mut phase: watch::Receiver<Phase>) {
    let services = Services { rest: telemetry::named(services.rest), ..services };
    let mut connections = tokio::task::JoinSet::new();
    let mut trouble = Trouble::default();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = phase.wait_for(|phase| *phase == Phase::Closing) => break,
        };
        while connections.try_join_next().is_some() {}
        match accepted {
            Ok((stream, _)) => {
                // One that has no place in the reserve either is closed at once.
                let Some(admitted) = options.admit(&services) else { continue };
                connections.spawn(attend(stream, admitted, options.tls.clone(), phase.clone()));
            }
            Err(error) => {
                // Out of descriptors, mostly: others may close theirs.
                trouble.tell(&error);
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

/// Connections that cannot be accepted, which may be twenty in a second for hours.
#[derive(Default)]
struct Trouble {
    told: Option<Instant>,
    times: u64,
}

impl Trouble {
    fn tell(&mut self, error: &std::io::Error) {
        self.times += 1;
        if self.told.is_some_and(|told| told.elapsed() < REMINDER) {
            return;
        }
        tracing::warn!(%error, times = self.times, "connections cannot be accepted");
        (self.told, self.times) = (Some(Instant::now()), 0);
    }
}

/// Shakes hands, and answers until the connection ends.
async fn attend(stream: TcpStream, admitted: Admitted, tls: Option<Arc<Tls>>, mut phase: watch::Receiver<Phase>) {
    let leaving = async {
        drop(phase.wait_for(|phase| *phase == Phase::Closing).await);
        tokio::time::sleep(LEAVING).await;
    };
    let stream = tokio::select! {
        biased;
        stream = Stream::open(stream, tls.as_deref(), admitted.handshake) => stream,
        // A handshake that is under way is given as long as a first request is.
        () = leaving => None,
    };
    if let Some(stream) = stream {
        connection(stream, admitted, phase).await;
    }
}

/// Is this anything but health and metrics as they were asked for?
fn is_refusal(response: &Response) -> bool {
    let code = response.headers().get("grpc-status");
    !response.status().is_success() || code.is_some_and(|code| code != "0")
}

fn protocols(window: u32) -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(None).max_buf_size(HEAD.max(64 << 10));
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS)
        .initial_stream_window_size(window / STREAM_PART)
        .initial_connection_window_size(window)
        .max_header_list_size(HEAD as u32)
        .keep_alive_interval(Some(Duration::from_secs(30)))
        .keep_alive_timeout(Duration::from_secs(10));
    builder
}

/// What a connection's task is woken for besides the connection.
enum Event {
    Look,
    Closing,
    Last,
    Draining,
    First,
}

/// Waits for `event`; `None` when the connection has ended. Each of them is polled at first, and then when it was woken
/// itself: whoever sends a token is woken for nothing else, and need not look at timers and locks for each.
async fn until<C: Future>(
    event: impl Future<Output = Event>,
    mut connection: Pin<&mut C>,
    again: &Again,
) -> Option<Event> {
    let (mut event, of_event) = (pin!(event), Again::new());
    // Since the last event it may have been told something.
    let mut told = true;
    let either = |cx: &mut Context<'_>| {
        // First, since a connection may always have something to do.
        if of_event.is_woken()
            && let Poll::Ready(event) = of_event.poll(event.as_mut(), cx)
        {
            return Poll::Ready(Some(event));
        }
        let wanted = std::mem::take(&mut told) || again.is_woken();
        if wanted { again.poll(connection.as_mut(), cx).map(|_| None) } else { Poll::Pending }
    };
    poll_fn(either).await
}

/// Has it taken longer than it may? Where nothing is asked on a connection of HTTP/2, its client may just be asking: it is
/// told first, as if the listener were `closing`, and what comes before it knows is answered.
fn is_overdue(activity: &Activity, timeouts: &Timeouts, closing: &mut Option<Instant>) -> bool {
    match activity.overdue(timeouts) {
        Some(Overdue::Idle) if activity.is_multiplexed() => {
            closing.get_or_insert_with(Instant::now);
            false
        }
        late => late.is_some(),
    }
}

async fn connection(stream: Stream, admitted: Admitted, mut phase: watch::Receiver<Phase>) {
    let Admitted { services, timeouts, window, reserved, place: _place, .. } = admitted;
    let (activity, born) = (Activity::new(), Instant::now());
    let mut draining = phase.clone();
    // Of HTTP/2: there is no header by which an answer says that it was the last.
    let last = Arc::new(Notify::new());
    let service = {
        let (activity, services, phase, last) = (activity.clone(), Arc::new(services), phase.clone(), last.clone());
        service_fn(move |mut request: Request<Incoming>| {
            let running = activity.request(request.version() == http::Version::HTTP_2);
            let (services, last) = (services.clone(), last.clone());
            let exchange = Exchange::begin(&mut request);
            let (phase, parting) = (phase.clone(), request.version() < http::Version::HTTP_2);
            async move {
                let mut response = services.answer(request, &exchange).await;
                // Whoever was refused finds a place on its next connection, and never would on this one.
                let makes_room = reserved && (is_refusal(&response) || born.elapsed() > RESERVED_LIFE);
                if parting && (makes_room || *phase.borrow() > Phase::Serving) {
                    response.headers_mut().insert(http::header::CONNECTION, HeaderValue::from_static("close"));
                } else if makes_room {
                    last.notify_one();
                }
                // The request runs until its answer is sent: one that streams for minutes is not idle.
                Ok::<_, Infallible>(exchange.answered(response).map(|body| running.sending(body)))
            }
        })
    };
    let builder = protocols(window);
    let io = Watched::new(TokioIo::new(stream), activity.clone());
    let mut connection = pin!(builder.serve_connection(io, service));
    let again = Again::new();
    let mut look = tokio::time::interval(LOOK);
    look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let (mut closing, mut graceful, mut parted) = (None, false, false);
    loop {
        let over = closing.is_some_and(|since: Instant| since.elapsed() > LEAVING);
        if closing.is_some() && !graceful && (activity.is_used() || over) {
            graceful = true;
            connection.as_mut().graceful_shutdown();
        }
        let event = async {
            tokio::select! {
                _ = look.tick() => Event::Look,
                _ = phase.wait_for(|phase| *phase == Phase::Closing), if closing.is_none() => Event::Closing,
                () = last.notified(), if !graceful => Event::Last,
                _ = draining.wait_for(|phase| *phase > Phase::Serving), if !parted => Event::Draining,
                () = tokio::time::sleep(FIRST), if closing.is_some() && !graceful => Event::First,
            }
        };
        match until(event, connection.as_mut(), &again).await {
            // How a connection ended is its client's affair.
            None => return,
            Some(Event::Look) => {
                let left = graceful && over && !activity.is_running();
                let outlived = reserved && born.elapsed() > 2 * RESERVED_LIFE;
                if left || outlived || is_overdue(&activity, &timeouts, &mut closing) {
                    return;
                }
            }
            Some(Event::Closing) => closing = Some(Instant::now()),
            Some(Event::Last) => {
                graceful = true;
                connection.as_mut().graceful_shutdown();
            }
            // Connections of HTTP/2 are told so once; one that comes later has its requests answered until it closes.
            Some(Event::Draining) => {
                parted = true;
                if activity.is_multiplexed() && activity.is_used() {
                    connection.as_mut().graceful_shutdown();
                }
            }
            // A connection that was just made has its first request under way: it is answered, too.
            Some(Event::First) => {}
        }
    }
}
