//! A V1 body: values fill the shape, columns are of one length.
#![no_main]

use libfuzzer_sys::fuzz_target;
use protocol::v1::{Instances, parse};

fuzz_target!(|body: &[u8]| {
    match parse(body) {
        Ok((_, Instances::Numbers { shape, values, .. })) => {
            assert_eq!(shape.iter().product::<usize>(), values.len());
        }
        Ok((_, Instances::Frame(columns))) => {
            assert!(columns.windows(2).all(|pair| pair[0].1.len() == pair[1].1.len()));
        }
        Ok((_, Instances::Text(_))) | Err(_) => {}
    }
});
