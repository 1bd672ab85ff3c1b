//! The OpenAI routes, under `/v1` and under `/openai/v1`, where KServe has them; and vLLM's `/tokenize` and
//! `/detokenize`. Errors have OpenAI's form.

use super::text::{self, Answer, event_stream, head_id, read, written};
use super::{Path, Rest, reply};
use crate::budget::{Reserved, Sent};
use crate::clock::since_1970;
use crate::codec::openai::ask::{self, Ask};
use crate::codec::openai::asking::{Asking, Weight, put};
use crate::codec::openai::events::{Events, Kind};
use crate::codec::openai::whole;
use crate::codec::openai::{Head, Refusal, noticed};
use crate::dataplane::{Language, Servable};
use crate::threads::{heavy, turn};
use axum::body::Body;
use axum::extract::State;
use axum::response::Response;
use http::HeaderMap;
use protocol::openai::models::{ModelCard, ModelList};
use protocol::openai::tokens::{DetokenizeReply, TokenizeReply};
use protocol::openai::{
    ChatRequest, Common, CompletionRequest, DetokenizeRequest, FieldError, TokenizeInput, TokenizeRequest,
};
use serde::Serialize;
use std::sync::Arc;
use std::time::Instant;

pub(super) async fn chat(State(rest): State<Rest>, headers: HeaderMap, body: Body) -> Response {
    finish(generate(&rest, &headers, body, Kind::Chat, (ChatRequest::parse, |r| &r.common, ask::chat)).await)
}

pub(super) async fn completion(State(rest): State<Rest>, headers: HeaderMap, body: Body) -> Response {
    let reading: Reading<CompletionRequest> = (CompletionRequest::parse, |r| &r.common, ask::completion);
    finish(generate(&rest, &headers, body, Kind::Completion, reading).await)
}

/// How a kind of request is read: out of its body, what all kinds have, and what it asks of a model.
type Reading<R> = (fn(&[u8]) -> Result<R, FieldError>, fn(&R) -> &Common, fn(&R, &Language) -> Result<Ask, Refusal>);

async fn generate<R>(
    rest: &Rest,
    headers: &HeaderMap,
    body: Body,
    kind: Kind,
    (parse, common, ask): Reading<R>,
) -> Answer {
    let (held, deadline) = read(rest, headers, body).await?;
    let prefix = if kind == Kind::Chat { "chatcmpl" } else { "cmpl" };
    // Answers take minutes: of body and request nothing is kept until they begin but what is asked of the model.
    let asked = held.read(|body| {
        let request = parse(body)?;
        noticed(&common(&request).notices);
        let servable = rest.plane.language_model(common(&request).model.as_deref())?;
        let asked = ask(&request, servable.language()?)?.telling_usage(rest.forces_usage);
        Ok::<_, Refusal>((servable, asked, head_id(prefix, common(&request).request_id.as_deref(), headers)))
    });
    let (servable, asked, id) = asked.await?;
    respond(rest, servable, asked, (kind, id), deadline).await
}

async fn respond(
    rest: &Rest,
    servable: Arc<Servable>,
    ask: Ask,
    (kind, id): (Kind, String),
    deadline: Instant,
) -> Answer {
    let weight = Weight::of(&ask, kind, servable.language()?.context());
    // Of a stream nothing is held for long but how it begins.
    let besides = if ask.telling.stream { 0 } else { weight.generated.min(rest.budget.ahead()) };
    let mut reserved = Reserved::new(&rest.budget, weight.prompts, besides)?;
    let Asking { gathered, prompts, copies, telling } = put(&rest.plane, &servable, ask, deadline).await?;
    let head = Head { id, created: since_1970().as_secs(), model: servable.name.clone() };
    if telling.stream {
        let events = Events::new(gathered, (servable, head, kind), telling, prompts);
        return Ok(event_stream(Body::new(Sent::new(events, reserved))));
    }
    let language = servable.language()?;
    let asked = (&prompts[..], copies);
    let answered = whole::collect(gathered, &head, (language, &telling), asked, &mut reserved).await?;
    let _writing = turn(reserved.bytes()).await;
    let body = heavy(reserved.bytes(), move || match kind {
        Kind::Chat => answered.chat(),
        Kind::Completion => answered.completion(),
    })?;
    Ok(reply::held(body, reserved)?)
}

/// `GET /openai/v1/models`.
pub(super) async fn models(State(rest): State<Rest>) -> Response {
    list(&rest, None)
}

/// `GET /v1/models`: what OpenAI's clients and those of KServe's v1 expect, in one body.
pub(super) fn all_models(rest: &Rest, names: Vec<String>) -> Response {
    list(rest, Some(names))
}

fn list(rest: &Rest, names: Option<Vec<String>>) -> Response {
    let models = rest.plane.language_models();
    let registry = rest.plane.registry();
    let data = models.iter().flat_map(|servable| cards(servable, registry.aliases(&servable.name))).collect();
    let mut list = ModelList::new(data, false);
    list.models = names.as_ref().map(|names| names.iter().map(String::as_str).collect());
    finish(written(&list))
}

fn card(servable: &Servable) -> Option<ModelCard<'_>> {
    let language = servable.language().ok()?;
    let mut card = ModelCard::new(&servable.name, language.created(), "tensorgate");
    card.max_model_len = Some(language.context());
    Some(card)
}

/// The card of a model under one of its names: all others have the first for their root.
fn card_of<'a>(servable: &'a Servable, name: &'a str) -> Option<ModelCard<'a>> {
    let first = card(servable)?;
    let permission = ModelCard::new(name, first.created, "tensorgate").permission;
    Some(ModelCard { id: name, permission, ..first })
}

/// A card for each name of a model.
fn cards<'a>(servable: &'a Servable, aliases: &'a [String]) -> Vec<ModelCard<'a>> {
    let names = std::iter::once(&servable.name).chain(aliases);
    names.filter_map(|name| card_of(servable, name)).collect()
}

/// `GET /openai/v1/models/{model}`, whether or not slashes of its name are escaped.
pub(super) async fn model(State(rest): State<Rest>, Path(model): Path<String>) -> Response {
    let found = rest.plane.language_model(Some(&model)).map_err(Refusal::from);
    finish(found.and_then(|servable| written(&card_of(&servable, &model))))
}

/// What `GET /v1/models/{model}` says of a language model: OpenAI's card, and whether it is ready, as KServe's v1 asks.
/// `name` is the one of its names that was asked for.
pub(super) fn described(servable: &Servable, name: &str) -> Option<Response> {
    #[derive(Serialize)]
    struct Both<'a> {
        name: &'a str,
        ready: bool,
        #[serde(flatten)]
        card: ModelCard<'a>,
    }
    let card = card_of(servable, name)?;
    written(&Both { name: &servable.name, ready: true, card }).ok()
}

pub(super) async fn tokenize(State(rest): State<Rest>, headers: HeaderMap, body: Body) -> Response {
    let answered = async {
        let (held, _) = read(&rest, &headers, body).await?;
        let reading = held.read(|body| {
            let request = TokenizeRequest::parse(body)?;
            noticed(&request.notices);
            let servable = rest.plane.language_model(request.model.as_deref())?;
            let language = servable.language()?;
            let tokens = match &request.input {
                TokenizeInput::Text { prompt, add_special_tokens } => language.encode(prompt, *add_special_tokens)?,
                TokenizeInput::Conversation(conversation) => ask::conversation_tokens(conversation, language)?,
            };
            let name = |token: &u32| language.tokenizer().name(*token).unwrap_or_default();
            let token_strs = request.return_token_strs.then(|| tokens.iter().map(name).collect());
            written(&TokenizeReply { count: tokens.len(), max_model_len: language.context(), tokens, token_strs })
        });
        reading.await
    };
    finish(answered.await)
}

/// The most tokens whose text is told: far more than any context, and some tens of megabytes.
const DETOKENIZED: usize = 1 << 20;

pub(super) async fn detokenize(State(rest): State<Rest>, headers: HeaderMap, body: Body) -> Response {
    let answered = async {
        let (held, _) = read(&rest, &headers, body).await?;
        let reading = held.read(|body| {
            let request = DetokenizeRequest::parse(body)?;
            noticed(&request.notices);
            let servable = rest.plane.language_model(request.model.as_deref())?;
            let language = servable.language()?;
            if request.tokens.len() > DETOKENIZED {
                let message = format!("there are {} tokens; {DETOKENIZED} are the most", request.tokens.len());
                return Err(FieldError::invalid("tokens", message).into());
            }
            if let Some(token) = request.tokens.iter().find(|token| **token >= language.vocabulary()) {
                let message = format!("token {token} is not one of the model's {}", language.vocabulary());
                return Err(FieldError::invalid("tokens", message).into());
            }
            written(&DetokenizeReply { prompt: language.tokenizer().decode(&request.tokens, false) })
        });
        reading.await
    };
    finish(answered.await)
}

fn finish(answer: Answer) -> Response {
    text::finish(answer, Refusal::body)
}
