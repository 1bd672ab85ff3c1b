//! Operators that compute across the first dimension, which is that of rows: together rows may give other answers than alone,
//! and made up numbers of a trial need not be those for which they do.

use super::facts::{Fact, Given, attribute, refers};
use super::node::Node;

/// Does the node compute across the first dimension, or all of them, of what may be floats of a request? Of whole numbers
/// that is how lengths and masks are made, which pad.
pub(super) fn is_across_rows(node: &Node<'_>, inputs: Given<'_>) -> Result<bool, String> {
    if !node.operator.0.is_empty() || inputs.fixed(0) || inputs.whole(0) {
        return Ok(false);
    }
    let Some(axes) = axes(node, inputs)?.filter(|axes| axes.is_empty() || axes.contains(&0)) else { return Ok(false) };
    // What an attribute is where a function is called is not known.
    Ok(!refers(node)? && (axes != [0] || !inputs.raised(0)))
}

/// The dimensions that it computes across; an empty list is all of them. `None` where that is not known, or it does not. One
/// that is counted from the last is taken for another than the first.
fn axes(node: &Node<'_>, inputs: Given<'_>) -> Result<Option<Vec<i64>>, String> {
    let axis = |otherwise| attribute(node, "axis").map(|found| found.map_or(otherwise, |found| found.number));
    Ok(match node.operator.1 {
        "ArgMax" | "ArgMin" => Some(vec![axis(0)?]),
        "Hardmax" | "LayerNormalization" | "LogSoftmax" | "LpNormalization" | "RMSNormalization" | "Softmax"
        | "TopK" => Some(vec![axis(-1)?]),
        "CumSum" => inputs.values(1).map(<[i64]>::to_vec),
        "MeanVarianceNormalization" => Some(attribute(node, "axes")?.map_or(vec![0, 2, 3], |found| found.list)),
        op if op.starts_with("Reduce") => {
            let listed = match attribute(node, "axes")? {
                Some(found) => Some(found.list),
                None if inputs.is_there(1) => inputs.values(1).map(<[i64]>::to_vec),
                None => Some(Vec::new()),
            };
            let none = attribute(node, "noop_with_empty_axes")?.is_some_and(|found| found.number != 0);
            listed.filter(|axes| !axes.is_empty() || !none)
        }
        _ => None,
    })
}

/// What is known of the outputs of a node, with what matters here.
pub(super) fn with_kind(node: &Node<'_>, inputs: Given<'_>, fact: Fact) -> Result<Fact, String> {
    if !node.operator.0.is_empty() || refers(node)? {
        return Ok(fact);
    }
    let raised = inputs.all_raised();
    Ok(match node.operator.1 {
        "Add" | "Concat" | "Div" | "Max" | "Min" | "Mod" | "Mul" | "Sub" | "Sum" => {
            Fact { whole: inputs.any_whole(), raised, ..fact }
        }
        "Where" => Fact { whole: inputs.after(1).any_whole(), ..fact },
        "Cast" => {
            let to = attribute(node, "to")?.map_or(0, |found| found.number);
            Fact { whole: is_whole(to), raised, ..fact }
        }
        "Abs" | "Clip" | "Identity" | "Neg" => Fact { whole: inputs.whole(0), raised, ..fact },
        "CumSum" | "Expand" | "Flatten" | "Gather" | "ReduceMax" | "ReduceMin" | "ReduceSum" | "Slice" | "Squeeze"
        | "Tile" | "Transpose" => Fact { whole: inputs.whole(0), ..fact },
        "Exp" | "Log" | "Pow" | "Sigmoid" | "Sqrt" => Fact { raised, ..fact },
        // As several models vote: a dimension before that of rows.
        "Unsqueeze" => {
            let listed = attribute(node, "axes")?.is_some_and(|found| found.list.contains(&0));
            let raised = listed || inputs.values(1).is_some_and(|axes| axes.contains(&0));
            Fact { whole: inputs.whole(0), raised, ..fact }
        }
        "Reshape" => {
            let first = inputs.values(1).and_then(|shape| shape.first());
            Fact { whole: inputs.whole(0), raised: first.is_some_and(|length| *length >= 1), ..fact }
        }
        "ArgMax" | "ArgMin" | "NonZero" | "Shape" | "Size" => Fact { whole: true, ..fact },
        _ => fact,
    })
}

/// Is it a type of whole numbers, or of truth values?
pub(super) fn is_whole(data_type: i64) -> bool {
    matches!(data_type, 2..=7 | 9 | 12 | 13)
}
