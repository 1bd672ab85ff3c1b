//! Writes ONNX files: protobuf, as far as these tests need it.

/// A message under construction.
#[derive(Clone, Debug, Default)]
pub struct Message(Vec<u8>);

impl Message {
    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    /// A whole number.
    pub fn whole(mut self, field: u64, value: i64) -> Self {
        self.varint(field << 3);
        self.varint(value as u64);
        self
    }

    /// Bytes.
    pub fn bytes(mut self, field: u64, value: &[u8]) -> Self {
        self.varint(field << 3 | 2);
        self.varint(value.len() as u64);
        self.0.extend_from_slice(value);
        self
    }

    /// Text.
    pub fn text(self, field: u64, value: &str) -> Self {
        self.bytes(field, value.as_bytes())
    }

    /// A message within.
    pub fn within(self, field: u64, value: &Message) -> Self {
        self.bytes(field, &value.0)
    }
}

/// Element types.
pub const FLOAT: i64 = 1;
/// 64-bit whole numbers.
pub const INT64: i64 = 7;
/// Truth values.
pub const BOOL: i64 = 9;

/// A value of these dimensions; names stand for any length.
pub fn value(name: &str, element: i64, dims: &[Result<i64, &str>]) -> Message {
    let shape = dims.iter().fold(Message::default(), |shape, dim| {
        let dim = match dim {
            Ok(length) => Message::default().whole(1, *length),
            Err(name) => Message::default().text(2, name),
        };
        shape.within(1, &dim)
    });
    let tensor = Message::default().whole(1, element).within(2, &shape);
    Message::default().text(1, name).within(2, &Message::default().within(1, &tensor))
}

/// A node of operator `operator`.
pub fn node(operator: &str, inputs: &[&str], outputs: &[&str], attributes: &[Message]) -> Message {
    let node = inputs.iter().fold(Message::default(), |node, input| node.text(1, input));
    let node = outputs.iter().fold(node, |node, output| node.text(2, output)).text(4, operator);
    attributes.iter().fold(node, |node, attribute| node.within(5, attribute))
}

/// A whole number of a node.
pub fn attribute(name: &str, value: i64) -> Message {
    Message::default().text(1, name).whole(3, value).whole(20, 2)
}

/// A graph of a node.
pub fn body(name: &str, graph: &Message) -> Message {
    Message::default().text(1, name).within(6, graph).whole(20, 5)
}

/// Floats of the graph.
pub fn floats(name: &str, dims: &[i64], values: &[f32]) -> Message {
    let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    let tensor = dims.iter().fold(Message::default(), |tensor, dim| tensor.whole(1, *dim));
    tensor.whole(2, FLOAT).text(8, name).bytes(9, &bytes)
}

/// Floats of the graph whose bytes lie in another file, from `offset` on.
pub fn outside(name: &str, dims: &[i64], location: &str, offset: usize) -> Message {
    let tensor = dims.iter().fold(Message::default(), |tensor, dim| tensor.whole(1, *dim));
    let entry = |key: &str, value: &str| Message::default().text(1, key).text(2, value);
    let tensor = tensor.whole(2, FLOAT).text(8, name).within(13, &entry("location", location));
    tensor.within(13, &entry("offset", &offset.to_string())).whole(14, 1)
}

/// A graph.
pub fn graph(nodes: &[Message], initializers: &[Message], inputs: &[Message], outputs: &[Message]) -> Message {
    let graph = nodes.iter().fold(Message::default(), |graph, node| graph.within(1, node)).text(2, "g");
    let graph = initializers.iter().fold(graph, |graph, tensor| graph.within(5, tensor));
    let graph = inputs.iter().fold(graph, |graph, value| graph.within(11, value));
    outputs.iter().fold(graph, |graph, value| graph.within(12, value))
}

/// A file.
pub fn file(graph: &Message) -> Vec<u8> {
    Message::default().whole(1, 8).within(7, graph).within(8, &Message::default().whole(2, 17)).0
}
