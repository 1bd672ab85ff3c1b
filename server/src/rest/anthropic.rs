//! Anthropic's Messages API. Errors have its form.

use super::openai::{event_stream, finish_as, head_id, read, seconds, written};
use super::{Rest, reply};
use crate::codec::anthropic::{self, events::Events};
use crate::codec::openai::asking::{Asking, put};
use crate::codec::openai::{Head, ask, noticed};
use crate::threads::heavy;
use axum::body::Body;
use axum::extract::State;
use axum::response::Response;
use http::{HeaderMap, StatusCode};
use protocol::anthropic::response::{Count, ErrorBody};
use protocol::anthropic::{parse, parse_count};

pub(super) async fn messages(State(rest): State<Rest>, headers: HeaderMap, body: Body) -> Response {
    let answer = async {
        let (held, deadline) = read(&rest, &headers, body).await?;
        let size = held.bytes.len();
        let request = heavy(size, || parse(&held.bytes))?;
        // Answers take minutes: the body gives its bytes back before they begin.
        drop(held);
        noticed(&request.common.notices);
        let servable = rest.plane.language_model(request.common.model.as_deref())?;
        let asked = heavy(size.saturating_mul(8), || ask::chat_within(&request, servable.language()?))?;
        let Asking { gathered, prompts, telling, .. } = put(&rest.plane, &servable, asked, deadline).await?;
        let prompt = prompts.iter().map(|prompt| prompt.tokens.len()).sum();
        let id = head_id("msg", None, &headers).replacen('-', "_", 1);
        let head = Head { id, created: seconds(), model: servable.name.clone() };
        if telling.stream {
            return Ok(event_stream(Body::new(Events::new(gathered, servable, head, prompt))));
        }
        Ok(reply::json(StatusCode::OK, anthropic::collect(gathered, &head, prompt).await?))
    };
    finish_as(answer.await, anthropic::error_body)
}

pub(super) async fn count_tokens(State(rest): State<Rest>, headers: HeaderMap, body: Body) -> Response {
    let answer = async {
        let (held, _) = read(&rest, &headers, body).await?;
        let size = held.bytes.len();
        let request = heavy(size, || parse_count(&held.bytes))?;
        noticed(&request.common.notices);
        let servable = rest.plane.language_model(request.common.model.as_deref())?;
        let tokens = heavy(size.saturating_mul(8), || ask::chat_tokens(&request, servable.language()?))?;
        written(&Count { input_tokens: tokens.len() })
    };
    finish_as(answer.await, anthropic::error_body)
}

/// To whatever is no `POST`.
pub(super) async fn wrong_method() -> Response {
    let status = StatusCode::METHOD_NOT_ALLOWED;
    let body = ErrorBody::new(status.as_u16(), "Method Not Allowed");
    reply::json(status, serde_json::to_vec(&body).unwrap_or_default())
}
