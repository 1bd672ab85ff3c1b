//! The REST routes: decode, call the data plane, encode. What a verb means is decided there, not here.

mod anthropic;
mod body;
mod cors;
mod exchange;
mod generate;
mod openai;
mod reply;
mod shortcut;
mod text;
mod v1;
mod v2;
mod vllm;

use crate::budget::Budget;
use crate::codec::anthropic::error_body as anthropic_error;
use crate::codec::openai::{Refusal, error_body as openai_error};
use crate::dataplane::Dataplane;
use crate::error::Error;
use crate::profile::{Profile, is_of_anthropic};
use axum::Router;
use axum::body::Body;
use axum::extract::FromRequestParts;
use axum::response::Response;
use axum::routing::{any, get, post};
use http::header::LOCATION;
use http::request::Parts;
use http::{HeaderValue, Method, Request, StatusCode, Uri};
use metrics_exporter_prometheus::PrometheusHandle;
use serde::de::DeserializeOwned;
use std::sync::Arc;
use std::time::Duration;
use tower::ServiceExt;

pub use cors::Origins;
pub use shortcut::Shortcut;

/// Bounds of request bodies.
#[derive(Clone, Copy, Debug)]
pub struct BodyLimits {
    /// Bytes, counted after decompression.
    pub bytes: usize,
    /// Between two pieces of a body.
    pub idle: Duration,
}

/// What every handler needs.
#[derive(Clone)]
pub struct Rest {
    pub(crate) plane: Arc<Dataplane>,
    pub(crate) limits: BodyLimits,
    pub(crate) budget: Budget,
    pub(crate) metrics: PrometheusHandle,
    /// Streams of OpenAI's API end with what was used, whether or not it is asked for.
    pub(crate) forces_usage: bool,
}

impl Rest {
    /// Routes over `plane`.
    pub fn new(plane: Arc<Dataplane>, limits: BodyLimits, budget: Budget, metrics: PrometheusHandle) -> Self {
        Rest { plane, limits, budget, metrics, forces_usage: false }
    }

    /// Does every stream of OpenAI's API end with what was used?
    #[must_use]
    pub fn with_usage_forced(self, forces_usage: bool) -> Self {
        Rest { forces_usage, ..self }
    }

    /// The routes that need no key: health and metrics.
    pub fn open_routes(&self) -> Router {
        Router::new()
            .route("/v2/health/live", get(v2::live))
            .route("/v2/health/ready", get(v2::ready))
            .route("/health", get(vllm::health))
            .route("/ping", get(vllm::health).post(vllm::health))
            .route("/metrics", get(v2::metrics))
            .method_not_allowed_fallback(wrong_method)
            .with_state(self.clone())
    }

    /// All other routes.
    pub fn routes(&self) -> Router {
        let closed = self.closed_routes();
        let (rest, all) = (self.clone(), closed.clone().merge(self.open_routes()));
        closed.fallback(move |uri: Uri| no_route(rest.clone(), all.clone(), uri))
    }

    fn closed_routes(&self) -> Router {
        Router::new()
            .route("/", get(v1::alive))
            .route("/v1/models", get(v1::list))
            .route("/openai/v1/models", get(openai::models))
            .route("/openai/v1/models/{*model}", get(openai::model))
            .route("/v1/chat/completions", post(openai::chat))
            .route("/openai/v1/chat/completions", post(openai::chat))
            .route("/v1/completions", post(openai::completion))
            .route("/openai/v1/completions", post(openai::completion))
            .route("/v1/messages", post(anthropic::messages).fallback(anthropic::wrong_method))
            .route("/v1/messages/count_tokens", post(anthropic::count_tokens).fallback(anthropic::wrong_method))
            .route("/version", get(vllm::version))
            .route("/load", get(vllm::load))
            .route("/tokenize", post(openai::tokenize))
            .route("/detokenize", post(openai::detokenize))
            // Names may have slashes, and clients that leave them as they are.
            .route("/v1/models/{*model}", get(v1::ready).post(v1::call))
            .route("/v2", get(v2::server_metadata))
            .route("/v2/models", get(v2::list))
            .route("/v2/models/stats", get(v2::all_stats))
            .route("/v2/models/{model}", get(v2::model_metadata))
            .route("/v2/models/{model}/ready", get(v2::model_ready))
            .route("/v2/models/{model}/infer", post(v2::infer))
            .route("/v2/models/{model}/generate", post(generate::whole))
            .route("/v2/models/{model}/generate_stream", post(generate::stream))
            .route("/v2/models/{model}/config", get(v2::config))
            .route("/v2/models/{model}/stats", get(v2::stats))
            .route("/v2/models/{model}/versions/{version}", get(v2::model_metadata))
            .route("/v2/models/{model}/versions/{version}/ready", get(v2::model_ready))
            .route("/v2/models/{model}/versions/{version}/infer", post(v2::infer))
            .route("/v2/models/{model}/versions/{version}/generate", post(generate::whole))
            .route("/v2/models/{model}/versions/{version}/generate_stream", post(generate::stream))
            .route("/v2/models/{model}/versions/{version}/config", get(v2::config))
            .route("/v2/models/{model}/versions/{version}/stats", get(v2::stats))
            .route("/v2/repository/index", get(v2::index).post(v2::index))
            .route("/v2/repository/models/{model}/load", post(v2::load))
            .route("/v2/repository/models/{model}/unload", post(v2::unload))
            .route("/v2/repository/{repository}/{*rest}", any(v2::named_repository))
            .route("/v2/trace/setting", any(v2::not_built))
            .route("/v2/models/{model}/trace/setting", any(v2::not_built))
            .route("/v2/models/{model}/versions/{version}/trace/setting", any(v2::not_built))
            .route("/v2/logging", any(v2::not_built))
            .route("/v2/systemsharedmemory/{*rest}", any(v2::not_built))
            .route("/v2/cudasharedmemory/{*rest}", any(v2::not_built))
            .method_not_allowed_fallback(wrong_method)
            .with_state(self.clone())
    }

    /// The answer that sends a client to the same path without the slashes at its end, as FastAPI does, with which KServe's
    /// and MLServer's servers are built; `None` where there are none. Triton has no such manner.
    fn without_slash(&self, uri: &Uri) -> Option<Response> {
        let path = bare(uri.path()).filter(|_| self.plane.profile() != Profile::Triton)?;
        let place = uri.query().map_or_else(|| path.to_owned(), |query| format!("{path}?{query}"));
        let place = HeaderValue::try_from(place).ok()?;
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::TEMPORARY_REDIRECT;
        response.headers_mut().insert(LOCATION, place);
        Some(response)
    }
}

/// A path without the slashes at its end, where it has some and something before them.
fn bare(path: &str) -> Option<&str> {
    Some(path.trim_end_matches('/')).filter(|bare| !bare.is_empty() && bare.len() < path.len())
}

/// Names out of a path.
pub(crate) struct Path<T>(pub(crate) T);

impl<T: DeserializeOwned + Send> FromRequestParts<Rest> for Path<T> {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, rest: &Rest) -> Result<Self, Response> {
        // Where names may have slashes, those at the end are taken for a part of one.
        if let Some(elsewhere) = rest.without_slash(&parts.uri) {
            return Err(elsewhere);
        }
        let found = axum::extract::Path::from_request_parts(parts, rest).await;
        let refused = |_| reply::error(&Error::Invalid("a name in the path is not UTF-8".into()));
        found.map(|axum::extract::Path(names)| Path(names)).map_err(refused)
    }
}

/// A path that none of `all` has, if not for the slashes at its end.
async fn no_route(rest: Rest, all: Router, uri: Uri) -> Response {
    if let Some(elsewhere) = rest.without_slash(&uri)
        && is_route(all, uri.path().trim_end_matches('/')).await
    {
        return elsewhere;
    }
    refuse_at(uri.path(), &Error::NoRoute)
}

/// Is there a route of this path, whatever its methods?
async fn is_route(all: Router, path: &str) -> bool {
    // A method that no route has: one that is there says so, and does nothing.
    let Ok(asked) = Request::builder().method(Method::TRACE).uri(path).body(Body::empty()) else { return false };
    all.oneshot(asked).await.is_ok_and(|answer| answer.status() != StatusCode::NOT_FOUND)
}

async fn wrong_method(uri: Uri) -> Response {
    let body = match is_of_openai(uri.path()) {
        true => openai_error("Method Not Allowed", StatusCode::METHOD_NOT_ALLOWED.as_u16()),
        false => b"{\"error\":\"Method Not Allowed\"}".to_vec(),
    };
    reply::json(StatusCode::METHOD_NOT_ALLOWED, body)
}

/// What OpenAI's API and vLLM's additions have below `/v1`, served or not: a client that asks there reads errors in
/// that form. `/v1/models` is KServe's as well, and came first.
const OF_OPENAI: [&str; 22] = [
    "assistants",
    "audio",
    "batches",
    "chat",
    "classify",
    "completions",
    "conversations",
    "embeddings",
    "evals",
    "files",
    "fine_tuning",
    "images",
    "moderations",
    "pooling",
    "realtime",
    "rerank",
    "responses",
    "score",
    "threads",
    "uploads",
    "vector_stores",
    "videos",
];

/// Is it a path of OpenAI's API, or one that vLLM has beside it?
fn is_of_openai(path: &str) -> bool {
    let below = path.strip_prefix("/v1/").and_then(|below| below.split('/').next());
    path.starts_with("/openai/")
        || matches!(path, "/tokenize" | "/detokenize")
        || below.is_some_and(|first| OF_OPENAI.contains(&first))
}

/// The reply to a request that was refused before it reached a route.
pub fn refuse(error: &Error) -> Response {
    reply::error(error)
}

/// The same to a request of this path, in the form of the API that the path belongs to.
pub fn refuse_at(path: &str, error: &Error) -> Response {
    let form: fn(&Refusal) -> Vec<u8> = match path {
        path if is_of_anthropic(path) => anthropic_error,
        path if is_of_openai(path) => Refusal::body,
        _ => return refuse(error),
    };
    let mut response = reply::error(error);
    *response.body_mut() = Body::from(form(&Refusal::from(error.clone())));
    // No server that is followed has these routes, nor a word of its own for what happened there.
    response.extensions_mut().remove::<Error>();
    response
}

#[cfg(test)]
mod tests {
    use super::{bare, is_of_openai};

    #[test]
    fn slashes_at_the_end() {
        for (path, without) in [
            ("/v2/models/a/", Some("/v2/models/a")),
            ("/v2//", Some("/v2")),
            ("/v2", None),
            ("/", None),
            ("//", None),
            ("/v2/models/a%2F", None),
            ("*", None),
        ] {
            assert_eq!(bare(path), without, "{path}");
        }
    }

    #[test]
    fn whose_paths_are_whose() {
        for path in ["/v1/chat/completions", "/v1/embeddings", "/v1/responses/a", "/openai/v1/models/a", "/tokenize"] {
            assert!(is_of_openai(path), "{path}");
        }
        for path in ["/", "/v1", "/v1/", "/v1/models", "/v1/models/chat", "/v1/messages", "/v1/chats", "/v2/chat", "/x"]
        {
            assert!(!is_of_openai(path), "{path}");
        }
    }
}
