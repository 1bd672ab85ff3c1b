"""How fast a GPU computes: kernels, whole models, the server, and peers on the same card. See gpu-bench.sh.

    limits     copies and matrix products by torch: what the card allows
    engine     tensorgate-benches gpu: whole models through the engine, each in a process of its own
    server     16 GB of safetensors written here: start, then the load of many clients
    kernels    tensorgate-benches gpu: kernels by themselves, each family in a process of its own
    peers      transformers, torch and cuBLAS, for as long as time is left

Results are written after each part: date-device.json, and the table that benches/RESULTS.md takes as gpu-bench.md.
"""

import argparse
import contextlib
import datetime
import json
import os
import pathlib
import re
import shlex
import signal
import subprocess
import sys
import threading
import time

import table
from machine import ROOT, Server, card, commit, output, scratch, unpack

PEERS = ROOT / "benches" / "peers" / "gpu_peers.py"
# What a process measures, as its rows begin, and the most seconds that it may take: a fault ends no other.
MODELS = [
    (["decode.qwen3"], 40),
    (["decode.llama-3.1-8b.bf16.", "ttft.", "engine.closed."], 160),
    (["decode.llama-3.1-8b.fp8."], 80),
]
FEW = [f"gemm.{way}.m{rows}" for way in ["skinny", "stream"] for rows in ["1", "4", "8", "32", "64"]]
CODES = [f"gemm.skinny.{kind}" for kind in ["fp8", "q8_0", "int8", "q5_k", "q4_k", "awq", "gptq", "mxfp4"]]
KERNELS = [
    (["attention."], 30),
    ([*FEW, "gemv.", "gemm.tiled.", "gemm.wgmma.m", "gemm.pairs.m"], 50),
    (["norm", "rope-write", "silu-mul"], 20),
    ([*CODES, "gemm.wgmma.fp8", "gemm.pairs.fp8", "widen.", "quantise-rows"], 60),
    (["experts."], 40),
    (["embed", "gelu", "clamped-swiglu", "shape-logits"], 20),
    (["sampler.", "history-begin"], 20),
    (["make-up.", "update-tables"], 20),
]
CLIENTS = [1, 2, 4, 8, 16, 32, 64, 128, 256]
LLAMA_BYTES = 17_000_000_000
# Prompt and answer of the load, as `engine.closed` has them.
PROMPT, ANSWER = 31, 64
WARM, MEASURED = 1.0, 2.0


class Results:
    """Rows, in a file that is never behind."""

    def __init__(self, gpu):
        self.folder = output(ROOT / "benches" / "results")
        today = datetime.datetime.now(datetime.timezone.utc).date()
        device = re.sub(r"[^a-z0-9]+", "-", gpu["name"].lower()).strip("-")
        self.path = self.folder / f"{today}-{device}.json"
        self.all = {"device": gpu["name"], "driver": gpu["driver"], "commit": commit(),
                    "command": shlex.join(["benches/gpu-bench.sh", *sys.argv[1:]]),
                    "date": str(today), "rows": [], "notes": []}

    def value(self, what):
        """A row's value."""
        return next((row["value"] for row in self.all["rows"] if row["what"] == what), None)

    def add(self, what, value, unit, limit=None):
        """One more row."""
        print(f"{what:44} {'' if value is None else f'{value:,.4g}':>10} {unit}", flush=True)
        self.all["rows"].append({"what": what, "value": value, "unit": unit, "limit": limit})

    def note(self, text):
        """Something that a reader should know."""
        print(text, flush=True)
        self.all["notes"].append(text)

    def write(self):
        """Both files."""
        self.path.write_text(json.dumps(self.all, indent=1) + "\n", "utf-8")
        (self.folder / "gpu-bench.md").write_text(table.section(self.all), "utf-8")


class Bench:
    """The parts, with what they share."""

    def __init__(self, programs, folder, results, seconds):
        self.programs, self.folder, self.results = programs, folder, results
        self.end = time.monotonic() + seconds

    def left(self):
        """Seconds."""
        return self.end - time.monotonic()

    def at_most(self, seconds):
        """So many seconds, or what is left."""
        return max(min(seconds, self.left()), 1)

    def rows(self, command, seconds):
        """Takes over the rows that a program prints, for so long at most."""
        with (self.folder / "said").open("w+b") as said:
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=said, text=True, start_new_session=True)
            # Its children hold the card's memory, too.
            timer = threading.Timer(max(seconds, 1), os.killpg, (process.pid, signal.SIGKILL))
            timer.start()
            for line in process.stdout:
                if line.startswith("{"):
                    row = json.loads(line)
                    if "note" in row:
                        self.results.note(row["note"])
                    else:
                        self.results.add(row["what"], row["value"], row["unit"], row.get("limit"))
                    self.results.write()
            code = process.wait()
            timer.cancel()
            said.seek(0)
            tail = said.read().decode(errors="replace")[-1500:]
        if code != 0:
            raise RuntimeError(f"exit {code}{' (time was up)' if code == -signal.SIGKILL else ''}: {tail}")
        print(tail, file=sys.stderr)

    def limits(self):
        """What the card allows."""
        self.rows([sys.executable, PEERS, "limits"], 60)

    def measured(self, groups, *flags):
        """Has each group of rows measured by a process of its own; what is missing at the end is an error."""
        command, failed = [self.programs["tensorgate-benches"], "gpu", *flags], 0
        for flag, what in [("--copy-rate", "copy"), ("--matrix-rate", "matrix")]:
            if rate := self.results.value(what):
                command += [flag, str(rate)]
        for rows, seconds in groups:
            only = [word for row in rows for word in ("--only", row)]
            try:
                if self.left() < 5:
                    raise RuntimeError("no time was left for it")
                self.rows(command + only, min(self.left(), seconds))
            except Exception as error:  # noqa: BLE001, the others are still to be measured
                failed += 1
                self.results.note(f"{', '.join(rows)}: {type(error).__name__}: {error}")
        if failed:
            raise RuntimeError(f"{failed} of {len(groups)} groups of rows were not measured whole")

    def engine(self):
        """Whole models."""
        self.measured(MODELS)

    def kernels(self):
        """Kernels by themselves. Those that goals were set for come first."""
        self.measured(KERNELS, "--seconds", "0.1")

    def server(self):
        """Start out of the page cache, then many clients."""
        with scratch(LLAMA_BYTES + (4 << 30)) as models:
            model = models / "llama"
            subprocess.run([sys.executable, PEERS, "model", model], check=True, timeout=self.at_most(90))
            arguments = ["--model-dir", str(model), "--device", "cuda", "--max-model-len", "1280",
                         "--kv-cache-bytes", "40GiB", "--max-num-seqs", "256"]
            times = []
            for last in [False, True]:
                with Server(self.programs["tensorgate"], self.folder, *arguments) as server:
                    server.ready(self.at_most(60))
                    body = {"model": "llama", "prompt": [1, 2, 3], "max_tokens": 4, "return_token_ids": True}
                    events = server.stream("/v1/completions", body | {"temperature": 0, "ignore_eos": True})
                    # The first event tells the prompt.
                    next(event for event in events if event["choices"][0].get("token_ids"))
                    times.append(time.perf_counter() - server.began)
                    server.runs_graphs()
                    if last:
                        self.results.add("start.llama-3.1-8b", min(times), "s")
                        both = " and ".join(f"{each:.2f}" for each in times)
                        where = f"files in {models.parent}"
                        self.results.note(f"Of {both} s from exec to first token the better counts; {where}.")
                        self.scaling(server)
                        server.runs_graphs()

    def scaling(self, server):
        """Tokens a second of so many clients, by the server's own counter."""
        body = self.folder / "body.json"
        request = {"model": "llama", "prompt": list(range(1000, 1000 + PROMPT)), "max_tokens": ANSWER,
                   "temperature": 0, "ignore_eos": True, "stream": True}
        body.write_text(json.dumps(request), "utf-8")
        url = f"http://127.0.0.1:{server.port}/v1/completions"
        shares = []
        for clients in CLIENTS:
            if self.left() < 2 * (WARM + MEASURED):
                raise RuntimeError(f"no time was left for {clients} clients and more")
            load = [self.programs["tensorgate-benches"], "load", "--url", url, "--body", body, "--json",
                    "--concurrency", str(clients), "--warmup", str(WARM), "--seconds", str(MEASURED + 0.5)]
            with subprocess.Popen(load, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
                time.sleep(WARM + 0.2)
                before, began = generated(server), time.perf_counter()
                time.sleep(MEASURED)
                after, ended = generated(server), time.perf_counter()
                _, said = process.communicate(timeout=self.at_most(60))
            if process.returncode != 0:
                raise RuntimeError(f"{clients} clients: {said}")
            rate = (after - before) / (ended - began)
            alone = self.results.value(f"engine.closed.{clients}")
            self.results.add(f"http.scaling.{clients}", rate, "tokens/s", alone)
            shares += [rate / alone] if alone else []
            self.results.write()
        least = min(shares) if len(shares) == len(CLIENTS) else None
        self.results.add("http.scaling", least, "of the engine's own rate, at least", 1)

    def peers(self):
        """What others reach on the same card."""
        self.rows([sys.executable, PEERS, "peers"], self.left())


def generated(server):
    """Tokens that the server has told so far."""
    said = server.get("/metrics")
    return sum(float(value) for value in re.findall(r"^vllm:generation_tokens_total\S* (\S+)", said, re.M))


PARTS = {part.__name__: part for part in [Bench.limits, Bench.engine, Bench.server, Bench.kernels, Bench.peers]}


def main():
    """Runs the parts, each whatever became of the others."""
    parser = argparse.ArgumentParser(prog="gpu-bench.sh")
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {' '.join(PARTS)}")
    parser.add_argument("--minutes", type=float, default=6, help="for all of it: 6")
    asked = parser.parse_args()
    if unknown := set(asked.parts) - set(PARTS):
        parser.error(f"no part is called {', '.join(sorted(unknown))}: parts are {' '.join(PARTS)}")
    gpu = card()
    results, failed = Results(gpu), 0
    with scratch() as folder:
        bench = Bench(unpack(folder), folder, results, 60 * asked.minutes)
        for name, part in PARTS.items():
            if asked.parts and name not in asked.parts:
                continue
            begun = time.monotonic()
            try:
                if bench.left() < 10:
                    raise RuntimeError("no time was left for it")
                part(bench)
            except Exception as error:  # noqa: BLE001, what was measured is to be kept
                # Peers are stopped where they are.
                failed += part is not Bench.peers
                results.note(f"{name}: {type(error).__name__}: {error}")
            print(f"-- {name}: {time.monotonic() - begun:.0f} s", flush=True)
            with contextlib.suppress(OSError):
                results.write()
    print(pathlib.Path(results.folder / "gpu-bench.md").read_text("utf-8"))
    print(f"all of it: {results.path}")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
