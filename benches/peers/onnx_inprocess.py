"""ONNX Runtime without a server, as JSON.

    python onnx_inprocess.py rate FOLDER [--rows N] [--threads N] [--callers N] [--bound] [--seconds S]
    python onnx_inprocess.py load FOLDER [--threads N]

FOLDER is one that onnx_models.py made. `rate` calls the model for as long as it is told to: calls a second, their
latencies and the first answer. Callers share a session and its threads. With --bound, input and output are bound to
memory before: what is left of a call is next to nothing but the library.

`load` prints a line when the model is loaded, with what that took, and then one after the first call: the first line is
what a parent waits for that measures from exec.
"""

import time

BEGUN = time.perf_counter()

import argparse  # noqa: E402
import json  # noqa: E402
import threading  # noqa: E402
from pathlib import Path  # noqa: E402

import numpy as np  # noqa: E402
import onnxruntime  # noqa: E402

IMPORTED = time.perf_counter()


def load(options):
    """The session."""
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = options.threads
    settings.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(
        str(options.folder / "model.onnx"), settings, providers=["CPUExecutionProvider"])


def first_rows(options):
    """What the model is asked."""
    meta = json.loads((options.folder / "meta.json").read_text(encoding="utf-8"))
    rows = np.fromfile(options.folder / "rows.f32.bin", "<f4").reshape(-1, *meta["shape"])
    return meta["input"], np.ascontiguousarray(rows[: options.rows])


def caller(session, name, rows, bound):
    """A function that makes one call; where it is bound, to memory of its own."""
    if not bound:
        return lambda: session.run(None, {name: rows})[0]
    answer = session.run(None, {name: rows})[0]
    binding = session.io_binding()
    binding.bind_cpu_input(name, rows)
    output = session.get_outputs()[0].name
    binding.bind_output(output, "cpu", 0, answer.dtype, answer.shape, answer.ctypes.data)

    def call():
        session.run_with_iobinding(binding)
        return answer

    return call


def measure(calls, seconds):
    """Calls a second of all callers together, and the latencies of those that ended in time."""
    clock, latencies = time.perf_counter, [[] for _ in calls]
    gate = threading.Barrier(len(calls))
    spans = []

    def work(call, mine):
        gate.wait()
        begun = now = clock()
        while now - begun < seconds or len(mine) < 3:
            before, _ = now, call()
            now = clock()
            mine.append(now - before)
        spans.append((begun, now, len(mine)))

    threads = [threading.Thread(target=work, args=pair) for pair in zip(calls, latencies, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    # Each caller's own rate: the last call of one does not lengthen the time of the others.
    rate = sum(count / (end - begun) for begun, end, count in spans)
    every = sorted(each for mine in latencies for each in mine)
    return {
        "calls_per_second": rate,
        "min_us": every[0] * 1e6,
        "p50_us": every[len(every) // 2] * 1e6,
        "p99_us": every[min(len(every) - 1, len(every) * 99 // 100)] * 1e6,
    }


def rate(options):
    """Some calls that nobody times, then those that are."""
    session = load(options)
    name, rows = first_rows(options)
    calls = [caller(session, name, rows, options.bound) for _ in range(options.callers)]
    answers = [call() for call in calls for _ in range(3)]
    answer = answers[0].ravel().tolist()
    return {"version": onnxruntime.__version__, "answer": answer, **measure(calls, options.seconds)}


def main():
    """Does what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("rate", "load"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--callers", type=int, default=1)
    parser.add_argument("--bound", action="store_true")
    parser.add_argument("--seconds", type=float, default=3.0)
    options = parser.parse_args()
    if options.what == "rate":
        print(json.dumps(rate(options)))
        return
    before = time.perf_counter()
    session = load(options)
    loaded = time.perf_counter()
    print(json.dumps({"import_s": IMPORTED - BEGUN, "load_s": loaded - before}), flush=True)
    name, rows = first_rows(options)
    before = time.perf_counter()
    session.run(None, {name: rows})
    print(json.dumps({"first_call_s": time.perf_counter() - before}))


if __name__ == "__main__":
    main()
