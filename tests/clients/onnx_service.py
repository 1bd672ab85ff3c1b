"""Servers over ONNX models, the ways to ask them, and what `onnxruntime` itself answers.

No test is here. The shared server is the fixture `onnx_server` of `conftest.py`.
"""

import contextlib
import copy
import functools
import time

import ml_dtypes
import numpy as np
import onnx
import onnx_models
import onnxruntime
import requests
from conftest import starter, stop_all
from harness import NUMPY
from onnx_models import KINDS
from sdk import triton_grpc, triton_http

LISTEN = ["--http-port", "{http}", "--grpc-port", "{grpc}"]
PLATFORM = "onnxruntime_onnx"

# Known before any of them is made, so that tests can be listed without making them.
NETS = "convolutional transformer trees zipmap mixed scalar optional slow large sequence".split()
ALONE = "fixed softmax running centred similar reversed joined".split()
SKLEARN = "pipeline zipmap-numbers zipmap-names plain columns forest regressor".split()
SAME = [f"same-{datatype.lower()}" for datatype in KINDS]
NAMES = [*NETS, *ALONE, *SKLEARN, *SAME]

# numpy's types by Triton's names, and the other way round.
TYPES = NUMPY | {"BF16": ml_dtypes.bfloat16, "BYTES": np.object_}
DATATYPES = {np.dtype(kind): name for name, kind in TYPES.items()}
# ONNX Runtime's names of types in Python.
SPELT = {
    "tensor(bool)": "BOOL",
    "tensor(float16)": "FP16",
    "tensor(bfloat16)": "BF16",
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
    "tensor(string)": "BYTES",
} | {f"tensor({name.lower()})": name for name in TYPES if "INT" in name}


def datatype(array):
    return DATATYPES[array.dtype]


# -------------------------------------------------------------------------------------------------------- right answers


class Oracle:
    """A model in `onnxruntime`, in this process."""

    def __init__(self, model, threads=1):
        self.model = model
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 4
        self.session = onnxruntime.InferenceSession(model.data, options, providers=["CPUExecutionProvider"])

    def answer(self, feeds):
        """Outputs by name."""
        if any(array.dtype == ml_dtypes.bfloat16 for array in feeds.values()):
            # Python's package takes none of these; the one such model gives back what it is given.
            assert self.model.name == "same-bf16"
            return {"y": feeds["x"]}
        outputs = self.session.run(None, feeds)
        names = [each.name for each in self.session.get_outputs()]
        return {name: self.tensor(value) for name, value in zip(names, outputs)}

    def tensor(self, value):
        """Maps as columns in the order of the classes; a list of tensors as one with a dimension more."""
        if isinstance(value, list) and value and isinstance(value[0], dict):
            return np.array([[row[name] for name in self.model.classes] for row in value], np.float32)
        if isinstance(value, list):
            return np.stack(value)
        return np.asarray(value)


def same(actual, expected, tolerance=0):
    """Outputs by name: equal in names, types, shapes, and values; floats within a relative `tolerance`."""
    assert set(actual) == set(expected)
    for name, right in expected.items():
        found = actual[name]
        assert found.dtype == right.dtype, name
        assert found.shape == right.shape, name
        if right.dtype == np.object_ or not tolerance or right.dtype.kind not in "fV":
            assert found.tolist() == right.tolist() or found.tobytes() == right.tobytes(), f"{name}: {found} != {right}"
        else:
            scale = np.abs(right[np.isfinite(right)]).max(initial=0)
            np.testing.assert_allclose(found, right, rtol=tolerance, atol=tolerance * scale, err_msg=name)


# ---------------------------------------------------------------------------------------------------------- ways to ask


def text(array):
    """Bytes as the text that they are."""
    if array.dtype != np.object_:
        return array
    decoded = [each.decode() if isinstance(each, bytes) else each for each in array.ravel()]
    whole = np.empty(len(decoded), object)
    whole[:] = decoded
    return whole.reshape(array.shape)


def tensors(kind, feeds, **more):
    made = []
    for name, array in feeds.items():
        made.append(kind(name, list(array.shape), datatype(array)))
        made[-1].set_data_from_numpy(array, **more)
    return made


def over_rest(server, name, feeds, binary=True, outputs=None, **more):
    """tritonclient over HTTP. Without `outputs` it asks for all of them, in binary."""
    if not binary and outputs is None:
        outputs = [each["name"] for each in requests.get(f"{server.url}/v2/models/{name}").json()["outputs"]]
    wanted = outputs and [triton_http.InferRequestedOutput(each, binary_data=binary) for each in outputs]
    with triton_http.InferenceServerClient(server.http, network_timeout=120, connection_timeout=120) as client:
        inputs = tensors(triton_http.InferInput, feeds, binary_data=binary)
        result = client.infer(name, inputs, outputs=wanted, **more)
    given = [each["name"] for each in result.get_response()["outputs"]]
    return {each: text(result.as_numpy(each)) for each in given}


def over_grpc(server, name, feeds, outputs=None, **more):
    wanted = outputs and [triton_grpc.InferRequestedOutput(each) for each in outputs]
    with triton_grpc.InferenceServerClient(server.grpc) as client:
        result = client.infer(name, tensors(triton_grpc.InferInput, feeds), outputs=wanted, **more)
    return {each.name: text(result.as_numpy(each.name)) for each in result.get_response().outputs}


WAYS = {
    "json": functools.partial(over_rest, binary=False),
    "binary": over_rest,
    "grpc": over_grpc,
}


def described(feeds):
    """Inputs as V2 JSON."""
    return [
        {"name": name, "shape": list(array.shape), "datatype": datatype(array), "data": array.ravel().tolist()}
        for name, array in feeds.items()
    ]


def post(server, name, inputs, timeout=120, headers=None, **more):
    """A V2 request in JSON, as it is."""
    body = {"inputs": inputs, **more}
    return requests.post(f"{server.url}/v2/models/{name}/infer", json=body, timeout=timeout, headers=headers)


def predict(server, name, body):
    """A V1 request."""
    return requests.post(f"{server.url}/v1/models/{name}:predict", json=body, timeout=120)


def stats(server, name):
    (model,) = requests.get(f"{server.url}/v2/models/{name}/stats").json()["model_stats"]
    return model


# -------------------------------------------------------------------------------------------------------------- servers


def write(model, repository, layout="version", config=None):
    """A model in a repository: `bare`, in a `version` directory, or as Triton's `folder` called model.onnx."""
    root = repository / model.name
    folder = {"bare": root, "version": root / "1", "folder": root / "1" / "model.onnx"}[layout]
    folder.mkdir(parents=True, exist_ok=True)
    if model.external:
        # Saving moves values out of what is saved.
        onnx.save_model(
            copy.deepcopy(model.proto), folder / "model.onnx", save_as_external_data=True, location="weights.bin"
        )
    else:
        (folder / "model.onnx").write_bytes(model.data)
    for name, written in (config or {}).items():
        (root / name).write_text(written)
    return root


@functools.cache
def models():
    """Every model by its name. scikit-learn takes seconds to import."""
    import onnx_sklearn

    made = {each.name: each for each in [*onnx_models.all_models(), *onnx_sklearn.all_models()]}
    assert set(made) == set(NAMES)
    return made


@functools.cache
def oracle(name):
    return Oracle(models()[name])


@contextlib.contextmanager
def serving(binary, folder, *flags, environment=None, ready=True):
    """A server over `folder / "models"`, which is stopped and must end well."""
    start, started = starter(binary, folder)
    words = ["serve", "--model-repository", folder / "models", *LISTEN, *flags]
    try:
        yield start(*words, environment=environment, ready=ready)
        stop_all(started)
    finally:
        for each in started:
            each.kill()


@contextlib.contextmanager
def shared(binary, folder):
    """The server over all models, in all layouts."""
    layouts = ["version", "bare", "folder"]
    for index, model in enumerate(models().values()):
        write(model, folder / "models", "folder" if model.external else layouts[index % 3])
    with serving(binary, folder) as server:
        yield server


def index(server):
    """Models by name as the repository has them."""
    return {each["name"]: each for each in requests.post(f"{server.url}/v2/repository/index", timeout=60).json()}


def until(condition, seconds=60):
    """Waits until `condition()` says something true, and gives what it said."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"not so after {seconds} s"
        time.sleep(0.05)
    return found


def load(server, name):
    return requests.post(f"{server.url}/v2/repository/models/{name}/load", json={}, timeout=120)


def unload(server, name):
    return requests.post(f"{server.url}/v2/repository/models/{name}/unload", json={}, timeout=120)
