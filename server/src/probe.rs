//! Loading a model in a child process first. ONNX Runtime is native code that reads files of strangers: a file that
//! crashes it, hangs it or makes it balloon ends the child, and the server says so and serves on.
//!
//! ```text
//! server ── spawn /proc/self/exe __probe ──> child: limits on itself, then Artifact, load, first run
//!        ── Task as JSON on stdin ─────────>
//!        <───────── Outcome as JSON on stdout ── exit
//! ```
//!
//! The server looks at the child's memory and the clock, and kills it when either is too much.

use crate::config::libraries::{own_program, search_paths};
use crate::process::{PAGE, Process, available_bytes};
use crate::threads;
use backends::llm::LanguageOptions;
use backends::onnx::OnnxOptions;
use backends::{Artifact, Conventions, Format, Limits, LoadError, LoadOptions, load};
use rustix::process::{Resource, Rlimit, Signal, set_parent_process_death_signal, setrlimit};
use serde::{Deserialize, Serialize};
use std::io::{Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// The word that makes the server's binary a child that loads a model and says how it went.
pub const COMMAND: &str = "__probe";

/// Between two looks at the child.
const PERIOD: Duration = Duration::from_millis(5);
/// What is kept of the child's words.
const WORDS: u64 = 64 << 10;
/// Of the child's last words, what goes into a reason.
const LAST_WORDS: usize = 300;
/// A child may always have as much, so that small models are not refused for what others hold.
const LEAST: u64 = 256 << 20;
/// Address space that a child has besides the memory that it may touch: libraries, stacks, what allocators reserve.
const SPACE: u64 = 8 << 30;

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
    libraries: Vec<PathBuf>,
}

/// What became of it.
#[derive(Debug, Deserialize, Serialize)]
enum Outcome {
    Loaded,
    Refused { file: PathBuf, reason: String },
}

impl Probe {
    /// Loads the model in a child, if it is of a kind that native code reads.
    ///
    /// # Errors
    /// The child refuses it, or does not live to say how it went.
    pub fn check(
        &self,
        artifact: &Artifact,
        root: &Path,
        directory: &Path,
        file: Option<&str>,
    ) -> Result<(), LoadError> {
        if artifact.format() != Format::Onnx {
            return Ok(());
        }
        let task = Task {
            root: root.into(),
            directory: directory.into(),
            file: file.map(str::to_owned),
            memory: self.memory.unwrap_or_else(|| left(self.machine)),
            libraries: self.libraries.clone(),
        };
        match self.ask(&task) {
            Ok(Outcome::Loaded) => Ok(()),
            Ok(Outcome::Refused { file, reason }) => Err(LoadError::new(file, reason)),
            Err(reason) => Err(LoadError::new(artifact.model_path(), reason)),
        }
    }

    fn ask(&self, task: &Task) -> Result<Outcome, String> {
        let mut child = spawn().map_err(|e| format!("the process that was to load it first cannot be started: {e}"))?;
        let memory = task.memory;
        let task = serde_json::to_vec(task).map_err(|e| e.to_string())?;
        // One that ended before it read this is told by how it ended.
        let _ = child.stdin.take().map(|mut stdin| stdin.write_all(&task));
        let (words, complaints) = (listen(child.stdout.take()), listen(child.stderr.take()));
        let status = self.wait(&mut child, memory);
        // Pipes of a child that was ended are closed, too.
        let (words, complaints) = (words.words(), complaints.words());
        let status = status?;
        match serde_json::from_str(words.lines().last().unwrap_or_default()) {
            Ok(outcome) if status.success() => Ok(outcome),
            _ => Err(format!("loading it first in a process of its own ended that with {}", how(status, &complaints))),
        }
    }

    /// Waits until the child ends, or has had too much of something.
    fn wait(&self, child: &mut Child, memory: u64) -> Result<ExitStatus, String> {
        let start = Instant::now();
        loop {
            if let Some(status) = child.try_wait().map_err(|e| e.to_string())? {
                return Ok(status);
            }
            let held = resident(child.id());
            let too_much = if held > memory {
                Some(format!("took {} MiB of memory; {} were to be had (--probe-memory)", held >> 20, memory >> 20))
            } else if start.elapsed() > self.timeout {
                Some(format!("took more than {} s (--probe-timeout)", self.timeout.as_secs_f64()))
            } else {
                None
            };
            if let Some(too_much) = too_much {
                let _ = child.kill();
                let _ = child.wait();
                return Err(format!("loading it first in a process of its own {too_much}"));
            }
            std::thread::sleep(PERIOD);
        }
    }
}

/// Of the memory that there is, what a child may have: most of what is free, and of what the control group grants this
/// process what it does not hold itself.
fn left(machine: u64) -> u64 {
    let held = Process::read().map_or(0, |process| process.resident_bytes);
    let granted = (machine / 10 * 9).saturating_sub(held);
    available_bytes().map_or(granted, |available| granted.min(available / 10 * 9)).max(LEAST)
}

fn spawn() -> std::io::Result<Child> {
    let mut command = Command::new(own_program()?);
    command.arg0("tensorgate").arg(COMMAND).env_clear().envs(search_paths());
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()
}

/// What comes out of a pipe, as long as it is open.
struct Ear {
    thread: Option<JoinHandle<()>>,
    heard: Arc<Mutex<Vec<u8>>>,
}

/// Keeps what comes, up to a bound, and passes over the rest so that nobody waits.
fn listen<R: Read + Send + 'static>(pipe: Option<R>) -> Ear {
    let heard = Arc::new(Mutex::new(Vec::new()));
    let kept = heard.clone();
    let hear = move |mut pipe: R| {
        let mut bytes = Vec::new();
        let _ = pipe.by_ref().take(WORDS).read_to_end(&mut bytes);
        *kept.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = bytes;
        let _ = std::io::copy(&mut pipe, &mut std::io::sink());
    };
    let thread = pipe.and_then(|pipe| threads::spawn("probe", move || hear(pipe)).ok());
    Ear { thread, heard }
}

impl Ear {
    /// All that was heard, once the pipe is closed.
    fn words(self) -> String {
        let _ = self.thread.map(JoinHandle::join);
        let heard = self.heard.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        String::from_utf8_lossy(&heard).into_owned()
    }
}

/// How a process ended, and its last words.
fn how(status: ExitStatus, complaints: &str) -> String {
    let end = match status.signal() {
        Some(signal) => {
            let names = [(4, "SIGILL"), (6, "SIGABRT"), (7, "SIGBUS"), (8, "SIGFPE"), (9, "SIGKILL"), (11, "SIGSEGV")];
            let name = names.iter().find(|(number, _)| *number == signal).map_or("a signal", |(_, name)| name);
            format!("{name} ({signal})")
        }
        None => format!("exit code {}", status.code().unwrap_or_default()),
    };
    match complaints.lines().map(str::trim).rfind(|line| !line.is_empty()) {
        Some(line) => format!("{end}: {}", line.chars().take(LAST_WORDS).collect::<String>()),
        None => end,
    }
}

/// Bytes of a process that lie in memory; 0 where that cannot be told.
fn resident(process: u32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{process}/statm")).unwrap_or_default();
    let pages = text.split_whitespace().nth(1).and_then(|pages| pages.parse::<u64>().ok());
    pages.unwrap_or(0).saturating_mul(PAGE)
}

/// What the child does: nothing of this touches sockets or threads of a server.
#[must_use]
pub fn child() -> ExitCode {
    let mut text = String::new();
    let read = std::io::stdin().take(WORDS).read_to_string(&mut text);
    let task = read.map_err(|e| e.to_string()).and_then(|_| serde_json::from_str(&text).map_err(|e| e.to_string()));
    let outcome = match task {
        Ok(task) => attempt(&task),
        Err(error) => {
            eprintln!("{COMMAND} is the server's own, and reads its task from standard input: {error}");
            return ExitCode::from(2);
        }
    };
    match serde_json::to_string(&outcome) {
        Ok(line) => println!("{line}"),
        Err(error) => eprintln!("{error}"),
    }
    ExitCode::SUCCESS
}

fn attempt(task: &Task) -> Outcome {
    let refused = |error: LoadError| Outcome::Refused { file: error.file, reason: error.reason };
    // Where a limit cannot be set, the parent's looks are all there is.
    let _ = set_parent_process_death_signal(Some(Signal::KILL));
    let limit = |bytes: u64| Rlimit { current: Some(bytes), maximum: Some(bytes) };
    let _ = setrlimit(Resource::Core, limit(0));
    let artifact = match Artifact::open_file(&task.root, &task.directory, task.file.as_deref()) {
        Ok(artifact) => artifact,
        Err(error) => return refused(error),
    };
    // Drivers of GPUs reserve far more addresses than there is memory.
    if !artifact.settings().onnx.providers.iter().any(|provider| provider.kind.is_gpu()) {
        let _ = setrlimit(Resource::As, limit(task.memory.saturating_add(SPACE)));
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
        onnx: OnnxOptions { libraries: task.libraries.clone() },
    };
    match std::panic::catch_unwind(AssertUnwindSafe(|| load(&artifact, &options).map(drop))) {
        Ok(Ok(())) => Outcome::Loaded,
        Ok(Err(error)) => refused(error),
        Err(_) => refused(LoadError::new(artifact.model_path(), "the loader panicked")),
    }
}
