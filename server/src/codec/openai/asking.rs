//! Puts a request to its model: its form compiled, its prompts asked together, its answers gathered.

use super::Refusal;
use super::ask::{Ask, Asked, Part, Telling, about, prompt_name};
use super::whole::Prompted;
use crate::dataplane::{Dataplane, Generate, Language, Servable, Untaken};
use crate::error::Error;
use crate::llm::answer::Answer;
use crate::llm::gather::Gathered;
use crate::llm::tally::Tally;
use backends::llm::request::PROMPT;
use protocol::openai::FieldError;
use std::time::{Duration, Instant};

/// How long schemas of tools are looked through for the one that is at fault.
const LONGEST_LOOK: Duration = Duration::from_secs(2);

/// Answers that are on their way.
#[derive(Debug)]
pub struct Asking {
    /// The answers.
    pub gathered: Gathered,
    /// What was asked.
    pub prompts: Vec<Prompted>,
    /// Answers to each prompt.
    pub copies: usize,
    /// How they are told.
    pub telling: Telling,
}

/// Asks for answers that are of no use after `deadline`.
///
/// # Errors
/// The form cannot be followed, a prompt breaks a limit, or the model has too much to do.
pub async fn put(plane: &Dataplane, servable: &Servable, ask: Ask, deadline: Instant) -> Result<Asking, Refusal> {
    let tally = Tally::begin(servable.stats.clone(), servable.metrics.clone(), ask.prompts.len());
    let telling = ask.telling.clone();
    let asked = answers(plane, servable, ask, deadline).await;
    let (prompts, answers, copies) = asked.inspect_err(|refusal| {
        tally.fail(&match refusal {
            Refusal::Server(error) => error.clone(),
            Refusal::Field(error) => Error::Invalid(error.message.clone()),
        });
    })?;
    Ok(Asking { gathered: Gathered::new(answers, tally), prompts, copies, telling })
}

async fn answers(
    plane: &Dataplane,
    servable: &Servable,
    ask: Ask,
    deadline: Instant,
) -> Result<(Vec<Prompted>, Vec<Answer>, usize), Refusal> {
    let guide = match ask.form {
        None => None,
        Some((form, field)) => {
            let language = servable.language()?;
            let compiled = tokio::time::timeout_at(deadline.into(), language.guide(form)).await;
            match compiled.map_err(|_| Error::Deadline)? {
                Ok(guide) => Some(guide),
                Err(error) => return Err(named(language, ask.schemas, about(field, error), deadline).await),
            }
        }
    };
    let count = ask.prompts.len();
    let copies = ask.prompts.last().map_or(0, |last| last.generate.copies as usize);
    let (mut prompts, mut requests) = (Vec::with_capacity(count), Vec::with_capacity(count));
    for Asked { generate, echo } in ask.prompts {
        prompts.push(Prompted { tokens: generate.prompt.clone(), echo });
        requests.push(Generate { deadline: Some(deadline), guide: guide.clone(), ..generate });
    }
    let answers = plane.generate(servable, requests).await.map_err(|untaken| with_prompt(untaken, count))?;
    Ok((prompts, answers, copies))
}

/// Why prompts are not answered. What is wrong with one of several says with which.
fn with_prompt(Untaken { which, error }: Untaken, count: usize) -> Refusal {
    let refusal = Refusal::from(error);
    let (Some(index), Refusal::Field(error)) = (which.filter(|_| count > 1), &refusal) else { return refusal };
    if !error.message.contains(PROMPT) {
        return refusal;
    }
    let name = prompt_name(index, count);
    let message = format!("{name}: {}", error.message);
    let param = if error.param.as_deref() == Some(PROMPT) { Some(name) } else { error.param.clone() };
    FieldError { param, message, code: error.code }.into()
}

/// Why a form could not be compiled, with the schema that is the reason: all of them are parts of one form, whose
/// compiler does not know which is whose. `error` stays where each can be followed alone, and where none is its reason.
async fn named(language: &Language, schemas: Vec<Part>, error: Refusal, deadline: Instant) -> Refusal {
    if !matches!(error, Refusal::Field(_)) {
        return error;
    }
    let look = async {
        for Part { field, name, form } in schemas {
            if let Err(Error::Invalid(what)) = language.guide(form).await {
                return Some(FieldError::invalid(field, name.map_or(what.clone(), |name| format!("{name}: {what}"))));
            }
        }
        None
    };
    let deadline = deadline.min(Instant::now() + LONGEST_LOOK);
    match tokio::time::timeout_at(deadline.into(), look).await {
        Ok(Some(found)) => found.into(),
        Ok(None) | Err(_) => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_with_one_of_several_prompts_says_which() {
        let told = |field, what: &str, count| {
            let untaken = Untaken { which: Some(1), error: Error::Field(field, what.to_owned()) };
            match with_prompt(untaken, count) {
                Refusal::Field(error) => (error.param.unwrap_or_default(), error.message),
                Refusal::Server(error) => panic!("{error:?}"),
            }
        };
        let long = "the prompt has 600 tokens";
        assert_eq!(told("prompt", long, 2), ("prompt[1]".into(), format!("prompt[1]: {long}")));
        assert_eq!(told("max_tokens", long, 2), ("max_tokens".into(), format!("prompt[1]: {long}")));
        assert_eq!(told("prompt", long, 1), ("prompt".into(), long.into()));
        assert_eq!(told("top_p", "top_p is 7", 2), ("top_p".into(), "top_p is 7".into()));
        let busy = Error::Overloaded("the queue is full".into());
        assert_eq!(with_prompt(busy.clone().into(), 2), Refusal::Server(busy));
    }
}
