"""Every type of tensor that ONNX and protocol v2 share, at its edges; shapes that are none; and what does not fit."""

import struct

import grpc
import ml_dtypes
import numpy as np
import onnx_models
import onnx_service
import pytest
import requests
from onnx_service import SAME, TYPES, WAYS, described, over_grpc, over_rest, post, same
from sdk import InferenceServerException, service_pb2, service_pb2_grpc

HALVES = {"FP16", "BF16"}
# What gRPC's typed contents are called.
CONTENTS = {
    "BOOL": "bool_contents",
    **dict.fromkeys(["INT8", "INT16", "INT32"], "int_contents"),
    "INT64": "int64_contents",
    **dict.fromkeys(["UINT8", "UINT16", "UINT32"], "uint_contents"),
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}


def edges(datatype):
    """Values at the ends of a type."""
    kind = TYPES[datatype]
    if datatype == "BOOL":
        return np.array([[True, False, True]])
    if datatype == "BYTES":
        return np.array([["", "äöü 日本語 🙂", "a" * 70_000]], object)
    if "INT" in datatype:
        bounds = np.iinfo(kind)
        return np.array([[bounds.min, bounds.max, 1]], kind)
    bounds = ml_dtypes.finfo(kind)
    return np.array([[bounds.min, bounds.max, bounds.smallest_subnormal]], kind)


@pytest.fixture(scope="module")
def stub(onnx_server):
    with grpc.insecure_channel(onnx_server.grpc) as channel:
        yield service_pb2_grpc.GRPCInferenceServiceStub(channel)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("datatype", TYPES)
def test_edges(onnx_server, datatype, way):
    if way == "json" and datatype in HALVES:
        pytest.skip("binary only")
    feeds = {"x": edges(datatype)}
    same(WAYS[way](onnx_server, f"same-{datatype.lower()}", feeds), {"y": feeds["x"]})


@pytest.mark.parametrize("datatype", ["FP32", "FP64", *HALVES])
def test_what_is_no_number(onnx_server, datatype):
    """To the bit, in binary."""
    feeds = {"x": np.array([[np.nan, np.inf, -np.inf], [-0.0, 0.0, -np.nan]], TYPES[datatype])}
    for way in ("binary", "grpc"):
        (found,) = WAYS[way](onnx_server, f"same-{datatype.lower()}", feeds).values()
        assert found.tobytes() == feeds["x"].tobytes()


@pytest.mark.parametrize("datatype", CONTENTS)
def test_typed_contents(stub, datatype):
    values = edges(datatype)
    request = service_pb2.ModelInferRequest(model_name=f"same-{datatype.lower()}")
    tensor = request.inputs.add(name="x", datatype=datatype, shape=values.shape)
    listed = [each.encode() if datatype == "BYTES" else each for each in values.ravel().tolist()]
    getattr(tensor.contents, CONTENTS[datatype]).extend(listed)
    reply = stub.ModelInfer(request, timeout=30)
    if datatype == "BYTES":
        raw = b"".join(struct.pack("<I", len(each)) + each for each in listed)
    else:
        raw = values.tobytes()
    assert (reply.outputs[0].datatype, list(reply.outputs[0].shape)) == (datatype, [1, 3])
    assert list(reply.raw_output_contents) == [raw]


@pytest.mark.parametrize("datatype", TYPES)
@pytest.mark.parametrize("way", WAYS)
def test_no_rows(onnx_server, datatype, way):
    if way == "json" and datatype in HALVES:
        pytest.skip("binary only")
    feeds = {"x": np.empty((0, 3), TYPES[datatype])}
    same(WAYS[way](onnx_server, f"same-{datatype.lower()}", feeds), {"y": feeds["x"]})


@pytest.mark.parametrize("name", ["convolutional", "trees", "joined"])
def test_no_rows_of_a_model(onnx_server, name):
    """Some nodes take none: then the request is told so, and the next is answered."""
    (feeds,) = onnx_service.models()[name].asks(1)
    none = {key: array[:0] for key, array in feeds.items()}
    try:
        expected = onnx_service.oracle(name).answer(none)
    except Exception:  # noqa: BLE001  (whatever the library says)
        assert post(onnx_server, name, described(none)).status_code in (400, 500)
    else:
        same(over_rest(onnx_server, name, none), expected)
    same(over_rest(onnx_server, name, feeds), onnx_service.oracle(name).answer(feeds))


@pytest.mark.parametrize("way", WAYS)
def test_scalars(onnx_server, way):
    feeds = {"a": np.array(1.5, np.float32), "b": np.array(-4, np.float32)}
    same(WAYS[way](onnx_server, "scalar", feeds), {name: np.array(-6, np.float32) for name in "yz"})


def test_scalars_in_json(onnx_server):
    """A shape of no dimensions, and one value."""
    inputs = [{"name": name, "shape": [], "datatype": "FP32", "data": [2]} for name in "ab"]
    outputs = post(onnx_server, "scalar", inputs).json()["outputs"]
    assert [(each["shape"], each["data"]) for each in outputs] == [([], [4.0]), ([], [4.0])]


@pytest.mark.parametrize("way", WAYS)
def test_what_may_be_left_out(onnx_server, way):
    x = np.array([[1, 2], [3, 4]], np.float32)
    scale = np.array([10, 100], np.float32)
    same(WAYS[way](onnx_server, "optional", {"x": x}), {"y": x * np.float32([2, 3])})
    same(WAYS[way](onnx_server, "optional", {"x": x, "scale": scale}), {"y": x * scale})


def test_text_that_is_none(onnx_server):
    """ONNX Runtime takes UTF-8 that ends at a zero byte: other bytes are refused, not changed."""
    for text in (b"a\0b", b"\xff\xfe", b"\xc3"):
        raw = b"".join(struct.pack("<I", len(each)) + each for each in (b"good", text, b""))
        head = b'{"inputs":[{"name":"x","shape":[1,3],"datatype":"BYTES","parameters":{"binary_data_size":%d}}]}' % len(
            raw
        )
        headers = {"Inference-Header-Content-Length": str(len(head))}
        reply = requests.post(
            f"{onnx_server.url}/v2/models/same-bytes/infer", data=head + raw, headers=headers, timeout=30
        )
        assert reply.status_code == 400, reply.text
        assert "'x'" in reply.json()["error"]
        assert "UTF-8" in reply.json()["error"]


@pytest.mark.parametrize("byte", [2, 255])
def test_truth_values_that_are_none(onnx_server, stub, byte):
    """A byte that is neither 0 nor 1 would be undefined behaviour in the library."""
    request = service_pb2.ModelInferRequest(model_name="same-bool", raw_input_contents=[bytes([0, 1, byte])])
    request.inputs.add(name="x", datatype="BOOL", shape=[1, 3])
    try:
        reply = stub.ModelInfer(request, timeout=30)
    except grpc.RpcError as error:
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "BOOL" in error.details()
    else:
        assert list(reply.raw_output_contents) == [bytes([0, 1, 1])]


# ------------------------------------------------------------------------------------------------------------- refusals


def x(**changes):
    return [{"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [1, 2, 3]} | changes]


def mixed(**changes):
    """A good request for `mixed`; of a change to None the input is left out."""
    (feeds,) = onnx_service.models()["mixed"].asks(1, 2)
    made = {each["name"]: each for each in described(feeds)} | changes
    return [each for each in made.values() if each]


def count(*shape):
    return {"name": "count", "shape": list(shape), "datatype": "INT32", "data": [1] * int(np.prod(shape))}


REFUSED = {
    "unknown input": ("same-fp32", lambda: x(name="input-0"), ["input-0", "x"]),
    "no input": ("same-fp32", list, ["inputs"]),
    "one too many": ("same-fp32", lambda: x() + x(name="z"), ["z"]),
    "the same twice": ("same-fp32", lambda: x() * 2, ["x"]),
    "one missing": ("mixed", lambda: mixed(flag=None), ["flag"]),
    "another datatype": ("same-fp32", lambda: x(datatype="FP64"), ["x", "FP64", "FP32"]),
    "whole numbers for floats": ("same-fp32", lambda: x(datatype="INT64"), ["x", "INT64", "FP32"]),
    "floats for whole numbers": ("same-int64", x, ["x", "FP32", "INT64"]),
    "text for floats": ("same-fp32", lambda: x(datatype="BYTES", data=["a", "b", "c"]), ["x", "BYTES", "FP32"]),
    "numbers for text": ("same-bytes", x, ["x", "FP32", "BYTES"]),
    "half precision in JSON": ("same-fp16", lambda: x(datatype="FP16"), ["FP16", "binary"]),
    "too wide": ("same-fp32", lambda: x(shape=[1, 4], data=[1, 2, 3, 4]), ["x", "4", "3"]),
    "too narrow": ("same-fp32", lambda: x(shape=[3, 1]), ["x", "1", "3"]),
    "too few dimensions": ("same-fp32", lambda: x(shape=[3]), ["x", "[3]", "[-1,3]"]),
    "too many dimensions": ("same-fp32", lambda: x(shape=[1, 1, 3]), ["x", "[1,1,3]"]),
    "no dimensions": ("same-fp32", lambda: x(shape=[], data=[1]), ["x", "[]"]),
    "rows where there are always four": ("fixed", x, ["x", "4"]),
    "a dimension for a scalar": (
        "scalar",
        lambda: [{"name": each, "shape": [2], "datatype": "FP32", "data": [1, 2]} for each in "ab"],
        ["a", "[2]"],
    ),
    "not as many rows of each": ("mixed", lambda: mixed(count=count(3, 1)), ["count", "3", "2"]),
    "values missing": ("same-fp32", lambda: x(data=[1, 2]), ["x", "2", "3"]),
    "beyond the type": ("same-int8", lambda: x(datatype="INT8", data=[1, 2, 128]), ["data", "128"]),
    "below the type": ("same-uint64", lambda: x(datatype="UINT64", data=[1, 2, -1]), ["data", "-1"]),
    "no whole number": ("same-int32", lambda: x(datatype="INT32", data=[1, 2, 2.5]), ["data", "2.5"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(onnx_server, case):
    name, inputs, words = REFUSED[case]
    reply = post(onnx_server, name, inputs())
    assert reply.status_code == 400, reply.text
    for word in words:
        assert word in reply.json()["error"]


# Those that a message can hold, too.
NOT_OF_JSON = [case for case in REFUSED if case not in ("half precision in JSON", "beyond the type", "below the type",
                                                        "no whole number", "no input")]  # fmt: skip


@pytest.mark.parametrize("case", NOT_OF_JSON)
def test_refused_over_grpc(stub, case):
    name, inputs, words = REFUSED[case]
    request = service_pb2.ModelInferRequest(model_name=name)
    for each in inputs():
        tensor = request.inputs.add(name=each["name"], datatype=each["datatype"], shape=each["shape"])
        data = [value.encode() if isinstance(value, str) else value for value in each["data"]]
        getattr(tensor.contents, CONTENTS[each["datatype"]]).extend(data)
    with pytest.raises(grpc.RpcError) as caught:
        stub.ModelInfer(request, timeout=30)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT, caught.value.details()
    for word in words:
        assert word in caught.value.details()


def test_an_unknown_output(onnx_server):
    reply = post(onnx_server, "mixed", mixed(), outputs=[{"name": "sum"}, {"name": "nope"}])
    assert reply.status_code == 400, reply.text
    assert "nope" in reply.json()["error"]


def test_inputs_that_would_be_spread(onnx_server):
    """One count for two rows: ONNX Runtime spreads it. It is done as there, or refused; never mixed with others."""
    (feeds,) = onnx_service.models()["mixed"].asks(1, 2)
    feeds["count"] = feeds["count"][:1]
    reply = post(onnx_server, "mixed", described(feeds))
    if reply.status_code == 200:
        found = {each["name"]: each for each in reply.json()["outputs"]}
        assert np.float32(found["sum"]["data"]).tolist() == onnx_service.oracle("mixed").answer(feeds)["sum"].tolist()
    else:
        assert reply.status_code == 400, reply.text
        assert "count" in reply.json()["error"]


def test_numbers_that_a_node_does_not_take(onnx_server):
    """An id beyond the vocabulary is the request's fault, which is told what ONNX Runtime says. Of a text longer than
    there are places it says where in its own source text it noticed: that is not told."""
    random = np.random.default_rng(9)
    outside = onnx_models.ask_transformer(random, 1, 3)
    outside["ids"][0, 1] = onnx_models.VOCABULARY
    reply = post(onnx_server, "transformer", described(outside))
    assert reply.status_code == 400, reply.text
    assert "Gather node" in reply.json()["error"]
    assert "[-50,49]" in reply.json()["error"]
    with pytest.raises(InferenceServerException, match="Gather node"):
        over_grpc(onnx_server, "transformer", outside)
    long = onnx_models.ask_transformer(random, 1, onnx_models.POSITIONS + 1)
    reply = post(onnx_server, "transformer", described(long))
    assert reply.status_code in (400, 500), reply.text
    assert "/onnxruntime_src/" not in reply.json()["error"]
    good = onnx_models.ask_transformer(random, 1, 3)
    same(over_grpc(onnx_server, "transformer", good), onnx_service.oracle("transformer").answer(good))


def test_all_types_were_asked():
    assert set(SAME) == {f"same-{datatype.lower()}" for datatype in TYPES}
