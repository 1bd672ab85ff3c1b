//! The v2 routes: health, metadata, inference, repository, statistics, configuration.

use super::exchange::{Skin, Written, deadline_within, exchange};
use super::reply::or_error;
use super::{BodyLimits, Path, Rest, body, reply};
use crate::codec;
use crate::dataplane::{self, EXTENSIONS, Infer, Inferred, NAME, Servable, VERSION, Work};
use crate::describe;
use crate::error::Error;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::Response;
use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use serde::Deserialize;
use serde_json::json;
use std::sync::Arc;
use std::time::Instant;

/// Length of the JSON in front of binary tensors.
const HEADER_LENGTH: HeaderName = HeaderName::from_static("inference-header-content-length");

/// The model, and the version where the path names one.
#[derive(Debug, Deserialize)]
pub(super) struct Target {
    pub(super) model: String,
    version: Option<String>,
}

impl Target {
    /// The model that is meant.
    pub(super) fn servable(&self, rest: &Rest) -> Result<Arc<Servable>, Error> {
        rest.plane.servable(&self.model, self.named_version(rest)?)
    }

    /// The version that is meant. A path has digits for one, or is none.
    fn named_version(&self, rest: &Rest) -> Result<Option<&str>, Error> {
        match self.version.as_deref() {
            Some(version) if version.is_empty() || !version.bytes().all(|byte| byte.is_ascii_digit()) => {
                Err(Error::NoRoute)
            }
            Some(_) if !rest.plane.profile().has_versions() => {
                Err(Error::Unsupported("Model versioning not supported yet.".into()))
            }
            version => Ok(version),
        }
    }
}

pub(super) async fn live(State(rest): State<Rest>) -> Response {
    if rest.plane.live() {
        reply::json(StatusCode::OK, b"{\"live\":true}".to_vec())
    } else {
        reply::json(StatusCode::SERVICE_UNAVAILABLE, b"{\"live\":false}".to_vec())
    }
}

pub(super) async fn ready(State(rest): State<Rest>) -> Response {
    if rest.plane.ready() {
        reply::json(StatusCode::OK, b"{\"ready\":true}".to_vec())
    } else {
        reply::json(StatusCode::SERVICE_UNAVAILABLE, b"{\"ready\":false}".to_vec())
    }
}

pub(super) async fn metrics(State(rest): State<Rest>) -> Response {
    rest.plane.registry().refresh_metrics();
    let mut response = Response::new(Body::from(crate::metrics::render(&rest.metrics)));
    let text = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, text);
    response
}

pub(super) async fn server_metadata() -> Response {
    reply::value(StatusCode::OK, &json!({"name": NAME, "version": VERSION, "extensions": EXTENSIONS}))
}

pub(super) async fn list(State(rest): State<Rest>) -> Response {
    reply::value(StatusCode::OK, &json!({"models": rest.plane.registry().names()}))
}

pub(super) async fn model_metadata(State(rest): State<Rest>, Path(target): Path<Target>) -> Response {
    or_error(target.servable(&rest).map(|servable| {
        let versions = rest.plane.registry().ready_versions(&target.model);
        reply::value(StatusCode::OK, &describe::metadata(&servable, &versions))
    }))
}

pub(super) async fn model_ready(State(rest): State<Rest>, Path(target): Path<Target>) -> Response {
    or_error(
        target
            .servable(&rest)
            .map(|servable| reply::value(StatusCode::OK, &json!({"name": servable.name, "ready": true}))),
    )
}

pub(super) async fn config(State(rest): State<Rest>, Path(target): Path<Target>) -> Response {
    or_error(target.servable(&rest).map(|servable| reply::value(StatusCode::OK, &describe::config(&servable))))
}

pub(super) async fn stats(State(rest): State<Rest>, Path(target): Path<Target>) -> Response {
    let asked = target.named_version(&rest).and_then(|version| rest.plane.versions(&target.model, version));
    or_error(asked.map(|servables| statistics(&servables)))
}

pub(super) async fn all_stats(State(rest): State<Rest>) -> Response {
    statistics(&rest.plane.registry().servables())
}

fn statistics(servables: &[Arc<Servable>]) -> Response {
    let all: Vec<_> = servables.iter().map(|servable| describe::stats(servable)).collect();
    reply::value(StatusCode::OK, &json!({"model_stats": all}))
}

pub(super) async fn infer(State(rest): State<Rest>, Path(target): Path<Target>, request: Request) -> Response {
    // Taken apart here: an extractor would copy the headers.
    let (parts, body) = request.into_parts();
    or_error(try_infer(&rest, &target, &parts.headers, body).await)
}

async fn try_infer(rest: &Rest, target: &Target, headers: &HeaderMap, body: Body) -> Result<Response, Error> {
    let servable = target.servable(rest)?;
    infer_on(rest, servable, headers, body).await
}

/// Inference by a model that was found.
pub(super) async fn infer_on<B>(
    rest: &Rest,
    servable: Arc<Servable>,
    headers: &HeaderMap,
    body: B,
) -> Result<Response, Error>
where
    B: hyper::body::Body<Data = Bytes, Error: std::error::Error + 'static> + Unpin,
{
    let longest = match servable.work {
        Work::Predictor(_) => rest.plane.longest(),
        Work::Language(_) => rest.plane.longest_generation(),
    };
    let deadline = deadline_within(longest, headers)?;
    let length = header_length(headers)?;
    let arrival = deadline.min(Instant::now() + rest.plane.longest());
    let held = body::read(rest, headers, body, arrival).await?;
    exchange((rest, headers), servable, held, deadline, V2 { rest, length }).await
}

/// JSON, with binary tensors behind it where there are some.
struct V2<'a> {
    rest: &'a Rest,
    /// Of the JSON, where tensors follow.
    length: Option<usize>,
}

impl Skin for V2<'_> {
    type Form = codec::v2::Form;

    fn read_bytes(&self, body: usize) -> usize {
        self.length.map_or(body, |length| body.min(length))
    }

    fn decode(&self, body: &Bytes, servable: &Servable) -> Result<(Infer, Self::Form), Error> {
        codec::v2::decode(body, self.length, &servable.signature, self.rest.plane.registry().limits())
    }

    fn bytes_to_write(&self, inferred: &Inferred, form: &Self::Form) -> usize {
        inferred.bytes_to_write(|index| form.is_binary(index))
    }

    fn encode(&self, inferred: &Inferred, form: Self::Form) -> Result<Written, Error> {
        let encoded = codec::v2::encode(inferred, &form, self.rest.plane.profile().not_finite())?;
        let length = encoded.header_length.map(|length| (HEADER_LENGTH, HeaderValue::from(length)));
        let kind = if length.is_some() { "application/octet-stream" } else { "application/json" };
        Ok(Written { body: encoded.body, kind, headers: length.into_iter().collect() })
    }
}

fn header_length(headers: &HeaderMap) -> Result<Option<usize>, Error> {
    let Some(value) = headers.get(HEADER_LENGTH) else { return Ok(None) };
    let number = value.to_str().ok().and_then(|text| text.trim().parse().ok());
    number.map(Some).ok_or_else(|| {
        Error::Invalid(format!("header Inference-Header-Content-Length is {value:?}, which is no number of bytes"))
    })
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct IndexRequest {
    #[serde(default)]
    ready: bool,
}

pub(super) async fn index(State(rest): State<Rest>, headers: HeaderMap, body: Body) -> Response {
    let index = async {
        let request: IndexRequest = parse_optional(&rest, &headers, body).await?;
        rest.plane.index(request.ready).await
    };
    or_error(index.await.map(|entries| reply::value(StatusCode::OK, &describe::index(&entries))))
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct LoadRequest {
    #[serde(default)]
    parameters: serde_json::Map<String, serde_json::Value>,
}

pub(super) async fn load(
    State(rest): State<Rest>,
    Path(target): Path<Target>,
    headers: HeaderMap,
    body: Body,
) -> Response {
    let load = async {
        let request: LoadRequest = parse_optional(&rest, &headers, body).await?;
        let parameters: Vec<&str> = request.parameters.keys().map(String::as_str).collect();
        rest.plane.load(&target.model, &parameters).await
    };
    managed(&rest, load.await, &target.model, "load")
}

pub(super) async fn unload(
    State(rest): State<Rest>,
    Path(target): Path<Target>,
    headers: HeaderMap,
    body: Body,
) -> Response {
    let unload = async {
        let request: LoadRequest = parse_optional(&rest, &headers, body).await?;
        let named = request.parameters.iter().map(|(name, value)| (name.as_str(), value.is_boolean()));
        let parameters: Vec<(&str, bool)> = named.collect();
        rest.plane.unload(&target.model, &parameters).await
    };
    managed(&rest, unload.await, &target.model, "unload")
}

fn managed(rest: &Rest, result: Result<(), Error>, model: &str, verb: &str) -> Response {
    or_error(result.map(|()| {
        if rest.plane.profile().load_replies_json() {
            reply::value(StatusCode::OK, &json!({"name": model, verb: true}))
        } else {
            reply::json(StatusCode::OK, Vec::new())
        }
    }))
}

/// Bytes of a request that is no inference.
const MANAGEMENT: usize = 1 << 20;

/// An object, or nothing: a body that may be empty.
async fn parse_optional<T: Default + for<'a> Deserialize<'a>>(
    rest: &Rest,
    headers: &HeaderMap,
    body: Body,
) -> Result<T, Error> {
    let limits = BodyLimits { bytes: rest.limits.bytes.min(MANAGEMENT), ..rest.limits };
    let held = body::read_within(rest, headers, body, Instant::now() + rest.plane.longest(), &limits).await;
    let held = held.map_err(|error| match error {
        Error::TooLarge(_) => Error::TooLarge(format!(
            "the request is larger than {} bytes: it says what is to be done; configuration and files come from the \
             repository alone",
            limits.bytes
        )),
        other => other,
    })?;
    match held.bytes.iter().find(|byte| !byte.is_ascii_whitespace()) {
        None => return Ok(T::default()),
        Some(b'{') => {}
        // A list would be read as the object's members in their order.
        Some(_) => return Err(Error::Members("failed to parse the request JSON buffer: expected an object".into())),
    }
    serde_json::from_slice(&held.bytes)
        .map_err(|e| Error::Malformed(format!("failed to parse the request JSON buffer: {e}")))
}

pub(super) async fn named_repository(State(rest): State<Rest>, uri: http::Uri) -> Response {
    // `/v2/repository/models/{model}/load/` comes here.
    if let Some(elsewhere) = rest.without_slash(&uri) {
        return elsewhere;
    }
    reply::error(&dataplane::named_repository())
}

pub(super) async fn not_built(uri: http::Uri) -> Response {
    reply::error(&Error::Unsupported(format!("{} is not served by this server", uri.path())))
}
