//! gpt-oss: every part of an answer has a header that says what it is.
//!
//! ```text
//! <|channel|>analysis<|message|>thoughts<|end|><|start|>assistant
//! <|channel|>commentary to=functions.name <|constrain|>json<|message|>{...}<|call|>
//! <|channel|>final<|message|>text<|return|>
//! ```

use super::{Part, Reading, append};

const CHANNEL: &str = "<|channel|>";
const MESSAGE: &str = "<|message|>";
/// What a part may end with; the last two end the answer and are seldom seen.
const ENDS: [&str; 4] = ["<|end|>", "<|start|>", "<|call|>", "<|return|>"];

/// Reads one answer.
#[derive(Clone, Debug)]
pub(super) struct Harmony {
    at: At,
    held: String,
    calls: bool,
    single: bool,
    over: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    Header,
    Body(Body),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Body {
    Text,
    Thoughts,
    Arguments,
}

impl Harmony {
    pub(super) fn new(reading: &Reading) -> Self {
        let (calls, single) = (reading.tools.is_some(), reading.single);
        Harmony { at: At::Header, held: String::new(), calls, single, over: false }
    }

    pub(super) fn is_thinking(&self) -> bool {
        self.at == At::Body(Body::Thoughts)
    }

    pub(super) fn is_over(&self) -> bool {
        self.over
    }

    pub(super) fn push(&mut self, text: &str, out: &mut Vec<Part>) {
        if self.over {
            return;
        }
        self.held.push_str(text);
        while match self.at {
            At::Header => self.header(out),
            At::Body(body) => self.body(body, out),
        } {}
    }

    /// Reads a header; is there more to read?
    fn header(&mut self, out: &mut Vec<Part>) -> bool {
        if let Some(end) = self.held.find(MESSAGE) {
            let header = self.held[..end].to_owned();
            self.held.drain(..end + MESSAGE.len());
            self.at = At::Body(self.kind(&header, out));
            return true;
        }
        // Headers are a role, a channel and a recipient: what is anything else is text without a header.
        let start = self.held.trim_start();
        let opens = ["<|", "assistant", "to="];
        let may_be = opens.iter().any(|open| start.starts_with(open) || open.starts_with(start));
        if may_be {
            return false;
        }
        self.at = At::Body(Body::Text);
        true
    }

    fn kind(&self, header: &str, out: &mut Vec<Part>) -> Body {
        let word = |text: &str| text.split(|c: char| c.is_whitespace() || c == '<').next().unwrap_or("").to_owned();
        let name = header.split_once("to=functions.").map(|(_, name)| word(name)).filter(|name| !name.is_empty());
        if let Some(name) = name.filter(|_| self.calls) {
            append(out, Part::Call(name));
            return Body::Arguments;
        }
        let channel = header.split_once(CHANNEL).map(|(_, channel)| word(channel)).unwrap_or_default();
        if channel == "analysis" { Body::Thoughts } else { Body::Text }
    }

    /// Reads what comes after a header; is there more to read?
    fn body(&mut self, body: Body, out: &mut Vec<Part>) -> bool {
        let end = ENDS.iter().filter_map(|mark| Some((self.held.find(mark)?, mark.len()))).min();
        let more = match end {
            Some((at, _)) => at,
            None => {
                let kept = ENDS.iter().map(|mark| super::marks::begins(&self.held, mark)).max().unwrap_or(0);
                self.held.len() - kept
            }
        };
        let text: String = self.held.drain(..more).collect();
        append(out, of(body, text));
        let Some((_, length)) = end else { return false };
        self.held.drain(..length);
        self.at = At::Header;
        if body == Body::Arguments && self.single {
            (self.over, self.held) = (true, String::new());
        }
        !self.over
    }

    pub(super) fn finish(&mut self, out: &mut Vec<Part>) {
        let held = std::mem::take(&mut self.held);
        match self.at {
            At::Body(body) => append(out, of(body, held)),
            // A header without a message says nothing; a text that has none is text.
            At::Header if held.starts_with("<|") => {}
            At::Header => append(out, Part::Text(held)),
        }
    }
}

fn of(body: Body, text: String) -> Part {
    match body {
        Body::Text => Part::Text(text),
        Body::Thoughts => Part::Reasoning(text),
        Body::Arguments => Part::Arguments(text),
    }
}
