//! The v1 request: what is read, what is refused, and how much memory a body may ask for.

use proptest::prelude::*;
use protocol::v1::{self, Cell, Instances, V1Error};

fn parse(body: &[u8]) -> Result<Instances, V1Error> {
    v1::parse(body).map(|(_, instances)| instances)
}

fn numbers(body: &str) -> (Vec<usize>, Vec<f64>, bool) {
    match parse(body.as_bytes()) {
        Ok(Instances::Numbers { shape, values, whole }) => (shape, values, whole),
        other => panic!("{body}: {other:?}"),
    }
}

fn frame(body: &str) -> Vec<(String, Vec<Cell>)> {
    match parse(body.as_bytes()) {
        Ok(Instances::Frame(frame)) => frame,
        other => panic!("{body}: {other:?}"),
    }
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
        (r#"{"instances": [[]]}"#, &[1, 0], &[], true),
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
    assert_eq!(v1::parse(br#"{"instances": [1], "inputs": [2]}"#).unwrap().0, "inputs");
    let (shape, values, whole) = numbers(r#"{"instances": [[null, NaN]]}"#);
    assert!(shape == [1, 2] && values.iter().all(|v| v.is_nan()) && !whole);
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
        assert!(matches!(parse(body.as_bytes()), Err(V1Error::Invalid(_))), "{body}");
    }
}

#[test]
fn texts_are_a_flat_list() {
    let body = r#"{"instances": ["a", "\u00e9", ""]}"#;
    assert_eq!(parse(body.as_bytes()), Ok(Instances::Text(vec!["a".into(), "é".into(), String::new()])));
    assert!(refused(r#"{"instances": ["a", 1]}"#).contains("instances[1] is not text"));
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
fn frames_that_do_not_fit_are_refused() {
    for (body, says) in [
        (r#"{"instances": [{"a": 1, "a": 2}]}"#, "column 'a' appears twice"),
        (r#"{"instances": [{"a": [1, 2], "b": [1]}]}"#, "column 'b' has 1 values, the columns before it 2"),
        (r#"{"instances": [{"a": [[1]]}]}"#, "column 'a' is nested"),
        (r#"{"instances": [{"a": {"b": 1}}]}"#, "column 'a' is nested"),
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
        for body in [r#"{"instances": [[1, 2.5, null], [-3, 1e5, NaN]]}"#, r#"{"instances": [{"a": 1, "b": ["x"]}, {"a": 3}]}"#] {
            let mut bytes = body.as_bytes().to_vec();
            let length = bytes.len();
            bytes[at % length] = byte;
            bytes.truncate(cut.max(1));
            if let Ok(Instances::Numbers { shape, values, .. }) = parse(&bytes) {
                prop_assert_eq!(shape.iter().product::<usize>(), values.len());
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
