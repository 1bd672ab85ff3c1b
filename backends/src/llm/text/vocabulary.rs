//! What every token writes: a table from token id to bytes, made once when a tokenizer is loaded, so that turning a token
//! into text is a lookup. The decoders of `tokenizer.json` that today's language models use are read into the table; any
//! other is refused by name. Not the tokenizer itself, and no state: [`super::Detokenizer`] has that.

use rayon::prelude::*;
use tokenizers::{Model, Tokenizer};

/// Ids at or above this are refused: the table has a row for every id. The largest vocabularies in use have 262,144.
pub const MAX_TOKEN_IDS: u32 = 1 << 21;

/// Tokens whose rows one thread makes at a time.
const TOGETHER: usize = 8192;

/// How the bytes of tokens become text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Style {
    /// Every token is bytes, and text may be cut anywhere: what is not UTF-8 becomes U+FFFD as Python's
    /// `decode("utf-8", "replace")` has it, one for each maximal part of a character.
    Bytes,
    /// Tokens are text, but for those that stand for one byte each (`<0x0A>`): of a run of such bytes that is not UTF-8,
    /// every byte becomes U+FFFD.
    Text,
}

/// What the start of a text loses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Start {
    /// Nothing.
    Kept,
    /// Up to so many times this character.
    Strip(char, usize),
    /// The spaces of the first token (the decoder `Metaspace`).
    SpacesOfFirstToken,
}

/// The table from token id to bytes.
#[derive(Debug)]
pub struct Vocabulary {
    bytes: Vec<u8>,
    rows: Vec<Row>,
    pub(super) style: Style,
    pub(super) start: Start,
}

#[derive(Clone, Copy, Debug, Default)]
struct Row {
    at: u32,
    length: u32,
    known: bool,
    special: bool,
    /// Stands for one byte of a character; see [`Style::Text`].
    byte: bool,
}

/// What one token writes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Token<'a> {
    pub(super) bytes: &'a [u8],
    pub(super) special: bool,
    pub(super) byte: bool,
}

impl Vocabulary {
    /// Reads the table out of a tokenizer, on the current rayon pool.
    ///
    /// # Errors
    /// Says which decoder is not supported, or that an id is out of range.
    pub(super) fn new(tokenizer: &Tokenizer) -> Result<Self, String> {
        let rules = Rules::read(tokenizer)?;
        let alphabet = Alphabet::new();
        let tokens = tokens(tokenizer)?;
        let written = tokens.par_chunks(TOGETHER).map(|tokens| {
            let (mut bytes, mut rows) = (Vec::with_capacity(8 * tokens.len()), Vec::with_capacity(tokens.len()));
            for token in tokens {
                rows.push(token.as_ref().map(|token| {
                    let (start, byte) = (bytes.len(), rules.write(token, &alphabet, &mut bytes));
                    let special = tokenizer.get_added_vocabulary().is_special_token(token);
                    (bytes.len() - start, special, byte)
                }));
            }
            (bytes, rows)
        });
        let written: Vec<_> = written.collect();
        let total: usize = written.iter().map(|(bytes, _)| bytes.len()).sum();
        if u32::try_from(total).is_err() {
            return Err("the tokens have more than 4 GiB of text".to_owned());
        }
        let (mut bytes, mut rows) = (Vec::with_capacity(total), Vec::with_capacity(tokens.len()));
        for (some, lengths) in written {
            let mut at = bytes.len() as u32;
            rows.extend(lengths.into_iter().map(|row| {
                let Some((length, special, byte)) = row else { return Row::default() };
                let row = Row { at, length: length as u32, known: true, special, byte };
                at += row.length;
                row
            }));
            bytes.extend(some);
        }
        Ok(Vocabulary { bytes, rows, style: rules.style, start: rules.start })
    }

    /// One more than the largest token id.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Has it no tokens?
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The bytes that a token writes; none for ids that are no token.
    pub fn bytes(&self, id: u32) -> Option<&[u8]> {
        self.token(id).map(|token| token.bytes)
    }

    /// Is it a control token, which `skip_special_tokens` leaves out?
    pub fn is_special(&self, id: u32) -> bool {
        self.rows.get(id as usize).is_some_and(|row| row.special)
    }

    /// The control token that writes this text.
    pub fn special(&self, text: &str) -> Option<u32> {
        let is = |id: &u32| self.is_special(*id) && self.bytes(*id) == Some(text.as_bytes());
        (0..self.rows.len() as u32).find(is)
    }

    pub(super) fn token(&self, id: u32) -> Option<Token<'_>> {
        let row = self.rows.get(id as usize).filter(|row| row.known)?;
        let bytes = self.bytes.get(row.at as usize..(row.at + row.length) as usize)?;
        Some(Token { bytes, special: row.special, byte: row.byte })
    }
}

/// Tokens by id; none where an id has none.
fn tokens(tokenizer: &Tokenizer) -> Result<Vec<Option<String>>, String> {
    let place = |tokens: &mut Vec<Option<String>>, id: u32, token: Option<String>| {
        if id >= MAX_TOKEN_IDS {
            return Err(format!("token id {id} is larger than {}", MAX_TOKEN_IDS - 1));
        }
        tokens.resize(tokens.len().max(id as usize + 1), None);
        tokens[id as usize] = token;
        Ok(())
    };
    let model = tokenizer.get_model();
    let count = u32::try_from(model.get_vocab_size()).ok().filter(|count| *count <= MAX_TOKEN_IDS);
    let count = count.ok_or_else(|| format!("has more than {MAX_TOKEN_IDS} tokens"))?;
    let mut tokens: Vec<_> = (0..count).into_par_iter().map(|id| model.id_to_token(id)).collect();
    if tokens.iter().any(Option::is_none) {
        // Ids have gaps, so that some are larger than tokens are many.
        for (token, id) in model.get_vocab() {
            place(&mut tokens, id, Some(token))?;
        }
    }
    for id in tokenizer.get_added_vocabulary().get_added_tokens_decoder().keys() {
        place(&mut tokens, *id, tokenizer.id_to_token(*id))?;
    }
    Ok(tokens)
}

/// The decoder of `tokenizer.json`, as far as it concerns single tokens and the start of the text.
struct Rules {
    style: Style,
    start: Start,
    byte_fallback: bool,
    replace: Vec<(String, String)>,
}

impl Rules {
    fn read(tokenizer: &Tokenizer) -> Result<Rules, String> {
        let decoder = tokenizer.get_decoder().ok_or(NO_DECODER)?;
        let decoder = serde_json::to_value(decoder).map_err(|e| e.to_string())?;
        let steps = match decoder["decoders"].as_array() {
            Some(steps) if decoder["type"] == "Sequence" => steps.clone(),
            _ => vec![decoder],
        };
        let mut rules = Rules { style: Style::Text, start: Start::Kept, byte_fallback: false, replace: Vec::new() };
        let mut fused = false;
        for (position, step) in steps.iter().enumerate() {
            let name = step["type"].as_str().unwrap_or_default();
            // Order matters where steps would see each other's work; only the orders in use are taken.
            match name {
                "ByteLevel" if position == 0 => rules.style = Style::Bytes,
                "Metaspace" if position == 0 => rules.metaspace(step),
                "Replace" if rules.style == Style::Text && !rules.byte_fallback && !fused => rules.replacement(step)?,
                "ByteFallback" if rules.style == Style::Text && rules.start == Start::Kept && !fused => {
                    rules.byte_fallback = true;
                }
                "Fuse" => fused = true,
                "Strip" if fused && rules.start == Start::Kept && step["stop"] == 0 => rules.strip(step)?,
                _ => return Err(format!("the decoder {name} (step {}) is not supported; {SUPPORTED}", position + 1)),
            }
        }
        Ok(rules)
    }

    fn metaspace(&mut self, step: &serde_json::Value) {
        let replacement = step["replacement"].as_str().unwrap_or("▁").to_owned();
        self.replace.push((replacement, " ".to_owned()));
        if step["prepend_scheme"] != "never" {
            self.start = Start::SpacesOfFirstToken;
        }
    }

    fn replacement(&mut self, step: &serde_json::Value) -> Result<(), String> {
        match (step["pattern"]["String"].as_str(), step["content"].as_str()) {
            (Some(from), Some(to)) if !from.is_empty() => self.replace.push((from.to_owned(), to.to_owned())),
            _ => return Err(format!("the decoder Replace with a pattern is not supported; {SUPPORTED}")),
        }
        Ok(())
    }

    fn strip(&mut self, step: &serde_json::Value) -> Result<(), String> {
        let character = step["content"].as_str().and_then(|content| content.chars().next());
        let count = step["start"].as_u64().and_then(|count| usize::try_from(count).ok());
        let (character, count) = character.zip(count).ok_or("the decoder Strip is malformed")?;
        self.start = Start::Strip(character, count);
        Ok(())
    }

    /// Appends what a token writes; does it stand for one byte of a character?
    fn write(&self, token: &str, alphabet: &Alphabet, out: &mut Vec<u8>) -> bool {
        let byte = if self.byte_fallback { fallback_byte(token) } else { None };
        match (byte, self.style) {
            (Some(byte), _) => out.push(byte),
            (None, Style::Bytes) => alphabet.write(token, out),
            (None, Style::Text) => out.extend_from_slice(self.replaced(token).as_bytes()),
        }
        byte.is_some()
    }

    fn replaced(&self, token: &str) -> String {
        self.replace.iter().fold(token.to_owned(), |text, (from, to)| text.replace(from.as_str(), to))
    }
}

const NO_DECODER: &str = "the tokenizer has no decoder";
const SUPPORTED: &str = "supported are ByteLevel, Metaspace, and Sequence of Replace, ByteFallback, Fuse, Strip";

/// `<0x0A>` stands for the byte 10.
fn fallback_byte(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    if digits.len() == 2 { u8::from_str_radix(digits, 16).ok() } else { None }
}

/// GPT-2's alphabet: the character that each byte is written as. Printable bytes stand for themselves, the others for the
/// characters from U+0100 on, in order.
pub(super) fn byte_level_alphabet() -> impl Iterator<Item = (char, u8)> {
    let mut next = 0x100;
    (0..=255u8).map(move |byte| match byte {
        b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff => (char::from(byte), byte),
        _ => {
            next += 1;
            (char::from_u32(next - 1).unwrap_or_default(), byte)
        }
    })
}

/// Bytes by the characters of [`byte_level_alphabet`], the last of which is U+0143.
struct Alphabet([Option<u8>; 0x144]);

impl Alphabet {
    fn new() -> Self {
        let mut bytes = [None; 0x144];
        for (character, byte) in byte_level_alphabet() {
            if let Some(place) = bytes.get_mut(character as usize) {
                *place = Some(byte);
            }
        }
        Alphabet(bytes)
    }

    /// A token with a character outside the alphabet (an added token, say) stands for its own UTF-8.
    fn write(&self, token: &str, out: &mut Vec<u8>) {
        let at = out.len();
        for character in token.chars() {
            let Some(byte) = self.0.get(character as usize).copied().flatten() else {
                out.truncate(at);
                out.extend_from_slice(token.as_bytes());
                return;
            };
            out.push(byte);
        }
    }
}
