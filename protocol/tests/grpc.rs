//! The gRPC messages on the wire: the layouts that clients of other servers send, byte by byte.

// The exemption of tests covers only the bodies of `#[test]` functions.
#![allow(clippy::unwrap_used)]

use bytes::Bytes;
use prost::Message;
use protocol::contents::{Field, InferTensorContents, Malformed};
use protocol::grpc::{
    InferParameter, ModelInferRequest, ModelMetadataResponse, RepositoryModelLoadRequest, RepositoryModelLoadResponse,
    RepositoryModelUnloadResponse, infer_parameter::ParameterChoice,
};
use protocol::parts::{MOST_PARTS, Request};

/// A length-delimited field of number below 16.
fn field(number: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![number << 3 | 2];
    prost::encode_length_delimiter(payload.len(), &mut bytes).unwrap();
    bytes.extend(payload);
    bytes
}

#[test]
fn raw_contents_share_the_buffer_of_the_request() {
    let tensor = vec![7u8; 4096];
    let wire: Bytes = [field(1, b"m"), field(7, &tensor)].concat().into();
    let request = ModelInferRequest::decode(wire.clone()).unwrap();
    assert_eq!(request.raw_input_contents[0], tensor);
    let buffer = wire.as_ptr_range();
    assert!(buffer.contains(&request.raw_input_contents[0].as_ptr()));
}

#[test]
fn infer_requests_have_the_public_field_numbers() {
    let input = [field(1, b"x"), field(2, b"FP32"), field(3, &[1, 2]), field(5, &field(6, &1.5f32.to_le_bytes()))];
    let parameter = [field(1, b"k"), field(2, &[1 << 3, 1])].concat();
    let parts = [field(1, b"m"), field(2, b"3"), field(3, b"id"), field(4, &parameter), field(5, &input.concat())];
    let wire = [parts.concat(), field(6, &field(1, b"y"))].concat();
    let request = ModelInferRequest::decode(wire.as_slice()).unwrap();
    assert_eq!((&*request.model_name, &*request.model_version, &*request.id), ("m", "3", "id"));
    assert_eq!(request.parameters["k"], InferParameter { parameter_choice: Some(ParameterChoice::BoolParam(true)) });
    assert_eq!((&*request.inputs[0].name, &*request.inputs[0].datatype), ("x", "FP32"));
    assert_eq!(request.inputs[0].shape, [1, 2]);
    let contents = request.inputs[0].contents.as_ref().unwrap();
    assert_eq!(contents.fixed(Field::Fp32).collect::<Vec<_>>(), [1.5f32.to_le_bytes()]);
    assert_eq!(request.outputs[0].name, "y");
    assert_eq!(request.encode_to_vec(), wire);
}

/// The contents of a message of these bytes.
fn contents(wire: &[u8]) -> InferTensorContents {
    InferTensorContents::decode(wire).unwrap()
}

#[test]
fn contents_are_read_however_they_were_written() {
    // Packed, one by one, in parts; fields of no meaning here are passed over.
    let packed = field(3, &[1, 0x96, 1, 2]);
    let singly = [&[3 << 3, 1, 3 << 3, 0x96, 1][..], &field(15, b"?"), &[3 << 3, 2]].concat();
    let parts = [field(3, &[1]), field(3, &[]), field(3, &[0x96, 1, 2])].concat();
    for wire in [packed, singly, parts] {
        let contents = contents(&wire);
        assert_eq!(contents.varints(Field::Int64).collect::<Vec<_>>(), [Ok(1), Ok(150), Ok(2)]);
        let counted = contents.counts().try_fold(0, |sum, count| count.map(|(_, count)| sum + count));
        assert_eq!(counted, Ok(3));
        assert_eq!(InferTensorContents::decode(&*contents.encode_to_vec()).unwrap(), contents);
    }
    let floats = [field(6, &[0; 8]), vec![6 << 3 | 5, 0, 0, 0x80, 0x3f]].concat();
    assert_eq!(
        contents(&floats).fixed(Field::Fp32).collect::<Vec<_>>().concat(),
        [[0; 8].as_slice(), &1f32.to_le_bytes()].concat()
    );
    let texts = [field(8, b"a"), field(8, b""), field(8, b"bc")].concat();
    assert_eq!(contents(&texts).texts().collect::<Vec<_>>(), [b"a".as_slice(), b"", b"bc"]);
}

#[test]
fn contents_that_are_malformed_are_refused() {
    for wire in [&[3 << 3 | 5, 0, 0, 0, 0][..], &[6 << 3, 1], &[8 << 3, 1], &[3 << 3 | 2, 2, 1], &[7 << 3 | 1, 0]] {
        assert!(InferTensorContents::decode(wire).is_err(), "{wire:?}");
    }
    for (number, payload) in [(3, &[0x80][..]), (6, &[0; 5]), (7, &[0; 12])] {
        let contents = contents(&field(number, payload));
        assert!(contents.counts().any(|count| matches!(count, Err(Malformed(_)))), "{number}");
    }
    let too_long = contents(&field(5, &[&[0x80; 10][..], &[1, 1]].concat()));
    assert_eq!(too_long.varints(Field::Uint64).collect::<Vec<_>>(), [Err(Malformed(Field::Uint64))]);
}

#[test]
fn contents_are_written_as_they_are_read() {
    let values = [0, 1, 127, 128, u64::MAX, -1i64 as u64];
    let varints = InferTensorContents::of_varints(Field::Uint64, values.into_iter());
    assert_eq!(varints.varints(Field::Uint64).collect::<Result<Vec<_>, _>>().unwrap(), values);
    let texts = [b"".as_slice(), b"a", &[7; 300]];
    let written = InferTensorContents::of_texts(texts.into_iter());
    assert_eq!(written.texts().collect::<Vec<_>>(), texts);
    let fixed = InferTensorContents::of_fixed(Field::Fp64, &2f64.to_le_bytes());
    assert_eq!(fixed.fixed(Field::Fp64).collect::<Vec<_>>(), [2f64.to_le_bytes()]);
    for written in [varints, written, fixed, InferTensorContents::of_varints(Field::Bool, [].into_iter())] {
        assert_eq!(contents(&written.encode_to_vec()), written);
        assert_eq!(written.encode_to_vec().len(), written.encoded_len());
    }
}

#[test]
fn messages_of_very_many_things_are_told_before_they_are_read() {
    let shape = field(5, &field(3, &vec![1; MOST_PARTS]));
    let singly = field(5, &[3 << 3, 1].repeat(MOST_PARTS));
    for (number, many) in [4, 5, 6, 7, 9].map(|number| (number, field(number, b"").repeat(MOST_PARTS))) {
        assert!(ModelInferRequest::is_moderate(&many), "{number}");
        assert!(!ModelInferRequest::is_moderate(&[&many[..], &field(1, b"m")].concat()), "{number}");
    }
    for within in
        [shape, singly, field(6, &field(2, b"").repeat(MOST_PARTS)), field(5, &field(4, b"").repeat(MOST_PARTS))]
    {
        assert!(!ModelInferRequest::is_moderate(&within));
    }
    // Elements are no things, however many; nor is what is no message.
    let contents = field(5, &field(5, &field(8, b"").repeat(2 * MOST_PARTS)));
    for moderate in
        [contents, field(7, &vec![0; 1 << 20]), vec![0xff; 64], field(5, &[3 << 3 | 2, 200]), vec![5 << 3 | 2, 9]]
    {
        assert!(ModelInferRequest::is_moderate(&moderate));
    }
    assert!(!RepositoryModelLoadRequest::is_moderate(&field(3, b"").repeat(MOST_PARTS + 1)));
    assert!(RepositoryModelLoadRequest::is_moderate(&field(3, &vec![0; 2 << 20])));
}

#[test]
fn both_layouts_of_a_load_request_are_read() {
    let kserve = RepositoryModelLoadRequest::decode(field(1, b"iris").as_slice()).unwrap();
    assert_eq!((&*kserve.repository_name, &*kserve.model_name), ("iris", ""));
    let triton = RepositoryModelLoadRequest::decode(field(2, b"iris").as_slice()).unwrap();
    assert_eq!((&*triton.repository_name, &*triton.model_name), ("", "iris"));
}

#[test]
fn load_and_unload_responses_are_those_that_kserve_reads() {
    let wire = [field(1, b"iris"), vec![2 << 3, 1]].concat();
    let loaded = RepositoryModelLoadResponse { model_name: "iris".into(), is_loaded: true };
    assert_eq!(loaded.encode_to_vec(), wire);
    let unloaded = RepositoryModelUnloadResponse { model_name: "iris".into(), is_unloaded: true };
    assert_eq!(unloaded.encode_to_vec(), wire);
}

#[test]
fn metadata_carries_properties_in_field_six() {
    let entry = [field(1, b"k"), field(2, b"v")].concat();
    let metadata = ModelMetadataResponse { properties: [("k".into(), "v".into())].into(), ..Default::default() };
    assert_eq!(metadata.encode_to_vec(), field(6, &entry));
}

#[test]
fn descriptors_name_the_service() {
    let name = b"GRPCInferenceService";
    assert!(protocol::grpc::FILE_DESCRIPTOR_SET.windows(name.len()).any(|window| window == name));
}
