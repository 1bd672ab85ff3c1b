//! Protobuf's wire format, read in place: keys, numbers and lengths, each held against the bytes that are left. Knows
//! no message of ONNX, and allocates nothing but texts of errors.
//!
//! Numbers are read as protobuf's own library reads them, or refused; groups, which it passes over, are refused.

/// Bytes of a number: seven bits each, of 64.
const VARINT_BYTES: usize = 10;

/// The bytes of a message, and where in the file they begin.
#[derive(Clone, Copy, Debug)]
pub(super) struct Message<'a> {
    bytes: &'a [u8],
    pub(super) at: usize,
}

impl<'a> Message<'a> {
    /// The message that a file is.
    pub(super) fn file(bytes: &'a [u8]) -> Self {
        Message { bytes, at: 0 }
    }

    /// Its fields in the order in which they stand; ends with the first fault.
    pub(super) fn fields(self) -> Fields<'a> {
        Fields { rest: self.bytes, at: self.at }
    }

    /// Its length.
    pub(super) fn len(self) -> u64 {
        self.bytes.len() as u64
    }

    /// What it consists of.
    pub(super) fn bytes(self) -> &'a [u8] {
        self.bytes
    }

    /// It as text.
    pub(super) fn text(self) -> Result<&'a str, String> {
        std::str::from_utf8(self.bytes).map_err(|_| format!("byte {}: a name that is not UTF-8", self.at))
    }
}

/// A field of a message.
#[derive(Clone, Copy, Debug)]
pub(super) struct Field<'a> {
    pub(super) number: u32,
    pub(super) at: usize,
    value: Value<'a>,
}

#[derive(Clone, Copy, Debug)]
enum Value<'a> {
    Number(u64),
    Four,
    Eight,
    Bytes(Message<'a>),
}

/// How the values of a list are written.
#[derive(Clone, Copy, Debug)]
pub(super) enum Width {
    /// Numbers of any length.
    Varint,
    /// Four bytes each.
    Four,
    /// Eight bytes each.
    Eight,
}

impl<'a> Field<'a> {
    /// A message, a text, or bytes.
    pub(super) fn message(&self) -> Result<Message<'a>, String> {
        match self.value {
            Value::Bytes(message) => Ok(message),
            _ => Err(self.misfit()),
        }
    }

    /// A name.
    pub(super) fn text(&self) -> Result<&'a str, String> {
        self.message()?.text()
    }

    /// A whole number.
    pub(super) fn whole(&self) -> Result<i64, String> {
        match self.value {
            Value::Number(number) => Ok(number as i64),
            _ => Err(self.misfit()),
        }
    }

    /// A whole number or a constant of 32 bits: of more, protobuf drops the upper ones.
    pub(super) fn whole_32(&self) -> Result<i32, String> {
        self.whole().map(|number| number as i32)
    }

    /// Whole numbers of a list, one or packed.
    pub(super) fn wholes(&self, mut take: impl FnMut(i64)) -> Result<(), String> {
        match self.value {
            Value::Number(number) => take(number as i64),
            Value::Bytes(packed) => {
                let mut numbers = packed.fields();
                while !numbers.rest.is_empty() {
                    take(numbers.varint()? as i64);
                }
            }
            _ => return Err(self.misfit()),
        }
        Ok(())
    }

    /// How many values of a list stand here, one or packed.
    pub(super) fn count(&self, width: Width) -> Result<u64, String> {
        let packed = |bytes: &[u8], each: usize| bytes.len().is_multiple_of(each).then_some(bytes.len() / each);
        let count = match (self.value, width) {
            (Value::Number(_), Width::Varint) | (Value::Four, Width::Four) | (Value::Eight, Width::Eight) => Some(1),
            (Value::Bytes(Message { bytes, .. }), Width::Four) => packed(bytes, 4),
            (Value::Bytes(Message { bytes, .. }), Width::Eight) => packed(bytes, 8),
            // The last byte of each number lacks the upper bit.
            (Value::Bytes(Message { bytes, .. }), Width::Varint) => {
                let whole = bytes.last().is_none_or(|byte| *byte < 0x80);
                whole.then(|| bytes.iter().filter(|byte| **byte < 0x80).count())
            }
            _ => None,
        };
        count.map(|count| count as u64).ok_or_else(|| self.misfit())
    }

    fn misfit(&self) -> String {
        format!("byte {}: field {} is not written as its type is", self.at, self.number)
    }
}

/// A message that may stand once. Protobuf joins a second one to it, so that neither alone is what the library reads.
pub(super) fn once<'a>(place: &mut Option<Message<'a>>, field: &Field<'a>) -> Result<(), String> {
    match place.replace(field.message()?) {
        None => Ok(()),
        Some(_) => Err(twice(field)),
    }
}

/// Refuses the second of what may stand once.
pub(super) fn twice(field: &Field<'_>) -> String {
    format!("byte {}: field {} stands twice, where once is right", field.at, field.number)
}

/// What is left of a message.
#[derive(Clone, Debug)]
pub(super) struct Fields<'a> {
    rest: &'a [u8],
    at: usize,
}

impl<'a> Fields<'a> {
    /// The next bytes, if there are so many.
    pub(super) fn bytes(&mut self, count: u64) -> Option<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(usize::try_from(count).ok()?)?;
        self.rest = rest;
        self.at += taken.len();
        Some(taken)
    }

    /// A number of up to 64 bits.
    pub(super) fn varint(&mut self) -> Result<u64, String> {
        let mut value = 0;
        for (index, &byte) in self.rest.iter().take(VARINT_BYTES).enumerate() {
            // One bit is left for the last byte.
            if index + 1 == VARINT_BYTES && byte > 1 {
                return Err(format!("byte {}: a number of more than 64 bits", self.at));
            }
            value |= u64::from(byte & 0x7f) << (7 * index);
            if byte < 0x80 {
                self.rest = &self.rest[index + 1..];
                self.at += index + 1;
                return Ok(value);
            }
        }
        Err(format!("byte {}: a number is expected, but what it stands in ends", self.at))
    }

    /// A field's number and wire type.
    pub(super) fn key(&mut self) -> Result<(u32, u64), String> {
        let at = self.at;
        let key = self.varint()?;
        let number = u32::try_from(key >> 3).ok().filter(|number| (1..1 << 29).contains(number));
        let number = number.ok_or_else(|| format!("byte {at}: there is no field {}; the file is damaged", key >> 3))?;
        Ok((number, key & 7))
    }

    fn field(&mut self) -> Result<Field<'a>, String> {
        let at = self.at;
        let (number, kind) = self.key()?;
        let value = match kind {
            0 => Value::Number(self.varint()?),
            1 => self.fixed(8).map(|()| Value::Eight)?,
            2 => {
                let length = self.varint()?;
                let start = self.at;
                Value::Bytes(Message { bytes: self.exactly(length)?, at: start })
            }
            5 => self.fixed(4).map(|()| Value::Four)?,
            _ => return Err(format!("byte {at}: wire type {kind}, which no ONNX file has; the file is damaged")),
        };
        Ok(Field { number, at, value })
    }

    fn fixed(&mut self, count: u64) -> Result<(), String> {
        self.exactly(count).map(|_| ())
    }

    fn exactly(&mut self, count: u64) -> Result<&'a [u8], String> {
        let (at, left) = (self.at, self.rest.len());
        self.bytes(count).ok_or_else(|| format!("byte {at}: {count} bytes are announced, {left} are left"))
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<Field<'a>, String>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_err() {
            self.rest = &[];
        }
        Some(field)
    }
}
