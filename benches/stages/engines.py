"""Our engine beside the tree libraries: no servers, one thread, the same rows."""

import json
import subprocess
import sys
from pathlib import Path

from stages import program
from stages.tables import OURS, Target, at_least, name_of, number, rows_of, table, times

PEERS = Path(__file__).resolve().parent.parent / "peers"
# By name, so that none is left out unnoticed.
LIBRARIES = (
    "xgboost inplace_predict", "xgboost DMatrix + predict", "lightgbm predict", "lightgbm C one row",
    "onnxruntime", "onnxruntime bound", "treelite gtil", "tl2cgen", "tl2cgen C one row",
)
MODELS = {
    "xgb-d8": "XGBoost, 500 trees of depth 8",
    "lgb31": "LightGBM, 500 trees of 31 leaves",
    "lgb255": "LightGBM, 500 trees of 255 leaves",
}
# How many times as fast as the fastest library, by model and rows of a call.
WANTED = {
    ("xgb-d8", 1): 2.5, ("xgb-d8", 64): 6, ("xgb-d8", 10_000): 6,
    ("lgb255", 1): 2, ("lgb255", 64): 2, ("lgb255", 10_000): 2,
}
TIMES = ("min_us", "median_us", "cpu_us")


def run(options, _):
    """In processes of their own; of all rounds the best."""
    best, versions, models = {}, {}, options.engine_models or list(MODELS)
    for number_ in range(options.rounds):
        print(f"engines, round {number_ + 1} of {options.rounds}", file=sys.stderr)
        for name in models:
            found = libraries(options, name)
            versions |= found["versions"]
            for row in [*our_engine(options, name), *found["results"]]:
                known = best.setdefault((row["model"], row["engine"], row["batch"]), row)
                known |= {key: min(known[key], row[key]) for key in TIMES}
            yield {"versions": versions, "results": list(best.values())}


def libraries(options, name):
    """Timings of all libraries on one model."""
    if not options.library_python:
        return {"versions": {}, "results": []}
    command = [
        options.library_python, PEERS / "inprocess.py", "--models", options.models, "--model", name,
        "--batch", *options.engine_batch, "--seconds", options.engine_seconds,
        "--engine", *(options.engine or LIBRARIES)]
    done = subprocess.run(list(map(str, command)), stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"inprocess.py ended with {done.returncode} on {name}")
    return json.loads(done.stdout)


def our_engine(options, name):
    """Timings of our engine on one model, through `backends`."""
    batches = [word for batch in options.engine_batch for word in ("--batch", batch)]
    report = program.must_run(
        options, "forest", "--model", options.models / name, "--columns", program.FEATURES, *batches,
        "--seconds", options.engine_seconds, "--json")
    if report["exact"] is False:
        raise RuntimeError(f"{name}: our answers are not the library's")
    difference = 0.0 if report["exact"] else None
    print(json.dumps(report), file=sys.stderr)
    return [
        {"model": name, "engine": OURS, "batch": int(batch), "max_difference": difference, **timing}
        for batch, timing in report["batches"].items()]


def fastest_library(engines, batch, key):
    """The least time of any that is not ours."""
    found = [by[batch][key] for engine, by in engines.items() if engine != OURS and batch in by]
    return min(found, default=None)


def by_engine(result, model):
    """Rows by engine and batch."""
    engines = {}
    for row in result["results"]:
        if row["model"] == model:
            engines.setdefault(row["engine"], {})[row["batch"]] = row
    return engines


def engine_table(engines, key):
    """A row for each engine, ours first; the last is how many times as fast we are as the fastest other."""
    batches = sorted({batch for by in engines.values() for batch in by})
    ours = {batch: row[key] for batch, row in engines.get(OURS, {}).items()}
    rows = []
    for engine, by in sorted(engines.items(), key=lambda item: (item[0] != OURS, item[0])):
        cells = [name_of(engine)]
        for batch in batches:
            value = by.get(batch, {}).get(key)
            cells += [number(value), times(value, ours.get(batch)) if engine != OURS else ""]
        differences = [row["max_difference"] for row in by.values()]
        worst = None if None in differences else max(differences)
        rows.append([*cells, "equal bits" if engine == OURS and worst == 0 else number(worst)])
    last = ["the fastest library, by ours"]
    for batch in batches:
        last += ["", f"**{times(fastest_library(engines, batch, key), ours.get(batch))}**"]
    head = ["microseconds a call"]
    for batch in batches:
        head += [rows_of(batch), "by ours"]
    return table([*head, "off by"], [*rows, [*last, ""]])


def tables(result):
    """Two for each model: the fastest call, and the median one."""
    yield ("One thread, the same rows for all, other rows in every call. *By ours* is how many times our time it takes. "
           "A library is called from Python, which is some microseconds of a call; we are called from Rust. Engines "
           "named *C one row* and *bound* have nearly all of Python's part done before the clock starts.\n")
    for model in dict.fromkeys(row["model"] for row in result["results"]):
        engines = by_engine(result, model)
        for key, what in (("min_us", "fastest call"), ("median_us", "median call")):
            yield f"### {MODELS.get(model, model)}: {what}\n"
            yield engine_table(engines, key)
    if result["versions"]:
        yield "Versions: " + ", ".join(f"{name} {v}" for name, v in result["versions"].items()) + ".\n"


def targets(result):
    """How many times as fast as the fastest library."""
    found = []
    for (model, batch), bound in WANTED.items():
        engines = by_engine(result, model)
        ours = engines.get(OURS, {}).get(batch)
        fastest = fastest_library(engines, batch, "min_us")
        if ours and fastest:
            what = f"{MODELS[model]}, {rows_of(batch)}: times as fast as the fastest library"
            found += at_least(what, bound, fastest / ours["min_us"], "x")
    checked = [row["max_difference"] for row in result["results"] if row["engine"] == OURS]
    if checked and None not in checked:
        found.append(Target("our answers", "equal bits", "equal bits", True))
    return found
