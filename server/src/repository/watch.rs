//! `--model-control-mode poll`: what lies in the repository is what is served. A model is loaded when its files have
//! changed and then stayed the same from one look to the next, so that a copy in progress is not read. The same for the
//! start where models arrive later than the server.

use super::{Found, Repository};
use crate::registry::Registry;
use crate::stamp::Stamps;
use crate::threads::heavy;
use backends::LoadError;
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// Whether the models that a server starts with have arrived.
#[derive(Debug, Default)]
pub struct Arrival {
    seen: Sight,
    taken: Sight,
}

impl Arrival {
    /// Is there a model, and is everything as it was at the last look? A directory that is filled after it was made is
    /// taken once nothing is added any more; after that, what lies there is news only when it has changed again.
    pub fn is_complete(&mut self, repository: &Repository) -> bool {
        if !repository.has_model() {
            self.seen.clear();
            return false;
        }
        let now = repository.list().map(stamps).unwrap_or_default();
        let complete = now == self.seen && now != self.taken;
        if complete {
            self.taken.clone_from(&now);
        }
        self.seen = now;
        complete
    }
}

/// What lay in a repository: every file of each model.
pub(crate) type Sight = BTreeMap<String, Stamps>;

/// Looks every `interval`; never ends. `served` is what lay there just before the models that are served were looked for: what
/// came since is news, though other models were loaded meanwhile.
pub(crate) async fn poll(registry: Arc<Registry>, mut served: Sight, interval: Duration) {
    let (mut seen, mut told) = (served.clone(), false);
    loop {
        tokio::time::sleep(interval).await;
        // Nothing changes where it cannot be read, which is said once.
        let now = match sight(&registry) {
            Ok(now) => now,
            Err(error) => {
                if !std::mem::replace(&mut told, true) {
                    tracing::warn!(%error, "the model repository cannot be read; it is looked at again and again");
                }
                continue;
            }
        };
        if std::mem::take(&mut told) {
            tracing::info!("the model repository can be read again");
        }
        for (name, stamps) in &now {
            let settled = seen.get(name) == Some(stamps);
            if settled && served.get(name) != Some(stamps) {
                // How it went is the model's state; it is not tried again until the files change.
                let _ = registry.load(name).await;
                served.insert(name.clone(), stamps.clone());
            }
        }
        for name in served.keys().filter(|name| !now.contains_key(*name)).cloned().collect::<Vec<_>>() {
            registry.unload_gone(&name).await;
            served.remove(&name);
        }
        seen = now;
    }
}

/// What lies in the repository.
///
/// # Errors
/// It cannot be read.
pub(crate) fn sight(registry: &Registry) -> Result<Sight, LoadError> {
    // A network file system may take its time.
    heavy(usize::MAX, || registry.repository().list().map(stamps))
}

fn stamps(models: BTreeMap<String, Found>) -> Sight {
    models.into_iter().map(|(name, found)| (name, Stamps::of(files(&found)).by_path())).collect()
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
