//! Chat templates: messages, tools and settings to a prompt, character for character what `transformers` renders.
//!
//! A template is a program that came with a model, or even with a request. It sees only JSON, opens no file, knows no time
//! but the one it is given, and has bounded fuel, depth and output.

use super::config::TokenizerConfig;
use super::jinja::{self, Raised};
use super::{conversation, rewrite, strftime};
use crate::error::{InferError, LoadError};
use minijinja::value::Serde;
use minijinja::{Environment, ErrorKind, Value};
use serde_json::{Map, Value as Json};
use std::collections::BTreeSet;
use std::error::Error as _;
use std::io;
use std::path::{Path, PathBuf};

/// Bytes of a template's source, at most; the largest in use have some 40 KB.
pub const MAX_TEMPLATE_BYTES: usize = 512 << 10;
/// Bytes of one setting, as JSON, at most.
pub const MAX_SETTING_BYTES: usize = 4 << 10;
/// Fuel of a rendering without any input, in instructions of minijinja; templates in use need 3,000 to 200,000.
const BASE_FUEL: u64 = 1_000_000;
/// Fuel of a rendering, at most.
const MAX_FUEL: u64 = 64_000_000;
/// Settings that a request cannot give, since they are said elsewhere.
const RESERVED: [&str; 9] = [
    "messages",
    "tools",
    "documents",
    "chat_template",
    "tokenize",
    "add_generation_prompt",
    "continue_final_message",
    "raise_exception",
    "strftime_now",
];

/// A model's chat templates, compiled.
#[derive(Debug)]
pub struct ChatTemplates {
    environment: Environment<'static>,
    names: Vec<String>,
    /// As they came, in the order of their names.
    sources: Vec<String>,
    /// The names in the code of each.
    words: Vec<BTreeSet<String>>,
    /// `bos_token` and so on, which templates write.
    tokens: Vec<(String, String)>,
    max_prompt_bytes: usize,
}

/// What is to be rendered.
#[derive(Clone, Copy, Debug)]
pub struct Chat<'a> {
    /// The conversation: JSON objects with `role`, `content`, ...
    pub messages: &'a [Json],
    /// The tools that the model may call, as JSON schemas.
    pub tools: Option<&'a [Json]>,
    /// Documents, for models that answer out of them.
    pub documents: Option<&'a [Json]>,
    /// Does the prompt end with the beginning of the model's answer?
    pub add_generation_prompt: bool,
    /// Does the prompt end within the last message, for the model to go on?
    pub continue_final_message: bool,
    /// Further variables of the template (`enable_thinking`), from the request.
    pub settings: Option<&'a Map<String, Json>>,
    /// Which template; none means `tool_use` where there are tools and such a template, else `default`.
    pub template: Option<&'a str>,
    /// The time that `strftime_now` tells, in seconds since 1970; it is told in UTC.
    pub unix_seconds: i64,
}

impl<'a> Chat<'a> {
    /// A conversation for the model to answer, without anything else.
    pub fn new(messages: &'a [Json]) -> Self {
        Chat {
            messages,
            tools: None,
            documents: None,
            add_generation_prompt: true,
            continue_final_message: false,
            settings: None,
            template: None,
            unix_seconds: 0,
        }
    }
}

impl ChatTemplates {
    /// Compiles the templates of a tokenizer's configuration; none where it has none. Prompts longer than
    /// `max_prompt_bytes` will be refused.
    ///
    /// # Errors
    /// Names the template and the line, and says what is wrong there; the file is where it lies, or else `path`.
    pub fn from_config(
        config: &TokenizerConfig,
        path: &Path,
        max_prompt_bytes: usize,
    ) -> Result<Option<Self>, LoadError> {
        let templates = &config.chat_templates;
        if templates.is_empty() {
            return Ok(None);
        }
        let compiled = ChatTemplates::compiled(templates, &config.named_tokens, max_prompt_bytes);
        compiled.map(Some).map_err(|(place, reason)| {
            let file = place.and_then(|place| config.template_files.get(place));
            LoadError::new(file.map_or(path, PathBuf::as_path), reason)
        })
    }

    /// Compiles templates, given by name and source, for a model with those control tokens.
    ///
    /// # Errors
    /// Names the template and the line, and says what is wrong there.
    pub fn compile(
        templates: &[(String, String)],
        tokens: &[(String, String)],
        max_prompt_bytes: usize,
    ) -> Result<Self, String> {
        Self::compiled(templates, tokens, max_prompt_bytes).map_err(|(_, what)| what)
    }

    /// The same, where an error comes with the place of the template in the list.
    fn compiled(
        templates: &[(String, String)],
        tokens: &[(String, String)],
        max_prompt_bytes: usize,
    ) -> Result<Self, (Option<usize>, String)> {
        let mut environment = jinja::environment().map_err(|error| (None, error.to_string()))?;
        for (place, (name, source)) in templates.iter().enumerate() {
            let at = |line: usize, what: &str| (Some(place), format!("chat template '{name}', line {line}: {what}"));
            if source.len() > MAX_TEMPLATE_BYTES {
                return Err(at(1, &format!("{} bytes; at most {MAX_TEMPLATE_BYTES} are allowed", source.len())));
            }
            let source = rewrite::rewrite(source).map_err(|(line, what)| at(line, &what))?;
            let added = environment.add_template_owned(name.clone(), source);
            added.map_err(|error| at(error.line().unwrap_or(1), &reason(&error)))?;
        }
        let names = templates.iter().map(|(name, _)| name.clone()).collect();
        let sources = templates.iter().map(|(_, source)| source.clone()).collect();
        let words = templates.iter().map(|(_, source)| rewrite::words(source)).collect();
        Ok(ChatTemplates { environment, names, sources, words, tokens: tokens.to_vec(), max_prompt_bytes })
    }

    /// Prompts longer than this will be refused from now on.
    pub fn set_max_prompt_bytes(&mut self, most: usize) {
        self.max_prompt_bytes = most;
    }

    /// The templates' names.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// The templates as they came.
    pub fn sources(&self) -> impl Iterator<Item = &str> + Clone {
        self.sources.iter().map(String::as_str)
    }

    /// Do they take the content of a message apart where it is a list? Others expect text.
    pub fn take_parts(&self) -> bool {
        self.sources().any(|source| {
            let mut tags = source.split("{%").skip(1).filter_map(|tag| tag.split("%}").next());
            tags.any(|tag| {
                let words = tag.trim_start_matches(['-', '+']).trim_start();
                words.starts_with("for ") && words.split_once(" in ").is_some_and(|(_, list)| list.contains("content"))
            })
        })
    }

    /// Does the template that a conversation would be rendered by look at this variable, or may it? Where it does not,
    /// the prompt is the same whatever the variable is.
    pub fn reads(&self, chat: &Chat<'_>, variable: &str) -> bool {
        let place = self.place(chat);
        // Where there is none, rendering says so.
        place.is_none_or(|place| self.words[place].contains(variable))
    }

    /// The prompt for a conversation.
    ///
    /// # Errors
    /// [`InferError::Invalid`]: the template refuses the conversation, fails on it (with the line where), takes too much
    /// work, or writes too much; or a setting is not allowed.
    pub fn render(&self, chat: &Chat<'_>) -> Result<String, InferError> {
        let asks = self.place(chat).is_some_and(|place| conversation::asks_for_none(&self.sources[place]));
        let none = asks.then_some(&Json::Null);
        let continues_nothing =
            chat.continue_final_message && chat.messages.last().is_some_and(conversation::lacks_content);
        match self.render_messages(chat, conversation::normalized(chat.messages, none)?) {
            // Templates that put a message together by `+` fail where there is nothing.
            Err(InferError::Invalid(_))
                if chat.messages.iter().any(conversation::lacks_content) && !continues_nothing =>
            {
                let empty = Json::String(String::new());
                self.render_messages(chat, conversation::normalized(chat.messages, Some(&empty))?)
            }
            rendered => rendered,
        }
    }

    fn render_messages(&self, chat: &Chat<'_>, mut messages: Vec<Json>) -> Result<String, InferError> {
        let continued = match (chat.continue_final_message, chat.add_generation_prompt) {
            (true, true) => {
                let what = "continue_final_message and add_generation_prompt exclude each other";
                return Err(InferError::invalid(what));
            }
            (true, false) => Some(conversation::mark_end(&mut messages)?),
            (false, _) => None,
        };
        let name = self.choose(chat)?;
        let (variables, bytes) = self.variables(chat, messages)?;
        let mut environment = self.environment.clone();
        environment.set_fuel(Some(MAX_FUEL.min(BASE_FUEL.saturating_add(2 * bytes as u64))));
        let template = environment.get_template(name).map_err(|error| self.failure(&error))?;
        let mut prompt = Prompt { bytes: Vec::new(), limit: self.max_prompt_bytes };
        template.render_captured_to(variables, &mut prompt).map(drop).map_err(|error| self.failure(&error))?;
        let prompt = String::from_utf8(prompt.bytes)
            .map_err(|_| InferError::Internal("the chat template wrote something that is not UTF-8".into()))?;
        match continued {
            Some(content) => conversation::cut_at_end(&prompt, &content),
            None => Ok(prompt),
        }
    }

    /// Where the template is that a conversation would be rendered by.
    fn place(&self, chat: &Chat<'_>) -> Option<usize> {
        let name = self.choose(chat).ok()?;
        self.names.iter().rposition(|known| known == name)
    }

    fn choose<'a>(&'a self, chat: &Chat<'a>) -> Result<&'a str, InferError> {
        let has = |name: &str| self.names.iter().any(|known| known == name);
        let names = || self.names.join(", ");
        match chat.template {
            Some(name) if has(name) => Ok(name),
            Some(name) => {
                Err(InferError::invalid(format!("no chat template is named '{name}'; there are: {}", names())))
            }
            None if chat.tools.is_some() && has("tool_use") => Ok("tool_use"),
            None if has("default") => Ok("default"),
            None => Err(InferError::invalid(format!("no chat template is named 'default'; there are: {}", names()))),
        }
    }

    /// The template's variables, and the bytes of them that came from the request.
    fn variables(&self, chat: &Chat<'_>, messages: Vec<Json>) -> Result<(Value, usize), InferError> {
        let mut bytes = 0;
        let mut variables: Vec<(&str, Value)> = Vec::new();
        for (name, token) in &self.tokens {
            variables.push((name, Value::from(token.as_str())));
        }
        let lists = [("messages", Some(messages.as_slice())), ("tools", chat.tools), ("documents", chat.documents)];
        for (name, list) in lists {
            for item in list.unwrap_or_default() {
                bytes += conversation::weigh(item)?;
            }
            variables.push((name, list.map_or(Value::from(()), |list| Value::from(Serde(list)))));
        }
        variables.push(("add_generation_prompt", Value::from(chat.add_generation_prompt)));
        let unix_seconds = chat.unix_seconds;
        let now = move |format: &str| strftime::strftime(format, unix_seconds);
        variables.push(("strftime_now", Value::from_function(now)));
        for (name, value) in chat.settings.into_iter().flatten() {
            let size = conversation::weigh(value)?;
            if RESERVED.contains(&name.as_str()) || name.starts_with("__") {
                return Err(InferError::invalid(format!("chat_template_kwargs: '{name}' cannot be set there")));
            }
            if size > MAX_SETTING_BYTES {
                let what =
                    format!("chat_template_kwargs: '{name}' has {size} bytes; at most {MAX_SETTING_BYTES} are allowed");
                return Err(InferError::invalid(what));
            }
            bytes += size;
            variables.push((name, Value::from(Serde(value))));
        }
        // Later entries win: a setting may replace a control token.
        Ok((Value::from_pairs(variables), bytes))
    }

    fn failure(&self, error: &minijinja::Error) -> InferError {
        let mut source = error.source();
        while let Some(cause) = source {
            if let Some(raised) = cause.downcast_ref::<Raised>() {
                return InferError::Invalid(raised.0.clone());
            }
            source = cause.source();
        }
        let line = error.line().map(|line| format!(" at line {line}")).unwrap_or_default();
        if error.kind() == ErrorKind::WriteFailure {
            let most = self.max_prompt_bytes;
            return InferError::invalid(format!(
                "the prompt has more than {most} bytes; one that fits into the model's context has at most {most}"
            ));
        }
        let what = match error.kind() {
            ErrorKind::OutOfFuel => "takes too much work for these messages".to_owned(),
            _ => format!("fails: {}", reason(error)),
        };
        InferError::invalid(format!("the chat template {what}{line}"))
    }
}

fn reason(error: &minijinja::Error) -> String {
    match error.detail() {
        Some(detail) => format!("{}: {detail}", error.kind()),
        None => error.kind().to_string(),
    }
}

/// What was written so far, and how much may be.
struct Prompt {
    bytes: Vec<u8>,
    limit: usize,
}

impl io::Write for Prompt {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        if text.len() > self.limit - self.bytes.len() {
            return Err(io::Error::other("the prompt is too long"));
        }
        self.bytes.extend_from_slice(text);
        Ok(text.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
