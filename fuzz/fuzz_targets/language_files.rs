//! The files of a language model: tokenizer, chat template, generation defaults, and a conversation for the template.
//! The first byte chooses the file; point `TMPDIR` at memory.
#![no_main]

use backends::llm::generation::GenerationConfig;
use backends::llm::text::{Chat, ChatTemplates, Tokenizer, TokenizerConfig};
use libfuzzer_sys::fuzz_target;
use serde_json::{Map, Value, json};

fuzz_target!(|bytes: &[u8]| {
    let [which, rest @ ..] = bytes else { return };
    match which % 4 {
        0 => {
            if let Ok(tokenizer) = Tokenizer::from_json(rest, &TokenizerConfig::default(), 1 << 16)
                && let Ok(tokens) = tokenizer.encode("Once upon a time <|im_end|>", true)
            {
                let _ = tokenizer.decode(&tokens, true);
            }
        }
        1 => {
            let Ok(map) = serde_json::from_slice::<Map<String, Value>>(rest) else { return };
            let _ = GenerationConfig::parse(&map);
            let _ = TokenizerConfig::parse(&map);
        }
        _ => {
            let Ok(source) = std::str::from_utf8(rest) else { return };
            let named = [("default".to_owned(), source.to_owned())];
            let Ok(templates) = ChatTemplates::compile(&named, &[], 1 << 16) else { return };
            let messages = [json!({"role": "user", "content": "Hello"}), json!({"role": "assistant", "content": null})];
            if let Ok(prompt) = templates.render(&Chat::new(&messages)) {
                assert!(prompt.len() <= 1 << 16);
            }
        }
    }
});
