//! What lies beside `tokenizer.json`: `tokenizer_config.json`, `special_tokens_map.json` and chat template files, read as
//! `transformers` reads them. Not `generation_config.json`: which ids end a text is somebody else's to say.

use crate::error::LoadError;
use serde_json::{Map, Value};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

/// Bytes of a configuration or template file, at most.
pub const MAX_CONFIG_BYTES: u64 = 8 << 20;
/// Chat templates of one model, at most.
pub const MAX_TEMPLATES: usize = 16;

/// An added token of `tokenizer_config.json`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Added {
    pub(super) id: u32,
    pub(super) token: tokenizers::AddedToken,
}

/// Settings of a tokenizer that its `tokenizer.json` does not hold.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TokenizerConfig {
    /// Named control tokens (`bos_token`, ...), as chat templates see them, in the order of the file.
    pub named_tokens: Vec<(String, String)>,
    /// Control tokens without a name.
    pub extra_tokens: Vec<String>,
    pub(super) added_tokens: Vec<Added>,
    /// Does encoded text begin with `bos_token`? Asked only where `tokenizer.json` has no post-processor.
    pub add_bos_token: Option<bool>,
    /// Does encoded text end with `eos_token`? Asked only where `tokenizer.json` has no post-processor.
    pub add_eos_token: Option<bool>,
    /// Are control tokens that are written out in a text read as text? As in `transformers`, in prompts of chat templates too.
    pub split_special_tokens: bool,
    /// Chat templates: name and source. A model with only one calls it `default`.
    pub chat_templates: Vec<(String, String)>,
    /// Which file each of them lies in; none where that is not known.
    pub(super) template_files: Vec<PathBuf>,
    /// Longest text in tokens that the model was made for, where the file says so.
    pub model_max_length: Option<u64>,
}

/// Names that every tokenizer has.
const NAMED: [&str; 7] = ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

impl TokenizerConfig {
    /// Reads the files of `directory`; those that are absent say nothing.
    ///
    /// # Errors
    /// A file that is too large, not JSON, or not of the expected shape.
    pub fn read(directory: &Path) -> Result<Self, LoadError> {
        let path = directory.join("tokenizer_config.json");
        let mut values = object(&path)?.unwrap_or_default();
        if !values.contains_key("added_tokens_decoder") {
            let older = object(&directory.join("special_tokens_map.json"))?.unwrap_or_default();
            values.extend(older);
        }
        let mut config = TokenizerConfig::parse(&values).map_err(|reason| LoadError::new(&path, reason))?;
        let found = template_files(directory)?;
        if found.is_empty() {
            config.template_files = vec![path; config.chat_templates.len()];
        } else {
            (config.template_files, config.chat_templates) = found.into_iter().unzip();
        }
        Ok(config)
    }

    /// Reads the content of `tokenizer_config.json`.
    ///
    /// # Errors
    /// Says which field is not of the expected shape.
    pub fn parse(values: &Map<String, Value>) -> Result<Self, String> {
        let mut config = TokenizerConfig {
            add_bos_token: values.get("add_bos_token").and_then(Value::as_bool),
            add_eos_token: values.get("add_eos_token").and_then(Value::as_bool),
            split_special_tokens: values.get("split_special_tokens").and_then(Value::as_bool).unwrap_or(false),
            model_max_length: values.get("model_max_length").and_then(Value::as_u64),
            chat_templates: chat_templates(values.get("chat_template"))?,
            ..TokenizerConfig::default()
        };
        for (name, value) in values {
            if let Some(content) = token(value).filter(|_| name.ends_with("_token")) {
                config.named_tokens.push((name.clone(), content));
            } else if NAMED.contains(&name.as_str()) && !value.is_null() {
                return Err(format!("{name} is neither a string nor an added token"));
            }
        }
        let extra = ["extra_special_tokens", "additional_special_tokens"].map(|name| values.get(name));
        for value in extra.into_iter().flatten() {
            match value {
                Value::Array(list) => config.extra_tokens.extend(list.iter().filter_map(token)),
                Value::Object(named) => {
                    let named = named.iter().filter_map(|(name, value)| Some((name.clone(), token(value)?)));
                    config.named_tokens.extend(named);
                }
                _ => {}
            }
        }
        config.added_tokens = added_tokens(values.get("added_tokens_decoder"))?;
        Ok(config)
    }

    /// The same for a tokenizer that has none of these tokens; the templates stay.
    #[must_use]
    pub fn without_tokens(self) -> Self {
        TokenizerConfig {
            chat_templates: self.chat_templates,
            template_files: self.template_files,
            model_max_length: self.model_max_length,
            ..Self::default()
        }
    }

    /// The control token of that name (`eos_token`).
    pub fn named(&self, name: &str) -> Option<&str> {
        self.named_tokens.iter().find(|(known, _)| known == name).map(|(_, content)| content.as_str())
    }
}

/// A token is its text, or an object that has it under `content`.
fn token(value: &Value) -> Option<String> {
    value.as_str().or_else(|| value.get("content")?.as_str()).map(str::to_owned)
}

fn chat_templates(value: Option<&Value>) -> Result<Vec<(String, String)>, String> {
    const SHAPE: &str = "chat_template is neither a text nor a list of {name, template}";
    let list = match value {
        None | Some(Value::Null) => return Ok(Vec::new()),
        Some(Value::String(source)) => return Ok(vec![("default".to_owned(), source.clone())]),
        Some(Value::Array(list)) if list.len() <= MAX_TEMPLATES => list,
        Some(Value::Array(_)) => return Err(format!("more than {MAX_TEMPLATES} chat templates")),
        Some(_) => return Err(SHAPE.to_owned()),
    };
    let named = |entry: &Value| Some((entry["name"].as_str()?.to_owned(), entry["template"].as_str()?.to_owned()));
    list.iter().map(|entry| named(entry).ok_or_else(|| SHAPE.to_owned())).collect()
}

fn added_tokens(value: Option<&Value>) -> Result<Vec<Added>, String> {
    let Some(Value::Object(entries)) = value else { return Ok(Vec::new()) };
    let mut added = Vec::with_capacity(entries.len());
    for (id, entry) in entries {
        let parsed = id.parse::<u32>().ok().zip(entry["content"].as_str());
        let (id, content) = parsed.ok_or_else(|| format!("added_tokens_decoder: {id} is malformed"))?;
        let flag = |name: &str, otherwise: bool| entry[name].as_bool().unwrap_or(otherwise);
        let special = flag("special", false);
        let token = tokenizers::AddedToken::from(content, special)
            .single_word(flag("single_word", false))
            .lstrip(flag("lstrip", false))
            .rstrip(flag("rstrip", false))
            .normalized(flag("normalized", !special));
        added.push(Added { id, token });
    }
    added.sort_by_key(|added| added.id);
    Ok(added)
}

/// A file, and the chat template in it: its name and source.
type TemplateFile = (PathBuf, (String, String));

/// `chat_template.jinja`, and the named ones in `additional_chat_templates/`, which take precedence over the field.
fn template_files(directory: &Path) -> Result<Vec<TemplateFile>, LoadError> {
    let mut templates = Vec::new();
    let path = directory.join("chat_template.jinja");
    if let Some(source) = text(&path)? {
        templates.push((path, ("default".to_owned(), source)));
    }
    let Ok(entries) = std::fs::read_dir(directory.join("additional_chat_templates")) else { return Ok(templates) };
    let mut paths: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "jinja"));
    paths.sort();
    for path in paths {
        let name = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default().to_owned();
        if templates.len() >= MAX_TEMPLATES {
            return Err(LoadError::new(&path, format!("more than {MAX_TEMPLATES} chat templates")));
        }
        templates.extend(text(&path)?.map(|source| (path, (name, source))));
    }
    Ok(templates)
}

fn object(path: &Path) -> Result<Option<Map<String, Value>>, LoadError> {
    let Some(bytes) = bytes(path, MAX_CONFIG_BYTES)? else { return Ok(None) };
    serde_json::from_slice(&bytes).map(Some).map_err(|e| LoadError::new(path, format!("not a JSON object: {e}")))
}

fn text(path: &Path) -> Result<Option<String>, LoadError> {
    let Some(bytes) = bytes(path, MAX_CONFIG_BYTES)? else { return Ok(None) };
    String::from_utf8(bytes).map(Some).map_err(|_| LoadError::new(path, "not UTF-8"))
}

/// The content of a file of at most `limit` bytes; none where there is no such file.
pub(in crate::llm) fn bytes(path: &Path, limit: u64) -> Result<Option<Vec<u8>>, LoadError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(LoadError::new(path, error.to_string())),
    };
    let mut content = Vec::new();
    file.take(limit + 1).read_to_end(&mut content).map_err(|e| LoadError::new(path, e.to_string()))?;
    if content.len() as u64 > limit {
        return Err(LoadError::new(path, format!("larger than {limit} bytes")));
    }
    Ok(Some(content))
}
