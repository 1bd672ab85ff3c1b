"""Language models: beside llama.cpp on the same files, with ever more clients, and beside a tree model.

llama.cpp runs in its own process and samples nothing; we are asked over HTTP with streams. Only one of the two runs at a
time: the other is stopped. Without the interpreter that has llama.cpp, a model of the same shape is made up, and the peer
is left out.
"""

import json
import os
import random
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import bodies
import language_client
from language_shape import write_config

from stages import machine, program
from stages.tables import at_least, at_most, number, table

KINDS = ("q4_k_m", "q8_0", "bf16")
MEASURES = {"prompt": "prompt of 512", "decode_1": "one sequence", "decode_16": "sixteen sequences"}
# How many times as fast as llama.cpp.
BOUNDS = {"prompt": 1.3, "decode_1": 1.4, "decode_16": 1.5}
CLIENTS = (1, 2, 4, 8, 16, 32, 64)
# More than a server and its peer take of memory.
START_BYTES = 3 << 30
TREE = "tree"
# Seconds without work after which a server has none, and those in which it has to come to that.
IDLE = 1.0
MOST_LAYING_OUT = 120
# Requests a second for the tree model: a tenth of what one core could do, so that only waiting shows.
TREE_RATE = 100
PEER = Path(__file__).resolve().parent.parent / "peers" / "llamacpp.py"


class Server:
    """A server with a language model `m`, and with a tree model where there is one."""

    def __init__(self, options, repository, *more):
        self.port = free_port()
        words = [options.tensorgate, "serve", "--model-repository", repository, "--max-model-len", "2048", "--host",
                 "127.0.0.1", "--http-port", self.port, "--grpc-port", "off", "--drain-delay", "0s", *more]
        self.begun = begun = time.perf_counter()
        self.child = subprocess.Popen(
            [str(word) for word in words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while not self.ready():
            if self.child.poll() is not None:
                raise RuntimeError(f"the server ended with {self.child.returncode}")
            time.sleep(0.02)
        self.client = language_client.Client("127.0.0.1", self.port, "m")
        self.client.stream([300], 1)
        self.first_token = time.perf_counter() - begun

    def ready(self):
        try:
            urllib.request.urlopen(self.url("/v2/health/ready"), timeout=5).close()
        except OSError:
            return False
        return True

    def url(self, path):
        return f"http://127.0.0.1:{self.port}{path}"

    def answering_seconds(self):
        """Processor time so far of each thread that neither computes nor steps: those read, write and turn tokens to text."""
        found = {}
        for task in Path(f"/proc/{self.child.pid}/task").iterdir():
            name = (task / "comm").read_text(encoding="utf-8").strip()
            if not name.startswith(("compute-", "llm-engine")):
                found[task.name] = int((task / "schedstat").read_text(encoding="utf-8").split()[0]) / 1e9
        return found

    def laid_out(self):
        """Seconds from the start until it has nothing to do: weights are laid out anew when nobody asks for anything."""
        while True:
            last, since = self.seconds(), time.perf_counter()
            time.sleep(IDLE)
            # A thread that looks after something now and then is no work.
            if self.seconds() - last < 0.02 * IDLE:
                return since - self.begun
            if since - self.begun > MOST_LAYING_OUT:
                raise RuntimeError(f"a server that nobody asks still computes after {MOST_LAYING_OUT} s")

    def seconds(self):
        """Processor time so far."""
        words = Path(f"/proc/{self.child.pid}/stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()
        return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")

    def stop(self):
        self.child.terminate()
        self.child.wait()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()


def free_port():
    """One that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def run(options, folder):
    """What each stage found, added to what was found before."""
    result = {"files": {}, "clients": [], "overhead": None, "beside": None}
    numbers = random.Random(3)
    if options.llama_python:
        for kind in options.language_kinds:
            result["files"][kind] = compare(options, folder, kind, numbers)
            yield result
    with Server(options, repository(options, folder, "q4_k_m", tree=True), *dummy(options)) as server:
        best = dict.fromkeys(CLIENTS, 0.0)
        # From one to all, and again: what else the host does slows one round down, and another not.
        for clients in CLIENTS * options.rounds:
            rate = language_client.decode_rate(server.client, numbers, clients, 16, options.language_tokens)
            best[clients] = max(best[clients], rate)
            result["clients"] = [(clients, rate) for clients, rate in best.items() if rate > 0]
            print(clients, f"{rate:.1f} tokens/s", file=sys.stderr)
            yield result
        result["overhead"] = overhead(server, numbers, options.language_tokens)
        yield result
        result["beside"] = beside(options, folder, server, numbers)
    yield result


def dummy(options):
    """Without files weights are made up."""
    return [] if options.llama_python else ["--load-format", "dummy"]


def repository(options, folder, kind, tree=False):
    """A repository with the language model, and the tree model where wished for."""
    root = folder / f"models-{kind}-{tree}"
    (root / "m").mkdir(parents=True)
    if options.llama_python:
        link(options.language_models / kind / "model.gguf", root / "m" / "model.gguf")
    else:
        write_config(root / "m")
    if tree:
        (root / TREE).mkdir()
        link(options.model, root / TREE / "model.json")
    return root


def link(file, place):
    """The same file at another place; a link by name would lead out of the model's directory, which is refused."""
    try:
        os.link(file.resolve(), place)
    except OSError:
        shutil.copyfile(file, place)


def compare(options, folder, kind, numbers):
    """Tokens/s of both, in turns, and the seconds from the start of both servers to their first tokens."""
    rounds = []
    machine.fault_in(START_BYTES)
    with Server(options, repository(options, folder, kind)) as server:
        laid_out = server.laid_out()
        for _ in range(options.rounds):
            ours = {
                "prompt": language_client.prompt_rate(server.client, numbers, 512, 1),
                "decode_1": language_client.decode_rate(server.client, numbers, 1, 16, 48),
                "decode_16": language_client.decode_rate(server.client, numbers, 16, 16, 32),
            }
            server.child.send_signal(signal.SIGSTOP)
            try:
                words = [options.llama_python, PEER, options.language_models / kind / "model.gguf", "--steps", "48"]
                found = subprocess.run([str(word) for word in words], check=True, capture_output=True, text=True)
            finally:
                server.child.send_signal(signal.SIGCONT)
            rounds.append((ours, json.loads(found.stdout.splitlines()[-1])))
            print(kind, json.dumps(rounds[-1]), file=sys.stderr)
    starts = [(server.first_token, peer_start(options, kind))]
    for _ in range(2):
        machine.fault_in(START_BYTES)
        with Server(options, folder / f"models-{kind}-False") as server:
            starts.append((server.first_token, peer_start(options, kind)))
    return {"rounds": rounds, "starts": starts, "laid_out": laid_out}


def peer_start(options, kind):
    """Seconds from the start of llama.cpp's server, as its Python package has it, to its first token over HTTP."""
    port = free_port()
    file = options.language_models / kind / "model.gguf"
    words = [options.llama_python, "-m", "llama_cpp.server", "--model", file, "--n_ctx", "2048", "--port", port]
    asked = json.dumps({"prompt": "a", "max_tokens": 1}).encode()
    machine.fault_in(START_BYTES)
    begun = time.perf_counter()
    child = subprocess.Popen([str(word) for word in words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while True:
            request = urllib.request.Request(f"http://127.0.0.1:{port}/v1/completions", asked,
                                             {"content-type": "application/json"})
            try:
                urllib.request.urlopen(request, timeout=60).read()
                return time.perf_counter() - begun
            except OSError:
                if child.poll() is not None:
                    raise RuntimeError(f"llama.cpp's server ended with {child.returncode}") from None
                time.sleep(0.02)
    finally:
        child.kill()
        child.wait()


def overhead(server, numbers, tokens):
    """Processor time for each streamed token of sixteen clients that is not the engine's."""
    before = server.answering_seconds()
    counts = []
    prompts = [[numbers.randrange(300, 150_000) for _ in range(16)] for _ in range(16)]
    everybody(lambda ids: counts.append(len(server.client.stream(ids, 4 * tokens))), prompts)
    # Threads that had nothing to do for long may end meanwhile.
    after = server.answering_seconds()
    return sum(seconds - before.get(task, 0) for task, seconds in after.items()) / sum(counts)


def everybody(work, items):
    """Each on a thread of its own."""
    threads = [threading.Thread(target=work, args=(item,)) for item in items]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def beside(options, folder, server, numbers):
    """Latencies of the tree model at a rate: alone, while sixteen clients stream, and alone again."""
    values, _ = program.Rows(options.models, options.model_name).take(1)
    body, headers = bodies.as_json("input-0", [1, program.FEATURES], values)
    (folder / "tree.json").write_bytes(body)

    def load():
        arguments = ["load", "--url", server.url(f"/v2/models/{TREE}/infer"), "--body", folder / "tree.json", "--rate",
                     TREE_RATE, "--concurrency", 8, "--seconds", options.language_seconds, "--json"]
        for header in headers:
            arguments += ["--header", header]
        return program.must_run(options, *arguments)

    alone, stop = load(), threading.Event()

    def stream(ids):
        while not stop.is_set():
            server.client.stream(ids, 64)

    prompts = [[numbers.randrange(300, 150_000) for _ in range(16)] for _ in range(16)]
    busy = threading.Thread(target=everybody, args=(stream, prompts))
    busy.start()
    try:
        # Until all of them stream.
        time.sleep(3)
        together = load()
    finally:
        stop.set()
        busy.join()
    return {"alone": [alone, load()], "together": together}


def p99(report):
    """Milliseconds."""
    return report["latency"]["p99_us"] / 1e3


def ratios(found, measure):
    """Ours over theirs, round by round."""
    return [ours[measure] / theirs[measure] for ours, theirs in found["rounds"]]


def targets(result):
    """What was to be reached."""
    found = []
    for kind, numbers in result.get("files", {}).items():
        for measure, what in MEASURES.items():
            bound = 1.1 if (kind, measure) == ("bf16", "decode_1") else BOUNDS[measure]
            found += at_least(f"{kind}, {what}, over llama.cpp", bound, statistics.median(ratios(numbers, measure)), "x")
        ours, theirs = map(statistics.median, zip(*numbers["starts"]))
        found += at_least(f"{kind}, start to first token, llama.cpp's server over ours", 3, theirs / ours, "x")
    rates = [rate for _, rate in result.get("clients", [])]
    if len(rates) > 1:
        worst = min(after / before for before, after in zip(rates, rates[1:]))
        found += at_least("tokens/s with twice the clients, at worst", 1, worst, "x")
    if result.get("overhead"):
        found += at_most("processor time around the engine for a streamed token", 30, result["overhead"] * 1e6, " us")
    if result.get("beside"):
        alone = min(map(p99, result["beside"]["alone"]))
        found += at_most("p99 of a tree model beside sixteen streams, over alone", 2,
                         p99(result["beside"]["together"]) / alone, "x")
    return found


def tables(result):
    """Rates, clients, latencies."""
    rows = []
    for kind, found in result.get("files", {}).items():
        for measure, what in MEASURES.items():
            ours, theirs = (statistics.median(round_[side][measure] for round_ in found["rounds"]) for side in (0, 1))
            ratio = statistics.median(ratios(found, measure))
            rows.append([kind, what, number(ours), number(theirs), f"{ratio:.2f}"])
        ours, theirs = map(statistics.median, zip(*found["starts"]))
        rows.append([kind, "from start to first token, s", f"{ours:.2f}", f"{theirs:.2f}", f"{theirs / ours:.2f}"])
        # Rates are taken from then on; what a request costs before, the start tells.
        rows.append([kind, "from start until weights are laid out, s", f"{found['laid_out']:.2f}", "", ""])
    if rows:
        yield "Tokens a second; medians of rounds, and the median of the rounds' ratios.\n"
        yield table(["file", "what", "tensorgate", "llama.cpp", "ratio"], rows)
    if result.get("clients"):
        yield "Streams of 16 tokens of prompt, while all of them generate; the best of the rounds.\n"
        yield table(["clients", "tokens/s"], [[str(clients), number(rate)] for clients, rate in result["clients"]])
    if result.get("beside"):
        yield f"A tree model asked {TREE_RATE} times a second, latencies in ms.\n"
        reports = [("alone", result["beside"]["alone"][0]), ("sixteen streams", result["beside"]["together"]),
                   ("alone again", result["beside"]["alone"][1])]
        yield table(["beside", "p50", "p99"], [
            [name, number(report["latency"]["p50_us"] / 1e3), number(p99(report))] for name, report in reports])
