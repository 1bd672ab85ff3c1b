//! Messages of the gRPC protocol, package `inference`: prost types of `proto/inference.proto`.
//!
//! Generated and checked in, so that no build needs a protobuf compiler; the test `proto_drift` of the server crate
//! fails when they fall behind the `.proto` files. Services are not here: they would bring in tonic. Raw tensor
//! contents are [`bytes::Bytes`], which share the buffer that the message came in.

/// The descriptors of every message and service, encoded: what server reflection hands out.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!("gen/inference.fds");

#[allow(missing_docs, clippy::all, clippy::pedantic)]
mod generated {
    // `include!` and not `mod`: rustfmt follows modules, and the generator's layout is not ours.
    include!("gen/inference.rs");
}

pub use crate::contents::InferTensorContents;
pub use generated::*;
