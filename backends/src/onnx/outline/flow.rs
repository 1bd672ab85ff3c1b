//! What is known of the tensors between nodes before anything runs: which cannot be empty, unless an input is, and which no
//! value of a request has a part in. From that follows whether a request can bring about what ONNX Runtime dies of, and
//! whether it alone says how long it takes.
//!
//! Nodes are followed in the order in which they stand. Of what is not understood nothing is known, which is always right.

use super::facts::{Fact, Given, attribute, constant, pool_keeps, tensor};
use super::operators::{self, DEADLY, FIRST, KEEPS, SAFE, STEADY};
use super::shown;
use super::types::value_info;
use super::walk::{Node, Operator};
use super::wire::Message;
use std::collections::{BTreeMap, BTreeSet};

/// Nodes that are followed; those of loops may be followed twice, and loops within loops more often.
const NODES_MAX: usize = 2_000_000;

/// What a model is found to be.
#[derive(Debug, Default)]
pub(super) struct Found<'a> {
    /// The first operator whose time, or the size of whose outputs, depends on values.
    pub(super) unsteady: Option<&'a str>,
    /// The first operator that is not known to do well with empty tensors.
    pub(super) fragile: Option<&'a str>,
    /// A node that ends the process with an empty tensor, where it may have one though no input of the model is empty.
    pub(super) starved: Option<String>,
}

/// What is being followed.
struct Flow<'a, 'b> {
    /// Those that the file has of its own.
    functions: &'b BTreeMap<Operator<'a>, usize>,
    /// Does one of them hold an operator that ends the process?
    deadly: bool,
    /// Has a function that is being followed one?
    met: bool,
    /// Does an input have any number of dimensions, or none?
    open: bool,
    facts: BTreeMap<&'a str, Fact>,
    /// Of operators that were met.
    traits: BTreeMap<(&'a str, &'a str), u8>,
    nodes: usize,
    found: Found<'a>,
}

/// Follows the nodes of a model: its functions, whose bodies these are, then its graph.
pub(super) fn follow<'a>(
    graph: Message<'a>,
    open: bool,
    bodies: &[Message<'a>],
    functions: &BTreeMap<Operator<'a>, usize>,
) -> Result<Found<'a>, String> {
    let mut flow = Flow {
        functions,
        deadly: false,
        met: false,
        open,
        facts: BTreeMap::new(),
        traits: BTreeMap::new(),
        nodes: 0,
        found: Found::default(),
    };
    // The second time it is known what the functions hold that they call.
    for _ in 0..2 {
        for body in bodies {
            flow.facts.clear();
            flow.function(*body)?;
        }
        flow.deadly = flow.met;
    }
    flow.facts.clear();
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
        self.facts.entry(name).and_modify(|known| *known = known.meet(&fact)).or_insert(fact);
    }

    /// Whoever calls it with what may be empty is told; so its inputs are not.
    fn function(&mut self, body: Message<'a>) -> Result<(), String> {
        for field in body.fields() {
            let field = field?;
            if field.number == 4 {
                self.define(field.text()?, Fact { full: true, ..Fact::default() });
            }
        }
        for field in body.fields() {
            let field = field?;
            if field.number == 7 {
                self.node(&Node::read(field.message()?)?)?;
            }
        }
        Ok(())
    }

    /// What is known of the outputs of a graph. Without facts of its inputs it is the model's, whose inputs are full.
    fn graph(&mut self, graph: Message<'a>, given: Option<&[Fact]>) -> Result<Vec<Fact>, String> {
        let mut inputs = BTreeSet::new();
        for field in graph.fields() {
            let field = field?;
            if field.number == 11 {
                let name = value_info(field.message()?, "input")?.0;
                let fact = match given {
                    Some(facts) => facts.get(inputs.len()).cloned().unwrap_or_default(),
                    None => Fact { full: true, ..Fact::default() },
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
                            self.define(tensor(part.message()?)?.0, Fact { fixed: true, ..Fact::default() });
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
        Ok(outputs.into_iter().map(|name| self.fact(name).unwrap_or_default()).collect())
    }

    fn node(&mut self, node: &Node<'a>) -> Result<(), String> {
        self.nodes += 1;
        let (domain, op, _) = node.operator;
        let inputs: Vec<Option<Fact>> = node.inputs.iter().map(|name| self.fact(name)).collect();
        let inputs = Given(&inputs);
        let own = self.functions.contains_key(&node.operator);
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
        let deadly = if own { self.deadly } else { traits & (DEADLY | FIRST) != 0 && !held };
        self.met |= deadly;
        if deadly && self.found.starved.is_none() {
            let first = usize::from(traits & FIRST != 0);
            let (first, count) = operators::minds(op).unwrap_or((first, usize::MAX));
            let empty =
                node.inputs.iter().skip(first).take(count).find(|name| self.fact(name).is_some_and(|fact| !fact.full));
            self.found.starved = empty.map(|name| format!("{}: its input {}", node.label(), shown(name)));
        }
        let outputs = match (own, op) {
            _ if self.nodes > NODES_MAX => Vec::new(),
            (true, _) => Vec::new(),
            (_, "If") => self.branches(node, inputs)?,
            (_, "Loop" | "Scan") => self.turns(node, inputs)?,
            _ => {
                for graph in node.graphs()? {
                    self.graph(graph, Some(&[]))?;
                }
                vec![self.made(node, inputs, traits)?; node.outputs.len()]
            }
        };
        for (place, name) in node.outputs.iter().enumerate().filter(|(_, name)| !name.is_empty()) {
            self.define(name, outputs.get(place).cloned().unwrap_or_default());
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
        Ok(known.unwrap_or_default().into_iter().map(|fact| Fact { fixed: fixed && fact.fixed, ..fact }).collect())
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
        let mut begins: Vec<Fact> =
            (0..if scan { 0 } else { 2 }).map(|_| Fact { full: true, ..Fact::default() }).collect();
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
        // What is computed of the file alone is what it was in the first run.
        let held = !inputs.0.is_empty() && inputs.held_from(0);
        let full = held || traits & KEEPS != 0 && inputs.all_full();
        let keeps = Fact { full, fixed, held, ..Fact::default() };
        let first = Fact { full: inputs.full(0), counts: inputs.counts(0), fixed, held, values: None };
        // Whose sizes are in this input.
        let sized = |place: usize| Fact { full: first.full && inputs.counts(place), ..first.clone() };
        if !domain.is_empty() {
            return Ok(keeps);
        }
        let fact = match op {
            "Constant" => constant(node)?,
            "Shape" => {
                let part = attribute(node, "start")?.is_some() || attribute(node, "end")?.is_some();
                Fact { full: !self.open && !part, counts: inputs.full(0), fixed: true, held: false, values: None }
            }
            "Size" => Fact { full: true, counts: inputs.full(0), fixed: true, held: false, values: None },
            "ConstantOfShape" => {
                let value = attribute(node, "value")?.and_then(|found| found.tensor);
                let counts = value.is_some_and(|fact| fact.counts);
                Fact { full: inputs.counts(0), counts, fixed, held: false, values: None }
            }
            "Expand" | "Tile" | "TopK" | "OneHot" => {
                let counts = first.counts && matches!(op, "Expand" | "Tile");
                Fact { counts, ..sized(1) }
            }
            "Resize" => Fact { counts: false, ..sized(3) },
            "Reshape" | "Squeeze" | "Unsqueeze" | "Identity" | "Transpose" | "Flatten" => first,
            "Cast" => {
                // To numbers that hold what sizes are.
                let wide = attribute(node, "to")?.is_some_and(|found| matches!(found.number, 1 | 6 | 7 | 11));
                Fact { counts: first.counts && wide, ..first }
            }
            "Gather" => Fact { counts: inputs.counts(0), ..keeps },
            "Slice" => Fact { full: inputs.full(0) && inputs.slice_keeps(), ..first },
            "Split" => {
                let listed = attribute(node, "split")?.is_none_or(|found| found.counts);
                let uneven = attribute(node, "num_outputs")?.is_some();
                let given = if inputs.is_there(1) { inputs.counts(1) } else { listed && !uneven };
                Fact { full: inputs.full(0) && given, ..first }
            }
            "Pad" => {
                let grows = inputs.values(1).is_some_and(|pads| pads.iter().all(|pad| *pad >= 0));
                Fact { full: inputs.full(0) && grows, counts: false, ..first }
            }
            "Range" => {
                let from = inputs.values(0).is_some_and(|from| from.iter().all(|from| *from <= 0));
                let by_one = inputs.values(2) == Some(&[1][..]);
                Fact { full: from && by_one && inputs.counts(1), fixed, ..Fact::default() }
            }
            "AveragePool" | "LpPool" | "MaxPool" => {
                Fact { full: inputs.full(0) && pool_keeps(node)?, fixed, ..Fact::default() }
            }
            "Where" => Fact { counts: inputs.counts(1) && inputs.counts(2), ..keeps },
            "Concat" => {
                let full = (0..node.inputs.len()).any(|place| inputs.full(place));
                Fact { full, counts: inputs.all_counts(), ..keeps }
            }
            "Add" | "Mul" | "Max" | "Min" => Fact { counts: inputs.all_counts(), ..keeps },
            _ => keeps,
        };
        Ok(Fact { full: fact.full || held, ..fact })
    }
}
