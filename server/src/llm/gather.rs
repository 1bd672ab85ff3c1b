//! Several answers as one stream of news, in the order in which it comes.

use super::answer::{Answer, Piece};
use super::tally::Tally;
use crate::error::{self, Error};
use backends::llm::plan::Logprobs;
use std::task::{Context, Poll};

/// News of one of several answers.
#[derive(Debug)]
pub struct News {
    /// Which: they count through the answers to the first prompt, then to the second, and so on.
    pub choice: usize,
    /// What came, or why no more comes.
    pub piece: Result<Piece, Error>,
    /// Tokens of this answer so far.
    pub generated: u32,
    /// Those of its thoughts.
    pub thought: u32,
    /// Tokens of its prompt that were found in the cache.
    pub cached: u32,
    /// Of its prompt's tokens from the second on: with the last piece of the copy that computed them.
    pub prompt_logprobs: Vec<Logprobs>,
}

/// News of all answers to a request. Tokens become text on the task that asks for news, and no sooner. Dropping it cancels
/// the answers that are not done.
#[derive(Debug)]
pub struct Gathered {
    /// `None` once it has ended.
    answers: Vec<Option<Answer>>,
    open: usize,
    /// Who is asked first: everybody gets its turn.
    first: usize,
    tally: Tally,
}

impl Gathered {
    /// Listens to these answers, which `tally` counts together.
    pub fn new(answers: impl IntoIterator<Item = Answer>, mut tally: Tally) -> Self {
        let answers: Vec<_> = answers.into_iter().map(Some).collect();
        let open = answers.len();
        if open == 0 {
            tally.done();
        }
        Gathered { open, answers, first: 0, tally }
    }

    /// Their request is refused for a reason that is not an answer's: it counts as failed, and why.
    pub fn fail(&mut self, error: &Error) {
        self.tally.fail(error);
    }

    /// The next news; `None` once all answers have ended.
    pub async fn next(&mut self) -> Option<News> {
        std::future::poll_fn(|cx| self.poll_next(cx)).await
    }

    /// As [`Gathered::next`], for those who poll.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<News>> {
        if self.open == 0 {
            return Poll::Ready(None);
        }
        let count = self.answers.len();
        for choice in (self.first..count).chain(0..self.first) {
            let Some(answer) = &mut self.answers[choice] else { continue };
            let Poll::Ready(piece) = answer.poll_next(cx) else { continue };
            let piece = piece.unwrap_or_else(|| Err(error::broke_off()));
            let last = piece.as_ref().map_or(true, |piece| piece.end.is_some());
            let prompt_logprobs = if last { answer.take_prompt_logprobs() } else { Vec::new() };
            let (generated, thought, cached) = (answer.generated(), answer.thought(), answer.cached_tokens());
            self.first = (choice + 1) % count;
            if let Err(error) = &piece {
                self.tally.fail(error);
            }
            if last {
                self.answers[choice] = None;
                self.open -= 1;
                if self.open == 0 {
                    self.tally.done();
                }
            }
            return Poll::Ready(Some(News { choice, piece, generated, thought, cached, prompt_logprobs }));
        }
        Poll::Pending
    }
}
