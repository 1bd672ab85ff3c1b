//! What generated text must be like: `response_format`, OpenAI's way of saying it, and `structured_outputs`, vLLM's.
//! Whether a schema, an expression or a grammar can be followed is not decided here: whoever compiles it knows.

use super::common::Notices;
use super::error::FieldError;
use super::fields::{Field, Fields, Result};
use super::limits;
use crate::json::Kind;
use serde_json::Value;

/// What the text must be like.
#[derive(Clone, Debug, PartialEq)]
pub enum Constraint {
    /// Any JSON object.
    JsonObject,
    /// JSON that a schema describes.
    JsonSchema {
        /// The schema.
        schema: Value,
        /// The field that it came in.
        field: &'static str,
    },
    /// Text that a regular expression matches.
    Regex(String),
    /// One of these texts.
    Choice(Vec<String>),
    /// Text of a context-free grammar.
    Grammar(String),
}

pub(super) fn take(fields: &mut Fields<'_>, notices: &mut Notices) -> Result<Option<Constraint>> {
    let format = fields.opt("response_format", |f| response_format(&f, notices))?.flatten();
    let vllm = fields.opt("structured_outputs", |f| structured_outputs(&f, notices))?.flatten();
    if format.is_some() && vllm.is_some() {
        let message = "Invalid 'structured_outputs': it cannot be combined with 'response_format'; send one of them.";
        return Err(FieldError::invalid("structured_outputs", message));
    }
    Ok(format.or(vllm))
}

fn bounded(field: &Field<'_>) -> Result<()> {
    match field.raw.len() {
        length if length > limits::CONSTRAINT_BYTES => {
            let message = format!(
                "Invalid '{}': {length} bytes of JSON. At most {} are allowed.",
                field.path,
                limits::CONSTRAINT_BYTES
            );
            Err(FieldError::invalid(&field.path, message))
        }
        _ => field.bounded(),
    }
}

#[derive(Clone, Copy)]
enum Format {
    Text,
    JsonObject,
    JsonSchema,
    StructuralTag,
}

const FORMATS: &[(&str, Format)] = &[
    ("text", Format::Text),
    ("json_object", Format::JsonObject),
    ("json_schema", Format::JsonSchema),
    ("structural_tag", Format::StructuralTag),
];

const NO_STRUCTURAL_TAGS: &str = "structural tags are not implemented; use json_schema, or a grammar";

fn response_format(field: &Field<'_>, notices: &mut Notices) -> Result<Option<Constraint>> {
    bounded(field)?;
    let mut fields = field.object()?;
    let kind = fields.require("type")?;
    let constraint = match kind.choice(FORMATS)? {
        Format::Text => None,
        Format::JsonObject => Some(Constraint::JsonObject),
        Format::JsonSchema => Some(json_schema(&fields.require("json_schema")?, notices)?),
        Format::StructuralTag => return Err(FieldError::refused(&kind.path, NO_STRUCTURAL_TAGS)),
    };
    notices.unknown(fields);
    Ok(constraint)
}

fn json_schema(field: &Field<'_>, notices: &mut Notices) -> Result<Constraint> {
    let mut fields = field.object()?;
    // Answers keep to a schema whatever it is called and is for, and to the letter in any case.
    fields.require("name")?.string(limits::NAME_BYTES)?;
    fields.opt("description", |f| f.string(limits::CONSTRAINT_BYTES))?;
    fields.flag("strict", false)?;
    let schema = schema(&fields.require("schema")?)?;
    notices.unknown(fields);
    Ok(Constraint::JsonSchema { schema, field: "response_format" })
}

fn schema(field: &Field<'_>) -> Result<Value> {
    match field.kind()? {
        Kind::Object => field.unbounded_value(),
        _ => Err(field.wrong_type("an object")),
    }
}

fn structured_outputs(field: &Field<'_>, notices: &mut Notices) -> Result<Option<Constraint>> {
    bounded(field)?;
    let mut fields = field.object()?;
    let text = |f: Field<'_>| f.string(limits::CONSTRAINT_BYTES);
    let any_object = fields.opt("json_object", |f| f.boolean())?;
    let mut found = vec![
        fields.opt("json", |f| json(&f))?,
        fields.opt("regex", text)?.map(Constraint::Regex),
        fields.opt("choice", |f| choice(&f))?.map(Constraint::Choice),
        fields.opt("grammar", text)?.map(Constraint::Grammar),
        any_object.and_then(|wanted| wanted.then_some(Constraint::JsonObject)),
    ];
    if let Some(tag) = fields.take("structural_tag") {
        return Err(FieldError::refused(&tag.path, NO_STRUCTURAL_TAGS));
    }
    for name in ["disable_any_whitespace", "disable_additional_properties"] {
        if fields.flag(name, false)? {
            let path = fields.path(name);
            return Err(FieldError::refused(&path, "say it in the schema or the grammar"));
        }
    }
    if let Some(pattern) = fields.take("whitespace_pattern") {
        return Err(FieldError::refused(&pattern.path, "say it in a grammar"));
    }
    notices.unknown(fields);
    found.retain(Option::is_some);
    match found.len() {
        1 => Ok(found.remove(0)),
        0 if any_object.is_some() => Ok(None),
        count => {
            let path = &field.path;
            let message = format!(
                "Invalid '{path}': expected exactly one of 'json', 'regex', 'choice', 'grammar' and 'json_object', but \
                 got {count}."
            );
            Err(FieldError::invalid(path, message))
        }
    }
}

/// A schema, as an object or as the text of one.
fn json(field: &Field<'_>) -> Result<Constraint> {
    let schema = match field.kind()? {
        Kind::Object => field.unbounded_value()?,
        Kind::String => {
            let text = field.string(limits::CONSTRAINT_BYTES)?;
            // The text of a text has been neither counted nor measured for depth.
            let inner = Field { path: field.path.clone(), raw: text.trim().as_bytes() };
            match inner.value()? {
                Value::Object(schema) => Value::Object(schema),
                _ => return Err(field.wrong_type("a string that holds a JSON object")),
            }
        }
        _ => return Err(field.wrong_type("one of an object or a string")),
    };
    Ok(Constraint::JsonSchema { schema, field: "structured_outputs" })
}

fn choice(field: &Field<'_>) -> Result<Vec<String>> {
    let texts = field.strings(limits::ENTRIES, limits::CONSTRAINT_BYTES)?;
    if texts.is_empty() { Err(FieldError::empty_array(&field.path)) } else { Ok(texts) }
}
