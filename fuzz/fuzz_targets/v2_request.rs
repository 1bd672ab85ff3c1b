//! A V2 body: values fill the lists they came in.
#![no_main]

use libfuzzer_sys::fuzz_target;
use protocol::v2::{InferRequest, Values};

fuzz_target!(|body: &[u8]| {
    let Ok(request) = InferRequest::parse(body) else { return };
    for data in request.inputs.into_iter().filter_map(|input| input.data) {
        let count = match &data.values {
            Values::F32(values) => values.len(),
            Values::I64(values) => values.len(),
            Values::Text { ends, text } => {
                assert_eq!(ends.last().copied().unwrap_or(0) as usize, text.len());
                ends.len()
            }
            _ => continue,
        };
        let lengths: Option<Vec<usize>> = data.nesting.iter().copied().collect();
        if let Some(lengths) = lengths {
            assert_eq!(lengths.iter().product::<usize>(), count);
        }
    }
});
