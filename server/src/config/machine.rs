//! What the machine, or the container around us, grants: cores and memory.

use std::path::{Path, PathBuf};

/// What there is to use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Machine {
    /// Cores that may be used at a time: affinity and cgroup quota are counted in.
    pub cores: usize,
    /// Bytes of memory before the kernel kills the process.
    pub memory: u64,
}

/// Taken when nothing can be found out.
const ASSUMED_MEMORY: u64 = 1 << 30;

impl Machine {
    /// Asks the operating system.
    #[must_use]
    pub fn detect() -> Self {
        // The standard library reads affinity and the quotas of cgroup v1 and v2.
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Machine { cores, memory: memory(Path::new("/")).unwrap_or(ASSUMED_MEMORY) }
    }
}

/// The least of the physical memory and of every limit from our control group up to the root.
fn memory(root: &Path) -> Option<u64> {
    let groups = std::fs::read_to_string(root.join("proc/self/cgroup")).unwrap_or_default();
    let limits = groups.lines().filter_map(group_limit_files(root)).flatten().filter_map(|file| number(&file));
    limits.chain(physical(root)).min()
}

/// For a line of `/proc/self/cgroup`, as `0::/pod/container` (v2) or `7:memory:/pod/container` (v1), the files that
/// may hold a limit. In a container the path may be the host's: then only the last of them exists.
fn group_limit_files(root: &Path) -> impl Fn(&str) -> Option<Vec<PathBuf>> {
    move |line| {
        let mut parts = line.splitn(3, ':').skip(1);
        let (controllers, path) = (parts.next()?, parts.next()?);
        let (mount, file) = match controllers {
            "" => ("sys/fs/cgroup", "memory.max"),
            list if list.split(',').any(|each| each == "memory") => ("sys/fs/cgroup/memory", "memory.limit_in_bytes"),
            _ => return None,
        };
        let group = Path::new(path.trim_start_matches('/'));
        Some(group.ancestors().map(|group| root.join(mount).join(group).join(file)).collect())
    }
}

/// `max` and files that are not there are no limit.
fn number(file: &Path) -> Option<u64> {
    std::fs::read_to_string(file).ok()?.trim().parse().ok()
}

fn physical(root: &Path) -> Option<u64> {
    let text = std::fs::read_to_string(root.join("proc/meminfo")).ok()?;
    let total = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    total.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file tree as it lies in `/proc` and `/sys`.
    fn tree(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        root
    }

    const MEMINFO: (&str, &str) = ("proc/meminfo", "MemTotal:       16384000 kB\nMemFree: 1 kB\n");

    #[test]
    fn version_two_limits_count_up_to_the_root() {
        let root = tree(&[
            MEMINFO,
            ("proc/self/cgroup", "0::/pod/container\n"),
            ("sys/fs/cgroup/pod/container/memory.max", "max\n"),
            ("sys/fs/cgroup/pod/memory.max", "2147483648\n"),
        ]);
        assert_eq!(memory(root.path()), Some(2 << 30));
    }

    #[test]
    fn version_one_limits_under_the_path_of_the_host() {
        let root = tree(&[
            MEMINFO,
            ("proc/self/cgroup", "8:cpu,cpuacct:/x\n7:memory:/kubepods/pod1\n"),
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", "1073741824\n"),
        ]);
        assert_eq!(memory(root.path()), Some(1 << 30));
    }

    #[test]
    fn without_limits_it_is_what_is_built_in() {
        let root = tree(&[
            MEMINFO,
            ("proc/self/cgroup", "7:memory:/\n"),
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712"),
        ]);
        assert_eq!(memory(root.path()), Some(16_384_000 * 1024));
        assert_eq!(memory(tree(&[]).path()), None);
    }

    #[test]
    fn this_machine_has_some_of_each() {
        let machine = Machine::detect();
        assert!(machine.cores >= 1);
        assert!(machine.memory > 0);
    }
}
