//! Server-sent events: what is appended to a stream for each. When to send which is not decided here.
//!
//! In an event every line of data has `data: ` before it, and an empty line ends it. Both `\n` and `\r` end a line, so
//! that neither may be let through as it is. JSON as serde writes it holds neither.

use serde::Serialize;

/// The content type of a stream.
pub const CONTENT_TYPE: &str = "text/event-stream; charset=utf-8";

/// The event that ends OpenAI's streams.
pub const DONE: &[u8] = b"data: [DONE]\n\n";

/// Appends an event that carries JSON. If the value cannot be JSON nothing is appended.
///
/// # Errors
/// The value is a map with keys that are no text, or the like; types of this crate are not.
pub fn event<T: Serialize + ?Sized>(out: &mut Vec<u8>, data: &T) -> Result<(), serde_json::Error> {
    let start = out.len();
    out.extend_from_slice(b"data: ");
    if let Err(error) = serde_json::to_writer(&mut *out, data) {
        out.truncate(start);
        return Err(error);
    }
    out.extend_from_slice(b"\n\n");
    Ok(())
}

/// Appends an event with a name, as Anthropic's streams have it.
///
/// # Errors
/// As for [`event`].
pub fn named<T: Serialize + ?Sized>(out: &mut Vec<u8>, name: &str, data: &T) -> Result<(), serde_json::Error> {
    let start = out.len();
    out.extend_from_slice(b"event: ");
    // A name has one line.
    out.extend(name.bytes().filter(|b| !matches!(b, b'\n' | b'\r')));
    out.push(b'\n');
    event(out, data).inspect_err(|_| out.truncate(start))
}

/// Appends an event that carries text.
pub fn text(out: &mut Vec<u8>, text: &str) {
    lines(out, "data: ", text);
    out.push(b'\n');
}

/// Appends a comment, which clients pass over: it keeps a connection alive.
pub fn comment(out: &mut Vec<u8>, text: &str) {
    lines(out, ": ", text);
    out.push(b'\n');
}

fn lines(out: &mut Vec<u8>, prefix: &str, text: &str) {
    for line in text.split("\r\n").flat_map(|part| part.split(['\n', '\r'])) {
        out.extend_from_slice(prefix.as_bytes());
        out.extend_from_slice(line.as_bytes());
        out.push(b'\n');
    }
}
