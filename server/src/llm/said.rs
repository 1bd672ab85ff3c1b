//! What an answer says, put together from its pieces.

use backends::llm::text::output::Part;

/// An answer so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Said {
    /// To whoever asked.
    pub text: String,
    /// To itself, before.
    pub reasoning: String,
    /// What it calls.
    pub calls: Vec<Called>,
}

/// A call of a function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Called {
    /// The function.
    pub name: String,
    /// JSON, as the model wrote it.
    pub arguments: String,
}

impl Said {
    /// Adds a piece.
    pub fn add(&mut self, part: Part) {
        match part {
            Part::Text(text) => self.text.push_str(&text),
            Part::Reasoning(text) => self.reasoning.push_str(&text),
            Part::Call(name) => self.calls.push(Called { name, arguments: String::new() }),
            Part::Arguments(json) => {
                if let Some(call) = self.calls.last_mut() {
                    call.arguments.push_str(&json);
                }
            }
        }
    }
}
