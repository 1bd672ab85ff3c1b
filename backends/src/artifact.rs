//! A model directory, and what its files say it is.
//!
//! ```text
//! iris/                 the model's root: model.toml, config.pbtxt, expected.json
//! iris/1/model.json     a version: the weights; or the weights lie in the root, which is then version 1
//! net/1/model.onnx            a graph; or
//! net/1/model.onnx/*.onnx     a directory of one, with its external data beside it
//! ```
//!
//! Formats are told by bytes, never by the extension alone, but for ONNX, whose files begin with no mark. Nothing outside the directory is read: symbolic links are
//! refused but for those that Kubernetes makes for mounted volumes (through `..data`).

use crate::error::LoadError;
use crate::settings::{self, Settings};
use crate::tensor::Limits;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::fs;
use std::io::Read;
use std::path::{Component, Path, PathBuf};

/// What a model file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// XGBoost JSON or UBJSON.
    XgboostDocument,
    /// XGBoost's binary format before 3.1.
    XgboostBinary,
    /// LightGBM's text format.
    LightgbmText,
    /// `config.json` of a language model as Hugging Face lays it out, with the weights beside it.
    HuggingFace,
    /// A language model in one GGUF file.
    Gguf,
    /// An ONNX graph.
    Onnx,
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Format::XgboostDocument => "XGBoost (JSON or UBJSON)",
            Format::XgboostBinary => "XGBoost (binary)",
            Format::LightgbmText => "LightGBM (text)",
            Format::HuggingFace => "Hugging Face (config.json)",
            Format::Gguf => "GGUF",
            Format::Onnx => "ONNX",
        })
    }
}

/// A model directory whose format is known.
#[derive(Clone, Debug)]
pub struct Artifact {
    model_path: PathBuf,
    format: Format,
    settings: Settings,
    origin: Origin,
}

/// Where a model was looked for: what [`Artifact::open_file`] takes.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Origin {
    /// Where the settings lie.
    pub root: PathBuf,
    /// Where the model file lies.
    pub directory: PathBuf,
    /// Its name, where whoever serves it has named it.
    pub file: Option<String>,
}

/// Bytes that are looked at to tell a format.
const HEAD: usize = 64 << 10;

impl Artifact {
    /// Looks for the one model file of `directory`. `root` holds the settings; it is `directory` or its parent.
    ///
    /// # Errors
    /// No model file, more than one, or settings that cannot be read.
    pub fn open(root: &Path, directory: &Path) -> Result<Self, LoadError> {
        Self::open_file(root, directory, None)
    }

    /// The same, where whoever serves the model may name its file: then that one is meant, whatever lies beside it.
    ///
    /// # Errors
    /// As [`Artifact::open`].
    pub fn open_file(root: &Path, directory: &Path, file: Option<&str>) -> Result<Self, LoadError> {
        let mut settings = settings::read(root)?;
        settings.file = file.map(str::to_owned).or(settings.file);
        let (mut found, mut others) = (Vec::new(), Vec::new());
        for path in files(directory)? {
            if settings.file.as_ref().is_some_and(|name| !is_called(&path, name, directory)) {
                continue;
            }
            match detect(&path)? {
                Some(format) => found.push((path, format)),
                None => others.push(path),
            }
        }
        // Repositories of GGUF files often keep the configuration that these were made from.
        if found.iter().any(|(_, format)| *format == Format::Gguf) {
            found.retain(|(_, format)| *format != Format::HuggingFace);
        }
        // So do those of exported graphs; but where weights lie beside it, either may be meant.
        let weights = || others.iter().any(|path| path.extension().is_some_and(|kind| kind == "safetensors"));
        if found.iter().any(|(_, format)| *format == Format::Onnx) && !weights() {
            found.retain(|(_, format)| *format != Format::HuggingFace);
        }
        match (found.len(), &settings.file) {
            (1, _) => {
                let (model_path, format) = found.remove(0);
                let origin = Origin { root: root.into(), directory: directory.into(), file: file.map(str::to_owned) };
                Ok(Artifact { model_path, format, settings, origin })
            }
            (0, None) => Err(LoadError::new(directory, format!("{}{NO_MODEL}", unrecognised(&others)))),
            (0, Some(name)) => {
                let (why, who) =
                    (unrecognised(&others), if file.is_some() { "was asked for" } else { "its settings name" });
                Err(LoadError::new(directory, format!("{why}'{name}', which {who}, is no model file in it")))
            }
            _ => {
                let names: Vec<_> = found.iter().map(|(p, _)| file_name(p)).collect();
                Err(LoadError::new(
                    directory,
                    format!(
                        "More than one model file is detected, Only one is allowed within model_dir: [{}]; name it as \
                         `file` in model.toml, or as default_model_filename in config.pbtxt",
                        names.join(", ")
                    ),
                ))
            }
        }
    }

    /// Does `directory` hold a model file?
    pub fn is_model(directory: &Path) -> bool {
        files(directory).is_ok_and(|files| files.iter().any(|path| Self::is_model_file(path)))
    }

    /// Is this file a model?
    pub fn is_model_file(path: &Path) -> bool {
        matches!(detect(path), Ok(Some(_)))
    }

    /// The model file.
    pub fn model_path(&self) -> &Path {
        &self.model_path
    }

    /// Where it was looked for: there it is found again.
    pub fn origin(&self) -> &Origin {
        &self.origin
    }

    /// What it is.
    pub fn format(&self) -> Format {
        self.format
    }

    /// What `model.toml` or `config.pbtxt` say.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Reads the model file whole.
    ///
    /// # Errors
    /// It is larger than the limit, or cannot be read.
    pub fn read_model(&self, limits: &Limits) -> Result<Vec<u8>, LoadError> {
        let refuse = |reason: String| LoadError::new(&self.model_path, reason);
        let size = fs::metadata(&self.model_path).map_err(|e| refuse(e.to_string()))?.len();
        if size > limits.model_bytes {
            return Err(refuse(format!("{size} bytes; the limit is {}", limits.model_bytes)));
        }
        fs::read(&self.model_path).map_err(|e| refuse(e.to_string()))
    }
}

/// What is said of a directory without a model file.
const NO_MODEL: &str = "no model file: expected one XGBoost (.json, .ubj, .bst, .model), LightGBM (.txt, .bst) or ONNX \
                        (.onnx) file, or a language model (config.json with its weights, or .gguf)";

/// Files that lie beside a model and are none.
const COMPANIONS: [&str; 3] = [settings::FILES[0], settings::FILES[1], "expected.json"];

/// Files that lie beside the `config.json` of a language model, and are its parts.
const PARTS: [&str; 7] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "generation_config.json",
    "model.safetensors.index.json",
    "added_tokens.json",
    "vocab.json",
];

/// Parts that are named; of shards there may be hundreds.
const SHOWN_PARTS: usize = 3;

/// What each of these files, which may have been meant for the model, lacks to be one; sentences to go before another.
fn unrecognised(files: &[PathBuf]) -> String {
    let meant = files.iter().filter(|path| !COMPANIONS.contains(&file_name(path).as_str()));
    let (parts, others): (Vec<_>, Vec<_>) = meant.partition(|path| is_part(path));
    let mut text: String =
        others.iter().filter_map(|path| Some(format!("{} is there, but {}; ", file_name(path), lack(path)?))).collect();
    // One that is there, and is none, has been told of.
    let configured = others.iter().any(|path| file_name(path) == "config.json");
    if !configured && !parts.is_empty() {
        let names: Vec<_> = parts.iter().take(SHOWN_PARTS).map(|path| file_name(path)).collect();
        let more = if parts.len() > SHOWN_PARTS { ", ..." } else { "" };
        let are = if parts.len() > 1 { "are" } else { "is" };
        text += &format!(
            "{}{more} {are} there, but no config.json, without which it is no language model; ",
            names.join(", ")
        );
    }
    text
}

/// Is it called as parts of language models are?
fn is_part(path: &Path) -> bool {
    path.extension().is_some_and(|kind| kind == "safetensors") || PARTS.contains(&file_name(path).as_str())
}

/// What a file that was not recognised lacks; `None` where its name does not say that it is a model.
fn lack(path: &Path) -> Option<&'static str> {
    let extension = path.extension()?.to_str()?.to_ascii_lowercase();
    let known = ["json", "ubj", "bst", "model", "deprecated", "txt", "pkl", "pickle", "joblib", "gguf"];
    let known = known.contains(&extension.as_str());
    let head = head(path).ok().filter(|_| known)?;
    Some(match (extension.as_str(), head.first()) {
        (_, None) => "it is empty",
        ("gguf", _) => "it does not begin with the letters GGUF, as GGUF files do",
        ("pkl" | "pickle" | "joblib", _) => "pickles are not read: save it with the library's save_model",
        ("txt", _) if !b"tree\n".starts_with(&head) => {
            "it does not begin with the line 'tree', as LightGBM's text does"
        }
        ("txt", _) => "it breaks off in its first line",
        (_, Some(b'{')) if file_name(path) == "config.json" => {
            "near its beginning its outermost object has no key \"architectures\", by which a language model is known"
        }
        (_, Some(b'{')) => {
            "its outermost object has no key \"learner\", as XGBoost's JSON and UBJSON have: it is cut off, or no model"
        }
        ("json" | "ubj", _) => "it does not begin with '{', as XGBoost's JSON and UBJSON do",
        _ => "it begins as no file of XGBoost or LightGBM does: it is cut off, or no model",
    })
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// Is the file called so, or the directory of `directory` that it lies in?
fn is_called(path: &Path, name: &str, directory: &Path) -> bool {
    let folder = path.parent().filter(|folder| *folder != directory);
    file_name(path) == name || folder.is_some_and(|folder| file_name(folder) == name)
}

/// Regular files of `directory`, sorted; hidden ones left out. Of a directory that is a model, its graph.
fn files(directory: &Path) -> Result<Vec<PathBuf>, LoadError> {
    let mut files = Vec::new();
    for path in entries(directory)? {
        let Ok(metadata) = fs::metadata(&path) else { continue };
        if metadata.is_file() {
            check_link(&path)?;
            files.push(path);
        } else if metadata.is_dir() && is_onnx(&path) {
            check_link(&path)?;
            for inner in entries(&path)?.into_iter().filter(|inner| is_onnx(inner) && inner.is_file()) {
                check_link(&inner)?;
                files.push(inner);
            }
        }
    }
    files.sort();
    Ok(files)
}

fn entries(directory: &Path) -> Result<Vec<PathBuf>, LoadError> {
    let refuse = |e: std::io::Error| LoadError::new(directory, e.to_string());
    let mut entries = Vec::new();
    for entry in fs::read_dir(directory).map_err(refuse)? {
        let path = entry.map_err(refuse)?.path();
        if !file_name(&path).starts_with('.') {
            entries.push(path);
        }
    }
    Ok(entries)
}

/// Is it called as ONNX files are?
fn is_onnx(path: &Path) -> bool {
    path.extension().is_some_and(|kind| kind.eq_ignore_ascii_case("onnx"))
}

/// A link is followed only into `..data`, the way Kubernetes mounts files and, where their paths have several parts,
/// directories.
///
/// # Errors
/// It is another link.
pub fn check_link(path: &Path) -> Result<(), LoadError> {
    let Ok(target) = fs::read_link(path) else { return Ok(()) };
    let mounted = target.components().next() == Some(Component::Normal("..data".as_ref()))
        && target.components().all(|c| matches!(c, Component::Normal(_)));
    if mounted {
        Ok(())
    } else {
        Err(LoadError::new(path, "is a symbolic link; copy the file into the model directory"))
    }
}

/// The format of a file, by its first bytes; `None` where it is no model.
fn detect(path: &Path) -> Result<Option<Format>, LoadError> {
    if is_onnx(path) {
        return Ok(Some(Format::Onnx));
    }
    head(path).map(|head| sniff(&head)).map_err(|e| LoadError::new(path, e.to_string()))
}

fn head(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut head = Vec::new();
    fs::File::open(path)?.take(HEAD as u64).read_to_end(&mut head)?;
    Ok(head)
}

/// The format of a file that begins with `head`.
fn sniff(head: &[u8]) -> Option<Format> {
    if head.first() == Some(&b'{') {
        let next = head.iter().skip(1).find(|b| !b.is_ascii_whitespace());
        let xgboost = match next {
            Some(b'"' | b'}') => outermost_key(head, b"learner"),
            // UBJSON: no quotes, and the length right before the name.
            _ => head.windows(8).any(|w| w == b"\x07learner"),
        };
        let language = || next == Some(&b'"') && outermost_key(head, b"architectures");
        return xgboost.then_some(Format::XgboostDocument).or_else(|| language().then_some(Format::HuggingFace));
    }
    if head.starts_with(b"GGUF") {
        return Some(Format::Gguf);
    }
    if crate::tree::is_lightgbm_text(head) {
        return Some(Format::LightgbmText);
    }
    if crate::tree::is_legacy_binary(head) {
        return Some(Format::XgboostBinary);
    }
    crate::onnx::looks_like(head).then_some(Format::Onnx)
}

/// Does the outermost object of a JSON text that begins so have this key? The text may break off.
fn outermost_key(head: &[u8], key: &[u8]) -> bool {
    let (mut depth, mut at) = (0usize, 0);
    while let Some(&byte) = head.get(at) {
        at += 1;
        match byte {
            b'{' | b'[' => depth += 1,
            b'}' | b']' => depth = depth.saturating_sub(1),
            b'"' => {
                let Some(length) = text_length(&head[at..]) else { return false };
                let text = &head[at..at + length];
                at += length + 1;
                let colon = head[at.min(head.len())..].iter().find(|b| !b.is_ascii_whitespace()) == Some(&b':');
                if depth == 1 && colon && text == key {
                    return true;
                }
            }
            _ => {}
        }
    }
    false
}

/// Length of the text up to the quote that ends it.
fn text_length(rest: &[u8]) -> Option<usize> {
    let mut escaped = false;
    rest.iter().position(|&byte| {
        let ends = byte == b'"' && !escaped;
        escaped = byte == b'\\' && !escaped;
        ends
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn xgboost_is_told_by_its_outermost_key() {
        for (head, xgboost) in [
            (&br#"{"learner":{"attributes":{"#[..], true),
            (br#"{ "version" : [3, 0, 0] , "learner" : {"#, true),
            (br#"{"base_learner":{"a":1}}"#, false),
            (br#"{"learners":1}"#, false),
            (br#"{"a":{"learner":{}}}"#, false),
            (br#"{"a":"learner","b":["learner"]}"#, false),
            (br#"{"a\":learner\"":1}"#, false),
            (br#"{"a":"\\","learner":1}"#, true),
            (br#"{"version":[3,0"#, false),
            (br#"{"lear"#, false),
            (br#"{"architectures":["Qwen3ForCausalLM"],"learner":1}"#, true),
            (b"{}", false),
            (b"{L\0\0\0\0\0\0\0\x07learner{", true),
            (b"{L\0\0\0\0\0\0\0\x0cbase_learner{", false),
        ] {
            let shown = String::from_utf8_lossy(head);
            assert_eq!(sniff(head), xgboost.then_some(Format::XgboostDocument), "{shown}");
        }
    }

    #[test]
    fn what_is_no_model_is_named_with_what_it_lacks() {
        let directory = tempfile::tempdir().unwrap();
        let reason = |name: &str, text: &str| {
            let path = directory.path().join(name);
            fs::write(&path, text).unwrap();
            let error = Artifact::open(directory.path(), directory.path()).unwrap_err();
            fs::remove_file(&path).unwrap();
            error.reason
        };
        for (name, text, what) in [
            ("model.json", "", "model.json is there, but it is empty; no model file"),
            ("model.json", "{\"version\":[3,0", "model.json is there, but its outermost object has no key \"learner\""),
            (
                "config.json",
                "{\"model_type\":\"llama\"}",
                "config.json is there, but near its beginning its outermost object has no key \"architectures\"",
            ),
            ("model.json", "[]", "model.json is there, but it does not begin with '{'"),
            ("model.ubj", "x", "model.ubj is there, but it does not begin with '{'"),
            ("model.txt", "treacle", "model.txt is there, but it does not begin with the line 'tree'"),
            ("model.txt", "tree", "model.txt is there, but it breaks off in its first line"),
            ("model.bst", "bs64", "model.bst is there, but it begins as no file"),
            ("model.joblib", "x", "model.joblib is there, but pickles are not read"),
            ("m.gguf", "gguf", "m.gguf is there, but it does not begin with the letters GGUF"),
            ("model.safetensors", "x", "model.safetensors is there, but no config.json"),
            ("tokenizer.json", "{\"version\":\"1.0\"}", "tokenizer.json is there, but no config.json"),
            ("notes.md", "x", "no model file"),
            ("expected.json", "{}", "no model file"),
        ] {
            let reason = reason(name, text);
            assert!(reason.starts_with(what), "{name} {text}: {reason}");
        }
        for shard in 1..=4 {
            fs::write(directory.path().join(format!("model-{shard}.safetensors")), "x").unwrap();
        }
        let shards = reason("config.json", "{}");
        assert!(!shards.contains("safetensors is there") && shards.contains("\"architectures\""), "{shards}");
        let shards = reason("tokenizer.json", "{}");
        assert!(shards.contains("model-3.safetensors, ... are there, but no config.json"), "{shards}");
        for shard in 1..=4 {
            fs::remove_file(directory.path().join(format!("model-{shard}.safetensors"))).unwrap();
        }
        fs::write(directory.path().join("model.toml"), "file = \"a.json\"").unwrap();
        let reason = reason("a.json", "{\"b\":1}");
        assert!(reason.starts_with("a.json is there, but its outermost object"), "{reason}");
        assert!(reason.ends_with("'a.json', which its settings name, is no model file in it"), "{reason}");
    }
}
