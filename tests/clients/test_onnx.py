"""ONNX models over every surface: answers are those of `onnxruntime` in this process, and metadata are the graph's."""

import time

import grpc
import numpy as np
import onnx_models
import onnx_service
import pytest
import requests
from onnx_service import NAMES, PLATFORM, SPELT, WAYS, datatype, over_grpc, over_rest, same
from sdk import kserve_pb2, kserve_pb2_grpc, triton_grpc, triton_http

# JSON has no form for half precision.
BINARY_ONLY = {"same-fp16", "same-bf16"}


@pytest.fixture(scope="module")
def nets():
    return onnx_service.models()


def right(name, feeds):
    return onnx_service.oracle(name).answer(feeds)


# -------------------------------------------------------------------------------------------------------------- answers


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", NAMES)
def test_answers(onnx_server, nets, name, way):
    if way == "json" and name in BINARY_ONLY:
        pytest.skip("binary only")
    for rows in (1, 2, 7):
        (feeds,) = nets[name].asks(1, rows, seed=rows)
        same(WAYS[way](onnx_server, name, feeds), right(name, feeds))


def test_many_rows(onnx_server, nets):
    """So many that products of matrices are split among threads."""
    for name in ("convolutional", "pipeline", "forest", "large"):
        (feeds,) = nets[name].asks(1, 300)
        same(over_grpc(onnx_server, name, feeds), right(name, feeds), tolerance=1e-5)


@pytest.mark.parametrize("way", WAYS)
def test_some_of_the_outputs(onnx_server, nets, way):
    """They come in the order of the request."""
    (feeds,) = nets["mixed"].asks(1)
    wanted = ["echo", "sum"]
    answer = WAYS[way](onnx_server, "mixed", feeds, outputs=wanted)
    assert list(answer) == wanted
    expected = right("mixed", feeds)
    same(answer, {name: expected[name] for name in wanted})


def test_inputs_in_any_order(onnx_server, nets):
    (feeds,) = nets["pipeline"].asks(1)
    backwards = dict(reversed(feeds.items()))
    same(over_rest(onnx_server, "pipeline", backwards), right("pipeline", feeds))


def test_nested_data(onnx_server, nets):
    """JSON may have lists of lists."""
    (feeds,) = nets["transformer"].asks(1)
    inputs = onnx_service.described(feeds)
    for each in inputs:
        each["data"] = feeds[each["name"]].tolist()
    outputs = onnx_service.post(onnx_server, "transformer", inputs).json()["outputs"]
    found = {each["name"]: np.array(each["data"], np.float32).reshape(each["shape"]) for each in outputs}
    same(found, right("transformer", feeds))


def test_lengths(onnx_server, nets):
    """Every length of a sequence up to the longest, with the same session."""
    random = np.random.default_rng(8)
    for length in (1, 2, 3, 17, onnx_models.POSITIONS):
        feeds = onnx_models.ask_transformer(random, 2, length)
        same(over_grpc(onnx_server, "transformer", feeds), right("transformer", feeds), tolerance=1e-6)


def test_kserves_message(onnx_server, nets):
    """KServe's own stub, and values that are no bytes."""
    (feeds,) = nets["pipeline"].asks(1, 4)
    request = kserve_pb2.ModelInferRequest(model_name="pipeline")
    for name, array in feeds.items():
        tensor = request.inputs.add(name=name, datatype=datatype(array), shape=array.shape)
        if array.dtype == np.object_:
            tensor.contents.bytes_contents.extend(each.encode() for each in array.ravel())
        else:
            tensor.contents.fp32_contents.extend(array.ravel().tolist())
    with grpc.insecure_channel(onnx_server.grpc) as channel:
        reply = kserve_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(request, timeout=30)
    outputs = dict(zip((each.name for each in reply.outputs), reply.raw_output_contents))
    expected = right("pipeline", feeds)
    assert outputs["output_probability"] == expected["output_probability"].tobytes()
    texts = [each.encode() for each in expected["output_label"]]
    assert outputs["output_label"] == b"".join(len(each).to_bytes(4, "little") + each for each in texts)


def test_versions(onnx_server, nets):
    (feeds,) = nets["trees"].asks(1)
    same(over_grpc(onnx_server, "trees", feeds, model_version="1"), right("trees", feeds))
    reply = requests.get(f"{onnx_server.url}/v2/models/trees/versions/1")
    assert reply.json()["versions"] == ["1"]


# ------------------------------------------------------------------------------------------------------- classification


@pytest.mark.parametrize("way", ["rest", "grpc"])
@pytest.mark.parametrize("name", ["zipmap", "zipmap-names", "zipmap-numbers", "pipeline", "forest"])
def test_classes_of_a_zipmap(onnx_server, nets, name, way):
    """`value:index:label`: the labels are those of the ZipMap, in its order."""
    model = nets[name]
    (feeds,) = model.asks(1, 5)
    output = "chances" if name == "zipmap" else "output_probability"
    module, address = {"rest": (triton_http, onnx_server.http), "grpc": (triton_grpc, onnx_server.grpc)}[way]
    with module.InferenceServerClient(address) as client:
        wanted = [module.InferRequestedOutput(output, class_count=2)]
        found = client.infer(name, onnx_service.tensors(module.InferInput, feeds), outputs=wanted).as_numpy(output)
    chances = right(name, feeds)[output]
    for row, entries in zip(chances, found, strict=True):
        best = np.argsort(-row, kind="stable")[:2]
        assert [each.decode() for each in entries] == [f"{row[at]:f}:{at}:{model.classes[at]}" for at in best]


def test_classes_without_labels(onnx_server, nets):
    (feeds,) = nets["convolutional"].asks(1, 2)
    outputs = [{"name": "logits", "parameters": {"classification": 1}}]
    reply = onnx_service.post(onnx_server, "convolutional", onnx_service.described(feeds), outputs=outputs).json()
    (output,) = reply["outputs"]
    logits = right("convolutional", feeds)["logits"]
    assert (output["datatype"], output["shape"]) == ("BYTES", [2, 1])
    assert output["data"] == [f"{row.max():f}:{row.argmax()}" for row in logits]


# ------------------------------------------------------------------------------------------------------------- metadata


def dims(port):
    return [each if isinstance(each, int) else -1 for each in port.shape]


def ports(name):
    """What the graph says, as metadata should have it."""
    oracle = onnx_service.oracle(name)
    inputs = {each.name: (SPELT[each.type], dims(each)) for each in oracle.session.get_inputs()}
    outputs = {}
    for each in oracle.session.get_outputs():
        if each.type.startswith("seq(map("):
            outputs[each.name] = ("FP32", [-1, len(oracle.model.classes)])
        elif each.type.startswith("seq("):
            outputs[each.name] = ("FP32", None)
        else:
            outputs[each.name] = (SPELT[each.type], dims(each))
    if name == "optional":
        inputs["scale"] = ("FP32", [2])
    return inputs, outputs


@pytest.mark.parametrize("name", NAMES)
def test_metadata(onnx_server, name):
    over_rest = requests.get(f"{onnx_server.url}/v2/models/{name}").json()
    with triton_grpc.InferenceServerClient(onnx_server.grpc) as client:
        over_grpc = client.get_model_metadata(name)
    assert over_rest["name"] == over_grpc.name == name
    assert over_rest["versions"] == list(over_grpc.versions) == ["1"]
    assert over_rest["platform"] == over_grpc.platform == PLATFORM
    assert over_rest["properties"] == {"device": "cpu"}
    for kind, expected in zip(("inputs", "outputs"), ports(name)):
        assert [each["name"] for each in over_rest[kind]] == list(expected)
        for each, message in zip(over_rest[kind], getattr(over_grpc, kind), strict=True):
            datatype, shape = expected[each["name"]]
            assert (each["name"], each["datatype"]) == (message.name, message.datatype) == (message.name, datatype)
            assert each["shape"] == list(message.shape)
            assert shape is None or each["shape"] == shape


@pytest.mark.parametrize("name", NAMES)
def test_configuration(onnx_server, nets, name):
    over_rest = requests.get(f"{onnx_server.url}/v2/models/{name}/config").json()
    with triton_grpc.InferenceServerClient(onnx_server.grpc) as client:
        over_grpc = client.get_model_config(name).config
    assert over_rest["name"] == over_grpc.name == name
    assert over_rest["platform"] == over_grpc.platform == PLATFORM
    assert over_rest["max_batch_size"] == over_grpc.max_batch_size
    # Triton's word for a model whose tensors have no batch dimension.
    assert (over_rest["max_batch_size"] > 0) == nets[name].batched
    batch = [-1] if over_rest["max_batch_size"] else []
    for kind, expected in zip(("input", "output"), ports(name)):
        for each, message in zip(over_rest[kind], getattr(over_grpc, kind), strict=True):
            datatype, shape = expected[each["name"]]
            assert each["data_type"] == "TYPE_" + datatype.replace("BYTES", "STRING")
            assert each["dims"] == list(message.dims)
            # Of a tensor of nothing but the batch, and of a scalar, a configuration says that it has one element.
            assert shape is None or batch + each["dims"] in (shape, [*shape, 1])
    optional = [each["name"] for each in over_rest["input"] if each["optional"]]
    assert optional == (["scale"] if name == "optional" else [])


def test_the_index_lists_them(onnx_server):
    index = onnx_service.index(onnx_server)
    assert {name: each["state"] for name, each in index.items()} == dict.fromkeys(NAMES, "READY")
    assert set(NAMES) <= set(requests.get(f"{onnx_server.url}/v1/models").json()["models"])


def test_statistics(onnx_server, nets):
    before = onnx_service.stats(onnx_server, "trees")
    (feeds,) = nets["trees"].asks(1, 5)
    over_grpc(onnx_server, "trees", feeds)
    after = onnx_service.stats(onnx_server, "trees")
    assert after["inference_count"] - before["inference_count"] == 5
    assert after["execution_count"] - before["execution_count"] == 1
    assert after["inference_stats"]["success"]["count"] - before["inference_stats"]["success"]["count"] == 1
    assert abs(after["last_inference"] / 1000 - time.time()) < 60


def test_the_device_is_in_metrics(onnx_server):
    lines = requests.get(f"{onnx_server.url}/metrics").text.splitlines()
    found = [line for line in lines if 'model="forest"' in line or 'model_name="forest"' in line]
    assert any('device="cpu"' in line for line in found), found[:10]
