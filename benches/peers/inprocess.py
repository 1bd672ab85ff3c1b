"""Times tree libraries in this process, on one thread, as JSON.

    python inprocess.py --models DIR > inprocess.json
    python inprocess.py --models DIR --prepare

DIR is what forest_models.py made. Every call gets other rows than the one before,
and is timed whole as a Python program would make it; `tensorgate-benches forest`
does the same with our engine. Reported are the fastest and the median call, the
processor time of a call on average (the timing itself included), and how far answers
are from the library that trained the model.

| engine | what |
|---|---|
| xgboost inplace_predict | no DMatrix |
| xgboost DMatrix + predict | a DMatrix for each call, as KServe's server makes it |
| lightgbm predict | on f64, which is what the library computes with |
| lightgbm C one row | its C function for single rows, everything but the row fixed before |
| onnxruntime | one TreeEnsembleRegressor node |
| onnxruntime bound | the same, with input and output bound to memory before |
| treelite gtil | what Triton's FIL backend runs on a CPU |
| tl2cgen | trees as C code, compiled with -O2 |
| tl2cgen C one row | the compiled function itself, without tl2cgen's part of the call |

Compiling for tl2cgen takes minutes: --prepare does it once and leaves the result
beside the model; without it the first run does.
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"

import argparse  # noqa: E402
import ctypes  # noqa: E402
import functools  # noqa: E402
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
import tl2cgen  # noqa: E402
import treelite  # noqa: E402
import xgboost  # noqa: E402


@functools.cache
def xgboost_booster(folder):
    """The trained booster."""
    return xgboost.Booster({"nthread": 1}, model_file=str(folder / "model.json"))


def xgboost_inplace(folder, _):
    """`inplace_predict`."""
    booster = xgboost_booster(folder)
    return lambda x: booster.inplace_predict(x)


def xgboost_dmatrix(folder, _):
    """`predict`."""
    booster = xgboost_booster(folder)
    return lambda x: booster.predict(xgboost.DMatrix(x, nthread=1))


@functools.cache
def lightgbm_booster(folder):
    """The trained booster."""
    return lightgbm.Booster(model_file=str(folder / "model.txt"))


def lightgbm_predict(folder, _):
    """`predict`."""
    booster = lightgbm_booster(folder)
    return lambda x: booster.predict(x, num_threads=1)


def lightgbm_fast(folder, batch):
    """`LGBM_BoosterPredictForMatSingleRowFast`."""
    if batch != 1:
        return None
    booster = lightgbm_booster(folder)
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

    return predict


@functools.cache
def onnx_session(folder):
    """The same trees, loaded by ONNX Runtime."""
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "model.onnx"
        if (folder / "model.json").exists():
            model = onnx_trees.from_xgboost(folder / "model.json")
        else:
            model = onnx_trees.from_lightgbm(lightgbm_booster(folder))
        onnx_trees.save(model, path)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        return onnxruntime.InferenceSession(
            path, options, providers=["CPUExecutionProvider"])


def onnx_runtime(folder, _):
    """`run`."""
    session = onnx_session(folder)
    return lambda x: session.run(None, {"x": x})[0]


def onnx_bound(folder, batch):
    """`run_with_iobinding`: rows are copied to where the input is."""
    session = onnx_session(folder)
    x = np.empty((batch, session.get_inputs()[0].shape[1]), np.float32)
    y = np.empty((batch, 1), np.float32)
    binding = session.io_binding()
    binding.bind_input("x", "cpu", 0, np.float32, x.shape, x.ctypes.data)
    binding.bind_output("y", "cpu", 0, np.float32, y.shape, y.ctypes.data)

    def predict(rows):
        np.copyto(x, rows)
        session.run_with_iobinding(binding)
        return y

    return predict


@functools.cache
def load_treelite(folder):
    """The model as treelite reads it."""
    if (folder / "model.json").exists():
        return treelite.frontend.load_xgboost_model(folder / "model.json")
    return treelite.frontend.load_lightgbm_model(folder / "model.txt")


def gtil(folder, _):
    """treelite's own interpreter."""
    model = load_treelite(folder)
    return lambda x: treelite.gtil.predict(model, x, nthread=1)


@functools.cache
def compiled(folder):
    """The shared library with the trees, made if it is not there."""
    path = folder / f"tl2cgen-{metadata.version('tl2cgen')}.so"
    if not path.exists():
        print(f"{folder.name}: compiling for tl2cgen", file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            tl2cgen.generate_c_code(
                load_treelite(folder), dirpath=scratch, params={"parallel_comp": 64})
            library = tl2cgen.create_shared(
                toolchain="gcc", dirpath=scratch, options=["-O2"], nthread=os.cpu_count())
            # Whole or not at all: a compilation may be interrupted.
            os.replace(library, path)
    return path


def tl2cgen_predictor(folder, _):
    """`predict`."""
    predictor = tl2cgen.Predictor(compiled(folder), nthread=1)
    return lambda x: predictor.predict(tl2cgen.DMatrix(x))


def tl2cgen_function(folder, batch):
    """The function `predict`, on rows whose missing values are marked as it wants them."""
    if batch != 1:
        return None
    function = ctypes.CDLL(str(compiled(folder))).predict
    function.restype, function.argtypes = None, [ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p]
    answer = np.zeros(1, np.float32 if (folder / "model.json").exists() else np.float64)
    out = answer.ctypes.data

    def predict(x):
        answer[0] = 0
        function(x.ctypes.data, 0, out)
        return answer

    return predict


def mark_missing(x):
    """tl2cgen's rows: a value is missing where its first four bytes are -1."""
    marked = x.copy()
    marked.view(np.int32 if x.dtype == np.float32 else np.int64)[np.isnan(x)] = -1
    return marked


ENGINES = {
    "xgboost inplace_predict": ("xgboost", xgboost_inplace, np.float32),
    "xgboost DMatrix + predict": ("xgboost", xgboost_dmatrix, np.float32),
    "lightgbm predict": ("lightgbm", lightgbm_predict, np.float64),
    "lightgbm C one row": ("lightgbm", lightgbm_fast, np.float32),
    "onnxruntime": ("", onnx_runtime, np.float32),
    "onnxruntime bound": ("", onnx_bound, np.float32),
    "treelite gtil": ("", gtil, None),
    "tl2cgen": ("", tl2cgen_predictor, None),
    "tl2cgen C one row": ("", tl2cgen_function, None),
}


def measure(predict, parts, seconds):
    """Microseconds of each call, the rows in turn.

    Three calls at least, but only one of what takes longer than all the time there is.
    """
    times, clock, allowed = [], time.perf_counter_ns, int(seconds * 1e9)
    end, index = clock() + allowed, 0
    cpu = time.process_time_ns()
    while len(times) < (1 if times and times[0] > allowed else 3) or clock() < end:
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
        wanted = not options.engine or name in options.engine
        if not wanted or library not in ("", meta["library"]):
            continue
        # treelite and tl2cgen compute in the type of the model.
        rows = x.astype(input_type or dtype)
        if prepare is tl2cgen_function:
            rows = mark_missing(rows)
        for batch in options.batch:
            predict = prepare(folder, batch)
            if predict is None:
                continue
            count = len(rows) // batch
            parts = [np.ascontiguousarray(part) for part in np.split(rows[: count * batch], count)]
            result = {"model": folder.name, "engine": name, "batch": batch}
            # The first calls, which nobody times.
            result["max_difference"] = difference(predict, parts, expected)
            result.update(measure(predict, parts, options.seconds))
            print(json.dumps(result), file=sys.stderr, flush=True)
            yield result


def main():
    """Runs what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", required=True, type=Path)
    parser.add_argument("--model", nargs="*", help="names; all by default")
    parser.add_argument("--engine", nargs="*", choices=ENGINES, help="all by default")
    parser.add_argument("--prepare", action="store_true", help="compile, time nothing")
    parser.add_argument("--batch", nargs="*", type=int, default=[1, 64, 10_000])
    parser.add_argument("--seconds", type=float, default=3.0)
    options = parser.parse_args()
    folders = sorted(p.parent for p in options.models.glob("*/meta.json"))
    folders = [p for p in folders if not options.model or p.name in options.model]
    if not folders:
        parser.error("no such model")
    if options.prepare:
        for folder in folders:
            compiled(folder)
        return
    features = json.loads((folders[0] / "meta.json").read_text(encoding="utf-8"))["features"]
    x = np.fromfile(options.models / "x.f32.bin", "<f4").reshape(-1, features)
    packages = ("xgboost-cpu", "lightgbm", "onnxruntime", "treelite", "tl2cgen", "numpy")
    versions = {name: metadata.version(name) for name in packages}
    results = [result for folder in folders for result in run(folder, x, options)]
    json.dump({"versions": versions, "threads": 1, "results": results}, sys.stdout, indent=1)
    print()


if __name__ == "__main__":
    main()
