"""The tables of a run of run.py, as Markdown."""

import re

HYPER = "bare hyper"
OURS = "tensorgate"
MIB = 2**20


def without_paths(command):
    """A command line that says nothing of the machine's folders."""
    return re.sub(r"(?<![\w.])/(?:[^\s/]+/)+", "", command)


def table(head, rows):
    """Markdown, numbers to the right."""
    rule = ["---"] + ["---:"] * (len(head) - 1)
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, rule, *rows]) + "\n"


def number(value):
    """Three digits or more."""
    if value is None:
        return "-"
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def times(value, base):
    """How many times."""
    return f"{value / base:.2f}x" if value and base else "-"


def best_rounds(cases):
    """The round with the most requests a second, by case."""
    best = {}
    for case in cases:
        key = tuple(case[name] for name in ("encoding", "batch", "concurrency", "name"))
        if key not in best or case["requests_per_second"] > best[key]["requests_per_second"]:
            best[key] = case
    return best


def server_tables(result):
    """A table for each case, a row for each server."""
    best = best_rounds(result["cases"])
    for encoding, batch, concurrency in dict.fromkeys(key[:3] for key in best):
        found = {key[3]: case for key, case in best.items() if key[:3] == (encoding, batch, concurrency)}
        ours = found.get(OURS, {})
        our_cpu = ours.get("server", {}).get("cpu_us_per_request")
        rows = []
        for name, case in sorted(found.items(), key=lambda item: -item[1]["requests_per_second"]):
            rate, server, latency = case["requests_per_second"], case["server"], case["latency"]
            cpu = server["cpu_us_per_request"]
            errors = sum(case["errors"].values())
            rows.append([
                name + (f" ({errors} errors)" if errors else ""),
                number(rate), times(ours.get("requests_per_second"), rate),
                *(number(latency[key]) for key in ("p50_us", "p99_us", "p999_us")),
                number(cpu), times(cpu, our_cpu),
                number(server["resident_peak_bytes"] / MIB),
            ])
        yield f"### {encoding}, {batch} row(s), {concurrency} at a time\n"
        yield table(
            ["server", "req/s", "ours by", "p50 us", "p99 us", "p99.9 us", "CPU us/req",
             "by ours", "peak MiB"], rows)


def ready_table(result):
    """Time to the first 200."""
    rows = [
        [name, number(r["min_ms"]), number(r["median_ms"]), number(r["resident_bytes"] / MIB)]
        if "min_ms" in r else [name, r["failure"], "-", "-"]
        for name, r in result["ready"].items()]
    yield "### Ready after exec\n"
    yield table(["server", "fastest ms", "median ms", "MiB then"], rows)


def engine_tables(result):
    """A table for each model and batch, a row for each engine."""
    found = {}
    for row in result["engines"]["results"]:
        found.setdefault((row["model"], row["batch"]), []).append(row)
    for (model, batch), engines in sorted(found.items()):
        ours = next((row for row in engines if row["engine"] == OURS), {})
        rows = [
            [row["engine"],
             *(cell for key in ("min_us", "median_us", "cpu_us")
               for cell in (number(row[key]), times(row[key], ours.get(key))))]
            for row in sorted(engines, key=lambda row: row["min_us"])]
        yield f"### {model}, {batch} row(s) a call, one thread\n"
        yield table(
            ["engine", "fastest us", "by ours", "median us", "by ours", "CPU us", "by ours"], rows)
    versions = ", ".join(f"{name} {version}" for name, version in result["engines"]["versions"].items())
    yield f"Versions: {versions}.\n"


def render(result):
    """All tables of a run."""
    machine = result["machine"]
    before, after = (machine[key][0] for key in ("load_before", "load_after"))
    parts = [
        f"Measured {result['date']} at commit {result['commit']}.\n",
        f"Machine: {machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB, "
        f"Linux {machine['kernel']}; load average {before:.1f} before, {after:.1f} after. "
        "Client and server share the cores.\n",
        f"Command: `{result['command']}`\n",
    ]
    if result["cases"]:
        parts += ["## Servers\n", f"One {result['model']} model.\n", *server_tables(result)]
    if result["refused"]:
        parts.append("Not measured:\n")
        parts.append("".join(
            f"* {r['server']}, {r['encoding']}, {r['batch']} row(s): {r['reason']}\n"
            for r in result["refused"]))
    if result["ready"]:
        parts += ready_table(result)
    if "engines" in result:
        parts += ["## Engines\n", *engine_tables(result)]
    return "\n".join(parts)
