"""Does a GPU compute what it should? Every kernel, the executor, whole models, the server. See gpu-check.sh."""

import contextlib
import itertools
import json
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

# All of it, in seconds: what is not done by then has failed.
BUDGET = 470


class Checks:
    """The checks, with what they share."""

    def __init__(self, programs, folder, gpu):
        self.programs, self.folder, self.gpu = programs, folder, gpu
        self.end = time.monotonic() + BUDGET
        # The driver keeps what it made of PTX here.
        cache = {"CUDA_CACHE_PATH": str(folder / "ptx"), "CUDA_CACHE_MAXSIZE": str(1 << 30)}
        self.ptx = cache | {"CUDA_FORCE_PTX_JIT": "1"}

    def tests(self, program, *arguments, environment=None):
        """Runs tests; how many passed, and what they printed."""
        command = [self.programs[program], "--test-threads", "4", *arguments]
        environment = os.environ | {"TENSORGATE_SOURCE": str(ROOT)} | (environment or {})
        left = max(self.end - time.monotonic(), 1)
        run = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=left, check=False)
        done = re.search(r"test result: ok\. (\d+) passed", run.stdout)
        if run.returncode != 0 or not done or done[1] == "0":
            raise RuntimeError(f"exit {run.returncode}\n{run.stdout[-6000:]}\n{run.stderr[-3000:]}")
        return int(done[1]), run.stdout

    def server(self, *arguments, environment=None):
        """A server."""
        return Server(self.programs["tensorgate"], self.folder, *arguments, environment=environment)

    def kernels(self):
        """Every kernel against scalar arithmetic."""
        return f"{self.tests('test-kernels')[0]} tests"

    def kernels_of_ptx(self):
        """The same, compiled by the driver from the PTX that other cards get."""
        # One first, so that the modules are compiled once and not by every thread.
        self.tests("test-kernels", "setup::", environment=self.ptx)
        return f"{self.tests('test-kernels', environment=self.ptx)[0]} tests"

    def executor(self):
        """Families against goldens; batched is alone, graphs are eager, ahead is in step."""
        return f"{self.tests('test-llm', 'cuda::', 'whole::')[0]} tests"

    def executor_of_ptx(self):
        """The families by PTX."""
        return f"{self.tests('test-llm', 'cuda::every_family', environment=self.ptx)[0]} tests"

    def whole_models(self):
        """Models of real widths against the CPU's executor."""
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
        wrong = {each["answer"]: answer for (_, each), answer in zip(3 * asked, told) if answer != each["answer"]}
        if wrong:
            raise RuntimeError(f"{len(wrong)} of {len(exchanges)} answers differ: {wrong}")
        return f"{len(told)} answers"

    def deterministic(self):
        """With --deterministic a chat's probabilities are the same, bit for bit, alone and among others."""
        exchanges, salts = json.loads((ROOT / "models/assistant/exchanges.json").read_text("utf-8")), itertools.count()

        def ask(each):
            # A salt of its own: what the cache leaves of a prompt may be one token, which decoding's kernel takes.
            body = {"model": "assistant", "messages": each["messages"], "cache_salt": str(next(salts))}
            told = server.post("/v1/chat/completions", body | {"logprobs": True, "top_logprobs": 3})
            return json.dumps(told["choices"])

        with self.server(*ASSISTANT, "--deterministic", "true") as server:
            server.ready(60)
            alone = [ask(each) for each in exchanges]
            with ThreadPoolExecutor(2 * len(exchanges)) as pool:
                among = list(pool.map(ask, 2 * exchanges))
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
ORDER = [Checks.kernels, Checks.executor, Checks.whole_models, Checks.assistant, Checks.deterministic, Checks.memory,
         Checks.no_gpu, Checks.kernels_of_ptx, Checks.executor_of_ptx]


def main():
    """Runs all, prints a line for each, and says whether all passed."""
    gpu, failed, told = card(), 0, []
    only = sys.argv[1:]
    report = {"device": gpu["name"], "driver": gpu["driver"], "commit": commit(), "command": "benches/gpu-check.sh"}
    print(f"{gpu['name']}, driver {gpu['driver']}, commit {report['commit']}", flush=True)
    with scratch() as folder:
        checks = Checks(unpack(folder), folder, gpu)
        for check in ORDER:
            name, begun = check.__name__.replace("_", " "), time.monotonic()
            if only and name not in only:
                continue
            try:
                if begun > checks.end:
                    raise RuntimeError("no time was left for it")
                passed, detail = True, check(checks)
            except Exception as error:  # noqa: BLE001, whatever goes wrong, the others are still to be tried
                passed, detail = False, f"{type(error).__name__}: {error}"
            failed += not passed
            seconds = round(time.monotonic() - begun, 1)
            told.append({"what": name, "means": check.__doc__, "passed": passed, "seconds": seconds, "detail": detail})
            print(f"{'ok  ' if passed else 'FAIL'} {seconds:6.1f} s  {name}: {detail}", flush=True)
            if os.environ.get("OUT"):
                path = pathlib.Path(output(".")) / "gpu-check.json"
                path.write_text(json.dumps(report | {"checks": told}, indent=1), "utf-8")
    print(f"{len(told) - failed} of {len(told)} checks passed" if told else f"no check is called so: {only}")
    sys.exit(1 if failed or not told else 0)


if __name__ == "__main__":
    main()
