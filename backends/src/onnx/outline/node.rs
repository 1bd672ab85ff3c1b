//! A node of a graph: its operator, what it takes and gives, and what its attributes hold.

use super::shown;
use super::wire::Message;

/// Domains of ONNX Runtime's own operators, with the short name of the first.
pub(super) const DOMAINS: [&str; 10] = [
    "",
    "ai.onnx.ml",
    "ai.onnx.preview",
    "ai.onnx.preview.training",
    "ai.onnx.training",
    "com.microsoft",
    "com.microsoft.experimental",
    "com.microsoft.nchwc",
    "com.ms.internal.nhwc",
    "org.pytorch.aten",
];

/// The short name of a domain.
pub(super) fn short(domain: &str) -> &str {
    if domain == "ai.onnx" { "" } else { domain }
}

/// Domain, name, overload.
pub(super) type Operator<'a> = (&'a str, &'a str, &'a str);

/// A node before its attributes.
#[derive(Default)]
pub(super) struct Node<'a> {
    at: usize,
    name: &'a str,
    pub(super) operator: Operator<'a>,
    pub(super) inputs: Vec<&'a str>,
    pub(super) outputs: Vec<&'a str>,
    pub(super) attributes: Vec<Message<'a>>,
}

impl<'a> Node<'a> {
    /// One of nothing but an attribute.
    pub(super) fn of(attribute: Message<'a>) -> Self {
        Node { attributes: vec![attribute], ..Node::default() }
    }

    pub(super) fn read(message: Message<'a>) -> Result<Self, String> {
        let mut node = Node { at: message.at, ..Node::default() };
        for field in message.fields() {
            let field = field?;
            match field.number {
                1 => node.inputs.push(field.text()?),
                2 => node.outputs.push(field.text()?),
                3 => node.name = field.text()?,
                4 => node.operator.1 = field.text()?,
                5 => node.attributes.push(field.message()?),
                7 => node.operator.0 = short(field.text()?),
                8 => node.operator.2 = field.text()?,
                _ => {}
            }
        }
        Ok(node)
    }

    /// How messages call it.
    pub(super) fn label(&self) -> String {
        let (op, name) = (shown(self.operator.1), shown(self.name));
        if self.name.is_empty() { format!("node {op} at byte {}", self.at) } else { format!("node {name} of {op}") }
    }

    /// Graphs in its attributes.
    pub(super) fn graphs(&self) -> Result<Vec<Message<'a>>, String> {
        let mut graphs = Vec::new();
        for field in self.attributes.iter().flat_map(|attribute| attribute.fields()) {
            let field = field?;
            if matches!(field.number, 6 | 11) {
                graphs.push(field.message()?);
            }
        }
        Ok(graphs)
    }

    /// Names of classes, if this is a ZipMap.
    pub(super) fn classes(&self) -> Result<Option<(&'a str, Vec<String>)>, String> {
        let Some(output) =
            self.outputs.first().copied().filter(|_| self.operator.0 == "ai.onnx.ml" && self.operator.1 == "ZipMap")
        else {
            return Ok(None);
        };
        let (mut texts, mut numbers) = (Vec::new(), Vec::new());
        for attribute in &self.attributes {
            labels(*attribute, &mut texts, &mut numbers).map_err(|e| format!("{}: {e}", self.label()))?;
        }
        let names = if texts.is_empty() { numbers } else { texts };
        Ok((!names.is_empty()).then_some((output, names)))
    }
}

/// Adds the labels of an attribute of a ZipMap.
fn labels(attribute: Message<'_>, texts: &mut Vec<String>, numbers: &mut Vec<String>) -> Result<(), String> {
    let mut name = "";
    for field in attribute.fields() {
        let field = field?;
        if field.number == 1 {
            name = field.text()?;
        }
    }
    for field in attribute.fields() {
        let field = field?;
        match (name, field.number) {
            ("classlabels_int64s", 8) => field.wholes(|label| numbers.push(label.to_string()))?,
            ("classlabels_strings", 9) => texts.push(field.text()?.to_owned()),
            _ => {}
        }
    }
    Ok(())
}
