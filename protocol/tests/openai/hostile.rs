//! How much a request may ask for, at each limit and one beyond, and bodies that were made to do harm.

use crate::{ALL, chat, completion, parse, tool};
use proptest::prelude::*;
use protocol::openai::table::Endpoint;
use protocol::openai::*;
use serde_json::{Value, json};

/// (what, its limit, a request that has so many, of chats?)
type Limit = (&'static str, usize, fn(usize) -> Value, bool);

const LIMITS: &[Limit] = &[
    ("messages", limits::MESSAGES, |n| json!({"messages": vec![json!({"role": "user", "content": ""}); n]}), true),
    ("tools", limits::TOOLS, |n| json!({"tools": (0..n).map(|i| tool(&format!("f{i}"))).collect::<Vec<_>>()}), true),
    ("tools[0].function.name", limits::TOOL_NAME, |n| json!({"tools": [tool(&"a".repeat(n))]}), true),
    ("messages[0].tool_calls", limits::CALLS, calls, true),
    ("prompt", limits::PROMPTS, |n| json!({"prompt": vec!["a"; n]}), false),
    ("prompt", limits::PROMPTS, |n| json!({"prompt": vec![[1]; n]}), false),
    ("n", limits::CHOICES as usize, |n| json!({"n": n}), true),
    ("best_of", limits::CHOICES as usize, |n| json!({"best_of": n}), false),
    ("logprobs", limits::LOGPROBS as usize, |n| json!({"logprobs": n}), false),
    ("top_logprobs", limits::LOGPROBS as usize, |n| json!({"logprobs": true, "top_logprobs": n}), true),
    ("prompt_logprobs", limits::LOGPROBS as usize, |n| json!({"prompt_logprobs": n}), true),
    ("stop", limits::STOPS, |n| json!({"stop": vec!["a"; n]}), true),
    ("stop", limits::STOP_BYTES, |n| json!({"stop": "a".repeat(n)}), true),
    ("stop[0]", limits::STOP_BYTES, |n| json!({"stop": ["a".repeat(n)]}), false),
    ("stop_token_ids", limits::STOP_TOKENS, |n| json!({"stop_token_ids": vec![1; n]}), true),
    ("logit_bias", limits::LOGIT_BIAS, bias, true),
    ("allowed_token_ids", limits::ALLOWED_TOKENS, |n| json!({"allowed_token_ids": vec![1; n]}), true),
    ("bad_words", limits::BAD_WORDS, |n| json!({"bad_words": vec!["a"; n]}), false),
    ("bad_words[0]", limits::STOP_BYTES, |n| json!({"bad_words": ["a".repeat(n)]}), false),
    ("documents", limits::ENTRIES, |n| json!({"documents": vec![json!({}); n]}), true),
    ("structured_outputs.choice", limits::ENTRIES, |n| json!({"structured_outputs": {"choice": vec!["a"; n]}}), true),
    (
        "structured_outputs",
        limits::CONSTRAINT_BYTES - 12,
        |n| json!({"structured_outputs": {"regex": "a".repeat(n)}}),
        true,
    ),
    ("chat_template", limits::TEMPLATE_BYTES, |n| json!({"chat_template": "a".repeat(n)}), true),
    ("request_id", limits::REQUEST_ID_BYTES, |n| json!({"request_id": "a".repeat(n)}), true),
    ("cache_salt", limits::NAME_BYTES, |n| json!({"cache_salt": "a".repeat(n)}), true),
    ("chat_template_kwargs", limits::VALUES - 2, |n| json!({"chat_template_kwargs": {"a": vec![0; n]}}), true),
    ("", limits::KEYS - 1, |n| Value::Object((0..n).map(|i| (format!("x{i:03}"), Value::Null)).collect()), true),
];

fn calls(count: usize) -> Value {
    let call = json!({"id": "c", "function": {"name": "f", "arguments": ""}});
    json!({"messages": [{"role": "assistant", "tool_calls": vec![call; count]}]})
}

fn bias(count: usize) -> Value {
    json!({"logit_bias": (0..count).map(|i| (i.to_string(), json!(1))).collect::<serde_json::Map<_, _>>()})
}

#[test]
fn limits_hold_at_the_last_and_one_beyond() {
    for (what, most, request, is_chat) in LIMITS {
        let read = |n: usize| match is_chat {
            true => chat(request(n)).map(drop),
            false => completion(request(n)).map(drop),
        };
        read(*most).unwrap_or_else(|e| panic!("{what}: {most}: {e}"));
        let error = read(most + 1).expect_err(what);
        assert!(error.param.as_deref().unwrap().starts_with(what), "{what}: {error:?}");
        assert!(error.message.len() < 400, "{what}: {error:?}");
    }
}

fn nested(depth: usize) -> String {
    // The body itself is the first level.
    format!(r#"{{"prompt": "a", "x": {}{}}}"#, "[".repeat(depth - 1), "]".repeat(depth - 1))
}

#[test]
fn depth_is_bounded() {
    assert!(CompletionRequest::parse(nested(100).as_bytes()).is_ok());
    assert_eq!(CompletionRequest::parse(nested(101).as_bytes()).unwrap_err().code, "invalid_json");
    assert!(CompletionRequest::parse(nested(1 << 20).as_bytes()).is_err());
    assert!(CompletionRequest::parse("[".repeat(1 << 20).as_bytes()).is_err());
    let objects = format!(r#"{{"prompt": {}"#, r#"{"a":"#.repeat(1 << 18));
    assert!(CompletionRequest::parse(objects.as_bytes()).is_err());
}

#[test]
fn bodies_that_are_no_requests_are_refused() {
    let bodies: &[&[u8]] = &[
        b"",
        b"   ",
        b"null",
        b"[]",
        b"\"a\"",
        b"{",
        b"{}}",
        b"{\"prompt\": \"a\"} x",
        b"{\"prompt\": \"a\",}",
        b"{\"prompt\": \"\xff\"}",
        b"{\"prompt\": \"\\ud800\"}",
        b"{\"prompt\": \"a\", \"x\": 01}",
        b"{\"prompt\": \"a\", \"x\": nul}",
        b"{\"prompt\": \"a\nb\"}",
        b"{'prompt': 'a'}",
    ];
    for body in bodies {
        for endpoint in ALL {
            let error = parse(endpoint, body).expect_err("refused");
            assert_eq!((error.param, error.code), (None, "invalid_json"), "{}", body.escape_ascii());
        }
    }
}

#[test]
fn a_key_has_one_value() {
    let error = |body: &str| ChatRequest::parse(body.as_bytes()).unwrap_err();
    let twice = error(r#"{"messages": [{"role": "user", "content": "a"}], "n": 1, "n": 16}"#);
    assert_eq!((twice.param.as_deref(), &*twice.message), (Some("n"), "Duplicate parameter: 'n'."));
    // Escapes do not make another key of it.
    assert_eq!(error(r#"{"messages": [], "n": 1, "\u006e": 2}"#).param.as_deref(), Some("n"));
    let role = error(r#"{"messages": [{"role": "user", "role": "system", "content": "a"}]}"#);
    assert_eq!(role.param.as_deref(), Some("messages[0].role"));
}

#[test]
fn numbers_that_json_lacks_are_in_no_field() {
    let fields = [
        r#""messages": [{"role": "user", "content": "a", "x": NaN}]"#,
        r#""messages": [{"role": "user", "content": "a", "x": 1e999}]"#,
        r#""chat_template_kwargs": {"a": -Infinity}"#,
        r#""documents": [{"a": NaN}]"#,
        r#""logit_bias": {"1": NaN}"#,
        r#""stop_token_ids": [NaN]"#,
        r#""stop_token_ids": [1e999]"#,
        r#""stop_token_ids": [4294967296]"#,
        r#""structured_outputs": {"json": {"a": NaN}}"#,
        r#""tools": [{"type": "function", "function": {"name": "f", "parameters": {"a": NaN}}}]"#,
    ];
    for field in fields {
        let rest = if field.contains("messages") { "" } else { r#", "messages": [{"role": "user", "content": "a"}]"# };
        let error = ChatRequest::parse(format!("{{{field}{rest}}}").as_bytes()).expect_err(field);
        assert!(field.contains(error.param.unwrap().split(['.', '[']).next().unwrap()), "{field}");
    }
    // Nobody reads it there.
    assert!(CompletionRequest::parse(br#"{"prompt": "a", "x": NaN}"#).is_ok());
}

#[test]
fn names_of_the_client_are_cut_in_what_is_said_of_them() {
    let key = "k".repeat(100_000);
    let notices = completion(json!({ key.as_str(): 1 })).unwrap().common.notices;
    assert!(notices.unknown[0].len() < 100, "{notices:?}");
    let error = completion(json!({"truncation_side": key})).unwrap_err();
    assert!(error.message.len() < 300, "{error}");
}

/// Names of numeric fields.
const NUMERIC: &[&str] = &[
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "typical_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "seed",
    "min_tokens",
    "max_tokens",
    "n",
    "best_of",
    "prompt_logprobs",
    "priority",
    "truncate_prompt_tokens",
];

proptest! {
    #[test]
    fn no_bytes_panic(body in proptest::collection::vec(any::<u8>(), 0..200)) {
        for endpoint in ALL {
            let _ = parse(endpoint, &body);
        }
    }

    #[test]
    fn no_json_panics(cuts in proptest::collection::vec(0usize..TOKENS.len(), 0..40)) {
        let body: String = cuts.iter().map(|&i| TOKENS[i]).collect();
        for endpoint in ALL {
            let _ = parse(endpoint, format!("{{{body}}}").as_bytes());
        }
    }

    #[test]
    fn accepted_numbers_are_finite_and_in_range(field in 0..NUMERIC.len(), value in any::<f64>(), small in -3i64..30) {
        for number in [value.to_string(), format!("{value:e}"), small.to_string()] {
            let body = format!(r#"{{"prompt": "a", "{}": {number}}}"#, NUMERIC[field]);
            let Ok(request) = CompletionRequest::parse(body.as_bytes()) else { continue };
            let s = request.common.sampling;
            let within = |value: Option<f32>, low: f32, high: f32| value.is_none_or(|v| (low..=high).contains(&v));
            prop_assert!(within(s.temperature, 0.0, 5.0) && within(s.top_p, f32::from_bits(1), 1.0));
            prop_assert!(within(s.min_p, 0.0, 1.0) && within(s.typical_p, f32::from_bits(1), 1.0));
            prop_assert!(within(s.repetition_penalty, 0.01, 100.0) && within(Some(s.presence_penalty), -2.0, 2.0));
            prop_assert!(within(Some(s.frequency_penalty), -2.0, 2.0));
            prop_assert!((1..=16).contains(&s.n) && (s.n..=16).contains(&s.best_of));
        }
    }
}

/// What bodies are put together from.
const TOKENS: &[&str] = &[
    "\"prompt\":",
    "\"messages\":",
    "\"tools\":",
    "\"stop\":",
    "\"logit_bias\":",
    "\"response_format\":",
    "\"tokens\":",
    "\"role\":",
    "\"content\":",
    "\"type\":",
    "\"function\":",
    "\"user\"",
    "\"text\"",
    "\"json_schema\"",
    "{",
    "}",
    "[",
    "]",
    ",",
    ",",
    "null",
    "true",
    "1",
    "-1.5e3",
    "\"\"",
    "NaN",
];

#[test]
fn every_endpoint_bounds_the_keys_of_a_body() {
    let keys: String = (0..=limits::KEYS).map(|i| format!(",\"x{i}\":0")).collect();
    for endpoint in [Endpoint::Chat, Endpoint::Completion, Endpoint::Tokenize, Endpoint::Detokenize] {
        let error = parse(endpoint, format!("{{\"a\":0{keys}}}").as_bytes()).unwrap_err();
        assert!(error.message.contains("Too many keys"), "{error}");
    }
}
