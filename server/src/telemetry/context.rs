//! Who a request is: its id, and its place in a trace as W3C Trace Context writes it.

use http::{HeaderMap, HeaderName, HeaderValue};
use opentelemetry::trace::{SpanContext, SpanId, TraceFlags, TraceId, TraceState};

/// The header that names a request.
pub(super) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const TRACE_PARENT: HeaderName = HeaderName::from_static("traceparent");
const TRACE_STATE: HeaderName = HeaderName::from_static("tracestate");
/// Characters of an id that a client may choose.
const LONGEST_ID: usize = 128;
/// What vendors may hand on; RFC-wise more may be cut off.
const LONGEST_STATE: usize = 512;

/// The request's id. One that is missing, too long or not visible ASCII is replaced, so that handlers and logs need
/// not look at it again.
pub(super) fn request_id(headers: &mut HeaderMap) -> HeaderValue {
    if let Some(id) = headers.get(REQUEST_ID)
        && (1..=LONGEST_ID).contains(&id.len())
        && id.as_bytes().iter().all(u8::is_ascii_graphic)
    {
        return id.clone();
    }
    let mut text = [0; uuid::fmt::Hyphenated::LENGTH];
    let text = uuid::Uuid::new_v4().hyphenated().encode_lower(&mut text);
    let id = HeaderValue::from_str(text).unwrap_or(HeaderValue::from_static("0"));
    headers.insert(REQUEST_ID, id.clone());
    id
}

/// The caller's span, or `None` where there is none or it is not written as the recommendation says.
pub(super) fn parent(headers: &HeaderMap) -> Option<SpanContext> {
    let mut parents = headers.get_all(TRACE_PARENT).iter();
    let (Some(parent), None) = (parents.next(), parents.next()) else { return None };
    let (trace, span, flags) = parse(parent.as_bytes())?;
    Some(SpanContext::new(trace, span, flags, true, state(headers)))
}

/// `00-<32 hexadecimal digits>-<16>-<2>`; later versions may go on after another dash.
fn parse(text: &[u8]) -> Option<(TraceId, SpanId, TraceFlags)> {
    let (text, rest) = text.split_at_checked(55)?;
    let version = hex(&text[..2])?;
    let tail_fits = if version == 0 { rest.is_empty() } else { rest.first().is_none_or(|byte| *byte == b'-') };
    let dashes = [2, 35, 52].iter().all(|at| text[*at] == b'-');
    if version == 0xff || !tail_fits || !dashes {
        return None;
    }
    let trace = TraceId::from(hex(&text[3..35])?);
    let span = SpanId::from(hex(&text[36..52])? as u64);
    let flags = TraceFlags::new(hex(&text[53..55])? as u8) & TraceFlags::SAMPLED;
    (trace != TraceId::INVALID && span != SpanId::INVALID).then_some((trace, span, flags))
}

/// Lower case alone: the recommendation tells receivers to refuse the rest.
fn hex(digits: &[u8]) -> Option<u128> {
    digits.iter().try_fold(0, |number, digit| {
        let digit = match digit {
            b'0'..=b'9' => digit - b'0',
            b'a'..=b'f' => digit - b'a' + 10,
            _ => return None,
        };
        Some(number << 4 | u128::from(digit))
    })
}

/// A state that cannot be read is left out; the trace goes on without it.
fn state(headers: &HeaderMap) -> TraceState {
    let values: Option<Vec<&str>> = headers.get_all(TRACE_STATE).iter().map(|value| value.to_str().ok()).collect();
    let text = values.unwrap_or_default().join(",");
    if text.is_empty() || text.len() > LONGEST_STATE {
        return TraceState::NONE;
    }
    text.parse().unwrap_or(TraceState::NONE)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
    const SPAN: &str = "00f067aa0ba902b7";

    #[test]
    fn trace_parents() {
        let good = format!("00-{TRACE}-{SPAN}-01");
        let cases = [
            (good.clone(), Some(true)),
            (format!("00-{TRACE}-{SPAN}-00"), Some(false)),
            (format!("00-{TRACE}-{SPAN}-ff"), Some(true)),
            (format!("01-{TRACE}-{SPAN}-01"), Some(true)),
            (format!("cc-{TRACE}-{SPAN}-01-more"), Some(true)),
            (format!("cc-{TRACE}-{SPAN}-01more"), None),
            (format!("{good}-more"), None),
            (format!("{good} "), None),
            (format!("ff-{TRACE}-{SPAN}-01"), None),
            (format!("0-{TRACE}-{SPAN}-001"), None),
            (good.to_uppercase(), None),
            (good.replace('-', "_"), None),
            (good.replace('4', "g"), None),
            (format!("00-{}-{SPAN}-01", "0".repeat(32)), None),
            (format!("00-{TRACE}-{}-01", "0".repeat(16)), None),
            (good[..54].to_owned(), None),
            (String::new(), None),
        ];
        for (text, expected) in cases {
            let mut headers = HeaderMap::new();
            headers.insert(TRACE_PARENT, text.parse().unwrap());
            let parent = parent(&headers);
            assert_eq!(parent.as_ref().map(|parent| parent.is_sampled()), expected, "{text}");
            if let Some(parent) = parent {
                assert_eq!((parent.trace_id().to_string(), parent.span_id().to_string()), (TRACE.into(), SPAN.into()));
            }
        }
        let mut headers = HeaderMap::new();
        headers.append(TRACE_PARENT, good.parse().unwrap());
        headers.append(TRACE_PARENT, good.parse().unwrap());
        assert!(parent(&headers).is_none(), "two parents are none");
    }

    #[test]
    fn trace_states() {
        let with = |values: &[&str]| {
            let mut headers = HeaderMap::new();
            headers.insert(TRACE_PARENT, format!("00-{TRACE}-{SPAN}-01").parse().unwrap());
            for value in values {
                headers.append(TRACE_STATE, value.parse().unwrap());
            }
            parent(&headers).unwrap().trace_state().header()
        };
        assert_eq!(with(&["a=1,b=2"]), "a=1,b=2");
        assert_eq!(with(&["a=1", "b=2"]), "a=1,b=2");
        assert_eq!(with(&["no"]), "");
        assert_eq!(with(&[&format!("a={}", "x".repeat(600))]), "");
    }

    #[test]
    fn request_ids() {
        let id = |given: Option<&[u8]>| {
            let mut headers = HeaderMap::new();
            if let Some(given) = given {
                headers.insert(REQUEST_ID, HeaderValue::from_bytes(given).unwrap());
            }
            let id = request_id(&mut headers);
            assert_eq!(headers.get(REQUEST_ID), Some(&id));
            id.as_bytes().to_vec()
        };
        let longest = [b'x'; 128];
        for kept in [&b"abc-123"[..], b"!~", &longest] {
            assert_eq!(id(Some(kept)), kept);
        }
        for replaced in [None, Some(&b""[..]), Some(b"a b"), Some(b"a\tb"), Some(&[0xe9]), Some(&[b'x'; 129])] {
            assert_eq!(id(replaced).len(), 36);
        }
        assert_ne!(id(None), id(None));
    }
}
