//! The walk through a model: graphs, nodes, attributes, functions. Finds every tensor, knows the operators that
//! need no library, and names the place of what is wrong.

use super::flow;
use super::functions::{self, Body};
use super::node::{DOMAINS, Node, Operator, short};
use super::stated::{self, Dimension, Hidden, Places};
use super::tensor::{self, Tensor};
use super::types::{types, value_info};
use super::wire::{Field, Message, once, twice};
use super::{External, OPTIONAL_MAX, Outline, Past, is_past, shown};
use std::collections::{BTreeMap, BTreeSet};

/// Graphs within graphs.
const GRAPHS_DEEP: usize = 16;
/// Tensors outside the file.
const EXTERNAL_MAX: usize = 100_000;

/// Parts of a model.
#[derive(Default)]
struct Model<'a> {
    ir_version: i64,
    opsets: Vec<Message<'a>>,
    graph: Option<Message<'a>>,
    functions: Vec<Message<'a>>,
    training: Vec<Message<'a>>,
}

impl<'a> Model<'a> {
    fn read(message: Message<'a>) -> Result<Self, String> {
        let mut model = Model::default();
        for field in message.fields() {
            let field = field?;
            match field.number {
                1 => model.ir_version = field.whole()?,
                7 => once(&mut model.graph, &field)?,
                8 => model.opsets.push(field.message()?),
                20 => model.training.push(field.message()?),
                25 => model.functions.push(field.message()?),
                _ => {}
            }
        }
        Ok(model)
    }
}

/// Reads a model.
pub(super) fn model(message: Message<'_>) -> Result<Outline, String> {
    let model = Model::read(message)?;
    let graph = model.graph.ok_or("has no graph: it is cut off, or no ONNX model")?;
    if model.ir_version < 1 {
        return Err(format!("ir_version is {}; expected the version of the format, 1 or more", model.ir_version));
    }
    if model.opsets.is_empty() {
        return Err(
            "has no opset_import: expected is the version of each set of operators that its nodes are of".into()
        );
    }
    model.opsets.iter().try_for_each(|set| opset(*set))?;
    let mut walk = Walk::default();
    for (index, function) in model.functions.iter().enumerate() {
        let operator = operator(*function)?;
        // The graph is the first body.
        if walk.functions.insert(operator, index + 1).is_some() {
            return Err(format!("function {} stands twice", shown(operator.1)));
        }
    }
    let whole = graph;
    let graph = walk.graph(whole, Place::default())?;
    let mut bodies = vec![std::mem::take(&mut walk.body)];
    let outside = walk.external.len();
    for function in &model.functions {
        walk.function(*function)?;
        bodies.push(std::mem::take(&mut walk.body));
    }
    functions::check(&bodies)?;
    walk.check_divisions(&graph)?;
    for training in &model.training {
        walk.training(*training)?;
    }
    walk.external[outside..].iter_mut().for_each(|external| external.mapped = true);
    let closed = closed(&graph, model.ir_version);
    let follow = |past| flow::follow(whole, past, &closed, &model.functions, &walk.functions);
    let found = follow(false)?;
    let past = match graph.inputs.iter().any(|name| is_past(name)) {
        false => Past::None,
        true if found.fragile.is_none() || follow(true)?.starved.is_none() => Past::Fits,
        true => Past::Starves,
    };
    Ok(Outline {
        ir_version: model.ir_version,
        inputs: graph.inputs.into_iter().map(str::to_owned).collect(),
        unshaped: graph.unshaped.into_iter().map(str::to_owned).collect(),
        initializers: graph.initializers.into_iter().map(str::to_owned).collect(),
        classes: classes(graph.classes, &graph.outputs),
        outputs: graph.outputs.into_iter().map(str::to_owned).collect(),
        shapes: graph.shapes.into_iter().map(|(name, shape)| (name.to_owned(), shape)).collect(),
        stated: walk.stated,
        external: walk.external,
        nodes: bodies.iter().map(|body| body.nodes).sum(),
        unsteady: found.unsteady.map(str::to_owned),
        fragile: found.fragile.map(str::to_owned),
        past,
        starved: found.starved,
        across: found.across,
        sized: found.sized,
    })
}

/// Inputs that no request brings, as they have their values in the file: until version 4 of the format each was listed, and
/// of many none is offered.
fn closed<'a>(graph: &Graph<'a>, ir_version: i64) -> BTreeSet<&'a str> {
    let inputs = graph.inputs.iter().copied();
    let listed: BTreeSet<&str> = inputs.filter(|name| graph.initializers.contains(name)).collect();
    if ir_version < 4 || listed.len() > OPTIONAL_MAX { listed } else { BTreeSet::new() }
}

/// Those that are of outputs of the graph.
fn classes(found: Vec<(&str, Vec<String>)>, outputs: &[&str]) -> BTreeMap<String, Vec<String>> {
    let outputs: BTreeSet<&str> = outputs.iter().copied().collect();
    let found = found.into_iter().filter(|(output, _)| outputs.contains(output));
    found.map(|(output, names)| (output.to_owned(), names)).collect()
}

/// Any domain may be imported: exporters leave the names of those that no node is of any more.
fn opset(message: Message<'_>) -> Result<(), String> {
    let (mut domain, mut version) = ("", 0);
    for field in message.fields() {
        let field = field?;
        match field.number {
            1 => domain = field.text()?,
            2 => version = field.whole()?,
            _ => {}
        }
    }
    if version < 1 {
        return Err(format!("opset_import of domain {} has the version {version}; expected 1 or more", shown(domain)));
    }
    Ok(())
}

/// What nodes call a function by.
fn operator(message: Message<'_>) -> Result<Operator<'_>, String> {
    let (mut domain, mut name, mut overload) = ("", "", "");
    for field in message.fields() {
        let field = field?;
        match field.number {
            1 => name = field.text()?,
            10 => domain = field.text()?,
            13 => overload = field.text()?,
            _ => {}
        }
    }
    Ok((short(domain), name, overload))
}

/// What a graph says of itself.
#[derive(Default)]
struct Graph<'a> {
    inputs: Vec<&'a str>,
    unshaped: Vec<&'a str>,
    outputs: Vec<&'a str>,
    /// Of outputs, where they are stated.
    shapes: Vec<(&'a str, Vec<Dimension>)>,
    initializers: BTreeSet<&'a str>,
    /// Of the outputs of ZipMap nodes.
    classes: Vec<(&'a str, Vec<String>)>,
}

/// The input of STFT that ONNX Runtime divides by: 0 ends the process.
const FRAME_LENGTH: usize = 3;

/// A graph in what a function's attribute is where a call does not say.
const BODY: Place = Place { depth: 1, hidden: Hidden::Whole };

/// Where a graph stands.
#[derive(Clone, Copy, Debug, Default)]
struct Place {
    /// In how many others.
    depth: usize,
    /// What is hidden of the shapes that it states of its own inputs and outputs.
    hidden: Hidden,
}

#[derive(Default)]
struct Walk<'a> {
    /// The body of each.
    functions: BTreeMap<Operator<'a>, usize>,
    external: Vec<External>,
    /// Where shapes are stated of what is computed.
    stated: Places,
    /// Outputs of Constant nodes, wherever they are.
    constants: BTreeSet<&'a str>,
    /// Nodes that divide by an input without a look at it, and that input.
    divisions: Vec<(String, &'a str)>,
    /// Of the graph or function that is being walked.
    body: Body,
}

impl<'a> Walk<'a> {
    /// What is divided by without a look must be in the file, where a first run finds out what it does; no request may
    /// bring it.
    fn check_divisions(&self, graph: &Graph<'a>) -> Result<(), String> {
        let given = |name: &str| graph.inputs.contains(&name);
        let fixed = |name: &str| self.constants.contains(name) || graph.initializers.contains(name) && !given(name);
        match self.divisions.iter().find(|(_, name)| !fixed(name)) {
            Some((node, name)) => Err(format!(
                "{node}: its frame_length, {}, is computed or given; ONNX Runtime divides by it without a look, and a 0 \
                 would end the server: export the model with a constant",
                shown(name)
            )),
            None => Ok(()),
        }
    }

    fn graph(&mut self, message: Message<'a>, place: Place) -> Result<Graph<'a>, String> {
        let mut name = "";
        for field in message.fields() {
            let field = field?;
            if field.number == 2 {
                name = field.text()?;
            }
        }
        let within = |e: String| format!("graph {}: {e}", shown(name));
        if place.depth > GRAPHS_DEEP {
            return Err(within(format!("is nested more than {GRAPHS_DEEP} deep")));
        }
        let mut graph = Graph::default();
        for field in message.fields() {
            self.part(&field?, place, &mut graph).map_err(within)?;
        }
        Ok(graph)
    }

    /// A field of a graph.
    fn part(&mut self, field: &Field<'a>, place: Place, graph: &mut Graph<'a>) -> Result<(), String> {
        let Place { depth, hidden } = place;
        match field.number {
            1 => {
                let node = Node::read(field.message()?)?;
                self.node(&node, depth)?;
                // Only outputs of the model are asked for their classes.
                if depth == 0 {
                    graph.classes.extend(node.classes()?);
                }
            }
            5 => {
                graph.initializers.insert(self.tensor(field.message()?, "initializer")?);
            }
            11 => {
                let message = field.message()?;
                let (name, shaped) = port(message, "input", depth)?;
                if depth > 0 {
                    stated::hide(message, hidden, &mut self.stated)?;
                }
                graph.inputs.push(name);
                graph.unshaped.extend((!shaped).then_some(name));
            }
            12 => {
                let message = field.message()?;
                let name = port(message, "output", depth)?.0;
                graph.outputs.push(name);
                if depth == 0 {
                    graph.shapes.extend(stated::shape(message)?.map(|shape| (name, shape)));
                }
                stated::hide(message, hidden, &mut self.stated)?;
            }
            13 => self.between(field.message()?)?,
            15 => {
                graph.initializers.insert(self.sparse(field.message()?, "sparse initializer")?);
            }
            _ => {}
        }
        Ok(())
    }

    /// What is stated of a value between nodes.
    fn between(&mut self, message: Message<'a>) -> Result<(), String> {
        value_info(message, "value_info")?;
        stated::hide(message, Hidden::Whole, &mut self.stated)
    }

    fn node(&mut self, node: &Node<'a>, depth: usize) -> Result<(), String> {
        self.body.nodes += 1;
        let first = self.external.len();
        let walked = self.operator(node);
        let hidden = if matches!(node.operator.1, "Loop" | "Scan") { Hidden::Lengths } else { Hidden::Whole };
        let within = Place { depth: depth + 1, hidden };
        let walked = walked.and_then(|()| node.attributes.iter().try_for_each(|part| self.attribute(*part, within)));
        walked.map_err(|e| format!("{}: {e}", node.label()))?;
        // What a Constant of the model's graph holds is one of the graph's tensors.
        let constant = depth == 0 && node.operator.0.is_empty() && node.operator.1 == "Constant";
        for external in &mut self.external[first..] {
            external.mapped |= !constant;
            if external.tensor.is_empty() {
                external.tensor = node.label();
            }
        }
        Ok(())
    }

    /// Is it one that needs no library, and no file?
    fn operator(&mut self, node: &Node<'a>) -> Result<(), String> {
        let (domain, op, _) = node.operator;
        if op.is_empty() {
            return Err("has no op_type, the name of its operator".into());
        }
        if op == "EPContext" {
            return Err(
                "holds or names a model that was compiled for one device; serve the model it was made from".into()
            );
        }
        let own = self.functions.get(&node.operator);
        self.body.calls.extend(own);
        if DOMAINS.contains(&domain) {
            match (op, node.outputs.first(), node.inputs.get(FRAME_LENGTH)) {
                ("Constant", ..) if node.attributes.len() > 1 => {
                    return Err(format!("has {} attributes; a Constant has one, its value", node.attributes.len()));
                }
                ("Constant", Some(output), _) => drop(self.constants.insert(output)),
                ("STFT", _, Some(length)) if !length.is_empty() => self.divisions.push((node.label(), length)),
                _ => {}
            }
            return Ok(());
        }
        if own.is_some() {
            return Ok(());
        }
        Err(format!(
            "is a custom operator of domain {}, which needs a library; none is loaded into the server: export the \
             model with operators of ONNX or ONNX Runtime, or with this one as a function in the file",
            shown(domain)
        ))
    }

    /// `within` is where its graphs stand.
    fn attribute(&mut self, message: Message<'a>, within: Place) -> Result<(), String> {
        let (mut name, mut inner) = ("", Vec::<Field<'a>>::new());
        for field in message.fields() {
            let field = field?;
            match field.number {
                1 if !name.is_empty() => return Err(twice(&field)),
                1 => name = field.text()?,
                // Tensor, graph, type, sparse tensor; then lists of these.
                5 | 6 | 14 | 22 if inner.iter().any(|other| other.number == field.number) => return Err(twice(&field)),
                5 | 6 | 14 | 22 | 10 | 11 | 15 | 23 => inner.push(field),
                _ => {}
            }
        }
        let walked = inner.iter().try_for_each(|field| {
            let message = field.message()?;
            match field.number {
                5 | 10 => self.tensor(message, "tensor").map(|_| ()),
                6 | 11 => self.graph(message, within).map(|_| ()),
                22 | 23 => self.sparse(message, "sparse tensor").map(|_| ()),
                _ => types(message, 1).and_then(|()| stated::hide_in(message, Hidden::Whole, &mut self.stated, 1)),
            }
        });
        walked.map_err(|e| format!("attribute {}: {e}", shown(name)))
    }

    /// The name of a tensor that is in order.
    fn tensor(&mut self, message: Message<'a>, what: &str) -> Result<&'a str, String> {
        let tensor = Tensor::read(message).map_err(|e| format!("{what}: {e}"))?;
        let within = |e: String| format!("{what} {} {e}", shown(tensor.name));
        if let Some(external) = tensor.check().map_err(within)? {
            if self.external.len() == EXTERNAL_MAX {
                return Err(within(format!("is external, as {EXTERNAL_MAX} before it are; no more are read")));
            }
            self.external.push(external);
        }
        Ok(tensor.name)
    }

    /// The name of a sparse tensor, which is that of its values.
    fn sparse(&mut self, message: Message<'a>, what: &str) -> Result<&'a str, String> {
        let [values, indices] = tensor::sparse(message).map_err(|e| format!("{what} at byte {}: {e}", message.at))?;
        let first = self.external.len();
        let name = self.tensor(values, what)?;
        self.tensor(indices, "tensor").map_err(|e| format!("{what} {}: indices: {e}", shown(name)))?;
        self.external[first..].iter_mut().for_each(|external| external.mapped = true);
        Ok(name)
    }

    fn function(&mut self, message: Message<'a>) -> Result<(), String> {
        let (_, name, _) = operator(message)?;
        let within = |e: String| format!("function {}: {e}", shown(name));
        for field in message.fields() {
            let field = field?;
            let walked = match field.number {
                7 => field.message().and_then(Node::read).and_then(|node| self.node(&node, 0)),
                9 => field.message().and_then(opset),
                11 => field.message().and_then(|attribute| self.attribute(attribute, BODY)),
                12 => field.message().and_then(|info| self.between(info)),
                _ => Ok(()),
            };
            walked.map_err(within)?;
        }
        Ok(())
    }

    /// Graphs of training, which are not run; the library may read them all the same.
    fn training(&mut self, message: Message<'a>) -> Result<(), String> {
        let (mut initialization, mut algorithm) = (None, None);
        for field in message.fields() {
            let field = field?;
            match field.number {
                1 => once(&mut initialization, &field)?,
                2 => once(&mut algorithm, &field)?,
                _ => {}
            }
        }
        let graphs = [initialization, algorithm].into_iter().flatten();
        graphs.map(|graph| self.graph(graph, Place::default())).try_for_each(|graph| graph.map(|_| ()))
    }
}

/// The name of an input or output. Those of the model are asked for by their names.
fn port<'a>(message: Message<'a>, what: &str, depth: usize) -> Result<(&'a str, bool), String> {
    match value_info(message, what)? {
        ("", _) if depth == 0 => Err(format!("{what} at byte {} has no name", message.at)),
        port => Ok(port),
    }
}
