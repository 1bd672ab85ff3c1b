"""Parts that both library sweeps share: writing cases, hard inputs, pairwise cover.

Only numpy is needed, of any version that the libraries ask for.
"""

import itertools
import json
import os
import random

import numpy as np


class Skip(Exception):
    """A case that this version of the library cannot produce."""


class CaseWriter:
    """Writes one case folder: model files, inputs, expected outputs, case.json."""

    def __init__(self, out, name, library, version):
        self.folder = os.path.join(out, name)
        os.makedirs(self.folder, exist_ok=True)
        self.meta = {
            "library": library,
            "version": version,
            "rows": 0,
            "features": 0,
            "x_dtype": None,
            "files": [],
            "outputs": [],
        }

    def path(self, name):
        """Path of a file inside the case folder."""
        return os.path.join(self.folder, name)

    def add_model(self, name):
        """Records a model file that is already in the folder."""
        self.meta["files"].append(name)

    def inputs(self, x):
        """Stores the feature matrix, row-major and little-endian."""
        self.meta["rows"], self.meta["features"] = (int(n) for n in x.shape)
        self.meta["x_dtype"] = dtype_name(x)
        self.array("x.bin", x)

    def array(self, name, values):
        """Stores any array as raw little-endian bytes; returns its description."""
        values = np.ascontiguousarray(values)
        values.astype(values.dtype.newbyteorder("<")).tofile(self.path(name))
        return {
            "file": name,
            "dtype": dtype_name(values),
            "shape": [int(n) for n in values.shape],
        }

    def output(self, kind, values):
        """Stores one expected output under the name of its kind."""
        entry = {"kind": kind}
        entry.update(self.array(kind + ".bin", values))
        self.meta["outputs"].append(entry)

    def extra(self, kind, values, **keys):
        """Stores an output of another call than plain predict, with its settings."""
        number = len(self.meta.setdefault("extra", []))
        entry = {"kind": kind}
        entry.update(keys)
        entry.update(self.array(f"extra-{number}.bin", values))
        self.meta["extra"].append(entry)

    def close(self, keys):
        """Writes case.json with the given descriptive keys."""
        self.meta.update(keys)
        write_json(self.path("case.json"), self.meta)


def dtype_name(values):
    """The short name of an array's element type."""
    names = {"float32": "f32", "float64": "f64"}
    return names[values.dtype.name]


def write_json(path, value):
    """Writes JSON with a stable layout."""
    with open(path, "w", encoding="utf-8") as file:
        json.dump(value, file, indent=1, sort_keys=True, ensure_ascii=False)
        file.write("\n")


def pairwise(axes, settle, seed, candidates=60):
    """Combinations of `axes` that cover every reachable pair of values.

    Greedy: each step aims at one uncovered pair and keeps, out of some random
    combinations, the one that covers most new pairs. `settle` turns a random
    combination into one that makes sense, or returns None.
    """
    rng = random.Random(seed)
    names = sorted(axes)
    todo = set()
    for _ in range(30000):
        combo = settle(_random_combo(axes, names, rng, {}))
        if combo:
            todo |= _pairs(combo, names)
    chosen = []
    while todo:
        target = min(todo)
        best, best_new = None, {target}
        for _ in range(candidates):
            combo = settle(_random_combo(axes, names, rng, dict(target)))
            new = _pairs(combo, names) & todo if combo else ()
            if target in new and (best is None or len(new) > len(best_new)):
                best, best_new = combo, new
        todo -= best_new
        if best:
            chosen.append(best)
    return chosen


def _pairs(combo, names):
    """All pairs of (axis, value) in one combination."""
    items = [(name, combo[name]) for name in names]
    return set(itertools.combinations(items, 2))


def _random_combo(axes, names, rng, fixed):
    """A random combination with some values given."""
    combo = {name: rng.choice(axes[name]) for name in names}
    combo.update(fixed)
    return combo


def neighbours(values, dtype):
    """Each value with the representable numbers right below and above it."""
    values = np.asarray(values, dtype=dtype)
    low = np.nextafter(values, dtype(-np.inf))
    high = np.nextafter(values, dtype(np.inf))
    return np.concatenate([values, low, high])


def spread(values, limit):
    """At most `limit` of the sorted distinct values, evenly picked."""
    values = np.unique(values)
    if len(values) <= limit:
        return values
    return values[np.linspace(0, len(values) - 1, limit).astype(int)]


def hard_rows(base, pools, rng, single, joint):
    """Rows that carry hard values, made from ordinary rows.

    `pools[f]` lists the hard values of feature f. The first `single` rows change
    one feature of an ordinary row, so that the change decides at a split that is
    really reached. The `joint` rows take every feature from its pool.
    """
    features = base.shape[1]
    order = [(f, v) for f in range(features) for v in pools[f]]
    rng.shuffle(order)
    rows = []
    for feature, value in order[:single]:
        row = base[rng.randint(len(base))].copy()
        row[feature] = value
        rows.append(row)
    for _ in range(joint):
        rows.append([pools[f][rng.randint(len(pools[f]))] for f in range(features)])
    rows.append([np.nan] * features)
    rows.append([0.0] * features)
    rows.append([-0.0] * features)
    return np.asarray(rows, dtype=base.dtype)
