//! A V1 body as a CloudEvent: the data lies within the body.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|body: &[u8]| {
    if let Ok((_, data)) = server::codec::events::unwrap(&Default::default(), &Bytes::copy_from_slice(body)) {
        assert!(data.len() <= body.len());
    }
});
