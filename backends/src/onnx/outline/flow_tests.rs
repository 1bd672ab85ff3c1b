//! Graphs put together byte by byte, and what is found of the tensors between their nodes.

use super::parts::*;
use super::*;

/// A node with these inputs and outputs, which are divided by spaces.
fn made(op: &str, inputs: &str, outputs: &str) -> Proto {
    let node = inputs.split_whitespace().fold(Proto::new(), |node, name| node.bytes(1, name));
    outputs.split_whitespace().fold(node, |node, name| node.bytes(2, name)).bytes(3, op).bytes(4, op)
}

fn numbers(name: &str, numbers: &[i64]) -> Proto {
    let raw: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
    tensor(name, 7, &[numbers.len() as i64]).bytes(9, raw)
}

/// Of the inputs x and s, with some constants.
fn graph_of(nodes: &[Proto]) -> Proto {
    let start = Proto::new().bytes(2, "g").bytes(11, value("x")).bytes(11, value("s")).bytes(12, value("y"));
    let graph = nodes.iter().fold(start, |graph, node| graph.bytes(1, node));
    [("none", &[0][..]), ("one", &[1]), ("back", &[-1]), ("end", &[i64::MAX]), ("given", &[2, 3]), ("w", &[1; 65])]
        .into_iter()
        .fold(graph, |graph, (name, values)| graph.bytes(5, numbers(name, values)))
}

fn found(nodes: &[Proto]) -> Outline {
    read(&model(&graph_of(nodes)).0).unwrap()
}

#[test]
fn sizes_that_a_request_brings_make_a_graph_unsteady() {
    let shape = |node: Proto, name: &str| [node, made("Reshape", &format!("x {name}"), "y")];
    let known = [
        shape(made("Relu", "x", "r"), "given"),
        shape(made("Constant", "", "c").bytes(5, attribute("value", 5, numbers("", &[1, -1]))), "c"),
        shape(made("Shape", "x", "c"), "c"),
    ];
    for nodes in known {
        assert_eq!(found(&nodes).unsteady, None);
    }
    let chain = [
        made("Shape", "x", "a"),
        made("Gather", "a none", "b"),
        made("Concat", "b one", "c"),
        made("Reshape", "x c", "y"),
    ];
    assert_eq!(found(&chain).unsteady, None);
    assert_eq!(found(&shape(made("Relu", "s", "c"), "c")).unsteady.as_deref(), Some("Reshape"));
    for op in ["Reshape", "Split", "Squeeze", "Unsqueeze", "ReduceSum", "ReduceMax", "ReduceMean"] {
        assert_eq!(found(&[made(op, "x given", "y")]).unsteady, None, "{op}");
        assert_eq!(found(&[made(op, "x s", "y")]).unsteady.as_deref(), Some(op));
        let mixed = [made("Add", "s one", "c"), made(op, "x c", "y")];
        assert_eq!(found(&mixed).unsteady.as_deref(), Some(op));
        // A request may have another value than the file.
        let file = model(&graph_of(&[made(op, "x given", "y")]).bytes(11, value("given")));
        assert_eq!(read(&file.0).unwrap().unsteady.as_deref(), Some(op));
    }
    // A function does not know what it is given.
    let call = made("Mine", "x given", "y").bytes(7, "own");
    let own = function("own", "Mine", &[made("Reshape", "a b", "c")]).bytes(4, "a").bytes(4, "b").bytes(5, "c");
    let file = model(&graph_of(&[call])).bytes(25, own);
    assert_eq!(read(&file.0).unwrap().unsteady.as_deref(), Some("Reshape"));
}

#[test]
fn operators_that_empty_tensors_are_not_known_to_suit_are_found_everywhere() {
    assert_eq!(found(&[made("MatMul", "x w", "y")]).fragile, None);
    for (op, domain) in [("LSTM", ""), ("GRU", ""), ("Einsum", ""), ("Scan", ""), ("Inverse", "com.microsoft")] {
        assert_eq!(found(&[made(op, "x", "y").bytes(7, domain)]).fragile.as_deref(), Some(op));
    }
    assert_eq!(found(&[made("Later", "x", "y")]).fragile.as_deref(), Some("Later"));
    // Convolutions take no kernels without elements.
    assert_eq!(found(&[made("Conv", "x w", "y")]).fragile, None);
    assert_eq!(found(&[made("Transpose", "w", "k"), made("Conv", "x k", "y")]).fragile, None);
    assert_eq!(found(&[made("Conv", "x s", "y")]).fragile.as_deref(), Some("Conv"));
    let starved = found(&[made("NonZero", "x", "k"), made("Conv", "x k", "y")]).starved;
    assert_eq!(starved.as_deref(), Some("node 'Conv' of 'Conv': its input 'k'"));
    // Of its states, none ends the process.
    assert_eq!(found(&[made("NonZero", "x", "h"), made("LSTM", "x w w h", "y")]).starved, None);
    let branch = |node: Proto| attribute("then_branch", 6, Proto::new().bytes(1, node).bytes(12, value("b")));
    let choice = made("If", "s", "y").bytes(5, branch(made("GRU", "x", "b")));
    assert_eq!(found(&[choice]).fragile.as_deref(), Some("GRU"));
    let own = function("own", "Mine", &[made("LSTM", "a", "b")]).bytes(4, "a").bytes(5, "b");
    let file = model(&graph_of(&[made("Mine", "x", "y").bytes(7, "own")])).bytes(25, own);
    assert_eq!(read(&file.0).unwrap().fragile.as_deref(), Some("LSTM"));
}

/// Nodes that make t of full tensors, before one that must not have an empty one; may it have one?
fn starves(nodes: &[Proto]) -> bool {
    let nodes: Vec<Proto> = nodes.iter().cloned().chain([made("LSTM", "t w w", "y")]).collect();
    let outline = found(&nodes);
    match outline.starved {
        Some(told) => assert_eq!(told, "node 'LSTM' of 'LSTM': its input 't'"),
        None => {
            assert_eq!(outline.fragile.as_deref(), Some("LSTM"));
            return false;
        }
    }
    true
}

#[test]
fn what_cannot_be_empty_goes_where_no_empty_tensor_may() {
    let padding = |how: &str| attribute("auto_pad", 4, how);
    let window = |numbers: [u8; 1]| attribute("kernel_shape", 8, numbers);
    let strides = attribute("strides", 8, [2u8]);
    for nodes in [
        &[made("Transpose", "x", "t")][..],
        &[made("Conv", "x w", "a"), made("Relu", "a", "t")],
        &[made("Shape", "x", "a"), made("Gather", "a one", "b"), made("ConstantOfShape", "b", "t")],
        &[made("Shape", "x", "a"), made("Concat", "one a", "b"), made("Expand", "x b", "t")],
        &[made("Slice", "x none one", "t")],
        &[made("Slice", "x back end", "t")],
        &[made("Split", "x given", "t u")],
        &[made("Range", "none one one", "t")],
        &[made("MaxPool", "x", "t").bytes(5, window([2])).bytes(5, strides.clone())],
        &[made("Resize", "x x x given", "t")],
        &[made("Slice", "x one end", "a"), made("Concat", "a x", "t")],
        &[made("Shape", "x", "a"), made("Mul", "a a", "b"), made("Expand", "x b", "t")],
        &[made("MaxPool", "x", "t").bytes(5, window([2])).bytes(5, padding("SAME_UPPER"))],
    ] {
        assert!(!starves(nodes), "{nodes:?}");
    }
}

#[test]
fn what_may_be_empty_does_not() {
    let padding = |how: &str| attribute("auto_pad", 4, how);
    let inner = Proto::new().bytes(1, made("Relu", "x", "t")).bytes(12, value("t"));
    let policy = attribute("keep_aspect_ratio_policy", 4, "not_larger");
    let strides = attribute("strides", 8, [2u8]);
    let window = |numbers: [u8; 1]| attribute("kernel_shape", 8, numbers);
    for nodes in [
        &[made("NonZero", "x", "t")][..],
        &[made("Compress", "x s", "a"), made("Relu", "a", "t")],
        &[made("Slice", "x one end", "t")],
        &[made("Slice", "x none back", "t")],
        &[made("Slice", "x none s", "t")],
        &[made("Split", "x s", "t u")],
        &[made("Split", "x", "t u").bytes(5, Proto::new().bytes(1, "num_outputs").number(3, 2))],
        &[made("Resize", "x x s", "t")],
        &[made("Expand", "x s", "t")],
        &[made("ConstantOfShape", "s", "t")],
        &[made("Range", "none s one", "t")],
        &[made("NonMaxSuppression", "x x", "t")],
        &[made("Gather", "x none", "a"), made("TopK", "a s", "t u")],
        &[made("MaxPool", "x", "t").bytes(5, window([2]))],
        &[made("Later", "x", "t")],
        &[made("Slice", "x one end", "a"), made("Concat", "a a", "t")],
        // A constant is in the file, and what is cut out of it may be nothing.
        &[made("Slice", "w one end", "t")],
        // Of a scalar, the shape is empty.
        &[made("Squeeze", "x", "a"), made("Shape", "a", "t")],
        &[made("Resize", "x x x given", "t").bytes(5, policy)],
        &[made("MaxPool", "x", "t").bytes(5, window([2])).bytes(5, strides).bytes(5, padding("VALID"))],
        // A product of many sizes has no bound.
        &[made("Shape", "x", "a"), made("Mul", "a a", "b"), made("Mul", "b b", "c"), made("Expand", "x c", "t")],
        // Of INT32, two sizes are too much.
        &[
            made("Shape", "x", "a"),
            made("Cast", "a", "b").bytes(5, Proto::new().bytes(1, "to").number(3, 6)),
            made("Mul", "b b", "c"),
            made("Expand", "x c", "t"),
        ],
        // A name within a branch is another's.
        &[
            made("If", "s", "u").bytes(5, attribute("then_branch", 6, inner)),
            made("LSTM", "t w w", "v"),
            made("Compress", "x s", "t"),
        ],
        // What a function is called with is not known in it.
        &[made("Split", "x", "t u").bytes(5, Proto::new().bytes(1, "split").bytes(21, "sizes"))],
        &[],
    ] {
        assert!(starves(nodes), "{nodes:?}");
    }
}

/// A body whose state goes through this operator.
fn body(op: &str) -> Proto {
    let state = made(op, "state", "next");
    let ports = ["number", "go", "state"].into_iter().fold(Proto::new(), |body, name| body.bytes(11, value(name)));
    let body = ports.bytes(1, made("Identity", "go", "on")).bytes(1, state).bytes(1, made("Identity", "next", "part"));
    ["on", "next", "part"].into_iter().fold(body, |body, name| body.bytes(12, value(name)))
}

#[test]
fn graphs_within_a_graph_are_followed() {
    let turns = |op: &str, outputs: &str| made("Loop", "s s x", outputs).bytes(5, attribute("body", 6, body(op)));
    assert!(!starves(&[turns("Tanh", "t u")]));
    assert!(starves(&[turns("NonZero", "t u")]));
    // There may be no turn, and nothing to put together.
    assert!(starves(&[turns("Tanh", "u t")]));
    let branch = |op: &str| Proto::new().bytes(1, made(op, "x", op)).bytes(12, value(op));
    let choice = |other: &str| {
        let first = made("If", "s", "t").bytes(5, attribute("then_branch", 6, branch("Tanh")));
        first.bytes(5, attribute("else_branch", 6, branch(other)))
    };
    assert!(!starves(&[choice("Relu")]));
    assert!(starves(&[choice("NonZero")]));
    // Within a loop, the second turn has what the first one made.
    let inner = body("NonZero").bytes(1, made("GRU", "state", "g"));
    let file = model(&graph_of(&[made("Loop", "s s x", "y u").bytes(5, attribute("body", 6, inner))]));
    assert_eq!(read(&file.0).unwrap().starved.as_deref(), Some("node 'GRU' of 'GRU': its input 'state'"));
}

/// Does a request say how large an output of these is?
fn sized(nodes: &[Proto]) -> bool {
    found(nodes).sized.is_some()
}

#[test]
fn sizes_that_a_request_brings_without_a_bound_are_found() {
    let wanted = found(&[made("Relu", "x", "a"), made("Range", "none s one", "y")]).sized;
    assert_eq!(wanted.as_deref(), Some("node 'Range' of 'Range'"));
    for node in [
        made("Range", "s one one", "y"),
        made("OneHot", "x s given", "y"),
        made("ConstantOfShape", "s", "y"),
        made("Expand", "x s", "y"),
        made("Tile", "x s", "y"),
        made("Pad", "x s", "y"),
        made("Resize", "x s given", "y"),
        made("Resize", "x none none s", "y"),
        made("Upsample", "x s", "y"),
        made("CenterCropPad", "x s", "y"),
        made("HannWindow", "s", "y"),
        made("GroupQueryAttention", "x x x x x x s", "y").bytes(7, "com.microsoft"),
    ] {
        assert!(sized(std::slice::from_ref(&node)), "{node:?}");
    }
    let expand = made("Expand", "x c", "y");
    for nodes in [
        &[made("Add", "s one", "c")][..],
        &[made("Shape", "x", "a"), made("Mul", "a s", "c")],
        &[made("ReduceMax", "s", "a"), made("Concat", "one a", "c")],
        &[made("Gather", "s one", "c")],
        &[made("Equal", "s one", "a"), made("Where", "a s given", "c")],
        &[made("Later", "s", "c")],
        &[made("Scan", "given s", "c").bytes(5, attribute("body", 6, body("Tanh")))],
    ] {
        assert!(sized(&[nodes, std::slice::from_ref(&expand)].concat()), "{nodes:?}");
    }
}

#[test]
fn sizes_that_shapes_or_the_file_bound_are_not() {
    let expand = made("Expand", "x c", "y");
    for nodes in [
        &[made("Shape", "x", "c")][..],
        &[made("Identity", "given", "c")],
        // As PyTorch exports an expand to (batch, -1): shapes, and constants in the place of some.
        &[
            made("Shape", "x", "a"),
            made("Gather", "a none", "b"),
            made("Concat", "b one back", "d"),
            made("ConstantOfShape", "one", "e"),
            made("Mul", "e back", "f"),
            made("Equal", "d f", "g"),
            made("Where", "g e d", "c"),
        ],
        // Places of words up to how many there are.
        &[made("Size", "x", "a"), made("Range", "none a one", "b"), made("ReduceMax", "b", "c")],
        // How many are so, or where.
        &[
            made("Equal", "s one", "a"),
            made("Cast", "a", "b"),
            made("ReduceSum", "b", "d"),
            made("Range", "none d one", "c"),
        ],
        &[made("NonZero", "s", "a"), made("Shape", "a", "c")],
        &[made("ArgMax", "s", "c")],
        // One of those in the file.
        &[made("Gather", "given s", "c")],
        &[
            made("Reshape", "x s", "a"),
            made("Slice", "a s s", "b"),
            made("TopK", "b s", "d e"),
            made("Shape", "d", "c"),
        ],
    ] {
        assert!(!sized(&[nodes, std::slice::from_ref(&expand)].concat()), "{nodes:?}");
    }
    // Truth values, however they are used.
    let truth = typed("b", Proto::new().bytes(1, Proto::new().number(1, 9).bytes(2, Proto::new())));
    let graph = graph_of(&[made("Cast", "b", "c"), made("Expand", "x c", "y")]).bytes(11, truth);
    assert_eq!(read(&model(&graph).0).unwrap().sized, None);
}

#[test]
fn loops_that_keep_something_of_each_turn_are_weighed() {
    let turns = |count: &str, outputs: &str, op: &str| {
        sized(&[made("Loop", &format!("{count} s x"), outputs).bytes(5, attribute("body", 6, body(op)))])
    };
    assert!(turns("s", "t u", "Tanh"), "what is gathered is as long as there are turns");
    assert!(turns("s", "t", "Concat"), "and so is what grows");
    assert!(!turns("s", "t", "Tanh") && !turns("one", "t u", "Concat"));
    // The number of the turn is as large as there are turns.
    let inner = body("Tanh").bytes(1, made("Range", "none number one", "r"));
    let count = |count: &str| {
        sized(&[made("Loop", &format!("{count} s x"), "t").bytes(5, attribute("body", 6, inner.clone()))])
    };
    assert!(count("s") && !count("one"));
}

#[test]
fn functions_are_weighed_by_what_they_are_called_with() {
    let own = |name: &str, nodes: &[Proto]| function("own", name, nodes).bytes(4, "a").bytes(4, "b").bytes(5, "c");
    let call = |name: &str, inputs: &str, output: &str| made(name, inputs, output).bytes(7, "own");
    let inner = own("Inner", &[made("Relu", "b", "d"), made("Expand", "a d", "c")]);
    let outer = own("Outer", &[made("Neg", "b", "d"), call("Inner", "a d", "c")]);
    let first = own("First", &[made("Identity", "a", "c")]);
    let sized = |nodes: &[Proto]| {
        // A function may stand before what it calls.
        let file = model(&graph_of(nodes)).bytes(25, &outer).bytes(25, &inner).bytes(25, &first);
        read(&file.0).unwrap().sized
    };
    for name in ["Inner", "Outer"] {
        assert_eq!(sized(&[call(name, "x given", "y")]), None, "only the second says how large it is");
        assert_eq!(sized(&[made("Shape", "s", "n"), call(name, "x n", "y")]), None);
        let told = sized(&[call(name, "given s", "y")]);
        assert!(told.is_some_and(|told| told.contains(name)));
    }
    let passed = |inputs: &str| sized(&[call("First", inputs, "n"), made("Expand", "x n", "y")]);
    assert!(passed("given s").is_none() && passed("s given").is_some());
}

#[test]
fn what_no_request_can_bring_is_the_files() {
    let graph = graph_of(&[made("Expand", "x given", "y")]).bytes(11, value("given"));
    let sized = |version| {
        let file = Proto::new().number(1, version).bytes(7, &graph).bytes(8, opset("", 9));
        read(&file.0).unwrap().sized.is_some()
    };
    assert!(sized(8) && sized(4) && !sized(3));
    // Of so many, none is offered.
    let many = (0..40).fold(graph.clone(), |graph, place| {
        let name = format!("w{place}");
        graph.bytes(5, numbers(&name, &[1])).bytes(11, value(&name))
    });
    assert_eq!(read(&model(&many).0).unwrap().sized, None);
}

#[test]
fn functions_are_given_nothing_empty() {
    let own = function("own", "Mine", &[made("LSTM", "a", "b")]).bytes(4, "a").bytes(5, "b");
    let outer = function("own", "Outer", &[made("Mine", "a", "b").bytes(7, "own")]).bytes(4, "a").bytes(5, "b");
    for name in ["Mine", "Outer"] {
        let call = |input: &str| made(name, input, "y").bytes(7, "own");
        let file = |nodes: &[Proto]| model(&graph_of(nodes)).bytes(25, &outer).bytes(25, &own);
        assert_eq!(read(&file(&[call("x")]).0).unwrap().fragile.as_deref(), Some("LSTM"));
        let starved = read(&file(&[made("NonZero", "x", "n"), call("n")]).0).unwrap().starved;
        assert!(starved.is_some_and(|told| told.ends_with("its input 'n'")));
    }
    // ONNX Runtime has its own of this name.
    let hidden = function("", "LSTM", &[made("Relu", "a", "b")]).bytes(4, "a").bytes(5, "b");
    let file = model(&graph_of(&[made("NonZero", "x", "n"), made("LSTM", "n", "y")])).bytes(25, hidden);
    assert!(read(&file.0).unwrap().starved.is_some());
    // A graph that a function is called with.
    let turns = function("own", "Turns", &[made("Loop", "a a a", "b")]).bytes(4, "a").bytes(5, "b");
    let inner = Proto::new().bytes(1, made("NonZero", "x", "n")).bytes(1, made("LSTM", "n", "b")).bytes(12, value("b"));
    let call = made("Turns", "x", "y").bytes(7, "own").bytes(5, attribute("body", 6, inner));
    let file = model(&graph_of(&[call])).bytes(25, turns);
    assert!(read(&file.0).unwrap().starved.is_some());
}

#[test]
fn decoders_may_begin_without_a_past() {
    let past = |nodes: &[Proto]| {
        let start = Proto::new().bytes(2, "g").bytes(11, value("x")).bytes(11, value("past_0")).bytes(12, value("y"));
        let graph = nodes.iter().fold(start, |graph, node| graph.bytes(1, node));
        let outline = read(&model(&graph).0).unwrap();
        assert_eq!(outline.starved, None);
        outline.past
    };
    assert_eq!(found(&[made("Einsum", "x", "y")]).past, Past::None);
    let joined = made("Concat", "past_0 x", "all");
    assert_eq!(past(&[joined.clone(), made("Einsum", "all", "y")]), Past::Fits);
    assert_eq!(past(&[made("Relu", "past_0", "y")]), Past::Fits);
    assert_eq!(past(&[made("Einsum", "past_0", "y")]), Past::Starves);
    let grouped = |inputs: &str| made("GroupQueryAttention", inputs, "y").bytes(7, "com.microsoft");
    assert_eq!(past(&[grouped("x x x past_0 past_0 x x")]), Past::Fits);
    assert_eq!(past(&[grouped("x past_0 x x x x x")]), Past::Starves);
}

#[test]
fn shapes_of_what_is_computed_are_found() {
    // The graph's own output alone.
    assert_eq!(found(&[made("Relu", "x", "y")]).stated.len(), 1);
    let body = |kind: &str| {
        let graph = Proto::new().bytes(2, "b").bytes(11, value("i")).bytes(12, value("o")).bytes(13, value("t"));
        let node = made(kind, "x", "y").bytes(5, attribute("body", 6, graph));
        found(&[node]).stated.len()
    };
    // Its input, output and what is between them; of a Loop both lengths of its ports, each.
    assert_eq!((body("If"), body("Loop"), body("Scan")), (1 + 3, 1 + 5, 1 + 5));
    let own = function("own", "Mine", &[made("Relu", "a", "c")]).bytes(4, "a").bytes(5, "c").bytes(12, value("t"));
    let file = model(&graph_of(&[made("Mine", "x", "y").bytes(7, "own")])).bytes(25, own);
    let outline = read(&file.0).unwrap();
    assert_eq!(outline.stated.len(), 2);
    let lengths: Vec<_> = outline.shapes["y"].iter().map(|dimension| (dimension.length, &dimension.name[..])).collect();
    assert_eq!(lengths, [(-1, "N"), (3, "")]);
    let mut hidden = file.0.clone();
    conceal(&mut hidden, &outline.stated);
    let outline = read(&hidden).unwrap();
    assert!(outline.stated.is_empty() && outline.shapes.is_empty(), "{outline:?}");
}

#[test]
fn an_input_that_is_stated_to_be_empty_is() {
    let shape =
        |length: i64| Proto::new().bytes(1, Proto::new().number(1, length)).bytes(1, Proto::new().bytes(2, "N"));
    let input = |length| typed("z", Proto::new().bytes(1, Proto::new().number(1, 1).bytes(2, shape(length))));
    let starved = |length| {
        let graph = graph_of(&[made("LSTM", "z w w", "y")]).bytes(11, input(length));
        read(&model(&graph).0).unwrap().starved
    };
    assert_eq!(starved(1), None);
    assert!(starved(0).unwrap().ends_with("its input 'z'"));
}

#[test]
fn a_type_that_stands_twice_is_refused() {
    let kind = || Proto::new().number(1, 1).bytes(2, Proto::new());
    let twice = [
        Proto::new().bytes(1, kind()).bytes(1, kind()),
        Proto::new().bytes(1, kind()).bytes(4, Proto::new()),
        Proto::new().bytes(1, kind().bytes(2, Proto::new())),
        Proto::new().bytes(4, Proto::new().bytes(1, Proto::new().bytes(1, kind())).bytes(1, Proto::new())),
    ];
    for kind in twice {
        let graph = graph_of(&[made("Relu", "x", "y")]).bytes(13, typed("t", kind));
        let error = read(&model(&graph).0).unwrap_err();
        assert!(error.contains("stands twice"), "{error}");
    }
}

#[test]
fn what_computes_across_rows_is_found() {
    let across = |nodes: &[Proto]| found(nodes).across.is_some();
    let axis =
        |op: &str, name: &str, axis: i64| made(op, "x", "y").bytes(5, Proto::new().bytes(1, name).number(3, axis));
    let axes = |axes: &[u8]| made("ReduceMean", "x", "y").bytes(5, attribute("axes", 8, axes));
    for node in [
        made("ReduceMax", "x", "y"),
        made("ReduceSum", "x none", "y"),
        made("CumSum", "x none", "y"),
        made("ArgMax", "x", "y"),
        axis("Softmax", "axis", 0),
        axis("TopK", "axis", 0),
        axes(&[1, 0]),
    ] {
        assert!(across(&[node]));
    }
    for node in [
        made("ReduceSum", "x one", "y"),
        made("ReduceMean", "x back", "y"),
        made("CumSum", "x one", "y"),
        made("Softmax", "x", "y"),
        axis("ArgMax", "axis", 1),
        axis("ReduceSum", "noop_with_empty_axes", 1),
        axes(&[1]),
        made("ReduceMax", "w", "y"),
        made("Relu", "x", "y"),
    ] {
        assert!(!across(&[node]));
    }
    // Lengths, masks, and a dimension of several models that vote.
    let cast = |to| made("Cast", "x", "c").bytes(5, Proto::new().bytes(1, "to").number(3, to));
    assert!(!across(&[made("Shape", "x", "c"), made("ReduceProd", "c", "y")]));
    assert!(!across(&[cast(7), made("ReduceMax", "c", "y")]));
    assert!(across(&[cast(1), made("ReduceMax", "c", "y")]));
    let votes = |axes: &str| [made("Unsqueeze", &format!("x {axes}"), "c"), made("Concat", "c c", "d")];
    let mean = |name: &str| made("ReduceMean", name, "y");
    assert!(!across(&[&votes("none")[..], &[mean("d none")]].concat()));
    assert!(across(&[&votes("none")[..], &[mean("d")]].concat()));
    assert!(across(&[&votes("one")[..], &[mean("d none")]].concat()));
}
