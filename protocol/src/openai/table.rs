//! Every field of a request that somebody may send, and what becomes of it: data, and the check that applies it.
//!
//! A field that acts is taken by the parser. Of the others this table says which are refused, because the answer would
//! not be what was asked for, and which change no answer. Fields of neither kind are unknown: they are listed for the
//! log, as vLLM does it.

use super::common::Notices;
use super::error::FieldError;
use super::fields::{Fields, Result};
use serde_json::Value;

/// Where a field may stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// `/v1/chat/completions`
    Chat,
    /// `/v1/completions`
    Completion,
    /// `/tokenize`
    Tokenize,
    /// `/detokenize`
    Detokenize,
}
use Endpoint::{Chat, Completion, Detokenize, Tokenize};

/// What becomes of a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Handling {
    /// It does what its description says.
    Honoured,
    /// Set to anything but its default it fails the request, for this reason.
    Refused(&'static str),
    /// It changes no answer, for this reason.
    NoEffect(&'static str),
}

type On = &'static [Endpoint];
const ALL: On = &[Chat, Completion, Tokenize, Detokenize];
const GENERATION: On = &[Chat, Completion];
const TEXTS: On = &[Chat, Completion, Tokenize];
const CHAT: On = &[Chat];
const COMPLETION: On = &[Completion];
const PROMPTS: On = &[Completion, Tokenize];
const CONVERSATIONS: On = &[Chat, Tokenize];
const TOKENIZE: On = &[Tokenize];

/// (where, fields that act)
#[rustfmt::skip]
const HONOURED: &[(On, &[&str])] = &[
    (ALL, &["model"]),
    (GENERATION, &[
        "temperature", "top_p", "top_k", "min_p", "typical_p", "repetition_penalty", "presence_penalty",
        "frequency_penalty", "logit_bias", "allowed_token_ids", "bad_words", "seed", "stop", "stop_token_ids",
        "ignore_eos", "min_tokens", "max_tokens", "n", "best_of", "logprobs", "prompt_logprobs", "response_format",
        "structured_outputs", "stream", "stream_options", "echo", "include_stop_str_in_output", "skip_special_tokens",
        "return_token_ids", "return_tokens_as_token_ids", "truncate_prompt_tokens", "truncation_side", "priority",
        "cache_salt", "request_id",
    ]),
    (CHAT, &[
        "max_completion_tokens", "top_logprobs", "tool_choice", "parallel_tool_calls", "reasoning_effort",
        "include_reasoning",
    ]),
    (CONVERSATIONS, &[
        "messages", "tools", "documents", "add_generation_prompt", "continue_final_message", "chat_template",
        "chat_template_kwargs",
    ]),
    (PROMPTS, &["prompt"]),
    (TEXTS, &["add_special_tokens"]),
    (TOKENIZE, &["return_token_strs"]),
    (&[Detokenize], &["tokens"]),
];

const OF_CHATS: &str = "it belongs to chat completions";
const OF_COMPLETIONS: &str = "it belongs to completions";
const ONE_SERVER: &str = "one server computes prompt and answer; nothing is transferred";
const TEXT_ONLY: &str = "the models served here read and write text";
const RENAMED: &str = "write structured_outputs: {\"json\" | \"regex\" | \"choice\" | \"grammar\": ...}";

/// (where, field, its defaults as JSON, why it is refused)
#[rustfmt::skip]
const REFUSED: &[(On, &str, &[&str], &str)] = &[
    (GENERATION, "use_beam_search", &["false"], "there is no beam search; use best_of"),
    (GENERATION, "logprob_token_ids", &["[]"], "logprobs are of the likeliest tokens; use logprobs and top_logprobs"),
    (GENERATION, "thinking_token_budget", &[], "thinking has no budget of its own; use max_completion_tokens"),
    (GENERATION, "return_token_offsets", &["false"], "offsets are not reported; use return_token_ids"),
    (GENERATION, "return_prompt_text", &["false"], "the prompt is not returned; use echo, or tokenize"),
    (GENERATION, "return_weight_versions", &["false"], "weights have no versions beside the model's"),
    (GENERATION, "routed_experts_prompt_start", &[], "the experts that were chosen are not reported"),
    (GENERATION, "mm_payload", &["{}", "[]"], TEXT_ONLY),
    (GENERATION, "prompt_embeds", &[], "prompts are text or tokens"),
    (GENERATION, "kv_transfer_params", &["{}"], ONE_SERVER),
    (GENERATION, "ec_transfer_params", &["{}"], ONE_SERVER),
    (GENERATION, "vllm_xargs", &["{}"], "there are no plugins that would read it"),
    (GENERATION, "logits_processors", &["[]"], "no code comes with a request; use logit_bias"),
    (GENERATION, "repetition_detection", &["false", "{}"], "nothing stops at repetitions; use the penalties"),
    (GENERATION, "watermarking", &["false", "{}"], "text is not watermarked"),
    (GENERATION, "guided_json", &[], RENAMED),
    (GENERATION, "guided_regex", &[], RENAMED),
    (GENERATION, "guided_choice", &[], RENAMED),
    (GENERATION, "guided_grammar", &[], RENAMED),
    (GENERATION, "suffix", &["\"\""], "nothing is generated between two texts"),
    (CHAT, "prompt", &[], OF_COMPLETIONS),
    (CHAT, "audio", &[], TEXT_ONLY),
    (CHAT, "modalities", &["[\"text\"]"], TEXT_ONLY),
    (CHAT, "web_search_options", &[], "nothing is searched for"),
    (CHAT, "verbosity", &["\"medium\""], "models have no such setting; say it in a message"),
    (CHAT, "functions", &["[]"], "use tools"),
    (CHAT, "function_call", &["\"none\""], "use tool_choice"),
    (COMPLETION, "messages", &[], OF_CHATS),
    (COMPLETION, "max_completion_tokens", &[], "use max_tokens"),
    (COMPLETION, "top_logprobs", &["0"], "use logprobs, which is a number here"),
    (COMPLETION, "tools", &["[]"], OF_CHATS),
    (COMPLETION, "tool_choice", &["\"none\"", "\"auto\""], OF_CHATS),
    (COMPLETION, "parallel_tool_calls", &["true"], OF_CHATS),
    (COMPLETION, "reasoning_effort", &[], OF_CHATS),
    (COMPLETION, "include_reasoning", &["true"], OF_CHATS),
    (COMPLETION, "documents", &["[]"], OF_CHATS),
    (COMPLETION, "add_generation_prompt", &["true"], OF_CHATS),
    (COMPLETION, "continue_final_message", &["false"], OF_CHATS),
    (COMPLETION, "chat_template", &[], OF_CHATS),
    (COMPLETION, "chat_template_kwargs", &["{}"], OF_CHATS),
];

/// (where, field, its defaults as JSON, why it changes no answer)
#[rustfmt::skip]
const NO_EFFECT: &[(On, &str, &[&str], &str)] = &[
    (GENERATION, "length_penalty", &["1", "1.0"], "it weighs the beams of a beam search"),
    (GENERATION, "spaces_between_special_tokens", &["true"], "tokens are joined as their bytes say"),
    (GENERATION, "stream_interval", &["1"], "tokens are sent as they come"),
    (GENERATION, "session_id", &[], "prompts are found in the cache by what they say"),
    (TEXTS, "media_io_kwargs", &["{}"], "it is about images and audio, which are refused"),
    (TEXTS, "mm_processor_kwargs", &["{}"], "it is about images and audio, which are refused"),
    (GENERATION, "store", &["false"], "nothing is stored"),
    (GENERATION, "metadata", &["{}"], "it labels what is stored, and nothing is"),
    (GENERATION, "service_tier", &["\"auto\"", "\"default\""], "there is one tier; use priority"),
    (GENERATION, "user", &[], "users are not watched; cache_salt keeps their prompts apart"),
    (GENERATION, "safety_identifier", &[], "users are not watched"),
    (GENERATION, "prompt_cache_key", &[], "prompts are found by what they say; cache_salt keeps them apart"),
    (GENERATION, "prompt_cache_retention", &[], "the cache keeps what it has room for"),
    (CHAT, "prediction", &[], "it is a hint for speed"),
];

/// What becomes of a field of an endpoint; none is an unknown field.
pub fn handling(endpoint: Endpoint, name: &str) -> Option<Handling> {
    fields(endpoint).find(|(found, _)| *found == name).map(|(_, handling)| handling)
}

/// All fields of an endpoint.
pub fn fields(endpoint: Endpoint) -> impl Iterator<Item = (&'static str, Handling)> {
    let here = move |on: &On| on.contains(&endpoint);
    let honoured = HONOURED.iter().filter(move |row| here(&row.0)).flat_map(|row| row.1);
    let refused = REFUSED.iter().filter(move |row| here(&row.0));
    let no_effect = NO_EFFECT.iter().filter(move |row| here(&row.0));
    honoured
        .map(|name| (*name, Handling::Honoured))
        .chain(refused.map(|(_, name, _, why)| (*name, Handling::Refused(why))))
        .chain(no_effect.map(|(_, name, _, why)| (*name, Handling::NoEffect(why))))
}

/// Is this text one of these values?
fn is_one_of(raw: &[u8], defaults: &[&str]) -> bool {
    // No default is nearly as long; a list of a million numbers need not become values to be told from one.
    if raw.len() > 32 {
        return false;
    }
    let value: Option<Value> = serde_json::from_slice(raw).ok();
    value.is_some_and(|value| defaults.iter().any(|text| serde_json::from_str(text).ok().as_ref() == Some(&value)))
}

/// Accounts for the fields that the parser left.
pub(super) fn apply(endpoint: Endpoint, left: Fields<'_>, notices: &mut Notices) -> Result<()> {
    for (name, field) in left.rest() {
        let row = |table: &'static [(On, &'static str, &'static [&'static str], &'static str)]| {
            table.iter().find(|row| row.1 == name && row.0.contains(&endpoint))
        };
        if let Some((_, _, defaults, why)) = row(REFUSED) {
            if !is_one_of(field.raw, defaults) {
                return Err(FieldError::refused(&field.path, why));
            }
        } else if let Some((_, name, defaults, why)) = row(NO_EFFECT) {
            if !is_one_of(field.raw, defaults) {
                notices.without_effect.push((name, why));
            }
        } else {
            notices.unknown.push(field.path);
        }
    }
    Ok(())
}
