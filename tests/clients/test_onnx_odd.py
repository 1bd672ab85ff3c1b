"""Graphs that are in order and odd, served: what has no value, has no rows, or may be meant in two ways is answered, or
refused with what is wrong."""

import json
import pathlib

import grpc
import numpy as np
import onnx_odd
import onnx_service
import pytest
import requests
from onnx_service import described, over_grpc, over_rest, post, predict, same, serving, write
from sdk import InferenceServerException, service_pb2, service_pb2_grpc

MODELS = {
    "absent": onnx_odd.absent,
    "classes": onnx_odd.classes,
    "nothing": onnx_odd.nothing,
    "product": onnx_odd.product,
    "spread": onnx_odd.spread,
    "words": onnx_odd.words,
    "table": lambda: onnx_odd.doubled("table", ["N", "M"]),
    "column": lambda: onnx_odd.doubled("column", ["N", 1]),
    "list": lambda: onnx_odd.doubled("list", ["N"]),
    "flags": lambda: onnx_service.models()["same-bool"],
}


@pytest.fixture(scope="module")
def odd(binary, tmp_path_factory):
    folder = tmp_path_factory.mktemp("odd")
    for name, make in MODELS.items():
        model = make()
        model.name = name
        write(model, folder / "models")
    with serving(binary, folder) as server:
        yield server


@pytest.fixture(scope="module")
def oracle():
    made = {name: make() for name, make in MODELS.items()}
    return {name: onnx_service.Oracle(model) for name, model in made.items()}


def floats(*shape):
    return np.random.default_rng(5).standard_normal(shape).astype(np.float32)


# ---------------------------------------------------------------------------------------------- outputs without a value


def test_an_output_without_a_value(odd):
    """An answer has no way to say so: it is an error that names the output. The next request is answered."""
    some, none = (onnx_odd.ask_absent(np.random.default_rng(1), 3, flag) for flag in (True, False))
    for _ in range(3):
        reply = post(odd, "absent", described(none))
        assert 500 <= reply.status_code < 600, reply.text
        assert "output 'y' has no value" in reply.json()["error"]
        same(over_rest(odd, "absent", some), {"y": some["x"], "z": some["x"]})
    # Who does not ask for it does not miss it.
    same(over_rest(odd, "absent", none, outputs=["z"]), {"z": none["x"]})
    assert odd.child.poll() is None, odd.tail()


def test_an_output_without_a_value_over_grpc(odd):
    some, none = (onnx_odd.ask_absent(np.random.default_rng(2), 2, flag) for flag in (True, False))
    with pytest.raises(InferenceServerException, match="output 'y' has no value"):
        over_grpc(odd, "absent", none)
    same(over_grpc(odd, "absent", some), {"y": some["x"], "z": some["x"]})


# ------------------------------------------------------------------------------------------------ text that is no UTF-8


def test_text_that_is_no_utf8_is_answered_in_binary(odd):
    numbers, wanted = np.array([0, 1]), b"\x02\0\0\0\xff\xfe\x02\0\0\0ok"
    reply = post(odd, "words", described({"x": numbers}))
    assert reply.status_code == 400, reply.text
    assert "output 'y' is not UTF-8" in reply.json()["error"]
    reply = predict(odd, "words", {"instances": [0, 1]})
    assert reply.status_code == 400, reply.text
    assert predict(odd, "words", {"instances": [1]}).json() == {"predictions": ["ok"]}
    wants = [{"name": "y", "parameters": {"binary_data": True}}]
    reply = post(odd, "words", described({"x": numbers}), outputs=wants)
    assert reply.status_code == 200, reply.text
    assert reply.content[int(reply.headers["Inference-Header-Content-Length"]) :] == wanted
    request = service_pb2.ModelInferRequest(model_name="words", raw_input_contents=[numbers.astype("<i8").tobytes()])
    request.inputs.add(name="x", datatype="INT64", shape=[2])
    with grpc.insecure_channel(odd.grpc) as channel:
        reply = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(request, timeout=30)
    assert list(reply.raw_output_contents) == [wanted]


# ------------------------------------------------------------------------------------------------------- classification


def classified(server, rows, output, count=2):
    wanted = [{"name": output, "parameters": {"classification": count}}]
    reply = post(server, "classes", described({"x": floats(rows, 3)}), outputs=wanted)
    assert reply.status_code == 200, reply.text
    (found,) = reply.json()["outputs"]
    assert found["datatype"] == "BYTES"
    return found["shape"], found["data"]


def test_classes_of_rows(odd):
    x = floats(2, 3)
    best = [np.argsort(-row, kind="stable")[:2] for row in x]
    expected = [f"{row[at]:f}:{at}" for row, order in zip(x, best) for at in order]
    assert classified(odd, 2, "table") == ([2, 2], expected)


def test_classes_of_no_rows(odd):
    assert classified(odd, 0, "table") == ([0, 2], [])
    # A sum of nothing is a number.
    assert classified(odd, 0, "sum") == ([1], ["0.000000:0"])


def test_classes_of_what_has_no_rows(odd, oracle):
    """A scalar, and a list that is always as long: Triton takes all of either as one row, and answers with a list."""
    answer = oracle["classes"].answer({"x": floats(4, 3)})
    assert classified(odd, 4, "sum") == ([1], [f"{answer['sum']:f}:0"])
    best = np.argsort(-answer["list"], kind="stable")[:2]
    shape, data = classified(odd, 4, "list")
    assert (shape, [int(each.split(":")[1]) for each in data]) == ([2], best.tolist())
    assert classified(odd, 4, "list", 9)[0] == [3]


def test_classes_over_grpc(odd):
    request = service_pb2.ModelInferRequest(model_name="classes", raw_input_contents=[b""])
    request.inputs.add(name="x", datatype="FP32", shape=[0, 3])
    request.outputs.add(name="table").parameters["classification"].int64_param = 2
    with grpc.insecure_channel(odd.grpc) as channel:
        reply = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(request, timeout=30)
    assert (reply.outputs[0].datatype, list(reply.outputs[0].shape)) == ("BYTES", [0, 2])
    assert list(reply.raw_output_contents) in ([b""], [])


# ----------------------------------------------------------------------------------------------------- rows that spread


@pytest.mark.parametrize("rows", [(3, 1), (1, 3), (2, 2)])
def test_inputs_whose_rows_have_two_names(odd, oracle, rows):
    """One row on many, as ONNX Runtime does it."""
    feeds = {"a": floats(rows[0], 2), "b": floats(rows[1], 2)}
    expected = oracle["spread"].answer(feeds)
    same(over_rest(odd, "spread", feeds), expected)
    same(over_grpc(odd, "spread", feeds), expected)


def test_rows_that_do_not_spread(odd):
    reply = post(odd, "spread", described({"a": floats(3, 2), "b": floats(2, 2)}))
    assert reply.status_code == 400, reply.text
    assert "broadcast" in reply.json()["error"]


# ---------------------------------------------------------------------------------------------------------- protocol v1


def test_truth_values_in_v1(odd):
    """As numpy's lists have them, which KServe writes."""
    reply = predict(odd, "flags", {"instances": [[True, False, True]]})
    assert reply.json() == {"predictions": [[True, False, True]]}
    assert all(type(each) is bool for each in reply.json()["predictions"][0])
    assert "[[true,false,true]]" in reply.text.replace(" ", "")


@pytest.mark.parametrize(
    ("name", "body", "expected"),
    [
        ("column", {"instances": [1, 2]}, [[2.0], [4.0]]),
        ("column", {"instances": [{"x": 1}, {"x": 2}]}, [[2.0], [4.0]]),
        ("column", {"inputs": {"x": [1, 2]}}, [[2.0], [4.0]]),
        ("list", {"instances": [1, 2]}, [2.0, 4.0]),
        ("list", {"inputs": {"x": 1}}, [2.0]),
        ("table", {"instances": [[1], [2]]}, [[2.0], [4.0]]),
        ("table", {"instances": [[1, 2]]}, [[2.0, 4.0]]),
    ],
)
def test_one_value_is_one_column(odd, name, body, expected):
    reply = predict(odd, name, body)
    assert reply.status_code == 200, reply.text
    assert reply.json() == {"predictions": expected}


@pytest.mark.parametrize("body", [{"instances": [1, 2]}, {"instances": [{"x": 1}]}, {"inputs": {"x": [1, 2]}}])
def test_one_value_where_there_may_be_many_columns(odd, body):
    """A row or a column: nobody knows."""
    reply = predict(odd, "table", body)
    assert reply.status_code == 400, reply.text
    for word in ("'x'", "[-1, -1]", "[1]"):
        assert word in reply.json()["error"]


def test_a_model_that_takes_nothing(odd):
    for body in ({"inputs": {}}, {"instances": [{}]}):
        reply = predict(odd, "nothing", body)
        assert reply.status_code == 200, reply.text
        assert reply.json() == {"predictions": [1.5, 2.5]}
    for body in ({"instances": [[1, 2]]}, {"instances": [1]}, {"inputs": {"x": [1]}}, {}):
        reply = predict(odd, "nothing", body)
        assert reply.status_code == 400, reply.text
        assert "takes no inputs" in reply.json()["error"]
        assert '{"inputs": {}}' in reply.json()["error"]


# --------------------------------------------------------------------------------------------------------- what is told


def test_nothing_of_the_librarys_source_is_told(odd):
    """ONNX Runtime says where in its own source it noticed: by a path here, by a bare name there."""
    asked = {
        "product": {"a": floats(2, 4), "b": floats(3, 3)},
        "spread": {"a": floats(3, 2), "b": floats(2, 2)},
    }
    for name, feeds in asked.items():
        reply = post(odd, name, described(feeds))
        assert reply.status_code == 400, reply.text
        said = reply.json()["error"]
        assert not any(word in said for word in (".h:", ".cc:", "onnxruntime_src", "onnxruntime::")), said
    assert "dimension mismatch" in post(odd, "product", described(asked["product"])).json()["error"]


# ------------------------------------------------------------------------------------------- settings that are mistakes

THREE, LABELS = (json.dumps([f"class {number}" for number in range(count)]) for count in (3, 4))
MISTAKES = {
    "labels": (
        "classes", "model.toml", f'[[outputs]]\nname = "table"\nlabels = {LABELS}\n', ["4 labels", "3", "'table'"]),
    "labels-of-a-list": (
        "classes", "model.toml", f'[[outputs]]\nname = "list"\nlabels = {LABELS}\n', ["4 labels", "3", "'list'"]),
    "label-file": (
        "classes",
        "config.pbtxt",
        'backend: "onnxruntime" output { name: "table" data_type: TYPE_FP32 label_filename: "labels.txt" }',
        ["4 labels", "3", "'table'"]),
    "batches-of-a-list": (
        "classes", "model.toml", "max_batch_size = 8\n", ["max_batch_size", "'list'", "[3]", "leave it"]),
    "batches-of-fixed": (
        "fixed", "model.toml", "max_batch_size = 8\n", ["max_batch_size", "'x'", "[4, 3]", "leave it"]),
    "batches-of-fixed-pbtxt": (
        "fixed", "config.pbtxt", 'backend: "onnxruntime" max_batch_size: 8', ["max_batch_size", "[4, 3]", "say 0"]),
    "batches-of-any-shape": (
        "unknown", "config.pbtxt", 'backend: "onnxruntime" max_batch_size: 8', ["shape 'x'", "dims", "say 0"]),
    "batches-of-a-scalar": ("scalar", "model.toml", "max_batch_size = 8\n", ["'a' has no dimensions", "leave it"]),
}  # fmt: skip
FINE = {
    "as-many-labels": ("classes", "model.toml", f'[[outputs]]\nname = "table"\nlabels = {THREE}\n'),
    "any-shape-with-dims": (
        "unknown",
        "config.pbtxt",
        'backend: "onnxruntime" max_batch_size: 8 input { name: "x" data_type: TYPE_FP32 dims: [ 3 ] }',
    ),
    "any-shape": ("unknown", "config.pbtxt", 'backend: "onnxruntime" max_batch_size: 0'),
}


def test_settings(binary, tmp_path):
    """What can only be a mistake is refused with what is wrong."""
    graphs = {name: onnx_service.models()[name] for name in ("fixed", "scalar")}
    graphs |= {"classes": onnx_odd.classes(), "unknown": onnx_odd.doubled("unknown", None)}
    for name, (graph, file, text, *_) in (MISTAKES | FINE).items():
        root = tmp_path / "models" / name
        (root / "1").mkdir(parents=True)
        (root / "1" / "model.onnx").write_bytes(graphs[graph].data)
        (root / file).write_text(text)
        (root / "labels.txt").write_text("a\nb\nc\nd\n\n")
    with serving(binary, tmp_path, ready=False) as server:

        def settled():
            assert server.child.poll() is None, server.tail()
            try:
                found = onnx_service.index(server)
            except requests.ConnectionError:
                return None
            done = all(each.get("state") in ("READY", "UNAVAILABLE") for each in found.values())
            return found if done and set(found) == set(MISTAKES | FINE) else None

        found = onnx_service.until(settled)
    assert {name: found[name]["state"] for name in FINE} == dict.fromkeys(FINE, "READY"), found
    for name, (*_, words) in MISTAKES.items():
        assert found[name]["state"] == "UNAVAILABLE", name
        assert not [word for word in words if word not in found[name]["reason"]], found[name]


def tasks(server):
    """Threads of the server."""
    return len(list(pathlib.Path(f"/proc/{server.child.pid}/task").iterdir()))


def test_threads_that_are_not_stated_are_those_of_the_server(binary, tmp_path):
    """Threads across nodes say nothing of those within one."""
    text = "[onnx]\nparallel = true\ninter_op_threads = 2\n"
    write(onnx_service.models()["trees"], tmp_path / "models")
    with serving(binary, tmp_path, "--nthread", 8, "--probe", "never") as server:
        before = tasks(server)
        write(onnx_service.models()["convolutional"], tmp_path / "models", config={"model.toml": text})
        assert onnx_service.load(server, "convolutional").status_code == 200
        # Whoever calls is one of each.
        assert tasks(server) - before >= 7 + 1
