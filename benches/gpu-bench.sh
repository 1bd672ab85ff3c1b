#!/usr/bin/env bash
# How fast does a GPU compute, and beside what? 7.5 minutes, on a machine that has a GPU and Python 3.10 or later, and
# needs no Rust: `make gpu` builds gpu/, which is carried there with the tracked files. Limits and peers need torch, and
# transformers; without torch an H200's limits are taken as known. 16 GB of weights are written to memory or a disk, and
# removed, also where a signal ends the run.
#
#   benches/gpu-bench.sh               all parts; 'benches/gpu-bench.sh limits engine' does some, which are in order
#                                      limits libraries engine server kernels ways peers rest
#   benches/gpu-bench.sh --minutes 9   more time, which the peers get most of
#
# What goals were set for comes first, then what servers do not use yet (ways), then what has no goal. Each family of
# rows has a process of its own, which is ended where its time is up or where nothing came of it for 25 s. Results go to
# benches/results/DATE-DEVICE.json, or with OUT set to that folder; beside it gpu-bench.md, the section that RESULTS.md
# takes (`python3 benches/gpu/table.py FILE` makes it again). Exit status: 0 all of ours was measured, 1 some was not, 2
# there is no GPU, or no gpu/.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
exec "${PYTHON:-python3}" benches/gpu/bench.py "$@"
