//! Anthropic's Messages API: requests are read into the terms of a chat, which say all that they can say, and replies
//! have forms of their own.

mod request;
pub mod response;

pub use request::{MessagesRequest, parse, parse_count};
