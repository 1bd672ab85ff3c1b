//! A `ModelInferRequest`, through prost and the codec: it is made of a bounded number of things, typed contents are written
//! as they were read, and tensors are no larger than a few times the message.
#![no_main]

use backends::Limits;
use libfuzzer_sys::fuzz_target;
use prost::Message;
use protocol::grpc::ModelInferRequest;
use protocol::parts::{MOST_PARTS, Request};

fuzz_target!(|message: &[u8]| {
    if !ModelInferRequest::is_moderate(message) {
        assert!(message.len() > MOST_PARTS);
        return;
    }
    let Ok(request) = ModelInferRequest::decode(message) else { return };
    assert!(request.inputs.len() + request.outputs.len() + request.raw_input_contents.len() <= MOST_PARTS);
    for contents in request.inputs.iter().filter_map(|input| input.contents.as_ref()) {
        assert_eq!(prost::Message::decode(&*contents.encode_to_vec()).as_ref(), Ok(contents));
    }
    if let Ok(infer) = server::codec::grpc::decode(request, &Limits::default()) {
        let held: usize = infer.inputs.iter().map(|input| input.bytes().len()).sum();
        assert!(held <= 8 * message.len());
    }
});
