//! Tools: what of them a model is told, what its answer must be where it has to call one, and how calls are named.

use super::Refusal;
use super::ask::Telling;
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
    let reading = Reading { thoughts, tools: (!tools.is_empty()).then_some(names), single };
    let form = match &request.tool_choice {
        _ if tools.is_empty() => form,
        ToolChoice::None => form,
        ToolChoice::Auto => free(tools, language, form)?,
        choice @ (ToolChoice::Required | ToolChoice::Named(_)) => {
            if let Some((_, field)) = form {
                let message = format!("Invalid '{field}': the answer has to call a tool, so that it cannot be text as well.");
                return Err(FieldError::invalid(field, message).into());
            }
            let wanted = |tool: &&Tool| !matches!(choice, ToolChoice::Named(name) if *name != tool.name);
            let callable: Vec<_> = tools.iter().filter(wanted).map(with_schema).collect();
            Some((language.format().calls(&callable, !single), "tools"))
        }
    };
    let after = |(form, field)| (language.format().after_thoughts(form, thoughts), field);
    Ok((reading, form.map(after)))
}

/// The tools that the model is told of.
pub fn offered(request: &ChatRequest) -> &[Tool] {
    match request.tool_choice {
        ToolChoice::None => &[],
        _ => &request.conversation.tools,
    }
}

/// The model calls what it likes, and says what it likes: calls of strict tools follow their schemas all the same.
fn free(tools: &[Tool], language: &Language, form: Kept) -> Result<Kept, Refusal> {
    let format = language.format();
    if !format.finds_calls() {
        let why = "this model's chat template does not say how it calls tools; force a call with tool_choice, or set \
                   --tool-call-parser";
        return Err(FieldError::refused("tools", why).into());
    }
    let strict = tools.iter().any(|tool| tool.strict);
    let callable = |tool| if strict { strictly(tool) } else { with_schema(tool) };
    let callable: Vec<_> = tools.iter().map(callable).collect();
    Ok(match form {
        Some((form, field)) => Some((format.calls_or(&callable, &form), field)),
        None if strict => match format.text_with_calls(&callable) {
            Some(form) => Some((form, "tools")),
            None => {
                let why = "calls of this model's format are followed to the letter only where tool_choice is 'required'";
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

/// Messages as chat templates expect them: arguments of calls are objects, where the API has their text, and content is
/// text, where a template takes no list of parts.
pub fn for_template(messages: &[Value], takes_parts: bool) -> Vec<Value> {
    let mut messages = messages.to_vec();
    for message in &mut messages {
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
