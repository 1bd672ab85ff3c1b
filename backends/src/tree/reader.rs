//! A pull reader over a self-describing document, in whichever encoding: [`super::json`] or [`super::ubjson`].
//!
//! A format's reader asks for what it expects next and skips what it does not know; nothing is built that nobody
//! asked for. Errors carry the byte at which they arose.

use std::fmt;

/// Objects and arrays may lie this deep in each other.
pub(crate) const MAX_DEPTH: usize = 64;

/// What is wrong, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Fault {
    /// What is wrong.
    pub(crate) what: String,
    /// Byte offset in the file.
    pub(crate) at: usize,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (byte {})", self.what, self.at)
    }
}

/// Reads one document, front to back.
pub(crate) trait Reader {
    /// A fault at the current place.
    fn fault(&self, what: impl Into<String>) -> Fault;
    /// Enters an object.
    fn object(&mut self) -> Result<(), Fault>;
    /// The next key of the object entered last; `None` at its end.
    fn key(&mut self) -> Result<Option<String>, Fault>;
    /// Enters an array.
    fn array(&mut self) -> Result<(), Fault>;
    /// Is there another element in the array entered last? If not, it is left.
    fn element(&mut self) -> Result<bool, Fault>;
    /// Text.
    fn string(&mut self) -> Result<String, Fault>;
    /// A whole number.
    fn integer(&mut self) -> Result<i64, Fault>;
    /// An array of numbers, each rounded once to 32 bits.
    fn floats(&mut self) -> Result<Vec<f32>, Fault>;
    /// An array of whole numbers (or true and false).
    fn integers(&mut self) -> Result<Vec<i64>, Fault>;
    /// Passes over a value.
    fn skip(&mut self) -> Result<(), Fault>;
    /// A place to come back to, at a value.
    fn here(&self) -> usize;
    /// Goes back (or forth) to such a place, in the same object.
    fn go(&mut self, place: usize);
    /// The document is over; anything behind it is a fault.
    fn end(&mut self) -> Result<(), Fault>;

    /// An array of text.
    fn strings(&mut self) -> Result<Vec<String>, Fault> {
        let mut strings = Vec::new();
        self.array()?;
        while self.element()? {
            strings.push(self.string()?);
        }
        Ok(strings)
    }

    /// An array of whole numbers of a narrower type.
    fn narrow<T: TryFrom<i64>>(&mut self) -> Result<Vec<T>, Fault> {
        let wide = self.integers()?;
        wide.into_iter()
            .map(|v| T::try_from(v).map_err(|_| self.fault(format!("{v} does not fit its field"))))
            .collect()
    }
}
