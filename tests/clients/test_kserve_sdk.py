"""KServe's own SDK: InferenceRESTClient over v1 and v2, InferenceGRPCClient, and its generated stubs."""

import asyncio

import grpc
import httpx
import numpy as np
import pytest
from harness import assert_same
from kserve.protocol.infer_type import RequestedOutput
from sdk import kserve, kserve_pb2, kserve_pb2_grpc


def over_rest(server, protocol, talk):
    """Runs `talk(client)` with a REST client of one protocol version."""

    async def run():
        config = kserve.RESTConfig(protocol=protocol, retries=1, timeout=30)
        async with kserve.InferenceRESTClient(config) as client:
            return await talk(client)

    return asyncio.run(run())


def over_grpc(server, talk):
    async def run():
        async with kserve.InferenceGRPCClient(server.grpc, timeout=30) as client:
            return await talk(client)

    return asyncio.run(run())


def ask(example, binary=False, outputs=None, **more):
    tensor = kserve.InferInput("input-0", list(example.rows.shape), example.input["datatype"])
    tensor.set_data_from_numpy(example.rows, binary_data=binary)
    return kserve.InferRequest(model_name=example.name, infer_inputs=[tensor], request_outputs=outputs, **more)


def requested(binary):
    return [RequestedOutput("output-0", parameters={"binary_data": binary})]


def test_v1_predict(server, example):
    body = {"instances": example.json_rows}
    reply = over_rest(server, "v1", lambda client: client.infer(server.url, body, model_name=example.name))
    assert reply == example.predictions


def test_v1_health(server):
    async def talk(client):
        assert await client.is_server_live(server.url)
        assert await client.is_model_ready(server.url, "iris")
        with pytest.raises(httpx.HTTPStatusError, match="404"):
            await client.is_model_ready(server.url, "no-such-model")

    over_rest(server, "v1", talk)


def test_v1_error_carries_the_message(server):
    async def talk(client):
        with pytest.raises(httpx.HTTPStatusError, match="no-such-model.*404"):
            await client.infer(server.url, {"instances": [[1.0]]}, model_name="no-such-model")

    over_rest(server, "v1", talk)


@pytest.mark.parametrize("binary_out", [False, True], ids=["json-out", "binary-out"])
@pytest.mark.parametrize("binary_in", [False, True], ids=["json-in", "binary-in"])
def test_v2_infer(server, example, binary_in, binary_out):
    request = ask(example, binary_in, requested(binary_out))
    reply = over_rest(server, "v2", lambda client: client.infer(server.url, request, model_name=example.name))
    assert isinstance(reply, kserve.InferResponse)
    assert_same(reply.outputs[0].as_numpy(), example.answer)


def test_v2_infer_from_a_dict(server, example):
    reply = over_rest(server, "v2", lambda client: client.infer(server.url, example.request, model_name=example.name))
    assert_same(reply.outputs[0].as_numpy(), example.answer)


def test_v2_response_fields(server, iris):
    headers = {}
    request = ask(iris, request_id="a-42")
    reply = over_rest(
        server, "v2", lambda client: client.infer(server.url, request, model_name="iris", response_headers=headers)
    )
    assert (reply.id, reply.model_name) == ("a-42", "iris")
    assert reply.outputs[0].name == "output-0"
    assert headers["content-type"] == "application/json"


def test_v2_id_is_generated(server, iris):
    reply = over_rest(server, "v2", lambda client: client.infer(server.url, iris.request, model_name="iris"))
    assert isinstance(reply.id, str)
    assert reply.id


def test_v2_health(server):
    async def talk(client):
        assert await client.is_server_live(server.url) is True
        assert await client.is_server_ready(server.url) is True
        assert await client.is_model_ready(server.url, "iris") is True
        assert await client.is_model_ready(server.url, "no-such-model") is False

    over_rest(server, "v2", talk)


def test_v2_error_carries_the_message(server, iris):
    async def talk(client):
        with pytest.raises(httpx.HTTPStatusError, match="no-such-model.*404"):
            await client.infer(server.url, iris.request, model_name="no-such-model")

    over_rest(server, "v2", talk)


def test_base_url_with_a_slash(server, iris):
    reply = over_rest(server, "v2", lambda client: client.infer(f"{server.url}/", iris.request, model_name="iris"))
    assert_same(reply.outputs[0].as_numpy(), iris.answer)


@pytest.mark.parametrize("binary", [False, True], ids=["typed", "raw"])
def test_grpc_infer(server, example, binary):
    reply = over_grpc(server, lambda client: client.infer(ask(example, binary)))
    assert isinstance(reply, kserve.InferResponse)
    assert reply.outputs[0].name == "output-0"
    assert_same(reply.outputs[0].as_numpy(), example.answer)


def test_grpc_half_precision(server, iris):
    rows = np.round(iris.rows).astype(np.float16)

    def request(datatype, data):
        tensor = kserve.InferInput("input-0", list(data.shape), datatype)
        tensor.set_data_from_numpy(data, binary_data=True)
        return kserve.InferRequest(model_name="iris", infer_inputs=[tensor])

    async def talk(client):
        half = await client.infer(request("FP16", rows))
        full = await client.infer(request("FP32", rows.astype(np.float32)))
        assert_same(half.outputs[0].as_numpy(), full.outputs[0].as_numpy())

    over_grpc(server, talk)


def test_grpc_response_fields(server, iris):
    reply = over_grpc(server, lambda client: client.infer(ask(iris, request_id="a-42")))
    assert (reply.id, reply.model_name) == ("a-42", "iris")


def test_grpc_health(server):
    async def talk(client):
        assert await client.is_server_live() is True
        assert await client.is_server_ready() is True
        assert await client.is_model_ready("iris") is True

    over_grpc(server, talk)


def test_grpc_unknown_model(server, iris):
    request = ask(iris)
    request.model_name = "no-such-model"

    async def talk(client):
        with pytest.raises(grpc.RpcError) as caught:
            await client.infer(request)
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        assert "no-such-model" in caught.value.details()

    over_grpc(server, talk)


@pytest.fixture
def stub(server):
    with grpc.insecure_channel(server.grpc) as channel:
        yield kserve_pb2_grpc.GRPCInferenceServiceStub(channel)


def test_stub_metadata(stub):
    server = stub.ServerMetadata(kserve_pb2.ServerMetadataRequest())
    assert server.name
    assert server.version
    model = stub.ModelMetadata(kserve_pb2.ModelMetadataRequest(name="iris"))
    assert model.name == "iris"
    assert model.outputs[0].name == "output-0"


def test_stub_load_and_unload(own_server):
    """KServe's layout has the model's name in field 1, where Triton has the repository's."""
    with grpc.insecure_channel(own_server.grpc) as channel:
        stub = kserve_pb2_grpc.GRPCInferenceServiceStub(channel)
        unloaded = stub.RepositoryModelUnload(kserve_pb2.RepositoryModelUnloadRequest(model_name="iris"), timeout=30)
        assert (unloaded.model_name, unloaded.isUnloaded) == ("iris", True)
        loaded = stub.RepositoryModelLoad(kserve_pb2.RepositoryModelLoadRequest(model_name="iris"), timeout=30)
        assert (loaded.model_name, loaded.isLoaded) == ("iris", True)
        assert stub.ModelReady(kserve_pb2.ModelReadyRequest(name="iris")).ready


def test_agent_puller_calls(own_server):
    """The multi-model agent POSTs `{}` and takes nothing but 200 for success."""
    for verb in ("unload", "load"):
        reply = httpx.post(f"{own_server.url}/v2/repository/models/iris/{verb}", content=b"{}")
        assert reply.status_code == 200
        assert reply.json() == {"name": "iris", verb: True}
