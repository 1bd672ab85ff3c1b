"""How fast a GPU computes: kernels, whole models, the server, and peers on the same card. See gpu-bench.sh.

    limits     copies and matrix products by torch: what the card allows
    engine     tensorgate-benches gpu: kernels and engine in one process
    server     16 GB of safetensors written here: start, then the load of many clients
    peers      transformers, torch and cuBLAS, for as long as time is left

Results are written after each part: date-device.json, and the table that benches/RESULTS.md takes as gpu-bench.md.
"""

import contextlib
import datetime
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import threading
import time

import table
from machine import ROOT, Server, card, commit, output, scratch, unpack

PEERS = ROOT / "benches" / "peers" / "gpu_peers.py"
# All of it, in seconds; and what the peers are stopped at the latest.
BUDGET = 465
CLIENTS = [1, 2, 4, 8, 16, 32, 64, 128, 256]
LLAMA_BYTES = 17_000_000_000
# Prompt and answer of the load, as `engine.closed` has them.
PROMPT, ANSWER = 31, 64
WARM, MEASURED = 1.0, 2.0


class Results:
    """Rows, in a file that is never behind."""

    def __init__(self, gpu):
        self.folder = output(ROOT / "benches" / "results")
        today = datetime.datetime.now(datetime.UTC).date()
        device = re.sub(r"[^a-z0-9]+", "-", gpu["name"].lower()).strip("-")
        self.path = self.folder / f"{today}-{device}.json"
        self.all = {"device": gpu["name"], "driver": gpu["driver"], "commit": commit(),
                    "command": "benches/gpu-bench.sh", "date": str(today), "rows": [], "notes": []}

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

    def __init__(self, programs, folder, results):
        self.programs, self.folder, self.results = programs, folder, results
        self.end = time.monotonic() + BUDGET

    def left(self):
        """Seconds."""
        return self.end - time.monotonic()

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

    def engine(self):
        """Kernels and engine in one process."""
        command = [self.programs["tensorgate-benches"], "gpu"]
        for flag, what in [("--copy-rate", "copy"), ("--matrix-rate", "matrix")]:
            if rate := self.results.value(what):
                command += [flag, str(rate)]
        self.rows(command, min(self.left(), 210))

    def server(self):
        """Start out of the page cache, then many clients."""
        with scratch(LLAMA_BYTES + (4 << 30)) as models:
            model = models / "llama"
            subprocess.run([sys.executable, PEERS, "model", model], check=True, timeout=90)
            arguments = ["--model-dir", str(model), "--device", "cuda", "--max-model-len", "1280",
                         "--kv-cache-bytes", "40GiB", "--max-num-seqs", "256"]
            times = []
            for last in [False, True]:
                with Server(self.programs["tensorgate"], self.folder, *arguments) as server:
                    server.ready(60)
                    body = {"model": "llama", "prompt": [1, 2, 3], "max_tokens": 4, "return_token_ids": True}
                    events = server.stream("/v1/completions", body | {"temperature": 0, "ignore_eos": True})
                    # The first event tells the prompt.
                    next(event for event in events if event["choices"][0].get("token_ids"))
                    times.append(time.perf_counter() - server.began)
                    if last:
                        self.results.add("start.llama-3.1-8b", min(times), "s")
                        both = " and ".join(f"{each:.2f}" for each in times)
                        where = f"files in {models.parent}"
                        self.results.note(f"Of {both} s from exec to first token the better counts; {where}.")
                        self.scaling(server)

    def scaling(self, server):
        """Tokens a second of so many clients, by the server's own counter."""
        body = self.folder / "body.json"
        request = {"model": "llama", "prompt": list(range(1000, 1000 + PROMPT)), "max_tokens": ANSWER,
                   "temperature": 0, "ignore_eos": True, "stream": True}
        body.write_text(json.dumps(request), "utf-8")
        url = f"http://127.0.0.1:{server.port}/v1/completions"
        for clients in CLIENTS:
            load = [self.programs["tensorgate-benches"], "load", "--url", url, "--body", body, "--json",
                    "--concurrency", str(clients), "--warmup", str(WARM), "--seconds", str(MEASURED + 0.5)]
            with subprocess.Popen(load, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
                time.sleep(WARM + 0.2)
                before, began = generated(server), time.perf_counter()
                time.sleep(MEASURED)
                after, ended = generated(server), time.perf_counter()
                _, said = process.communicate(timeout=60)
            if process.returncode != 0:
                raise RuntimeError(f"{clients} clients: {said}")
            rate = (after - before) / (ended - began)
            alone = self.results.value(f"engine.closed.{clients}")
            self.results.add(f"http.scaling.{clients}", rate, "tokens/s", alone)
            self.results.write()

    def peers(self):
        """What others reach on the same card."""
        self.rows([sys.executable, PEERS, "peers"], self.left())


def generated(server):
    """Tokens that the server has told so far."""
    said = server.get("/metrics")
    return sum(float(value) for value in re.findall(r"^vllm:generation_tokens_total\S* (\S+)", said, re.M))


def main():
    """Runs the parts, each whatever became of the others."""
    gpu = card()
    results = Results(gpu)
    only, failed = sys.argv[1:], 0
    with scratch() as folder:
        bench = Bench(unpack(folder), folder, results)
        for part in [Bench.limits, Bench.engine, Bench.server, Bench.peers]:
            if only and part.__name__ not in only:
                continue
            begun = time.monotonic()
            try:
                if bench.left() < 10:
                    raise RuntimeError("no time was left for it")
                part(bench)
            except Exception as error:  # noqa: BLE001, what was measured is to be kept
                # Peers are stopped where they are.
                failed += part is not Bench.peers
                results.note(f"{part.__name__}: {type(error).__name__}: {error}")
            print(f"-- {part.__name__}: {time.monotonic() - begun:.0f} s", flush=True)
            with contextlib.suppress(OSError):
                results.write()
    print(pathlib.Path(results.folder / "gpu-bench.md").read_text("utf-8"))
    print(f"all of it: {results.path}")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
