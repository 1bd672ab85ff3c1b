//! Calls among text, as Hermes, Llama and Mistral write them, and those who write like them. Whitespace around calls is no
//! text; what looks like a call and is none is told as the text that it is. So is one whose arguments are no JSON, if the
//! answer is read as a whole: in pieces its name is told by then.

use super::call::{CallObject, Step};
use super::format::ToolParser;
use super::marks::{MarkScanner, begins};
use super::{Part, Reading, append};
use std::sync::Arc;

/// Reads text that may call functions.
#[derive(Clone, Debug)]
pub(super) struct Calls {
    parser: ToolParser,
    names: Arc<[String]>,
    single: bool,
    /// Calls are told when they are complete.
    whole: bool,
    /// There is nothing but calls.
    forced: bool,
    at: At,
    /// Text up to the next mark.
    scanner: MarkScanner,
    /// What was read since the mark and is neither text nor call yet.
    held: String,
    /// What was passed over since the text ended: whitespace, a mark, brackets. It is text where no call comes.
    passed: String,
    /// Inside a list of calls?
    listed: bool,
    /// A call has ended, and nothing but whitespace has come since.
    trimming: bool,
    /// Was there text before?
    said: bool,
    over: bool,
}

#[derive(Clone, Debug)]
enum At {
    /// Nothing but whitespace has come: an object would be a call, where no mark is needed.
    Start,
    /// Text, until a mark comes.
    Text,
    /// A call is expected.
    Before,
    /// A name, as Mistral writes it before its arguments.
    Name,
    Object(Box<CallObject>),
    /// The arguments broke off: the rest is told as it is, up to the end of the call.
    Broken(MarkScanner),
    /// After a call: another one, or its end.
    After,
    /// Text to the end.
    Plain,
}

impl Calls {
    pub(super) fn new(parser: ToolParser, names: Arc<[String]>, reading: &Reading) -> Self {
        let Reading { single, whole, forced, .. } = *reading;
        let at = if parser == ToolParser::Llama3Json { At::Start } else { At::Text };
        let scanner = MarkScanner::new(parser.open());
        let (held, passed) = (String::new(), String::new());
        let (listed, trimming, said, over) = (false, false, false, false);
        Calls { parser, names, single, whole, forced, at, scanner, held, passed, listed, trimming, said, over }
    }

    pub(super) fn is_over(&self) -> bool {
        self.over
    }

    pub(super) fn push(&mut self, text: &str, out: &mut Vec<Part>) {
        let mut text = text.to_owned();
        // Every turn takes a part of the text, or moves on to a state that does.
        while !text.is_empty() && !self.over {
            text = self.step(text, out);
        }
    }

    /// Takes the beginning of a text; gives what is left of it.
    fn step(&mut self, text: String, out: &mut Vec<Part>) -> String {
        match &mut self.at {
            At::Plain => {
                self.text(text, out);
                String::new()
            }
            At::Text => {
                let text = if self.trimming { text.trim_start() } else { &text };
                let mut before = String::new();
                let rest = self.scanner.push(text, &mut before);
                self.text(before, out);
                let Some(rest) = rest else { return String::new() };
                self.passed = self.scanner.take_gap() + self.parser.open();
                (self.at, self.listed) = (At::Before, false);
                rest
            }
            At::Start => self.start(text),
            At::Before => self.before(text, out),
            At::Name => self.name(text, out),
            At::Object(_) => self.object(text, out),
            At::Broken(scanner) => {
                let mut more = String::new();
                let rest = scanner.push(&text, &mut more);
                append(out, Part::Arguments(more));
                let Some(rest) = rest else { return String::new() };
                self.at = At::Text;
                rest
            }
            At::After => self.after(text),
        }
    }

    /// Tells text. What is said before a call and what is said after it are two lines.
    fn text(&mut self, text: String, out: &mut Vec<Part>) {
        if text.is_empty() {
            return;
        }
        if std::mem::take(&mut self.trimming) && self.said {
            append(out, Part::Text("\n".to_owned()));
        }
        self.said = true;
        append(out, Part::Text(text));
    }

    fn start(&mut self, text: String) -> String {
        let text = std::mem::take(&mut self.held) + &text;
        match text.trim_start().chars().next() {
            None => {
                self.held = text;
                String::new()
            }
            Some('{') => {
                self.at = At::Before;
                text
            }
            Some(_) => {
                self.at = At::Text;
                text
            }
        }
    }

    /// Between a mark and an object, and between objects of a list.
    fn before(&mut self, text: String, out: &mut Vec<Part>) -> String {
        self.held.push_str(&text);
        let text = std::mem::take(&mut self.held);
        let rest = text.trim_start_matches(|c: char| c.is_ascii_whitespace() || (self.listed && c == ','));
        let Some(first) = rest.chars().next() else {
            self.held = text;
            return String::new();
        };
        let lists = matches!(self.parser, ToolParser::Mistral | ToolParser::List);
        match first {
            '{' => {
                self.pass(&text, rest.len());
                let known = (self.parser == ToolParser::Llama3Json).then(|| self.names.clone());
                self.at = At::Object(Box::new(CallObject::new(known)));
                rest.to_owned()
            }
            '[' if lists && !self.listed => {
                self.listed = true;
                self.pass(&text, rest.len() - 1);
                rest[1..].to_owned()
            }
            ']' if self.listed => {
                self.at = At::Text;
                rest[1..].to_owned()
            }
            _ if self.parser == ToolParser::Mistral && !self.listed => {
                self.pass(&text, rest.len());
                self.at = At::Name;
                rest.to_owned()
            }
            _ => {
                // No call: the mark was text, too.
                self.give_up(out);
                text
            }
        }
    }

    /// All but the last `rest` bytes of a text are passed over.
    fn pass(&mut self, text: &str, rest: usize) {
        self.passed.push_str(&text[..text.len() - rest]);
    }

    /// What was taken for a call is text.
    fn give_up(&mut self, out: &mut Vec<Part>) {
        let passed = std::mem::take(&mut self.passed);
        self.text(passed, out);
        self.at = if self.parser == ToolParser::Llama3Json { At::Plain } else { At::Text };
    }

    /// `get_weather[ARGS]{...}`, `get_weather[CALL_ID]abc[ARGS]{...}` and `get_weather{...}`.
    fn name(&mut self, text: String, out: &mut Vec<Part>) -> String {
        self.held.push_str(&text);
        let Some(end) = self.held.find('{') else { return String::new() };
        let arguments = self.held.split_off(end);
        let before = std::mem::take(&mut self.held);
        let name = before.split("[ARGS]").next().unwrap_or_default();
        let name = name.split("[CALL_ID]").next().unwrap_or_default().trim().to_owned();
        if name.is_empty() || name.contains(char::is_whitespace) {
            // No function is called so: the mark was text, too.
            self.give_up(out);
            return before + &arguments;
        }
        self.passed.push_str(&before);
        self.at = At::Object(Box::new(CallObject::arguments_of(name)));
        arguments
    }

    fn object(&mut self, text: String, out: &mut Vec<Part>) -> String {
        let At::Object(call) = &mut self.at else { return text };
        let mut step = Step::More;
        let mut used = text.len();
        for (at, c) in text.char_indices() {
            step = call.push(c);
            if step != Step::More {
                used = at + c.len_utf8();
                break;
            }
        }
        if self.whole && step == Step::Done && !call.is_sound() {
            step = Step::Broken;
        }
        if !self.whole || step == Step::Done {
            tell(call, out);
        }
        if call.is_told() {
            self.passed.clear();
        }
        let rest = text[used..].to_owned();
        match step {
            Step::More => {}
            Step::Done => {
                if !call.argued() {
                    append(out, Part::Arguments("{}".to_owned()));
                }
                (self.at, self.trimming, self.over) = (At::After, true, self.single);
            }
            Step::Broken if call.is_told() => {
                let last = text[..used].chars().next_back().map(String::from).unwrap_or_default();
                self.at = At::Broken(MarkScanner::new(self.close()));
                return last + &rest;
            }
            Step::Broken => {
                let raw = call.take_raw();
                self.give_up(out);
                return raw + &rest;
            }
        }
        rest
    }

    /// What ends a call, or a list of them.
    fn close(&self) -> &'static str {
        match self.parser {
            ToolParser::Hermes => "</tool_call>",
            ToolParser::List => "<|/tool_call|>",
            _ => "]",
        }
    }

    fn after(&mut self, text: String) -> String {
        self.held.push_str(&text);
        let text = std::mem::take(&mut self.held);
        let rest = text.trim_start();
        let separators: &[char] = if self.parser == ToolParser::Llama3Json { &[';', ','] } else { &[] };
        if rest.is_empty() {
            self.held = text;
            return String::new();
        }
        if self.listed {
            // A comma, or the end of the list.
            self.at = At::Before;
            return rest.to_owned();
        }
        if rest.starts_with(separators) || (self.parser == ToolParser::Llama3Json && rest.starts_with('{')) {
            self.at = At::Before;
            return rest.trim_start_matches(separators).to_owned();
        }
        if self.parser == ToolParser::Hermes {
            if let Some(rest) = rest.strip_prefix(self.close()) {
                self.at = At::Text;
                return rest.to_owned();
            }
            if begins(rest, self.close()) == rest.len() {
                self.held = rest.to_owned();
                return String::new();
            }
        }
        self.at = At::Text;
        rest.to_owned()
    }

    /// `cut`: the model had not ended.
    pub(super) fn finish(&mut self, cut: bool, out: &mut Vec<Part>) {
        if self.over {
            return;
        }
        let held = std::mem::take(&mut self.held);
        match std::mem::replace(&mut self.at, At::Plain) {
            // Half a mark, or a call without a name.
            At::Start | At::Text | At::Before | At::Name | At::After if cut && self.forced => {}
            At::Start | At::Plain => self.text(held, out),
            At::Text => {
                let scanner = std::mem::replace(&mut self.scanner, MarkScanner::new(self.parser.open()));
                let held = scanner.into_held();
                let rest = if self.trimming { held.trim_start() } else { &held };
                self.text(rest.to_owned(), out);
            }
            At::Before | At::Name => {
                let passed = std::mem::take(&mut self.passed);
                // Between two calls of a list nothing was passed over that could be text.
                let rest = if passed.is_empty() { held.trim().to_owned() } else { passed + &held };
                self.text(rest, out);
            }
            At::Object(mut call) => {
                // What was cut off is told as far as it came, as it is in pieces.
                if self.whole && cut {
                    tell(&mut call, out);
                }
                let part = cut && self.forced;
                if !call.is_told() && !part {
                    let rest = std::mem::take(&mut self.passed) + &call.take_raw();
                    self.text(rest, out);
                }
            }
            At::Broken(scanner) => append(out, Part::Arguments(scanner.into_held())),
            At::After => self.text(held.trim_start().to_owned(), out),
        }
    }
}

/// Tells what there is of a call, once it has a name.
fn tell(call: &mut CallObject, out: &mut Vec<Part>) {
    if let Some(name) = call.take_name() {
        append(out, Part::Call(name));
    }
    append(out, Part::Arguments(call.take_arguments()));
}
