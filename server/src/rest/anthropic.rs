//! Anthropic's Messages API. Errors have its form.

use super::text::{event_stream, finish, head_id, read, written};
use super::{Rest, reply};
use crate::budget::{Reserved, Sent};
use crate::clock::since_1970;
use crate::codec::anthropic::{self, events::Events};
use crate::codec::openai::asking::{Asking, put};
use crate::codec::openai::{Head, Refusal, ask, noticed};
use axum::body::Body;
use axum::extract::State;
use axum::response::Response;
use http::{HeaderMap, StatusCode};
use protocol::anthropic::response::{Count, ErrorBody};
use protocol::anthropic::{parse, parse_count};

pub(super) async fn messages(State(rest): State<Rest>, headers: HeaderMap, body: Body) -> Response {
    let answer = async {
        let (held, deadline) = read(&rest, &headers, body).await?;
        // Answers take minutes: of body and request nothing is kept until they begin but what is asked of the model.
        let asked = held.read(|body| {
            let request = parse(body)?;
            noticed(&request.common.notices);
            let servable = rest.plane.language_model(request.common.model.as_deref())?;
            let asked = ask::chat_within(&request, servable.language()?)?;
            Ok::<_, Refusal>((servable, asked))
        });
        let (servable, asked) = asked.await?;
        let mut reserved = Reserved::new(&rest.budget, 0, 0)?;
        let Asking { gathered, prompts, telling, .. } = put(&rest.plane, &servable, asked, deadline).await?;
        let prompt = prompts.iter().map(|prompt| prompt.tokens.len()).sum();
        let id = head_id("msg", None, &headers).replacen('-', "_", 1);
        let head = Head { id, created: since_1970().as_secs(), model: servable.name.clone() };
        if telling.stream {
            let events = Events::new(gathered, servable, head, prompt);
            return Ok(event_stream(Body::new(Sent::new(events, reserved))));
        }
        let body = anthropic::collect(gathered, &head, prompt, &mut reserved).await?;
        Ok(reply::held(body, reserved)?)
    };
    finish(answer.await, anthropic::error_body)
}

pub(super) async fn count_tokens(State(rest): State<Rest>, headers: HeaderMap, body: Body) -> Response {
    let answer = async {
        let (held, _) = read(&rest, &headers, body).await?;
        let counting = held.read(|body| {
            let request = parse_count(body)?;
            noticed(&request.common.notices);
            let servable = rest.plane.language_model(request.common.model.as_deref())?;
            written(&Count { input_tokens: ask::chat_tokens(&request, servable.language()?)?.len() })
        });
        counting.await
    };
    finish(answer.await, anthropic::error_body)
}

/// To whatever is no `POST`.
pub(super) async fn wrong_method() -> Response {
    let status = StatusCode::METHOD_NOT_ALLOWED;
    let body = ErrorBody::new(status.as_u16(), "Method Not Allowed");
    reply::json(status, serde_json::to_vec(&body).unwrap_or_default())
}
