"""Measures tensorgate beside its yardsticks and peers, in one run on one machine.

    python run.py --benches BINARY --tensorgate BINARY --models DIR \\
        --mlserver-python PYTHON --peers-python PYTHON --library-python PYTHON --out FILE

DIR is what peers/forest_models.py made; the interpreters are described in README.md.
Whatever is not given is left out. FILE.json gets every number, with machine, commit
and command; FILE.md the tables, which are printed as well.

Only one server runs at a time. All are measured once in each round, so that a busy
minute on the machine hits one round of all of them and not all rounds of one; a
table shows the round with the most requests a second. Before a case is measured, the
server's answer to it is compared with the training library's.
"""

import argparse
import datetime
import json
import os
import platform
import shlex
import socket
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent / "peers"))

import bodies  # noqa: E402
import servers  # noqa: E402
import tables  # noqa: E402

HERE = Path(__file__).resolve().parent
FEATURES = 50


class Rows:
    """Rows without missing values, which JSON cannot carry, and their predictions."""

    def __init__(self, models, model):
        x = (models / "x.f32.bin").read_bytes()
        y = (models / model / "expected.bin").read_bytes()
        rows = list(struct.iter_unpack(f"<{FEATURES}f", x))
        predictions = [value for (value,) in struct.iter_unpack("<f", y)]
        pairs = zip(rows, predictions, strict=True)
        self.pairs = [(row, value) for row, value in pairs if all(v == v for v in row)]

    def take(self, count):
        """Some rows, over and over if there are too few, and their predictions."""
        taken = [self.pairs[i % len(self.pairs)] for i in range(count)]
        return [v for row, _ in taken for v in row], [value for _, value in taken]


class Bench:
    """One run: what was asked for, and what was found."""

    def __init__(self, options, folder):
        self.options, self.folder = options, folder
        self.rows = Rows(options.models, options.model_name)
        self.cases, self.ready, self.refused = [], {}, {}
        # What bare hyper is asked, and answers.
        self.our_input, self.answers = None, {}

    def program(self, *arguments):
        """Runs our program and reads its report; none, and why, where it fails."""
        command = [str(self.options.benches), *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        report = json.loads(done.stdout) if done.stdout.strip() else None
        failure = done.stderr.strip() if done.returncode else None
        if failure and report and report.get("errors"):
            failure += f" {report['errors']}"
        return report, failure

    def case(self, running, name, encoding, batch):
        """Writes a request for the input `name`; gives the arguments that send it."""
        values, _ = self.rows.take(batch)
        shape = [batch, FEATURES]
        path, headers = self.folder / f"{running.server.name}-{encoding}-{batch}", []
        if encoding == "grpc":
            body = bodies.as_grpc(servers.MODEL, name, shape, values)
            target = ["grpc-load", "--address", f"127.0.0.1:{running.server.grpc}"]
        else:
            make = bodies.as_json if encoding == "json" else bodies.as_binary
            body, headers = make(name, shape, values)
            url = running.server.url(f"/v2/models/{servers.MODEL}/infer")
            target = ["load", "--url", url]
        path.write_bytes(body)
        headers = [word for header in headers for word in ("--header", header)]
        return [*target, *headers, "--body", path, "--json"]

    def check(self, call, name, encoding, batch):
        """Why the server's answer is not the library's; nothing where it is."""
        answer = self.folder / f"{name}-{encoding}-{batch}.answer"
        _, failure = self.program(*call, "--seconds", 0.1, "--warmup", 0, "--save", answer)
        if failure:
            return failure
        try:
            got = bodies.read_answer(encoding, answer.read_bytes())
        except (KeyError, ValueError, StopIteration) as error:
            return f"unreadable answer: {error!r}"
        _, expected = self.rows.take(batch)
        if len(got) != len(expected):
            return f"{len(got)} values instead of {len(expected)}"
        worst = max(abs(a - b) for a, b in zip(got, expected, strict=True))
        if worst > 1e-4:
            return f"answers are off by {worst}"
        if name == tables.OURS:
            self.answers[encoding, batch] = answer
        return None

    def measure(self, call, pid, key):
        """One case of one round."""
        _, encoding, batch, concurrency = key
        report, failure = self.program(
            *call, "--concurrency", concurrency, "--seconds", self.options.seconds,
            "--pid", pid, "--allow-errors")
        row = dict(zip(("name", "encoding", "batch", "concurrency"), key, strict=True))
        print("", *key, failure or f"{report['requests_per_second']:.0f}/s", file=sys.stderr)
        if report:
            self.cases.append({**row, **report})
        else:
            self.refused[key[0], encoding, batch] = failure

    def round_of(self, name):
        """Starts a server and measures all its cases."""
        server = servers.make(name, self.options, self.folder)
        log = self.folder / f"{name}.log"
        print(name, file=sys.stderr)
        with servers.Running(server, log) as running:
            input_name = running.input_name()
            if name == tables.OURS:
                self.our_input = input_name
            for encoding in self.options.encoding:
                for batch in self.options.batch:
                    call = self.case(running, input_name, encoding, batch)
                    reason = self.check(call, name, encoding, batch)
                    if reason:
                        self.refused[name, encoding, batch] = reason
                        print("", name, encoding, batch, reason, file=sys.stderr)
                        continue
                    for concurrency in self.options.concurrency:
                        key = (name, encoding, batch, concurrency)
                        self.measure(call, running.child.pid, key)

    def round_of_hyper(self):
        """Bare hyper, asked and answering what tensorgate was."""
        for (encoding, batch), answer in self.answers.items():
            (port,) = servers.free_ports(1)
            grpc = ["--grpc"] if encoding == "grpc" else []
            command = [
                self.options.benches, "baseline", "--port", port, "--response", answer, *grpc]
            server = servers.Server(tables.HYPER, command, port, port, ready="/")
            running = servers.Running(server, self.folder / "hyper.log")
            try:
                wait_for_port(port)
                call = self.case(running, self.our_input, encoding, batch)
                for concurrency in self.options.concurrency:
                    self.measure(call, running.child.pid, (tables.HYPER, encoding, batch, concurrency))
            finally:
                running.stop()

    def time_to_ready(self, name):
        """From exec to the first 200."""
        server = servers.make(name, self.options, self.folder)
        report, failure = self.program(
            "ready", "--url", server.url(server.ready), "--repeat", self.options.starts,
            "--timeout", servers.START_SECONDS, "--json", "--", *server.argv())
        self.ready[name] = report or {"failure": failure}

    def run_servers(self):
        """All rounds, then all starts."""
        names = [n for n in servers.available(self.options) if wanted(self.options.server, n)]
        for number in range(self.options.rounds):
            print(f"round {number + 1} of {self.options.rounds}", file=sys.stderr)
            for name in names:
                try:
                    self.round_of(name)
                except RuntimeError as error:
                    self.refused[name, "every", 0] = str(error).splitlines()[0]
                    print(error, file=sys.stderr)
            self.round_of_hyper()
        for name in names if self.options.starts else []:
            self.time_to_ready(name)

    def run_engines(self):
        """Libraries and our engine, in processes of their own, the best of all rounds."""
        names = sorted(path.parent.name for path in self.options.models.glob("*/meta.json"))
        best, versions = {}, {}
        for _ in range(self.options.rounds):
            for name in names:
                found = self.libraries(name)
                versions = found["versions"]
                for row in [*found["results"], *self.our_engine(name)]:
                    key = (row["model"], row["engine"], row["batch"])
                    known = best.setdefault(key, row)
                    for time_ in ("min_us", "median_us", "cpu_us"):
                        known[time_] = min(known[time_], row[time_])
        return {"versions": versions, "results": list(best.values())}

    def libraries(self, name):
        """Timings of all libraries on one model."""
        command = [
            self.options.library_python, HERE / "peers" / "inprocess.py",
            "--models", self.options.models, "--model", name, "--seconds", self.options.seconds]
        done = subprocess.run(list(map(str, command)), stdout=subprocess.PIPE, text=True, check=True)
        return json.loads(done.stdout)

    def our_engine(self, name):
        """Timings of our engine on one model; none if it cannot read it."""
        report, failure = self.program(
            "forest", "--model", self.options.models / name, "--columns", FEATURES,
            "--seconds", self.options.seconds, "--json")
        if not failure and report["exact"] is False:
            failure = "our answers are wrong"
        if failure:
            print(name, failure, file=sys.stderr)
            return []
        return [
            {"model": name, "engine": tables.OURS, "batch": int(batch), **timing}
            for batch, timing in report["batches"].items()]


def wanted(chosen, name):
    """No choice is all."""
    return not chosen or name in chosen


def wait_for_port(port):
    """Until something listens."""
    for _ in range(200):
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            time.sleep(0.05)
    raise RuntimeError("bare hyper did not start")


def machine():
    """What it ran on."""
    text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    cpu = next((line.split(":")[1].strip() for line in text.splitlines() if "model name" in line), "?")
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "kernel": platform.release(),
        "load_before": os.getloadavg(),
    }


def commit():
    """What was measured, if the binary was built from it."""
    def git(*words):
        return subprocess.run(
            ["git", "-C", str(HERE), *words], capture_output=True, text=True, check=False).stdout

    changed = bool(git("status", "--porcelain", "--untracked-files=no").strip())
    return git("rev-parse", "HEAD").strip() + (" and uncommitted changes" if changed else "")


def arguments():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--benches", type=Path, required=True, help="the binary tensorgate-benches")
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--model-name", default="xgb-d6", help="the model that servers serve")
    parser.add_argument("--out", type=Path, required=True, help="path without extension")
    parser.add_argument("--library-python", type=Path, help="interpreter with the tree libraries")
    servers.add_arguments(parser)
    parser.add_argument("--server", nargs="*", choices=servers.SERVERS, help="all by default")
    parser.add_argument("--encoding", nargs="*", choices=bodies.ENCODINGS, default=bodies.ENCODINGS)
    parser.add_argument("--batch", nargs="*", type=int, default=[1, 64])
    parser.add_argument("--concurrency", nargs="*", type=int, default=[1, 16])
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--starts", type=int, default=5, help="starts to time; 0 for none")
    options = parser.parse_args()
    options.model = options.models / options.model_name / "model.json"
    return options


def main():
    """Measures, writes, prints."""
    options = arguments()
    result = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "command": tables.without_paths(shlex.join(sys.argv)),
        "machine": machine(),
        "model": options.model_name,
    }
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(options, Path(folder))
        bench.run_servers()
        result["cases"], result["ready"] = bench.cases, bench.ready
        result["refused"] = [
            {"server": s, "encoding": e, "batch": b, "reason": reason}
            for (s, e, b), reason in bench.refused.items()]
        if options.library_python:
            result["engines"] = bench.run_engines()
    result["machine"]["load_after"] = os.getloadavg()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    text = tables.render(result)
    options.out.with_suffix(".md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
