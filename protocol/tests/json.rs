//! The pull reader against tables of edge cases, and against serde_json as the judge of what is JSON.

use proptest::prelude::*;
use protocol::json::{Kind, MAX_DEPTH, MAX_NUMBER, Reader};

/// Passes over one document.
fn skip(text: &[u8]) -> Result<(), String> {
    let mut reader = Reader::new(text);
    reader.skip().and_then(|()| reader.end()).map_err(|e| e.to_string())
}

fn string(text: &str) -> Result<String, String> {
    let mut reader = Reader::new(text.as_bytes());
    let string = reader.string().map_err(|e| e.to_string())?.into_owned();
    reader.end().map_err(|e| e.to_string())?;
    Ok(string)
}

#[test]
fn nesting_ends_at_its_limit() {
    for (open, close) in [("[", "]"), ("{\"a\":", "}"), ("[{\"a\":", "}]")] {
        let levels = open.matches(['[', '{']).count();
        let nested = |times: usize| format!("{}{}{}", open.repeat(times), 1, close.repeat(times));
        assert_eq!(skip(nested(MAX_DEPTH / levels).as_bytes()), Ok(()), "{open}");
        let error = skip(nested(MAX_DEPTH / levels + 1).as_bytes()).unwrap_err();
        assert!(error.contains("nested deeper than 100"), "{open}: {error}");
        assert!(skip(open.repeat(1_000_000).as_bytes()).is_err(), "{open}");
    }
    assert_eq!(skip(format!("[{}]", "[],".repeat(1000) + "[]").as_bytes()), Ok(()), "width is not depth");
}

#[test]
fn numbers_are_those_of_json_and_the_names_of_those_it_lacks() {
    let good = [
        "0",
        "-0",
        "10",
        "-1",
        "1.5",
        "-0.0",
        "1e5",
        "1E5",
        "1e+5",
        "1e-5",
        "1.25e10",
        "1e400",
        "NaN",
        "Inf",
        "Infinity",
        "-Inf",
        "-Infinity",
        "123456789012345678901234567890",
    ];
    for text in good {
        assert_eq!(Reader::new(text.as_bytes()).number(), Ok(text));
        assert_eq!(skip(text.as_bytes()), Ok(()), "{text}");
    }
    let bad = [
        "",
        "-",
        "+1",
        "01",
        "-01",
        "1.",
        ".5",
        "1e",
        "1e+",
        "1.e5",
        "--1",
        "1-2",
        "1.2.3",
        "0x10",
        "1_000",
        "nan",
        "inf",
        "infinity",
        "NaNs",
        "Infinit",
        "+Infinity",
        "1NaN",
        "'1'",
        "١",
    ];
    for text in bad {
        assert!(skip(text.as_bytes()).is_err(), "{text}");
    }
}

#[test]
fn numbers_are_of_bounded_length() {
    // The middle between two doubles, in full: every digit counts.
    let half = "2.4703282292062327208e-324";
    let long = format!("0.{}1", "0".repeat(MAX_NUMBER - 3));
    for text in [half, &long] {
        assert_eq!(Reader::new(text.as_bytes()).number(), Ok(text));
    }
    for zeros in ["0", "0.", "1e", "-1"] {
        let text = format!("{zeros}{}1", "0".repeat(MAX_NUMBER));
        let error = skip(format!("[{text}]").as_bytes()).unwrap_err();
        assert!(error.len() < 100, "{zeros}: {} bytes of error", error.len());
    }
    for text in ["1x".repeat(1 << 20), "-".repeat(1 << 20)] {
        assert!(skip(text.as_bytes()).unwrap_err().len() < 200);
    }
}

#[test]
fn strings_are_unescaped() {
    let good = [
        (r#""""#, ""),
        (r#""a b""#, "a b"),
        (r#""\"\\\/\b\f\n\r\t""#, "\"\\/\u{8}\u{c}\n\r\t"),
        (r#""\u0041\u00e9\u20AC""#, "Aé€"),
        (r#""\ud83d\ude00!""#, "😀!"),
        (r#""\u0000""#, "\0"),
        ("\"\u{7f}é😀\"", "\u{7f}é😀"),
    ];
    for (text, wanted) in good {
        assert_eq!(string(text).as_deref(), Ok(wanted), "{text}");
    }
    let bad = [
        r#"""#,
        r#""a"#,
        r#""\"#,
        r#""\""#,
        r#""\x""#,
        r#""\u12""#,
        r#""\u12g4""#,
        r#""\u+123""#,
        r#""\ud83d""#,
        r#""\ud83dx""#,
        r#""\ud83d\n""#,
        r#""\ud83d\u0041""#,
        r#""\ude00""#,
        r#""\ude00\ud83d""#,
        "\"a\nb\"",
        "\"\t\"",
        "\"\0\"",
        "'a'",
        "a",
    ];
    for text in bad {
        assert!(string(text).is_err(), "{text}");
    }
    assert!(skip(b"\"\xff\"").is_err() && skip(b"\"\xed\xa0\x80\"").is_err(), "not UTF-8");
}

#[test]
fn errors_name_the_byte() {
    let at = |text: &str| Reader::new(text.as_bytes()).skip().unwrap_err().at;
    assert_eq!(at("[1, x]"), 4);
    assert_eq!(at("{\"a\" 1}"), 5);
    assert_eq!(at("[1 2]"), 3);
    assert_eq!(at("[1,"), 3);
    assert_eq!(Reader::new(b"\"ab\xff\"").string().unwrap_err().at, 3);
    let mut reader = Reader::new(b"[10, x]");
    let mut again = reader.again(5);
    assert_eq!(again.kind().unwrap_err().at, 5, "a second reader counts from the front of the body");
    assert_eq!(reader.kind(), Ok(Kind::Array));
}

#[test]
fn lists_and_objects_need_their_commas() {
    let bad = [
        "[1,]",
        "[,1]",
        "[1 2]",
        "[1",
        "]",
        "[1}",
        "{\"a\":1,}",
        "{,}",
        "{\"a\"}",
        "{\"a\":}",
        "{a:1}",
        "{1:1}",
        "{\"a\":1",
        "[1]]",
        "[] []",
        "tru",
        "truely",
        "nul",
        "True",
        "",
        " ",
    ];
    for text in bad {
        assert!(skip(text.as_bytes()).is_err(), "{text}");
    }
    assert_eq!(skip(b" \t\r\n{ \"a\" : [ 1 , { } , [ ] , null , true , false ] } \n"), Ok(()));
}

/// Text that looks like JSON more often than chance would have it.
fn jsonish() -> impl Strategy<Value = String> {
    let pieces = [
        "{", "}", "[", "]", ",", ":", " ", "\"", "\"a\"", "\\", "\\u", "d83d", "1", "-", "0", ".", "e", "+", "true",
        "false", "null", "NaN", "Infinity", "é", "\n",
    ];
    proptest::collection::vec(prop::sample::select(pieces.to_vec()), 0..24).prop_map(|parts| parts.concat())
}

fn document() -> impl Strategy<Value = serde_json::Value> {
    let leaf = prop_oneof![
        Just(serde_json::Value::Null),
        any::<bool>().prop_map(Into::into),
        any::<i64>().prop_map(Into::into),
        any::<f64>().prop_filter("JSON has none", |v| v.is_finite()).prop_map(Into::into),
        any::<String>().prop_map(Into::into),
    ];
    leaf.prop_recursive(6, 64, 8, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..8).prop_map(Into::into),
            proptest::collection::btree_map(any::<String>(), inner, 0..8)
                .prop_map(|map| serde_json::Value::Object(map.into_iter().collect())),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn whatever_serde_json_writes_is_read(value in document(), pretty in any::<bool>()) {
        let text = if pretty { serde_json::to_vec_pretty(&value) } else { serde_json::to_vec(&value) }.unwrap();
        prop_assert_eq!(skip(&text), Ok(()));
        prop_assert_eq!(Reader::new(&text).raw().unwrap().len(), text.len());
    }

    #[test]
    fn what_is_json_is_what_serde_json_says(text in jsonish()) {
        let ours = skip(text.as_bytes()).is_ok();
        // Names of numbers that JSON lacks are ours; numbers beyond 64 bits of float are refused by theirs alone.
        let theirs = match serde_json::from_str::<serde_json::Value>(&text) {
            Ok(_) => true,
            Err(error) => error.to_string().contains("out of range"),
        };
        let named = text.contains("NaN") || text.contains("Inf");
        prop_assert!(if named { ours || !theirs } else { ours == theirs }, "{:?}: {} {}", text, ours, theirs);
    }

    #[test]
    fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
        if let Err(error) = Reader::new(&bytes).skip() {
            prop_assert!(error.at <= bytes.len());
        }
    }
}
