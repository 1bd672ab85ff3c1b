//! Every field that somebody may send acts, is refused by name, or is named as one that does nothing.

use crate::{ALL, base, chat, tool, with};
use protocol::openai::Notices;
use protocol::openai::table::{Endpoint, Handling, fields, handling};
use serde_json::{Value, json};

/// Fields of vLLM 0.33's chat completion request.
const CHAT: &str =
    "messages model frequency_penalty logit_bias logprobs top_logprobs max_tokens max_completion_tokens n
    presence_penalty response_format seed stop stream stream_options temperature top_p tools tool_choice
    reasoning_effort thinking_token_budget include_reasoning parallel_tool_calls user use_beam_search top_k min_p
    repetition_penalty length_penalty stop_token_ids include_stop_str_in_output ignore_eos min_tokens
    skip_special_tokens spaces_between_special_tokens truncate_prompt_tokens truncation_side prompt_logprobs
    logprob_token_ids allowed_token_ids bad_words echo add_generation_prompt continue_final_message add_special_tokens
    documents chat_template chat_template_kwargs media_io_kwargs mm_processor_kwargs structured_outputs priority
    request_id session_id return_tokens_as_token_ids return_token_ids return_token_offsets return_prompt_text
    return_weight_versions routed_experts_prompt_start mm_payload cache_salt kv_transfer_params ec_transfer_params
    vllm_xargs repetition_detection stream_interval watermarking";

/// Those that its completion request has besides what both have.
const COMPLETION: &str = "prompt echo logprobs suffix prompt_embeds add_special_tokens n max_tokens";

/// Something other than the default for a field that acts, with what it needs beside it.
fn sample(endpoint: Endpoint, name: &str) -> Value {
    let value = match name {
        "messages" => json!([{"role": "user", "content": "other"}]),
        "prompt" => json!("other"),
        "tokens" | "stop_token_ids" | "allowed_token_ids" => json!([7]),
        "model" | "user" | "cache_salt" | "request_id" | "chat_template" => json!("x"),
        "temperature" | "top_p" | "min_p" | "typical_p" | "repetition_penalty" => json!(0.5),
        "presence_penalty" | "frequency_penalty" => json!(-0.5),
        "logit_bias" => json!({"7": -100}),
        "bad_words" => json!(["x"]),
        "stop" => json!("x"),
        "top_k" | "seed" | "min_tokens" | "max_tokens" | "max_completion_tokens" | "best_of" | "prompt_logprobs" => {
            json!(3)
        }
        "n" | "priority" | "truncate_prompt_tokens" => json!(3),
        "logprobs" if endpoint == Endpoint::Chat => json!(true),
        "logprobs" => json!(3),
        "top_logprobs" => return json!({"logprobs": true, "top_logprobs": 3}),
        "response_format" => json!({"type": "json_object"}),
        "structured_outputs" => json!({"regex": "a"}),
        "stream_options" => return json!({"stream": true, "stream_options": {"include_usage": true}}),
        "truncation_side" => return json!({"truncate_prompt_tokens": 3, "truncation_side": "right"}),
        "tools" => json!([tool("f")]),
        "tool_choice" => return json!({"tools": [tool("f")], "tool_choice": "required"}),
        "reasoning_effort" => json!("low"),
        "documents" => json!([{"text": "x"}]),
        "chat_template_kwargs" => json!({"enable_thinking": false}),
        "add_special_tokens" => json!(endpoint == Endpoint::Chat || endpoint == Endpoint::Tokenize),
        "add_generation_prompt" | "skip_special_tokens" | "parallel_tool_calls" | "include_reasoning" => json!(false),
        "ignore_eos" | "stream" | "echo" | "include_stop_str_in_output" | "return_token_ids" => json!(true),
        "return_tokens_as_token_ids" | "continue_final_message" | "return_token_strs" => json!(true),
        other => panic!("no sample for {other}"),
    };
    json!({ name: value })
}

/// Fields of `/tokenize` that belong to its other form.
fn stands(endpoint: Endpoint, name: &str) -> bool {
    (endpoint, name) != (Endpoint::Tokenize, "prompt")
}

#[test]
fn every_field_of_vllm_is_accounted_for() {
    for name in CHAT.split_whitespace() {
        assert!(handling(Endpoint::Chat, name).is_some(), "{name}");
        assert!(handling(Endpoint::Completion, name).is_some(), "{name} in a completion");
    }
    for name in COMPLETION.split_whitespace() {
        assert!(handling(Endpoint::Completion, name).is_some(), "{name}");
    }
    for endpoint in ALL {
        let mut names: Vec<&str> = fields(endpoint).map(|(name, _)| name).collect();
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count, "a field of {endpoint:?} has two rows");
    }
}

#[test]
fn fields_do_what_the_table_says() {
    for endpoint in ALL {
        let plain = with(endpoint, &json!({})).unwrap();
        assert_eq!(plain.1, Notices::default());
        for (name, handling) in fields(endpoint).filter(|(name, _)| stands(endpoint, name)) {
            let set = with(endpoint, &json!({ name: 12345 }));
            match handling {
                Handling::Honoured => {
                    let (request, notices) = with(endpoint, &sample(endpoint, name)).unwrap();
                    assert_ne!(request, plain.0, "{name} changes nothing");
                    assert_eq!(notices, Notices::default(), "{name}");
                    let mut wrong = sample(endpoint, name);
                    wrong[name] = json!([[]]);
                    let error = with(endpoint, &wrong).expect_err(name);
                    assert!(error.param.as_deref().unwrap().starts_with(name), "{name}: {error:?}");
                    assert!(error.message.contains(name), "{name}: {error:?}");
                }
                Handling::Refused(why) => {
                    let error = set.expect_err(name);
                    assert_eq!((error.param.as_deref(), error.code), (Some(name), "unsupported_parameter"));
                    assert!(error.message.contains(name) && error.message.contains(why), "{error}");
                }
                Handling::NoEffect(why) => {
                    let notices = set.unwrap().1;
                    assert_eq!((notices.without_effect, notices.unknown), (vec![(name, why)], vec![]), "{name}");
                }
            }
        }
    }
}

#[test]
fn null_is_absent_and_defaults_may_be_said() {
    for endpoint in ALL {
        let plain = with(endpoint, &json!({})).unwrap();
        for (name, _) in fields(endpoint) {
            let null = with(endpoint, &json!({ name: null }));
            if base(endpoint).get(name).is_some() {
                assert_eq!(null.expect_err(name).code, "missing_required_parameter");
            } else {
                assert_eq!(null.expect(name), plain, "{name}");
            }
        }
    }
    let said = json!({"use_beam_search": false, "length_penalty": 1.0, "modalities": ["text"], "functions": [],
        "logprob_token_ids": [], "n": 1, "best_of": 1, "top_logprobs": 0, "priority": 0, "stop": [],
        "spaces_between_special_tokens": true, "response_format": {"type": "text"}, "tool_choice": "none",
        "logit_bias": {}, "tools": [], "parallel_tool_calls": true, "top_k": null, "kv_transfer_params": {}});
    assert_eq!(chat(said).unwrap(), chat(json!({})).unwrap());
}

#[test]
fn unknown_fields_are_listed() {
    let notices = chat(json!({"foo": 1, "bar": {"a": [2]}, "baz": null, "response_format": {"type": "text", "x": 1},
        "stream": true, "stream_options": {"include_obfuscation": true, "y": 2}}))
    .unwrap()
    .common
    .notices;
    assert_eq!(notices.unknown, ["response_format.x", "stream_options.y", "bar", "foo"]);
    assert_eq!(notices.without_effect[0].0, "stream_options.include_obfuscation");
}
