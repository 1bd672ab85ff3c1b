//! What is said of one input or output of a model.

use crate::tensor::DataType;
use serde::Deserialize;
use serde::de::{Deserializer, Error};

/// What `config.pbtxt` or `model.toml` say of one input or output. What they leave open, the model's file tells.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PortSettings {
    /// Its name; empty where a tree model's is not stated.
    pub name: String,
    /// Of its elements.
    #[serde(default, deserialize_with = "datatype")]
    pub datatype: Option<DataType>,
    /// Its shape, where -1 is any length; empty where it is not stated. Without the first dimension where
    /// [`Settings::batched`](super::Settings::batched) is true.
    #[serde(default)]
    pub dims: Vec<i64>,
    /// The shape that the graph has, where clients have `dims`: the same numbers otherwise laid out. -1 once at most.
    #[serde(default)]
    pub reshape: Option<Vec<i64>>,
    /// May an input be left out?
    #[serde(default)]
    pub optional: bool,
    /// Labels of an output's classes, for the classification extension.
    #[serde(default)]
    pub labels: Vec<String>,
}

/// The datatype and width of an input or output, as far as they are stated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PortType {
    /// Of its elements.
    pub datatype: Option<DataType>,
    /// Length of its last dimension.
    pub columns: Option<usize>,
}

impl PortSettings {
    /// The name and type that it states for a model with no other port of its kind.
    pub(super) fn alone(&self) -> (Option<String>, PortType) {
        let columns = self.dims.last().and_then(|length| usize::try_from(*length).ok());
        (Some(self.name.clone()).filter(|name| !name.is_empty()), PortType { datatype: self.datatype, columns })
    }
}

/// Are these what a graph can have? `kind` is what errors call them.
pub(super) fn check(kind: &str, ports: &[PortSettings]) -> Result<(), String> {
    for (index, port) in ports.iter().enumerate() {
        let name = &port.name;
        if name.is_empty() {
            return Err(format!("an entry of '{kind}' has no 'name', by which a graph's are told apart"));
        }
        if ports[..index].iter().any(|earlier| earlier.name == *name) {
            return Err(format!("two entries of '{kind}' are named '{name}'"));
        }
        if let Some(reshape) = &port.reshape {
            if reshape.iter().filter(|length| **length < 0).count() > 1 {
                return Err(format!("'reshape' of {kind} '{name}' is {reshape:?}; at most one length may be open"));
            }
            if port.dims.is_empty() {
                return Err(format!("{kind} '{name}' has 'reshape' without 'dims', the shape that clients have"));
            }
        }
        let lengths = port.dims.iter().chain(port.reshape.iter().flatten());
        if let Some(length) = lengths.clone().find(|length| **length < -1) {
            return Err(format!("'dims' of {kind} '{name}' has {length}; expected a length, or -1 for any"));
        }
        if let Some(reshape) = &port.reshape {
            let stated = |why| format!("'reshape' of {kind} '{name}' is {reshape:?}, {why}");
            as_many(&port.dims, reshape).map_err(stated)?;
        }
    }
    Ok(())
}

/// Have both shapes as many values? Otherwise every request would fail. Of open ones that is seen when one comes.
fn as_many(dims: &[i64], reshape: &[i64]) -> Result<(), String> {
    let count = |shape: &[i64]| shape.iter().fold(1i64, |count, length| count.saturating_mul(*length));
    let is_open = |shape: &[i64]| shape.contains(&-1);
    match (is_open(dims), is_open(reshape)) {
        (true, true) => Ok(()),
        (false, false) if count(dims) == count(reshape) => Ok(()),
        (false, false) => {
            let (own, other) = (count(reshape), count(dims));
            Err(format!("of {own} values, but its 'dims', {dims:?}, have {other}: expected are as many"))
        }
        _ => Err(format!("but its 'dims' are {dims:?}: expected is -1 in both or in neither")),
    }
}

fn datatype<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<DataType>, D::Error> {
    let name = String::deserialize(deserializer)?;
    DataType::parse(&name).map(Some).ok_or_else(|| {
        let known: Vec<_> = DataType::ALL.iter().map(|datatype| datatype.name()).collect();
        D::Error::custom(format!("datatype '{name}' is not known; known are {}", known.join(", ")))
    })
}
