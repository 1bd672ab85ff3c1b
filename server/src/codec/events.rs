//! CloudEvents around a v1 request: binary (attributes are headers) and structured (attributes are members of the
//! body), answered in kind.

use crate::error::Error;
use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderName};
use http::{HeaderMap, HeaderValue};
use protocol::json::Reader;
use protocol::write;
use std::time::{SystemTime, UNIX_EPOCH};

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
    let binary = ["ce-specversion", "ce-source", "ce-type", "ce-id"].iter().all(|name| headers.contains_key(*name));
    if binary {
        let version = headers.get("ce-specversion").map(|v| v.as_bytes()).unwrap_or_default();
        if !matches!(version, b"1.0" | b"0.3") {
            let version = version.escape_ascii();
            return Err(Error::Invalid(format!("ce-specversion '{version}' is not known; 1.0 and 0.3 are")));
        }
        return Ok((Event::Binary, body.clone()));
    }
    let stated = headers.get(CONTENT_TYPE).and_then(|v| v.to_str().ok()).is_some_and(|v| v.starts_with(STRUCTURED));
    if !stated && !mentions_specversion(body) {
        return Ok((Event::Plain, body.clone()));
    }
    let malformed = |e: protocol::json::JsonError| Error::Invalid(format!("Unrecognized request format: {e}"));
    let mut reader = Reader::new(body);
    let (mut data, mut seen) = (None, [false; ATTRIBUTES.len()]);
    let mut entries = reader.object().map_err(malformed)?;
    while let Some(key) = reader.key(&mut entries).map_err(malformed)? {
        let raw = reader.raw().map_err(malformed)?;
        if let Some(index) = ATTRIBUTES.iter().position(|name| *name == key) {
            seen[index] = true;
        } else if key == "data" {
            data = Some(body.slice_ref(raw));
        }
    }
    reader.end().map_err(malformed)?;
    match data {
        Some(data) if seen == [true; ATTRIBUTES.len()] => {
            Ok((if stated { Event::Structured } else { Event::Plain }, data))
        }
        _ if !stated => Ok((Event::Plain, body.clone())),
        _ => Err(Error::Invalid(format!("a structured CloudEvent needs {} and data", ATTRIBUTES.join(", ")))),
    }
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
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
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
