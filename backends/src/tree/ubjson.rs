//! Universal Binary JSON, the subset that XGBoost writes (and a little more): big-endian numbers behind a type byte,
//! typed arrays without a closing bracket. `H` and `N` do not occur.
//!
//! A count is compared with the bytes that are left before anything is allocated for it.

use super::reader::{Fault, MAX_DEPTH, Reader};

pub(crate) struct Ubjson<'a> {
    data: &'a [u8],
    at: usize,
    open: Vec<Open>,
}

/// A container that was entered.
enum Open {
    /// Up to its closing bracket.
    Bracketed,
    /// This many more, each with its type byte, or all of one type.
    Counted { left: usize, kind: Option<u8> },
}

impl<'a> Ubjson<'a> {
    pub(crate) fn new(data: &'a [u8]) -> Self {
        Ubjson { data, at: 0, open: Vec::new() }
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], Fault> {
        let end = self.at.checked_add(count).filter(|&end| end <= self.data.len());
        let end = end.ok_or_else(|| self.fault(format!("{count} bytes are expected, but the file ends")))?;
        let taken = &self.data[self.at..end];
        self.at = end;
        Ok(taken)
    }

    fn byte(&mut self) -> Result<u8, Fault> {
        Ok(self.take(1)?[0])
    }

    fn peek(&self) -> Option<u8> {
        self.data.get(self.at).copied()
    }

    /// The type of the next value: from the container, or its own byte.
    fn kind(&mut self) -> Result<u8, Fault> {
        if let Some(Open::Counted { kind: Some(kind), .. }) = self.open.last() {
            return Ok(*kind);
        }
        self.byte()
    }

    fn integer_of(&mut self, kind: u8) -> Result<i64, Fault> {
        Ok(match kind {
            b'i' => self.byte()? as i8 as i64,
            b'U' | b'C' => self.byte()? as i64,
            b'I' => i16::from_be_bytes(self.fixed()?) as i64,
            b'l' => i32::from_be_bytes(self.fixed()?) as i64,
            b'L' => i64::from_be_bytes(self.fixed()?),
            b'T' => 1,
            b'F' => 0,
            _ => return Err(self.fault(format!("type '{}' where a whole number is expected", kind.escape_ascii()))),
        })
    }

    fn float_of(&mut self, kind: u8) -> Result<f32, Fault> {
        match kind {
            b'd' => Ok(f32::from_be_bytes(self.fixed()?)),
            b'D' => Ok(f64::from_be_bytes(self.fixed()?) as f32),
            _ => self.integer_of(kind).map(|v| v as f32),
        }
    }

    fn fixed<const N: usize>(&mut self) -> Result<[u8; N], Fault> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N)?);
        Ok(out)
    }

    fn length(&mut self) -> Result<usize, Fault> {
        let kind = self.byte()?;
        let length = self.integer_of(kind)?;
        usize::try_from(length).map_err(|_| self.fault(format!("length {length}")))
    }

    fn text(&mut self) -> Result<String, Fault> {
        let length = self.length()?;
        let bytes = self.take(length)?.to_vec();
        String::from_utf8(bytes).map_err(|_| self.fault("a string is not UTF-8"))
    }

    /// Enters a container: reads `$type` and `#count` where they stand.
    fn enter(&mut self, bracket: u8) -> Result<(), Fault> {
        let found = self.kind()?;
        if found != bracket {
            return Err(self.fault(format!("expected '{}', found '{}'", bracket as char, found.escape_ascii())));
        }
        self.enter_rest()
    }

    fn enter_rest(&mut self) -> Result<(), Fault> {
        if self.open.len() >= MAX_DEPTH {
            return Err(self.fault(format!("nested deeper than {MAX_DEPTH}")));
        }
        let kind = if self.peek() == Some(b'$') {
            self.at += 1;
            Some(self.byte()?)
        } else {
            None
        };
        if self.peek() != Some(b'#') {
            if kind.is_some() {
                return Err(self.fault("a typed array has no count"));
            }
            self.open.push(Open::Bracketed);
            return Ok(());
        }
        self.at += 1;
        let left = self.length()?;
        // Types without a payload are never written like this; counted as a byte, they cost no more than the file.
        let least = kind.map_or(1, size_of_kind).max(1);
        if left.checked_mul(least).is_none_or(|bytes| bytes > self.data.len() - self.at) {
            return Err(self.fault(format!("{left} elements do not fit into what is left of the file")));
        }
        self.open.push(Open::Counted { left, kind });
        Ok(())
    }

    fn advance(&mut self, close: u8) -> Result<bool, Fault> {
        let closes = self.peek() == Some(close);
        match self.open.last_mut() {
            None => Err(self.fault("nothing is open")),
            Some(Open::Counted { left: 0, .. }) => {
                self.open.pop();
                Ok(false)
            }
            Some(Open::Counted { left, .. }) => {
                *left -= 1;
                Ok(true)
            }
            Some(Open::Bracketed) if closes => {
                self.at += 1;
                self.open.pop();
                Ok(false)
            }
            Some(Open::Bracketed) => Ok(true),
        }
    }

    /// An array of scalars; typed arrays are read in one go.
    fn scalars<T>(&mut self, read: fn(&mut Self, u8) -> Result<T, Fault>) -> Result<Vec<T>, Fault> {
        self.array()?;
        let mut out = Vec::new();
        if let Some(Open::Counted { left, .. }) = self.open.last() {
            out.reserve_exact(*left);
        }
        while self.element()? {
            let kind = self.kind()?;
            out.push(read(self, kind)?);
        }
        Ok(out)
    }

    fn skip_kind(&mut self, kind: u8) -> Result<(), Fault> {
        match kind {
            b'Z' | b'T' | b'F' | b'N' => Ok(()),
            b'S' => self.text().map(|_| ()),
            b'{' => {
                self.enter_rest()?;
                while self.key()?.is_some() {
                    self.skip()?;
                }
                Ok(())
            }
            b'[' => {
                self.enter_rest()?;
                if let Some(Open::Counted { left, kind: Some(kind) }) = self.open.last()
                    && size_of_kind(*kind) > 0
                    && !matches!(kind, b'[' | b'{' | b'S')
                {
                    let bytes = left * size_of_kind(*kind);
                    self.take(bytes)?;
                    self.open.pop();
                    return Ok(());
                }
                while self.element()? {
                    self.skip()?;
                }
                Ok(())
            }
            _ => match size_of_kind(kind) {
                0 => Err(self.fault(format!("unknown type '{}'", kind.escape_ascii()))),
                size => self.take(size).map(|_| ()),
            },
        }
    }
}

/// Bytes behind the type byte, at least.
fn size_of_kind(kind: u8) -> usize {
    match kind {
        b'i' | b'U' | b'C' | b'S' | b'[' | b'{' => 1,
        b'I' => 2,
        b'l' | b'd' => 4,
        b'L' | b'D' => 8,
        _ => 0,
    }
}

impl Reader for Ubjson<'_> {
    fn fault(&self, what: impl Into<String>) -> Fault {
        Fault { what: what.into(), at: self.at }
    }

    fn object(&mut self) -> Result<(), Fault> {
        self.enter(b'{')
    }

    fn key(&mut self) -> Result<Option<String>, Fault> {
        if !self.advance(b'}')? {
            return Ok(None);
        }
        self.text().map(Some)
    }

    fn array(&mut self) -> Result<(), Fault> {
        self.enter(b'[')
    }

    fn element(&mut self) -> Result<bool, Fault> {
        self.advance(b']')
    }

    fn string(&mut self) -> Result<String, Fault> {
        match self.kind()? {
            b'S' => self.text(),
            found => Err(self.fault(format!("expected text, found type '{}'", found.escape_ascii()))),
        }
    }

    fn integer(&mut self) -> Result<i64, Fault> {
        let kind = self.kind()?;
        self.integer_of(kind)
    }

    fn floats(&mut self) -> Result<Vec<f32>, Fault> {
        self.scalars(Self::float_of)
    }

    fn integers(&mut self) -> Result<Vec<i64>, Fault> {
        self.scalars(Self::integer_of)
    }

    fn skip(&mut self) -> Result<(), Fault> {
        let kind = self.kind()?;
        self.skip_kind(kind)
    }

    fn here(&self) -> usize {
        self.at
    }

    fn go(&mut self, place: usize) {
        self.at = place;
    }

    fn end(&mut self) -> Result<(), Fault> {
        if self.at == self.data.len() { Ok(()) } else { Err(self.fault("something follows the document")) }
    }
}
