"""tritonclient.http against the REST surface of protocol v2."""

import asyncio
import json
import time
import uuid

import gevent
import ml_dtypes
import numpy as np
import pytest
import requests
from harness import assert_same
from sdk import InferenceServerException, triton_http, triton_http_aio


@pytest.fixture
def client(server):
    with triton_http.InferenceServerClient(server.http, concurrency=8) as each:
        yield each


def inputs(rows, datatype, binary, name="input-0"):
    tensor = triton_http.InferInput(name, list(rows.shape), datatype)
    tensor.set_data_from_numpy(rows, binary_data=binary)
    return [tensor]


def ask(example, binary=False):
    return inputs(example.rows, example.input["datatype"], binary)


def wanted(binary):
    return [triton_http.InferRequestedOutput("output-0", binary_data=binary)]


@pytest.mark.parametrize("binary_out", [False, True], ids=["json-out", "binary-out"])
@pytest.mark.parametrize("binary_in", [False, True], ids=["json-in", "binary-in"])
def test_infer(client, example, binary_in, binary_out):
    result = client.infer(example.name, ask(example, binary_in), outputs=wanted(binary_out))
    assert_same(result.as_numpy("output-0"), example.answer)


def test_infer_without_requested_outputs(client, example):
    """tritonclient then asks for binary_data_output for all outputs."""
    result = client.infer(example.name, ask(example, binary=True))
    assert_same(result.as_numpy("output-0"), example.answer)
    assert "binary_data_size" in result.get_output("output-0")["parameters"]


def test_response_fields(client, iris):
    response = client.infer("iris", ask(iris), request_id="a-42", outputs=wanted(False)).get_response()
    assert response["id"] == "a-42"
    assert response["model_name"] == "iris"
    assert response["model_version"] == "1"
    assert response["outputs"][0]["datatype"] == "FP32"
    assert response["outputs"][0]["shape"] == iris.output["shape"]


def test_id_is_generated_when_absent(client, iris):
    uuid.UUID(client.infer("iris", ask(iris)).get_response()["id"])


def test_infer_at_version(client, iris):
    result = client.infer("iris", ask(iris), model_version="1")
    assert_same(result.as_numpy("output-0"), iris.answer)


def test_any_input_name(client, iris):
    tensors = inputs(iris.rows, iris.input["datatype"], True, name="anything at all")
    assert_same(client.infer("iris", tensors).as_numpy("output-0"), iris.answer)


@pytest.mark.parametrize("datatype", ["INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64", "FP64"])
@pytest.mark.parametrize("binary", [False, True], ids=["json", "binary"])
def test_numeric_datatypes(client, datatype, binary):
    """Whole numbers mean the same in each datatype."""
    rows = np.array([[5, 3, 1, 0], [6, 3, 4, 1], [7, 3, 6, 2]])
    plain = client.infer("iris", inputs(rows.astype(np.float32), "FP32", binary)).as_numpy("output-0")
    typed = rows.astype(datatype.lower().replace("fp", "float"))
    assert_same(client.infer("iris", inputs(typed, datatype, binary)).as_numpy("output-0"), plain)


@pytest.mark.parametrize("datatype", ["FP16", "BF16"])
def test_half_precision_is_binary(client, datatype):
    rows = np.array([[5, 3, 1, 0], [6, 3, 4, 1]], dtype=np.float32)
    plain = client.infer("iris", inputs(rows, "FP32", True)).as_numpy("output-0")
    half = rows.astype(np.float16 if datatype == "FP16" else ml_dtypes.bfloat16)
    assert_same(client.infer("iris", inputs(half, datatype, True)).as_numpy("output-0"), plain)


def test_missing_values(client, iris):
    """NaN is a missing feature, which every tree has a direction for."""
    rows = iris.rows.copy()
    rows[0, 0] = np.nan
    first = client.infer("iris", inputs(rows, "FP32", True)).as_numpy("output-0")
    assert np.isfinite(first).all()
    assert_same(first[1:], iris.answer[1:])


def test_many_rows(client, iris):
    rows = np.tile(iris.rows, (500, 1))
    answer = client.infer("iris", inputs(rows, "FP32", True)).as_numpy("output-0")
    assert_same(answer, np.tile(iris.answer, (500, *[1] * (iris.answer.ndim - 1))))


def test_no_rows(client, iris):
    answer = client.infer("iris", inputs(iris.rows[:0], "FP32", True)).as_numpy("output-0")
    assert_same(answer, iris.answer[:0])


def test_async_infer(client, example):
    pending = [client.async_infer(example.name, ask(example), outputs=wanted(True)) for _ in range(8)]
    gevent.sleep(0)
    for each in pending:
        assert_same(each.get_result(timeout=30).as_numpy("output-0"), example.answer)


def test_asyncio_client(server, example):
    async def talk():
        async with triton_http_aio.InferenceServerClient(server.http) as client:
            assert await client.is_server_ready()
            calls = [client.infer(example.name, ask(example, binary=True)) for _ in range(8)]
            return await asyncio.gather(*calls)

    for result in asyncio.run(talk()):
        assert_same(result.as_numpy("output-0"), example.answer)


@pytest.mark.parametrize("response", [None, "gzip", "deflate"])
@pytest.mark.parametrize("request_", [None, "gzip", "deflate"])
def test_compression(client, example, request_, response):
    result = client.infer(
        example.name,
        ask(example, binary=True),
        outputs=wanted(True),
        request_compression_algorithm=request_,
        response_compression_algorithm=response,
    )
    assert_same(result.as_numpy("output-0"), example.answer)


def body(rows, **more):
    tensor = {"name": "input-0", "datatype": "FP32", "shape": list(rows.shape), "data": rows.ravel().tolist()}
    return {"inputs": [tensor], **more}


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_large_response_is_compressed(server, iris, encoding):
    rows = np.tile(iris.rows[:1], (1000, 1))
    reply = requests.post(f"{server.url}/v2/models/iris/infer", json=body(rows), headers={"Accept-Encoding": encoding})
    assert reply.status_code == 200
    assert reply.headers["Content-Encoding"] == encoding
    assert reply.json()["outputs"][0]["shape"][0] == len(rows)


def test_binary_response_headers(server, iris):
    ask_binary = body(iris.rows[:2], parameters={"binary_data_output": True})
    reply = requests.post(f"{server.url}/v2/models/iris/infer", json=ask_binary)
    assert reply.headers["Content-Type"] == "application/octet-stream"
    length = int(reply.headers["Inference-Header-Content-Length"])
    output = json.loads(reply.content[:length])["outputs"][0]
    assert output["parameters"]["binary_data_size"] == len(reply.content) - length
    assert reply.content[length:] == iris.answer[:2].tobytes()


def test_raw_binary_request(server, iris):
    """A header length of 0: the whole body is the only input, and the answer is binary."""
    reply = requests.post(
        f"{server.url}/v2/models/iris/infer",
        data=iris.rows[:1].tobytes(),
        headers={"Inference-Header-Content-Length": "0", "Content-Type": "application/octet-stream"},
    )
    assert reply.status_code == 200, reply.text
    length = int(reply.headers["Inference-Header-Content-Length"])
    assert reply.content[length:] == iris.answer[:1].tobytes()


def test_custom_parameters_are_accepted(client, iris):
    result = client.infer("iris", ask(iris), priority=1, timeout=10_000_000, parameters={"a": 1, "b": "x", "c": True})
    assert_same(result.as_numpy("output-0"), iris.answer)


def test_classification(client, iris):
    outputs = [triton_http.InferRequestedOutput("output-0", binary_data=True, class_count=2)]
    classes = client.infer("iris", ask(iris), outputs=outputs).as_numpy("output-0")
    assert classes.shape == (len(iris.rows), 2)
    for row, best in zip(iris.answer, classes):
        order = np.argsort(-row, kind="stable")[:2]
        for index, entry in zip(order, best):
            value, position = entry.decode().split(":")[:2]
            assert int(position) == index
            assert value == f"{row[index]:f}"


def test_health(client):
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("iris")
    assert client.is_model_ready("iris", "1")
    assert not client.is_model_ready("no-such-model")


def test_server_metadata(client):
    metadata = client.get_server_metadata()
    assert metadata["name"]
    assert metadata["version"]
    claimed = {"binary_tensor_data", "classification", "model_repository", "statistics", "model_configuration"}
    assert claimed <= set(metadata["extensions"])


def test_model_metadata(client, example):
    metadata = client.get_model_metadata(example.name)
    assert metadata["name"] == example.name
    assert metadata["versions"] == ["1"]
    assert metadata["platform"]
    (output,) = metadata["outputs"]
    assert (output["name"], output["datatype"]) == ("output-0", example.output["datatype"])
    assert output["shape"] == [-1, *example.answer.shape[1:]]
    (input_,) = metadata["inputs"]
    assert input_["shape"] == [-1, example.rows.shape[1]]


def test_model_config(client, example):
    config = client.get_model_config(example.name)
    assert config["name"] == example.name
    assert config["output"][0]["name"] == "output-0"
    assert config["output"][0]["data_type"] == "TYPE_" + example.output["datatype"]
    assert config["input"][0]["dims"][-1] == example.rows.shape[1]
    assert isinstance(config["max_batch_size"], int)


def test_statistics(client, iris):
    def now():
        return client.get_inference_statistics("iris")["model_stats"][0]

    before = now()
    client.infer("iris", ask(iris))
    after = now()
    assert after["name"] == "iris"
    assert after["version"] == "1"
    assert after["inference_count"] - before["inference_count"] == len(iris.rows)
    assert after["execution_count"] - before["execution_count"] == 1
    assert after["inference_stats"]["success"]["count"] - before["inference_stats"]["success"]["count"] == 1
    assert after["inference_stats"]["success"]["ns"] > before["inference_stats"]["success"]["ns"]
    assert abs(after["last_inference"] / 1000 - time.time()) < 60


def test_statistics_of_every_model(client):
    names = {each["name"] for each in client.get_inference_statistics()["model_stats"]}
    assert {"iris", "breast-cancer"} <= names


def test_repository_index(client):
    index = {each["name"]: each for each in client.get_model_repository_index()}
    assert index["iris"]["state"] == "READY"
    assert index["iris"]["version"] == "1"


def test_unload_and_load(own_server):
    with triton_http.InferenceServerClient(own_server.http) as client:
        client.unload_model("iris")
        deadline = time.monotonic() + 10
        while client.is_model_ready("iris") and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not client.is_model_ready("iris")
        states = {each["name"]: each.get("state") for each in client.get_model_repository_index()}
        assert states["iris"] in (None, "", "UNAVAILABLE")
        assert states["breast-cancer"] == "READY"
        assert client.is_server_ready(), "a model unloaded on purpose does not make the server unready"
        with pytest.raises(InferenceServerException):
            client.infer("iris", inputs(np.zeros((1, 4), dtype=np.float32), "FP32", True))
        client.load_model("iris")
        assert client.is_model_ready("iris")
        client.infer("iris", inputs(np.zeros((1, 4), dtype=np.float32), "FP32", True))


def test_load_of_an_unknown_model(own_server):
    with triton_http.InferenceServerClient(own_server.http) as client:
        with pytest.raises(InferenceServerException, match="no-such-model"):
            client.load_model("no-such-model")
