//! The v1 messages.

use crate::dataplane::{Infer, Inferred};
use crate::error::Error;
use backends::{DataType, Parameter, Parameters, Signature, Tensor};
use protocol::v1::{Cell, Instances, V1Error};
use protocol::write::{self, NotFinite};

impl From<V1Error> for Error {
    fn from(error: V1Error) -> Self {
        Error::Invalid(error.to_string())
    }
}

/// Reads a request.
///
/// # Errors
/// Says what is wrong and where.
pub fn decode(body: &[u8], signature: &Signature) -> Result<Infer, Error> {
    let mut parameters = Parameters::new();
    let (field, instances) = protocol::v1::parse(body)?;
    // Errors name what the client wrote, unless the model insists on its own names.
    let name = signature.inputs.first().filter(|_| signature.strict).map_or(field, |port| port.name.as_str());
    let inputs = match instances {
        Instances::Numbers { shape, values, .. } => vec![numbers(name, shape, values, signature)?],
        Instances::Text(text) => vec![Tensor::from_strings(name, vec![text.len()], text)?],
        Instances::Frame(columns) => {
            parameters.insert("content_type".into(), Parameter::String("pd".into()));
            columns.into_iter().map(|(name, cells)| column(name, cells)).collect::<Result<_, _>>()?
        }
    };
    Ok(Infer { inputs, parameters, ..Infer::default() })
}

/// Numbers as the model's own type where it is a 32-bit one, which is what the library would round them to.
fn numbers(name: &str, shape: Vec<usize>, values: Vec<f64>, signature: &Signature) -> Result<Tensor, Error> {
    // An empty list is no rows of any width.
    let shape = if shape == [0] { vec![0, 1] } else { shape };
    if signature.inputs.first().is_some_and(|port| port.datatype == DataType::Fp32) {
        let narrow: Vec<f32> = values.into_iter().map(|v| v as f32).collect();
        return Ok(Tensor::from_vec(name, shape, narrow)?);
    }
    Ok(Tensor::from_vec(name, shape, values)?)
}

fn column(name: String, cells: Vec<Cell>) -> Result<Tensor, Error> {
    let count = cells.len();
    if cells.iter().any(|cell| matches!(cell, Cell::Text(_))) {
        let text: Option<Vec<String>> =
            cells.into_iter().map(|cell| if let Cell::Text(text) = cell { Some(text) } else { None }).collect();
        let text = text.ok_or_else(|| Error::Invalid(format!("column '{name}' mixes text with other values")))?;
        return Ok(Tensor::from_strings(name, vec![count], text)?);
    }
    let value = |cell| if let Cell::Number(value) = cell { value } else { f64::NAN };
    Ok(Tensor::from_vec(name, vec![count], cells.into_iter().map(value).collect::<Vec<f64>>())?)
}

/// Writes `{"predictions": ...}`: the first output nested by its shape, 32-bit floats widened as Python prints them.
///
/// # Errors
/// The output cannot be written as JSON.
pub fn encode(inferred: &Inferred, not_finite: NotFinite) -> Result<Vec<u8>, Error> {
    let mut out = b"{\"predictions\":".to_vec();
    let Some(output) = inferred.outputs.first() else {
        return Err(Error::Internal("the model gave no output".into()));
    };
    match output.strings() {
        Some(strings) => {
            let text: Result<Vec<&str>, _> = strings.map(std::str::from_utf8).collect();
            let text = text.map_err(|_| Error::Invalid(format!("output '{}' is not UTF-8", output.name())))?;
            nested(&mut out, output.shape(), &text, &|out, text| write::string(out, text));
        }
        None if output.datatype() == DataType::Int64 => {
            let values = output.values::<i64>().unwrap_or_default();
            nested(&mut out, output.shape(), values, &|out, v| write::integer(out, *v));
        }
        None if output.datatype() == DataType::Uint64 => {
            let values = output.values::<u64>().unwrap_or_default();
            nested(&mut out, output.shape(), values, &|out, v| write::integer(out, *v));
        }
        None if integral(output.datatype()) => {
            // Every narrower whole number is exact in 64 bits of float.
            let values = output.to_f64().unwrap_or_default();
            nested(&mut out, output.shape(), &values, &|out, v| write::integer(out, *v as i64));
        }
        None => {
            let values = output.to_f64().unwrap_or_default();
            nested(&mut out, output.shape(), &values, &|out, v| write::f64(out, *v, not_finite));
        }
    }
    out.push(b'}');
    Ok(out)
}

fn integral(datatype: DataType) -> bool {
    !matches!(datatype, DataType::Fp16 | DataType::Bf16 | DataType::Fp32 | DataType::Fp64)
}

/// Lists within lists, as the shape says.
fn nested<T>(out: &mut Vec<u8>, shape: &[usize], values: &[T], write: &dyn Fn(&mut Vec<u8>, &T)) {
    let Some((&length, inner)) = shape.split_first() else {
        if let Some(value) = values.first() {
            write(out, value);
        }
        return;
    };
    let width: usize = inner.iter().product();
    out.push(b'[');
    for index in 0..length {
        if index > 0 {
            out.push(b',');
        }
        nested(out, inner, &values[index * width..(index + 1) * width], write);
    }
    out.push(b']');
}
