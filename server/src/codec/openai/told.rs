//! How likely tokens were, as clients of chats, of completions and of prompts read it.

use super::ask::Telling;
use crate::llm::Language;
use crate::llm::answer::Told;
use backends::llm::plan::Logprobs;
use protocol::openai::logprobs::{
    Alternatives, ChatLogprobs, CompletionLogprobs, PromptLogprob, PromptLogprobs, TokenLogprob, TopLogprob,
};
use std::collections::BTreeSet;

/// Writes tokens.
#[derive(Clone, Copy, Debug)]
pub struct Teller<'a> {
    /// Whose tokens they are.
    pub language: &'a Language,
    /// How.
    pub telling: &'a Telling,
}

impl Teller<'_> {
    fn bytes(&self, token: u32) -> &[u8] {
        self.language.tokenizer().vocabulary().bytes(token).unwrap_or_default()
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

    /// The characters that a token adds to the text of a completion: none, where it is left out. A character that several
    /// tokens make counts for the first of them.
    fn length(&self, token: u32, leaves_out_special: bool) -> usize {
        if leaves_out_special && self.language.tokenizer().vocabulary().is_special(token) {
            return 0;
        }
        self.bytes(token).iter().filter(|byte| **byte & 0xc0 != 0x80).count()
    }

    /// Of an echoed prompt, of which `logprobs` are told from its second token on, with so many characters, and of the
    /// tokens after it; `None` where nobody asked.
    pub fn echoed(
        &self,
        (prompt, logprobs): (&[u32], &[Logprobs]),
        characters: usize,
        told: &[Told],
    ) -> Option<CompletionLogprobs> {
        let prompt = &prompt[..prompt.len().min(1 + logprobs.len())];
        let lengths: Vec<usize> = prompt.iter().map(|token| self.length(*token, false)).collect();
        let special = |place: usize| self.length(prompt[place], true) == 0;
        let added = added(&lengths, special, characters);
        let each = prompt.iter().copied().zip(std::iter::once(None).chain(logprobs.iter().map(Some)));
        let mut lists = self.lists(each, &mut 0, |place| !added.contains(&place))?;
        let mut rest = self.completion(told, &mut { characters })?;
        lists.text_offset.append(&mut rest.text_offset);
        lists.token_logprobs.append(&mut rest.token_logprobs);
        lists.tokens.append(&mut rest.tokens);
        lists.top_logprobs.append(&mut rest.top_logprobs);
        Some(lists)
    }

    /// Of a completion, whose next token begins at the character `offset`, which goes on by these tokens; `None` where
    /// nobody asked.
    pub fn completion(&self, told: &[Told], offset: &mut usize) -> Option<CompletionLogprobs> {
        let counts = |place: usize| self.length(told[place].id, self.telling.leaves_out_special) > 0;
        self.lists(told.iter().map(|told| (told.id, told.logprobs.as_ref())), offset, counts)
    }

    /// The places of tokens that are in the text are those of which `counts` says so.
    fn lists<'l>(
        &self,
        told: impl Iterator<Item = (u32, Option<&'l Logprobs>)>,
        offset: &mut usize,
        counts: impl Fn(usize) -> bool,
    ) -> Option<CompletionLogprobs> {
        let count = self.telling.logprobs?;
        let mut lists = CompletionLogprobs::default();
        for (place, (id, logprobs)) in told.enumerate() {
            let text = self.text(id);
            lists.text_offset.push(*offset);
            *offset += if counts(place) { self.length(id, false) } else { 0 };
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

/// The places of control tokens that the tokenizer has put around a prompt of so many characters: they are not in its
/// text, those that the client wrote are. `lengths` are of all tokens. Where nothing at the edges makes up for what is
/// too much, all control tokens are taken for the tokenizer's.
fn added(lengths: &[usize], special: impl Fn(usize) -> bool, characters: usize) -> BTreeSet<usize> {
    let (count, more) = (lengths.len(), lengths.iter().sum::<usize>().saturating_sub(characters));
    let first = (0..count).take_while(|place| special(*place)).count();
    let last = (first..count).rev().take_while(|place| special(*place)).count();
    for begin in 0..=first {
        for end in count - last..=count {
            let (before, after) = (&lengths[..begin], &lengths[end..]);
            if before.iter().chain(after).sum::<usize>() == more {
                return (0..begin).chain(end..count).collect();
            }
        }
    }
    (0..count).filter(|place| special(*place)).collect()
}

#[cfg(test)]
mod tests {
    use super::added;

    #[test]
    fn what_the_tokenizer_adds_stands_at_the_edges() {
        // Of a beginning, two words, a control token between them, and an end.
        let lengths = [3, 5, 7, 5, 4];
        let special = |place: usize| matches!(place, 0 | 2 | 4);
        for (characters, places) in [(24, &[][..]), (21, &[0]), (17, &[0, 4]), (20, &[4]), (10, &[0, 2, 4])] {
            let found: Vec<usize> = added(&lengths, special, characters).into_iter().collect();
            assert_eq!(found, places, "{characters}");
        }
    }
}
