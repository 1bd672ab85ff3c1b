//! How much one request may ask for, each number once. What depends on a model (its context, its vocabulary) is not
//! here.

/// Messages of a conversation.
pub const MESSAGES: usize = 2048;
/// Bytes of a role.
pub const ROLE: usize = 64;
/// Tools of a request.
pub const TOOLS: usize = 128;
/// Calls of a message: more than answers have, which go back to the model as they came.
pub const CALLS: usize = 4096;
/// Bytes of a tool's name.
pub const TOOL_NAME: usize = 64;
/// Prompts of a completion request.
pub const PROMPTS: usize = 64;
/// Choices, whether returned (`n`) or only made (`best_of`).
pub const CHOICES: u32 = 16;
/// Alternatives of a token.
pub const LOGPROBS: u32 = 20;
/// Stop strings.
pub const STOPS: usize = 16;
/// Bytes of a stop string or of a bad word.
pub const STOP_BYTES: usize = 256;
/// Entries of `stop_token_ids`.
pub const STOP_TOKENS: usize = 128;
/// Entries of `logit_bias`.
pub const LOGIT_BIAS: usize = 1024;
/// Entries of `allowed_token_ids`.
pub const ALLOWED_TOKENS: usize = 16_384;
/// Entries of `bad_words`.
pub const BAD_WORDS: usize = 128;
/// Entries of `documents` and of a `choice` constraint.
pub const ENTRIES: usize = 1024;
/// Bytes of a name: of a model, a user, a request, a salt.
pub const NAME_BYTES: usize = 1024;
/// Bytes of `request_id`, which travels in headers and logs.
pub const REQUEST_ID_BYTES: usize = 256;
/// Bytes of `chat_template`.
pub const TEMPLATE_BYTES: usize = 64 << 10;
/// Bytes of `response_format` or `structured_outputs`, as JSON text.
pub const CONSTRAINT_BYTES: usize = 256 << 10;
/// Keys of an object whose keys are looked at.
pub const KEYS: usize = 256;
/// Values, counted through all levels, of a field that is kept as JSON. A value takes up to a hundred times the memory
/// of its text, so that bytes alone bound nothing.
pub const VALUES: usize = 65_536;
