//! A message that is sent when all is done.

use super::{call_id, ending, usage};
use crate::budget::Reserved;
use crate::codec::openai::asking::TEXT;
use crate::codec::openai::{Head, Refusal};
use crate::error::Error;
use crate::llm::gather::Gathered;
use backends::llm::text::output::{Part, append};
use protocol::anthropic::response::{Block, Message};
use serde_json::{Value, json};

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
        reserved.add(if piece.token.is_some() { TEXT } else { 0 })?;
        piece.parts.into_iter().for_each(|part| append(&mut parts, part));
        end = piece.end.or(end);
    }
    let end = end.ok_or_else(|| Error::Internal("an answer broke off".into()))?;
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
    serde_json::to_vec(&message).map_err(|error| Error::Internal(format!("a reply cannot be written: {error}")).into())
}

fn blocks(parts: &[Part]) -> Vec<Block<'_>> {
    let mut blocks = Vec::with_capacity(parts.len());
    for part in parts {
        match part {
            Part::Text(text) => blocks.push(Block::Text { text }),
            Part::Reasoning(thinking) => blocks.push(Block::Thinking { thinking, signature: "" }),
            Part::Call(name) => blocks.push(Block::ToolUse { id: call_id(), name, input: json!({}) }),
            Part::Arguments(text) => {
                if let Some(Block::ToolUse { input, .. }) = blocks.last_mut() {
                    *input = arguments(text);
                }
            }
        }
    }
    blocks
}

/// Arguments are an object here. What the model wrote otherwise, or did not end, is kept as Anthropic advises.
fn arguments(text: &str) -> Value {
    match serde_json::from_str(text) {
        Ok(object @ Value::Object(_)) => object,
        _ => json!({"INVALID_JSON": text}),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn input(arguments: Option<&str>) -> Value {
        let arguments = arguments.map(|text| Part::Arguments(text.to_owned()));
        let parts: Vec<Part> = std::iter::once(Part::Call("f".to_owned())).chain(arguments).collect();
        match &blocks(&parts)[..] {
            [Block::ToolUse { name: "f", input, .. }] => input.clone(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_call_has_the_input_that_could_be_read() {
        assert_eq!(input(Some("{\"a\": 1}")), json!({"a": 1}));
        assert_eq!(input(None), json!({}));
        assert_eq!(input(Some("{\"a\": ")), json!({"INVALID_JSON": "{\"a\": "}));
    }
}
