"""What a wrong request is told: the status, and a message that names the member at fault."""

import gzip
import json
import zlib

import grpc
import numpy as np
import pytest
import requests
from sdk import service_pb2, service_pb2_grpc

ROW = [5.1, 3.5, 1.4, 0.2]


def v2(**changes):
    """A good request, with members of its input replaced; a change to None removes the member."""
    tensor = {"name": "input-0", "shape": [1, 4], "datatype": "FP32", "data": ROW} | changes
    return {"inputs": [{key: value for key, value in tensor.items() if value is not None}]}


def post(server, path, body, headers=None):
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {"Content-Type": "application/json", **(headers or {})}
    return requests.post(server.url + path, data=data, headers=headers, timeout=30)


def assert_refused(reply, status, *words):
    assert reply.status_code == status, reply.text
    assert reply.headers["Content-Type"].startswith("application/json")
    message = reply.json()["error"]
    assert isinstance(message, str)
    assert message
    for word in words:
        assert word.lower() in message.lower(), message


INFER = "/v2/models/iris/infer"
PREDICT = "/v1/models/iris:predict"

DEEP = b'{"inputs":' + b"[" * 100_000 + b"]" * 100_000 + b"}"



def parameters(**values):
    return v2() | {"parameters": values}


def output(**parameters):
    return v2() | {"outputs": [{"name": "output-0", "parameters": parameters}]}


def twice(where, member):
    """A good request with one more member, after one of its own."""
    return json.dumps(v2() | {"id": "1", "parameters": {"a": 1}}).replace(where, f"{member}, {where}", 1).encode()


BAD_V2 = {
    "empty body": (b"", ["empty", "input-0"]),
    "malformed JSON": (b'{"inputs":[', []),
    "not an object": ([1, 2], []),
    "nested too deeply": (DEEP, []),
    "no inputs": ({"id": "1"}, ["inputs"]),
    "inputs is not a list": ({"inputs": 3}, ["inputs"]),
    "inputs is empty": ({"inputs": []}, ["inputs"]),
    "no name": (v2(name=None), ["name"]),
    "no datatype": (v2(datatype=None), ["datatype"]),
    "no shape": (v2(shape=None), ["shape"]),
    "no data": (v2(data=None), ["data"]),
    "unknown datatype": (v2(datatype="FP31"), ["FP31"]),
    "half precision in JSON": (v2(datatype="FP16"), ["FP16", "binary"]),
    "brain float in JSON": (v2(datatype="BF16"), ["BF16", "binary"]),
    "text for a number": (v2(data=["a", 1, 2, 3]), ["data"]),
    "object for a number": (v2(data=[{}, 1, 2, 3]), ["data"]),
    "too few elements": (v2(data=ROW[:3]), ["input-0"]),
    "too many elements": (v2(data=[*ROW, 1.0]), ["input-0"]),
    "negative dimension": (v2(shape=[-1, 4]), ["shape"]),
    "fractional dimension": (v2(shape=[1.5, 4]), ["shape"]),
    "shape is not a list": (v2(shape=4), ["shape"]),
    "shape overflows": (v2(shape=[2**62, 2**62]), ["shape"]),
    "too many columns": (v2(shape=[1, 5], data=[*ROW, 1.0]), ["input-0"]),
    "three dimensions": (v2(shape=[1, 2, 2]), ["input-0"]),
    "integer out of range": (v2(datatype="INT8", data=[300, 1, 1, 1]), ["data"]),
    "text to a numeric model": (v2(datatype="BYTES", data=["a", "b", "c", "d"]), ["BYTES"]),
    "the same input twice": ({"inputs": v2()["inputs"] * 2}, ["input-0"]),
    "unknown output": (v2() | {"outputs": [{"name": "nope"}]}, ["nope"]),
    "the same output twice": (v2() | {"outputs": [{"name": "output-0"}] * 2}, ["output-0"]),
    "timeout is text": (parameters(timeout="abc"), ["timeout"]),
    "timeout is negative": (parameters(timeout=-5), ["timeout"]),
    "timeout is no whole number": (parameters(timeout=1.5), ["timeout"]),
    "priority is negative": (parameters(priority=-1), ["priority"]),
    "priority is text": (parameters(priority="high"), ["priority"]),
    "binary_data_output is text": (parameters(binary_data_output="yes"), ["binary_data_output"]),
    "binary_data is text": (output(binary_data="yes"), ["binary_data"]),
    "classification is text": (output(classification="3"), ["classification"]),
    "the same member twice": (twice('"id"', '"id": "2"'), ["id", "twice"]),
    "parameters twice": (twice('"parameters"', '"parameters": {}'), ["parameters", "twice"]),
    "the same parameter twice": (twice('"a"', '"a": 2'), ["'a'", "twice"]),
    "a number of very many digits": (
        json.dumps(v2()).replace("5.1", "5." + "1" * 10_000).encode(),
        ["10002 characters"],
    ),
    "binary size without a tail": (
        {"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "parameters": {"binary_data_size": 16}}]},
        ["binary"],
    ),
}


NOT_SERVED = {
    "a sequence's id": (parameters(sequence_id=7), ["sequence_id"]),
    "a sequence's id as text": (parameters(sequence_id="a"), ["sequence_id"]),
    "a sequence's start": (parameters(sequence_start=True), ["sequence_start"]),
    "a sequence's end": (parameters(sequence_end=True), ["sequence_end"]),
    "an output in shared memory": (output(shared_memory_region="r", shared_memory_byte_size=12), ["output-0"]),
    "an input in shared memory": (v2(parameters={"shared_memory_region": "r"}, data=None), ["input-0", '"r"']),
}


@pytest.mark.parametrize("case", NOT_SERVED)
def test_v2_not_served(server, case):
    body, words = NOT_SERVED[case]
    assert_refused(post(server, INFER, body), 501, *words)


GOOD_V2 = {
    "no sequence": parameters(sequence_id=0, sequence_start=False, sequence_end=False),
    "no timeout": parameters(timeout=0, priority=0),
    "the longest timeout": parameters(timeout=2**64 - 1, priority=2**64 - 1),
    "no classes": output(classification=0, binary_data=False),
}


@pytest.mark.parametrize("case", GOOD_V2)
def test_v2_parameters_that_ask_for_nothing(server, case):
    reply = post(server, INFER, GOOD_V2[case])
    assert reply.status_code == 200, reply.text
    assert reply.json()["outputs"] == post(server, INFER, v2()).json()["outputs"]


@pytest.mark.parametrize("case", BAD_V2)
def test_v2(server, case):
    body, words = BAD_V2[case]
    assert_refused(post(server, INFER, body), 400, *words)
    assert requests.get(f"{server.url}/v2/health/live").status_code == 200


def binary(size, tail, length=None):
    """A body with a binary tail, and its header."""
    tensor = {"name": "input-0", "shape": [1, 4], "datatype": "FP32", "parameters": {"binary_data_size": size}}
    head = json.dumps({"inputs": [tensor]}).encode()
    headers = {"Inference-Header-Content-Length": str(len(head) if length is None else length)}
    return head + tail, headers | {"Content-Type": "application/octet-stream"}


BAD_BINARY = {
    "tail shorter than said": binary(16, bytes(12)),
    "tail longer than said": binary(16, bytes(20)),
    "size does not fit the shape": binary(12, bytes(12)),
    "negative size": binary(-4, bytes(16)),
    "size is text": binary("16", bytes(16)),
    "raw request without bytes": (b"", {"Inference-Header-Content-Length": "0"}),
    "header beyond the body": binary(16, bytes(16), 10_000),
    "header is not a number": binary(16, bytes(16), "many"),
    "header is negative": binary(16, bytes(16), -5),
}


@pytest.mark.parametrize("case", BAD_BINARY)
def test_v2_binary(server, case):
    body, headers = BAD_BINARY[case]
    reply = post(server, INFER, body, headers)
    assert_refused(reply, 400)
    assert "String(" not in reply.text, "messages are for users of the protocol"


@pytest.mark.parametrize(("encoding", "pack"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
def test_v2_packed_bodies_are_whole(server, encoding, pack):
    """One stream, all of it, and nothing behind it."""
    packed = pack(json.dumps(v2()).encode())
    for body, status in [(packed, 200), (packed + b"garbage", 400), (packed[:-1], 400), (packed[:-4], 400)]:
        assert post(server, INFER, body, {"Content-Encoding": encoding}).status_code == status


def test_v2_unknown_compression(server):
    reply = post(server, INFER, v2(), {"Content-Encoding": "br"})
    assert_refused(reply, 501)
    assert "gzip" in reply.headers["Accept-Encoding"]


def test_v2_broken_compression(server):
    assert_refused(post(server, INFER, v2(), {"Content-Encoding": "gzip"}), 400)


BAD_V1 = {
    "malformed JSON": (b'{"instances":[', []),
    "not an object": ([[1, 2, 3, 4]], []),
    "neither key": ({"rows": [ROW]}, ["instances"]),
    "instances is not a list": ({"instances": 3}, ['Expected "instances" to be a list']),
    "inputs is not a list": ({"inputs": 3}, ['Expected "inputs" to be a list']),
    "ragged rows": ({"instances": [ROW, ROW[:3]]}, ["instances"]),
    "text for a number": ({"instances": [["a", 1, 2, 3]]}, ["instances"]),
    "too many columns": ({"instances": [[*ROW, 1.0]]}, ["instances"]),
    "one dimension": ({"instances": ROW}, ["instances"]),
}


@pytest.mark.parametrize("case", BAD_V1)
def test_v1(server, case):
    body, words = BAD_V1[case]
    assert_refused(post(server, PREDICT, body), 400, *words)


MISSING = {
    "v1 model": ("GET", "/v1/models/no-such-model", ["no-such-model"]),
    "v1 predict": ("POST", "/v1/models/no-such-model:predict", ["no-such-model"]),
    "v2 model": ("GET", "/v2/models/no-such-model", ["no-such-model"]),
    "v2 ready": ("GET", "/v2/models/no-such-model/ready", ["no-such-model"]),
    "v2 infer": ("POST", "/v2/models/no-such-model/infer", ["no-such-model"]),
    "v2 config": ("GET", "/v2/models/no-such-model/config", ["no-such-model"]),
    "version": ("GET", "/v2/models/iris/versions/7", ["7"]),
    "version infer": ("POST", "/v2/models/iris/versions/7/infer", ["7"]),
    "route": ("GET", "/v2/nothing/here", []),
    "route at the root": ("GET", "/nothing", []),
    "version that is no number": ("GET", "/v2/models/iris/versions/abc", ["not found"]),
    "version infer that is no number": ("POST", "/v2/models/iris/versions/1x/infer", ["not found"]),
    "unload": ("POST", "/v2/repository/models/no-such-model/unload", ["no-such-model"]),
}


@pytest.mark.parametrize("case", MISSING)
def test_not_found(server, case):
    method, path, words = MISSING[case]
    body = {"instances": [ROW]} if path.startswith("/v1") else v2() if path.endswith("infer") else {}
    reply = requests.request(method, server.url + path, json=body if method == "POST" else None)
    assert_refused(reply, 404, *words)


SLASHES = [
    "/v2",
    "/v2/health/ready",
    "/v2/models",
    "/v2/models/iris",
    "/v2/models/iris/versions/1/ready",
    "/v2/repository/index",
    "/v2/repository/models/iris/load",
    "/v1/models",
    "/v1/models/iris",
    "/v1/models/iris:predict",
    "/openai/v1/models",
    "/v1/chat/completions",
    "/metrics",
]


@pytest.mark.parametrize("path", SLASHES)
def test_slashes_at_the_end(server, path):
    """Whether or not there is that method: the path without them says so. The query goes along."""
    asked = (("GET", "/", ""), ("POST", "/", ""), ("GET", "//", "?a=%2F&b"))
    for method, slashes, query in asked:
        reply = requests.request(method, server.url + path + slashes + query, allow_redirects=False)
        assert (reply.status_code, reply.headers.get("Location"), reply.content) == (307, path + query, b"")


def test_a_body_goes_along_to_the_path_without_a_slash(server):
    with requests.Session() as session:
        for _ in range(3):
            for path, body in ((INFER, v2()), (PREDICT, {"instances": [ROW]})):
                reply = session.post(f"{server.url}{path}/", json=body)
                assert (reply.status_code, reply.url) == (200, server.url + path), reply.text


@pytest.mark.parametrize("path", ["/nothing/", "/v2/nothing/here/", "/v3//", "/v2/models/iris/nothing/"])
def test_slashes_behind_no_route(server, path):
    assert_refused(requests.get(server.url + path, allow_redirects=False), 404)


@pytest.mark.parametrize(("method", "path"), [("GET", INFER), ("DELETE", PREDICT), ("POST", "/v2/health/ready")])
def test_wrong_method(server, method, path):
    reply = requests.request(method, server.url + path)
    assert_refused(reply, 405)
    assert reply.headers["Allow"]


NOT_BUILT = [
    "/v2/trace/setting",
    "/v2/models/iris/trace/setting",
    "/v2/models/iris/versions/1/trace/setting",
    "/v2/logging",
    "/v2/systemsharedmemory/status",
]


@pytest.mark.parametrize("path", NOT_BUILT)
def test_not_built_yet(server, path):
    assert_refused(requests.get(server.url + path), 501, path)


BAD_MANAGEMENT = {
    "index of unknown members": ("index", {"ready": True, "redy": True}),
    "index that is a list": ("index", [True]),
    "index that is no JSON": ("index", b"{"),
    "load of unknown members": ("models/iris/load", {"parameter": {}}),
    "load that is a list": ("models/iris/load", [{}]),
    "unload of unknown members": ("models/iris/unload", {"unload_dependents": True}),
    "unload with a parameter that is none": ("models/iris/unload", {"parameters": {"unload_dependents": "maybe"}}),
}


@pytest.mark.parametrize("case", BAD_MANAGEMENT)
def test_management(server, case):
    path, body = BAD_MANAGEMENT[case]
    assert_refused(post(server, f"/v2/repository/{path}", body), 400)
    assert requests.get(f"{server.url}/v2/models/iris/ready").status_code == 200


def test_errors_keep_the_connection(server):
    """A refused request leaves the connection usable, so clients that pool them do not suffer."""
    with requests.Session() as session:
        for body, status in [(b"{", 400), (json.dumps(v2()).encode(), 200)] * 3:
            assert session.post(server.url + INFER, data=body).status_code == status


@pytest.fixture
def stub(server):
    with grpc.insecure_channel(server.grpc) as channel:
        yield service_pb2_grpc.GRPCInferenceServiceStub(channel)


def message(model="iris", version="", shape=(1, 4), datatype="FP32", raw=None, typed=None, outputs=(), **parameters):
    request = service_pb2.ModelInferRequest(model_name=model, model_version=version)
    fill(request.parameters, parameters)
    tensor = request.inputs.add(name="input-0", datatype=datatype, shape=shape)
    if typed is not None:
        tensor.contents.fp32_contents.extend(typed)
    if raw is not None:
        request.raw_input_contents.append(raw)
    for name in outputs:
        request.outputs.add(name=name)
    return request


def fill(into, parameters):
    for key, value in parameters.items():
        field = {bool: "bool_param", int: "int64_param", str: "string_param", float: "double_param"}[type(value)]
        setattr(into[key], field, value)


def with_output(**parameters):
    request = message(raw=RAW, outputs=["output-0"])
    fill(request.outputs[0].parameters, parameters)
    return request


RAW = np.array(ROW, dtype=np.float32).tobytes()

BAD_GRPC = {
    "unknown model": (message(model="no-such-model", raw=RAW), "NOT_FOUND", ["no-such-model"]),
    "unknown version": (message(version="7", raw=RAW), "NOT_FOUND", ["7"]),
    "version is not a number": (message(version="x", raw=RAW), "INVALID_ARGUMENT", ["version"]),
    "no inputs": (service_pb2.ModelInferRequest(model_name="iris"), "INVALID_ARGUMENT", ["input"]),
    "no data": (message(), "INVALID_ARGUMENT", ["input-0"]),
    "raw and typed": (message(raw=RAW, typed=ROW), "INVALID_ARGUMENT", ["raw"]),
    "too few bytes": (message(raw=RAW[:8]), "INVALID_ARGUMENT", ["input-0"]),
    "too many bytes": (message(raw=RAW + RAW), "INVALID_ARGUMENT", ["input-0"]),
    "too few values": (message(typed=ROW[:3]), "INVALID_ARGUMENT", ["input-0"]),
    "contents of another datatype": (message(datatype="FP64", typed=ROW), "INVALID_ARGUMENT", ["input-0"]),
    "unknown datatype": (message(datatype="FP31", raw=RAW), "INVALID_ARGUMENT", ["FP31"]),
    "negative dimension": (message(shape=(-1, 4), raw=RAW), "INVALID_ARGUMENT", ["shape"]),
    "shape overflows": (message(shape=(2**62, 2**62), raw=RAW), "INVALID_ARGUMENT", ["shape"]),
    "too many columns": (message(shape=(1, 5), raw=RAW + bytes(4)), "INVALID_ARGUMENT", ["input-0"]),
    "unknown output": (message(raw=RAW, outputs=["nope"]), "INVALID_ARGUMENT", ["nope"]),
    "timeout is text": (message(raw=RAW, timeout="abc"), "INVALID_ARGUMENT", ["timeout"]),
    "timeout is negative": (message(raw=RAW, timeout=-5), "INVALID_ARGUMENT", ["timeout"]),
    "timeout is no whole number": (message(raw=RAW, timeout=1.5), "INVALID_ARGUMENT", ["timeout"]),
    "priority is negative": (message(raw=RAW, priority=-1), "INVALID_ARGUMENT", ["priority"]),
    "priority is text": (message(raw=RAW, priority="high"), "INVALID_ARGUMENT", ["priority"]),
    "binary_data_output is text": (
        message(raw=RAW, binary_data_output="yes"),
        "INVALID_ARGUMENT",
        ["binary_data_output"],
    ),
    "binary_data is text": (with_output(binary_data="yes"), "INVALID_ARGUMENT", ["binary_data"]),
    "a sequence's id": (message(raw=RAW, sequence_id=7), "UNIMPLEMENTED", ["sequence_id"]),
    "a sequence's start": (message(raw=RAW, sequence_start=True), "UNIMPLEMENTED", ["sequence_start"]),
    "an output in shared memory": (with_output(shared_memory_region="r"), "UNIMPLEMENTED", ["output-0"]),
}


@pytest.mark.parametrize("case", BAD_GRPC)
def test_grpc(stub, case):
    request, code, words = BAD_GRPC[case]
    with pytest.raises(grpc.RpcError) as caught:
        stub.ModelInfer(request, timeout=30)
    assert caught.value.code().name == code, caught.value.details()
    for word in words:
        assert word.lower() in caught.value.details().lower()


def test_grpc_message_over_the_limit(start, own_repository):
    """As the table has it, for single messages and in streams."""
    ports = ["--http-port", "{http}", "--grpc-port", "{grpc}"]
    server = start("serve", "--model-repository", own_repository, *ports, "--max-body-size", "64KiB")
    large = message(raw=bytes(1 << 17))
    with grpc.insecure_channel(server.grpc) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        for call in (lambda: stub.ModelInfer(large), lambda: list(stub.ModelStreamInfer(iter([large])))):
            with pytest.raises(grpc.RpcError) as caught:
                call()
            assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert "large" in caught.value.details()


def test_grpc_unload_parameters(stub):
    request = service_pb2.RepositoryModelUnloadRequest(model_name="iris")
    request.parameters["unload_dependents"].string_param = "maybe"
    with pytest.raises(grpc.RpcError) as caught:
        stub.RepositoryModelUnload(request, timeout=30)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


NAMED = {
    "ModelReady": service_pb2.ModelReadyRequest(name="no-such-model"),
    "ModelMetadata": service_pb2.ModelMetadataRequest(name="no-such-model"),
    "ModelConfig": service_pb2.ModelConfigRequest(name="no-such-model"),
}


@pytest.mark.parametrize("call", NAMED)
def test_grpc_not_found(stub, call):
    with pytest.raises(grpc.RpcError) as caught:
        getattr(stub, call)(NAMED[call], timeout=30)
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    assert "no-such-model" in caught.value.details()


@pytest.mark.parametrize("call", ["TraceSetting", "LogSettings", "SystemSharedMemoryStatus"])
def test_grpc_not_built_yet(stub, call):
    with pytest.raises(grpc.RpcError) as caught:
        getattr(stub, call)(getattr(service_pb2, f"{call}Request")(), timeout=30)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
