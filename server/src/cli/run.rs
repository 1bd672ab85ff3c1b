//! `tensorgate run DIR`: a language model in the terminal. What is asked goes the way of a chat over HTTP, without the
//! sockets; what is answered is written as it comes.

use crate::app;
use crate::codec::openai::Refusal;
use crate::codec::openai::ask::{self, Ask};
use crate::config::Config;
use crate::dataplane::Language;
use crate::llm::answer::{Answer, Piece};
use backends::llm::text::output::Part;
use backends::{Model, load};
use protocol::openai::ChatRequest;
use serde_json::{Map, Value, json};
use std::io::{self, BufRead, IsTerminal, Read, Write};
use std::time::Instant;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;

/// What is to be said, and how.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Talk {
    /// One question; without it, standard input asks.
    pub prompt: Option<String>,
    /// What the model is told before all else.
    pub system: Option<String>,
    /// Tokens of an answer, at most.
    pub max_tokens: Option<u32>,
    /// How freely tokens are chosen.
    pub temperature: Option<f32>,
}

/// Loads the model, and talks until there is nothing more to say.
///
/// # Errors
/// There is no model, it is no language model, it cannot be loaded, or a single question could not be answered.
pub async fn run(config: &Config, talk: Talk) -> Result<u8, String> {
    let language = language(config)?;
    let mut chat = Conversation::new(&talk)?;
    if let Some(prompt) = talk.prompt.clone() {
        return chat.once(&language, prompt).await;
    }
    if !io::stdin().is_terminal() {
        let mut prompt = String::new();
        io::stdin().read_to_string(&mut prompt).map_err(|error| format!("standard input: {error}"))?;
        return chat.once(&language, prompt.trim_end_matches('\n').to_owned()).await;
    }
    eprintln!("Say something; an empty line is nothing, ctrl-c ends an answer, ctrl-d or /bye the conversation.");
    let mut lines = lines();
    loop {
        eprint!("> ");
        let line = tokio::select! {
            line = lines.recv() => line,
            _ = chat.interrupts.recv() => None,
        };
        match line.as_deref().map(str::trim) {
            None | Some("/bye") => {
                eprintln!();
                return Ok(0);
            }
            Some("") => {}
            Some(words) => {
                if let Err(reason) = chat.answer(&language, words.to_owned()).await {
                    eprintln!("{reason}");
                }
            }
        }
    }
}

/// The one language model there is.
fn language(config: &Config) -> Result<Language, String> {
    if config.models().is_none() {
        let example = "tensorgate run ./models/qwen --prompt Hello";
        return Err(format!("run: no model is named; give its directory, as in `{example}`"));
    }
    let survey = app::repository(config)?.survey().map_err(|error| error.to_string())?;
    let options = app::load_options(config)?;
    let names: Vec<&str> = survey.models.keys().map(String::as_str).collect();
    let Some((name, found)) = survey.models.first_key_value().filter(|_| names.len() == 1) else {
        return Err(match names.len() {
            0 => survey.notes.into_iter().fold("no model was found".to_owned(), |text, note| text + "; " + &note),
            _ => format!("there are several models: name the directory of one of them: {}", names.join(", ")),
        });
    };
    let plan = found.plan().map_err(|error| error.to_string())?;
    let (_, path) = plan.wanted.last_key_value().ok_or_else(|| format!("{name} has no version to load"))?;
    let artifact = found.open(name, path).map_err(|error| error.to_string())?;
    match load(&artifact, &options).map_err(|error| error.to_string())? {
        Model::Language(model) => Language::start(name, *model),
        Model::Predictor(_) => Err(format!("'{name}' is no language model: `tensorgate serve` answers with tensors")),
    }
}

/// Lines of standard input, read on a thread that waits.
fn lines() -> mpsc::Receiver<String> {
    let (send, receive) = mpsc::channel(1);
    let read = move || {
        for line in io::stdin().lock().lines() {
            let Ok(line) = line else { return };
            if send.blocking_send(line).is_err() {
                return;
            }
        }
    };
    if let Err(reason) = crate::threads::spawn("stdin", read) {
        eprintln!("{reason}");
    }
    receive
}

/// What was said so far, and how answers are made.
struct Conversation {
    messages: Vec<Value>,
    settings: Map<String, Value>,
    terminal: bool,
    /// Ctrl-c, listened to all the time: between two looks one would be lost.
    interrupts: Signal,
}

impl Conversation {
    fn new(talk: &Talk) -> Result<Self, String> {
        let interrupts = signal(SignalKind::interrupt()).map_err(|error| format!("signals: {error}"))?;
        let messages = talk.system.iter().map(|text| json!({"role": "system", "content": text})).collect();
        let mut settings = Map::new();
        if let Some(most) = talk.max_tokens {
            settings.insert("max_tokens".into(), json!(most));
        }
        if let Some(temperature) = talk.temperature {
            settings.insert("temperature".into(), json!(temperature));
        }
        Ok(Conversation { messages, settings, terminal: io::stdout().is_terminal(), interrupts })
    }

    async fn once(&mut self, language: &Language, prompt: String) -> Result<u8, String> {
        if prompt.trim().is_empty() {
            return Err("nothing was asked: give --prompt, or write to standard input".into());
        }
        self.answer(language, prompt).await.map(|()| 0)
    }

    /// Asks, and writes the answer. What was cut short stays said; what failed was never asked.
    async fn answer(&mut self, language: &Language, words: String) -> Result<(), String> {
        self.messages.push(json!({"role": "user", "content": words}));
        let said = self.ask(language).await;
        match said {
            Ok(said) => {
                self.messages.push(json!({"role": "assistant", "content": said}));
                Ok(())
            }
            Err(reason) => {
                self.messages.pop();
                Err(reason)
            }
        }
    }

    async fn ask(&mut self, language: &Language) -> Result<String, String> {
        let mut body = self.settings.clone();
        body.insert("messages".into(), Value::from(self.messages.clone()));
        let request = ChatRequest::parse(Value::from(body).to_string().as_bytes()).map_err(|error| error.message)?;
        let why = |refusal: Refusal| match refusal {
            Refusal::Field(error) => error.message,
            Refusal::Server(error) => error.message(),
        };
        let Ask { prompts, .. } = ask::chat(&request, language).map_err(why)?;
        let asked = prompts.into_iter().next().ok_or("there is nothing to ask")?;
        let answers = language.generate(asked.generate).await.map_err(|error| error.message())?;
        let answer = answers.into_iter().next().ok_or("there is no answer")?;
        self.write(answer).await
    }

    /// Writes an answer as it comes; gives what was said.
    async fn write(&mut self, mut answer: Answer) -> Result<String, String> {
        let (mut said, mut thinking, begun) = (String::new(), false, Instant::now());
        loop {
            let piece = tokio::select! {
                piece = answer.next() => piece,
                _ = self.interrupts.recv() => None,
            };
            let Some(piece) = piece else { break };
            let Piece { parts, end, .. } = piece.map_err(|error| error.message())?;
            for part in parts {
                let thought = matches!(part, Part::Reasoning(_));
                let (Part::Text(text) | Part::Reasoning(text) | Part::Call(text) | Part::Arguments(text)) = part;
                if thought != thinking {
                    self.raw(if thought { "\u{1b}[2m" } else { "\u{1b}[0m\n" });
                    thinking = thought;
                }
                if !thought {
                    said.push_str(&text);
                }
                // Thoughts are for people to watch, and not for whatever reads the answer.
                if !thought || self.terminal {
                    self.text(&text)?;
                }
            }
            if end.is_some() {
                break;
            }
        }
        if thinking {
            self.raw("\u{1b}[0m");
        }
        self.text("\n")?;
        if self.terminal {
            let tokens = answer.generated();
            let rate = f64::from(tokens) / begun.elapsed().as_secs_f64().max(1e-6);
            eprintln!("\u{1b}[2m{tokens} tokens, {rate:.1} a second\u{1b}[0m");
        }
        Ok(said)
    }

    /// Codes that a terminal alone understands.
    fn raw(&self, code: &str) {
        if self.terminal {
            print!("{code}");
        }
    }

    /// Text of the model. A terminal obeys control characters, and a model is nobody to obey.
    fn text(&self, text: &str) -> Result<(), String> {
        let mut out = io::stdout().lock();
        let written = if self.terminal {
            let shown: String = text.chars().filter(|c| !c.is_control() || matches!(c, '\n' | '\t')).collect();
            out.write_all(shown.as_bytes())
        } else {
            out.write_all(text.as_bytes())
        };
        written.and_then(|()| out.flush()).map_err(|error| format!("standard output: {error}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_model_an_example_is_given() {
        let reason = language(&Config::blank()).expect_err("there is no model");
        assert!(reason.contains("no model is named") && reason.contains("`tensorgate run ./"), "{reason}");
    }
}
