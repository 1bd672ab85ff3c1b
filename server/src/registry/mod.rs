//! What is loaded: name and version to a servable, with the state of each.
//!
//! Readers take a snapshot and never wait. Loading happens on a blocking thread; the new version is swapped in when it
//! is ready, and the old one lives until its last request is done. A load that fails leaves what served before.

mod loading;

use crate::batcher;
use crate::entry::{AWAITED, Entry, Snapshot, Versions, ready, unavailable};
use crate::error::Error;
use crate::index;
use crate::living::{Core, Living};
use crate::probe::Probe;
use crate::repository::{Repository, Version};
use crate::worker::Workers;
use arc_swap::ArcSwap;
use backends::LoadOptions;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

pub use crate::entry::State;
pub use crate::index::IndexEntry;
pub use crate::servable::Servable;

/// What is loaded.
#[derive(Debug)]
pub struct Registry {
    repository: Repository,
    /// Names that the one model of the repository answers to besides its own.
    aliases: Vec<String>,
    load_options: LoadOptions,
    /// How models are tried before they are loaded.
    probe: Option<Probe>,
    /// What those have that are computed in a process of their own; without it there are none.
    workers: Option<Workers>,
    batching: batcher::Options,
    models: ArcSwap<Snapshot>,
    /// Held while the snapshot is replaced.
    writing: Mutex<()>,
    /// Held while a model is loaded or unloaded: management requests take turns. What does so holds it to its end, whether
    /// or not who asked for it is there yet.
    managing: Arc<tokio::sync::Mutex<()>>,
    /// What computes, whether or not it serves any more.
    living: Living,
    /// Is it known which models there are? Before that, none is known not to be.
    surveyed: AtomicBool,
}

impl Registry {
    /// Nothing is loaded yet.
    pub fn new(repository: Repository, load_options: LoadOptions, batching: batcher::Options) -> Self {
        Registry {
            repository,
            aliases: Vec::new(),
            load_options,
            probe: None,
            workers: None,
            batching,
            models: ArcSwap::default(),
            writing: Mutex::new(()),
            managing: Arc::default(),
            living: Living::default(),
            surveyed: AtomicBool::new(false),
        }
    }

    /// The same, where the one model of the repository answers to these names, too. It is kept, and told of, under its
    /// own.
    #[must_use]
    pub fn with_aliases(self, aliases: Vec<String>) -> Self {
        Registry { aliases, ..self }
    }

    /// The same, where models are tried before they are loaded.
    #[must_use]
    pub fn with_probe(self, probe: Option<Probe>) -> Self {
        Registry { probe, ..self }
    }

    /// The same, where models may be computed in processes of their own.
    #[must_use]
    pub fn with_workers(self, workers: Workers) -> Self {
        Registry { workers: Some(workers), ..self }
    }

    /// Where models come from.
    pub fn repository(&self) -> &Repository {
        &self.repository
    }

    /// Names that the model of this name answers to besides it.
    pub fn aliases(&self, name: &str) -> &[String] {
        if self.repository.single() == Some(name) { &self.aliases } else { &[] }
    }

    /// Bounds of requests.
    pub fn limits(&self) -> &backends::Limits {
        &self.load_options.limits
    }

    /// The servable of a name, and of a version where one is asked for; the latest ready one where not.
    ///
    /// # Errors
    /// Unknown model or version, or one that is not ready.
    pub fn get(&self, name: &str, version: Option<&str>) -> Result<Arc<Servable>, Error> {
        let models = self.models.load();
        let versions = self.versions(&models, name).ok_or_else(|| self.absent(name))?;
        let Some(version) = version.filter(|v| !v.is_empty()) else {
            // An older version is another model: it does not answer in the place of one that cannot for a while.
            let latest = versions.values().rev().find_map(Entry::servable);
            return latest.ok_or_else(|| unavailable(name, versions.values())).and_then(ready);
        };
        let number = crate::repository::parse_version(version)
            .ok_or_else(|| Error::Invalid(format!("version '{version}' is not a positive whole number")))?;
        let entry = versions.get(&number).ok_or_else(|| Error::UnknownVersion(name.into(), version.into()))?;
        entry.servable().ok_or_else(|| unavailable(name, [entry])).and_then(ready)
    }

    /// What is said of a model of which nothing is known.
    fn absent(&self, name: &str) -> Error {
        let surveyed = self.surveyed.load(Ordering::Acquire);
        if surveyed { Error::UnknownModel(name.into()) } else { Error::NotReady(name.into()) }
    }

    /// Versions of a model that are ready.
    pub fn ready_versions(&self, name: &str) -> Vec<Version> {
        let models = self.models.load();
        let answers = |entry: &Entry| entry.servable().is_some_and(|servable| servable.is_ready());
        let ready = |(version, entry): (&Version, &Entry)| answers(entry).then_some(*version);
        self.versions(&models, name).map(|versions| versions.iter().filter_map(ready).collect()).unwrap_or_default()
    }

    /// The versions of a model by its name, or by another one that it answers to.
    fn versions<'a>(&self, models: &'a Snapshot, name: &str) -> Option<&'a Versions> {
        let aliased = || self.repository.single().filter(|_| self.aliases.iter().any(|alias| alias == name));
        models.get(name).or_else(|| models.get(aliased()?))
    }

    /// Names of all models, whatever their state; those that were unloaded are not among them.
    pub fn names(&self) -> Vec<String> {
        let models = self.models.load();
        let present = models.iter().filter(|(_, versions)| !index::is_unloaded(versions));
        present.map(|(name, _)| name.clone()).collect()
    }

    /// Every servable that is ready.
    pub fn servables(&self) -> Vec<Arc<Servable>> {
        let models = self.models.load();
        models.values().flat_map(BTreeMap::values).filter_map(Entry::servable).collect()
    }

    /// All that computes for models, those included that were replaced or unloaded and have answers to give.
    pub(crate) fn cores(&self) -> Vec<Core> {
        self.living.cores()
    }

    /// Brings metrics up to date that are only looked at when somebody asks.
    pub fn refresh_metrics(&self) {
        self.living.tell_queued();
        for servable in self.servables() {
            servable.metrics.loaded(servable.bytes);
        }
    }

    /// Can the server take requests? A model that failed stops nobody from using the others: it makes the server
    /// unready only when it is the one that was asked for, or when no model is left that serves.
    pub fn ready(&self) -> bool {
        let models = self.models.load();
        let (mut ready, mut failed) = (0, 0);
        for entry in models.values().flat_map(BTreeMap::values) {
            match entry.state {
                State::Ready(ref servable) if servable.is_ready() => ready += 1,
                State::Ready(_) => failed += 1,
                State::Unavailable(_) if entry.is_unloaded() => {}
                State::Unavailable(_) => failed += 1,
                State::Loading => {}
            }
        }
        failed == 0 || ready > 0
    }

    /// Everything that is loaded or lies in the repository.
    ///
    /// # Errors
    /// The repository cannot be read.
    pub fn index(&self) -> Result<Vec<IndexEntry>, Error> {
        let found = self.repository.exists().then(|| self.repository.list()).transpose();
        let found = found.map_err(|e| Error::Internal(e.to_string()))?;
        Ok(index::entries(&self.models.load(), found))
    }

    /// Tells of the one model that is served that it is waited for, as long as nothing else is known of it.
    pub fn set_awaited(&self, awaited: bool) {
        let Some(name) = self.repository.single() else { return };
        self.update(|models| {
            let unknown = models.get(name).is_none_or(|versions| versions.values().all(Entry::is_awaited));
            match awaited {
                true if unknown => {
                    let versions = [(1, State::Unavailable(AWAITED.into()).into())];
                    models.insert(name.into(), versions.into());
                }
                false if unknown => drop(models.remove(name)),
                _ => {}
            }
        });
    }

    fn is_awaited(&self, name: &str) -> bool {
        self.models.load().get(name).is_some_and(|versions| versions.values().any(Entry::is_awaited))
    }

    fn state(&self, name: &str, version: Version) -> Option<State> {
        self.models.load().get(name).and_then(|versions| versions.get(&version)).map(|entry| entry.state.clone())
    }

    fn set(&self, name: &str, version: Version, state: State) {
        self.update(|models| {
            models.entry(name.into()).or_default().insert(version, state.into());
        });
    }

    fn update(&self, change: impl FnOnce(&mut Snapshot)) {
        let _writing = self.writing.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let mut models = Snapshot::clone(&self.models.load());
        change(&mut models);
        self.models.store(Arc::new(models));
    }
}
