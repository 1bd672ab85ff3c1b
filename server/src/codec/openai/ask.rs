//! What a request asks of a language model: its prompt in tokens, and how the next ones are chosen.

use super::{Refusal, noticed, tools};
use crate::error::Error;
use crate::llm::{Generate, Language, Names};
use backends::llm::grammar::Form;
use backends::llm::sampling::Parameters;
use backends::llm::text::Chat;
use backends::llm::text::output::Thoughts;
use protocol::openai::common::{Common, Truncation, TruncationSide};
use protocol::openai::format::Constraint;
use protocol::openai::{ChatRequest, CompletionRequest, Conversation, FieldError, Notices, Prompt, Tool, ToolChoice};
use serde_json::Value;

/// A request for answers to one prompt or several.
#[derive(Debug)]
pub struct Ask {
    /// One for each prompt.
    pub prompts: Vec<Asked>,
    /// How answers are told.
    pub telling: Telling,
    /// What they keep to, and the field that says so.
    pub form: Option<(Form, &'static str)>,
    /// Schemas that are a part of that.
    pub schemas: Vec<Part>,
}

impl Ask {
    /// A stream ends with what was used, if that is `forced`, whatever the request says.
    #[must_use]
    pub fn telling_usage(mut self, forced: bool) -> Self {
        self.telling.usage |= forced;
        self
    }
}

/// A schema that is a part of what answers keep to.
#[derive(Debug)]
pub struct Part {
    /// The field that it came in.
    pub field: &'static str,
    /// What errors call it there, where there are several.
    pub name: Option<String>,
    /// The schema.
    pub form: Form,
}

/// Answers to one prompt.
#[derive(Debug)]
pub struct Asked {
    /// What is generated.
    pub generate: Generate,
    /// What every answer begins with: the prompt, or the message that is continued.
    pub echo: Option<String>,
}

/// How answers are told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Telling {
    /// Choices that are returned for each prompt.
    pub n: usize,
    /// Event by event.
    pub stream: bool,
    /// A last event tells what was used.
    pub usage: bool,
    /// Every event does.
    pub continuous_usage: bool,
    /// Alternatives of each token, where its probability is told.
    pub logprobs: Option<usize>,
    /// Alternatives of each token of the prompt.
    pub prompt_logprobs: Option<usize>,
    /// Tokens are told by their ids besides.
    pub token_ids: bool,
    /// Control tokens are not in the text.
    pub leaves_out_special: bool,
    /// In logprobs, tokens are written as `token_id:42`.
    pub tokens_as_ids: bool,
    /// The tokens of the prompt are part of the answer's logprobs.
    pub echoes_tokens: bool,
    /// The prompt alone is wanted.
    pub prompt_alone: bool,
    /// Thoughts are told.
    pub reasoning: bool,
    /// There may be thoughts, and their tokens are counted.
    pub thinks: bool,
    /// An answer that calls says so in its finish_reason.
    pub calls_finish: bool,
    /// Calls have ids of nine letters and digits.
    pub short_call_ids: bool,
}

/// A chat.
///
/// # Errors
/// Names the field that is at fault, or says what the model cannot do.
pub fn chat(request: &ChatRequest, language: &Language) -> Result<Ask, Refusal> {
    let ChatRequest { common, conversation, .. } = request;
    let effort = request.reasoning_effort.map(|effort| ("reasoning_effort", effort.as_str()));
    let text = prompt(conversation, tools::offered(request), effort, language)?;
    let tokens = language.encode(&text, conversation.add_special_tokens).map_err(|error| about("messages", error))?;
    let words = common.delivery.echo.then(|| last_words(&conversation.messages, language)).flatten();
    let thoughts = language.format().thoughts(&text, conversation.continue_final_message);
    let (reading, form) = tools::reading(request, language, thoughts, form(common))?;
    let telling = Telling {
        reasoning: request.include_reasoning,
        thinks: thoughts != Thoughts::None,
        calls_finish: !matches!(request.tool_choice, ToolChoice::Named(_)),
        short_call_ids: language.format().has_short_call_ids(),
        ..telling(common)
    };
    let whole = tokens.len();
    let generate = generate(tokens, common, language)?;
    let echo = if generate.prompt.len() == whole {
        words
    } else {
        // Of another message than the last of the prompt, nobody knows where in it its words are.
        let words = words.filter(|words| conversation.continue_final_message && text.ends_with(words.as_str()));
        words.and_then(|words| {
            let kept = language.tokenizer().decode(&generate.prompt, false);
            still_read(&text, text.len() - words.len(), &kept)
        })
    };
    let names = Names { prompt: "messages", ..generate.names };
    let generate = Generate { reading: Some(reading), names, ..generate };
    let schemas = form.as_ref().map_or_else(Vec::new, |(whole, _)| parts(request, whole));
    Ok(Ask { prompts: vec![Asked { generate, echo }], telling, form, schemas })
}

/// A chat whose answer may have fewer tokens than it asks for: Anthropic's clients always state what their largest model
/// could write.
///
/// # Errors
/// As for [`chat`].
pub fn chat_within(request: &ChatRequest, language: &Language) -> Result<Ask, Refusal> {
    let mut ask = chat(request, language)?;
    for Asked { generate, .. } in &mut ask.prompts {
        let room = language.context().saturating_sub(generate.prompt.len() as u32).max(1);
        generate.max_tokens = generate.max_tokens.map(|most| most.min(room));
    }
    Ok(ask)
}

/// The tokens of a chat's prompt.
///
/// # Errors
/// As for [`chat`].
pub fn chat_tokens(request: &ChatRequest, language: &Language) -> Result<Vec<u32>, Refusal> {
    let effort = request.reasoning_effort.map(|effort| ("reasoning_effort", effort.as_str()));
    let text = prompt(&request.conversation, tools::offered(request), effort, language)?;
    language.encode(&text, request.conversation.add_special_tokens).map_err(|error| about("messages", error))
}

/// The tokens of a conversation's prompt.
///
/// # Errors
/// As for [`chat`].
pub fn conversation_tokens(conversation: &Conversation, language: &Language) -> Result<Vec<u32>, Refusal> {
    let text = prompt(conversation, &conversation.tools, None, language)?;
    language.encode(&text, conversation.add_special_tokens).map_err(|error| about("messages", error))
}

/// A conversation as the chat template writes it.
fn prompt(
    conversation: &Conversation,
    tools: &[Tool],
    setting: Option<(&'static str, &str)>,
    language: &Language,
) -> Result<String, Refusal> {
    if conversation.chat_template.is_some() {
        return Err(FieldError::refused("chat_template", "templates come with the model alone").into());
    }
    let mut settings = conversation.chat_template_kwargs.clone();
    if let Some((name, value)) = setting {
        settings.entry(name).or_insert_with(|| Value::from(value));
    }
    let tools: Vec<Value> = tools.iter().map(|tool| tool.definition.clone()).collect();
    let messages = tools::for_template(&conversation.messages, language);
    let chat = Chat {
        tools: (!tools.is_empty()).then_some(&tools[..]),
        documents: (!conversation.documents.is_empty()).then_some(&conversation.documents[..]),
        add_generation_prompt: conversation.add_generation_prompt,
        continue_final_message: conversation.continue_final_message,
        settings: Some(&settings),
        ..Chat::new(&messages)
    };
    if chat.documents.is_some() && !language.reads(&chat, "documents") {
        let why = "this model's chat template does not read them; write them into a message";
        return Err(FieldError::refused("documents", why).into());
    }
    noticed(&unread(conversation, setting.map(|(name, _)| name), |name| language.reads(&chat, name)));
    language.render(&chat).map_err(|error| about("messages", error))
}

/// Settings that the chat template does not look at: `setting` is a field of its own.
fn unread(conversation: &Conversation, setting: Option<&'static str>, reads: impl Fn(&str) -> bool) -> Notices {
    let names = conversation.chat_template_kwargs.keys().filter(|name| !reads(name));
    let without_effect = setting.filter(|name| !reads(name)).map(|name| (name, "the chat template does not read it"));
    Notices {
        unknown: names.map(|name| format!("chat_template_kwargs.{name}")).collect(),
        without_effect: without_effect.into_iter().collect(),
    }
}

/// The text of an assistant's message that comes last, as the chat template has it.
fn last_words(messages: &[Value], language: &Language) -> Option<String> {
    let last = messages.last().filter(|message| message["role"] == "assistant")?;
    let last = tools::for_template(std::slice::from_ref(last), language).pop()?;
    match &last["content"] {
        Value::String(text) => Some(text.clone()),
        Value::Array(parts) => Some(parts.iter().filter_map(|part| part["text"].as_str()).collect()),
        _ => None,
    }
}

/// What is left of the last words of a prompt that says `text`, which begin at `start`: of it `kept` was read, its beginning
/// or its end.
fn still_read(text: &str, start: usize, kept: &str) -> Option<String> {
    let read = if text.ends_with(kept) {
        text.get(start.max(text.len() - kept.len())..)
    } else {
        text.starts_with(kept).then(|| text.get(start..kept.len())).flatten()
    };
    read.filter(|read| !read.is_empty()).map(str::to_owned)
}

/// A completion.
///
/// # Errors
/// As for [`chat`].
pub fn completion(request: &CompletionRequest, language: &Language) -> Result<Ask, Refusal> {
    let CompletionRequest { common, prompt, add_special_tokens } = request;
    let (delivery, sampling) = (&common.delivery, &common.sampling);
    let prompts: Vec<(Vec<u32>, Option<&str>)> = match prompt {
        Prompt::Tokens(lists) => lists.iter().map(|tokens| (tokens.clone(), None)).collect(),
        Prompt::Texts(texts) => {
            let encoded = texts.iter().enumerate().map(|(index, text)| {
                let tokens = language.encode(text, *add_special_tokens);
                let names = Names { which: (texts.len() > 1).then_some(index), ..Names::default() };
                let tokens = tokens.map_err(|error| about(&names.field(), error))?;
                Ok((tokens, Some(text.as_str())))
            });
            encoded.collect::<Result<_, Refusal>>()?
        }
    };
    let mut telling = telling(common);
    telling.echoes_tokens = delivery.echo && sampling.logprobs.is_some();
    telling.prompt_alone = sampling.max_tokens == Some(0);
    if telling.echoes_tokens && delivery.stream {
        return Err(FieldError::refused("echo", "with logprobs it is not streamed; leave out one of the three").into());
    }
    let mut asked = Vec::with_capacity(prompts.len());
    let several = prompts.len() > 1;
    for (index, (tokens, text)) in prompts.into_iter().enumerate() {
        let whole = tokens.len();
        let mut generate = generate(tokens, common, language)?;
        generate.names.which = several.then_some(index);
        // What was cut off has not been read, and is no part of what is echoed.
        let text = text.filter(|_| generate.prompt.len() == whole);
        if telling.echoes_tokens {
            let wanted = generate.parameters.logprobs.max(generate.parameters.prompt_logprobs);
            generate.parameters.prompt_logprobs = wanted;
        }
        if telling.prompt_alone {
            // Something has to be computed for the prompt's probabilities; it is not told.
            (generate.max_tokens, generate.counted) = (Some(1), false);
        }
        let text = |generate: &Generate| match text {
            Some(text) => text.to_owned(),
            None => language.tokenizer().decode(&generate.prompt, delivery.skip_special_tokens),
        };
        let echo = delivery.echo.then(|| text(&generate));
        asked.push(Asked { generate, echo });
    }
    Ok(Ask { prompts: asked, telling, form: form(common), schemas: Vec::new() })
}

pub(super) fn telling(common: &Common) -> Telling {
    let Common { sampling, delivery, .. } = common;
    let number = |count: u32| count as usize;
    Telling {
        n: number(sampling.n),
        stream: delivery.stream,
        usage: delivery.include_usage,
        continuous_usage: delivery.continuous_usage,
        logprobs: sampling.logprobs.map(number),
        prompt_logprobs: sampling.prompt_logprobs.map(number),
        token_ids: delivery.token_ids,
        leaves_out_special: delivery.skip_special_tokens,
        tokens_as_ids: delivery.tokens_as_ids,
        ..Telling::default()
    }
}

fn generate(prompt: Vec<u32>, common: &Common, language: &Language) -> Result<Generate, Refusal> {
    let Common { sampling, delivery, .. } = common;
    let prompt = cut(prompt, common, language.context());
    Ok(Generate {
        prompt,
        parameters: parameters(common, language)?,
        max_tokens: sampling.max_tokens,
        names: Names { max_tokens: sampling.max_tokens_field.as_str(), ..Names::default() },
        copies: sampling.best_of,
        stop: sampling.stop.clone(),
        include_stop: delivery.include_stop,
        skip_special_tokens: delivery.skip_special_tokens,
        priority: common.priority,
        salt: common.cache_salt.clone(),
        deadline: None,
        guide: None,
        reading: None,
        counted: true,
    })
}

/// What answers keep to, and the field that says so.
fn form(common: &Common) -> Option<(Form, &'static str)> {
    let (response_format, structured_outputs) = ("response_format", "structured_outputs");
    Some(match common.sampling.constraint.as_ref()? {
        Constraint::JsonObject => (Form::Object, response_format),
        Constraint::JsonSchema { schema, field } => (Form::Schema(schema.clone()), field),
        Constraint::Regex(regex) => (Form::Regex(regex.clone()), structured_outputs),
        Constraint::Choice(texts) => (Form::Choice(texts.clone()), structured_outputs),
        Constraint::Grammar(grammar) => (Form::Grammar(grammar.clone()), structured_outputs),
    })
}

/// Schemas that what answers keep to may be put together of, unless it is one as a `whole`.
fn parts(request: &ChatRequest, whole: &Form) -> Vec<Part> {
    let is_schema = |form: &Form| matches!(form, Form::Schema(_));
    let stated = form(&request.common).filter(|(form, _)| is_schema(form) && !is_schema(whole));
    let stated = stated.map(|(form, field)| Part { field, name: None, form });
    stated.into_iter().chain(tools::schemas(request)).collect()
}

/// As much of a prompt as was asked for.
fn cut(mut prompt: Vec<u32>, common: &Common, context: u32) -> Vec<u32> {
    let Some(Truncation { tokens, side }) = common.truncation else { return prompt };
    let room = context.saturating_sub(common.sampling.max_tokens.unwrap_or(1).max(1));
    let kept = tokens.unwrap_or(room) as usize;
    let surplus = prompt.len().saturating_sub(kept);
    match side {
        TruncationSide::Left => drop(prompt.drain(..surplus)),
        TruncationSide::Right => prompt.truncate(kept),
    }
    prompt
}

/// How tokens are chosen: what the request says, else the model.
fn parameters(common: &Common, language: &Language) -> Result<Parameters, Refusal> {
    let asked = &common.sampling;
    let defaults = language.defaults();
    let small = |count: u32| u8::try_from(count).unwrap_or(u8::MAX);
    // The likeliest of several are found by their probabilities.
    let ranked = (asked.best_of > asked.n).then_some(0);
    Ok(Parameters {
        temperature: asked.temperature.unwrap_or(defaults.temperature),
        top_k: asked.top_k.unwrap_or(defaults.top_k),
        top_p: asked.top_p.unwrap_or(defaults.top_p),
        min_p: asked.min_p.unwrap_or(defaults.min_p),
        typical_p: asked.typical_p.unwrap_or(defaults.typical_p),
        repetition_penalty: asked.repetition_penalty.unwrap_or(defaults.repetition_penalty),
        presence_penalty: asked.presence_penalty,
        frequency_penalty: asked.frequency_penalty,
        logit_bias: asked.logit_bias.iter().map(|(token, bias)| (*token, *bias)).collect(),
        allowed: asked.allowed_token_ids.clone(),
        banned: banned(&asked.bad_words, language)?,
        seed: asked.seed.map_or_else(|| uuid::Uuid::new_v4().as_u64_pair().1, |seed| seed as u64),
        logprobs: asked.logprobs.map(small).max(ranked),
        prompt_logprobs: asked.prompt_logprobs.map(small),
        min_tokens: asked.min_tokens,
        stop_tokens: asked.stop_token_ids.clone(),
        ignore_eos: asked.ignore_eos,
    })
}

/// The tokens that write a word, at the beginning of a text and after a space.
fn banned(words: &[String], language: &Language) -> Result<Vec<u32>, Refusal> {
    let mut tokens = Vec::new();
    for (index, word) in words.iter().enumerate() {
        let before = tokens.len();
        for spelled in [word.clone(), format!(" {word}")] {
            if let [token] = language.encode(&spelled, false)?[..] {
                tokens.push(token);
            }
        }
        if tokens.len() == before {
            let message = format!(
                "Invalid 'bad_words[{index}]': this model writes '{word}' as several tokens; single ones alone are kept out."
            );
            return Err(FieldError::invalid("bad_words", message).into());
        }
    }
    Ok(tokens)
}

/// An error that a field is the reason of.
pub fn about(field: &str, error: Error) -> Refusal {
    match error {
        Error::Invalid(what) | Error::Refused(what) => FieldError::invalid(field, what).into(),
        other => other.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_last_words_those_are_told_that_were_read() {
        let (text, start) = ("<|user|>one<|assistant|>one two", 24);
        assert_eq!(&text[start..], "one two");
        for (kept, told) in [
            ("ant|>one two", Some("one two")),
            ("ne two", Some("ne two")),
            ("<|user|>one<|assistant|>one", Some("one")),
            ("<|user|>one<|assistant|>", None),
            ("<|user|>one", None),
            ("something else", None),
        ] {
            assert_eq!(still_read(text, start, kept).as_deref(), told, "{kept}");
        }
    }

    #[test]
    fn settings_that_no_template_reads_are_told() {
        let mut conversation = Conversation::default();
        conversation.chat_template_kwargs.insert("enable_thinking".into(), Value::Bool(false));
        conversation.chat_template_kwargs.insert("zzz".into(), Value::from(1));
        let told = |setting, read: &[&str]| unread(&conversation, setting, |name| read.contains(&name));
        let notices = told(Some("reasoning_effort"), &["enable_thinking"]);
        assert_eq!(notices.unknown, ["chat_template_kwargs.zzz"]);
        assert_eq!(notices.without_effect, [("reasoning_effort", "the chat template does not read it")]);
        let all = ["enable_thinking", "zzz", "reasoning_effort"];
        assert_eq!(told(Some("reasoning_effort"), &all), Notices::default());
        assert!(told(None, &all[..2]).without_effect.is_empty());
    }
}
