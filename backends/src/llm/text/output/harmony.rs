//! gpt-oss: every part of an answer has a header that says what it is.
//!
//! ```text
//! <|channel|>analysis<|message|>thoughts<|end|><|start|>assistant
//! <|channel|>commentary to=functions.name <|constrain|>json<|message|>{...}<|call|>
//! <|channel|>final<|message|>text<|return|>
//! ```
//!
//! A part that lacks `<|message|>` is thoughts or text all the same: what its channel says, and text without one.

use super::call::is_json;
use super::marks::{begins, settled};
use super::{Part, Reading, append};

const CHANNEL: &str = "<|channel|>";
const MESSAGE: &str = "<|message|>";
const START: &str = "<|start|>";
/// What a part may end with; the last two end the answer and are seldom seen.
const ENDS: [&str; 4] = ["<|end|>", START, "<|call|>", "<|return|>"];
const CHANNELS: [&str; 3] = ["analysis", "commentary", "final"];

/// Bytes of a header, at most. What goes on longer is a part that lacks `<|message|>`.
const LONGEST_HEADER: usize = 512;

/// Reads one answer.
#[derive(Clone, Debug)]
pub(super) struct Harmony {
    at: At,
    held: String,
    calls: bool,
    single: bool,
    whole: bool,
    over: bool,
    /// Of this part nothing but whitespace has come.
    fresh: bool,
    /// There were thoughts before.
    thought: bool,
    /// A call that is told when it is complete: its name and its arguments.
    name: Option<String>,
    arguments: String,
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
        Harmony {
            at: At::Header,
            held: String::new(),
            calls: reading.tools.is_some(),
            single: reading.single,
            whole: reading.whole,
            over: false,
            fresh: true,
            thought: false,
            name: None,
            arguments: String::new(),
        }
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
        // Headers are a role, a channel and a recipient: what is anything else is text without a header.
        let start = self.held.trim_start();
        let opens = ["<|", "assistant", "to="];
        if !opens.iter().any(|open| start.starts_with(open) || open.starts_with(start)) {
            self.begin(Body::Text);
            return true;
        }
        match self.header_end() {
            Some((end, MESSAGE)) => {
                let header: String = self.held.drain(..end + MESSAGE.len()).collect();
                let body = self.kind(&header[..end], out);
                self.begin(body);
                true
            }
            Some((end, mark)) => {
                let part: String = self.held.drain(..end).collect();
                self.pass(mark);
                let (body, text) = without_message(&part);
                self.begin(body);
                self.end(body, text, false, out);
                true
            }
            // A mark within the bounds would have come by now.
            None if self.held.len() >= LONGEST_HEADER + MESSAGE.len() => {
                let (body, text) = without_message(&self.held);
                self.held = text.to_owned();
                self.begin(body);
                true
            }
            None => false,
        }
    }

    /// Where a header ends, and with which mark: its own, or that of what comes next.
    fn header_end(&self) -> Option<(usize, &'static str)> {
        let space = self.held.len() - self.held.trim_start().len();
        let begin = if self.held[space..].starts_with(START) { space + START.len() } else { space };
        let first = |mark: &'static str| Some((begin + self.held[begin..].find(mark)?, mark));
        let second_channel = self.held.match_indices(CHANNEL).nth(1).map(|(at, _)| (at, CHANNEL));
        let marks = ENDS.into_iter().chain([MESSAGE]).filter_map(first).chain(second_channel);
        marks.min().filter(|(end, _)| *end <= LONGEST_HEADER)
    }

    /// Passes over the mark that ends a part, unless it begins the next one.
    fn pass(&mut self, mark: &str) {
        if mark != START && mark != CHANNEL {
            self.held.drain(..mark.len());
        }
    }

    fn kind(&mut self, header: &str, out: &mut Vec<Part>) -> Body {
        let name = header.split_once("to=functions.").map(|(_, name)| word(name)).filter(|name| !name.is_empty());
        if let Some(name) = name.filter(|_| self.calls) {
            match self.whole {
                true => self.name = Some(name.to_owned()),
                false => append(out, Part::Call(name.to_owned())),
            }
            return Body::Arguments;
        }
        let channel = header.split_once(CHANNEL).map(|(_, channel)| word(channel));
        if channel == Some("analysis") { Body::Thoughts } else { Body::Text }
    }

    fn begin(&mut self, body: Body) {
        (self.at, self.fresh) = (At::Body(body), true);
    }

    /// Reads what comes after a header; is there more to read?
    fn body(&mut self, body: Body, out: &mut Vec<Part>) -> bool {
        let end = ENDS.iter().filter_map(|mark| Some((self.held.find(mark)?, *mark))).min();
        let Some((at, mark)) = end else {
            let kept = ENDS.iter().map(|mark| begins(&self.held, mark)).max().unwrap_or(0);
            let more = self.held.len() - kept;
            // Whitespace after thoughts is none of them.
            let told = if body == Body::Thoughts { settled(&self.held[..more]) } else { more };
            let text: String = self.held.drain(..told).collect();
            self.tell(body, &text, out);
            return false;
        };
        let text: String = self.held.drain(..at).collect();
        self.pass(mark);
        let called = self.end(body, &text, false, out);
        if called && self.single {
            (self.over, self.held) = (true, String::new());
        }
        !self.over
    }

    /// Tells a piece of a part.
    fn tell(&mut self, body: Body, text: &str, out: &mut Vec<Part>) {
        match body {
            Body::Text => append(out, Part::Text(text.to_owned())),
            Body::Thoughts => {
                let text = if self.fresh { text.trim_start() } else { text };
                if self.fresh && self.thought && !text.is_empty() {
                    append(out, Part::Reasoning("\n".to_owned()));
                }
                self.thought |= !text.is_empty();
                append(out, Part::Reasoning(text.to_owned()));
            }
            Body::Arguments if self.whole => self.arguments.push_str(text),
            Body::Arguments => append(out, Part::Arguments(text.to_owned())),
        }
        self.fresh &= text.trim().is_empty();
    }

    /// Tells the last piece of a part, which was perhaps `cut` off; was it a call?
    fn end(&mut self, body: Body, text: &str, cut: bool, out: &mut Vec<Part>) -> bool {
        self.tell(body, if body == Body::Thoughts { &text[..settled(text)] } else { text }, out);
        self.at = At::Header;
        if body != Body::Arguments {
            return false;
        }
        let mut arguments = std::mem::take(&mut self.arguments);
        if self.fresh && !cut {
            arguments.push_str("{}");
        }
        match self.name.take() {
            Some(name) if cut || is_json(&arguments) => append(out, Part::Call(name)),
            Some(_) => {
                // No function takes them.
                append(out, Part::Text(arguments));
                return false;
            }
            // It was told when it began.
            None => {}
        }
        append(out, Part::Arguments(arguments));
        true
    }

    /// `cut`: the model had not ended.
    pub(super) fn finish(&mut self, cut: bool, out: &mut Vec<Part>) {
        let held = std::mem::take(&mut self.held);
        match self.at {
            At::Body(body) => {
                self.end(body, &held, cut, out);
            }
            At::Header => {
                let (body, text) = without_message(&held);
                // The beginning of a header says nothing.
                if !(cut && is_cut_header(&held, text)) {
                    self.begin(body);
                    self.end(body, text, cut, out);
                }
            }
        }
    }
}

/// What a part without a message is, and what it says.
fn without_message(part: &str) -> (Body, &str) {
    if let Some((_, rest)) = part.split_once(CHANNEL) {
        let channel = word(rest);
        let body = if channel == "analysis" { Body::Thoughts } else { Body::Text };
        let text = if CHANNELS.contains(&channel) { &rest[channel.len()..] } else { rest };
        return (body, text.trim_start());
    }
    match part.trim_start().strip_prefix(START) {
        Some(rest) => (Body::Text, rest.strip_prefix("assistant").unwrap_or(rest).trim_start()),
        None => (Body::Text, part),
    }
}

/// Might the rest of a header have come after this? `text` is what it says otherwise.
fn is_cut_header(held: &str, text: &str) -> bool {
    let begins = |word: &str| text.starts_with(word) || word.starts_with(text);
    let channel = held.rsplit_once(CHANNEL).map(|(_, channel)| channel);
    let is_channel = channel.is_some_and(|begun| CHANNELS.iter().any(|channel| channel.starts_with(begun)));
    held.trim_start().starts_with("<|") && (is_channel || begins("<|") || begins("to="))
}

/// Up to the first whitespace or mark.
fn word(text: &str) -> &str {
    text.split(|c: char| c.is_whitespace() || c == '<').next().unwrap_or_default()
}
