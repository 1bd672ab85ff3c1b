//! Replies that are sent when all is done.

use super::ask::Telling;
use super::asking::{keeps_tokens, token_bytes};
use super::told::{Place, Teller};
use super::tools::call_id;
use super::{FINGERPRINT, Head, Refusal, finish_reason, stop_reason, usage};
use crate::budget::Reserved;
use crate::error::{self, Error};
use crate::llm::Language;
use crate::llm::answer::{End, Told};
use crate::llm::gather::Gathered;
use crate::llm::said::{Called, Said};
use backends::llm::plan::Logprobs;
use protocol::openai::response::{
    self, CallKind, ChatChoice, CompletionChoice, FunctionCall, Message, Reply, ToolCall,
};
use serde::{Serialize, Serializer};
use std::sync::Arc;

/// What there is to tell of one prompt.
#[derive(Clone, Debug, Default)]
pub struct Prompted {
    /// Its tokens.
    pub tokens: Vec<u32>,
    /// What answers begin with.
    pub echo: Option<String>,
}

/// An answer that is done.
#[derive(Clone, Debug, Default)]
struct Whole {
    said: Said,
    /// Its tokens, where more than their text is wanted.
    told: Vec<Told>,
    end: Option<End>,
    generated: u32,
    thought: u32,
    cached: u32,
    /// The same of all answers to a prompt.
    prompt_logprobs: Arc<Vec<Logprobs>>,
}

impl Whole {
    /// The logarithm of its probability, per token.
    fn likelihood(&self) -> f64 {
        let each = self.told.iter().filter_map(|told| told.logprobs.as_ref()).map(|p| f64::from(p.logprob));
        each.sum::<f64>() / self.told.len().max(1) as f64
    }

    fn ids(&self) -> Vec<u32> {
        self.told.iter().map(|told| told.id).collect()
    }
}

/// Everything that a reply is made of.
#[derive(Debug)]
pub struct Answered<'a> {
    head: &'a Head,
    teller: Teller<'a>,
    prompts: &'a [Prompted],
    /// Of the first prompt, then of the second, and so on: as many of each.
    answers: Vec<Whole>,
    usage: response::Usage,
}

/// Waits for all answers, and counts what comes of them.
///
/// # Errors
/// The first error of any of them, or the budget has no room for what came.
pub async fn collect<'a>(
    mut gathered: Gathered,
    head: &'a Head,
    (language, telling): (&'a Language, &'a Telling),
    (prompts, copies): (&'a [Prompted], usize),
    reserved: &mut Reserved,
) -> Result<Answered<'a>, Error> {
    let mut answers = vec![Whole::default(); prompts.len() * copies];
    let (of_token, keeps) = (token_bytes(telling, prompts.len(), copies), keeps_tokens(telling, copies));
    while let Some(news) = gathered.next().await {
        let answer = &mut answers[news.choice];
        let piece = news.piece?;
        piece.parts.into_iter().for_each(|part| answer.said.add(part));
        let more = if piece.token.is_some() { of_token } else { 0 };
        reserved.add(more).inspect_err(|error| gathered.fail(error))?;
        answer.told.extend(piece.token.filter(|_| keeps));
        answer.end = piece.end.or(answer.end.take());
        (answer.generated, answer.thought, answer.cached) = (news.generated, news.thought, news.cached);
        if !news.prompt_logprobs.is_empty() {
            answer.prompt_logprobs = Arc::new(news.prompt_logprobs);
        }
    }
    if answers.iter().any(|answer| answer.end.is_none()) {
        return Err(error::broke_off());
    }
    let prompt: usize = prompts.iter().map(|prompt| prompt.tokens.len()).sum();
    let generated = if telling.prompt_alone { 0 } else { answers.iter().map(|answer| answer.generated).sum() };
    let cached = answers.chunks(copies).map(|answers| answers[0].cached).sum();
    let thought = telling.thinks.then(|| answers.iter().map(|answer| answer.thought).sum());
    let usage = usage(u32::try_from(prompt).unwrap_or(u32::MAX), generated, cached, thought);
    for of_one in answers.chunks_mut(copies) {
        // Told once for a prompt, and of use to all of its choices.
        let found = of_one.iter().map(|answer| &answer.prompt_logprobs).find(|logprobs| !logprobs.is_empty()).cloned();
        for answer in of_one.iter_mut() {
            answer.prompt_logprobs = found.clone().unwrap_or_default();
            if telling.prompt_alone {
                (answer.said, answer.told, answer.end) = (Said::default(), Vec::new(), Some(End::Length));
            }
        }
        if copies > telling.n {
            of_one.sort_by(|a, b| b.likelihood().total_cmp(&a.likelihood()));
        }
    }
    if copies > telling.n {
        let best = answers.into_iter().enumerate().filter(|(place, _)| place % copies < telling.n);
        answers = best.map(|(_, answer)| answer).collect();
    }
    Ok(Answered { head, teller: Teller { language, telling }, prompts, answers, usage })
}

/// A choice that is put together when it is written: all at once would take a multiple of their text.
struct Late<F>(F);

impl<C: Serialize, F: Fn() -> C> Serialize for Late<F> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        (self.0)().serialize(serializer)
    }
}

impl Answered<'_> {
    fn reply<C: Serialize>(
        &self,
        object: &'static str,
        choices: Vec<C>,
        prompt: Option<&Prompted>,
    ) -> Result<Vec<u8>, Refusal> {
        let telling = self.teller.telling;
        let logprobs = self.answers.first().map_or(&[][..], |answer| &answer.prompt_logprobs[..]);
        let reply = Reply {
            id: &self.head.id,
            object,
            created: self.head.created,
            model: &self.head.model,
            choices,
            system_fingerprint: Some(FINGERPRINT),
            usage: self.usage,
            prompt_logprobs: prompt.and_then(|prompt| self.teller.prompt(&prompt.tokens, logprobs)),
            prompt_token_ids: prompt.filter(|_| telling.token_ids).map(|prompt| &prompt.tokens[..]),
        };
        serde_json::to_vec(&reply).map_err(|unwritten| error::unwritten(&unwritten).into())
    }

    fn called(&self, answer: &Whole) -> bool {
        self.teller.telling.calls_finish && !answer.said.calls.is_empty()
    }

    fn message(&self, echo: &str, said: &Said) -> Message {
        let telling = self.teller.telling;
        let call = |Called { name, arguments }: &Called| ToolCall {
            id: call_id(telling),
            kind: CallKind::Function,
            function: FunctionCall { name: name.clone(), arguments: arguments.clone() },
        };
        let text = format!("{echo}{}", said.text);
        // There is a text, even an empty one, unless something else was said instead.
        let instead = !said.calls.is_empty() || !said.reasoning.is_empty();
        Message {
            content: Some(text).filter(|text| !text.is_empty() || !instead),
            reasoning: Some(&said.reasoning).filter(|text| telling.reasoning && !text.is_empty()).cloned(),
            tool_calls: said.calls.iter().map(call).collect(),
            ..Message::default()
        }
    }

    /// The reply to a chat.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn chat(&self) -> Result<Vec<u8>, Refusal> {
        let answers = self.answers.iter().enumerate();
        let choices = answers.map(|(index, answer)| Late(move || self.chat_choice(index, answer))).collect();
        self.reply(response::CHAT, choices, self.prompts.first())
    }

    fn chat_choice(&self, index: usize, answer: &Whole) -> ChatChoice {
        let echo = self.prompts.first().and_then(|prompt| prompt.echo.as_deref()).unwrap_or_default();
        ChatChoice {
            index: index as u32,
            message: self.message(echo, &answer.said),
            logprobs: self.teller.chat(&answer.told),
            finish_reason: answer.end.as_ref().map(|end| finish_reason(end, self.called(answer))),
            stop_reason: answer.end.as_ref().and_then(stop_reason),
            token_ids: self.teller.telling.token_ids.then(|| answer.ids()),
        }
    }

    /// The reply to a completion.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn completion(&self) -> Result<Vec<u8>, Refusal> {
        let answers = self.answers.iter().enumerate();
        let choices = answers.map(|(index, answer)| Late(move || self.completion_choice(index, answer))).collect();
        self.reply(response::COMPLETION, choices, None)
    }

    fn completion_choice(&self, index: usize, answer: &Whole) -> CompletionChoice {
        let telling = self.teller.telling;
        let Prompted { tokens, echo } = &self.prompts[index / telling.n];
        let echo = echo.as_deref().unwrap_or_default();
        let text = format!("{echo}{}", answer.said.text);
        let logprobs = if telling.echoes_tokens {
            self.teller.echoed((&tokens[..], &answer.prompt_logprobs[..]), echo, &answer.told)
        } else {
            self.teller.completion(&answer.told, &mut Place::after(echo))
        };
        CompletionChoice {
            index: index as u32,
            text,
            logprobs,
            finish_reason: answer.end.as_ref().map(|end| finish_reason(end, false)),
            stop_reason: answer.end.as_ref().and_then(stop_reason),
            prompt_logprobs: self.teller.prompt(tokens, &answer.prompt_logprobs),
            prompt_token_ids: telling.token_ids.then(|| tokens.clone()),
            token_ids: telling.token_ids.then(|| answer.ids()),
        }
    }
}
