//! Settings that are one of a few words.

use crate::args::field::Named;
use backends::llm::device;
use backends::llm::text::output::{Choice, ReasoningParser, ToolParser};
use backends::settings::Isolation;

/// Whose behaviour is followed where KServe's servers and Triton differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Profile {
    /// KServe's Python servers.
    Kserve,
    /// Triton.
    Triton,
}

impl Named for Profile {
    const ALL: &'static [(&'static str, Self)] = &[("kserve", Profile::Kserve), ("triton", Profile::Triton)];
}

/// In which form gRPC answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GrpcOutputs {
    /// Bytes, which clients of KServe and of Triton read.
    Raw,
    /// As the request came: typed contents for typed contents.
    Mirror,
}

impl Named for GrpcOutputs {
    const ALL: &'static [(&'static str, Self)] = &[("raw", GrpcOutputs::Raw), ("mirror", GrpcOutputs::Mirror)];
}

/// Who decides which models are loaded once the server runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ControlMode {
    /// Clients, over the API.
    Explicit,
    /// Nobody: what was loaded at start stays.
    None,
    /// The repository, which is looked at again and again.
    Poll,
}

impl Named for ControlMode {
    const ALL: &'static [(&'static str, Self)] =
        &[("explicit", ControlMode::Explicit), ("none", ControlMode::None), ("poll", ControlMode::Poll)];
}

/// What a model directory that is not there means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InitMode {
    /// An error.
    Sync,
    /// That it will appear.
    Async,
}

impl Named for InitMode {
    const ALL: &'static [(&'static str, Self)] = &[("sync", InitMode::Sync), ("async", InitMode::Async)];
}

/// Where the weights of a language model come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoadFormat {
    /// The files beside its configuration.
    Auto,
    /// Nowhere: they are made up.
    Dummy,
}

impl Named for LoadFormat {
    const ALL: &'static [(&'static str, Self)] = &[("auto", LoadFormat::Auto), ("dummy", LoadFormat::Dummy)];
}

/// When a model is loaded in a child process first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProbeWhen {
    /// While the server serves.
    Auto,
    /// When it starts, too.
    Always,
    /// Never.
    Never,
}

impl Named for ProbeWhen {
    const ALL: &'static [(&'static str, Self)] =
        &[("auto", ProbeWhen::Auto), ("always", ProbeWhen::Always), ("never", ProbeWhen::Never)];
}

impl Named for Isolation {
    const ALL: &'static [(&'static str, Self)] =
        &[("auto", Isolation::Auto), ("always", Isolation::Always), ("never", Isolation::Never)];
}

/// The float format of a language model's weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dtype {
    /// That of their file.
    Auto,
    /// 32 bits.
    Float32,
    /// IEEE half precision.
    Float16,
    /// The upper half of 32 bits.
    Bfloat16,
}

impl Named for Dtype {
    const ALL: &'static [(&'static str, Self)] = &[
        ("auto", Dtype::Auto),
        ("float32", Dtype::Float32),
        ("float16", Dtype::Float16),
        ("bfloat16", Dtype::Bfloat16),
        // vLLM's other words.
        ("float", Dtype::Float32),
        ("half", Dtype::Float16),
    ];
}

impl Named for device::Choice {
    const ALL: &'static [(&'static str, Self)] =
        &[("auto", device::Choice::Auto), ("cpu", device::Choice::Cpu), ("cuda", device::Choice::Cuda)];
}

/// By the names that vLLM gives them.
impl Named for device::CacheFormat {
    const ALL: &'static [(&'static str, Self)] = &[
        ("auto", device::CacheFormat::Auto),
        ("bfloat16", device::CacheFormat::Bf16),
        ("fp8", device::CacheFormat::Fp8),
        ("fp8_e4m3", device::CacheFormat::Fp8),
    ];
}

/// By the names that vLLM gives them.
impl Named for Choice<ToolParser> {
    const ALL: &'static [(&'static str, Self)] = &[
        ("auto", Choice::Auto),
        ("none", Choice::Off),
        ("hermes", Choice::This(ToolParser::Hermes)),
        ("llama3_json", Choice::This(ToolParser::Llama3Json)),
        ("llama4_json", Choice::This(ToolParser::Llama3Json)),
        ("mistral", Choice::This(ToolParser::Mistral)),
        ("granite", Choice::This(ToolParser::List)),
        ("phi4_mini_json", Choice::This(ToolParser::List)),
        ("openai", Choice::This(ToolParser::Harmony)),
    ];
}

/// By the names that vLLM gives them, and the mark that most have.
impl Named for Choice<ReasoningParser> {
    const ALL: &'static [(&'static str, Self)] = &[
        ("auto", Choice::Auto),
        ("none", Choice::Off),
        ("think", Choice::This(ReasoningParser::Think)),
        ("deepseek_r1", Choice::This(ReasoningParser::Think)),
        ("qwen3", Choice::This(ReasoningParser::Think)),
        ("granite", Choice::This(ReasoningParser::Think)),
        ("glm45", Choice::This(ReasoningParser::Think)),
        ("mistral", Choice::This(ReasoningParser::Brackets)),
        // Its channels are found in its chat template.
        ("openai_gptoss", Choice::Auto),
    ];
}

/// A setting that is so or not.
impl Named for bool {
    const ALL: &'static [(&'static str, Self)] = &[("true", true), ("false", false)];
}

/// The least important message that is logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogLevel {
    /// No message.
    Off,
    /// Something failed.
    Error,
    /// Something is not as it should be.
    Warn,
    /// The life of the server and its models.
    Info,
    /// Requests.
    Debug,
    /// Everything.
    Trace,
}

impl Named for LogLevel {
    const ALL: &'static [(&'static str, Self)] = &[
        ("off", LogLevel::Off),
        ("error", LogLevel::Error),
        ("warn", LogLevel::Warn),
        ("info", LogLevel::Info),
        ("debug", LogLevel::Debug),
        ("trace", LogLevel::Trace),
    ];
}

impl LogLevel {
    /// The word, as logging libraries know it.
    #[must_use]
    pub fn name(self) -> &'static str {
        Self::ALL.iter().find(|(_, value)| *value == self).map_or("info", |(name, _)| name)
    }
}

/// How messages look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// Text on a terminal, JSON elsewhere.
    Auto,
    /// For people.
    Text,
    /// One object to a line.
    Json,
}

impl Named for LogFormat {
    const ALL: &'static [(&'static str, Self)] =
        &[("auto", LogFormat::Auto), ("text", LogFormat::Text), ("json", LogFormat::Json)];
}
