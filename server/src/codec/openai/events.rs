//! Replies that are sent event by event, while they are generated.
//!
//! ```text
//! chat         {role}            for each choice      then its text, and at last its finish_reason
//! completion   {echo}            where asked for      likewise
//!              {usage}           where asked for      [DONE]
//! ```
//! An error ends a stream as an event of its own, before `[DONE]`.

use super::ask::Telling;
use super::told::{Place, Teller};
use super::tools::call_id;
use super::whole::Prompted;
use super::{FINGERPRINT, Head, Refusal, finish_reason, stop_reason, usage};
use crate::dataplane::Servable;
use crate::llm::answer::{End, Piece, Told};
use crate::llm::gather::{Gathered, News};
use crate::llm::said::Said;
use backends::llm::text::output::Part;
use bytes::Bytes;
use hyper::body::{Body, Frame};
use protocol::openai::response::{
    self, CallKind, ChatDelta, Chunk, CompletionDelta, Delta, FunctionDelta, ToolCallDelta, Usage,
};
use protocol::openai::sse;
use std::borrow::Cow;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

/// Bytes of most events with a token: those are written without asking for memory anew.
const EVENT: usize = 400;

/// Bytes from which on a piece is sent before more of the answer is written: what a client did not take for long waits as
/// tokens, which are a small part of their text.
pub(crate) const PIECE: usize = 64 << 10;

/// What is streamed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A chat.
    Chat,
    /// A completion.
    Completion,
}

/// A stream of events, as the body of a reply. Dropping it cancels what is not done.
#[derive(Debug)]
pub struct Events {
    gathered: Gathered,
    /// Keeps the model alive that generates.
    servable: Arc<Servable>,
    head: Head,
    kind: Kind,
    telling: Telling,
    prompts: Vec<Prompted>,
    /// Where the next token of each choice begins: some of the text before it may still be held back.
    places: Vec<Place>,
    /// Tokens of each choice so far.
    generated: Vec<u32>,
    thought: Vec<u32>,
    cached: Vec<u32>,
    /// Calls of each choice so far.
    calls: Vec<u32>,
    /// Are the first events out, are the last?
    begun: bool,
    done: bool,
}

impl Events {
    /// Events of the answers to `prompts`: `telling.n` for each of them.
    pub fn new(
        gathered: Gathered,
        (servable, head, kind): (Arc<Servable>, Head, Kind),
        telling: Telling,
        prompts: Vec<Prompted>,
    ) -> Self {
        let choices = prompts.len() * telling.n;
        Events {
            gathered,
            servable,
            head,
            kind,
            telling,
            prompts,
            places: vec![Place::default(); choices],
            generated: vec![0; choices],
            thought: vec![0; choices],
            cached: vec![0; choices],
            calls: vec![0; choices],
            begun: false,
            done: false,
        }
    }

    fn used(&self) -> Usage {
        let prompt: usize = self.prompts.iter().map(|prompt| prompt.tokens.len()).sum();
        let cached = self.cached.chunks(self.telling.n).map(|of_one| of_one[0]).sum();
        let generated = if self.telling.prompt_alone { 0 } else { self.generated.iter().sum() };
        let thought = self.telling.thinks.then(|| self.thought.iter().sum());
        usage(u32::try_from(prompt).unwrap_or(u32::MAX), generated, cached, thought)
    }

    fn event<C: serde::Serialize>(
        &self,
        out: &mut Vec<u8>,
        choices: &[C],
        usage: Option<Usage>,
        prompt: Option<&[u32]>,
    ) {
        let object = match self.kind {
            Kind::Chat => response::CHAT_CHUNK,
            Kind::Completion => response::COMPLETION,
        };
        let chunk = Chunk {
            id: &self.head.id,
            object,
            created: self.head.created,
            model: &self.head.model,
            choices,
            system_fingerprint: Some(FINGERPRINT),
            usage: usage.or_else(|| self.telling.continuous_usage.then(|| self.used())),
            prompt_token_ids: prompt,
        };
        out.reserve(EVENT);
        if let Err(error) = sse::event(out, &chunk) {
            tracing::error!(%error, "an event cannot be written");
        }
    }

    fn first(&mut self, out: &mut Vec<u8>) {
        for index in 0..self.places.len() {
            let Prompted { tokens, echo } = &self.prompts[index / self.telling.n];
            let ids = self.telling.token_ids.then_some(&tokens[..]);
            match self.kind {
                Kind::Chat => {
                    let delta = ChatDelta {
                        index: index as u32,
                        delta: Delta { content: Some(echo.as_deref().unwrap_or_default()), ..Delta::first() },
                        logprobs: None,
                        finish_reason: None,
                        stop_reason: None,
                        token_ids: None,
                    };
                    self.event(out, &[delta], None, ids);
                }
                Kind::Completion if echo.is_some() || ids.is_some() => {
                    let delta = CompletionDelta {
                        index: index as u32,
                        text: echo.as_deref().unwrap_or_default(),
                        logprobs: None,
                        finish_reason: None,
                        stop_reason: None,
                        prompt_token_ids: ids,
                        token_ids: None,
                    };
                    self.event(out, &[delta], None, None);
                }
                Kind::Completion => {}
            }
            self.places[index] = Place::after(echo.as_deref().unwrap_or_default());
        }
    }

    fn news(&mut self, out: &mut Vec<u8>, news: News) {
        let choice = news.choice;
        (self.generated[choice], self.cached[choice]) = (news.generated, news.cached);
        self.thought[choice] = news.thought;
        match news.piece {
            Ok(piece) => self.piece(out, choice, piece),
            Err(error) => {
                tracing::debug!(%self.head.id, message = error.message(), "a stream ends with an error");
                out.extend_from_slice(b"data: ");
                out.extend_from_slice(&Refusal::Server(error).body());
                out.extend_from_slice(b"\n\n");
                self.end(out);
            }
        }
    }

    fn piece(&mut self, out: &mut Vec<u8>, choice: usize, piece: Piece) {
        let Piece { mut parts, mut token, mut end } = piece;
        if self.telling.prompt_alone {
            // What was computed is no answer, so nothing in it has ended one.
            (parts, token, end) = (Vec::new(), None, end.map(|_| End::Length));
        }
        if !self.telling.reasoning {
            parts.retain(|part| !matches!(part, Part::Reasoning(_)));
        }
        let told = token.as_slice();
        let silent = self.telling.logprobs.is_none() && !self.telling.token_ids;
        if parts.is_empty() && end.is_none() && (silent || told.is_empty()) {
            return;
        }
        let token_ids = self.telling.token_ids.then(|| told.iter().map(|told| told.id).collect());
        match self.kind {
            Kind::Chat => self.chat(out, choice, &parts, (told, token_ids, end.as_ref())),
            Kind::Completion => self.completion(out, choice, &parts, (told, token_ids, end.as_ref())),
        }
    }

    fn chat(&mut self, out: &mut Vec<u8>, choice: usize, parts: &[Part], (told, token_ids, end): Tokens<'_>) {
        let mut pieces = Pieces::default();
        parts.iter().for_each(|part| pieces.add(part, &mut self.calls[choice], &self.telling));
        let called = self.telling.calls_finish && self.calls[choice] > 0;
        let Ok(language) = self.servable.language() else { return };
        let teller = Teller { language, telling: &self.telling };
        let delta = ChatDelta {
            index: choice as u32,
            delta: pieces.delta(),
            logprobs: if told.is_empty() { None } else { teller.chat(told) },
            finish_reason: end.map(|end| finish_reason(end, called)),
            stop_reason: end.and_then(stop_reason),
            token_ids,
        };
        self.event(out, &[delta], None, None);
    }

    fn completion(&mut self, out: &mut Vec<u8>, choice: usize, parts: &[Part], (told, token_ids, end): Tokens<'_>) {
        let texts = parts.iter().map(|part| if let Part::Text(text) = part { text.as_str() } else { "" });
        let text = match parts {
            [Part::Text(text)] => Cow::Borrowed(text.as_str()),
            _ => texts.collect(),
        };
        let Ok(language) = self.servable.language() else { return };
        let teller = Teller { language, telling: &self.telling };
        let delta = CompletionDelta {
            index: choice as u32,
            text: &text,
            logprobs: if told.is_empty() { None } else { teller.completion(told, &mut self.places[choice]) },
            finish_reason: end.map(|end| finish_reason(end, false)),
            stop_reason: end.and_then(stop_reason),
            prompt_token_ids: None,
            token_ids,
        };
        self.event(out, &[delta], None, None);
    }

    fn last(&mut self, out: &mut Vec<u8>) {
        if self.telling.usage {
            let used = self.used();
            self.event::<ChatDelta<'_>>(out, &[], Some(used), None);
        }
        self.end(out);
    }

    fn end(&mut self, out: &mut Vec<u8>) {
        out.extend_from_slice(sse::DONE);
        self.done = true;
    }
}

/// Of a piece: its token, that token's id where asked for, and why it was the last.
type Tokens<'a> = (&'a [Told], Option<Vec<u32>>, Option<&'a End>);

/// The parts of a piece of a chat, put together.
#[derive(Debug, Default)]
struct Pieces {
    said: Said,
    calls: Vec<CallPiece>,
}

/// A call that begins or goes on.
#[derive(Debug)]
struct CallPiece {
    /// Which of its choice.
    index: u32,
    /// Its id and its name, where it begins.
    begins: Option<(String, String)>,
    arguments: String,
}

impl CallPiece {
    fn delta(&self) -> ToolCallDelta<'_> {
        let begins = self.begins.as_ref();
        ToolCallDelta {
            index: self.index,
            id: begins.map(|(id, _)| id.as_str()),
            kind: begins.map(|_| CallKind::Function),
            function: FunctionDelta { name: begins.map(|(_, name)| name.as_str()), arguments: Some(&self.arguments) },
        }
    }
}

impl Pieces {
    /// `count` is of the choice's calls so far.
    fn add(&mut self, part: &Part, count: &mut u32, telling: &Telling) {
        match part {
            Part::Call(name) => {
                let begins = Some((call_id(telling), name.clone()));
                self.calls.push(CallPiece { index: *count, begins, arguments: String::new() });
                *count += 1;
            }
            Part::Arguments(json) => match self.calls.last_mut() {
                Some(call) => call.arguments.push_str(json),
                None => {
                    let index = count.saturating_sub(1);
                    self.calls.push(CallPiece { index, begins: None, arguments: json.clone() });
                }
            },
            said => self.said.add(said.clone()),
        }
    }

    fn delta(&self) -> Delta<'_> {
        let Said { text, reasoning, .. } = &self.said;
        let tool_calls: Vec<_> = self.calls.iter().map(CallPiece::delta).collect();
        let reasoning = Some(reasoning.as_str()).filter(|text| !text.is_empty());
        let nothing_else = tool_calls.is_empty() && reasoning.is_none();
        let content = Some(text.as_str()).filter(|text| nothing_else || !text.is_empty());
        Delta { content, reasoning, tool_calls, ..Delta::default() }
    }
}

impl Body for Events {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.done {
            return Poll::Ready(None);
        }
        let mut out = Vec::new();
        if !std::mem::replace(&mut self.begun, true) {
            self.first(&mut out);
        }
        // What came together goes together.
        while !self.done && out.len() < PIECE {
            match self.gathered.poll_next(cx) {
                Poll::Ready(Some(news)) => self.news(&mut out, news),
                Poll::Ready(None) => self.last(&mut out),
                Poll::Pending => break,
            }
        }
        if out.is_empty() { Poll::Pending } else { Poll::Ready(Some(Ok(Frame::data(out.into())))) }
    }
}
