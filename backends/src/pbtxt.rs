//! Protobuf's text format, as Triton's `config.pbtxt` is written in it: fields in any order, lists, nested messages,
//! comments. What a field means is `settings.rs`.

use std::borrow::Cow;

/// Messages may lie this deep in each other.
const MAX_DEPTH: usize = 32;

/// A value of a field.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value {
    /// A number, a name or text, as written; text without its quotes.
    Scalar(String),
    /// Fields in braces.
    Message(Message),
}

/// Fields in the order of the file; a repeated field is there several times.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Message(pub(crate) Vec<(String, Value)>);

/// Reads a whole file. Errors name the line.
pub(crate) fn parse(text: &str) -> Result<Message, String> {
    let mut parser = Parser { rest: text, line: 1 };
    let message = parser.fields(0)?;
    match parser.peek() {
        None => Ok(message),
        Some(found) => Err(parser.error(format!("unexpected '{found}'"))),
    }
}

/// True or false, as protobuf's own reader takes them.
pub(crate) fn truth(text: &str) -> Option<bool> {
    match text {
        "true" | "True" | "t" | "1" => Some(true),
        "false" | "False" | "f" | "0" => Some(false),
        _ => None,
    }
}

/// A whole number in hexadecimal digits or in octal ones, which begin with 0, as it is in decimal ones; other words as they
/// are. None for what begins like one and is none.
fn decimal(word: &str) -> Option<Cow<'_, str>> {
    let (sign, digits) = word.strip_prefix('-').map_or(("", word), |digits| ("-", digits));
    let (radix, digits) = match digits.strip_prefix("0x").or_else(|| digits.strip_prefix("0X")) {
        Some(digits) => (16, digits),
        None if digits.len() > 1 && digits.starts_with('0') && digits.bytes().all(|byte| byte.is_ascii_digit()) => {
            (8, digits)
        }
        None => return Some(Cow::Borrowed(word)),
    };
    let number = u64::from_str_radix(digits, radix).ok().filter(|_| !digits.starts_with('+'))?;
    Some(Cow::Owned(format!("{sign}{number}")))
}

struct Parser<'a> {
    rest: &'a str,
    line: usize,
}

impl<'a> Parser<'a> {
    fn error(&self, what: impl std::fmt::Display) -> String {
        format!("line {}: {what}", self.line)
    }

    fn advance(&mut self, bytes: usize) -> &'a str {
        let (taken, rest) = self.rest.split_at(bytes);
        self.line += taken.matches('\n').count();
        self.rest = rest;
        taken
    }

    /// The next character that is neither space nor comment.
    fn peek(&mut self) -> Option<char> {
        loop {
            let space = self.rest.len() - self.rest.trim_start().len();
            self.advance(space);
            if !self.rest.starts_with('#') {
                return self.rest.chars().next();
            }
            self.advance(self.rest.find('\n').unwrap_or(self.rest.len()));
        }
    }

    fn take(&mut self, wanted: char) -> bool {
        let found = self.peek() == Some(wanted);
        if found {
            self.advance(wanted.len_utf8());
        }
        found
    }

    fn word(&mut self) -> Result<&'a str, String> {
        self.peek();
        let part = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-' | '+');
        let length = self.rest.find(|c| !part(c)).unwrap_or(self.rest.len());
        if length == 0 {
            let found = self.peek().map_or("the end of the file".into(), |c| format!("'{c}'"));
            return Err(self.error(format!("expected a name or a value, found {found}")));
        }
        Ok(self.advance(length))
    }

    /// Fields up to a closing brace or the end.
    fn fields(&mut self, depth: usize) -> Result<Message, String> {
        if depth > MAX_DEPTH {
            return Err(self.error(format!("nested deeper than {MAX_DEPTH}")));
        }
        let mut message = Message::default();
        loop {
            while self.take(',') || self.take(';') {}
            if matches!(self.peek(), None | Some('}' | '>')) {
                return Ok(message);
            }
            let name = self.word()?.to_owned();
            let colon = self.take(':');
            if self.take('[') {
                let mut more = !self.take(']');
                while more {
                    let value = self.value(depth)?;
                    message.0.push((name.clone(), value));
                    more = self.take(',');
                    if !more && !self.take(']') {
                        return Err(self.error(format!("expected ',' or ']' in the list of '{name}'")));
                    }
                }
            } else if colon || matches!(self.peek(), Some('{' | '<')) {
                let value = self.value(depth)?;
                message.0.push((name, value));
            } else {
                return Err(self.error(format!("expected ':' or '{{' after '{name}'")));
            }
        }
    }

    fn value(&mut self, depth: usize) -> Result<Value, String> {
        match self.peek() {
            Some(open @ ('{' | '<')) => {
                self.advance(1);
                let message = self.fields(depth + 1)?;
                let close = if open == '{' { '}' } else { '>' };
                if self.take(close) {
                    Ok(Value::Message(message))
                } else {
                    Err(self.error(format!("expected '{close}'")))
                }
            }
            Some('"' | '\'') => {
                let mut text = self.quoted()?;
                // Texts side by side are one.
                while matches!(self.peek(), Some('"' | '\'')) {
                    text += &self.quoted()?;
                }
                Ok(Value::Scalar(text))
            }
            _ => {
                let word = self.word()?;
                let plain = decimal(word).ok_or_else(|| self.error(format!("'{word}' is no number")))?;
                Ok(Value::Scalar(plain.into_owned()))
            }
        }
    }

    fn quoted(&mut self) -> Result<String, String> {
        let quote = self.advance(1);
        // Bytes: escapes may spell a character byte by byte.
        let mut out = Vec::new();
        loop {
            match self.rest.chars().next() {
                None | Some('\n') => return Err(self.error("a text has no closing quote")),
                Some('\\') => {
                    self.advance(1);
                    if !self.escape(&mut out) {
                        return Err(self.error("unknown escape in a text"));
                    }
                }
                Some(character) if quote.starts_with(character) => {
                    self.advance(1);
                    return String::from_utf8(out).map_err(|_| self.error("a text is not UTF-8"));
                }
                Some(character) => out.extend_from_slice(self.advance(character.len_utf8()).as_bytes()),
            }
        }
    }

    /// Adds what an escape stands for, whose backslash is read; false where there is no such escape.
    fn escape(&mut self, out: &mut Vec<u8>) -> bool {
        let kind = self.rest.chars().next().filter(char::is_ascii_graphic).unwrap_or(' ');
        if kind != ' ' && !kind.is_digit(8) {
            self.advance(1);
        }
        let byte = match kind {
            'a' => Some(0x07),
            'b' => Some(0x08),
            't' => Some(b'\t'),
            'n' => Some(b'\n'),
            'v' => Some(0x0b),
            'f' => Some(0x0c),
            'r' => Some(b'\r'),
            '\\' | '\'' | '"' | '?' => u8::try_from(kind).ok(),
            '0'..='7' => u8::from_str_radix(self.digits(8, 3), 8).ok(),
            'x' | 'X' => u8::from_str_radix(self.digits(16, 2), 16).ok(),
            'u' => return self.character(4, out),
            'U' => return self.character(8, out),
            _ => None,
        };
        out.extend(byte);
        byte.is_some()
    }

    /// Adds the character of a number of so many digits.
    fn character(&mut self, digits: usize, out: &mut Vec<u8>) -> bool {
        let number = Some(self.digits(16, digits)).filter(|text| text.len() == digits);
        let character = number.and_then(|text| u32::from_str_radix(text, 16).ok()).and_then(char::from_u32);
        out.extend(character.into_iter().flat_map(|character| character.to_string().into_bytes()));
        character.is_some()
    }

    fn digits(&mut self, radix: u32, most: usize) -> &'a str {
        let count = self.rest.chars().take(most).take_while(|c| c.is_digit(radix)).count();
        self.advance(count)
    }
}

impl Message {
    /// Every value of a field.
    pub(crate) fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Value> {
        self.0.iter().filter(move |(field, _)| field == name).map(|(_, value)| value)
    }

    /// The last value of a field, which is the one that counts.
    pub(crate) fn last(&self, name: &str) -> Option<&Value> {
        self.0.iter().rev().find(|(field, _)| field == name).map(|(_, value)| value)
    }

    /// The text or word of a field.
    pub(crate) fn text(&self, name: &str) -> Result<Option<&str>, String> {
        match self.last(name) {
            None => Ok(None),
            Some(Value::Scalar(text)) => Ok(Some(text)),
            Some(Value::Message(_)) => Err(format!("'{name}' is a message; expected a value")),
        }
    }

    /// A field that is a number or another type with a text form.
    pub(crate) fn parsed<T: std::str::FromStr>(&self, name: &str) -> Result<Option<T>, String> {
        let Some(text) = self.text(name)? else { return Ok(None) };
        text.parse().map(Some).map_err(|_| format!("'{name}' is '{text}', which does not fit it"))
    }

    /// A field that is true or false.
    pub(crate) fn flag(&self, name: &str) -> Result<Option<bool>, String> {
        let Some(text) = self.text(name)? else { return Ok(None) };
        truth(text).map(Some).ok_or_else(|| format!("'{name}' is '{text}', neither true nor false"))
    }

    /// A field that is a message.
    pub(crate) fn message(&self, name: &str) -> Result<Option<&Message>, String> {
        match self.last(name) {
            None => Ok(None),
            Some(Value::Message(message)) => Ok(Some(message)),
            Some(Value::Scalar(_)) => Err(format!("'{name}' is a value; expected fields in braces")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    #[test]
    fn a_configuration_as_people_write_it() {
        let text = r#"
            name: "iris"  # the directory's
            backend: "fil"
            max_batch_size: 8
            input [ { name: 'input__0' data_type: TYPE_FP32 dims: [ -1, 4 ] } ]
            output { name: "out" "put__0", data_type: TYPE_FP32; dims: [1] }
            dynamic_batching { }
            parameters { key: "threshold" value: { string_value: "0.5" } }
            version_policy: { specific { versions: [1, 3] } }
        "#;
        let message = parse(text).unwrap();
        assert_eq!(message.text("name"), Ok(Some("iris")));
        assert_eq!(message.parsed("max_batch_size"), Ok(Some(8)));
        let Some(Value::Message(output)) = message.last("output") else { panic!() };
        assert_eq!(output.text("name"), Ok(Some("output__0")));
        let Some(Value::Message(input)) = message.last("input") else { panic!() };
        let dims: Vec<_> = input.all("dims").cloned().collect();
        assert_eq!(dims, [Value::Scalar("-1".into()), Value::Scalar("4".into())]);
        assert_eq!(message.message("dynamic_batching"), Ok(Some(&Message::default())));
    }

    #[test]
    fn texts_have_the_escapes_of_protobuf() {
        for (written, text) in [
            (r"\a\b\t\n\v\f\r", "\x07\x08\t\n\x0b\x0c\r"),
            (r#"\\\'\"\?"#, "\\'\"?"),
            (r"\x41\155\7\x9g", "Am\x07\tg"),
            (r"\303\251 \u00e9 \U0001f600", "\u{e9} \u{e9} \u{1f600}"),
        ] {
            assert_eq!(parse(&format!("a: \"{written}\"")).unwrap().text("a"), Ok(Some(text)), "{written}");
        }
        for written in [r"\q", r"\x", r"\400", r"\u00e", r"\ud800", r"\é", "\\"] {
            let error = parse(&format!("a: \"{written}\nb: 1")).unwrap_err();
            assert!(error.starts_with("line 1: unknown escape"), "{written}: {error}");
        }
        assert!(parse(r#"a: "\377""#).unwrap_err().contains("not UTF-8"));
    }

    #[test]
    fn numbers_have_the_forms_of_protobuf() {
        for (written, number) in
            [("0x10", "16"), ("-0X7f", "-127"), ("010", "8"), ("-07", "-7"), ("0", "0"), ("-1", "-1"), ("0.5", "0.5")]
        {
            assert_eq!(parse(&format!("a: {written}")).unwrap().text("a"), Ok(Some(number)), "{written}");
        }
        for written in ["08", "0x", "0xg", "0x+1", "0x10000000000000000"] {
            let error = parse(&format!("a: {written}")).unwrap_err();
            assert_eq!(error, format!("line 1: '{written}' is no number"));
        }
        assert_eq!(parse("a: '010'").unwrap().text("a"), Ok(Some("010")), "a text is no number");
    }

    #[test]
    fn what_is_true_or_false() {
        let message = parse("a: True b: f c: 1 d: false e: yes").unwrap();
        let flags = ["a", "b", "c", "d", "none"].map(|name| message.flag(name).unwrap());
        assert_eq!(flags, [Some(true), Some(false), Some(true), Some(false), None]);
        assert_eq!(message.flag("e").unwrap_err(), "'e' is 'yes', neither true nor false");
    }

    #[test]
    fn what_is_no_configuration_is_refused_with_its_line() {
        for (text, what) in [
            ("name \"x\"", "line 1: expected ':' or '{' after 'name'"),
            ("a: 1\nb: {", "line 2: expected '}'"),
            ("a: \"x\n", "line 1: a text has no closing quote"),
            ("a: \"\\q\"", "line 1: unknown escape"),
            ("}", "line 1: unexpected '}'"),
            ("a: [1, ", "line 1: expected a name or a value, found the end of the file"),
            ("a: [1 2]", "line 1: expected ',' or ']' in the list of 'a'"),
            ("a: [1, ]", "line 1: expected a name or a value, found ']'"),
            ("a: [1", "line 1: expected ',' or ']' in the list of 'a'"),
            (&"a {".repeat(100), "nested deeper"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(what), "{text}: {error}");
        }
    }

    /// Messages with fields of all kinds, some of them repeated.
    fn messages() -> impl Strategy<Value = Message> {
        let scalar = || any::<String>().prop_map(Value::Scalar);
        let fields = |value: BoxedStrategy<Value>| vec(("[a-c_][a-z0-9_]{0,3}", value), 0..6).prop_map(Message);
        fields(scalar().boxed()).prop_recursive(4, 40, 6, move |inner| {
            fields(prop_oneof![scalar(), inner.prop_map(Value::Message)].boxed())
        })
    }

    /// Writes a message as one of those who may write it: each number of `style` decides on the next thing that is free.
    fn write(message: &Message, style: &mut impl Iterator<Item = u8>, out: &mut String) {
        let mut choose = |of: &[&'static str]| of[usize::from(style.next().unwrap_or(0)) % of.len()];
        let mut parts = Vec::new();
        for (name, value) in &message.0 {
            let space = choose(&[" ", "\n\t", " # it's \"}\n"]);
            let text = match value {
                Value::Message(_) => format!("{name}{space}{}", choose(&["", ":"])),
                Value::Scalar(_) => format!("{name}:{space}"),
            };
            let list = choose(&["", "[ "]);
            let quote = choose(&["\"", "'", "\" '"]);
            parts.push((
                text + list,
                value,
                if list.is_empty() { "" } else { "]" },
                quote,
                choose(&["\n", ", ", " ; "]),
            ));
        }
        let braces = choose(&["{}", "<>"]);
        for (before, value, after, quote, end) in parts {
            out.push_str(&before);
            match value {
                Value::Scalar(text) => quoted(text, quote, out),
                Value::Message(inner) => {
                    out.push_str(&braces[..1]);
                    write(inner, style, out);
                    out.push_str(&braces[1..]);
                }
            }
            out.extend([after, end]);
        }
    }

    /// `quote` is the mark, or what lies between two halves of the text and their marks.
    fn quoted(text: &str, quote: &str, out: &mut String) {
        out.push_str(&quote[..1]);
        for (index, character) in text.chars().enumerate() {
            if quote.len() > 1 && index == 3 {
                // A text in two.
                out.extend([&quote[..1], " ", &quote[..1]]);
            }
            match character {
                '\n' => out.push_str("\\n"),
                '"' | '\'' | '\\' => out.extend(['\\', character]),
                _ if index % 4 == 1 => out.push_str(&format!("\\U{:08x}", u32::from(character))),
                _ if index % 4 == 2 => out.extend(character.to_string().bytes().map(|byte| format!("\\{byte:03o}"))),
                _ => out.push(character),
            }
        }
        out.push_str(&quote[..1]);
    }

    proptest! {
        #[test]
        fn however_it_is_written_it_is_the_same(message in messages(), style in vec(any::<u8>(), 0..200)) {
            let mut text = String::new();
            write(&message, &mut style.into_iter(), &mut text);
            prop_assert_eq!(parse(&text), Ok(message), "{}", text);
        }

        #[test]
        fn whatever_it_is_it_is_read_or_refused(
            pieces in vec(prop_oneof![
                proptest::sample::select(vec![
                    "a", ":", "{", "}", "<", ">", "[", "]", ",", ";", "\"", "'", "\\", "\\x", "\\7", "\\u12", "#", "\n", "-1", "\0", "\u{a0}",
                ]).prop_map(String::from),
                any::<char>().prop_map(String::from),
            ], 0..60),
        ) {
            let text = pieces.concat();
            match parse(&text) {
                Ok(message) => prop_assert!(message.0.iter().all(|(name, _)| !name.is_empty())),
                Err(error) => {
                    let line = error.strip_prefix("line ").and_then(|rest| rest.split(':').next()?.parse::<usize>().ok());
                    prop_assert!(line.is_some_and(|line| (1..=text.matches('\n').count() + 1).contains(&line)), "{}", error);
                }
            }
        }
    }
}
