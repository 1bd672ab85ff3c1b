"""Lays programs that cargo has built into gpu/, stripped and packed, for a machine that has a GPU and no Rust.

    cargo build --message-format=json-render-diagnostics ... | python3 benches/gpu/pack.py

Cargo's messages say where each program is. What has been laid there before stays.
"""

import gzip
import json
import pathlib
import shutil
import subprocess
import sys
import tempfile

from machine import CARRIED, PROGRAMS, ROOT

# Cargo's names of targets, where they say too little.
NAMES = {("test", "cuda"): "test-kernels", ("test", "llm"): "test-llm"}
# What travels, with the files that git knows.
MOST = 64 << 20


def programs(lines):
    """(name, path) of every program that is wanted."""
    for line in lines:
        message = json.loads(line) if line.startswith("{") else {}
        if message.get("reason") == "compiler-artifact" and (path := message.get("executable")):
            target = message["target"]
            name = NAMES.get((target["kind"][0], target["name"]), target["name"])
            if name in PROGRAMS:
                yield name, pathlib.Path(path)


def pack(name, path):
    """Without symbols, and as small as it goes."""
    with tempfile.TemporaryDirectory() as folder:
        stripped = pathlib.Path(folder) / name
        subprocess.run(["strip", "-o", stripped, path], check=True)
        with stripped.open("rb") as source, gzip.open(CARRIED / f"{name}.gz", "wb") as target:
            shutil.copyfileobj(source, target)


def git(*arguments):
    """What git says."""
    return subprocess.run(["git", "-C", ROOT, *arguments], capture_output=True, text=True, check=True).stdout


def main():
    """Packs, and says how much there is."""
    CARRIED.mkdir(exist_ok=True)
    for name, path in programs(sys.stdin):
        pack(name, path)
        print(f"gpu/{name}.gz: {(CARRIED / f'{name}.gz').stat().st_size / 1e6:.1f} MB")
    changed = " and changes" if git("status", "--porcelain").strip() else ""
    (CARRIED / "commit").write_text(git("rev-parse", "HEAD").strip() + changed + "\n", "utf-8")
    tracked = [ROOT / name for name in git("ls-files", "-z").split("\0") if name]
    size = sum(path.stat().st_size for path in [*tracked, *CARRIED.iterdir()] if path.is_file())
    if size > MOST:
        sys.exit(f"gpu/ and the tracked files are {size / (1 << 20):.1f} MiB; {MOST >> 20} may travel")


if __name__ == "__main__":
    main()
