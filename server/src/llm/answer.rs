//! Tokens of one sequence as text: bytes put together, stop strings found, thoughts and calls told apart, and why it ended. Runs on the task of the
//! request, never on the engine's thread.

use super::generator::{ENDED, Tokens};
use crate::error::Error;
use backends::llm::plan::Logprobs;
use backends::llm::sampling::Sampling;
use backends::llm::sequence::{CancelReason, Event, FinishReason, Unanswered};
use backends::llm::text::output::{OutputParser, Part};
use backends::llm::text::{Detokenizer, StopScanner};
use std::sync::Arc;
use std::task::{Context, Poll, ready};

/// A piece of an answer.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Piece {
    /// What it says, final: no stop string begins in it that is left out. Nothing is empty, and calls begin before their
    /// arguments.
    pub parts: Vec<Part>,
    /// The token that came, with what was asked about it; none in a last piece that only says why it ended.
    pub token: Option<Told>,
    /// Why it ended, in the last piece.
    pub end: Option<End>,
}

/// A token that was generated.
#[derive(Clone, Debug, PartialEq)]
pub struct Told {
    /// Its id.
    pub id: u32,
    /// Its probability, where asked for.
    pub logprobs: Option<Logprobs>,
}

/// Why an answer ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// At the model's own end of a text.
    EndOfText,
    /// At a token that the request names.
    StopToken(u32),
    /// At a text that the request names.
    StopString(String),
    /// It has as many tokens as it may.
    Length,
}

impl End {
    /// Would the model have gone on?
    fn cuts_off(&self) -> bool {
        matches!(self, End::Length | End::StopString(_))
    }
}

/// What ends an answer.
#[derive(Clone, Debug)]
pub(super) struct Ends {
    /// The model's own tokens.
    pub(super) model: Arc<[u32]>,
    /// The request's texts.
    pub(super) stop: Arc<[String]>,
    /// Does what the request names, of either kind, stay in the text?
    pub(super) keeps_stop: bool,
    /// The request's tokens, and how long no text ends it.
    pub(super) sampling: Arc<Sampling>,
    /// Tokens that it may have.
    pub(super) max_tokens: u32,
}

impl Ends {
    /// Is the text of a token that ends the answer a part of it?
    fn keep(&self, token: u32) -> bool {
        self.keeps_stop && self.sampling.stop_tokens.contains(&token)
    }
}

/// The text of one sequence as it comes. Dropping it cancels the sequence.
#[derive(Debug)]
pub struct Answer {
    tokens: Tokens,
    detokenizer: Detokenizer,
    scanner: StopScanner,
    /// Tells parts apart; without it all is text.
    parser: Option<OutputParser>,
    ends: Ends,
    /// A token that may be the last one: the event after it tells.
    perhaps_last: Option<Told>,
    /// An event that was read ahead.
    ahead: Option<Event>,
    generated: u32,
    thought: u32,
    cached_tokens: u32,
    prompt_logprobs: Vec<Logprobs>,
    ended: bool,
}

impl Answer {
    pub(super) fn new(tokens: Tokens, detokenizer: Detokenizer, scanner: StopScanner, ends: Ends) -> Self {
        let (prompt_logprobs, perhaps_last, ahead) = (Vec::new(), None, None);
        let (generated, thought, cached_tokens, ended, parser) = (0, 0, 0, false, None);
        Answer {
            tokens,
            detokenizer,
            scanner,
            parser,
            ends,
            perhaps_last,
            ahead,
            generated,
            thought,
            cached_tokens,
            prompt_logprobs,
            ended,
        }
    }

    /// Thoughts and calls are told apart by this parser.
    pub(super) fn read_by(self, parser: Option<OutputParser>) -> Self {
        Answer { parser, ..self }
    }

    /// Tokens so far: those that ended it are counted.
    pub fn generated(&self) -> u32 {
        self.generated
    }

    /// Tokens of its thoughts.
    pub fn thought(&self) -> u32 {
        self.thought
    }

    /// Tokens of its prompt that were found in the cache.
    pub fn cached_tokens(&self) -> u32 {
        self.cached_tokens
    }

    /// Of the prompt's tokens from the second on, where they were asked for; with the first copy's answer alone.
    pub fn take_prompt_logprobs(&mut self) -> Vec<Logprobs> {
        std::mem::take(&mut self.prompt_logprobs)
    }

    /// The next piece; `None` after the one that has an end, or after an error.
    pub async fn next(&mut self) -> Option<Result<Piece, Error>> {
        std::future::poll_fn(|cx| self.poll_next(cx)).await
    }

    /// As [`Answer::next`], for those who poll.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Piece, Error>>> {
        while !self.ended {
            if let Some(told) = self.perhaps_last.take() {
                let Poll::Ready(next) = self.tokens.poll_next(cx) else {
                    self.perhaps_last = Some(told);
                    return Poll::Pending;
                };
                self.ahead = next;
                return Poll::Ready(Some(Ok(self.token(told))));
            }
            let event = match self.ahead.take() {
                Some(event) => Some(event),
                None => ready!(self.tokens.poll_next(cx)),
            };
            let told = match event {
                Some(Event::Started { cached_tokens, .. }) => {
                    self.cached_tokens = cached_tokens;
                    continue;
                }
                Some(Event::PromptLogprobs { logprobs, .. }) => {
                    self.prompt_logprobs.extend(logprobs);
                    continue;
                }
                Some(Event::Token { token, logprobs, .. }) => {
                    let told = Told { id: token, logprobs };
                    if self.may_be_last(token) {
                        // The next event tells, and comes with it or soon after.
                        self.perhaps_last = Some(told);
                        continue;
                    }
                    Ok(self.token(told))
                }
                Some(Event::Finished { reason, .. }) => Ok(self.finished(reason)),
                Some(Event::Cancelled { reason, .. }) => Err(self.cancelled(reason)),
                Some(Event::Failed { reason, .. }) => Err(self.failed(reason)),
                None => Err(self.lost()),
            };
            return Poll::Ready(Some(told));
        }
        Poll::Ready(None)
    }

    fn may_be_last(&self, token: u32) -> bool {
        let ends = &self.ends;
        let stops = ends.model.contains(&token) || ends.sampling.stop_tokens.contains(&token);
        stops || self.generated + 1 == ends.max_tokens
    }

    fn token(&mut self, told: Told) -> Piece {
        self.generated += 1;
        let id = told.id;
        let last = match self.ahead {
            Some(Event::Finished { reason, .. }) => Some(reason),
            _ => None,
        };
        let (mut text, mut end) = (String::new(), None);
        // A token that ends the text is no part of it, unless the request names and wants it; the model's own never is.
        if !matches!(last, Some(FinishReason::Stop(_))) || self.ends.keep(id) {
            let more = self.detokenizer.push(id);
            // As with vLLM, a text that the last of them completes does not end the answer.
            if self.generated <= self.ends.sampling.min_tokens {
                text.push_str(self.scanner.pass(more));
            } else {
                let scan = self.scanner.push(more);
                text.push_str(scan.text);
                end = scan.stopped.map(|index| End::StopString(self.ends.stop[index].clone()));
            }
        }
        let stopped = end.is_some();
        if let (false, Some(reason)) = (stopped, last) {
            let (rest, why) = self.rest(reason);
            text.push_str(&rest);
            end = Some(why);
        }
        let mut piece = self.piece(text, Some(told), end);
        // A call was wanted, and is complete.
        let over = piece.end.is_none() && self.parser.as_ref().is_some_and(OutputParser::is_over);
        if over {
            piece.end = Some(End::EndOfText);
        }
        if stopped || over {
            self.ended = true;
            self.tokens.cancel(CancelReason::StopString);
        }
        piece
    }

    /// Takes text apart; all of it, where it has ended.
    fn piece(&mut self, text: String, token: Option<Told>, end: Option<End>) -> Piece {
        let mut parts = Vec::new();
        let Some(parser) = &mut self.parser else {
            if !text.is_empty() {
                parts.push(Part::Text(text));
            }
            return Piece { parts, token, end };
        };
        let before = parser.is_thinking();
        parser.push(&text, &mut parts);
        if token.is_some() && (before || parser.is_thinking()) {
            self.thought += 1;
        }
        if let Some(end) = &end {
            parser.finish(end.cuts_off(), &mut parts);
        }
        Piece { parts, token, end }
    }

    fn finished(&mut self, reason: FinishReason) -> Piece {
        let (text, end) = self.rest(reason);
        self.piece(text, None, Some(end))
    }

    /// The text that was held back, and why no more comes.
    fn rest(&mut self, reason: FinishReason) -> (String, End) {
        self.ended = true;
        let rest = self.detokenizer.finish();
        let scan = self.scanner.push(rest);
        let mut text = scan.text.to_owned();
        if let Some(index) = scan.stopped {
            return (text, End::StopString(self.ends.stop[index].clone()));
        }
        text.push_str(self.scanner.finish());
        let end = match reason {
            FinishReason::Length => End::Length,
            FinishReason::Stop(token) if self.ends.sampling.stop_tokens.contains(&token) => End::StopToken(token),
            FinishReason::Stop(_) => End::EndOfText,
        };
        (text, end)
    }

    fn cancelled(&mut self, reason: CancelReason) -> Error {
        self.ended = true;
        match reason {
            CancelReason::DeadlinePassed => Error::Deadline,
            CancelReason::Draining => Error::Draining,
            CancelReason::ClientGone | CancelReason::StopString => Error::Cancelled,
        }
    }

    fn failed(&mut self, reason: Unanswered) -> Error {
        self.ended = true;
        match reason {
            Unanswered::Request(what) => Error::Invalid(what),
            // Not `Unavailable`, on which clients ask another replica: the request may have made the step fail.
            Unanswered::Step(what) => Error::Internal(format!("an answer could not be computed: {what}")),
        }
    }

    /// Nobody tells any more, since the engine has ended: it was not computed.
    fn lost(&mut self) -> Error {
        self.ended = true;
        Error::Unavailable(ENDED.into())
    }
}
