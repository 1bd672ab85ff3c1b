//! The text side of a language model: messages to a prompt, prompt to tokens, tokens to text, text to a stop.
//!
//! ```text
//! messages --template--> prompt --tokenizer--> tokens ... tokens --detokenizer--> text --stop--> text --output--> parts
//! ```
//!
//! No threads, no network, no clock; what holds state, a [`Detokenizer`], a [`StopScanner`] and an
//! [`output::OutputParser`], belongs to one sequence.

pub(super) mod config;
mod conversation;
mod detokenizer;
pub mod gguf;
mod gguf_merges;
mod gguf_metadata;
mod jinja;
mod keep;
pub(super) mod made_up;
pub mod output;
mod pretokenizers;
mod rewrite;
mod stop;
mod strftime;
mod template;
mod tokenizer;
mod values;
mod vocabulary;

pub use config::{MAX_CONFIG_BYTES, MAX_TEMPLATES, TokenizerConfig};
pub use detokenizer::Detokenizer;
pub use stop::{MAX_STOP_BYTES, MAX_STOP_STRINGS, Scan, StopScanner, StopStrings};
pub use template::{Chat, ChatTemplates, MAX_SETTING_BYTES, MAX_TEMPLATE_BYTES};
pub use tokenizer::{MAX_TOKENIZER_BYTES, Tokenizer};
pub use vocabulary::{MAX_TOKEN_IDS, Vocabulary};
