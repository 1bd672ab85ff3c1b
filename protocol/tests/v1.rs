//! The v1 request: what is read, what is refused, and how much memory a body may ask for.

use proptest::prelude::*;
use protocol::v1::{self, Cell, Instances, Numbers, V1Error};

fn parse(body: &[u8]) -> Result<Instances, V1Error> {
    v1::parse(body, &[]).map(|(_, instances)| instances)
}

/// Shape, values, and whether they are whole.
fn numbers(body: &str) -> (Vec<usize>, Vec<f64>, bool) {
    match parse(body.as_bytes()) {
        Ok(Instances::Numbers { shape, values: Numbers::Whole(values) }) => {
            (shape, values.iter().map(|&value| value as f64).collect(), true)
        }
        Ok(Instances::Numbers { shape, values: Numbers::Float(values) }) => (shape, values, false),
        other => panic!("{body}: {other:?}"),
    }
}

fn frame(body: &str) -> Vec<(String, Vec<Cell>)> {
    frame_of(body, &[])
}

fn frame_of(body: &str, columns: &[&str]) -> Vec<(String, Vec<Cell>)> {
    let columns: Vec<String> = columns.iter().map(|&column| column.to_owned()).collect();
    match v1::parse(body.as_bytes(), &columns) {
        Ok((_, Instances::Frame(frame))) => frame,
        other => panic!("{body}: {other:?}"),
    }
}

fn cells(cells: &[f64]) -> Vec<Cell> {
    cells.iter().map(|&cell| if cell.is_nan() { Cell::Missing } else { Cell::Number(cell) }).collect()
}

fn refused(body: &str) -> String {
    parse(body.as_bytes()).expect_err(body).to_string()
}

#[test]
fn dense_numbers_have_the_shape_they_are_written_in() {
    let table: &[(&str, &[usize], &[f64], bool)] = &[
        (r#"{"instances": [[1, 2], [3, 4]]}"#, &[2, 2], &[1., 2., 3., 4.], true),
        (r#"{"inputs": [[1.0, 2]]}"#, &[1, 2], &[1., 2.], false),
        (r#"{"instances": [1, 2, 3]}"#, &[3], &[1., 2., 3.], true),
        (r#"{"instances": []}"#, &[0], &[], false),
        (r#"{"instances": [[]]}"#, &[1, 0], &[], false),
        (r#"{"instances": [[[1], [2]]]}"#, &[1, 2, 1], &[1., 2.], true),
        (r#"{"instances": [[true, false]]}"#, &[1, 2], &[1., 0.], true),
        (r#"{"instances": [[1]], "inputs": [[2]]}"#, &[1, 1], &[2.], true),
        (r#"{"a": {"b": [1]}, "instances": [[-0.0]], "z": null}"#, &[1, 1], &[-0.0], false),
        (r#"{"instances": [[1e400, -1e400]]}"#, &[1, 2], &[f64::INFINITY, f64::NEG_INFINITY], false),
        (r#"{"instances": [[Infinity, -Infinity]]}"#, &[1, 2], &[f64::INFINITY, f64::NEG_INFINITY], false),
    ];
    for (body, shape, values, whole) in table {
        assert_eq!(numbers(body), (shape.to_vec(), values.to_vec(), *whole), "{body}");
    }
    assert_eq!(v1::parse(br#"{"instances": [1], "inputs": [2]}"#, &[]).unwrap().0, "inputs");
}

#[test]
fn whole_numbers_floats_and_null_are_told_apart() {
    let values = |list: &str| match parse(format!("{{\"instances\":[{list}]}}").as_bytes()) {
        Ok(Instances::Numbers { values, .. }) => values,
        other => panic!("{list}: {other:?}"),
    };
    let great = 9_007_199_254_740_993;
    assert_eq!(values("9007199254740993, -1, true"), Numbers::Whole(vec![great, -1, 1]));
    assert_eq!(values("9007199254740993, -9223372036854775808, -0"), Numbers::Whole(vec![great, i64::MIN, 0]));
    assert_eq!(values("9007199254740993, 0.5, false"), Numbers::Float(vec![great as f64, 0.5, 0.0]));
    assert_eq!(values("1, 9223372036854775808"), Numbers::Float(vec![1.0, 9_223_372_036_854_775_808.0]));
    assert_eq!(values("1, -9223372036854775809"), Numbers::Float(vec![1.0, -9_223_372_036_854_775_808.0]));
    assert_eq!(values("1e2"), Numbers::Float(vec![100.0]));
    for list in ["1, null", "null, 1", "1.0, null", "null, 1.0"] {
        let Numbers::Object(values) = values(list) else { panic!("{list}") };
        assert!(values.contains(&1.0) && values.iter().any(|value| value.is_nan()), "{list}");
    }
    let Numbers::Float(nan) = values("NaN") else { panic!() };
    assert!(nan[0].is_nan());
}

#[test]
fn lists_that_are_not_dense_are_refused() {
    for body in [
        r#"{"instances": [[1, 2], [3]]}"#,
        r#"{"instances": [[1], 2]}"#,
        r#"{"instances": [1, [2]]}"#,
        r#"{"instances": [[1], [[2]]]}"#,
        r#"{"instances": [[], [1]]}"#,
        r#"{"instances": [[[]], [1]]}"#,
        r#"{"instances": [[1, "2"]]}"#,
        r#"{"instances": [[1, {}]]}"#,
    ] {
        assert!(matches!(parse(body.as_bytes()), Err(V1Error::Values(_))), "{body}");
    }
}

#[test]
fn texts_are_a_flat_list() {
    let body = r#"{"instances": ["a", "\u00e9", ""]}"#;
    assert_eq!(parse(body.as_bytes()), Ok(Instances::Text(vec!["a".into(), "é".into(), String::new()])));
    assert!(refused(r#"{"instances": ["a", 1]}"#).contains("instances[1] is not text"));
    assert!(refused(r#"{"instances": ["a", ["b"]]}"#).contains("instances[1] is not text"));
    let numbers = refused(r#"{"instances": [["1", "2", "0.5"]]}"#);
    assert!(numbers.contains("instances[0] is a list of text; rows are lists of numbers"), "{numbers}");
}

#[test]
fn rows_and_columns_make_the_same_frame() {
    let wanted = vec![
        ("a".to_owned(), vec![Cell::Number(1.0), Cell::Number(3.0)]),
        ("b".to_owned(), vec![Cell::Text("x".into()), Cell::Missing]),
    ];
    for body in [
        r#"{"instances": [{"a": 1, "b": "x"}, {"a": 3, "b": null}]}"#,
        r#"{"instances": [{"a": 1, "b": "x"}, {"a": 3}]}"#,
        r#"{"instances": [{"a": [1, 3], "b": ["x", null]}]}"#,
        r#"{"inputs": [[{"a": 1, "b": "x"}], [{"a": 3}]]}"#,
        r#"{"instances": [{"a": [1], "b": ["x"]}, {"a": 3}]}"#,
    ] {
        assert_eq!(frame(body), wanted, "{body}");
    }
    let late = frame(r#"{"instances": [{"a": true}, {"b": false}, {}]}"#);
    assert_eq!(late[0].1, [Cell::Number(1.0), Cell::Missing, Cell::Missing]);
    assert_eq!(late[1].1, [Cell::Missing, Cell::Number(0.0), Cell::Missing]);
}

#[test]
fn values_beside_lists_are_those_of_all_their_rows() {
    let number = Cell::Number;
    let wanted = vec![
        ("b".to_owned(), vec![number(2.0), number(2.0), number(5.0)]),
        ("a".to_owned(), vec![number(1.0), Cell::Missing, number(4.0)]),
        ("c".to_owned(), vec![Cell::Text("x".into()), Cell::Text("x".into()), Cell::Missing]),
        ("d".to_owned(), vec![Cell::Missing; 3]),
    ];
    let body = r#"{"instances": [{"b": 2, "a": [1, null], "c": "x", "d": null}, {"b": [5], "a": 4}]}"#;
    assert_eq!(frame(body), wanted);
    assert_eq!(frame_of(body, &["a", "b"]), wanted[..2]);
    assert_eq!(frame(r#"{"instances": [{"a": [], "b": 1}]}"#), ["a", "b"].map(|name| (name.to_owned(), Vec::new())));
    let other = refused(r#"{"instances": [{"a": [1, 2], "b": 3, "c": [1, 2, 3]}]}"#);
    assert!(other.contains("column 'c' has 3 values, the columns before it 2"), "{other}");
}

#[test]
fn columns_keyed_by_row_are_matched_by_key() {
    const NAN: f64 = f64::NAN;
    let body = r#"{"instances": [{"b": {"0": 1, "1": 5}, "a": {"1": 2}, "c": {"0": 3, "1": null}}, {"b": {"x": 7}}]}"#;
    // As pandas: rows in the order of the columns that were asked for, or of those that were sent.
    let wanted = [("b", [1.0, 5.0, 7.0]), ("a", [NAN, 2.0, NAN]), ("c", [3.0, NAN, NAN])];
    assert_eq!(frame(body), wanted.map(|(name, column)| (name.to_owned(), cells(&column))));
    let wanted = [("a", [2.0, NAN, NAN]), ("b", [5.0, 1.0, 7.0])];
    assert_eq!(frame_of(body, &["a", "b"]), wanted.map(|(name, column)| (name.to_owned(), cells(&column))));
    assert_eq!(frame(r#"{"inputs": [{"a": {}}]}"#), [("a".to_owned(), Vec::new())]);
}

#[test]
fn columns_that_are_not_asked_for_are_passed_over() {
    let taken = |body: &str| frame_of(body, &["a", "b"]);
    let wanted = |column: &[f64]| vec![("a".to_owned(), cells(column))];
    assert_eq!(taken(r#"{"inputs": [{"a": 1, "x": {"y": [[]]}}, {"a": 2, "x": "z"}]}"#), wanted(&[1.0, 2.0]));
    assert_eq!(taken(r#"{"inputs": [{"x": [1, 2, 3], "a": [1, 2]}]}"#), wanted(&[1.0, 2.0]));
    assert_eq!(taken(r#"{"inputs": [{"a": {"0": 1}, "x": {"1": 2}}]}"#), wanted(&[1.0]), "nor do they make rows");
    assert_eq!(taken(r#"{"inputs": [{"a": [1]}, {"x": [2]}, {"x": {"0": 1}}]}"#), wanted(&[1.0]));
    assert_eq!(taken(r#"{"inputs": [{"a": 1}, {"x": 2}]}"#), wanted(&[1.0, f64::NAN]));
    assert_eq!(taken(r#"{"inputs": [{"x": 2}]}"#), []);
}

#[test]
fn frames_that_do_not_fit_are_refused() {
    for (body, says) in [
        (r#"{"instances": [{"a": 1, "a": 2}]}"#, "column 'a' appears twice"),
        (r#"{"instances": [{"a": [1, 2], "b": [1]}]}"#, "column 'b' has 1 values, the columns before it 2"),
        (r#"{"instances": [{"a": [[1]]}]}"#, "column 'a' is nested"),
        (r#"{"instances": [{"a": {"b": {}}}]}"#, "column 'a' is nested"),
        (r#"{"instances": [{"a": {"b": 1}, "c": [1]}]}"#, "some columns are keyed by row, and some are not"),
        (r#"{"instances": [{"a": 1, "c": {"b": 1}}]}"#, "some columns are keyed by row, and some are not"),
        (r#"{"instances": [{"a": [1, 2], "b": 1, "b": 2}]}"#, "column 'b' appears twice"),
        (r#"{"instances": [{"a": {"b": 1}, "a": {"c": 1}}]}"#, "column 'a' appears twice"),
        (r#"{"instances": [{"a": {"b": 1, "b": 2}}]}"#, "row 'b' of column 'a' appears twice"),
        (r#"{"instances": [{"a": 1}, 2]}"#, "expected an object like the first element"),
    ] {
        assert!(refused(body).contains(says), "{body}: {}", refused(body));
    }
}

#[test]
fn a_short_text_asks_for_no_large_frame() {
    let columns: Vec<String> = (0..20_000).map(|i| format!("\"{i}\":1")).collect();
    // 20,000 columns, and then 100,000 rows that are written in three bytes each.
    let body = format!("{{\"instances\":[{{{}}}{}]}}", columns.join(","), ",{}".repeat(100_000));
    assert!(refused(&body).contains("too large a table"));
    // Each row a column of its own.
    let body =
        format!("{{\"instances\":[{}]}}", columns.iter().map(|c| format!("{{{c}}}")).collect::<Vec<_>>().join(","));
    assert!(refused(&body).contains("too large a table"));
    // Each column a row of its own.
    let keyed: Vec<String> = (0..20_000).map(|i| format!("\"{i}\":{{\"{i}\":1}}")).collect();
    assert!(refused(&format!("{{\"instances\":[{{{}}}]}}", keyed.join(","))).contains("too large a table"));
    // Values that are repeated for each row of a list.
    let list = vec!["1"; 20_000].join(",");
    let body = format!("{{\"instances\":[{{\"list\":[{list}],{}}}]}}", columns.join(","));
    assert!(refused(&body).contains("too large a table"));
    let text = "x".repeat(20_000);
    let texts = |list: &str| format!("{{\"instances\":[{{\"text\":\"{text}\",\"list\":[{list}]}}]}}");
    assert!(refused(&texts(&list)).contains("too large a table"));
    assert_eq!(frame(&texts("1,2,3"))[0].1, vec![Cell::Text(text.clone()); 3]);
    // Little by little, too.
    let little = format!("{{\"text\":\"{}\",\"list\":[{}]}}", "x".repeat(2000), ["1"; 500].join(","));
    assert!(refused(&format!("{{\"instances\":[{}]}}", vec![little; 100].join(","))).contains("too large a table"));
    // What is written out in full is never too large.
    let row = format!("{{{}}}", columns[..500].join(","));
    assert_eq!(frame(&format!("{{\"instances\":[{}]}}", vec![row; 400].join(","))).len(), 500);
    // Many columns are found by name in no more time than they took to be written.
    let many: Vec<String> = (0..200_000).map(|i| format!("\"{i}\":1")).collect();
    assert_eq!(frame(&format!("{{\"instances\":[{{{}}}]}}", many.join(","))).len(), 200_000);
}

#[test]
fn bodies_that_are_no_requests_are_told_so() {
    for (body, says) in [
        ("", "Unrecognized request format"),
        ("{", "Unrecognized request format"),
        ("[1]", "expected an object"),
        ("{}", "expected \"instances\" or \"inputs\""),
        (r#"{"instances": 1}"#, "Expected \"instances\" to be a list"),
        (r#"{"instances": {"a": 1}}"#, "Expected \"instances\" to be a list"),
        (r#"{"inputs": null, "instances": [1]}"#, "Expected \"inputs\" to be a list"),
        (r#"{"instances": [1], "instances": [2]}"#, "\"instances\" appears twice"),
        (r#"{"instances": [1]} x"#, "Unrecognized request format"),
        (r#"{"instances": [1], "z": }"#, "Unrecognized request format"),
    ] {
        assert!(refused(body).contains(says), "{body}: {}", refused(body));
    }
    let deep = format!("{{\"instances\": {}{}}}", "[".repeat(100), "]".repeat(100));
    assert!(refused(&deep).contains("nested deeper than 100"));
    let just = format!("{{\"instances\": {}1{}}}", "[".repeat(99), "]".repeat(99));
    assert_eq!(numbers(&just).0, [1; 99]);
}

#[test]
fn errors_count_bytes_from_the_front_of_the_body() {
    assert!(refused(r#"{"instances": [[1, "x"]]}"#).ends_with("at byte 19"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..48)) {
        let _ = parse(&bytes);
        let _ = parse(&[b"{\"instances\":[".as_slice(), &bytes].concat());
    }

    #[test]
    fn changed_bodies_are_read_or_refused(at in 0usize..64, byte in any::<u8>(), cut in 0usize..64) {
        for body in [r#"{"instances": [[1, 2.5, null], [-3, 1e5, NaN]]}"#, r#"{"instances": [{"a": 1, "b": ["x"]}, {"a": 3}]}"#,
            r#"{"instances": [{"a": {"0": 1, "1": 2}, "b": {"1": null}}]}"#] {
            let mut bytes = body.as_bytes().to_vec();
            let length = bytes.len();
            bytes[at % length] = byte;
            bytes.truncate(cut.max(1));
            if let Ok(Instances::Numbers { shape, values }) = parse(&bytes) {
                let (Numbers::Float(floats) | Numbers::Object(floats)) = &values else { continue };
                prop_assert_eq!(shape.iter().product::<usize>(), floats.len());
            }
        }
    }

    #[test]
    fn dense_values_come_in_the_order_they_are_written(rows in 1usize..6, columns in 1usize..6, seed in any::<f64>()) {
        prop_assume!(seed.is_finite());
        let rows: Vec<Vec<f64>> = (0..rows).map(|r| (0..columns).map(|c| seed / (1 + r * columns + c) as f64).collect()).collect();
        let body = serde_json::json!({"instances": rows}).to_string();
        prop_assert_eq!(numbers(&body).1, rows.concat());
    }
}
