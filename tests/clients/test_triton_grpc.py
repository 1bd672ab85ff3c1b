"""tritonclient.grpc, and its generated stubs, against the gRPC surface of protocol v2."""

import asyncio
import queue
import shutil
import threading
import time
import uuid

import grpc
import numpy as np
import pytest
import requests
from harness import NUMPY, Example, assert_same
from sdk import InferenceServerException, service_pb2, service_pb2_grpc, triton_grpc, triton_grpc_aio

CONTENTS = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
}


@pytest.fixture
def client(server):
    with triton_grpc.InferenceServerClient(server.grpc) as each:
        yield each


@pytest.fixture
def stub(server):
    with grpc.insecure_channel(server.grpc) as channel:
        yield service_pb2_grpc.GRPCInferenceServiceStub(channel)


def inputs(rows, datatype):
    tensor = triton_grpc.InferInput("input-0", list(rows.shape), datatype)
    tensor.set_data_from_numpy(rows)
    return [tensor]


def ask(example):
    return inputs(example.rows, example.input["datatype"])


def message(rows, datatype, model="iris", raw=True):
    """A ModelInferRequest with its rows raw, or in the typed contents."""
    request = service_pb2.ModelInferRequest(model_name=model)
    tensor = request.inputs.add(name="input-0", datatype=datatype, shape=list(rows.shape))
    if raw:
        request.raw_input_contents.append(rows.tobytes())
    else:
        getattr(tensor.contents, CONTENTS[datatype]).extend(rows.ravel().tolist())
    return request


def raw_answer(response):
    output = response.outputs[0]
    data = np.frombuffer(response.raw_output_contents[0], dtype=NUMPY[output.datatype])
    return data.reshape(list(output.shape))


def test_infer(client, example):
    result = client.infer(example.name, ask(example))
    assert_same(result.as_numpy("output-0"), example.answer)


def test_requested_output(client, example):
    outputs = [triton_grpc.InferRequestedOutput("output-0")]
    assert_same(client.infer(example.name, ask(example), outputs=outputs).as_numpy("output-0"), example.answer)


def test_response_fields(client, iris):
    response = client.infer("iris", ask(iris), request_id="a-42").get_response()
    assert response.id == "a-42"
    assert response.model_name == "iris"
    assert response.model_version == "1"
    assert list(response.outputs[0].shape) == iris.output["shape"]


def test_id_is_generated_when_absent(client, iris):
    uuid.UUID(client.infer("iris", ask(iris)).get_response().id)


@pytest.mark.parametrize("raw", [True, False], ids=["raw", "typed"])
def test_answers_are_raw(stub, example, raw):
    response = stub.ModelInfer(message(example.rows, example.input["datatype"], example.name, raw))
    assert_same(raw_answer(response), example.answer)
    assert not response.outputs[0].HasField("contents")


@pytest.mark.parametrize("raw", [True, False], ids=["raw", "typed"])
@pytest.mark.parametrize("datatype", sorted(set(CONTENTS) - {"BOOL"}))
def test_numeric_datatypes(stub, datatype, raw):
    rows = np.array([[5, 3, 1, 0], [6, 3, 4, 1], [7, 3, 6, 2]])
    plain = raw_answer(stub.ModelInfer(message(rows.astype(np.float32), "FP32")))
    typed = rows.astype(NUMPY[datatype])
    assert_same(raw_answer(stub.ModelInfer(message(typed, datatype, raw=raw))), plain)


def test_half_precision(stub):
    rows = np.array([[5, 3, 1, 0], [6, 3, 4, 1]], dtype=np.float32)
    plain = raw_answer(stub.ModelInfer(message(rows, "FP32")))
    assert_same(raw_answer(stub.ModelInfer(message(rows.astype(np.float16), "FP16"))), plain)
    upper = np.ascontiguousarray(rows.view(np.uint16).reshape(2, 4, 2)[:, :, 1])
    assert_same(raw_answer(stub.ModelInfer(message(upper, "BF16"))), plain)


def test_async_infer(client, example):
    answers = queue.Queue()
    for _ in range(8):
        client.async_infer(example.name, ask(example), callback=lambda result, error: answers.put((result, error)))
    for _ in range(8):
        result, error = answers.get(timeout=30)
        assert error is None
        assert_same(result.as_numpy("output-0"), example.answer)


def test_asyncio_client(server, example):
    async def talk():
        async with triton_grpc_aio.InferenceServerClient(server.grpc) as client:
            assert await client.is_server_ready()
            return await asyncio.gather(*[client.infer(example.name, ask(example)) for _ in range(8)])

    for result in asyncio.run(talk()):
        assert_same(result.as_numpy("output-0"), example.answer)


def test_concurrent_callers(client, example):
    failures = []

    def work():
        try:
            for _ in range(20):
                assert_same(client.infer(example.name, ask(example)).as_numpy("output-0"), example.answer)
        except Exception as error:  # noqa: BLE001  (reported below, in the test's own thread)
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert not failures


def streamed(client, calls, count):
    """Sends `calls` down one stream and returns the first `count` (result, error) pairs."""
    answers = queue.Queue()
    client.start_stream(callback=lambda result, error: answers.put((result, error)))
    for call in calls:
        client.async_stream_infer(**call)
    received = [answers.get(timeout=30) for _ in range(count)]
    client.stop_stream()
    return received


def test_stream_keeps_order(client, example):
    calls = [{"model_name": example.name, "inputs": ask(example), "request_id": str(n)} for n in range(20)]
    received = streamed(client, calls, 20)
    assert [error for _, error in received] == [None] * 20
    assert [result.get_response().id for result, _ in received] == [str(n) for n in range(20)]
    for result, _ in received:
        assert_same(result.as_numpy("output-0"), example.answer)
        assert result.get_response().parameters["triton_final_response"].bool_param is True


def test_stream_survives_an_error(client, iris):
    calls = [
        {"model_name": "no-such-model", "inputs": ask(iris), "request_id": "bad"},
        {"model_name": "iris", "inputs": ask(iris), "request_id": "good"},
    ]
    received = streamed(client, calls, 2)
    errors = [error for _, error in received if error]
    results = [result for result, error in received if not error]
    assert len(errors) == 1
    assert "no-such-model" in errors[0].message()
    assert_same(results[0].as_numpy("output-0"), iris.answer)


def test_stream_error_echoes_the_id(stub, iris):
    request = message(iris.rows, "FP32", model="no-such-model")
    request.id = "bad"
    (reply,) = list(stub.ModelStreamInfer(iter([request]), timeout=30))
    assert "no-such-model" in reply.error_message
    assert reply.infer_response.id == "bad"


def test_half_closed_stream_is_finished(stub, iris):
    requests = [message(iris.rows, "FP32") for _ in range(50)]
    assert len(list(stub.ModelStreamInfer(iter(requests), timeout=30))) == 50


@pytest.mark.parametrize("compression", ["gzip", "deflate"])
def test_compression(client, example, compression):
    result = client.infer(example.name, ask(example), compression_algorithm=compression)
    assert_same(result.as_numpy("output-0"), example.answer)


def test_large_message(client, iris):
    """Over gRPC's default limit of 4 MiB, both ways within the default of 8 MiB."""
    rows = np.resize(iris.rows, (300_000, iris.rows.shape[1]))
    answer = client.infer("iris", inputs(rows, "FP32")).as_numpy("output-0")
    assert_same(answer[: len(iris.rows)], iris.answer)
    assert len(answer) == len(rows)


def test_classification(client, iris):
    outputs = [triton_grpc.InferRequestedOutput("output-0", class_count=3)]
    classes = client.infer("iris", ask(iris), outputs=outputs).as_numpy("output-0")
    for row, entries in zip(iris.answer, classes):
        assert [int(each.decode().split(":")[1]) for each in entries] == list(np.argsort(-row, kind="stable"))


def test_custom_parameters_are_accepted(client, iris):
    parameters = {"a": 1, "b": "x", "c": True, "d": 0.5}
    result = client.infer("iris", ask(iris), priority=1, timeout=10_000_000, parameters=parameters)
    assert_same(result.as_numpy("output-0"), iris.answer)


def test_health(client):
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("iris")
    assert client.is_model_ready("iris", "1")


def test_server_metadata(client):
    metadata = client.get_server_metadata()
    assert metadata.name
    assert metadata.version
    assert "statistics" in metadata.extensions


def test_model_metadata(client, example):
    metadata = client.get_model_metadata(example.name)
    assert metadata.name == example.name
    assert list(metadata.versions) == ["1"]
    assert metadata.platform
    assert metadata.outputs[0].name == "output-0"
    assert metadata.outputs[0].datatype == example.output["datatype"]
    assert list(metadata.inputs[0].shape) == [-1, example.rows.shape[1]]


def test_metadata_agrees_with_rest(client, server, example):
    rest = requests.get(f"{server.url}/v2/models/{example.name}").json()
    over_grpc = client.get_model_metadata(example.name, as_json=True)
    assert rest["platform"] == over_grpc["platform"]
    assert [each["name"] for each in rest["inputs"]] == [each["name"] for each in over_grpc["inputs"]]


def test_model_config(client, example):
    config = client.get_model_config(example.name).config
    assert config.name == example.name
    assert config.output[0].name == "output-0"
    assert config.input[0].dims[-1] == example.rows.shape[1]


CONFIG = """
backend: "fil"
max_batch_size: 16
version_policy { specific { versions: [ 1, 2 ] } }
dynamic_batching { max_queue_delay_microseconds: 100 default_queue_policy { max_queue_size: 7 } }
parameters { key: "output_class" value { string_value: "true" } }
parameters { key: "threshold" value { string_value: "0.25" } }
default_model_filename: "model.ubj"
"""


def test_a_configuration_says_what_the_model_was_told(start, models, own_repository):
    """The same over gRPC and REST."""
    shutil.copytree(models / "iris" / "1", own_repository / "iris" / "2")
    name = Example.read(models, "iris").model_file.name
    (own_repository / "iris" / "config.pbtxt").write_text(CONFIG.replace("model.ubj", name))
    server = start("serve", "--model-repository", own_repository, "--http-port", "{http}", "--grpc-port", "{grpc}")
    with triton_grpc.InferenceServerClient(server.grpc) as each:
        over_grpc = each.get_model_config("iris", as_json=True)["config"]
    over_rest = requests.get(f"{server.url}/v2/models/iris/config").json()
    batching, over_grpc_batching = over_rest["dynamic_batching"], over_grpc["dynamic_batching"]
    assert over_rest["version_policy"] == {"specific": {"versions": [1, 2]}}
    assert over_grpc["version_policy"] == {"specific": {"versions": ["1", "2"]}}
    assert batching["max_queue_delay_microseconds"] == int(over_grpc_batching["max_queue_delay_microseconds"]) == 100
    assert batching["default_queue_policy"] == over_grpc_batching["default_queue_policy"] == {"max_queue_size": 7}
    told = {"output_class": "true", "predict_proba": "false", "threshold": "0.25"}
    for config in (over_rest, over_grpc):
        assert config["max_batch_size"] == 16
        assert config["default_model_filename"] == name
        assert {key: value["string_value"] for key, value in config["parameters"].items()} == told
    # What the settings leave open is as it is without them.
    plain = requests.get(f"{server.url}/v2/models/breast-cancer/config").json()
    assert plain["version_policy"] == {"latest": {"num_versions": 1}}
    assert plain["parameters"] == {}


def test_statistics(client, iris):
    def now():
        return client.get_inference_statistics("iris").model_stats[0]

    before = now()
    client.infer("iris", ask(iris))
    after = now()
    assert after.version == "1"
    assert after.inference_count - before.inference_count == len(iris.rows)
    assert after.execution_count - before.execution_count == 1
    assert after.inference_stats.success.count - before.inference_stats.success.count == 1
    assert after.inference_stats.success.ns > before.inference_stats.success.ns


def test_statistics_of_every_version(start, models, own_repository):
    """Without a version those of all that serve, over gRPC and REST; of an unknown name none."""
    shutil.copytree(models / "iris" / "1", own_repository / "iris" / "3")
    (own_repository / "iris" / "model.toml").write_text('versions = "all"\n')
    server = start("serve", "--model-repository", own_repository, "--http-port", "{http}", "--grpc-port", "{grpc}")

    def listed(path):
        told = requests.get(f"{server.url}/v2/models/{path}").json()["model_stats"]
        return [(each["name"], each["version"]) for each in told]

    assert listed("iris/stats") == [("iris", "1"), ("iris", "3")]
    assert listed("iris/versions/1/stats") == [("iris", "1")]
    assert requests.get(f"{server.url}/v2/models/iris/versions/2/stats").status_code == 404
    assert requests.get(f"{server.url}/v2/models/nobody/stats").status_code == 404
    with triton_grpc.InferenceServerClient(server.grpc) as each:
        told = each.get_inference_statistics("iris").model_stats
        assert [(model.name, model.version) for model in told] == [("iris", "1"), ("iris", "3")]
        (told,) = each.get_inference_statistics("iris", "3").model_stats
        assert (told.name, told.version) == ("iris", "3")
        for name, version in (("nobody", ""), ("iris", "2")):
            with pytest.raises(Exception, match="(?i)not.found"):
                each.get_inference_statistics(name, version)


def test_repository_index(client):
    index = {each.name: each for each in client.get_model_repository_index().models}
    assert index["iris"].state == "READY"
    assert index["iris"].version == "1"


def test_unload_and_load(own_server, iris):
    with triton_grpc.InferenceServerClient(own_server.grpc) as client:
        client.unload_model("iris")
        deadline = time.monotonic() + 10
        states = {}
        while states.get("iris", "READY") in ("READY", "UNLOADING") and time.monotonic() < deadline:
            states = {each.name: each.state for each in client.get_model_repository_index().models}
            time.sleep(0.05)
        assert states["iris"] in ("", "UNAVAILABLE")
        with pytest.raises(InferenceServerException):
            client.infer("iris", ask(iris))
        client.load_model("iris")
        assert client.is_model_ready("iris")
        assert_same(client.infer("iris", ask(iris)).as_numpy("output-0"), iris.answer)


def test_load_of_an_unknown_model(own_server):
    with triton_grpc.InferenceServerClient(own_server.grpc) as client:
        with pytest.raises(InferenceServerException, match="no-such-model"):
            client.load_model("no-such-model")
