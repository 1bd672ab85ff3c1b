//! Bodies of the routes for text: chats, completions, tokens, messages, Triton's generate.
#![no_main]

use libfuzzer_sys::fuzz_target;
use protocol::generate::GenerateRequest;
use protocol::openai::{ChatRequest, CompletionRequest, DetokenizeRequest, TokenizeRequest};

fuzz_target!(|body: &[u8]| {
    if let Ok(chat) = ChatRequest::parse(body) {
        assert!(!chat.conversation.messages.is_empty() && chat.common.sampling.n >= 1);
    }
    if let Ok(chat) = protocol::anthropic::parse(body) {
        assert!(chat.common.sampling.max_tokens >= Some(1));
    }
    let _ = protocol::anthropic::parse_count(body);
    let _ = CompletionRequest::parse(body);
    let _ = TokenizeRequest::parse(body);
    let _ = DetokenizeRequest::parse(body);
    let _ = GenerateRequest::parse(body);
});
