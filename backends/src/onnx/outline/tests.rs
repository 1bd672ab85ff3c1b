//! Files put together byte by byte: every kind of part, every refusal, and damage of every sort.

use super::parts::*;
use super::*;
use proptest::prelude::*;

#[test]
fn everything_in_a_file_is_found() {
    let file = everything();
    let outline = read(&file.0).unwrap();
    assert_eq!(outline.ir_version, 8);
    assert_eq!(outline.inputs, ["x", "sequence"]);
    assert_eq!(outline.outputs, ["y", "labelled", "counted"]);
    let names = ["complex", "empty", "float6", "int4", "listed", "outside", "packed", "raw", "scattered", "words"];
    assert_eq!(outline.initializers, BTreeSet::from(names.map(str::to_owned)));
    // Seven of the graph, two of its branches, one of the function.
    assert_eq!(outline.nodes, 10);
    let classes: Vec<(&str, Vec<&str>)> = vec![("counted", vec!["7", "-1"]), ("labelled", vec!["no", "yes"])];
    let found = outline.classes.iter();
    let found: Vec<(&str, Vec<&str>)> =
        found.map(|(k, v)| (k.as_str(), v.iter().map(String::as_str).collect())).collect();
    assert_eq!(found, classes);
    let locations: Vec<&str> = outline.external.iter().map(|external| external.location.as_str()).collect();
    assert_eq!(locations, ["then.bin", "folder/else.bin", "t", "w.bin", "d.bin", "u.bin"]);
    let mapped: Vec<bool> = outline.external.iter().map(|external| external.mapped).collect();
    assert_eq!(mapped, [true, true, true, false, true, true], "the graph's own are given from memory");
    let tensor = &outline.external[3];
    assert_eq!((tensor.offset, tensor.length, tensor.bytes), (8, Some(12), 12));
    assert_eq!(tensor.tensor, "outside");
    let label = &outline.external[0].tensor;
    assert!(label.starts_with("node 'Constant' at byte "), "{label}");
    assert_eq!(external_files(&file.0).unwrap().len(), 6);
    assert!(looks_like(&file.0));
}

#[test]
fn the_beginning_of_a_file_is_told() {
    let file = everything();
    for length in [24, 100, file.0.len()] {
        assert!(looks_like(&file.0[..length]), "{length}");
    }
    let long = Proto::new().number(1, 8).bytes(6, "x".repeat(1000)).bytes(7, graph("g"));
    assert!(looks_like(&long.0));
    assert!(!looks_like(&long.0[..900]), "the graph does not begin here");
    for other in [
        &b""[..],
        b"\x08",
        b"\x08\x08",
        b"\x08\x00",
        b"{\"learner\":{}}",
        b"tree\nversion=v4",
        b"GGUF\x03\0\0\0",
        b"PK\x03\x04",
        b"\x80\x04\x95",
        b"\x08\x08\x3a\x00",
        b"\x08\x08\x3a\x02\x08\x01",
        b"\x08\x08\x4b\x00",
        b"\x08\x08\x12\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
    ] {
        assert!(!looks_like(other), "{}", other.escape_ascii());
    }
}

// ------------------------------------------------------------------------------------------------------------ refusals

/// This is refused, and the reason says so.
fn refused(file: &Proto, why: &str) {
    match read(&file.0) {
        Ok(outline) => panic!("read, not refused for '{why}': {outline:?}"),
        Err(reason) => assert!(reason.contains(why), "expected '{why}', got '{reason}'"),
    }
}

#[test]
fn models_lacking_parts_are_refused() {
    let start = Proto::new().number(1, 8);
    refused(&Proto::new(), "has no graph");
    refused(&start.clone().bytes(8, opset("", 17)), "has no graph");
    refused(&start.clone().bytes(7, graph("g")), "has no opset_import");
    refused(&Proto::new().bytes(7, graph("g")).bytes(8, opset("", 17)), "ir_version is 0; expected");
    refused(&model(&graph("g")).number(1, -1), "ir_version is -1");
    refused(&model(&graph("g")).bytes(8, opset("a", 0)), "opset_import of domain 'a' has the version 0");
    refused(&model(&graph("g")).bytes(7, graph("h")), "field 7 stands twice");
    refused(&start.bytes(2, "ORTM!").bytes(7, graph("g")).bytes(8, opset("", 17)), ".ort");
    refused(&model(&graph("g").bytes(11, Proto::new())), "graph 'g': input at byte");
    refused(&model(&graph("g").bytes(12, Proto::new())), "graph 'g': output at byte");
}

#[test]
fn operators_that_need_libraries_or_files_are_refused() {
    let with = |node: Proto| model(&graph("g").bytes(1, node));
    let custom = node("Foo", "n").bytes(7, "acme");
    let why = "graph 'g': node 'n' of 'Foo': is a custom operator of domain 'acme', which needs a library";
    refused(&with(custom.clone()), why);
    refused(&with(custom.clone()).bytes(8, opset("acme", 1)), why);
    refused(&with(node("Foo", "").bytes(7, "acme")), "node 'Foo' at byte");
    // A function is found by domain, name and overload.
    let own = |name: &str| function("acme", name, &[node("Relu", "r")]);
    refused(&with(custom.clone()).bytes(25, own("Bar")), why);
    refused(&with(custom.clone().bytes(8, "2")).bytes(25, own("Foo")), why);
    assert!(read(&with(custom.clone()).bytes(25, own("Foo")).0).is_ok());
    refused(&model(&graph("g")).bytes(25, own("Foo")).bytes(25, own("Foo")), "function 'Foo' stands twice");
    let inner = function("own", "F", std::slice::from_ref(&custom));
    refused(&model(&graph("g")).bytes(25, inner), "function 'F': node 'n' of 'Foo': is a custom operator");
    let inside = node("If", "i").bytes(5, attribute("then_branch", 6, graph("then").bytes(1, custom)));
    let why = "graph 'g': node 'i' of 'If': attribute 'then_branch': graph 'then': node 'n' of 'Foo': is a custom";
    refused(&with(inside), why);
    refused(&with(node("EPContext", "e").bytes(7, "com.microsoft")), "'EPContext': holds or names a model");
    refused(&with(node("", "e")), "has no op_type");
    for domain in ["ai.onnx", "ai.onnx.ml", "com.microsoft", "com.microsoft.nchwc", "org.pytorch.aten"] {
        assert!(read(&with(node("Foo", "n").bytes(7, domain)).0).is_ok(), "{domain}");
    }
}

fn initializer(tensor: impl AsRef<[u8]>) -> Proto {
    model(&graph("g").bytes(5, tensor))
}

#[test]
fn tensors_whose_parts_do_not_fit_are_refused() {
    let raw = |data_type: i64, dims: &[i64], bytes: usize| tensor("w", data_type, dims).bytes(9, vec![0u8; bytes]);
    let far = 1 << 62;
    for (tensor, why) in [
        (raw(1, &[-1], 0), "graph 'g': initializer 'w' has the dimensions [-1]; each must be 0 or more"),
        (raw(1, &[far, far], 4), "which take more elements than can be counted"),
        (raw(1, &[0, far, far], 0), "which take more elements than can be counted"),
        (raw(11, &[far], 8), "which take more bytes than can be counted"),
        (raw(1, &[1; 65], 4), "has more than 64 dimensions"),
        (raw(1, &[2, 2], 15), "has the dimensions [2, 2], which take 16 bytes, but raw_data has 15"),
        (raw(22, &[3], 3), "which take 2 bytes"),
        (raw(25, &[5], 1), "which take 2 bytes"),
        (raw(28, &[4], 4), "which take 3 bytes"),
        (raw(15, &[], 8), "which take 16 bytes"),
        (raw(29, &[], 0), "has data_type 29, which is unknown; expected 1 to 28"),
        (raw(-1, &[], 0), "has data_type -1"),
        (raw(0, &[1], 1), "has data_type 0"),
        (raw(8, &[1], 1), "is text, but is given as bytes"),
        (tensor("w", 1, &[1 << 40]), "which take 1099511627776 values, but 0 are listed"),
        (tensor("w", 1, &[2]).bytes(4, [0u8; 4]), "which take 2 values, but 1 are listed"),
        (tensor("w", 14, &[1]).bytes(4, [0u8; 4]), "which take 2 values, but 1 are listed"),
        (tensor("w", 21, &[5]).bytes(5, [0u8; 5]), "which take 3 values, but 5 are listed"),
        (tensor("w", 8, &[2]).bytes(6, "a"), "which take 2 values, but 1 are listed"),
        (tensor("w", 1, &[1]).bytes(4, [0u8; 5]), "field 4 is not written as its type is"),
        (tensor("w", 7, &[1]).bytes(7, [0x80u8]), "field 7 is not written as its type is"),
        (tensor("w", 7, &[1]).number(14, 2), "data_location is 2"),
        (tensor("w", 7, &[1]).number(9, 2), "field 9 is not written as its type is"),
        (external("w", "a").bytes(9, [0u8; 12]), "has raw_data and external data"),
    ] {
        refused(&initializer(tensor), why);
    }
    // What protobuf's library makes of more than 32 bits.
    refused(&initializer(tensor("w", 1, &[3]).number(14, (1 << 32) + 1)), "has external data without a location");
    let constant = node("Constant", "c").bytes(5, attribute("value", 5, tensor("", 1, &[2])));
    let why = "graph 'g': node 'c' of 'Constant': attribute 'value': tensor '' has the dimensions [2]";
    refused(&model(&graph("g").bytes(1, constant)), why);
    let twice = attribute("value", 5, sparse("s")).bytes(5, "");
    refused(&model(&graph("g").bytes(1, node("Constant", "c").bytes(5, twice))), "field 5 stands twice");
}

#[test]
fn sparse_tensors_whose_parts_do_not_fit_are_refused() {
    let with = |sparse: Proto| model(&graph("g").bytes(15, sparse));
    refused(&with(Proto::new().number(3, 2)), "sparse initializer at byte");
    refused(&with(Proto::new().bytes(1, tensor("w", 1, &[0]))), "is sparse and has no indices");
    refused(&with(sparse("w").number(3, -1)), "has the dimensions [1000, -1]");
    refused(&with(sparse("w").number(3, 1 << 52)), "more bytes than can be counted");
    refused(&with(sparse("w").bytes(1, "")), "field 1 stands twice");
    let indices = Proto::new().bytes(1, tensor("w", 1, &[0])).bytes(2, tensor("", 7, &[1])).number(3, 1);
    refused(&with(indices), "sparse initializer 'w': indices: tensor '' has the dimensions [1]");
    // Values and indices may lie outside the file, and are found there.
    let outside = Proto::new().bytes(1, external("v", "v.bin")).bytes(2, external("i", "i.bin")).number(3, 9);
    assert_eq!(external_files(&with(outside).0).unwrap(), BTreeSet::from(["i.bin", "v.bin"].map(str::to_owned)));
}

#[test]
fn what_is_no_tensor_of_the_graph_is_mapped() {
    let mapped = |graph: Proto| read(&model(&graph).0).unwrap().external.iter().all(|external| external.mapped);
    let constant =
        |op: &str, kind: u64, part: Proto| graph("g").bytes(1, node(op, "c").bytes(5, attribute("value", kind, part)));
    assert!(!mapped(graph("g").bytes(5, external("w", "w.bin"))));
    assert!(!mapped(constant("Constant", 5, external("", "w.bin"))));
    assert!(mapped(constant("ConstantOfShape", 5, external("", "w.bin"))));
    let outside = Proto::new().bytes(1, external("v", "v.bin")).bytes(2, external("i", "i.bin")).number(3, 9);
    assert!(mapped(constant("Constant", 22, outside.clone())));
    assert!(mapped(graph("g").bytes(15, outside)));
}

#[test]
fn places_outside_are_plain_paths() {
    for good in ["w", "w.bin", "model.onnx.data", "model.onnx_data", "a/b c/ü", "..data", "a..b", ".hidden"] {
        let outline = read(&initializer(outside("w", &[("location", good)])).0).unwrap();
        assert_eq!(outline.external[0].location, good);
        assert_eq!((outline.external[0].offset, outline.external[0].length), (0, None));
    }
    let long = "x".repeat(1025);
    for (bad, why) in [
        ("", "is empty"),
        (long.as_str(), "is too long"),
        ("/etc/passwd", "is absolute"),
        ("../w", "'.' or '..'"),
        ("a/../w", "'.' or '..'"),
        ("a/..", "'.' or '..'"),
        ("./w", "'.' or '..'"),
        ("a//w", "an empty part"),
        ("a/", "an empty part"),
        ("a\\..\\w", "a backslash"),
        ("w\0", "a control character"),
        ("w\n", "a control character"),
        ("C:w", "begins with a drive"),
        ("c:/w", "begins with a drive"),
        ("*/_ORT_MEM_ADDR_/*", "has a '*'"),
        ("self.onnx", "is an .onnx file"),
        ("SELF.ONNX", "is an .onnx file"),
    ] {
        refused(&initializer(external("w", bad)), why);
        refused(&initializer(external("w", bad)), "graph 'g': initializer 'w' has its data in ");
    }
    refused(&initializer(tensor("w", 1, &[3]).number(14, 1).bytes(13, [0x0au8, 1, 0xff])), "not UTF-8");
}

#[test]
fn offsets_and_lengths_are_whole_numbers_that_fit() {
    let with = |entries: &[(&str, &str)]| initializer(outside("w", &[&[("location", "a")][..], entries].concat()));
    for bad in ["", "-8", "+8", " 8", "8 ", "0x8", "1e3", "8.0", "9223372036854775808", "18446744073709551616"] {
        refused(&with(&[("offset", bad)]), "has the offset ");
        refused(&with(&[("length", bad)]), "has the length ");
    }
    let far = i64::MAX.to_string();
    refused(&with(&[("offset", far.as_str())]), "further than files reach");
    for length in ["0", "11", "13", far.as_str()] {
        refused(&with(&[("length", length)]), "which take 12 bytes, but the length of its external data is");
    }
    let wide = outside("w", &[("location", "a"), ("length", "12")]).number(1, 1 << 20);
    refused(&initializer(wide), "has the dimensions [3, 1048576], which take 12582912 bytes");
    refused(&initializer(outside("w", &[])), "external data without a location");
    refused(&initializer(outside("w", &[("offset", "0")])), "external data without a location");
    refused(&with(&[("location", "b")]), "has 'location' twice");
    refused(&with(&[("basepath", "/")]), "has 'basepath' in its external data; expected are location");
    refused(&with(&[("prepacked_0", "a|0;8")]), "prepacked weights");
    assert!(read(&with(&[("checksum", "abc"), ("offset", "0000")]).0).is_ok());
    let text = tensor("w", 8, &[1]).number(14, 1).bytes(13, Proto::new().bytes(1, "location").bytes(2, "a"));
    refused(&initializer(text), "is text, but is given as bytes");
    // Protobuf keeps entries of tensors that are not external; ONNX Runtime does not look at them.
    let inside = tensor("w", 1, &[1]).bytes(9, [0u8; 4]).bytes(13, Proto::new().bytes(1, "location").bytes(2, "/a"));
    assert!(read(&initializer(inside).0).unwrap().external.is_empty());
}

#[test]
fn tensors_outside_are_not_without_number() {
    let one = external("", "a");
    let many = |count: usize| (0..count).fold(graph("g"), |graph, _| graph.bytes(5, &one));
    assert_eq!(read(&model(&many(100_000)).0).unwrap().external.len(), 100_000);
    refused(&model(&many(100_001)), "no more are read");
}

#[test]
fn names_are_text() {
    let bad = [0xffu8, 0xfe];
    let of_node = |field: u64| model(&graph("g").bytes(1, node("Relu", "n").bytes(field, bad)));
    for field in [1, 2, 3, 4, 7, 8] {
        refused(&of_node(field), "a name that is not UTF-8");
    }
    let labels = zip_map("y", &attribute("classlabels_strings", 9, bad));
    for file in [
        model(&graph("g").bytes(2, bad)),
        model(&graph("g").bytes(11, Proto::new().bytes(1, bad))),
        model(&graph("g").bytes(1, node("If", "i").bytes(5, Proto::new().bytes(1, bad)))),
        model(&graph("g").bytes(1, labels)),
        model(&graph("g")).bytes(8, Proto::new().bytes(1, bad)),
        model(&graph("g")).bytes(25, Proto::new().bytes(1, bad)),
        initializer(Proto::new().bytes(8, bad)),
    ] {
        refused(&file, "a name that is not UTF-8");
    }
    let long = node("Foo", &"n\n".repeat(100)).bytes(7, "acme");
    let reason = read(&model(&graph("g").bytes(1, long)).0).unwrap_err();
    assert!(reason.contains("n\\n…'") && !reason.contains('\n') && reason.len() < 500, "{reason}");
}

// ------------------------------------------------------------------------------------------------------------ nesting

#[test]
fn graphs_are_nested_within_bounds() {
    let nested = |depth: usize| {
        let branch = |inner: Proto| node("If", "i").bytes(5, attribute("then_branch", 6, inner));
        let deepen = |inner: Proto, _| graph("g").bytes(1, branch(inner));
        model(&(0..depth).fold(graph("g"), deepen))
    };
    assert!(read(&nested(16).0).is_ok());
    for depth in [17, 2000] {
        refused(&nested(depth), "is nested more than 16 deep");
    }
}

#[test]
fn types_are_nested_within_bounds() {
    let nested = |depth: usize| {
        let number = |level: usize| if level.is_multiple_of(2) { 4 } else { 9 };
        let deepen = |inner: Proto, level| Proto::new().bytes(number(level), Proto::new().bytes(1, inner));
        model(&graph("g").bytes(13, typed("t", (1..depth).fold(Proto::new(), deepen))))
    };
    assert!(read(&nested(8).0).is_ok());
    for depth in [9, 5000] {
        refused(&nested(depth), "graph 'g': value_info 't': a type is nested more than 8 deep");
    }
}

/// A chain of functions, each of which calls the next so often.
fn chain(length: usize, calls: usize) -> Proto {
    let call = |index: usize| node(&format!("F{index}"), "").bytes(7, "own");
    let start = model(&Proto::new().bytes(1, call(1)).bytes(2, "g"));
    (1..=length).fold(start, |model, index| {
        let nodes = if index == length { vec![node("Relu", "")] } else { vec![call(index + 1); calls] };
        model.bytes(25, function("own", &format!("F{index}"), &nodes))
    })
}

#[test]
fn functions_call_each_other_within_bounds() {
    assert_eq!(read(&chain(100, 1).0).unwrap().nodes, 101);
    for length in [101, 20_000] {
        refused(&chain(length, 1), "more than 100 deep, or in a circle");
    }
    // Calls are counted with what they stand for: 3 * 2^(n-1) - 1 nodes.
    assert!(read(&chain(18, 2).0).is_ok());
    for length in [20, 64, 99] {
        refused(&chain(length, 2), "functions make up more than 1000000 nodes");
    }
    for circle in [&["F1"][..], &["F2", "F3", "F1"]] {
        let called =
            |(index, to): (usize, &&str)| function("own", &format!("F{}", index + 1), &[node(to, "").bytes(7, "own")]);
        let functions = circle.iter().enumerate().map(called);
        // Whether the graph calls them or not.
        let file = functions.fold(model(&graph("g")), |model, function| model.bytes(25, function));
        refused(&file, "or in a circle");
    }
}

// ------------------------------------------------------------------------------------------------------------- damage

#[test]
fn bytes_that_are_no_protobuf_are_refused() {
    let with = |bytes: &[u8]| model(&graph("g")).raw(bytes);
    for (bytes, why) in [
        (&[0x9b, 0x06][..], "wire type 3"),
        (&[0x9c, 0x06], "wire type 4"),
        (&[0x9e, 0x06], "wire type 6"),
        (&[0x9f, 0x06], "wire type 7"),
        (&[0x00, 0x00], "there is no field 0"),
        (&[0x82, 0x80, 0x80, 0x80, 0x10, 0x00], "there is no field 536870912"),
        (&[0x80], "a number is expected"),
        (&[0x98, 0x06], "a number is expected"),
        (&[0x98, 0x06, 0x80, 0x80], "a number is expected"),
        (&[0x98, 0x06, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x02], "more than 64 bits"),
        (&[0x98, 0x06, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x00], "more than 64 bits"),
        (&[0x99, 0x06, 0, 0, 0, 0, 0, 0, 0], "8 bytes are announced, 7 are left"),
        (&[0x9d, 0x06, 0, 0, 0], "4 bytes are announced, 3 are left"),
        (&[0x9a, 0x06, 0x05, 0, 0], "5 bytes are announced, 2 are left"),
        (&[0x9a, 0x06, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01], "are announced, 0 are left"),
        (&[0x09, 0, 0, 0, 0, 0, 0, 0, 0], "field 1 is not written as its type is"),
        (&[0x38, 0x00], "field 7 is not written as its type is"),
    ] {
        refused(&with(bytes), why);
    }
    let most = [0x98, 0x06, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01];
    assert!(read(&with(&most).0).is_ok());
}

#[test]
fn a_file_cut_short_is_refused_or_ends_with_a_part() {
    let file = everything().0;
    let starts: BTreeSet<usize> = Message::file(&file).fields().map(|field| field.unwrap().at).collect();
    for length in 0..file.len() {
        let whole = read(&file[..length]).is_ok();
        assert!(!whole || starts.contains(&length), "the first {length} bytes are read");
    }
}

/// Reads bytes; what is read names plain paths alone.
fn look(bytes: &[u8]) {
    for location in read(bytes).map(|outline| outline.external).unwrap_or_default().iter().map(|e| &e.location) {
        let plain = location.split('/').all(|part| !matches!(part, "" | "." | ".."));
        assert!(plain && !location.contains(['\\', '*', '\0']), "{location:?}");
    }
    let _ = looks_like(bytes);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_damaged_file_is_read_or_refused(
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0..4u8), 1..6),
    ) {
        let mut bytes = everything().0;
        for (at, value, kind) in edits {
            let at = at.index(bytes.len());
            match kind {
                0 => bytes[at] = value,
                1 => bytes[at] ^= 1 << (value % 8),
                2 => bytes.insert(at, value),
                _ => { bytes.remove(at); }
            }
        }
        look(&bytes);
    }

    #[test]
    fn a_file_with_parts_doubled_or_left_out_is_read_or_refused(
        places in any::<[prop::sample::Index; 3]>(),
        double in any::<bool>(),
    ) {
        let mut bytes = everything().0;
        let [a, b, at] = places.map(|place| place.index(bytes.len()));
        let part = a.min(b)..a.max(b);
        if double {
            let copy = bytes[part].to_vec();
            bytes.splice(at..at, copy);
        } else {
            bytes.drain(part);
        }
        look(&bytes);
    }

    #[test]
    fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        look(&bytes);
        look(&model(&Proto(bytes)).0);
    }
}
