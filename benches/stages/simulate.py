"""The scheduler of language models under simulated clients, for each of many settings."""

from stages import program
from stages.tables import number, table

WORKLOADS = ("chat", "documents", "mixed")


def run(options, _):
    """A workload after the other; each takes a minute or two."""
    found = []
    for workload in WORKLOADS:
        found += program.must_run(
            options, "simulate", "--workload", workload, "--requests", options.simulate_requests, "--json")
        yield {"cases": found}


def percent(share):
    """Of a whole."""
    return f"{share * 100:.1f}%"


def cells(row):
    """A setting's line."""
    return [
        row["setting"], number(row["asked_per_second"]), number(row["good_per_second"]), percent(row["good_share"]),
        number(row["tokens_per_second"]), *map(number, row["first_ms"]), *map(number, row["between_ms"]),
        *(str(row[key]) for key in ("refused", "left", "late", "preemptions")), percent(row["cached_share"]),
        "-" if row["jain"] is None else f"{row['jain']:.3f}", number(row["worst"]),
        " / ".join(map(number, row["slowdowns"])), number(row["batch"]), percent(row["busy_share"])]


def tables(result):
    """A table for each workload on each device."""
    yield ("Discrete events: the real scheduler, on a device that is a formula. Settings are compared here, not devices. "
           "Slowdown: the time that a request took over the time that it would have taken alone, without a cache. Jain's "
           "index, and the worst over the best, are of the tenants' means. Left: the client went; late: the deadline "
           "passed.\n")
    for case in result.get("cases", []):
        objective = case["objective"]
        yield f"### {case['workload'].capitalize()}, {case['device']}\n"
        yield (f"{case['requests']:,} requests for each setting, seed {case['seed']}, about {number(case['rate'])} a "
               f"second; good: the first token after {objective['first']:g} s at most, the others "
               f"{objective['between']:g} s after each other at most on average.\n")
        head = [
            "setting", "asked/s", "good/s", "good", "tokens/s", "first token, ms: p50", "p95", "p99",
            "next token, ms: p50", "p99", "refused", "left", "late", "preempted", "cache hits", "Jain", "worst",
            f"slowdown: {' / '.join(case['streams'])}", "batch", "busy"]
        yield table(head, [cells(row) for row in case["rows"]])


def targets(_):
    """None were set."""
    return []
