//! Requests for text: chat completions and completions. Read from a body, checked field by field; whether the model
//! named exists, and whether a prompt fits it, is not known here.

use super::common::Common;
use super::error::FieldError;
use super::fields::{Field, Fields, Result};
use super::table::{self, Endpoint};
use super::tools::{self, Tool, ToolChoice};
use super::{limits, message};
use crate::json::Kind;
use serde_json::{Map, Value};

/// A conversation, and how the chat template makes a prompt of it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Conversation {
    /// Messages, checked: objects with a `role` and a `content` that is text, parts of text, or `null`.
    pub messages: Vec<Value>,
    /// What the model may call.
    pub tools: Vec<Tool>,
    /// Documents to draw on: objects.
    pub documents: Vec<Value>,
    /// The prompt ends with the beginning of the assistant's turn.
    pub add_generation_prompt: bool,
    /// The prompt ends in the middle of its last message.
    pub continue_final_message: bool,
    /// The tokenizer adds its special tokens to what the template has written.
    pub add_special_tokens: bool,
    /// Takes the place of the model's template, if the server lets it.
    pub chat_template: Option<String>,
    /// Further variables of the template.
    pub chat_template_kwargs: Map<String, Value>,
}

/// How long to think.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum ReasoningEffort {
    None,
    Minimal,
    Low,
    Medium,
    High,
    Xhigh,
    Max,
}

const EFFORTS: &[(&str, ReasoningEffort)] = &[
    ("none", ReasoningEffort::None),
    ("minimal", ReasoningEffort::Minimal),
    ("low", ReasoningEffort::Low),
    ("medium", ReasoningEffort::Medium),
    ("high", ReasoningEffort::High),
    ("xhigh", ReasoningEffort::Xhigh),
    ("max", ReasoningEffort::Max),
];

impl ReasoningEffort {
    /// As it is written, and as templates read it.
    pub fn as_str(self) -> &'static str {
        EFFORTS.iter().find(|(_, effort)| *effort == self).map_or("medium", |(word, _)| word)
    }
}

/// A request of `/v1/chat/completions`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ChatRequest {
    /// What completions have too.
    pub common: Common,
    /// What was said so far.
    pub conversation: Conversation,
    /// Which tools the model may or must call.
    pub tool_choice: ToolChoice,
    /// It may call several at once.
    pub parallel_tool_calls: bool,
    /// How long to think.
    pub reasoning_effort: Option<ReasoningEffort>,
    /// Thoughts are part of the answer.
    pub include_reasoning: bool,
}

/// What is to be continued.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Prompt {
    /// Texts.
    Texts(Vec<String>),
    /// Lists of token ids.
    Tokens(Vec<Vec<u32>>),
}

/// A request of `/v1/completions`.
#[derive(Clone, Debug, PartialEq)]
pub struct CompletionRequest {
    /// What chats have too.
    pub common: Common,
    /// What is to be continued.
    pub prompt: Prompt,
    /// The tokenizer adds its special tokens to texts.
    pub add_special_tokens: bool,
}

impl ChatRequest {
    /// Reads a body.
    ///
    /// # Errors
    /// [`FieldError`] names the field, and says what would be right.
    pub fn parse(body: &[u8]) -> Result<Self> {
        let mut fields = Fields::of_body(body)?;
        let conversation = Conversation::take(&mut fields)?;
        let mut request = ChatRequest {
            common: Common::take(&mut fields, Endpoint::Chat)?,
            tool_choice: tools::take_choice(&mut fields, &conversation.tools)?,
            parallel_tool_calls: fields.flag("parallel_tool_calls", true)?,
            reasoning_effort: fields.opt("reasoning_effort", |f| f.choice(EFFORTS))?,
            include_reasoning: fields.flag("include_reasoning", true)?,
            conversation,
        };
        table::apply(Endpoint::Chat, fields, &mut request.common.notices)?;
        Ok(request)
    }
}

impl CompletionRequest {
    /// Reads a body.
    ///
    /// # Errors
    /// [`FieldError`] names the field, and says what would be right.
    pub fn parse(body: &[u8]) -> Result<Self> {
        let mut fields = Fields::of_body(body)?;
        let mut request = CompletionRequest {
            prompt: prompt(&fields.require("prompt")?)?,
            common: Common::take(&mut fields, Endpoint::Completion)?,
            add_special_tokens: fields.flag("add_special_tokens", true)?,
        };
        let Common { sampling, delivery, .. } = &request.common;
        if sampling.max_tokens == Some(0) && !delivery.echo {
            return Err(FieldError::out_of_range("max_tokens", "integer", ">= 1", "0"));
        }
        table::apply(Endpoint::Completion, fields, &mut request.common.notices)?;
        Ok(request)
    }
}

fn prompt(field: &Field<'_>) -> Result<Prompt> {
    const EXPECTED: &str = "one of a string, array of strings, array of integers, or array of arrays of integers";
    match field.kind()? {
        Kind::String => return Ok(Prompt::Texts(vec![field.string(usize::MAX)?])),
        Kind::Array => {}
        _ => return Err(field.wrong_type(EXPECTED)),
    }
    let prompt = match field.first()?.map(|first| first.kind()).transpose()? {
        None => return Err(FieldError::empty_array(&field.path)),
        Some(Kind::Number) => return Ok(Prompt::Tokens(vec![field.ids(usize::MAX)?])),
        Some(Kind::String) => Prompt::Texts(field.strings(limits::PROMPTS, usize::MAX)?),
        Some(Kind::Array) => {
            let lists = field.elements(limits::PROMPTS)?;
            Prompt::Tokens(lists.iter().map(tokens).collect::<Result<_>>()?)
        }
        Some(_) => return Err(field.wrong_type(EXPECTED)),
    };
    Ok(prompt)
}

fn tokens(field: &Field<'_>) -> Result<Vec<u32>> {
    let ids = field.ids(usize::MAX)?;
    if ids.is_empty() { Err(FieldError::empty_array(&field.path)) } else { Ok(ids) }
}

impl Conversation {
    /// What `/v1/chat/completions` and `/tokenize` have in common.
    pub(super) fn take(fields: &mut Fields<'_>) -> Result<Self> {
        let continue_final_message = fields.flag("continue_final_message", false)?;
        let conversation = Conversation {
            messages: message::take(fields)?,
            tools: tools::take(fields)?,
            documents: fields.opt("documents", documents)?.unwrap_or_default(),
            add_generation_prompt: fields.flag("add_generation_prompt", !continue_final_message)?,
            continue_final_message,
            add_special_tokens: fields.flag("add_special_tokens", false)?,
            chat_template: fields.opt("chat_template", |f| f.string(limits::TEMPLATE_BYTES))?,
            chat_template_kwargs: fields.opt("chat_template_kwargs", variables)?.unwrap_or_default(),
        };
        if conversation.add_generation_prompt && continue_final_message {
            let message = "Cannot set both 'continue_final_message' and 'add_generation_prompt' to true.";
            return Err(FieldError::invalid("continue_final_message", message));
        }
        Ok(conversation)
    }
}

/// Variables that the template has from elsewhere: from here they would get round the checks made there.
const OWN_VARIABLES: &[&str] =
    &["messages", "tools", "documents", "add_generation_prompt", "continue_final_message", "chat_template", "tokenize"];

fn variables(field: Field<'_>) -> Result<Map<String, Value>> {
    let Value::Object(map) = field.value()? else { return Err(field.wrong_type("an object")) };
    match OWN_VARIABLES.iter().find(|name| map.contains_key(**name)) {
        None => Ok(map),
        Some(name) => Err(FieldError::refused(&format!("{}.{name}", field.path), "it is no variable of a template")),
    }
}

fn documents(field: Field<'_>) -> Result<Vec<Value>> {
    let elements = field.elements(limits::ENTRIES)?;
    field.bounded()?;
    let document = |element: &Field<'_>| match element.kind()? {
        Kind::Object => element.unbounded_value(),
        _ => Err(element.wrong_type("an object")),
    };
    elements.iter().map(document).collect()
}
