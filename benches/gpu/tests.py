"""Tests of what runs on a machine with a GPU, without one: `cargo test -p tensorgate-benches` runs them."""

import contextlib
import io
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
import unittest
from unittest import mock

import bench
import check
import machine
import model
import table

# A card that has never been: the limits of an H200, so that every goal counts as it stands.
CARD = {"device": "NVIDIA H200", "driver": "1.2", "commit": "0123456789", "date": "2000-01-01"}


def row(what, value, unit="", limit=None):
    """As `tensorgate-benches gpu` prints them."""
    return {"what": what, "value": value, "unit": unit, "limit": limit}


def sample(factor):
    """Results that are as good as the goals, times this."""
    rows = [row("copy", 4300, "GB/s"), row("matrix", 790, "TFLOP/s")]
    for name, unit, limit, goal in table.GOALS:
        unit = unit.split(",")[0]
        value = goal / factor if unit in table.LESS_IS_BETTER else goal * factor
        rows.append(row(name, value, unit, limit))
    rows += [row(f"{table.SCALING}.{clients}", 100 * clients * factor, "tokens/s", 100 * clients) for clients in (1, 256)]
    return CARD | {"rows": rows, "notes": ["A note."]}


class Table(unittest.TestCase):
    """The section of RESULTS.md."""

    def test_nothing_is_measured_yet(self):
        said = table.section({})
        self.assertEqual(said.count(table.NOT_YET), len(table.GOALS) + 2)
        self.assertNotIn("yes", said)

    def test_goals_are_met_or_missed(self):
        met, missed = table.section(sample(1.01)), table.section(sample(0.9))
        self.assertIn("## 2000-01-01, commit 0123456, language models on one NVIDIA H200", met)
        self.assertIn("moves 4,300 GB/s", met)
        self.assertIn("A note.", met)
        for said, verdict, other in [(met, "| yes |", "**no**"), (missed, "| **no** |", "| yes |")]:
            self.assertEqual((said.count(verdict), said.count(other)), (len(table.GOALS) + 1, 0), said)
            self.assertNotIn(table.NOT_YET, said)

    def test_another_card_is_held_to_shares_of_its_own_limits(self):
        half = sample(1.01) | {"device": "NVIDIA A100"}
        for each in half["rows"]:
            less = each["unit"] in table.LESS_IS_BETTER
            each["value"] *= 2 if less else 0.5
            each["limit"] = each["limit"] and each["limit"] * (2 if less else 0.5)
        # Without a limit a time stands as it is.
        self.assertEqual(table.section(half).count("**no**"), 1)

    def test_rates_that_fall_are_seen(self):
        fell = sample(1.01)
        fell["rows"] += [row(f"{table.SCALING}.4", 150, "tokens/s", 150)]
        self.assertIn("falls | 100% at least | **no** |", table.section(fell))

    def test_peers_and_what_has_no_goal_come_after(self):
        results = CARD | {"rows": [row("norm", 3000, "GB/s", 4300), row("torch:norm", 1500, "GB/s"),
                                   row("embed", 2000, "GB/s", 4000), row("lost", None, "GB/s")]}
        said = table.section(results)
        self.assertIn("| norm | torch | 1,500 | 3,000 | 2.00 | GB/s |", said)
        self.assertIn("| embed | 2,000 | 4,000 | 50% | GB/s |", said)
        self.assertNotIn("lost", said)

    def test_peers_are_beside_what_a_card_s_servers_use(self):
        peers = [row("cublas:gemm.m16.qkv", 1000, "GB/s"), row("cublas:gemm.m256", 400, "TFLOP/s"),
                 row("sdpa:attention.prompt.1x4k", 400, "TFLOP/s"), row("transformers:ttft.a", 30, "ms")]
        ours = [row("gemm.skinny.m16.qkv", 2000, "GB/s"), row("gemm.tiled.m256", 100, "TFLOP/s"),
                row("attention.prompt.1x4k", 200, "TFLOP/s"), row("ttft.a", 20, "ms")]
        older = table.section(CARD | {"rows": peers + ours})
        self.assertIn("| gemm.skinny.m16.qkv | cublas | 1,000 | 2,000 | 2.00 | GB/s |", older)
        self.assertIn("| gemm.tiled.m256 | cublas | 400 | 100 | 0.25 | TFLOP/s |", older)
        self.assertIn("| attention.prompt.1x4k | sdpa | 400 | 200 | 0.50 | TFLOP/s |", older)
        self.assertIn("| ttft.a | transformers | 30 | 20 | 1.50 | ms |", older)
        ours += [row("gemm.wgmma.m256", 500, "TFLOP/s"), row("attention.prompt.wgmma.1x4k", 300, "TFLOP/s")]
        hopper = table.section(CARD | {"rows": peers + ours})
        self.assertIn("| gemm.wgmma.m256 | cublas | 400 | 500 | 1.25 | TFLOP/s |", hopper)
        self.assertIn("| attention.prompt.wgmma.1x4k | sdpa | 400 | 300 | 0.75 | TFLOP/s |", hopper)

    def test_a_limit_that_is_not_quite_one_is_told(self):
        self.assertIn("head's matrix stays in bf16", table.section(sample(1.01)))
        self.assertNotIn("head's matrix stays in bf16", table.section({}))


class Scripts(unittest.TestCase):
    """Tests that have programs run which are not ours."""

    def setUp(self):
        self.held = contextlib.ExitStack()
        self.addCleanup(self.held.close)
        self.folder = self.held.enter_context(machine.scratch())
        # What is told as it happens.
        self.told = self.held.enter_context(contextlib.redirect_stdout(io.StringIO()))
        self.held.enter_context(contextlib.redirect_stderr(io.StringIO()))

    def program(self, script):
        """A program that does what this script says."""
        path = self.folder / "program"
        path.write_text(f"#!/bin/sh\n{script}\n", "utf-8")
        path.chmod(0o755)
        return path


# Tests of kernels, of which some hang, fault and fail, the rest passes.
KERNELS = """
case "$*" in
*--list*--ignored*) ;;
*--list*) printf '%s: test\\n' gemm::good hangs::good hangs::never pairs::new faults::one faults::two fails::bad ;;
*hangs::never*) echo 'test hangs::good ... ok'; exec sleep 30 ;;
*faults::one*faults::two*) exit 101 ;;
*fails::bad*) echo 'test fails::bad ... FAILED'; echo why; exit 101 ;;
*) echo "test $1 ... ok"; echo 'test result: ok. 1 passed; 0 failed' ;;
esac
"""
# And of models, those that take a GPU among them.
MODELS = """
case "$*" in
*--list*) printf 'whole::%s: test\\n' a_of_1 a_by_pairs a_in_short_steps ;;
*by_pairs*) exec sleep 30 ;;
*) echo "$1: prompts 0.1"; echo "test $1 ... ok"; echo 'test result: ok. 1 passed; 0 failed' ;;
esac
"""


class Check(Scripts):
    """What becomes of checks."""

    def outcome(self, each, script, seconds=60):
        """Of a check whose tests are this script."""
        programs = dict.fromkeys(["test-kernels", "test-llm"], self.program(script))
        return check.outcome(check.Checks(programs, self.folder, {}, seconds), each)

    def test_what_hangs_or_faults_costs_no_other_module(self):
        with mock.patch.multiple(check, KERNELS=0.3, ALONE=0.2):
            passed, said = self.outcome(check.Checks.kernels, KERNELS)
        self.assertIs(passed, False)
        self.assertEqual(said, "RuntimeError: 4 of 6 tests passed; alone only: faults::one, faults::two; "
                               "hangs failed: hangs::never; faults failed: together; fails failed: fails::bad")
        for told in ["hangs: not done after 0.3 s; 1 of 2 passed", "faults: exit 101; 0 of 2 passed", "why",
                     "fails::bad, alone: exit 101"]:
            self.assertIn(told, self.told.getvalue())

    def test_new_kernels_are_a_check_of_their_own(self):
        self.assertEqual(self.outcome(check.Checks.new_kernels, KERNELS), (True, "1 tests"))
        self.assertIs(self.outcome(check.Checks.kernels, "exit 1")[0], False)

    def test_time_that_is_up_is_no_failure(self):
        self.assertEqual(self.outcome(check.Checks.kernels, "exit 1", -1), (None, "not reached in time"))
        listed = "case $* in *--ignored*) exit;; *--list*) printf '%s: test\\n' a::b a::c; exit;; esac"
        slow = f"{listed}; echo 'test a::b ... ok'; exec sleep 30"
        for each in [check.Checks.kernels, check.Checks.kernels_of_ptx]:
            self.assertEqual(self.outcome(each, slow, 0.3), (None, "1 of 2 tests passed; not done: a; none failed"))
        broken = f"{listed}; echo 'test a::b ... FAILED'; exec sleep 30"
        self.assertIs(self.outcome(check.Checks.kernels_of_ptx, broken, 0.3)[0], False)

    def test_whole_models_go_as_served_first(self):
        self.assertEqual(self.outcome(check.Checks.whole_models, MODELS), (True, "whole::a_of_1: prompts 0.1"))
        with mock.patch.object(check, "WHOLE", 0.2):
            passed, said = self.outcome(check.Checks.whole_models_other_ways, MODELS)
        self.assertIs(passed, False)
        self.assertEqual(said, "RuntimeError: 1 of 2 tests passed; pairs failed: whole::a_by_pairs")

    def test_the_executor_s_tests_are_all_there(self):
        passed, said = self.outcome(check.Checks.executor, KERNELS)
        self.assertEqual((passed, said.count("no tests are in batches")), (False, 1))

    def test_the_status_tells_failures_from_want_of_time(self):
        told = [{"what": str(passed), "passed": passed} for passed in (True, None, False)]
        self.assertEqual(check.verdict(told[:1]), ("1 of 1 checks passed", 0))
        self.assertEqual(check.verdict(told[:2])[1], 3)
        self.assertIn("not done in time, which --minutes gives more of: None", check.verdict(told[:2])[0])
        self.assertEqual(check.verdict(told)[1], 1)


ROW = json.dumps(row("a", 1.0, "GB/s"))


class Bench(Scripts):
    """What becomes of rows."""

    def setUp(self):
        super().setUp()
        self.held.enter_context(mock.patch.dict(os.environ, {"OUT": str(self.folder)}))
        self.results = bench.Results({"name": "NVIDIA H200", "driver": "1.2"})

    def bench(self, script="", seconds=60):
        return bench.Bench({"tensorgate-benches": self.program(script)}, self.folder, self.results, seconds)

    def why(self, script, seconds=20, silent=20):
        """Why rows of this script are not whole."""
        begun = time.monotonic()
        with self.assertRaises(Exception) as raised:
            self.bench().rows(["sh", "-c", script], seconds, silent)
        self.assertLess(time.monotonic() - begun, 2)
        self.assertEqual(machine.CHILDREN, [])
        return str(raised.exception)

    def test_rows_are_kept_whatever_comes_after(self):
        self.assertEqual(self.why(f"echo '{ROW}'; echo last words >&2; exit 3"), "exit 3: last words\n")
        self.assertEqual(self.why(f"echo '{ROW}'; kill -9 $$"), "was killed, for want of memory perhaps: ")
        self.assertEqual(self.why(f"echo '{ROW}'; exec sleep 30", silent=0.2), "nothing came for 0.2 s: ")
        self.assertEqual(self.why(f"echo '{ROW}'; exec >&-; exec sleep 30", silent=0.2), "nothing came for 0.2 s: ")
        busy = "while :; do echo . >&2; sleep 0.1; done"
        self.assertIn("time was up", self.why(f"echo '{ROW}'; {busy}", seconds=0.5, silent=0.4))
        self.assertIn("Expecting", self.why("echo '{no JSON'; exec sleep 30"))
        self.assertEqual(len(self.results.all["rows"]), 5)
        self.assertIn("| a | 1 |", (self.folder / "gpu-bench.md").read_text("utf-8"))

    def test_a_child_that_is_left_holds_nobody_up(self):
        begun = time.monotonic()
        self.bench().rows(["sh", "-c", f"sleep 30 & echo '{ROW}'"], 20)
        self.assertLess(time.monotonic() - begun, 2)

    def test_groups_are_measured_each_and_an_h200_s_limits_are_known(self):
        script = 'echo "$*" >&2; case "$*" in *bad*) exit 1;; esac'
        groups = [(["bad"], 9), (["good", "better"], 9)]
        with contextlib.redirect_stderr(io.StringIO()) as said:
            self.assertEqual(self.bench(script).measured(groups, "--ways", "served"), 1)
        self.assertIn("gpu --ways served --copy-rate 4300 --matrix-rate 790 --only good --only better", said.getvalue())
        copy, matrix, bad = self.results.all["notes"]
        self.assertIn("not measured (copy): limits are of an H200's 4,300", copy)
        self.assertIn("(matrix)", matrix)
        self.assertIn("bad: RuntimeError: exit 1", bad)
        self.results.add("copy", 4400, "GB/s")
        self.assertEqual(self.bench().limit("copy"), 4400)
        self.results.all["device"] = "NVIDIA A100"
        self.assertIsNone(self.bench().limit("matrix"))
        self.assertEqual(self.bench(script, seconds=1).measured(groups), 2)

    def test_answers_of_the_load_have_all_lengths(self):
        self.assertEqual(sorted(bench.ANSWERS), list(range(48, 81)))


class Machine(unittest.TestCase):
    """What is left of runs that were ended."""

    def run_(self, ended_by):
        """A run with a folder and a child, which is ended: its status, and the folder and the child."""
        script = ("import machine, time\nmachine.begin()\nwith machine.scratch() as folder:\n"
                  "    child = machine.start(['sleep', '30'])\n    print(folder, child.pid, flush=True)\n"
                  "    time.sleep(30)")
        here = pathlib.Path(__file__).parent
        with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, cwd=here) as run:
            folder, child = run.stdout.readline().split()
            run.send_signal(ended_by)
        time.sleep(0.1)
        return run.returncode, pathlib.Path(folder), child

    def assert_gone(self, child):
        """It has ended, though nobody may have asked how."""
        with contextlib.suppress(OSError):
            self.assertIn(") Z ", pathlib.Path("/proc", child, "stat").read_text("utf-8"))

    def test_a_signal_ends_children_and_removes_folders(self):
        for ended_by in [signal.SIGTERM, signal.SIGINT]:
            code, folder, child = self.run_(ended_by)
            self.assertEqual((code, folder.exists()), (128 + ended_by, False))
            self.assert_gone(child)

    def test_what_a_killed_run_leaves_the_next_one_removes(self):
        _, folder, child = self.run_(signal.SIGKILL)
        self.assert_gone(child)
        self.assertTrue(folder.exists())
        with machine.scratch() as mine, mock.patch("signal.signal"):
            machine.begin()
            self.assertFalse(folder.exists())
            self.assertTrue(mine.exists())


class Model(unittest.TestCase):
    """The weights of the start."""

    def test_every_tensor_is_there_and_finite(self):
        shape = model.LLAMA | {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 300,
                               "num_key_value_heads": 1, "head_dim": 16, "intermediate_size": 48}
        with machine.scratch() as scratch, mock.patch.object(model, "NUMBERS", 10_007):
            folder = scratch / "model"
            model.write_model(folder, shape, longest=30_000)
            index = json.loads((folder / "model.safetensors.index.json").read_text("utf-8"))["weight_map"]
            self.assertEqual(list(index), [name for name, _ in model.tensors(shape)])
            self.assertEqual(len(set(index.values())), 3)
            for name, sizes in model.tensors(shape):
                self.tensor((folder / index[name]).read_bytes(), name, list(sizes))

    def tensor(self, file, name, sizes):
        """Its place is its size, and no number is infinite or more than it should be."""
        begins = 8 + int.from_bytes(file[:8], "little")
        info = json.loads(file[8:begins])[name]
        self.assertEqual((info["dtype"], info["shape"], begins % 8), ("BF16", sizes, 0))
        begin, end = info["data_offsets"]
        numbers = memoryview(file[begins + begin:begins + end]).cast("H")
        self.assertEqual(len(numbers), sizes[0] * (sizes[1] if len(sizes) > 1 else 1))
        # Below 2, and for norms 1.
        self.assertTrue(all(each & 0x7FFF < 0x4000 for each in numbers), name)
        self.assertTrue(len(sizes) > 1 or set(numbers) == {0x3F80}, name)


if __name__ == "__main__":
    os.environ.pop("OUT", None)
    unittest.main()
