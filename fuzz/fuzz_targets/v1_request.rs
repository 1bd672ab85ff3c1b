//! A V1 body: values fill the shape, columns are of one length.
#![no_main]

use libfuzzer_sys::fuzz_target;
use protocol::v1::{Instances, Numbers, parse};

fuzz_target!(|body: &[u8]| {
    // With all columns, and with some of them.
    for columns in [Vec::new(), vec!["a".to_owned(), "b".to_owned()]] {
        match parse(body, &columns) {
            Ok((_, Instances::Numbers { shape, values })) => {
                let count = match values {
                    Numbers::Whole(values) => values.len(),
                    Numbers::Float(values) | Numbers::Object(values) => values.len(),
                };
                assert_eq!(shape.iter().product::<usize>(), count);
            }
            Ok((_, Instances::Frame(frame))) => {
                assert!(frame.windows(2).all(|pair| pair[0].1.len() == pair[1].1.len()));
            }
            Ok((_, Instances::Text(_))) | Err(_) => {}
        }
    }
});
