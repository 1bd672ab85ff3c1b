"""Measures tensorgate beside its yardsticks and peers on one machine.

    python run.py --benches BINARY --tensorgate BINARY --models DIR \\
        --mlserver-python PYTHON --peers-python PYTHON --library-python PYTHON --out DIR

The stages, of which `--only` takes some:

| stage | what | about |
|---|---|---|
| micro | codec and batcher alone | 30 s |
| engines | our tree engine beside the tree libraries, in-process | 4 min |
| servers | tensorgate, bare hyper and the peers under load | 5 min |
| ready | from exec to ready, and memory | 1 min |
| onnx | ONNX models beside ONNX Runtime in-process | 6 min |
| language | language models beside llama.cpp, with ever more clients, beside a tree model | 10 min |
| simulate | the scheduler of language models under simulated clients | 5 min |

Each writes OUT/STAGE.md and OUT/STAGE.json whenever it has found something, so that a
run that is interrupted keeps what it measured, and OUT/all.md is all tables that lie
there, each with its own machine, commit and command. An interpreter that is not given
leaves its peers out. The models are what peers/forest_models.py makes; the
interpreters are described in README.md.
"""

import argparse
import datetime
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent / "peers"))

import bodies  # noqa: E402
import servers  # noqa: E402

from stages import engines, language, machine, micro, onnx, ready, serving, simulate, tables  # noqa: E402

STAGES = {"micro": micro, "engines": engines, "servers": serving, "ready": ready, "onnx": onnx, "language": language,
          "simulate": simulate}  # fmt: skip
# They bring all that they measure, or have models of their own.
WITHOUT_MODELS = {"micro", "onnx", "simulate"}
CASES = ["json:1:1", "json:1:16", "json:64:16", "binary:64:16", "grpc:1:16"]


def case(text):
    """`json:1:16`: encoding, rows, requests at a time."""
    encoding, rows, concurrency = text.split(":")
    if encoding not in bodies.ENCODINGS:
        raise argparse.ArgumentTypeError(f"{encoding}: not one of {', '.join(bodies.ENCODINGS)}")
    return encoding, int(rows), int(concurrency)


def arguments():
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--benches", type=Path, required=True, help="the binary tensorgate-benches")
    parser.add_argument("--models", type=Path, help="what peers/forest_models.py made")
    parser.add_argument("--out", type=Path, required=True, help="folder of the tables")
    parser.add_argument("--only", nargs="*", choices=STAGES, help="all by default")
    parser.add_argument("--rounds", type=int, default=2, help="of servers and engines")
    group = parser.add_argument_group("micro")
    group.add_argument("--micro-seconds", type=float, default=0.5, help="for each measurement")
    group = parser.add_argument_group("language")
    group.add_argument("--llama-python", type=Path, help="interpreter with llama-cpp-python, gguf and numpy")
    group.add_argument("--language-models", type=Path, help="what peers/language_models.py made")
    group.add_argument("--language-kinds", nargs="*", choices=language.KINDS, default=language.KINDS)
    group.add_argument("--language-tokens", type=int, default=32, help="of each stream, where clients are counted")
    group.add_argument("--language-seconds", type=float, default=10.0, help="of load on the tree model")
    group = parser.add_argument_group("onnx")
    group.add_argument("--onnx-models", type=Path, help="what peers/onnx_models.py made")
    group.add_argument("--onnx-threads", type=int, default=os.cpu_count(), help="of the server, and of the library")
    group.add_argument("--onnx-seconds", type=float, default=15.0, help="for each rate of the large model")
    group.add_argument("--onnx-starts", type=int, default=7, help="starts that are timed, of each side")
    group = parser.add_argument_group("simulate")
    group.add_argument("--simulate-requests", type=int, default=100_000, help="for each setting")
    group = parser.add_argument_group("engines")
    group.add_argument("--library-python", type=Path, help="interpreter with the tree libraries")
    group.add_argument("--engine", nargs="*", choices=engines.LIBRARIES, help="all by default")
    group.add_argument("--engine-models", nargs="*", help=f"by default {' '.join(engines.MODELS)}")
    group.add_argument("--engine-batch", nargs="*", type=int, default=[1, 64, 10_000])
    group.add_argument("--engine-seconds", type=float, default=0.7, help="for each engine and batch")
    group = parser.add_argument_group("servers and ready")
    servers.add_arguments(group)
    group.add_argument("--model-name", default="xgb-d8", help="the model that servers serve")
    group.add_argument("--server", nargs="*", choices=servers.SERVERS, help="all by default")
    group.add_argument(
        "--case", nargs="*", type=case, default=[case(text) for text in CASES],
        help=f"ENCODING:ROWS:CONCURRENCY; by default {' '.join(CASES)}")
    group.add_argument("--seconds", type=float, default=2.0, help="for each case")
    group.add_argument("--warmup", type=float, default=0.3, help="seconds before each case")
    group.add_argument("--starts", type=int, default=20, help="starts of ours that are timed")
    group.add_argument("--peer-starts", type=int, default=1, help="starts of each other server")
    group.add_argument("--settle", type=float, default=15.0, help="seconds until memory is looked at again")
    options = parser.parse_args()
    options.only = options.only or list(STAGES)
    if not options.models and not WITHOUT_MODELS.issuperset(options.only):
        parser.error(f"--models is missing; only the stages {', '.join(sorted(WITHOUT_MODELS))} need none")
    if options.models:
        options.model = options.models / options.model_name / "model.json"
    return options


def write(path, text):
    """Whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}")
    draft.write_text(text, encoding="utf-8")
    os.replace(draft, path)


def render(stage, result):
    """A stage's part of the report."""
    parts = [*tables.head(result), *tables.targets_table(stage.targets(result)), *stage.tables(result)]
    return "\n".join(parts)


def run_stage(name, options):
    """Measures, and writes whenever there is more. Did it come to its end?"""
    stage, began = STAGES[name], time.monotonic()
    print(f"== {name}", file=sys.stderr)
    result = {
        "stage": name,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": machine.commit(),
        "command": machine.without_paths(shlex.join(sys.argv)),
        "machine": machine.describe(),
        **machine.others(),
        "finished": False,
    }

    def keep(found):
        result.update(found, seconds=time.monotonic() - began, load_after=os.getloadavg())
        write(options.out / f"{name}.json", json.dumps(result, indent=1) + "\n")
        write(options.out / f"{name}.md", render(stage, result))
        texts = [options.out / f"{each}.md" for each in STAGES]
        write(options.out / "all.md", "\n".join(
            text.read_text(encoding="utf-8") for text in texts if text.exists()))

    found = {}
    try:
        with tempfile.TemporaryDirectory() as folder:
            for found in stage.run(options, Path(folder)):
                keep(found)
        result["finished"] = True
    except (RuntimeError, OSError, subprocess.SubprocessError) as failure:
        result["failure"] = str(failure).splitlines()[0]
        print(f"{name}: {failure}", file=sys.stderr)
    if found:
        keep(found)
        print(render(stage, result), flush=True)
    return result["finished"]


def interrupted(*_):
    """Servers end with us."""
    raise KeyboardInterrupt


def main():
    """One stage after the other; one that fails does not end the run."""
    options = arguments()
    signal.signal(signal.SIGTERM, interrupted)
    try:
        finished = [run_stage(name, options) for name in STAGES if name in options.only]
    except KeyboardInterrupt:
        print(f"interrupted; {options.out} has what was measured", file=sys.stderr)
        sys.exit(130)
    sys.exit(0 if all(finished) else 1)


if __name__ == "__main__":
    main()
