//! What is loaded: name and version to a servable, with the state of each.
//!
//! Readers take a snapshot and never wait. Loading happens on a blocking thread; the new version is swapped in when it
//! is ready, and the old one lives until its last request is done. A load that fails leaves what served before.

use crate::batcher;
use crate::entry::{AWAITED, Entry, Snapshot, UNLOADED, Versions, ready, unavailable};
use crate::error::Error;
use crate::index;
use crate::llm::watch::Loading;
use crate::probe::{Probe, Tried};
use crate::process;
use crate::repository::{Found, Repository, Survey, Version};
use crate::threads::blocking;
use crate::worker::Workers;
use arc_swap::ArcSwap;
use backends::llm::progress::Calls;
use backends::onnx::Place;
use backends::{Format, LoadError, LoadOptions, Model, load};
use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;
use tokio::sync::Semaphore;

pub use crate::entry::State;
pub use crate::index::IndexEntry;
pub use crate::servable::Servable;

/// When a model is loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Moment {
    /// Nothing serves yet.
    Start,
    /// Others serve, and are to go on.
    Later,
}

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
    /// Held while a model is loaded or unloaded: management requests take turns.
    managing: tokio::sync::Mutex<()>,
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
            managing: tokio::sync::Mutex::new(()),
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

    /// Loads every model of the repository (or only those named), several at a time. Failures are states, not errors.
    ///
    /// # Errors
    /// The repository cannot be read.
    pub async fn load_all(self: &Arc<Self>, only: Option<&[String]>) -> Result<(), LoadError> {
        let _managing = self.managing.lock().await;
        let mut tasks = tokio::task::JoinSet::new();
        let (registry, wanted) = (self.clone(), only.map(<[String]>::to_vec));
        let surveyed = blocking(move || registry.survey(wanted.as_deref())).await;
        let models = surveyed.unwrap_or_else(|reason| Err(LoadError::new(self.repository.root(), reason)))?;
        // As many at a time as there are threads to compute with: each takes the memory of its file besides the model's.
        let permits = Arc::new(Semaphore::new(self.load_options.pool.current_num_threads()));
        for (name, found) in models {
            let (registry, permit) = (self.clone(), permits.clone().acquire_owned().await);
            tasks.spawn_blocking(move || {
                let _permit = permit;
                registry.load_found(&name, &found, Moment::Start)
            });
        }
        while tasks.join_next().await.is_some() {}
        Ok(())
    }

    /// The models to begin with, of which it tells that they are coming.
    fn survey(&self, only: Option<&[String]>) -> Result<BTreeMap<String, Found>, LoadError> {
        let Survey { mut models, notes } = self.repository.survey()?;
        for note in notes {
            tracing::warn!("{note}");
        }
        if let Some(only) = only {
            for name in only.iter().filter(|name| !models.contains_key(*name)) {
                let reason = "no such model in the repository";
                tracing::error!(model = name, reason, "model cannot be loaded");
                self.set(name, 1, State::Unavailable(reason.into()));
            }
            models.retain(|name, _| only.contains(name));
        }
        self.announce(&models);
        Ok(models)
    }

    /// Tells of models that they are coming, before it is their turn to be loaded.
    fn announce(&self, models: &BTreeMap<String, Found>) {
        let wanted = |name: &str, found: &Found| match found.plan() {
            Ok(plan) => plan.wanted.into_keys().collect::<Vec<_>>(),
            // Why it cannot be loaded is found out once more when it is its turn.
            Err(_) => vec![self.foremost(name, found)],
        };
        let coming: Vec<_> = models.iter().map(|(name, found)| (name, wanted(name, found))).collect();
        self.update(|models| {
            for (name, wanted) in coming {
                let versions = models.entry(name.clone()).or_default();
                versions.retain(|_, entry| !entry.is_awaited());
                for version in wanted {
                    let entry = versions.entry(version).or_insert_with(|| State::Loading.into());
                    if !entry.is_ready() {
                        *entry = State::Loading.into();
                    }
                }
            }
        });
        self.surveyed.store(true, Ordering::Release);
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

    /// Loads (or loads again) one model.
    ///
    /// # Errors
    /// It does not exist, or cannot be loaded; what served before serves on.
    pub async fn load(self: &Arc<Self>, name: &str) -> Result<(), Error> {
        let _managing = self.managing.lock().await;
        let (registry, name) = (self.clone(), name.to_owned());
        let loading = tokio::task::spawn_blocking(move || {
            let found = match registry.repository.find(&name) {
                Ok(Some(found)) => found,
                // What is waited for is neither missing nor broken.
                _ if registry.is_awaited(&name) || !registry.repository.exists() => return Err(Error::NotReady(name)),
                Ok(None) => return Err(Error::NothingToLoad(name)),
                Err(error) => return Err(Error::Internal(error.to_string())),
            };
            let loaded = registry.load_found(&name, &found, Moment::Later);
            loaded.map_err(|e| Error::LoadFailed(format!("failed to load '{name}': {}", registry.relative(&e))))
        });
        loading.await.unwrap_or_else(|e| Err(Error::Internal(e.to_string())))
    }

    /// Takes a model out of service; requests that run finish.
    ///
    /// # Errors
    /// Nobody knows it.
    pub async fn unload(self: &Arc<Self>, name: &str) -> Result<(), Error> {
        self.take_out(name, "asked for over the API").await
    }

    /// The same of one that was seen to lie in the repository no more.
    pub(crate) async fn unload_gone(self: &Arc<Self>, name: &str) {
        // Who is not known need not be unloaded.
        let _ = self.take_out(name, "gone from the repository").await;
    }

    async fn take_out(self: &Arc<Self>, name: &str, reason: &'static str) -> Result<(), Error> {
        let _managing = self.managing.lock().await;
        let (mut known, mut unloaded, served) = (false, Vec::<Version>::new(), self.serves());
        self.update(|models| {
            let Some(versions) = models.get_mut(name) else { return };
            known = true;
            // What is waited for is not there yet: there is nothing of it to unload.
            for (version, entry) in versions.iter_mut().filter(|(_, entry)| !entry.is_awaited()) {
                unloaded.extend(entry.is_ready().then_some(*version));
                *entry = State::Unavailable(UNLOADED.into()).into();
            }
        });
        for version in unloaded {
            tracing::info!(model = name, version, reason, "model unloaded");
        }
        if served && !self.serves() {
            tracing::warn!("no model serves any more");
        }
        let registry = self.clone();
        let forgotten = blocking(move || registry.forget_gone()).await;
        match known {
            true => forgotten.map_err(Error::Internal),
            false => Err(Error::UnknownModel(name.into())),
        }
    }

    /// Models that were unloaded are kept in mind for as long as they can be loaded again, lest there be ever more of them.
    fn forget_gone(&self) {
        if let Ok(found) = self.repository.list() {
            self.update(|models| index::forget_gone(models, &found));
        }
    }

    /// Is there a model that serves?
    fn serves(&self) -> bool {
        self.models.load().values().flat_map(BTreeMap::values).any(Entry::is_ready)
    }

    /// Loads the versions of what was found that the model's settings ask for, and replaces what served before.
    fn load_found(&self, name: &str, found: &Found, moment: Moment) -> Result<(), LoadError> {
        for note in &found.notes {
            tracing::warn!(model = name, "{note}");
        }
        let plan = match found.plan() {
            Ok(plan) => plan,
            Err(error) => return self.failed(name, self.foremost(name, found), error),
        };
        let (versions, mut result) = (plan.wanted, Ok(()));
        for (version, error) in plan.absent {
            result = self.failed(name, version, error);
        }
        for (&version, directory) in &versions {
            if let Err(error) = self.load_one(name, version, (found, directory), moment) {
                result = Err(error);
            }
        }
        if result.is_ok() {
            // Only now: as long as something failed, what served before serves on.
            let mut replaced = Vec::<Version>::new();
            self.update(|models| {
                models.entry(name.into()).or_default().retain(|version, entry| {
                    let stays = versions.contains_key(version);
                    replaced.extend((!stays && entry.is_ready()).then_some(*version));
                    stays
                });
            });
            for version in replaced {
                tracing::info!(model = name, version, reason = "replaced by other versions", "model unloaded");
            }
        }
        result
    }

    /// The version that the failure of a whole model is told of: what serves, or would.
    fn foremost(&self, name: &str, found: &Found) -> Version {
        let ready = self.ready_versions(name).into_iter().max();
        ready.or(found.versions.keys().max().copied()).unwrap_or(1)
    }

    fn load_one(
        &self,
        name: &str,
        version: Version,
        (found, directory): (&Found, &Path),
        moment: Moment,
    ) -> Result<(), LoadError> {
        if !matches!(self.state(name, version), Some(State::Ready(_))) {
            self.set(name, version, State::Loading);
        }
        let start = Instant::now();
        let load = || self.load_version(name, version, (found, directory), moment);
        let loaded = std::panic::catch_unwind(AssertUnwindSafe(load));
        match loaded.unwrap_or_else(|_| Err(LoadError::new(directory, "the loader panicked"))) {
            Ok(servable) => {
                let (ms, bytes) = (start.elapsed().as_millis() as u64, servable.bytes);
                let device = servable.device();
                tracing::info!(model = name, version, ms, bytes, device, "model ready");
                self.set(name, version, State::Ready(Arc::new(servable)));
                Ok(())
            }
            Err(error) => self.failed(name, version, error),
        }
    }

    /// What served before serves on, with the reason beside it; where nothing did, the reason is the state.
    fn failed(&self, name: &str, version: Version, error: LoadError) -> Result<(), LoadError> {
        let reason = self.relative(&error);
        let whole = format!("{reason}{}", error.aside());
        tracing::error!(model = name, version, reason = %whole, "model cannot be loaded");
        process::give_up_if_lost(name, &error);
        self.update(|models| {
            let versions = models.entry(name.into()).or_default();
            match versions.get_mut(&version).filter(|entry| entry.is_ready()) {
                Some(entry) => entry.trouble = reason,
                None => drop(versions.insert(version, State::Unavailable(reason).into())),
            }
        });
        Err(error)
    }

    /// The error without the repository's own path, which is nobody's business.
    fn relative(&self, error: &LoadError) -> String {
        let file = self.repository.within(&error.file);
        if file.as_os_str().is_empty() { error.reason.clone() } else { format!("{}: {}", file.display(), error.reason) }
    }

    fn load_version(
        &self,
        name: &str,
        version: Version,
        (found, directory): (&Found, &Path),
        moment: Moment,
    ) -> Result<Servable, LoadError> {
        let tried = match self.probe.as_ref().filter(|probe| moment == Moment::Later || probe.at_start) {
            Some(probe) => probe.open(found, name, directory)?,
            None => Tried::unneeded(found.open(name, directory)?),
        };
        let artifact = &tried.artifact;
        let settings = artifact.settings().clone();
        for note in settings.notes(artifact.format() == Format::Onnx) {
            tracing::warn!(model = name, version, "config.pbtxt: {note}");
        }
        let options = self.options_for(name);
        let watch = Loading::of(name, artifact.format(), &options.language);
        let watch = watch.map_err(|reason| LoadError::new(artifact.model_path(), reason))?;
        let model = load(artifact, &options)?;
        drop(watch);
        tried.check()?;
        if let Model::Predictor(predictor) = &model {
            for note in predictor.profile().notes {
                tracing::warn!(model = name, version, "{note}");
            }
        }
        Servable::new((name, version), model, settings, &self.batching)
            .map_err(|reason| LoadError::new(artifact.model_path(), reason))
    }

    fn options_for(&self, model: &str) -> LoadOptions {
        let mut options = self.load_options.clone();
        options.language.calls = Calls::default();
        if let Some(workers) = &self.workers {
            options.onnx.place = Place::Elsewhere(Arc::new(workers.of(model)));
        }
        options
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
