//! Replies that are sent event by event, while they are generated.
//!
//! ```text
//! chat         {role}            for each choice      then its text, and at last its finish_reason
//! completion   {echo}            where asked for      likewise
//!              {usage}           where asked for      [DONE]
//! ```
//! An error ends a stream as an event of its own, before `[DONE]`.

use super::ask::Telling;
use super::told::Teller;
use super::whole::Prompted;
use super::{FINGERPRINT, Head, Refusal, finish_reason, stop_reason, usage};
use crate::dataplane::Servable;
use crate::llm::answer::{Piece, Told};
use crate::llm::gather::{Gathered, News};
use bytes::Bytes;
use hyper::body::{Body, Frame};
use protocol::openai::response::{self, ChatDelta, Chunk, CompletionDelta, Delta, Usage};
use protocol::openai::sse;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

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
    /// Characters of each choice so far.
    offsets: Vec<usize>,
    /// Tokens of each choice so far.
    generated: Vec<u32>,
    cached: Vec<u32>,
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
        let (offsets, generated, cached) = (vec![0; choices], vec![0; choices], vec![0; choices]);
        let (begun, done) = (false, false);
        Events { gathered, servable, head, kind, telling, prompts, offsets, generated, cached, begun, done }
    }

    fn used(&self) -> Usage {
        let prompt: usize = self.prompts.iter().map(|prompt| prompt.tokens.len()).sum();
        let cached = self.cached.chunks(self.telling.n).map(|of_one| of_one[0]).sum();
        let generated = if self.telling.prompt_alone { 0 } else { self.generated.iter().sum() };
        usage(u32::try_from(prompt).unwrap_or(u32::MAX), generated, cached)
    }

    fn event<C: serde::Serialize>(
        &self,
        out: &mut Vec<u8>,
        choices: Vec<C>,
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
        if let Err(error) = sse::event(out, &chunk) {
            tracing::error!(%error, "an event cannot be written");
        }
    }

    fn first(&mut self, out: &mut Vec<u8>) {
        for index in 0..self.offsets.len() {
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
                    self.event(out, vec![delta], None, ids);
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
                    self.event(out, vec![delta], None, None);
                }
                Kind::Completion => {}
            }
            self.offsets[index] = echo.as_ref().map_or(0, |echo| echo.chars().count());
        }
    }

    fn news(&mut self, out: &mut Vec<u8>, news: News) {
        let choice = news.choice;
        (self.generated[choice], self.cached[choice]) = (news.generated, news.cached);
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
        let Piece { mut text, mut token, end } = piece;
        if self.telling.prompt_alone {
            (text, token) = (String::new(), None);
        }
        let told: Vec<Told> = token.into_iter().collect();
        let silent = self.telling.logprobs.is_none() && !self.telling.token_ids;
        if text.is_empty() && end.is_none() && (silent || told.is_empty()) {
            return;
        }
        let (index, finish) = (choice as u32, end.as_ref().map(finish_reason));
        let stop_reason = end.as_ref().and_then(stop_reason);
        let token_ids = self.telling.token_ids.then(|| told.iter().map(|told| told.id).collect());
        let Ok(language) = self.servable.language() else { return };
        let teller = Teller { language, telling: &self.telling };
        match self.kind {
            Kind::Chat => {
                let delta = Delta { content: Some(&text), ..Delta::default() };
                let logprobs = if told.is_empty() { None } else { teller.chat(&told) };
                let delta = ChatDelta { index, delta, logprobs, finish_reason: finish, stop_reason, token_ids };
                self.event(out, vec![delta], None, None);
            }
            Kind::Completion => {
                let logprobs = if told.is_empty() { None } else { teller.completion(&told, self.offsets[choice]) };
                let delta = CompletionDelta {
                    index,
                    text: &text,
                    logprobs,
                    finish_reason: finish,
                    stop_reason,
                    prompt_token_ids: None,
                    token_ids,
                };
                self.event(out, vec![delta], None, None);
                self.offsets[choice] += text.chars().count();
            }
        }
    }

    fn last(&mut self, out: &mut Vec<u8>) {
        if self.telling.usage {
            let used = self.used();
            self.event(out, Vec::<ChatDelta<'_>>::new(), Some(used), None);
        }
        self.end(out);
    }

    fn end(&mut self, out: &mut Vec<u8>) {
        out.extend_from_slice(sse::DONE);
        self.done = true;
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
        while !self.done {
            match self.gathered.poll_next(cx) {
                Poll::Ready(Some(news)) => self.news(&mut out, news),
                Poll::Ready(None) => self.last(&mut out),
                Poll::Pending => break,
            }
        }
        if out.is_empty() { Poll::Pending } else { Poll::Ready(Some(Ok(Frame::data(out.into())))) }
    }
}
