//! What a model says, in any format and cut anywhere: it is told in the same parts as when it comes at once, and none of
//! its text is lost where nothing is told apart. The first byte chooses the format, the second where thoughts may stand,
//! the third how long pieces are, and whether calls are told when they are complete.
#![no_main]

use backends::llm::text::output::{Choice, OutputFormat, OutputParser, Part, Reading, ReasoningParser, Thoughts, ToolParser};
use backends::llm::text::{Tokenizer, TokenizerConfig};
use libfuzzer_sys::fuzz_target;
use std::sync::LazyLock;

static TOKENIZER: LazyLock<Tokenizer> = LazyLock::new(|| {
    let json = br#"{"version":"1.0","added_tokens":[],"model":{"type":"BPE","vocab":{"a":0},"merges":[]},
        "decoder":{"type":"ByteLevel","add_prefix_space":false,"trim_offsets":true,"use_regex":true}}"#;
    Tokenizer::from_json(json, &TokenizerConfig::default(), 1 << 20).expect("a tokenizer")
});

const TOOLS: [ToolParser; 5] =
    [ToolParser::Hermes, ToolParser::Llama3Json, ToolParser::Mistral, ToolParser::List, ToolParser::Harmony];

fn parts<'a>(parser: &OutputParser, pieces: impl Iterator<Item = &'a str>) -> Vec<Part> {
    let (mut parser, mut told) = (parser.clone(), Vec::new());
    pieces.for_each(|piece| parser.push(piece, &mut told));
    parser.finish(false, &mut told);
    told
}

fuzz_target!(|bytes: &[u8]| {
    let [format, thoughts, length, text @ ..] = bytes else { return };
    let Ok(text) = std::str::from_utf8(text) else { return };
    let tools = Choice::This(TOOLS[usize::from(*format) % TOOLS.len()]);
    let reasoning = Choice::This(ReasoningParser::Think);
    let format = OutputFormat::new(std::iter::empty(), TOKENIZER.vocabulary(), tools, reasoning);
    let thoughts = [Thoughts::None, Thoughts::Possible, Thoughts::Begun][usize::from(*thoughts) % 3];
    let whole = *length >= 128;
    let reading = Reading { thoughts, tools: Some(["f".to_owned()].into()), single: false, whole, forced: false };
    let Some(parser) = OutputParser::new(&format, &reading) else { return };
    let whole = parts(&parser, std::iter::once(text));
    let (mut pieces, mut start) = (Vec::new(), 0);
    let step = usize::from(*length % 16) + 1;
    for end in (0..=text.len()).filter(|end| text.is_char_boundary(*end)) {
        if end - start >= step {
            pieces.push(&text[start..end]);
            start = end;
        }
    }
    pieces.push(&text[start..]);
    assert_eq!(parts(&parser, pieces.into_iter()), whole);
});
