//! JSON text as tree libraries write it: numbers go straight to 32-bit floats (by way of 64 bits they could be rounded
//! twice), and `NaN`, `Infinity` and `-Infinity` are numbers. Not a general JSON parser: requests have their own.

use super::reader::{Fault, MAX_DEPTH, Reader};

pub(crate) struct Json<'a> {
    text: &'a [u8],
    at: usize,
    /// For every object or array entered: has its first element been read?
    open: Vec<bool>,
}

impl<'a> Json<'a> {
    pub(crate) fn new(text: &'a [u8]) -> Self {
        Json { text, at: 0, open: Vec::new() }
    }

    fn space(&mut self) {
        while let Some(b' ' | b'\n' | b'\r' | b'\t') = self.text.get(self.at) {
            self.at += 1;
        }
    }

    fn peek(&mut self) -> Option<u8> {
        self.space();
        self.text.get(self.at).copied()
    }

    fn expect(&mut self, byte: u8) -> Result<(), Fault> {
        match self.peek() {
            Some(found) if found == byte => {
                self.at += 1;
                Ok(())
            }
            Some(found) => Err(self.fault(format!("expected '{}', found '{}'", byte as char, found.escape_ascii()))),
            None => Err(self.fault(format!("the file ends where '{}' is expected", byte as char))),
        }
    }

    fn enter(&mut self, byte: u8) -> Result<(), Fault> {
        self.expect(byte)?;
        if self.open.len() >= MAX_DEPTH {
            return Err(self.fault(format!("nested deeper than {MAX_DEPTH}")));
        }
        self.open.push(false);
        Ok(())
    }

    /// Moves to the next entry of the innermost container; false (and leaves it) at `close`.
    fn advance(&mut self, close: u8) -> Result<bool, Fault> {
        let started = self.open.last().copied().ok_or_else(|| self.fault("nothing is open"))?;
        match self.peek() {
            Some(byte) if byte == close => {
                self.at += 1;
                self.open.pop();
                return Ok(false);
            }
            Some(b',') if started => self.at += 1,
            Some(_) if !started => {}
            Some(found) => return Err(self.fault(format!("expected ',', found '{}'", found.escape_ascii()))),
            None => return Err(self.fault("the file ends inside a list or object")),
        }
        if let Some(started) = self.open.last_mut() {
            *started = true;
        }
        Ok(true)
    }

    /// The characters of a number, true, false, NaN or Infinity.
    fn token(&mut self) -> Result<&'a str, Fault> {
        self.space();
        let start = self.at;
        while let Some(b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z' | b'.' | b'+' | b'-') = self.text.get(self.at) {
            self.at += 1;
        }
        if start == self.at {
            return Err(self.fault("expected a number"));
        }
        std::str::from_utf8(&self.text[start..self.at]).map_err(|_| self.fault("not text"))
    }

    /// Fills `out` with the elements of an array of scalars, without a stack entry for each.
    fn scalars<T>(&mut self, parse: fn(&str) -> Option<T>) -> Result<Vec<T>, Fault> {
        let mut out = Vec::new();
        self.expect(b'[')?;
        if self.peek() == Some(b']') {
            self.at += 1;
            return Ok(out);
        }
        loop {
            let token = self.token()?;
            out.push(parse(token).ok_or_else(|| self.fault(format!("'{token}' is not a number of the right kind")))?);
            match self.peek() {
                Some(b',') => self.at += 1,
                Some(b']') => {
                    self.at += 1;
                    return Ok(out);
                }
                _ => return Err(self.fault("expected ',' or ']'")),
            }
        }
    }

    fn escape(&mut self, out: &mut Vec<u8>) -> Result<(), Fault> {
        let escape = self.text.get(self.at).copied();
        self.at += 1;
        match escape {
            Some(b'n') => out.push(b'\n'),
            Some(b't') => out.push(b'\t'),
            Some(b'r') => out.push(b'\r'),
            Some(b'b') => out.push(8),
            Some(b'f') => out.push(12),
            Some(byte @ (b'"' | b'\\' | b'/')) => out.push(byte),
            Some(b'u') => {
                let high = self.hex()?;
                let code = if (0xd800..0xdc00).contains(&high) && self.text[self.at..].starts_with(b"\\u") {
                    self.at += 2;
                    let low = self.hex()?;
                    0x10000 + ((high - 0xd800) << 10) + (low.wrapping_sub(0xdc00) & 0x3ff)
                } else {
                    high
                };
                let character = char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER);
                out.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
            }
            _ => return Err(self.fault("unknown escape in a string")),
        }
        Ok(())
    }

    fn hex(&mut self) -> Result<u32, Fault> {
        let digits = self.text.get(self.at..self.at + 4).and_then(|d| std::str::from_utf8(d).ok());
        let code = digits.and_then(|d| u32::from_str_radix(d, 16).ok());
        let code = code.ok_or_else(|| self.fault("expected four hexadecimal digits"))?;
        self.at += 4;
        Ok(code)
    }
}

impl Reader for Json<'_> {
    fn fault(&self, what: impl Into<String>) -> Fault {
        Fault { what: what.into(), at: self.at.min(self.text.len()) }
    }

    fn object(&mut self) -> Result<(), Fault> {
        self.enter(b'{')
    }

    fn key(&mut self) -> Result<Option<String>, Fault> {
        if !self.advance(b'}')? {
            return Ok(None);
        }
        let key = self.string()?;
        self.expect(b':')?;
        Ok(Some(key))
    }

    fn array(&mut self) -> Result<(), Fault> {
        self.enter(b'[')
    }

    fn element(&mut self) -> Result<bool, Fault> {
        self.advance(b']')
    }

    fn string(&mut self) -> Result<String, Fault> {
        self.expect(b'"')?;
        let mut out = Vec::new();
        loop {
            let rest = &self.text[self.at.min(self.text.len())..];
            let plain = rest.iter().position(|b| matches!(b, b'"' | b'\\'));
            let plain = plain.ok_or_else(|| self.fault("the file ends inside a string"))?;
            out.extend_from_slice(&rest[..plain]);
            self.at += plain + 1;
            if rest[plain] == b'"' {
                return String::from_utf8(out).map_err(|_| self.fault("a string is not UTF-8"));
            }
            self.escape(&mut out)?;
        }
    }

    fn integer(&mut self) -> Result<i64, Fault> {
        let token = self.token()?;
        parse_integer(token).ok_or_else(|| self.fault(format!("'{token}' is not a whole number")))
    }

    fn floats(&mut self) -> Result<Vec<f32>, Fault> {
        self.scalars(parse_float)
    }

    fn integers(&mut self) -> Result<Vec<i64>, Fault> {
        self.scalars(parse_integer)
    }

    fn skip(&mut self) -> Result<(), Fault> {
        match self.peek() {
            Some(b'{') => {
                self.object()?;
                while self.key()?.is_some() {
                    self.skip()?;
                }
                Ok(())
            }
            Some(b'[') => {
                self.array()?;
                while self.element()? {
                    self.skip()?;
                }
                Ok(())
            }
            Some(b'"') => self.skip_string(),
            Some(_) => match self.token()? {
                "null" | "true" | "false" => Ok(()),
                token if is_number(token) => Ok(()),
                token => Err(self.fault(format!("'{token}' is no value"))),
            },
            None => Err(self.fault("the file ends where a value is expected")),
        }
    }

    fn here(&self) -> usize {
        self.at
    }

    fn go(&mut self, place: usize) {
        self.at = place;
    }

    fn end(&mut self) -> Result<(), Fault> {
        match self.peek() {
            None => Ok(()),
            Some(_) => Err(self.fault("something follows the document")),
        }
    }
}

impl Json<'_> {
    fn skip_string(&mut self) -> Result<(), Fault> {
        self.at += 1;
        let mut unused = Vec::new();
        loop {
            let byte = self.text.get(self.at).copied();
            self.at += 1;
            match byte {
                Some(b'"') => return Ok(()),
                Some(b'\\') => self.escape(&mut unused)?,
                Some(_) => {}
                None => return Err(self.fault("the file ends inside a string")),
            }
        }
    }
}

/// Is this a number as the library spells them?
pub(crate) fn is_number(token: &str) -> bool {
    fn whole(text: &str) -> bool {
        !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
    }
    let magnitude = token.strip_prefix('-').unwrap_or(token);
    if matches!(magnitude, "NaN" | "Infinity") {
        return true;
    }
    let (mantissa, exponent) = magnitude.split_once(['e', 'E']).unwrap_or((magnitude, "0"));
    let (before, behind) = mantissa.split_once('.').unwrap_or((mantissa, "0"));
    whole(before) && whole(behind) && whole(exponent.strip_prefix(['+', '-']).unwrap_or(exponent))
}

/// A number rounded once to 32 bits; knows the spellings of not-a-number and infinity.
pub(crate) fn parse_float(token: &str) -> Option<f32> {
    token.parse().ok()
}

fn parse_integer(token: &str) -> Option<i64> {
    let digits = token.as_bytes();
    if digits.len() <= 9 && digits.iter().all(u8::is_ascii_digit) {
        return Some(digits.iter().fold(0, |n, d| n * 10 + (d - b'0') as i64));
    }
    match token {
        "true" => Some(1),
        "false" => Some(0),
        _ => token.parse().ok().or_else(|| {
            // Some writers print whole numbers as floats.
            let value: f64 = token.parse().ok()?;
            (value.fract() == 0.0 && value.abs() < 9e15).then_some(value as i64)
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_skipped_is_looked_at() {
        let skip = |text: &str| {
            let mut reader = Json::new(text.as_bytes());
            reader.skip().and_then(|()| reader.end())
        };
        for text in [
            "[]",
            "{}",
            "null",
            " [ 1 , -2.5E-3 , NaN , -Infinity , 1e+05 , true ] ",
            r#"{"a": [[], {"b": "}]\\\"\u00e9"}], "c": false}"#,
        ] {
            assert_eq!(skip(text), Ok(()), "{text}");
        }
        for text in [
            "[[}}",
            "[}",
            "{]",
            "[1 2]",
            "[,]",
            "[1,]",
            "{1}",
            r#"{"a"}"#,
            r#"{"a":}"#,
            r#"{"a":1,}"#,
            "abc",
            "[abc]",
            "1-2",
            "[.5]",
            "[1.]",
            "[1e]",
            "[+1]",
            "[--1]",
            "[nan]",
            r#""\q""#,
            r#""\u12""#,
            r#""a"#,
            r#""\"#,
            "",
            "[",
        ] {
            assert!(skip(text).is_err(), "{text}");
        }
    }
}
