//! The v1 routes, with CloudEvents in and out.

use super::exchange::{Skin, Written, deadline, exchange};
use super::reply::or_error;
use super::{Path, Rest, body, reply};
use crate::codec;
use crate::codec::events::Event;
use crate::dataplane::{Infer, Inferred, Servable};
use crate::error::Error;
use axum::body::Body;
use axum::extract::State;
use axum::response::Response;
use bytes::Bytes;
use http::{HeaderMap, StatusCode, Uri};
use serde_json::json;

pub(super) async fn alive() -> Response {
    reply::json(StatusCode::OK, b"{\"status\":\"alive\"}".to_vec())
}

/// KServe's list and OpenAI's in one object: clients of either find theirs.
pub(super) async fn list(State(rest): State<Rest>) -> Response {
    let models = rest.plane.registry().names();
    if !rest.plane.profile().lists_for_openai() {
        return reply::value(StatusCode::OK, &json!({"models": models}));
    }
    super::openai::all_models(&rest, models)
}

pub(super) async fn ready(State(rest): State<Rest>, uri: Uri, Path(model): Path<String>) -> Response {
    let plain = |servable: &Servable| reply::value(StatusCode::OK, &json!({"name": servable.name, "ready": true}));
    let both = rest.plane.profile().lists_for_openai();
    let described = |servable: &Servable| super::openai::described(servable, &model).filter(|_| both);
    let found = rest.plane.servable(&model, None).map_err(|error| match error {
        Error::UnknownModel(_) if is_nested(&uri) => Error::NoRoute,
        other => other,
    });
    or_error(found.map(|servable| described(&servable).unwrap_or_else(|| plain(&servable))))
}

/// Does the path go on where a model's name would end, were its slashes escaped? Then it is a route only where there is
/// a model of that name.
fn is_nested(uri: &Uri) -> bool {
    uri.path().strip_prefix("/v1/models/").is_some_and(|name| name.contains('/'))
}

/// `POST /v1/models/{model}:{verb}`.
pub(super) async fn call(
    State(rest): State<Rest>,
    uri: Uri,
    Path(path): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Response {
    match path.rsplit_once(':').filter(|_| !is_nested(&uri)) {
        Some((model, "predict")) => or_error(predict(&rest, model, &headers, body).await),
        Some((model, "explain")) => or_error(explain(&rest, model)),
        _ => reply::error(&Error::NoRoute),
    }
}

async fn predict(rest: &Rest, model: &str, headers: &HeaderMap, body: Body) -> Result<Response, Error> {
    let servable = rest.plane.servable(model, None)?;
    // A language model takes no tensors here.
    servable.batcher()?;
    let deadline = deadline(rest, headers)?;
    let held = body::read(rest, headers, body, deadline).await?;
    exchange((rest, headers), servable, held, deadline, V1 { rest, headers }).await
}

/// Predictions, as an event where they were asked for by one.
struct V1<'a> {
    rest: &'a Rest,
    headers: &'a HeaderMap,
}

impl Skin for V1<'_> {
    type Form = Event;

    fn decode(&self, body: &Bytes, servable: &Servable) -> Result<(Infer, Event), Error> {
        let (event, data) = codec::events::unwrap(self.headers, body)?;
        Ok((codec::v1::decode(&data, &servable.signature)?, event))
    }

    fn bytes_to_write(&self, inferred: &Inferred, _: &Event) -> usize {
        inferred.bytes_to_write(|_| false)
    }

    fn encode(&self, inferred: &Inferred, event: Event) -> Result<Written, Error> {
        let predictions = codec::v1::encode(inferred, self.rest.plane.profile().not_finite())?;
        let (headers, body) = event.wrap(&inferred.servable.name, predictions);
        Ok(Written { body, kind: "application/json", headers })
    }
}

fn explain(rest: &Rest, model: &str) -> Result<Response, Error> {
    let servable = rest.plane.servable(model, None)?;
    Err(Error::Unsupported(format!("model '{}' has no explainer", servable.name)))
}
