"""ONNX models: beside ONNX Runtime in a process of its own, on the same files with as many threads.

Only one of the two works at a time: while the library does, the server is stopped. Rates are of both sides' best way
to be called; what the server adds to a call is measured on a small graph, beside bare hyper with the same bytes; starts
are timed from exec. Other servers of ONNX models do not run here: MLServer has no runtime for them on PyPI, and the
Triton that nvidia-pytriton carries has the Python backend alone.
"""

import array
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import bodies
import servers

from stages import machine, program
from stages.serving import wait_for_port
from stages.tables import HYPER, MB, OURS, at_least, at_most, number, rows_of, table

PEER = Path(__file__).resolve().parent.parent / "peers" / "onnx_inprocess.py"
BIG, SMALL = "resnet50", "small"
MODELS = {BIG: "ResNet-50", "dense": "24 layers of 1,024 x 1,024", SMALL: "50-32-3"}
# More than a start takes of memory.
START_BYTES = 1 << 30
# What starts are timed with: about 100 MB each.
STARTED = (BIG, "dense")
IN_PROCESS = "onnxruntime"
# Rows of a request, and requests at a time for each thread: one alone, and enough that nobody waits.
LOADS = ((1, 0), (1, 1), (1, 4), (8, 2))
# A call has one thread, and as many calls run as there are threads: as two callers of the library that have one each.
ONE_THREAD = "[onnx]\nintra_op_threads = 1\n\n[[instance_group]]\ncount = {threads}\n"
SMALL_LOADS = (("binary", 1), ("json", 1), ("binary", 16), ("json", 16))


class Model:
    """A folder of peers/onnx_models.py."""

    def __init__(self, options, name):
        self.name, self.folder = name, options.onnx_models / name
        self.file = self.folder / "model.onnx"
        meta = json.loads((self.folder / "meta.json").read_text(encoding="utf-8"))
        self.input, self.shape = meta["input"], meta["shape"]
        self.values = array.array("f", (self.folder / "rows.f32.bin").read_bytes())
        self.width = len(self.values) // meta["rows"]

    def request(self, folder, encoding, rows):
        """Writes one; gives the arguments that send it."""
        values = self.values[: rows * self.width]
        make = bodies.as_json if encoding == "json" else bodies.as_binary
        body, headers = make(self.input, [rows, *self.shape], values)
        path = folder / f"{self.name}-{encoding}-{rows}"
        path.write_bytes(body)
        return ["--body", path, "--json", *(word for header in headers for word in ("--header", header))]


def serve(options, folder, names, settings=""):
    """Our server with these models, and with these settings for each: beside the threads, all else is at its default."""
    for name in names:
        target = folder / "models" / name / "model.onnx"
        target.parent.mkdir(parents=True)
        source = options.onnx_models / name / "model.onnx"
        try:
            os.link(source.resolve(), target)
        except OSError:
            shutil.copyfile(source, target)
        if settings:
            (target.parent / "model.toml").write_text(settings, encoding="utf-8")
    http, grpc = servers.free_ports(2)
    command = [options.tensorgate, "serve", "--model-repository", folder / "models", "--host", "127.0.0.1",
               "--http-port", http, "--grpc-port", grpc, "--nthread", options.onnx_threads, "--drain-delay", "0s"]
    return servers.Server(OURS, command, http, grpc)


def in_process(options, what, model, *words):
    """The library's report; none, and why, where there is none."""
    if not options.library_python:
        return None
    command = [options.library_python, PEER, what, model.folder, *words]
    done = subprocess.run(list(map(str, command)), check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


class Stopped:
    """While the library computes, the server does not run at all."""

    def __init__(self, running):
        self.child = running.child

    def __enter__(self):
        self.child.send_signal(signal.SIGSTOP)

    def __exit__(self, *_):
        self.child.send_signal(signal.SIGCONT)


class Bench:
    """What was found so far."""

    def __init__(self, options, folder):
        self.options, self.folder = options, folder
        self.rates, self.calls, self.starts, self.refused, self.version = [], [], {}, [], None

    def result(self):
        """For tables, and to be kept."""
        return {"threads": self.options.onnx_threads, "version": self.version, "rates": self.rates, "calls": self.calls,
                "starts": self.starts, "refused": self.refused}

    def load(self, running, model, encoding, rows, concurrency, *words):
        """One report of the load generator; none where it fails, which is noted."""
        url = running.server.url(f"/v2/models/{model.name}/infer")
        call = ["load", "--url", url, *model.request(self.folder, encoding, rows), "--concurrency", concurrency]
        report, failure = program.run(self.options, *call, "--pid", running.child.pid, *words)
        rate = failure or f"{report['requests_per_second']:.1f}/s"
        print("", model.name, encoding, rows, concurrency, rate, file=sys.stderr)
        if failure:
            self.refused.append(f"{MODELS[model.name]}, {encoding}, {rows_of(rows)}: {failure.splitlines()[0]}")
        return None if failure else report

    def check(self, running, model, encoding, rows, expected):
        """Are the server's answers the library's? The answer itself is what bare hyper will give."""
        path = self.folder / f"{model.name}-{encoding}-{rows}.answer"
        if not self.load(running, model, encoding, rows, 1, "--seconds", 0.1, "--warmup", 0, "--save", path):
            return None
        got = bodies.read_answer(encoding, path.read_bytes())
        if expected is not None:
            pairs = zip(got, expected, strict=True) if len(got) == len(expected) else ()
            worst = max((abs(a - b) / max(1, abs(b)) for a, b in pairs), default=float("inf"))
            if worst > 1e-3:
                raise RuntimeError(f"{model.name}, {rows_of(rows)}: answers are off by {worst}")
        return path

    def rates_of_round(self, round_):
        """Requests until nobody of the server's waits, and the library's best calls in between."""
        options, model = self.options, Model(self.options, BIG)
        threads, seconds = options.onnx_threads, ("--seconds", options.onnx_seconds)
        with servers.Running(serve(options, new(self.folder), [BIG]), self.folder / "rates.log") as running:
            for rows in dict.fromkeys(rows for rows, _ in LOADS):
                expected = None
                for callers, each in sorted({(1, threads), (threads, 1)}):
                    with Stopped(running):
                        words = ("--rows", rows, "--threads", each, "--callers", callers, *seconds)
                        report = in_process(options, "rate", model, *words)
                    if report:
                        expected = report["answer"]
                        self.add_rate(round_, IN_PROCESS, rows, callers, report["calls_per_second"], report)
                        self.version = report["version"]
                self.check(running, model, "binary", rows, expected)
                self.rates_of_ours(round_, running, model, rows)
        settings = ONE_THREAD.format(threads=threads)
        server = serve(options, new(self.folder), [BIG], settings)
        with servers.Running(server, self.folder / "rates.log") as running:
            for rows in dict.fromkeys(rows for rows, _ in LOADS):
                self.rates_of_ours(round_, running, model, rows, one_thread=True)

    def rates_of_ours(self, round_, running, model, rows, one_thread=False):
        """Requests of so many rows, ever more at a time; a thread for each is nothing for one alone."""
        threads = self.options.onnx_threads
        for concurrency in (max(1, each * threads) for count, each in LOADS if count == rows):
            if one_thread and concurrency < threads:
                continue
            report = self.load(running, model, "binary", rows, concurrency, "--seconds", self.options.onnx_seconds)
            if report:
                rate, latency = report["requests_per_second"], report["latency"]
                self.add_rate(round_, OURS, rows, concurrency, rate, latency, one_thread)

    def add_rate(self, round_, side, rows, at_a_time, calls, latency, one_thread=False):
        """One measurement."""
        times = {key: latency[key] for key in ("p50_us", "p99_us")}
        found = {"round": round_, "side": side, "rows": rows, "at_a_time": at_a_time, "rows_per_second": calls * rows}
        self.rates.append({**found, "one_thread": one_thread, **times})
        print("", side, rows, at_a_time, f"{calls * rows:.1f} rows/s", file=sys.stderr)

    def calls_of_round(self, round_):
        """The small graph over HTTP, in the library, and bare hyper with the same bytes."""
        options, model = self.options, Model(self.options, SMALL)
        seconds, answers = ("--seconds", options.seconds), {}
        with servers.Running(serve(options, new(self.folder), [SMALL]), self.folder / "calls.log") as running:
            expected = None
            for way, words in (("run", ()), ("bound", ("--bound",))):
                with Stopped(running):
                    report = in_process(options, "rate", model, *words, *seconds)
                if report:
                    expected = report.pop("answer")
                    self.calls.append({"round": round_, "side": IN_PROCESS, "way": way, "at_a_time": 1, **report})
            for encoding, concurrency in SMALL_LOADS:
                if encoding not in answers:
                    answers[encoding] = self.check(running, model, encoding, 1, expected)
                self.one_call(round_, OURS, running, model, encoding, concurrency)
        for encoding, answer in answers.items():
            (port,) = servers.free_ports(1)
            command = [options.benches, "baseline", "--port", port, "--response", answer]
            running = servers.Running(servers.Server(HYPER, command, port, port, ready="/"), self.folder / "hyper.log")
            try:
                wait_for_port(port)
                for concurrency in (count for each, count in SMALL_LOADS if each == encoding):
                    self.one_call(round_, HYPER, running, model, encoding, concurrency)
            finally:
                running.stop()

    def one_call(self, round_, side, running, model, encoding, concurrency):
        """One measurement."""
        words = ("--seconds", self.options.seconds, "--warmup", self.options.warmup)
        report = self.load(running, model, encoding, 1, concurrency, *words)
        if report:
            self.calls.append({
                "round": round_, "side": side, "way": encoding, "at_a_time": concurrency,
                "calls_per_second": report["requests_per_second"],
                "cpu_us": report["server"]["cpu_us_per_request"],
                **{key: report["latency"][key] for key in ("p50_us", "p99_us")}})

    def starts_of(self, name):
        """Starts of both in turns, from exec; what of theirs is the library's loading, it says itself."""
        options, model = self.options, Model(self.options, name)
        ours, theirs, resident = [], [], 0
        server = serve(options, new(self.folder), [name])
        for _ in range(options.onnx_starts):
            machine.fault_in(START_BYTES)
            report, failure = program.run(
                options, "ready", "--url", server.url(server.ready), "--repeat", 1,
                "--timeout", servers.START_SECONDS, "--json", "--", *server.argv())
            if failure:
                self.refused.append(f"{MODELS[name]}, start: {failure.splitlines()[0]}")
                break
            ours.append(report["median_ms"])
            resident = report["resident_bytes"]
            if options.library_python:
                theirs.append(start_in_process(options, model))
        print("", name, ours, theirs, file=sys.stderr)
        self.starts[name] = {"file_bytes": model.file.stat().st_size, "ready_ms": ours, "resident_bytes": resident,
                             "in_process": theirs}


def start_in_process(options, model):
    """Milliseconds of a new process: all of it until the model is loaded, and its parts."""
    command = [options.library_python, PEER, "load", model.folder, "--threads", options.onnx_threads]
    machine.fault_in(START_BYTES)
    begun = time.perf_counter()
    with subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, text=True) as child:
        first = child.stdout.readline()
        whole = time.perf_counter() - begun
        second = child.stdout.readline()
    if child.returncode or not second:
        raise RuntimeError(f"onnx_inprocess.py load ended with {child.returncode}")
    parts = {**json.loads(first), **json.loads(second)}
    return {"exec_ms": whole * 1e3, **{name.replace("_s", "_ms"): value * 1e3 for name, value in parts.items()}}


def new(folder):
    """A folder for one server."""
    path = folder / f"server-{len(list(folder.iterdir()))}"
    path.mkdir()
    return path


def run(options, folder):
    """Rounds of rates and of calls; starts once."""
    if not options.onnx_models or not options.tensorgate:
        raise RuntimeError("onnx: --onnx-models and --tensorgate are needed")
    bench = Bench(options, folder)
    for round_ in range(1, options.rounds + 1):
        print(f"onnx, round {round_} of {options.rounds}", file=sys.stderr)
        bench.rates_of_round(round_)
        yield bench.result()
        bench.calls_of_round(round_)
        yield bench.result()
    for name in STARTED:
        bench.starts_of(name)
        yield bench.result()


def best_rates(result, rows):
    """Of each round the best of ours and of theirs."""
    rounds = {}
    for each in result["rates"]:
        if each["rows"] == rows:
            best = rounds.setdefault(each["round"], {})
            best[each["side"]] = max(best.get(each["side"], 0), each["rows_per_second"])
    return [best for best in rounds.values() if len(best) == 2]


def medians(result, way, at_a_time, side, key):
    """Over the rounds; none where nothing was measured."""
    found = [each[key] for each in result["calls"]
             if (each["way"], each["at_a_time"], each["side"]) == (way, at_a_time, side) and key in each]
    return statistics.median(found) if found else None


def bare_call(result):
    """Microseconds of the library's call, the faster way of the two."""
    found = [medians(result, way, 1, IN_PROCESS, "p50_us") for way in ("run", "bound")]
    return min((each for each in found if each is not None), default=None)


def start_times(found):
    """Medians: ours, and of theirs the whole process, the import, the load and the first call."""
    keys = ("exec_ms", "import_ms", "load_ms", "first_call_ms")
    theirs = found["in_process"]
    medians_ = [statistics.median(each[key] for each in theirs) for key in keys] if theirs else []
    return statistics.median(found["ready_ms"]) if found["ready_ms"] else None, medians_


def targets(result):
    """What was to be reached."""
    found = []
    for rows in dict.fromkeys(rows for rows, _ in LOADS):
        ratios = [100 * best[OURS] / best[IN_PROCESS] for best in best_rates(result, rows)]
        if ratios:
            what = f"{MODELS[BIG]}, {rows_of(rows)} a request: rate, of that of onnxruntime in-process"
            found += at_least(what, 95, statistics.median(ratios), " %")
    call = bare_call(result)
    for encoding in ("binary", "json"):
        p50 = medians(result, encoding, 1, OURS, "p50_us")
        if p50 and call:
            found += at_most(f"latency that serving adds to a small graph, p50, {encoding}", 80, p50 - call, " us")
    for name, starts in result["starts"].items():
        ours, theirs = start_times(starts)
        if ours and theirs:
            what = f"{MODELS[name]}, {starts['file_bytes'] / MB:.0f} MB: exec to ready, times"
            found += at_most(f"{what} onnxruntime's load alone", 1.3, ours / theirs[2], "x")
    return found


def rate_rows(result):
    """A row for each way of being asked, of all rounds the best."""
    best = {}
    for each in result["rates"]:
        key = (each["rows"], each["side"], each["one_thread"], each["at_a_time"])
        if key not in best or each["rows_per_second"] > best[key]["rows_per_second"]:
            best[key] = each
    for (rows, side, one_thread, at_a_time), each in sorted(best.items()):
        who = f"{side}, {at_a_time} x {result['threads'] // at_a_time} threads"
        if side == OURS:
            who = f"**{OURS}**, {at_a_time} at a time" + ", a thread each" * one_thread
        numbers = (each["rows_per_second"], each["p50_us"] / 1e3, each["p99_us"] / 1e3)
        yield [rows_of(rows), who, *map(number, numbers)]


def call_rows(result):
    """A row for each side and way."""
    call = bare_call(result)
    for way, at_a_time in dict.fromkeys((each["way"], each["at_a_time"]) for each in result["calls"]):
        for side in (IN_PROCESS, OURS, HYPER):
            p50, p99, rate, cpu = (medians(result, way, at_a_time, side, key)
                                   for key in ("p50_us", "p99_us", "calls_per_second", "cpu_us"))  # fmt: skip
            if p50 is None:
                continue
            added = number(p50 - call) if call and side == OURS and at_a_time == 1 else ""
            who = {IN_PROCESS: [f"{IN_PROCESS}, {way}", ""], OURS: [f"**{OURS}**", way], HYPER: [HYPER, way]}[side]
            yield [*who, str(at_a_time), *map(number, (rate, p50, p99)), added, number(cpu)]


def tables(result):
    """Rates, what serving adds, starts."""
    version = f" {result['version']}" if result["version"] else ""
    yield (f"ONNX Runtime{version} in a Python process and in our server, the same files, {result['threads']} threads "
           "each. Client and server share the cores. MLServer has no runtime for ONNX models on PyPI, and the Triton "
           "that runs here has no backend for them: neither is measured.\n")
    rows = list(rate_rows(result))
    if rows:
        yield f"### {MODELS[BIG]}, binary tensors\n"
        yield table(["a request", "who", "rows/s", "p50 ms", "p99 ms"], rows)
    rows = list(call_rows(result))
    if rows:
        yield "### A small graph, one row a request\n"
        yield table(["who", "encoding", "at a time", "calls/s", "p50 us", "p99 us", "added us", "CPU us/request"], rows)
        yield ("Medians of rounds. *Added* is over the library's faster way to be called: *bound* has input and output "
               "in place before the clock starts.\n")
    rows = []
    for name, found in result["starts"].items():
        ours, theirs = start_times(found)
        rows.append([MODELS[name], number(found["file_bytes"] / MB), number(ours), number(found["resident_bytes"] / MB),
                     *(number(each) for each in theirs or [None] * 4)])
    if rows:
        yield "### Starts, ms\n"
        yield table(["model", "file MB", "**tensorgate**, exec to ready", "MB then", "Python, exec to loaded",
                     "of it import", "of it InferenceSession", "first call after that"], rows)
        yield "Medians; files lie in the page cache. Ours calls the model once before it is ready.\n"
    if result["refused"]:
        yield "Not measured:\n"
        yield "".join(f"* {each}\n" for each in result["refused"])
