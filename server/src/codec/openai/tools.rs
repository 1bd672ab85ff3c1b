//! Tools: what of them a model is told, what its answer must be where it has to call one, and how calls are named.

use super::Refusal;
use super::ask::{Part, Telling};
use crate::llm::Language;
use backends::llm::grammar::Form;
use backends::llm::text::output::{Callable, Reading, Thoughts};
use protocol::openai::tools::Tool;
use protocol::openai::{ChatRequest, FieldError, ToolChoice};
use serde_json::Value;

/// What an answer keeps to, and the field that says so.
pub type Kept = Option<(Form, &'static str)>;

/// How the answer to a chat is read, and what it keeps to; the field says who wants it.
pub fn reading(
    request: &ChatRequest,
    language: &Language,
    thoughts: Thoughts,
    form: Kept,
) -> Result<(Reading, Kept), Refusal> {
    let tools = offered(request);
    let names = tools.iter().map(|tool| tool.name.clone()).collect();
    let single = !request.parallel_tool_calls || matches!(request.tool_choice, ToolChoice::Named(_));
    let whole = !request.common.delivery.stream;
    let forced = matches!(request.tool_choice, ToolChoice::Required | ToolChoice::Named(_));
    let reading = Reading { thoughts, tools: (!tools.is_empty()).then_some(names), single, whole, forced };
    let after = |(form, field), calls| (language.format().after_thoughts(form, thoughts, calls), field);
    let form = match &request.tool_choice {
        _ if tools.is_empty() => form.map(|form| after(form, false)),
        ToolChoice::None => form.map(|form| after(form, false)),
        ToolChoice::Auto => free(tools, language, form, thoughts)?,
        choice @ (ToolChoice::Required | ToolChoice::Named(_)) => {
            if let Some((_, field)) = form {
                let message =
                    format!("Invalid '{field}': the answer has to call a tool, so that it cannot be text as well.");
                return Err(FieldError::invalid(field, message).into());
            }
            let wanted = |tool: &&Tool| !matches!(choice, ToolChoice::Named(name) if *name != tool.name);
            let callable: Vec<_> = tools.iter().filter(wanted).map(with_schema).collect();
            Some(after((language.format().calls(&callable, !single), "tools"), true))
        }
    };
    Ok((reading, form))
}

/// The tools that the model is told of.
pub fn offered(request: &ChatRequest) -> &[Tool] {
    match request.tool_choice {
        ToolChoice::None => &[],
        _ => &request.conversation.tools,
    }
}

/// Schemas of tools that an answer may be held to.
pub fn schemas(request: &ChatRequest) -> Vec<Part> {
    let tools = offered(request);
    let strict = tools.iter().any(|tool| tool.strict);
    let binds = |tool: &Tool| match &request.tool_choice {
        ToolChoice::None => false,
        ToolChoice::Auto => tool.strict || !strict,
        ToolChoice::Required => true,
        ToolChoice::Named(name) => *name == tool.name,
    };
    let schema = |(index, tool): (usize, &Tool)| {
        tool.parameters().filter(|_| binds(tool))?;
        let name = Some(format!("tools[{index}] '{}'", tool.name));
        Some(Part { field: "tools", name, form: Form::Schema(with_schema(tool).schema()) })
    };
    tools.iter().enumerate().filter_map(schema).collect()
}

/// The model calls what it likes, and says what it likes: calls of strict tools follow their schemas all the same.
fn free(tools: &[Tool], language: &Language, form: Kept, thoughts: Thoughts) -> Result<Kept, Refusal> {
    let format = language.format();
    if !format.finds_calls() {
        let why = if format.tells_of_tools() {
            "this model's chat template does not say how it calls tools; force a call with tool_choice, or set \
             --tool-call-parser"
        } else {
            "this model's chat template does not tell it of tools; force a call with tool_choice"
        };
        return Err(FieldError::refused("tools", why).into());
    }
    let strict = tools.iter().any(|tool| tool.strict);
    let callable = |tool| if strict { strictly(tool) } else { with_schema(tool) };
    let callable: Vec<_> = tools.iter().map(callable).collect();
    Ok(match form {
        Some((form, field)) => Some((format.after_thoughts(format.calls_or(&callable, &form), thoughts, true), field)),
        None if strict => match format.text_with_calls(&callable, thoughts) {
            Some(form) => Some((form, "tools")),
            None => {
                let why =
                    "calls of this model's format are followed to the letter only where tool_choice is 'required'";
                return Err(FieldError::refused("tools.function.strict", why).into());
            }
        },
        None => None,
    })
}

fn with_schema(tool: &Tool) -> Callable<'_> {
    Callable { name: &tool.name, parameters: tool.parameters() }
}

/// Only the schemas of strict tools bind: others may be none that can be followed.
fn strictly(tool: &Tool) -> Callable<'_> {
    Callable { name: &tool.name, parameters: tool.parameters().filter(|_| tool.strict) }
}

/// A new name for a call, which its result will refer to.
pub fn call_id(telling: &Telling) -> String {
    let id = uuid::Uuid::new_v4().simple().to_string();
    // The chat templates of Mistral accept nothing else.
    if telling.short_call_ids { id[..9].to_owned() } else { format!("call_{}", &id[..24]) }
}

/// Messages as chat templates expect them: arguments of calls are objects, where the API has their text; content is text,
/// where a template takes no list of parts; and ids are short, where a template takes no others.
pub fn for_template(messages: &[Value], language: &Language) -> Vec<Value> {
    let takes_parts = language.takes_parts();
    let mut messages = messages.to_vec();
    for message in &mut messages {
        if language.format().has_short_call_ids() {
            let calls = message.get_mut("tool_calls").and_then(Value::as_array_mut).into_iter().flatten();
            calls.filter_map(|call| call.get_mut("id")).for_each(shorten);
            message.get_mut("tool_call_id").into_iter().for_each(shorten);
        }
        let calls = message.get_mut("tool_calls").and_then(Value::as_array_mut);
        for call in calls.into_iter().flatten() {
            let Some(arguments) = call.pointer_mut("/function/arguments") else { continue };
            let parsed = arguments.as_str().map(|text| match text.trim() {
                "" => Ok(Value::Object(serde_json::Map::new())),
                text => serde_json::from_str::<Value>(text),
            });
            // What a model got wrong goes back to it as it was.
            if let Some(Ok(object @ Value::Object(_))) = parsed {
                *arguments = object;
            }
        }
        if let (false, Some(Value::Array(parts))) = (takes_parts, message.get("content")) {
            let texts = parts.iter().filter_map(|part| part["text"].as_str().or(part["refusal"].as_str()));
            let text = texts.collect::<Vec<_>>().join("\n");
            message["content"] = Value::from(text);
        }
    }
    messages
}

/// An id of nine letters and digits for one that is something else, as histories of other models and APIs have them: the
/// same one for the same id.
fn shorten(id: &mut Value) {
    const LENGTH: usize = 9;
    let Some(text) = id.as_str() else { return };
    if text.len() == LENGTH && text.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
        return;
    }
    // FNV-1a: ids of one conversation are to stay apart, and nobody gains from making two of them equal.
    let fold = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    let mut hash = text.bytes().fold(0xcbf2_9ce4_8422_2325, fold);
    let mut short = String::with_capacity(LENGTH);
    for _ in 0..LENGTH {
        short.push(char::from_digit((hash % 36) as u32, 36).unwrap_or('0'));
        hash /= 36;
    }
    *id = Value::from(short);
}
