//! From tokens to text, one token at a time: constant work per token, at most three bytes waiting, and never half a
//! character. All pieces and [`Detokenizer::finish`] together are what decoding the whole sequence gives.
//!
//! One difference to `tokenizers` is unavoidable with bounded waiting: of a run of byte tokens (`<0xE2>`) it replaces every
//! byte once any part of the run is not UTF-8, also complete characters before that part. Those were sent already here;
//! everything from that part on is the same.

use super::vocabulary::{Start, Style, Vocabulary};
use std::sync::Arc;

/// The state of one sequence.
#[derive(Clone, Debug)]
pub struct Detokenizer {
    vocabulary: Arc<Vocabulary>,
    skip_special: bool,
    /// Control tokens that are text nevertheless.
    shown: Arc<[u32]>,
    /// The start of a character whose end has not come.
    carry: Vec<u8>,
    /// The run of byte tokens is not UTF-8; see [`Style::Text`].
    broken: bool,
    start: Start,
    out: String,
}

impl Detokenizer {
    /// For a sequence that is a text of its own: what the tokenizer drops at the start of a text is dropped.
    pub fn new(vocabulary: Arc<Vocabulary>, skip_special_tokens: bool) -> Self {
        let start = vocabulary.start;
        let carry = Vec::with_capacity(4);
        let (shown, out) = (Arc::default(), String::new());
        Detokenizer { vocabulary, skip_special: skip_special_tokens, shown, carry, broken: false, start, out }
    }

    /// For a sequence that goes on after a prompt: its leading space separates it from the prompt, and stays.
    pub fn after_prompt(vocabulary: Arc<Vocabulary>, skip_special_tokens: bool) -> Self {
        Detokenizer { start: Start::Kept, ..Detokenizer::new(vocabulary, skip_special_tokens) }
    }

    /// These control tokens write their text whatever becomes of the others.
    #[must_use]
    pub fn showing(self, tokens: Arc<[u32]>) -> Self {
        Detokenizer { shown: tokens, ..self }
    }

    /// The text that is certain now that token `id` came; often empty. Ids that are no token write nothing.
    pub fn push(&mut self, id: u32) -> &str {
        self.out.clear();
        let vocabulary = Arc::clone(&self.vocabulary);
        let Some(token) = vocabulary.token(id) else { return "" };
        if token.special && self.skip_special && !self.shown.contains(&id) {
            return "";
        }
        match vocabulary.style {
            Style::Bytes => self.bytes(token.bytes),
            Style::Text if token.byte => self.fallback(token.bytes),
            Style::Text => {
                self.end_run();
                // Text tokens come from a JSON file, so they are UTF-8 already.
                self.out.push_str(&String::from_utf8_lossy(token.bytes));
            }
        }
        self.trim_start();
        &self.out
    }

    /// What is left when no token will come: a character that never ended.
    pub fn finish(&mut self) -> &str {
        self.out.clear();
        match self.vocabulary.style {
            Style::Bytes if !self.carry.is_empty() => self.out.push(char::REPLACEMENT_CHARACTER),
            Style::Bytes => {}
            Style::Text => self.end_run(),
        }
        self.carry.clear();
        self.trim_start();
        &self.out
    }

    /// Bytes waiting for the rest of their character.
    pub fn waiting(&self) -> usize {
        self.carry.len()
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.carry.extend_from_slice(bytes);
        let mut rest = self.carry.as_slice();
        loop {
            match std::str::from_utf8(rest) {
                Ok(text) => {
                    self.out.push_str(text);
                    rest = &[];
                    break;
                }
                Err(error) => {
                    let (valid, after) = rest.split_at(error.valid_up_to());
                    self.out.push_str(&String::from_utf8_lossy(valid));
                    rest = after;
                    let Some(length) = error.error_len() else { break };
                    self.out.push(char::REPLACEMENT_CHARACTER);
                    rest = &rest[length..];
                }
            }
        }
        let done = self.carry.len() - rest.len();
        self.carry.drain(..done);
    }

    fn fallback(&mut self, bytes: &[u8]) {
        if self.broken {
            self.out.push(char::REPLACEMENT_CHARACTER);
            return;
        }
        self.carry.extend_from_slice(bytes);
        match std::str::from_utf8(&self.carry) {
            Ok(text) => {
                self.out.push_str(text);
                self.carry.clear();
            }
            Err(error) if error.error_len().is_none() => {}
            Err(_) => {
                self.replace_carry();
                self.broken = true;
            }
        }
    }

    fn end_run(&mut self) {
        self.replace_carry();
        self.broken = false;
    }

    fn replace_carry(&mut self) {
        self.out.extend(self.carry.drain(..).map(|_| char::REPLACEMENT_CHARACTER));
    }

    fn trim_start(&mut self) {
        match &mut self.start {
            Start::Kept => {}
            Start::SpacesOfFirstToken => {
                self.out.retain(|character| character != ' ');
                self.start = Start::Kept;
            }
            Start::Strip(character, count) => {
                let found = self.out.chars().take(*count).take_while(|c| c == character).count();
                self.out.drain(..found * character.len_utf8());
                *count -= found;
                if *count == 0 || !self.out.is_empty() {
                    self.start = Start::Kept;
                }
            }
        }
    }
}
