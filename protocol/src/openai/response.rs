//! Replies: chat completions and completions, whole and in chunks, and the list of models. Shapes alone; nothing here
//! decides what is said.
//!
//! What OpenAI's clients expect to find is always written, as `null` if need be; what only vLLM has is left out when
//! there is nothing to say.

use super::logprobs::{ChatLogprobs, CompletionLogprobs, PromptLogprobs};
use serde::Serialize;

/// Is there nothing to say?
fn is_none<T>(value: &Option<T>) -> bool {
    value.is_none()
}

/// Why a choice ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FinishReason {
    /// The model ended it, or a stop string did.
    Stop,
    /// There was no room for more tokens.
    Length,
    /// The model waits for the results of its calls.
    ToolCalls,
    /// The server ended it.
    Abort,
    /// It failed.
    Error,
}

/// What ended a choice that was stopped, unless it was the model's own end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum StopReason {
    /// One of `stop_token_ids`.
    Token(u32),
    /// One of `stop`.
    Text(String),
}

/// Tokens that were counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Usage {
    /// Of the prompt.
    pub prompt_tokens: u32,
    /// Of the prompt and of all choices.
    pub total_tokens: u32,
    /// Of all choices.
    pub completion_tokens: u32,
    /// More about the prompt.
    #[serde(skip_serializing_if = "is_none")]
    pub prompt_tokens_details: Option<PromptDetails>,
    /// More about the choices.
    #[serde(skip_serializing_if = "is_none")]
    pub completion_tokens_details: Option<CompletionDetails>,
}

/// Of the tokens of a prompt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PromptDetails {
    /// Found in the cache.
    pub cached_tokens: u32,
}

/// Of the tokens of all choices.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct CompletionDetails {
    /// Thoughts.
    pub reasoning_tokens: u32,
}

impl Usage {
    /// So many tokens of the prompt, and of all choices.
    pub fn new(prompt_tokens: u32, completion_tokens: u32) -> Self {
        let total_tokens = prompt_tokens.saturating_add(completion_tokens);
        Usage { prompt_tokens, total_tokens, completion_tokens, ..Usage::default() }
    }
}

/// A whole reply, of chat choices or of completion choices.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Reply<'a, C> {
    /// `chatcmpl-...` or `cmpl-...`
    pub id: &'a str,
    /// `chat.completion` or `text_completion`
    pub object: &'static str,
    /// When, in seconds since 1970.
    pub created: u64,
    /// Which model.
    pub model: &'a str,
    /// The choices.
    pub choices: Vec<C>,
    /// Which server.
    pub system_fingerprint: Option<&'a str>,
    /// Tokens that were counted.
    pub usage: Usage,
    /// Of a chat, for each token of the prompt; the first has none.
    #[serde(skip_serializing_if = "is_none")]
    pub prompt_logprobs: Option<Vec<Option<PromptLogprobs>>>,
    /// Of a chat, the tokens of the prompt.
    #[serde(skip_serializing_if = "is_none")]
    pub prompt_token_ids: Option<&'a [u32]>,
}

/// A whole chat completion.
pub type ChatReply<'a> = Reply<'a, ChatChoice>;
/// A whole completion.
pub type CompletionReply<'a> = Reply<'a, CompletionChoice>;

/// A piece of a streamed reply, of chat choices or of completion choices.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Chunk<'a, C> {
    /// `chatcmpl-...` or `cmpl-...`
    pub id: &'a str,
    /// `chat.completion.chunk` or `text_completion`
    pub object: &'static str,
    /// When, in seconds since 1970.
    pub created: u64,
    /// Which model.
    pub model: &'a str,
    /// What is new; empty in the chunk that reports usage at the end.
    pub choices: &'a [C],
    /// Which server.
    pub system_fingerprint: Option<&'a str>,
    /// Tokens that were counted, if they were asked for.
    #[serde(skip_serializing_if = "is_none")]
    pub usage: Option<Usage>,
    /// Of a chat, in its first chunk: the tokens of the prompt.
    #[serde(skip_serializing_if = "is_none")]
    pub prompt_token_ids: Option<&'a [u32]>,
}

/// A piece of a chat completion.
pub type ChatChunk<'a> = Chunk<'a, ChatDelta<'a>>;
/// A piece of a completion.
pub type CompletionChunk<'a> = Chunk<'a, CompletionDelta<'a>>;

/// `object` of a whole chat completion.
pub const CHAT: &str = "chat.completion";
/// `object` of a piece of one.
pub const CHAT_CHUNK: &str = "chat.completion.chunk";
/// `object` of a completion, whole or not.
pub const COMPLETION: &str = "text_completion";

/// A choice of a chat completion.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ChatChoice {
    /// Which choice.
    pub index: u32,
    /// What was said.
    pub message: Message,
    /// How likely it was, if that was asked for.
    pub logprobs: Option<ChatLogprobs>,
    /// Why it ended.
    pub finish_reason: Option<FinishReason>,
    /// What ended it.
    pub stop_reason: Option<StopReason>,
    /// Its tokens, if they were asked for.
    #[serde(skip_serializing_if = "is_none")]
    pub token_ids: Option<Vec<u32>>,
}

/// What the assistant said.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Message {
    /// Who speaks.
    pub role: Assistant,
    /// The text; none if there are calls alone.
    pub content: Option<String>,
    /// Why it would not answer. No model here says so apart from its text.
    pub refusal: Option<String>,
    /// What was thought before.
    #[serde(skip_serializing_if = "is_none")]
    pub reasoning: Option<String>,
    /// What is to be called.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ToolCall>,
}

/// `"assistant"`, the only role that replies have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub enum Assistant {
    /// `"assistant"`
    #[default]
    #[serde(rename = "assistant")]
    Assistant,
}

/// `"function"`, the only kind of tool.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub enum CallKind {
    /// `"function"`
    #[default]
    #[serde(rename = "function")]
    Function,
}

/// A call of a tool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ToolCall {
    /// The call's own id, which its result refers to.
    pub id: String,
    /// What kind of tool.
    #[serde(rename = "type")]
    pub kind: CallKind,
    /// Which function, and with what.
    pub function: FunctionCall,
}

/// A function and its arguments.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FunctionCall {
    /// Its name.
    pub name: String,
    /// JSON, as text.
    pub arguments: String,
}

/// What is new of a choice of a chat completion.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ChatDelta<'a> {
    /// Which choice.
    pub index: u32,
    /// What was said.
    pub delta: Delta<'a>,
    /// How likely it was, if that was asked for.
    pub logprobs: Option<ChatLogprobs>,
    /// Why it ended; none while it goes on.
    pub finish_reason: Option<FinishReason>,
    /// What ended it.
    #[serde(skip_serializing_if = "is_none")]
    pub stop_reason: Option<StopReason>,
    /// The new tokens, if they were asked for.
    #[serde(skip_serializing_if = "is_none")]
    pub token_ids: Option<Vec<u32>>,
}

/// New parts of a message; absent ones add nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Delta<'a> {
    /// Who speaks, at the beginning.
    #[serde(skip_serializing_if = "is_none")]
    pub role: Option<Assistant>,
    /// More of the text.
    #[serde(skip_serializing_if = "is_none")]
    pub content: Option<&'a str>,
    /// More of the thoughts.
    #[serde(skip_serializing_if = "is_none")]
    pub reasoning: Option<&'a str>,
    /// More of the calls.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ToolCallDelta<'a>>,
}

impl Delta<'_> {
    /// What every chat choice begins with.
    pub fn first() -> Self {
        Delta { role: Some(Assistant::Assistant), content: Some(""), ..Delta::default() }
    }
}

/// More of a call. Id, kind and name come with its first piece.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ToolCallDelta<'a> {
    /// Which call of the message.
    pub index: u32,
    /// Its id.
    #[serde(skip_serializing_if = "is_none")]
    pub id: Option<&'a str>,
    /// What kind of tool.
    #[serde(rename = "type", skip_serializing_if = "is_none")]
    pub kind: Option<CallKind>,
    /// The function.
    pub function: FunctionDelta<'a>,
}

/// More of a function call.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct FunctionDelta<'a> {
    /// Its name.
    #[serde(skip_serializing_if = "is_none")]
    pub name: Option<&'a str>,
    /// More of the text of its arguments.
    #[serde(skip_serializing_if = "is_none")]
    pub arguments: Option<&'a str>,
}

/// A choice of a completion.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct CompletionChoice {
    /// Which choice: those of the first prompt come first.
    pub index: u32,
    /// The text.
    pub text: String,
    /// How likely it was, if that was asked for.
    pub logprobs: Option<CompletionLogprobs>,
    /// Why it ended.
    pub finish_reason: Option<FinishReason>,
    /// What ended it.
    pub stop_reason: Option<StopReason>,
    /// For each token of the prompt; the first has none.
    #[serde(skip_serializing_if = "is_none")]
    pub prompt_logprobs: Option<Vec<Option<PromptLogprobs>>>,
    /// The tokens of the prompt.
    #[serde(skip_serializing_if = "is_none")]
    pub prompt_token_ids: Option<Vec<u32>>,
    /// Its tokens.
    #[serde(skip_serializing_if = "is_none")]
    pub token_ids: Option<Vec<u32>>,
}

/// What is new of a choice of a completion.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct CompletionDelta<'a> {
    /// Which choice.
    pub index: u32,
    /// More of the text.
    pub text: &'a str,
    /// How likely it was, if that was asked for.
    pub logprobs: Option<CompletionLogprobs>,
    /// Why it ended; none while it goes on.
    pub finish_reason: Option<FinishReason>,
    /// What ended it.
    #[serde(skip_serializing_if = "is_none")]
    pub stop_reason: Option<StopReason>,
    /// The tokens of the prompt, in the first piece.
    #[serde(skip_serializing_if = "is_none")]
    pub prompt_token_ids: Option<&'a [u32]>,
    /// The new tokens, if they were asked for.
    #[serde(skip_serializing_if = "is_none")]
    pub token_ids: Option<Vec<u32>>,
}
