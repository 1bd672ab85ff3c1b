//! What vLLM answers besides OpenAI's API: to probes, to SageMaker's and Kubernetes', and to who spreads load.

use super::{Rest, reply};
use crate::dataplane::VERSION;
use axum::body::Body;
use axum::extract::State;
use axum::response::Response;
use http::StatusCode;
use serde_json::json;

/// `GET /health` and `/ping`: may requests come, and does every model get on? The status says it all. KServe's templates
/// ask this for all three kinds of probes; it begins to say yes when the models of the start are loaded.
pub(super) async fn health(State(rest): State<Rest>) -> Response {
    let well = rest.plane.ready() && rest.plane.live();
    let mut response = Response::new(Body::empty());
    *response.status_mut() = if well { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    response
}

/// `GET /version`: of this server.
pub(super) async fn version() -> Response {
    reply::value(StatusCode::OK, &json!({"version": VERSION}))
}

/// `GET /load`: answers that are being generated, or wait for it.
pub(super) async fn load(State(rest): State<Rest>) -> Response {
    reply::value(StatusCode::OK, &json!({"server_load": rest.plane.answers()}))
}
