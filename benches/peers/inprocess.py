"""Times tree libraries in this process, on one thread, as JSON.

    python inprocess.py --models DIR > inprocess.json

DIR is what forest_models.py made. Every call gets other rows than the one before,
and is timed whole as a Python program would make it; `tensorgate-benches forest`
does the same with our engine. Reported are the fastest and the median call, the
processor time of a call on average (the timing itself included), and how far answers
are from the library that trained the model.

Engines: XGBoost (inplace_predict; predict with a DMatrix made for each call),
LightGBM (predict; its C function for single rows, without Python's part of the call
where the arguments are prepared once), ONNX Runtime, treelite (what Triton's FIL
backend runs on a CPU) and, if asked for by name, tl2cgen (compiles for minutes).
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"

import argparse  # noqa: E402
import ctypes  # noqa: E402
import json  # noqa: E402
import sys  # noqa: E402
import tempfile  # noqa: E402
import time  # noqa: E402
from importlib import metadata  # noqa: E402
from pathlib import Path  # noqa: E402

import lightgbm  # noqa: E402
import numpy as np  # noqa: E402
import onnx_trees  # noqa: E402
import onnxruntime  # noqa: E402
import treelite  # noqa: E402
import xgboost  # noqa: E402


def xgboost_inplace(folder, _):
    """`inplace_predict`: no DMatrix."""
    booster = xgboost.Booster({"nthread": 1}, model_file=str(folder / "model.json"))
    return lambda x: booster.inplace_predict(x)


def xgboost_dmatrix(folder, _):
    """`predict`, as KServe's server calls it."""
    booster = xgboost.Booster({"nthread": 1}, model_file=str(folder / "model.json"))
    return lambda x: booster.predict(xgboost.DMatrix(x, nthread=1))


def lightgbm_predict(folder, _):
    """`predict` on f64, which is what the library computes with."""
    booster = lightgbm.Booster(model_file=str(folder / "model.txt"))
    return lambda x: booster.predict(x, num_threads=1)


def lightgbm_fast(folder, batch):
    """`LGBM_BoosterPredictForMatSingleRowFast`: everything but the row fixed."""
    if batch != 1:
        return None
    booster = lightgbm.Booster(model_file=str(folder / "model.txt"))
    library, answer, length = lightgbm.basic._LIB, np.empty(1), ctypes.c_int64()
    fast = ctypes.c_void_p()
    float32, normal = 0, 0
    code = library.LGBM_BoosterPredictForMatSingleRowFastInit(
        booster._handle, normal, 0, -1, float32, booster.num_feature(),
        b"num_threads=1", ctypes.byref(fast))
    if code:
        raise RuntimeError("LGBM_BoosterPredictForMatSingleRowFastInit failed")
    out = answer.ctypes.data_as(ctypes.c_void_p)
    call, size = library.LGBM_BoosterPredictForMatSingleRowFast, ctypes.byref(length)

    def predict(x):
        if call(fast, ctypes.c_void_p(x.ctypes.data), size, out):
            raise RuntimeError("LGBM_BoosterPredictForMatSingleRowFast failed")
        return answer

    predict.keep = booster
    return predict


def onnx_runtime(folder, _):
    """One TreeEnsembleRegressor node."""
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "model.onnx"
        if (folder / "model.json").exists():
            model = onnx_trees.from_xgboost(folder / "model.json")
        else:
            booster = lightgbm.Booster(model_file=str(folder / "model.txt"))
            model = onnx_trees.from_lightgbm(booster)
        onnx_trees.save(model, path)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        session = onnxruntime.InferenceSession(
            path, options, providers=["CPUExecutionProvider"])
    return lambda x: session.run(None, {"x": x})[0]


def load_treelite(folder):
    """The model as treelite reads it."""
    if (folder / "model.json").exists():
        return treelite.frontend.load_xgboost_model(folder / "model.json")
    return treelite.frontend.load_lightgbm_model(folder / "model.txt")


def gtil(folder, _):
    """treelite's own interpreter."""
    model = load_treelite(folder)
    return lambda x: treelite.gtil.predict(model, x, nthread=1)


COMPILED = {}


def tl2cgen_compiled(folder, _):
    """Trees as C code, compiled with -O2."""
    import tl2cgen  # noqa: PLC0415

    if folder not in COMPILED:
        directory = tempfile.mkdtemp()
        tl2cgen.generate_c_code(
            load_treelite(folder), dirpath=directory, params={"parallel_comp": 64})
        library = tl2cgen.create_shared(
            toolchain="gcc", dirpath=directory, options=["-O2"], nthread=1)
        COMPILED[folder] = tl2cgen.Predictor(library, nthread=1)
    predictor = COMPILED[folder]
    return lambda x: predictor.predict(tl2cgen.DMatrix(x))


ENGINES = {
    "xgboost inplace_predict": ("xgboost", xgboost_inplace, np.float32),
    "xgboost DMatrix + predict": ("xgboost", xgboost_dmatrix, np.float32),
    "lightgbm predict": ("lightgbm", lightgbm_predict, np.float64),
    "lightgbm C single row fast": ("lightgbm", lightgbm_fast, np.float32),
    "onnxruntime": ("", onnx_runtime, np.float32),
    "treelite gtil": ("", gtil, None),
    "tl2cgen": ("", tl2cgen_compiled, None),
}
SLOW_TO_PREPARE = {"tl2cgen"}


def measure(predict, parts, seconds):
    """Microseconds of each call, the rows in turn; three calls at least."""
    for part in parts[:3]:
        predict(part)
    times, clock = [], time.perf_counter_ns
    end, index = clock() + int(seconds * 1e9), 0
    cpu = time.process_time_ns()
    while len(times) < 3 or clock() < end:
        part = parts[index % len(parts)]
        index += 1
        before = clock()
        predict(part)
        times.append(clock() - before)
    cpu = time.process_time_ns() - cpu
    times.sort()
    return {
        "min_us": times[0] / 1e3,
        "median_us": times[len(times) // 2] / 1e3,
        "cpu_us": cpu / 1e3 / len(times),
        "calls": len(times),
    }


def difference(predict, parts, expected):
    """The largest difference from the training library's answers."""
    sample = parts[: max(1, 256 // len(parts[0]))]
    answers = np.concatenate([np.array(predict(part)).reshape(-1) for part in sample])
    return float(np.abs(answers - expected[: len(answers)]).max())


def run(folder, x, options):
    """All engines on one model."""
    meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    dtype = {"f32": np.float32, "f64": np.float64}[meta["expected"]["dtype"]]
    expected = np.fromfile(folder / meta["expected"]["file"], dtype)
    for name, (library, prepare, input_type) in ENGINES.items():
        wanted = name in options.engine if options.engine else name not in SLOW_TO_PREPARE
        if not wanted or library not in ("", meta["library"]):
            continue
        # treelite computes in the type of the model.
        rows = x.astype(input_type or dtype)
        for batch in options.batch:
            predict = prepare(folder, batch)
            if predict is None:
                continue
            count = len(rows) // batch
            parts = [np.ascontiguousarray(part) for part in np.split(rows[: count * batch], count)]
            result = {"model": folder.name, "engine": name, "batch": batch}
            result.update(measure(predict, parts, options.seconds))
            result["max_difference"] = difference(predict, parts, expected)
            print(json.dumps(result), file=sys.stderr, flush=True)
            yield result


def main():
    """Runs what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", required=True, type=Path)
    parser.add_argument("--model", nargs="*", help="names; all by default")
    parser.add_argument("--engine", nargs="*", choices=ENGINES)
    parser.add_argument("--batch", nargs="*", type=int, default=[1, 64, 10_000])
    parser.add_argument("--seconds", type=float, default=3.0)
    options = parser.parse_args()
    folders = sorted(p.parent for p in options.models.glob("*/meta.json"))
    folders = [p for p in folders if not options.model or p.name in options.model]
    if not folders:
        parser.error("no such model")
    features = json.loads((folders[0] / "meta.json").read_text(encoding="utf-8"))["features"]
    x = np.fromfile(options.models / "x.f32.bin", "<f4").reshape(-1, features)
    packages = ("xgboost-cpu", "lightgbm", "onnxruntime", "treelite", "tl2cgen", "numpy")
    versions = {name: metadata.version(name) for name in packages}
    results = [result for folder in folders for result in run(folder, x, options)]
    json.dump({"versions": versions, "threads": 1, "results": results}, sys.stdout, indent=1)
    print()


if __name__ == "__main__":
    main()
