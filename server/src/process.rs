//! What the kernel knows of this process: time, memory, files. Linux's `/proc` alone; elsewhere there is nothing. And how
//! many files it may open.

use crate::threads;
use backends::LoadError;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::fs;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;
use tokio::sync::Notify;

/// The exit code of a process that gave up because it has lost its device: an internal error, in the words of
/// `sysexits.h`. Whoever supervises it starts another.
pub const LOST: u8 = 70;
/// The exit code of one that gave up because its device does not answer: an error of the system, in the same words.
pub const HUNG: u8 = 71;
/// How long requests of a process that gives up have to get their errors, and its log for the reason.
const LAST_WORDS: Duration = Duration::from_secs(3);
/// How long leaving may take then.
const LEAVING: Duration = Duration::from_secs(2);

/// The exit code of a process that gives up; 0 while it does not.
static GIVING: AtomicU8 = AtomicU8::new(0);
static GIVEN_UP: Notify = Notify::const_new();

/// Ends the process soon with this code, because it cannot do its work any more: requests have a moment to get their
/// errors, and health says no. Returns at once.
pub fn give_up(code: u8, reason: &str) {
    if GIVING.compare_exchange(0, code, Ordering::AcqRel, Ordering::Acquire).is_err() {
        return;
    }
    tracing::error!(reason, "giving up: the process ends within {} s", (LAST_WORDS + LEAVING).as_secs());
    GIVEN_UP.notify_waiters();
    let end = move || {
        std::thread::sleep(LAST_WORDS);
        // What libraries do at an exit may hang as well, where a device does.
        let _ = threads::spawn("giving-up-hard", || {
            std::thread::sleep(LEAVING);
            std::process::abort();
        });
        std::process::exit(code.into());
    };
    if threads::spawn("giving-up", end).is_err() {
        std::process::exit(code.into());
    }
}

/// Gives up where a model could not be loaded because its device is lost: it does not come back to this process.
pub fn give_up_if_lost(model: &str, error: &LoadError) {
    if error.lost {
        give_up(LOST, &format!("the device was lost while model '{model}' was loaded: {}", error.reason));
    }
}

/// The code that the process is about to end with, where it has given up.
pub fn giving_up() -> Option<u8> {
    Some(GIVING.load(Ordering::Acquire)).filter(|code| *code != 0)
}

/// Returns when the process gives up.
pub async fn given_up() {
    let told = GIVEN_UP.notified();
    if giving_up().is_none() {
        told.await;
    }
}

/// Ticks a second of the times in `/proc`: fixed by the kernel's interface to programs.
const TICKS: u64 = 100;
/// Bytes of a page on x86-64 and, as Debian configures it, arm64.
pub const PAGE: u64 = 4096;

/// This process.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Process {
    /// User and system time.
    pub cpu: Duration,
    /// Unix time of its start, in seconds.
    pub started: f64,
    /// Virtual memory.
    pub virtual_bytes: u64,
    /// Resident memory.
    pub resident_bytes: u64,
    /// Open files.
    pub open_files: usize,
    /// Files that may be open.
    pub max_files: u64,
}

impl Process {
    /// Reads it now; nothing where there is no `/proc`.
    pub fn read() -> Option<Self> {
        let text = |name: &str| fs::read_to_string(format!("/proc/{name}")).ok();
        let boot = text("stat")?.lines().find_map(|line| line.strip_prefix("btime ")?.trim().parse::<u64>().ok())?;
        let limits = text("self/limits")?;
        let max_files = limits.lines().find_map(|line| line.strip_prefix("Max open files")).map(str::split_whitespace);
        let max_files = max_files.and_then(|mut words| words.next()?.parse().ok()).unwrap_or(u64::MAX);
        let open_files = open_files()?;
        parse(&text("self/stat")?, boot).map(|process| Process { open_files, max_files, ..process })
    }
}

/// Memory of the machine that programs may still take; `None` where that cannot be told.
pub fn available_bytes() -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// Files that are open now, sockets among them.
pub fn open_files() -> Option<usize> {
    Some(fs::read_dir("/proc/self/fd").ok()?.count())
}

/// Raises the bound of open files to what the system allows; what it is then, `None` where there is none. The usual one
/// is low for the sake of programs that cannot count further, and whoever can is expected to raise it.
pub fn raise_max_files() -> Option<u64> {
    let limit = getrlimit(Resource::Nofile);
    match setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }) {
        Ok(()) => limit.maximum,
        Err(_) => limit.current,
    }
}

/// `/proc/self/stat`: the name in brackets may hold anything, numbers follow it.
fn parse(stat: &str, boot: u64) -> Option<Process> {
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let number = |index: usize| fields.get(index)?.parse::<u64>().ok();
    let ticks = number(11)? + number(12)?;
    Some(Process {
        cpu: Duration::from_millis(ticks * 1000 / TICKS),
        started: boot as f64 + number(19)? as f64 / TICKS as f64,
        virtual_bytes: number(20)?,
        resident_bytes: number(21)? * PAGE,
        open_files: 0,
        max_files: 0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_files_as_the_system_allows() {
        let before = getrlimit(Resource::Nofile).current;
        let raised = raise_max_files();
        assert_eq!(raised, getrlimit(Resource::Nofile).current);
        assert!(before.is_none_or(|before| raised.is_none_or(|raised| raised >= before)));
        assert!(open_files().is_none_or(|open| open > 2));
    }

    #[test]
    fn the_line_that_the_kernel_writes() {
        let stat = "1 (a ) b) S 0 1 1 0 -1 4194560 9 0 0 0 150 50 0 0 20 0 4 0 250 8192000 3 184 1 1 0";
        let process = parse(stat, 1000).unwrap();
        assert_eq!((process.cpu, process.started), (Duration::from_secs(2), 1002.5));
        assert_eq!((process.virtual_bytes, process.resident_bytes), (8_192_000, 3 * PAGE));
        assert_eq!(parse("1 (a) S 1", 0), None);
        assert!(Process::read().is_none_or(|now| now.resident_bytes > 0 && now.open_files > 2));
    }
}
