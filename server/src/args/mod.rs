//! What the user said: the command line and the environment, read but not yet acted on.
//!
//! [`parse`] is a pure function of both. Configuration files are read later, by [`crate::config::Config::load`], which
//! also settles who is heard. Command lines of other servers go through [`crate::dropin`].

pub mod error;
pub mod field;
pub mod file;
pub mod flags;
pub mod help;
mod line;
pub mod origin;
mod run;
mod serve;
#[cfg(test)]
pub(crate) mod tests;
pub mod units;

pub use error::UsageError;
pub use origin::{Args, Origin};

use crate::cli::run::Talk;
use crate::dropin::List;
use error::nearest;
use field::{Choice, Named};
use line::{Word, Words, following};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// A command, and what is to be said about how it was given.
#[derive(Clone, Debug)]
pub struct Invocation {
    /// What to do.
    pub command: Command,
    /// One line each, for the log.
    pub warnings: Vec<String>,
}

/// What to do.
#[derive(Clone, Debug)]
pub enum Command {
    /// Serve models: `tensorgate [serve] [DIR] FLAGS`.
    Serve(Args),
    /// Talk to a language model: `tensorgate run [DIR] [--prompt TEXT] FLAGS`.
    Run {
        /// As for `serve`.
        args: Args,
        /// What is said.
        talk: Talk,
    },
    /// Print the settings that `serve` would run with: `tensorgate config show [--origin] ...`.
    ConfigShow {
        /// As for `serve`.
        args: Args,
        /// With the origin of each.
        origin: bool,
    },
    /// Look whether a directory can be served: `tensorgate validate DIR`.
    Validate {
        /// A model or a repository.
        directory: PathBuf,
        /// ONNX Runtime's library, as the environment says.
        onnxruntime: Option<PathBuf>,
    },
    /// Print a manifest: `tensorgate manifests servingruntime [--format FORMAT] [--image IMAGE]`.
    ServingRuntime {
        /// For models of this format only.
        format: Option<ModelFormat>,
        /// The container image.
        image: Option<String>,
    },
    /// Print this text: help, or the version that another program's command line asks for.
    Help(String),
    /// Print [`help::version`].
    Version,
}

/// Formats that a serving runtime announces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ModelFormat {
    /// XGBoost.
    Xgboost,
    /// LightGBM.
    Lightgbm,
    /// ONNX graphs, one in a directory.
    Onnx,
    /// Model repositories of Triton's, for InferenceServices that were written for `tritonserver`.
    Triton,
    /// Language models.
    Huggingface,
    /// The same, for InferenceServices that were written for vLLM.
    Vllm,
}

impl Named for ModelFormat {
    const ALL: &'static [(&'static str, Self)] = &[
        ("xgboost", ModelFormat::Xgboost),
        ("lightgbm", ModelFormat::Lightgbm),
        ("onnx", ModelFormat::Onnx),
        ("triton", ModelFormat::Triton),
        ("huggingface", ModelFormat::Huggingface),
        ("vllm", ModelFormat::Vllm),
    ];
}

/// The environment of a process.
pub type Environment = BTreeMap<String, String>;

/// The words that choose a command when they come first.
pub(crate) const COMMANDS: &[&str] = &["serve", "run", "config", "validate", "manifests", "help", "version"];

/// Reads the command line and environment of this process.
///
/// # Errors
/// As [`parse`], and words that are not UTF-8.
pub fn from_process() -> Result<Invocation, UsageError> {
    let argv =
        std::env::args_os().map(|word| word.into_string().map_err(|word| format!("{}: not UTF-8", word.display())));
    let environment = std::env::vars_os();
    // Variables of others may hold anything; none of those we read does.
    let environment =
        environment.filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
    parse(&argv.collect::<Result<Vec<_>, _>>()?, &environment.collect())
}

/// Reads a command line, its first word the program's name, and an environment.
///
/// # Errors
/// Everything that is wrong with either.
pub fn parse(argv: &[String], environment: &Environment) -> Result<Invocation, UsageError> {
    let (program, words) = argv.split_first().map_or(("", argv), |(program, words)| (program.as_str(), words));
    let program = program.rsplit('/').next().unwrap_or(program);
    let words = line::cut(words);
    let asks = |known: &[&str]| {
        words.iter().any(|word| matches!(word, Word::Flag { spelled, .. } if known.contains(&spelled.as_str())))
    };
    let first = match words.first() {
        Some(Word::Plain(word)) => word.clone(),
        _ => String::new(),
    };
    if asks(&["--help", "-h"]) || first == "help" {
        return Ok(quiet(Command::Help(help::page(if List::of_program(program).is_some() {
            program
        } else {
            &first
        }))));
    }
    let list = List::of_program(program).or_else(|| List::of_program(&first)).unwrap_or_default();
    if asks(&["--version", "-V"]) || first == "version" || list == List::Vllm && asks(&["-v"]) {
        return Ok(quiet(help::version_of(list).map_or(Command::Version, Command::Help)));
    }
    let mut words = words.into_iter().peekable();
    if List::of_program(program).is_some() || !matches!(first.as_str(), "run" | "config" | "validate" | "manifests") {
        let (args, warnings) = serve::read(program, words, environment)?;
        return Ok(Invocation { command: Command::Serve(args), warnings });
    }
    words.next();
    match first.as_str() {
        "run" => run::read(words, environment),
        "config" => read_config(words, environment),
        "validate" => read_validate(words, environment).map(quiet),
        _ => read_manifests(words).map(quiet),
    }
}

fn quiet(command: Command) -> Invocation {
    Invocation { command, warnings: Vec::new() }
}

fn read_config(mut words: Words, environment: &Environment) -> Result<Invocation, UsageError> {
    if following(&mut words).as_deref() != Some("show") {
        return Err("config: say `tensorgate config show`, and the flags of `serve`".to_owned().into());
    }
    let asks = |word: &Word| matches!(word, Word::Flag { spelled, value: None } if spelled == "--origin");
    let (asked, rest): (Vec<_>, Vec<_>) = words.partition(asks);
    let (args, warnings) = serve::read("", rest.into_iter().peekable(), environment)?;
    Ok(Invocation { command: Command::ConfigShow { args, origin: !asked.is_empty() }, warnings })
}

fn read_validate(words: Words, environment: &Environment) -> Result<Command, UsageError> {
    let (plain, mut values) = read_few(words, &["onnxruntime-lib"])?;
    let said = values.remove("onnxruntime-lib").or_else(|| environment.get("TENSORGATE_ONNXRUNTIME_LIB").cloned());
    match plain.len() {
        1 => Ok(Command::Validate { directory: plain.concat().into(), onnxruntime: said.map(PathBuf::from) }),
        _ => Err("validate: say `tensorgate validate DIR`, one directory".to_owned().into()),
    }
}

fn read_manifests(words: Words) -> Result<Command, UsageError> {
    let (plain, mut values) = read_few(words, &["format", "image"])?;
    match plain.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["servingruntime"] => {}
        ["servingruntime", format] => return Err(format!("manifests: {format}: say `--format {format}`").into()),
        _ => {
            return Err("manifests: say `tensorgate manifests servingruntime`; there is no other yet"
                .to_owned()
                .into());
        }
    }
    let mut format: Option<ModelFormat> = None;
    if let Some(name) = values.remove("format")
        && !format.choose(&name)
    {
        return Err(format!("--format: `{name}` is not one of {}", format.names().join(", ")).into());
    }
    Ok(Command::ServingRuntime { format, image: values.remove("image") })
}

/// Plain words, and the values of a few flags by name. The last of a flag counts.
type Few = (Vec<String>, BTreeMap<&'static str, String>);

fn read_few(mut words: Words, known: &[&'static str]) -> Result<Few, UsageError> {
    let (mut plain, mut values) = Few::default();
    while let Some(word) = words.next() {
        let (spelled, value) = match word {
            Word::Flag { spelled, value } => (spelled, value),
            Word::Plain(text) => {
                plain.push(text);
                continue;
            }
        };
        let name = line::name(&spelled);
        let Some(flag) = known.iter().find(|flag| **flag == name) else {
            return Err(unknown_flag(&spelled, known.iter().copied()).into());
        };
        let value = value.or_else(|| following(&mut words)).filter(|value| !value.is_empty());
        values.insert(*flag, value.ok_or_else(|| format!("{spelled}: needs a value"))?);
    }
    Ok((plain, values))
}

/// The problem with a flag that nobody knows.
pub(crate) fn unknown_flag<'a>(spelled: &str, known: impl Iterator<Item = &'a str>) -> String {
    let hint = match nearest(&line::name(spelled), known) {
        Some(name) => format!("; did you mean --{name}?"),
        None => "; `tensorgate --help` lists the flags".to_owned(),
    };
    format!("unknown flag {spelled}{hint}")
}
