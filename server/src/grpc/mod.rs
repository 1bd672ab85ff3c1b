//! The gRPC services: inference, health, reflection. Decode, call the data plane, encode.

mod counted;
mod decoding;
mod health;
mod service;
mod stream;

#[allow(missing_docs, unreachable_pub, clippy::all, clippy::pedantic)]
mod generated {
    // `include!` and not `mod`: rustfmt follows modules, and the generator's layout is not ours.
    include!("gen/inference.rs");
}

use crate::budget::Budget;
use crate::dataplane::Dataplane;
use crate::edge::keys::Keys;
use crate::error::Error;
use axum::Router;
use axum::extract::{MatchedPath, Request, State};
use axum::middleware::{Next, from_fn, from_fn_with_state, map_response};
use axum::response::Response;
use counted::Rules;
use generated::grpc_inference_service_server::GrpcInferenceServiceServer;
use http::HeaderValue;
use std::sync::Arc;
use std::time::Duration;
use tonic::codec::CompressionEncoding;
use tonic::service::Routes;
use tonic::{Code, Status};
use tonic_health::pb::health_server::HealthServer;

/// Bounds of messages.
#[derive(Clone, Debug)]
pub struct Bounds {
    /// Bytes of one, unpacked.
    pub message_bytes: usize,
    /// Bytes of all that are being answered, as they came over the wire.
    pub budget: Budget,
    /// Between two pieces of one.
    pub idle: Duration,
    /// Are values answered in the form in which they came?
    pub mirrors: bool,
}

/// The routes of gRPC.
#[derive(Clone, Debug)]
pub struct Routers {
    /// All services. Health needs no key; everything else, what there is not included, does where there are keys.
    pub all: Router,
    /// Health alone: what is answered when there are too many connections.
    pub reserve: Router,
}

/// Routes over `plane`.
pub fn routers(plane: Arc<Dataplane>, bounds: Bounds, keys: Option<Arc<Keys>>) -> Routers {
    let rules = Rules { budget: bounds.budget, idle: bounds.idle, whole: plane.longest(), plane: plane.clone() };
    let inference = GrpcInferenceServiceServer::new(service::Service { plane: plane.clone(), mirrors: bounds.mirrors })
        .max_decoding_message_size(bounds.message_bytes)
        .max_encoding_message_size(usize::MAX)
        .accept_compressed(CompressionEncoding::Gzip)
        .accept_compressed(CompressionEncoding::Deflate)
        .send_compressed(CompressionEncoding::Gzip)
        .send_compressed(CompressionEncoding::Deflate);
    let health = HealthServer::new(health::Service(plane));
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(protocol::grpc::FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let mut routes = Routes::builder();
    routes.add_service(health.clone()).add_service(inference);
    if let Ok(v1) = reflection().build_v1() {
        routes.add_service(v1);
    }
    if let Ok(alpha) = reflection().build_v1alpha() {
        routes.add_service(alpha);
    }
    let mut all = routes.routes().into_axum_router().fallback(unknown).layer(map_response(too_large));
    all = all.layer(from_fn_with_state(rules, counted::count));
    if let Some(keys) = keys {
        all = all.layer(from_fn_with_state(keys, check_key));
    }
    let mut reserve = Routes::builder();
    reserve.add_service(health);
    let reserve = reserve.routes().into_axum_router().fallback(busy).layer(from_fn(refuse_watch));
    Routers { all, reserve }
}

/// Lies over every route, the fallback included: a method is closed unless it is one of health's.
async fn check_key(State(keys): State<Arc<Keys>>, request: Request, next: Next) -> Response {
    let matched = request.extensions().get::<MatchedPath>().map(MatchedPath::as_str);
    let open = matched.is_some_and(|path| path.starts_with("/grpc.health.v1.Health/"));
    match keys.check(request.headers()) {
        Err(error) if !open => status(&error).into_http(),
        _ => next.run(request).await,
    }
}

/// Who watches would hold a connection of the reserve for ever.
async fn refuse_watch(request: Request, next: Next) -> Response {
    if request.uri().path().ends_with("/Watch") { busy().await } else { next.run(request).await }
}

async fn unknown(uri: http::Uri) -> Response {
    let method: String = uri.path().chars().take(LONGEST_METHOD).collect();
    Status::unimplemented(format!("unknown method {method}")).into_http()
}

async fn busy() -> Response {
    status(&Error::Overloaded("too many connections (--max-connections); try again later".into())).into_http()
}

/// Characters of a method that an error repeats.
const LONGEST_METHOD: usize = 256;

/// A single message over the limit is OUT_OF_RANGE to the library, which reads it before any service does; in the table
/// of errors, and to clients of other servers, it is RESOURCE_EXHAUSTED. Nothing else here is OUT_OF_RANGE.
async fn too_large(mut response: Response) -> Response {
    if response.headers().get(Status::GRPC_STATUS).is_some_and(|code| code == "11") {
        let code = Error::TooLarge(String::new()).row().1;
        response.headers_mut().insert(Status::GRPC_STATUS, HeaderValue::from(code));
    }
    response
}

/// The status that an error has in the table.
fn status(error: &Error) -> Status {
    with_code(error, error.row().1, error.message())
}

/// The status of an error under another code.
fn with_code(error: &Error, code: i32, message: String) -> Status {
    let mut status = Status::new(Code::from_i32(code), message);
    if let Some(after) = error.retry_after() {
        status.metadata_mut().insert("retry-after", tonic::metadata::MetadataValue::from(after.as_secs()));
    }
    status
}

/// `grpc-timeout`: up to eight digits and a unit.
fn timeout(value: &HeaderValue) -> Option<Duration> {
    let text = value.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let count: u64 = digits.parse().ok().filter(|_| digits.len() <= 8)?;
    Some(match unit {
        "H" => Duration::from_secs(count * 3600),
        "M" => Duration::from_secs(count * 60),
        "S" => Duration::from_secs(count),
        "m" => Duration::from_millis(count),
        "u" => Duration::from_micros(count),
        "n" => Duration::from_nanos(count),
        _ => return None,
    })
}
