//! Sequences and maps as tensors. A classifier of scikit-learn gives, unless its converter was told otherwise, a map of
//! classes to probabilities for each row (`ZipMap`): here it is the table that it was made from.

use super::values::{Owner, borrow};
use crate::{DataType, Tensor};
use ort::value::{DynValue, TensorElementType, ValueType};

/// Names of classes, in the order of columns; `None` where the file does not tell.
pub(super) type Classes = Option<Vec<String>>;

/// A value of a map.
#[derive(Clone, Copy, Debug)]
enum Number {
    Float(f32),
    Whole(i64),
}

/// A sequence of tensors of one shape: they are put on top of each other.
pub(super) fn tensors(name: &str, value: &DynValue, owner: &Owner<'_>) -> Result<Tensor, String> {
    let parts: Vec<DynValue> = value.try_extract_sequence().map_err(|e| e.message().to_owned())?;
    let parts = parts.into_iter().map(|part| borrow(name, part, owner)).collect::<Result<Vec<_>, _>>()?;
    let mut rows = Vec::with_capacity(parts.len());
    for part in parts {
        let shape: Vec<usize> = std::iter::once(1).chain(part.shape().iter().copied()).collect();
        rows.push(part.reshaped(shape).map_err(|misfit| misfit.to_string())?);
    }
    let Some(first) = rows.first() else {
        let element = match value.dtype() {
            ValueType::Sequence(inner) => inner.tensor_type().and_then(super::values::datatype),
            _ => None,
        };
        return empty(name, element.unwrap_or(DataType::Fp32));
    };
    if rows.iter().any(|row| row.shape() != first.shape()) {
        return Err("its tensors differ in shape, and so make no tensor".into());
    }
    Tensor::stack(&rows.iter().collect::<Vec<_>>()).map_err(|misfit| misfit.to_string())
}

fn empty(name: &str, datatype: DataType) -> Result<Tensor, String> {
    let empty = match datatype {
        DataType::Bytes => Tensor::from_strings(name, vec![0], Vec::<&str>::new()),
        datatype => Tensor::from_bytes(name, datatype, vec![0], bytes::Bytes::new()),
    };
    empty.map_err(|misfit| misfit.to_string())
}

/// A sequence of maps: a row for each.
pub(super) fn maps(name: &str, value: &DynValue, classes: &Classes) -> Result<Tensor, String> {
    let maps: Vec<DynValue> = value.try_extract_sequence().map_err(|e| e.message().to_owned())?;
    let rows = maps.iter().map(entries).collect::<Result<Vec<_>, _>>()?;
    let columns = classes.as_ref().map_or_else(|| rows.first().map_or(0, Vec::len), Vec::len);
    table(name, vec![rows.len(), columns], rows, classes)
}

/// One map: a row.
pub(super) fn map(name: &str, value: &DynValue, classes: &Classes) -> Result<Tensor, String> {
    let row = entries(value)?;
    let columns = classes.as_ref().map_or(row.len(), Vec::len);
    table(name, vec![columns], vec![row], classes)
}

/// Rows in the order of `classes`, or of the first row's keys.
fn table(name: &str, shape: Vec<usize>, rows: Vec<Vec<(String, Number)>>, classes: &Classes) -> Result<Tensor, String> {
    let keys: Vec<String> = match (classes, rows.first()) {
        (Some(classes), _) => classes.clone(),
        (None, Some(row)) => row.iter().map(|(key, _)| key.clone()).collect(),
        (None, None) => Vec::new(),
    };
    let (mut floats, mut wholes) = (Vec::new(), Vec::new());
    for row in &rows {
        for key in &keys {
            let found = row.iter().find(|(known, _)| known == key);
            match found.ok_or_else(|| format!("a row has nothing for '{key}'"))?.1 {
                Number::Float(value) => floats.push(value),
                Number::Whole(value) => wholes.push(value),
            }
        }
        if row.len() != keys.len() {
            return Err(format!("a row has {} values; expected {}", row.len(), keys.len()));
        }
    }
    let table =
        if wholes.is_empty() { Tensor::from_vec(name, shape, floats) } else { Tensor::from_vec(name, shape, wholes) };
    table.map_err(|misfit| misfit.to_string())
}

/// Keys as text, in the map's own order.
fn entries(map: &DynValue) -> Result<Vec<(String, Number)>, String> {
    let ValueType::Map { key, value } = map.dtype() else {
        return Err("is no sequence of maps".into());
    };
    macro_rules! entries {
        ($key:ty, $value:ty, $number:expr) => {
            map.try_extract_key_values::<$key, $value>()
                .map(|pairs| pairs.into_iter().map(|(key, value)| (key.to_string(), $number(value))).collect())
                .map_err(|e| e.message().to_owned())
        };
    }
    match (key, value) {
        (TensorElementType::String, TensorElementType::Float32) => entries!(String, f32, Number::Float),
        (TensorElementType::Int64, TensorElementType::Float32) => entries!(i64, f32, Number::Float),
        (TensorElementType::String, TensorElementType::Int64) => entries!(String, i64, Number::Whole),
        (TensorElementType::Int64, TensorElementType::Int64) => entries!(i64, i64, Number::Whole),
        (key, value) => Err(format!("is a map of {key} to {value}, which makes no tensor")),
    }
}
