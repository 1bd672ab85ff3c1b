//! What is told about a request: its id to the client, and where that is wanted its span to the collector and a line
//! to the log. At level info and without a collector this is the id alone.

use super::context::{self, REQUEST_ID};
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::MatchedPath;
use axum::middleware::{Next, from_fn};
use axum::response::Response;
use http::{HeaderMap, HeaderValue, Request};
use hyper::body::{Body as _, Frame, SizeHint};
use opentelemetry::trace::{Status, TraceContextExt};
use opentelemetry::{Context, KeyValue};
use std::pin::Pin;
use std::task::Poll;
use std::time::Instant;
use tracing::{Level, Span};
use tracing_opentelemetry::OpenTelemetrySpanExt;

/// The target of spans. They are there when somebody wants them: a collector, or a log at level debug.
pub const SPANS: &str = "tensorgate::request";
/// The target of a line per request.
const ACCESS: &str = "tensorgate::access";
/// Characters of a path that are told.
const LONGEST_PATH: usize = 256;
/// gRPC codes that are the server's fault, as OpenTelemetry's conventions have it.
const FAULTS: [i32; 6] = [2, 4, 12, 13, 14, 15];

/// A request from its head to the end of its answer.
#[derive(Debug)]
pub struct Exchange {
    id: HeaderValue,
    record: Option<Box<Record>>,
}

/// What is known of an exchange that somebody wants to hear of.
#[derive(Debug)]
struct Record {
    span: Span,
    /// The span as OpenTelemetry has it.
    context: Context,
    start: Instant,
    grpc: bool,
    /// Of HTTP. 0 until there is an answer.
    status: u16,
    grpc_status: Option<i32>,
    bytes: u64,
    complete: bool,
}

impl Exchange {
    /// Looks at a request's head, and gives it an id where it has none that can be used.
    pub fn begin<B>(request: &mut Request<B>) -> Self {
        let id = context::request_id(request.headers_mut());
        let record = Record::begin(request, &id).map(Box::new);
        Exchange { id, record }
    }

    /// The span to answer in; a disabled one where nobody wants it.
    pub fn span(&self) -> Span {
        self.record.as_ref().map_or_else(Span::none, |record| record.span.clone())
    }

    /// The answer to be sent.
    pub fn answered(mut self, response: Response) -> http::Response<Answer> {
        let (mut head, body) = response.into_parts();
        head.headers.insert(REQUEST_ID, self.id);
        if let Some(record) = &mut self.record {
            record.status = head.status.as_u16();
            record.grpc_status = grpc_status(&head.headers);
        }
        http::Response::from_parts(head, Answer { body, record: self.record })
    }
}

impl Record {
    fn begin<B>(request: &Request<B>, id: &HeaderValue) -> Option<Self> {
        let path = |request: &Request<B>| request.uri().path().chars().take(LONGEST_PATH).collect::<String>();
        let span = tracing::info_span!(
            target: SPANS,
            "request",
            otel.kind = "server",
            http.request.method = request.method().as_str(),
            url.path = path(request),
            request_id = id.to_str().unwrap_or_default(),
            trace_id = tracing::field::Empty,
            span_id = tracing::field::Empty,
        );
        if span.is_disabled() {
            return None;
        }
        let grpc = request.headers().get(http::header::CONTENT_TYPE);
        let grpc = grpc.is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"));
        let parent = context::parent(request.headers());
        let mut place = parent.clone();
        if let Some(parent) = parent {
            // Fails where no collector is configured: then the ids are for the log alone.
            let _ = span.set_parent(Context::new().with_remote_span_context(parent));
        }
        let context = span.context();
        if context.has_active_span() {
            let name =
                if grpc { path(request).trim_start_matches('/').to_owned() } else { request.method().to_string() };
            context.span().update_name(name);
            place = Some(context.span().span_context().clone());
        }
        if let Some(place) = place {
            let (trace, parent) = (place.trace_id().to_string(), place.span_id().to_string());
            tracing::record_all!(span, trace_id = trace, span_id = parent);
        }
        let start = Instant::now();
        Some(Record { span, context, start, grpc, status: 0, grpc_status: None, bytes: 0, complete: false })
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        let span = self.context.span();
        if self.status > 0 {
            span.set_attribute(KeyValue::new("http.response.status_code", i64::from(self.status)));
        }
        let code = self.grpc_status.or((self.grpc && self.complete).then_some(0));
        if let Some(code) = code {
            span.set_attribute(KeyValue::new("rpc.system", "grpc"));
            span.set_attribute(KeyValue::new("rpc.grpc.status_code", i64::from(code)));
        }
        if self.status >= 500 || code.is_some_and(|code| FAULTS.contains(&code)) {
            span.set_status(Status::error(""));
        }
        if !self.complete {
            span.set_attribute(KeyValue::new("error.type", "cancelled"));
        }
        tracing::debug!(
            target: ACCESS,
            parent: &self.span,
            status = self.status,
            grpc_status = code,
            bytes = self.bytes,
            complete = self.complete,
            ms = self.start.elapsed().as_secs_f64() * 1e3,
            "answered"
        );
    }
}

/// The body of an answer, and what ends with it.
#[derive(Debug)]
pub struct Answer {
    body: Body,
    record: Option<Box<Record>>,
}

impl hyper::body::Body for Answer {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        if let (Some(record), Poll::Ready(frame)) = (&mut self.record, &polled) {
            match frame {
                None => record.complete = true,
                Some(Ok(frame)) => {
                    record.bytes += frame.data_ref().map_or(0, |data| data.len() as u64);
                    record.grpc_status = frame.trailers_ref().and_then(grpc_status).or(record.grpc_status);
                }
                Some(Err(_)) => {}
            }
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        if let Some(record) = &mut self.record {
            // Where the length is known nobody polls for the end.
            record.complete |= self.body.is_end_stream();
        }
    }
}

fn grpc_status(headers: &HeaderMap) -> Option<i32> {
    headers.get("grpc-status")?.to_str().ok()?.parse().ok()
}

/// Does anybody want to hear of single requests?
pub fn spans_wanted() -> bool {
    tracing::enabled!(target: SPANS, Level::INFO)
}

/// Names spans by route, where there are spans: paths are too many to be names.
pub fn named(router: Router) -> Router {
    if !spans_wanted() {
        return router;
    }
    router.layer(from_fn(|request: axum::extract::Request, next: Next| {
        if let Some(route) = request.extensions().get::<MatchedPath>() {
            let context = Span::current().context();
            context.span().update_name(format!("{} {}", request.method(), route.as_str()));
            context.span().set_attribute(KeyValue::new("http.route", route.as_str().to_owned()));
        }
        next.run(request)
    }))
}
