"""Makes the tree models that the benchmarks run.

    python forest_models.py --out DIR

DIR gets x.f32.bin (10,000 rows of 50 features, 5 % missing, row-major,
little-endian) and a folder for each model with the model files, expected.bin (the
library's own answers for x.f32.bin: f32 from XGBoost, f64 from LightGBM) and
meta.json. All data is synthetic and seeded. The versions are those of
backends/tests/oracle/requirements.txt.
"""

import argparse
import json
from pathlib import Path

import lightgbm
import numpy as np
import xgboost

SEED = 2026
FEATURES = 50
TRAIN_ROWS = 20_000
TEST_ROWS = 10_000
MISSING = 0.05
TREES = 500

XGBOOST = {
    "xgb-d8": {"max_depth": 8},
}
LIGHTGBM = {
    "lgb31": {"num_leaves": 31},
    "lgb255": {"num_leaves": 255},
}


def make_data(rows, rng):
    """Normal features with missing values, and a target from ten of them."""
    x = rng.standard_normal((rows, FEATURES)).astype(np.float32)
    y = (
        2 * x[:, 0]
        + x[:, 1] * x[:, 2]
        + np.sin(3 * x[:, 3])
        + np.abs(x[:, 4])
        + (x[:, 5] > 0.5) * x[:, 6]
        + np.tanh(x[:, 7] * x[:, 8] + x[:, 9])
        + rng.standard_normal(rows)
    )
    x[rng.random(x.shape) < MISSING] = np.nan
    return x, y.astype(np.float32)


def write(folder, meta, answers):
    """Stores expected.bin and meta.json beside the model files."""
    answers.astype(answers.dtype.newbyteorder("<")).tofile(folder / "expected.bin")
    meta.update(
        rows=TEST_ROWS,
        features=FEATURES,
        missing=MISSING,
        x="../x.f32.bin",
        expected={
            "file": "expected.bin",
            "dtype": {"float32": "f32", "float64": "f64"}[answers.dtype.name],
            "shape": list(answers.shape),
        },
        files=sorted(p.name for p in folder.glob("model.*")),
    )
    (folder / "meta.json").write_text(json.dumps(meta, indent=1) + "\n", encoding="utf-8")
    print(f"{meta['name']}: {meta['trees']} trees, {meta['internal_nodes_mean']} splits each")


def make_xgboost(name, params, out, train, x, threads):
    """One XGBoost regression model."""
    params = dict(
        params, objective="reg:squarederror", tree_method="hist", eta=0.027,
        min_child_weight=1, seed=SEED, nthread=threads)
    booster = xgboost.train(params, xgboost.DMatrix(train[0], train[1]), TREES)
    folder = out / name
    folder.mkdir(parents=True, exist_ok=True)
    booster.save_model(folder / "model.json")
    booster.save_model(folder / "model.ubj")
    model = json.loads((folder / "model.json").read_text(encoding="utf-8"))
    trees = model["learner"]["gradient_booster"]["model"]["trees"]
    splits = [sum(left != -1 for left in tree["left_children"]) for tree in trees]
    meta = {
        "name": name,
        "library": "xgboost",
        "version": xgboost.__version__,
        "trees": len(trees),
        "internal_nodes_mean": round(float(np.mean(splits)), 1),
        "internal_nodes_max": max(splits),
        "params": params,
    }
    write(folder, meta, booster.predict(xgboost.DMatrix(x)))


def make_lightgbm(name, params, out, train, x, threads):
    """One LightGBM regression model."""
    params = dict(
        params, objective="regression", learning_rate=0.05, seed=SEED,
        num_threads=threads, deterministic=True, force_row_wise=True, verbose=-1)
    booster = lightgbm.train(params, lightgbm.Dataset(train[0], train[1]), TREES)
    folder = out / name
    folder.mkdir(parents=True, exist_ok=True)
    booster.save_model(folder / "model.txt")
    text = (folder / "model.txt").read_text(encoding="utf-8")
    leaves = [int(line[11:]) for line in text.splitlines() if line.startswith("num_leaves=")]
    meta = {
        "name": name,
        "library": "lightgbm",
        "version": lightgbm.__version__,
        "trees": len(leaves),
        "internal_nodes_mean": round(float(np.mean(leaves)) - 1, 1),
        "internal_nodes_max": max(leaves) - 1,
        "params": params,
    }
    write(folder, meta, booster.predict(x.astype(np.float64)))


def main():
    """Makes all models."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    rng = np.random.default_rng(SEED)
    train = make_data(TRAIN_ROWS, rng)
    x, _ = make_data(TEST_ROWS, rng)
    options.out.mkdir(parents=True, exist_ok=True)
    x.astype("<f4").tofile(options.out / "x.f32.bin")
    for name, params in XGBOOST.items():
        make_xgboost(name, params, options.out, train, x, options.threads)
    for name, params in LIGHTGBM.items():
        make_lightgbm(name, params, options.out, train, x, options.threads)


if __name__ == "__main__":
    main()
