"""Tests of what runs on a machine with a GPU, without one: `cargo test -p tensorgate-benches` runs them."""

import os
import time
import unittest

import check
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
    rows += [row(f"{table.SCALING}.{clients}", 100 * clients * factor, "tokens/s", 100 * clients) for clients in (1, 2)]
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


class Check(unittest.TestCase):
    """What becomes of checks."""

    def checks(self, script, seconds=60):
        """Checks whose tests are this script."""
        scratch = check.scratch()
        folder = scratch.__enter__()
        self.addCleanup(scratch.__exit__, None, None, None)
        program = folder / "tests"
        program.write_text(f"#!/bin/sh\n{script}\n", "utf-8")
        program.chmod(0o755)
        return check.Checks({"test-kernels": program}, folder, {}, seconds)

    def outcome(self, each, *arguments):
        return check.outcome(self.checks(*arguments), each)

    def test_passed_and_failed(self):
        good = "echo 'test result: ok. 3 passed; 0 failed'"
        self.assertEqual(self.outcome(check.Checks.kernels, good), (True, "3 tests"))
        passed, said = self.outcome(check.Checks.kernels, "echo 'test some::one ... FAILED'; exit 101")
        self.assertIs(passed, False)
        self.assertIn("exit 101", said)

    def test_what_was_not_begun_has_not_failed(self):
        self.assertEqual(self.outcome(check.Checks.kernels, "exit 1", -1), (None, "not reached in time"))

    def test_what_is_tried_by_ptx_may_be_cut_off(self):
        slow = "echo 'test some::one ... ok'; exec sleep 30"
        begun = time.monotonic()
        self.assertEqual(self.outcome(check.Checks.kernels_of_ptx, slow, 0.5),
                         (None, "not finished in time: 1 tests passed, none failed"))
        self.assertIs(self.outcome(check.Checks.kernels, slow, 0.5)[0], False)
        broken = "echo 'test some::one ... FAILED'; exec sleep 30"
        self.assertIs(self.outcome(check.Checks.kernels_of_ptx, broken, 0.5)[0], False)
        self.assertLess(time.monotonic() - begun, 20)

    def test_the_status_tells_failures_from_want_of_time(self):
        told = [{"what": str(passed), "passed": passed} for passed in (True, None, False)]
        self.assertEqual(check.verdict(told[:1]), ("1 of 1 checks passed", 0))
        self.assertEqual(check.verdict(told[:2])[1], 3)
        self.assertIn("not done in time, which --minutes gives more of: None", check.verdict(told[:2])[0])
        self.assertEqual(check.verdict(told)[1], 1)


if __name__ == "__main__":
    os.environ.pop("OUT", None)
    unittest.main()
