//! Which models exist, on local disk. A name is looked up among the directories that are there and never joined to a
//! path, so that no name leads outside the repository.
//!
//! ```text
//! many:    root/<name>/model.json  or  root/<name>/<version>/model.json
//! single:  root/model.json         or  root/<version>/model.json           under the name that was given
//!          root, where that is a file                                      whatever lies beside it
//! ```

#[cfg(test)]
mod tests;
pub mod watch;
#[cfg(test)]
mod watch_tests;

use backends::artifact::check_link;
use backends::settings::{self, VersionPolicy};
use backends::{Artifact, LoadError};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Versions that a directory name can spell.
pub type Version = u64;

/// Directories of models, or one of one model.
#[derive(Clone, Debug)]
pub struct Repository {
    /// Never empty.
    roots: Vec<PathBuf>,
    single: Option<String>,
    /// Was the directory that was named taken for one model's? Clones have this in common.
    taken: Arc<AtomicBool>,
}

/// One directory, or several.
pub trait Roots {
    /// As a list.
    fn list(self) -> Vec<PathBuf>;
}

impl Roots for &[PathBuf] {
    fn list(self) -> Vec<PathBuf> {
        self.to_vec()
    }
}

impl Roots for &Path {
    fn list(self) -> Vec<PathBuf> {
        vec![self.to_path_buf()]
    }
}

/// A model on disk: its directory and those of its versions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Where its settings are.
    pub root: PathBuf,
    /// Its versions; the root itself is version 1 where there are no version directories.
    pub versions: BTreeMap<Version, PathBuf>,
    /// The model file, where whoever serves it named that and not its directory.
    pub file: Option<String>,
    /// Why it cannot be served, whatever its files say.
    pub refused: Option<String>,
    /// What lies in its directory and is passed over, though somebody may have meant it.
    pub notes: Vec<String>,
}

/// Which of a model's versions its settings ask for.
#[derive(Debug)]
pub struct Plan {
    /// Those that are there.
    pub wanted: BTreeMap<Version, PathBuf>,
    /// Those that are not.
    pub absent: Vec<(Version, LoadError)>,
}

impl Found {
    /// What its settings ask for.
    ///
    /// # Errors
    /// They cannot be read, or the model cannot be served at all.
    pub fn plan(&self) -> Result<Plan, LoadError> {
        if let Some(reason) = &self.refused {
            return Err(LoadError::new(&self.root, reason));
        }
        let policy = settings::read(&self.root)?.versions;
        let absent = |version| {
            let reason = format!("version {version}, which its settings ask for, is not there");
            (version, LoadError::new(&self.root, reason))
        };
        Ok(Plan { wanted: self.wanted(&policy), absent: self.missing(&policy).into_iter().map(absent).collect() })
    }

    /// The files of a version, as those of the model `name`.
    ///
    /// # Errors
    /// There is no model, or its settings give it another name.
    pub fn open(&self, name: &str, directory: &Path) -> Result<Artifact, LoadError> {
        let artifact = Artifact::open_file(&self.root, directory, self.file.as_deref())?;
        match artifact.settings().name.as_deref() {
            Some(stated) if stated != name => Err(LoadError::new(
                &self.root,
                format!("its settings call it '{stated}', but it is served as '{name}'"),
            )),
            _ => Ok(artifact),
        }
    }

    /// Versions that `policy` names and that are not there.
    fn missing(&self, policy: &VersionPolicy) -> Vec<Version> {
        match policy {
            VersionPolicy::Specific(named) => {
                named.iter().filter(|v| !self.versions.contains_key(v)).copied().collect()
            }
            VersionPolicy::All | VersionPolicy::Latest(_) => Vec::new(),
        }
    }

    /// The versions that `policy` asks for, of those that are there.
    fn wanted(&self, policy: &VersionPolicy) -> BTreeMap<Version, PathBuf> {
        let all = self.versions.iter().map(|(version, path)| (*version, path.clone()));
        match policy {
            VersionPolicy::All => all.collect(),
            VersionPolicy::Latest(count) => all.rev().take(*count as usize).collect(),
            VersionPolicy::Specific(versions) => all.filter(|(version, _)| versions.contains(version)).collect(),
        }
    }
}

/// Does a directory hold models in directories of their own, beside any that are called as versions are, rightly or not?
fn holds_models(root: &Path) -> bool {
    let Ok(Listed { directories, .. }) = list(root) else { return false };
    let is_number = |name: &str| name.bytes().all(|byte| byte.is_ascii_digit());
    directories.iter().any(|(name, path)| !is_number(name) && Artifact::is_model(path))
}

/// What lies in a repository.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Survey {
    /// Its models.
    pub models: BTreeMap<String, Found>,
    /// What is passed over, though somebody may have meant it for a model; and what a directory lacks that was named as
    /// that of one.
    pub notes: Vec<String>,
}

impl Repository {
    /// One directory for each model, in one or several directories.
    pub fn many(roots: impl Roots) -> Self {
        Repository { roots: roots.list(), single: None, taken: Arc::default() }
    }

    /// `root` is the model called `name` if there is a model file in it, or if it is one; else it is a repository, or empty
    /// (KServe's rule).
    pub fn single_or_many(root: impl Into<PathBuf>, name: impl Into<String>) -> Self {
        Repository { roots: vec![root.into()], single: Some(name.into()), taken: Arc::default() }
    }

    /// Remembers what was loaded. Where it is the directory that was named itself, that stays one model's until others lie
    /// in it: one whose file is missing for a moment is that model, broken, and no repository of its versions.
    pub fn take(&self, found: &Found) {
        if self.single.is_some() && self.roots.first() == Some(&found.root) {
            self.taken.store(true, Ordering::Relaxed);
        }
    }

    /// The name of the one model, where it is one.
    pub fn single(&self) -> Option<&str> {
        self.single.as_deref()
    }

    /// Its directory, or the file that was named; of several, the first that is not there, or the first.
    pub fn root(&self) -> &Path {
        let absent = self.roots.iter().find(|root| !self.is_there(root));
        absent.or(self.roots.first()).map_or(Path::new(""), PathBuf::as_path)
    }

    /// A path in it without what leads to it, which is nobody's business.
    pub fn within<'a>(&self, path: &'a Path) -> &'a Path {
        let below = |root: &PathBuf| path.strip_prefix(if root.is_file() { folder(root) } else { root.as_path() }).ok();
        self.roots.iter().find_map(below).unwrap_or(path)
    }

    /// Is there anything at all yet?
    pub fn exists(&self) -> bool {
        self.roots.iter().all(|root| self.is_there(root))
    }

    fn is_there(&self, root: &Path) -> bool {
        root.is_dir() || self.single.is_some() && root.is_file()
    }

    /// Is there a model in it?
    pub fn has_model(&self) -> bool {
        self.exists() && self.list().is_ok_and(|models| models.values().any(is_model))
    }

    /// Every model that is there.
    ///
    /// # Errors
    /// The repository's own directory cannot be read.
    pub fn list(&self) -> Result<BTreeMap<String, Found>, LoadError> {
        self.survey().map(|survey| survey.models)
    }

    /// Every model that is there, and what is passed over.
    ///
    /// # Errors
    /// The repository's own directory cannot be read.
    pub fn survey(&self) -> Result<Survey, LoadError> {
        if let (Some(name), Some(root)) = (&self.single, self.roots.first()) {
            let found = named_file(root).map_or_else(|| look_at(root), Ok)?;
            // A file that was named is the model, even if it turns out to be none; so is a directory that was taken for one, or
            // whose versions are none, unless others lie there.
            let meant = self.taken.load(Ordering::Relaxed) || found.refused.is_some();
            if found.file.is_some() || is_model(&found) || meant && !holds_models(root) {
                return Ok(Survey { models: [(name.clone(), found)].into(), notes: Vec::new() });
            }
        }
        let mut survey = Survey::default();
        for root in &self.roots {
            let Listed { directories, notes } = list(root)?;
            survey.notes.extend(notes.iter().map(ToString::to_string));
            directories.into_iter().for_each(|(name, path)| survey.look(name, path));
        }
        survey.notes.extend(self.lack(&survey));
        survey.notes.extend(self.models_themselves(&survey));
        Ok(survey)
    }

    /// Why the directory that was named as one model's is none, where it holds no other models either.
    fn lack(&self, survey: &Survey) -> Option<String> {
        let root = self.roots.first().filter(|_| self.single.is_some() && !survey.models.values().any(is_model))?;
        Artifact::open(root, root).err().map(|why| why.to_string())
    }

    /// Repositories that hold no model and are one, by which the wrong flag was used.
    fn models_themselves(&self, survey: &Survey) -> Vec<String> {
        let within = |found: &Found, root: &Path| found.root.parent() == Some(root) && is_model(found);
        let is_one = |root: &&PathBuf| {
            self.single.is_none()
                && Artifact::is_model(root)
                && !survey.models.values().any(|found| within(found, root.as_path()))
        };
        let said = |root: &PathBuf| {
            let root = root.display();
            format!("{root}: holds a model file itself, which is passed over: serve it alone with --model-dir {root}")
        };
        self.roots.iter().filter(is_one).map(said).collect()
    }

    /// One model.
    ///
    /// # Errors
    /// The repository's own directory cannot be read.
    pub fn find(&self, name: &str) -> Result<Option<Found>, LoadError> {
        Ok(self.list()?.remove(name))
    }

    /// Why what lies there under this name is not taken for a model.
    pub fn passed_over(&self, name: &str) -> Option<LoadError> {
        let named = |note: &LoadError| note.file.file_name().is_some_and(|last| last == name);
        self.roots.iter().filter_map(|root| list(root).ok()).flat_map(|listed| listed.notes).find(named)
    }
}

impl Survey {
    /// Adds the model in a directory. One that cannot be read is a model that cannot be served; it stops no others.
    fn look(&mut self, name: String, path: PathBuf) {
        if name == LOST_AND_FOUND {
            self.notes.push(format!("{}: is the file system's own, and no model", path.display()));
            return;
        }
        let found = look_at(&path).unwrap_or_else(|error| {
            let refused = Some(format!("its directory cannot be read: {}", error.reason));
            Found { root: path, refused, ..Found::default() }
        });
        self.add(name, found);
    }

    /// A name that several repositories have is nobody's, as in Triton: which of them was meant cannot be told.
    fn add(&mut self, name: String, found: Found) {
        let Some(before) = self.models.get_mut(&name) else {
            self.models.insert(name, found);
            return;
        };
        let (one, other) = (before.root.display(), found.root.display());
        let reason = format!("not unique across all model repositories: {one} and {other}");
        before.refused = Some(reason);
    }
}

/// What ext4 keeps at the root of a volume, for its owner alone to read.
const LOST_AND_FOUND: &str = "lost+found";

/// Does it hold a model file where one is expected?
fn is_model(found: &Found) -> bool {
    match &found.file {
        Some(file) => Artifact::is_model_file(&found.root.join(file)),
        None => found.versions.values().any(|directory| Artifact::is_model(directory)),
    }
}

/// The directory that a file lies in.
fn folder(file: &Path) -> &Path {
    file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// The model whose file `path` is, if it is a file.
fn named_file(path: &Path) -> Option<Found> {
    let file = path.is_file().then(|| path.file_name())??;
    let root = folder(path).to_path_buf();
    let (versions, file) = ([(1, root.clone())].into(), Some(file.to_string_lossy().into_owned()));
    Some(Found { root, versions, file, refused: None, notes: Vec::new() })
}

fn look_at(root: &Path) -> Result<Found, LoadError> {
    let Listed { directories, notes } = list(root)?;
    let mut notes: Vec<String> = notes.iter().map(ToString::to_string).collect();
    let (mut versions, mut misnamed) = (BTreeMap::new(), Vec::new());
    for (name, path) in directories {
        match parse_version(&name) {
            Some(version) => drop(versions.insert(version, path)),
            None if name.bytes().all(|byte| byte.is_ascii_digit()) => misnamed.push(no_version(&name)),
            None => {}
        }
    }
    let beside = !(versions.is_empty() && misnamed.is_empty()) && Artifact::is_model(root);
    // Where there is nothing else, this is why there is no model.
    let refused = if versions.is_empty() && !beside && !misnamed.is_empty() { Some(misnamed.remove(0)) } else { None };
    notes.extend(misnamed.iter().map(|what| format!("{}: {what}", root.display())));
    if beside && !versions.is_empty() {
        let shown = versions.keys().map(Version::to_string).collect::<Vec<_>>().join(", ");
        notes.push(format!(
            "{}: a model file lies beside the version directories {shown}: it is served as version 1, they are not",
            root.display()
        ));
    }
    if root.join(MLSERVER_SETTINGS).is_file() {
        notes.push(format!("{}: {MLSERVER_SETTINGS} is not read: what it says goes into model.toml", root.display()));
    }
    if beside || versions.is_empty() {
        versions = [(1, root.to_path_buf())].into();
    }
    Ok(Found { root: root.to_path_buf(), versions, file: None, refused, notes })
}

/// What MLServer reads of a model.
const MLSERVER_SETTINGS: &str = "model-settings.json";

/// What is said of a directory that is called by a number.
fn no_version(name: &str) -> String {
    format!("'{name}' is no version: versions are 1, 2, ... up to {}, without leading zeros", Version::MAX)
}

/// A positive whole number without leading zeros.
pub fn parse_version(text: &str) -> Option<Version> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) && !text.starts_with('0');
    digits.then(|| text.parse().ok()).flatten()
}

/// Directories by name, and a note for each link that is not followed.
#[derive(Default)]
struct Listed {
    directories: Vec<(String, PathBuf)>,
    notes: Vec<LoadError>,
}

/// Directories of `root`; hidden ones (Kubernetes' `..data` among them) left out. Links are followed into `..data`, the
/// way Kubernetes lays out volumes, and nowhere else.
fn list(root: &Path) -> Result<Listed, LoadError> {
    let refuse = |e: std::io::Error| LoadError::new(root, e.to_string());
    let mut listed = Listed::default();
    for entry in fs::read_dir(root).map_err(refuse)? {
        let entry = entry.map_err(refuse)?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let (path, kind) = (entry.path(), entry.file_type().map_err(refuse)?);
        if name.starts_with('.') {
            continue;
        }
        // A link to nothing may have been meant for a directory, too.
        let leads_to_file = || fs::metadata(&path).is_ok_and(|metadata| metadata.is_file());
        if kind.is_symlink() && check_link(&path).is_err() && !leads_to_file() {
            listed.notes.push(LoadError::new(path, "is a symbolic link, which is not followed; copy the directory"));
        } else if kind.is_dir() || kind.is_symlink() && path.is_dir() {
            listed.directories.push((name, path));
        }
    }
    listed.directories.sort();
    listed.notes.sort_by(|a, b| a.file.cmp(&b.file));
    Ok(listed)
}
