//! Fields of log lines for people. The formatter that comes with the subscriber passes control characters in values
//! on: a client could write log lines of its own with them, or to the terminal of whoever reads the log.

use std::fmt::{Debug, Result, Write};
use tracing::field::Field;
use tracing_subscriber::fmt::format::Writer;

/// Writes a field, its value without any control character.
pub(super) fn field(writer: &mut Writer<'_>, field: &Field, value: &dyn Debug) -> Result {
    let name = field.name();
    if name != "message" && writer.has_ansi_escapes() {
        write!(writer, "\x1b[3m{name}\x1b[0m\x1b[2m=\x1b[0m")?;
    } else if name != "message" {
        write!(writer, "{name}=")?;
    }
    write!(Escaping(writer), "{value:?}")
}

/// A text without any control character, as a part of a line.
pub fn escaped(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    // A string takes whatever is written.
    let _ = Escaping(&mut line).write_str(text);
    line
}

struct Escaping<'a, W>(&'a mut W);

impl<W: Write> Write for Escaping<'_, W> {
    fn write_str(&mut self, text: &str) -> Result {
        for piece in text.split_inclusive(char::is_control) {
            match piece.chars().next_back() {
                Some(last) if last.is_control() => {
                    self.0.write_str(&piece[..piece.len() - last.len_utf8()])?;
                    write!(self.0, "{}", last.escape_default())?;
                }
                _ => self.0.write_str(piece)?,
            }
        }
        Ok(())
    }
}
