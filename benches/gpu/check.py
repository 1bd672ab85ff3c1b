"""Does a GPU compute what it should? Every kernel, the executor, whole models, the server. See gpu-check.sh."""

import argparse
import contextlib
import json
import math
import os
import pathlib
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

from machine import ROOT, Server, card, commit, output, scratch, unpack

sys.path.append(str(ROOT / "benches" / "peers"))
from language_shape import write_config  # noqa: E402

# The most seconds of one run of tests, and of runs of those alone that failed.
MOST, ALONE = 200, 60


class Late(Exception):
    """Time was up, and nothing had failed so far."""


class Checks:
    """The checks, with what they share."""

    def __init__(self, programs, folder, gpu, seconds):
        self.programs, self.folder, self.gpu = programs, folder, gpu
        self.end = time.monotonic() + seconds
        # The driver keeps what it made of PTX here.
        cache = {"CUDA_CACHE_PATH": str(folder / "ptx"), "CUDA_CACHE_MAXSIZE": str(1 << 30)}
        self.ptx = cache | {"CUDA_FORCE_PTX_JIT": "1"}

    def run(self, program, *arguments, environment=None, most=MOST):
        """Runs tests: exit status, -1 where time was up; and what they printed."""
        environment = os.environ | {"TENSORGATE_SOURCE": str(ROOT)} | (environment or {})
        with (self.folder / "printed").open("w+b") as printed:
            command = [self.programs[program], *arguments]
            run = subprocess.Popen(command, stdout=printed, stderr=printed, env=environment)
            try:
                code = run.wait(max(min(most, self.end - time.monotonic()), 1))
            except subprocess.TimeoutExpired:
                code = -1
                run.kill()
                run.wait()
            printed.seek(0)
            return code, printed.read().decode(errors="replace")

    def tests(self, program, *arguments, environment=None):
        """Runs tests together; how many passed, and what they printed. Those that fail are run alone, too."""
        # What is tried by PTX has the time that all else leaves.
        most = math.inf if environment else MOST
        code, said = self.run(program, "--test-threads", "4", *arguments, environment=environment, most=most)
        done = re.search(r"test result: ok\. (\d+) passed", said)
        if code == 0 and done and done[1] != "0":
            return int(done[1]), said
        # Where that is cut off it has not failed.
        if environment and time.monotonic() >= self.end and not re.search(r"^test \S+ .*\bFAILED$", said, re.M):
            passed = len(re.findall(r"^test .* ok$", said, re.M))
            raise Late(f"not finished in time: {passed} tests passed, none failed")
        _, listed = self.run(program, *arguments, "--list")
        every = re.findall(r"^(\S+): test$", listed, re.M)
        failed = [name for name in every if re.search(rf"^test {re.escape(name)} .*\bFAILED$", said, re.M)]
        # A process that did not come to its end has not said which.
        ended = "test result:" in said
        suspects = failed or [name for name in every if not re.search(rf"^test {re.escape(name)} .*\bok$", said, re.M)]
        alone = self.alone(program, suspects, [each for each in arguments if each.startswith("--")], environment)
        what = f"{len(failed)} of {len(every)} tests failed" if ended else "the tests did not come to their end"
        raise RuntimeError(f"exit {code}: {what}: {', '.join(failed)}\n{alone}\n\nTogether:\n{said[-6000:]}")

    def alone(self, program, names, flags, environment):
        """What each of some tests says in a process of its own: a fault that one makes fails those beside it."""
        end, passed, told = time.monotonic() + ALONE, [], []
        for at, name in enumerate(names):
            if time.monotonic() > min(end, self.end):
                told.append(f"not run alone, for want of time: {', '.join(names[at:])}")
                break
            arguments = [name, "--exact", "--test-threads", "1", *flags]
            code, said = self.run(program, *arguments, environment=environment, most=ALONE)
            if code == 0:
                passed.append(name)
            else:
                told.append(f"{name} fails alone, too (exit {code}):\n{said[-2000:]}")
        if passed:
            told.append(f"alone pass: {', '.join(passed)}")
        return "\n".join(told)

    def server(self, *arguments, environment=None):
        """A server."""
        return Server(self.programs["tensorgate"], self.folder, *arguments, environment=environment)

    def kernels(self):
        """Every kernel against scalar arithmetic."""
        return f"{self.tests('test-kernels')[0]} tests"

    def kernels_of_ptx(self):
        """The same, compiled by the driver from the PTX that other cards get."""
        return f"{self.tests('test-kernels', environment=self.ptx)[0]} tests"

    def executor(self):
        """Families, and weights as codes, against references; batched is alone, graphs are eager, ahead is in step."""
        return f"{self.tests('test-llm', 'cuda::', 'short::', 'whole::', 'stored::', 'calibration::')[0]} tests"

    def executor_of_ptx(self):
        """The families by PTX."""
        return f"{self.tests('test-llm', 'cuda::every_family', environment=self.ptx)[0]} tests"

    def whole_models(self):
        """Models of real widths against the CPU's executor, in sixteen bits and in eight; large batches as graphs."""
        _, said = self.tests("test-llm", "whole::", "--ignored", "--nocapture")
        return "; ".join(line for line in said.splitlines() if "prompts" in line)

    def assistant(self):
        """The demo model's chats, one by one, streamed, and all at once."""
        exchanges = json.loads((ROOT / "models/assistant/exchanges.json").read_text("utf-8"))
        path = "/v1/chat/completions"
        with self.server(*ASSISTANT) as server:
            server.ready(60)

            def whole(each):
                choice = server.post(path, {"model": "assistant", "messages": each["messages"]})["choices"][0]
                return choice["message"]["content"]

            def streamed(each):
                events = server.stream(path, {"model": "assistant", "messages": each["messages"]})
                return "".join(event["choices"][0]["delta"].get("content") or "" for event in events)

            asked = [(ask, each) for each in exchanges for ask in (whole, streamed)]
            told = [ask(each) for ask, each in asked]
            with ThreadPoolExecutor(2 * len(asked)) as pool:
                told += pool.map(lambda one: one[0](one[1]), 2 * asked)
            server.runs_graphs()
        wrong = {each["answer"]: answer for (_, each), answer in zip(3 * asked, told) if answer != each["answer"]}
        if wrong:
            raise RuntimeError(f"{len(wrong)} of {len(exchanges)} answers differ: {wrong}")
        return f"{len(told)} answers"

    def deterministic(self):
        """With --deterministic a chat's probabilities are the same, bit for bit: alone, among others, and cached."""
        exchanges = json.loads((ROOT / "models/assistant/exchanges.json").read_text("utf-8"))

        def ask(each):
            # The first time all is computed, later what the cache leaves.
            body = {"model": "assistant", "messages": each["messages"], "logprobs": True, "top_logprobs": 3}
            told = server.post("/v1/chat/completions", body)
            return json.dumps(told["choices"])

        with self.server(*ASSISTANT, "--deterministic", "true") as server:
            server.ready(60)
            alone = [ask(each) for each in exchanges]
            with ThreadPoolExecutor(2 * len(exchanges)) as pool:
                among = list(pool.map(ask, 2 * exchanges))
            server.runs_graphs()
        if among != 2 * alone:
            raise RuntimeError("answers differ between a chat alone and the same among others")
        return f"{len(among)} answers"

    def memory(self):
        """A cache beyond the card's memory is a clear error of that model, and no end of the server."""
        folder = self.folder / "large"
        folder.mkdir()
        write_config(folder)
        wanted = ["--kv-cache-bytes", "100000GiB", "--max-num-seqs", str(8 * self.gpu["memory_mib"] // 512)]
        # 112 KiB for each of 4096 positions of every sequence: 448 MiB.
        with self.server("--model-dir", str(folder), "--load-format", "dummy", "--device", "cuda", *wanted) as server:
            with contextlib.suppress(RuntimeError):
                server.ready(60)
                raise SystemError("a cache larger than the card's memory was loaded")
            said = server.said()
            alive = server.process.poll() is None
        found = re.search(r"the device has \d+ bytes of memory left, and \d+ are needed", said)
        if not found or not alive:
            raise RuntimeError(f"alive: {alive}; {said[-2000:]}")
        return found[0]

    def no_gpu(self):
        """Where CUDA shows no GPU, --device cuda is an error in one line, and auto serves on the CPU."""
        hidden = {"CUDA_VISIBLE_DEVICES": ""}
        with self.server(*ASSISTANT, environment=hidden) as server:
            code = server.process.wait(30)
            said = server.said().strip()
        if code == 0 or "--device cuda:" not in said or len(said.splitlines()) != 1:
            raise RuntimeError(f"exit {code}: {said}")
        with self.server(*ASSISTANT[:-2], environment=hidden) as server:
            server.ready(60)
        return said


ASSISTANT = ["--model-repository", str(ROOT / "models"), "--load-model", "assistant", "--device", "cuda"]
# By machine code first: PTX, which other cards get, has what time is left.
ORDER = [Checks.kernels, Checks.executor, Checks.whole_models, Checks.assistant, Checks.deterministic, Checks.memory,
         Checks.no_gpu, Checks.kernels_of_ptx, Checks.executor_of_ptx]
# How a line begins, by whether the check passed; None: time was up.
MARKS = {True: "ok  ", False: "FAIL", None: "LATE"}


def outcome(checks, check):
    """Has it passed, and what is told of it."""
    try:
        if time.monotonic() > checks.end:
            raise Late("not reached in time")
        return True, check(checks)
    except Late as late:
        return None, str(late)
    except Exception as error:  # noqa: BLE001, whatever goes wrong, the others are still to be tried
        return False, f"{type(error).__name__}: {error}"


def verdict(told):
    """The last line, and the exit status."""
    failed = [each["what"] for each in told if each["passed"] is False]
    late = [each["what"] for each in told if each["passed"] is None]
    line = f"{len(told) - len(failed) - len(late)} of {len(told)} checks passed"
    line += f"; failed: {', '.join(failed)}" if failed else ""
    line += f"; not done in time, which --minutes gives more of: {', '.join(late)}" if late else ""
    return line, 1 if failed else 3 if late else 0


def main():
    """Runs all, prints a line for each, and says whether all passed."""
    parser = argparse.ArgumentParser(prog="gpu-check.sh")
    parser.add_argument("checks", nargs="*", metavar="CHECK", help=f"of {' '.join(each.__name__ for each in ORDER)}")
    parser.add_argument("--minutes", type=float, default=6, help="for all of it: 6")
    asked = parser.parse_args()
    only = {name.replace("-", "_").replace(" ", "_") for name in asked.checks}
    if unknown := only - {each.__name__ for each in ORDER}:
        parser.error(f"no check is called {', '.join(sorted(unknown))}: checks are "
                     f"{' '.join(each.__name__ for each in ORDER)}")
    gpu, told = card(), []
    report = {"device": gpu["name"], "driver": gpu["driver"], "commit": commit(), "command": "benches/gpu-check.sh"}
    print(f"{gpu['name']}, driver {gpu['driver']}, commit {report['commit']}", flush=True)
    with scratch() as folder:
        checks = Checks(unpack(folder), folder, gpu, 60 * asked.minutes)
        for check in ORDER:
            name, begun = check.__name__.replace("_", " "), time.monotonic()
            if only and check.__name__ not in only:
                continue
            passed, detail = outcome(checks, check)
            seconds = round(time.monotonic() - begun, 1)
            told.append({"what": name, "means": check.__doc__, "passed": passed, "seconds": seconds, "detail": detail})
            print(f"{MARKS[passed]} {seconds:6.1f} s  {name}: {detail}", flush=True)
            if os.environ.get("OUT"):
                path = pathlib.Path(output(".")) / "gpu-check.json"
                path.write_text(json.dumps(report | {"checks": told}, indent=1), "utf-8")
    line, status = verdict(told)
    print(line)
    sys.exit(status)


if __name__ == "__main__":
    main()
