//! Sequences and maps as tensors. A classifier of scikit-learn gives, unless its converter was told otherwise, a map of
//! classes to probabilities for each row (`ZipMap`): here it is the table that it was made from.

use super::values::{Owner, borrow};
use crate::{Call, DataType, Element, InferError, Tensor};
use ort::value::{DynValue, IntoTensorElementType, PrimitiveTensorElementType, TensorElementType, ValueType};
use std::collections::HashMap;
use std::fmt::Display;
use std::hash::Hash;
use std::str::FromStr;

/// Names of classes, in the order of columns; `None` where the file does not tell.
pub(super) type Classes = Option<Vec<String>>;

/// Why there is no tensor.
#[derive(Debug)]
pub(super) enum Failure {
    /// What the value holds makes none.
    Shapeless(String),
    /// Nobody waits for it any more.
    Ended(InferError),
}

impl From<String> for Failure {
    fn from(reason: String) -> Self {
        Failure::Shapeless(reason)
    }
}

impl From<InferError> for Failure {
    fn from(error: InferError) -> Self {
        Failure::Ended(error)
    }
}

/// A sequence of tensors of one shape: they are put on top of each other.
pub(super) fn tensors(name: &str, value: &DynValue, owner: &Owner<'_>) -> Result<Tensor, Failure> {
    let parts = parts(value)?;
    let mut rows: Vec<Tensor> = Vec::with_capacity(parts.len());
    for part in parts {
        owner.call.check()?;
        let part = borrow(name, part, owner)?;
        let shape: Vec<usize> = std::iter::once(1).chain(part.shape().iter().copied()).collect();
        rows.push(part.reshaped(shape).map_err(|misfit| misfit.to_string())?);
    }
    let Some(first) = rows.first() else {
        let element = match value.dtype() {
            ValueType::Sequence(inner) => inner.tensor_type().and_then(super::values::datatype),
            _ => None,
        };
        return Ok(empty(name, element.unwrap_or(DataType::Fp32))?);
    };
    if rows.iter().any(|row| row.shape() != first.shape()) {
        return Err(Failure::Shapeless("its tensors differ in shape, and so make no tensor".into()));
    }
    Ok(Tensor::stack(&rows.iter().collect::<Vec<_>>()).map_err(|misfit| misfit.to_string())?)
}

fn parts(value: &DynValue) -> Result<Vec<DynValue>, String> {
    value.try_extract_sequence().map_err(|e| e.message().to_owned())
}

fn empty(name: &str, datatype: DataType) -> Result<Tensor, String> {
    let empty = match datatype {
        DataType::Bytes => Tensor::from_strings(name, vec![0], Vec::<&str>::new()),
        datatype => Tensor::from_bytes(name, datatype, vec![0], bytes::Bytes::new()),
    };
    empty.map_err(|misfit| misfit.to_string())
}

/// A sequence of maps: a row for each.
pub(super) fn maps(name: &str, value: &DynValue, classes: &Classes, call: &Call<'_>) -> Result<Tensor, Failure> {
    let maps = parts(value)?;
    // Where there is no row to tell what is in it, the sequence does.
    let kind = match (maps.first(), value.dtype()) {
        (Some(first), _) => first.dtype(),
        (None, ValueType::Sequence(inner)) => &**inner,
        (None, other) => other,
    };
    let shape = |columns| vec![maps.len(), columns];
    table(name, kind, &Rows { maps: &maps, classes, call }, shape)
}

/// One map: a row.
pub(super) fn map(name: &str, value: &DynValue, classes: &Classes, call: &Call<'_>) -> Result<Tensor, Failure> {
    let maps = std::slice::from_ref(value);
    table(name, value.dtype(), &Rows { maps, classes, call }, |columns| vec![columns])
}

/// Maps that are to be the rows of a table.
struct Rows<'a> {
    maps: &'a [DynValue],
    classes: &'a Classes,
    call: &'a Call<'a>,
}

/// Maps of this kind as a tensor, whose shape follows from the number of columns.
fn table(
    name: &str,
    kind: &ValueType,
    rows: &Rows<'_>,
    shape: impl FnOnce(usize) -> Vec<usize>,
) -> Result<Tensor, Failure> {
    let ValueType::Map { key, value } = kind else {
        return Err(Failure::Shapeless("is no sequence of maps".into()));
    };
    macro_rules! table {
        ($key:ty, $value:ty) => {{
            let (columns, values) = flat::<$key, $value>(rows)?;
            Tensor::from_vec(name, shape(columns), values)
        }};
    }
    let table = match (key, value) {
        (TensorElementType::String, TensorElementType::Float32) => table!(String, f32),
        (TensorElementType::Int64, TensorElementType::Float32) => table!(i64, f32),
        (TensorElementType::String, TensorElementType::Int64) => table!(String, i64),
        (TensorElementType::Int64, TensorElementType::Int64) => table!(i64, i64),
        (key, value) => {
            return Err(Failure::Shapeless(format!("is a map of {key} to {value}, which makes no tensor")));
        }
    };
    Ok(table.map_err(|misfit| misfit.to_string())?)
}

/// How many columns there are, and values row by row: in the order of the classes, or of the first row's keys.
fn flat<K, V>(rows: &Rows<'_>) -> Result<(usize, Vec<V>), Failure>
where
    K: IntoTensorElementType + Clone + Hash + Eq + Display + FromStr,
    V: Element + PrimitiveTensorElementType + Default,
{
    let mut columns = rows.classes.as_ref().map(|classes| Columns::<K>::of(classes)).transpose()?;
    let mut values: Vec<V> = Vec::new();
    for map in rows.maps {
        rows.call.check()?;
        let (keys, row): (Vec<K>, Vec<V>) =
            map.try_extract_key_values::<K, V>().map_err(|e| e.message().to_owned())?.into_iter().unzip();
        let columns = match &mut columns {
            Some(columns) => columns,
            none => none.insert(Columns::new(keys.clone())?),
        };
        let begin = values.len();
        values.resize(begin + row.len(), V::default());
        for (value, place) in row.into_iter().zip(columns.places(keys)?) {
            if let Some(slot) = values.get_mut(begin + place) {
                *slot = value;
            }
        }
    }
    Ok((columns.map_or(0, |columns| columns.known.len()), values))
}

/// Which column a key stands for.
struct Columns<K> {
    known: HashMap<K, usize>,
    /// Keys of the row before, and their places: rows mostly have the same ones in the same order.
    keys: Vec<K>,
    places: Vec<usize>,
}

impl<K: Clone + Hash + Eq + Display + FromStr> Columns<K> {
    fn of(classes: &[String]) -> Result<Self, String> {
        let key = |class: &String| class.parse::<K>().map_err(|_| format!("its class '{class}' is no key of its maps"));
        Columns::new(classes.iter().map(key).collect::<Result<_, _>>()?)
    }

    fn new(keys: Vec<K>) -> Result<Self, String> {
        let mut known = HashMap::with_capacity(keys.len());
        for (place, key) in keys.into_iter().enumerate() {
            if known.insert(key.clone(), place).is_some() {
                return Err(format!("two of its classes are called '{key}', and a map has one value for both"));
            }
        }
        Ok(Columns { known, keys: Vec::new(), places: Vec::new() })
    }

    /// The columns of a row's values. No two are the same, and each column has one.
    fn places(&mut self, keys: Vec<K>) -> Result<impl Iterator<Item = usize>, String> {
        if keys.len() != self.known.len() {
            return Err(format!("a row has {} values; expected {}", keys.len(), self.known.len()));
        }
        if keys != self.keys {
            let place =
                |key: &K| self.known.get(key).copied().ok_or_else(|| format!("a row has '{key}', which is no class"));
            self.places = keys.iter().map(place).collect::<Result<_, _>>()?;
            self.keys = keys;
        }
        Ok(self.places.iter().copied())
    }
}

#[cfg(test)]
mod tests {
    use super::Columns;

    fn places(columns: &mut Columns<String>, keys: &[&str]) -> Result<Vec<usize>, String> {
        let keys = keys.iter().map(|key| (*key).to_owned()).collect();
        columns.places(keys).map(Iterator::collect)
    }

    #[test]
    fn values_stand_where_their_class_does_in_whatever_order_they_come() {
        let classes = ["b", "a", "c"].map(str::to_owned);
        let mut columns = Columns::of(&classes).unwrap();
        assert_eq!(places(&mut columns, &["a", "b", "c"]), Ok(vec![1, 0, 2]));
        assert_eq!(places(&mut columns, &["a", "b", "c"]), Ok(vec![1, 0, 2]));
        assert_eq!(places(&mut columns, &["c", "b", "a"]), Ok(vec![2, 0, 1]));
        assert_eq!(places(&mut columns, &["c", "b", "d"]), Err("a row has 'd', which is no class".into()));
        assert_eq!(places(&mut columns, &["c", "b"]), Err("a row has 2 values; expected 3".into()));
        assert_eq!(places(&mut columns, &["c", "b", "a"]), Ok(vec![2, 0, 1]));
    }

    #[test]
    fn classes_of_one_name_are_refused() {
        let twice = Columns::<i64>::of(&["5", "-3", "5"].map(str::to_owned)).err().unwrap();
        assert_eq!(twice, "two of its classes are called '5', and a map has one value for both");
        assert!(Columns::<i64>::of(&["five".to_owned()]).is_err());
    }
}
