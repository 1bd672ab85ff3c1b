//! Models into service and out of it, one after the other, off the threads that answer.

use super::{Registry, Servable, State};
use crate::entry::{Entry, UNLOADED};
use crate::error::Error;
use crate::index;
use crate::llm::watch::Loading;
use crate::probe::Tried;
use crate::process;
use crate::repository::{Found, Survey, Version};
use crate::threads::blocking;
use crate::worker::APART;
use backends::llm::progress::Calls;
use backends::onnx::Place;
use backends::settings::Isolation;
use backends::{Format, LoadError, LoadOptions, Model, load};
use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;
use tokio::sync::Semaphore;

/// When a model is loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Moment {
    /// Nothing serves yet.
    Start,
    /// Others serve, and are to go on.
    Later,
}

impl Registry {
    /// Loads every model of the repository (or only those named), several at a time. Failures are states, not errors.
    ///
    /// # Errors
    /// The repository cannot be read.
    pub async fn load_all(self: &Arc<Self>, only: Option<&[String]>) -> Result<(), LoadError> {
        let managing = Arc::new(self.managing.clone().lock_owned().await);
        let mut tasks = tokio::task::JoinSet::new();
        let (registry, wanted) = (self.clone(), only.map(<[String]>::to_vec));
        let surveyed = blocking(move || registry.survey(wanted.as_deref())).await;
        let models = surveyed.unwrap_or_else(|reason| Err(LoadError::new(self.repository.root(), reason)))?;
        // As many at a time as there are threads to compute with: each takes the memory of its file besides the model's.
        let permits = Arc::new(Semaphore::new(self.load_options.pool.current_num_threads()));
        for (name, found) in models {
            let (registry, permit) = (self.clone(), permits.clone().acquire_owned().await);
            let turn = managing.clone();
            tasks.spawn_blocking(move || {
                let _held = (permit, turn);
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

    /// Loads (or loads again) one model.
    ///
    /// # Errors
    /// It does not exist, or cannot be loaded; what served before serves on.
    pub async fn load(self: &Arc<Self>, name: &str) -> Result<(), Error> {
        let managing = self.managing.clone().lock_owned().await;
        let (registry, name) = (self.clone(), name.to_owned());
        let loading = blocking(move || {
            let _managing = managing;
            let found = match registry.repository.find(&name) {
                Ok(Some(found)) => found,
                // What is waited for is neither missing nor broken.
                _ if registry.is_awaited(&name) => return Err(Error::NotReady(name)),
                _ if !registry.repository.exists() => return Err(registry.without_repository(&name)),
                Ok(None) => return Err(registry.nothing_called(&name)),
                Err(error) => return Err(Error::Internal(error.to_string())),
            };
            let loaded = registry.load_found(&name, &found, Moment::Later);
            loaded.map_err(|e| Error::LoadFailed(format!("failed to load '{name}': {}", registry.relative(&e))))
        });
        loading.await.unwrap_or_else(|panic| Err(Error::Internal(panic)))
    }

    /// What is said of a model where the repository itself is gone. Clients are not told where that lay.
    fn without_repository(&self, name: &str) -> Error {
        // Before anybody has looked, the repository is waited for.
        if !self.surveyed.load(Ordering::Acquire) {
            return Error::NotReady(name.into());
        }
        let (root, one) = (self.repository.root(), self.repository.single().is_some());
        let what = if one { "the model's directory or file" } else { "the model repository" };
        let error = LoadError::new(root, format!("{what} is not there"));
        self.not_found(name, error.with_detail(root.display().to_string()))
    }

    /// What is said of a name that the repository has no model of.
    fn nothing_called(&self, name: &str) -> Error {
        match self.repository.passed_over(name) {
            Some(error) => self.not_found(name, error),
            None => Error::NothingToLoad(name.into()),
        }
    }

    /// What serves on tells why in the index, too. Of other names, which may be a client's own, nothing is kept.
    fn not_found(&self, name: &str, error: LoadError) -> Error {
        let reason = self.relative(&error);
        let serving = self.models.load().get(name).and_then(|versions| {
            versions.iter().rev().find_map(|(version, entry)| entry.is_ready().then_some(*version))
        });
        match serving {
            Some(version) => drop(self.failed(name, version, error)),
            None => tracing::error!(reason = %format!("{reason}{}", error.aside()), "a model cannot be loaded"),
        }
        Error::LoadFailed(format!("failed to load '{name}': {reason}"))
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
        let managing = self.managing.clone().lock_owned().await;
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
        let forgotten = blocking(move || {
            let _managing = managing;
            registry.forget_gone();
        });
        let forgotten = forgotten.await;
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
            self.repository.take(found);
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
                self.living.begin(&servable);
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
            let apart = settings.onnx.isolation.unwrap_or(options.onnx.isolation) == Isolation::Always;
            for note in predictor.profile().notes {
                // What was asked for is no warning.
                match apart && note == APART {
                    true => tracing::info!(model = name, version, "{note}"),
                    false => tracing::warn!(model = name, version, "{note}"),
                }
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
}
