//! `--model-control-mode poll`: what lies in the repository is what is served. A model is loaded when its files have
//! changed and then stayed the same from one look to the next, so that a copy in progress is not read. The same for the
//! start where models arrive later than the server.

use super::{Found, Repository};
use crate::registry::Registry;
use crate::stamp::Stamps;
use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// Whether the models that a server starts with have arrived.
#[derive(Debug, Default)]
pub struct Arrival {
    seen: BTreeMap<String, Stamps>,
    taken: BTreeMap<String, Stamps>,
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

/// Looks every `interval`; never ends.
pub async fn poll(registry: Arc<Registry>, interval: Duration) {
    let mut served = look(&registry).unwrap_or_default();
    let mut seen = served.clone();
    loop {
        tokio::time::sleep(interval).await;
        let Some(now) = look(&registry) else { continue };
        for (name, stamps) in &now {
            let settled = seen.get(name) == Some(stamps);
            if settled && served.get(name) != Some(stamps) {
                // How it went is the model's state; it is not tried again until the files change.
                let _ = registry.load(name).await;
                served.insert(name.clone(), stamps.clone());
            }
        }
        for name in served.keys().filter(|name| !now.contains_key(*name)).cloned().collect::<Vec<_>>() {
            let _ = registry.unload(&name).await;
            served.remove(&name);
        }
        seen = now;
    }
}

/// What lies in the repository; `None` when it cannot be read, which changes nothing.
fn look(registry: &Registry) -> Option<BTreeMap<String, Stamps>> {
    match registry.repository().list() {
        Ok(models) => Some(stamps(models)),
        Err(error) => {
            tracing::warn!(%error, "the model repository cannot be read");
            None
        }
    }
}

/// Every file of each model.
fn stamps(models: BTreeMap<String, Found>) -> BTreeMap<String, Stamps> {
    models.into_iter().map(|(name, found)| (name, Stamps::by_path(files(&found)))).collect()
}

fn files(found: &Found) -> Vec<PathBuf> {
    let directories = found.versions.values().chain([&found.root]);
    let entries = directories.flat_map(|directory| fs::read_dir(directory).into_iter().flatten().flatten());
    // Through links: a mounted volume changes by swapping one.
    entries.map(|entry| entry.path()).filter(|path| path.is_file()).collect()
}
