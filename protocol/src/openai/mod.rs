//! The OpenAI API as this server speaks it: chat completions, completions, models, tokens, with vLLM's extensions.
//!
//! Reading checks form and limits, and answers for every field: it acts, it is refused by name, it is known to have no
//! effect, or it is listed as unknown. What a model makes of a request (its vocabulary, its context, its chat template)
//! is not known here; nor is HTTP.

pub mod common;
pub mod error;
pub(crate) mod fields;
pub mod format;
pub mod limits;
pub mod logprobs;
mod message;
pub mod models;
pub mod request;
pub mod response;
pub mod sampling;
pub mod sse;
pub mod table;
pub mod tokens;
pub mod tools;

pub use common::{Common, Notices};
pub use error::{ErrorBody, FieldError};
pub use format::Constraint;
pub use request::{ChatRequest, CompletionRequest, Conversation, Prompt};
pub use sampling::Sampling;
pub use tokens::{DetokenizeRequest, TokenizeInput, TokenizeRequest};
pub use tools::{Tool, ToolChoice};
