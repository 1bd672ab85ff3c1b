//! Requests that nobody means well with, through the codecs: they are refused or decoded, and what is decoded is within
//! the limits. Nothing panics, and no shape makes room for data that is not there.

use backends::{DataType, Limits, Port, Signature};
use bytes::Bytes;
use proptest::prelude::*;
use prost::Message;
use protocol::grpc::ModelInferRequest;
use protocol::grpc::model_infer_request::InferInputTensor;
use server::codec;
use server::dataplane::Infer;

fn signature(datatype: DataType, shape: &[i64]) -> Signature {
    let port = Port {
        name: "x".into(),
        datatype,
        shape: shape.to_vec(),
        also: Vec::new(),
        optional: false,
        any_shape: false,
        labels: Vec::new(),
    };
    Signature {
        inputs: vec![port],
        outputs: Vec::new(),
        strict: false,
        feature_names: Vec::new(),
        platform: backends::Platform::Xgboost,
    }
}

fn decode(body: &[u8], header_length: Option<usize>) -> Result<Infer, String> {
    let body = Bytes::copy_from_slice(body);
    let decoded = codec::v2::decode(&body, header_length, &signature(DataType::Fp32, &[-1, 4]), &Limits::default());
    decoded.map(|(infer, _)| infer).map_err(|error| error.message())
}

/// What was decoded took up no more than a few times what was sent.
fn within(infer: &Infer, sent: usize) -> bool {
    let held: usize = infer.inputs.iter().map(|input| input.bytes().len()).sum();
    held <= 8 * sent && infer.inputs.iter().all(|input| input.shape().len() <= Limits::default().dimensions)
}

fn one(shape: &str, data: &str) -> String {
    format!(r#"{{"inputs":[{{"name":"x","shape":{shape},"datatype":"INT8","data":{data}}}]}}"#)
}

#[test]
fn shapes_that_overflow_are_refused_or_empty() {
    for shape in ["[4611686018427387904,4]", "[9223372036854775807,9223372036854775807]", "[-1]", "[1,1,1,1,1,1,1,1,1]"]
    {
        for data in ["[]", "[1]", "[[1]]", "[[]]"] {
            assert!(decode(one(shape, data).as_bytes(), None).is_err(), "{shape} {data}");
        }
    }
    for shape in ["[0,4611686018427387904,4611686018427387904]", "[0,9223372036854775807,2]"] {
        for data in ["[]", "[[]]", "[[[]]]", "[[],[]]"] {
            if let Ok(infer) = decode(one(shape, data).as_bytes(), None) {
                assert!(infer.inputs[0].is_empty(), "{shape} {data}");
            }
        }
        assert!(decode(one(shape, "[1]").as_bytes(), None).is_err());
    }
}

#[test]
fn binary_tails_must_fit_their_sizes() {
    let head = |size: &str| {
        format!(
            r#"{{"inputs":[{{"name":"x","shape":[1,4],"datatype":"FP32","parameters":{{"binary_data_size":{size}}}}}]}}"#
        )
    };
    for size in ["0", "15", "17", "-1", "9223372036854775807", "18446744073709551615", "1e300", "true", "\"16\""] {
        let text = head(size);
        let body = [text.as_bytes(), &[0; 16]].concat();
        assert!(decode(&body, Some(text.len())).is_err(), "{size}");
    }
    let text = head("16");
    let body = [text.as_bytes(), &[0; 16]].concat();
    assert_eq!(decode(&body, Some(text.len())).unwrap().inputs[0].shape(), [1, 4]);
    for length in [1, text.len() - 1, text.len() + 1, body.len() + 1, usize::MAX] {
        assert!(decode(&body, Some(length)).is_err(), "{length}");
    }
    assert!(decode(&[0; 15], Some(0)).is_err(), "raw bytes are no whole row");
    assert_eq!(decode(&[0; 32], Some(0)).unwrap().inputs[0].shape(), [2, 4]);
}

#[test]
fn grpc_contents_must_fit_their_shapes() {
    let limits = Limits::default();
    let request = |datatype: &str, shape: &[i64], raw: &[&[u8]]| ModelInferRequest {
        inputs: vec![InferInputTensor {
            name: "x".into(),
            datatype: datatype.into(),
            shape: shape.to_vec(),
            ..InferInputTensor::default()
        }],
        raw_input_contents: raw.iter().map(|bytes| Bytes::copy_from_slice(bytes)).collect(),
        ..ModelInferRequest::default()
    };
    assert!(codec::grpc::decode(request("FP32", &[1, 2], &[&[0; 8]]), &limits).is_ok());
    for (datatype, shape, raw) in [
        ("FP32", vec![1, 2], vec![&[0u8; 7][..]]),
        ("FP32", vec![1, 2], vec![]),
        ("FP32", vec![1, 2], vec![&[0; 8][..], &[]]),
        ("FP32", vec![-1], vec![&[0; 8][..]]),
        ("FP32", vec![i64::MAX, i64::MAX], vec![&[0; 8][..]]),
        ("BYTES", vec![2], vec![b"\xff\xff\xff\xff".as_slice()]),
        ("BYTES", vec![i64::MAX], vec![&[]]),
        ("FP31", vec![1], vec![&[0; 4][..]]),
    ] {
        assert!(codec::grpc::decode(request(datatype, &shape, &raw), &limits).is_err(), "{datatype} {shape:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn changed_requests_are_refused_or_within_limits(at in 0usize..256, byte in any::<u8>(), length in 0usize..256, tail in 0usize..32) {
        let text = r#"{"id":"1","inputs":[{"name":"x","shape":[2,2],"datatype":"INT16","parameters":{"binary_data_size":8}},{"name":"y","shape":[1],"datatype":"BYTES","data":["a"]}],"outputs":[{"name":"o","parameters":{"binary_data":true,"classification":2}}]}"#;
        let mut body = text.as_bytes().to_vec();
        let count = body.len();
        body[at % count] = byte;
        body.resize(count + tail, 1);
        for length in [None, Some(count), Some(length)] {
            if let Ok(infer) = decode(&body, length) {
                prop_assert!(within(&infer, body.len()));
            }
        }
    }

    #[test]
    fn changed_messages_are_refused_or_within_limits(at in 0usize..128, byte in any::<u8>(), cut in 0usize..128) {
        let input = InferInputTensor { name: "x".into(), datatype: "FP32".into(), shape: vec![2, 2], ..InferInputTensor::default() };
        let message = ModelInferRequest { model_name: "m".into(), inputs: vec![input], raw_input_contents: vec![Bytes::from_static(&[0; 16])], ..ModelInferRequest::default() };
        let mut bytes = message.encode_to_vec();
        let count = bytes.len();
        bytes[at % count] = byte;
        bytes.truncate(count.saturating_sub(cut % 8));
        if let Ok(message) = ModelInferRequest::decode(bytes.as_slice())
            && let Ok(infer) = codec::grpc::decode(message, &Limits::default())
        {
            prop_assert!(within(&infer, count));
        }
    }

    #[test]
    fn changed_answers_of_a_process_are_refused_or_tensors(at in 0usize..256, byte in any::<u8>(), cut in 0usize..256) {
        let head = br#"{"Outputs":[{"name":"y","datatype":"FP32","shape":[2],"bytes":8},{"name":"z","datatype":"BYTES","shape":[1],"bytes":5}]}"#;
        let mut bytes = Vec::from((head.len() as u32).to_le_bytes());
        bytes.extend(16u64.to_le_bytes());
        bytes.extend(head);
        bytes.extend(b"\0\0\x80\x3f\0\0\0\x40\x01\0\0\0x\0\0\0");
        prop_assert!(matches!(server::worker::answer(&mut &bytes[..]), Ok(Some(Ok(tensors))) if tensors.len() == 2));
        if let Some(place) = bytes.get_mut(at) {
            *place = byte;
        }
        bytes.truncate(bytes.len() - cut.min(bytes.len()) * usize::from(byte < 64));
        if let Ok(Some(Ok(tensors))) = server::worker::answer(&mut &bytes[..]) {
            prop_assert!(tensors.iter().map(|tensor| tensor.bytes().len()).sum::<usize>() <= 16);
        }
    }

    #[test]
    fn any_bytes_are_refused_or_decoded(bytes in proptest::collection::vec(any::<u8>(), 0..64), length in proptest::option::of(0usize..64)) {
        let _ = decode(&bytes, length);
        let _ = codec::v1::decode(&bytes, &signature(DataType::Fp32, &[-1, 4]));
        if let Ok(message) = ModelInferRequest::decode(bytes.as_slice()) {
            let _ = codec::grpc::decode(message, &Limits::default());
        }
        let _ = codec::events::unwrap(&Default::default(), &Bytes::from(bytes));
    }
}
