//! Tokenizers out of GGUF files against Hugging Face's: `tests/llm/text/make_gguf_tokenizers.py` wrote the files. And
//! what is refused.

use backends::llm::text::gguf::{Found, read};
use backends::llm::text::{MAX_TEMPLATE_BYTES, MAX_TOKEN_IDS, Tokenizer};
use backends::llm::weights::gguf::{Gguf, Value};
use proptest::prelude::*;
use serde_json::Value as Json;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

type Metadata = BTreeMap<String, Value>;

const PIECES: [&str; 3] = ["llama", "phi3", "gemma"];

fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/llm/text/gguf").join(name)
}

fn json(name: &str) -> Json {
    serde_json::from_slice(&std::fs::read(file(name)).unwrap()).unwrap()
}

fn metadata(name: &str) -> Metadata {
    Gguf::open(&file(&format!("{name}.gguf"))).unwrap().metadata().as_ref().clone()
}

/// The byte-level file, as one of a family.
fn family(name: &str) -> Metadata {
    let mut metadata = metadata("byte_level");
    metadata.insert("tokenizer.ggml.pre".into(), Value::Text(name.into()));
    metadata
}

fn load(metadata: &Metadata) -> (Tokenizer, Found) {
    let found = read(metadata).unwrap();
    (Tokenizer::new(found.tokenizer.clone(), &found.config, 1 << 16).unwrap(), found)
}

static GOLDEN: LazyLock<Json> = LazyLock::new(|| json("golden.json"));

fn ids(value: &Json) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

fn agrees(name: &str, tokenizer: &Tokenizer, golden: &Json) {
    for (at, text) in GOLDEN["texts"].as_array().unwrap().iter().enumerate() {
        let text = text.as_str().unwrap();
        let encoded = tokenizer.encode(text, false).unwrap();
        assert_eq!(encoded, ids(&golden["ids"][at]), "{name}: {text:?}");
        let written = golden["written"][at.to_string()].as_str().unwrap_or(text);
        assert_eq!(tokenizer.decode(&encoded, false), written, "{name}: {text:?}");
    }
}

#[test]
fn families_cut_text_as_their_own_files_do() {
    for (name, golden) in GOLDEN["families"].as_object().unwrap() {
        agrees(name, &load(&family(name)).0, golden);
    }
}

#[test]
fn pieces_are_merged_as_their_scores_say() {
    for name in PIECES {
        agrees(name, &load(&metadata(name)).0, &GOLDEN[name]);
    }
}

/// Files made from a tokenizer.json have one score for all.
#[test]
fn without_scores_the_order_of_tokens_counts() {
    let mut metadata = metadata("llama");
    let Some(Value::Numbers(scores)) = metadata.get_mut("tokenizer.ggml.scores") else { panic!() };
    scores.fill(-1000.0);
    let (tokenizer, found) = load(&metadata);
    agrees("llama", &tokenizer, &GOLDEN["llama"]);
    let found = serde_json::to_value(&found.tokenizer).unwrap();
    assert_eq!(found["model"]["merges"], json("llama.json")["model"]["merges"]);
}

/// Of equal scores (-0, where SentencePiece's begin, is 0) the token of the lower id is merged first.
#[test]
fn ties_are_broken_as_by_transformers() {
    let metadata = changed(&[
        ("ggml.tokens", texts(&["a", "b", "ab", "bb"])),
        ("ggml.scores", Value::Numbers(vec![0.0, 0.0, -0.0, -1000.0])),
        ("ggml.token_type", Value::Numbers(vec![1.0, 1.0, 1.0, 4.0])),
    ]);
    let found = serde_json::to_value(read(&metadata).unwrap().tokenizer).unwrap();
    assert_eq!(found["model"]["merges"], serde_json::json!([["a", "b"], ["b", "b"]]));
}

/// Merges that a file of pieces lists are taken.
#[test]
fn pieces_may_list_their_merges() {
    let mut metadata = metadata("llama");
    let merges = json("llama.json")["model"]["merges"].clone();
    let pair = |pair: &Json| format!("{} {}", pair[0].as_str().unwrap(), pair[1].as_str().unwrap());
    let merges = merges.as_array().unwrap().iter().map(pair).collect();
    metadata.insert("tokenizer.ggml.merges".into(), Value::Texts(merges));
    metadata.remove("tokenizer.ggml.scores");
    agrees("llama", &load(&metadata).0, &GOLDEN["llama"]);
}

/// Each tokenizer out of a GGUF file, beside the one of its tokenizer.json.
static PAIRS: LazyLock<Vec<(Tokenizer, tokenizers::Tokenizer)>> = LazyLock::new(|| {
    let reference = |json: &Json| tokenizers::Tokenizer::from_bytes(serde_json::to_vec(json).unwrap()).unwrap();
    let families = GOLDEN["families"].as_object().unwrap().iter().map(|(name, golden)| {
        let mut file = json("byte_level.json");
        file["normalizer"] = golden["normalizer"].clone();
        file["pre_tokenizer"] = golden["pre_tokenizer"].clone();
        file["model"]["ignore_merges"] = golden["ignore_merges"].clone();
        (load(&family(name)).0, reference(&file))
    });
    let pieces = PIECES.iter().map(|name| (load(&metadata(name)).0, reference(&json(&format!("{name}.json")))));
    families.chain(pieces).collect()
});

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// Any text: of any characters, or of what families cut differently.
    #[test]
    fn any_text_becomes_the_same_tokens(
        text in prop_oneof![
            "\\PC{0,30}",
            "([a-cA-C]{1,4}|[0-9]{1,5}|[ \n\t\r]{1,4}|'(s|LL|d)|[/.,!-]{1,3}|[é你हि\u{301}]|<\\|im_end\\|>|<s>|the|server){0,12}",
        ]
    ) {
        for (tokenizer, reference) in PAIRS.iter() {
            let encoded = tokenizer.encode(&text, false).unwrap();
            let expected = reference.encode_fast(text.as_str(), false).unwrap();
            prop_assert_eq!(encoded.as_slice(), expected.get_ids());
        }
    }
}

/// The file of pieces with a few changes.
fn changed(changes: &[(&str, Value)]) -> Metadata {
    let mut metadata = metadata("llama");
    metadata.extend(changes.iter().map(|(key, value)| (format!("tokenizer.{key}"), value.clone())));
    metadata
}

fn texts(texts: &[&str]) -> Value {
    Value::Texts(texts.iter().map(|text| (*text).to_owned()).collect())
}

fn text(text: &str) -> Value {
    Value::Text(text.to_owned())
}

/// A byte-level tokenizer of those tokens, all but the first control tokens.
fn controls(tokens: &[&str], kind: f32) -> Metadata {
    let kinds = (0..tokens.len()).map(|id| if id == 0 { 1.0 } else { kind }).collect();
    BTreeMap::from([
        ("tokenizer.ggml.model".to_owned(), text("gpt2")),
        ("tokenizer.ggml.tokens".to_owned(), texts(tokens)),
        ("tokenizer.ggml.token_type".to_owned(), Value::Numbers(kinds)),
        ("tokenizer.ggml.merges".to_owned(), texts(&[])),
    ])
}

#[test]
fn settings_are_read() {
    let (tokenizer, found) = load(&metadata("byte_level"));
    let id = |token: &str| tokenizer.id(token).unwrap();
    let named = |name: &str| found.config.named(name).map(str::to_owned);
    assert_eq!(named("bos_token").unwrap(), "<|endoftext|>");
    assert_eq!(named("eos_token").unwrap(), "<|im_end|>");
    assert_eq!(named("pad_token"), None, "'!' is text: as a named token it would never be shown");
    assert_eq!(found.end_tokens, [id("<|endoftext|>"), id("<|im_end|>")]);
    let templates = [("default", "{{ messages }}"), ("tool_use", "{{ tools }}")];
    assert_eq!(found.config.chat_templates, templates.map(|(name, source)| (name.to_owned(), source.to_owned())));
    assert_eq!(tokenizer.decode(&[id("<|im_end|>"), id("<tool>")], true), "<tool>");
    // Padded rows of the model are no tokens, and write nothing.
    assert_eq!(tokenizer.vocabulary().len() as u32, id("   ") + 3);

    let (tokenizer, found) = load(&metadata("gemma"));
    let id = |token: &str| tokenizer.id(token).unwrap();
    assert_eq!(found.end_tokens, [id("<eos>"), id("<end_of_turn>")], "</s> is HTML there");
    assert_eq!(found.config.named("pad_token"), Some("<pad>"));
}

#[test]
fn what_begins_a_text_depends_on_the_family() {
    let bos = |metadata: &Metadata| {
        let (tokenizer, found) = load(metadata);
        let first = tokenizer.encode("a", true).unwrap()[0];
        found.config.named("bos_token").is_some_and(|token| tokenizer.id(token) == Some(first))
    };
    assert!(!bos(&family("gpt-2")) && !bos(&family("qwen2")));
    assert!(bos(&family("llama-bpe")) && bos(&family("tekken")));
    let mut metadata = family("llama-bpe");
    metadata.insert("tokenizer.ggml.add_bos_token".into(), Value::Flag(false));
    assert!(!bos(&metadata));
    assert!(bos(&changed(&[])), "pieces begin with it unless they say otherwise");
    assert!(!bos(&changed(&[("ggml.add_bos_token", Value::Flag(false))])));
    let (tokenizer, _) = load(&changed(&[("ggml.add_eos_token", Value::Flag(true))]));
    assert_eq!(tokenizer.encode("", true).unwrap(), [1, 2]);
}

#[test]
fn ends_are_found_by_key_and_by_what_tokens_are_called() {
    let ends = |metadata: &Metadata| read(metadata).unwrap().end_tokens;
    assert_eq!(
        ends(&changed(&[("ggml.eot_token_id", Value::Whole(5)), ("ggml.eom_token_id", Value::Whole(9))])),
        [2, 5, 9]
    );
    // Converters write that there is none as -1; the vocabulary's own is meant then.
    assert_eq!(ends(&changed(&[("ggml.eos_token_id", Value::Whole(-1))])), [2]);
    assert_eq!(
        ends(&controls(&["<|im_end|>", "<|eot_id|>", "<|file_sep|>", "x"], 3.0)),
        [1, 2],
        "text may read like one"
    );
    assert_eq!(ends(&controls(&["a", "<|end|>", "<|user|>"], 4.0)), [1]);
    assert_eq!(ends(&controls(&["a", "<|end|>", "<|return|>", "<|call|>"], 3.0)), [2, 3], "gpt-oss answers in parts");
    let mut unsaid = controls(&["a", "</s>"], 3.0);
    unsaid.remove("tokenizer.ggml.token_type");
    assert_eq!(ends(&unsaid), [1]);
}

/// A user-defined token that ends a text is no text.
#[test]
fn ends_are_not_shown() {
    let (tokenizer, _) = load(&controls(&["a", "<|im_end|>", "<b>"], 4.0));
    assert_eq!(tokenizer.decode(&[0, 1, 2], true), "a<b>");
}

#[test]
fn malformed_metadata_are_refused_by_key() {
    let numbers = |count: usize, number: f32| Value::Numbers(vec![number; count]);
    let tokens = "ggml.tokens";
    let many_templates: Vec<_> = (0..20).map(|n| (format!("chat_template.{n}"), text("x"))).collect();
    let many_templates: Vec<_> = many_templates.iter().map(|(key, value)| (key.as_str(), value.clone())).collect();
    let long = vec![("chat_template", Value::Text("x".repeat(MAX_TEMPLATE_BYTES + 1)))];
    let cases: Vec<(Vec<(&str, Value)>, &str)> = vec![
        (
            vec![("ggml.model", text("bert"))],
            "`tokenizer.ggml.model` is 'bert', not supported; supported are gpt2, llama",
        ),
        (vec![("ggml.model", text("t5\n"))], "is 't5\\n', not supported"),
        (vec![("ggml.model", Value::Whole(1))], "`tokenizer.ggml.model` is not a text"),
        (
            vec![("ggml.model", text("gpt2")), ("ggml.pre", text("x"))],
            "`tokenizer.ggml.pre` is 'x', not supported; supported are default, gpt-2",
        ),
        (vec![("ggml.model", text("gpt2"))], "`tokenizer.ggml.merges` is missing"),
        (vec![(tokens, text("a"))], "`tokenizer.ggml.tokens` is not a list of texts"),
        (vec![(tokens, texts(&[]))], "has 0 tokens; expected 1 to"),
        (vec![(tokens, texts(&vec![""; MAX_TOKEN_IDS as usize + 1]))], "has 2097153 tokens; expected 1 to 2097152"),
        (vec![(tokens, texts(&["a", "b", "a"]))], "`tokenizer.ggml.tokens` has 'a' twice: 0 and 2"),
        (vec![(tokens, texts(&["a", "b"]))], "`tokenizer.ggml.token_type` has 480 numbers for 2 tokens"),
        (vec![("ggml.scores", numbers(3, 0.0))], "`tokenizer.ggml.scores` has 3 numbers for 480 tokens"),
        (vec![("ggml.scores", numbers(480, f32::NAN))], "`tokenizer.ggml.scores` holds something that is no number"),
        (vec![("ggml.scores", text(""))], "`tokenizer.ggml.scores` is not a list of numbers"),
        (vec![("ggml.merges", texts(&["a"]))], "`tokenizer.ggml.merges` 0 is 'a'; expected two tokens"),
        (vec![("ggml.merges", texts(&["t h", "<s> <s>"]))], "`tokenizer.ggml.merges` 1 is '<s> <s>'"),
        (vec![("ggml.merges", texts(&["t  h"]))], "expected two tokens with a space between them that make a third"),
        (
            vec![("ggml.merges", texts(&vec!["t h"; (1 << 21) + 1]))],
            "`tokenizer.ggml.merges` has 2097153 merges; at most",
        ),
        (
            vec![("ggml.bos_token_id", Value::Whole(480))],
            "`tokenizer.ggml.bos_token_id` is 480, but there are 480 tokens",
        ),
        (vec![("ggml.eot_token_id", Value::Whole(-2))], "`tokenizer.ggml.eot_token_id` is -2"),
        (vec![("ggml.padding_token_id", Value::Real(0.0))], "`tokenizer.ggml.padding_token_id` is not a whole number"),
        (vec![("ggml.add_bos_token", Value::Whole(1))], "`tokenizer.ggml.add_bos_token` is not true or false"),
        (vec![("ggml.add_space_prefix", text("no"))], "`tokenizer.ggml.add_space_prefix` is not true or false"),
        (vec![("chat_template", Value::Whole(1))], "`tokenizer.chat_template` is not a text"),
        (many_templates, "more than 16 chat templates"),
        (long, "`tokenizer.chat_template` has 524289 bytes; at most 524288 are allowed"),
    ];
    for (changes, message) in cases {
        let refusal = read(&changed(&changes)).unwrap_err();
        assert!(refusal.contains(message), "{refusal:?} instead of {message:?}");
    }
    let mut no_end = controls(&["a"], 3.0);
    no_end.insert("tokenizer.ggml.add_eos_token".into(), Value::Flag(true));
    let refusal = read(&no_end).unwrap_err();
    assert_eq!(refusal, "`tokenizer.ggml.add_eos_token` is true, but `tokenizer.ggml.eos_token_id` is missing");
    for key in ["model", "tokens", "scores"] {
        let mut metadata = metadata("llama");
        metadata.remove(&format!("tokenizer.ggml.{key}"));
        let refusal = read(&metadata).unwrap_err();
        assert!(refusal.contains(&format!("`tokenizer.ggml.{key}`")) && refusal.contains("missing"), "{refusal}");
    }
}

/// Work and memory are refused before they are spent.
#[test]
fn too_much_is_refused() {
    let pieces = |tokens: Vec<String>| {
        let mut metadata = changed(&[("ggml.scores", Value::Numbers(vec![0.0; tokens.len()]))]);
        metadata.remove("tokenizer.ggml.token_type");
        metadata.insert("tokenizer.ggml.tokens".into(), Value::Texts(tokens));
        read(&metadata)
    };
    let refusal = "too many or too long for their merges to be found";
    // One token, as long as the file allows; and many, each a merge of two others in as many ways as it has characters.
    assert!(pieces(vec!["a".repeat(1 << 20), "b".into(), "c".into()]).unwrap_err().contains(refusal));
    assert!(pieces((1..=2100).map(|length| "a".repeat(length)).collect()).unwrap_err().contains(refusal));
    assert!(pieces((1..=100).map(|length| "a".repeat(length)).collect()).is_ok());

    let names: Vec<_> = (0..1 << 17).map(|n| n.to_string()).collect();
    let names: Vec<_> = names.iter().map(String::as_str).collect();
    let refusal = read(&controls(&names, 3.0)).unwrap_err();
    assert!(refusal.starts_with("`tokenizer.ggml.token_type`: too many control and user-defined tokens"), "{refusal}");
    let long = "x".repeat(5 << 20);
    assert!(read(&controls(&["a", &long], 4.0)).unwrap_err().contains("too many control"));
}

/// Nothing that a file may hold under the keys panics, here or when it is loaded.
#[test]
fn no_value_panics() {
    let values = [
        Value::Whole(i128::MAX),
        Value::Whole(0),
        Value::Real(f64::NAN),
        Value::Flag(true),
        text(""),
        text("llama3"),
        texts(&[]),
        texts(&["", ""]),
        texts(&["a b", "▁"]),
        Value::Numbers(vec![]),
        Value::Numbers(vec![f32::INFINITY; 480]),
        Value::Numbers(vec![4.0; 480]),
        Value::Numbers(vec![2.0; 480]),
        Value::Numbers(vec![-1e30; 480]),
    ];
    for name in ["byte_level", "llama", "gemma"] {
        let metadata = metadata(name);
        for key in metadata.keys().filter(|key| key.starts_with("tokenizer.")) {
            for value in &values {
                let mut metadata = metadata.clone();
                metadata.insert(key.clone(), value.clone());
                if let Ok(found) = read(&metadata) {
                    let tokenizer = Tokenizer::new(found.tokenizer, &found.config, 1 << 16);
                    let ids = tokenizer.unwrap().encode("the server\n <|im_end|> 😀", true).unwrap();
                    assert!(ids.iter().all(|id| *id < 1000));
                }
            }
        }
    }
}

/// What is written is what Hugging Face's libraries write, merges in their order included.
#[test]
fn the_json_is_that_of_the_original() {
    for name in PIECES {
        let found = read(&metadata(name)).unwrap();
        let found = serde_json::to_value(&found.tokenizer).unwrap();
        let expected = json(&format!("{name}.json"));
        for key in ["version", "normalizer", "decoder"] {
            assert_eq!(found[key], expected[key], "{name}: {key}");
        }
        for key in ["type", "merges", "unk_token", "fuse_unk", "byte_fallback", "ignore_merges"] {
            assert_eq!(found["model"][key], expected["model"][key], "{name}: {key}");
        }
        if name == "llama" {
            assert_eq!(found["added_tokens"], expected["added_tokens"]);
            assert_eq!(found["model"]["vocab"], expected["model"]["vocab"]);
        }
    }
}
