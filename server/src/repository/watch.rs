//! `--model-control-mode poll`: what lies in the repository is what is served. A model is loaded when its files have
//! changed and then stayed the same from one look to the next, so that a copy in progress is not read. The same for the
//! start where models arrive later than the server.

use super::{Found, Repository, Survey, Version};
use crate::registry::Registry;
use crate::stamp::Stamps;
use crate::threads::heavy;
use backends::LoadError;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// Whether the models that a server starts with have arrived.
#[derive(Debug, Default)]
pub struct Arrival {
    seen: Models,
    taken: Models,
}

impl Arrival {
    /// Is there a model, and is everything as it was at the last look? A directory that is filled after it was made is
    /// taken once nothing is added any more; after that, what lies there is news only when it has changed again.
    pub fn is_complete(&mut self, repository: &Repository) -> bool {
        if !repository.has_model() {
            self.seen.clear();
            return false;
        }
        let now = repository.list().map(seen).unwrap_or_default();
        let complete = now == self.seen && now != self.taken;
        if complete {
            self.taken.clone_from(&now);
        }
        self.seen = now;
        complete
    }
}

/// What lay in a repository.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sight {
    models: Models,
    notes: Notes,
}

type Models = BTreeMap<String, Seen>;

/// What was passed over, each with the model in whose directory it lies, if in one.
type Notes = BTreeSet<(Option<String>, String)>;

/// A model as it lay there. Where any of this is another, it is loaded again.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Seen {
    files: Stamps,
    /// One may have no files.
    versions: Vec<Version>,
    /// What it is refused for may come and go elsewhere, as another repository's model of the same name does.
    refused: Option<String>,
}

/// Looks every `interval`; never ends. `lay` is what lay there just before the models that are served were looked for: what
/// came since is news, though other models were loaded meanwhile.
pub(crate) async fn poll(registry: Arc<Registry>, lay: Sight, interval: Duration) {
    let mut watch = Watch::of(lay);
    loop {
        tokio::time::sleep(interval).await;
        watch.look(&registry).await;
    }
}

/// A repository that is looked at again and again.
#[derive(Debug)]
pub(super) struct Watch {
    /// At the last look.
    seen: Sight,
    /// Models as they were when they were loaded.
    served: Models,
    /// What has been told of what is passed over.
    told: Notes,
    /// Could it not be read at the last look?
    unreadable: bool,
}

impl Watch {
    pub(super) fn of(lay: Sight) -> Self {
        Watch { seen: lay.clone(), served: lay.models, told: lay.notes, unreadable: false }
    }

    /// Looks once, and brings about what follows.
    pub(super) async fn look(&mut self, registry: &Arc<Registry>) {
        let Some(now) = self.now(registry) else { return };
        let news = settled(&now.models, &self.seen.models);
        let news = news.filter(|(name, model)| self.served.get(*name) != Some(*model));
        let news: Models = news.map(|(name, model)| (name.clone(), model.clone())).collect();
        self.told = tell(&now.notes, (&self.seen.notes, &self.told), &news);
        for (name, model) in news {
            // How it went is the model's state; it is not tried again until the files change.
            let _ = registry.load(&name).await;
            self.served.insert(name, model);
        }
        // Where one directory takes the place of another, none is there for a moment.
        let gone = |name: &&String| !now.models.contains_key(*name) && !self.seen.models.contains_key(*name);
        for name in self.served.keys().filter(gone).cloned().collect::<Vec<_>>() {
            registry.unload_gone(&name).await;
            self.served.remove(&name);
        }
        self.seen = now;
    }

    /// What lies there now. Nothing changes where it cannot be read, which is said once.
    fn now(&mut self, registry: &Registry) -> Option<Sight> {
        let now = sight(registry);
        let was_unreadable = std::mem::replace(&mut self.unreadable, now.is_err());
        match &now {
            Err(error) if !was_unreadable => {
                tracing::warn!(%error, "the model repository cannot be read; it is looked at again and again");
            }
            Ok(_) if was_unreadable => tracing::info!("the model repository can be read again"),
            _ => {}
        }
        now.ok()
    }
}

/// Models that are as they were at the look before.
fn settled<'a>(now: &'a Models, before: &'a Models) -> impl Iterator<Item = (&'a String, &'a Seen)> {
    now.iter().filter(move |(name, model)| before.get(*name) == Some(*model))
}

/// Tells of what is passed over at this look as at the one before, each once, and says what is told by now. Of a model
/// that is loaded next, loading tells.
fn tell(now: &Notes, (before, told): (&Notes, &Notes), loaded: &Models) -> Notes {
    let settled: Notes = now.intersection(before).cloned().collect();
    for (model, note) in settled.difference(told) {
        if model.as_ref().is_none_or(|name| !loaded.contains_key(name)) {
            tracing::warn!(model = model.as_deref(), "{note}");
        }
    }
    settled
}

/// What lies in the repository.
///
/// # Errors
/// It cannot be read.
pub(crate) fn sight(registry: &Registry) -> Result<Sight, LoadError> {
    // A network file system may take its time.
    heavy(usize::MAX, || registry.repository().survey().map(Sight::of))
}

impl Sight {
    fn of(survey: Survey) -> Self {
        let Survey { models, notes } = survey;
        let mut all: Notes = notes.into_iter().map(|note| (None, note)).collect();
        for (name, found) in &models {
            all.extend(found.notes.iter().map(|note| (Some(name.clone()), note.clone())));
        }
        Sight { models: seen(models), notes: all }
    }
}

fn seen(models: BTreeMap<String, Found>) -> Models {
    let seen = |found: Found| Seen {
        files: Stamps::of(files(&found)).by_path(),
        versions: found.versions.keys().copied().collect(),
        refused: found.refused,
    };
    models.into_iter().map(|(name, found)| (name, seen(found))).collect()
}

/// Directories within a version's that are looked through, the version's own included.
const FOLDERS_DEEP: usize = 8;
/// What is looked at of one model, at most: links may lead to anything.
const ENTRIES_MAX: usize = 10_000;

/// Beside its versions lie its settings; in a version's directory all that is below it, as a graph has its external data in
/// whatever folder it names. A file that was named may lie in a folder of anything: what is beside it, and no more.
fn files(found: &Found) -> Vec<PathBuf> {
    let mut files = Files { left: ENTRIES_MAX, ..Files::default() };
    let depth = if found.file.is_some() { 1 } else { FOLDERS_DEEP };
    files.add(&found.root, 1);
    found.versions.values().for_each(|directory| files.add(directory, depth));
    files.found
}

/// Files that were found.
#[derive(Default)]
struct Files {
    found: Vec<PathBuf>,
    /// Directories that are being looked through, each in the one before it.
    within: Vec<(u64, u64)>,
    /// Entries that may still be looked at.
    left: usize,
}

impl Files {
    /// Adds those of a directory, and of those below it down to `depth`. Through links: a mounted volume changes by swapping
    /// one; but not in a circle.
    fn add(&mut self, directory: &Path, depth: usize) {
        let Ok(metadata) = fs::metadata(directory) else { return };
        let place = (metadata.dev(), metadata.ino());
        if depth == 0 || self.within.contains(&place) {
            return;
        }
        self.within.push(place);
        let entries = fs::read_dir(directory).into_iter().flatten().flatten();
        let mut entries: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
        // Of too many, the same are left out at every look.
        entries.sort();
        entries.truncate(self.left);
        self.left -= entries.len();
        for path in entries {
            if path.is_file() {
                self.found.push(path);
            } else if !is_hidden(&path) {
                self.add(&path, depth - 1);
            }
        }
        self.within.pop();
    }
}

/// Where links of mounted volumes lead (`..data`), and what belongs to tools: what is served has another name besides.
fn is_hidden(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."))
}
