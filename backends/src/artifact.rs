//! A model directory, and what its files say it is.
//!
//! ```text
//! iris/                 the model's root: model.toml, config.pbtxt, expected.json
//! iris/1/model.json     a version: the weights; or the weights lie in the root, which is then version 1
//! ```
//!
//! Formats are told by bytes, never by the extension alone. Nothing outside the directory is read: symbolic links are
//! refused but for those that Kubernetes makes for mounted volumes (through `..data`).

use crate::error::LoadError;
use crate::settings::{self, Settings};
use crate::tensor::Limits;
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
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Format::XgboostDocument => "XGBoost (JSON or UBJSON)",
            Format::XgboostBinary => "XGBoost (binary)",
            Format::LightgbmText => "LightGBM (text)",
        })
    }
}

/// A model directory whose format is known.
#[derive(Clone, Debug)]
pub struct Artifact {
    model_path: PathBuf,
    format: Format,
    settings: Settings,
}

/// Bytes that are looked at to tell a format.
const HEAD: usize = 64 << 10;

impl Artifact {
    /// Looks for the one model file of `directory`. `root` holds the settings; it is `directory` or its parent.
    ///
    /// # Errors
    /// No model file, more than one, or settings that cannot be read.
    pub fn open(root: &Path, directory: &Path) -> Result<Self, LoadError> {
        let settings = settings::read(root)?;
        let mut found = Vec::new();
        for path in files(directory)? {
            let wanted = settings.file.as_ref().is_none_or(|name| *name == file_name(&path));
            if wanted && let Some(format) = detect(&path)? {
                found.push((path, format));
            }
        }
        match (found.len(), &settings.file) {
            (1, _) => {
                let (model_path, format) = found.remove(0);
                Ok(Artifact { model_path, format, settings })
            }
            (0, Some(name)) => {
                Err(LoadError::new(directory, format!("'{name}', which its settings name, is no model file in it")))
            }
            (0, None) => Err(LoadError::new(directory, NO_MODEL)),
            _ => {
                let names: Vec<_> = found.iter().map(|(p, _)| file_name(p)).collect();
                Err(LoadError::new(
                    directory,
                    format!(
                        "More than one model file is detected, Only one is allowed within model_dir: [{}]",
                        names.join(", ")
                    ),
                ))
            }
        }
    }

    /// Does `directory` hold a model file?
    pub fn is_model(directory: &Path) -> bool {
        files(directory).is_ok_and(|files| files.iter().any(|path| matches!(detect(path), Ok(Some(_)))))
    }

    /// The model file.
    pub fn model_path(&self) -> &Path {
        &self.model_path
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
const NO_MODEL: &str = "no model file: expected one XGBoost (.json, .ubj, .bst, .model) or LightGBM (.txt, .bst) file";

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// Regular files of `directory`, sorted; hidden ones left out.
fn files(directory: &Path) -> Result<Vec<PathBuf>, LoadError> {
    let refuse = |e: std::io::Error| LoadError::new(directory, e.to_string());
    let mut files = Vec::new();
    for entry in fs::read_dir(directory).map_err(refuse)? {
        let path = entry.map_err(refuse)?.path();
        if !file_name(&path).starts_with('.') && fs::metadata(&path).is_ok_and(|m| m.is_file()) {
            check_link(&path)?;
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// A link is followed only into `..data`, the way Kubernetes mounts files.
///
/// # Errors
/// It is another link.
pub(crate) fn check_link(path: &Path) -> Result<(), LoadError> {
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
    let mut head = Vec::new();
    let file = fs::File::open(path).map_err(|e| LoadError::new(path, e.to_string()))?;
    file.take(HEAD as u64).read_to_end(&mut head).map_err(|e| LoadError::new(path, e.to_string()))?;
    Ok(sniff(&head))
}

/// The format of a file that begins with `head`.
fn sniff(head: &[u8]) -> Option<Format> {
    if head.first() == Some(&b'{') {
        let xgboost = head.windows(7).any(|w| w == b"learner");
        return xgboost.then_some(Format::XgboostDocument);
    }
    if crate::tree::is_lightgbm_text(head) {
        return Some(Format::LightgbmText);
    }
    crate::tree::is_legacy_binary(head).then_some(Format::XgboostBinary)
}
