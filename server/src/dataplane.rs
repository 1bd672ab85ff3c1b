//! Every verb, once. REST and gRPC decode into these calls and encode what they return; what a request may ask is
//! decided here, so that the protocols cannot differ.

use crate::batcher::{Job, rows};
use crate::check;
use crate::classify;
use crate::error::Error;
use crate::living::Core;
use crate::llm::answer::Answer;
use crate::llm::generator::Running;
use crate::process;
use crate::profile::Profile;
use crate::registry::{IndexEntry, Registry};
use crate::telemetry::SPANS;
use crate::threads::blocking;
use backends::{Parameter, Parameters, Tensor};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tracing::Instrument;
use tracing::field::Empty;

pub use crate::llm::{Generate, Language};
pub use crate::servable::{Servable, Work};

/// An inference request in the server's own terms.
#[derive(Debug, Default)]
pub struct Infer {
    /// The client's identifier.
    pub id: Option<String>,
    /// Its parameters.
    pub parameters: Parameters,
    /// Tensors.
    pub inputs: Vec<Tensor>,
    /// Wanted outputs; empty means all.
    pub outputs: Vec<Wanted>,
    /// When the answer is of no use any more.
    pub deadline: Option<Instant>,
}

impl Infer {
    /// Bytes that all tensors hold.
    pub fn bytes(&self) -> usize {
        self.inputs.iter().map(Tensor::byte_size).sum()
    }
}

/// A request names a repository, and here it has no name.
pub fn named_repository() -> Error {
    Error::Unsupported("'repository_name' specification is not supported".into())
}

/// A wanted output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Its name.
    pub name: String,
    /// The best so many classes instead of the values.
    pub classes: Option<u32>,
}

/// An answer.
#[derive(Debug)]
pub struct Inferred {
    /// Who answered.
    pub servable: Arc<Servable>,
    /// The client's identifier, or one made up where the profile wants one.
    pub id: Option<String>,
    /// Tensors.
    pub outputs: Vec<Tensor>,
}

impl Inferred {
    /// Bytes that all tensors hold.
    pub fn bytes(&self) -> usize {
        self.outputs.iter().map(Tensor::byte_size).sum()
    }

    /// Bytes that its tensors may take once more as an answer; binary are those of which `is_binary` says so by their index.
    pub fn bytes_to_write(&self, is_binary: impl Fn(usize) -> bool) -> usize {
        let outputs = self.outputs.iter().enumerate();
        outputs.map(|(index, output)| if is_binary(index) { output.byte_size() } else { as_text(output) }).sum()
    }
}

/// Bytes that a tensor may have as text: the longest numbers of each type, with a comma.
fn as_text(tensor: &Tensor) -> usize {
    match tensor.datatype().size() {
        0 => tensor.byte_size(),
        1 => count(tensor) * 6,
        2 => count(tensor) * 14,
        _ => count(tensor) * 25,
    }
}

fn count(tensor: &Tensor) -> usize {
    tensor.shape().iter().product()
}

/// May models be loaded and unloaded by request?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Control {
    /// Yes.
    Explicit,
    /// No.
    Fixed,
}

/// What the server does, whatever the protocol.
#[derive(Debug)]
pub struct Dataplane {
    registry: Arc<Registry>,
    profile: Profile,
    control: Control,
    longest: Duration,
    longest_generation: Duration,
    started: AtomicBool,
    draining: AtomicBool,
    closing: watch::Sender<bool>,
    /// Held while the repository is listed.
    listing: Arc<tokio::sync::Mutex<()>>,
}

/// The server's name and version in metadata.
pub const NAME: &str = "tensorgate";
/// Of the server.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
/// Protocol extensions that are served, by the names Triton gives them.
pub const EXTENSIONS: [&str; 8] = [
    "classification",
    "model_repository",
    "model_configuration",
    "binary_tensor_data",
    "parameters",
    "statistics",
    "schedule_policy",
    "generate",
];

impl Dataplane {
    /// Serves what `registry` holds; no request runs longer than `longest`, and no answer of a language model longer than
    /// `longest_generation`.
    pub fn new(
        registry: Arc<Registry>,
        profile: Profile,
        control: Control,
        [longest, longest_generation]: [Duration; 2],
    ) -> Self {
        Dataplane {
            registry,
            profile,
            control,
            longest,
            longest_generation,
            started: AtomicBool::new(false),
            draining: AtomicBool::new(false),
            closing: watch::Sender::new(false),
            listing: Arc::default(),
        }
    }

    /// The followed server.
    pub fn profile(&self) -> Profile {
        self.profile
    }

    /// What is loaded.
    pub fn registry(&self) -> &Arc<Registry> {
        &self.registry
    }

    /// The models of the start are loaded, or have failed.
    pub fn set_started(&self) {
        self.started.store(true, Ordering::Release);
    }

    /// New work is better sent elsewhere from now on.
    pub fn set_draining(&self) {
        self.draining.store(true, Ordering::Release);
    }

    /// Connections are closing: what would stay open for ever must end.
    pub fn set_closing(&self) {
        self.closing.send_replace(true);
    }

    /// Are connections closing?
    pub fn is_closing(&self) -> bool {
        *self.closing.borrow()
    }

    /// Waits until connections are closing.
    pub async fn closed(&self) {
        let mut closing = self.closing.subscribe();
        // Fails when the sender is gone, which is a part of what is borrowed here.
        drop(closing.wait_for(|closing| *closing).await);
    }

    /// The server's time is up: answers of language models end with [`Error::Draining`], those that wait included. Was there
    /// any?
    pub fn end_answers(&self) -> bool {
        let ended: Vec<bool> = self.engines().map(|engine| engine.end_all()).collect();
        ended.contains(&true)
    }

    /// Answers of language models that are being generated, or wait for it.
    pub fn answers(&self) -> u64 {
        let counters = self.engines().map(|engine| engine.counters());
        counters.map(|counters| u64::from(counters.running) + u64::from(counters.waiting)).sum()
    }

    /// Those of models that were replaced or unloaded answer on.
    fn engines(&self) -> impl Iterator<Item = Running> {
        let cores = self.registry.cores().into_iter();
        cores.filter_map(|core| if let Core::Language(engine) = core { Some(engine) } else { None })
    }

    /// Is the server shutting down?
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }

    /// Does every model that runs get on? One that does not come back is mended by a restart alone, as is a process that
    /// has given up.
    pub fn live(&self) -> bool {
        let now = Instant::now();
        let stuck = self.registry.servables().iter().any(|servable| servable.is_stuck(now));
        process::giving_up().is_none() && !stuck && !self.registry.cores().iter().any(|core| core.hangs(now))
    }

    /// No request takes longer.
    pub fn longest(&self) -> Duration {
        self.longest
    }

    /// No answer of a language model takes longer.
    pub fn longest_generation(&self) -> Duration {
        self.longest_generation
    }

    /// The language models that serve.
    pub fn language_models(&self) -> Vec<Arc<Servable>> {
        let mut models = self.registry.servables();
        models.retain(|servable| matches!(servable.work, Work::Language(_)));
        models
    }

    /// The language model of a name; the only one where a request names none.
    ///
    /// # Errors
    /// Unknown, not ready, no language model, or one of several that has to be named.
    pub fn language_model(&self, name: Option<&str>) -> Result<Arc<Servable>, Error> {
        if let Some(name) = name {
            let servable = self.servable(name, None)?;
            return servable.language().map(|_| servable.clone());
        }
        let mut models = self.language_models();
        match models.len() {
            1 => Ok(models.remove(0)),
            0 => Err(Error::Invalid("no language model is served here".into())),
            _ => {
                let names: Vec<_> = models.iter().map(|model| model.name.as_str()).collect();
                Err(Error::Invalid(format!("the request names no model; served are {}", names.join(", "))))
            }
        }
    }

    /// Asks a language model for answers that belong together, all or none: one for each copy of each request.
    ///
    /// # Errors
    /// A request breaks a limit, or the server has too much to do.
    pub async fn generate(&self, servable: &Servable, mut requests: Vec<Generate>) -> Result<Vec<Answer>, Error> {
        let limit = Instant::now() + self.longest_generation;
        for request in &mut requests {
            request.deadline = Some(request.deadline.map_or(limit, |deadline| deadline.min(limit)));
        }
        servable.language()?.generate_all(requests).await.map_err(|error| match error {
            // Of several models each has a queue of its own.
            Error::Overloaded(why) => Error::Overloaded(format!("model '{}': {why}", servable.name)),
            other => other,
        })
    }

    /// Were the models of the start loaded, is there one that serves, and is the server not shutting down?
    pub fn ready(&self) -> bool {
        self.started.load(Ordering::Acquire) && !self.is_draining() && self.registry.ready()
    }

    /// The model of a name and version.
    ///
    /// # Errors
    /// Unknown, or not ready.
    pub fn servable(&self, model: &str, version: Option<&str>) -> Result<Arc<Servable>, Error> {
        self.registry.get(model, version)
    }

    /// Those whose statistics are asked for: of a version, or where none is named of all that serve.
    ///
    /// # Errors
    /// As [`Dataplane::servable`].
    pub fn versions(&self, model: &str, version: Option<&str>) -> Result<Vec<Arc<Servable>>, Error> {
        let found = self.servable(model, version)?;
        if version.is_some_and(|version| !version.is_empty()) {
            return Ok(vec![found]);
        }
        let mut versions = self.registry.servables();
        versions.retain(|servable| servable.name == found.name);
        // Unloaded a moment ago: it was there when it was asked for.
        if versions.is_empty() { Ok(vec![found]) } else { Ok(versions) }
    }

    /// Answers a request.
    ///
    /// # Errors
    /// The request is at fault, the server has too much to do, or the model failed.
    pub async fn infer(&self, servable: Arc<Servable>, mut request: Infer) -> Result<Inferred, Error> {
        let start = Instant::now();
        check::put_in_order(&servable.signature, &mut request.inputs);
        let count = rows(&request.inputs);
        let waiting = Waiting { servable: &servable, since: start };
        let answer = self.answer(&servable, request).await;
        std::mem::forget(waiting);
        let total = start.elapsed();
        match answer {
            Ok((id, outputs, timing)) => {
                servable.stats.answered(count, total, &timing);
                servable.metrics.answered(count, total, &timing);
                Ok(Inferred { servable, id, outputs })
            }
            Err(error) => {
                if let Error::Internal(what) | Error::Memory(what) = &error {
                    tracing::error!(model = servable.name, %what, "a request failed");
                }
                servable.stats.failed(total);
                servable.metrics.failed(&error);
                Err(error)
            }
        }
    }

    async fn answer(
        &self,
        servable: &Servable,
        request: Infer,
    ) -> Result<(Option<String>, Vec<Tensor>, crate::stats::Timing), Error> {
        let batcher = servable.batcher()?;
        check::check(servable, &request, self.registry.limits())?;
        let limit = Instant::now() + self.longest;
        let timeout = match request.parameters.get("timeout") {
            Some(Parameter::Int(us)) if *us > 0 => Some(Instant::now() + Duration::from_micros(*us as u64)),
            _ => None,
        };
        let deadline = [request.deadline, timeout, Some(limit)].into_iter().flatten().min();
        let Infer { id, parameters, inputs, outputs: wanted, .. } = request;
        let id = id.or_else(|| self.invented_id());
        let priority = match parameters.get("priority") {
            Some(Parameter::Int(level)) if *level > 0 => *level as u64,
            Some(Parameter::Uint(level)) => *level,
            _ => DEFAULT_PRIORITY,
        };
        let names = wanted.iter().map(|w| w.name.clone()).collect();
        let job = Job { inputs, outputs: names, parameters, deadline, priority };
        let span = tracing::info_span!(
            target: SPANS,
            "infer",
            model = servable.name,
            version = servable.version,
            queue_us = Empty,
            compute_us = Empty,
        );
        let (outputs, timing) = batcher.run(job).instrument(span.clone()).await?;
        if !span.is_disabled() {
            let (queue, compute) = (timing.queue.as_micros() as u64, timing.infer.as_micros() as u64);
            tracing::record_all!(span, queue_us = queue, compute_us = compute);
        }
        if deadline.is_some_and(|deadline| Instant::now() > deadline) {
            return Err(Error::Deadline);
        }
        let outputs = self.select(servable, outputs, &wanted)?;
        Ok((id, outputs, timing))
    }

    /// A name for a request that has none, where the profile wants one.
    pub fn invented_id(&self) -> Option<String> {
        self.profile.invents_id().then(|| uuid::Uuid::new_v4().to_string())
    }

    /// The wanted outputs in the wanted order, classified where asked.
    fn select(&self, servable: &Servable, outputs: Vec<Tensor>, wanted: &[Wanted]) -> Result<Vec<Tensor>, Error> {
        if wanted.is_empty() {
            return Ok(outputs);
        }
        let pick = |wanted: &Wanted| {
            let output = outputs.iter().find(|output| output.name() == wanted.name);
            let output = output.ok_or_else(|| Error::Internal(format!("output '{}' was not computed", wanted.name)))?;
            match wanted.classes {
                None => Ok(output.clone()),
                Some(count) => {
                    let port = servable.signature.outputs.iter().find(|port| port.name == wanted.name);
                    classify::classify(output, count as usize, port)
                }
            }
        };
        wanted.iter().map(pick).collect()
    }

    /// Loads (or loads again) a model; with parameters of these names.
    ///
    /// # Errors
    /// Not allowed in this mode, unknown, or not loadable; there is a parameter.
    pub async fn load(&self, model: &str, parameters: &[&str]) -> Result<(), Error> {
        if let Some(name) = parameters.first() {
            return Err(Error::Unsupported(format!(
                "load parameter '{name}': configuration and files come from the repository alone"
            )));
        }
        self.check_control()?;
        self.registry.load(model).await
    }

    /// Takes a model out of service; with parameters of these names, and whether each of them is true or false.
    ///
    /// # Errors
    /// Not allowed in this mode, or unknown, as a parameter may be.
    pub async fn unload(&self, model: &str, parameters: &[(&str, bool)]) -> Result<(), Error> {
        if let Some((name, _)) = parameters.iter().find(|(name, truth)| *name != "unload_dependents" || !truth) {
            return Err(Error::Invalid(format!(
                "unload parameter '{name}'; unload_dependents is known, true or false"
            )));
        }
        self.check_control()?;
        match self.registry.unload(model).await {
            Err(Error::UnknownModel(_)) if !self.profile.unload_unknown_is_error() => Ok(()),
            result => result,
        }
    }

    fn check_control(&self) -> Result<(), Error> {
        match self.control {
            Control::Explicit => Ok(()),
            Control::Fixed => Err(Error::Forbidden(
                "explicit model load / unload is not allowed: start the server with --model-control-mode explicit"
                    .into(),
            )),
        }
    }

    /// Everything that is loaded or lies in the repository.
    ///
    /// # Errors
    /// The repository cannot be read, or that takes longer than a request may.
    pub async fn index(&self, only_ready: bool) -> Result<Vec<IndexEntry>, Error> {
        let listing = async {
            // One at a time: where a file system hangs, so do those who ask for this, and nobody else.
            let (turn, registry) = (self.listing.clone().lock_owned().await, self.registry.clone());
            let listed = blocking(move || {
                let _turn = turn;
                registry.index()
            });
            listed.await.unwrap_or_else(|error| Err(Error::Internal(error)))
        };
        let mut entries = tokio::time::timeout(self.longest, listing).await.map_err(|_| Error::Deadline)??;
        entries.retain(|entry| !only_ready || entry.state == "READY");
        Ok(entries)
    }
}

/// A request that is being answered. It is dropped only when its client has left.
struct Waiting<'a> {
    servable: &'a Servable,
    since: Instant,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.servable.stats.failed(self.since.elapsed());
        self.servable.metrics.failed(&Error::Cancelled);
    }
}

/// Requests that state no priority go behind those that state one.
const DEFAULT_PRIORITY: u64 = 1 << 32;
