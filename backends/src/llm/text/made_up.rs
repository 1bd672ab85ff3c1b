//! The tokenizer of a model whose weights are made up and that comes without one, so that a `config.json` is enough for a
//! benchmark: a token for each byte, which prompts are made of, and a word for each id after those.

use super::vocabulary::byte_level_alphabet;
use serde_json::{Map, Value, json};

/// Tokens that are bytes.
const BYTES: usize = 256;
/// Ids below this have a text: more than any model in use has. Others write nothing.
const TEXTS: usize = 1 << 18;

/// What its `tokenizer.json` would hold, for a model of so many tokens.
pub(in crate::llm) fn tokenizer_json(vocab: usize) -> Vec<u8> {
    let bytes = byte_level_alphabet().map(|(spelling, byte)| (spelling.to_string(), Value::from(byte)));
    // Spelled as byte-level tokenizers do: a space, and the number. No merge leads to them: only the model writes them.
    let words = (BYTES..vocab.min(TEXTS)).map(|id| (format!("\u{120}{id}"), Value::from(id)));
    let vocabulary: Map<String, Value> = bytes.chain(words).collect();
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    let file = json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": [],
        "normalizer": null,
        "pre_tokenizer": byte_level,
        "post_processor": null,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": null,
            "unk_token": null,
            "continuing_subword_prefix": null,
            "end_of_word_suffix": null,
            "fuse_unk": false,
            "byte_fallback": false,
            "ignore_merges": false,
            "vocab": vocabulary,
            "merges": [],
        },
    });
    file.to_string().into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::llm::text::{Tokenizer, TokenizerConfig};

    #[test]
    fn prompts_are_bytes_and_every_token_is_text() {
        let tokenizer = Tokenizer::from_json(&tokenizer_json(300), &TokenizerConfig::default(), 100).unwrap();
        let ids = tokenizer.encode("h\u{e9} 256", true).unwrap();
        assert_eq!(ids, "h\u{e9} 256".bytes().map(u32::from).collect::<Vec<_>>());
        assert_eq!(tokenizer.decode(&ids, true), "h\u{e9} 256");
        assert_eq!(tokenizer.decode(&[256, 33, 299, 300], true), " 256! 299");
        assert!(Tokenizer::from_json(&tokenizer_json(8), &TokenizerConfig::default(), 100).is_ok());
    }
}
