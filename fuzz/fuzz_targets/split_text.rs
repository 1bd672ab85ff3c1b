//! Length-prefixed text: lengths and text make up the bytes.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok((ends, text)) = protocol::binary::split_text(bytes) {
        assert_eq!(4 * ends.len() + text.len(), bytes.len());
    }
});
