//! A message that is sent when all is done.

use super::{call_id, ending, usage};
use crate::budget::Reserved;
use crate::codec::openai::asking::TEXT;
use crate::codec::openai::{Head, Refusal};
use crate::error;
use crate::llm::gather::Gathered;
use backends::llm::text::output::{Part, append};
use protocol::anthropic::response::{Block, Input, Message};

/// Waits for the answer to a prompt of so many tokens, counts what comes of it, and writes it.
///
/// # Errors
/// It broke off, cannot be written, or the budget has no room for what came.
pub async fn collect(
    mut gathered: Gathered,
    head: &Head,
    prompt: usize,
    reserved: &mut Reserved,
) -> Result<Vec<u8>, Refusal> {
    let (mut parts, mut end, mut counts) = (Vec::new(), None, (0, 0));
    while let Some(news) = gathered.next().await {
        counts = (news.cached, news.generated);
        let piece = news.piece?;
        let more = if piece.token.is_some() { TEXT } else { 0 };
        reserved.add(more).inspect_err(|error| gathered.fail(error))?;
        piece.parts.into_iter().for_each(|part| append(&mut parts, part));
        end = piece.end.or(end);
    }
    let end = end.ok_or_else(error::broke_off)?;
    let called = parts.iter().any(|part| matches!(part, Part::Call(_)));
    let ending = ending(&end, called);
    let message = Message {
        id: &head.id,
        role: "assistant",
        model: &head.model,
        content: blocks(&parts),
        stop_reason: Some(ending.stop_reason),
        stop_sequence: ending.stop_sequence,
        usage: usage(prompt, counts.0, counts.1),
    };
    serde_json::to_vec(&message).map_err(|unwritten| error::unwritten(&unwritten).into())
}

fn blocks(parts: &[Part]) -> Vec<Block<'_>> {
    let mut blocks = Vec::with_capacity(parts.len());
    for part in parts {
        match part {
            Part::Text(text) => blocks.push(Block::Text { text }),
            Part::Reasoning(thinking) => blocks.push(Block::Thinking { thinking, signature: "" }),
            Part::Call(name) => blocks.push(Block::ToolUse { id: call_id(), name, input: Input::Empty }),
            Part::Arguments(text) => {
                if let Some(Block::ToolUse { input, .. }) = blocks.last_mut() {
                    *input = Input::read(text);
                }
            }
        }
    }
    blocks
}

#[cfg(test)]
mod tests {
    use super::*;

    fn input(arguments: Option<&str>) -> String {
        let arguments = arguments.map(|text| Part::Arguments(text.to_owned()));
        let parts: Vec<Part> = std::iter::once(Part::Call("f".to_owned())).chain(arguments).collect();
        match &blocks(&parts)[..] {
            [Block::ToolUse { name: "f", input, .. }] => serde_json::to_string(input).unwrap(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_call_has_the_input_that_could_be_read() {
        assert_eq!(input(Some("{\"a\": 1e400}")), "{\"a\": 1e400}");
        assert_eq!(input(None), "{}");
        assert_eq!(input(Some("{\"a\": ")), "{\"INVALID_JSON\":\"{\\\"a\\\": \"}");
    }
}
