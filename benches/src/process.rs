//! What a process and its descendants cost, from `/proc`.
//!
//! Servers that fork (worker processes, interpreters beside the server) are counted whole: the tree under the given
//! process is read anew each time. The time of processes that ended in between is lost, and the kernel counts processor
//! time in ticks, so a measurement should last seconds.

use serde::Serialize;
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::time::Duration;

/// The unit of processor time in `/proc`: 1/100 s on every Linux, whatever the kernel's own timer.
pub(crate) const TICK: Duration = Duration::from_millis(10);

/// The cost of a process tree so far.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(crate) struct Usage {
    /// Processor time, user and system.
    #[serde(skip)]
    pub(crate) cpu: Duration,
    /// Memory now, bytes. Pages that processes share are counted once for each.
    pub(crate) resident_bytes: u64,
    /// The sum of each process's largest memory so far, bytes.
    pub(crate) resident_peak_bytes: u64,
    /// Processes in the tree.
    pub(crate) processes: usize,
}

/// Reads the cost of `pid` and its descendants.
///
/// # Errors
/// The process is gone.
pub(crate) fn usage(pid: u32) -> io::Result<Usage> {
    let mut total = Usage { cpu: cpu(pid)?, ..Usage::default() };
    let children = children()?;
    let mut pending = vec![pid];
    while let Some(process) = pending.pop() {
        if process != pid {
            total.cpu += cpu(process).unwrap_or_default();
        }
        let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
        total.resident_bytes += kilobytes(&status, "VmRSS:") << 10;
        total.resident_peak_bytes += kilobytes(&status, "VmHWM:") << 10;
        total.processes += 1;
        pending.extend(children.get(&process).into_iter().flatten());
    }
    Ok(total)
}

/// Processor time of this process.
pub(crate) fn own_cpu() -> Duration {
    cpu(std::process::id()).unwrap_or_default()
}

/// The processes of the machine by parent.
fn children() -> io::Result<BTreeMap<u32, Vec<u32>>> {
    let mut children: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    for entry in fs::read_dir("/proc")? {
        let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        // Processes end while the list is read.
        let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else { continue };
        if let Some(parent) = field(&stat, 4) {
            children.entry(parent as u32).or_default().push(pid);
        }
    }
    Ok(children)
}

fn cpu(pid: u32) -> io::Result<Duration> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let ticks = field(&stat, 14).unwrap_or(0) + field(&stat, 15).unwrap_or(0);
    Ok(TICK * ticks as u32)
}

/// A number of `/proc/PID/stat`, counted from 1 as proc(5) does. The second field is the program's name in
/// parentheses, which may itself have spaces and parentheses.
fn field(stat: &str, number: usize) -> Option<u64> {
    let after_name = &stat[stat.rfind(')')? + 1..];
    after_name.split_ascii_whitespace().nth(number - 3)?.parse().ok()
}

fn kilobytes(status: &str, key: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix(key));
    line.and_then(|rest| rest.trim().trim_end_matches(" kB").parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::{field, kilobytes, usage};

    #[test]
    fn fields_are_counted_after_the_name() {
        let stat = "7 (a (b) c) S 3 7 7 0 -1 4194304 100 0 0 0 25 17 0 0 20 0 1 0 5";
        assert_eq!([field(stat, 4), field(stat, 14), field(stat, 15)], [Some(3), Some(25), Some(17)]);
        assert_eq!(kilobytes("VmHWM:\t    9 kB\nVmRSS:\t  12 kB\n", "VmRSS:"), 12);
    }

    #[test]
    fn this_process_has_a_cost() {
        let usage = usage(std::process::id()).unwrap();
        assert!(usage.processes >= 1 && usage.resident_bytes > 0 && usage.resident_peak_bytes > 0);
    }
}
