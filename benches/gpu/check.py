"""Does a GPU compute what it should? Every kernel, the executor, whole models, the server. See gpu-check.sh."""

import argparse
import contextlib
import json
import os
import pathlib
import re
import shlex
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

from machine import ROOT, Server, begin, card, commit, output, scratch, start, stop, unpack

sys.path.append(str(ROOT / "benches" / "peers"))
from language_shape import write_config  # noqa: E402

# Modules of tests: of kernels that no card may have run yet, and of the executor.
NEW = ["pairs", "stream", "gemv"]
EXECUTOR = ["cuda", "whole", "stored", "calibration", "batches", "short"]
# What names of tests have in them where steps go otherwise than a server has them.
OTHERWISE = ["pairs", "short"]
# The most seconds of a process with tests, which are those of one module: of kernels, of new ones, of the executor, of
# whole models, of what the driver has to compile; of a test alone, and of all that are run alone.
KERNELS, UNTRIED, FAMILIES, WHOLE, COMPILED = 40, 20, 90, 200, 90
# A gate that stays shut says so after ten seconds.
ALONE, ALL_ALONE = 15, 30


def module(test):
    """Where a test is."""
    return test.split("::")[0]


def by_module(tests):
    """Tests by where they are."""
    modules = {}
    for test in tests:
        modules.setdefault(module(test), []).append(test)
    return modules


def otherwise(test):
    """Does it run kernels that servers do not use yet?"""
    return any(way in test for way in OTHERWISE)


class Late(Exception):
    """Time was up, and nothing had failed so far."""


class Checks:
    """The checks, with what they share."""

    def __init__(self, programs, folder, gpu, seconds):
        self.programs, self.folder, self.gpu = programs, folder, gpu
        self.end = time.monotonic() + seconds
        # What was printed about tests that fail.
        self.told = []
        # The driver keeps what it made of PTX here.
        cache = {"CUDA_CACHE_PATH": str(folder / "ptx"), "CUDA_CACHE_MAXSIZE": str(1 << 30)}
        self.ptx = cache | {"CUDA_FORCE_PTX_JIT": "1"}

    def tell(self, text):
        """Prints at once what is lost otherwise when this process is killed."""
        print(text, flush=True)
        self.told.append(text)

    def run(self, program, *arguments, environment=None, most=ALONE):
        """Runs tests: exit status, None where time was up; and what they printed."""
        environment = os.environ | {"TENSORGATE_SOURCE": str(ROOT)} | (environment or {})
        with (self.folder / "printed").open("w+b") as printed:
            child = start([self.programs[program], *arguments], stdout=printed, stderr=printed, env=environment)
            try:
                code = child.wait(max(min(most, self.end - time.monotonic()), 0))
            except subprocess.TimeoutExpired:
                code = None
            except SystemExit:
                # This process is to end.
                print(text_of(printed), flush=True)
                raise
            finally:
                stop(child)
            return code, text_of(printed)

    def listed(self, program, wanted, ignored=False):
        """Names of tests, of those that are to be ignored, or of all others."""
        every, apart = (re.findall(r"^(\S+): test$", self.run(program, "--list", *flags)[1], re.M)
                        for flags in [[], ["--ignored"]])
        return [name for name in every if (name in apart) == ignored and wanted(name)]

    def tests(self, program, modules, most, *flags, environment=None):
        """Runs tests, each module in a process of its own, whose fault or hang costs no other what it found: how many
        passed, and what they printed. Those that fail are run alone, too, but for long ones.
        """
        total, passed, printed = sum(len(names) for names in modules.values()), 0, []
        suspects, late = {}, []
        for where, names in modules.items():
            arguments = [*names, "--exact", "--test-threads", "4", *flags]
            code, said = self.run(program, *arguments, environment=environment, most=most)
            done = re.search(r"^test result: ok\. (\d+) passed", said, re.M)
            if code == 0 and done and done[1] != "0":
                passed += int(done[1])
                printed.append(said)
                continue
            good = re.findall(r"^test (\S+) .*\bok$", said, re.M)
            passed += len(good)
            # What was not begun, or is cut off, has not failed.
            if code is None and time.monotonic() >= self.end and not re.search(r"^test .*\bFAILED$", said, re.M):
                self.tell(f"     {where}: time was up; {len(good)} of {len(names)} passed:\n{said[-2000:]}")
                late.append(where)
                continue
            suspects[where] = [name for name in names if name not in good]
            how = f"not done after {most} s" if code is None else f"exit {code}"
            self.tell(f"     {where}: {how}; {len(good)} of {len(names)} passed:\n{said[-6000:]}")
        alone = self.alone(program, suspects, flags, environment) if most < WHOLE else []
        line = f"{passed + len(alone)} of {total} tests passed"
        line += f"; not done: {', '.join(late)}" if late else ""
        if suspects or not total:
            line += f"; alone only: {', '.join(alone)}" if alone else ""
            failed = {where: [name for name in names if name not in alone] for where, names in suspects.items()}
            raise RuntimeError("; ".join([line, *(f"{where} failed: {', '.join(names) or 'together'}"
                                                  for where, names in failed.items())]))
        if late:
            raise Late(f"{line}; none failed")
        return passed, "".join(printed)

    def alone(self, program, suspects, flags, environment):
        """Which tests pass in a process of their own: a fault that one makes fails those beside it."""
        end, passed = time.monotonic() + ALL_ALONE, []
        names = [name for names in suspects.values() for name in names]
        for at, name in enumerate(names):
            most = min(ALONE, end - time.monotonic())
            if most <= 0 or time.monotonic() >= self.end:
                self.tell(f"     not run alone, for want of time: {', '.join(names[at:])}")
                break
            arguments = [name, "--exact", "--test-threads", "1", *flags]
            code, said = self.run(program, *arguments, environment=environment, most=most)
            if code == 0:
                passed.append(name)
            else:
                how = f"not done after {most:.0f} s" if code is None else f"exit {code}"
                self.tell(f"     {name}, alone: {how}:\n{said[-2000:]}")
        return passed

    def server(self, *arguments, environment=None):
        """A server."""
        return Server(self.programs["tensorgate"], self.folder, *arguments, environment=environment)

    def kernels(self):
        """Every kernel against scalar arithmetic, but for new ones."""
        names = self.listed("test-kernels", lambda name: module(name) not in NEW)
        return f"{self.tests('test-kernels', by_module(names), KERNELS)[0]} tests"

    def new_kernels(self):
        """Kernels that servers do not use yet, against scalar arithmetic."""
        names = self.listed("test-kernels", lambda name: module(name) in NEW)
        return f"{self.tests('test-kernels', by_module(names), UNTRIED)[0]} tests"

    def kernels_of_ptx(self):
        """All of these, compiled by the driver from the PTX that other cards get."""
        names = sorted(self.listed("test-kernels", lambda _: True), key=lambda name: module(name) in NEW)
        return f"{self.tests('test-kernels', by_module(names), COMPILED, environment=self.ptx)[0]} tests"

    def executor(self):
        """Families, and weights as codes, against references; batched is alone, graphs are eager, ahead is in step."""
        names = self.listed("test-llm", lambda name: module(name) in EXECUTOR)
        if missing := set(EXECUTOR) - {module(name) for name in names}:
            raise RuntimeError(f"no tests are in {', '.join(sorted(missing))}")
        modules = by_module(name for name in names if not otherwise(name))
        return f"{self.tests('test-llm', modules, FAMILIES)[0]} tests"

    def executor_other_ways(self):
        """The same by pairs of blocks, and by short steps."""
        names = self.listed("test-llm", lambda name: module(name) in EXECUTOR)
        modules = {way: some for way in OTHERWISE if (some := [name for name in names if way in name])}
        return f"{self.tests('test-llm', modules, UNTRIED)[0]} tests"

    def executor_of_ptx(self):
        """The families by PTX."""
        names = self.listed("test-llm", lambda name: name.startswith("cuda::every_family"))
        return f"{self.tests('test-llm', by_module(names), COMPILED, environment=self.ptx)[0]} tests"

    def whole_models(self):
        """Models of real widths against the CPU's executor, in sixteen bits and in eight; large batches as graphs."""
        return self.models({"as served": lambda name: not otherwise(name)})

    def whole_models_other_ways(self):
        """The same by pairs of blocks, and by short steps."""
        return self.models({way: lambda name, way=way: way in name for way in OTHERWISE})

    def models(self, ways):
        """What tests of whole models tell, those of each way in a process of their own."""
        whole = self.listed("test-llm", lambda name: module(name) == "whole", ignored=True)
        modules = {way: names for way, wanted in ways.items() if (names := list(filter(wanted, whole)))}
        _, said = self.tests("test-llm", modules, WHOLE, "--ignored", "--nocapture")
        return "; ".join(line for line in said.splitlines() if "prompts" in line)

    def assistant(self):
        """The demo model's chats, one by one, streamed, and all at once."""
        exchanges = json.loads((ROOT / "models/assistant/exchanges.json").read_text("utf-8"))
        path = "/v1/chat/completions"
        with self.server(*ASSISTANT) as server:
            server.ready(30)

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
            server.ready(30)
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
                server.ready(30)
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
            server.ready(30)
        return said


ASSISTANT = ["--model-repository", str(ROOT / "models"), "--load-model", "assistant", "--device", "cuda"]
# By machine code first: PTX, which other cards get, has what time is left. What no card may have run yet comes after
# all that servers use.
ORDER = [Checks.kernels, Checks.executor, Checks.assistant, Checks.whole_models, Checks.deterministic,
         Checks.new_kernels, Checks.executor_other_ways, Checks.whole_models_other_ways, Checks.memory, Checks.no_gpu,
         Checks.kernels_of_ptx, Checks.executor_of_ptx]
# How a line begins, by whether the check passed; None: time was up.
MARKS = {True: "ok  ", False: "FAIL", None: "LATE"}


def text_of(file):
    """All that was printed to it."""
    file.seek(0)
    return file.read().decode(errors="replace")


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
    begin()
    gpu, told = card(), []
    report = {"device": gpu["name"], "driver": gpu["driver"], "commit": commit(),
              "command": shlex.join(["benches/gpu-check.sh", *sys.argv[1:]])}
    print(f"{gpu['name']}, driver {gpu['driver']}, commit {report['commit']}", flush=True)
    with scratch() as folder:
        checks = Checks(unpack(folder), folder, gpu, 60 * asked.minutes)
        for check in ORDER:
            name, begun = check.__name__.replace("_", " "), time.monotonic()
            if only and check.__name__ not in only:
                continue
            passed, detail = outcome(checks, check)
            seconds = round(time.monotonic() - begun, 1)
            told.append({"what": name, "means": check.__doc__, "passed": passed, "seconds": seconds, "detail": detail,
                         "printed": checks.told})
            checks.told = []
            print(f"{MARKS[passed]} {seconds:6.1f} s  {name}: {detail}", flush=True)
            if os.environ.get("OUT"):
                path = pathlib.Path(output(".")) / "gpu-check.json"
                path.write_text(json.dumps(report | {"checks": told}, indent=1), "utf-8")
    line, status = verdict(told)
    print(line)
    sys.exit(status)


if __name__ == "__main__":
    main()
