//! Fields of a JSON object by name: each is taken once, as the type it must have; what nobody took is left to account
//! for. Which fields there are is not known here.
//!
//! The text is checked as a whole first (form, depth, UTF-8), then cut into the texts of its fields, so that a field
//! becomes values only once it is known to be small enough.

use super::error::FieldError;
use super::limits;
use crate::json::{JsonError, Kind, Reader};
use serde_json::Value;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::RangeInclusive;

pub(crate) type Result<T> = std::result::Result<T, FieldError>;

/// The beginning of a text that a client sent, for a message.
pub(crate) fn shorten(text: &str) -> Cow<'_, str> {
    const MOST: usize = 64;
    match text.char_indices().nth(MOST) {
        None => Cow::Borrowed(text),
        Some((end, _)) => Cow::Owned(format!("{}...", &text[..end])),
    }
}

/// An object, less what has been taken out of it.
pub(crate) struct Fields<'a> {
    /// Path of the object and a dot; empty for the body.
    prefix: String,
    entries: BTreeMap<Cow<'a, str>, &'a [u8]>,
}

impl<'a> Fields<'a> {
    /// A whole body.
    pub(crate) fn of_body(body: &'a [u8]) -> Result<Self> {
        let mut reader = Reader::new(body);
        let fields = Self::read(&mut reader, String::new(), limits::KEYS)?;
        reader.end().map_err(|e| FieldError::malformed(&e))?;
        Ok(fields)
    }

    fn read(reader: &mut Reader<'a>, prefix: String, most: usize) -> Result<Self> {
        let malformed = |e: JsonError| FieldError::malformed(&e);
        let mut entries = BTreeMap::new();
        let mut object = reader.object().map_err(malformed)?;
        while let Some(key) = reader.key(&mut object).map_err(malformed)? {
            let path = || format!("{prefix}{}", shorten(&key));
            if entries.len() == most {
                let path = path();
                return Err(FieldError::invalid(&path, format!("Too many keys at '{path}': {most} at most.")));
            }
            // Of two values one would be ignored, and which one depends on who reads.
            if entries.contains_key(&key) {
                let path = path();
                return Err(FieldError::invalid(&path, format!("Duplicate parameter: '{path}'.")));
            }
            let raw = reader.raw().map_err(malformed)?;
            entries.insert(key, raw);
        }
        Ok(Fields { prefix, entries })
    }

    pub(crate) fn path(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    /// A field, unless it is absent or `null`, which OpenAI treats alike.
    pub(crate) fn take(&mut self, name: &str) -> Option<Field<'a>> {
        let raw = self.entries.remove(name).filter(|raw| *raw != b"null")?;
        Some(Field { path: self.path(name), raw })
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.entries.get(name).is_some_and(|raw| *raw != b"null")
    }

    /// A field as `read` understands it, if it is there.
    pub(crate) fn opt<T>(&mut self, name: &str, read: impl FnOnce(Field<'a>) -> Result<T>) -> Result<Option<T>> {
        self.take(name).map(read).transpose()
    }

    /// A flag.
    pub(crate) fn flag(&mut self, name: &str, default: bool) -> Result<bool> {
        Ok(self.opt(name, |f| f.boolean())?.unwrap_or(default))
    }

    /// A field that must be there.
    pub(crate) fn require(&mut self, name: &str) -> Result<Field<'a>> {
        self.take(name).ok_or_else(|| FieldError::missing(&self.path(name)))
    }

    /// Names and fields that nobody took, those that are `null` left out.
    pub(crate) fn rest(self) -> impl Iterator<Item = (Cow<'a, str>, Field<'a>)> {
        let Fields { prefix, entries } = self;
        let set = entries.into_iter().filter(|(_, raw)| *raw != b"null");
        set.map(move |(name, raw)| {
            let path = format!("{prefix}{}", shorten(&name));
            (name, Field { path, raw })
        })
    }
}

/// The range of a decimal number, and whether its lower end is in it.
#[derive(Clone, Copy)]
pub(crate) struct Range(pub(crate) f32, pub(crate) f32, pub(crate) bool);

/// A field that is set: where it is, and its text.
pub(crate) struct Field<'a> {
    pub(crate) path: String,
    pub(crate) raw: &'a [u8],
}

impl<'a> Field<'a> {
    fn reader(&self) -> Reader<'a> {
        Reader::new(self.raw)
    }

    pub(crate) fn kind(&self) -> Result<Kind> {
        self.reader().kind().map_err(|e| FieldError::malformed(&e))
    }

    pub(crate) fn wrong_type(&self, expected: &str) -> FieldError {
        let got = match self.reader().kind() {
            Ok(Kind::Object) => "an object",
            Ok(Kind::Array) => "an array",
            Ok(Kind::String) => "a string",
            Ok(Kind::Number) if self.raw.iter().all(|b| b.is_ascii_digit() || *b == b'-') => "an integer",
            Ok(Kind::Number) if self.raw.iter().any(|b| matches!(b, b'N' | b'I')) => "a number that JSON lacks",
            Ok(Kind::Number) => "a decimal number",
            Ok(Kind::Bool) => "a boolean",
            Ok(Kind::Null) | Err(_) => "null",
        };
        FieldError::wrong_type(&self.path, expected, got)
    }

    fn expect(&self, kind: Kind, expected: &str) -> Result<Reader<'a>> {
        if self.kind()? == kind { Ok(self.reader()) } else { Err(self.wrong_type(expected)) }
    }

    fn read<T>(&self, result: std::result::Result<T, JsonError>) -> Result<T> {
        result.map_err(|e| FieldError::invalid(&self.path, format!("Invalid value for '{}': {e}.", self.path)))
    }

    pub(crate) fn boolean(&self) -> Result<bool> {
        let mut reader = self.expect(Kind::Bool, "a boolean")?;
        self.read(reader.boolean())
    }

    /// A whole number, also when written as `5.0`, as numbers of JavaScript and Lua may be.
    pub(crate) fn integer(&self, range: RangeInclusive<i64>) -> Result<i64> {
        let mut reader = self.expect(Kind::Number, "an integer")?;
        let token = self.read(reader.number())?;
        let value = match (token.parse::<i64>(), token.parse::<f64>()) {
            (Ok(whole), _) => whole,
            // The cast saturates, and what it saturates to is outside every range but a seed's.
            (_, Ok(wide)) if wide.fract() == 0.0 && wide.abs() < i64::MAX as f64 => wide as i64,
            (_, Ok(wide))
                if wide.fract() == 0.0 || wide.is_infinite() && token.ends_with(|c: char| c.is_ascii_digit()) =>
            {
                return Err(self.outside(wide > 0.0, &range, token));
            }
            _ => return Err(self.wrong_type("an integer")),
        };
        match range.contains(&value) {
            true => Ok(value),
            false => Err(self.outside(value > *range.end(), &range, token)),
        }
    }

    fn outside(&self, above: bool, range: &RangeInclusive<i64>, token: &str) -> FieldError {
        let bound = if above { format!("<= {}", range.end()) } else { format!(">= {}", range.start()) };
        FieldError::out_of_range(&self.path, "integer", &bound, token)
    }

    /// A count within `range`.
    pub(crate) fn count(&self, range: RangeInclusive<u32>) -> Result<u32> {
        let value = self.integer((*range.start()).into()..=(*range.end()).into())?;
        u32::try_from(value).map_err(|_| self.wrong_type("an integer"))
    }

    /// A number, finite and within its range after it has become 32 bits.
    pub(crate) fn decimal(&self, Range(low, high, closed): Range) -> Result<f32> {
        let mut reader = self.expect(Kind::Number, "a decimal")?;
        let token = self.read(reader.number())?;
        let value = token.parse::<f32>().unwrap_or(f32::NAN);
        if value.is_nan() || value.is_infinite() && !token.ends_with(|c: char| c.is_ascii_digit()) {
            return Err(self.wrong_type("a decimal"));
        }
        let bound = match () {
            () if value > high => format!("<= {high}"),
            () if value < low || value == low && !closed => format!("{} {low}", if closed { ">=" } else { ">" }),
            // Adding zero takes the sign off a negative zero.
            () => return Ok(value + 0.0),
        };
        Err(FieldError::out_of_range(&self.path, "decimal", &bound, token))
    }

    /// Text of at most so many bytes.
    pub(crate) fn string(&self, most: usize) -> Result<String> {
        let mut reader = self.expect(Kind::String, "a string")?;
        let text = self.read(reader.string())?;
        if text.len() > most {
            return Err(FieldError::string_too_long(&self.path, most, text.len()));
        }
        Ok(text.into_owned())
    }

    /// One of a few words, as what it stands for.
    pub(crate) fn choice<T: Copy>(&self, choices: &[(&str, T)]) -> Result<T> {
        let text = self.string(usize::MAX)?;
        choices.iter().find(|(word, _)| *word == text).map(|(_, value)| *value).ok_or_else(|| {
            let words: Vec<&str> = choices.iter().map(|(word, _)| *word).collect();
            FieldError::unsupported_value(&self.path, &text, &words)
        })
    }

    /// The elements of a list, at most so many.
    pub(crate) fn elements(&self, most: usize) -> Result<Vec<Field<'a>>> {
        let mut reader = self.expect(Kind::Array, "an array")?;
        let (mut found, mut count) = (Vec::new(), 0);
        let mut entries = self.read(reader.array())?;
        while self.read(reader.element(&mut entries))? {
            let raw = self.read(reader.raw())?;
            if count < most {
                found.push(Field { path: format!("{}[{count}]", self.path), raw });
            }
            count += 1;
        }
        if count > most { Err(FieldError::array_too_long(&self.path, most, count)) } else { Ok(found) }
    }

    /// The first element of a list.
    pub(crate) fn first(&self) -> Result<Option<Field<'a>>> {
        let mut reader = self.expect(Kind::Array, "an array")?;
        let mut entries = self.read(reader.array())?;
        if !self.read(reader.element(&mut entries))? {
            return Ok(None);
        }
        Ok(Some(Field { path: format!("{}[0]", self.path), raw: self.read(reader.raw())? }))
    }

    /// The fields of an object.
    pub(crate) fn object(&self) -> Result<Fields<'a>> {
        self.object_of(limits::KEYS)
    }

    /// The fields of an object that has at most so many.
    pub(crate) fn object_of(&self, most: usize) -> Result<Fields<'a>> {
        let mut reader = self.expect(Kind::Object, "an object")?;
        Fields::read(&mut reader, format!("{}.", self.path), most)
    }

    /// A list of texts.
    pub(crate) fn strings(&self, most: usize, bytes: usize) -> Result<Vec<String>> {
        self.elements(most)?.iter().map(|element| element.string(bytes)).collect()
    }

    /// A list of token ids, which go from text to numbers in one step.
    pub(crate) fn ids(&self, most: usize) -> Result<Vec<u32>> {
        let mut reader = self.expect(Kind::Array, "an array of integers")?;
        let (mut ids, mut count) = (Vec::new(), 0);
        let mut entries = self.read(reader.array())?;
        while self.read(reader.element(&mut entries))? {
            let raw = self.read(reader.raw())?;
            let id = match std::str::from_utf8(raw).ok().and_then(|token| token.parse().ok()) {
                Some(id) => id,
                None => Field { path: format!("{}[{count}]", self.path), raw }.count(0..=u32::MAX)?,
            };
            if count < most {
                ids.push(id);
            }
            count += 1;
        }
        if count > most { Err(FieldError::array_too_long(&self.path, most, count)) } else { Ok(ids) }
    }

    /// Is it small enough to be kept as JSON?
    pub(crate) fn bounded(&self) -> Result<()> {
        let mut left = limits::VALUES;
        match self.read(count_values(&mut self.reader(), &mut left))? {
            true => Ok(()),
            false => {
                let message = format!("Invalid '{}': more than {} values.", self.path, limits::VALUES);
                Err(FieldError::invalid(&self.path, message))
            }
        }
    }

    /// The field as JSON; of keys that appear twice the last one counts. The caller has asked whether it is
    /// [bounded](Self::bounded).
    pub(crate) fn unbounded_value(&self) -> Result<Value> {
        serde_json::from_slice(self.raw)
            .map_err(|e| FieldError::invalid(&self.path, format!("Invalid value for '{}': {e}.", self.path)))
    }

    /// The field as it was written.
    pub(crate) fn text(&self) -> Result<&str> {
        std::str::from_utf8(self.raw)
            .map_err(|e| FieldError::invalid(&self.path, format!("Invalid value for '{}': {e}.", self.path)))
    }

    /// The field as JSON.
    pub(crate) fn value(&self) -> Result<Value> {
        self.bounded()?;
        self.unbounded_value()
    }
}

/// Takes the values that come next off `left`; were there as many?
fn count_values(reader: &mut Reader<'_>, left: &mut usize) -> std::result::Result<bool, JsonError> {
    if *left == 0 {
        return Ok(false);
    }
    *left -= 1;
    match reader.kind()? {
        Kind::Array => {
            let mut entries = reader.array()?;
            while reader.element(&mut entries)? {
                if !count_values(reader, left)? {
                    return Ok(false);
                }
            }
        }
        Kind::Object => {
            let mut entries = reader.object()?;
            while reader.key(&mut entries)?.is_some() {
                if !count_values(reader, left)? {
                    return Ok(false);
                }
            }
        }
        _ => reader.skip()?,
    }
    Ok(true)
}
