//! Text to tokens and back: `tokenizer.json` with the settings that lie beside it, behaving as `transformers` does with the
//! same files. Streaming is [`super::Detokenizer`]'s; prompts out of messages are [`super::ChatTemplates`]'.

use super::config::{self, TokenizerConfig};
use super::detokenizer::Detokenizer;
use super::vocabulary::Vocabulary;
use crate::error::{InferError, LoadError};
use std::path::Path;
use std::sync::Arc;

/// Bytes of a `tokenizer.json`, at most; the largest in use have 35 MB.
pub const MAX_TOKENIZER_BYTES: u64 = 64 << 20;

/// A loaded tokenizer.
#[derive(Debug)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    vocabulary: Arc<Vocabulary>,
    edges: Edges,
    max_text_bytes: usize,
}

/// Who adds control tokens at the edges of a text.
#[derive(Clone, Copy, Debug)]
enum Edges {
    /// The post-processor of `tokenizer.json`.
    PostProcessor,
    /// The settings `add_bos_token` and `add_eos_token`, where the file has no post-processor: Llama's tokenizer of
    /// `transformers` 4, and so vLLM, made one of them. `transformers` 5 drops both beside a `tokenizer.json`, and so they
    /// say nothing where it has a post-processor: conversions leave them behind in states that contradict it.
    Fixed { bos: Option<u32>, eos: Option<u32> },
}

impl Tokenizer {
    /// Loads `directory/tokenizer.json`. Texts longer than `max_text_bytes` will be refused before any work on them.
    ///
    /// # Errors
    /// The file is absent, too large, malformed, or its decoder is not supported.
    pub fn load(directory: &Path, config: &TokenizerConfig, max_text_bytes: usize) -> Result<Self, LoadError> {
        let path = directory.join("tokenizer.json");
        let json = config::bytes(&path, MAX_TOKENIZER_BYTES)?.ok_or_else(|| LoadError::new(&path, "is missing"))?;
        Tokenizer::from_json(&json, config, max_text_bytes).map_err(|reason| LoadError::new(&path, reason))
    }

    /// Loads the content of a `tokenizer.json`, as [`Tokenizer::load`] does.
    ///
    /// # Errors
    /// Says what is wrong with it.
    pub fn from_json(json: &[u8], config: &TokenizerConfig, max_text_bytes: usize) -> Result<Self, String> {
        let inner = tokenizers::Tokenizer::from_bytes(json).map_err(|e| e.to_string())?;
        Tokenizer::new(inner, config, max_text_bytes)
    }

    /// Takes over what a `tokenizer.json` or another file held.
    ///
    /// # Errors
    /// Says what is wrong with it.
    pub fn new(
        mut inner: tokenizers::Tokenizer,
        config: &TokenizerConfig,
        max_text_bytes: usize,
    ) -> Result<Self, String> {
        // Padding and truncation are for training batches; a prompt that is too long is refused, never cut.
        inner.with_padding(None);
        inner.with_truncation(None).map_err(|e| e.to_string())?;
        add_tokens(&mut inner, config)?;
        inner.set_encode_special_tokens(config.split_special_tokens);
        let vocabulary = Arc::new(Vocabulary::new(&inner)?);
        let id = |wanted: Option<bool>, name| {
            config.named(name).filter(|_| wanted == Some(true)).and_then(|token| inner.token_to_id(token))
        };
        let edges = match inner.get_post_processor() {
            Some(_) => Edges::PostProcessor,
            None => {
                Edges::Fixed { bos: id(config.add_bos_token, "bos_token"), eos: id(config.add_eos_token, "eos_token") }
            }
        };
        Ok(Tokenizer { inner, vocabulary, edges, max_text_bytes })
    }

    /// Texts longer than this will be refused from now on.
    pub fn set_max_text_bytes(&mut self, most: usize) {
        self.max_text_bytes = most;
    }

    /// The tokens of a text. Control tokens written out in it are recognised, unless the settings say
    /// `split_special_tokens`. `add_special` adds those at its edges (`<s>`),
    /// which prompts made by a chat template have already.
    ///
    /// # Errors
    /// [`InferError::Invalid`] where the text is longer than the limit in bytes.
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>, InferError> {
        if text.len() > self.max_text_bytes {
            let (length, most) = (text.len(), self.max_text_bytes);
            return Err(InferError::invalid(format!(
                "the text has {length} bytes; a prompt that fits into the model's context has at most {most}"
            )));
        }
        let by_processor = add_special && matches!(self.edges, Edges::PostProcessor);
        let encoding = self.inner.encode_fast(text, by_processor);
        let mut ids =
            encoding.map_err(|e| InferError::Internal(format!("the tokenizer failed: {e}")))?.get_ids().to_vec();
        if let Edges::Fixed { bos, eos } = self.edges
            && add_special
        {
            ids.splice(0..0, bos);
            ids.extend(eos);
        }
        Ok(ids)
    }

    /// The text of a sequence of tokens that is a text of its own; exactly what streaming it gives.
    pub fn decode(&self, ids: &[u32], skip_special_tokens: bool) -> String {
        let mut detokenizer = Detokenizer::new(Arc::clone(&self.vocabulary), skip_special_tokens);
        let mut text = String::new();
        for id in ids {
            text.push_str(detokenizer.push(*id));
        }
        text.push_str(detokenizer.finish());
        text
    }

    /// What every token writes.
    pub fn vocabulary(&self) -> &Arc<Vocabulary> {
        &self.vocabulary
    }

    /// The id of a token by its name in `tokenizer.json`; for ordinary tokens that is not the text it writes.
    pub fn id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// The name of a token in `tokenizer.json`.
    pub fn name(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }
}

/// Adds the tokens that only the configuration knows; named control tokens become special whatever `tokenizer.json` says.
fn add_tokens(inner: &mut tokenizers::Tokenizer, config: &TokenizerConfig) -> Result<(), String> {
    for added in &config.added_tokens {
        if inner.get_added_vocabulary().get_vocab().contains_key(added.token.content.as_str()) {
            continue;
        }
        inner.add_tokens([added.token.clone()]).map_err(|e| e.to_string())?;
        let id = inner.token_to_id(&added.token.content);
        if id != Some(added.id) {
            let (content, wanted) = (&added.token.content, added.id);
            return Err(format!("added_tokens_decoder: '{content}' has id {wanted} there, but would get {id:?}"));
        }
    }
    let named = config.named_tokens.iter().map(|(_, content)| content).chain(&config.extra_tokens);
    for content in named {
        if !inner.get_added_vocabulary().is_special_token(content) {
            let token = tokenizers::AddedToken::from(content.clone(), true).normalized(false);
            inner.add_special_tokens([token]).map_err(|e| e.to_string())?;
        }
    }
    Ok(())
}
