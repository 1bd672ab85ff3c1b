#!/usr/bin/env bash
# Does a GPU compute what it should? 6 minutes at most, on a machine that has a GPU and Python 3.10 or later and needs
# no Rust: `make gpu` builds gpu/, which is carried there with the tracked files.
#
#   benches/gpu-check.sh               all checks; 'benches/gpu-check.sh kernels assistant' does some
#   benches/gpu-check.sh --minutes 9   more time
#
# A line for each check: ok, FAIL, or LATE where time was up before it was done and nothing had failed. Each module of
# tests has a process and a limit of its own: one that faults or hangs costs no other what it found. By machine code
# first, what servers use before what no card may have run yet; what is tried by PTX comes last. Tests that fail are
# told at once, and run once more, each alone. With CUDA_LAUNCH_BLOCKING=1 launches do not overlap: a result that is
# wrong then, too, is wrong by its arithmetic. With OUT set to a folder also $OUT/gpu-check.json. Exit status: 0 all
# passed, 1 some failed, 2 there is no GPU, or no gpu/, 3 none failed and some were late. A signal to end ends all that
# was started.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
exec "${PYTHON:-python3}" benches/gpu/check.py "$@"
