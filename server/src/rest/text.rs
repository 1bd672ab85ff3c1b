//! Requests for text, whichever API asks: how they are read, how their answers are sent, and the reply to one that is
//! refused. What a request says, and what is made of it, is each API's own.

use super::body::{self, Held};
use super::exchange::deadline_within;
use super::{Rest, reply};
use crate::codec::openai::Refusal;
use crate::error::{self, Error};
use axum::body::Body;
use axum::response::Response;
use http::header::{CACHE_CONTROL, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue, StatusCode};
use serde::Serialize;
use std::time::Instant;

/// What is sent, or why there is no answer.
pub(super) type Answer = Result<Response, Refusal>;

/// The body, and when its answer is of no use any more. An answer may take minutes; its request may not.
///
/// # Errors
/// Those of a body, and a header that states no time.
pub(super) async fn read(rest: &Rest, headers: &HeaderMap, body: Body) -> Result<(Held, Instant), Error> {
    let deadline = deadline_within(rest.plane.longest_generation(), headers)?;
    let arrival = deadline.min(Instant::now() + rest.plane.longest());
    Ok((body::read(rest, headers, body, arrival).await?, deadline))
}

/// The name of an answer: what the request states for one, or the request's own id.
pub(super) fn head_id(prefix: &str, stated: Option<&str>, headers: &HeaderMap) -> String {
    // Every request has one by now.
    let of_header = headers.get("x-request-id").and_then(|id| id.to_str().ok());
    format!("{prefix}-{}", stated.or(of_header).unwrap_or("0"))
}

/// A reply that is sent while it is made.
pub(super) fn event_stream(events: Body) -> Response {
    let mut response = Response::new(events);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(protocol::openai::sse::CONTENT_TYPE));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    // Proxies that gather answers before they pass them on are asked not to.
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}

/// A reply of few bytes.
pub(super) fn written<T: Serialize>(value: &T) -> Answer {
    let body = serde_json::to_vec(value);
    let body = body.map_err(|unwritten| error::unwritten(&unwritten))?;
    Ok(reply::json(StatusCode::OK, body))
}

/// An answer, or the reply to a request that is refused, with the body that its API has for that.
pub(super) fn finish(answer: Answer, body: fn(&Refusal) -> Vec<u8>) -> Response {
    answer.unwrap_or_else(|refusal| {
        let status = StatusCode::from_u16(refusal.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = reply::json(status, body(&refusal));
        if let Refusal::Server(error) = &refusal {
            reply::retry_after(&mut response, error);
        }
        response
    })
}
