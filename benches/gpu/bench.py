"""How fast a GPU computes: kernels, whole models, the server, and peers on the same card. See gpu-bench.sh.

    limits     copies and matrix products by torch: what the card allows
    libraries  torch's attention, and cuBLAS
    engine     tensorgate-benches gpu: whole models through the engine, each in a process of its own
    server     16 GB of safetensors written here: start, then the load of many clients
    kernels    tensorgate-benches gpu: kernels that have goals or peers, each family in a process of its own
    ways       whole models and kernels otherwise than a server has them
    peers      transformers
    rest       all other kernels

Results are written after each row: date-device.json, and the table that benches/RESULTS.md takes as gpu-bench.md.
"""

import argparse
import contextlib
import datetime
import json
import os
import pathlib
import re
import select
import shlex
import signal
import subprocess
import sys
import time

import table
from machine import ROOT, Server, begin, card, commit, output, scratch, start, stop, unpack

PEERS = ROOT / "benches" / "peers" / "gpu_peers.py"
MODEL = ROOT / "benches" / "gpu" / "model.py"
# What a process measures, as its rows begin, and the most seconds that it may take: a fault ends no other.
MODELS = [
    (["decode.qwen3"], 40),
    (["decode.llama-3.1-8b.bf16.", "ttft.", "engine.closed."], 120),
    (["decode.llama-3.1-8b.fp8."], 60),
]
GOALS = [
    (["norm", "rope-write", "silu-mul"], 20),
    # Not all that begins with an m: one format of weights does.
    ([f"gemm.skinny.m{rows}" for rows in [1, 3, 4, 6, 8]], 40),
    (["attention."], 30),
    (["gemm.tiled.", *(f"gemm.wgmma.m{rows}" for rows in [1, 2, 4])], 30),
]
CODES = [f"gemm.skinny.{kind}" for kind in ["fp8", "q8_0", "int8", "q5_k", "q4_k", "awq", "gptq", "mxfp4"]]
REST = [
    ([*CODES, "gemm.wgmma.fp8", "widen.", "quantise-rows"], 80),
    (["experts."], 50),
    (["embed", "gelu", "clamped-swiglu", "shape-logits"], 20),
    (["sampler.", "history-begin"], 20),
    (["make-up.", "update-tables"], 20),
    (["head."], 20),
]
# What no card may have run yet.
NEW = [
    (["gemv."], 20),
    (["gemm.stream."], 25),
    ([f"gemm.pairs.m{rows}" for rows in [1, 2, 4]], 20),
    (["gemm.pairs.fp8"], 20),
]
KERNELS = GOALS + REST + NEW


def otherwise(endings, *rows):
    """Rows of the engine as a server has not got them: which of two that is, is decided where kernels are."""
    return [row + ending for row in rows for ending in endings]


SHORT, PAIRS = (".short", ".long"), (".pairs", ".single")
LLAMA = "decode.llama-3.1-8b"
WAYS = [
    (otherwise(SHORT, "decode.qwen3-0.6b.bf16.b1"), 30),
    (otherwise(SHORT, f"{LLAMA}.bf16.b1", f"{LLAMA}.bf16.b4"), 40),
    (otherwise(PAIRS, f"{LLAMA}.fp8.b256"), 50),
    (otherwise(PAIRS, "ttft.llama-3.1-8b.bf16.1k", *(f"{LLAMA}.bf16.b{rows}" for rows in [1, 4, 32, 256])), 80),
    (otherwise(PAIRS, "decode.qwen3-0.6b.bf16.b1"), 30),
]
# The most seconds that a process may be silent: of ours, and of one that loads torch, or has it compile a model.
SILENT, LOADS, COMPILES = 25, 60, 120
# Seconds that peers leave for what comes after them.
AFTER_PEERS = 70
# What an H200 allows, in GB/s and TFLOP/s, where torch cannot tell.
H200 = {"copy": 4300, "matrix": 790}
CLIENTS = [1, 2, 4, 8, 16, 32, 64, 128, 256]
LLAMA_BYTES = 17_000_000_000
# A prompt of the load, and the lengths of answers, which clients take in turn, so that these do not end all at once: as
# `engine.closed` has them.
PROMPT, ANSWERS = 31, [48 + 7 * turn % 33 for turn in range(33)]
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


class Stopped(Exception):
    """A process was ended, and why."""


def lines(process, said, seconds, silent):
    """What a program prints, line by line, for so long at most. What it says as errors breaks a silence, too."""
    begun = heard = time.monotonic()
    pipe, size, rest = process.stdout, 0, b""
    while True:
        # One that is gone may have left children that hold its output.
        gone = process.poll() is not None
        ready, _, _ = select.select([pipe], [], [], 0 if gone else 0.2)
        more = os.read(pipe.fileno(), 1 << 16) if ready else b""
        if gone and not more:
            return
        *whole, rest = (rest + more).split(b"\n")
        yield from (line.decode(errors="replace") for line in whole)
        now, grown = time.monotonic(), os.fstat(said.fileno()).st_size
        if more or grown > size:
            heard, size = now, grown
        if now - begun > seconds:
            raise Stopped("time was up")
        if now - heard > silent:
            raise Stopped(f"nothing came for {silent} s")
        if ready and not more:
            time.sleep(0.02)


class Bench:
    """The parts, with what they share."""

    def __init__(self, programs, folder, results, seconds, parts=()):
        self.programs, self.folder, self.results, self.parts = programs, folder, results, parts
        self.end = time.monotonic() + seconds

    def left(self):
        """Seconds."""
        return self.end - time.monotonic()

    def at_most(self, seconds):
        """So many seconds, or what is left."""
        return max(min(seconds, self.left()), 1)

    def rows(self, command, seconds, silent=SILENT):
        """Takes over the rows that a program prints, for so long at most."""
        why = None
        with (self.folder / "said").open("w+b") as said:
            process = start(command, stdout=subprocess.PIPE, stderr=said)
            try:
                for line in lines(process, said, max(seconds, 1), silent):
                    self.take(line)
            except Stopped as stopped:
                why = str(stopped)
            finally:
                stop(process)
                process.stdout.close()
            said.seek(0)
            tail = said.read().decode(errors="replace")[-1500:]
        code = process.returncode
        if why is None and code == -signal.SIGKILL:
            why = "was killed, for want of memory perhaps"
        if why or code != 0:
            raise RuntimeError(f"{why or f'exit {code}'}: {tail}")
        print(tail, file=sys.stderr)

    def take(self, line):
        """Takes over a row, or a note."""
        if not line.startswith("{"):
            return
        row = json.loads(line)
        if "note" in row:
            self.results.note(row["note"])
        else:
            self.results.add(row["what"], row["value"], row["unit"], row.get("limit"))
        self.results.write()

    def limits(self):
        """What the card allows."""
        self.rows([sys.executable, PEERS, "limits"], 60, LOADS)

    def libraries(self):
        """What torch's kernels reach."""
        self.rows([sys.executable, PEERS, "libraries"], self.at_most(60), LOADS)

    def limit(self, what):
        """What the card allows: as it was measured, or as it is known."""
        rate = self.results.value(what)
        if rate is None and "H200" in self.results.all["device"]:
            note = f"What the card allows was not measured ({what}): limits are of an H200's {H200[what]:,}."
            if note not in self.results.all["notes"]:
                self.results.note(note)
            rate = H200[what]
        return rate

    def measured(self, groups, *flags):
        """Has each group of rows measured by a process of its own: how many were not measured whole."""
        command, failed = [self.programs["tensorgate-benches"], "gpu", *flags], 0
        for flag, what in [("--copy-rate", "copy"), ("--matrix-rate", "matrix")]:
            if rate := self.limit(what):
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
        return failed

    def engine(self):
        """Whole models."""
        return self.measured(MODELS, "--ways", "served")

    def kernels(self):
        """Kernels that goals were set for."""
        return self.measured(GOALS, "--seconds", "0.1")

    def ways(self):
        """What a server does not do yet."""
        return self.measured(WAYS, "--ways", "others") + self.measured(NEW, "--seconds", "0.1")

    def rest(self):
        """All other kernels."""
        return self.measured(REST, "--seconds", "0.1")

    def server(self):
        """Start out of the page cache, then many clients."""
        with scratch(LLAMA_BYTES + (4 << 30)) as models:
            model = models / "llama"
            self.rows([sys.executable, MODEL, model], self.at_most(60), 60)
            arguments = ["--model-dir", str(model), "--device", "cuda", "--max-model-len", "1280",
                         "--kv-cache-bytes", "40GiB", "--max-num-seqs", "256"]
            times = []
            for last in [False, True]:
                with Server(self.programs["tensorgate"], self.folder, *arguments) as server:
                    server.ready(self.at_most(40))
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
        request = {"model": "llama", "prompt": list(range(1000, 1000 + PROMPT)), "temperature": 0, "ignore_eos": True,
                   "stream": True}
        url = f"http://127.0.0.1:{server.port}/v1/completions"
        load = [self.programs["tensorgate-benches"], "load", "--url", url, "--json"]
        load += ["--warmup", str(WARM), "--seconds", str(MEASURED + 0.5)]
        for turn, tokens in enumerate(ANSWERS):
            body = self.folder / f"body-{turn}.json"
            body.write_text(json.dumps(request | {"max_tokens": tokens}), "utf-8")
            load += ["--body", body]
        shares = []
        for clients in CLIENTS:
            if self.left() < 2 * (WARM + MEASURED):
                raise RuntimeError(f"no time was left for {clients} clients and more")
            try:
                rate = self.rate(server, load, clients)
            except RuntimeError as error:
                self.results.note(f"http.scaling.{clients}: {error}")
                continue
            alone = self.results.value(f"engine.closed.{clients}")
            self.results.add(f"http.scaling.{clients}", rate, "tokens/s", alone)
            shares += [rate / alone] if alone else []
            self.results.write()
        least = min(shares) if len(shares) == len(CLIENTS) else None
        self.results.add("http.scaling", least, "of the engine's own rate, at least", 1)
        if least is None:
            raise RuntimeError("not all numbers of clients were measured, here and by the engine alone")

    def rate(self, server, load, clients):
        """Tokens a second of so many clients."""
        with (self.folder / "said").open("w+b") as said:
            process = start([*load, "--concurrency", str(clients)], stdout=subprocess.DEVNULL, stderr=said)
            try:
                time.sleep(WARM + 0.2)
                before, begun = generated(server), time.perf_counter()
                time.sleep(MEASURED)
                after, ended = generated(server), time.perf_counter()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(self.at_most(15 if after > before else 1))
            finally:
                stop(process)
            said.seek(0)
            if process.returncode != 0 or after == before:
                tail = said.read().decode(errors="replace")[-1500:]
                raise RuntimeError(f"{clients} clients: exit {process.returncode}, {after - before:.0f} tokens: {tail}")
        return (after - before) / (ended - begun)

    def peers(self):
        """What others reach on the same card."""
        seconds = self.left() - (AFTER_PEERS if "rest" in self.parts else 0)
        if seconds < 60:
            raise RuntimeError("no time was left for it")
        self.rows([sys.executable, PEERS, "peers"], seconds, COMPILES)


def generated(server):
    """Tokens that the server has told so far."""
    said = server.get("/metrics")
    return sum(float(value) for value in re.findall(r"^vllm:generation_tokens_total\S* (\S+)", said, re.M))


ORDER = [Bench.limits, Bench.libraries, Bench.engine, Bench.server, Bench.kernels, Bench.ways, Bench.peers, Bench.rest]
PARTS = {part.__name__: part for part in ORDER}
# Ours is measured whole without them.
OTHERS = {"limits", "libraries", "peers"}


def main():
    """Runs the parts, each whatever became of the others."""
    parser = argparse.ArgumentParser(prog="gpu-bench.sh")
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {' '.join(PARTS)}")
    parser.add_argument("--minutes", type=float, default=7.5, help="for all of it: 7.5")
    asked = parser.parse_args()
    if unknown := set(asked.parts) - set(PARTS):
        parser.error(f"no part is called {', '.join(sorted(unknown))}: parts are {' '.join(PARTS)}")
    begin()
    results, failed, parts = Results(card()), 0, asked.parts or list(PARTS)
    with scratch() as folder:
        bench = Bench(unpack(folder), folder, results, 60 * asked.minutes, parts)
        for name, part in PARTS.items():
            if name not in parts:
                continue
            begun = time.monotonic()
            try:
                if bench.left() < 10:
                    raise RuntimeError("no time was left for it")
                missing = part(bench) or 0
            except Exception as error:  # noqa: BLE001, what was measured is to be kept
                missing = 1
                results.note(f"{name}: {type(error).__name__}: {error}")
            failed += 0 if name in OTHERS else missing
            print(f"-- {name}: {time.monotonic() - begun:.0f} s", flush=True)
            with contextlib.suppress(OSError):
                results.write()
    print(pathlib.Path(results.folder / "gpu-bench.md").read_text("utf-8"))
    print(f"all of it: {results.path}")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
