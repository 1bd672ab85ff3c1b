//! What is known of the tensors between nodes before anything runs: which cannot be empty, unless an input is, and which no
//! value of a request has a part in. From that follows whether a request can bring about what ONNX Runtime dies of, and
//! whether it alone says how long it takes.
//!
//! Nodes are followed in the order in which they stand. Of what is not understood nothing is known, which is always right.

use super::across;
use super::facts::{DIMENSION, Fact, Given, attribute, bounded, constant, pool_keeps, refers, says_other, tensor};
use super::growth::{self, Call, FREE};
use super::node::{DOMAINS, Node, Operator};
use super::operators::{self, FIRST, KEEPS, SAFE, STEADY};
use super::stated;
use super::types::value_info;
use super::wire::Message;
use super::{is_past, shown};
use std::collections::{BTreeMap, BTreeSet};

/// Nodes that are followed; those of loops may be followed twice, and loops within loops more often.
const NODES_MAX: usize = 2_000_000;
/// Calls of functions by functions that are followed, in whatever order they are listed; beyond it, what one does counts as
/// unknown.
const CALLS_DEEP: usize = 8;

/// The type of truth values.
const BOOL: i64 = 9;

/// What a model is found to be.
#[derive(Debug, Default)]
pub(super) struct Found<'a> {
    /// The first operator whose time, or the size of whose outputs, depends on values.
    pub(super) unsteady: Option<&'a str>,
    /// The first operator that is not known to do well with empty tensors.
    pub(super) fragile: Option<&'a str>,
    /// A node that ends the process with an empty tensor, where it may have one though no input of the model is empty.
    pub(super) starved: Option<String>,
    /// The first node that computes across rows.
    pub(super) across: Option<String>,
    /// The first node whose output is as large as numbers of a request say.
    pub(super) sized: Option<String>,
}

/// What is being followed.
struct Flow<'a, 'b> {
    /// Those that the file has of its own.
    functions: &'b BTreeMap<Operator<'a>, usize>,
    /// Does one of them hold an operator that may end the process?
    deadly: bool,
    /// Has a function that is being followed one?
    met: bool,
    /// May inputs be empty that hold what a decoder remembers?
    past: bool,
    /// Inputs whose values are always those of the file.
    closed: &'b BTreeSet<&'a str>,
    /// What is known of the functions, in their order; `None` before they were followed, and then the worst is assumed.
    calls: Vec<Option<Call>>,
    /// What sizes are free of in the function that is being followed; `None` in the model's graph.
    sizes: Option<u64>,
    facts: BTreeMap<&'a str, Fact>,
    /// Of operators that were met.
    traits: BTreeMap<(&'a str, &'a str), u8>,
    nodes: usize,
    /// Names in the order in which they became known: those of a graph within a node are not known outside it.
    known: Vec<&'a str>,
    found: Found<'a>,
}

/// Follows the nodes of a model: its functions, whose bodies these are, then its graph. No input is empty, but for those
/// that hold what a decoder remembers where `past` says so; no request brings what is `closed`.
pub(super) fn follow<'a>(
    graph: Message<'a>,
    past: bool,
    closed: &BTreeSet<&'a str>,
    bodies: &[Message<'a>],
    functions: &BTreeMap<Operator<'a>, usize>,
) -> Result<Found<'a>, String> {
    let mut flow = Flow {
        functions,
        deadly: false,
        met: false,
        past,
        closed,
        calls: vec![None; bodies.len()],
        sizes: None,
        facts: BTreeMap::new(),
        traits: BTreeMap::new(),
        nodes: 0,
        known: Vec::new(),
        found: Found::default(),
    };
    // Each time it is known one call further what the functions hold that they call.
    for _ in 0..bodies.len().clamp(1, CALLS_DEEP) + 1 {
        for (place, body) in bodies.iter().enumerate() {
            flow.forget(0);
            flow.sizes = Some(FREE);
            let outputs = flow.function(*body)?;
            flow.calls[place] = flow.sizes.take().map(|sizes| Call { sizes, outputs });
        }
        flow.deadly = flow.met;
    }
    flow.forget(0);
    flow.graph(graph, None)?;
    Ok(flow.found)
}

impl<'a> Flow<'a, '_> {
    /// What is known of a tensor; of one without a name, that it is not there.
    fn fact(&self, name: &str) -> Option<Fact> {
        (!name.is_empty()).then(|| self.facts.get(name).cloned().unwrap_or_default())
    }

    /// Of a name that stands for several tensors, only what is so of all is known.
    fn define(&mut self, name: &'a str, fact: Fact) {
        match self.facts.get_mut(name) {
            Some(known) => *known = known.meet(&fact),
            None => {
                self.known.push(name);
                self.facts.insert(name, fact);
            }
        }
    }

    /// Forgets names but for so many, which were known first.
    fn forget(&mut self, all_but: usize) {
        for name in self.known.drain(all_but..) {
            self.facts.remove(name);
        }
    }

    /// What its outputs are free of. Whoever calls it with what may be empty is told; so its inputs are not.
    fn function(&mut self, body: Message<'a>) -> Result<Vec<u64>, String> {
        let (mut inputs, mut outputs) = (0, Vec::new());
        for field in body.fields() {
            let field = field?;
            match field.number {
                4 => {
                    self.define(field.text()?, Fact { full: true, free: growth::but(inputs), ..Fact::default() });
                    inputs += 1;
                }
                5 => outputs.push(field.text()?),
                _ => {}
            }
        }
        for field in body.fields() {
            let field = field?;
            match field.number {
                7 => self.node(&Node::read(field.message()?)?)?,
                // What an attribute is where a call does not say.
                11 => self.graphs(&Node::of(field.message()?))?,
                _ => {}
            }
        }
        Ok(outputs.into_iter().map(|name| self.fact(name).unwrap_or_default().free).collect())
    }

    /// Of graphs in attributes, of whose inputs nothing is known.
    fn graphs(&mut self, node: &Node<'a>) -> Result<(), String> {
        node.graphs()?.into_iter().try_for_each(|graph| self.graph(graph, Some(&[])).map(|_| ()))
    }

    /// What is known of the outputs of a graph. Without facts of its inputs it is the model's, whose inputs are full
    /// unless it states that one is empty.
    fn graph(&mut self, graph: Message<'a>, given: Option<&[Fact]>) -> Result<Vec<Fact>, String> {
        let outside = self.known.len();
        let mut inputs = BTreeSet::new();
        for field in graph.fields() {
            let field = field?;
            if field.number == 11 {
                let info = field.message()?;
                let name = value_info(info, "input")?.0;
                let fact = match given {
                    Some(facts) => facts.get(inputs.len()).cloned().unwrap_or_default(),
                    // Of one that is stated to be empty each request is to bring nothing.
                    None => {
                        let may_be_empty = stated::is_empty(info)? || self.past && is_past(name);
                        let element = stated::element(info)?;
                        let whole = element.is_some_and(across::is_whole);
                        let free = if self.closed.contains(name) || element == Some(BOOL) { FREE } else { 0 };
                        Fact { full: !may_be_empty, whole, free, ..Fact::default() }
                    }
                };
                self.define(name, fact);
                inputs.insert(name);
            }
        }
        for field in graph.fields() {
            let field = field?;
            // Of what a request may bring in its place is known that it is not empty: the input was met above.
            match field.number {
                5 => {
                    let (name, fact) = tensor(field.message()?)?;
                    self.define(name, fact);
                }
                15 => {
                    for part in field.message()?.fields() {
                        let part = part?;
                        if part.number == 1 {
                            let fact = Fact { fixed: true, free: FREE, ..Fact::default() };
                            self.define(tensor(part.message()?)?.0, fact);
                        }
                    }
                }
                _ => {}
            }
        }
        let mut outputs = Vec::new();
        for field in graph.fields() {
            let field = field?;
            match field.number {
                1 => self.node(&Node::read(field.message()?)?)?,
                12 => outputs.push(value_info(field.message()?, "output")?.0),
                _ => {}
            }
        }
        let outputs = outputs.into_iter().map(|name| self.fact(name).unwrap_or_default()).collect();
        self.forget(outside);
        Ok(outputs)
    }

    fn node(&mut self, node: &Node<'a>) -> Result<(), String> {
        self.nodes += 1;
        let (domain, op, _) = node.operator;
        let inputs: Vec<Option<Fact>> = node.inputs.iter().map(|name| self.fact(name)).collect();
        let inputs = Given(&inputs);
        // Where ONNX Runtime has an operator of that name, it does not look at the function.
        let own = self.functions.contains_key(&node.operator) && !DOMAINS.contains(&domain);
        // The same few stand for most nodes.
        let traits = *self.traits.entry((domain, op)).or_insert_with(|| operators::traits(domain, op));
        let held = traits & FIRST != 0 && inputs.held_from(1);
        if !own {
            // A shape or axes that are computed from values.
            let sized = operators::sizes(op).is_some_and(|place| inputs.is_there(place) && !inputs.fixed(place));
            if traits & STEADY == 0 || sized {
                self.found.unsteady = self.found.unsteady.or(Some(op));
            }
            if traits & SAFE == 0 && !held {
                self.found.fragile = self.found.fragile.or(Some(op));
            }
        }
        // Of what is not known, the worst is assumed.
        let deadly = if own { self.deadly } else { traits & SAFE == 0 && !held };
        self.met |= deadly;
        if deadly && self.found.starved.is_none() {
            let first = usize::from(traits & FIRST != 0);
            let (first, count) = operators::minds(op).unwrap_or((first, usize::MAX));
            let empty =
                node.inputs.iter().skip(first).take(count).find(|name| self.fact(name).is_some_and(|fact| !fact.full));
            self.found.starved = empty.map(|name| format!("{}: its input {}", node.label(), shown(name)));
        }
        let call = own.then(|| self.call(node));
        self.weigh(node, inputs, call.as_ref())?;
        let outputs = match (call, op) {
            _ if self.nodes > NODES_MAX => Vec::new(),
            (Some(call), _) => {
                // The function may run them.
                self.graphs(node)?;
                let given = |free| Fact { free: growth::called(free, inputs), ..Fact::default() };
                call.outputs.into_iter().map(given).collect()
            }
            (_, "If") => self.branches(node, inputs)?,
            (_, "Loop" | "Scan") => self.turns(node, inputs)?,
            _ => {
                self.graphs(node)?;
                if self.found.across.is_none() && across::is_across_rows(node, inputs)? {
                    self.found.across = Some(node.label());
                }
                let made = across::with_kind(node, inputs, self.made(node, inputs, traits)?)?;
                vec![Fact { free: growth::passed(node, inputs), ..made }; node.outputs.len()]
            }
        };
        for (place, name) in node.outputs.iter().enumerate().filter(|(_, name)| !name.is_empty()) {
            self.define(name, outputs.get(place).cloned().unwrap_or_default());
        }
        Ok(())
    }

    /// What is known of the function that a node calls; of one that was not followed yet, the worst.
    fn call(&self, node: &Node<'a>) -> Call {
        // The graph is the first body.
        let known = self.functions.get(&node.operator).and_then(|body| self.calls.get(body.checked_sub(1)?));
        let worst = || Call { sizes: 0, outputs: vec![0; node.outputs.len()] };
        known.cloned().flatten().unwrap_or_else(worst)
    }

    /// Notes whose numbers decide how large the outputs of a node are.
    fn weigh(&mut self, node: &Node<'a>, inputs: Given<'_>, call: Option<&Call>) -> Result<(), String> {
        let free = match call {
            Some(call) => growth::called(call.sizes, inputs),
            None => growth::sizes(node, inputs)?,
        };
        match &mut self.sizes {
            Some(sizes) => *sizes &= free,
            None if free != FREE && self.found.sized.is_none() => self.found.sized = Some(node.label()),
            None => {}
        }
        Ok(())
    }

    /// Of either branch: what is so of both.
    fn branches(&mut self, node: &Node<'a>, inputs: Given<'_>) -> Result<Vec<Fact>, String> {
        let mut known: Option<Vec<Fact>> = None;
        for graph in node.graphs()? {
            let outputs = self.graph(graph, Some(&[]))?;
            known = Some(match known {
                Some(known) => known.iter().zip(&outputs).map(|(a, b)| a.meet(b)).collect(),
                None => outputs,
            });
        }
        let fixed = inputs.fixed(0);
        let either = |fact: Fact| Fact { fixed: fixed && fact.fixed, held: false, ..fact };
        Ok(known.unwrap_or_default().into_iter().map(either).collect())
    }

    /// Of a Loop or a Scan: what goes from turn to turn is full if it begins so and stays so.
    fn turns(&mut self, node: &Node<'a>, inputs: Given<'_>) -> Result<Vec<Fact>, String> {
        let graphs = node.graphs()?;
        let &[body] = graphs.as_slice() else {
            return graphs
                .into_iter()
                .try_for_each(|graph| self.graph(graph, Some(&[])).map(|_| ()))
                .map(|()| Vec::new());
        };
        let scan = node.operator.1 == "Scan";
        let scanned = attribute(node, "num_scan_inputs")?.and_then(|found| usize::try_from(found.number).ok());
        // A Loop has the number of turns and a condition first, its body a number and a condition.
        let (skip, first) = if scan { (0, 0) } else { (2, 1) };
        let carried = node.inputs.len().saturating_sub(skip + if scan { scanned.unwrap_or(usize::MAX) } else { 0 });
        let full = |place: usize| Fact { full: inputs.full(place), ..Fact::default() };
        let scalar = |free| Fact { full: true, free, ..Fact::default() };
        let mut begins = if scan { Vec::new() } else { vec![scalar(growth::count(inputs)), scalar(FREE)] };
        begins.extend((skip..node.inputs.len()).map(full));
        let mut ends = self.graph(body, Some(&begins))?;
        let states = |facts: &[Fact], from: usize| {
            (from..from + carried).map(|at| facts.get(at).is_some_and(|f| f.full)).collect::<Vec<_>>()
        };
        let (before, after) = (states(&begins, skip), states(&ends, first));
        if before.iter().zip(&after).any(|(before, after)| *before && !after) {
            // Nothing is known of them then.
            begins.iter_mut().skip(skip).take(carried).for_each(|fact| *fact = Fact::default());
            ends = self.graph(body, Some(&begins))?;
        }
        // Of a Loop, what is gathered may be of no turn; a Scan has a turn for each part of what it is given.
        let all = (0..node.inputs.len()).all(|place| inputs.full(place));
        let outputs = ends.iter().skip(first).enumerate().map(|(at, end)| {
            let full = if at < carried {
                end.full && begins.get(skip + at).is_some_and(|fact| fact.full)
            } else {
                scan && scanned.is_some() && all && end.full
            };
            Fact { full, ..Fact::default() }
        });
        Ok(outputs.collect())
    }

    /// What is known of the outputs of another node.
    fn made(&self, node: &Node<'a>, inputs: Given<'_>, traits: u8) -> Result<Fact, String> {
        let (domain, op, _) = node.operator;
        let fixed = traits & STEADY != 0 && inputs.all_fixed();
        // What is not said here, whoever calls says.
        if refers(node)? {
            return Ok(Fact { fixed, ..Fact::default() });
        }
        let keeps = traits & KEEPS != 0;
        let held = keeps && !inputs.0.is_empty() && inputs.held_from(0);
        let keeps = Fact { full: keeps && inputs.all_full(), short: inputs.short(), fixed, held, ..Fact::default() };
        let first = Fact { full: inputs.full(0), counts: inputs.counts(0), ..keeps.clone() };
        // Whose sizes are in this input.
        let sized = |place: usize| Fact { full: first.full && inputs.counts(place) > 0, ..first.clone() };
        if !domain.is_empty() {
            return Ok(keeps);
        }
        Ok(match op {
            "Constant" => constant(node)?,
            "Shape" | "Size" | "ConstantOfShape" | "Range" | "Cast" => sizes(node, inputs, first)?,
            "Expand" | "Tile" => sized(1),
            "TopK" | "OneHot" => Fact { counts: 0, ..sized(1) },
            "Resize" => {
                let stretched = !says_other(node, "keep_aspect_ratio_policy", &["stretch"])?;
                let sized = sized(3);
                Fact { full: sized.full && stretched, counts: 0, ..sized }
            }
            "Reshape" | "Squeeze" | "Unsqueeze" | "Transpose" | "Flatten" => first,
            "Identity" => Fact { vector: inputs.vector(0), ..first },
            // An index is refused where there is nothing to take.
            "Gather" => {
                let full = inputs.full(1) && (inputs.full(0) || inputs.vector(0));
                Fact { full, counts: inputs.counts(0), ..keeps }
            }
            "Slice" => {
                let full = first.full && inputs.slice_keeps();
                Fact { full, vector: inputs.vector(0), ..first }
            }
            "Split" => {
                let listed = attribute(node, "split")?.is_none_or(|found| found.counts);
                let uneven = attribute(node, "num_outputs")?.is_some();
                let given = if inputs.is_there(1) { inputs.counts(1) > 0 } else { listed && !uneven };
                Fact { full: first.full && given, ..first }
            }
            "Pad" => {
                let grows = inputs.values(1).is_some_and(|pads| pads.iter().all(|pad| *pad >= 0));
                Fact { full: first.full && grows, counts: 0, ..first }
            }
            "AveragePool" | "LpPool" | "MaxPool" => {
                Fact { full: first.full && pool_keeps(node)?, fixed, ..Fact::default() }
            }
            "Where" => Fact { counts: inputs.after(1).all_count(), ..keeps },
            "Concat" => {
                let mut places = 0..node.inputs.len();
                let full = places.clone().any(|place| inputs.full(place));
                // All have as many dimensions.
                Fact { full, vector: places.any(|place| inputs.vector(place)), counts: inputs.all_count(), ..keeps }
            }
            "Max" | "Min" => Fact { counts: inputs.all_count(), ..keeps },
            "Add" => Fact { counts: inputs.sum_counts(), ..keeps },
            "Mul" => Fact { counts: inputs.product_counts(), ..keeps },
            _ => keeps,
        })
    }
}

/// What is known of what makes sizes, and numbers of sizes; `first` is what the first input passes on.
fn sizes(node: &Node<'_>, inputs: Given<'_>, first: Fact) -> Result<Fact, String> {
    let fixed = first.fixed;
    Ok(match node.operator.1 {
        "Shape" => {
            let counts = if inputs.full(0) { DIMENSION } else { 0 };
            // Of a tensor without dimensions it is empty.
            Fact { counts, vector: true, fixed: true, ..Fact::default() }
        }
        "Size" => {
            let counts = if inputs.full(0) { DIMENSION + DIMENSION } else { 0 };
            Fact { full: true, counts, fixed: true, ..Fact::default() }
        }
        "ConstantOfShape" => {
            let value = attribute(node, "value")?.and_then(|found| found.tensor);
            let counts = value.map_or(0, |fact| fact.counts);
            Fact { full: inputs.counts(0) > 0, counts, fixed, ..Fact::default() }
        }
        "Cast" => {
            // To numbers that hold what sizes are; floats round up to the next power of two at most.
            let to = attribute(node, "to")?.map(|found| found.number);
            let short = to == Some(6);
            let counts = match (to, first.counts) {
                (Some(1 | 11), 1..) => bounded(first.counts + 1, false),
                (Some(6 | 7), _) => bounded(first.counts, short),
                _ => 0,
            };
            Fact { counts, short, vector: inputs.vector(0), ..first }
        }
        _ => {
            let from = inputs.values(0).is_some_and(|from| from.iter().all(|from| *from <= 0));
            let by_one = inputs.values(2) == Some(&[1][..]);
            Fact { full: from && by_one && inputs.counts(1) > 0, fixed, ..Fact::default() }
        }
    })
}
