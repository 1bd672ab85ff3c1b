//! Requests of `/v1/messages` and of `/v1/messages/count_tokens`.
//!
//! | theirs | in a chat |
//! |---|---|
//! | `system` | a first message of the system |
//! | a block `tool_result` | a message of the tool |
//! | a block `tool_use` | an entry of `tool_calls` |
//! | a block `thinking` | `reasoning_content` |
//! | `tool_choice` `any` | `required` |
//! | `thinking` | `enable_thinking`, a variable of chat templates |
//! | turns of the same role, one after another | one message |

use crate::json::Kind;
use crate::openai::common::{Common, Delivery, Notices};
use crate::openai::error::FieldError;
use crate::openai::fields::{Field, Fields, Range, Result};
use crate::openai::limits;
use crate::openai::request::ReasoningEffort;
use crate::openai::sampling::{Sampling, words};
use crate::openai::tools::{Tool, ToolChoice, check_type, tool_name};
use crate::openai::{ChatRequest, Constraint, Conversation};
use serde_json::{Map, Value, json};

/// A request, in the terms of a chat.
pub type MessagesRequest = ChatRequest;

/// Fields that are known and do nothing here, and why.
const NO_EFFECT: [(&str, &str); 5] = [
    ("metadata", "users are not watched"),
    ("service_tier", "there is one tier"),
    ("context_management", "conversations are not edited here"),
    ("inference_geo", "the model runs where this server runs"),
    ("cache_control", "prompts are found in the cache by what they say"),
];

/// Bytes of a tool's name, and tools of a request: more than OpenAI has.
const TOOL_NAME: usize = 128;
const TOOLS: usize = 512;

/// Reads the body of `/v1/messages`.
///
/// # Errors
/// [`FieldError`] names the field, and says what would be right.
pub fn parse(body: &[u8]) -> Result<MessagesRequest> {
    read(body, true)
}

/// Reads the body of `/v1/messages/count_tokens`, which has no `max_tokens`.
///
/// # Errors
/// As for [`parse`].
pub fn parse_count(body: &[u8]) -> Result<MessagesRequest> {
    read(body, false)
}

fn read(body: &[u8], generates: bool) -> Result<MessagesRequest> {
    let mut fields = Fields::of_body(body)?;
    let model = fields.require("model")?.string(limits::NAME_BYTES)?;
    let max_tokens = match generates {
        true => Some(fields.require("max_tokens")?.count(1..=u32::MAX)?),
        false => fields.opt("max_tokens", |f| f.count(1..=u32::MAX))?,
    };
    let mut messages = system(&mut fields)?;
    let field = fields.require("messages")?;
    field.bounded()?;
    let turns = field.elements(limits::MESSAGES)?;
    if turns.is_empty() {
        return Err(FieldError::empty_array(&field.path));
    }
    for turn in &turns {
        message(turn, &mut messages)?;
    }
    let tools = fields.opt("tools", |f| tools(&f))?.unwrap_or_default();
    let (tool_choice, parallel_tool_calls) = tool_choice(&mut fields, &tools)?;
    let mut notices = Notices::default();
    let chat_template_kwargs = thinking(&mut fields, &mut notices)?;
    let (reasoning_effort, constraint) = output(&mut fields)?;
    let sampling = Sampling { max_tokens, constraint, ..sampling(&mut fields)? };
    // A last turn of the assistant is the beginning of its answer.
    let continues = messages.last().is_some_and(|last| last["role"] == "assistant" && last.get("tool_calls").is_none());
    let delivery = Delivery { stream: fields.flag("stream", false)?, skip_special_tokens: true, ..Delivery::default() };
    for name in ["mcp_servers", "container"] {
        if let Some(found) = fields.take(name).filter(|field| field.raw != b"[]") {
            return Err(FieldError::refused(
                &found.path,
                "nothing is run for the model here; send its tools in 'tools'",
            ));
        }
    }
    for (name, field) in fields.rest() {
        match NO_EFFECT.iter().find(|(known, _)| *known == name) {
            Some((known, why)) => notices.without_effect.push((known, why)),
            None => notices.unknown.push(field.path),
        }
    }
    Ok(ChatRequest {
        common: Common { model: Some(model), sampling, delivery, notices, ..Common::default() },
        conversation: Conversation {
            messages,
            tools,
            add_generation_prompt: !continues,
            continue_final_message: continues,
            chat_template_kwargs,
            ..Conversation::default()
        },
        tool_choice,
        parallel_tool_calls,
        reasoning_effort,
        include_reasoning: true,
    })
}

fn sampling(fields: &mut Fields<'_>) -> Result<Sampling> {
    let share = Range(0.0, 1.0, false);
    Ok(Sampling {
        temperature: fields.opt("temperature", |f| f.decimal(Range(0.0, 1.0, true)))?,
        top_p: fields.opt("top_p", |f| f.decimal(share))?,
        top_k: fields.opt("top_k", |f| f.count(0..=u32::MAX))?,
        stop: fields.opt("stop_sequences", |f| words(&f, limits::STOPS))?.unwrap_or_default(),
        n: 1,
        best_of: 1,
        ..Sampling::default()
    })
}

/// Texts, as one text or as a list of blocks, joined.
fn texts(field: &Field<'_>) -> Result<String> {
    match field.kind()? {
        Kind::String => field.string(usize::MAX),
        Kind::Array => {
            let blocks = field.elements(limits::VALUES)?;
            let texts: Result<Vec<String>> = blocks
                .iter()
                .map(|block| {
                    let mut fields = block.object()?;
                    kind(&mut fields, &["text"])?;
                    fields.require("text")?.string(usize::MAX)
                })
                .collect();
            Ok(texts?.join("\n"))
        }
        _ => Err(field.wrong_type("one of a string or array of objects")),
    }
}

fn system(fields: &mut Fields<'_>) -> Result<Vec<Value>> {
    let text = fields.opt("system", |f| f.bounded().and_then(|()| texts(&f)))?.unwrap_or_default();
    Ok(if text.is_empty() { Vec::new() } else { vec![json!({"role": "system", "content": text})] })
}

/// The `type` of a block: one of these.
fn kind(fields: &mut Fields<'_>, known: &[&str]) -> Result<String> {
    let field = fields.require("type")?;
    let name = field.string(limits::NAME_BYTES)?;
    if matches!(name.as_str(), "image" | "document" | "search_result" | "container_upload") {
        return Err(FieldError::refused(&field.path, "the models served here read text"));
    }
    match known.contains(&name.as_str()) {
        true => Ok(name),
        false => Err(FieldError::unsupported_value(&field.path, &name, known)),
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Role {
    User,
    Assistant,
    System,
}

const ROLES: &[(&str, Role)] = &[("user", Role::User), ("assistant", Role::Assistant), ("system", Role::System)];

/// Appends the messages that one of theirs becomes.
fn message(field: &Field<'_>, out: &mut Vec<Value>) -> Result<()> {
    let mut fields = field.object()?;
    let role = fields.require("role")?.choice(ROLES)?;
    let content = fields.require("content")?;
    if content.kind()? == Kind::String || role == Role::System {
        let role = ROLES.iter().find(|(_, each)| *each == role).map_or("user", |(word, _)| word);
        add(json!({"role": role, "content": texts(&content)?}), out);
        return Ok(());
    }
    let blocks = content.elements(limits::VALUES)?;
    if role == Role::Assistant { said(&blocks, out) } else { asked(&blocks, out) }
}

/// A turn of the assistant: thoughts, text and calls.
fn said(blocks: &[Field<'_>], out: &mut Vec<Value>) -> Result<()> {
    let (mut text, mut thoughts, mut calls) = (Vec::new(), Vec::new(), Vec::new());
    for block in blocks {
        let mut fields = block.object()?;
        match kind(&mut fields, &["text", "thinking", "redacted_thinking", "tool_use"])?.as_str() {
            "text" => text.push(fields.require("text")?.string(usize::MAX)?),
            "thinking" => thoughts.push(fields.require("thinking")?.string(usize::MAX)?),
            "tool_use" => {
                let input = fields.require("input")?;
                if input.kind()? != Kind::Object {
                    return Err(input.wrong_type("an object"));
                }
                calls.push(json!({
                    "id": fields.require("id")?.string(limits::NAME_BYTES)?,
                    "type": "function",
                    "function": {
                        "name": fields.require("name")?.string(limits::NAME_BYTES)?,
                        "arguments": input.text()?,
                    },
                }));
            }
            // What is redacted says nothing to anybody here.
            _ => {}
        }
    }
    let mut message = json!({"role": "assistant", "content": text.join("\n")});
    if !thoughts.is_empty() {
        message["reasoning_content"] = Value::from(thoughts.join("\n"));
    }
    if !calls.is_empty() {
        message["tool_calls"] = Value::from(calls);
    }
    add(message, out);
    Ok(())
}

/// A turn of the user: results of calls, and text.
fn asked(blocks: &[Field<'_>], out: &mut Vec<Value>) -> Result<()> {
    let mut text = Vec::new();
    let results = out.len();
    for block in blocks {
        let mut fields = block.object()?;
        match kind(&mut fields, &["text", "tool_result"])?.as_str() {
            "text" => text.push(fields.require("text")?.string(usize::MAX)?),
            _ => {
                let id = fields.require("tool_use_id")?.string(limits::NAME_BYTES)?;
                let mut content = fields.opt("content", |f| texts(&f))?.unwrap_or_default();
                if fields.flag("is_error", false)? {
                    content = format!("Error: {content}");
                }
                out.push(json!({"role": "tool", "tool_call_id": id, "content": content}));
            }
        }
    }
    if !text.is_empty() || out.len() == results {
        add(json!({"role": "user", "content": text.join("\n")}), out);
    }
    Ok(())
}

/// Appends a message. One that goes on with what the message before it says becomes a part of that, as Anthropic has it:
/// many chat templates refuse a role that has two turns.
fn add(message: Value, out: &mut Vec<Value>) {
    match out.last_mut() {
        Some(before) if goes_on(before, &message) => join(before, message),
        _ => out.push(message),
    }
}

/// Is a message more of what the one before it says? Nothing is said after calls until their results are there.
fn goes_on(before: &Value, message: &Value) -> bool {
    let role = message["role"].as_str();
    matches!(role, Some("user" | "assistant")) && before["role"].as_str() == role && before.get("tool_calls").is_none()
}

fn join(before: &mut Value, mut message: Value) {
    for name in ["content", "reasoning_content"] {
        let more = message.get_mut(name).map(Value::take);
        let Some(Value::String(more)) = more.filter(|more| more != "") else { continue };
        match before.get_mut(name) {
            Some(Value::String(text)) if !text.is_empty() => {
                text.push('\n');
                text.push_str(&more);
            }
            _ => before[name] = Value::from(more),
        }
    }
    if let Some(calls) = message.get_mut("tool_calls").map(Value::take) {
        before["tool_calls"] = calls;
    }
}

fn tools(field: &Field<'_>) -> Result<Vec<Tool>> {
    field.bounded()?;
    let tools: Vec<Tool> = field.elements(TOOLS)?.iter().map(tool).collect::<Result<_>>()?;
    for (index, tool) in tools.iter().enumerate() {
        if tools[..index].iter().any(|other| other.name == tool.name) {
            let path = format!("{}[{index}].name", field.path);
            let message = format!("Invalid '{path}': two tools are called '{}'.", tool.name);
            return Err(FieldError::invalid(&path, message));
        }
    }
    Ok(tools)
}

fn tool(field: &Field<'_>) -> Result<Tool> {
    let mut fields = field.object()?;
    if let Some(kind) = fields.take("type")
        && kind.string(limits::NAME_BYTES)? != "custom"
    {
        return Err(FieldError::refused(&kind.path, "nothing is run for the model here; define a tool of your own"));
    }
    let name = tool_name(&fields.require("name")?, TOOL_NAME)?;
    match described(&name, &mut fields) {
        Ok((strict, definition)) => Ok(Tool { name, strict, definition }),
        Err(error) => Err(error.of_tool(&field.path, &name)),
    }
}

/// Is a tool strict, and its definition as OpenAI has it.
fn described(name: &str, fields: &mut Fields<'_>) -> Result<(bool, Value)> {
    let schema = fields.require("input_schema")?;
    if schema.kind()? != Kind::Object {
        return Err(schema.wrong_type("an object"));
    }
    let parameters = schema.unbounded_value()?;
    check_type(&schema.path, &parameters)?;
    let mut function = json!({"name": name, "parameters": parameters});
    if let Some(description) = fields.opt("description", |f| f.string(usize::MAX))? {
        function["description"] = Value::from(description);
    }
    Ok((fields.flag("strict", false)?, json!({"type": "function", "function": function})))
}

#[derive(Clone, Copy, PartialEq)]
enum Word {
    Auto,
    Any,
    Tool,
    None,
}

const CHOICES: &[(&str, Word)] =
    &[("auto", Word::Auto), ("any", Word::Any), ("tool", Word::Tool), ("none", Word::None)];

fn tool_choice(fields: &mut Fields<'_>, tools: &[Tool]) -> Result<(ToolChoice, bool)> {
    let Some(field) = fields.take("tool_choice") else {
        return Ok((if tools.is_empty() { ToolChoice::None } else { ToolChoice::Auto }, true));
    };
    let mut fields = field.object()?;
    let word = fields.require("type")?.choice(CHOICES)?;
    let parallel = !fields.flag("disable_parallel_tool_use", false)?;
    if tools.is_empty() && word != Word::None {
        let message = "Invalid 'tool_choice': it is only allowed when 'tools' are specified.";
        return Err(FieldError::invalid(&field.path, message));
    }
    let choice = match word {
        Word::Auto => ToolChoice::Auto,
        Word::Any => ToolChoice::Required,
        Word::None => ToolChoice::None,
        Word::Tool => {
            let name = fields.require("name")?;
            let wanted = name.string(TOOL_NAME)?;
            if !tools.iter().any(|tool| tool.name == wanted) {
                let message = format!("Invalid '{}': no tool in 'tools' is called '{wanted}'.", name.path);
                return Err(FieldError::invalid(&name.path, message));
            }
            ToolChoice::Named(wanted)
        }
    };
    Ok((choice, parallel))
}

const THINKING: &[(&str, Option<bool>)] = &[("enabled", Some(true)), ("disabled", Some(false)), ("adaptive", None)];

/// Chat templates of models that may think read `enable_thinking`; whether they do is theirs to say otherwise.
fn thinking(fields: &mut Fields<'_>, notices: &mut Notices) -> Result<Map<String, Value>> {
    let mut variables = Map::new();
    if let Some(field) = fields.take("thinking") {
        let mut fields = field.object()?;
        if let Some(enabled) = fields.require("type")?.choice(THINKING)? {
            variables.insert("enable_thinking".to_owned(), enabled.into());
        }
        if fields.opt("budget_tokens", |f| f.count(1024..=u32::MAX))?.is_some() {
            notices.without_effect.push(("thinking.budget_tokens", "thoughts have no budget but max_tokens"));
        }
    }
    Ok(variables)
}

const EFFORTS: &[(&str, ReasoningEffort)] = &[
    ("low", ReasoningEffort::Low),
    ("medium", ReasoningEffort::Medium),
    ("high", ReasoningEffort::High),
    ("xhigh", ReasoningEffort::Xhigh),
    ("max", ReasoningEffort::Max),
];

/// `output_config`, and `output_format`, which was its name for the format.
fn output(fields: &mut Fields<'_>) -> Result<(Option<ReasoningEffort>, Option<Constraint>)> {
    let old = fields.opt("output_format", |f| format(&f, "output_format"))?;
    let Some(field) = fields.take("output_config") else { return Ok((None, old)) };
    let mut fields = field.object()?;
    let effort = fields.opt("effort", |f| f.choice(EFFORTS))?;
    Ok((effort, fields.opt("format", |f| format(&f, "output_config.format"))?.or(old)))
}

/// Errors call it `name`.
fn format(field: &Field<'_>, name: &'static str) -> Result<Constraint> {
    field.bounded()?;
    let mut fields = field.object()?;
    fields.require("type")?.choice(&[("json_schema", ())])?;
    let schema = fields.require("schema")?;
    if schema.kind()? != Kind::Object {
        return Err(schema.wrong_type("an object"));
    }
    Ok(Constraint::JsonSchema { schema: schema.unbounded_value()?, field: name })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What becomes of turns.
    fn chat(turns: Value) -> Vec<Value> {
        let body = json!({"model": "m", "max_tokens": 1, "messages": turns});
        parse(body.to_string().as_bytes()).unwrap().conversation.messages
    }

    fn said(role: &str, content: &str) -> Value {
        json!({"role": role, "content": content})
    }

    #[test]
    fn turns_of_one_role_are_one_message() {
        let (user, assistant) = (|text: &str| said("user", text), |text: &str| said("assistant", text));
        let blocks = json!({"role": "user", "content": [{"type": "text", "text": "b"}, {"type": "text", "text": "c"}]});
        let turns =
            json!([user("a"), blocks, user(""), assistant("x"), assistant("y"), user(""), user("d"), user("e")]);
        assert_eq!(chat(turns), [user("a\nb\nc"), assistant("x\ny"), user("d\ne")]);
        let apart = [user("a"), said("system", "s"), said("system", "t"), user("b")];
        assert_eq!(chat(json!(apart)), apart);
    }

    #[test]
    fn what_is_said_before_calls_is_said_with_them() {
        let call = json!({"type": "tool_use", "id": "c", "name": "f", "input": {}});
        let thought = json!({"type": "thinking", "thinking": "t", "signature": ""});
        let blocks = json!([thought, {"type": "text", "text": "y"}, call]);
        let result = json!({"type": "tool_result", "tool_use_id": "c", "content": "5"});
        let turns = json!([
            said("user", "a"),
            said("assistant", "x"),
            {"role": "assistant", "content": blocks},
            {"role": "user", "content": [result, {"type": "text", "text": "b"}]},
            said("user", "c"),
        ]);
        let calls = json!([{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}]);
        let calling = json!({"role": "assistant", "content": "x\ny", "reasoning_content": "t", "tool_calls": calls});
        let result = json!({"role": "tool", "tool_call_id": "c", "content": "5"});
        assert_eq!(chat(turns), [said("user", "a"), calling, result, said("user", "b\nc")]);
        let turns = json!([said("user", "a"), {"role": "assistant", "content": [call]}, said("assistant", "z")]);
        let messages = chat(turns);
        assert_eq!((messages.len(), &messages[2]), (3, &said("assistant", "z")));
    }
}
