//! Which models exist, on local disk. A name is looked up among the directories that are there and never joined to a
//! path, so that no name leads outside the repository.
//!
//! ```text
//! many:    root/<name>/model.json  or  root/<name>/<version>/model.json
//! single:  root/model.json         or  root/<version>/model.json           under the name that was given
//! ```

pub mod watch;

use backends::settings::VersionPolicy;
use backends::{Artifact, LoadError};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Versions that a directory name can spell.
pub type Version = u64;

/// A directory of models, or of one model.
#[derive(Clone, Debug)]
pub struct Repository {
    root: PathBuf,
    single: Option<String>,
}

/// A model on disk: its directory and those of its versions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Where its settings are.
    pub root: PathBuf,
    /// Its versions; the root itself is version 1 where there are no version directories.
    pub versions: BTreeMap<Version, PathBuf>,
}

impl Found {
    /// Versions that `policy` names and that are not there.
    pub fn missing(&self, policy: &VersionPolicy) -> Vec<Version> {
        match policy {
            VersionPolicy::Specific(named) => {
                named.iter().filter(|v| !self.versions.contains_key(v)).copied().collect()
            }
            VersionPolicy::All | VersionPolicy::Latest(_) => Vec::new(),
        }
    }

    /// The versions that `policy` asks for, of those that are there.
    pub fn wanted(&self, policy: &VersionPolicy) -> BTreeMap<Version, PathBuf> {
        let all = self.versions.iter().map(|(version, path)| (*version, path.clone()));
        match policy {
            VersionPolicy::All => all.collect(),
            VersionPolicy::Latest(count) => all.rev().take(*count as usize).collect(),
            VersionPolicy::Specific(versions) => all.filter(|(version, _)| versions.contains(version)).collect(),
        }
    }
}

impl Repository {
    /// One directory for each model.
    pub fn many(root: impl Into<PathBuf>) -> Self {
        Repository { root: root.into(), single: None }
    }

    /// `root` is the model called `name` if there is a model file in it; else it is a repository, or empty (KServe's
    /// rule).
    pub fn single_or_many(root: impl Into<PathBuf>, name: impl Into<String>) -> Self {
        Repository { root: root.into(), single: Some(name.into()) }
    }

    /// Its directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Is there anything at all yet?
    pub fn exists(&self) -> bool {
        self.root.is_dir()
    }

    /// Every model that is there.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn list(&self) -> Result<BTreeMap<String, Found>, LoadError> {
        if let Some(name) = &self.single {
            let found = look_at(&self.root)?;
            if is_model(&found) {
                return Ok([(name.clone(), found)].into());
            }
        }
        let mut models = BTreeMap::new();
        for (name, path) in directories(&self.root)? {
            models.insert(name, look_at(&path)?);
        }
        Ok(models)
    }

    /// One model.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn find(&self, name: &str) -> Result<Option<Found>, LoadError> {
        Ok(self.list()?.remove(name))
    }
}

/// Does it hold a model file where one is expected?
fn is_model(found: &Found) -> bool {
    found.versions.values().any(|directory| Artifact::is_model(directory))
}

fn look_at(root: &Path) -> Result<Found, LoadError> {
    let mut versions = BTreeMap::new();
    for (name, path) in directories(root)? {
        if let Some(version) = parse_version(&name) {
            versions.insert(version, path);
        }
    }
    if versions.is_empty() || Artifact::is_model(root) {
        versions = [(1, root.to_path_buf())].into();
    }
    Ok(Found { root: root.to_path_buf(), versions })
}

/// A positive whole number without leading zeros.
pub fn parse_version(text: &str) -> Option<Version> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) && !text.starts_with('0');
    digits.then(|| text.parse().ok()).flatten()
}

/// Directories of `root` by name; hidden ones (Kubernetes' `..data` among them) and links left out.
fn directories(root: &Path) -> Result<Vec<(String, PathBuf)>, LoadError> {
    let refuse = |e: std::io::Error| LoadError::new(root, e.to_string());
    let mut found = Vec::new();
    for entry in fs::read_dir(root).map_err(refuse)? {
        let entry = entry.map_err(refuse)?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if !name.starts_with('.') && entry.file_type().map_err(refuse)?.is_dir() {
            found.push((name, entry.path()));
        }
    }
    found.sort();
    Ok(found)
}
