//! Language models that serve: prompts in, text out as it is generated. Which API asked is not known here.
//!
//! | file | what |
//! |---|---|
//! | `generator.rs` | the engine's thread, and what goes in and out of it |
//! | `answer.rs` | tokens of one sequence to text |
//! | `guides.rs` | forms that answers keep to, compiled off the request path |
//! | `gather.rs` | several answers as one stream |
//! | `said.rs` | what an answer says, put together |
//! | `life.rs` | how far an answer is, for metrics |
//! | `tally.rs` | counts requests |
//! | `telling.rs` | events on their way from the engine to those who wait |
//! | `trial.rs` | a form compiled in a child process first |
//! | `watch.rs` | devices that hang |

pub mod answer;
pub mod gather;
pub mod generator;
mod guides;
mod life;
pub mod said;
pub mod tally;
mod telling;
pub mod trial;
pub mod watch;

use crate::clock::since_1970;
use crate::error::Error;
use answer::{Answer, Ends};
use backends::InferError;
use backends::llm::blocks::{PrefixKey, Salt};
use backends::llm::generation::GenerationConfig;
use backends::llm::grammar::{Form, Guide};
use backends::llm::request::{Draft, Limits, PROMPT, Request, RequestError};
use backends::llm::sampling::{Parameters, Sampling};
use backends::llm::scheduler::Counters;
use backends::llm::text::output::{OutputFormat, OutputParser, Reading};
use backends::llm::text::{Chat, ChatTemplates, Detokenizer, StopScanner, StopStrings, Tokenizer, Vocabulary};
use backends::llm::{Context, LanguageModel};
use generator::{Generator, Matchers, Tokens};
use guides::Guides;
use std::borrow::Cow;
use std::sync::Arc;
use std::time::Instant;

/// A language model that serves.
#[derive(Debug)]
pub struct Language {
    tokenizer: Tokenizer,
    templates: Option<ChatTemplates>,
    format: OutputFormat,
    /// Control tokens that the format's reader has to see.
    shown: Arc<[u32]>,
    generation: GenerationConfig,
    ends: Arc<[u32]>,
    limits: Limits,
    context: Context,
    key: PrefixKey,
    generator: Generator,
    guides: Guides,
    created: u64,
    device: &'static str,
}

/// What is asked for, whichever API it came by.
#[derive(Clone, Debug)]
pub struct Generate {
    /// At least one token.
    pub prompt: Vec<u32>,
    /// How tokens are chosen, the model's defaults filled in.
    pub parameters: Parameters,
    /// Tokens of each copy, at most; `None` is what the model's files say, or all that there is room for.
    pub max_tokens: Option<u32>,
    /// What the request calls these two, for errors.
    pub names: Names,
    /// Answers to the one prompt.
    pub copies: u32,
    /// Texts that end an answer.
    pub stop: Vec<String>,
    /// Do they stay in it?
    pub include_stop: bool,
    /// Are control tokens left out of the text?
    pub skip_special_tokens: bool,
    /// Smaller goes first.
    pub priority: i32,
    /// Keeps cached prompts apart.
    pub salt: Option<String>,
    /// When the answer is of no use any more.
    pub deadline: Option<Instant>,
    /// What its text keeps to.
    pub guide: Option<Guide>,
    /// How its text is taken apart; `None` leaves it as it is.
    pub reading: Option<Reading>,
    /// Do metrics count its tokens? Not where nobody is told of them.
    pub counted: bool,
}

/// Names of fields that requests of various kinds call differently.
#[derive(Clone, Copy, Debug)]
pub struct Names {
    /// Of what the prompt is made of.
    pub prompt: &'static str,
    /// Where there are several prompts in that field: which this is, from 0.
    pub which: Option<usize>,
    /// Of how many tokens an answer may have.
    pub max_tokens: &'static str,
}

impl Default for Names {
    /// Of completions.
    fn default() -> Self {
        Names { prompt: PROMPT, which: None, max_tokens: "max_tokens" }
    }
}

/// How the tokens of a request become its answers.
struct Reader {
    vocabulary: Arc<Vocabulary>,
    skip_special_tokens: bool,
    /// Control tokens that its parser has to see.
    shown: Arc<[u32]>,
    parser: Option<OutputParser>,
    stops: StopStrings,
    ends: Ends,
}

impl Reader {
    fn read(&self, tokens: Tokens) -> Answer {
        let scanner = StopScanner::new(self.stops.clone(), self.ends.keeps_stop);
        let text = Detokenizer::after_prompt(self.vocabulary.clone(), self.skip_special_tokens);
        let text = text.showing(self.shown.clone());
        Answer::new(tokens, text, scanner, self.ends.clone()).read_by(self.parser.clone())
    }
}

impl Language {
    /// Starts the engine of a model, which metrics call by `name`.
    ///
    /// # Errors
    /// The system gives no thread.
    pub fn start(name: &str, model: LanguageModel) -> Result<Self, String> {
        let LanguageModel {
            tokenizer,
            templates,
            format,
            generation,
            limits,
            context,
            key,
            engine,
            device,
            step_timeout,
            note,
            ..
        } = model;
        if let Some(note) = note {
            tracing::info!("{note}");
        }
        if let Some(warning) = context.warning() {
            tracing::warn!("{warning}");
        }
        let unread = &generation.without_effect;
        if !unread.is_empty() {
            tracing::warn!(model = name, "generation_config.json: these have no effect here: {}", unread.join(", "));
        }
        let generator = Generator::start(name, engine, step_timeout)?;
        let created = since_1970().as_secs();
        let ends = generation.end_tokens.as_slice().into();
        let guides = Guides::new(tokenizer.vocabulary().clone(), limits.vocabulary, &generation.end_tokens);
        let shown = format.shown().collect();
        Ok(Language {
            tokenizer,
            templates,
            format,
            shown,
            generation,
            ends,
            limits,
            context,
            key,
            generator,
            guides,
            created,
            device,
        })
    }

    /// Where it is computed.
    pub fn device(&self) -> &'static str {
        self.device
    }

    /// Text to tokens and back.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// How its answers are read.
    pub fn format(&self) -> &OutputFormat {
        &self.format
    }

    /// Do its chat templates take messages apart whose content is a list? Others expect text.
    pub fn takes_parts(&self) -> bool {
        self.templates.as_ref().is_some_and(ChatTemplates::take_parts)
    }

    /// What a request leaves out.
    pub fn defaults(&self) -> &Parameters {
        &self.generation.defaults
    }

    /// Tokens of prompt and output together, at most.
    pub fn context(&self) -> u32 {
        self.context.tokens
    }

    /// Tokens that it knows: ids are below.
    pub fn vocabulary(&self) -> u32 {
        self.limits.vocabulary
    }

    /// When it began to serve, in seconds since 1970.
    pub fn created(&self) -> u64 {
        self.created
    }

    /// Where its engine stands.
    pub fn counters(&self) -> Counters {
        self.generator.running().counters()
    }

    /// Why its engine has ended, where it has.
    pub fn broken(&self) -> Option<String> {
        self.generator.running().broken()
    }

    /// Its engine, without a hold on it.
    pub fn downgrade(&self) -> generator::Weak {
        self.generator.downgrade()
    }

    /// Has its engine ended, or does it hang?
    pub fn is_stuck(&self, now: Instant) -> bool {
        let engine = self.generator.running();
        engine.broken().is_some() || engine.hangs(now)
    }

    /// The prompt of a conversation.
    ///
    /// # Errors
    /// The model has no chat template, or its template refuses the conversation.
    pub fn render(&self, chat: &Chat<'_>) -> Result<String, Error> {
        let templates = self.templates.as_ref().ok_or_else(|| {
            Error::Invalid(
                "this model comes without a chat template: ask for completions, or add one to its files".into(),
            )
        })?;
        templates.render(&Chat { unix_seconds: since_1970().as_secs() as i64, ..*chat }).map_err(told)
    }

    /// May a variable make a difference to the prompt of a conversation?
    pub fn reads(&self, chat: &Chat<'_>, variable: &str) -> bool {
        self.templates.as_ref().is_none_or(|templates| templates.reads(chat, variable))
    }

    /// The tokens of a text.
    ///
    /// # Errors
    /// It is longer than any prompt.
    pub fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>, Error> {
        self.tokenizer.encode(text, add_special_tokens).map_err(told)
    }

    /// Compiles a form that answers are to keep to.
    ///
    /// # Errors
    /// It cannot be followed, takes too long to compile, or too many are compiled.
    pub async fn guide(&self, form: Form) -> Result<Guide, Error> {
        self.guides.compile(form).await
    }

    /// Tokens that each answer may have.
    fn max_tokens(&self, asked: &Generate) -> Result<u32, Error> {
        let (name, prompt) = (asked.names.max_tokens, asked.names.told());
        let (context, least) = (self.context, asked.parameters.min_tokens);
        let length = u32::try_from(asked.prompt.len()).unwrap_or(u32::MAX);
        let room = context.tokens.saturating_sub(length);
        if room == 0 {
            let most = context.tokens - 1;
            let what = format!("{prompt} has {length} tokens; {context} has room for {most}");
            return Err(Error::Field(asked.names.field(), what));
        }
        let left = format!("{prompt} has {length} tokens; {context} has room for {room} more");
        if let Some(most) = asked.max_tokens {
            return if most > room {
                Err(Error::Field(name.into(), format!("{name} is {most}, and {left}")))
            } else {
                Ok(most)
            };
        }
        let usual = self.generation.max_new_tokens.filter(|usual| *usual < room);
        let most = usual.unwrap_or(room);
        if least <= most {
            return Ok(most);
        }
        let why = match usual {
            Some(most) => format!("an answer has {most} at most where {name} is left out, as the model's files say"),
            None => left,
        };
        Err(Error::Field("min_tokens".into(), format!("min_tokens is {least}, and {why}")))
    }

    /// Asks for an answer: one for each copy.
    ///
    /// # Errors
    /// The request breaks a limit, which is named with its numbers; or too much waits.
    pub async fn generate(&self, asked: Generate) -> Result<Vec<Answer>, Error> {
        self.generate_all(vec![asked]).await
    }

    /// Asks for answers that belong together, all or none: one for each copy of the first, then of the second, and so
    /// on.
    ///
    /// # Errors
    /// As for [`Language::generate`]; what is wrong with a prompt says with which, by its [`Names`].
    pub async fn generate_all(&self, asked: Vec<Generate>) -> Result<Vec<Answer>, Error> {
        let (mut requests, mut readers) = (Vec::with_capacity(asked.len()), Vec::with_capacity(asked.len()));
        for asked in asked {
            let (request, matchers, reader) = self.prepare(asked)?;
            requests.push((request, matchers));
            readers.push(reader);
        }
        let streams = self.generator.admit_all(requests).await?;
        let answers = readers.iter().zip(streams);
        Ok(answers.flat_map(|(reader, streams)| streams.into_iter().map(move |tokens| reader.read(tokens))).collect())
    }

    /// What the engine is asked for, and how its tokens are read.
    fn prepare(&self, asked: Generate) -> Result<(Request, Matchers, Reader), Error> {
        let max_tokens = self.max_tokens(&asked)?;
        let Generate { prompt, parameters, names, copies, stop, include_stop, .. } = asked;
        let stops = StopStrings::new(&stop).map_err(refused)?;
        let sampling =
            Sampling::new(parameters).map_err(|error| Error::Field(error.field().into(), error.to_string()))?;
        let sampling = Arc::new(sampling);
        let draft = Draft {
            copies: copies.try_into().unwrap_or(u16::MAX),
            priority: asked.priority,
            deadline: asked.deadline,
            counted: asked.counted,
            salt: asked.salt.map_or(Salt::default(), |salt| self.key.salt(&[b"request", salt.as_bytes()])),
            ..Draft::new(prompt, max_tokens, sampling.clone())
        };
        let request = Request::new(draft, &self.limits).map_err(|error| names.blame(&error))?;
        let matcher = |guide: &Guide| (0..request.copies()).map(|_| Box::new(guide.clone()) as _).collect();
        let matchers = asked.guide.as_ref().map(matcher).unwrap_or_default();
        let parser = asked.reading.as_ref().and_then(|reading| OutputParser::new(&self.format, reading));
        let reader = Reader {
            vocabulary: self.tokenizer.vocabulary().clone(),
            skip_special_tokens: asked.skip_special_tokens,
            shown: if parser.is_some() { self.shown.clone() } else { Arc::default() },
            parser,
            stops,
            ends: Ends { model: self.ends.clone(), stop: stop.into(), keeps_stop: include_stop, sampling, max_tokens },
        };
        Ok((request, matchers, reader))
    }
}

impl Names {
    /// The field that the prompt is in, down to its place there.
    pub fn field(self) -> Cow<'static, str> {
        self.which.map_or(self.prompt.into(), |index| format!("{}[{index}]", self.prompt).into())
    }

    /// What the prompt is called in a sentence.
    fn told(self) -> Cow<'static, str> {
        if self.which.is_some() { self.field() } else { "the prompt".into() }
    }

    /// An error of a request, by the name that its field has there.
    fn blame(self, error: &RequestError) -> Error {
        let field = if error.field() == PROMPT { self.field() } else { error.field().into() };
        Error::Field(field, error.of(&self.told()))
    }
}

/// What fails here has no answer yet, whose end would tell of it.
fn told(error: InferError) -> Error {
    if let InferError::Internal(what) = &error {
        tracing::error!(%what, "a request failed before it was put to the model");
    }
    error.into()
}

/// What the text layer refuses is the request's fault, as a whole and not an input's.
fn refused(error: InferError) -> Error {
    match Error::from(error) {
        Error::Refused(what) => Error::Invalid(what),
        other => other,
    }
}
