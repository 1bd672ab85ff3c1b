//! An environment in which minijinja behaves as the Jinja of `transformers` does: its settings, its extra functions, and
//! the methods of Python strings that chat templates call. Which template, with what, is [`super::ChatTemplates`]' to say.

use super::{keep, rewrite, values};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Rest, StringInput, Tuple, ValueKind};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, State, UndefinedBehavior, Value};
use minijinja_contrib::pycompat;
use std::fmt;

/// Frames (loops, scopes, four for a macro) inside each other, at most; minijinja's own limit is 500.
const MAX_RECURSION: usize = 250;

/// What `raise_exception` was given: the template refuses the messages, and says why.
#[derive(Debug)]
pub(super) struct Raised(pub(super) String);

impl fmt::Display for Raised {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Raised {}

/// An environment without templates.
///
/// # Errors
/// Never, as long as minijinja takes the syntax settings.
pub(super) fn environment() -> Result<Environment<'static>, Error> {
    let mut environment = Environment::new();
    environment.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
    environment.set_undefined_behavior(UndefinedBehavior::Lenient);
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.set_recursion_limit(MAX_RECURSION);
    environment.set_unknown_method_callback(method);
    environment.set_formatter(|out, state, value| match value.as_str() {
        Some(text) => out.write_str(text).map_err(Error::from),
        None => out.write_str(&values::text(state, value)?).map_err(Error::from),
    });
    environment.add_filter("tojson", values::tojson);
    environment.add_filter("string", values::text);
    environment.add_filter("trim", trim);
    environment.add_filter("indent", indent);
    environment.add_filter("e", escape);
    environment.add_filter("escape", escape);
    environment.add_filter(rewrite::KEEP, keep::keep);
    environment.add_filter(rewrite::KEEP_ATTRIBUTE, keep::keep_attribute);
    environment.add_test("sequence", |value: &Value| {
        matches!(
            value.kind(),
            ValueKind::Seq | ValueKind::Map | ValueKind::String | ValueKind::Iterable | ValueKind::Undefined
        )
    });
    environment.add_test("iterable", |value: &Value| !value.is_none() && value.try_iter().is_ok());
    environment.add_test("callable", |value: &Value| value.kind() == ValueKind::Plain);
    environment.add_function("raise_exception", |message: &Value| -> Result<Value, Error> {
        let raised = Raised(message.to_string());
        Err(Error::new(ErrorKind::InvalidOperation, "raise_exception").with_source(raised))
    });
    // Jinja has none of these; `zip` would nest values without a bracket.
    for filter in ["bool", "chain", "lines", "split", "zip"] {
        environment.remove_filter(filter);
    }
    environment.remove_global("debug");
    Ok(environment)
}

/// White space as Python's `str.isspace` has it.
fn is_space(character: char) -> bool {
    character.is_whitespace() || matches!(character, '\u{1c}'..='\u{1f}')
}

/// Do lines end with it? As in Python's `str.splitlines`.
fn ends_line(character: char) -> bool {
    matches!(character, '\n' | '\r' | '\u{b}' | '\u{c}' | '\u{1c}'..='\u{1e}' | '\u{85}' | '\u{2028}' | '\u{2029}')
}

fn trim(value: StringInput<'_>, characters: Option<&str>) -> String {
    stripped(value.as_str(), characters, (true, true)).to_owned()
}

/// As Jinja has it: lines end where Python says, and a last empty line counts.
fn indent(state: &State<'_, '_>, value: StringInput<'_>, args: Rest<Value>, kwargs: Kwargs) -> Result<String, Error> {
    let given = |index: usize, name: &str| -> Result<Option<Value>, Error> {
        Ok(kwargs.get::<Option<Value>>(name)?.or_else(|| args.get(index).cloned()))
    };
    let (width, first, blank) = (given(0, "width")?, given(1, "first")?, given(2, "blank")?);
    kwargs.assert_all_used()?;
    let truth = |value: Option<Value>| value.is_some_and(|value| value.is_true());
    let (first, blank) = (truth(first), truth(blank));
    let by = match width {
        None => " ".repeat(4),
        Some(width) => match width.as_str() {
            Some(text) => text.to_owned(),
            None => " ".repeat(i64::try_from(width)?.clamp(0, 256) as usize),
        },
    };
    let text = format!("{}\n", value.as_str());
    let mut out = String::new();
    for (index, line) in lines(&text).into_iter().map(|(line, _)| line).enumerate() {
        state.consume_fuel(1 + by.len() as u64 / 64)?;
        out.push_str(if index > 0 { "\n" } else { "" });
        out.push_str(if (index == 0 && first) || (index > 0 && (blank || !line.is_empty())) { &by } else { "" });
        out.push_str(line);
    }
    Ok(out)
}

/// The five characters as Jinja escapes them; what is marked safe stays.
fn escape(value: &Value) -> Value {
    if value.is_safe() {
        return value.clone();
    }
    let mut out = String::new();
    for character in value.to_string().chars() {
        match character {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '\'' => out.push_str("&#39;"),
            '"' => out.push_str("&#34;"),
            other => out.push(other),
        }
    }
    Value::from_safe_string(out)
}

fn stripped<'a>(text: &'a str, characters: Option<&str>, (start, end): (bool, bool)) -> &'a str {
    let unwanted = |c: char| characters.map_or_else(|| is_space(c), |characters| characters.contains(c));
    let text = if start { text.trim_start_matches(unwanted) } else { text };
    if end { text.trim_end_matches(unwanted) } else { text }
}

/// Python's methods: those of strings that the crate for them lacks or has differently, then the crate's.
fn method(state: &mut State<'_, '_>, value: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    let text = |index: usize| args.get(index).and_then(Value::as_str);
    let Some(this) = value.as_str() else { return pycompat::unknown_method_callback(state, value, name, args) };
    let result = match (name, args.len()) {
        ("strip", 0 | 1) => Value::from(stripped(this, text(0), (true, true))),
        ("lstrip", 0 | 1) => Value::from(stripped(this, text(0), (true, false))),
        ("rstrip", 0 | 1) => Value::from(stripped(this, text(0), (false, true))),
        ("split" | "rsplit", 0..=2) if args.first().is_none_or(|first| !first.is_kwargs()) => {
            split(this, text(0), args.get(1), name == "rsplit")?
        }
        ("splitlines", 0 | 1) => split_lines(this, args.first().is_some_and(Value::is_true)),
        ("removeprefix", 1) => Value::from(this.strip_prefix(text(0).unwrap_or_default()).unwrap_or(this)),
        ("removesuffix", 1) => Value::from(this.strip_suffix(text(0).unwrap_or_default()).unwrap_or(this)),
        ("partition" | "rpartition", 1) => partition(this, text(0).unwrap_or_default(), name == "rpartition"),
        ("format", _) => {
            pay_for_format(state, this, args)?;
            return pycompat::unknown_method_callback(state, value, name, args);
        }
        _ => return pycompat::unknown_method_callback(state, value, name, args),
    };
    Ok(result)
}

/// The crate's `str.format` makes its text first and pays then; here it is paid for before. Widths are not taken: one
/// number would make gigabytes, and no chat template has one.
fn pay_for_format(state: &State<'_, '_>, format: &str, args: &[Value]) -> Result<(), Error> {
    let (mut fields, mut inside, mut digits) = (0, false, 0);
    for character in format.chars() {
        digits = if inside && character.is_ascii_digit() { digits + 1 } else { 0 };
        match character {
            '{' => (inside, fields) = (true, fields + 1),
            '}' => inside = false,
            _ => {}
        }
        if digits > 3 {
            return Err(Error::new(ErrorKind::InvalidOperation, "a width in str.format has more than three digits"));
        }
    }
    let mut longest = 1000;
    let named = args.last().filter(|last| last.is_kwargs());
    for value in args.iter().filter(|value| !value.is_kwargs()) {
        longest = longest.max(values::text(state, value)?.len());
    }
    if let Some(named) = named {
        for name in named.try_iter()?.checked() {
            longest = longest.max(values::text(state, &named.get_item(&name?)?)?.len());
        }
    }
    state.consume_fuel((longest as u64).saturating_mul(fields) / 64)
}

/// `str.split` and, from the end, `str.rsplit`: at most `count` times; without a separator at runs of white space.
fn split(text: &str, separator: Option<&str>, count: Option<&Value>, from_end: bool) -> Result<Value, Error> {
    let count = count.map(|count| i64::try_from(count.clone())).transpose()?.unwrap_or(-1);
    let count = usize::try_from(count).unwrap_or(usize::MAX);
    let pieces: Vec<&str> = match separator {
        Some("") => return Err(Error::new(ErrorKind::InvalidOperation, "empty separator")),
        Some(separator) if from_end => {
            let mut pieces: Vec<&str> = text.rsplitn(count.saturating_add(1), separator).collect();
            pieces.reverse();
            pieces
        }
        Some(separator) => text.splitn(count.saturating_add(1), separator).collect(),
        None => split_space(text, count, from_end),
    };
    Ok(pieces.into_iter().map(Value::from).collect())
}

fn split_space(text: &str, count: usize, from_end: bool) -> Vec<&str> {
    let mut pieces = Vec::new();
    let mut rest = stripped(text, None, (!from_end, from_end));
    while !rest.is_empty() {
        let place = if from_end { rest.rfind(is_space) } else { rest.find(is_space) };
        let Some(place) = place.filter(|_| pieces.len() < count) else { break };
        let after = place + rest[place..].chars().next().map_or(0, char::len_utf8);
        let (piece, left) = if from_end { (&rest[after..], &rest[..place]) } else { (&rest[..place], &rest[after..]) };
        pieces.push(piece);
        rest = stripped(left, None, (!from_end, from_end));
    }
    if !rest.is_empty() {
        pieces.push(stripped(rest, None, (from_end, !from_end && pieces.len() < count)));
    }
    if from_end {
        pieces.reverse();
    }
    pieces
}

fn split_lines(text: &str, keep_ends: bool) -> Value {
    lines(text).into_iter().map(|(line, whole)| Value::from(if keep_ends { whole } else { line })).collect()
}

/// The lines of a text, without and with their ends.
fn lines(text: &str) -> Vec<(&str, &str)> {
    let mut lines = Vec::new();
    let mut rest = text;
    while let Some(place) = rest.find(ends_line) {
        let end = match &rest[place..] {
            after if after.starts_with("\r\n") => place + 2,
            after => place + after.chars().next().map_or(0, char::len_utf8),
        };
        lines.push((&rest[..place], &rest[..end]));
        rest = &rest[end..];
    }
    if !rest.is_empty() {
        lines.push((rest, rest));
    }
    lines
}

fn partition(text: &str, separator: &str, from_end: bool) -> Value {
    let found = if from_end { text.rsplit_once(separator) } else { text.split_once(separator) };
    let parts = match found {
        Some((before, after)) => [before, separator, after],
        None if from_end => ["", "", text],
        None => [text, "", ""],
    };
    Value::from(Tuple::from(parts.map(Value::from)))
}
