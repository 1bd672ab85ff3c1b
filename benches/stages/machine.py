"""What is measured on, and what else it does meanwhile."""

import mmap
import os
import platform
import re
import subprocess
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
# What code paths are chosen by.
FLAGS = re.compile(r"avx|fma$|bmi|gfni|amx|asimd|sve")


def describe():
    """What does not change during a run."""
    text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    fields = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    fields = {name.strip(): value.strip() for name, value in fields.items()}
    flags = fields.get("flags", fields.get("Features", "")).split()
    return {
        "cpu": fields.get("model name", platform.machine()),
        "flags": " ".join(sorted(flag for flag in flags if FLAGS.match(flag))),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "kernel": platform.release(),
    }


def cpu_times():
    """Ticks since the start of the machine: busy, stolen."""
    first = Path("/proc/stat").read_text(encoding="utf-8").split("\n", 1)[0]
    user, nice, system, _, _, interrupt, soft, steal = map(int, first.split()[1:9])
    return user + nice + system + interrupt + soft, steal


def others(seconds=1.0):
    """Cores that others keep busy, and cores that the host gives to others, while we sleep."""
    before, began = cpu_times(), time.monotonic()
    time.sleep(seconds)
    ticks = os.sysconf("SC_CLK_TCK") * (time.monotonic() - began)
    busy, stolen = ((after - was) / ticks for after, was in zip(cpu_times(), before, strict=True))
    return {"load_before": os.getloadavg(), "busy_before": busy, "stolen_before": stolen}


def fault_in(size):
    """Touches so many bytes, and frees them. A virtual machine gets its memory from the host when it is first touched, and
    gives it back some seconds after it was freed: the start of a server is not to be the measure of that."""
    with mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        # In large pages, which is what is there afterwards for everybody.
        memory.madvise(mmap.MADV_HUGEPAGE)
        memory[:: mmap.PAGESIZE] = bytes(len(memory[:: mmap.PAGESIZE]))


def commit():
    """What is measured, if the binaries were built from it."""
    def git(*words):
        return subprocess.run(
            ["git", "-C", str(HERE), *words], capture_output=True, text=True, check=False).stdout

    changed = bool(git("status", "--porcelain", "--untracked-files=no").strip())
    return git("rev-parse", "--short=12", "HEAD").strip() + (" and uncommitted changes" if changed else "")


def without_paths(command):
    """A command line that says nothing of the machine's folders."""
    return re.sub(r"(?<![\w.])/(?:[^\s/]+/)+", "", command)
