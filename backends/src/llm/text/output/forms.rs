//! Grammars of answers: calls of tools in the format that the model writes, and thoughts before whatever else is asked for.

use super::format::{OutputFormat, ThoughtMarks, Thoughts, ToolParser};
use crate::llm::grammar::{Form, expression, literal};
use serde_json::{Value, json};
use std::fmt::Write;

/// A function that may be called.
#[derive(Clone, Debug, PartialEq)]
pub struct Callable<'a> {
    /// Its name.
    pub name: &'a str,
    /// The schema of its arguments as it was sent; `None` is any object.
    pub parameters: Option<&'a Value>,
}

impl Callable<'_> {
    /// The schema that its arguments keep to: they are an object, also where the tool does not say so.
    pub fn schema(&self) -> Value {
        let mut schema = self.parameters.cloned().unwrap_or_else(|| json!({}));
        if let Value::Object(fields) = &mut schema {
            fields.insert("type".to_owned(), Value::from("object"));
        }
        schema
    }

    fn arguments(&self) -> String {
        expression(&Form::Schema(self.schema()))
    }
}

/// What calls are made of.
struct Calls {
    first: String,
    /// Another one, where there may be several.
    next: Option<String>,
    end: &'static str,
}

/// Anything, up to what comes next in a rule that is lazy.
const ANYTHING: &str = "/(.|\\n)*/";

impl OutputFormat {
    /// An answer that is calls and nothing else: one, or as many as the model likes.
    pub fn calls(&self, tools: &[Callable<'_>], many: bool) -> Form {
        let mut rules = String::new();
        let Calls { first, next, end } = self.call_rules(tools, &mut rules);
        let rest = next.filter(|_| many).map(|next| format!("({next})*")).unwrap_or_default();
        Form::Grammar(format!("start: {first} {rest} {end}\n{rules}"))
    }

    /// An answer that is calls, or of another form.
    pub fn calls_or(&self, tools: &[Callable<'_>], other: &Form) -> Form {
        let is_plain = matches!(self.tools, Some(ToolParser::Llama3Json) | None);
        if let (true, Form::Object | Form::Schema(_)) = (is_plain, other) {
            // Both are objects, and are told apart by what is in them.
            let any = json!({"type": "object"});
            let call = |tool: &Callable<'_>| {
                json!({
                    "type": "object",
                    "properties": {"name": {"const": tool.name}, "parameters": tool.schema()},
                    "required": ["name", "parameters"],
                    "additionalProperties": false,
                })
            };
            let other = if let Form::Schema(schema) = other { schema } else { &any };
            let mut choices: Vec<Value> = tools.iter().map(call).collect();
            let last = choices.len();
            for (index, choice) in choices.iter_mut().enumerate() {
                moved(choice, &format!("#/anyOf/{index}/properties/parameters"));
            }
            let mut other = other.clone();
            moved(&mut other, &format!("#/anyOf/{last}"));
            choices.push(other);
            return Form::Schema(json!({"anyOf": choices}));
        }
        let header = match self.tools {
            Some(ToolParser::Harmony) => {
                format!("{} \"final\" {} ", self.mark("<|channel|>"), self.mark("<|message|>"))
            }
            _ => String::new(),
        };
        let (calls, other) = (expression(&self.calls(tools, true)), expression(other));
        Form::Grammar(format!("start: calls | {header}other\ncalls: {calls}\nother: {other}\n"))
    }

    /// Text, after thoughts where there may be any, in which calls are complete and follow their schemas. `None` where a
    /// format does not tell calls from text by a mark.
    pub fn text_with_calls(&self, tools: &[Callable<'_>], thoughts: Thoughts) -> Option<Form> {
        let parser = self.tools.filter(|parser| matches!(parser, ToolParser::Hermes | ToolParser::List))?;
        let mut rules = String::new();
        self.objects(tools, "arguments", &mut rules);
        let call = match parser {
            ToolParser::Hermes => format!("\"\\n\" object \"\\n\" {}", self.mark("</tool_call>")),
            _ => "\"[\" object (\", \" object)* \"]\"".to_owned(),
        };
        let mark = self.mark(parser.open());
        let mut text = format!("call: {call}\ntail: TEXT\nTEXT: {ANYTHING}\nhead{}: TEXT {mark}\n", lazy(&mark));
        text.push_str(&rules);
        let body = "(head call)* tail";
        let start = match (self.thoughts.filter(|_| thoughts != Thoughts::None), thoughts) {
            (None, _) => body.to_owned(),
            (Some(marks), Thoughts::Begun) => {
                self.thoughts_rules(marks, &mut text);
                format!("thoughts GAP {body}")
            }
            (Some(marks), _) => {
                self.thoughts_rules(marks, &mut text);
                let open = self.mark(marks.open);
                if is_text(&open) {
                    // Text before which there are no thoughts begins otherwise than they do: else it would be both.
                    let _ = writeln!(text, "OPEN: /\\s*/ {open}\nFIRST: TEXT & ~(OPEN TEXT)");
                    let _ = write!(text, "first{}: FIRST {mark}\nalone: FIRST\n", lazy(&mark));
                    format!("OPEN thoughts GAP {body} | first call {body} | alone")
                } else {
                    format!("{open} thoughts GAP {body} | {body}")
                }
            }
        };
        Some(Form::Grammar(format!("start: {start}\n{text}")))
    }

    /// Adds the rules `thoughts` and `GAP`.
    fn thoughts_rules(&self, marks: ThoughtMarks, rules: &mut String) {
        let close = self.mark(marks.close);
        let _ = write!(rules, "thoughts{}: {ANYTHING} {close}\nGAP: /[ \\n]{{0,4}}/\n", lazy(&close));
    }

    /// A mark in a grammar: a control token by its id, or text.
    fn mark(&self, mark: &str) -> String {
        match self.tokens.iter().find(|(known, _)| *known == mark) {
            Some((_, token)) => format!("<[{token}]>"),
            None => literal(mark),
        }
    }

    /// Adds the rules that calls are made of.
    fn call_rules(&self, tools: &[Callable<'_>], rules: &mut String) -> Calls {
        let open = |parser: ToolParser| self.mark(parser.open());
        match self.tools {
            Some(parser @ ToolParser::Hermes) => {
                self.objects(tools, "arguments", rules);
                let call = format!("{} \"\\n\" object \"\\n\" {}", open(parser), self.mark("</tool_call>"));
                Calls { next: Some(format!("\"\\n\" {call}")), first: call, end: "" }
            }
            Some(parser @ ToolParser::Mistral) if self.names_before_arguments => {
                let arguments = self.mark("[ARGS]");
                let call = |tool: &Callable<'_>| format!("{} {arguments} {}", literal(tool.name), tool.arguments());
                let calls: Vec<_> = tools.iter().map(call).collect();
                let _ = writeln!(rules, "named: {}", calls.join("\n  | "));
                let call = format!("{} named", open(parser));
                Calls { first: call.clone(), next: Some(call), end: "" }
            }
            Some(parser @ (ToolParser::Mistral | ToolParser::List)) => {
                self.objects(tools, "arguments", rules);
                let first = format!("{} \"[\" object", open(parser));
                Calls { first, next: Some("\", \" object".to_owned()), end: "\"]\"" }
            }
            Some(ToolParser::Harmony) => {
                let (constrain, message) = (self.mark("<|constrain|>"), self.mark("<|message|>"));
                let call = |tool: &Callable<'_>| {
                    let recipient = literal(&format!("commentary to=functions.{} ", tool.name));
                    format!("{recipient} {constrain} \"json\" {message} {}", tool.arguments())
                };
                let calls: Vec<_> = tools.iter().map(call).collect();
                let _ = writeln!(rules, "named: {}", calls.join("\n  | "));
                Calls { first: format!("{} named", self.mark("<|channel|>")), next: None, end: "" }
            }
            // Without a format of its own a model is held to the simplest one.
            Some(ToolParser::Llama3Json) | None => {
                self.objects(tools, "parameters", rules);
                Calls { first: "object".to_owned(), next: None, end: "" }
            }
        }
    }

    /// The rule `object`: a call as JSON.
    fn objects(&self, tools: &[Callable<'_>], word: &str, rules: &mut String) {
        let object = |tool: &Callable<'_>| {
            let begin = format!("{{\"name\": {}, \"{word}\": ", Value::from(tool.name));
            format!("{} {} \"}}\"", literal(&begin), tool.arguments())
        };
        let objects: Vec<_> = tools.iter().map(object).collect();
        let _ = writeln!(rules, "object: {}", objects.join("\n  | "));
    }
}

/// References of a schema that has become a part of another one, at this place.
fn moved(schema: &mut Value, place: &str) {
    match schema {
        Value::Object(fields) => {
            for (name, value) in fields {
                match value {
                    Value::String(target) if name == "$ref" && target.starts_with('#') => {
                        *target = format!("{place}{}", &target[1..]);
                    }
                    value => moved(value, place),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| moved(item, place)),
        _ => {}
    }
}

/// Is a mark text? A control token is no part of any.
fn is_text(mark: &str) -> bool {
    mark.starts_with('"')
}

/// A mark that is text ends a lazy lexeme.
fn lazy(mark: &str) -> &'static str {
    if is_text(mark) { "[lazy]" } else { "" }
}

/// What [`OutputFormat::after_thoughts`] does.
pub(super) fn after_thoughts(format: &OutputFormat, form: Form, thoughts: Thoughts, calls: bool) -> Form {
    let body = expression(&form);
    if format.tools == Some(ToolParser::Harmony) {
        return Form::Grammar(after_analysis(format, &body, calls));
    }
    let (Some(marks), true) = (format.thoughts, thoughts != Thoughts::None) else { return form };
    let mut rules = format!("body: {body}\n");
    format.thoughts_rules(marks, &mut rules);
    let start = match thoughts {
        Thoughts::Possible => format!("({} thoughts GAP)? body", format.mark(marks.open)),
        _ => "thoughts GAP body".to_owned(),
    };
    Form::Grammar(format!("start: {start}\n{rules}"))
}

/// Thoughts are a part of their own, and so is the answer, unless it is a call, which brings its header.
fn after_analysis(format: &OutputFormat, body: &str, calls: bool) -> String {
    let (channel, message) = (format.mark("<|channel|>"), format.mark("<|message|>"));
    let (end, start) = (format.mark("<|end|>"), format.mark("<|start|>"));
    let header = if calls { String::new() } else { format!("{channel} \"final\" {message} ") };
    format!(
        "start: ({channel} \"analysis\" {message} thoughts {end} {start} \"assistant\")? {header}body\n\
         thoughts: {ANYTHING}\nbody: {body}\n"
    )
}
