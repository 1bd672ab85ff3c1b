//! The v2 REST messages: JSON with or without binary tensors behind it.

use crate::dataplane::{Infer, Inferred, Wanted};
use crate::error::Error;
use backends::tensor::elements;
use backends::{DataType, Limits, Parameter, Parameters, Port, Signature, Tensor};
use bytes::Bytes;
use half::{bf16, f16};
use protocol::v2::{Data, InferRequest, RequestError, RequestInput, Values};
use protocol::write::{self, NotFinite};
use protocol::{binary, v2};

/// What a decoded request says about the form of the reply.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Form {
    /// Are outputs binary unless they say otherwise?
    all_binary: bool,
    /// For each listed output: is it binary?
    binary: Vec<bool>,
}

impl Form {
    /// Is the output binary that the reply has at this place?
    pub fn is_binary(&self, index: usize) -> bool {
        self.binary.get(index).copied().unwrap_or(self.all_binary)
    }
}

/// An encoded reply.
#[derive(Debug)]
pub struct Encoded {
    /// The body.
    pub body: Vec<u8>,
    /// Length of the JSON in front, where binary tensors follow it.
    pub header_length: Option<usize>,
}

impl From<RequestError> for Error {
    fn from(error: RequestError) -> Self {
        match error {
            RequestError::Malformed(_) => Error::Malformed(error.to_string()),
            RequestError::Values(what) => Error::Values(what),
            RequestError::Members(what) => Error::Members(what),
            RequestError::Halves(..) => Error::Halves(error.to_string()),
            RequestError::Field(what) => Error::Invalid(what),
        }
    }
}

/// Reads a request: `header_length` is what `Inference-Header-Content-Length` says.
///
/// # Errors
/// Names the field, input or byte at fault.
pub fn decode(
    body: &Bytes,
    header_length: Option<usize>,
    signature: &Signature,
    limits: &Limits,
) -> Result<(Infer, Form), Error> {
    let split = match header_length {
        None if !body.is_empty() => body.len(),
        None | Some(0) => return raw(body, signature, limits),
        Some(length) if length <= body.len() => length,
        Some(length) => {
            return Err(Error::Invalid(format!(
                "inference header size should be in range (0, {}), got: {length}",
                body.len()
            )));
        }
    };
    let request = InferRequest::parse(&body[..split])?;
    let mut tail = Tail { bytes: body.slice(split..), at: 0 };
    let mut infer = Infer { id: request.id, parameters: parameters(request.parameters), ..Infer::default() };
    for input in request.inputs {
        infer.inputs.push(tensor(input, &mut tail, limits)?);
    }
    if tail.at != tail.bytes.len() {
        return Err(Error::Invalid(format!(
            "unexpected additional input data: {} bytes behind the last tensor",
            tail.bytes.len() - tail.at
        )));
    }
    let all_binary = infer.parameters.get("binary_data_output") == Some(&Parameter::Bool(true));
    let mut form = Form { all_binary: all_binary && request.outputs.is_empty(), binary: Vec::new() };
    for output in request.outputs {
        let (wanted, binary) = wanted(output.name, &parameters(output.parameters))?;
        infer.outputs.push(wanted);
        form.binary.push(binary);
    }
    Ok((infer, form))
}

/// Parameters of the protocol as those of a call.
pub fn parameters(wire: v2::Parameters) -> Parameters {
    let value = |value| match value {
        v2::Parameter::Bool(v) => Parameter::Bool(v),
        v2::Parameter::Int(v) => Parameter::Int(v),
        v2::Parameter::Uint(v) => Parameter::Uint(v),
        v2::Parameter::Double(v) => Parameter::Double(v),
        v2::Parameter::String(v) => Parameter::String(v),
    };
    wire.into_iter().map(|(key, v)| (key, value(v))).collect()
}

/// A wanted output, and whether it is wanted in binary.
///
/// # Errors
/// A parameter means nothing, or asks for what is not served.
pub fn wanted(name: String, parameters: &Parameters) -> Result<(Wanted, bool), Error> {
    if parameters.contains_key("shared_memory_region") {
        return Err(Error::Unsupported(format!("output '{name}' is to go to shared memory, which is not served")));
    }
    let invalid = |key: &str, is: &str| Error::Invalid(format!("parameter '{key}' of output '{name}' is not {is}"));
    let binary = match parameters.get("binary_data") {
        None => false,
        Some(Parameter::Bool(binary)) => *binary,
        Some(_) => return Err(invalid("binary_data", "true or false")),
    };
    let classes = match parameters.get("classification") {
        None | Some(Parameter::Int(0)) => None,
        Some(Parameter::Int(count @ 1..)) => Some((*count).min(1 << 20) as u32),
        Some(_) => return Err(invalid("classification", "a number of classes")),
    };
    Ok((Wanted { name, classes }, binary))
}

/// Binary tensors behind the JSON, taken in order.
struct Tail {
    bytes: Bytes,
    at: usize,
}

impl Tail {
    fn take(&mut self, name: &str, size: usize) -> Result<Bytes, Error> {
        let left = self.bytes.len() - self.at;
        if size > left {
            return Err(Error::Invalid(format!(
                "input '{name}': binary_data_size is {size}, but {left} bytes are left in the body"
            )));
        }
        self.at += size;
        Ok(self.bytes.slice(self.at - size..self.at))
    }
}

fn tensor(input: RequestInput, tail: &mut Tail, limits: &Limits) -> Result<Tensor, Error> {
    let name = input.name;
    let datatype = datatype(&name, &input.datatype)?;
    let shape = shape(&name, &input.shape)?;
    let count = elements(&shape, datatype, limits).map_err(|e| Error::Invalid(format!("input '{name}': {e}")))?;
    if let Some(region) = input.parameters.get("shared_memory_region") {
        return Err(Error::Unsupported(format!(
            "input '{name}' names shared memory region {region}; shared memory is not served, send the data"
        )));
    }
    match (input.data, input.parameters.get("binary_data_size")) {
        (Some(data), None) => from_json(name, shape, count, data),
        (None, Some(v2::Parameter::Int(size))) if *size >= 0 => {
            let bytes = tail.take(&name, *size as usize)?;
            from_raw(name, datatype, shape, bytes)
        }
        (None, Some(size)) => {
            Err(Error::Invalid(format!("input '{name}': binary_data_size {size} is not a number of bytes")))
        }
        (None, None) => Err(Error::Invalid(format!(
            "input '{name}' must have 'data', or a 'binary_data_size' parameter and its bytes behind the JSON"
        ))),
        (Some(_), Some(_)) => {
            Err(Error::Invalid(format!("input '{name}' must not have both 'data' and 'binary_data_size'")))
        }
    }
}

/// Reads the name of an element type.
///
/// # Errors
/// Lists the known ones.
pub fn datatype(input: &str, name: &str) -> Result<DataType, Error> {
    DataType::parse(name).ok_or_else(|| {
        let known: Vec<_> = DataType::ALL.iter().map(|d| d.name()).collect();
        Error::Invalid(format!("input '{input}' has unknown datatype '{name}'; known are {}", known.join(", ")))
    })
}

/// Reads a shape.
///
/// # Errors
/// A length is negative.
pub fn shape(input: &str, shape: &[i64]) -> Result<Vec<usize>, Error> {
    let lengths: Option<Vec<usize>> = shape.iter().map(|&length| usize::try_from(length).ok()).collect();
    lengths.ok_or_else(|| {
        Error::Invalid(format!(
            "invalid shape for input '{input}': shape {shape:?} contains one or more invalid dimensions"
        ))
    })
}

/// A tensor from the bytes of the binary extension or of gRPC's raw contents.
///
/// # Errors
/// Their number is not what the shape asks for.
pub fn from_raw(name: String, datatype: DataType, shape: Vec<usize>, bytes: Bytes) -> Result<Tensor, Error> {
    if datatype == DataType::Bytes {
        let (ends, text) = binary::split_text(&bytes).map_err(|e| Error::Refused(format!("input '{name}': {e}")))?;
        let count: usize = shape.iter().product();
        if ends.len() != count {
            let got = ends.len();
            return Err(Error::Refused(format!("input '{name}': shape {shape:?} needs {count} elements, got {got}")));
        }
        return Ok(Tensor::from_text(name, shape, ends, text)?);
    }
    let expected = shape.iter().product::<usize>() * datatype.size();
    if bytes.len() != expected {
        return Err(Error::Refused(format!(
            "input byte size mismatch for input '{name}': shape {shape:?} of {datatype} needs {expected} bytes, got {}",
            bytes.len()
        )));
    }
    Ok(Tensor::from_bytes(name, datatype, shape, bytes)?)
}

/// A tensor from JSON values, whose number and nesting must be the shape's.
fn from_json(name: String, shape: Vec<usize>, count: usize, data: Data) -> Result<Tensor, Error> {
    let got = match &data.values {
        Values::Bool(v) | Values::U8(v) => v.len(),
        Values::U16(v) => v.len(),
        Values::U32(v) => v.len(),
        Values::U64(v) => v.len(),
        Values::I8(v) => v.len(),
        Values::I16(v) => v.len(),
        Values::I32(v) => v.len(),
        Values::I64(v) => v.len(),
        Values::F32(v) => v.len(),
        Values::F64(v) => v.len(),
        Values::Text { ends, .. } => ends.len(),
    };
    if got != count {
        return Err(Error::Values(format!(
            "Unable to parse 'data' of input '{name}': Shape does not match true shape of 'data' field: \
             {shape:?} has {count} elements, got {got}"
        )));
    }
    if !nesting_fits(&shape, &data) {
        return Err(Error::Values(format!(
            "Unable to parse 'data' of input '{name}': its lists are not nested as shape {shape:?} says"
        )));
    }
    let tensor = match data.values {
        Values::Bool(v) => Tensor::from_bools(name, shape, v),
        Values::U8(v) => Tensor::from_vec(name, shape, v),
        Values::U16(v) => Tensor::from_vec(name, shape, v),
        Values::U32(v) => Tensor::from_vec(name, shape, v),
        Values::U64(v) => Tensor::from_vec(name, shape, v),
        Values::I8(v) => Tensor::from_vec(name, shape, v),
        Values::I16(v) => Tensor::from_vec(name, shape, v),
        Values::I32(v) => Tensor::from_vec(name, shape, v),
        Values::I64(v) => Tensor::from_vec(name, shape, v),
        Values::F32(v) => Tensor::from_vec(name, shape, v),
        Values::F64(v) => Tensor::from_vec(name, shape, v),
        Values::Text { ends, text } => Tensor::from_text(name, shape, ends, text),
    };
    Ok(tensor?)
}

/// Lists at each level have the length of that dimension; the innermost may run over all dimensions that are left.
fn nesting_fits(shape: &[usize], data: &Data) -> bool {
    let Some((innermost, outer)) = data.nesting.split_last() else { return true };
    if outer.len() > shape.len() {
        return false;
    }
    // The product of a part is within that of the whole, unless a length of 0 kept the whole small.
    if shape.contains(&0) {
        return true;
    }
    let rest: usize = shape[outer.len()..].iter().product();
    outer.iter().zip(shape).all(|(length, wanted)| *length == Some(*wanted)) && *innermost == Some(rest)
}

/// A request that is one tensor's bytes and nothing else: name, type and shape come from the model.
fn raw(body: &Bytes, signature: &Signature, limits: &Limits) -> Result<(Infer, Form), Error> {
    let [port] = &signature.inputs[..] else {
        return Err(Error::Invalid(format!(
            "Raw request must only have 1 input (found 1) to be deduced but got {} inputs",
            signature.inputs.len()
        )));
    };
    let tensor = if port.datatype == DataType::Bytes {
        raw_text(body, port)?
    } else if body.is_empty() {
        return Err(Error::Invalid(format!(
            "the body is empty; as a raw request it lacks the bytes of input '{}'",
            port.name
        )));
    } else {
        let shape = deduce(port, body.len() / port.datatype.size().max(1))?;
        elements(&shape, port.datatype, limits).map_err(|e| Error::Invalid(format!("input '{}': {e}", port.name)))?;
        from_raw(port.name.clone(), port.datatype, shape, body.clone())?
    };
    let infer = Infer { inputs: vec![tensor], ..Infer::default() };
    Ok((infer, Form { all_binary: true, binary: Vec::new() }))
}

fn raw_text(body: &Bytes, port: &Port) -> Result<Tensor, Error> {
    if port.shape.iter().any(|&length| length > 1) {
        return Err(Error::Invalid(format!(
            "For BYTE datatype raw input '{}', the model must have input shape [1]",
            port.name
        )));
    }
    Ok(Tensor::from_strings(port.name.clone(), vec![1; port.shape.len()], [body])?)
}

/// The shape of `count` elements: one dimension may be open.
fn deduce(port: &Port, count: usize) -> Result<Vec<usize>, Error> {
    if port.shape.iter().filter(|&&length| length < 0).count() > 1 {
        return Err(Error::Invalid(format!(
            "The shape of the raw input '{}' can not be deduced because there are more than one variable-sized dimension",
            port.name
        )));
    }
    let known: usize = port.shape.iter().filter(|&&length| length >= 0).map(|&length| length as usize).product();
    let open = count.checked_div(known).unwrap_or(0);
    Ok(port.shape.iter().map(|&length| usize::try_from(length).unwrap_or(open)).collect())
}

/// Writes a reply.
///
/// # Errors
/// An output is of a type that JSON cannot carry, and was not asked for in binary.
pub fn encode(inferred: &Inferred, form: &Form, not_finite: NotFinite) -> Result<Encoded, Error> {
    let mut out = Vec::with_capacity(256);
    let mut tail = Vec::new();
    out.push(b'{');
    if let Some(id) = &inferred.id {
        write::key(&mut out, "id");
        write::string(&mut out, id);
    }
    write::key(&mut out, "model_name");
    write::string(&mut out, &inferred.servable.name);
    write::key(&mut out, "model_version");
    write::string(&mut out, &inferred.servable.version.to_string());
    write::key(&mut out, "outputs");
    out.push(b'[');
    for (index, output) in inferred.outputs.iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        encode_output(&mut out, &mut tail, output, form.is_binary(index), not_finite)?;
    }
    out.extend_from_slice(b"]}");
    let any_binary = form.all_binary || form.binary.contains(&true);
    let header_length = any_binary.then_some(out.len());
    out.append(&mut tail);
    Ok(Encoded { body: out, header_length })
}

fn encode_output(
    out: &mut Vec<u8>,
    tail: &mut Vec<u8>,
    output: &Tensor,
    binary: bool,
    not_finite: NotFinite,
) -> Result<(), Error> {
    out.push(b'{');
    write::key(out, "name");
    write::string(out, output.name());
    write::key(out, "datatype");
    write::string(out, output.datatype().name());
    write::key(out, "shape");
    write::integers(out, output.shape().iter().copied());
    if binary {
        let before = tail.len();
        push_raw(tail, output);
        out.extend_from_slice(b",\"parameters\":{\"binary_data_size\":");
        write::integer(out, tail.len() - before);
        out.extend_from_slice(b"}}");
        return Ok(());
    }
    write::key(out, "data");
    write_values(out, output, not_finite)?;
    out.push(b'}');
    Ok(())
}

/// Appends the bytes of the binary extension.
pub fn push_raw(out: &mut Vec<u8>, tensor: &Tensor) {
    match tensor.strings() {
        Some(strings) => strings.for_each(|text| binary::push_text(out, text)),
        None => out.extend_from_slice(tensor.bytes()),
    }
}

/// Appends a tensor's values as a flat list.
fn write_values(out: &mut Vec<u8>, tensor: &Tensor, not_finite: NotFinite) -> Result<(), Error> {
    macro_rules! integers {
        ($t:ty) => {
            write::integers(out, tensor.values::<$t>().into_iter().flatten().copied())
        };
    }
    match tensor.datatype() {
        DataType::Fp32 => {
            write::list(out, tensor.values::<f32>().into_iter().flatten(), |out, v| write::f32(out, *v, not_finite))
        }
        DataType::Fp64 => {
            write::list(out, tensor.values::<f64>().into_iter().flatten(), |out, v| write::f64(out, *v, not_finite))
        }
        DataType::Int8 => integers!(i8),
        DataType::Int16 => integers!(i16),
        DataType::Int32 => integers!(i32),
        DataType::Int64 => integers!(i64),
        DataType::Uint8 => integers!(u8),
        DataType::Uint16 => integers!(u16),
        DataType::Uint32 => integers!(u32),
        DataType::Uint64 => integers!(u64),
        DataType::Bool => write::list(out, tensor.bools().into_iter().flatten(), |out, v| {
            out.extend_from_slice(if *v == 0 { b"false" } else { b"true" })
        }),
        DataType::Bytes => {
            let strings = tensor.strings().into_iter().flatten();
            let text: Result<Vec<&str>, _> = strings.map(std::str::from_utf8).collect();
            let text = text.map_err(|_| {
                Error::Invalid(format!("output '{}' is not UTF-8; ask for it in binary", tensor.name()))
            })?;
            write::list(out, text, write::string);
        }
        DataType::Fp16 | DataType::Bf16 => {
            return Err(Error::Invalid(format!(
                "sending {} data via JSON is not supported. Please use the binary data format for output {}",
                tensor.datatype(),
                tensor.name()
            )));
        }
    }
    Ok(())
}

/// The sizes of half-precision elements are those the protocol states.
const _: () = assert!(size_of::<f16>() == 2 && size_of::<bf16>() == 2);
