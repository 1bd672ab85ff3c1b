//! How far an answer is, and what metrics are told of it: looked at on the engine's thread, where its tokens come about.

use crate::metrics::{AnswerMetrics, Course, Ended};
use backends::llm::sequence::{CancelReason, Event, FinishReason};
use std::time::Instant;

/// An answer from the queue to its last token.
#[derive(Clone, Copy, Debug)]
pub(super) struct Life {
    /// Tokens of its prompt.
    prompt: u32,
    /// Is it an answer? Where a prompt is asked about alone, its one token is none.
    counted: bool,
    queued: Instant,
    started: Option<Instant>,
    /// When its first token came, and its last so far.
    came: Option<(Instant, Instant)>,
    tokens: u32,
}

impl Life {
    /// It came at `since`, with a prompt of so many tokens.
    pub(super) fn new(prompt: u32, counted: bool, since: Instant) -> Self {
        Life { prompt, counted, queued: since, started: None, came: None, tokens: 0 }
    }

    /// What happened to it in a step from `began` to `now`.
    pub(super) fn follow(&mut self, event: &Event, began: Instant, now: Instant, metrics: &AnswerMetrics) {
        match event {
            Event::Started { .. } => self.started = Some(began),
            Event::PromptLogprobs { .. } => {}
            Event::Token { .. } if !self.counted => metrics.prompt(self.prompt),
            Event::Token { .. } => {
                self.tokens += 1;
                match &mut self.came {
                    None => {
                        metrics.prompt(self.prompt);
                        metrics.first_token(now.saturating_duration_since(self.queued));
                        self.came = Some((now, now));
                    }
                    Some((_, last)) => metrics.next_token(now.saturating_duration_since(std::mem::replace(last, now))),
                }
            }
            Event::Finished { reason: FinishReason::Length, .. } => self.end(Ended::Length, metrics),
            Event::Finished { reason: FinishReason::Stop(_), .. } => self.end(Ended::Stop, metrics),
            Event::Cancelled { reason, .. } => self.cancelled(*reason, metrics),
            Event::Failed { .. } => self.end(Ended::Error, metrics),
        }
    }

    /// It was ended from outside.
    pub(super) fn cancelled(&self, reason: CancelReason, metrics: &AnswerMetrics) {
        // A text that ends an answer is found where tokens become text, and has the engine give it up.
        self.end(if reason == CancelReason::StopString { Ended::Stop } else { Ended::Abort }, metrics);
    }

    /// It has ended so.
    pub(super) fn end(&self, how: Ended, metrics: &AnswerMetrics) {
        metrics.ended(how);
        // Times of what was broken off are those of clients.
        if let (Ended::Stop | Ended::Length, Some(course)) = (how, self.course()) {
            metrics.went(&course);
        }
    }

    fn course(&self) -> Option<Course> {
        let (first, last) = self.came?;
        let queued = self.started?.saturating_duration_since(self.queued);
        // Steps that overlap begin before the one is over whose token came.
        let prefill = first.saturating_duration_since(self.queued).saturating_sub(queued);
        let decode = last.saturating_duration_since(first);
        Some(Course { queued, prefill, decode, prompt: self.prompt, tokens: self.tokens })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use backends::llm::sequence::GroupId;
    use std::time::Duration;

    #[test]
    fn an_answer_has_a_queue_a_prompt_and_tokens() {
        let metrics = AnswerMetrics::register("lives");
        let sequence = GroupId(0).copy(0);
        let zero = Instant::now();
        let at = |ms: u64| zero + Duration::from_millis(ms);
        let token = Event::Token { sequence, token: 1, logprobs: None };
        let mut life = Life::new(7, true, zero);
        assert_eq!(life.course(), None);
        life.follow(&Event::Started { sequence, cached_tokens: 3 }, at(10), at(30), &metrics);
        life.follow(&token, at(10), at(30), &metrics);
        for step in [31, 35] {
            life.follow(&token, at(step - 1), at(step), &metrics);
        }
        let ms = Duration::from_millis;
        let course = Course { queued: ms(10), prefill: ms(20), decode: ms(5), prompt: 7, tokens: 3 };
        assert_eq!(life.course(), Some(course));
        let mut prompt_alone = Life::new(7, false, zero);
        prompt_alone.follow(&Event::Started { sequence, cached_tokens: 3 }, at(10), at(30), &metrics);
        prompt_alone.follow(&token, at(10), at(30), &metrics);
        assert_eq!(prompt_alone.course(), None);
    }
}
