//! What a model's text means: thoughts, text, and calls of tools, told apart as it comes. What is told in pieces is what
//! is told of the whole: there is one reader.
//!
//! | file | what |
//! |---|---|
//! | `format.rs` | which format a model writes, found in its chat template |
//! | `marks.rs` | marks in text that comes in pieces |
//! | `call.rs` | one call, written as a JSON object |
//! | `calls.rs` | calls among text, as Hermes, Llama and Mistral write them |
//! | `harmony.rs` | gpt-oss: every part has a header |
//! | `forms.rs` | grammars of answers that must call |

mod call;
mod calls;
mod format;
mod forms;
mod harmony;
mod marks;
#[cfg(test)]
mod tests;

use calls::Calls;
use harmony::Harmony;
use marks::MarkScanner;
use std::sync::Arc;

pub use format::{Choice, OutputFormat, ReasoningParser, ThoughtMarks, Thoughts, ToolParser};
pub use forms::Callable;

/// A part of an answer. Pieces of one part come one after another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// What the assistant says.
    Text(String),
    /// What it thought before.
    Reasoning(String),
    /// It calls the function of this name.
    Call(String),
    /// Of the arguments of the call that began last: JSON, as the model wrote it.
    Arguments(String),
}

/// Appends a part; what continues the last one becomes a piece of it.
pub fn append(out: &mut Vec<Part>, part: Part) {
    let text = match &part {
        Part::Text(text) | Part::Reasoning(text) | Part::Arguments(text) => text,
        Part::Call(_) => {
            out.push(part);
            return;
        }
    };
    if text.is_empty() {
        return;
    }
    match (out.last_mut(), &part) {
        (Some(Part::Text(last)), Part::Text(more))
        | (Some(Part::Reasoning(last)), Part::Reasoning(more))
        | (Some(Part::Arguments(last)), Part::Arguments(more)) => last.push_str(more),
        _ => out.push(part),
    }
}

/// How one answer is read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reading {
    /// Where thoughts may stand.
    pub thoughts: Thoughts,
    /// The functions that may be called; without it nothing is read as a call.
    pub tools: Option<Arc<[String]>>,
    /// One call at most: the answer is over when it is complete.
    pub single: bool,
    /// Nobody sees the answer before it is complete: calls whose arguments are no JSON are text. Who sees it in pieces
    /// has been told by then that there is a call.
    pub whole: bool,
    /// The answer has to call: what is cut off before a call was told is a part of one, and no text.
    pub forced: bool,
}

/// Reads one answer.
#[derive(Clone, Debug)]
pub struct OutputParser(Parser);

#[derive(Clone, Debug)]
enum Parser {
    Marked(Box<Marked>),
    Harmony(Harmony),
}

impl OutputParser {
    /// A reader of answers in this format; `None` where all of them is text.
    pub fn new(format: &OutputFormat, reading: &Reading) -> Option<Self> {
        if format.tools == Some(ToolParser::Harmony) {
            return Some(OutputParser(Parser::Harmony(Harmony::new(reading))));
        }
        // Calls of a model whose format is not known are forced, and then they are the simplest ones.
        let parser = format.tools.unwrap_or(ToolParser::Llama3Json);
        let calls = reading.tools.clone().map(|names| Calls::new(parser, names, reading));
        let thoughts = format.thoughts.filter(|_| reading.thoughts != Thoughts::None);
        let thinking = thoughts.map(|marks| Thinking::new(marks, reading.thoughts));
        (calls.is_some() || thinking.is_some()).then_some(OutputParser(Parser::Marked(Box::new(Marked {
            thinking,
            calls,
            trimming: false,
            forced: reading.forced,
        }))))
    }

    /// Takes the next piece of text, and appends what is certain now.
    pub fn push(&mut self, text: &str, out: &mut Vec<Part>) {
        match &mut self.0 {
            Parser::Marked(marked) => marked.push(text, out),
            Parser::Harmony(harmony) => harmony.push(text, out),
        }
    }

    /// Appends what was held back, when no more text will come: because the answer was `cut` off, or because the model
    /// ended it.
    pub fn finish(&mut self, cut: bool, out: &mut Vec<Part>) {
        match &mut self.0 {
            Parser::Marked(marked) => marked.finish(cut, out),
            Parser::Harmony(harmony) => harmony.finish(cut, out),
        }
    }

    /// Does what comes next belong to thoughts, as far as is known?
    pub fn is_thinking(&self) -> bool {
        match &self.0 {
            Parser::Marked(marked) => marked.thinking.as_ref().is_some_and(|thinking| thinking.at == At::Inside),
            Parser::Harmony(harmony) => harmony.is_thinking(),
        }
    }

    /// Is the one call that was wanted complete? What comes then is swallowed.
    pub fn is_over(&self) -> bool {
        match &self.0 {
            Parser::Marked(marked) => marked.calls.as_ref().is_some_and(Calls::is_over),
            Parser::Harmony(harmony) => harmony.is_over(),
        }
    }
}

/// Thoughts between marks, then text with calls in it.
#[derive(Clone, Debug)]
struct Marked {
    thinking: Option<Thinking>,
    calls: Option<Calls>,
    /// Thoughts have ended, and nothing but whitespace has come since.
    trimming: bool,
    forced: bool,
}

impl Marked {
    fn push(&mut self, text: &str, out: &mut Vec<Part>) {
        let Some(thinking) = &mut self.thinking else { return self.said(text, out) };
        let mut thoughts = String::new();
        let after = thinking.push(text, &mut thoughts);
        append(out, Part::Reasoning(thoughts));
        if let Some(rest) = after {
            self.trimming = thinking.at == At::Inside;
            self.thinking = None;
            self.said(&rest, out);
        }
    }

    fn said(&mut self, text: &str, out: &mut Vec<Part>) {
        let text = if self.trimming { text.trim_start() } else { text };
        if text.is_empty() {
            return;
        }
        self.trimming = false;
        match &mut self.calls {
            Some(calls) => calls.push(text, out),
            None => append(out, Part::Text(text.to_owned())),
        }
    }

    fn finish(&mut self, cut: bool, out: &mut Vec<Part>) {
        if let Some(thinking) = self.thinking.take() {
            match thinking.at {
                At::Inside => append(out, Part::Reasoning(thinking.close.into_held().trim_end().to_owned())),
                At::Before if cut && self.forced => {}
                At::Before => self.said(&thinking.before, out),
            }
        }
        if let Some(calls) = &mut self.calls {
            calls.finish(cut, out);
        }
    }
}

/// Thoughts at the beginning of an answer.
#[derive(Clone, Debug)]
struct Thinking {
    marks: ThoughtMarks,
    at: At,
    /// What came before it was clear whether there are any.
    before: String,
    close: MarkScanner,
    /// Of the thoughts nothing but whitespace has come.
    fresh: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    /// They may begin.
    Before,
    Inside,
}

impl Thinking {
    fn new(marks: ThoughtMarks, thoughts: Thoughts) -> Self {
        let at = if thoughts == Thoughts::Begun { At::Inside } else { At::Before };
        Thinking { marks, at, before: String::new(), close: MarkScanner::new(marks.close), fresh: true }
    }

    /// Gives the text after the thoughts, once they are over or there are none.
    fn push(&mut self, text: &str, out: &mut String) -> Option<String> {
        if self.at == At::Inside {
            return self.inside(text, out);
        }
        self.before.push_str(text);
        let begun = self.before.trim_start();
        if let Some(rest) = begun.strip_prefix(self.marks.open) {
            let rest = rest.to_owned();
            self.at = At::Inside;
            return self.inside(&rest, out);
        }
        if self.marks.open.starts_with(begun) {
            return None;
        }
        Some(std::mem::take(&mut self.before))
    }

    fn inside(&mut self, text: &str, out: &mut String) -> Option<String> {
        let mut thoughts = String::new();
        let rest = self.close.push(text, &mut thoughts);
        let thoughts = if self.fresh { thoughts.trim_start() } else { &thoughts };
        self.fresh &= thoughts.is_empty();
        out.push_str(thoughts);
        rest
    }
}
