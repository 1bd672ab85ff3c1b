//! Puts a request to its model: its form compiled, its prompts asked together, its answers gathered. And how many bytes
//! these will take.

use super::Refusal;
use super::ask::{Ask, Asked, Part, Telling, about};
use super::events::Kind;
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

/// Bytes of an entry: of a token and its probability, be it the one in its place or an alternative. In chats and of prompts
/// it is some 60 to 80 bytes of JSON, in completions half of that. Until it is written, a token that was generated takes
/// about as much again, and an alternative 8.
const ENTRY: usize = 80;
/// Choices are put together one at a time to be written, and one takes about twice its JSON meanwhile.
const WRITING: usize = 2;
/// Bytes of a token's id.
const ID: usize = 8;
/// Bytes of a token of which the text alone is told.
pub const TEXT: usize = 16;

/// How many bytes a whole answer takes, as far as its request tells.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Weight {
    /// What is told of the prompts: as often as there are choices.
    pub prompts: usize,
    /// What is told of the tokens that are generated, where more than their text is told and the request says how many
    /// there may be.
    pub generated: usize,
}

impl Weight {
    /// Of the answer to `ask`, whose prompts and answers are no longer than `context`: what is longer is refused.
    pub fn of(ask: &Ask, kind: Kind, context: u32) -> Self {
        let Ask { prompts, telling, .. } = ask;
        let (context, mut weight, mut largest) = (context as usize, Weight::default(), 0);
        let entries = |count: Option<usize>| count.map_or(0, |alternatives| (1 + alternatives) * ENTRY);
        let echoed = telling.logprobs.filter(|_| telling.echoes_tokens);
        let ids = if telling.token_ids { ID } else { 0 };
        let of_token = entries(telling.prompt_logprobs) + entries(echoed) + ids;
        // A chat has one prompt, of which its reply tells once.
        let times = if kind == Kind::Chat { 1 } else { telling.n };
        for Asked { generate, echo } in prompts {
            let of_one = generate.prompt.len().min(context).saturating_mul(of_token);
            let echo = echo.as_ref().map_or(0, String::len).saturating_mul(telling.n);
            weight.prompts = weight.prompts.saturating_add(of_one.saturating_mul(times)).saturating_add(echo);
            largest = of_one.max(largest);
            let copies = generate.copies as usize;
            if keeps_tokens(telling, copies) {
                let most = generate.max_tokens.map_or(0, |most| (most as usize).min(context));
                let each = token_bytes(telling, prompts.len(), copies);
                weight.generated = weight.generated.saturating_add(most.saturating_mul(copies).saturating_mul(each));
            }
        }
        weight.prompts = weight.prompts.saturating_add(largest.saturating_mul(WRITING));
        weight
    }
}

/// Is more wanted of tokens than their text?
pub(super) fn keeps_tokens(telling: &Telling, copies: usize) -> bool {
    telling.logprobs.is_some() || telling.token_ids || copies > telling.n
}

/// Bytes that a token takes which was generated for one of `copies` answers to one of `prompts`.
pub(super) fn token_bytes(telling: &Telling, prompts: usize, copies: usize) -> usize {
    if !keeps_tokens(telling, copies) {
        return TEXT;
    }
    let choices = prompts.saturating_mul(copies).max(1);
    (1 + telling.logprobs.unwrap_or(0)) * ENTRY * (choices + WRITING) / choices
}

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
    let mut tally = Tally::begin(servable, ask.prompts.len());
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::llm::Names;
    use backends::llm::sampling::Parameters;

    /// A request with prompts of so many tokens.
    fn ask(prompts: &[usize], copies: u32, max_tokens: Option<u32>, telling: Telling) -> Ask {
        let asked = |tokens: &usize| {
            let generate = Generate {
                prompt: vec![0; *tokens],
                parameters: Parameters::default(),
                max_tokens,
                names: Names::default(),
                copies,
                stop: Vec::new(),
                include_stop: false,
                skip_special_tokens: true,
                priority: 0,
                salt: None,
                deadline: None,
                guide: None,
                reading: None,
                counted: true,
            };
            Asked { generate, echo: None }
        };
        Ask { prompts: prompts.iter().map(asked).collect(), telling, form: None, schemas: Vec::new() }
    }

    #[test]
    fn what_is_told_of_prompts_counts_for_every_choice() {
        let telling = |n| Telling { n, prompt_logprobs: Some(20), ..Telling::default() };
        let sixteen = ask(&[100, 300], 16, Some(1), telling(16));
        let prompts = 21 * ENTRY * (400 * 16 + 300 * WRITING);
        assert_eq!(Weight::of(&sixteen, Kind::Completion, 512), Weight { prompts, generated: 0 });
        let chat = ask(&[300], 16, None, telling(16));
        assert_eq!(Weight::of(&chat, Kind::Chat, 512).prompts, 21 * ENTRY * 300 * (1 + WRITING));
        // It will be refused for what it is.
        let beyond = ask(&[usize::from(u16::MAX)], 1, None, telling(1));
        assert_eq!(Weight::of(&beyond, Kind::Completion, 512).prompts, 21 * ENTRY * 512 * (1 + WRITING));
        let echo = Telling { n: 2, logprobs: Some(4), echoes_tokens: true, token_ids: true, ..Telling::default() };
        let echo = Weight::of(&ask(&[10], 2, None, echo), Kind::Completion, 512);
        assert_eq!(echo, Weight { prompts: 10 * (5 * ENTRY + ID) * (2 + WRITING), generated: 0 });
    }

    #[test]
    fn tokens_count_where_more_than_their_text_is_told() {
        let generated =
            |copies, most, telling| Weight::of(&ask(&[1], copies, most, telling), Kind::Chat, 512).generated;
        let plain = Telling { n: 2, ..Telling::default() };
        assert_eq!(generated(2, Some(100), plain.clone()), 0);
        assert_eq!(token_bytes(&plain, 1, 2), TEXT);
        let told = Telling { logprobs: Some(3), ..plain.clone() };
        assert_eq!(generated(2, Some(100), told.clone()), 4 * ENTRY * 100 * (2 + WRITING));
        assert_eq!(generated(2, Some(u32::MAX), told.clone()), 4 * ENTRY * 512 * (2 + WRITING));
        assert_eq!(generated(2, None, told), 0, "they count as they come");
        // The likeliest are found by their probabilities.
        assert_eq!(generated(4, Some(100), plain), ENTRY * 100 * 4 * (4 + WRITING) / 4);
    }
}
