//! Loading a model in a child process first. ONNX Runtime is native code that reads files of strangers: a file that
//! crashes it, hangs it or makes it balloon ends the child, and the server says so and serves on.
//!
//! ```text
//! server ── spawn /proc/self/exe __probe ──> child: limits on itself, then Artifact, load, first run
//!        ── Task as JSON on stdin ─────────>
//!        <───────── Outcome as JSON on stdout ── exit
//! ```
//!
//! The server looks at the child's memory and the clock, and kills it when either is too much; the kernel does so when it
//! has had too much of a processor. Files that change while they are tried are tried again, so that none is loaded that
//! was not.

use crate::child::{self, Running, Stopped, XCPU, how};
use crate::process::{Process, available_bytes};
use crate::repository::Found;
use crate::stamp::Stamps;
use backends::llm::LanguageOptions;
use backends::onnx::{OnnxOptions, Place, external_files};
use backends::settings::{self, Isolation, Onnx};
use backends::{Artifact, Conventions, Format, Limits, LoadError, LoadOptions, load};
use rustix::process::Resource;
use serde::{Deserialize, Serialize};
use std::os::unix::process::ExitStatusExt;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};
use std::sync::Arc;
use std::time::Duration;

/// The word that makes the server's binary a child that loads a model and says how it went.
pub const COMMAND: &str = "__probe";

/// Between two looks at the child.
const PERIOD: Duration = Duration::from_millis(5);
/// A child may always have as much, so that small models are not refused for what others hold.
const LEAST: u64 = 256 << 20;
/// Address space that a child has besides the memory that it may touch: libraries, stacks, what allocators reserve.
const SPACE: u64 = 8 << 30;
/// Seconds of a processor that a child has besides those of the clock: this process is to be the first that ends it, since
/// it says why.
const SPARE: u64 = 2;
/// How often files are tried that change meanwhile.
const TRIES: usize = 2;
/// What is said of files that never stay the same.
const CHANGED: &str = "its files changed while it was loaded; load it again once they are complete";

/// How models are tried before they are loaded.
#[derive(Clone, Debug)]
pub struct Probe {
    /// Also when the server starts?
    pub at_start: bool,
    /// A child that takes longer is ended.
    pub timeout: Duration,
    /// A child that holds more bytes is ended; `None`: more than there is.
    pub memory: Option<u64>,
    /// Bytes that this process and its children may have together.
    pub machine: u64,
    /// Where ONNX Runtime is looked for.
    pub libraries: Vec<PathBuf>,
}

/// What the child is to do.
#[derive(Debug, Deserialize, Serialize)]
struct Task {
    root: PathBuf,
    directory: PathBuf,
    file: Option<String>,
    memory: u64,
    /// Of a processor, for each thread that computes.
    seconds: u64,
    libraries: Vec<PathBuf>,
}

/// What became of it.
#[derive(Debug, Deserialize, Serialize)]
enum Outcome {
    Loaded,
    Refused { file: PathBuf, reason: String, detail: String },
}

/// A model whose files were opened, and tried if they had to be.
#[derive(Debug)]
pub struct Tried {
    /// The files.
    pub artifact: Artifact,
    /// As they were when they were tried.
    stamps: Stamps,
}

impl Tried {
    /// A model that need not be tried.
    #[must_use]
    pub fn unneeded(artifact: Artifact) -> Self {
        Tried { artifact, stamps: Stamps::default() }
    }

    /// Asked once the model is loaded: are its files still those that were tried?
    ///
    /// # Errors
    /// They are not.
    pub fn check(&self) -> Result<(), LoadError> {
        if self.stamps.hold() { Ok(()) } else { Err(LoadError::new(self.artifact.model_path(), CHANGED)) }
    }
}

impl Probe {
    /// Opens the files of the model `name`, and loads them in a child if they are of a kind that native code reads.
    ///
    /// # Errors
    /// There is no model, the child refuses it or does not live to say how it went, or its files do not stay the same.
    pub fn open(&self, found: &Found, name: &str, directory: &Path) -> Result<Tried, LoadError> {
        for _ in 0..TRIES {
            let mut stamps = Stamps::default();
            // Settings are read when the model is opened, here and in the child.
            settings::FILES.iter().for_each(|file| stamps.add(found.root.join(file)));
            let artifact = found.open(name, directory)?;
            if artifact.format() != Format::Onnx {
                return Ok(Tried::unneeded(artifact));
            }
            add_graph(&mut stamps, &artifact);
            let outcome = self.attempt(found, &artifact, directory);
            if stamps.hold() {
                return outcome.map(|()| Tried { artifact, stamps });
            }
        }
        Err(LoadError::new(directory, CHANGED))
    }

    fn attempt(&self, found: &Found, artifact: &Artifact, directory: &Path) -> Result<(), LoadError> {
        let task = Task {
            root: found.root.clone(),
            directory: directory.into(),
            file: found.file.clone(),
            memory: self.memory.unwrap_or_else(|| left(self.machine)),
            seconds: self.timeout.as_secs().saturating_add(u64::from(self.timeout.subsec_nanos() > 0) + SPARE),
            libraries: self.libraries.clone(),
        };
        match self.ask(&task) {
            Ok(Outcome::Loaded) => Ok(()),
            Ok(Outcome::Refused { file, reason, detail }) => Err(LoadError::new(file, reason).with_detail(detail)),
            Err(reason) => Err(LoadError::new(artifact.model_path(), reason)),
        }
    }

    fn ask(&self, task: &Task) -> Result<Outcome, String> {
        let child = Running::start(COMMAND, Stdio::piped(), Stdio::piped());
        let mut child = child.map_err(|e| format!("the process that was to load it first cannot be started: {e}"))?;
        child.tell(&serde_json::to_vec(task).map_err(|e| e.to_string())?);
        let status = child.wait(task.memory, self.timeout, PERIOD).map_err(|stopped| self.too_much(&stopped, task))?;
        let end = match serde_json::from_str(child.output.words().lines().last().unwrap_or_default()) {
            Ok(outcome) if status.success() => return Ok(outcome),
            _ if status.signal() == Some(XCPU) => {
                format!("SIGXCPU ({XCPU}): it had more of the processor than --probe-timeout lets it have")
            }
            _ => how(status, &child.complaints.words()),
        };
        Err(format!("loading it first in a process of its own ended that with {end}"))
    }

    /// Why a child was ended.
    fn too_much(&self, stopped: &Stopped, task: &Task) -> String {
        let too_much = match stopped {
            Stopped::Memory(held) => {
                format!("took {} MiB of memory; {} were to be had (--probe-memory)", held >> 20, task.memory >> 20)
            }
            Stopped::Time => format!("took more than {} s (--probe-timeout)", self.timeout.as_secs_f64()),
            Stopped::Unknown(error) => return error.to_string(),
        };
        format!("loading it first in a process of its own {too_much}")
    }
}

/// Adds a graph and the files of its external data. What is wrong with these, the child finds out.
pub(crate) fn add_graph(stamps: &mut Stamps, artifact: &Artifact) {
    let path = artifact.model_path();
    stamps.add(path.to_path_buf());
    let limits = Limits { model_bytes: i32::MAX as u64, ..Limits::default() };
    let external = artifact.read_model(&limits).ok().and_then(|bytes| external_files(&bytes).ok());
    for file in external.into_iter().flatten() {
        stamps.add(path.with_file_name(file));
    }
}

/// Of the memory that there is, what a child may have: most of what is free, and of what the control group grants this
/// process what it does not hold itself.
fn left(machine: u64) -> u64 {
    let held = Process::read().map_or(0, |process| process.resident_bytes);
    let granted = (machine / 10 * 9).saturating_sub(held);
    available_bytes().map_or(granted, |available| granted.min(available / 10 * 9)).max(LEAST)
}

/// Threads that compute while a graph is loaded: one, unless it is to have some of its own, or a provider has.
fn computing(onnx: &Onnx) -> u64 {
    let own = onnx.intra_op_threads.is_some() || onnx.inter_op_threads.is_some() || !onnx.providers.is_empty();
    let processors = std::thread::available_parallelism().map_or(1, |processors| processors.get() as u64);
    if own { processors } else { 1 }
}

/// What the child does: nothing of this touches sockets or threads of a server.
#[must_use]
pub fn child() -> ExitCode {
    let outcome = match child::task::<Task>() {
        Ok(task) => attempt(&task),
        Err(error) => return child::no_task(COMMAND, "standard input", error),
    };
    match serde_json::to_string(&outcome) {
        Ok(line) => println!("{line}"),
        Err(error) => eprintln!("{error}"),
    }
    ExitCode::SUCCESS
}

fn attempt(task: &Task) -> Outcome {
    let refused = |LoadError { file, reason, detail, .. }: LoadError| Outcome::Refused { file, reason, detail };
    child::end_with_parent();
    child::be_expendable();
    let artifact = match Artifact::open_file(&task.root, &task.directory, task.file.as_deref()) {
        Ok(artifact) => artifact,
        Err(error) => return refused(error),
    };
    let seconds = task.seconds.saturating_mul(computing(&artifact.settings().onnx));
    child::limit(Resource::Cpu, seconds, seconds.saturating_add(SPARE));
    // Drivers of GPUs reserve far more addresses than there is memory.
    if !artifact.settings().onnx.providers.iter().any(|provider| provider.kind.is_gpu()) {
        let bytes = task.memory.saturating_add(SPACE);
        child::limit(Resource::As, bytes, bytes);
    }
    let pool = match rayon::ThreadPoolBuilder::new().num_threads(1).build() {
        Ok(pool) => Arc::new(pool),
        Err(error) => return refused(LoadError::new(artifact.model_path(), error.to_string())),
    };
    let options = LoadOptions {
        pool,
        limits: Limits::default(),
        conventions: Conventions::Kserve,
        language: LanguageOptions::default(),
        // As in the server's process, where most are computed; one that has its own ends nothing but that.
        onnx: OnnxOptions { libraries: task.libraries.clone(), isolation: Isolation::Never, place: Place::Here },
    };
    match std::panic::catch_unwind(AssertUnwindSafe(|| load(&artifact, &options).map(drop))) {
        Ok(Ok(())) => Outcome::Loaded,
        Ok(Err(error)) => refused(error),
        Err(_) => refused(LoadError::new(artifact.model_path(), "the loader panicked")),
    }
}
