//! The tokenizer of a GGUF file: metadata are turned back into what the `tokenizer.json` held that they were made from, and
//! the settings beside it, which [`super::Tokenizer`] takes over with all its checks. Not how text is cut into words: that is
//! `pretokenizers`.
//!
//! | `tokenizer.ggml.model` | normalizer | words | merges | decoder |
//! |---|---|---|---|---|
//! | `gpt2` | the family's | the family's, by `pre` | `merges` | bytes, written as characters |
//! | `llama` | spaces become `▁` | none | `merges`, or recovered from `scores` | spaces again; bytes as `<0x0A>` |
//!
//! Where llama.cpp and `transformers` differ, text becomes the tokens that `transformers` makes with the model's own
//! `tokenizer.json`; which tokens end a text, and whether one begins it, is llama.cpp's to say, for which files are
//! made. Metadata are untrusted: lists must fit each other, ids be those of tokens, and work is bounded before it is done.

use super::config::{MAX_TEMPLATES, TokenizerConfig};
use super::gguf_merges::{listed, recovered};
use super::gguf_metadata::{Metadata, shown};
use super::pretokenizers::{PRE_TOKENIZERS, PreTokenizer};
use super::template::MAX_TEMPLATE_BYTES;
use super::vocabulary::MAX_TOKEN_IDS;
use crate::llm::weights::gguf::Value;
use serde_json::{Value as Json, json};
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use tokenizers::models::bpe::{BpeBuilder, Vocab};
use tokenizers::{AddedToken, Tokenizer};

/// Tokens that are looked for in text before it is cut into words, at most: an automaton is made of them.
const ADDED_MAX: usize = 1 << 16;
/// Bytes of those tokens, at most.
const ADDED_BYTES_MAX: usize = 4 << 20;

/// Named control tokens: the name, the key, and which token it is in `llama` vocabularies whose file does not say.
const NAMED: [(&str, &str, Option<u32>); 6] = [
    ("bos_token", "bos_token_id", Some(1)),
    ("eos_token", "eos_token_id", Some(2)),
    ("unk_token", "unknown_token_id", Some(0)),
    ("sep_token", "seperator_token_id", None),
    ("pad_token", "padding_token_id", None),
    ("mask_token", "mask_token_id", None),
];

/// Keys of tokens that end a text.
const ENDS: [&str; 6] =
    ["eos_token_id", "eot_token_id", "eom_token_id", "fim_pad_token_id", "fim_rep_token_id", "fim_sep_token_id"];

/// Tokens that end a text by what they are called, as in llama.cpp; files often name only one of several.
#[rustfmt::skip]
const ENDS_BY_TEXT: &[&str] = &[
    "<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>", "<end_of_turn>",
    "<|endoftext|>", "</s>", "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<|end_of_text|>", "<end_of_utterance>",
    "<eos>", "<turn|>", "<|tool_response>", "<｜end▁of▁sentence｜>", "[e~[", "<|fim_pad|>", "<fim-pad>", "<fim_pad>",
    "<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<reponame>", "<|file_sep|>",
];

/// The tokenizer of a GGUF file.
#[derive(Clone, Debug)]
pub struct Found {
    /// What a `tokenizer.json` holds.
    pub tokenizer: tokenizers::Tokenizer,
    /// What lies beside it.
    pub config: TokenizerConfig,
    /// The tokens that end a text, in order.
    pub end_tokens: Vec<u32>,
}

/// Reads the tokenizer out of a file's metadata.
///
/// # Errors
/// Says which key is missing, malformed or not supported, and what would be right.
pub fn read(metadata: &BTreeMap<String, Value>) -> Result<Found, String> {
    let metadata = Metadata(metadata);
    let model = Model::read(&metadata)?;
    let texts = texts(&metadata, &model)?;
    let ids = index(&texts)?;
    let mut kinds = kinds(&metadata, texts.len())?;
    let end_tokens = end_tokens(&metadata, &ids, &kinds)?;
    let config = config(&metadata, &model, &texts, &kinds)?;
    let merges = match metadata.texts("merges")? {
        Some(merges) => listed(merges, &ids)?,
        None => recovered(&texts, &ids, &scores(&metadata, &model, &kinds)?)?,
    };
    // As in llama.cpp: some converters call the end of a turn a word like any other, and it would be shown.
    end_tokens.iter().for_each(|id| kinds[*id as usize] = Kind::Control);
    let pieces = matches!(model, Model::Pieces { .. });
    let unknown = metadata.id("unknown_token_id", texts.len())?.or(Some(0)).filter(|_| pieces);
    let unknown = unknown.and_then(|id| texts.get(id as usize)).filter(|text| !text.is_empty());
    let owned = |(left, right): (&str, &str)| (left.to_owned(), right.to_owned());
    let merges: Vec<_> = merges.into_iter().map(owned).collect();
    let mut bpe = BpeBuilder::new()
        .fuse_unk(pieces)
        .byte_fallback(pieces)
        .ignore_merges(matches!(model, Model::ByteLevel(family) if family.whole_words));
    if let Some(text) = unknown {
        bpe = bpe.unk_token(text.clone().into_owned());
    }
    let mut tokenizer = model.frame()?;
    let added = added(&texts, &kinds, &model)?;
    tokenizer.with_model(bpe.vocab_and_merges(ids, merges).build().map_err(|e| e.to_string())?);
    tokenizer.add_tokens(added).map_err(|e| e.to_string())?;
    Ok(Found { tokenizer, config, end_tokens })
}

/// What kind of tokenizer it is.
enum Model<'a> {
    /// Words of bytes, written as characters.
    ByteLevel(&'static PreTokenizer),
    /// SentencePiece's.
    Pieces {
        /// Does a text begin with a space?
        prefix: bool,
        /// The model's architecture.
        architecture: &'a str,
    },
}

impl<'a> Model<'a> {
    fn read(metadata: &Metadata<'a>) -> Result<Self, String> {
        let refusal = |key: &str, name: &str, supported: &[&str]| {
            let (name, supported) = (shown(name), supported.join(", "));
            format!("`tokenizer.ggml.{key}` is '{name}', not supported; supported are {supported}")
        };
        let name = metadata.text("model")?.ok_or("`tokenizer.ggml.model` is missing; expected gpt2 or llama")?;
        match name {
            "gpt2" => {
                let pre = metadata.text("pre")?.filter(|pre| !pre.is_empty()).unwrap_or("default");
                let family = PRE_TOKENIZERS.iter().find(|family| family.names.contains(&pre));
                let names = || PRE_TOKENIZERS.iter().flat_map(|family| family.names).copied().collect::<Vec<_>>();
                family.map(Model::ByteLevel).ok_or_else(|| refusal("pre", pre, &names()))
            }
            "llama" => {
                let prefix = metadata.flag("add_space_prefix")?.unwrap_or(true);
                let architecture = match metadata.0.get("general.architecture") {
                    Some(Value::Text(name)) => name.as_str(),
                    _ => "",
                };
                Ok(Model::Pieces { prefix, architecture })
            }
            other => Err(refusal("model", other, &["gpt2", "llama"])),
        }
    }

    /// All of a tokenizer but its tokens: read as a `tokenizer.json`, whose spellings are documented best.
    fn frame(&self) -> Result<Tokenizer, String> {
        let file = json!({
            "version": "1.0", "normalizer": self.normalizer(), "pre_tokenizer": self.pre_tokenizer(),
            "decoder": self.decoder(), "model": {"type": "BPE", "vocab": {}, "merges": []},
        });
        serde_json::from_value(file).map_err(|e| e.to_string())
    }

    fn is_gemma(&self) -> bool {
        matches!(self, Model::Pieces { architecture, .. } if architecture.starts_with("gemma"))
    }

    fn normalizer(&self) -> Json {
        let replace = json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"});
        match self {
            Model::ByteLevel(family) if family.nfc => json!({"type": "NFC"}),
            Model::ByteLevel(_) => Json::Null,
            Model::Pieces { prefix: false, .. } => replace,
            Model::Pieces { prefix: true, .. } => {
                json!({"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, replace]})
            }
        }
    }

    fn pre_tokenizer(&self) -> Json {
        let Model::ByteLevel(family) = self else { return Json::Null };
        let split = |pattern: &&str| {
            let pattern = json!({"Regex": pattern});
            json!({"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": false})
        };
        let bytes = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false});
        let steps: Vec<_> = family.patterns.iter().map(split).chain([bytes]).collect();
        json!({"type": "Sequence", "pretokenizers": steps})
    }

    fn decoder(&self) -> Json {
        let Model::Pieces { prefix, .. } = self else {
            return json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false});
        };
        let mut steps = vec![
            json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "}),
            json!({"type": "ByteFallback"}),
            json!({"type": "Fuse"}),
        ];
        if *prefix {
            steps.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
        }
        json!({"type": "Sequence", "decoders": steps})
    }
}

/// The tokens' texts. Converters write Gemma's runs of spaces as spaces; for merging they must be `▁▁`.
fn texts<'a>(metadata: &Metadata<'a>, model: &Model<'_>) -> Result<Vec<Cow<'a, str>>, String> {
    let tokens = metadata.texts("tokens")?.ok_or("`tokenizer.ggml.tokens` is missing; expected a list of texts")?;
    if tokens.is_empty() || tokens.len() > MAX_TOKEN_IDS as usize {
        return Err(format!("`tokenizer.ggml.tokens` has {} tokens; expected 1 to {MAX_TOKEN_IDS}", tokens.len()));
    }
    let gemma = model.is_gemma();
    let spaces = |text: &str| gemma && text.len() > 1 && text.bytes().all(|byte| byte == b' ');
    Ok(tokens.iter().map(|text| if spaces(text) { text.replace(' ', "▁").into() } else { text.into() }).collect())
}

/// Ids by text. A text that two tokens have is refused, as in llama.cpp: which one it means, only the model knows. Empty
/// ones are left out, so that no text becomes them; vocabularies that were filled up may have many.
fn index(texts: &[Cow<'_, str>]) -> Result<Vocab, String> {
    let mut ids = Vocab::with_capacity(texts.len());
    for (text, id) in texts.iter().zip(0u32..).filter(|(text, _)| !text.is_empty()) {
        if let Some(first) = ids.insert(text.clone().into_owned(), id) {
            return Err(format!("`tokenizer.ggml.tokens` has '{}' twice: {first} and {id}", shown(text)));
        }
    }
    Ok(ids)
}

/// How a token is found in text.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// By merging.
    Ordinary,
    /// Whole, before text is cut into words.
    Whole,
    /// Whole; it stands for something else than text.
    Control,
    /// The file says nothing of kinds.
    Unsaid,
}

fn kinds(metadata: &Metadata<'_>, tokens: usize) -> Result<Vec<Kind>, String> {
    let Some(numbers) = metadata.numbers("token_type", tokens)? else { return Ok(vec![Kind::Unsaid; tokens]) };
    // 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte.
    let kind = |number: &f32| match *number as i32 {
        2 | 3 => Kind::Control,
        4 => Kind::Whole,
        _ => Kind::Ordinary,
    };
    Ok(numbers.iter().map(kind).collect())
}

fn end_tokens(metadata: &Metadata<'_>, ids: &Vocab, kinds: &[Kind]) -> Result<Vec<u32>, String> {
    let mut ends = BTreeSet::new();
    for key in ENDS {
        ends.extend(metadata.id(key, kinds.len())?);
    }
    for text in ENDS_BY_TEXT {
        // Ordinary text may read like one; and Gemma has a whole token for HTML's </s>.
        let ends_text = |id: &u32| match kinds[*id as usize] {
            Kind::Ordinary => false,
            Kind::Whole => *text != "</s>",
            Kind::Control | Kind::Unsaid => true,
        };
        ends.extend(ids.get(*text).copied().filter(ends_text));
    }
    // In these two vocabularies <|end|> ends a part of an answer; as in llama.cpp.
    let has = |text: &str| ids.get(text).is_some_and(|id| ends.contains(id));
    let by_parts = has("<|return|>") && has("<|call|>") || has("<|flush|>") && has("<|calls|>");
    if let (true, Some(end)) = (by_parts, ids.get("<|end|>")) {
        ends.remove(end);
    }
    Ok(ends.into_iter().collect())
}

fn config(
    metadata: &Metadata<'_>,
    model: &Model<'_>,
    texts: &[Cow<'_, str>],
    kinds: &[Kind],
) -> Result<TokenizerConfig, String> {
    let (begins, fallback) = match model {
        Model::ByteLevel(family) => (family.bos, false),
        Model::Pieces { .. } => (true, true),
    };
    let mut config = TokenizerConfig { chat_templates: chat_templates(metadata)?, ..TokenizerConfig::default() };
    for (name, key, otherwise) in NAMED {
        let id = metadata.id(key, texts.len())?.or(otherwise.filter(|_| fallback));
        let Some(text) = id.and_then(|id| texts.get(id as usize)).filter(|text| !text.is_empty()) else { continue };
        // Named tokens are never shown. Files call '!' their padding because its id is 0.
        let ordinary = id.is_some_and(|id| kinds[id as usize] == Kind::Ordinary);
        if !ordinary || name == "bos_token" || name == "eos_token" {
            config.named_tokens.push((name.to_owned(), text.clone().into_owned()));
        }
    }
    let add = |key: &str, name: &str, otherwise: bool| match metadata.flag(key)? {
        Some(true) if config.named(name).is_none() => {
            Err(format!("`tokenizer.ggml.{key}` is true, but `tokenizer.ggml.{name}_id` is missing"))
        }
        flag => Ok(Some(flag.unwrap_or(otherwise))),
    };
    (config.add_bos_token, config.add_eos_token) =
        (add("add_bos_token", "bos_token", begins)?, add("add_eos_token", "eos_token", false)?);
    Ok(config)
}

fn chat_templates(metadata: &Metadata<'_>) -> Result<Vec<(String, String)>, String> {
    const DEFAULT: &str = "tokenizer.chat_template";
    const NAMED: &str = "tokenizer.chat_template.";
    let named = metadata.0.range(NAMED.to_owned()..).take_while(|(key, _)| key.starts_with(NAMED));
    let mut templates: Vec<(String, String)> = Vec::new();
    for (key, value) in metadata.0.get_key_value(DEFAULT).into_iter().chain(named) {
        let Value::Text(source) = value else { return Err(format!("`{}` is not a text", shown(key))) };
        let name = key.strip_prefix(NAMED).unwrap_or("default");
        if source.len() > MAX_TEMPLATE_BYTES {
            let (key, length) = (shown(key), source.len());
            return Err(format!("`{key}` has {length} bytes; at most {MAX_TEMPLATE_BYTES} are allowed"));
        }
        if templates.iter().any(|(known, _)| known == name) {
            continue; // The default one may be there under both keys.
        }
        if templates.len() == MAX_TEMPLATES {
            return Err(format!("`{NAMED}*`: more than {MAX_TEMPLATES} chat templates"));
        }
        templates.push((name.to_owned(), source.clone()));
    }
    Ok(templates)
}

/// The tokens that are found whole.
fn added(texts: &[Cow<'_, str>], kinds: &[Kind], model: &Model<'_>) -> Result<Vec<AddedToken>, String> {
    // In Phi-3's tokenizer.json these take the white space that follows. GGUF has no place for it; llama.cpp knows too.
    let phi3 = matches!(model, Model::Pieces { architecture, .. } if *architecture == "phi3");
    let strips = |text: &str| phi3 && !["<unk>", "<s>", "<|endoftext|>"].contains(&text);
    let (mut added, mut bytes) = (Vec::new(), 0);
    for (text, kind) in texts.iter().zip(kinds) {
        if text.is_empty() || !matches!(kind, Kind::Whole | Kind::Control) {
            continue;
        }
        bytes += text.len();
        if added.len() == ADDED_MAX || bytes > ADDED_BYTES_MAX {
            let most = format!("at most {ADDED_MAX} are allowed, of {ADDED_BYTES_MAX} bytes together");
            return Err(format!("`tokenizer.ggml.token_type`: too many control and user-defined tokens; {most}"));
        }
        let token = AddedToken::from(text.clone(), *kind == Kind::Control).normalized(false);
        added.push(token.rstrip(strips(text)));
    }
    Ok(added)
}

/// Which merged token comes first, where no merges are listed: that of the largest number.
fn scores(metadata: &Metadata<'_>, model: &Model<'_>, kinds: &[Kind]) -> Result<Vec<f32>, String> {
    if matches!(model, Model::ByteLevel(_)) {
        return Err("`tokenizer.ggml.merges` is missing; expected a list of texts".to_owned());
    }
    let scores = metadata.numbers("scores", kinds.len())?;
    let scores =
        scores.ok_or("`tokenizer.ggml.scores` and `tokenizer.ggml.merges` are missing; expected one of them")?;
    // Files made from a tokenizer.json have one number for all. There, tokens are in the order of merges.
    let alike = scores.windows(2).all(|pair| pair[0] == pair[1]);
    let score = |(id, (kind, score)): (usize, (&Kind, &f32))| match kind {
        // What SentencePiece has for them; converters write -1000. The place of Gemma's runs of spaces depends on it.
        Kind::Whole => 0.0,
        _ if alike => -(id as f32),
        _ => *score,
    };
    Ok(kinds.iter().zip(scores).enumerate().map(score).collect())
}
