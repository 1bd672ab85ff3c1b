//! Answers in every format, whole and in pieces.

use super::*;
use crate::llm::grammar::Form;
use proptest::prelude::*;
use serde_json::json;

fn format(tools: Option<ToolParser>, thoughts: bool) -> OutputFormat {
    let marks = ThoughtMarks { open: "<think>", close: "</think>" };
    OutputFormat { tools, thoughts: thoughts.then_some(marks), told_of_tools: true, ..OutputFormat::default() }
}

fn reading(thoughts: Thoughts) -> Reading {
    let tools = Some(["f".to_owned(), "get_weather".to_owned()].into());
    Reading { thoughts, tools, single: false, whole: false, forced: false }
}

/// The parts of an answer that comes in pieces.
fn parts<'a>(format: &OutputFormat, reading: &Reading, pieces: impl Iterator<Item = &'a str>) -> Vec<Part> {
    let mut parser = OutputParser::new(format, reading).expect("something to tell apart");
    let mut told = Vec::new();
    pieces.for_each(|piece| parser.push(piece, &mut told));
    parser.finish(false, &mut told);
    told
}

/// A text, cut at those of the places where characters end.
fn pieces(text: &str, cuts: Vec<usize>) -> Vec<&str> {
    let mut ends: Vec<usize> = cuts.into_iter().filter(|cut| text.is_char_boundary(*cut)).chain([text.len()]).collect();
    ends.sort_unstable();
    ends.dedup();
    let mut start = 0;
    ends.into_iter().map(|end| &text[std::mem::replace(&mut start, end)..end]).collect()
}

/// In short: `text`, `~thoughts`, `!name`, `=arguments`.
fn short(parts: &[Part]) -> Vec<String> {
    let one = |part: &Part| match part {
        Part::Text(text) => text.clone(),
        Part::Reasoning(text) => format!("~{text}"),
        Part::Call(name) => format!("!{name}"),
        Part::Arguments(json) => format!("={json}"),
    };
    parts.iter().map(one).collect()
}

/// An answer, and its parts in short.
type Case = (Option<ToolParser>, Thoughts, &'static str, &'static [&'static str]);

const HERMES: Option<ToolParser> = Some(ToolParser::Hermes);
const LLAMA: Option<ToolParser> = Some(ToolParser::Llama3Json);
const MISTRAL: Option<ToolParser> = Some(ToolParser::Mistral);
const LIST: Option<ToolParser> = Some(ToolParser::List);
const HARMONY: Option<ToolParser> = Some(ToolParser::Harmony);
use Thoughts::{Begun, None as Never, Possible};

#[rustfmt::skip]
const CASES: &[Case] = &[
    (HERMES, Never, "Hello.", &["Hello."]),
    (HERMES, Never, "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": 1}}\n</tool_call>", &["!f", "={\"a\": 1}"]),
    (HERMES, Never, "I look.\n<tool_call>\n{\"name\": \"f\", \"arguments\": {}}\n</tool_call>\n<tool_call>\n\
        {\"arguments\": {\"b\": [\"}\", \"\\\"\"]}, \"name\": \"g\"}\n</tool_call>\n",
        &["I look.", "!f", "={}", "!g", "={\"b\": [\"}\", \"\\\"\"]}"]),
    (HERMES, Never, "<tool_call>{\"name\": \"f\"}</tool_call>done", &["!f", "={}", "done"]),
    (HERMES, Never, "<tool_call>{\"name\": \"f\", \"arguments\": null}</tool_call>", &["!f", "={}"]),
    (HERMES, Never, "<tool_call>{\"name\": \"f\", \"arguments\": \"{\\\"a\\\": 1}\"}</tool_call>", &["!f", "={\"a\": 1}"]),
    (HERMES, Never, "<tool_call>{\"id\": 7, \"name\": \"f\", \"arguments\": {\"a\": {}}, \"x\": [1]}</tool_call>",
        &["!f", "={\"a\": {}}"]),
    (HERMES, Never, "<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": ", &["!f", "={\"a\": "]),
    (HERMES, Never, "<tool_call>{\"nam", &["<tool_call>{\"nam"]),
    (HERMES, Never, "<tool_call>\nf(1)</tool_call>", &["<tool_call>\nf(1)</tool_call>"]),
    (HERMES, Never, "<tool_call>{\"name\": 1}</tool_call>", &["<tool_call>{\"name\": 1}</tool_call>"]),
    (HERMES, Never, "<tool_call>{\"name\": \"f\"<tool_call>{\"name\": \"g\"}</tool_call>", &["!f", "=<tool_call>{\"name\": \"g\"}"]),
    (HERMES, Never, "<tool_call>{\"name\": \"f\", \"arguments\": \"\"}</tool_call>", &["!f", "={}"]),
    (HERMES, Never, "<tool_call>{\"name\": \"f\", \"arguments\": \"Paris\"}</tool_call>", &["!f", "=\"Paris\""]),
    (HERMES, Never, "<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": x}}</tool_call>", &["!f", "={\"a\": x}"]),
    (HERMES, Never, "a <tool_ b", &["a <tool_ b"]),
    (HERMES, Never, "<tool_call>", &["<tool_call>"]),
    (HERMES, Never, "  \n", &["  \n"]),
    (HERMES, Never, "世界 <tool_call>{\"name\": \"f\", \"arguments\": {\"q\": \"世\"}}</tool_call> 🙂", &["世界", "!f", "={\"q\": \"世\"}", "\n🙂"]),
    (HERMES, Possible, "<think>\nhm\n</think>\n\nyes", &["~hm", "yes"]),
    (HERMES, Possible, "<think>\n\n</think>\n\nyes", &["yes"]),
    (HERMES, Possible, "yes <think>no</think>", &["yes <think>no</think>"]),
    (HERMES, Possible, " <thin", &[" <thin"]),
    (HERMES, Possible, "<think>and so on", &["~and so on"]),
    (HERMES, Begun, "\nhm </thin </think>yes", &["~hm </thin", "yes"]),
    (HERMES, Begun, "hm</think>\n<tool_call>{\"name\": \"f\"}</tool_call>", &["~hm", "!f", "={}"]),
    (None, Begun, "hm", &["~hm"]),
    (LLAMA, Never, "{\"name\": \"f\", \"parameters\": {\"a\": 1}}", &["!f", "={\"a\": 1}"]),
    (LLAMA, Never, "<|python_tag|>{\"type\": \"function\", \"name\": \"f\", \"parameters\": {}}", &["!f", "={}"]),
    (LLAMA, Never, " {\"name\": \"f\", \"parameters\": {}}; {\"name\": \"get_weather\", \"arguments\": {}}", &["!f", "={}", "!get_weather", "={}"]),
    (LLAMA, Never, "{\"name\": \"unknown\", \"parameters\": {}}", &["{\"name\": \"unknown\", \"parameters\": {}}"]),
    (LLAMA, Never, "{\"city\": \"Paris\"}", &["{\"city\": \"Paris\"}"]),
    (LLAMA, Never, "No {\"name\": \"f\"}", &["No {\"name\": \"f\"}"]),
    (LLAMA, Never, "<|python_tag|>print(1)", &["<|python_tag|>print(1)"]),
    (MISTRAL, Never, "[TOOL_CALLS][{\"name\": \"f\", \"arguments\": {}}, {\"name\": \"g\", \"arguments\": {\"a\": \"]\"}}]",
        &["!f", "={}", "!g", "={\"a\": \"]\"}"]),
    (MISTRAL, Never, "[TOOL_CALLS]f[ARGS]{\"a\": {\"b\": 1}}[TOOL_CALLS]g{}", &["!f", "={\"a\": {\"b\": 1}}", "!g", "={}"]),
    (MISTRAL, Never, "[TOOL_CALLS]f[CALL_ID]abc[ARGS]{}", &["!f", "={}"]),
    (MISTRAL, Never, "Well [TOOL_CALLS] [ {\"name\": \"f\", \"arguments\": {}} ] so", &["Well", "!f", "={}", "\nso"]),
    (MISTRAL, Never, "[TOOL", &["[TOOL"]),
    (MISTRAL, Never, "Well [TOOL_CALLS]now", &["Well [TOOL_CALLS]now"]),
    (MISTRAL, Never, "Well [TOOL_CALLS] now", &["Well [TOOL_CALLS] now"]),
    (MISTRAL, Never, "[TOOL_CALLS]so I say {\"a\": 1} [TOOL_CALLS]f{}", &["[TOOL_CALLS]so I say {\"a\": 1}", "!f", "={}"]),
    (HERMES, Never, "So\n<tool_call>\n{\"nam", &["So\n<tool_call>\n{\"nam"]),
    (LLAMA, Never, "{\"name\": \"f\", \"parameters\": {}, \"why\": {\"a\": 1}}", &["!f", "={}"]),
    (LIST, Never, "<|tool_call|>[1, 2]", &["<|tool_call|>[1, 2]"]),
    (LIST, Never, "<|tool_call|>[{\"name\": \"f\", \"arguments\": {}}]", &["!f", "={}"]),
    (HARMONY, Possible, "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>final<|message|>yes", &["~hm", "yes"]),
    (HARMONY, Possible, "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>commentary to=functions.f \
        <|constrain|>json<|message|>{\"a\": 1}<|call|>", &["~hm", "!f", "={\"a\": 1}"]),
    (HARMONY, Possible, "<|start|>assistant to=functions.f<|channel|>commentary json<|message|>{}", &["!f", "={}"]),
    (HARMONY, Possible, "plain", &["plain"]),
    (HARMONY, Possible, "<|channel|>analysis<|message|>\n hm \n\n<|end|><|start|>assistant<|channel|>final<|message|> yes\n",
        &["~hm", " yes\n"]),
    (HARMONY, Possible, "<|channel|>analysis<|message|>hm \n", &["~hm"]),
    (HARMONY, Possible, "<|channel|>analysis<|message|> \n<|end|><|start|>assistant<|channel|>analysis<|message|>a\n<|end|>\
        <|start|>assistant<|channel|>analysis<|message|>b<|end|>", &["~a\nb"]),
    (HARMONY, Possible, "<|channel|>commentary to=functions.f<|message|> <|call|>", &["!f", "= {}"]),
    // Without a message.
    (HARMONY, Possible, "<|channel|>final yes<|end|>", &["yes"]),
    (HARMONY, Possible, "<|channel|>final yes", &["yes"]),
    (HARMONY, Possible, "<|channel|>final", &[]),
    (HARMONY, Possible, "<|start|>assistant yes<|end|>", &["yes"]),
    (HARMONY, Possible, "<|channel|>analysis hm \n<|end|><|start|>assistant<|channel|>final<|message|>yes", &["~hm", "yes"]),
    (HARMONY, Possible, "<|channel|>analysis hm<|channel|>final<|message|>yes", &["~hm", "yes"]),
    (HARMONY, Possible, "<|channel|>analysis hm<|start|>assistant<|channel|>final<|message|>yes", &["~hm", "yes"]),
    (HARMONY, Possible, "<|channel|>analysed yes<|return|>", &["analysed yes"]),
    (HARMONY, Possible, "<|channel|>commentary to=functions.f {\"a\": 1}<|call|>", &["to=functions.f {\"a\": 1}"]),
];

/// Answers that nobody sees before they are complete: what is no call after all is text.
#[rustfmt::skip]
const WHOLE: &[Case] = &[
    (HERMES, Never, "So\n<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": 1}}\n</tool_call>", &["So", "!f", "={\"a\": 1}"]),
    (HERMES, Never, "So\n<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": x}}\n</tool_call>.",
        &["So\n<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": x}}\n</tool_call>."]),
    (HERMES, Never, "<tool_call>{\"name\": \"f\"}</tool_call>\n<tool_call>{\"name\": \"f\", \"arguments\": [1,]}</tool_call>",
        &["!f", "={}", "<tool_call>{\"name\": \"f\", \"arguments\": [1,]}</tool_call>"]),
    (HERMES, Never, "<tool_call>{\"name\": \"f\", \"arguments\": {a: 1}}</tool_call>\n<tool_call>{\"name\": \"f\"}</tool_call>",
        &["<tool_call>{\"name\": \"f\", \"arguments\": {a: 1}}</tool_call>", "!f", "={}"]),
    (HERMES, Never, "<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": 1}</tool_call>",
        &["<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": 1}</tool_call>"]),
    (HERMES, Never, "<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": ", &["<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": "]),
    (HERMES, Never, "<tool_call>{\"name\": \"f\"<tool_call>{\"name\": \"g\"}</tool_call>", &["<tool_call>{\"name\": \"f\"", "!g", "={}"]),
    (LLAMA, Never, "{\"name\": \"f\", \"parameters\": {\"a\": x}}; so", &["{\"name\": \"f\", \"parameters\": {\"a\": x}}; so"]),
    (LIST, Never, "<|tool_call|>[{\"name\": \"f\", \"arguments\": {'a': 1}}]", &["<|tool_call|>[{\"name\": \"f\", \"arguments\": {'a': 1}}]"]),
    (MISTRAL, Never, "[TOOL_CALLS]f[ARGS]{\"a\": x}", &["[TOOL_CALLS]f[ARGS]{\"a\": x}"]),
    (MISTRAL, Never, "[TOOL_CALLS]f[ARGS]{\"a\": 1}[TOOL_CALLS]g[ARGS]{}", &["!f", "={\"a\": 1}", "!g", "={}"]),
    (HARMONY, Possible, "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>commentary to=functions.f \
        <|constrain|>json<|message|>{\"a\": 1}<|call|>", &["~hm", "!f", "={\"a\": 1}"]),
    (HARMONY, Possible, "<|channel|>commentary to=functions.f<|message|>{\"a\": x}", &["{\"a\": x}"]),
    (HARMONY, Possible, "<|channel|>commentary to=functions.f<|message|><|call|>", &["!f", "={}"]),
];

#[test]
fn answers_are_taken_apart() {
    for (tools, thoughts, text, expected) in CASES {
        let told = parts(&format(*tools, true), &reading(*thoughts), std::iter::once(*text));
        assert_eq!(short(&told), *expected, "{tools:?} {thoughts:?} {text:?}");
    }
}

#[test]
fn answers_are_taken_apart_as_a_whole() {
    for (tools, thoughts, text, expected) in WHOLE {
        let whole = Reading { whole: true, ..reading(*thoughts) };
        let told = parts(&format(*tools, true), &whole, std::iter::once(*text));
        assert_eq!(short(&told), *expected, "{tools:?} {text:?}");
    }
}

/// Answers that were cut off, whether or not somebody has seen their beginning.
#[rustfmt::skip]
const CUT: &[(Option<ToolParser>, &str, &[&str])] = &[
    (HERMES, "<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": ", &["!f", "={\"a\": "]),
    (HERMES, "<tool_call>{\"name\": \"f\", \"argu", &["!f"]),
    (HERMES, "<tool_call>{\"name\": \"f", &["<tool_call>{\"name\": \"f"]),
    (MISTRAL, "[TOOL_CALLS]f[ARGS]{\"a\"", &["!f", "={\"a\""]),
    (HARMONY, "<|channel|>commentary to=functions.f<|message|>{\"a", &["!f", "={\"a"]),
    (HARMONY, "<|channel|>commentary to=functions.f<|message|>", &["!f"]),
    (HARMONY, "<|channel|>commentary to=functions.f <|constrain|>", &[]),
    (HARMONY, "<|channel|>comm", &[]),
    (HARMONY, "<|channel|>final com", &["com"]),
];

#[test]
fn a_call_that_is_cut_off_is_told_as_far_as_it_came() {
    for (tools, text, expected) in CUT {
        for whole in [false, true] {
            let reading = Reading { whole, ..reading(Never) };
            let mut parser = OutputParser::new(&format(*tools, false), &reading).unwrap();
            let mut told = Vec::new();
            parser.push(text, &mut told);
            parser.finish(true, &mut told);
            assert_eq!(short(&told), *expected, "{whole} {text:?}");
        }
    }
}

/// Answers that had to call, and were cut off.
#[rustfmt::skip]
const FORCED: &[Case] = &[
    (HERMES, Never, "<too", &[]),
    (HERMES, Never, "<tool_call>\n", &[]),
    (HERMES, Never, "<tool_call>\n{\"name\": \"f", &[]),
    (HERMES, Never, "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": ", &["!f", "={\"a\": "]),
    (HERMES, Never, "<tool_call>\n{\"name\": \"f\", \"arguments\": {}}\n</tool", &["!f", "={}"]),
    (HERMES, Never, "<tool_call>\n{\"name\": \"f\", \"arguments\": {}}\n</tool_call>\n<t", &["!f", "={}"]),
    (HERMES, Possible, "<th", &[]),
    (HERMES, Possible, "<think>hm</think>\n<too", &["~hm"]),
    (LLAMA, Never, "{\"na", &[]),
    (MISTRAL, Never, "[TOOL", &[]),
    (MISTRAL, Never, "[TOOL_CALLS]ge", &[]),
    (LIST, Never, "<|tool_call|>[{", &[]),
    (LIST, Never, "<|tool_call|>[{\"name\": \"f\", \"arguments\": {}}, ", &["!f", "={}"]),
    (HARMONY, Possible, "<|channel|>commentary to=func", &[]),
];

#[test]
fn an_answer_that_has_to_call_is_no_text_when_it_is_cut_off() {
    for (tools, thoughts, text, expected) in FORCED {
        for whole in [false, true] {
            let reading = Reading { whole, forced: true, ..reading(*thoughts) };
            let mut parser = OutputParser::new(&format(*tools, true), &reading).unwrap();
            let mut told = Vec::new();
            parser.push(text, &mut told);
            parser.finish(true, &mut told);
            assert_eq!(short(&told), *expected, "{whole} {text:?}");
        }
    }
}

/// What has no message is told while it comes, once it is too long for a header.
#[test]
fn a_header_is_short() {
    let text = format!("<|channel|>final {}", "so ".repeat(400));
    let mut parser = OutputParser::new(&format(HARMONY, false), &reading(Possible)).unwrap();
    let mut told = Vec::new();
    text.split_inclusive(' ').for_each(|piece| parser.push(piece, &mut told));
    assert_eq!(short(&told), ["so ".repeat(400)]);
}

#[test]
fn one_call_at_most() {
    let text = "<tool_call>{\"name\": \"f\"}</tool_call><tool_call>{\"name\": \"g\"}</tool_call>";
    let one = Reading { single: true, ..reading(Never) };
    let mut parser = OutputParser::new(&format(HERMES, false), &one).unwrap();
    let mut told = Vec::new();
    parser.push(text, &mut told);
    assert!(parser.is_over());
    parser.finish(false, &mut told);
    assert_eq!(short(&told), ["!f", "={}"]);
}

#[test]
fn thoughts_are_expected_where_the_prompt_leaves_room() {
    let format = format(None, true);
    for (prompt, continued, expected) in [
        ("<|im_start|>assistant\n", false, Possible),
        ("<|im_start|>assistant\n<think>\n", false, Begun),
        ("<|im_start|>assistant\n<think>\n\n</think>\n\n", false, Never),
        ("assistant\n<think>\nand then", true, Begun),
        ("assistant\n<think>\n</think> so", true, Never),
        ("assistant\nso", true, Never),
    ] {
        assert_eq!(format.thoughts(prompt, continued), expected, "{prompt:?}");
    }
    assert_eq!(OutputFormat::default().thoughts("<think>", false), Never);
}

#[test]
fn nothing_to_tell_apart() {
    assert!(OutputParser::new(&format(HERMES, true), &Reading::default()).is_none());
    assert!(OutputParser::new(&format(None, false), &Reading { thoughts: Possible, ..Reading::default() }).is_none());
}

#[test]
fn forms_name_their_tools() {
    let schema = json!({"type": "object", "properties": {"a": {"type": "integer"}}});
    let tools = [Callable { name: "f", parameters: Some(&schema) }, Callable { name: "g", parameters: None }];
    for parser in [None, HERMES, LLAMA, MISTRAL, LIST, HARMONY] {
        let Form::Grammar(text) = format(parser, true).calls(&tools, true) else { panic!("a grammar") };
        assert!(text.starts_with("start: ") && text.contains("integer"), "{parser:?}: {text}");
    }
}

#[test]
fn arguments_are_objects() {
    for (sent, kept) in [
        (None, json!({"type": "object"})),
        (Some(json!({})), json!({"type": "object"})),
        (Some(json!({"type": ["object", "null"], "a": 1})), json!({"type": "object", "a": 1})),
        (Some(json!({"$ref": "#/$defs/a"})), json!({"$ref": "#/$defs/a", "type": "object"})),
    ] {
        assert_eq!(Callable { name: "f", parameters: sent.as_ref() }.schema(), kept);
    }
}

proptest! {
    /// However an answer is cut, its parts are the same.
    #[test]
    fn pieces_tell_what_the_whole_tells(
        case in 0..CASES.len() + WHOLE.len(),
        cuts in prop::collection::vec(0..200usize, 0..12),
    ) {
        let (tools, thoughts, text, _) = CASES.get(case).copied().unwrap_or_else(|| WHOLE[case - CASES.len()]);
        let reading = Reading { whole: case >= CASES.len(), ..reading(thoughts) };
        let whole = parts(&format(tools, true), &reading, std::iter::once(text));
        prop_assert_eq!(parts(&format(tools, true), &reading, pieces(text, cuts).into_iter()), whole);
    }

    /// Not either where there is more whitespace than is held back.
    #[test]
    fn whitespace_is_told_the_same_however_it_is_cut(
        case in 0..6usize,
        text in "(a|\\PC|<|\\||[ \n\u{3000}]{1,40}){0,8}",
        cuts in prop::collection::vec(0..400usize, 0..12),
    ) {
        let (tools, before, after) = [
            (None, "<think>", "</think>b"),
            (None, "<think>", ""),
            (HERMES, "", "<tool_call>{\"name\": \"f\"}</tool_call>"),
            (HERMES, "", ""),
            (HARMONY, "<|channel|>analysis<|message|>", "<|end|>"),
            (HARMONY, "<|channel|>analysis<|message|>", ""),
        ][case];
        let text = format!("{before}{text}{after}");
        let whole = parts(&format(tools, true), &reading(Possible), std::iter::once(text.as_str()));
        let told = parts(&format(tools, true), &reading(Possible), pieces(&text, cuts).into_iter());
        prop_assert_eq!(told, whole);
    }

    /// Any text is read, and without marks it stays what it is.
    #[test]
    fn any_text_is_read(case in 0..CASES.len(), whole in any::<bool>(), text in "[<>{}\\[\\]a-z\":,| \n]{0,80}") {
        let (tools, thoughts, ..) = CASES[case];
        let reading = Reading { whole, ..reading(thoughts) };
        let told = parts(&format(tools, true), &reading, ["", text.as_str()].into_iter());
        prop_assert!(told.iter().all(|part| !matches!(part, Part::Text(text) | Part::Reasoning(text) if text.is_empty())));
    }
}
