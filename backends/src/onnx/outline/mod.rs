//! What an `.onnx` file says of itself, read by ourselves before ONNX Runtime sees it. Knows the format and the file
//! system; knows nothing of the library, and keeps no weights.
//!
//! ```text
//! model    ir_version, opsets, graph, functions (nodes that others call), training graphs
//! graph    nodes, inputs, outputs, initializers (tensors; dense or sparse)
//! node     operator, attributes: numbers, texts, tensors, and graphs in turn (the branches of If, the body of Loop)
//! tensor   dimensions, type, and its values: listed, as raw bytes, or outside in a file
//! ```
//!
//! Everything that may hold a tensor is walked, since any tensor may name a file. What the library would take for
//! something else than is seen here is refused, not guessed: a message that stands twice, which protobuf joins; a wire
//! type that the field does not have, which protobuf passes over.

mod across;
mod facts;
mod files;
mod flow;
mod functions;
mod growth;
mod node;
mod operators;
mod stated;
mod tensor;
mod types;
mod walk;
mod wire;

pub(super) use files::{Files, check_external, read_external};
pub(super) use stated::{Dimension, conceal};

use std::collections::{BTreeMap, BTreeSet};
use wire::Message;

/// What a file says of itself, without its weights.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Outline {
    /// The version of the format.
    pub(super) ir_version: i64,
    /// Inputs of the graph, in order; up to version 3 of the format, initializers among them.
    pub(super) inputs: Vec<String>,
    /// Inputs that are tensors of a shape which is not stated; a scalar's is.
    pub(super) unshaped: BTreeSet<String>,
    /// Outputs of the graph, in order.
    pub(super) outputs: Vec<String>,
    /// Shapes that are stated of outputs: of tensors, or of those in a sequence.
    pub(super) shapes: BTreeMap<String, Vec<Dimension>>,
    /// Where the file states shapes of what is computed, which ONNX Runtime would believe ([`conceal`]).
    pub(super) stated: Vec<usize>,
    /// Tensors of the graph that have values: an input of the same name may be left out.
    pub(super) initializers: BTreeSet<String>,
    /// Tensors whose values lie outside the file, wherever in it they are named.
    pub(super) external: Vec<External>,
    /// Names of classes in order, by the name of the graph output that a ZipMap node makes.
    pub(super) classes: BTreeMap<String, Vec<String>>,
    /// Nodes of the graph, of the graphs in its attributes, and of functions.
    pub(super) nodes: usize,
    /// An operator whose time, or the size of whose outputs, depends on values; where there is none, rows take alike.
    pub(super) unsteady: Option<String>,
    /// An operator that is not known to do well with empty tensors; where there is none, inputs may be empty.
    pub(super) fragile: Option<String>,
    /// What there is to say of inputs that hold what a decoder remembers.
    pub(super) past: Past,
    /// A node, and an input of it that may be empty though none of a request is, of which ONNX Runtime would end the process.
    pub(super) starved: Option<String>,
    /// A node that computes across rows, be it for some numbers only: those of one request have a part in another's answer.
    pub(super) across: Option<String>,
    /// A node whose output is as large as numbers of a request say, without a bound.
    pub(super) sized: Option<String>,
}

impl Outline {
    /// Why the process that computes it may end, each in a sentence for whoever runs the server; decoders without a past are
    /// told by [`Past`].
    pub(super) fn risks(&self) -> Vec<String> {
        const TRUST: &str = "without a process of its own, whoever may send such requests must be trusted not to";
        let starved = self.starved.as_ref().map(|node| {
            format!(
                "{node} may be empty though the inputs of a request are not, as far as can be seen, and ONNX Runtime ends \
                 the process then: {TRUST}"
            )
        });
        let sized = self.sized.as_ref().map(|node| {
            format!(
                "numbers of a request decide how large the output of {node} is, as far as can be seen, and the system may \
                 end a process that asks for more memory than there is: {TRUST}"
            )
        });
        let mapped = files::mapped(self).map(|external| {
            format!(
                "tensor {} lies in the file {}, which ONNX Runtime reads as it computes: without a process of its own, \
                 whoever overwrites that file ends the server; put another in its place, and load the model again",
                shown(&external.tensor),
                shown(&external.location)
            )
        });
        [starved, sized, mapped].into_iter().flatten().collect()
    }
}

/// What may happen where inputs are empty that hold what a decoder remembers of earlier steps ([`is_past`]), and no others
/// are: at the first step there is nothing to remember.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Past {
    /// There are no such inputs.
    #[default]
    None,
    /// Nothing: no node that minds has an empty tensor then.
    Fits,
    /// It may end the process.
    Starves,
}

/// A tensor whose values lie in another file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct External {
    /// Its name, or the node that it belongs to.
    pub(super) tensor: String,
    /// The file: a plain path beneath the folder of the `.onnx` file.
    pub(super) location: String,
    /// Where in the file its bytes begin.
    pub(super) offset: u64,
    /// How many there are, where that is stated: then as many as are needed.
    pub(super) length: Option<u64>,
    /// What its shape and type need.
    pub(super) bytes: u64,
    /// Is it none of the tensors of the model's graph, but in a graph within a node, in a function, or a part of a sparse
    /// tensor? ONNX Runtime takes no bytes for the files of those: it maps them, as it does with all that it is given none for.
    pub(super) mapped: bool,
}

/// Bytes that protobuf can count; its library is asked for no more.
const BYTES_MAX: usize = i32::MAX as usize;

/// Initializers that may be given as inputs, at most: a file with more of them lists its weights, not its inputs.
pub(super) const OPTIONAL_MAX: usize = 32;

/// Reads a file: all of it but weights.
///
/// # Errors
/// What is wrong, where (graph, node, tensor, byte), and what would be right.
pub(super) fn read(data: &[u8]) -> Result<Outline, String> {
    if data.len() > BYTES_MAX {
        return Err(format!(
            "{} bytes; an ONNX file has at most {BYTES_MAX}: save the model with its weights as external data",
            data.len()
        ));
    }
    // ONNX Runtime tells its own format by these bytes, and would read something else than was checked.
    if data.get(4..8) == Some(b"ORTM") {
        return Err("is in ONNX Runtime's own format (.ort): serve the .onnx file that it was made from".into());
    }
    walk::model(Message::file(data))
}

/// Files that an `.onnx` file keeps its weights in: plain paths beneath its folder, each once.
///
/// # Errors
/// The file is refused, as it is when it is loaded.
pub fn external_files(data: &[u8]) -> Result<BTreeSet<String>, String> {
    Ok(read(data)?.external.into_iter().map(|external| external.location).collect())
}

/// Does an input of this name hold keys and values of earlier steps? So exporters of decoders call them:
/// `past_key_values.0.key`, `past_0`.
pub(super) fn is_past(input: &str) -> bool {
    input.starts_with("past")
}

/// Is this the beginning of an ONNX file? The version of the format stands first, as every library writes it, and the
/// graph begins within what is given.
pub(crate) fn looks_like(head: &[u8]) -> bool {
    if !matches!(head, [0x08, 1..=0x7f, ..]) {
        return false;
    }
    let mut fields = Message::file(head).fields();
    while let Ok((number, kind)) = fields.key() {
        let Ok(value) = fields.varint() else { return false };
        match (number, kind) {
            (1 | 5, 0) => {}
            (7, 2) => return value > 0 && matches!(fields.key(), Ok((1 | 2 | 5 | 10..=13 | 15 | 16, 2))),
            (2..=4 | 6 | 8 | 14 | 20 | 25 | 26, 2) => {
                if fields.bytes(value).is_none() {
                    return false;
                }
            }
            _ => return false,
        }
    }
    false
}

/// A name out of the file in a message: quoted, without control characters, and not without end.
fn shown(name: &str) -> String {
    const CHARACTERS: usize = 80;
    let rest = if name.chars().nth(CHARACTERS).is_some() { "…" } else { "" };
    let beginning: String = name.chars().take(CHARACTERS).collect();
    format!("'{}{rest}'", beginning.escape_debug())
}

#[cfg(test)]
mod flow_tests;
#[cfg(test)]
mod parts;
#[cfg(test)]
mod tests;
