//! Triton's generate extension: `/v2/models/{model}/generate` and `/generate_stream`.

use super::reply::or_error;
use super::text::{self, event_stream};
use super::v2::Target;
use super::{Path, Rest, reply};
use crate::budget::{Reserved, Sent};
use crate::codec::generate::{Answering, Generation, start};
use crate::dataplane::Servable;
use crate::error::Error;
use axum::body::Body;
use axum::extract::State;
use axum::response::Response;
use bytes::Bytes;
use http::HeaderMap;
use hyper::body::Frame;
use serde_json::{Value, json};
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Instant;

pub(super) async fn whole(
    State(rest): State<Rest>,
    Path(target): Path<Target>,
    headers: HeaderMap,
    body: Body,
) -> Response {
    let answered = async {
        let (servable, generation, deadline) = read(&rest, &target, &headers, body).await?;
        if generation.stream == Some(true) {
            return Err(Error::Invalid(
                "generate has exactly one response: use generate_stream, or leave 'stream' out".into(),
            ));
        }
        let reserved = Reserved::new(&rest.budget, 0, 0)?;
        let answering = start(&rest.plane, &servable, generation, Some(deadline)).await?;
        let id = answering.telling.id.clone();
        let told = answering.whole().await?;
        reply::held(told.json(&servable, id.as_deref()).to_string().into_bytes(), reserved)
    };
    or_error(answered.await)
}

/// Events come as the answer does, or as one where `stream` is false.
pub(super) async fn stream(
    State(rest): State<Rest>,
    Path(target): Path<Target>,
    headers: HeaderMap,
    body: Body,
) -> Response {
    let answered = async {
        let (servable, generation, deadline) = read(&rest, &target, &headers, body).await?;
        let pieces = generation.stream != Some(false);
        if pieces {
            generation.require_one_answer()?;
        }
        let reserved = Reserved::new(&rest.budget, 0, 0)?;
        let answering = start(&rest.plane, &servable, generation, Some(deadline)).await?;
        let id = answering.telling.id.clone();
        if pieces {
            let events = Events { answering: Some(answering), servable, id };
            return Ok(event_stream(Body::new(Sent::new(events, reserved))));
        }
        let told = answering.whole().await?;
        Ok(event_stream(reply::whole(reserved.tie(event(&told.json(&servable, id.as_deref())))?)))
    };
    or_error(answered.await)
}

async fn read(
    rest: &Rest,
    target: &Target,
    headers: &HeaderMap,
    body: Body,
) -> Result<(Arc<Servable>, Generation, Instant), Error> {
    let servable = target.servable(rest)?;
    servable.language()?;
    let (held, deadline) = text::read(rest, headers, body).await?;
    let generation = held.read(|body| Generation::of_json(body, servable.language()?)).await?;
    Ok((servable, generation, deadline))
}

/// Pieces of an answer, as the body of a reply. Dropping it cancels what is not done.
struct Events {
    /// None after an error, which is the last event.
    answering: Option<Answering>,
    servable: Arc<Servable>,
    id: Option<String>,
}

impl hyper::body::Body for Events {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let Some(answering) = &mut self.answering else { return Poll::Ready(None) };
        let event = match ready!(answering.poll_next(cx)) {
            None => return Poll::Ready(None),
            Some(Ok(told)) => event(&told.json(&self.servable, self.id.as_deref())),
            Some(Err(error)) => {
                self.answering = None;
                event(&json!({"error": error.message()}))
            }
        };
        Poll::Ready(Some(Ok(Frame::data(event))))
    }
}

fn event(data: &Value) -> Bytes {
    Bytes::from(format!("data: {data}\n\n"))
}
