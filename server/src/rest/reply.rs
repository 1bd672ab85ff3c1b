//! Replies that all routes share.

use super::body::wanted;
use crate::budget::{Budget, Reserved, Room, Sent};
use crate::error::Error;
use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use http::header::{CONTENT_ENCODING, CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderMap, HeaderValue, StatusCode};
use http_body_util::Full;
use protocol::write;

/// A JSON body.
pub(super) fn json(status: StatusCode, body: Vec<u8>) -> Response {
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// A JSON body that has its share of the budget until it was taken.
///
/// # Errors
/// The budget has no room for it.
pub(super) fn held(body: Vec<u8>, reserved: Reserved) -> Result<Response, Error> {
    let mut response = json(StatusCode::OK, Vec::new());
    *response.body_mut() = whole(reserved.tie(body)?);
    Ok(response)
}

/// A body of bytes that are tied to their share.
pub(super) fn whole(bytes: Bytes) -> Body {
    Body::new(Sent::new(Full::new(bytes), ()))
}

/// An answer to inference, packed when the client asked. It has its share of the budget until it was taken.
///
/// # Errors
/// It cannot be packed, or the budget has no room for it.
pub(super) fn answer(headers: &HeaderMap, answer: Answer<'_>) -> Result<Response, Error> {
    let Answer { body, kind, mut room, budget } = answer;
    let encoding = wanted(headers);
    let body = match encoding {
        None => body,
        Some(encoding) => encoding.pack(&body).map_err(|e| Error::Internal(e.to_string()))?,
    };
    room.hold(budget, body.capacity())?;
    let mut response = Response::new(whole(room.tie(body)));
    if let Some(encoding) = encoding {
        response.headers_mut().insert(CONTENT_ENCODING, HeaderValue::from_static(encoding.name()));
    }
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    Ok(response)
}

/// What an answer to inference is made of.
pub(super) struct Answer<'a> {
    pub(super) body: Vec<u8>,
    pub(super) kind: &'static str,
    /// The request's share.
    pub(super) room: Room,
    pub(super) budget: &'a Budget,
}

/// A JSON value as a body.
pub(super) fn value(status: StatusCode, value: &serde_json::Value) -> Response {
    json(status, value.to_string().into_bytes())
}

/// `{"error": ...}` with the status of the table. The error itself goes along in the extensions: a server that is
/// followed may call it something else.
pub(super) fn error(error: &Error) -> Response {
    let mut body = b"{\"error\":".to_vec();
    write::string(&mut body, &error.message());
    body.push(b'}');
    let status = StatusCode::from_u16(error.row().0).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = json(status, body);
    retry_after(&mut response, error);
    if *error == Error::Unauthorized {
        response.headers_mut().insert(http::header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    if let Error::UnsupportedEncoding(_) = error {
        let known = HeaderValue::from_static("gzip, deflate");
        response.headers_mut().insert(http::header::ACCEPT_ENCODING, known);
    }
    response.extensions_mut().insert(error.clone());
    response
}

/// An answer, or the reply that its error has in the table.
pub(super) fn or_error(result: Result<Response, Error>) -> Response {
    result.unwrap_or_else(|failed| error(&failed))
}

/// Says in the reply to an error when the client may try again, where that makes sense.
pub(super) fn retry_after(response: &mut Response, error: &Error) {
    if let Some(after) = error.retry_after() {
        response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(after.as_secs()));
    }
}
