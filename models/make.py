"""Builds the example models in this folder and what each must answer.

    pip install xgboost lightgbm scikit-learn
    python models/make.py

The data sets come with scikit-learn. Everything is seeded: the same library
versions write the same files. Each model gets an expected.json with a request in
the Open Inference Protocol (V2) and the library's own answer to it.
"""

import json
from pathlib import Path

import lightgbm
import numpy as np
import xgboost
from sklearn import datasets

HERE = Path(__file__).resolve().parent
SEED = 7


def training_data(load, missing=0.0):
    """A data set as (features, target), with a share of the values missing."""
    bunch = load()
    x = bunch.data.astype(np.float64)
    rng = np.random.RandomState(SEED)
    x[rng.rand(*x.shape) < missing] = np.nan
    return x, bunch.target, bunch.feature_names


def sample(x, rows):
    """Evenly spaced rows; one value of the last row is made missing."""
    picked = x[np.linspace(0, len(x) - 1, rows).astype(int)].copy()
    picked[-1, 1] = np.nan
    return picked


def numbers(values):
    """A flat list for JSON: f32 as its shortest decimals, missing as null."""
    flat = np.asarray(values).ravel()
    return [None if np.isnan(v) else float(str(v)) for v in flat]


def tensor(name, values):
    """A V2 tensor."""
    datatype = {"float32": "FP32", "float64": "FP64"}[values.dtype.name]
    return {
        "name": name,
        "shape": list(values.shape),
        "datatype": datatype,
        "data": numbers(values),
    }


def write_expected(name, library, file, x, y):
    """Stores a request and the library's answer beside the model."""
    expected = {
        "library": library,
        "model_file": f"1/{file}",
        "request": {"inputs": [tensor("input-0", x)]},
        "response": {"outputs": [tensor("output-0", y)]},
    }
    text = json.dumps(expected, indent=1) + "\n"
    (HERE / name / "expected.json").write_text(text, encoding="utf-8")


def model_path(name, file):
    """Where version 1 of a model is stored."""
    path = HERE / name / "1" / file
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def make_xgboost(name, file, load, rows, missing=0.0, **params):
    """Trains and stores an XGBoost model."""
    x, y, columns = training_data(load, missing)
    x = x.astype(np.float32)
    columns = [str(column) for column in columns]
    params.update(max_depth=3, eta=0.3, seed=SEED, nthread=1)
    data = xgboost.DMatrix(x, label=y, feature_names=columns)
    booster = xgboost.train(params, data, num_boost_round=20)
    booster.save_model(model_path(name, file))
    asked = sample(x, rows)
    answer = booster.predict(xgboost.DMatrix(asked, feature_names=columns))
    write_expected(name, f"xgboost {xgboost.__version__}", file, asked, answer)


def make_lightgbm(name, file, load, rows, **params):
    """Trains and stores a LightGBM model."""
    x, y, columns = training_data(load)
    columns = [str(column).replace("/", "_") for column in columns]
    params.update(num_leaves=7, min_data_in_leaf=5, learning_rate=0.2, seed=SEED,
                  num_threads=1, deterministic=True, force_row_wise=True, verbose=-1)
    data = lightgbm.Dataset(x, label=y, feature_name=columns)
    booster = lightgbm.train(params, data, num_boost_round=20)
    booster.save_model(model_path(name, file))
    asked = sample(x, rows)
    answer = booster.predict(asked)
    write_expected(name, f"lightgbm {lightgbm.__version__}", file, asked, answer)


def main():
    """Builds all models."""
    make_xgboost("iris", "model.json", datasets.load_iris, 5,
                 objective="multi:softprob", num_class=3)
    make_xgboost("breast-cancer", "model.ubj", datasets.load_breast_cancer, 4,
                 missing=0.02, objective="binary:logistic")
    make_lightgbm("diabetes", "model.txt", datasets.load_diabetes, 4,
                  objective="regression")
    make_lightgbm("wine", "model.txt", datasets.load_wine, 5,
                  objective="multiclass", num_class=3)


if __name__ == "__main__":
    main()
