//! The v1 messages.

mod named;
mod value;

use crate::dataplane::{Infer, Inferred};
use crate::error::Error;
use backends::tensor::{MISSING_TEXT, row_elements};
use backends::{DataType, Parameter, Parameters, Platform, Signature, Tensor};
use protocol::v1::{Cell, Instances, Numbers, V1Error};
use protocol::write::{self, NotFinite};

impl From<V1Error> for Error {
    fn from(error: V1Error) -> Self {
        match error {
            V1Error::Malformed(_) => Error::Malformed(error.to_string()),
            V1Error::Invalid(_) => Error::Invalid(error.to_string()),
            V1Error::Values(_) => Error::Values(error.to_string()),
        }
    }
}

/// Reads a request.
///
/// # Errors
/// Says what is wrong and where.
pub fn decode(body: &[u8], signature: &Signature) -> Result<Infer, Error> {
    if signature.platform == Platform::Onnx {
        return named::decode(body, signature);
    }
    let mut parameters = Parameters::new();
    // Of a frame, LightGBM's server hands the model the model's own columns; XGBoost's hands it the frame.
    let columns = if signature.platform == Platform::LightGbm { &signature.feature_names[..] } else { &[] };
    let (field, instances) = protocol::v1::parse(body, columns)?;
    // Errors name what the client wrote, unless the model insists on its own names.
    let name = signature.inputs.first().filter(|_| signature.strict).map_or(field, |port| port.name.as_str());
    let inputs = match instances {
        Instances::Numbers { shape, values } => vec![numbers(name, shape, values, signature)?],
        Instances::Text(text) => vec![Tensor::from_strings(name, vec![text.len()], text)?],
        Instances::Frame(frame) if frame.is_empty() && !columns.is_empty() => {
            // The library's answer would be that of a row of which nothing is known.
            let known = columns.join(", ");
            return Err(Error::Invalid(format!("{field}: no column is one of the model's, which are {known}")));
        }
        Instances::Frame(frame) => {
            // KServe picks and fills columns of frames of this protocol alone.
            let content = if columns.is_empty() { "pd" } else { backends::tree::FILLED_FRAME };
            parameters.insert("content_type".into(), Parameter::String(content.into()));
            frame.into_iter().map(|(name, cells)| column(name, cells)).collect::<Result<_, _>>()?
        }
    };
    Ok(Infer { inputs, parameters, ..Infer::default() })
}

/// Numbers as the model's own type where it is a 32-bit one, which is what the library would round them to.
fn numbers(name: &str, shape: Vec<usize>, values: Numbers, signature: &Signature) -> Result<Tensor, Error> {
    // An empty list is no rows of any width.
    let shape = if shape == [0] { vec![0, 1] } else { shape };
    let values: Vec<f64> = match values {
        Numbers::Float(values) => values,
        // LightGBM takes arrays of 64-bit floats as they are, and makes 32-bit ones of all others.
        Numbers::Object(values) => values.into_iter().map(|value| f64::from(value as f32)).collect(),
        Numbers::Whole(values) => values.into_iter().map(|value| f64::from(value as f32)).collect(),
    };
    if signature.inputs.first().is_some_and(|port| port.datatype == DataType::Fp32) {
        let narrow: Vec<f32> = values.into_iter().map(|value| value as f32).collect();
        return Ok(Tensor::from_vec(name, shape, narrow)?);
    }
    Ok(Tensor::from_vec(name, shape, values)?)
}

fn column(name: String, cells: Vec<Cell>) -> Result<Tensor, Error> {
    let count = cells.len();
    if cells.iter().any(|cell| matches!(cell, Cell::Text(_))) {
        let text = cells.into_iter().map(|cell| match cell {
            Cell::Text(text) => Some(text.into_bytes()),
            Cell::Number(value) if !value.is_nan() => None,
            Cell::Number(_) | Cell::Missing => Some(MISSING_TEXT.to_vec()),
        });
        let text: Option<Vec<Vec<u8>>> = text.collect();
        let text = text.ok_or_else(|| Error::Invalid(format!("column '{name}' mixes text with numbers")))?;
        return Ok(Tensor::from_strings(name, vec![count], text)?);
    }
    let value = |cell| if let Cell::Number(value) = cell { value } else { f64::NAN };
    Ok(Tensor::from_vec(name, vec![count], cells.into_iter().map(value).collect::<Vec<f64>>())?)
}

/// Writes `{"predictions": ...}`: the one output nested by its shape, 32-bit floats widened as Python prints them. Of
/// several outputs, each row is an object with its part of each, as TensorFlow Serving writes them; where they do not
/// have the same rows, there is one object.
///
/// # Errors
/// The output cannot be written as JSON.
pub fn encode(inferred: &Inferred, not_finite: NotFinite) -> Result<Vec<u8>, Error> {
    let mut out = b"{\"predictions\":".to_vec();
    match &inferred.outputs[..] {
        [] => return Err(Error::Internal("the model gave no output".into())),
        [output] => value(&mut out, output, not_finite)?,
        outputs => objects(&mut out, outputs, not_finite)?,
    }
    out.push(b'}');
    Ok(out)
}

/// Several outputs.
fn objects(out: &mut Vec<u8>, outputs: &[Tensor], not_finite: NotFinite) -> Result<(), Error> {
    let object = |out: &mut Vec<u8>, outputs: &[Tensor]| {
        for (index, output) in outputs.iter().enumerate() {
            out.push(if index == 0 { b'{' } else { b',' });
            write::string(out, output.name());
            out.push(b':');
            value(out, output, not_finite)?;
        }
        out.push(b'}');
        Ok::<_, Error>(())
    };
    let rows = outputs.first().and_then(|output| output.shape().first().copied());
    let Some(rows) = rows.filter(|rows| outputs.iter().all(|output| output.shape().first() == Some(rows))) else {
        return object(out, outputs);
    };
    out.push(b'[');
    for row in 0..rows {
        if row > 0 {
            out.push(b',');
        }
        let parts = outputs.iter().map(|output| output.row(row)).collect::<Result<Vec<_>, _>>()?;
        object(out, &parts)?;
    }
    out.push(b']');
    Ok(())
}

/// One output.
fn value(out: &mut Vec<u8>, output: &Tensor, not_finite: NotFinite) -> Result<(), Error> {
    match output.strings() {
        Some(strings) => {
            let text: Result<Vec<&str>, _> = strings.map(std::str::from_utf8).collect();
            let text = text.map_err(|_| {
                Error::Invalid(format!("output '{}' is not UTF-8; ask for it in binary, over v2", output.name()))
            })?;
            nested(out, output.shape(), &text, &|out, text| write::string(out, text));
        }
        None if output.datatype() == DataType::Bool => {
            let flags = output.bools().unwrap_or_default();
            let truth =
                |out: &mut Vec<u8>, flag: &u8| out.extend_from_slice(if *flag == 0 { b"false" } else { b"true" });
            nested(out, output.shape(), flags, &truth);
        }
        None if output.datatype() == DataType::Int64 => {
            let values = output.values::<i64>().unwrap_or_default();
            nested(out, output.shape(), values, &|out, v| write::integer(out, *v));
        }
        None if output.datatype() == DataType::Uint64 => {
            let values = output.values::<u64>().unwrap_or_default();
            nested(out, output.shape(), values, &|out, v| write::integer(out, *v));
        }
        None if integral(output.datatype()) => {
            // Every narrower whole number is exact in 64 bits of float.
            let values = output.to_f64().unwrap_or_default();
            nested(out, output.shape(), &values, &|out, v| write::integer(out, *v as i64));
        }
        None => {
            let values = output.to_f64().unwrap_or_default();
            nested(out, output.shape(), &values, &|out, v| write::f64(out, *v, not_finite));
        }
    }
    Ok(())
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
    let width = row_elements(shape);
    out.push(b'[');
    for index in 0..length {
        if index > 0 {
            out.push(b',');
        }
        nested(out, inner, &values[index * width..(index + 1) * width], write);
    }
    out.push(b']');
}

#[cfg(test)]
mod tests {
    use super::*;
    use backends::Port;

    fn signature(datatype: DataType, platform: Platform) -> Signature {
        let port = Port {
            name: "x".into(),
            datatype,
            also: Vec::new(),
            shape: vec![-1, 2],
            optional: false,
            any_shape: false,
            labels: Vec::new(),
        };
        let (inputs, feature_names) = (vec![port], vec!["a".into(), "b".into()]);
        Signature { inputs, outputs: Vec::new(), strict: false, feature_names, platform }
    }

    fn decoded(list: &str, platform: Platform) -> Result<Infer, String> {
        let body = format!("{{\"instances\": [{list}]}}");
        decode(body.as_bytes(), &signature(DataType::Fp64, platform)).map_err(|error| error.message())
    }

    #[test]
    fn whole_numbers_and_lists_with_null_are_rounded_as_lightgbm_rounds_them() {
        let values = |list: &str| {
            let request = decoded(list, Platform::LightGbm).unwrap();
            request.inputs[0].to_f64().unwrap().to_vec()
        };
        assert_eq!(values("[16777217, 16777219]"), [16_777_216.0, 16_777_220.0]);
        assert_eq!(values("[16777217, 16777219.0]"), [16_777_217.0, 16_777_219.0]);
        assert_eq!(values("[16777217.0, true], [null, 1]")[0], 16_777_216.0);
        // Straight to 32 bits: by way of 64 this would be rounded twice.
        assert_eq!(values("[9007199791611905, 0]")[0], 9_007_200_328_482_816.0);
        let narrow =
            decode(br#"{"instances": [[9007199791611905]]}"#, &signature(DataType::Fp32, Platform::Xgboost)).unwrap();
        assert_eq!(narrow.inputs[0].values::<f32>(), Some(&[9_007_200_328_482_816.0][..]));
    }

    /// What a graph is handed for its one input of rows of two.
    fn graph_input(datatype: DataType, list: &str) -> Result<Tensor, String> {
        let body = format!("{{\"instances\": [{list}]}}");
        let request = decode(body.as_bytes(), &signature(datatype, Platform::Onnx));
        request.map(|request| request.inputs[0].clone()).map_err(|error| error.message())
    }

    #[test]
    fn whole_numbers_for_graphs_are_not_rounded_whatever_stands_beside_them() {
        let great = 9_007_199_254_740_993;
        for (row, wanted) in [
            ("[9007199254740993, -9223372036854775808]", [great, i64::MIN]),
            ("[9007199254740993, 1.0]", [great, 1]),
            ("[-0, 9007199254740993]", [0, great]),
            ("[true, 9007199254740993]", [1, great]),
            ("[3e2, 9223372036854775807]", [300, i64::MAX]),
        ] {
            for list in [row.to_owned(), format!("{{\"x\": {row}}}")] {
                let input = graph_input(DataType::Int64, &list).unwrap();
                assert_eq!(input.values::<i64>(), Some(&wanted[..]), "{list}");
            }
        }
        let input = graph_input(DataType::Uint64, "[18446744073709551615, 1.0]").unwrap();
        assert_eq!(input.values::<u64>(), Some(&[u64::MAX, 1][..]));
        for (datatype, row, says) in [
            (DataType::Int64, "[1, 9223372036854775808]", "takes INT64, which has no 9223372036854775808"),
            (DataType::Int8, "[1, 128]", "takes INT8, which has no 128"),
            (DataType::Uint64, "[1, -1]", "takes UINT64, which has no -1"),
            (DataType::Int64, "[9007199254740993, 1.5]", "has no 1.5"),
            (DataType::Int64, "[1, 1e300]", "has no 1e300"),
            (DataType::Int64, "[1, Infinity]", "has no Infinity"),
            (DataType::Int64, "[1, null]", "has no NaN"),
            (DataType::Int64, "[1, \"2\"]", "\"2\" is no number"),
        ] {
            for list in [row.to_owned(), format!("{{\"x\": {row}}}")] {
                let error = graph_input(datatype, &list).unwrap_err();
                assert!(error.contains(says), "{list}: {error}");
            }
        }
    }

    #[test]
    fn graphs_take_what_python_writes_for_floats() {
        for list in ["[NaN, -Infinity]", "{\"x\": [NaN, -Infinity]}", "{\"x\": [null, -Infinity]}"] {
            for datatype in [DataType::Fp32, DataType::Fp64] {
                let input = graph_input(datatype, list).unwrap();
                let values = input.to_f64().unwrap();
                assert!(values[0].is_nan() && values[1] == f64::NEG_INFINITY, "{list}");
            }
        }
        let input = graph_input(DataType::Bytes, "[\"NaN\", \"\\u00e9\"]").unwrap();
        assert_eq!(input.strings().unwrap().collect::<Vec<_>>(), [&b"NaN"[..], "\u{e9}".as_bytes()]);
        let error = graph_input(DataType::Bytes, "[NaN, \"a\"]").unwrap_err();
        assert!(error.contains("takes text; NaN is none"), "{error}");
    }

    #[test]
    fn names_that_a_graph_is_sent_twice_are_refused() {
        let error = graph_input(DataType::Int64, "{\"x\": [1, 2], \"x\": [3, 4]}").unwrap_err();
        assert_eq!(error, "'x' appears twice in the object that ends at byte 41");
        for body in [r#"{"inputs": {"x": [[1, 2]]}, "inputs": {}}"#, r#"{"inputs": [[1, 2]], "inputs": [[3, 4]]}"#] {
            let error = decode(body.as_bytes(), &signature(DataType::Int64, Platform::Onnx)).unwrap_err();
            assert_eq!(error.message(), "\"inputs\" appears twice", "{body}");
        }
        let deep = format!("{{\"x\": {}}}", "[".repeat(200));
        assert!(graph_input(DataType::Int64, &deep).unwrap_err().contains("nested deeper than 100"));
    }

    #[test]
    fn truth_values_are_written_as_such() {
        let written = |shape: Vec<usize>, flags: &[u8]| {
            let mut out = Vec::new();
            value(&mut out, &Tensor::from_bools("y", shape, flags.to_vec()).unwrap(), NotFinite::Null).unwrap();
            String::from_utf8(out).unwrap()
        };
        assert_eq!(written(vec![2, 1], &[1, 0]), "[[true],[false]]");
        assert_eq!(written(vec![], &[1]), "true");
        assert_eq!(written(vec![0, 1 << 40, 1 << 40], &[]), "[]");
    }

    #[test]
    fn what_a_column_of_text_lacks_is_missing() {
        let column = |rows: &str| decoded(rows, Platform::Xgboost).map(|request| request.inputs[0].clone());
        for rows in [
            r#"{"a": "x"}, {"a": null}"#,
            r#"{"a": "x"}, {"a": NaN}"#,
            r#"{"a": "x", "b": 1}, {"b": 2}"#,
            r#"{"a": ["x", null]}"#,
        ] {
            let column = column(rows).unwrap();
            assert_eq!(column.strings().unwrap().collect::<Vec<_>>(), [&b"x"[..], MISSING_TEXT], "{rows}");
        }
        let alone = column(r#"{"a": null}"#).unwrap();
        assert!(alone.to_f64().unwrap()[0].is_nan());
        let error = column(r#"{"a": "x"}, {"a": 1}"#).err().unwrap();
        assert_eq!(error, "column 'a' mixes text with numbers");
    }

    #[test]
    fn frames_are_picked_for_lightgbm_alone() {
        let content = |request: &Infer| request.parameters["content_type"].clone();
        let picked = decoded(r#"{"b": {"0": 1}, "x": {"0": {}}}"#, Platform::LightGbm).unwrap();
        assert_eq!(picked.inputs.iter().map(Tensor::name).collect::<Vec<_>>(), ["b"]);
        assert_eq!(content(&picked), Parameter::String("pd; columns=model".into()));
        let whole = decoded(r#"{"b": {"0": 1}, "x": {"0": 2}}"#, Platform::Xgboost).unwrap();
        assert_eq!(whole.inputs.iter().map(Tensor::name).collect::<Vec<_>>(), ["b", "x"]);
        assert_eq!(content(&whole), Parameter::String("pd".into()));
        let error = decoded(r#"{"x": 1}"#, Platform::LightGbm).unwrap_err();
        assert!(error.contains("no column is one of the model's, which are a, b"), "{error}");
    }
}
