//! Writing replies. Numbers are printed in the shortest form that reads back as the same number; what JSON has no
//! numbers for is printed as the caller says.

/// How not-a-number and the infinities are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotFinite {
    /// `null`: every JSON reader takes it.
    Null,
    /// `NaN`, `Infinity`, `-Infinity`: what Triton writes and Python reads.
    Token,
}

/// Appends text as a JSON string.
pub fn string(out: &mut Vec<u8>, text: &str) {
    out.push(b'"');
    // Nearly always there is nothing to escape. Without a way out of the loop it is vectorised.
    let escapes = |byte: u8| byte < 0x20 || byte == b'"' || byte == b'\\';
    if !text.bytes().fold(false, |any, byte| any | escapes(byte)) {
        out.extend_from_slice(text.as_bytes());
        out.push(b'"');
        return;
    }
    let mut start = 0;
    for (i, byte) in text.bytes().enumerate() {
        let escape: &[u8] = match byte {
            b'"' => b"\\\"",
            b'\\' => b"\\\\",
            b'\n' => b"\\n",
            b'\r' => b"\\r",
            b'\t' => b"\\t",
            0..=0x1f => b"",
            _ => continue,
        };
        out.extend_from_slice(&text.as_bytes()[start..i]);
        if escape.is_empty() {
            out.extend_from_slice(format!("\\u{byte:04x}").as_bytes());
        } else {
            out.extend_from_slice(escape);
        }
        start = i + 1;
    }
    out.extend_from_slice(&text.as_bytes()[start..]);
    out.push(b'"');
}

/// Appends `"name":`, with a comma before it unless it is the first of its object.
pub fn key(out: &mut Vec<u8>, name: &str) {
    if out.last() != Some(&b'{') {
        out.push(b',');
    }
    string(out, name);
    out.push(b':');
}

/// Appends a 32-bit float.
pub fn f32(out: &mut Vec<u8>, value: f32, not_finite: NotFinite) {
    if value.is_finite() {
        out.extend_from_slice(zmij::Buffer::new().format_finite(value).as_bytes());
    } else {
        special(out, value as f64, not_finite);
    }
}

/// Appends a 64-bit float.
pub fn f64(out: &mut Vec<u8>, value: f64, not_finite: NotFinite) {
    if value.is_finite() {
        out.extend_from_slice(zmij::Buffer::new().format_finite(value).as_bytes());
    } else {
        special(out, value, not_finite);
    }
}

fn special(out: &mut Vec<u8>, value: f64, not_finite: NotFinite) {
    let token: &[u8] = match not_finite {
        NotFinite::Null => b"null",
        NotFinite::Token if value.is_nan() => b"NaN",
        NotFinite::Token if value > 0.0 => b"Infinity",
        NotFinite::Token => b"-Infinity",
    };
    out.extend_from_slice(token);
}

/// Appends a whole number.
pub fn integer(out: &mut Vec<u8>, value: impl itoa::Integer) {
    out.extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
}

/// Appends a list of whole numbers.
pub fn integers(out: &mut Vec<u8>, values: impl IntoIterator<Item = impl itoa::Integer>) {
    list(out, values, |out, value| integer(out, value));
}

/// Appends a list.
pub fn list<T>(out: &mut Vec<u8>, values: impl IntoIterator<Item = T>, write: impl Fn(&mut Vec<u8>, T)) {
    out.push(b'[');
    for (i, value) in values.into_iter().enumerate() {
        if i > 0 {
            out.push(b',');
        }
        write(out, value);
    }
    out.push(b']');
}
