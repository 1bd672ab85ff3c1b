//! v1 requests for models whose inputs have names and types of their own, as TensorFlow Serving takes them:
//!
//! ```text
//! {"instances": [[1, 2], [3, 4]]}                     the one input
//! {"instances": [{"age": 3, "job": "x"}, {...}]}      rows: each input's values on top of each other
//! {"inputs": {"age": [[3], [4]], "job": [["x"], ...]}}  columns: each input whole
//! ```

use super::value::{Members, Request, Value, member};
use crate::dataplane::Infer;
use crate::error::Error;
use backends::{DataType, Port, Signature, Tensor};
use half::{bf16, f16};
use protocol::json::excerpt;
use protocol::v1::{Instances, Numbers};

/// Reads a request.
///
/// # Errors
/// Says what is wrong and where.
pub(super) fn decode(body: &[u8], signature: &Signature) -> Result<Infer, Error> {
    if signature.inputs.is_empty() {
        return nothing(body);
    }
    if let [port] = &signature.inputs[..]
        && port.datatype != DataType::Bytes
        && let Ok((_, Instances::Numbers { shape, values })) = protocol::v1::parse(body, &[])
        && let Some(input) = dense(port, shape, values)
    {
        return Ok(Infer { inputs: vec![input?], ..Infer::default() });
    }
    let request = Request::read(body)?;
    let inputs = match (&request.inputs, &request.instances) {
        (Some(Value::Object(columns)), _) => whole(columns, signature)?,
        (Some(list @ Value::List(_)), _) => vec![tensor(only(signature, "inputs")?, &[list], Leading::Kept)?],
        (Some(_), _) => return Err(Error::Invalid("Expected \"inputs\" to be a list or an object".into())),
        (None, Some(Value::List(rows))) => rows_of(rows, signature)?,
        (None, Some(_)) => return Err(Error::Invalid("Expected \"instances\" to be a list".into())),
        (None, None) => {
            return Err(Error::Invalid("expected \"instances\" or \"inputs\" in the request".into()));
        }
    };
    Ok(Infer { inputs, ..Infer::default() })
}

/// A request for a model that takes nothing.
fn nothing(body: &[u8]) -> Result<Infer, Error> {
    let request = Request::read(body)?;
    let empty = |value: &Value<'_>| matches!(value, Value::Object(members) if members.is_empty());
    match (&request.inputs, &request.instances) {
        (Some(inputs), None) if empty(inputs) => Ok(Infer::default()),
        (None, Some(Value::List(rows))) if matches!(&rows[..], [row] if empty(row)) => Ok(Infer::default()),
        _ => Err(Error::Invalid("the model takes no inputs; send {\"inputs\": {}}".into())),
    }
}

/// The one input of a model that has no other.
fn only<'a>(signature: &'a Signature, field: &str) -> Result<&'a Port, Error> {
    let needed: Vec<&Port> = signature.inputs.iter().filter(|port| !port.optional).collect();
    match needed[..] {
        [port] => Ok(port),
        _ => Err(Error::Invalid(format!(
            "{field}: the model has the inputs {}; name them: {{\"instances\": [{{\"{}\": ...}}]}}",
            names(signature),
            signature.inputs.first().map_or("", |port| &port.name)
        ))),
    }
}

fn names(signature: &Signature) -> String {
    signature.inputs.iter().map(|port| port.name.as_str()).collect::<Vec<_>>().join(", ")
}

fn port<'a>(signature: &'a Signature, name: &str) -> Result<&'a Port, Error> {
    signature.inputs.iter().find(|port| port.name == name).ok_or_else(|| {
        Error::Invalid(format!("unexpected input '{name}'; the model has the inputs {}", names(signature)))
    })
}

/// `inputs` as an object.
fn whole(columns: &Members<'_>, signature: &Signature) -> Result<Vec<Tensor>, Error> {
    columns.iter().map(|(name, value)| tensor(port(signature, name)?, &[value], Leading::Kept)).collect()
}

/// `instances`.
fn rows_of(rows: &[Value<'_>], signature: &Signature) -> Result<Vec<Tensor>, Error> {
    let Some(Value::Object(first)) = rows.first() else {
        let rows: Vec<&Value<'_>> = rows.iter().collect();
        return Ok(vec![tensor(only(signature, "instances")?, &rows, Leading::Rows)?]);
    };
    let mut tensors = Vec::with_capacity(first.len());
    for (name, _) in first {
        let port = port(signature, name)?;
        let values = rows.iter().enumerate().map(|(index, row)| {
            let value = row.members().and_then(|members| member(members, name));
            value.ok_or_else(|| Error::Invalid(format!("instances[{index}] lacks '{name}', which others have")))
        });
        tensors.push(tensor(port, &values.collect::<Result<Vec<_>, _>>()?, Leading::Rows)?);
    }
    let unknown = |row: &Value<'_>| {
        let (name, _) = row.members()?.iter().find(|(name, _)| member(first, name).is_none())?;
        Some(excerpt(name).into_owned())
    };
    if let Some((index, name)) = rows.iter().enumerate().find_map(|(index, row)| Some((index, unknown(row)?))) {
        return Err(Error::Invalid(format!("instances[{index}] has '{name}', which others lack")));
    }
    Ok(tensors)
}

/// What a list of values stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Leading {
    /// The first dimension.
    Rows,
    /// Nothing: there is one value, and it is all.
    Kept,
}

/// Values in lists of lists, flat.
#[derive(Default)]
struct Flat<'v, 'a> {
    shape: Vec<usize>,
    values: Vec<&'v Value<'a>>,
}

impl<'v, 'a> Flat<'v, 'a> {
    /// `depth` is that of `value`; the first path down says how long lists are.
    fn add(&mut self, value: &'v Value<'a>, depth: usize, place: &str) -> Result<(), Error> {
        let Value::List(items) = value else {
            if self.shape.len() > depth {
                return Err(Error::Values(format!(
                    "{place}: a value where others have a list of {}",
                    self.shape[depth]
                )));
            }
            self.values.push(value);
            return Ok(());
        };
        match self.shape.get(depth) {
            Some(length) if *length != items.len() => {
                return Err(Error::Values(format!("{place}: lists of {length} and of {} values", items.len())));
            }
            Some(_) => {}
            None if self.values.is_empty() => self.shape.push(items.len()),
            None => return Err(Error::Values(format!("{place}: a list where others have a value"))),
        }
        items.iter().try_for_each(|item| self.add(item, depth + 1, place))
    }
}

fn tensor(port: &Port, values: &[&Value<'_>], leading: Leading) -> Result<Tensor, Error> {
    let place = format!("input '{}'", port.name);
    let mut flat = Flat::default();
    if leading == Leading::Rows {
        flat.shape.push(values.len());
    }
    let depth = flat.shape.len();
    values.iter().try_for_each(|value| flat.add(value, depth, &place))?;
    let Flat { shape, values } = flat;
    let shape = fitted(shape, port)?;
    if port.datatype == DataType::Bytes {
        let texts = values.iter().map(|value| match value {
            Value::Text(text) => Ok(&**text),
            other => Err(Error::Values(format!("{place} takes text; {} is none", other.shown()))),
        });
        let texts = texts.collect::<Result<Vec<&str>, Error>>()?;
        return Ok(Tensor::from_strings(port.name.as_str(), shape, texts)?);
    }
    let none = |value: &Value<'_>| Error::Values(format!("{place}: {} is no number", value.shown()));
    if is_integer(port.datatype) {
        return integers(port, shape, values, |value| match (value.integer(), value) {
            (Some(value), _) => Ok(value),
            (None, Value::Null) => Err(lacks(port, "NaN")),
            (None, Value::Number(number)) => Err(lacks(port, &excerpt(number))),
            (None, other) => Err(none(other)),
        });
    }
    let values = values.iter().map(|value| value.float().ok_or_else(|| none(value)));
    floats(port, shape, values.collect::<Result<_, _>>()?)
}

/// Floats below it are as exact as they were written, if they are whole: 2^53.
const EXACT: f64 = 9_007_199_254_740_992.0;

/// A dense array of numbers for the one input. `None` where some are whole and some are not, and the model takes whole
/// ones: as floats they would be rounded.
fn dense(port: &Port, shape: Vec<usize>, values: Numbers) -> Option<Result<Tensor, Error>> {
    let values = match (values, is_integer(port.datatype)) {
        (Numbers::Whole(values), true) => {
            return Some(fitted(shape, port).and_then(|shape| integers(port, shape, values, |value| Ok(value.into()))));
        }
        (Numbers::Whole(values), false) => values.into_iter().map(|value| value as f64).collect(),
        (Numbers::Float(values) | Numbers::Object(values), false) => values,
        (Numbers::Float(values), true) if values.iter().all(|value| value.fract() == 0.0 && value.abs() < EXACT) => {
            let whole = |shape| integers(port, shape, values, |value| Ok(value as i128));
            return Some(fitted(shape, port).and_then(whole));
        }
        (_, true) => return None,
    };
    Some(fitted(shape, port).and_then(|shape| floats(port, shape, values)))
}

/// One value in a row is one column, where the model has one. Where it takes any number of them, a list of values may be
/// meant as one row or as one column.
fn fitted(mut shape: Vec<usize>, port: &Port) -> Result<Vec<usize>, Error> {
    // An empty list is no rows, whatever these are.
    if let ([_, row @ ..], false, [0]) = (&port.shape[..], port.any_shape, &shape[..]) {
        shape.extend(row.iter().map(|length| usize::try_from(*length).unwrap_or(1)));
        return Ok(shape);
    }
    if port.any_shape || shape.len() + 1 != port.shape.len() {
        return Ok(shape);
    }
    match port.shape[..] {
        [1 | -1] | [_, 1] => shape.push(1),
        [.., -1] => {
            return Err(Error::Values(format!(
                "input '{}' takes the shape {:?}, and has values where that has lists of any length: write 1 as [1]",
                port.name, port.shape
            )));
        }
        _ => {}
    }
    Ok(shape)
}

fn is_integer(datatype: DataType) -> bool {
    use DataType::{Int8, Int16, Int32, Int64, Uint8, Uint16, Uint32, Uint64};
    matches!(datatype, Int8 | Int16 | Int32 | Int64 | Uint8 | Uint16 | Uint32 | Uint64)
}

fn lacks(port: &Port, value: &str) -> Error {
    Error::Values(format!("input '{}' takes {}, which has no {value}", port.name, port.datatype))
}

/// Numbers as the type that the model takes, converted as numpy's `astype` would.
fn floats(port: &Port, shape: Vec<usize>, values: Vec<f64>) -> Result<Tensor, Error> {
    let name = port.name.as_str();
    Ok(match port.datatype {
        DataType::Fp64 => Tensor::from_vec(name, shape, values),
        DataType::Fp32 => Tensor::from_vec(name, shape, values.into_iter().map(|v| v as f32).collect()),
        DataType::Fp16 => Tensor::from_vec(name, shape, values.into_iter().map(f16::from_f64).collect()),
        DataType::Bf16 => Tensor::from_vec(name, shape, values.into_iter().map(bf16::from_f64).collect()),
        DataType::Bool => Tensor::from_bools(name, shape, values.into_iter().map(|v| u8::from(v != 0.0)).collect()),
        other => return Err(Error::Values(format!("input '{name}' takes {other}, not floats"))),
    }?)
}

/// Whole numbers as the type that the model takes; one that the type lacks is an error.
fn integers<V>(
    port: &Port,
    shape: Vec<usize>,
    values: Vec<V>,
    read: impl Fn(V) -> Result<i128, Error>,
) -> Result<Tensor, Error> {
    macro_rules! fitting {
        ($type:ty) => {{
            let fit = |value| {
                let value = read(value)?;
                <$type>::try_from(value).map_err(|_| lacks(port, &value.to_string()))
            };
            let values = values.into_iter().map(fit).collect::<Result<Vec<$type>, Error>>()?;
            Tensor::from_vec(port.name.as_str(), shape, values)
        }};
    }
    Ok(match port.datatype {
        DataType::Int8 => fitting!(i8),
        DataType::Int16 => fitting!(i16),
        DataType::Int32 => fitting!(i32),
        DataType::Int64 => fitting!(i64),
        DataType::Uint8 => fitting!(u8),
        DataType::Uint16 => fitting!(u16),
        DataType::Uint32 => fitting!(u32),
        DataType::Uint64 => fitting!(u64),
        other => return Err(Error::Values(format!("input '{}' takes {other}, not whole numbers", port.name))),
    }?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn signature(ports: &[(&str, DataType, &[i64])]) -> Signature {
        let port = |(name, datatype, shape): &(&str, DataType, &[i64])| Port {
            name: (*name).into(),
            datatype: *datatype,
            also: Vec::new(),
            shape: shape.to_vec(),
            optional: false,
            any_shape: false,
            labels: Vec::new(),
        };
        Signature {
            inputs: ports.iter().map(port).collect(),
            outputs: Vec::new(),
            strict: true,
            feature_names: Vec::new(),
            platform: backends::Platform::Onnx,
        }
    }

    fn shapes(body: &str, signature: &Signature) -> Result<Vec<(String, Vec<usize>)>, String> {
        let request = decode(body.as_bytes(), signature).map_err(|error| error.message())?;
        Ok(request.inputs.iter().map(|tensor| (tensor.name().to_owned(), tensor.shape().to_vec())).collect())
    }

    #[test]
    fn the_one_input_is_the_list() {
        let one = signature(&[("x", DataType::Int64, &[-1, 2])]);
        let request = decode(br#"{"instances": [[1, 2], [3, 4]]}"#, &one).unwrap();
        assert_eq!(request.inputs[0].values::<i64>(), Some(&[1, 2, 3, 4][..]));
        assert_eq!(shapes(r#"{"inputs": [[1, 2]]}"#, &one).unwrap(), [("x".into(), vec![1, 2])]);
        let error = shapes(r#"{"instances": [[1.5, 2]]}"#, &one).unwrap_err();
        assert!(error.contains("'x' takes INT64, which has no 1.5"), "{error}");
        let error = shapes(r#"{"instances": [["a", "b"]]}"#, &one).unwrap_err();
        assert!(error.contains("is no number"), "{error}");
    }

    #[test]
    fn a_value_is_a_column_where_the_model_has_one() {
        for (port, body, wanted) in [
            (&[-1, 1][..], r#"{"instances": [1, 2]}"#, Ok(vec![2, 1])),
            (&[-1], r#"{"instances": [1, 2]}"#, Ok(vec![2])),
            (&[-1], r#"{"inputs": {"x": 1}}"#, Ok(vec![1])),
            (&[1], r#"{"inputs": {"x": 1}}"#, Ok(vec![1])),
            (&[4, 1], r#"{"inputs": {"x": [1, 2, 3, 4]}}"#, Ok(vec![4, 1])),
            (&[-1, -1], r#"{"instances": [[1], [2]]}"#, Ok(vec![2, 1])),
            (&[-1, -1], r#"{"instances": []}"#, Ok(vec![0, 1])),
            (&[-1, -1], r#"{"instances": [1, 2]}"#, Err("takes the shape [-1, -1], and has values where")),
            (&[-1, -1], r#"{"instances": [{"x": 1}, {"x": 2}]}"#, Err("input 'x' takes the shape [-1, -1]")),
            (&[-1, 3, -1], r#"{"inputs": {"x": [[1, 2, 3]]}}"#, Err("write 1 as [1]")),
        ] {
            match (shapes(body, &signature(&[("x", DataType::Fp32, port)])), wanted) {
                (Ok(found), Ok(wanted)) => assert_eq!(found, [("x".to_owned(), wanted)], "{body}"),
                (Err(error), Err(what)) => assert!(error.contains(what), "{body}: {error}"),
                (found, wanted) => panic!("{body}: {found:?} is not {wanted:?}"),
            }
        }
    }

    #[test]
    fn a_model_without_inputs_takes_none() {
        let none = signature(&[]);
        for body in [r#"{"inputs": {}}"#, r#"{"instances": [{}]}"#] {
            assert_eq!(shapes(body, &none), Ok(Vec::new()), "{body}");
        }
        for body in [r#"{"instances": [1]}"#, r#"{"inputs": {"x": 1}}"#, r#"{"instances": [{}, {}]}"#, "{}"] {
            let error = shapes(body, &none).unwrap_err();
            assert_eq!(error, "the model takes no inputs; send {\"inputs\": {}}", "{body}");
        }
        assert!(shapes("{", &none).unwrap_err().contains("Unrecognized request format"));
        assert!(shapes("[]", &none).unwrap_err().contains("expected an object"));
    }

    #[test]
    fn rows_and_columns_make_the_same_tensors() {
        let two = signature(&[("age", DataType::Fp32, &[-1, 1]), ("job", DataType::Bytes, &[-1, 1])]);
        let wanted = [("age".to_owned(), vec![2, 1]), ("job".to_owned(), vec![2, 1])];
        for body in [
            r#"{"instances": [{"age": 3, "job": "a"}, {"job": "b", "age": 4.5}]}"#,
            r#"{"instances": [{"age": [3], "job": ["a"]}, {"age": [4.5], "job": ["b"]}]}"#,
            r#"{"inputs": {"age": [[3], [4.5]], "job": [["a"], ["b"]]}}"#,
            r#"{"inputs": {"age": [3, 4.5], "job": ["a", "b"]}}"#,
        ] {
            assert_eq!(shapes(body, &two).unwrap(), wanted, "{body}");
        }
        for (body, what) in [
            (r#"{"instances": [[1, 2]]}"#, "the model has the inputs age, job; name them"),
            (r#"{"instances": [{"age": 1, "job": "a"}, {"age": 1}]}"#, "instances[1] lacks 'job'"),
            (r#"{"instances": [{"age": 1}, {"age": 1, "job": "a"}]}"#, "instances[1] has 'job', which others lack"),
            (r#"{"instances": [{"ages": 1}]}"#, "unexpected input 'ages'; the model has the inputs age, job"),
            (r#"{"inputs": {"age": [[1], [2, 3]]}}"#, "input 'age': lists of 1 and of 2 values"),
            (r#"{"inputs": {"job": [[1]]}}"#, "input 'job' takes text; 1 is none"),
            (r#"{"inputs": 3}"#, "to be a list or an object"),
            (r#"{"other": 3}"#, "expected \"instances\" or \"inputs\""),
            (r#"[1]"#, "expected an object"),
            (r#"{"inputs": "#, "Unrecognized request format"),
        ] {
            let error = shapes(body, &two).unwrap_err();
            assert!(error.contains(what), "{body}: {error}");
        }
    }
}
