//! The small tokenizers of `text/tokenizers` against what `transformers` made of them, and streaming against decoding.

use backends::llm::text::{Detokenizer, Tokenizer, TokenizerConfig};
use proptest::prelude::*;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};

const ALL: [&str; 5] = ["byte_level", "byte_level_bos", "llama", "gemma", "metaspace"];

fn directory(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/llm/text/tokenizers").join(name)
}

fn load(name: &str) -> Tokenizer {
    let directory = directory(name);
    let config = TokenizerConfig::read(&directory).unwrap();
    Tokenizer::load(&directory, &config, 1 << 16).unwrap()
}

fn reference(name: &str) -> tokenizers::Tokenizer {
    tokenizers::Tokenizer::from_file(directory(name).join("tokenizer.json")).unwrap()
}

fn golden(name: &str) -> Value {
    serde_json::from_slice(&std::fs::read(directory(name).join("golden.json")).unwrap()).unwrap()
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

fn stream(mut detokenizer: Detokenizer, ids: &[u32]) -> String {
    let mut text = String::new();
    for id in ids {
        text.push_str(detokenizer.push(*id));
        assert!(detokenizer.waiting() <= 3);
    }
    text.push_str(detokenizer.finish());
    text
}

/// Does a run of byte tokens hold a complete character before the place where it stops being UTF-8? There, and only there,
/// streaming differs from decoding; see `detokenizer.rs`.
fn sent_too_early(name: &str, tokenizer: &Tokenizer, ids: &[u32], skip: bool) -> bool {
    if !["llama", "gemma"].contains(&name) {
        return false;
    }
    let mut run = Vec::new();
    let mut early = false;
    let bad = |run: &[u8]| std::str::from_utf8(run).is_err_and(|e| e.valid_up_to() > 0);
    for id in ids.iter().filter(|id| !(skip && tokenizer.vocabulary().is_special(**id))) {
        let Some(name) = tokenizer.name(*id) else { continue };
        if name.starts_with("<0x") && name.len() == 6 {
            run.extend_from_slice(tokenizer.vocabulary().bytes(*id).unwrap());
        } else {
            early |= bad(&run);
            run.clear();
        }
    }
    early | bad(&run)
}

#[test]
fn encodes_as_transformers_does() {
    for name in ALL {
        let tokenizer = load(name);
        for case in golden(name)["encode"].as_array().unwrap() {
            let text = case["text"].as_str().unwrap();
            assert_eq!(tokenizer.encode(text, false).unwrap(), ids(&case["plain"]), "{name}: {text:?}");
            assert_eq!(tokenizer.encode(text, true).unwrap(), ids(&case["special"]), "{name}: {text:?}");
        }
    }
}

#[test]
fn decodes_as_transformers_does() {
    for name in ALL {
        let tokenizer = load(name);
        let golden = golden(name);
        let cases = golden["decode"].as_array().unwrap();
        let mut compared = 0;
        for case in cases {
            let ids = ids(&case["ids"]);
            for (skip, expected) in [(false, &case["all"]), (true, &case["skip"])] {
                if !sent_too_early(name, &tokenizer, &ids, skip) {
                    assert_eq!(tokenizer.decode(&ids, skip), expected.as_str().unwrap(), "{name}: {ids:?} {skip}");
                    compared += 1;
                }
            }
        }
        assert!(compared * 10 > cases.len() * 2 * 7, "{name}: only {compared} of {} compared", cases.len() * 2);
    }
}

#[test]
fn texts_come_back() {
    for name in ["byte_level", "byte_level_bos", "llama", "gemma"] {
        let tokenizer = load(name);
        for case in golden(name)["encode"].as_array().unwrap() {
            let text = case["text"].as_str().unwrap();
            // NFC composes; a bare ▁ is a space to SentencePiece, which also puts spaces after control tokens.
            if ["\u{301}", "▁", "<s>"].iter().any(|odd| text.contains(odd)) {
                continue;
            }
            let ids = tokenizer.encode(text, false).unwrap();
            assert_eq!(tokenizer.decode(&ids, false), text, "{name}");
        }
    }
}

#[test]
fn a_continuation_keeps_its_space() {
    let tokenizer = load("llama");
    let ids = tokenizer.encode("the server", false).unwrap();
    let vocabulary = || Arc::clone(tokenizer.vocabulary());
    assert_eq!(stream(Detokenizer::new(vocabulary(), true), &ids), "the server");
    assert_eq!(stream(Detokenizer::after_prompt(vocabulary(), true), &ids), " the server");
}

#[test]
fn half_characters_wait() {
    let tokenizer = load("llama");
    let id = |byte: u8| tokenizer.id(&format!("<0x{byte:02X}>")).unwrap();
    let mut detokenizer = Detokenizer::new(Arc::clone(tokenizer.vocabulary()), true);
    let pieces: Vec<String> = "😀é".bytes().map(|byte| detokenizer.push(id(byte)).to_owned()).collect();
    assert_eq!(pieces, ["", "", "", "😀", "", "é"]);
    // The third byte cannot follow: the two that waited, it, and the rest of the run are replaced one by one.
    let pieces: Vec<String> = [0xe4, 0xbd, 0x41, 0x42].map(|byte| detokenizer.push(id(byte)).to_owned()).into();
    assert_eq!(pieces, ["", "", "\u{fffd}\u{fffd}\u{fffd}", "\u{fffd}"]);
    assert_eq!(detokenizer.push(id(0xf0)), "\u{fffd}");
    assert_eq!(detokenizer.finish(), "");
}

#[test]
fn edges_come_from_the_settings_where_the_file_has_no_post_processor() {
    let directory = directory("llama");
    let mut json: Value = serde_json::from_slice(&std::fs::read(directory.join("tokenizer.json")).unwrap()).unwrap();
    json["post_processor"] = Value::Null;
    let mut config = TokenizerConfig::read(&directory).unwrap();
    let mut ids = |bos, eos| {
        (config.add_bos_token, config.add_eos_token) = (bos, eos);
        let tokenizer = Tokenizer::from_json(json.to_string().as_bytes(), &config, 100).unwrap();
        tokenizer.encode("a", true).unwrap()
    };
    assert_eq!(ids(None, None), [316, 279]);
    assert_eq!(ids(Some(true), Some(false)), [1, 316, 279]);
    assert_eq!(ids(Some(true), Some(true)), [1, 316, 279, 2]);
}

#[test]
fn control_tokens_in_a_text_are_split_where_the_settings_say_so() {
    let directory = directory("llama");
    let mut config = TokenizerConfig::read(&directory).unwrap();
    assert!(!config.split_special_tokens);
    config.split_special_tokens = true;
    let split = Tokenizer::load(&directory, &config, 100).unwrap();
    let begin = split.id("<s>").unwrap();
    assert!(load("llama").encode("a<s>", false).unwrap().contains(&begin));
    let ids = split.encode("a<s>", false).unwrap();
    assert!(!ids.contains(&begin), "{ids:?}");
    assert_eq!(split.decode(&ids, true), "a<s>");
    // Those at the edges stay.
    assert_eq!(split.encode("a", true).unwrap(), load("llama").encode("a", true).unwrap());
    let said = serde_json::json!({"split_special_tokens": true});
    assert!(TokenizerConfig::parse(said.as_object().unwrap()).unwrap().split_special_tokens);
}

#[test]
fn control_tokens_of_both_fields_are_taken() {
    let read = |extra: Value| {
        let values = serde_json::json!({"extra_special_tokens": extra, "additional_special_tokens": ["x", "y"]});
        TokenizerConfig::parse(values.as_object().unwrap()).unwrap()
    };
    let both = |list: &[&str]| list.iter().map(|token| (*token).to_owned()).collect::<Vec<_>>();
    assert_eq!(read(serde_json::json!({})).extra_tokens, both(&["x", "y"]));
    assert_eq!(read(serde_json::json!(["w"])).extra_tokens, both(&["w", "x", "y"]));
    let named = read(serde_json::json!({"image_token": "<img>"}));
    assert_eq!((named.named("image_token"), &named.extra_tokens), (Some("<img>"), &both(&["x", "y"])));
}

#[test]
fn limits() {
    let tokenizer = load("byte_level");
    let long = "x".repeat((1 << 16) + 1);
    assert_eq!(
        tokenizer.encode(&long, false).unwrap_err().to_string(),
        "the text has 65537 bytes; a prompt that fits into the model's context has at most 65536"
    );
    assert!(tokenizer.encode(&long[1..], false).is_ok());
}

#[test]
fn control_tokens_are_marked() {
    let tokenizer = load("byte_level");
    let special = |token: &str| tokenizer.vocabulary().is_special(tokenizer.id(token).unwrap());
    assert!(special("<|im_end|>") && special("<|endoftext|>") && !special("<tool>") && !special("a"));
    assert!(!tokenizer.vocabulary().is_special(1 << 30));
    assert_eq!(tokenizer.vocabulary().bytes(1 << 30), None);
}

#[test]
fn broken_files_are_refused() {
    let config = TokenizerConfig::default();
    let json = std::fs::read_to_string(directory("byte_level").join("tokenizer.json")).unwrap();
    let refused = |change: &dyn Fn(&mut Value)| {
        let mut value: Value = serde_json::from_str(&json).unwrap();
        change(&mut value);
        Tokenizer::from_json(value.to_string().as_bytes(), &config, 100).unwrap_err()
    };
    assert!(refused(&|v| v["decoder"] = Value::Null).contains("has no decoder"));
    let wordpiece = serde_json::json!({"type": "WordPiece", "prefix": "##", "cleanup": true});
    assert!(refused(&|v| v["decoder"] = wordpiece.clone()).contains("decoder WordPiece (step 1) is not supported"));
    assert!(refused(&|v| v["model"]["vocab"]["huge"] = 4_000_000_000u32.into()).contains("is larger than 2097151"));
    refused(&|v| v["model"]["merges"] = serde_json::json!([["no", "such"]]));
    refused(&|v| v["model"] = Value::Null);
    assert!(Tokenizer::from_json(&json.as_bytes()[..json.len() / 2], &config, 100).is_err());
    let empty = tempfile::tempdir().unwrap();
    let error = Tokenizer::load(empty.path(), &config, 100).unwrap_err();
    assert!(error.to_string().ends_with("tokenizer.json: is missing"), "{error}");
    std::fs::write(empty.path().join("tokenizer_config.json"), r#"{"bos_token": 7}"#).unwrap();
    assert!(TokenizerConfig::read(empty.path()).unwrap_err().reason.contains("bos_token is neither"));
}

#[test]
fn configuration_files_in_their_order() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, content: &str| std::fs::write(dir.path().join(name), content).unwrap();
    let config = || TokenizerConfig::read(dir.path()).unwrap();
    assert_eq!(config(), TokenizerConfig::default());
    write(
        "tokenizer_config.json",
        r#"{"eos_token": "a", "chat_template": [{"name": "default", "template": "D"}, {"name": "tool_use", "template": "T"}], "model_max_length": 1e30, "image_token": "<img>"}"#,
    );
    write(
        "special_tokens_map.json",
        r#"{"eos_token": {"content": "b"}, "additional_special_tokens": ["x", {"content": "y"}]}"#,
    );
    assert_eq!((config().named("eos_token"), config().named("image_token")), (Some("b"), Some("<img>")));
    assert_eq!((config().extra_tokens, config().model_max_length), (vec!["x".to_owned(), "y".to_owned()], None));
    assert_eq!(config().chat_templates[1], ("tool_use".to_owned(), "T".to_owned()));
    write("chat_template.jinja", "file");
    assert_eq!(config().chat_templates, [("default".to_owned(), "file".to_owned())]);
    std::fs::create_dir(dir.path().join("additional_chat_templates")).unwrap();
    write("additional_chat_templates/rag.jinja", "R");
    assert_eq!(config().chat_templates[1], ("rag".to_owned(), "R".to_owned()));
}

static LOADED: LazyLock<Vec<(Tokenizer, tokenizers::Tokenizer)>> =
    LazyLock::new(|| ALL.iter().map(|name| (load(name), reference(name))).collect());

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    /// Any sequence, also of ids that are no token: pieces together are what `tokenizers` decodes.
    #[test]
    fn streaming_is_decoding(which in 0..ALL.len(), ids in prop::collection::vec(0u32..530, 0..40), skip: bool) {
        let (tokenizer, reference) = &LOADED[which];
        // `gemma` has a token that only its configuration knows.
        let ids: Vec<u32> = ids.into_iter().filter(|id| ALL[which] != "gemma" || *id < 520).collect();
        let streamed = stream(Detokenizer::new(Arc::clone(tokenizer.vocabulary()), skip), &ids);
        prop_assert_eq!(&streamed, &tokenizer.decode(&ids, skip));
        if !sent_too_early(ALL[which], tokenizer, &ids, skip) {
            prop_assert_eq!(streamed, reference.decode(&ids, skip).unwrap());
        }
    }

    /// The same where most tokens are single bytes, of text that was damaged.
    #[test]
    fn damaged_bytes(which in 2usize..4, text in "\\PC{0,12}", at in 0usize..60, byte: u8, other in 3u32..520) {
        let (tokenizer, reference) = &LOADED[which];
        let mut bytes = text.into_bytes();
        if let Some(place) = bytes.get_mut(at) { *place = byte; }
        let mut ids: Vec<u32> = bytes.iter().map(|byte| tokenizer.id(&format!("<0x{byte:02X}>")).unwrap()).collect();
        ids.insert(at.min(ids.len()), other);
        let streamed = stream(Detokenizer::new(Arc::clone(tokenizer.vocabulary()), true), &ids);
        let decoded = reference.decode(&ids, true).unwrap();
        if sent_too_early(ALL[which], tokenizer, &ids, true) {
            prop_assert!(streamed.chars().count() <= decoded.chars().count());
        } else {
            prop_assert_eq!(streamed, decoded);
        }
    }

    /// Bytes of text, cut everywhere and damaged: as Python replaces them.
    #[test]
    fn damaged_text(text in "\\PC{0,20}", at in 0usize..60, byte: u8, cut in 0usize..60) {
        let mut bytes = text.into_bytes();
        if let Some(place) = bytes.get_mut(at) { *place = byte; }
        bytes.truncate(cut);
        let (tokenizer, _) = &LOADED[0];
        let vocabulary = tokenizer.vocabulary();
        let id = |byte: &u8| (0..300).find(|id| vocabulary.bytes(*id) == Some(&[*byte])).unwrap();
        let ids: Vec<u32> = bytes.iter().map(id).collect();
        prop_assert_eq!(stream(Detokenizer::new(Arc::clone(vocabulary), true), &ids), String::from_utf8_lossy(&bytes));
    }
}
