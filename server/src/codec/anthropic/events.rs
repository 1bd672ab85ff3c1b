//! A message that is sent event by event, while it is generated.
//!
//! ```text
//! message_start, ping, { content_block_start, content_block_delta ..., content_block_stop } ..., message_delta, message_stop
//! ```
//! An error ends a stream as an event of its own.

use super::{call_id, ending, error_body, usage};
use crate::codec::openai::events::PIECE;
use crate::codec::openai::{Head, Refusal};
use crate::dataplane::Servable;
use crate::llm::answer::{End, Piece};
use crate::llm::gather::{Gathered, News};
use backends::llm::text::output::Part;
use bytes::Bytes;
use hyper::body::{Body, Frame};
use protocol::anthropic::response::{Block, Delta, Event, Input, Message};
use protocol::openai::sse;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

/// A stream of events, as the body of a reply. Dropping it cancels what is not done.
#[derive(Debug)]
pub struct Events {
    gathered: Gathered,
    /// Keeps the model alive that generates.
    _servable: Arc<Servable>,
    head: Head,
    /// Tokens of the prompt.
    prompt: usize,
    open: Option<Kind>,
    /// Blocks that have begun.
    blocks: u32,
    called: bool,
    begun: bool,
    done: bool,
}

/// What a block is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Text,
    Thinking,
    Call,
}

impl Events {
    /// Events of the one answer to a prompt of so many tokens.
    pub fn new(gathered: Gathered, servable: Arc<Servable>, head: Head, prompt: usize) -> Self {
        let (open, blocks, called, begun, done) = (None, 0, false, false, false);
        Events { gathered, _servable: servable, head, prompt, open, blocks, called, begun, done }
    }

    fn first(&self, out: &mut Vec<u8>) {
        let message = Message {
            id: &self.head.id,
            role: "assistant",
            model: &self.head.model,
            content: Vec::new(),
            stop_reason: None,
            stop_sequence: None,
            usage: usage(self.prompt, 0, 0),
        };
        write(out, &Event::MessageStart { message });
        write(out, &Event::Ping);
    }

    fn news(&mut self, out: &mut Vec<u8>, news: News) {
        match news.piece {
            Ok(Piece { parts, end, .. }) => {
                parts.iter().for_each(|part| self.part(out, part));
                if let Some(end) = end {
                    self.end(out, &end, (news.cached, news.generated));
                }
            }
            Err(error) => {
                tracing::debug!(%self.head.id, message = error.message(), "a stream ends with an error");
                out.extend_from_slice(b"event: error\ndata: ");
                out.extend_from_slice(&error_body(&Refusal::Server(error)));
                out.extend_from_slice(b"\n\n");
                self.done = true;
            }
        }
    }

    fn part(&mut self, out: &mut Vec<u8>, part: &Part) {
        let delta = match part {
            Part::Text(text) => {
                self.turn_to(out, Kind::Text, Block::Text { text: "" });
                Delta::TextDelta { text }
            }
            Part::Reasoning(thinking) => {
                self.turn_to(out, Kind::Thinking, Block::Thinking { thinking: "", signature: "" });
                Delta::ThinkingDelta { thinking }
            }
            Part::Call(name) => {
                // One call after another is two blocks.
                self.close(out);
                self.called = true;
                self.turn_to(out, Kind::Call, Block::ToolUse { id: call_id(), name, input: Input::Empty });
                Delta::InputJsonDelta { partial_json: "" }
            }
            Part::Arguments(partial_json) => Delta::InputJsonDelta { partial_json },
        };
        write(out, &Event::ContentBlockDelta { index: self.blocks.saturating_sub(1), delta });
    }

    /// Ends the block that is open, unless it is of this kind, and begins one that is.
    fn turn_to(&mut self, out: &mut Vec<u8>, kind: Kind, content_block: Block<'_>) {
        if self.open == Some(kind) {
            return;
        }
        self.close(out);
        write(out, &Event::ContentBlockStart { index: self.blocks, content_block });
        self.blocks += 1;
        self.open = Some(kind);
    }

    fn close(&mut self, out: &mut Vec<u8>) {
        if self.open.take().is_some() {
            write(out, &Event::ContentBlockStop { index: self.blocks.saturating_sub(1) });
        }
    }

    fn end(&mut self, out: &mut Vec<u8>, end: &End, (cached, generated): (u32, u32)) {
        self.close(out);
        let usage = usage(self.prompt, cached, generated);
        write(out, &Event::MessageDelta { delta: ending(end, self.called), usage });
        write(out, &Event::MessageStop);
        self.done = true;
    }
}

fn write(out: &mut Vec<u8>, event: &Event<'_>) {
    if let Err(error) = sse::named(out, event.name(), event) {
        tracing::error!(%error, "an event cannot be written");
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
                Poll::Ready(None) => self.done = true,
                Poll::Pending => break,
            }
        }
        match (out.is_empty(), self.done) {
            (false, _) => Poll::Ready(Some(Ok(Frame::data(out.into())))),
            (true, true) => Poll::Ready(None),
            (true, false) => Poll::Pending,
        }
    }
}
