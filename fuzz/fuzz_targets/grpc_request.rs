//! A `ModelInferRequest`, through prost and the codec: tensors are no larger than a few times the message.
#![no_main]

use backends::Limits;
use libfuzzer_sys::fuzz_target;
use prost::Message;
use protocol::grpc::ModelInferRequest;

fuzz_target!(|message: &[u8]| {
    let Ok(request) = ModelInferRequest::decode(message) else { return };
    if let Ok(infer) = server::codec::grpc::decode(request, &Limits::default()) {
        let held: usize = infer.inputs.iter().map(|input| input.bytes().len()).sum();
        assert!(held <= 8 * message.len());
    }
});
