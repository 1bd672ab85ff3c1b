//! `tensorgate run [DIR] [--prompt TEXT] ...`: what is said in the terminal, and the settings of `serve` for the model.

use super::line::{Word, Words, following};
use super::{Command, Environment, Invocation, Origin, UsageError, flags, line, serve};
use crate::cli::run::Talk;

/// Flags of `run` besides those of `serve`; their help is in `help.rs`.
const FLAGS: [&str; 4] = ["prompt", "system", "max-tokens", "temperature"];

pub(super) fn read(mut words: Words, environment: &Environment) -> Result<Invocation, UsageError> {
    let (mut talk, mut rest) = (Talk::default(), Vec::new());
    while let Some(word) = words.next() {
        let (spelled, value) = match word {
            Word::Flag { spelled, value } if is_ours(&spelled) => (spelled, value),
            // One model is talked to: `serve DIR` would take a repository. After a flag without a value it is that value.
            Word::Plain(directory) if !matches!(rest.last(), Some(Word::Flag { value: None, .. })) => {
                rest.push(Word::Flag { spelled: "--model-dir".into(), value: Some(directory) });
                continue;
            }
            other => {
                rest.push(other);
                continue;
            }
        };
        let value = value.or_else(|| following(&mut words)).ok_or_else(|| format!("{spelled}: needs a value"))?;
        match line::name(&spelled).as_str() {
            "prompt" => talk.prompt = Some(value),
            "system" => talk.system = Some(value),
            "max-tokens" => {
                let tokens = value.parse().ok().filter(|tokens| *tokens > 0);
                talk.max_tokens = Some(tokens.ok_or_else(|| format!("{spelled}: `{value}` is no number of tokens"))?);
            }
            _ => {
                let temperature = value.parse().ok().filter(|t: &f32| (0.0..=5.0).contains(t));
                let wrong = || format!("{spelled}: `{value}` is no number from 0 to 5");
                talk.temperature = Some(temperature.ok_or_else(wrong)?);
            }
        }
    }
    let (mut args, warnings) = serve::read_strictly(rest.into_iter().peekable(), environment)?;
    // The terminal is for the conversation.
    if let Some(level) = flags::find("log-level") {
        args.say(level, "error", Origin::Program("tensorgate run"))?;
    }
    Ok(Invocation { command: Command::Run { args, talk }, warnings })
}

fn is_ours(spelled: &str) -> bool {
    FLAGS.contains(&line::name(spelled).as_str())
}
