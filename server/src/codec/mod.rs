//! Wire to tensor and back. The only place that names both `protocol` and the tensors of `backends`.

pub mod anthropic;
pub mod events;
pub mod generate;
pub mod grpc;
pub mod openai;
pub mod v1;
pub mod v2;
