//! What is written reads back as the same value, to the last bit.

// The exemption of tests covers only the bodies of `#[test]` functions.
#![allow(clippy::unwrap_used)]

use proptest::prelude::*;
use protocol::json::Reader;
use protocol::write::{self, NotFinite};

fn written(write: impl FnOnce(&mut Vec<u8>)) -> String {
    let mut out = Vec::new();
    write(&mut out);
    String::from_utf8(out).unwrap()
}

#[test]
fn numbers_that_json_lacks_are_written_as_asked() {
    let both = |value: f64, form| {
        (written(|out| write::f64(out, value, form)), written(|out| write::f32(out, value as f32, form)))
    };
    let same = |text: &str| (text.to_owned(), text.to_owned());
    for value in [f64::NAN, -f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        assert_eq!(both(value, NotFinite::Null), same("null"));
    }
    assert_eq!(both(f64::NAN, NotFinite::Token), same("NaN"));
    assert_eq!(both(f64::INFINITY, NotFinite::Token), same("Infinity"));
    assert_eq!(both(f64::NEG_INFINITY, NotFinite::Token), same("-Infinity"));
}

#[test]
fn texts_are_escaped_where_json_asks_for_it() {
    let text = |text: &str| written(|out| write::string(out, text));
    assert_eq!(text("a\"b\\c/d"), r#""a\"b\\c/d""#);
    assert_eq!(text("\n\r\t\u{8}\u{c}\0\u{1f}\u{7f}é😀"), "\"\\n\\r\\t\\u0008\\u000c\\u0000\\u001f\u{7f}é😀\"");
}

#[test]
fn objects_and_lists_get_their_commas() {
    let object = written(|out| {
        out.push(b'{');
        write::key(out, "a");
        write::integers(out, [1i64, -2, i64::MIN]);
        write::key(out, "b");
        write::integers(out, [0u64; 0]);
        write::key(out, "c");
        write::integer(out, u64::MAX);
        out.push(b'}');
    });
    assert_eq!(object, r#"{"a":[1,-2,-9223372036854775808],"b":[],"c":18446744073709551615}"#);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn floats_read_back_as_they_were(bits in any::<u64>()) {
        let (wide, narrow) = (f64::from_bits(bits), f32::from_bits(bits as u32));
        let text = written(|out| write::f64(out, wide, NotFinite::Token));
        let read: f64 = Reader::new(text.as_bytes()).number().unwrap().parse().unwrap();
        prop_assert!(read.to_bits() == wide.to_bits() || read.is_nan() && wide.is_nan(), "{}", text);
        let text = written(|out| write::f32(out, narrow, NotFinite::Token));
        let read: f32 = Reader::new(text.as_bytes()).number().unwrap().parse().unwrap();
        prop_assert!(read.to_bits() == narrow.to_bits() || read.is_nan() && narrow.is_nan(), "{}", text);
    }

    #[test]
    fn texts_read_back_as_they_were(text in any::<String>()) {
        let quoted = written(|out| write::string(out, &text));
        prop_assert_eq!(Reader::new(quoted.as_bytes()).string().unwrap(), text.as_str());
        prop_assert_eq!(serde_json::from_str::<String>(&quoted).unwrap(), text);
    }
}
