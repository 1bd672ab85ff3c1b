#!/usr/bin/env bash
# Does a GPU compute what it should? 6 minutes at most, on a machine that has a GPU and Python 3.10 or later and needs
# no Rust: `make gpu` builds gpu/, which is carried there with the tracked files.
#
#   benches/gpu-check.sh               all checks; 'benches/gpu-check.sh kernels assistant' does some
#   benches/gpu-check.sh --minutes 9   more time
#
# A line for each check: ok, FAIL, or LATE where none of the time was left to begin it. By machine code first; what is
# tried by PTX comes last, and is LATE, too, where it was cut off before anything had failed. With OUT set to a folder
# also $OUT/gpu-check.json. Exit status: 0 all passed, 1 some failed, 2 there is no GPU, or no gpu/, 3 none failed and
# some were late.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
exec "${PYTHON:-python3}" benches/gpu/check.py "$@"
