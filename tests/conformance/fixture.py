"""The models that are asked, and the repositories each server reads them from.

The same booster file is given to a peer and to us: KServe and tensorgate share one repository; Triton gets a Python
model around the file and we get the same configuration with the FIL backend that would serve it on a real Triton.
"""

import pathlib
import shutil
from dataclasses import dataclass

import numpy as np
import xgboost

HERE = pathlib.Path(__file__).resolve().parent
COLUMNS, CLASSES, MAX_BATCH = 4, 3, 8

CONFIG = """name: "{name}"
backend: "{backend}"
max_batch_size: {max_batch}
input [{{ name: "input__0" data_type: TYPE_FP32 dims: [ {columns} ] }}]
output [{{ name: "output__0" data_type: TYPE_FP32 dims: [ {classes} ] }}]
instance_group [{{ kind: KIND_CPU }}]
"""

FIL_PARAMETERS = """parameters [
  { key: "model_type" value: { string_value: "xgboost_json" } },
  { key: "is_classifier" value: { string_value: "true" } },
  { key: "predict_proba" value: { string_value: "true" } }
]
"""


@dataclass
class Repositories:
    """Where each server finds the models."""

    kserve: pathlib.Path
    triton: pathlib.Path
    ours: dict  # by profile


def train(folder):
    """Two boosters without feature names: `iris` has three classes, `rain` one probability."""
    rng = np.random.default_rng(7)
    rows = rng.uniform(0, 8, (200, COLUMNS)).astype(np.float32)
    rows[rng.uniform(size=rows.shape) < 0.05] = np.nan
    labels = {
        "iris": (np.nan_to_num(rows[:, 0] + rows[:, 2]) > 8).astype(int) + (rows[:, 3] > 4),
        "rain": (np.nan_to_num(rows[:, 1]) > 3).astype(int),
    }
    tasks = {"iris": {"objective": "multi:softprob", "num_class": CLASSES}, "rain": {"objective": "binary:logistic"}}
    files = {}
    for name, task in tasks.items():
        data = xgboost.DMatrix(rows, label=labels[name])
        booster = xgboost.train({**task, "max_depth": 4, "nthread": 1, "seed": 7}, data, 10)
        files[name] = folder / f"{name}.json"
        booster.save_model(files[name])
    return files


def place(repository, name, file, filename):
    version = repository / name / "1"
    version.mkdir(parents=True)
    shutil.copy(file, version / filename)
    return version


def write_config(repository, name, backend, more=""):
    values = {"max_batch": MAX_BATCH, "columns": COLUMNS, "classes": CLASSES}
    (repository / name / "config.pbtxt").write_text(CONFIG.format(name=name, backend=backend, **values) + more)


def build(folder):
    """Writes every repository under `folder`. `spare` is there to be unloaded."""
    files = train(folder)
    kserve, triton, ours = folder / "kserve", folder / "triton", folder / "ours"
    for name, file in {"iris": files["iris"], "rain": files["rain"], "spare": files["iris"]}.items():
        place(kserve, name, file, "model.json")
    for name in ("iris", "spare"):
        version = place(triton, name, files["iris"], "xgboost.json")
        shutil.copy(HERE / "peers" / "triton_model.py", version / "model.py")
        write_config(triton, name, "python")
        place(ours, name, files["iris"], "xgboost.json")
        write_config(ours, name, "fil", FIL_PARAMETERS)
    return Repositories(kserve=kserve, triton=triton, ours={"kserve": kserve, "triton": ours})
