//! The gRPC messages on the wire: the layouts that clients of other servers send, byte by byte.

// The exemption of tests covers only the bodies of `#[test]` functions.
#![allow(clippy::unwrap_used)]

use bytes::Bytes;
use prost::Message;
use protocol::grpc::{
    InferParameter, ModelInferRequest, ModelMetadataResponse, RepositoryModelLoadRequest, RepositoryModelLoadResponse,
    RepositoryModelUnloadResponse, infer_parameter::ParameterChoice,
};

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
    assert_eq!(request.inputs[0].contents.as_ref().unwrap().fp32_contents, [1.5]);
    assert_eq!(request.outputs[0].name, "y");
    assert_eq!(request.encode_to_vec(), wire);
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
