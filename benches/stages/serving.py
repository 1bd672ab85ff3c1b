"""Servers under load: ours, its peers, and bare hyper.

Only one server runs at a time. All are measured once in each round, so that a busy
minute on the machine hits one round of all of them and not all rounds of one; a
table shows the round with the most requests a second. Before a case is measured, the
server's answer to it is compared with the training library's.
"""

import array
import socket
import sys
import time

import bodies
import servers

from stages import program
from stages.ready import loaded_bytes, over_the_model
from stages.tables import HYPER, MB, OURS, at_least, at_most, name_of, number, rows_of, table, times

# Name, encoding, rows, concurrency.
KEY = ("name", "encoding", "batch", "concurrency")


class Bench:
    """What was found so far."""

    def __init__(self, options, folder):
        self.options, self.folder = options, folder
        self.rows = program.Rows(options.models, options.model_name)
        self.cases, self.refused, self.in_process = [], {}, []
        self.loaded_bytes = None
        # What bare hyper is asked, and answers.
        self.our_input, self.answers = None, {}

    def result(self):
        """For tables, and to be kept."""
        return {
            "model": self.options.model_name,
            "model_file_bytes": self.options.model.stat().st_size,
            "model_loaded_bytes": self.loaded_bytes,
            "cases": self.cases,
            "in_process": self.in_process,
            "refused": [
                {"server": server, "what": what, "reason": reason}
                for (server, what), reason in self.refused.items()],
        }

    def request(self, running, name, encoding, batch):
        """Writes a request for the input `name`; gives the arguments that send it."""
        values, _ = self.rows.take(batch)
        shape = [batch, program.FEATURES]
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
        _, failure = program.run(
            self.options, *call, "--seconds", 0.1, "--warmup", 0, "--save", answer)
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
        if name == OURS:
            self.answers[encoding, batch] = answer
        return None

    def measure(self, round_, call, pid, key):
        """One case of one round."""
        report, failure = program.run(
            self.options, *call, "--concurrency", key[3], "--seconds", self.options.seconds,
            "--warmup", self.options.warmup, "--pid", pid, "--allow-errors")
        print("", *key, failure or f"{report['requests_per_second']:.0f}/s", file=sys.stderr)
        if report:
            self.cases.append({"round": round_, **dict(zip(KEY, key, strict=True)), **report})
        else:
            self.refused[key[0], f"{key[1]}, {rows_of(key[2])}"] = failure

    def round_of(self, round_, name):
        """Starts a server and measures all its cases."""
        server = servers.make(name, self.options, self.folder)
        print(name, file=sys.stderr)
        with servers.Running(server, self.folder / f"{name}.log") as running:
            input_name = running.input_name()
            if name == OURS:
                self.our_input, self.loaded_bytes = input_name, loaded_bytes(running)
            reasons = {}
            for encoding, batch, concurrency in self.options.case:
                call = self.request(running, input_name, encoding, batch)
                if (encoding, batch) not in reasons:
                    reasons[encoding, batch] = self.check(call, name, encoding, batch)
                if reason := reasons[encoding, batch]:
                    self.refused[name, f"{encoding}, {rows_of(batch)}"] = reason
                    print("", name, encoding, batch, reason, file=sys.stderr)
                    continue
                self.measure(round_, call, running.child.pid, (name, encoding, batch, concurrency))

    def round_of_hyper(self, round_):
        """Bare hyper, asked and answering what tensorgate was."""
        for (encoding, batch), answer in self.answers.items():
            (port,) = servers.free_ports(1)
            grpc = ["--grpc"] if encoding == "grpc" else []
            command = [
                self.options.benches, "baseline", "--port", port, "--response", answer, *grpc]
            server = servers.Server(HYPER, command, port, port, ready="/")
            running = servers.Running(server, self.folder / "hyper.log")
            try:
                wait_for_port(port)
                call = self.request(running, self.our_input, encoding, batch)
                for case in self.options.case:
                    if case[:2] == (encoding, batch):
                        self.measure(round_, call, running.child.pid, (HYPER, *case))
            finally:
                running.stop()

    def round_in_process(self, round_):
        """The calls alone that clients made one at a time, on the very rows that they sent."""
        for batch in sorted({batch for _, batch, concurrency in self.options.case if concurrency == 1}):
            rows = self.folder / f"{batch}.f32.bin"
            values, _ = self.rows.take(batch)
            rows.write_bytes(bodies.floats(values))
            report, failure = program.run(
                self.options, "forest", "--model", self.options.models / self.options.model_name,
                "--rows", rows, "--columns", program.FEATURES, "--batch", batch,
                "--seconds", min(1.0, self.options.seconds), "--json")
            if failure:
                self.refused["in-process call", f"{rows_of(batch)}"] = failure
            else:
                self.in_process.append({"round": round_, "batch": batch, **report["batches"][str(batch)]})


def wait_for_port(port):
    """Until something listens."""
    for _ in range(200):
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            time.sleep(0.05)
    raise RuntimeError("bare hyper did not start")


def run(options, folder):
    """All rounds. Ours comes first: hyper repeats its answers."""
    bench, names = Bench(options, folder), servers.chosen(options)
    for round_ in range(1, options.rounds + 1):
        print(f"servers, round {round_} of {options.rounds}", file=sys.stderr)
        for name in names:
            try:
                bench.round_of(round_, name)
            except RuntimeError as error:
                bench.refused[name, "all"] = str(error).splitlines()[0]
                print(error, file=sys.stderr)
            if name == OURS:
                bench.round_in_process(round_)
                bench.round_of_hyper(round_)
            yield bench.result()


def best_rounds(result):
    """The round with the most requests a second, by case."""
    best = {}
    for case in result["cases"]:
        key = tuple(case[name] for name in KEY)
        if key not in best or case["requests_per_second"] > best[key]["requests_per_second"]:
            best[key] = case
    return best


def server_row(name, case, ours):
    """One server in one case."""
    rate, server, latency = case["requests_per_second"], case["server"], case["latency"]
    cpu, errors = server["cpu_us_per_request"], sum(case["errors"].values())
    by = (lambda *_: "") if name == OURS else times
    return [
        name_of(name) + (f" ({errors} errors)" if errors else ""),
        number(rate), by(ours.get("requests_per_second"), rate),
        *(number(latency[key]) for key in ("p50_us", "p99_us", "p999_us")),
        number(cpu), by(cpu, ours.get("server", {}).get("cpu_us_per_request")),
        number(server["resident_peak_bytes"] / MB),
    ]


def added_latency(result):
    """Of one request at a time over the bare call, in the same round: (encoding, rows, p50, call)."""
    calls = {(call["round"], call["batch"]): call["median_us"] for call in result["in_process"]}
    for (name, encoding, batch, concurrency), case in best_rounds(result).items():
        call = calls.get((case["round"], batch))
        if name == OURS and concurrency == 1 and call:
            yield encoding, batch, case["latency"]["p50_us"], call


def tables(result):
    """A table for each case with a row for each server; then what serving adds to a call."""
    yield (f"Model {result['model']}. Client and server share the cores. *Ours by* is how many times its requests/s "
           "we answer; *by ours* how many times our CPU time it takes.\n")
    best = best_rounds(result)
    for case in dict.fromkeys(key[1:] for key in best):
        found = {key[0]: row for key, row in best.items() if key[1:] == case}
        ours = found.get(OURS, {})
        by_rate = sorted(found.items(), key=lambda item: -item[1]["requests_per_second"])
        yield f"### {case[0]}, {rows_of(case[1])}, {case[2]} at a time\n"
        yield table(
            ["server", "requests/s", "ours by", "p50 us", "p99 us", "p99.9 us", "CPU us/request",
             "by ours", "peak MB"], [server_row(name, row, ours) for name, row in by_rate])
    added = list(added_latency(result))
    if added:
        yield "### What serving adds to a call\n"
        yield table(
            ["one at a time", "p50 us", "in-process call us", "added us"],
            [[f"{encoding}, {rows_of(batch)}", number(p50), number(call), number(p50 - call)]
             for encoding, batch, p50, call in added])
    if result["refused"]:
        yield "Not measured:\n"
        yield "".join(f"* {r['server']}, {r['what']}: {r['reason']}\n" for r in result["refused"])


def targets(result):
    """Those of one row in V2 JSON."""
    best, found = best_rounds(result), []
    many = {key[0]: case for key, case in best.items() if key[1:] == ("json", 1, 16)}
    rates = {name: case["requests_per_second"] for name, case in many.items()}
    ours = rates.get(OURS)
    if not ours:
        return []
    if HYPER in rates:
        found += at_least("requests/s, 16 at a time, of those of bare hyper", 50, 100 * ours / rates[HYPER], " %")
    for name, what in (("kserve", "KServe's server"), ("mlserver", "MLServer at its defaults")):
        if name in rates:
            found += at_least(f"requests/s, 16 at a time, times those of {what}", 40, ours / rates[name], "x")
    server = many[OURS]["server"]
    found += at_most("server CPU a request, 16 at a time", 40, server["cpu_us_per_request"], " us")
    for encoding, batch, p50, call in added_latency(result):
        if (encoding, batch) == ("json", 1):
            found += at_most("latency that serving adds, p50, one at a time", 60, p50 - call, " us")
    over = over_the_model(result, server["resident_bytes"]) / MB
    return [*found, *at_most("resident memory over the model, under load", 40, over, " MB")]
