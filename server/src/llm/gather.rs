//! Several answers as one stream of news, in the order in which it comes.

use super::answer::{Answer, Piece};
use super::tally::Tally;
use crate::error::Error;
use backends::llm::plan::Logprobs;
use std::task::{Context, Poll};
use tokio::sync::mpsc;

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

/// News of all answers to a request. Dropping it cancels those that are not done.
#[derive(Debug)]
pub struct Gathered(mpsc::Receiver<News>);

/// News that a slow client leaves untaken before nothing more of its answers is put into text.
const AHEAD: usize = 64;

impl Gathered {
    /// Listens to these answers, which `tally` counts together.
    pub fn new(answers: impl IntoIterator<Item = Answer>, tally: &Tally) -> Self {
        let (sender, receiver) = mpsc::channel(AHEAD);
        for (choice, answer) in answers.into_iter().enumerate() {
            tokio::spawn(tell(choice, answer, sender.clone(), tally.clone()));
        }
        Gathered(receiver)
    }

    /// The next news; `None` once all answers have ended.
    pub async fn next(&mut self) -> Option<News> {
        self.0.recv().await
    }

    /// As [`Gathered::next`], for those who poll.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<News>> {
        self.0.poll_recv(cx)
    }
}

async fn tell(choice: usize, mut answer: Answer, listener: mpsc::Sender<News>, tally: Tally) {
    loop {
        let piece = tokio::select! {
            biased;
            piece = answer.next() => piece,
            () = listener.closed() => return tally.fail(&Error::Cancelled),
        };
        let Some(piece) = piece else { return };
        if let Err(error) = &piece {
            tally.fail(error);
        }
        let last = piece.as_ref().map_or(true, |piece| piece.end.is_some());
        let prompt_logprobs = if last { answer.take_prompt_logprobs() } else { Vec::new() };
        let (generated, thought, cached) = (answer.generated(), answer.thought(), answer.cached_tokens());
        if listener.send(News { choice, piece, generated, thought, cached, prompt_logprobs }).await.is_err() || last {
            return;
        }
    }
}
