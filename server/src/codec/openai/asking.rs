//! Puts a request to its model: its form compiled, its prompts asked together, its answers gathered.

use super::Refusal;
use super::ask::{Ask, Asked, Part, Telling, about};
use super::whole::Prompted;
use crate::dataplane::{Dataplane, Generate, Language, Servable};
use crate::error::Error;
use crate::llm::answer::Answer;
use crate::llm::gather::Gathered;
use crate::llm::tally::Tally;
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
    let answers = plane.generate(servable, requests).await?;
    Ok((prompts, answers, copies))
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
