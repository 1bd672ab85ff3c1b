//! Inputs and outputs, as `config.pbtxt` lists them.

use super::{Fields, messages, note, only, sort};
use crate::pbtxt::{Message, Value};
use crate::settings::{PortSettings, port, text};
use crate::tensor::DataType;
use std::path::Path;

/// Fields of an input.
const INPUT: Fields = Fields {
    place: "input.",
    acting: &[
        "name",
        "data_type",
        "dims",
        "reshape",
        "optional",
        "format",
        "allow_ragged_batch",
        "is_shape_tensor",
        "is_non_linear_format_io",
    ],
    without_effect: &[],
    refused: &[],
};

/// Fields of an output.
const OUTPUT: Fields = Fields {
    place: "output.",
    acting: &["name", "data_type", "dims", "reshape", "label_filename", "is_shape_tensor", "is_non_linear_format_io"],
    without_effect: &[],
    refused: &[],
};

/// Fields that an ONNX model's port has only as false, and why.
const FALSE: super::Told = &[
    ("allow_ragged_batch", "the rows of a batch have one shape"),
    ("is_shape_tensor", "only engines of TensorRT have shape tensors"),
    ("is_non_linear_format_io", "tensors are laid out row by row"),
];

/// What is said of each input or output, whatever the model. Which of it the model can have is checked later.
pub(super) fn read(config: &Message, field: &str, root: &Path) -> Result<Vec<PortSettings>, String> {
    let ports = messages(config, field)?;
    let several = ports.len() > 1;
    let mut read = Vec::new();
    for message in ports {
        let name = message.text("name")?.unwrap_or_default();
        let port = port(message, field, root);
        read.push(port.map_err(|why| if several { format!("{field} '{name}': {why}") } else { why })?);
    }
    Ok(read)
}

fn port(message: &Message, field: &str, root: &Path) -> Result<PortSettings, String> {
    let fields = if field == "input" { &INPUT } else { &OUTPUT };
    sort(message, &[fields], &mut Vec::new())?;
    let reshape = message.message("reshape")?;
    reshape.map_or(Ok(()), |shape| only(shape, "reshape.", &["shape"]))?;
    Ok(PortSettings {
        name: message.text("name")?.unwrap_or_default().to_owned(),
        datatype: datatype(message, field)?,
        dims: dims(message, "dims", field)?,
        reshape: reshape.map(|shape| dims(shape, "shape", field)).transpose()?,
        optional: message.flag("optional")?.unwrap_or(false),
        labels: labels(message, root)?,
    })
}

fn datatype(port: &Message, field: &str) -> Result<Option<DataType>, String> {
    let Some(stated) = port.text("data_type")? else { return Ok(None) };
    let datatype = match stated.strip_prefix("TYPE_") {
        Some("STRING") => Some(DataType::Bytes),
        Some(name) => DataType::parse(name),
        None => None,
    };
    datatype.map(Some).ok_or_else(|| format!("data_type '{stated}' of '{field}' is not known"))
}

/// The lengths that `message` has under `name`.
fn dims(message: &Message, name: &str, field: &str) -> Result<Vec<i64>, String> {
    let mut dims = Vec::new();
    for dim in message.all(name) {
        let Value::Scalar(text) = dim else { return Err(format!("'{name}' of '{field}' are whole numbers")) };
        let length: i64 =
            text.parse().map_err(|_| format!("'{name}' of '{field}' has '{text}', which is no whole number"))?;
        dims.push(length);
    }
    Ok(dims)
}

/// The lines of a label file, which lies beside the configuration; empty ones at its end are none.
fn labels(port: &Message, root: &Path) -> Result<Vec<String>, String> {
    let Some(file) = port.text("label_filename")?.filter(|file| !file.is_empty()) else { return Ok(Vec::new()) };
    let plain = Path::new(file).components().count() == 1 && !file.starts_with('.');
    if !plain {
        return Err(format!("label_filename '{file}' is not the plain name of a file beside config.pbtxt"));
    }
    match text(&root.join(file)) {
        Ok(Some(text)) => Ok(text.trim_end_matches(['\r', '\n']).lines().map(str::to_owned).collect()),
        Ok(None) => Err(format!("label_filename '{file}': there is no such file")),
        Err(error) => Err(format!("label_filename '{file}': {}", error.reason)),
    }
}

/// Can an ONNX model have these? What would change tensors in a way that is not served is refused.
pub(super) fn check_for_graph(config: &Message, notes: &mut Vec<String>) -> Result<(), String> {
    for field in ["input", "output"] {
        let ports = messages(config, field)?;
        for message in &ports {
            let checked = check_port(message, field, notes);
            let name = message.text("name")?.unwrap_or_default();
            checked.map_err(|why| if ports.len() > 1 { format!("{field} '{name}': {why}") } else { why })?;
        }
    }
    Ok(())
}

fn check_port(message: &Message, place: &str, notes: &mut Vec<String>) -> Result<(), String> {
    for (field, why) in FALSE {
        if message.flag(field)? == Some(true) {
            return Err(format!("field '{place}.{field}' is not served: {why}"));
        }
    }
    if message.text("format")?.is_some_and(|stated| stated != "FORMAT_NONE") {
        note(notes, format!("'{place}.format' has no effect here: the graph has its own layout"));
    }
    Ok(())
}

/// Are their names and shapes such as a graph's?
pub(super) fn check_names(field: &str, ports: &[PortSettings]) -> Result<(), String> {
    port::check(field, ports)
}
