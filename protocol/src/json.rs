//! A pull reader for request bodies. Numbers go from text to the wanted type in one step, tensors never become trees of
//! values, and where Triton's clients send `NaN`, `Infinity` or `-Infinity` they are numbers.
//!
//! Objects and arrays may lie [`MAX_DEPTH`] deep; errors carry the byte at which they arose.

use crate::decimal::{self, Decimal};
use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

/// Deeper nesting than this is refused.
pub const MAX_DEPTH: usize = 100;

/// Longer numbers than this are refused. Every double is written in full in 1,100 characters; with many more, exponents
/// that make up for them are beyond what the standard library reads.
pub const MAX_NUMBER: usize = 4096;

/// What an error shows of a text that a client wrote.
const EXCERPT: usize = 64;

/// The beginning of a text, for errors: they name what a client wrote, and do not repeat all of it.
pub fn excerpt(text: &str) -> Cow<'_, str> {
    if text.len() <= EXCERPT {
        return Cow::Borrowed(text);
    }
    let end = (0..=EXCERPT).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(0);
    Cow::Owned(format!("{}...", &text[..end]))
}

/// Text that is not what it should be: what, and at which byte.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JsonError {
    /// What is wrong.
    pub what: String,
    /// Byte offset in the body.
    pub at: usize,
}

impl fmt::Display for JsonError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at byte {}", self.what, self.at)
    }
}
impl std::error::Error for JsonError {}

/// What kind of value comes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `{`
    Object,
    /// `[`
    Array,
    /// `"`
    String,
    /// A digit, a sign, `NaN` or `Infinity`.
    Number,
    /// `true` or `false`.
    Bool,
    /// `null`.
    Null,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Kind::Object => "an object",
            Kind::Array => "a list",
            Kind::String => "a string",
            Kind::Number => "a number",
            Kind::Bool => "true or false",
            Kind::Null => "null",
        }
    }
}

/// Reads one document front to back.
#[derive(Debug)]
pub struct Reader<'a> {
    text: &'a [u8],
    at: usize,
    /// What was counted by who reads.
    parts: usize,
    depth: usize,
}

/// Walks the entries of an object or array: has the first been read?
#[derive(Debug, Default)]
pub struct Entries(bool);

type Result<T> = std::result::Result<T, JsonError>;

impl<'a> Reader<'a> {
    /// At the beginning of `text`.
    pub fn new(text: &'a [u8]) -> Self {
        Reader { text, at: 0, parts: 0, depth: 0 }
    }

    /// Another reader of the same text, at `place`: for what was passed over, with errors that point into the body.
    pub fn again(&self, place: usize) -> Self {
        Reader { text: self.text, at: place, parts: 0, depth: 0 }
    }

    /// An error at the current place.
    pub fn error(&self, what: impl Into<String>) -> JsonError {
        JsonError { what: what.into(), at: self.at.min(self.text.len()) }
    }

    /// Counts one more of something; how many there are by now.
    pub fn part(&mut self) -> usize {
        self.parts += 1;
        self.parts
    }

    /// The byte that is read next.
    pub fn position(&self) -> usize {
        self.at
    }

    #[inline]
    fn space(&mut self) {
        while let Some(b' ' | b'\n' | b'\r' | b'\t') = self.text.get(self.at) {
            self.at += 1;
        }
    }

    #[inline]
    fn peek(&mut self) -> Option<u8> {
        self.space();
        self.text.get(self.at).copied()
    }

    /// What kind of value comes next.
    pub fn kind(&mut self) -> Result<Kind> {
        match self.peek() {
            Some(b'{') => Ok(Kind::Object),
            Some(b'[') => Ok(Kind::Array),
            Some(b'"') => Ok(Kind::String),
            Some(b't' | b'f') => Ok(Kind::Bool),
            Some(b'n') => Ok(Kind::Null),
            Some(b'0'..=b'9' | b'-' | b'N' | b'I') => Ok(Kind::Number),
            Some(byte) => Err(self.error(format!("unexpected '{}'", byte.escape_ascii()))),
            None => Err(self.error("the text ends where a value is expected")),
        }
    }

    /// Does `null` come next, or what begins like it?
    #[inline]
    pub fn is_null(&mut self) -> bool {
        self.peek() == Some(b'n')
    }

    /// Does a list come next?
    #[inline]
    pub fn is_list(&mut self) -> bool {
        self.peek() == Some(b'[')
    }

    #[inline]
    fn expect(&mut self, byte: u8) -> Result<()> {
        match self.peek() {
            Some(found) if found == byte => {
                self.at += 1;
                Ok(())
            }
            Some(found) => Err(self.error(format!("expected '{}', found '{}'", byte as char, found.escape_ascii()))),
            None => Err(self.error(format!("the text ends where '{}' is expected", byte as char))),
        }
    }

    fn enter(&mut self, byte: u8) -> Result<Entries> {
        self.expect(byte)?;
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(self.error(format!("nested deeper than {MAX_DEPTH}")));
        }
        Ok(Entries(false))
    }

    fn advance(&mut self, entries: &mut Entries, close: u8) -> Result<bool> {
        match self.peek() {
            Some(byte) if byte == close => {
                self.at += 1;
                self.depth -= 1;
                return Ok(false);
            }
            Some(b',') if entries.0 => {
                self.at += 1;
                if self.peek() == Some(close) {
                    return Err(self.error("nothing follows the comma"));
                }
            }
            Some(_) if !entries.0 => {}
            Some(found) => {
                return Err(self.error(format!(
                    "expected ',' or '{}', found '{}'",
                    close as char,
                    found.escape_ascii()
                )));
            }
            None => return Err(self.error(format!("the text ends where '{}' is expected", close as char))),
        }
        entries.0 = true;
        Ok(true)
    }

    /// Enters an object.
    pub fn object(&mut self) -> Result<Entries> {
        self.enter(b'{')
    }

    /// The next key of an object; `None` at its end.
    pub fn key(&mut self, entries: &mut Entries) -> Result<Option<Cow<'a, str>>> {
        if !self.advance(entries, b'}')? {
            return Ok(None);
        }
        let key = self.string()?;
        self.expect(b':')?;
        Ok(Some(key))
    }

    /// Enters an array.
    pub fn array(&mut self) -> Result<Entries> {
        self.enter(b'[')
    }

    /// Is there another element in the array? If not, it is left.
    #[inline]
    pub fn element(&mut self, entries: &mut Entries) -> Result<bool> {
        // The next number of a list, as nearly all of them are written.
        if let (true, Some([b',', next, after])) = (entries.0, self.text.get(self.at..self.at + 3)) {
            let spaces = usize::from(*next == b' ');
            if matches!(if spaces == 1 { *after } else { *next }, b'0'..=b'9' | b'-') {
                self.at += 1 + spaces;
                return Ok(true);
            }
        }
        self.advance(entries, b']')
    }

    /// Text; borrowed where it has no escapes.
    pub fn string(&mut self) -> Result<Cow<'a, str>> {
        self.expect(b'"')?;
        let start = self.at;
        let plain = self.plain()?;
        if self.text[self.at] == b'"' {
            self.at += 1;
            return Ok(Cow::Borrowed(self.utf8(plain, start)?));
        }
        let mut out = self.utf8(plain, start)?.to_owned();
        loop {
            if self.text[self.at] == b'"' {
                self.at += 1;
                return Ok(Cow::Owned(out));
            }
            self.escape(&mut out)?;
            let start = self.at;
            let plain = self.plain()?;
            out.push_str(self.utf8(plain, start)?);
        }
    }

    /// Bytes up to the next quote or backslash, which is left to be read.
    fn plain(&mut self) -> Result<&'a [u8]> {
        let rest = &self.text[self.at.min(self.text.len())..];
        let length = rest.iter().position(|&b| b == b'"' || b == b'\\' || b < 0x20);
        let length = length.ok_or_else(|| self.error("the text ends inside a string"))?;
        self.at += length;
        if rest[length] < 0x20 {
            return Err(self.error("a control character inside a string"));
        }
        Ok(&rest[..length])
    }

    fn utf8(&self, bytes: &'a [u8], start: usize) -> Result<&'a str> {
        std::str::from_utf8(bytes)
            .map_err(|e| JsonError { what: "a string is not UTF-8".into(), at: start + e.valid_up_to() })
    }

    fn escape(&mut self, out: &mut String) -> Result<()> {
        let escape = self.text.get(self.at + 1).copied();
        self.at += 2;
        out.push(match escape {
            Some(b'n') => '\n',
            Some(b't') => '\t',
            Some(b'r') => '\r',
            Some(b'b') => '\u{8}',
            Some(b'f') => '\u{c}',
            Some(byte @ (b'"' | b'\\' | b'/')) => byte as char,
            Some(b'u') => self.unicode()?,
            _ => return Err(self.error("unknown escape in a string")),
        });
        Ok(())
    }

    fn unicode(&mut self) -> Result<char> {
        let high = self.hex()?;
        if !(0xd800..0xe000).contains(&high) {
            return char::from_u32(high).ok_or_else(|| self.error("no such character"));
        }
        let low = match self.text.get(self.at..self.at + 2) {
            Some(b"\\u") if high < 0xdc00 => {
                self.at += 2;
                self.hex()?
            }
            _ => return Err(self.error("half of a surrogate pair")),
        };
        if !(0xdc00..0xe000).contains(&low) {
            return Err(self.error("half of a surrogate pair"));
        }
        char::from_u32(0x10000 + ((high - 0xd800) << 10) + (low - 0xdc00))
            .ok_or_else(|| self.error("no such character"))
    }

    fn hex(&mut self) -> Result<u32> {
        let digits = self.text.get(self.at..self.at + 4).filter(|d| d.iter().all(u8::is_ascii_hexdigit));
        let digits = digits.ok_or_else(|| self.error("expected four hexadecimal digits"))?;
        self.at += 4;
        Ok(digits.iter().fold(0, |n, &d| n * 16 + (d as char).to_digit(16).unwrap_or(0)))
    }

    /// The characters of a number: JSON's, or `NaN`, `Inf`, `Infinity`, `-Inf`, `-Infinity`.
    #[inline]
    pub fn number(&mut self) -> Result<&'a str> {
        self.space();
        let rest = &self.text[self.at.min(self.text.len())..];
        let length = number_length(rest);
        let ends = !matches!(rest.get(length), Some(b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z' | b'.' | b'+' | b'-'));
        if length == 0 || !ends {
            return self.special_number();
        }
        if length > MAX_NUMBER {
            return Err(self.error(format!("a number of {length} characters; at most {MAX_NUMBER} are read")));
        }
        self.at += length;
        std::str::from_utf8(&rest[..length]).map_err(|_| self.error("not a number"))
    }

    /// The nearest single.
    #[inline]
    pub fn float32(&mut self) -> Result<f32> {
        if let Some((value, length)) = self.decimal().and_then(|read| Some((read.single()?, read.length))) {
            self.at += length;
            return Ok(value);
        }
        self.parsed()
    }

    /// The nearest double.
    #[inline]
    pub fn float64(&mut self) -> Result<f64> {
        if let Some((value, length)) = self.decimal().and_then(|read| Some((read.double()?, read.length))) {
            self.at += length;
            return Ok(value);
        }
        self.parsed()
    }

    /// A whole number, where one comes next that is written as such and fits: it is read then, and only then.
    #[inline]
    pub fn whole(&mut self) -> Option<i64> {
        let (value, length) = self.decimal().and_then(|read| Some((read.whole()?, read.length)))?;
        self.at += length;
        Some(value)
    }

    #[inline(always)]
    fn decimal(&mut self) -> Option<Decimal> {
        self.space();
        decimal::read(self.text.get(self.at..)?)
    }

    #[cold]
    fn parsed<T: FromStr>(&mut self) -> Result<T> {
        let token = self.number()?;
        token.parse().map_err(|_| self.error(format!("'{}' is not a number", excerpt(token))))
    }

    /// A number that JSON lacks, or an error.
    #[cold]
    fn special_number(&mut self) -> Result<&'a str> {
        let rest = &self.text[self.at.min(self.text.len())..];
        let word = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'+' | b'-');
        let token = &rest[..rest.iter().position(|b| !word(b)).unwrap_or(rest.len())];
        if matches!(token, b"NaN" | b"-NaN" | b"Inf" | b"-Inf" | b"Infinity" | b"-Infinity") {
            self.at += token.len();
            return std::str::from_utf8(token).map_err(|_| self.error("not a number"));
        }
        let kind = self.kind()?;
        Err(self.error(match kind {
            Kind::Number => {
                let shown = token[..token.len().min(EXCERPT + 1)].escape_ascii().to_string();
                format!("'{}' is not a number", excerpt(&shown))
            }
            other => format!("expected a number, found {}", other.name()),
        }))
    }

    /// True or false.
    pub fn boolean(&mut self) -> Result<bool> {
        match self.kind()? {
            Kind::Bool => {
                let value = self.peek() == Some(b't');
                self.word(if value { "true" } else { "false" })?;
                Ok(value)
            }
            other => Err(self.error(format!("expected true or false, found {}", other.name()))),
        }
    }

    /// `null`.
    pub fn null(&mut self) -> Result<()> {
        self.word("null")
    }

    fn word(&mut self, word: &str) -> Result<()> {
        self.space();
        if self.text[self.at.min(self.text.len())..].starts_with(word.as_bytes()) {
            self.at += word.len();
            return Ok(());
        }
        Err(self.error(format!("expected {word}")))
    }

    /// Passes over a value, which is checked to be JSON.
    pub fn skip(&mut self) -> Result<()> {
        match self.kind()? {
            Kind::Object => {
                let mut entries = self.object()?;
                while self.key(&mut entries)?.is_some() {
                    self.skip()?;
                }
                Ok(())
            }
            Kind::Array => {
                let mut entries = self.array()?;
                while self.element(&mut entries)? {
                    self.skip()?;
                }
                Ok(())
            }
            Kind::String => self.string().map(|_| ()),
            Kind::Number => self.number().map(|_| ()),
            Kind::Bool => self.boolean().map(|_| ()),
            Kind::Null => self.null(),
        }
    }

    /// Passes over a value and returns its text.
    pub fn raw(&mut self) -> Result<&'a [u8]> {
        self.space();
        let start = self.at;
        self.skip()?;
        Ok(&self.text[start..self.at])
    }

    /// The document is over.
    pub fn end(&mut self) -> Result<()> {
        match self.peek() {
            None => Ok(()),
            Some(byte) => Err(self.error(format!("unexpected '{}' behind the document", byte.escape_ascii()))),
        }
    }
}

/// Length of the number that `text` begins with, by JSON's grammar; 0 where there is none.
#[inline]
fn number_length(text: &[u8]) -> usize {
    let digits = |from: usize| text[from..].iter().take_while(|b| b.is_ascii_digit()).count();
    let mut at = usize::from(text.first() == Some(&b'-'));
    match text.get(at) {
        Some(b'0') => at += 1,
        Some(b'1'..=b'9') => at += digits(at),
        _ => return 0,
    }
    if text.get(at) == Some(&b'.') {
        let fraction = digits(at + 1);
        if fraction == 0 {
            return 0;
        }
        at += 1 + fraction;
    }
    if let Some(b'e' | b'E') = text.get(at) {
        let sign = usize::from(matches!(text.get(at + 1), Some(b'+' | b'-')));
        let exponent = digits((at + 1 + sign).min(text.len()));
        if exponent == 0 {
            return 0;
        }
        at += 1 + sign + exponent;
    }
    at
}
