//! Values as Python writes them: `json.dumps`, `str` and `repr`, for what templates print. It is paid for with fuel while it
//! is done, not afterwards: a list may hold another many times over, so that what is written is far larger than what is in
//! memory.

use minijinja::value::{Kwargs, Rest, ValueKind};
use minijinja::{Error, ErrorKind, State, Value};

/// Containers inside each other, at most. JSON from requests is at most 128 deep.
pub(super) const MAX_DEPTH: usize = 192;
/// Bytes written per unit of fuel.
const BYTES_PER_FUEL: usize = 16;

pub(super) fn invalid(what: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, what.into())
}

/// How `json.dumps` is asked to write.
struct Style {
    ascii: bool,
    /// What one level is indented by; none is one line.
    indent: Option<String>,
    item: String,
    key: String,
    sort: bool,
}

struct Writer<'a, 'b, 'c> {
    state: &'a State<'b, 'c>,
    out: String,
    paid: usize,
}

impl Writer<'_, '_, '_> {
    /// Pays for a value, and for what was written since the last one.
    fn pay(&mut self) -> Result<(), Error> {
        let fuel = (self.out.len() - self.paid) / BYTES_PER_FUEL;
        self.paid += fuel * BYTES_PER_FUEL;
        self.state.consume_fuel(fuel as u64 + 1)
    }

    fn line(&mut self, style: &Style, depth: usize) {
        if let Some(indent) = &style.indent {
            self.out.push('\n');
            self.out.extend(std::iter::repeat_n(indent.as_str(), depth));
        }
    }

    fn json(&mut self, value: &Value, style: &Style, depth: usize) -> Result<(), Error> {
        self.pay()?;
        if depth > MAX_DEPTH {
            return Err(invalid(format!("values are nested more than {MAX_DEPTH} deep")));
        }
        match value.kind() {
            ValueKind::None => self.out.push_str("null"),
            ValueKind::Bool => self.out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => self.out.push_str(&json_number(value)),
            ValueKind::String => json_string(value.as_str().unwrap_or_default(), style.ascii, &mut self.out),
            ValueKind::Map => return self.json_map(value, style, depth),
            ValueKind::Seq | ValueKind::Iterable => {
                let mut empty = true;
                self.out.push('[');
                for item in value.try_iter()?.checked() {
                    if !std::mem::replace(&mut empty, false) {
                        self.out.push_str(&style.item);
                    }
                    self.line(style, depth + 1);
                    self.json(&item?, style, depth + 1)?;
                }
                if !empty {
                    self.line(style, depth);
                }
                self.out.push(']');
            }
            kind => return Err(invalid(format!("{kind} is not JSON serializable"))),
        }
        Ok(())
    }

    fn json_map(&mut self, value: &Value, style: &Style, depth: usize) -> Result<(), Error> {
        let mut entries = Vec::new();
        for key in value.try_iter()?.checked() {
            let key = key?;
            self.state.consume_fuel(1)?;
            entries.push((json_key(&key)?, value.get_item(&key)?));
        }
        if style.sort {
            entries.sort_by(|a, b| a.0.cmp(&b.0));
        }
        self.out.push('{');
        for (index, (key, item)) in entries.iter().enumerate() {
            if index > 0 {
                self.out.push_str(&style.item);
            }
            self.line(style, depth + 1);
            json_string(key, style.ascii, &mut self.out);
            self.out.push_str(&style.key);
            self.json(item, style, depth + 1)?;
        }
        if !entries.is_empty() {
            self.line(style, depth);
        }
        self.out.push('}');
        Ok(())
    }

    fn repr(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        self.pay()?;
        if depth > MAX_DEPTH {
            return Err(invalid(format!("values are nested more than {MAX_DEPTH} deep")));
        }
        let map = value.kind() == ValueKind::Map;
        let (open, close) = match value.kind() {
            ValueKind::Map => ("{", "}"),
            ValueKind::Seq if value.is_tuple() && value.len() == Some(1) => ("(", ",)"),
            ValueKind::Seq if value.is_tuple() => ("(", ")"),
            ValueKind::Seq | ValueKind::Iterable => ("[", "]"),
            ValueKind::Number => {
                self.out.push_str(&number(value));
                return Ok(());
            }
            ValueKind::Undefined => {
                self.out.push_str("Undefined");
                return Ok(());
            }
            ValueKind::String => {
                string_repr(value.as_str().unwrap_or_default(), &mut self.out);
                return Ok(());
            }
            _ => {
                self.out.push_str(&format!("{value:?}"));
                return Ok(());
            }
        };
        self.out.push_str(open);
        for (index, item) in value.try_iter()?.checked().enumerate() {
            let item = item?;
            if index > 0 {
                self.out.push_str(", ");
            }
            self.repr(&item, depth + 1)?;
            if map {
                self.out.push_str(": ");
                self.repr(&value.get_item(&item)?, depth + 1)?;
            }
        }
        self.out.push_str(close);
        Ok(())
    }
}

/// The filter `tojson`, as `transformers` has it: no HTML escapes, and the arguments of `json.dumps`.
pub(super) fn tojson(state: &State<'_, '_>, value: &Value, args: Rest<Value>, kwargs: Kwargs) -> Result<String, Error> {
    let names = ["ensure_ascii", "indent", "separators", "sort_keys"];
    let mut given = [const { None }; 4];
    for (index, name) in names.iter().enumerate() {
        let named: Option<Value> = kwargs.get(name)?;
        given[index] = named.or_else(|| args.get(index).cloned()).filter(|value| !value.is_none());
    }
    kwargs.assert_all_used()?;
    if args.len() > names.len() {
        return Err(Error::from(ErrorKind::TooManyArguments));
    }
    let [ascii, indent, separators, sort] = given;
    let indent = indent.map(|indent| match indent.as_str() {
        Some(text) => Ok(text.to_owned()),
        None => i64::try_from(indent).map(|width| " ".repeat(width.clamp(0, 64) as usize)),
    });
    let indent = indent.transpose()?;
    let (item, key) = match separators {
        None => (if indent.is_some() { "," } else { ", " }.to_owned(), ": ".to_owned()),
        Some(pair) => {
            let part = |index| pair.get_item_by_index(index).map(|part| part.as_str().map(str::to_owned));
            part(0)?.zip(part(1)?).ok_or_else(|| invalid("separators: two strings are expected"))?
        }
    };
    let truth = |value: Option<Value>| value.is_some_and(|value| value.is_true());
    let style = Style { ascii: truth(ascii), indent, item, key, sort: truth(sort) };
    let mut writer = Writer { state, out: String::new(), paid: 0 };
    writer.json(value, &style, 0)?;
    Ok(writer.out)
}

/// What `{{ value }}` and the filter `string` write.
pub(super) fn text(state: &State<'_, '_>, value: &Value) -> Result<String, Error> {
    match value.kind() {
        ValueKind::Map | ValueKind::Seq | ValueKind::Iterable => {
            let mut writer = Writer { state, out: String::new(), paid: 0 };
            writer.repr(value, 0)?;
            Ok(writer.out)
        }
        ValueKind::Number => Ok(number(value)),
        _ => Ok(value.to_string()),
    }
}

/// A number as Python prints it.
fn number(value: &Value) -> String {
    match f64::try_from(value.clone()) {
        Ok(float) if !value.is_integer() => float_repr(float),
        _ => value.to_string(),
    }
}

fn json_number(value: &Value) -> String {
    match number(value).as_str() {
        "nan" => "NaN".to_owned(),
        "inf" => "Infinity".to_owned(),
        "-inf" => "-Infinity".to_owned(),
        finite => finite.to_owned(),
    }
}

/// The shortest digits that give the same float; with an exponent below 1e-4 and from 1e16 on.
fn float_repr(float: f64) -> String {
    if !float.is_finite() {
        return if float.is_nan() { "nan".to_owned() } else { float.to_string() };
    }
    let shortest = format!("{float:e}");
    let (digits, exponent) = shortest.split_once('e').unwrap_or((&shortest, "0"));
    match exponent.parse::<i32>() {
        Ok(exponent) if !(-4..16).contains(&exponent) => {
            let sign = if exponent < 0 { '-' } else { '+' };
            format!("{digits}e{sign}{:02}", exponent.abs())
        }
        _ => {
            let plain = float.to_string();
            if plain.contains('.') { plain } else { plain + ".0" }
        }
    }
}

/// A string as Python's `repr` writes it.
fn string_repr(text: &str, out: &mut String) {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.push(quote);
    for character in text.chars() {
        match character {
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\\' => out.push_str("\\\\"),
            c if c == quote => out.extend(['\\', c]),
            c if !printable(c) => match u32::from(c) {
                code @ 0..=0xff => out.push_str(&format!("\\x{code:02x}")),
                code @ 0..=0xffff => out.push_str(&format!("\\u{code:04x}")),
                code => out.push_str(&format!("\\U{code:08x}")),
            },
            c => out.push(c),
        }
    }
    out.push(quote);
}

/// Python's `str.isprintable`, but for characters that Unicode has not given out.
fn printable(character: char) -> bool {
    let unseen = matches!(u32::from(character),
        0xad | 0x600..=0x605 | 0x61c | 0x6dd | 0x70f | 0x180e | 0x200b..=0x200f | 0x202a..=0x202e | 0x2060..=0x206f
        | 0xe000..=0xf8ff | 0xfeff | 0xfff9..=0xfffb | 0x1d173..=0x1d17a | 0xe0001..=0xe007f | 0xf0000..);
    character == ' ' || !(unseen || character.is_control() || character.is_whitespace())
}

fn json_key(key: &Value) -> Result<String, Error> {
    match key.kind() {
        ValueKind::String => Ok(key.as_str().unwrap_or_default().to_owned()),
        ValueKind::None => Ok("null".to_owned()),
        ValueKind::Bool => Ok(if key.is_true() { "true" } else { "false" }.to_owned()),
        ValueKind::Number => Ok(json_number(key)),
        kind => Err(invalid(format!("keys of JSON objects are not {kind}"))),
    }
}

fn json_string(text: &str, ascii: bool, out: &mut String) {
    out.push('"');
    for character in text.chars() {
        match character {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            c if c < ' ' || (ascii && !(' '..='~').contains(&c)) => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    out.push_str(&format!("\\u{unit:04x}"));
                }
            }
            c => out.push(c),
        }
    }
    out.push('"');
}
