//! The v2 inference request as JSON. Tensor data goes from text to typed values in one pass when the datatype stands
//! before the data, as every client writes it, and in a second one when it does not.

use crate::json::{JsonError, Kind, Reader, excerpt};
use crate::parts::MOST_PARTS;
use std::collections::BTreeMap;

/// A value of `parameters`.
#[derive(Clone, Debug, PartialEq)]
pub enum Parameter {
    /// True or false.
    Bool(bool),
    /// A whole number.
    Int(i64),
    /// A whole number beyond 64 signed bits.
    Uint(u64),
    /// A number.
    Double(f64),
    /// Text.
    String(String),
}

impl std::fmt::Display for Parameter {
    /// As it is written in JSON, long text cut short.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Parameter::Bool(value) => write!(f, "{value}"),
            Parameter::Int(value) => write!(f, "{value}"),
            Parameter::Uint(value) => write!(f, "{value}"),
            Parameter::Double(value) => write!(f, "{value:?}"),
            Parameter::String(text) => write!(f, "\"{}\"", excerpt(text)),
        }
    }
}

/// Named parameters.
pub type Parameters = BTreeMap<String, Parameter>;

/// Values of a tensor, typed as `datatype` says.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub enum Values {
    Bool(Vec<u8>),
    U8(Vec<u8>),
    U16(Vec<u16>),
    U32(Vec<u32>),
    U64(Vec<u64>),
    I8(Vec<i8>),
    I16(Vec<i16>),
    I32(Vec<i32>),
    I64(Vec<i64>),
    F32(Vec<f32>),
    F64(Vec<f64>),
    /// Text: element `i` ends at `ends[i]`.
    Text {
        ends: Vec<u32>,
        text: Vec<u8>,
    },
}

/// How `data` was nested: the length of the lists at each level, `None` where they differ.
pub type Nesting = Vec<Option<usize>>;

/// `data` of a tensor.
#[derive(Clone, Debug, PartialEq)]
pub struct Data {
    /// Its values, row-major.
    pub values: Values,
    /// How it was nested.
    pub nesting: Nesting,
}

/// One of `inputs`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RequestInput {
    /// Its name.
    pub name: String,
    /// Lengths of its dimensions.
    pub shape: Vec<i64>,
    /// Element type, as spelled.
    pub datatype: String,
    /// Its parameters.
    pub parameters: Parameters,
    /// Its values, unless they follow as bytes.
    pub data: Option<Data>,
}

/// One of `outputs`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RequestedOutput {
    /// Its name.
    pub name: String,
    /// Its parameters.
    pub parameters: Parameters,
}

/// An inference request.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct InferRequest {
    /// The client's identifier.
    pub id: Option<String>,
    /// Its parameters.
    pub parameters: Parameters,
    /// Tensors.
    pub inputs: Vec<RequestInput>,
    /// Wanted tensors; empty means all.
    pub outputs: Vec<RequestedOutput>,
}

/// Why a body is no inference request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RequestError {
    /// The text is not JSON.
    Malformed(JsonError),
    /// It is JSON, but a member lacks or is of another kind than the protocol has: which.
    Members(String),
    /// Values are not of their datatype: which.
    Values(String),
    /// Numbers of 16 bits cannot stand in JSON: which type, of which input.
    Halves(String, String),
    /// It is no request for another reason: which field, and what is wrong with it.
    Field(String),
}

impl From<JsonError> for RequestError {
    fn from(error: JsonError) -> Self {
        RequestError::Malformed(error)
    }
}

impl std::fmt::Display for RequestError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            RequestError::Malformed(error) => write!(f, "failed to parse the request JSON buffer: {error}"),
            RequestError::Members(what) | RequestError::Values(what) | RequestError::Field(what) => f.write_str(what),
            RequestError::Halves(datatype, input) => write!(
                f,
                "{datatype} data via JSON is not supported. Please use the binary data format for input {input}"
            ),
        }
    }
}
impl std::error::Error for RequestError {}

type Result<T> = std::result::Result<T, RequestError>;

fn field(what: impl Into<String>) -> RequestError {
    RequestError::Field(what.into())
}

/// A member that cannot be read, in Triton's words.
fn member(name: impl std::fmt::Display, what: impl std::fmt::Display) -> RequestError {
    RequestError::Members(format!("Unable to parse '{name}': {what}"))
}

/// Adds the field's name to an error that arose while reading it.
fn within<T>(name: impl std::fmt::Display, result: std::result::Result<T, JsonError>) -> Result<T> {
    result.map_err(|e| member(name, e))
}

impl InferRequest {
    /// Reads a body.
    ///
    /// # Errors
    /// [`RequestError`] names the field.
    pub fn parse(body: &[u8]) -> Result<Self> {
        let mut reader = Reader::new(body);
        let mut request = InferRequest::default();
        let (mut id, mut parameters, mut inputs, mut outputs) = (false, false, false, false);
        let mut entries = reader.object()?;
        while let Some(key) = reader.key(&mut entries)? {
            if reader.is_null() {
                // Some clients write what they do not state as null.
                reader.null()?;
                continue;
            }
            match &*key {
                "id" => {
                    once(&mut id, "id")?;
                    request.id = Some(within("id", reader.string())?.into_owned());
                }
                "parameters" => {
                    once(&mut parameters, "parameters")?;
                    request.parameters = parse_parameters(&mut reader)?;
                }
                "inputs" => {
                    once(&mut inputs, "inputs")?;
                    let mut list = within("inputs", reader.array())?;
                    while reader.element(&mut list)? {
                        part(&mut reader)?;
                        request.inputs.push(parse_input(&mut reader, request.inputs.len())?);
                    }
                }
                "outputs" => {
                    once(&mut outputs, "outputs")?;
                    let mut list = within("outputs", reader.array())?;
                    while reader.element(&mut list)? {
                        part(&mut reader)?;
                        request.outputs.push(parse_output(&mut reader, request.outputs.len())?);
                    }
                }
                _ => reader.skip()?,
            }
        }
        reader.end()?;
        if !inputs {
            return Err(member("inputs", "attempt to access non-existing object member 'inputs'"));
        }
        Ok(request)
    }
}

/// One more of what a request is made of besides elements.
fn part(reader: &mut Reader<'_>) -> Result<()> {
    if reader.part() <= MOST_PARTS {
        return Ok(());
    }
    Err(field(format!("the request has more than {MOST_PARTS} inputs, outputs, parameters and dimensions")))
}

fn once(seen: &mut bool, name: &str) -> Result<()> {
    if std::mem::replace(seen, true) { Err(field(format!("'{name}' appears twice"))) } else { Ok(()) }
}

fn parse_parameters(reader: &mut Reader<'_>) -> Result<Parameters> {
    let mut parameters = Parameters::new();
    let mut entries = within("parameters", reader.object())?;
    while let Some(key) = reader.key(&mut entries)? {
        let value = match reader.kind()? {
            Kind::Bool => Parameter::Bool(reader.boolean()?),
            Kind::String => Parameter::String(reader.string()?.into_owned()),
            Kind::Number => number(reader.number()?),
            _ => {
                return Err(field(format!(
                    "parameter '{}' has invalid type. It should be either 'int', 'double', 'bool', or 'string'",
                    excerpt(&key)
                )));
            }
        };
        if parameters.contains_key(&*key) {
            return Err(field(format!("parameter '{}' appears twice", excerpt(&key))));
        }
        part(reader)?;
        parameters.insert(key.into_owned(), value);
    }
    Ok(parameters)
}

fn number(token: &str) -> Parameter {
    if let Ok(value) = token.parse() {
        Parameter::Int(value)
    } else if let Ok(value) = token.parse() {
        Parameter::Uint(value)
    } else {
        Parameter::Double(token.parse().unwrap_or(f64::NAN))
    }
}

fn parse_output(reader: &mut Reader<'_>, index: usize) -> Result<RequestedOutput> {
    let mut output = RequestedOutput::default();
    let (mut named, mut parameters) = (false, false);
    let mut entries = within(format_args!("outputs[{index}]"), reader.object())?;
    while let Some(key) = reader.key(&mut entries)? {
        if reader.is_null() {
            reader.null()?;
            continue;
        }
        match &*key {
            "name" => {
                once(&mut named, "name")?;
                output.name = within("name", reader.string())?.into_owned();
            }
            "parameters" => {
                once(&mut parameters, "parameters")?;
                output.parameters = parse_parameters(reader)?;
            }
            _ => reader.skip()?,
        }
    }
    if named { Ok(output) } else { Err(member("outputs", format!("outputs[{index}] has no 'name'"))) }
}

fn parse_input(reader: &mut Reader<'_>, index: usize) -> Result<RequestInput> {
    let mut input = RequestInput::default();
    let (mut name, mut shape, mut datatype, mut data, mut parameters) = (false, false, false, false, false);
    let mut later = None;
    let mut entries = within(format_args!("inputs[{index}]"), reader.object())?;
    while let Some(key) = reader.key(&mut entries)? {
        if reader.is_null() {
            reader.null()?;
            continue;
        }
        match &*key {
            "name" => {
                once(&mut name, "name")?;
                input.name = within("name", reader.string())?.into_owned();
            }
            "shape" => {
                once(&mut shape, "shape")?;
                input.shape = parse_shape(reader)?;
            }
            "datatype" => {
                once(&mut datatype, "datatype")?;
                input.datatype = within("datatype", reader.string())?.into_owned();
            }
            "parameters" => {
                once(&mut parameters, "parameters")?;
                input.parameters = parse_parameters(reader)?;
            }
            "data" => {
                once(&mut data, "data")?;
                if datatype {
                    input.data = Some(parse_data(reader, &input.name, &input.datatype, &input.shape)?);
                } else {
                    reader.kind()?;
                    later = Some(reader.position());
                    reader.skip()?;
                }
            }
            _ => reader.skip()?,
        }
    }
    for (present, what) in [(name, "name"), (shape, "shape"), (datatype, "datatype")] {
        if !present {
            let at = if name { format!("input '{}'", input.name) } else { format!("inputs[{index}]") };
            return Err(member("inputs", format!("{at} has no '{what}'")));
        }
    }
    if let Some(place) = later {
        input.data = Some(parse_data(&mut reader.again(place), &input.name, &input.datatype, &input.shape)?);
    }
    Ok(input)
}

fn parse_shape(reader: &mut Reader<'_>) -> Result<Vec<i64>> {
    let mut shape = Vec::new();
    let mut entries = within("shape", reader.array())?;
    while reader.element(&mut entries)? {
        let token = within("shape", reader.number())?;
        let length = token.parse();
        part(reader)?;
        shape.push(length.map_err(|_| member("shape", format!("'{}' is no length", excerpt(token))))?);
    }
    Ok(shape)
}

/// Reads `data` of one input as its datatype.
fn parse_data(reader: &mut Reader<'_>, name: &str, datatype: &str, shape: &[i64]) -> Result<Data> {
    // A hint only: never more than what a body of this size can hold.
    let hint = shape.iter().try_fold(1i64, |n, &d| n.checked_mul(d)).unwrap_or(0).clamp(0, 4096) as usize;
    let mut nesting = Nesting::new();
    macro_rules! numbers {
        ($variant:ident, $parse:expr) => {{
            let mut values = Vec::with_capacity(hint);
            let read = read_level(reader, 0, &mut nesting, &mut |r| {
                values.push($parse(r)?);
                Ok(())
            });
            read.map(|()| Values::$variant(values))
        }};
    }
    let values = match datatype {
        "FP32" => numbers!(F32, float32),
        "FP64" => numbers!(F64, float64),
        "INT32" => numbers!(I32, |r: &mut Reader<'_>| integer::<i32>(r, "INT32")),
        "INT64" => numbers!(I64, |r: &mut Reader<'_>| integer::<i64>(r, "INT64")),
        "INT16" => numbers!(I16, |r: &mut Reader<'_>| integer::<i16>(r, "INT16")),
        "INT8" => numbers!(I8, |r: &mut Reader<'_>| integer::<i8>(r, "INT8")),
        "UINT8" => numbers!(U8, |r: &mut Reader<'_>| integer::<u8>(r, "UINT8")),
        "UINT16" => numbers!(U16, |r: &mut Reader<'_>| integer::<u16>(r, "UINT16")),
        "UINT32" => numbers!(U32, |r: &mut Reader<'_>| integer::<u32>(r, "UINT32")),
        "UINT64" => numbers!(U64, |r: &mut Reader<'_>| integer::<u64>(r, "UINT64")),
        "BOOL" => numbers!(Bool, boolean),
        "BYTES" => {
            let (mut ends, mut text) = (Vec::with_capacity(hint), Vec::new());
            let read = read_level(reader, 0, &mut nesting, &mut |r| {
                text.extend_from_slice(r.string()?.as_bytes());
                ends.push(u32::try_from(text.len()).map_err(|_| r.error("more than 4 GiB of text"))?);
                Ok(())
            });
            read.map(|()| Values::Text { ends, text })
        }
        "FP16" | "BF16" => {
            return Err(RequestError::Halves(datatype.into(), name.into()));
        }
        other => return Err(field(format!("input '{name}' has unknown datatype '{}'", excerpt(other)))),
    };
    let values = values
        .map_err(|e| RequestError::Values(format!("Unable to parse 'data' of input '{name}' as {datatype}: {e}")))?;
    Ok(Data { values, nesting })
}

/// One list, whose elements are all lists or all scalars.
fn read_level<'b>(
    reader: &mut Reader<'b>,
    level: usize,
    nesting: &mut Nesting,
    scalar: &mut impl FnMut(&mut Reader<'b>) -> std::result::Result<(), JsonError>,
) -> std::result::Result<(), JsonError> {
    let known = nesting.len();
    let mut entries = reader.array()?;
    let (mut count, mut nested) = (0usize, false);
    while reader.element(&mut entries)? {
        let list = reader.is_list();
        if count == 0 {
            nested = list;
        } else if nested != list {
            return Err(reader.error("lists and values are mixed"));
        }
        if list {
            read_level(reader, level + 1, nesting, scalar)?
        } else {
            scalar(reader)?
        }
        count += 1;
    }
    // Lists of one level hold lists, or values, all of them: `[[1], [[2]]]` is neither.
    if (nested && known == level + 1) || (count > 0 && !nested && nesting.len() > level + 1) {
        return Err(reader.error("lists and values are mixed"));
    }
    if nesting.len() <= level {
        nesting.resize(level + 1, Some(usize::MAX));
    }
    let known = &mut nesting[level];
    *known = match *known {
        Some(usize::MAX) => Some(count),
        Some(length) if length == count => Some(length),
        _ => None,
    };
    Ok(())
}

#[inline]
fn float32(reader: &mut Reader<'_>) -> std::result::Result<f32, JsonError> {
    // `null` is how JSON writers without NaN spell a missing value.
    if reader.is_null() {
        return reader.null().map(|()| f32::NAN);
    }
    reader.float32()
}

#[inline]
fn float64(reader: &mut Reader<'_>) -> std::result::Result<f64, JsonError> {
    if reader.is_null() {
        return reader.null().map(|()| f64::NAN);
    }
    reader.float64()
}

/// A whole number of a type; `3.0` and `3e2` are whole too.
fn integer<T: TryFrom<i128>>(reader: &mut Reader<'_>, datatype: &str) -> std::result::Result<T, JsonError> {
    if let Some(value) = reader.whole() {
        return T::try_from(value.into()).map_err(|_| reader.error(format!("{value} does not fit {datatype}")));
    }
    let token = reader.number()?;
    let whole = match token.parse::<i128>() {
        Ok(value) => Some(value),
        Err(_) => {
            let value: f64 = token.parse().unwrap_or(f64::NAN);
            (value.fract() == 0.0 && value.abs() < 9_007_199_254_740_992.0).then_some(value as i128)
        }
    };
    match whole {
        None => Err(reader.error(format!("'{}' is not a whole number", excerpt(token)))),
        Some(value) => {
            T::try_from(value).map_err(|_| reader.error(format!("{} does not fit {datatype}", excerpt(token))))
        }
    }
}

/// `true` or `false`, or 1 or 0 as numpy's users write them.
fn boolean(reader: &mut Reader<'_>) -> std::result::Result<u8, JsonError> {
    if reader.kind()? != Kind::Number {
        return reader.boolean().map(u8::from);
    }
    match reader.number()? {
        "0" => Ok(0),
        "1" => Ok(1),
        other => Err(reader.error(format!("'{}' is neither true nor false", excerpt(other)))),
    }
}
