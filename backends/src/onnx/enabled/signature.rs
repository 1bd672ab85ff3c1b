//! What a graph takes and gives, and whether the settings say the same.

use super::flatten::Classes;
use super::values::datatype;
use crate::onnx::outline::{Dimension, OPTIONAL_MAX, Outline};
use crate::settings::PortSettings;
use crate::{DataType, Platform, Port, Settings, Signature};
use ort::session::Session;
use ort::value::{TensorElementType, ValueType};
use std::collections::BTreeMap;

/// How an output becomes a tensor.
#[derive(Clone, Debug)]
pub(super) enum Given {
    Tensor,
    /// A sequence of them.
    Tensors,
    /// A sequence of maps.
    Maps(Classes),
    Map(Classes),
}

/// What a graph takes and gives.
#[derive(Debug)]
pub(super) struct Interface {
    pub(super) signature: Signature,
    /// One for each output.
    pub(super) given: Vec<Given>,
    /// Shapes of the graph's own, by the names of ports that clients have otherwise.
    pub(super) reshapes: BTreeMap<String, Vec<i64>>,
    /// Names of dimensions, one list for each input, then for each output; empty where a dimension has none.
    pub(super) symbols: Vec<Vec<String>>,
}

/// Reads the interface of a graph, as far as the settings leave it.
///
/// # Errors
/// A port is of a type that the protocol lacks, or the settings contradict the graph.
pub(super) fn interface(session: &Session, outline: &Outline, settings: &Settings) -> Result<Interface, String> {
    let (mut inputs, mut outputs, mut given, mut symbols) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for outlet in session.inputs() {
        let (mut port, names) = input(outlet.name(), outlet.dtype(), false)?;
        port.any_shape = outline.unshaped.contains(outlet.name());
        inputs.push(port);
        symbols.push(names);
    }
    let overridable = session.overridable_initializers();
    for initializer in overridable.iter().filter(|_| overridable.len() <= OPTIONAL_MAX) {
        // One of another type can stay what it is.
        if let Ok((port, names)) = input(initializer.name(), initializer.dtype(), true) {
            inputs.push(port);
            symbols.push(names);
        }
    }
    for outlet in session.outputs() {
        let classes = outline.classes.get(outlet.name()).cloned();
        let stated = outline.shapes.get(outlet.name()).map(Vec::as_slice);
        let (port, how, names) = output(outlet.name(), outlet.dtype(), classes, stated)?;
        outputs.push(port);
        given.push(how);
        symbols.push(names);
    }
    let signature = Signature { inputs, outputs, strict: true, feature_names: Vec::new(), platform: Platform::Onnx };
    let mut interface = Interface { signature, given, reshapes: BTreeMap::new(), symbols };
    agree(&mut interface, settings)?;
    Ok(interface)
}

fn port(name: &str, datatype: DataType, shape: Vec<i64>) -> Port {
    Port { name: name.into(), datatype, also: Vec::new(), shape, any_shape: false, optional: false, labels: Vec::new() }
}

fn input(name: &str, kind: &ValueType, optional: bool) -> Result<(Port, Vec<String>), String> {
    match kind {
        ValueType::Tensor { ty, shape, dimension_symbols } => {
            let datatype = datatype(*ty)
                .ok_or_else(|| format!("input '{name}' is of type {ty}, which the protocol does not have"))?;
            Ok((Port { optional, ..port(name, datatype, shape.to_vec()) }, dimension_symbols.to_vec()))
        }
        ValueType::Optional(inner) => input(name, inner, true),
        other => Err(format!("input '{name}' is a {other}; requests have tensors only")),
    }
}

fn output(
    name: &str,
    kind: &ValueType,
    classes: Classes,
    stated: Option<&[Dimension]>,
) -> Result<(Port, Given, Vec<String>), String> {
    let known = |element| {
        datatype(element)
            .ok_or_else(|| format!("output '{name}' is of type {element}, which the protocol does not have"))
    };
    let columns = classes.as_ref().map_or(-1, |classes| classes.len() as i64);
    let labels = classes.clone().unwrap_or_default();
    match kind {
        ValueType::Tensor { ty, shape, dimension_symbols } => {
            let (shape, symbols) = joined(shape, dimension_symbols, stated);
            Ok((port(name, known(*ty)?, shape), Given::Tensor, symbols))
        }
        ValueType::Optional(inner) => output(name, inner, classes, stated),
        ValueType::Map { value, .. } => {
            let port = Port { labels, ..port(name, table(name, *value)?, vec![columns]) };
            Ok((port, Given::Map(classes), vec![String::new()]))
        }
        ValueType::Sequence(inner) => match &**inner {
            ValueType::Map { value, .. } => {
                let port = Port { labels, ..port(name, table(name, *value)?, vec![-1, columns]) };
                Ok((port, Given::Maps(classes), vec![String::new(), String::new()]))
            }
            ValueType::Tensor { ty, shape, dimension_symbols } => {
                let (shape, _) = joined(shape, dimension_symbols, stated);
                let shape: Vec<i64> = std::iter::once(-1).chain(shape).collect();
                let symbols = vec![String::new(); shape.len()];
                Ok((port(name, known(*ty)?, shape), Given::Tensors, symbols))
            }
            other => Err(format!("output '{name}' is a sequence of {other}, which makes no tensor")),
        },
    }
}

/// The shape of an output, and the names of its dimensions: what ONNX Runtime found, which it was not told, and where it
/// found nothing what the file states.
fn joined(found: &[i64], symbols: &[String], stated: Option<&[Dimension]>) -> (Vec<i64>, Vec<String>) {
    let stated = stated.filter(|stated| found.is_empty() || found.len() == stated.len()).unwrap_or_default();
    let places = 0..found.len().max(stated.len());
    let one = |place: usize| {
        let (length, name) = (found.get(place).copied().unwrap_or(-1), symbols.get(place).map(String::as_str));
        match stated.get(place) {
            Some(dimension) if length < 0 => (dimension.length, dimension.name.clone()),
            _ => (length, name.unwrap_or_default().to_owned()),
        }
    };
    places.map(one).unzip()
}

/// The type of a table of a map's values.
fn table(name: &str, value: TensorElementType) -> Result<DataType, String> {
    match value {
        TensorElementType::Float32 => Ok(DataType::Fp32),
        TensorElementType::Int64 => Ok(DataType::Int64),
        other => Err(format!("output '{name}' has maps to {other}; tables are made of float and int64")),
    }
}

/// Holds what the settings state against the graph, and takes over what they narrow.
fn agree(interface: &mut Interface, settings: &Settings) -> Result<(), String> {
    let Interface { signature, given, reshapes, symbols } = interface;
    let batched = settings.batched == Some(true);
    for stated in &settings.inputs {
        reshapes.extend(agree_one("input", stated, &mut signature.inputs, batched)?);
    }
    let unstated = signature.inputs.iter().find(|port| {
        !port.optional && !settings.inputs.is_empty() && settings.inputs.iter().all(|stated| stated.name != port.name)
    });
    if let Some(port) = unstated {
        return Err(format!("the settings list its inputs without '{}', which the graph needs", port.name));
    }
    for stated in &settings.outputs {
        reshapes.extend(agree_one("output", stated, &mut signature.outputs, batched)?);
    }
    if !settings.outputs.is_empty() {
        // Whoever lists outputs wants those alone.
        let wanted = |port: &Port| settings.outputs.iter().any(|stated| stated.name == port.name);
        let kept: Vec<bool> = signature.outputs.iter().map(wanted).collect();
        let (mut ports, mut hows, mut names) = (kept.iter(), kept.iter(), kept.iter());
        signature.outputs.retain(|_| ports.next().copied().unwrap_or(false));
        given.retain(|_| hows.next().copied().unwrap_or(false));
        let outputs = symbols.split_off(signature.inputs.len());
        symbols.extend(outputs.into_iter().filter(|_| names.next().copied().unwrap_or(false)));
    }
    for (index, port) in signature.outputs.iter().enumerate() {
        check_labels(port, settings.labels_of(index, &port.name).len())?;
    }
    Ok(())
}

/// Labels beyond the last value of a row are of another model. Where a length is open, there may be as many values.
fn check_labels(port: &Port, labels: usize) -> Result<(), String> {
    let row = match &port.shape[..] {
        // Nothing is known of it, or it has rows of one value, which nobody labels: that is no reason to refuse it.
        [] | [-1] => return Ok(()),
        whole @ [_] => whole,
        [_, row @ ..] => row,
    };
    let values = row.iter().try_fold(1usize, |values, &length| values.checked_mul(usize::try_from(length).ok()?));
    match values.filter(|values| labels > *values) {
        Some(values) => Err(format!(
            "the settings have {labels} labels for output '{}', but a row of it has {values} values: {:?}",
            port.name, port.shape
        )),
        None => Ok(()),
    }
}

/// The port's name and the graph's own shape, where the settings give clients another.
fn agree_one(
    what: &str,
    stated: &PortSettings,
    ports: &mut [Port],
    batched: bool,
) -> Result<Option<(String, Vec<i64>)>, String> {
    let known: Vec<&str> = ports.iter().map(|port| port.name.as_str()).collect();
    let known = known.join(", ");
    let port = ports.iter_mut().find(|port| port.name == stated.name);
    let port =
        port.ok_or_else(|| format!("{what} '{}' of the settings is none of the graph's: {known}", stated.name))?;
    if let Some(datatype) = stated.datatype.filter(|datatype| *datatype != port.datatype) {
        return Err(format!("{what} '{}' is {} in the graph; the settings say {datatype}", stated.name, port.datatype));
    }
    if stated.optional && !port.optional {
        return Err(format!(
            "{what} '{}' is optional in the settings, but the graph cannot do without it",
            stated.name
        ));
    }
    if stated.dims.is_empty() {
        return Ok(None);
    }
    let whole = |dims: &[i64]| -> Vec<i64> { batched.then_some(-1).into_iter().chain(dims.iter().copied()).collect() };
    let dims = whole(stated.reshape.as_ref().unwrap_or(&stated.dims));
    if port.any_shape {
        port.shape.clone_from(&dims);
        port.any_shape = false;
    }
    // Triton has no scalars: it states them as one element.
    let scalar = port.shape.is_empty() && dims == [1];
    let fits = |(stated, found): (&i64, &i64)| *stated < 0 || *found < 0 || stated == found;
    if !scalar && (dims.len() != port.shape.len() || !dims.iter().zip(&port.shape).all(fits)) {
        let batch = if batched { ", the batch dimension that max_batch_size adds included" } else { "" };
        return Err(format!(
            "{what} '{}' has shape {:?} in the graph; the settings say {dims:?}{batch}",
            stated.name, port.shape
        ));
    }
    if scalar {
        port.shape = vec![1];
        return Ok(Some((stated.name.clone(), Vec::new())));
    }
    if stated.reshape.is_some() {
        port.shape = whole(&stated.dims);
        return Ok(Some((stated.name.clone(), dims)));
    }
    for (length, stated) in port.shape.iter_mut().zip(&dims) {
        *length = (*length).max(*stated);
    }
    Ok(None)
}

/// What is open in `shape` for a tensor of `count` elements, whose first dimension has `rows` where that is a batch.
///
/// # Errors
/// The elements do not fill it.
pub(super) fn closed(shape: &[i64], count: usize, rows: Option<usize>) -> Result<Vec<usize>, String> {
    let mut closed: Vec<Option<usize>> = shape.iter().map(|length| usize::try_from(*length).ok()).collect();
    if let (Some(first), Some(rows)) = (closed.first_mut(), rows) {
        *first = Some(rows);
    }
    let product = |lengths: &[usize]| {
        lengths.iter().try_fold(1usize, |product, length| product.checked_mul(*length)).unwrap_or(usize::MAX)
    };
    let known = product(&closed.iter().flatten().copied().collect::<Vec<_>>());
    let rest = count.checked_div(known).unwrap_or(0);
    let closed: Vec<usize> = closed.into_iter().map(|length| length.unwrap_or(rest)).collect();
    if product(&closed) == count {
        Ok(closed)
    } else {
        Err(format!("{count} values do not fill the shape {shape:?} that the graph takes"))
    }
}
