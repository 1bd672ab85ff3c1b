//! Messages as protobuf writes them, for tests: what `.onnx` files are put together from.

/// A message as it is written.
#[derive(Clone, Debug, Default)]
pub(super) struct Proto(pub(super) Vec<u8>);

impl AsRef<[u8]> for Proto {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Proto {
    pub(super) fn new() -> Self {
        Proto::default()
    }

    pub(super) fn varint(mut self, mut value: u64) -> Self {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
        self
    }

    pub(super) fn number(self, field: u64, value: i64) -> Self {
        self.varint(field << 3).varint(value as u64)
    }

    pub(super) fn bytes(self, field: u64, value: impl AsRef<[u8]>) -> Self {
        let value = value.as_ref();
        self.varint((field << 3) | 2).varint(value.len() as u64).raw(value)
    }

    /// Bytes as they are.
    pub(super) fn raw(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }
}

pub(super) fn opset(domain: &str, version: i64) -> Proto {
    Proto::new().bytes(1, domain).number(2, version)
}

pub(super) fn model(graph: &Proto) -> Proto {
    Proto::new().number(1, 8).bytes(2, "tests").bytes(7, graph).bytes(8, opset("", 17))
}

/// A value of float vectors.
pub(super) fn value(name: &str) -> Proto {
    let shape = Proto::new().bytes(1, Proto::new().bytes(2, "N")).bytes(1, Proto::new().number(1, 3));
    typed(name, Proto::new().bytes(1, Proto::new().number(1, 1).bytes(2, shape)))
}

pub(super) fn typed(name: &str, kind: impl AsRef<[u8]>) -> Proto {
    Proto::new().bytes(1, name).bytes(2, kind)
}

pub(super) fn node(op: &str, name: &str) -> Proto {
    Proto::new().bytes(1, "x").bytes(2, "y").bytes(3, name).bytes(4, op)
}

pub(super) fn attribute(name: &str, field: u64, value: impl AsRef<[u8]>) -> Proto {
    Proto::new().bytes(1, name).bytes(field, value)
}

pub(super) fn graph(name: &str) -> Proto {
    Proto::new().bytes(1, node("Relu", "r")).bytes(2, name).bytes(11, value("x")).bytes(12, value("y"))
}

/// A tensor without values.
pub(super) fn tensor(name: &str, data_type: i64, dims: &[i64]) -> Proto {
    let tensor = Proto::new().number(2, data_type).bytes(8, name);
    dims.iter().fold(tensor, |tensor, dim| tensor.number(1, *dim))
}

/// Three floats that lie elsewhere.
pub(super) fn outside(name: &str, entries: &[(&str, &str)]) -> Proto {
    let tensor = tensor(name, 1, &[3]).number(14, 1);
    entries.iter().fold(tensor, |tensor, (key, value)| tensor.bytes(13, Proto::new().bytes(1, key).bytes(2, value)))
}

pub(super) fn external(name: &str, location: &str) -> Proto {
    outside(name, &[("location", location), ("offset", "8"), ("length", "12")])
}

pub(super) fn sparse(name: &str) -> Proto {
    let values = tensor(name, 1, &[1]).bytes(4, [0u8; 4]);
    Proto::new().bytes(1, values).bytes(2, tensor("", 7, &[1]).bytes(7, [5u8])).number(3, 1000)
}

pub(super) fn function(domain: &str, name: &str, nodes: &[Proto]) -> Proto {
    let function = Proto::new().bytes(1, name).bytes(9, opset("", 17)).bytes(10, domain);
    nodes.iter().fold(function, |function, node| function.bytes(7, node))
}

pub(super) fn zip_map(output: &str, labels: &Proto) -> Proto {
    Proto::new().bytes(1, "p").bytes(2, output).bytes(4, "ZipMap").bytes(5, labels).bytes(7, "ai.onnx.ml")
}

/// A node with a graph inside, which holds an external tensor without a name.
pub(super) fn branch(name: &str, location: &str) -> Proto {
    let constant = node("Constant", "").bytes(5, attribute("value", 5, external("", location)));
    Proto::new().bytes(1, constant).bytes(2, name).bytes(12, value("b"))
}

/// A file with a part of each kind.
pub(super) fn everything() -> Proto {
    let choice = node("If", "choice")
        .bytes(5, attribute("then_branch", 6, branch("then", "then.bin")))
        .bytes(5, attribute("else_branch", 11, branch("else", "folder/else.bin")))
        .bytes(5, attribute("more", 10, external("t", "t")))
        .bytes(5, attribute("sparse", 22, sparse("s")).bytes(23, sparse("t")).bytes(14, "").bytes(15, ""))
        .bytes(5, attribute("ints", 8, [1u8, 2]).number(8, -3).bytes(9, "text").raw(&[0x3d, 0, 0, 0, 0]));
    let texts = attribute("classlabels_strings", 9, "no").bytes(9, "yes");
    let numbers = attribute("classlabels_int64s", 8, [7u8]).number(8, -1);
    let nested = Proto::new().bytes(5, Proto::new().number(1, 7).bytes(2, Proto::new().bytes(9, Proto::new())));
    let graph = graph("main")
        .bytes(1, choice)
        .bytes(1, node("Mine", "call").bytes(7, "own"))
        .bytes(1, node("Gelu", "g").bytes(7, "com.microsoft"))
        .bytes(1, zip_map("labelled", &texts))
        .bytes(1, zip_map("counted", &numbers))
        .bytes(1, zip_map("inner", &texts))
        .bytes(5, tensor("raw", 1, &[2, 2]).bytes(9, [0u8; 16]))
        .bytes(5, tensor("empty", 1, &[0, 1 << 40]).bytes(9, ""))
        .bytes(5, tensor("listed", 1, &[]).bytes(4, [0u8; 4]))
        .bytes(5, tensor("words", 8, &[2]).bytes(6, "a").bytes(6, [0xffu8]))
        .bytes(5, tensor("int4", 22, &[3]).bytes(5, [1u8, 2]))
        .bytes(5, tensor("float6", 27, &[5]).bytes(9, [0u8; 4]))
        .bytes(5, tensor("complex", 14, &[2]).bytes(4, [0u8; 16]))
        .bytes(5, Proto::new().bytes(1, [2u8, 2]).number(2, 7).bytes(7, [1u8, 2, 3]).number(7, -4).bytes(8, "packed"))
        .bytes(5, external("outside", "w.bin"))
        .bytes(15, sparse("scattered"))
        .bytes(11, typed("sequence", Proto::new().bytes(4, Proto::new().bytes(1, &nested))))
        .bytes(12, value("labelled"))
        .bytes(12, value("counted"))
        .bytes(13, value("between"));
    let default = attribute("default", 5, external("d", "d.bin"));
    let own = function("own", "Mine", &[node("Relu", "f")]).bytes(11, default).bytes(12, value("inside"));
    let training = Proto::new().bytes(1, Proto::new().bytes(5, external("u", "u.bin")));
    model(&graph).bytes(8, opset("left.over", 1)).bytes(20, training).bytes(25, own).bytes(99, "later").number(98, 1)
}
