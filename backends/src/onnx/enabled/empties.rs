//! Which calls may end the process, by which of their inputs are without elements.

use crate::onnx::outline::{Outline, Past, is_past};
use crate::{Call, Signature, Tensor};
use std::collections::BTreeMap;

/// What is known of a graph's inputs without elements.
#[derive(Default)]
pub(super) struct Empties {
    /// Why no input may be empty; `None` where each may.
    full: Option<String>,
    /// May those be empty all the same that hold what a decoder remembers?
    past: bool,
    /// Names of dimensions, of each input.
    symbols: Vec<Vec<String>>,
}

impl Empties {
    /// Of this graph.
    pub(super) fn of(outline: &Outline, on_cpu: bool, symbols: &[Vec<String>]) -> Self {
        let why = match &outline.fragile {
            Some(operator) => Some(format!("ONNX Runtime's {operator}, which is in it, is not known to take them")),
            None if on_cpu => None,
            None => Some("what its device makes of them is not known".to_owned()),
        };
        let besides = "in a process of its own it would be asked (isolation)";
        let full = why.map(|why| format!("this model takes no input without elements, since {why}; {besides}"));
        Empties { full, past: outline.past == Past::Fits && on_cpu, symbols: symbols.to_vec() }
    }

    /// Are inputs without elements such as do no harm? ONNX Runtime joins nodes into one, and does without a look at
    /// lengths that the graph calls by one name: where one of them is 0 and another is not, that may end the process.
    /// `shape` is in which shape the graph takes a tensor for a port.
    ///
    /// # Errors
    /// Which input is not, and why.
    pub(super) fn check(
        &self,
        signature: &Signature,
        call: &Call<'_>,
        shape: impl Fn(&Tensor, &str) -> Result<Vec<usize>, String>,
    ) -> Result<(), String> {
        let mut empty = call.inputs.iter().filter(|tensor| tensor.is_empty()).peekable();
        if empty.peek().is_none() {
            return Ok(());
        }
        if let Some(why) = &self.full
            && let Some(empty) = empty.find(|tensor| !self.past || !is_past(tensor.name()))
        {
            let (name, shape) = (empty.name(), empty.shape());
            return Err(format!("input '{name}' is empty, of shape {shape:?}: {why}"));
        }
        let mut seen: BTreeMap<&str, bool> = BTreeMap::new();
        for (port, names) in signature.inputs.iter().zip(&self.symbols) {
            for tensor in call.inputs.iter().filter(|tensor| tensor.name() == port.name) {
                let taken = shape(tensor, &port.name).map_err(|reason| format!("input '{}': {reason}", port.name))?;
                for (name, length) in names.iter().zip(taken).filter(|(name, _)| !name.is_empty()) {
                    if seen.insert(name, length == 0).is_some_and(|none| none != (length == 0)) {
                        return Err(format!(
                            "the dimension '{name}' is 0 in one place of the inputs and not in another"
                        ));
                    }
                }
            }
        }
        Ok(())
    }
}
