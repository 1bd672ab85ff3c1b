//! A V2 body with binary tensors behind the JSON: tensors are no larger than a few times the body.
#![no_main]

use backends::{DataType, Limits, Port, Signature};
use bytes::Bytes;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((length, body)) = data.split_first_chunk::<2>() else { return };
    let port =
        Port { name: "x".into(), datatype: DataType::Fp32, shape: vec![-1, 4], also: Vec::new(), optional: false, any_shape: false, labels: Vec::new() };
    let signature = Signature {
        inputs: vec![port],
        outputs: Vec::new(),
        strict: false,
        feature_names: Vec::new(),
        platform: String::new(),
    };
    let length = Some(u16::from_le_bytes(*length) as usize).filter(|length| *length != u16::MAX as usize);
    let decoded = server::codec::v2::decode(&Bytes::copy_from_slice(body), length, &signature, &Limits::default());
    if let Ok((infer, _)) = decoded {
        let held: usize = infer.inputs.iter().map(|input| input.bytes().len()).sum();
        assert!(held <= 8 * body.len());
    }
});
