//! CloudEvents around a v1 request: binary (attributes are headers) and structured (attributes are members of the
//! body), answered in kind.

use crate::clock::since_1970;
use crate::error::Error;
use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderName};
use http::{HeaderMap, HeaderValue};
use protocol::json::{JsonError, Reader};
use protocol::write;

/// How a request was wrapped, and so how its reply will be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// Not at all.
    Plain,
    /// Attributes in headers.
    Binary,
    /// Attributes in the body.
    Structured,
}

const STRUCTURED: &str = "application/cloudevents+json";
/// Attributes that make a body an event; KServe asks for all of them.
const ATTRIBUTES: [&str; 5] = ["time", "type", "source", "id", "specversion"];

/// Takes a request out of its event, if it is in one.
///
/// # Errors
/// The body says that it is an event, but is none.
pub fn unwrap(headers: &HeaderMap, body: &Bytes) -> Result<(Event, Bytes), Error> {
    let stated = is_structured(headers);
    let binary = ["ce-specversion", "ce-source", "ce-type", "ce-id"].iter().all(|name| headers.contains_key(*name));
    // The content type says where the event is; its attributes may go along as headers for those who look no further.
    if binary && !stated {
        check_version(headers.get("ce-specversion").map(|v| v.as_bytes()).unwrap_or_default())?;
        return Ok((Event::Binary, body.clone()));
    }
    if !stated && !mentions_specversion(body) {
        return Ok((Event::Plain, body.clone()));
    }
    let event = Members::read(body).map_err(malformed)?;
    if !event.is_whole(stated) {
        if !stated {
            return Ok((Event::Plain, body.clone()));
        }
        let needed = ATTRIBUTES[1..].join(", ");
        return Err(Error::Invalid(format!(
            "a structured CloudEvent needs {needed}, and data or data_base64, each of them once"
        )));
    }
    let version = event.version.and_then(|raw| Reader::new(raw).string().ok()).unwrap_or_default();
    check_version(version.as_bytes())?;
    let data = match (event.data, event.base64) {
        (Some(data), _) => body.slice_ref(data),
        (None, Some(raw)) => {
            let text = Reader::new(raw).string().ok();
            let data = text.and_then(|text| base64(text.as_bytes()));
            Bytes::from(data.ok_or_else(|| Error::Invalid("data_base64 of a CloudEvent is not base64".into()))?)
        }
        (None, None) => Bytes::new(),
    };
    Ok((if stated { Event::Structured } else { Event::Plain }, data))
}

fn malformed(error: JsonError) -> Error {
    Error::Malformed(format!("Unrecognized request format: {error}"))
}

/// Does the content type say that the body is an event? Media types are compared without case, and without parameters.
fn is_structured(headers: &HeaderMap) -> bool {
    let stated = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    stated.split(';').next().unwrap_or_default().trim().eq_ignore_ascii_case(STRUCTURED)
}

fn check_version(version: &[u8]) -> Result<(), Error> {
    if matches!(version, b"1.0" | b"0.3") {
        return Ok(());
    }
    let shown = version[..version.len().min(32)].escape_ascii();
    Err(Error::Invalid(format!("specversion '{shown}' of a CloudEvent is not known; 1.0 and 0.3 are")))
}

/// The members of a body that make it an event, as written.
#[derive(Default)]
struct Members<'a> {
    seen: [bool; ATTRIBUTES.len()],
    version: Option<&'a [u8]>,
    data: Option<&'a [u8]>,
    base64: Option<&'a [u8]>,
    twice: bool,
}

impl<'a> Members<'a> {
    fn read(body: &'a [u8]) -> Result<Self, JsonError> {
        let (mut reader, mut members) = (Reader::new(body), Members::default());
        let mut entries = reader.object()?;
        while let Some(key) = reader.key(&mut entries)? {
            let raw = reader.raw()?;
            members.twice |= match &*key {
                "data" => members.data.replace(raw).is_some(),
                "data_base64" => members.base64.replace(raw).is_some(),
                other => {
                    if other == "specversion" {
                        members.version = Some(raw);
                    }
                    let index = ATTRIBUTES.iter().position(|name| *name == other);
                    index.is_some_and(|index| std::mem::replace(&mut members.seen[index], true))
                }
            };
        }
        reader.end()?;
        Ok(members)
    }

    /// Is all of an event there, once? The specification asks for no time; a body that is not stated to be an event is
    /// one, as KServe has it, if it has one.
    fn is_whole(&self, stated: bool) -> bool {
        let attributes = self.seen[1..].iter().all(|seen| *seen) && (stated || self.seen[0]);
        attributes && !self.twice && self.data.is_some() != self.base64.is_some()
    }
}

/// Bytes of base64 as RFC 4648 has it, with its padding.
fn base64(text: &[u8]) -> Option<Vec<u8>> {
    if !text.len().is_multiple_of(4) {
        return None;
    }
    let padding = text.iter().rev().take(2).take_while(|&&byte| byte == b'=').count();
    let mut out = Vec::with_capacity(text.len() / 4 * 3);
    for group in text[..text.len() - padding].chunks(4) {
        let mut bits = 0u32;
        for &byte in group {
            let value = match byte {
                b'A'..=b'Z' => byte - b'A',
                b'a'..=b'z' => byte - b'a' + 26,
                b'0'..=b'9' => byte - b'0' + 52,
                b'+' => 62,
                b'/' => 63,
                _ => return None,
            };
            bits = bits << 6 | u32::from(value);
        }
        let whole = group.len() * 6 / 8;
        bits <<= 6 * (4 - group.len());
        out.extend_from_slice(&bits.to_be_bytes()[1..=whole]);
    }
    Some(out)
}

/// A cheap look before the body is read as an event.
fn mentions_specversion(body: &[u8]) -> bool {
    // Tensors are long and events are not: the attributes stand near the front or the back.
    let window = 4096.min(body.len());
    let near = |part: &[u8]| part.windows(13).any(|w| w == b"\"specversion\"");
    near(&body[..window]) || near(&body[body.len() - window..])
}

impl Event {
    /// Wraps a reply: headers to add, and the body.
    pub fn wrap(self, model: &str, body: Vec<u8>) -> (HeaderMap, Vec<u8>) {
        let mut headers = HeaderMap::new();
        let id = uuid::Uuid::new_v4().to_string();
        let source = format!("io.kserve.inference.{model}");
        let attributes = [
            ("specversion", "1.0".to_owned()),
            ("id", id),
            ("source", source),
            ("type", "io.kserve.inference.response".to_owned()),
            ("time", now()),
        ];
        match self {
            Event::Plain => (headers, body),
            Event::Binary => {
                for (name, value) in attributes {
                    let name = HeaderName::try_from(format!("ce-{name}"));
                    if let (Ok(name), Ok(value)) = (name, HeaderValue::try_from(value)) {
                        headers.insert(name, value);
                    }
                }
                (headers, body)
            }
            Event::Structured => {
                headers.insert(CONTENT_TYPE, HeaderValue::from_static(STRUCTURED));
                let mut out = vec![b'{'];
                for (name, value) in attributes {
                    write::key(&mut out, name);
                    write::string(&mut out, &value);
                }
                write::key(&mut out, "data");
                out.extend_from_slice(&body);
                out.push(b'}');
                (headers, out)
            }
        }
    }
}

/// The time as RFC 3339 has it, in UTC.
fn now() -> String {
    let since = since_1970();
    let (days, seconds) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    let (year, month, day) = civil(days as i64);
    let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    let micros = since.subsec_micros();
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{micros:06}+00:00")
}

/// Days since 1970 to a date of the Gregorian calendar (Howard Hinnant's `civil_from_days`).
fn civil(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let era = days.div_euclid(146_097);
    let of_era = days.rem_euclid(146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * of_year + 2) / 153;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    (year, month, of_year - (153 * shifted + 2) / 5 + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(members: &str) -> String {
        format!(r#"{{"id": "1", "source": "s", "type": "t", "time": "now", {members}}}"#)
    }

    /// What a body is, and its data, under a content type.
    fn unwrapped(kind: &'static str, body: &str) -> Result<(Event, String), String> {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
        let (event, data) = unwrap(&headers, &Bytes::from(body.to_owned())).map_err(|error| error.message())?;
        Ok((event, String::from_utf8(data.to_vec()).unwrap()))
    }

    #[test]
    fn media_types_have_no_case() {
        let body = event(r#""specversion": "1.0", "data": {"instances": []}"#);
        let data = r#"{"instances": []}"#.to_owned();
        for kind in [STRUCTURED, "Application/CloudEvents+JSON", "application/cloudevents+json ; charset=utf-8"] {
            assert_eq!(unwrapped(kind, &body), Ok((Event::Structured, data.clone())), "{kind}");
        }
        for kind in ["application/json", "application/cloudevents+jsonp"] {
            assert_eq!(unwrapped(kind, &body), Ok((Event::Plain, data.clone())), "{kind}");
        }
    }

    #[test]
    fn the_content_type_tells_the_forms_apart() {
        let body = event(r#""specversion": "1.0", "data": []"#);
        for (kind, expected) in
            [(STRUCTURED, (Event::Structured, "[]")), ("application/json", (Event::Binary, body.as_str()))]
        {
            let mut headers = HeaderMap::new();
            for (name, value) in [("ce-specversion", "1.0"), ("ce-source", "s"), ("ce-type", "t"), ("ce-id", "1")] {
                headers.insert(name, HeaderValue::from_static(value));
            }
            headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
            let (event, data) = unwrap(&headers, &Bytes::from(body.clone())).unwrap();
            assert_eq!((event, data.as_ref()), (expected.0, expected.1.as_bytes()), "{kind}");
        }
    }

    #[test]
    fn both_forms_have_the_same_versions() {
        for version in ["1.0", "0.3"] {
            let body = event(&format!(r#""specversion": "{version}", "data": []"#));
            assert!(unwrapped(STRUCTURED, &body).is_ok(), "{version}");
        }
        for version in [r#""2.0""#, r#""1""#, "1.0", "null"] {
            let body = event(&format!(r#""specversion": {version}, "data": []"#));
            for kind in [STRUCTURED, "application/json"] {
                assert!(unwrapped(kind, &body).unwrap_err().contains("1.0 and 0.3 are"), "{version}");
            }
        }
        let mut headers = HeaderMap::new();
        for (name, value) in [("ce-specversion", "2.0"), ("ce-source", "s"), ("ce-type", "t"), ("ce-id", "1")] {
            headers.insert(name, HeaderValue::from_static(value));
        }
        assert!(unwrap(&headers, &Bytes::new()).unwrap_err().message().contains("specversion '2.0'"));
    }

    #[test]
    fn data_may_be_base64() {
        let body = event(r#""specversion": "1.0", "data_base64": "eyJpbnN0YW5jZXMiOltdfQ==""#);
        assert_eq!(unwrapped(STRUCTURED, &body), Ok((Event::Structured, r#"{"instances":[]}"#.into())));
        let body = event(r#""specversion": "1.0", "data_base64": "e30""#);
        assert!(unwrapped(STRUCTURED, &body).unwrap_err().contains("not base64"));
        for more in
            [r#""data": 1, "data_base64": "e30=""#, r#""data": 1, "data": 2"#, r#""data": 1, "id": "2""#, r#""x": 1"#]
        {
            let body = event(&format!(r#""specversion": "1.0", {more}"#));
            assert!(unwrapped(STRUCTURED, &body).unwrap_err().contains("each of them once"), "{more}");
            assert_eq!(unwrapped("application/json", &body), Ok((Event::Plain, body.clone())), "{more}");
        }
    }

    #[test]
    fn base64_is_that_of_the_rfc() {
        for (text, bytes) in [
            ("", &b""[..]),
            ("Zg==", b"f"),
            ("Zm8=", b"fo"),
            ("Zm9v", b"foo"),
            ("Zm9vYg==", b"foob"),
            ("+/+/", &[0xfb, 0xff, 0xbf]),
        ] {
            assert_eq!(base64(text.as_bytes()).as_deref(), Some(bytes), "{text}");
        }
        for text in ["Zg", "Zg=", "Z===", "====", "Zg==Zg==", "Z g=", "-_-_", "Zm8=\n"] {
            assert_eq!(base64(text.as_bytes()), None, "{text}");
        }
    }
}
