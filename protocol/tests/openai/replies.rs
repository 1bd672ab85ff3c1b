//! The shapes of replies, as text, and events as they stand in a stream.

use protocol::openai::error::{ErrorCode, ErrorDetail};
use protocol::openai::tokens::{DetokenizeReply, TokenizeReply};
use protocol::openai::{logprobs::*, models::*, response::*, sse, *};
use serde::Serialize;

fn text(value: &impl Serialize) -> String {
    serde_json::to_string(value).unwrap()
}

fn chat_logprobs() -> ChatLogprobs {
    let top = TopLogprob { token: "a".into(), logprob: f32::NEG_INFINITY, bytes: Some(vec![97]) };
    let token =
        TokenLogprob { token: "é".into(), logprob: -0.1, bytes: Some(vec![195, 169]), top_logprobs: vec![top] };
    ChatLogprobs { content: Some(vec![token]) }
}

#[test]
fn a_chat_completion() {
    let function = FunctionCall { name: "f".into(), arguments: "{\"a\": 1}".into() };
    let call = ToolCall { id: "call_1".into(), kind: CallKind::Function, function };
    let message = Message { reasoning: Some("hm".into()), tool_calls: vec![call], ..Message::default() };
    let usage = Usage {
        prompt_tokens_details: Some(PromptDetails { cached_tokens: 1 }),
        completion_tokens_details: Some(CompletionDetails { reasoning_tokens: 2 }),
        ..Usage::new(3, 4)
    };
    let choice = |message, finish_reason| ChatChoice {
        index: 0,
        message,
        logprobs: None,
        finish_reason: Some(finish_reason),
        stop_reason: None,
        token_ids: None,
    };
    let mut reply = ChatReply {
        id: "chatcmpl-1",
        object: CHAT,
        created: 5,
        model: "m",
        choices: vec![choice(message, FinishReason::ToolCalls)],
        system_fingerprint: Some("fp"),
        usage,
        prompt_logprobs: None,
        prompt_token_ids: None,
    };
    assert_eq!(
        text(&reply),
        r#"{"id":"chatcmpl-1","object":"chat.completion","created":5,"model":"m","choices":[{"index":0,"message":{"role":"assistant","content":null,"refusal":null,"reasoning":"hm","tool_calls":[{"id":"call_1","type":"function","function":{"name":"f","arguments":"{\"a\": 1}"}}]},"logprobs":null,"finish_reason":"tool_calls","stop_reason":null}],"system_fingerprint":"fp","usage":{"prompt_tokens":3,"total_tokens":7,"completion_tokens":4,"prompt_tokens_details":{"cached_tokens":1},"completion_tokens_details":{"reasoning_tokens":2}}}"#
    );
    let plain = Message { content: Some("hi\n".into()), ..Message::default() };
    reply.choices = vec![ChatChoice {
        logprobs: Some(chat_logprobs()),
        stop_reason: Some(StopReason::Text("x".into())),
        token_ids: Some(vec![1, 2]),
        ..choice(plain, FinishReason::Stop)
    }];
    reply.usage = Usage::new(u32::MAX, 1);
    let likely = PromptLogprob { logprob: f32::NAN, rank: 1, decoded_token: "a".into() };
    reply.prompt_logprobs = Some(vec![None, Some([(7, likely)].into())]);
    reply.prompt_token_ids = Some(&[6, 7]);
    reply.system_fingerprint = None;
    assert_eq!(
        text(&reply),
        r#"{"id":"chatcmpl-1","object":"chat.completion","created":5,"model":"m","choices":[{"index":0,"message":{"role":"assistant","content":"hi\n","refusal":null},"logprobs":{"content":[{"token":"é","logprob":-0.1,"bytes":[195,169],"top_logprobs":[{"token":"a","logprob":-9999.0,"bytes":[97]}]}]},"finish_reason":"stop","stop_reason":"x","token_ids":[1,2]}],"system_fingerprint":null,"usage":{"prompt_tokens":4294967295,"total_tokens":4294967295,"completion_tokens":1},"prompt_logprobs":[null,{"7":{"logprob":-9999.0,"rank":1,"decoded_token":"a"}}],"prompt_token_ids":[6,7]}"#
    );
}

#[test]
fn pieces_of_a_chat_completion() {
    let delta =
        |delta| ChatDelta { index: 1, delta, logprobs: None, finish_reason: None, stop_reason: None, token_ids: None };
    let mut chunk = ChatChunk {
        id: "chatcmpl-1",
        object: CHAT_CHUNK,
        created: 5,
        model: "m",
        choices: &[delta(Delta::first())],
        system_fingerprint: None,
        usage: None,
        prompt_token_ids: None,
    };
    let head = r#"{"id":"chatcmpl-1","object":"chat.completion.chunk","created":5,"model":"m","choices":["#;
    let choices = |chunk: &ChatChunk<'_>| {
        let text = text(chunk);
        text.strip_prefix(head).unwrap().strip_suffix(r#"],"system_fingerprint":null}"#).unwrap().to_owned()
    };
    assert_eq!(
        choices(&chunk),
        r#"{"index":1,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}"#
    );
    let first = ToolCallDelta {
        index: 0,
        id: Some("call_1"),
        kind: Some(CallKind::Function),
        function: FunctionDelta { name: Some("f"), arguments: Some("") },
    };
    let more = ToolCallDelta {
        index: 0,
        function: FunctionDelta { name: None, arguments: Some("{") },
        ..ToolCallDelta::default()
    };
    let calls = [delta(Delta { tool_calls: vec![first, more], ..Delta::default() })];
    chunk.choices = &calls;
    assert_eq!(
        choices(&chunk),
        r#"{"index":1,"delta":{"tool_calls":[{"index":0,"id":"call_1","type":"function","function":{"name":"f","arguments":""}},{"index":0,"function":{"arguments":"{"}}]},"logprobs":null,"finish_reason":null}"#
    );
    let end = Delta { content: Some(""), reasoning: Some("r"), ..Delta::default() };
    let last = [ChatDelta {
        finish_reason: Some(FinishReason::Length),
        stop_reason: Some(StopReason::Token(9)),
        token_ids: Some(vec![9]),
        ..delta(end)
    }];
    chunk.choices = &last;
    assert_eq!(
        choices(&chunk),
        r#"{"index":1,"delta":{"content":"","reasoning":"r"},"logprobs":null,"finish_reason":"length","stop_reason":9,"token_ids":[9]}"#
    );
    chunk.choices = &[];
    chunk.usage = Some(Usage::new(1, 2));
    assert!(text(&chunk).ends_with(
        r#""choices":[],"system_fingerprint":null,"usage":{"prompt_tokens":1,"total_tokens":3,"completion_tokens":2}}"#
    ));
}

#[test]
fn a_completion_and_its_pieces() {
    let same = vec![("a".into(), -0.5), ("\u{fffd}".into(), -1.5), ("\u{fffd}".into(), -2.0)];
    let logprobs = CompletionLogprobs {
        text_offset: vec![0, 1],
        token_logprobs: vec![None, Some(f32::NEG_INFINITY)],
        tokens: vec!["x".into(), "a".into()],
        top_logprobs: vec![None, Some(Alternatives(same))],
    };
    let choice = CompletionChoice {
        index: 0,
        text: "xa".into(),
        logprobs: Some(logprobs),
        finish_reason: Some(FinishReason::Abort),
        stop_reason: None,
        prompt_logprobs: None,
        prompt_token_ids: Some(vec![4]),
        token_ids: None,
    };
    let reply = CompletionReply {
        id: "cmpl-1",
        object: COMPLETION,
        created: 5,
        model: "m",
        choices: vec![choice],
        system_fingerprint: None,
        usage: Usage::new(1, 1),
        prompt_logprobs: None,
        prompt_token_ids: None,
    };
    assert_eq!(
        text(&reply),
        r#"{"id":"cmpl-1","object":"text_completion","created":5,"model":"m","choices":[{"index":0,"text":"xa","logprobs":{"text_offset":[0,1],"token_logprobs":[null,-9999.0],"tokens":["x","a"],"top_logprobs":[null,{"a":-0.5,"�":-1.5}]},"finish_reason":"abort","stop_reason":null,"prompt_token_ids":[4]}],"system_fingerprint":null,"usage":{"prompt_tokens":1,"total_tokens":2,"completion_tokens":1}}"#
    );
    let delta = CompletionDelta {
        index: 2,
        text: "a",
        logprobs: None,
        finish_reason: None,
        stop_reason: None,
        prompt_token_ids: None,
        token_ids: None,
    };
    let chunk = CompletionChunk {
        id: "cmpl-1",
        object: COMPLETION,
        created: 5,
        model: "m",
        choices: &[delta],
        system_fingerprint: None,
        usage: None,
        prompt_token_ids: None,
    };
    assert_eq!(
        text(&chunk),
        r#"{"id":"cmpl-1","object":"text_completion","created":5,"model":"m","choices":[{"index":2,"text":"a","logprobs":null,"finish_reason":null}],"system_fingerprint":null}"#
    );
}

#[test]
fn models_tokens_and_errors() {
    let card = ModelCard { max_model_len: Some(9), ..ModelCard::new("m", 5, "tensorgate") };
    let said = r#"{"object":"list","data":[{"id":"m","object":"model","created":5,"owned_by":"tensorgate","root":"m","parent":null,"max_model_len":9,"permission":[{"id":"modelperm-m","object":"model_permission","created":5,"allow_create_engine":false,"allow_sampling":true,"allow_logprobs":true,"allow_search_indices":false,"allow_view":true,"allow_fine_tuning":false,"organization":"*","group":null,"is_blocking":false}]}]"#;
    assert_eq!(text(&ModelList::new(vec![card.clone()], false)), format!("{said}}}"));
    assert_eq!(text(&ModelList::new(vec![card], true)), format!(r#"{said},"models":["m"]}}"#));
    let tokens = TokenizeReply { count: 1, max_model_len: 9, tokens: vec![3], token_strs: None };
    assert_eq!(text(&tokens), r#"{"count":1,"max_model_len":9,"tokens":[3],"token_strs":null}"#);
    let tokens = TokenizeReply { token_strs: Some(vec!["a".into()]), ..tokens };
    assert_eq!(text(&tokens), r#"{"count":1,"max_model_len":9,"tokens":[3],"token_strs":["a"]}"#);
    assert_eq!(text(&DetokenizeReply { prompt: "a".into() }), r#"{"prompt":"a"}"#);
    let error = ChatRequest::parse(b"{}").unwrap_err();
    assert_eq!(
        text(&ErrorBody::from(&error)),
        r#"{"error":{"message":"Missing required parameter: 'messages'.","type":"BadRequestError","param":"messages","code":400}}"#
    );
    assert_eq!(
        text(&ErrorBody::new("no", "NotFoundError", 404)),
        r#"{"error":{"message":"no","type":"NotFoundError","param":null,"code":404}}"#
    );
    let detail = ErrorDetail { message: "a", kind: "b", param: None, code: Some(ErrorCode::Word("c")) };
    assert_eq!(text(&detail), r#"{"message":"a","type":"b","param":null,"code":"c"}"#);
}

#[test]
fn events_of_a_stream() {
    let mut out = Vec::new();
    sse::event(&mut out, &serde_json::json!({"a": "x\n\r\ndata: y\u{2028}"})).unwrap();
    sse::named(&mut out, "ping\n", &1).unwrap();
    sse::text(&mut out, "a\nb\r\nc\rd");
    sse::comment(&mut out, "still\n\ndata: here");
    out.extend_from_slice(sse::DONE);
    assert_eq!(
        String::from_utf8(out).unwrap(),
        "data: {\"a\":\"x\\n\\r\\ndata: y\u{2028}\"}\n\n\
         event: ping\ndata: 1\n\n\
         data: a\ndata: b\ndata: c\ndata: d\n\n\
         : still\n: \n: data: here\n\n\
         data: [DONE]\n\n"
    );
    let mut out = b"before".to_vec();
    let no_json = std::collections::HashMap::from([(vec![1], 1)]);
    assert!(sse::event(&mut out, &no_json).is_err() && sse::named(&mut out, "a", &no_json).is_err());
    assert_eq!(out, b"before");
}
