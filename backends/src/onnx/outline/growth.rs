//! Operators whose output is as large as numbers say that a request may bring: a Range up to one of its inputs, an Expand to
//! another. A request of a few bytes may ask for all the memory that there is.
//!
//! Followed is which numbers can be made as large as somebody likes. Shapes cannot, since a request has as much in it as it was
//! let in with; nor can truth values, and what is counted or chosen among what is there.

use super::facts::Given;
use super::node::{DOMAINS, Node};
use super::wire::Message;

/// Free of all that comes from outside: nothing of it has a part in these numbers that could make them large. Of a function
/// each bit stands for one of its inputs; in a model's graph all of them stand for the request.
pub(super) const FREE: u64 = u64::MAX;

const MICROSOFT: &str = "com.microsoft";

/// Free of all but the input of a function at this place. Those from the last bit on share it.
pub(super) fn but(place: usize) -> u64 {
    !(1 << place.min(u64::BITS as usize - 1))
}

/// What is known of a function from its body.
#[derive(Clone, Debug)]
pub(super) struct Call {
    /// What the sizes in it are free of.
    pub(super) sizes: u64,
    /// What its outputs are free of, each.
    pub(super) outputs: Vec<u64>,
}

/// What something within a function is free of, which is free of so many of its inputs, where it is called with these.
pub(super) fn called(free: u64, inputs: Given<'_>) -> u64 {
    let parts = (0..inputs.0.len()).filter(|place| free & !but(*place) == 0);
    parts.fold(FREE, |all, place| all & inputs.free(place))
}

/// What those numbers are free of that decide how large the output of a node is, without a bound.
pub(super) fn sizes(node: &Node<'_>, inputs: Given<'_>) -> Result<u64, String> {
    // The first input that does, and how many do.
    let (first, count) = match (node.operator.0, node.operator.1) {
        ("", "Loop") => return turns(node, inputs),
        ("", "BlackmanWindow" | "ConstantOfShape" | "HammingWindow" | "HannWindow") => (0, 1),
        ("" | MICROSOFT, "Range") | ("", "MelWeightMatrix") => (0, usize::MAX),
        ("", "AffineGrid" | "CenterCropPad" | "DFT" | "Expand" | "OneHot" | "Tile") | ("" | MICROSOFT, "Pad") => (1, 1),
        ("", "Col2Im") => (1, 2),
        ("", "Resize" | "Upsample") => (1, usize::MAX),
        ("", "MaxUnpool") => (2, 1),
        (MICROSOFT, "CropAndResize") => (3, 1),
        (MICROSOFT, "GroupQueryAttention") => (6, 1),
        // The longest text, and how many of them.
        (MICROSOFT, "BeamSearch" | "GreedySearch" | "Sampling" | "WhisperBeamSearch") => (1, 4),
        _ => return Ok(FREE),
    };
    Ok(inputs.all_free(first, count))
}

/// Of a Loop that keeps something of each turn: what the number of its turns is free of.
fn turns(node: &Node<'_>, inputs: Given<'_>) -> Result<u64, String> {
    let counted = count(inputs);
    if counted == FREE {
        return Ok(FREE);
    }
    // Behind the number of turns and the condition, what goes from one turn to the next; the outputs of that come first.
    let carried = node.inputs.len().saturating_sub(2);
    let mut keeps = node.outputs.len() > carried;
    for body in node.graphs()? {
        keeps = keeps || grows(body)?;
    }
    Ok(if keeps { counted } else { FREE })
}

/// What the number of turns of a Loop is free of. Without one, its values decide.
pub(super) fn count(inputs: Given<'_>) -> u64 {
    if inputs.is_there(0) { inputs.free(0) } else { 0 }
}

/// Is there a node that adds to what it is given, or one that is not known? Then a turn may leave more than it found.
fn grows(graph: Message<'_>) -> Result<bool, String> {
    for field in graph.fields() {
        let field = field?;
        if field.number != 1 {
            continue;
        }
        let node = Node::read(field.message()?)?;
        let adds = matches!(
            node.operator.1,
            "Concat"
                | "ConcatFromSequence"
                | "ConvTranspose"
                | "Expand"
                | "Pad"
                | "Resize"
                | "SequenceInsert"
                | "StringConcat"
                | "Tile"
                | "Upsample"
        );
        if adds || !DOMAINS.contains(&node.operator.0) {
            return Ok(true);
        }
        for inner in node.graphs()? {
            if grows(inner)? {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

/// What the numbers of a node's outputs are free of, where it has no graph in it.
pub(super) fn passed(node: &Node<'_>, inputs: Given<'_>) -> u64 {
    if !node.operator.0.is_empty() {
        return inputs.all_free(0, usize::MAX);
    }
    match node.operator.1 {
        // Lengths, places, truth values, and what lies between -1 and 1.
        "And" | "ArgMax" | "ArgMin" | "ConstantOfShape" | "Cos" | "Equal" | "Erf" | "EyeLike" | "Greater"
        | "GreaterOrEqual" | "HardSigmoid" | "Hardmax" | "IsInf" | "IsNaN" | "Less" | "LessOrEqual"
        | "NonMaxSuppression" | "NonZero" | "Not" | "Or" | "SequenceLength" | "Shape" | "Sigmoid" | "Sign" | "Sin"
        | "Size" | "Softmax" | "Softsign" | "Tanh" | "Xor" => FREE,
        // The numbers of the first input, laid out otherwise, or some of them.
        "Compress" | "DepthToSpace" | "Expand" | "Flatten" | "Gather" | "GatherElements" | "GatherND" | "Identity"
        | "Reshape" | "Slice" | "SpaceToDepth" | "Split" | "Squeeze" | "Tile" | "Transpose" | "Trilu" | "Unsqueeze" => {
            inputs.free(0)
        }
        "OneHot" => inputs.free(2),
        "Pad" | "Scatter" | "ScatterElements" | "ScatterND" => inputs.free(0) & inputs.free(2),
        "Where" => inputs.free(1) & inputs.free(2),
        _ => inputs.all_free(0, usize::MAX),
    }
}
