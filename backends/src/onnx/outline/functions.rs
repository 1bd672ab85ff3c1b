//! Functions of a file: nodes that other nodes stand for. ONNX Runtime puts the nodes in the place of each call: a file
//! of two kilobytes, in which each function calls the next twice, keeps it busy for hours, and a chain of thousands of
//! calls overflows its stack. Both are counted here, without doing it.

/// Calls within calls.
const DEPTH_MAX: usize = 100;
/// Nodes once all calls are replaced.
const NODES_MAX: usize = 1_000_000;

/// The nodes of a graph or a function.
#[derive(Debug, Default)]
pub(super) struct Body {
    /// How many, with those in graphs of attributes.
    pub(super) nodes: usize,
    /// The bodies that they call.
    pub(super) calls: Vec<usize>,
}

/// A body whose calls are replaced.
#[derive(Clone, Copy)]
struct Grown {
    nodes: usize,
    /// Calls within calls.
    depth: usize,
}

/// Refuses functions that call themselves, or that make up too many nodes.
pub(super) fn check(bodies: &[Body]) -> Result<(), String> {
    let mut known: Vec<Option<Grown>> = vec![None; bodies.len()];
    (0..bodies.len()).try_for_each(|body| grow(bodies, &mut known, body, 0).map(|_| ()))
}

/// Bodies that are called are known before their callers are.
fn grow(bodies: &[Body], known: &mut [Option<Grown>], body: usize, above: usize) -> Result<Grown, String> {
    if let Some(grown) = known[body] {
        return Ok(grown);
    }
    let too_deep = || format!("functions call each other more than {DEPTH_MAX} deep, or in a circle");
    if above > DEPTH_MAX {
        return Err(too_deep());
    }
    let mut grown = Grown { nodes: bodies[body].nodes, depth: 0 };
    for &callee in &bodies[body].calls {
        let inner = grow(bodies, known, callee, above + 1)?;
        grown.nodes = grown.nodes.saturating_add(inner.nodes);
        grown.depth = grown.depth.max(inner.depth + 1);
    }
    if grown.depth > DEPTH_MAX {
        return Err(too_deep());
    }
    if grown.nodes > NODES_MAX && grown.depth > 0 {
        return Err(format!("functions make up more than {NODES_MAX} nodes, once their nodes replace the calls"));
    }
    known[body] = Some(grown);
    Ok(grown)
}
