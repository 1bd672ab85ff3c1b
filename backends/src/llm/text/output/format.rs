//! Which format a model writes. Its chat template says it: it shows the model its own calls and thoughts.

use super::super::Vocabulary;
use crate::llm::grammar::Form;

/// How a model calls tools.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ToolParser {
    /// `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`: Hermes, Qwen, SmolLM3, Granite 4.
    Hermes,
    /// `{"name": ..., "parameters": {...}}`, alone or after `<|python_tag|>`: Llama 3.1 and later.
    Llama3Json,
    /// `[TOOL_CALLS][{"name": ..., "arguments": {...}}]`, and `[TOOL_CALLS]name[ARGS]{...}`: Mistral.
    Mistral,
    /// `<|tool_call|>[{"name": ..., "arguments": {...}}]`: Granite 3, Phi-4-mini.
    List,
    /// `<|channel|>commentary to=functions.name<|message|>{...}<|call|>`: gpt-oss. It holds for thoughts as well.
    Harmony,
}

impl ToolParser {
    /// What stands before calls; texts that end one are found behind them.
    pub(super) fn open(self) -> &'static str {
        match self {
            ToolParser::Hermes => "<tool_call>",
            ToolParser::Llama3Json => "<|python_tag|>",
            ToolParser::Mistral => "[TOOL_CALLS]",
            ToolParser::List => "<|tool_call|>",
            ToolParser::Harmony => "<|channel|>",
        }
    }

    /// Control tokens that are read as text.
    fn marks(self) -> &'static [&'static str] {
        match self {
            ToolParser::Hermes => &["<tool_call>", "</tool_call>"],
            ToolParser::Llama3Json => &["<|python_tag|>"],
            ToolParser::Mistral => &["[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"],
            ToolParser::List => &["<|tool_call|>", "<|/tool_call|>"],
            ToolParser::Harmony => &["<|channel|>", "<|message|>", "<|start|>", "<|end|>", "<|constrain|>", "<|call|>"],
        }
    }

    fn of_template(source: &str) -> Option<Self> {
        let has = |text: &str| source.contains(text);
        if has("<|channel|>") && has("<|message|>") {
            Some(ToolParser::Harmony)
        } else if has("[TOOL_CALLS]") {
            Some(ToolParser::Mistral)
        } else if has("<|tool_call|>") {
            Some(ToolParser::List)
        } else if has("<tool_call>") && !has("<function=") {
            Some(ToolParser::Hermes)
        } else if (has("ipython") || has("<|python_tag|>")) && has("parameters") {
            Some(ToolParser::Llama3Json)
        } else {
            None
        }
    }
}

/// What stands around thoughts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ThoughtMarks {
    pub(super) open: &'static str,
    pub(super) close: &'static str,
}

impl ThoughtMarks {
    const THINK: Self = ThoughtMarks { open: "<think>", close: "</think>" };
    const BRACKETS: Self = ThoughtMarks { open: "[THINK]", close: "[/THINK]" };
}

/// How a model's thoughts are told from its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReasoningParser {
    /// `<think>...</think>`
    Think,
    /// `[THINK]...[/THINK]`
    Brackets,
}

impl ReasoningParser {
    fn marks(self) -> ThoughtMarks {
        match self {
            ReasoningParser::Think => ThoughtMarks::THINK,
            ReasoningParser::Brackets => ThoughtMarks::BRACKETS,
        }
    }
}

/// Where thoughts may stand in an answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Thoughts {
    /// Nowhere.
    #[default]
    None,
    /// It may begin with them.
    Possible,
    /// It begins in the middle of them: the prompt has opened them.
    Begun,
}

/// What the server's operator says about one of the two parsers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Choice<T> {
    /// What the chat template shows.
    #[default]
    Auto,
    /// Nothing is told apart.
    Off,
    /// This one.
    This(T),
}

impl<T> Choice<T> {
    fn or(self, found: Option<T>) -> Option<T> {
        match self {
            Choice::Auto => found,
            Choice::Off => None,
            Choice::This(chosen) => Some(chosen),
        }
    }
}

/// How a model's answers are read, and what answers that must call look like.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OutputFormat {
    pub(super) tools: Option<ToolParser>,
    pub(super) thoughts: Option<ThoughtMarks>,
    /// Does the chat template tell the model of tools?
    pub(super) told_of_tools: bool,
    /// Of the marks, those that are control tokens, by their ids.
    pub(super) tokens: Vec<(&'static str, u32)>,
    /// Has it a token for where arguments begin, as Mistral's later models do?
    pub(super) names_before_arguments: bool,
}

impl OutputFormat {
    /// The format of a model with these chat templates.
    pub fn new<'a>(
        templates: impl Iterator<Item = &'a str> + Clone,
        vocabulary: &Vocabulary,
        tools: Choice<ToolParser>,
        reasoning: Choice<ReasoningParser>,
    ) -> Self {
        let found = templates.clone().find_map(ToolParser::of_template);
        let tools = tools.or(found);
        let has = |mark: &str| templates.clone().any(|source| source.contains(mark));
        let thinks = match (has("<think>"), has("[THINK]")) {
            (true, _) => Some(ReasoningParser::Think),
            (false, true) => Some(ReasoningParser::Brackets),
            (false, false) => None,
        };
        let thoughts = reasoning.or(thinks).map(ReasoningParser::marks);
        let of_thoughts = thoughts.iter().flat_map(|marks| [marks.open, marks.close]);
        let marks = tools.iter().flat_map(|parser| parser.marks().iter().copied()).chain(of_thoughts);
        let tokens: Vec<_> = marks.filter_map(|mark| Some((mark, vocabulary.special(mark)?))).collect();
        let names_before_arguments = tokens.iter().any(|(mark, _)| *mark == "[ARGS]");
        OutputFormat { tools, thoughts, told_of_tools: has("tools"), tokens, names_before_arguments }
    }

    /// Does the chat template tell the model of tools?
    pub fn tells_of_tools(&self) -> bool {
        self.told_of_tools
    }

    /// Can calls be found in what the model says on its own?
    pub fn finds_calls(&self) -> bool {
        self.tools.is_some() && self.told_of_tools
    }

    /// Control tokens that a reader has to see although control tokens are left out of texts.
    pub fn shown(&self) -> impl Iterator<Item = u32> {
        self.tokens.iter().map(|(_, token)| *token)
    }

    /// Where thoughts may stand in the answer to a prompt. One that is to be `continued` may end in the middle of them.
    pub fn thoughts(&self, prompt: &str, continued: bool) -> Thoughts {
        if self.tools == Some(ToolParser::Harmony) {
            return Thoughts::Possible;
        }
        let Some(marks) = self.thoughts else { return Thoughts::None };
        let end = prompt.trim_end();
        if end.ends_with(marks.open) {
            return Thoughts::Begun;
        }
        if end.ends_with(marks.close) {
            // It was told not to think.
            return Thoughts::None;
        }
        match (continued, prompt.rfind(marks.open), prompt.rfind(marks.close)) {
            (false, ..) => Thoughts::Possible,
            (true, Some(open), close) if close.is_none_or(|close| close < open) => Thoughts::Begun,
            (true, ..) => Thoughts::None,
        }
    }

    /// Do the results of calls refer to them by nine letters and digits, and by nothing else?
    pub fn has_short_call_ids(&self) -> bool {
        self.tools == Some(ToolParser::Mistral)
    }

    /// A form that leaves room for thoughts before it. One of `calls` brings what says so.
    pub fn after_thoughts(&self, form: Form, thoughts: Thoughts, calls: bool) -> Form {
        super::forms::after_thoughts(self, form, thoughts, calls)
    }
}
