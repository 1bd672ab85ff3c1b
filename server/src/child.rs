//! Processes of our own: this binary once more, with a word that says what it is to do. Native code that reads files of
//! strangers (`probe`), compilers of forms (`llm/trial`) and graphs that may end their process (`worker`) run in one.
//! Here is what these share: how a child is started, heard, waited for within bounds and ended, and what it does to
//! itself first. What it is told and what it answers is not.

use crate::config::libraries::own_child;
use crate::process::PAGE;
use crate::threads;
use rustix::process::{Resource, Rlimit, Signal, set_parent_process_death_signal, setrlimit};
use serde::de::DeserializeOwned;
use std::fmt::Display;
use std::io::{Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ExitCode, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// What is kept of a child's words.
const WORDS: usize = 64 << 10;
/// How long the last words of a process are waited for that has ended.
const PATIENCE: Duration = Duration::from_millis(500);
/// Between two looks whether they are complete.
const LOOK: Duration = Duration::from_millis(5);
/// Of a child's last words, what goes into a reason.
const LAST_WORDS: usize = 300;
/// The signal of a process that had too much of a processor.
pub(crate) const XCPU: i32 = Signal::XCPU.as_raw();

/// Why a child is not waited for any longer.
pub(crate) enum Stopped {
    /// It held so many bytes.
    Memory(u64),
    /// It took too long.
    Time,
    /// The system does not tell whether it has ended.
    Unknown(std::io::Error),
}

/// A child, which has ended when this is dropped.
pub(crate) struct Running {
    child: Child,
    started: Instant,
    pub(crate) output: Ear,
    pub(crate) complaints: Ear,
}

impl Running {
    /// Starts this binary with `word`, and hears what it complains of, and what it writes if `output` is a pipe.
    pub(crate) fn start(word: &str, input: Stdio, output: Stdio) -> std::io::Result<Self> {
        let started = Instant::now();
        let mut command = own_child(word)?;
        let mut child = command.stdin(input).stdout(output).stderr(Stdio::piped()).spawn()?;
        let (output, complaints) = (listen(child.stdout.take()), listen(child.stderr.take()));
        Ok(Running { child, started, output, complaints })
    }

    /// Writes its task, which it finds at its standard input.
    pub(crate) fn tell(&mut self, task: &[u8]) {
        // One that ended before it read this is told by how it ended.
        let _ = self.child.stdin.take().map(|mut stdin| stdin.write_all(task));
    }

    /// The number of its process.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Looks at it every `look`, until it ends or has had too much of something; then it is to be dropped.
    pub(crate) fn wait(&mut self, memory: u64, longest: Duration, look: Duration) -> Result<ExitStatus, Stopped> {
        loop {
            if let Some(status) = self.child.try_wait().map_err(Stopped::Unknown)? {
                return Ok(status);
            }
            let held = resident(self.id());
            if held > memory {
                return Err(Stopped::Memory(held));
            }
            if self.started.elapsed() > longest {
                return Err(Stopped::Time);
            }
            std::thread::sleep(look);
        }
    }

    /// Sees to it that one that is about to end has ended, so that it is not this process that ends it.
    pub(crate) fn end_by_itself(&mut self) -> std::io::Result<ExitStatus> {
        for _ in 0..100 {
            if !matches!(self.child.try_wait(), Ok(None)) {
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        self.end()
    }

    fn end(&mut self) -> std::io::Result<ExitStatus> {
        // Of one that has ended already, this ends nothing.
        let _ = self.child.kill();
        self.child.wait()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.end();
    }
}

/// What comes out of a pipe, as long as it is open.
pub(crate) struct Ear {
    thread: Option<JoinHandle<()>>,
    heard: Arc<Mutex<Vec<u8>>>,
}

/// Keeps what comes, up to a bound, and passes over the rest so that nobody waits.
fn listen<R: Read + Send + 'static>(pipe: Option<R>) -> Ear {
    let heard = Arc::new(Mutex::new(Vec::new()));
    let kept = heard.clone();
    let hear = move |mut pipe: R| {
        let mut bytes = [0; 4096];
        while let Ok(count @ 1..) = pipe.read(&mut bytes) {
            let mut kept = kept.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            let room = WORDS - kept.len();
            kept.extend_from_slice(&bytes[..count.min(room)]);
        }
    };
    let thread = pipe.and_then(|pipe| threads::spawn("child", move || hear(pipe)).ok());
    Ear { thread, heard }
}

impl Ear {
    /// All that was heard, once the pipe is closed; of a process that has ended while others hold it open, what was heard
    /// until then.
    pub(crate) fn words(&self) -> String {
        let start = Instant::now();
        while self.thread.as_ref().is_some_and(|thread| !thread.is_finished()) && start.elapsed() < PATIENCE {
            std::thread::sleep(LOOK);
        }
        let heard = self.heard.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        String::from_utf8_lossy(&heard).into_owned()
    }
}

/// How a process ended, and its last words.
pub(crate) fn how(status: ExitStatus, complaints: &str) -> String {
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

/// What every child does first: it leaves no core, and goes before the server does. Where this or a limit cannot be
/// had, the server's looks are all there is.
pub(crate) fn be_expendable() {
    limit(Resource::Core, 0, 0);
    // Where memory runs out, it is this process that has to go, and not the server.
    let _ = std::fs::write("/proc/self/oom_score_adj", "1000");
}

/// Has this process end with the thread that started it, for one whose end that thread waits for.
pub(crate) fn end_with_parent() {
    let _ = set_parent_process_death_signal(Some(Signal::KILL));
}

/// Lets this process have no more of something. At the current limit of a processor's seconds the kernel says why it
/// ends a process, and not at the maximum.
pub(crate) fn limit(resource: Resource, current: u64, maximum: u64) {
    let _ = setrlimit(resource, Rlimit { current: Some(current), maximum: Some(maximum) });
}

/// The task that [`Running::tell`] wrote.
pub(crate) fn task<T: DeserializeOwned>() -> Result<T, String> {
    let mut task = Vec::new();
    std::io::stdin().read_to_end(&mut task).map_err(|error| error.to_string())?;
    serde_json::from_slice(&task).map_err(|error| error.to_string())
}

/// What is said to whoever starts such a process without being the server; its exit code.
pub(crate) fn no_task(word: &str, place: &str, error: impl Display) -> ExitCode {
    eprintln!("{word} is the server's own, and reads its task from {place}: {error}");
    ExitCode::from(2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_is_told_with_the_last_words() {
        for (status, complaints, told) in [
            (11, "", "SIGSEGV (11)"),
            (12, "first\n last \n\n", "a signal (12): last"),
            (2 << 8, "why\n", "exit code 2: why"),
        ] {
            assert_eq!(how(ExitStatus::from_raw(status), complaints), told);
        }
    }
}
