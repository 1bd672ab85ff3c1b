"""Bodies and messages that are made of very many small things, of which memory holds far more than the wire; and bodies
that are answered before they are read."""

import contextlib
import gzip
import json
import time

import grpc
import pytest
import requests
import wire
from conftest import starter, stop_all
from wire import GRPC, MIB, MODEL_INFER, Http1, Http2, block, request, well

# What the largest body may cost while it is refused: some times itself.
ROOM = 400 * MIB
TIMEOUT = 60
SIZE = 24 * MIB


@pytest.fixture(scope="module")
def server(binary, tmp_path_factory, models):
    start, started = starter(binary, tmp_path_factory.mktemp("many"))
    try:
        yield start("serve", "--model-repository", models, "--http-port", "{http}", "--grpc-port", "{grpc}")
    finally:
        stop_all(started)


@contextlib.contextmanager
def unharmed(server):
    """The most that it ever held, before and after."""
    before = most(server)
    yield
    grown = most(server) - before
    assert grown < ROOM, f"memory grew by {grown >> 20} MiB"
    well(server)


def most(server):
    with open(f"/proc/{server.child.pid}/status") as lines:
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))


def field(number, payload=b""):
    length, out = len(payload), b""
    while length >= 128:
        out, length = out + bytes([length & 127 | 128]), length >> 7
    return bytes([number << 3 | 2]) + out + bytes([length]) + payload


def code(server, path, message, compression=None):
    """How a call of these bytes ends, of which its client does not know that nothing follows."""
    with grpc.insecure_channel(server.grpc) as channel:
        try:
            channel.stream_unary(path)(iter([message]), timeout=TIMEOUT, compression=compression)
        except grpc.RpcError as error:
            return error.code()
        return grpc.StatusCode.OK


def of_many(what):
    """A request for inference, as protobuf writes it."""
    many = {
        "inputs": lambda: field(5) * (SIZE // 2),
        "outputs": lambda: field(6) * (SIZE // 2),
        "raw contents": lambda: field(7) * (SIZE // 2),
        "dimensions": lambda: field(5, field(3, b"\1" * SIZE)),
        "texts": lambda: field(5, field(1, b"input-0") + field(2, b"BYTES") + field(5, field(8) * (SIZE // 2))),
    }
    return field(1, b"iris") + many[what]()


@pytest.mark.parametrize("what", ["inputs", "outputs", "raw contents", "dimensions", "texts"])
@pytest.mark.parametrize("packed", [False, True])
def test_messages(server, what, packed):
    """Counted before they are read, and neither unpacked nor read before all has come."""
    message = of_many(what)
    if packed:
        message = gzip.compress(message, 1)
    sent = bytes([packed]) + len(message).to_bytes(4, "big") + message
    head = block("POST", MODEL_INFER, [*GRPC, ("grpc-encoding", "gzip")] if packed else GRPC)
    with unharmed(server), Http2(server.grpc) as client:
        # The first of them do not say that nothing follows.
        for number in (1, 3, 5):
            client.open(number, head, end=False)
            client.upload(number, sent, end=number == 5)
        stream = client.ended(5)
        assert stream.ended
        assert not stream.reset
        assert stream.data == b""
        assert not client.stream(1).ended
        # Texts are as many as their bytes, but not as their shape says.
        refused = grpc.StatusCode.INVALID_ARGUMENT if what == "texts" else grpc.StatusCode.RESOURCE_EXHAUSTED
        assert code(server, MODEL_INFER, of_many(what), grpc.Compression.Gzip if packed else None) is refused


NAMED = '{"name":""}'


@pytest.mark.parametrize("path", ["/grpc.health.v1.Health/Check", "/inference.GRPCInferenceService/ServerLive", MODEL_INFER])
def test_messages_whose_end_comes_apart(server, path):
    """As clients of Node and .NET say that nothing follows: by a frame of no bytes."""
    message = b""
    if path == MODEL_INFER:
        described = field(1, b"input-0") + field(2, b"FP32") + field(3, b"\1\4")
        message = field(1, b"iris") + field(5, described) + field(7, bytes(16))
    assert code(server, path, message) is grpc.StatusCode.OK
    with Http2(server.grpc) as client:
        client.open(1, block("POST", path, GRPC), end=False)
        client.upload(1, b"\0" + len(message).to_bytes(4, "big") + message, end=False)
        client.send(wire.frame(wire.DATA, wire.END_STREAM, 1))
        assert client.ended(1).data


def json_of_many(what):
    count = SIZE // 8
    names = ",".join(f'"{index}":1' for index in range(count))
    row = '"inputs":[{"name":"input-0","shape":[1,4],"datatype":"FP32","data":[1,1,1,1]}]'
    infer, load = "/v2/models/iris/infer", "/v2/repository/models/iris/load"
    return {
        "columns": lambda: ("/v1/models/iris:predict", f'{{"instances":[{{{names}}}]}}', 400),
        "parameters": lambda: (infer, f'{{{row},"parameters":{{{names}}}}}', 400),
        "outputs": lambda: (infer, f'{{{row},"outputs":[{",".join(["{}"] * count)}]}}', 400),
        "named outputs": lambda: (infer, f'{{{row},"outputs":[{",".join([NAMED] * count)}]}}', 400),
        "dimensions": lambda: (infer, row.join("{}").replace("[1,4]", f"[{','.join('1' * count)}]"), 400),
        "parameters of a load": lambda: (load, f'{{"parameters":{{{names}}}}}', 413),
        "tokens": lambda: ("/detokenize", f'{{"model":"assistant","tokens":[{",".join("1" * count)}]}}', 400),
    }[what]()


@pytest.mark.parametrize(
    "what",
    ["columns", "parameters", "outputs", "named outputs", "dimensions", "parameters of a load", "tokens"],
)
def test_bodies(server, what):
    path, body, status = json_of_many(what)
    headers = {"Content-Type": "application/json"}
    with unharmed(server):
        reply = requests.post(server.url + path, data=body.encode(), headers=headers, timeout=TIMEOUT)
        assert reply.status_code == status, reply.text[:500]
        assert len(reply.content) < 1000


def test_detokenize_what_fits(server):
    asked = {"model": "assistant", "tokens": [5, 6, 7]}
    reply = requests.post(f"{server.url}/detokenize", json=asked, timeout=TIMEOUT)
    assert reply.status_code == 200
    assert set(reply.json()) == {"prompt"}


@pytest.mark.parametrize("path", ["/v1/models/nobody:predict", "/v2/models/nobody/infer", "/nowhere"])
def test_answers_before_bodies(server, path):
    """A client that sends head and body apart, as Python's does, can go on with its connection."""
    body = json.dumps({"instances": [[1, 1, 1, 1]]}).encode()
    head = request("POST", path, [f"Content-Length: {len(body)}"])
    with Http1(server.http) as client:
        for _ in range(20):
            client.socket.sendall(head)
            time.sleep(0.005)
            client.socket.sendall(body)
            reply = client.reply()
            assert reply.status == 404
            assert "connection" not in reply.headers


def test_answers_to_bodies_that_do_not_come(server):
    """The connection will not outlive its answer, which says so."""
    for headers in (["Content-Length: 100000000"], ["Content-Length: 9"], ["Content-Length: 9", "Expect: 100-continue"]):
        with Http1(server.http) as client:
            client.socket.sendall(request("POST", "/v1/models/nobody:predict", headers))
            reply = client.reply()
            assert (reply.status, reply.headers["connection"]) == (404, "close")
            assert wire.closed_after(client.socket, 5) is not None
    with Http1(server.http) as client:
        client.socket.sendall(request("POST", wire.INFER, ["Content-Length: 1000000000"]))
        reply = client.reply()
        assert (reply.status, reply.headers["connection"]) == (413, "close")
