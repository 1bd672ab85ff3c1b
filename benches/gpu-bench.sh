#!/usr/bin/env bash
# How fast does a GPU compute, and beside what? 6 minutes, on a machine that has a GPU, Python 3.10 or later with torch
# and transformers, and needs no Rust: `make gpu` builds gpu/, which is carried there with the tracked files. About 18 GB
# of weights are written to memory or a disk, and removed.
#
#   benches/gpu-bench.sh               all parts; 'benches/gpu-bench.sh limits engine' does some of these:
#                                      limits engine server kernels peers
#   benches/gpu-bench.sh --minutes 9   more time, which the peers get most of
#
# Results go to benches/results/DATE-DEVICE.json, or with OUT set to that folder; beside it gpu-bench.md, the section that
# RESULTS.md takes (`python3 benches/gpu/table.py FILE` makes it again). Exit status: 0 all of ours was measured, 1 some
# was not, 2 there is no GPU, or no gpu/.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
exec "${PYTHON:-python3}" benches/gpu/bench.py "$@"
