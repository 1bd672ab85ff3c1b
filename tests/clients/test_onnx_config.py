"""What config.pbtxt and model.toml say of ONNX models: what agrees with the graph is served, what does not is named."""

import numpy as np
import onnx_service
import pytest
import requests
from onnx_service import described, index, over_grpc, over_rest, post, same, serving, write
from sdk import triton_grpc
from test_dropin import TRITONSERVER, fill

# Of `convolutional`: image FP32 [-1, 3, 16, 16] to logits FP32 [-1, 10].
WHOLE = """
name: "{name}"
platform: "onnxruntime_onnx"
max_batch_size: 8
input [ {{ name: "image" data_type: TYPE_FP32 dims: [ 3, 16, 16 ] }} ]
output [ {{ name: "logits" data_type: TYPE_FP32 dims: [ 10 ] }} ]
instance_group [ {{ count: 2 kind: KIND_CPU }} ]
dynamic_batching {{ preferred_batch_size: [ 4 ] max_queue_delay_microseconds: 100 }}
optimization {{ graph {{ level: 1 }} }}
parameters {{ key: "intra_op_thread_count" value {{ string_value: "1" }} }}
parameters {{ key: "session.set_denormal_as_zero" value {{ string_value: "1" }} }}
version_policy {{ latest {{ num_versions: 1 }} }}
"""


def port(kind="input", name="image", data_type="TYPE_FP32", dims="3, 16, 16", more=""):
    return f'{kind} [ {{ name: "{name}" data_type: {data_type} dims: [ {dims} ] {more} }} ]'


def batched(text):
    return 'backend: "onnxruntime" max_batch_size: 8 ' + text


def parameter(key, value):
    return batched(f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}')


SERVED = {
    "whole": ("config.pbtxt", WHOLE),
    "name-of-the-backend": ("config.pbtxt", 'backend: "onnxruntime"'),
    "name-of-the-platform": ("config.pbtxt", 'platform: "onnxruntime_onnx"'),
    "only-the-input": ("config.pbtxt", batched(port())),
    "any-length": ("config.pbtxt", batched(port(dims="-1, 16, -1"))),
    "shapes-whole": ("config.pbtxt", 'backend: "onnxruntime" ' + port(dims="-1, 3, 16, 16")),
    "narrowed": ("config.pbtxt", 'backend: "onnxruntime" ' + port(dims="2, 3, 16, 16")),
    "no-optimisation": ("config.pbtxt", batched("optimization { graph { level: -1 } }")),
    "full-optimisation": ("config.pbtxt", batched("optimization { graph { level: 2 } }")),
    "threads": ("config.pbtxt", parameter("intra_op_thread_count", "2")),
    "arena": ("config.pbtxt", parameter("enable_mem_arena", "0")),
    "toml": ("model.toml", '[[inputs]]\nname = "image"\ndatatype = "FP32"\ndims = [-1, 3, 16, 16]\n'),
    "toml-threads": ("model.toml", "[onnx]\nintra_op_threads = 2\noptimization = \"basic\"\nwarmup = false\n"),
    "toml-parallel": ("model.toml", "[onnx]\nparallel = true\ninter_op_threads = 2\nmemory_arena = false\n"),
    "toml-labels": ("model.toml", f"labels = {[f'class {n}' for n in range(10)]}\n"),
    "fallback": ("model.toml", '[onnx]\nproviders = ["cuda"]\nfallback = true\n'),
    "fallback-pbtxt": ("config.pbtxt", parameter("fallback", "true") + " instance_group [ { kind: KIND_GPU } ]"),
}  # fmt: skip

# And the words of the reason.
REFUSED = {
    "another-backend": ("config.pbtxt", 'backend: "pytorch"', ["pytorch"]),
    "another-input": ("config.pbtxt", batched(port(name="picture")), ["picture", "image"]),
    "another-output": ("config.pbtxt", batched(port("output", "classes", dims="10")), ["classes", "logits"]),
    "another-datatype": ("config.pbtxt", batched(port(data_type="TYPE_UINT8")), ["image", "UINT8", "FP32"]),
    "another-output-type": (
        "config.pbtxt", batched(port("output", "logits", "TYPE_INT64", "10")), ["logits", "INT64", "FP32"]),
    "another-length": ("config.pbtxt", batched(port(dims="3, 32, 32")), ["image", "32", "16"]),
    "another-rank": ("config.pbtxt", batched(port(dims="3, 256")), ["image", "256"]),
    "batch-twice": ("config.pbtxt", batched(port(dims="-1, 3, 16, 16")), ["image", "max_batch_size"]),
    "batch-missing": ("config.pbtxt", 'backend: "onnxruntime" ' + port(), ["image", "[3, 16, 16]"]),
    "reshape": ("config.pbtxt", batched(port(more="reshape { shape: [ 768 ] }")), ["reshape"]),
    "ragged": ("config.pbtxt", batched(port(more="allow_ragged_batch: true")), ["allow_ragged_batch"]),
    "custom-operators": (
        "config.pbtxt", batched('model_operations { op_library_filename: [ "evil.so" ] }'), ["model_operations"]),
    "kind-model": ("config.pbtxt", batched("instance_group [ { kind: KIND_MODEL } ]"), ["KIND_MODEL"]),
    "unknown-field": ("config.pbtxt", batched("max_batch: 3"), ["max_batch"]),
    "unknown-parameter": ("config.pbtxt", parameter("number_of_threads", "3"), ["number_of_threads"]),
    "no-number": ("config.pbtxt", parameter("intra_op_thread_count", "many"), ["intra_op_thread_count", "many"]),
    "no-level": ("config.pbtxt", batched("optimization { graph { level: 7 } }"), ["level", "7"]),
    "files-by-entry": ("config.pbtxt", parameter("session.optimized_model_filepath", "/tmp/x"), ["optimized_model"]),
    "other-format": ("model.toml", '[onnx.session]\n"session.load_model_format" = "ORT"\n', ["load_model_format"]),
    "a-gpu": (
        "config.pbtxt",
        batched("instance_group [ { kind: KIND_GPU gpus: [ 0 ] } ]"),
        ["cuda", 'key: "fallback"', "config.pbtxt"]),
    "cuda": ("model.toml", '[onnx]\nproviders = ["cuda"]\n', ["cuda", "fallback = true", "model.toml"]),
    "no-flag": ("config.pbtxt", parameter("fallback", "cpu"), ["fallback", "neither true nor false"]),
    "tensorrt": (
        "config.pbtxt",
        batched('optimization { execution_accelerators { gpu_execution_accelerator [ { name: "tensorrt" } ] } }'),
        ["tensorrt"]),
    "openvino": (
        "config.pbtxt",
        batched('optimization { execution_accelerators { cpu_execution_accelerator [ { name: "openvino" } ] } }'),
        ["openvino"]),
    "unknown-provider": ("model.toml", '[onnx]\nproviders = ["abacus"]\n', ["abacus", "cpu"]),
    "library-by-option": (
        "model.toml",
        '[[onnx.providers]]\nkind = "tensorrt"\noptions = { trt_extra_plugin_lib_paths = "/tmp/evil.so" }\n',
        ["trt_extra_plugin_lib_paths"]),
    "unknown-key": ("model.toml", "[onnx]\nthreads = 3\n", ["threads"]),
    "toml-datatype": ("model.toml", '[[inputs]]\nname = "image"\ndatatype = "INT8"\n', ["image", "INT8", "FP32"]),
    "toml-shape": ("model.toml", '[[inputs]]\nname = "image"\ndims = [-1, 1, 16, 16]\n', ["image", "16"]),
    "no-threads": ("model.toml", "[onnx]\nintra_op_threads = 0\n", ["intra_op_threads", "0"]),
    "of-trees": ("model.toml", 'answer = "class"\n', ["answer"]),
}  # fmt: skip


@pytest.fixture(scope="module")
def convolutional():
    return onnx_service.models()["convolutional"]


@pytest.fixture(scope="module")
def configured(binary, tmp_path_factory, convolutional):
    """A server over the same graph with all of these settings."""
    folder = tmp_path_factory.mktemp("configured")
    for name, (file, text, *_) in (SERVED | REFUSED).items():
        root = folder / "models" / name
        (root / "1").mkdir(parents=True)
        (root / "1" / "model.onnx").write_bytes(convolutional.data)
        (root / file).write_text(text.format(name=name) if text is WHOLE else text)
    with serving(binary, folder, ready=False) as server:
        loaded = {"READY", "UNAVAILABLE"}
        onnx_service.until(lambda: settled(server, loaded, server.child))
        server.index = index(server)
        yield server


def settled(server, states, child):
    assert child.poll() is None, server.tail()
    try:
        found = index(server)
    except requests.ConnectionError:
        return False
    return set(SERVED | REFUSED) <= set(found) and all(each.get("state") in states for each in found.values())


@pytest.mark.parametrize("case", SERVED)
def test_served(configured, convolutional, case):
    assert configured.index[case]["state"] == "READY", configured.index[case]
    (feeds,) = convolutional.asks(1, 2)
    expected = onnx_service.oracle("convolutional").answer(feeds)
    same(over_rest(configured, case, feeds), expected, 1e-5)
    same(over_grpc(configured, case, feeds), expected, 1e-5)


@pytest.mark.parametrize("case", REFUSED)
def test_refused(configured, case):
    assert configured.index[case]["state"] == "UNAVAILABLE"
    for word in REFUSED[case][2]:
        assert word in configured.index[case]["reason"]
    reply = requests.get(f"{configured.url}/v2/models/{case}/ready")
    assert reply.status_code == 503
    reply = onnx_service.load(configured, case)
    assert reply.status_code >= 400, reply.text


def test_a_configuration_says_what_holds(configured):
    config = requests.get(f"{configured.url}/v2/models/whole/config").json()
    assert config["max_batch_size"] == 8
    assert [(each["name"], each["data_type"], each["dims"]) for each in config["input"]] == [
        ("image", "TYPE_FP32", [3, 16, 16])
    ]
    assert [(each["name"], each["dims"]) for each in config["output"]] == [("logits", [10])]
    assert config["dynamic_batching"]["max_queue_delay_microseconds"] == 100
    with triton_grpc.InferenceServerClient(configured.grpc) as client:
        assert client.get_model_config("whole").config.max_batch_size == 8


def test_settings_narrow_a_shape(configured, convolutional):
    metadata = requests.get(f"{configured.url}/v2/models/narrowed").json()
    assert metadata["inputs"][0]["shape"] == [2, 3, 16, 16]
    (feeds,) = convolutional.asks(1, 3)
    reply = post(configured, "narrowed", described(feeds))
    assert reply.status_code == 400, reply.text
    assert "image" in reply.json()["error"]


def test_labels(configured, convolutional):
    (feeds,) = convolutional.asks(1, 1)
    outputs = [{"name": "logits", "parameters": {"classification": 1}}]
    (output,) = post(configured, "toml-labels", described(feeds), outputs=outputs).json()["outputs"]
    best = int(onnx_service.oracle("convolutional").answer(feeds)["logits"].argmax())
    assert output["data"][0].split(":")[1:] == [str(best), f"class {best}"]


def test_a_provider_that_is_not_there_is_named_when_another_serves(configured):
    """In the log; and the device in use is the CPU."""
    log = configured.log.read_text()
    assert any("cuda" in line and "fallback" in line for line in log.splitlines() if "WARN" in line), log[-3000:]


CHOSEN = """
backend: "onnxruntime"
output [ { name: "echo" data_type: TYPE_STRING dims: [ -1 ] }, { name: "best" data_type: TYPE_INT64 dims: [ -1, 1 ] } ]
"""


def test_outputs_that_are_chosen(binary, tmp_path):
    """Who lists outputs has those alone."""
    model = onnx_service.models()["mixed"]
    write(model, tmp_path / "models", config={"config.pbtxt": CHOSEN})
    (feeds,) = model.asks(1)
    expected = onnx_service.oracle("mixed").answer(feeds)
    with serving(binary, tmp_path) as server:
        same(over_rest(server, "mixed", feeds), {name: expected[name] for name in ("best", "echo")})
        metadata = requests.get(f"{server.url}/v2/models/mixed").json()
        assert {each["name"] for each in metadata["outputs"]} == {"best", "echo"}
        assert post(server, "mixed", described(feeds), outputs=[{"name": "sum"}]).status_code == 400


def test_versions(binary, tmp_path, convolutional):
    """Two graphs under one name; the settings hold for both."""
    other = onnx_service.models()["trees"]
    root = write(convolutional, tmp_path / "models", config={"model.toml": 'versions = "all"\n'})
    (root / "3").mkdir()
    (root / "3" / "model.onnx").write_bytes(other.data)
    with serving(binary, tmp_path) as server:
        assert requests.get(f"{server.url}/v2/models/convolutional").json()["versions"] == ["1", "3"]
        for model, version in ((convolutional, "1"), (other, "3")):
            (feeds,) = model.asks(1)
            expected = onnx_service.oracle(model.name).answer(feeds)
            same(over_grpc(server, "convolutional", feeds, model_version=version), expected)


def test_a_file_by_its_name(binary, tmp_path, convolutional):
    """`default_model_filename`, and other files beside it."""
    config = 'backend: "onnxruntime" default_model_filename: "net.onnx"'
    root = write(convolutional, tmp_path / "models", config={"config.pbtxt": config})
    (root / "1" / "model.onnx").rename(root / "1" / "net.onnx")
    (root / "1" / "other.onnx").write_bytes(b"no model")
    (feeds,) = convolutional.asks(1)
    with serving(binary, tmp_path) as server:
        same(over_rest(server, "convolutional", feeds), onnx_service.oracle("convolutional").answer(feeds), 1e-5)


@pytest.mark.parametrize("layout", ["version", "folder"])
def test_tritonserver(start, tmp_path, layout):
    """Started with the arguments of KServe's stock runtime, over Triton's layouts and without a configuration."""
    model = onnx_service.models()["large" if layout == "folder" else "pipeline"]
    write(model, tmp_path / "models", layout)
    server = start("tritonserver", *fill(TRITONSERVER, tmp_path / "models"))
    (feeds,) = model.asks(1)
    expected = onnx_service.oracle(model.name).answer(feeds)
    same(over_rest(server, model.name, feeds), expected, 1e-5)
    same(over_grpc(server, model.name, feeds), expected, 1e-5)


def test_one_model(start, tmp_path, convolutional):
    """`--model-dir`, as KServe starts a server of one model; and the bare file in it."""
    write(convolutional, tmp_path, layout="bare")
    folder = tmp_path / "convolutional"
    server = start("--model-dir", folder, "--model-name", "net", "--http-port={http}", "--grpc-port={grpc}")
    (feeds,) = convolutional.asks(1)
    same(over_rest(server, "net", feeds), onnx_service.oracle("convolutional").answer(feeds), 1e-5)
    reply = onnx_service.predict(server, "net", {"instances": feeds["image"].astype(np.float64).tolist()})
    assert reply.status_code == 200, reply.text
