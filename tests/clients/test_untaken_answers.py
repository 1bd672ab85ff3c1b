"""Answers that nobody takes hold their share of --inflight-bytes, over either protocol, until they are taken or dropped."""

import json

import pytest
import wire
from openai_service import sampled, serving
from sdk import service_pb2
from wire import GRPC, MIB, MODEL_INFER, Http1, Http2, block, request, well

PREDICT = "/v1/models/iris:predict"
# A body of 0.6 MB has an answer of some 4 MB, of which a kernel's buffers have but a part.
MANY = b'{"instances":[' + b",".join([b"[1,1,1,1]"] * 60_000) + b"]}"
# More of them than there is room for.
MOST = 20
BOUNDS = ["--max-body-size", 4 * MIB, "--inflight-bytes", 16 * MIB]


@pytest.fixture
def server(start, models):
    listen = ["--http-port", "{http}", "--grpc-port", "{grpc}"]
    return start("serve", "--model-repository", models, "--load-model", "iris", *listen, *BOUNDS)


def rows(count):
    """A message of gRPC, in its frame."""
    asked = service_pb2.ModelInferRequest(model_name="iris", raw_input_contents=[bytes(16 * count)])
    asked.inputs.add(name="input-0", datatype="FP32", shape=[count, 4])
    data = asked.SerializeToString()
    return b"\0" + len(data).to_bytes(4, "big") + data


def taker(address, window):
    """A connection whose streams have so large a window, and which itself has as large a one as there is."""
    client = Http2(address, {wire.INITIAL_WINDOW_SIZE: window}, receive_buffer=4096)
    client.send(wire.frame(wire.WINDOW_UPDATE, 0, 0, (2**31 - 65536).to_bytes(4, "big")))
    return client


def asked(client, number, head, body):
    """The stream of a request whose answer has begun."""
    client.open(number, head, end=False)
    # One that is refused may be so before it has come.
    client.upload(number, body, end=True)
    stream = client.stream(number)
    assert client.until(lambda: stream.headers)
    return stream


def refused(client, head, body, taken):
    """How many of one connection's requests are let in before one is refused; so many bytes of each answer are taken."""
    for count in range(MOST):
        stream = asked(client, 2 * count + 1, head, body)
        if stream.status == 429 or stream.ended and not stream.data:
            return count
        assert client.until(lambda stream=stream: len(stream.data) >= taken)
    raise AssertionError(f"{MOST} answers were held")


def test_of_connections(server):
    """Each holds one; the next is refused, and let in once others were taken."""
    clients, reply = [], None
    while len(clients) < MOST:
        client = Http1(server.http, receive_buffer=4096)
        client.socket.sendall(request("POST", PREDICT, body=MANY))
        clients.append(client)
        # As much of the answer as tells what it is.
        client._more()
        if client.read.startswith(b"HTTP/1.1 429"):
            reply = client.reply()
            break
        assert client.read.startswith(b"HTTP/1.1 200")
    assert reply is not None
    assert "--inflight-bytes" in json.loads(reply.body)["error"]
    assert reply.headers["retry-after"]
    *taken, _ = clients
    assert taken
    for client in taken:
        assert len(json.loads(client.reply().body)["predictions"]) == 60_000
    with Http1(server.http) as another:
        assert another.ask(request("POST", PREDICT, body=MANY)).status == 200
    for client in clients:
        client.socket.close()


@pytest.mark.parametrize("left", ["all", "the last bytes"])
@pytest.mark.parametrize("protocol", ["rest", "grpc"])
def test_of_streams(server, protocol, left):
    """Those of one connection, whose windows end before their answers do."""
    if protocol == "rest":
        address, head, body = server.http, block("POST", PREDICT), MANY
    else:
        address, head, body = server.grpc, block("POST", MODEL_INFER, GRPC), rows(200_000)
    window = 0
    if left != "all":
        with taker(address, 2**30) as client:
            asked(client, 1, head, body)
            window = len(client.ended(1).data) - 100
    with taker(address, window) as client:
        assert refused(client, head, body, window) > 1
    well(server)


def test_one_that_is_larger_than_all(start, models):
    """Alone it is let through."""
    bounds = ["--max-body-size", MIB, "--inflight-bytes", MIB]
    server = start("serve", "--model-repository", models, "--load-model", "iris", "--http-port", "{http}", *bounds)
    with Http1(server.http) as client:
        for _ in range(2):
            reply = client.ask(request("POST", PREDICT, body=MANY))
            assert reply.status == 200, reply
            assert len(json.loads(reply.body)["predictions"]) == 60_000


# ------------------------------------------------------------------------------------- what language models tell of prompts

# A token for each byte, with 20 alternatives, 16 times: some 8 MB, and more while they are made.
TOLD = {"model": "tiny", "prompt": "x" * 400, "n": 16, "max_tokens": 1, "prompt_logprobs": 20}


@pytest.fixture
def speaker(binary, models, tmp_path):
    with serving(binary, models, tmp_path, more=BOUNDS) as server:
        yield server


def completion(**more):
    return request("POST", "/v1/completions", body=json.dumps({**TOLD, **more}).encode())


def test_of_probabilities(speaker):
    """They count as often as they are told, before any is computed."""
    with Http1(speaker.http, receive_buffer=4096) as holder, Http1(speaker.http) as another:
        holder.socket.sendall(completion())
        holder._more()
        assert holder.read.startswith(b"HTTP/1.1 200")
        reply = another.ask(completion())
        assert reply.status == 429, reply
        assert "--inflight-bytes" in json.loads(reply.body)["error"]["message"]
        assert reply.headers["retry-after"]
        assert another.ask(completion(n=1, prompt_logprobs=0)).status == 200
        choices = json.loads(holder.reply().body)["choices"]
        assert [len(choice["prompt_logprobs"]) for choice in choices] == [400] * 16
        assert another.ask(completion()).status == 200


def test_of_tokens_that_may_come(speaker):
    """They count where the request says how many they may be; beyond the context it is refused for that."""
    more = {"prompt": "x", "prompt_logprobs": None, "logprobs": 20, "ignore_eos": True}
    with Http1(speaker.http, receive_buffer=4096) as holder, Http1(speaker.http) as another:
        holder.socket.sendall(completion())
        holder._more()
        assert holder.read.startswith(b"HTTP/1.1 200")
        assert another.ask(completion(**more, max_tokens=500)).status == 429
        reply = another.ask(completion(**more, n=1, max_tokens=5000))
        assert (reply.status, json.loads(reply.body)["error"]["param"]) == (400, "max_tokens"), reply
        reply = another.ask(completion(**more, max_tokens=3))
        assert reply.status == 200, reply
        tokens = [len(choice["logprobs"]["tokens"]) for choice in json.loads(reply.body)["choices"]]
        assert tokens == [3] * 16


def test_of_tokens_that_nobody_knew_of(speaker):
    """They count as they come, and what there is no room for then is refused as what there was none for before."""

    def failed():
        reasons = ("REJECTED", "CANCELED")
        return [sampled(speaker, "nv_inference_request_failure_total", model="tiny", reason=each) for each in reasons]

    chat = {"model": "tiny", "messages": [{"role": "user", "content": "x"}], "logprobs": True, "top_logprobs": 20}
    body = json.dumps({**chat, "n": 16, "ignore_eos": True}).encode()
    with Http1(speaker.http, receive_buffer=4096) as holder, Http1(speaker.http) as another:
        holder.socket.sendall(completion())
        holder._more()
        assert holder.read.startswith(b"HTTP/1.1 200")
        rejected, left = failed()
        reply = another.ask(request("POST", "/v1/chat/completions", body=body))
        assert reply.status == 429, reply
        assert failed() == [rejected + 1, left]


def test_memory_of_probabilities(speaker):
    """Alone they are let through, and what they are made of is not held as often as they are told."""
    with Http1(speaker.http) as client:
        assert client.ask(completion(n=1)).status == 200
        with wire.unharmed(speaker, growth=96 * MIB, answer=10):
            reply = client.ask(completion(prompt=["x" * 500] * 3))
            assert reply.status == 200, reply
    assert len(reply.body) > 20 * MIB
    choices = json.loads(reply.body)["choices"]
    assert len(choices) == 48
    assert all(choice["prompt_logprobs"] == choices[0]["prompt_logprobs"] for choice in choices[1:16])
