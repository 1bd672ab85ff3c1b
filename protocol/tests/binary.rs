//! Length-prefixed text: what is pushed is split again, and what does not fit is told.

use proptest::prelude::*;
use protocol::binary::{push_text, split_text};

#[test]
fn what_does_not_fit_is_told() {
    assert_eq!(split_text(b""), Ok((vec![], vec![])));
    assert_eq!(split_text(b"\x01\0\0\0a\0\0\0\0\x02\0\0\0bc"), Ok((vec![1, 1, 3], b"abc".to_vec())));
    for (bytes, says) in [
        (&b"\x01"[..], "element 0 has 1 bytes where its length of 4 bytes is expected"),
        (b"\x01\0\0\0", "element 0 has length 1, but 0 bytes follow"),
        (b"\0\0\0\0\xff\xff\xff\xffa", "element 1 has length 4294967295, but 1 bytes follow"),
    ] {
        assert_eq!(split_text(bytes).unwrap_err(), says);
    }
}

proptest! {
    #[test]
    fn what_is_pushed_is_split(elements in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..8), 0..8)) {
        let mut bytes = Vec::new();
        elements.iter().for_each(|element| push_text(&mut bytes, element));
        let (ends, text) = split_text(&bytes).unwrap();
        prop_assert_eq!(ends.len(), elements.len());
        let starts = std::iter::once(&0).chain(&ends);
        for ((start, end), element) in starts.zip(&ends).zip(&elements) {
            prop_assert_eq!(&text[*start as usize..*end as usize], element.as_slice());
        }
        if let Some(cut) = bytes.len().checked_sub(1) {
            prop_assert!(split_text(&bytes[..cut]).is_err() || elements.last().is_some_and(Vec::is_empty) || cut == 0);
        }
    }

    #[test]
    fn any_bytes_are_split_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
        if let Ok((ends, text)) = split_text(&bytes) {
            prop_assert_eq!(ends.len() * 4 + text.len(), bytes.len());
        }
    }
}
