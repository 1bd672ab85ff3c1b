//! The v2 request as JSON: datatypes and their ranges, nesting, duplicates, order of members, limits.

// The exemption of tests covers only the bodies of `#[test]` functions.
#![allow(clippy::unwrap_used)]

use proptest::prelude::*;
use protocol::v2::{InferRequest, Parameter, RequestError, Values};

fn parse(body: &str) -> Result<InferRequest, RequestError> {
    InferRequest::parse(body.as_bytes())
}

fn body(datatype: &str, shape: &str, data: &str) -> String {
    format!(r#"{{"inputs": [{{"name": "x", "shape": {shape}, "datatype": "{datatype}", "data": {data}}}]}}"#)
}

fn values(datatype: &str, data: &str) -> Result<Values, String> {
    let mut request = parse(&body(datatype, "[1]", data)).map_err(|e| e.to_string())?;
    Ok(request.inputs.remove(0).data.unwrap().values)
}

fn nesting(data: &str) -> Result<Vec<Option<usize>>, String> {
    let mut request = parse(&body("INT64", "[1]", data)).map_err(|e| e.to_string())?;
    Ok(request.inputs.remove(0).data.unwrap().nesting)
}

fn refused(body: &str) -> String {
    parse(body).expect_err(body).to_string()
}

#[test]
fn whole_numbers_fit_their_datatype_or_are_refused() {
    let table: &[(&str, i128, i128)] = &[
        ("INT8", i8::MIN as i128, i8::MAX as i128),
        ("INT16", i16::MIN as i128, i16::MAX as i128),
        ("INT32", i32::MIN as i128, i32::MAX as i128),
        ("INT64", i64::MIN as i128, i64::MAX as i128),
        ("UINT8", 0, u8::MAX as i128),
        ("UINT16", 0, u16::MAX as i128),
        ("UINT32", 0, u32::MAX as i128),
        ("UINT64", 0, u64::MAX as i128),
    ];
    for (datatype, least, most) in table {
        assert!(values(datatype, &format!("[{least}, {most}, 0, -0, 7.0, 1e2, 1.2e1]")).is_ok(), "{datatype}");
        for data in [format!("[{}]", least - 1), format!("[{}]", most + 1)] {
            assert!(
                values(datatype, &data).unwrap_err().contains(&format!("does not fit {datatype}")),
                "{datatype} {data}"
            );
        }
        for data in
            ["[0.5]", "[1e400]", "[NaN]", "[-Infinity]", "[1e-3]", "[123456789012345678901234567890123456789012]"]
        {
            let error = values(datatype, data).unwrap_err();
            assert!(
                error.contains("is not a whole number") || error.contains("does not fit"),
                "{datatype} {data}: {error}"
            );
        }
        for data in ["[null]", "[\"1\"]", "[true]", "[{}]"] {
            assert!(values(datatype, data).unwrap_err().contains("expected a number"), "{datatype} {data}");
        }
    }
    assert_eq!(values("UINT64", "[18446744073709551615]"), Ok(Values::U64(vec![u64::MAX])));
    assert_eq!(values("INT8", "[-128, 1e2]"), Ok(Values::I8(vec![-128, 100])));
}

#[test]
fn floats_are_rounded_once() {
    // By way of 64 bits this would be rounded twice, to the float above.
    assert_eq!(values("FP32", "[1.00000005960464477540]"), Ok(Values::F32(vec![1.0000001])));
    assert_eq!(values("FP32", "[1e39, -1e39, 1e-60]"), Ok(Values::F32(vec![f32::INFINITY, f32::NEG_INFINITY, 0.0])));
    assert_eq!(values("FP64", "[1e400, 4.9e-324]"), Ok(Values::F64(vec![f64::INFINITY, f64::from_bits(1)])));
    let Ok(Values::F32(odd)) = values("FP32", "[NaN, null, Infinity, -Infinity, Inf]") else { panic!() };
    assert!(odd[0].is_nan() && odd[1].is_nan());
    assert_eq!(odd[2..], [f32::INFINITY, f32::NEG_INFINITY, f32::INFINITY]);
    assert!(values("FP32", "[\"1\"]").is_err() && values("FP64", "[true]").is_err());
}

#[test]
fn truth_and_text_have_their_forms() {
    assert_eq!(values("BOOL", "[true, false, 1, 0]"), Ok(Values::Bool(vec![1, 0, 1, 0])));
    for data in ["[2]", "[1.0]", "[\"true\"]", "[null]"] {
        assert!(values("BOOL", data).is_err(), "{data}");
    }
    let text = values("BYTES", r#"["ab", "", "\u00e9"]"#);
    assert_eq!(text, Ok(Values::Text { ends: vec![2, 2, 4], text: "abé".into() }));
    assert!(values("BYTES", "[1]").is_err());
    for datatype in ["FP16", "BF16"] {
        assert!(values(datatype, "[1]").unwrap_err().contains("not supported"), "{datatype}");
    }
    for datatype in ["", "fp32", "FP8", "STRING"] {
        assert!(values(datatype, "[1]").unwrap_err().contains("unknown datatype"), "{datatype}");
    }
}

#[test]
fn nesting_is_reported_and_mixtures_are_refused() {
    for (data, wanted) in [
        ("[]", vec![Some(0)]),
        ("[1, 2, 3]", vec![Some(3)]),
        ("[[1, 2], [3, 4]]", vec![Some(2), Some(2)]),
        ("[[1, 2], [3]]", vec![Some(2), None]),
        ("[[[1]], [[2], [3]]]", vec![Some(2), None, Some(1)]),
        ("[[], []]", vec![Some(2), Some(0)]),
    ] {
        assert_eq!(nesting(data), Ok(wanted), "{data}");
    }
    for data in ["[1, [2]]", "[[1], 2]", "[[1], [[2]]]", "[[[1]], [2]]", "[[[1], 2]]"] {
        assert!(nesting(data).unwrap_err().contains("lists and values are mixed"), "{data}");
    }
    for data in ["1", "{}", "\"a\"", "[1", "[1,]"] {
        assert!(nesting(data).is_err(), "{data}");
    }
}

#[test]
fn members_come_in_any_order_and_once() {
    let early = parse(&body("INT32", "[2]", "[1, 2]")).unwrap();
    let late = r#"{"inputs": [{"data": [1, 2], "shape": [2], "datatype": "INT32", "name": "x"}]}"#;
    assert_eq!(parse(late), Ok(early));
    for name in ["name", "shape", "datatype", "data"] {
        let twice = r#"{"inputs": [{"name": "x", "shape": [1], "datatype": "INT8", "data": [1], "NAME": VALUE}]}"#;
        let value = ["\"x\"", "[1]", "\"INT8\"", "[1]"]
            [["name", "shape", "datatype", "data"].iter().position(|n| *n == name).unwrap()];
        let error = refused(&twice.replace("NAME", name).replace("VALUE", value));
        assert!(error.contains(&format!("'{name}' appears twice")), "{error}");
    }
    assert!(refused(r#"{"inputs": [], "inputs": []}"#).contains("'inputs' appears twice"));
    assert!(refused(r#"{"inputs": [], "outputs": [], "outputs": []}"#).contains("'outputs' appears twice"));
    assert!(refused(r#"{"inputs": [], "outputs": [{"name": "a", "name": "b"}]}"#).contains("'name' appears twice"));
    assert!(refused(r#"{"inputs": [], "id": "a", "id": "a"}"#).contains("'id' appears twice"));
    for body in [
        r#"{"inputs": [], TWICE}"#,
        r#"{"inputs": [{"name": "x", "shape": [1], "datatype": "INT8", TWICE}]}"#,
        r#"{"inputs": [], "outputs": [{"name": "a", TWICE}]}"#,
    ] {
        let twice = body.replace("TWICE", r#""parameters": {"a": 1}, "parameters": {}"#);
        assert!(refused(&twice).contains("'parameters' appears twice"), "{twice}");
        let twice = body.replace("TWICE", r#""parameters": {"a": 1, "b": 2, "a": 1}"#);
        assert!(refused(&twice).contains("parameter 'a' appears twice"), "{twice}");
    }
}

#[test]
fn null_is_as_good_as_not_there() {
    let stated = r#"{"id": null, "parameters": null, "outputs": null, "inputs": [{"name": "x", "shape": [1],
        "datatype": "INT8", "data": null, "parameters": null}]}"#;
    let absent = r#"{"inputs": [{"name": "x", "shape": [1], "datatype": "INT8"}]}"#;
    assert_eq!(parse(stated), parse(absent));
    assert!(refused(r#"{"inputs": null}"#).contains("'inputs'"));
    assert!(refused(r#"{"inputs": [{"name": null}]}"#).contains("inputs[0] has no 'name'"));
}

#[test]
fn what_is_missing_is_named() {
    assert!(refused("{}").contains("'inputs'"));
    for (body, says) in [
        (r#"{"inputs": [{}]}"#, "inputs[0] has no 'name'"),
        (r#"{"inputs": [{"name": "x"}]}"#, "input 'x' has no 'shape'"),
        (r#"{"inputs": [{"name": "x", "shape": []}]}"#, "input 'x' has no 'datatype'"),
        (r#"{"inputs": [], "outputs": [{}]}"#, "outputs[0] has no 'name'"),
        (r#"{"inputs": {}}"#, "Unable to parse 'inputs'"),
        (r#"{"inputs": [], "id": 1}"#, "Unable to parse 'id'"),
    ] {
        assert!(refused(body).contains(says), "{body}: {}", refused(body));
    }
    for body in ["", "[]", "{\"inputs\": []} x", "{\"inputs\": []"] {
        assert!(parse(body).is_err(), "{body}");
    }
}

#[test]
fn shapes_are_whole_numbers_and_allocate_nothing() {
    let huge = parse(&body("FP64", "[4611686018427387904, 4]", "[1]")).unwrap();
    let Some(Values::F64(values)) = huge.inputs[0].data.as_ref().map(|data| &data.values) else { panic!() };
    assert!(values.len() == 1 && values.capacity() <= 4096, "{}", values.capacity());
    assert_eq!(parse(&body("FP32", "[-1, 9223372036854775807]", "[1]")).unwrap().inputs[0].shape, [-1, i64::MAX]);
    for shape in ["[9223372036854775808]", "[1.5]", "[null]", "[\"1\"]", "1", "[[1]]", "[NaN]"] {
        assert!(refused(&body("FP32", shape, "[1]")).contains("'shape'"), "{shape}");
    }
}

#[test]
fn parameters_keep_their_types() {
    let body = r#"{"inputs": [], "parameters": {"a": true, "b": -5, "c": 9223372036854775808, "d": 1.5, "e": "x", "f": 1e400}}"#;
    let parameters = parse(body).unwrap().parameters;
    let wanted = [
        ("a", Parameter::Bool(true)),
        ("b", Parameter::Int(-5)),
        ("c", Parameter::Uint(1 << 63)),
        ("d", Parameter::Double(1.5)),
        ("e", Parameter::String("x".into())),
        ("f", Parameter::Double(f64::INFINITY)),
    ];
    assert_eq!(parameters, wanted.map(|(key, value)| (key.to_owned(), value)).into());
    let shown: Vec<String> = parameters.values().map(ToString::to_string).collect();
    assert_eq!(shown, ["true", "-5", "9223372036854775808", "1.5", "\"x\"", "inf"]);
    for value in ["null", "[]", "{}"] {
        assert!(refused(&format!(r#"{{"inputs": [], "parameters": {{"a": {value}}}}}"#)).contains("parameter 'a'"));
    }
}

#[test]
fn long_numbers_are_refused_in_short() {
    // 0.1, written in such a way that the standard library makes nothing of it.
    let tenth = format!("0.{}1e100000", "0".repeat(100_000));
    let digits = "1".repeat(100_000);
    for number in [tenth, digits] {
        for body in [
            body("FP32", "[1]", &format!("[{number}]")),
            body("INT64", "[1]", &format!("[{number}]")),
            body("FP32", &format!("[{number}]"), "[1]"),
            format!(r#"{{"inputs": [], "parameters": {{"a": {number}}}}}"#),
        ] {
            assert!(refused(&body).len() < 200, "{}", refused(&body).len());
        }
    }
    let digits = "1".repeat(4000);
    for (datatype, data) in [("INT64", format!("[{digits}]")), ("BOOL", format!("[{digits}]"))] {
        assert!(values(datatype, &data).unwrap_err().len() < 200, "{datatype}");
    }
    assert!(refused(&body("FP32", &format!("[{digits}]"), "[1]")).len() < 200);
}

#[test]
fn nesting_ends_at_its_limit() {
    let deep = |levels: usize| body("INT8", "[1]", &format!("{}1{}", "[".repeat(levels), "]".repeat(levels)));
    // The body, the list of inputs and the input are three levels.
    assert!(parse(&deep(97)).is_ok());
    assert!(refused(&deep(98)).contains("nested deeper than 100"));
    let late = r#"{"inputs": [{"data": DATA, "name": "x", "shape": [1], "datatype": "INT8"}]}"#;
    assert!(parse(&late.replace("DATA", &format!("{}1{}", "[".repeat(98), "]".repeat(98)))).is_err());
}

#[test]
fn errors_count_bytes_from_the_front_of_the_body() {
    let late = r#"{"inputs": [{"data": [1, "x"], "name": "x", "shape": [2], "datatype": "INT8"}]}"#;
    let at = late.find("\"x\"]").unwrap();
    assert!(refused(late).ends_with(&format!("at byte {at}")), "{}", refused(late));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..48)) {
        let _ = InferRequest::parse(&bytes);
        let _ = InferRequest::parse(&[b"{\"inputs\":[{\"name\":\"x\",\"datatype\":\"FP32\",\"data\":[".as_slice(), &bytes].concat());
    }

    #[test]
    fn changed_bodies_are_read_or_refused(at in 0usize..160, byte in any::<u8>(), cut in 1usize..160) {
        let mut bytes = br#"{"id":"1","inputs":[{"name":"x","shape":[2,2],"datatype":"FP32","data":[[1,2.5],[null,NaN]],"parameters":{"a":1}}],"outputs":[{"name":"y"}]}"#.to_vec();
        let length = bytes.len();
        bytes[at % length] = byte;
        bytes.truncate(cut);
        let _ = InferRequest::parse(&bytes);
    }

    #[test]
    fn values_come_as_they_were_written(narrow in proptest::collection::vec(any::<f32>(), 0..16), whole in proptest::collection::vec(any::<i64>(), 0..16)) {
        let text = narrow.iter().map(|v| if v.is_finite() { v.to_string() } else { "NaN".into() }).collect::<Vec<_>>().join(",");
        let Ok(Values::F32(read)) = values("FP32", &format!("[{text}]")) else { panic!() };
        prop_assert!(read.iter().zip(&narrow).all(|(a, b)| a.to_bits() == b.to_bits() || !b.is_finite()));
        prop_assert_eq!(values("INT64", &serde_json::json!(whole).to_string()), Ok(Values::I64(whole)));
    }
}
