//! The messages of a conversation: checked here, kept as JSON for the chat template, which alone knows what to make of
//! them. The order of roles is the template's business too.

use super::error::FieldError;
use super::fields::{Field, Fields, Result, shorten};
use super::{limits, tools};
use crate::json::Kind;
use serde_json::Value;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    Instructions,
    User,
    Assistant,
    Tool,
    Function,
    /// One that only the chat template knows: Granite's `control`, Llama's `ipython`.
    Other,
}

const ROLES: &[(&str, Role)] = &[
    ("system", Role::Instructions),
    ("developer", Role::Instructions),
    ("user", Role::User),
    ("assistant", Role::Assistant),
    ("tool", Role::Tool),
    ("function", Role::Function),
];

#[derive(Clone, Copy)]
enum Part {
    Text,
    Refusal,
}

const PARTS: &[(&str, Part)] = &[("text", Part::Text), ("refusal", Part::Refusal)];

/// Parts of a message that are known and not served.
const MEDIA: &[&str] = &["image_url", "input_image", "image", "input_audio", "audio_url", "video_url", "file"];

/// Reads `messages`. Keys of a message that are `null` are left out, but for `content`, which templates ask about.
pub(super) fn take(fields: &mut Fields<'_>) -> Result<Vec<Value>> {
    let field = fields.require("messages")?;
    let elements = field.elements(limits::MESSAGES)?;
    if elements.is_empty() {
        return Err(FieldError::empty_array(&field.path));
    }
    field.bounded()?;
    elements.iter().map(message).collect()
}

fn message(field: &Field<'_>) -> Result<Value> {
    let mut fields = field.object()?;
    let role = read_role(&fields.require("role")?)?;
    let text = |f: Field<'_>| f.string(usize::MAX).map(drop);
    for (name, instead) in [("audio", "it reads and writes text"), ("function_call", "send 'tool_calls'")] {
        if let Some(found) = fields.take(name) {
            return Err(FieldError::refused(&found.path, instead));
        }
    }
    for name in ["name", "refusal", "reasoning", "reasoning_content"] {
        fields.opt(name, text)?;
    }
    match fields.take("tool_call_id") {
        Some(id) => text(id)?,
        None if role == Role::Tool => return Err(FieldError::missing(&fields.path("tool_call_id"))),
        None => {}
    }
    if let Some(calls) = fields.take("tool_calls") {
        if role != Role::Assistant {
            let message = format!("Invalid '{}': only messages of the assistant call tools.", calls.path);
            return Err(FieldError::invalid(&calls.path, message));
        }
        tools::check_calls(&calls)?;
    }
    match fields.take("content") {
        Some(content) => check_content(&content, role)?,
        // A message of the assistant may be calls alone, and a function may return nothing.
        None if matches!(role, Role::Assistant | Role::Function) => {}
        None => return Err(FieldError::missing(&fields.path("content"))),
    }
    let mut value = field.unbounded_value()?;
    if let Value::Object(message) = &mut value {
        message.retain(|key, value| key == "content" || !value.is_null());
    }
    Ok(value)
}

fn read_role(field: &Field<'_>) -> Result<Role> {
    let name = field.string(usize::MAX)?;
    if let Some((_, role)) = ROLES.iter().find(|(known, _)| *known == name) {
        return Ok(*role);
    }
    let is_plain = name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | ' '));
    if is_plain && name.trim() == name && (1..=limits::ROLE).contains(&name.len()) {
        return Ok(Role::Other);
    }
    let message = format!(
        "Invalid '{}': expected 1 to {} letters, digits, '_', '-' and spaces, but got '{}' instead.",
        field.path,
        limits::ROLE,
        shorten(&name)
    );
    Err(FieldError::invalid(&field.path, message))
}

fn check_content(field: &Field<'_>, role: Role) -> Result<()> {
    match field.kind()? {
        Kind::String => field.string(usize::MAX).map(drop),
        Kind::Array => field.elements(limits::VALUES)?.iter().try_for_each(|part| check_part(part, role)),
        _ => Err(field.wrong_type("one of a string or array of objects")),
    }
}

fn check_part(field: &Field<'_>, role: Role) -> Result<()> {
    let mut fields = field.object()?;
    let kind = fields.require("type")?;
    let name = kind.string(usize::MAX)?;
    if MEDIA.contains(&name.as_str()) {
        return Err(FieldError::refused(&format!("{}.{name}", field.path), "the models served here read text"));
    }
    let name = match kind.choice(PARTS)? {
        Part::Text => "text",
        Part::Refusal if role == Role::Assistant => "refusal",
        Part::Refusal => {
            let message = format!("Invalid '{}': only the assistant refuses.", kind.path);
            return Err(FieldError::invalid(&kind.path, message));
        }
    };
    fields.require(name)?.string(usize::MAX).map(drop)
}
