//! Tools that a model may call, and which of them it must. How a model is told of them, and how its calls are found in
//! what it says, is not here.

use super::error::FieldError;
use super::fields::{Field, Fields, Result, shorten};
use super::limits;
use crate::json::Kind;
use serde_json::Value;
use std::collections::HashSet;

/// A function that the model may call.
#[derive(Clone, Debug, PartialEq)]
pub struct Tool {
    /// Its name: letters, digits, `_` and `-`.
    pub name: String,
    /// Arguments must follow the schema to the letter.
    pub strict: bool,
    /// The definition as it was sent, for the chat template: `{"type": "function", "function": {...}}`.
    pub definition: Value,
}

impl Tool {
    /// The schema of its arguments.
    pub fn parameters(&self) -> Option<&Value> {
        self.definition.get("function")?.get("parameters").filter(|schema| !schema.is_null())
    }

    /// What it does, in words.
    pub fn description(&self) -> Option<&str> {
        self.definition.get("function")?.get("description")?.as_str()
    }
}

/// Which tools the model may or must call.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ToolChoice {
    /// None.
    None,
    /// Those that it likes.
    #[default]
    Auto,
    /// At least one.
    Required,
    /// This one.
    Named(String),
}

const FUNCTION: &[(&str, ())] = &[("function", ())];

pub(super) fn take(fields: &mut Fields<'_>) -> Result<Vec<Tool>> {
    let Some(field) = fields.take("tools") else { return Ok(Vec::new()) };
    field.bounded()?;
    let tools: Vec<Tool> = field.elements(limits::TOOLS)?.iter().map(tool).collect::<Result<_>>()?;
    let mut names = HashSet::new();
    match tools.iter().position(|tool| !names.insert(tool.name.as_str())) {
        None => Ok(tools),
        Some(index) => {
            let path = format!("{}[{index}].function.name", field.path);
            let message = format!("Invalid '{path}': two tools are called '{}'.", tools[index].name);
            Err(FieldError::invalid(&path, message))
        }
    }
}

fn tool(field: &Field<'_>) -> Result<Tool> {
    let mut fields = field.object()?;
    fields.require("type")?.choice(FUNCTION)?;
    let mut function = fields.require("function")?.object()?;
    let name = tool_name(&function.require("name")?, limits::TOOL_NAME)?;
    match described(field, &mut function) {
        Ok((strict, definition)) => Ok(Tool { name, strict, definition }),
        Err(error) => Err(error.of_tool(&field.path, &name)),
    }
}

/// Is a tool strict, and its definition.
fn described(field: &Field<'_>, function: &mut Fields<'_>) -> Result<(bool, Value)> {
    function.opt("description", |f| f.string(usize::MAX))?;
    let definition = field.unbounded_value()?;
    if let Some(schema) = function.take("parameters") {
        if schema.kind()? != Kind::Object {
            return Err(schema.wrong_type("an object"));
        }
        check_type(&schema.path, &definition["function"]["parameters"])?;
    }
    Ok((function.flag("strict", false)?, definition))
}

/// The schema of arguments may leave open of which type they are, and may not say that they are no object.
pub(crate) fn check_type(path: &str, schema: &Value) -> Result<()> {
    let Some(stated) = schema.get("type") else { return Ok(()) };
    let fits = match stated {
        Value::Array(types) => types.iter().any(|each| each == "object"),
        each => each == "object",
    };
    if fits {
        return Ok(());
    }
    let (path, got) = (format!("{path}.type"), stated.to_string());
    let message = format!(
        "Invalid '{path}': the arguments of a call are an object. Expected \"object\", but got {} instead.",
        shorten(&got)
    );
    Err(FieldError::invalid(&path, message))
}

pub(crate) fn tool_name(field: &Field<'_>, most: usize) -> Result<String> {
    let name = field.string(most)?;
    let fits = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b'-';
    if name.is_empty() || !name.bytes().all(fits) {
        let message = format!(
            "Invalid '{}': string does not match pattern. Expected a string that matches the pattern \
             '^[a-zA-Z0-9_-]+$'.",
            field.path
        );
        return Err(FieldError::invalid(&field.path, message));
    }
    Ok(name)
}

const CHOICES: &[(&str, Word)] = &[("none", Word::None), ("auto", Word::Auto), ("required", Word::Required)];

#[derive(Clone, Copy)]
enum Word {
    None,
    Auto,
    Required,
}

/// `tool_choice`, checked against the tools there are.
pub(super) fn take_choice(fields: &mut Fields<'_>, tools: &[Tool]) -> Result<ToolChoice> {
    let Some(field) = fields.take("tool_choice") else {
        return Ok(if tools.is_empty() { ToolChoice::None } else { ToolChoice::Auto });
    };
    let choice = match field.kind()? {
        Kind::String => match field.choice(CHOICES)? {
            Word::None => ToolChoice::None,
            Word::Auto => ToolChoice::Auto,
            Word::Required => ToolChoice::Required,
        },
        Kind::Object => {
            let mut fields = field.object()?;
            fields.require("type")?.choice(FUNCTION)?;
            let name = fields.require("function")?.object()?.require("name")?;
            let wanted = name.string(limits::TOOL_NAME)?;
            if !tools.iter().any(|tool| tool.name == wanted) {
                let message = format!("Invalid '{}': no tool in 'tools' is called '{wanted}'.", name.path);
                return Err(FieldError::invalid(&name.path, message));
            }
            ToolChoice::Named(wanted)
        }
        _ => return Err(field.wrong_type("one of a string or an object")),
    };
    if tools.is_empty() && choice != ToolChoice::None {
        let message = "Invalid 'tool_choice': it is only allowed when 'tools' are specified.";
        return Err(FieldError::invalid(&field.path, message));
    }
    Ok(choice)
}

/// Calls that an assistant's message reports.
pub(super) fn check_calls(field: &Field<'_>) -> Result<()> {
    for call in field.elements(limits::CALLS)? {
        let mut fields = call.object()?;
        fields.require("id")?.string(limits::NAME_BYTES)?;
        fields.opt("type", |f| f.choice(FUNCTION))?;
        let mut function = fields.require("function")?.object()?;
        let name = function.require("name")?;
        // A model's own call goes back to it as it was, even if it had made up the name.
        if name.string(limits::NAME_BYTES)?.is_empty() {
            return Err(FieldError::invalid(&name.path, format!("Invalid '{}': empty string.", name.path)));
        }
        function.require("arguments")?.string(usize::MAX)?;
    }
    Ok(())
}
