//! What the kernel knows of this process: time, memory, files. Linux's `/proc` alone; elsewhere there is nothing. And how
//! many files it may open.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::fs;
use std::time::Duration;

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
