//! A language model out of a directory: its text, and an engine that has yet to be started.
//!
//! ```text
//! config.json                          DecoderSpec      what it computes
//! *.safetensors | made up              Weights          with what
//! tokenizer.json, tokenizer_config     Tokenizer, ChatTemplates
//! generation_config.json               GenerationConfig which tokens end a text; defaults of requests
//! ```
//! A GGUF file is the first three in one.

use super::blocks::{BLOCK, BlockPool, PrefixKey};
use super::cpu::{self, CacheType, CpuExecutor};
#[cfg(feature = "cuda")]
use super::cuda;
use super::device::{self, Place};
use super::engine::{Engine, Overlap};
use super::executor::Executor;
use super::generation::GenerationConfig;
use super::layout;
use super::progress::Calls;
use super::request;
use super::room::{Context, Room};
use super::scheduler::{Scheduler, Settings};
use super::spec::{DecoderSpec, FloatType};
use super::text::config::bytes;
use super::text::output::{Choice, OutputFormat, ReasoningParser, ToolParser};
use super::text::{self, ChatTemplates, MAX_TOKENIZER_BYTES, Tokenizer, TokenizerConfig, made_up};
use super::weights::cast::Cast;
use super::weights::dummy::{Dummy, Init};
use super::weights::gguf::{self, Gguf};
use super::weights::safetensors::Safetensors;
use super::weights::{Format as Numbers, Weights, gguf_spec};
use crate::artifact::{Artifact, Format};
use crate::error::LoadError;
use crate::{Backend, LoadOptions, Model, Platform};
#[cfg(feature = "cuda")]
use kernels::cuda::{Fault, Gpu};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
#[cfg(feature = "cuda")]
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Who loads a model to a GPU. One after the other does: what is free is another's no more once it was reserved. Never
/// taken by a thread of the pool: while it waits for others there, it would take up the next load, and wait for itself.
#[cfg(feature = "cuda")]
static LOADS: Mutex<()> = Mutex::new(());

/// Executors that may be moved to the engine's thread.
pub type BoxedExecutor = Box<dyn Executor>;

/// How language models are loaded and run.
#[derive(Clone, Debug)]
pub struct LanguageOptions {
    /// Tokens of prompt and output together, at most. Without it as many as the model was made for, or as the cache has
    /// room for.
    pub context: Option<u32>,
    /// Where it is computed.
    pub device: device::Choice,
    /// Sequences that run at the same time. `None` is what suits the device.
    pub running: Option<u32>,
    /// Sequences that wait.
    pub waiting: u32,
    /// Rows of one step. `None` is what suits the device.
    pub step_tokens: Option<u32>,
    /// Bytes for keys and values on a CPU.
    pub cache_bytes: u64,
    /// The same on a GPU. `None` is a quarter of what its memory has left beside the weights.
    pub gpu_cache_bytes: Option<u64>,
    /// How keys and values are stored.
    pub cache: device::CacheFormat,
    /// Are the bits of an answer to be the same whatever stands beside it? On a CPU they are.
    pub deterministic: bool,
    /// A step on a GPU that takes longer hangs. `None`: none does.
    pub step_timeout: Option<Duration>,
    /// Counts calls of a GPU's driver while the model is loaded: of this one alone.
    pub calls: Calls,
    /// The float format of weights; `None` is their file's. Quantised ones stay as they are.
    pub dtype: Option<FloatType>,
    /// Weights are made up: for benchmarks.
    pub dummy: bool,
    /// How calls of tools are found in answers.
    pub tool_parser: Choice<ToolParser>,
    /// How thoughts are told from answers.
    pub reasoning_parser: Choice<ReasoningParser>,
    /// Under which prompts are found in the cache: random, of this process alone.
    pub key: [u8; 16],
}

impl Default for LanguageOptions {
    /// For tests: little memory, and a key that is no secret.
    fn default() -> Self {
        LanguageOptions {
            context: None,
            device: device::Choice::Auto,
            running: None,
            waiting: 512,
            step_tokens: None,
            cache_bytes: 64 << 20,
            gpu_cache_bytes: None,
            cache: device::CacheFormat::Auto,
            deterministic: false,
            step_timeout: None,
            calls: Calls::default(),
            dtype: None,
            dummy: false,
            tool_parser: Choice::Auto,
            reasoning_parser: Choice::Auto,
            key: [0; 16],
        }
    }
}

/// A loaded language model.
pub struct LanguageModel {
    /// Text to tokens and back.
    pub tokenizer: Tokenizer,
    /// Conversations to prompts; `None` where the model comes without a template.
    pub templates: Option<ChatTemplates>,
    /// How its answers are read.
    pub format: OutputFormat,
    /// What requests may leave out.
    pub generation: GenerationConfig,
    /// Bounds on one request.
    pub limits: request::Limits,
    /// Tokens of prompt and output together, at most.
    pub context: Context,
    /// The secret under which prefixes are kept apart.
    pub key: PrefixKey,
    /// What computes.
    pub engine: Engine<BoxedExecutor>,
    /// Bytes held: weights, keys and values.
    pub bytes: usize,
    /// Where its numbers came from: as metadata names it.
    pub platform: Platform,
    /// Where it is computed: `cpu`, or `cuda:0`.
    pub device: &'static str,
    /// A step that takes longer hangs: where it is computed on a GPU.
    pub step_timeout: Option<Duration>,
    /// What is worth a line when it is loaded.
    pub note: Option<String>,
}

impl std::fmt::Debug for LanguageModel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LanguageModel")
            .field("platform", &self.platform)
            .field("context", &self.context.tokens)
            .finish()
    }
}

/// Bytes of a `config.json`, at most.
const CONFIG_BYTES: u64 = 4 << 20;
/// Bytes of text for each token of the context, at most: longer prompts are refused before they are taken apart.
const BYTES_PER_TOKEN: usize = 32;
/// What a byte of text is never fewer of: short contexts may have long templates.
const TEXT_BYTES_MIN: usize = 1 << 20;
/// Waiting this long is worth one step of priority.
const AGEING: Duration = Duration::from_secs(2);
/// Seed of made up weights.
const DUMMY_SEED: u64 = 0;

/// Language models: directories of Hugging Face, and GGUF files.
#[derive(Debug)]
pub struct LanguageBackend;

impl Backend for LanguageBackend {
    fn name(&self) -> &'static str {
        "llm"
    }

    fn reads(&self, format: Format) -> bool {
        matches!(format, Format::HuggingFace | Format::Gguf)
    }

    fn load(&self, artifact: &Artifact, options: &LoadOptions) -> Result<Model, LoadError> {
        let path = artifact.model_path();
        artifact.settings().check_for(false).map_err(|reason| LoadError::new(path, reason))?;
        let files = match artifact.format() {
            Format::Gguf => Files::gguf(path, options)?,
            _ => Files::hugging_face(path, options)?,
        };
        assemble(path, files, options).map(|model| Model::Language(Box::new(model)))
    }
}

/// What was read of a model's files.
struct Files {
    spec: DecoderSpec,
    weights: Box<dyn Weights>,
    generation: GenerationConfig,
    tokens: Tokens,
    platform: Platform,
}

/// Where a model's tokenizer comes from.
enum Tokens {
    /// `tokenizer.json` and its content, and the settings beside it.
    Files(PathBuf, Vec<u8>, TokenizerConfig),
    /// Metadata of a GGUF file.
    Gguf(Arc<BTreeMap<String, gguf::Value>>),
}

/// All that has to do with text.
struct Text {
    tokenizer: Tokenizer,
    templates: Option<ChatTemplates>,
    format: OutputFormat,
    generation: GenerationConfig,
}

impl Files {
    /// `path` is that of `config.json`.
    fn hugging_face(path: &Path, options: &LoadOptions) -> Result<Self, LoadError> {
        let refuse = |reason: String| LoadError::new(path, reason);
        let directory = path.parent().unwrap_or(Path::new("."));
        let text = bytes(path, CONFIG_BYTES)?.ok_or_else(|| refuse("is missing".into()))?;
        let spec = DecoderSpec::from_config(path, &text)?;
        let map: Map<String, Value> =
            serde_json::from_slice(&text).map_err(|e| refuse(format!("is no JSON object: {e}")))?;
        let mut generation = GenerationConfig::read(directory)?;
        generation.add_ends(map.get("eos_token_id")).map_err(refuse)?;
        let tokens = directory.join("tokenizer.json");
        let config = TokenizerConfig::read(directory)?;
        let tokens = match bytes(&tokens, MAX_TOKENIZER_BYTES)? {
            // Tokens that only the configuration knows would come after those of the model.
            None if options.language.dummy => {
                Tokens::Files(tokens, made_up::tokenizer_json(spec.vocab), config.without_tokens())
            }
            None => return Err(LoadError::new(&tokens, "is missing")),
            Some(json) => Tokens::Files(tokens, json, config),
        };
        Ok(Files {
            weights: weights(&spec, directory, options.language.dummy.then(|| is_fp8(&map)))?,
            spec,
            generation,
            tokens,
            platform: Platform::HuggingFace,
        })
    }

    /// What the file holds itself; `generation_config.json` and `tokenizer.json` beside it are read, too.
    fn gguf(path: &Path, options: &LoadOptions) -> Result<Self, LoadError> {
        let refuse = |reason: String| LoadError::new(path, reason);
        if options.language.dummy {
            return Err(refuse("load-format dummy makes up weights for a config.json; this is a GGUF file".into()));
        }
        let file = Gguf::open(path)?;
        let spec = gguf_spec::spec(&file)?;
        let directory = path.parent().unwrap_or(Path::new("."));
        let generation = GenerationConfig::read(directory)?;
        let tokens = directory.join("tokenizer.json");
        let tokens = match bytes(&tokens, MAX_TOKENIZER_BYTES)? {
            // Whoever lays one beside the file wants it to be used.
            Some(json) => Tokens::Files(tokens, json, TokenizerConfig::read(directory)?),
            None => Tokens::Gguf(file.metadata().clone()),
        };
        Ok(Files { spec, weights: Box::new(file), generation, tokens, platform: Platform::Gguf })
    }
}

impl Text {
    /// `vocab` is the model's own number of tokens; errors are of `path` that are of no other file.
    fn read(
        path: &Path,
        tokens: Tokens,
        mut generation: GenerationConfig,
        vocab: usize,
        wishes: &LanguageOptions,
    ) -> Result<Self, LoadError> {
        let refuse = |reason: String| LoadError::new(path, reason);
        let (file, tokenizer, config) = match tokens {
            Tokens::Files(file, json, config) => {
                let tokenizer = Tokenizer::from_json(&json, &config, TEXT_BYTES_MIN);
                (file, tokenizer, config)
            }
            Tokens::Gguf(metadata) => {
                let found = text::gguf::read(&metadata).map_err(refuse)?;
                generation.add_ends(Some(&Value::from(found.end_tokens))).map_err(refuse)?;
                let tokenizer = Tokenizer::new(found.tokenizer, &found.config, TEXT_BYTES_MIN);
                (path.to_path_buf(), tokenizer, found.config)
            }
        };
        let tokenizer = tokenizer.map_err(|reason| LoadError::new(&file, format!("its tokenizer: {reason}")))?;
        if let Some(end) = config.named("eos_token").and_then(|name| tokenizer.id(name)) {
            generation.add_ends(Some(&end.into())).map_err(refuse)?;
        }
        generation.end_tokens.retain(|token| (*token as usize) < vocab);
        let templates = ChatTemplates::from_config(&config, path, TEXT_BYTES_MIN)?;
        let sources: Vec<&str> = templates.iter().flat_map(ChatTemplates::sources).collect();
        let parsers = (wishes.tool_parser, wishes.reasoning_parser);
        let format = OutputFormat::new(sources.iter().copied(), tokenizer.vocabulary(), parsers.0, parsers.1);
        Ok(Text { tokenizer, templates, format, generation })
    }

    /// Refuses what cannot fit into so many tokens.
    fn bound(&mut self, context: u32) {
        let most = (context as usize).saturating_mul(BYTES_PER_TOKEN).max(TEXT_BYTES_MIN);
        self.tokenizer.set_max_text_bytes(most);
        if let Some(templates) = &mut self.templates {
            templates.set_max_prompt_bytes(most);
        }
    }
}

/// Puts a model together; `path` is what errors name.
fn assemble(path: &Path, files: Files, options: &LoadOptions) -> Result<LanguageModel, LoadError> {
    let refuse = |reason: String| LoadError::new(path, reason);
    let wishes = &options.language;
    let Files { spec, mut weights, generation, tokens, platform } = files;
    layout::check_served(&spec, weights.as_ref())?;
    if let Some(dtype) = wishes.dtype {
        weights = Box::new(Cast::new(weights, numbers(dtype)));
    }
    let place = device::place(wishes.device, &spec, wishes.dtype).map_err(refuse)?;
    let (vocab, weights) = (spec.vocab, Arc::from(weights));
    #[cfg(feature = "cuda")]
    let _turn = matches!(place, Place::Gpu).then(|| LOADS.lock().unwrap_or_else(PoisonError::into_inner));
    // A tokenizer is built on one thread, which takes about as long as opening a GPU, or as reading half a gigabyte of
    // weights.
    let (text, computing) = options.pool.install(|| {
        rayon::join(
            || Text::read(path, tokens, generation, vocab, wishes),
            || Computing::load(place, spec, &weights, options, path),
        )
    });
    let Computing { executor, room, bytes, overlap, device, note } = computing?;
    let mut text = text?;
    text.bound(room.context.tokens);
    let Text { tokenizer, templates, format, generation } = text;

    let key = PrefixKey::new(wishes.key);
    let scheduler = Scheduler::new(settings(wishes, &room, &generation), BlockPool::new(room.blocks, BLOCK, key));
    let scheduler = scheduler.map_err(|error| refuse(error.to_string()))?;
    let limits = request::Limits {
        prompt_tokens: room.context.tokens - 1,
        copies: request::COPIES_MAX,
        output_tokens: room.context.tokens.saturating_mul(request::COPIES_MAX.into()),
        vocabulary: vocab as u32,
    };
    let engine = Engine::new(scheduler, executor, overlap);
    let context = room.context;
    Ok(LanguageModel {
        tokenizer,
        templates,
        format,
        generation,
        limits,
        context,
        key,
        engine,
        bytes,
        platform,
        device,
        // On a CPU a step may rightly take long, as where many share it.
        step_timeout: wishes.step_timeout.filter(|_| overlap == Overlap::Ahead),
        note,
    })
}

/// What computes a model's steps.
struct Computing {
    executor: BoxedExecutor,
    room: Room,
    /// Weights, keys and values.
    bytes: usize,
    overlap: Overlap,
    device: &'static str,
    note: Option<String>,
}

impl Computing {
    /// `path` is what errors name that are not of the weights.
    fn load(
        place: Place,
        spec: DecoderSpec,
        weights: &Arc<dyn Weights>,
        options: &LoadOptions,
        path: &Path,
    ) -> Result<Self, LoadError> {
        let (wishes, refuse) = (&options.language, |reason: String| LoadError::new(path, reason));
        match place {
            Place::Cpu(note) => {
                let room = Room::on_cpu(&spec, wishes).map_err(refuse)?;
                let cpu = cpu::Options {
                    cache: cpu::Shape { blocks: room.blocks, block_len: BLOCK, storage: CacheType::F16 },
                    context: room.context.tokens as usize,
                    slots: room.running as usize,
                    pool: options.pool.clone(),
                    poison: false,
                };
                let executor = CpuExecutor::load(spec, weights, cpu)?;
                let bytes = executor.weight_bytes() + room.bytes;
                let executor = Box::new(executor);
                Ok(Computing { executor, room, bytes, overlap: Overlap::InStep, device: "cpu", note })
            }
            #[cfg(feature = "cuda")]
            Place::Gpu => {
                let lost = |fault: Fault| refuse(fault.to_string()).with_lost(fault.is_lost());
                let gpu = wishes.calls.during(|| Gpu::open(0)).map_err(lost)?;
                let free = wishes.calls.during(|| gpu.memory_info()).map_err(lost)?.0;
                let taken = cuda::weight_bytes(&spec, weights.as_ref())?;
                let room = Room::on_gpu(&spec, wishes, (free as u64, taken as u64)).map_err(refuse)?;
                let cuda = cuda::Options {
                    blocks: room.blocks,
                    cache: wishes.cache.on_gpus(),
                    context: room.context.tokens as usize,
                    slots: room.running as usize,
                    step_rows: room.step_tokens as usize,
                    pool: options.pool.clone(),
                    graphs: true,
                    deterministic: wishes.deterministic,
                    short_rows: cuda::SHORT_ROWS,
                    poison: false,
                };
                let gpu = Box::new(cuda::Watched::new(Box::new(gpu), wishes.calls.clone()));
                let executor = cuda::CudaExecutor::load(spec, weights.as_ref(), gpu, cuda)?;
                let (bytes, note) = (executor.bytes(), Some(format!("computed on {}", executor.device_name())));
                let executor = Box::new(executor);
                Ok(Computing { executor, room, bytes, overlap: Overlap::Ahead, device: "cuda:0", note })
            }
        }
    }
}

/// Is the model's checkpoint of eight-bit floats?
fn is_fp8(config: &Map<String, Value>) -> bool {
    let quantised = config.get("quantization_config").and_then(|of| of.get("quant_method"));
    quantised.and_then(Value::as_str) == Some("fp8")
}

/// `dummy`: are they to be made up, and if so, with projections in eight bits?
fn weights(spec: &DecoderSpec, directory: &Path, dummy: Option<bool>) -> Result<Box<dyn Weights>, LoadError> {
    let Some(eight_bits) = dummy else {
        return Ok(Box::new(Safetensors::open_packed(directory, spec.packed)?));
    };
    let format = spec.dtype.map_or(Numbers::F32, numbers);
    let weights = Dummy::new(spec, format, Init::FanIn, DUMMY_SEED)?;
    Ok(Box::new(if eight_bits { weights.in_eight_bits() } else { weights }))
}

fn numbers(dtype: FloatType) -> Numbers {
    match dtype {
        FloatType::F32 => Numbers::F32,
        FloatType::F16 => Numbers::F16,
        FloatType::Bf16 => Numbers::Bf16,
    }
}

fn settings(wishes: &LanguageOptions, room: &Room, generation: &GenerationConfig) -> Settings {
    Settings {
        token_budget: room.step_tokens.max(room.running),
        chunk_tokens: room.step_tokens,
        max_running: room.running,
        max_waiting: wishes.waiting.max(1),
        max_waiting_tokens: u64::from(wishes.waiting).max(16) * u64::from(room.context.tokens),
        context: room.context.tokens,
        watermark: (room.blocks / 100).min(room.running),
        ageing: AGEING,
        prefix_cache: true,
        end_tokens: generation.end_tokens.as_slice().into(),
    }
}
