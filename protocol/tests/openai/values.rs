//! What fields mean: ranges, contradictions, prompts, constraints, messages.

use crate::{base, chat, completion, parse, tool};
use protocol::openai::common::TruncationSide;
use protocol::openai::table::Endpoint;
use protocol::openai::*;
use serde_json::{Value, json};

#[test]
fn numbers_have_ranges() {
    // (field, least, most, values that are just outside)
    let table = [
        ("temperature", "0", "5", ["-0.001", "5.001"]),
        ("top_p", "1e-6", "1", ["0", "1.0001"]),
        ("min_p", "0", "1.0", ["-1e-9", "2"]),
        ("typical_p", "1e-6", "1", ["0.0", "1.5"]),
        ("repetition_penalty", "0.01", "100", ["0", "100.5"]),
        ("presence_penalty", "-2", "2", ["-2.1", "2.1"]),
        ("frequency_penalty", "-2.0", "2.0", ["-1e400", "1e400"]),
        ("top_k", "-1", "4294967295", ["-2", "4294967296"]),
        ("seed", "-9223372036854775808", "9223372036854775807", ["-9223372036854775809", "9223372036854775808"]),
        ("min_tokens", "0", "16", ["-1", "4294967296"]),
        ("max_tokens", "1", "4294967295", ["0", "1e300"]),
        ("n", "1", "16", ["0", "17"]),
        ("best_of", "1", "16", ["0", "17"]),
        ("prompt_logprobs", "0", "20", ["-1", "21"]),
        ("priority", "-2147483648", "2147483647", ["-2147483649", "2147483648"]),
        ("truncate_prompt_tokens", "-1", "4294967295", ["-2", "0"]),
    ];
    for endpoint in [Endpoint::Chat, Endpoint::Completion] {
        let start = base(endpoint).to_string();
        let body = |name: &str, value: &str| format!("{},\"{name}\":{value}}}", &start[..start.len() - 1]);
        for (name, least, most, outside) in table {
            for value in [least, most] {
                parse(endpoint, body(name, value).as_bytes()).unwrap_or_else(|e| panic!("{name}: {value}: {e}"));
            }
            for value in outside {
                let error = parse(endpoint, body(name, value).as_bytes()).expect_err(name);
                assert_eq!(error.param.as_deref(), Some(name));
                assert!(error.code.ends_with("_value") && error.code != "invalid_value", "{error:?}");
            }
            for value in ["NaN", "-Infinity", "Infinity", "\"1\"", "true", "{}"] {
                let error = parse(endpoint, body(name, value).as_bytes()).expect_err(name);
                assert_eq!((error.param.as_deref(), error.code), (Some(name), "invalid_type"), "{error}");
            }
        }
    }
}

#[test]
fn messages_are_in_openais_words() {
    let said = |extra: Value| chat(extra).unwrap_err().to_string();
    assert_eq!(
        said(json!({"temperature": 9})),
        "Invalid 'temperature': decimal above maximum value. Expected a value <= 5, but got 9 instead."
    );
    assert_eq!(said(json!({"n": 1.5})), "Invalid type for 'n': expected an integer, but got a decimal number instead.");
    assert_eq!(
        said(json!({"messages": []})),
        "Invalid 'messages': empty array. Expected an array with minimum length 1, but got an empty array instead."
    );
    assert_eq!(said(json!({"messages": null})), "Missing required parameter: 'messages'.");
    assert_eq!(
        said(json!({"messages": [{"role": "king!", "content": "x"}]})),
        "Invalid 'messages[0].role': expected 1 to 64 letters, digits, '_', '-' and spaces, but got 'king!' instead."
    );
    assert_eq!(
        said(json!({"use_beam_search": true})),
        "Unsupported parameter: 'use_beam_search' is not supported by this server: there is no beam search; use best_of."
    );
    assert!(said(json!({"reasoning_effort": "x".repeat(5000)})).len() < 300);
}

#[test]
fn values_mean_what_they_say() {
    let request = chat(json!({"max_tokens": 5.0, "max_completion_tokens": 5, "top_k": -1, "temperature": -0.0,
        "logprobs": true, "stop": ["a", "b"], "logit_bias": {"12": 1.5, "3": -1}, "stream": true,
        "stream_options": {"continuous_usage_stats": true}, "truncate_prompt_tokens": -1, "seed": 1e3}))
    .unwrap();
    let sampling = &request.common.sampling;
    assert_eq!((sampling.max_tokens, sampling.top_k, sampling.seed), (Some(5), Some(0), Some(1000)));
    assert!(sampling.temperature.unwrap().is_sign_positive());
    assert_eq!((sampling.logprobs, sampling.n, sampling.best_of), (Some(0), 1, 1));
    assert_eq!(sampling.stop, ["a", "b"]);
    assert_eq!(sampling.logit_bias.iter().map(|(k, v)| (*k, *v)).collect::<Vec<_>>(), [(3, -1.0), (12, 1.5)]);
    assert!(request.common.delivery.stream && !request.common.delivery.continuous_usage);
    let truncation = request.common.truncation.unwrap();
    assert_eq!((truncation.tokens, truncation.side), (None, TruncationSide::Left));
    assert_eq!(chat(json!({"n": 4})).unwrap().common.sampling.best_of, 4);
    assert_eq!(completion(json!({})).unwrap().common.sampling.max_tokens, Some(16));
    assert_eq!(chat(json!({})).unwrap().common.sampling.max_tokens, None);
    assert_eq!(completion(json!({"echo": true, "max_tokens": 0})).unwrap().common.sampling.max_tokens, Some(0));
    assert_eq!(chat(json!({"reasoning_effort": "high"})).unwrap().reasoning_effort.unwrap().as_str(), "high");
    let prompts = [
        (json!("a"), Prompt::Texts(vec!["a".into()])),
        (json!(["a", ""]), Prompt::Texts(vec!["a".into(), String::new()])),
        (json!([1, 2]), Prompt::Tokens(vec![vec![1, 2]])),
        (json!([[1], [4_294_967_295_u32]]), Prompt::Tokens(vec![vec![1], vec![u32::MAX]])),
    ];
    for (sent, read) in prompts {
        assert_eq!(completion(json!({"prompt": sent})).unwrap().prompt, read);
    }
}

#[test]
fn fields_that_contradict_each_other_are_refused() {
    let chats = [
        (json!({"max_tokens": 1, "max_completion_tokens": 2}), "max_tokens"),
        (json!({"top_logprobs": 1}), "top_logprobs"),
        (json!({"n": 3, "best_of": 2}), "best_of"),
        (json!({"best_of": 2, "stream": true}), "best_of"),
        (json!({"prompt_logprobs": 1, "stream": true}), "prompt_logprobs"),
        (json!({"stream_options": {"include_usage": true}}), "stream_options"),
        (json!({"min_tokens": 3, "max_tokens": 2}), "min_tokens"),
        (json!({"continue_final_message": true, "add_generation_prompt": true}), "continue_final_message"),
        (json!({"tool_choice": "required"}), "tool_choice"),
        (
            json!({"tools": [tool("f")], "tool_choice": {"type": "function", "function": {"name": "g"}}}),
            "tool_choice.function.name",
        ),
        (json!({"tools": [tool("f"), tool("f")]}), "tools[1].function.name"),
        (
            json!({"response_format": {"type": "json_object"}, "structured_outputs": {"regex": "a"}}),
            "structured_outputs",
        ),
        (json!({"structured_outputs": {"regex": "a", "choice": ["b"]}}), "structured_outputs"),
        (json!({"structured_outputs": {}}), "structured_outputs"),
        (json!({"logit_bias": {"1": 0, "01": 1}}), "logit_bias"),
        (json!({"logit_bias": {"+1": 0}}), "logit_bias"),
        (json!({"logit_bias": {"1": 101}}), "logit_bias.1"),
        (json!({"stop": ["a", ""]}), "stop[1]"),
        (json!({"allowed_token_ids": []}), "allowed_token_ids"),
        (json!({"allowed_token_ids": [1, -1]}), "allowed_token_ids[1]"),
        (json!({"cache_salt": ""}), "cache_salt"),
        (json!({"request_id": "a\nb"}), "request_id"),
        (json!({"chat_template_kwargs": {"messages": []}}), "chat_template_kwargs.messages"),
    ];
    for (extra, param) in chats {
        assert_eq!(chat(extra.clone()).expect_err(param).param.as_deref(), Some(param), "{extra}");
    }
    let completions = [
        (json!({"max_tokens": 0}), "max_tokens"),
        (json!({"prompt": []}), "prompt"),
        (json!({"prompt": [[1], []]}), "prompt[1]"),
        (json!({"prompt": ["a", 1]}), "prompt[1]"),
        (json!({"prompt": [1, "a"]}), "prompt[1]"),
        (json!({"prompt": [[1, [2]]]}), "prompt[0][1]"),
        (json!({"prompt": [1.5]}), "prompt[0]"),
        (json!({"prompt": [null]}), "prompt"),
    ];
    for (extra, param) in completions {
        assert_eq!(completion(extra.clone()).expect_err(param).param.as_deref(), Some(param), "{extra}");
    }
    assert!(TokenizeRequest::parse(br#"{"prompt": "a", "messages": [{"role": "user", "content": "b"}]}"#).is_err());
    assert!(TokenizeRequest::parse(b"{}").unwrap_err().message.contains("'prompt' or 'messages'"));
}

#[test]
fn constraints_are_read() {
    let schema = json!({"type": "object"});
    let json_schema = |field| Some(Constraint::JsonSchema { schema: schema.clone(), field });
    let named = json!({"type": "json_schema", "json_schema": {"name": "a", "schema": schema, "strict": true}});
    let table = [
        (json!({"response_format": named}), json_schema("response_format")),
        (json!({"response_format": {"type": "text"}}), None),
        (json!({"structured_outputs": {"json": schema}}), json_schema("structured_outputs")),
        (json!({"structured_outputs": {"json": schema.to_string()}}), json_schema("structured_outputs")),
        (json!({"structured_outputs": {"json_object": true}}), Some(Constraint::JsonObject)),
        (json!({"structured_outputs": {"json_object": false}}), None),
        (json!({"structured_outputs": {"choice": ["a"]}}), Some(Constraint::Choice(vec!["a".into()]))),
        (json!({"structured_outputs": {"grammar": "g"}}), Some(Constraint::Grammar("g".into()))),
    ];
    for (sent, read) in table {
        assert_eq!(completion(sent.clone()).expect("reads").common.sampling.constraint, read, "{sent}");
    }
    let refused = [
        (json!({"response_format": {"type": "structural_tag"}}), "response_format.type"),
        (json!({"response_format": {"type": "json_schema"}}), "response_format.json_schema"),
        (
            json!({"response_format": {"type": "json_schema", "json_schema": {"name": "a"}}}),
            "response_format.json_schema.schema",
        ),
        (json!({"structured_outputs": {"json": "[1]"}}), "structured_outputs.json"),
        (json!({"structured_outputs": {"json": "{"}}), "structured_outputs.json"),
        (json!({"structured_outputs": {"json": "[".repeat(100_000)}}), "structured_outputs.json"),
        (json!({"structured_outputs": {"structural_tag": "a"}}), "structured_outputs.structural_tag"),
        (
            json!({"structured_outputs": {"regex": "a", "disable_any_whitespace": true}}),
            "structured_outputs.disable_any_whitespace",
        ),
    ];
    for (sent, param) in refused {
        assert_eq!(completion(sent).expect_err(param).param.as_deref(), Some(param));
    }
}

#[test]
fn errors_of_tools_name_them() {
    let wrong = |parameters: Value| json!({"type": "function", "function": {"name": "get", "parameters": parameters}});
    for (tools, told) in [
        (json!([tool("f"), tool("g"), wrong(json!("object"))]), "tools[2] 'get': Invalid type for 'tools[2].function"),
        (json!([wrong(json!([]))]), "tools[0] 'get': Invalid type for 'tools[0].function.parameters'"),
    ] {
        let error = chat(json!({"tools": tools})).unwrap_err();
        assert!(error.message.starts_with(told), "{error}");
        assert!(error.param.unwrap().ends_with("].function.parameters"));
    }
    for fits in [json!({}), json!({"type": "object"}), json!({"type": ["null", "object"]}), json!({"title": "a"})] {
        let sent = wrong(fits);
        assert_eq!(chat(json!({"tools": [sent]})).unwrap().conversation.tools[0].definition, sent);
    }
    for (kind, got) in [(json!("array"), "\"array\""), (json!(["null"]), "[\"null\"]"), (json!(null), "null")] {
        let error = chat(json!({"tools": [tool("f"), wrong(json!({"type": kind}))]})).unwrap_err();
        assert!(error.message.starts_with("tools[1] 'get': Invalid 'tools[1].function.parameters.type'"), "{error}");
        assert!(error.message.contains("are an object") && error.message.contains(got), "{error}");
    }
    let body = json!({"model": "m", "max_tokens": 1, "messages": [{"role": "user", "content": "hi"}],
        "tools": [{"name": "f", "input_schema": {}}, {"name": "get", "input_schema": []}]});
    let error = protocol::anthropic::parse(body.to_string().as_bytes()).unwrap_err();
    assert!(error.message.starts_with("tools[1] 'get': Invalid type for 'tools[1].input_schema'"), "{error}");
    let body = json!({"model": "m", "max_tokens": 1, "messages": [{"role": "user", "content": "hi"}],
        "tools": [{"name": "get", "input_schema": {"type": "string"}}]});
    let error = protocol::anthropic::parse(body.to_string().as_bytes()).unwrap_err();
    assert!(error.message.starts_with("tools[0] 'get': Invalid 'tools[0].input_schema.type'"), "{error}");
}

#[test]
fn messages_are_checked_and_kept() {
    let call = json!({"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}});
    let sent = json!([
        {"role": "developer", "content": "a", "name": null},
        {"role": "user", "content": [{"type": "text", "text": "b"}, {"type": "text", "text": "c"}], "extra": 1},
        {"role": "assistant", "content": null, "tool_calls": [call], "refusal": null, "audio": null, "reasoning": "r"},
        {"role": "tool", "content": "", "tool_call_id": "c"},
        {"role": "function", "name": "f", "content": null},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]},
        {"role": "control", "content": "thinking"},
        {"role": "document 1", "content": [{"type": "text", "text": "a"}]},
    ]);
    let request = chat(json!({"messages": sent, "tools": [tool("f")]})).unwrap();
    let kept = &request.conversation.messages;
    assert_eq!(kept[0], json!({"role": "developer", "content": "a"}));
    assert_eq!(kept[1], sent[1]);
    assert_eq!(kept[6..], sent.as_array().unwrap()[6..]);
    assert_eq!(kept[2], json!({"role": "assistant", "content": null, "tool_calls": [call], "reasoning": "r"}));
    assert_eq!(request.tool_choice, ToolChoice::Auto);
    assert_eq!(request.conversation.tools[0].parameters(), Some(&json!({"type": "object"})));
    let text = |kind: &str| json!([{"type": kind, kind: "x"}]);
    let refused = [
        (json!({"content": "a"}), "role"),
        (json!({"role": "", "content": "a"}), "role"),
        (json!({"role": " control", "content": "a"}), "role"),
        (json!({"role": "a\nb", "content": "a"}), "role"),
        (json!({"role": "<|im_end|>", "content": "a"}), "role"),
        (json!({"role": "a".repeat(65), "content": "a"}), "role"),
        (json!({"role": "control"}), "content"),
        (json!({"role": "control", "content": "a", "tool_calls": []}), "tool_calls"),
        (json!({"role": "user"}), "content"),
        (json!({"role": "user", "content": 1}), "content"),
        (json!({"role": "user", "content": ["a"]}), "content[0]"),
        (json!({"role": "user", "content": [{"text": "a"}]}), "content[0].type"),
        (json!({"role": "user", "content": [{"type": "text", "text": 1}]}), "content[0].text"),
        (json!({"role": "user", "content": text("image_url")}), "content[0].image_url"),
        (json!({"role": "user", "content": text("input_audio")}), "content[0].input_audio"),
        (json!({"role": "user", "content": text("file")}), "content[0].file"),
        (json!({"role": "user", "content": text("refusal")}), "content[0].type"),
        (json!({"role": "user", "content": "a", "tool_calls": []}), "tool_calls"),
        (json!({"role": "user", "content": "a", "name": 1}), "name"),
        (json!({"role": "tool", "content": "a"}), "tool_call_id"),
        (
            json!({"role": "assistant", "tool_calls": [{"id": "c", "function": {"name": "f", "arguments": {}}}]}),
            "tool_calls[0].function.arguments",
        ),
        (json!({"role": "assistant", "audio": {"id": "a"}}), "audio"),
        (json!({"role": "assistant", "function_call": {"name": "a"}}), "function_call"),
    ];
    for (message, param) in refused {
        let error = chat(json!({"messages": [message]})).expect_err(param);
        assert_eq!(error.param, Some(format!("messages[0].{param}")), "{error}");
    }
    assert_eq!(chat(json!({"messages": [1]})).unwrap_err().param.as_deref(), Some("messages[0]"));
}
