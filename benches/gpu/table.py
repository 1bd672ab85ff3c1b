"""The table of benches/RESULTS.md out of what gpu-bench.sh has written.

    python3 benches/gpu/table.py [DATE-DEVICE.json]

Without a file every row says that it was not yet run.
"""

import json
import pathlib
import sys

NOT_YET = "not yet run on a GPU"
# What is to be reached on an H200, whose copies move 4,300 GB/s and whose bf16 products do 790 TFLOP/s: the limit that
# this makes, the goal, and whether more is better. Goals without a limit of their own are shares of it.
GOALS = [
    ("decode.qwen3-0.6b.bf16.b1", "tokens/s", 3284, 1600),
    ("decode.llama-3.1-8b.bf16.b1", "tokens/s", 284, 220),
    ("decode.llama-3.1-8b.bf16.b32", "tokens/s", 7128, 5300),
    ("decode.llama-3.1-8b.bf16.b256", "tokens/s", 19_900, 15_000),
    ("decode.llama-3.1-8b.fp8.b256", "tokens/s, fp8 weights and KV", 39_800, 28_000),
    ("ttft.llama-3.1-8b.bf16.1k", "ms, 1,024-token prompt", 18.5, 30),
    ("attention.decode.256x4k", "GB/s", 4300, 0.8 * 4300),
    ("norm", "GB/s, 4,096 rows of an 8B model", 4300, 0.85 * 4300),
    ("rope-write", "GB/s, the same", 4300, 0.85 * 4300),
    ("silu-mul", "GB/s, the same", 4300, 0.85 * 4300),
    ("gemm.skinny.m1", "GB/s, a layer's four matrices in turn", 4300, 0.85 * 4300),
    ("gemm.skinny.m16", "GB/s, the same", 4300, 0.85 * 4300),
    ("gemm.skinny.m64", "GB/s, the same", 4300, 0.85 * 4300),
    ("start.llama-3.1-8b", "s, page cache to first token", None, 3),
]
SCALING = "http.scaling"
LESS_IS_BETTER = {"ms", "s"}
# How a peer's job begins, and our rows of it: what a card's servers use is the first of these that it can measure.
SERVED = {
    "gemm.m": ["gemm.skinny.m", "gemm.wgmma.m", "gemm.tiled.m"],
    "attention.prompt.": ["attention.prompt.wgmma.", "attention.prompt."],
}
EIGHT_BITS = "decode.llama-3.1-8b.fp8.b256"
HEAD = f"{EIGHT_BITS}: the head's matrix stays in bf16 in this model, while the limit counts it in eight bits."


def number(value):
    """Three digits at least."""
    return "" if value is None else f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def share(goal, limit, better_less):
    """How near a goal is to its limit."""
    return limit / goal if better_less else goal / limit


def goal_row(aim, row, device):
    """One line."""
    name, unit, limit, goal = aim
    better_less = unit.split(",")[0] in LESS_IS_BETTER
    is_share = limit and goal / limit in (0.8, 0.85)
    said = f">= {goal / limit:.0%}" if is_share else f"{'<=' if better_less else '>='} {number(goal)}"
    if not row or row["value"] is None:
        return f"| {name} | {unit} | {number(limit)} | {said} | {NOT_YET} | | |"
    value, here = row["value"], row["limit"]
    met = value <= goal if better_less else value >= goal
    if not here:
        return f"| {name} | {unit} | | {said} | {number(value)} | | {verdict(met)} |"
    reached = share(value, here, better_less)
    # Another card has other limits: there the share counts.
    if is_share or "H200" not in device:
        met = reached >= share(goal, limit, better_less)
    return f"| {name} | {unit} | {number(here)} | {said} | {number(value)} | {reached:.0%} | {verdict(met)} |"


def verdict(met):
    """Misses are to be seen."""
    return "yes" if met else "**no**"


def scaling_row(rows):
    """Does it never fall, and is it near the engine's own rate?"""
    runs = [row for row in rows if row["what"].startswith(SCALING + ".") and row["value"]]
    head = f"| {SCALING} | clients 1, 2, 4, ... 256 | | never falls; >= 92% of the engine's own rate |"
    if not runs:
        return f"{head} {NOT_YET} | | |"
    rates = [row["value"] for row in runs]
    # Two rates that differ by less than this were measured to be equal.
    falls = any(after < 0.98 * before for before, after in zip(rates, rates[1:]))
    shares = [row["value"] / row["limit"] for row in runs if row["limit"]]
    least = min(shares, default=0.0)
    value = f"{number(rates[0])} to {number(rates[-1])} tokens/s{', falls' if falls else ''}"
    whole = any(row["what"] == f"{SCALING}.256" for row in runs) and len(shares) == len(runs)
    met = verdict(not falls and least >= 0.92) if whole else "measured in part"
    return f"{head} {value} | {least:.0%} at least | {met} |"


def section(results):
    """The section, as Markdown."""
    rows = results.get("rows", [])
    by = {row["what"]: row for row in rows}
    head = "## Language models on a GPU"
    if rows:
        head = f"## {results['date']}, commit {results['commit'][:7]}, language models on one {results['device']}"
    lines = [head, "", f"    {results.get('command', 'benches/gpu-bench.sh')}", ""]
    if rows:
        copy, matrix = by.get("copy", {}).get("value"), by.get("matrix", {}).get("value")
        known = "What the card allows was not measured."
        if copy and matrix:
            known = (f"The card moves {number(copy)} GB/s in a copy and does {number(matrix)} TFLOP/s in a bf16 "
                     "product of 8,192 cubed, by torch; limits are computed from these. Goals were set for an H200: "
                     "elsewhere a goal's share of its limit is what counts.")
        lines += [f"Driver {results.get('driver', '')}. {known}", ""]
    else:
        lines += ["Limits are those of an H200: 4,300 GB/s, 790 TFLOP/s.", ""]
    lines += ["| what | unit | limit | to reach on an H200 | measured | of the limit | met |"]
    lines += ["|---|---|---:|---:|---:|---:|---:|"]
    lines += [goal_row(goal, by.get(goal[0]), results.get("device", "")) for goal in GOALS]
    lines += [scaling_row(rows), ""]
    lines += [HEAD, ""] if EIGHT_BITS in by else []
    lines += peers(rows, by) + others(rows) + [f"{note}\n" for note in results.get("notes", [])]
    return "\n".join(lines).rstrip() + "\n"


def served(job, by):
    """Our row of a peer's job, if one was measured."""
    names = [job]
    for begin, ways in SERVED.items():
        if job.startswith(begin):
            names = [way + job.removeprefix(begin) for way in ways]
    return next((by[name] for name in names if name in by and by[name]["value"]), None)


def peers(rows, by):
    """Ours beside the same by others."""
    found = []
    for row in rows:
        kind, _, job = row["what"].partition(":")
        if row["value"] and (ours := served(job, by)):
            ratio = ours["value"] / row["value"]
            ratio = 1 / ratio if row["unit"] in LESS_IS_BETTER else ratio
            both = f"{number(row['value'])} | {number(ours['value'])}"
            found.append(f"| {ours['what']} | {kind} | {both} | {ratio:.2f} | {row['unit']} |")
    if not found:
        peers_are = "Peers on the same card (transformers with a static cache and compiled, torch's SDPA, cuBLAS)"
        return [] if rows else [f"{peers_are}: {NOT_YET}.", ""]
    return ["The same by others, on the same card in the same run:", "",
            "| what | who | they | tensorgate | ours by | unit |", "|---|---|---:|---:|---:|---|", *found, ""]


def others(rows):
    """What no goal was set for."""
    known = {goal[0] for goal in GOALS} | {"copy", "matrix", SCALING}
    rest = [row for row in rows if row["what"] not in known and ":" not in row["what"] and row["value"] is not None]
    if not rest:
        return []
    lines = []
    for row in rest:
        limit, better_less = row["limit"], row["unit"] in LESS_IS_BETTER
        reached = f"{share(row['value'], limit, better_less):.0%}" if limit and row["value"] else ""
        lines.append(f"| {row['what']} | {number(row['value'])} | {number(limit)} | {reached} | {row['unit']} |")
    return ["| besides | measured | limit | of the limit | unit |", "|---|---:|---:|---:|---|", *lines, ""]


def main():
    """Prints the section."""
    results = json.loads(pathlib.Path(sys.argv[1]).read_text("utf-8")) if len(sys.argv) > 1 else {}
    print(section(results), end="")


if __name__ == "__main__":
    main()
