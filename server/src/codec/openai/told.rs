//! How likely tokens were, as clients of chats, of completions and of prompts read it.

use super::ask::Telling;
use crate::llm::Language;
use crate::llm::answer::Told;
use backends::llm::plan::Logprobs;
use backends::llm::text::{Detokenizer, Vocabulary};
use protocol::openai::logprobs::{
    Alternatives, ChatLogprobs, CompletionLogprobs, PromptLogprob, PromptLogprobs, TokenLogprob, TopLogprob,
};
use std::ops::Range;
use std::sync::Arc;

/// Writes tokens.
#[derive(Clone, Copy, Debug)]
pub struct Teller<'a> {
    /// Whose tokens they are.
    pub language: &'a Language,
    /// How.
    pub telling: &'a Telling,
}

/// Where the next token of an answer begins: behind as many characters as those before it have written.
#[derive(Clone, Debug, Default)]
pub struct Place {
    at: usize,
    /// What writes them, once there is a token.
    text: Option<Detokenizer>,
}

impl Place {
    /// That of an answer's first token, after a text.
    pub fn after(text: &str) -> Self {
        Place { at: text.chars().count(), text: None }
    }

    /// Where `token` begins; goes on behind it.
    fn pass(&mut self, token: u32, vocabulary: &Arc<Vocabulary>, leaves_out_special: bool) -> usize {
        let begin = || Detokenizer::after_prompt(vocabulary.clone(), leaves_out_special);
        let text = self.text.get_or_insert_with(begin);
        let begins = self.at;
        self.at += text.push(token).chars().count();
        begins
    }
}

impl Teller<'_> {
    fn vocabulary(&self) -> &Arc<Vocabulary> {
        self.language.tokenizer().vocabulary()
    }

    fn bytes(&self, token: u32) -> &[u8] {
        self.vocabulary().bytes(token).unwrap_or_default()
    }

    /// A token as text: half a character is U+FFFD.
    pub fn text(&self, token: u32) -> String {
        if self.telling.tokens_as_ids {
            return format!("token_id:{token}");
        }
        String::from_utf8_lossy(self.bytes(token)).into_owned()
    }

    /// Of a chat; `None` where nobody asked.
    pub fn chat(&self, told: &[Told]) -> Option<ChatLogprobs> {
        self.telling.logprobs?;
        Some(ChatLogprobs { content: Some(told.iter().map(|told| self.chat_token(told)).collect()) })
    }

    fn chat_token(&self, told: &Told) -> TokenLogprob {
        let none = Logprobs::default();
        let logprobs = told.logprobs.as_ref().unwrap_or(&none);
        let top = |&(token, logprob): &(u32, f32)| TopLogprob {
            token: self.text(token),
            logprob,
            bytes: Some(self.bytes(token).to_vec()),
        };
        TokenLogprob {
            token: self.text(told.id),
            logprob: logprobs.logprob,
            bytes: Some(self.bytes(told.id).to_vec()),
            top_logprobs: logprobs.top.iter().take(self.telling.logprobs.unwrap_or(0)).map(top).collect(),
        }
    }

    /// Of an echoed prompt, of which `logprobs` are told from its second token on, with its text, and of the tokens after
    /// it; `None` where nobody asked.
    pub fn echoed(
        &self,
        (prompt, logprobs): (&[u32], &[Logprobs]),
        echo: &str,
        told: &[Told],
    ) -> Option<CompletionLogprobs> {
        let each = std::iter::once(None).chain(logprobs.iter().map(Some));
        let places = beginnings(self.vocabulary(), prompt, echo);
        let prompt = prompt.iter().zip(each).zip(places).map(|((token, logprobs), at)| (*token, logprobs, at));
        let mut lists = self.lists(prompt)?;
        let mut rest = self.completion(told, &mut Place::after(echo))?;
        lists.text_offset.append(&mut rest.text_offset);
        lists.token_logprobs.append(&mut rest.token_logprobs);
        lists.tokens.append(&mut rest.tokens);
        lists.top_logprobs.append(&mut rest.top_logprobs);
        Some(lists)
    }

    /// Of a completion, whose next token begins at `place`, which goes on by these tokens; `None` where nobody asked.
    pub fn completion(&self, told: &[Told], place: &mut Place) -> Option<CompletionLogprobs> {
        let (vocabulary, leaves_out_special) = (self.vocabulary(), self.telling.leaves_out_special);
        let mut pass = |token| place.pass(token, vocabulary, leaves_out_special);
        self.lists(told.iter().map(|told| (told.id, told.logprobs.as_ref(), pass(told.id))))
    }

    /// Of tokens, their probabilities, and where they begin.
    fn lists<'l>(&self, told: impl Iterator<Item = (u32, Option<&'l Logprobs>, usize)>) -> Option<CompletionLogprobs> {
        let count = self.telling.logprobs?;
        let mut lists = CompletionLogprobs::default();
        for (id, logprobs, at) in told {
            let text = self.text(id);
            lists.text_offset.push(at);
            lists.token_logprobs.push(logprobs.map(|logprobs| logprobs.logprob));
            lists.top_logprobs.push(logprobs.map(|logprobs| {
                let mut best: Vec<_> =
                    logprobs.top.iter().take(count).map(|(token, logprob)| (self.text(*token), *logprob)).collect();
                // The token itself is always among them.
                if !logprobs.top.iter().take(count).any(|(token, _)| *token == id) {
                    best.push((text.clone(), logprobs.logprob));
                }
                Alternatives(best)
            }));
            lists.tokens.push(text);
        }
        Some(lists)
    }

    /// Of a prompt; `None` where nobody asked. Its first token has none.
    pub fn prompt(&self, prompt: &[u32], logprobs: &[Logprobs]) -> Option<Vec<Option<PromptLogprobs>>> {
        let count = self.telling.prompt_logprobs?;
        let entry = |rank: usize, token: u32, logprob: f32| {
            (token, PromptLogprob { logprob, rank: rank as u32, decoded_token: self.text(token) })
        };
        let of = |(token, logprobs): (&u32, &Logprobs)| {
            let top = logprobs.top.iter().take(count).enumerate();
            let mut map: PromptLogprobs = top.map(|(place, (token, value))| entry(place + 1, *token, *value)).collect();
            map.extend([entry(logprobs.rank as usize, *token, logprobs.logprob)]);
            Some(map)
        };
        let rest = prompt.iter().skip(1).zip(logprobs).map(of);
        Some(std::iter::once(None).chain(rest).collect())
    }
}

/// Where each token of a prompt begins in its text, in characters. A character that several tokens make is told with the
/// last of them.
fn beginnings(vocabulary: &Arc<Vocabulary>, prompt: &[u32], echo: &str) -> Vec<usize> {
    let characters = echo.chars().count();
    let written = written(vocabulary, prompt, echo);
    let (mut places, end) = told_of(vocabulary, prompt, |place| written.contains(&place));
    if end != characters {
        // No control token is in the text of tokens that are told without.
        let (bare, end) = told_of(vocabulary, prompt, |place| !vocabulary.is_special(prompt[place]));
        if end == characters {
            places = bare;
        }
    }
    // Some tokenizers change a text before they read it, and its tokens write another one.
    places.iter_mut().for_each(|place| *place = characters.min(*place));
    places
}

/// Where each token begins in a text of which those are that `shown` says, and how long that text is.
fn told_of(vocabulary: &Arc<Vocabulary>, prompt: &[u32], shown: impl Fn(usize) -> bool) -> (Vec<usize>, usize) {
    let mut text = Detokenizer::new(vocabulary.clone(), false);
    let (mut places, mut at) = (Vec::with_capacity(prompt.len()), 0);
    for (place, token) in prompt.iter().enumerate() {
        places.push(at);
        if shown(place) {
            at += text.push(*token).chars().count();
        }
    }
    (places, at + text.finish().chars().count())
}

/// Control tokens that a tokenizer puts at one edge of a text, at most.
const ADDED: usize = 4;

/// The tokens of a prompt that its text has: of the control tokens at its edges those that it begins and ends with. The
/// tokenizer has put the others there.
fn written(vocabulary: &Vocabulary, prompt: &[u32], echo: &str) -> Range<usize> {
    let special = |token: &&u32| vocabulary.is_special(**token);
    let bytes = |token: &u32| vocabulary.bytes(*token).unwrap_or_default();
    let first = prompt.iter().take_while(special).count();
    let last = prompt.len() - prompt[first..].iter().rev().take_while(special).count();
    let begins = |from: &usize| {
        let mut tokens = prompt[*from..first].iter();
        tokens.try_fold(echo.as_bytes(), |rest, token| rest.strip_prefix(bytes(token))).is_some()
    };
    let ends = |to: &usize| {
        let mut tokens = prompt[last..*to].iter().rev();
        tokens.try_fold(echo.as_bytes(), |rest, token| rest.strip_suffix(bytes(token))).is_some()
    };
    let begin = (0..first).take(1 + ADDED).find(begins).unwrap_or(first);
    let end = (last..=prompt.len()).rev().take(1 + ADDED).find(ends).unwrap_or(last);
    begin..end
}

#[cfg(test)]
mod tests {
    use super::*;
    use backends::llm::text::{Tokenizer, TokenizerConfig};
    use serde_json::{Map, Value, json};

    /// Tokens from 256 on; those before are bytes, and the last two are control tokens.
    const A: u32 = 256;
    const SPACE_A: u32 = 257;
    const B: u32 = 258;
    const BEGIN: u32 = 259;
    const END: u32 = 260;

    /// A tokenizer as SentencePiece makes them: words begin with a space, and that of the first is not written.
    fn tokenizer() -> Tokenizer {
        let mut vocab: Map<String, Value> = (0..256).map(|byte| (format!("<0x{byte:02X}>"), json!(byte))).collect();
        vocab.extend([("a", A), ("\u{2581}a", SPACE_A), ("b", B)].map(|(word, id)| (word.to_owned(), json!(id))));
        let control = |(id, content): (u32, &str)| {
            json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": true})
        };
        let json = json!({
            "version": "1.0", "truncation": null, "padding": null,
            "added_tokens": [control((BEGIN, "<s>")), control((END, "</s>"))],
            "normalizer": null, "pre_tokenizer": null, "post_processor": null,
            "decoder": {"type": "Sequence", "decoders": [
                {"type": "Replace", "pattern": {"String": "\u{2581}"}, "content": " "},
                {"type": "ByteFallback"}, {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ]},
            "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "ignore_merges": false,
                "vocab": vocab, "merges": []},
        });
        Tokenizer::from_json(json.to_string().as_bytes(), &TokenizerConfig::default(), 1 << 10).unwrap()
    }

    #[test]
    fn tokens_of_a_prompt_begin_where_its_text_has_them() {
        let tokenizer = tokenizer();
        let places = |prompt: &[u32], echo: &str| beginnings(tokenizer.vocabulary(), prompt, echo);
        // The first space is in no text; the tokenizer's own control tokens are not in that of a text.
        assert_eq!(places(&[SPACE_A, B], "ab"), [0, 1]);
        assert_eq!(places(&[BEGIN, SPACE_A, SPACE_A, B, END], "a ab"), [0, 0, 1, 3, 4]);
        // Those that the client wrote are, be it beside the tokenizer's.
        assert_eq!(places(&[BEGIN, BEGIN, A, END, B], "<s>a</s>b"), [0, 0, 3, 4, 8]);
        assert_eq!(places(&[BEGIN, A, END, END], "a</s>"), [0, 0, 1, 5]);
        // Tokens are told with all of them, or without any.
        assert_eq!(places(&[SPACE_A, END, SPACE_A], "a</s> a"), [0, 1, 5]);
        assert_eq!(places(&[SPACE_A, END, SPACE_A], "a a"), [0, 1, 1]);
        assert_eq!(places(&[BEGIN, END], "<s></s>"), [0, 3]);
        assert_eq!(places(&[BEGIN, END], ""), [0, 0]);
        // Several that make a character, and bytes that make none.
        assert_eq!(places(&[A, 0xc3, 0xa9, B], "a\u{e9}b"), [0, 1, 1, 2]);
        assert_eq!(places(&[0x80, 0x80, A], "\u{fffd}\u{fffd}a"), [0, 1, 2]);
        // A text that the tokenizer reads as another one.
        assert_eq!(places(&[BEGIN, A, A, A, B], "a"), [0, 0, 1, 1, 1]);
    }

    #[test]
    fn tokens_of_an_answer_begin_behind_what_was_told() {
        let tokenizer = tokenizer();
        let places = |after: &str, left_out: bool, tokens: &[u32]| {
            let mut place = Place::after(after);
            let each = tokens.iter().map(|token| place.pass(*token, tokenizer.vocabulary(), left_out));
            each.collect::<Vec<_>>()
        };
        // It goes on with a space.
        assert_eq!(places("\u{e9}", true, &[SPACE_A, B, A]), [1, 3, 4]);
        assert_eq!(places("", true, &[A, END, B]), [0, 1, 1]);
        assert_eq!(places("", false, &[A, END, B]), [0, 1, 5]);
        assert_eq!(places("a", true, &[0xf0, 0x9f, 0x99, 0x82, A, B]), [1, 1, 1, 1, 2, 3]);
        assert_eq!(places("", true, &[0x80, 0x80, A]), [0, 1, 2]);
    }
}
