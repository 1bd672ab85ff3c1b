//! How likely tokens were, in the three shapes that clients know: of chats, of completions, of prompts. JSON has no
//! infinities, so that what is impossible has the logarithm [`LEAST`], as vLLM has it.

use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};
use std::collections::BTreeMap;

/// The logarithm that stands for "impossible".
pub const LEAST: f32 = -9999.0;

fn finite(value: f32) -> f32 {
    if value.is_finite() { value.max(LEAST) } else { LEAST }
}

fn logprob<S: Serializer>(value: &f32, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f32(finite(*value))
}

fn logprobs<S: Serializer>(values: &[Option<f32>], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(values.iter().map(|value| value.map(finite)))
}

/// Logprobs of a chat choice.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct ChatLogprobs {
    /// For each token of the answer.
    pub content: Option<Vec<TokenLogprob>>,
}

/// A token of a chat choice.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct TokenLogprob {
    /// Its text; half a character is written as U+FFFD.
    pub token: String,
    /// The logarithm of its probability.
    #[serde(serialize_with = "logprob")]
    pub logprob: f32,
    /// The bytes of its text, from which whole characters can be put together.
    pub bytes: Option<Vec<u8>>,
    /// The likeliest tokens in its place.
    pub top_logprobs: Vec<TopLogprob>,
}

/// A token that could have stood there.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct TopLogprob {
    /// Its text.
    pub token: String,
    /// The logarithm of its probability.
    #[serde(serialize_with = "logprob")]
    pub logprob: f32,
    /// The bytes of its text.
    pub bytes: Option<Vec<u8>>,
}

/// Logprobs of a completion choice: four lists with an entry for each token.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct CompletionLogprobs {
    /// Where it begins in the text, in characters.
    pub text_offset: Vec<usize>,
    /// The logarithm of its probability; none for the first token of an echoed prompt.
    #[serde(serialize_with = "logprobs")]
    pub token_logprobs: Vec<Option<f32>>,
    /// Its text.
    pub tokens: Vec<String>,
    /// The likeliest tokens in its place.
    pub top_logprobs: Vec<Option<Alternatives>>,
}

/// Texts of tokens and logarithms of their probabilities, the likeliest first.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Alternatives(pub Vec<(String, f32)>);

impl Serialize for Alternatives {
    /// Of tokens with the same text (halves of characters, say) the likeliest is written: an object has a key once.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        for (index, (token, value)) in self.0.iter().enumerate() {
            if !self.0[..index].iter().any(|(before, _)| before == token) {
                map.serialize_entry(token, &finite(*value))?;
            }
        }
        map.end()
    }
}

/// What could have stood in the place of a token of a prompt, by token id; the token itself is among them.
pub type PromptLogprobs = BTreeMap<u32, PromptLogprob>;

/// A token in a place of a prompt.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct PromptLogprob {
    /// The logarithm of its probability.
    #[serde(serialize_with = "logprob")]
    pub logprob: f32,
    /// Its place among all tokens; 1 is the likeliest.
    pub rank: u32,
    /// Its text.
    pub decoded_token: String,
}
