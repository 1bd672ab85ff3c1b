//! The wire: the Open Inference Protocol v1 and v2, the OpenAI API and the Messages API, as this server reads
//! and writes them.
//!
//! Nothing here knows a runtime, a socket or a tensor of the engine. Reading checks form (is this the JSON that the
//! protocol describes?), never meaning (does the model want it?).

pub mod anthropic;
pub mod binary;
pub mod contents;
mod decimal;
pub mod generate;
pub mod grpc;
pub mod json;
pub mod openai;
pub mod parts;
pub mod v1;
pub mod v2;
pub mod write;
