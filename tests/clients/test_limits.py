"""Deadlines, queues and bounds of connections, and what a request must have before it reaches a model.

Nothing here looks at how long something took: times are there to pass, or are long enough never to.
"""

import json
import threading
import time

import grpc
import pytest
import requests
from conftest import starter, stop_all
from grpc_health.v1 import health_pb2, health_pb2_grpc
from harness import assert_same, tensor
from sdk import service_pb2, service_pb2_grpc
from wire import INFER, ROW, Http1, request

LISTEN = ["--http-port", "{http}", "--grpc-port", "{grpc}"]
PREDICT = "/v1/models/iris:predict"
V1 = b'{"instances":[[5.1,3.5,1.4,0.2]]}'
BODIES = {INFER: ROW, PREDICT: V1}
# What nothing comes near that ever comes: seconds.
PATIENCE = 120


def serve(start, models, *flags):
    return start("serve", "--model-repository", models, "--load-model", "iris", *LISTEN, *flags)


def told(address, asked):
    """The answer to bytes on a connection of their own. A server may have closed it before a busy machine sent them."""
    for _ in range(5):
        with Http1(address) as client:
            client.socket.settimeout(PATIENCE)
            try:
                client.socket.sendall(asked)
            except ConnectionError:
                continue
            if (reply := client.reply()) is not None:
                return reply
    raise AssertionError("closed without a word, five times")


def many(rows, **parameters):
    """The headers and the body of a request of so many rows for iris. In bytes: what takes time is the model."""
    data = {"name": "input-0", "shape": [rows, 4], "datatype": "FP32", "parameters": {"binary_data_size": 16 * rows}}
    head = json.dumps({"inputs": [data], "parameters": {"binary_data_output": True, **parameters}}).encode()
    return {"Inference-Header-Content-Length": str(len(head))}, head + bytes(16 * rows)


def message(rows):
    asked = service_pb2.ModelInferRequest(model_name="iris", raw_input_contents=[bytes(16 * rows)])
    asked.inputs.add(name="input-0", datatype="FP32", shape=[rows, 4])
    return asked


# So many rows take longer than a request that is answered where it stands may: they queue.
ROWS = 4000


# ------------------------------------------------------------------------------------------------------------ deadlines


@pytest.mark.parametrize("path", BODIES)
def test_a_timeout_of_nothing(server, path):
    headers = {"x-request-timeout-ms": "0"}
    reply = requests.post(server.url + path, data=BODIES[path], headers=headers, timeout=PATIENCE)
    assert reply.status_code == 504, reply.text
    assert "deadline" in reply.json()["error"]


@pytest.mark.parametrize("milliseconds", [0, 1])
@pytest.mark.parametrize("path", BODIES)
def test_a_timeout_is_not_longer_for_a_slow_body(server, path, milliseconds):
    """The rest of the body never comes, and the answer does."""
    asked = request("POST", path, [f"x-request-timeout-ms: {milliseconds}"], BODIES[path])
    reply = told(server.http, asked[:-1])
    assert reply.status == 504, reply
    assert "deadline" in json.loads(reply.body)["error"]


@pytest.mark.parametrize("path", BODIES)
def test_a_timeout_that_is_long_enough(server, path):
    headers = {"x-request-timeout-ms": "600000"}
    reply = requests.post(server.url + path, data=BODIES[path], headers=headers, timeout=PATIENCE)
    assert reply.status_code == 200, reply.text


@pytest.mark.parametrize("value", ["soon", "-1", "1.5", "10s", ""])
@pytest.mark.parametrize("path", BODIES)
def test_a_timeout_that_is_no_number(server, path, value):
    headers = {"x-request-timeout-ms": value}
    reply = requests.post(server.url + path, data=BODIES[path], headers=headers, timeout=PATIENCE)
    assert reply.status_code == 400, reply.text
    assert "x-request-timeout-ms" in reply.json()["error"]


# ------------------------------------------------------------------------------------------------------ queue and batch

# Shorter than the time for which a batch waits. Several, since a machine may be too busy for any one of them.
TIMEOUTS = [0.15, 0.2, 0.3, 0.6, 1.2, 1.2, 2.4, 2.4]


@pytest.fixture(scope="module")
def gathering(binary, models, tmp_path_factory):
    """A server whose batches wait for more, and are never full."""
    start, started = starter(binary, tmp_path_factory.mktemp("gathering"))
    try:
        yield serve(start, models, "--max-batch-delay", "5s", "--max-batch-rows", 10_000_000)
        stop_all(started)
    finally:
        for each in started:
            each.kill()


def in_time(ask):
    """`ask(seconds)` says how a request ends that has so long. One that nobody waits for any more is left time to be
    forgotten: the next one must not be computed because that one's time is up."""
    ends = []
    for seconds in TIMEOUTS:
        ends.append(ask(seconds))
        if ends[-1] not in (504, "DEADLINE_EXCEEDED"):
            break
        time.sleep(0.5)
    return ends


def asked_within(server, seconds, by_header):
    headers, body = many(ROWS, **({} if by_header else {"timeout": int(seconds * 1e6)}))
    if by_header:
        headers["x-request-timeout-ms"] = str(int(seconds * 1000))
    return requests.post(server.url + INFER, data=body, headers=headers, timeout=PATIENCE).status_code


@pytest.mark.parametrize("by_header", [False, True], ids=["parameter", "header"])
def test_a_batch_does_not_wait_until_its_request_is_too_late(gathering, by_header):
    """The request is computed while there is time for it, though the batch would have waited for longer."""
    ends = in_time(lambda seconds: asked_within(gathering, seconds, by_header))
    assert ends[-1] == 200, ends


def test_a_batch_does_not_wait_until_its_call_is_too_late(gathering):
    """The same for the deadline of gRPC."""
    with grpc.insecure_channel(gathering.grpc) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        assert stub.ServerLive(service_pb2.ServerLiveRequest(), timeout=PATIENCE, wait_for_ready=True).live

        def call(seconds):
            try:
                return list(stub.ModelInfer(message(ROWS), timeout=seconds).outputs[0].shape)
            except grpc.RpcError as error:
                return error.code().name

        ends = in_time(call)
    assert ends[-1] == [ROWS, 3], ends


@pytest.mark.parametrize("rows", [400_000, 1_000_000])
def test_a_batch_is_in_time_for_the_most_urgent_of_it(start, models, rows):
    """Its answer comes with those to all that it is computed with, or before: both are in time."""
    flags = ["--nthread", 1, "--max-batch-delay", "5s", "--max-batch-rows", 10_000_000]
    server, statuses = serve(start, models, *flags), []

    def large():
        headers, body = many(rows)
        statuses.append(requests.post(server.url + INFER, data=body, headers=headers, timeout=PATIENCE).status_code)

    def urgent(seconds):
        asking = threading.Thread(target=large)
        asking.start()
        time.sleep(0.5)
        try:
            return asked_within(server, seconds, by_header=True)
        finally:
            asking.join()

    ends = in_time(urgent)
    assert ends[-1] == 200, ends
    assert set(statuses) == {200}


@pytest.mark.parametrize(("most", "batches"), [(ROWS, {ROWS: 4}), (2 * ROWS, {2 * ROWS: 2}), (4 * ROWS, {4 * ROWS: 1})])
def test_max_batch_rows(start, models, most, batches):
    """A batch that has so many rows waits for no more, and no batch has more."""
    server = serve(start, models, "--nthread", 1, "--max-batch-delay", "50s", "--max-batch-rows", most)
    statuses = []

    def ask():
        headers, body = many(ROWS)
        reply = requests.post(server.url + INFER, data=body, headers=headers, timeout=PATIENCE)
        statuses.append(reply.status_code)

    asking = [threading.Thread(target=ask) for _ in range(4)]
    for each in asking:
        each.start()
    for each in asking:
        each.join()
    assert statuses == [200] * 4
    (stats,) = requests.get(f"{server.url}/v2/models/iris/stats", timeout=PATIENCE).json()["model_stats"]
    assert {each["batch_size"]: each["compute_infer"]["count"] for each in stats["batch_stats"]} == batches
    assert stats["execution_count"] == sum(batches.values())
    assert stats["inference_count"] == 4 * ROWS


def at_once(server, rows, count=12):
    """The replies to so many requests whose last bytes are sent together."""
    headers, body = many(rows)
    asked = request("POST", INFER, [f"{name}: {value}" for name, value in headers.items()], body)
    clients = [Http1(server.http) for _ in range(count)]
    try:
        for each in clients:
            each.socket.settimeout(PATIENCE)
            each.socket.sendall(asked[:-1])
        for each in clients:
            each.socket.sendall(asked[-1:])
        return [each.reply() for each in clients]
    finally:
        for each in clients:
            each.socket.close()


def test_what_the_queue_has_no_room_for(start, models):
    """One is computed and one waits; the others are told to come again."""
    flags = ["--nthread", 1, "--queue-size", 1, "--max-batch-rows", 1, "--request-timeout", "10m"]
    server, rows, refused = serve(start, models, *flags, "--body-timeout", "2m"), 20_000, []
    while not refused and rows <= 640_000:
        replies = at_once(server, rows)
        assert {each.status for each in replies} <= {200, 429}, [each.status for each in replies]
        assert 200 in {each.status for each in replies}
        refused, rows = [each for each in replies if each.status == 429], 2 * rows
    assert refused
    for each in refused:
        assert int(each.headers["retry-after"]) > 0
        assert "wait for this model" in json.loads(each.body)["error"]
    headers, body = many(1)
    assert requests.post(server.url + INFER, data=body, headers=headers, timeout=PATIENCE).status_code == 200


# ---------------------------------------------------------------------------------------------------------- connections

CONNECTIONS = 5


@pytest.fixture(scope="module")
def full(binary, models, tmp_path_factory):
    """A server all of whose connections are taken, by clients that keep them."""
    start, started = starter(binary, tmp_path_factory.mktemp("full"))
    flags = ["--max-connections", CONNECTIONS, "--idle-timeout", "1h", "--header-timeout", "1h"]
    holding = []
    try:
        server = serve(start, models, *flags)
        # Those that asked whether it is ready may not have left yet: whoever comes too early is told so.
        for _ in range(1000):
            client = Http1(server.http)
            client.socket.settimeout(PATIENCE)
            client.socket.sendall(request("GET", "/v2"))
            reply = client.reply()
            if reply is not None and reply.status == 200:
                holding.append(client)
            else:
                client.socket.close()
            if len(holding) == CONNECTIONS:
                break
        assert len(holding) == CONNECTIONS
        yield server
        stop_all(started)
    finally:
        for each in holding:
            each.socket.close()
        for each in started:
            each.kill()


PORTS = ["http", "grpc"]


@pytest.mark.parametrize("path", ["/v2/health/live", "/v2/health/ready", "/metrics"])
@pytest.mark.parametrize("port", PORTS)
def test_one_connection_more_is_told_of_health(full, port, path):
    reply = told(getattr(full, port), request("GET", path))
    assert reply.status == 200, reply
    assert reply.body


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize("port", PORTS)
def test_one_connection_more_is_refused_all_else(full, port, path):
    reply = told(getattr(full, port), request("POST", path, body=BODIES[path]))
    assert reply.status == 429, reply
    assert int(reply.headers["retry-after"]) > 0
    assert "connections" in json.loads(reply.body)["error"]


@pytest.mark.parametrize("service", ["", "inference.GRPCInferenceService"])
@pytest.mark.parametrize("port", PORTS)
def test_one_connection_more_is_told_of_health_over_grpc(full, port, service):
    with grpc.insecure_channel(getattr(full, port)) as channel:
        asked = health_pb2.HealthCheckRequest(service=service)
        reply = health_pb2_grpc.HealthStub(channel).Check(asked, timeout=PATIENCE, wait_for_ready=True)
    assert reply.status == health_pb2.HealthCheckResponse.SERVING


@pytest.mark.parametrize("call", ["ServerLive", "ModelInfer"])
@pytest.mark.parametrize("port", PORTS)
def test_one_connection_more_is_refused_all_else_over_grpc(full, port, call):
    asked = message(1) if call == "ModelInfer" else service_pb2.ServerLiveRequest()
    with grpc.insecure_channel(getattr(full, port)) as channel:
        for _ in range(5):
            with pytest.raises(grpc.RpcError) as caught:
                stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
                getattr(stub, call)(asked, timeout=PATIENCE, wait_for_ready=True)
            # A connection beyond the bound may do nothing for a second only, and a busy machine may be slower.
            if caught.value.code() is not grpc.StatusCode.UNAVAILABLE:
                break
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED, caught.value.details()


# ------------------------------------------------------------------------------------------------------- heads and keys

# Version, what comes before the path, the headers, and the status that is due.
HOSTS = {
    "one host": ("1.1", "", ["Host: 127.0.0.1"], 200),
    "no host": ("1.1", "", [], 400),
    "two hosts": ("1.1", "", ["Host: 127.0.0.1", "Host: example.com"], 400),
    "the same host twice": ("1.1", "", ["Host: 127.0.0.1", "Host: 127.0.0.1"], 400),
    "absolute form of the host": ("1.1", "http://127.0.0.1", ["Host: 127.0.0.1"], 200),
    "absolute form of another host": ("1.1", "http://example.com", ["Host: 127.0.0.1"], 400),
    "absolute form without a host": ("1.1", "http://127.0.0.1", [], 400),
    "absolute form with the port that goes without saying": ("1.1", "http://127.0.0.1:80", ["Host: 127.0.0.1"], 200),
    "the port that goes without saying": ("1.1", "http://127.0.0.1", ["Host: 127.0.0.1:80"], 200),
    "absolute form of another port": ("1.1", "http://127.0.0.1:81", ["Host: 127.0.0.1"], 400),
    "two hosts in one": ("1.1", "", ["Host: a, b"], 400),
    "a host with a space": ("1.1", "", ["Host: a b"], 400),
    "a host with a user": ("1.1", "", ["Host: a@b"], 400),
    "no host before there were any": ("1.0", "", [], 200),
}


@pytest.mark.parametrize("path", ["/v2/health/live", *BODIES])
@pytest.mark.parametrize("case", HOSTS)
def test_the_host(server, case, path):
    version, origin, headers, status = HOSTS[case]
    body = BODIES.get(path, b"")
    line = f"{'POST' if body else 'GET'} {origin}{path} HTTP/{version}"
    asked = "\r\n".join([line, *headers, f"Content-Length: {len(body)}", "", ""]).encode() + body
    reply = told(server.http, asked)
    assert reply.status == status, reply


KEY = "correct-Horse"


@pytest.fixture(scope="module")
def guarded(binary, models, tmp_path_factory):
    """A server that asks for a key."""
    folder = tmp_path_factory.mktemp("guarded")
    (folder / "keys").write_text(KEY + "\n")
    start, started = starter(binary, folder)
    try:
        yield serve(start, models, "--api-keys-file", folder / "keys")
        stop_all(started)
    finally:
        for each in started:
            each.kill()


def failure(server, method, metadata=()):
    """The code and the message that a call with an empty message ends with."""
    with grpc.insecure_channel(server.grpc) as channel, pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary(method)(b"", metadata=metadata, timeout=PATIENCE, wait_for_ready=True)
    return caught.value.code().name, caught.value.details()


UNKNOWN = ["/foo/Bar", "/inference.GRPCInferenceService/Bar", "/grpc.health.v1.Healthy/Check"]


@pytest.mark.parametrize("method", UNKNOWN)
def test_an_unknown_method_asks_for_a_key(guarded, method):
    assert failure(guarded, method)[0] == "UNAUTHENTICATED"
    assert failure(guarded, method, [("x-api-key", "wrong")])[0] == "UNAUTHENTICATED"


def test_an_unknown_method_is_named(guarded):
    code, details = failure(guarded, "/foo/Bar", [("authorization", f"Bearer {KEY}")])
    assert code == "UNIMPLEMENTED"
    assert "foo/Bar" in details


def test_an_unknown_method_is_named_where_there_are_no_keys(server):
    code, details = failure(server, "/foo/Bar")
    assert code == "UNIMPLEMENTED"
    assert "foo/Bar" in details


def test_health_asks_for_no_key(guarded):
    with grpc.insecure_channel(guarded.grpc) as channel:
        asked = health_pb2.HealthCheckRequest()
        reply = health_pb2_grpc.HealthStub(channel).Check(asked, timeout=PATIENCE, wait_for_ready=True)
    assert reply.status == health_pb2.HealthCheckResponse.SERVING


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer wrong"}, {"x-api-key": "wrong"}])
@pytest.mark.parametrize("path", [*BODIES, "/nothing"])
def test_the_refusal_says_how_a_key_is_shown(guarded, path, headers):
    reply = requests.post(guarded.url + path, data=BODIES.get(path, b""), headers=headers, timeout=PATIENCE)
    assert reply.status_code == 401
    assert reply.headers["WWW-Authenticate"].split()[0] == "Bearer"


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/openai/v1/models", "/v1/completions", "/tokenize"])
def test_the_refusal_has_the_form_of_openai(guarded, path):
    reply = requests.post(guarded.url + path, json={}, timeout=PATIENCE)
    assert reply.status_code == 401
    assert reply.headers["WWW-Authenticate"].split()[0] == "Bearer"
    error = reply.json()["error"]
    assert "API key" in error.pop("message")
    assert error == {"type": "AuthenticationError", "param": None, "code": 401}


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/messages/count_tokens"])
def test_the_refusal_has_the_form_of_anthropic(guarded, path):
    reply = requests.post(guarded.url + path, json={}, timeout=PATIENCE)
    assert reply.status_code == 401
    body = reply.json()
    assert "API key" in body["error"].pop("message")
    assert body == {"type": "error", "error": {"type": "authentication_error"}}


# --------------------------------------------------------------------------------------------------- paths and messages

NOT_TEXT = [
    ("GET", "/v2/models/%FF/ready"),
    ("GET", "/v2/models/%FF"),
    ("POST", "/v2/models/%FF/infer"),
    ("GET", "/v1/models/%FF"),
    ("POST", "/v1/models/%FF:predict"),
]


@pytest.mark.parametrize(("method", "path"), NOT_TEXT)
def test_a_name_that_is_no_text(server, method, path):
    reply = told(server.http, request(method, path, body=ROW if method == "POST" else b""))
    assert reply.status == 400, reply
    assert reply.headers["content-type"].startswith("application/json")
    assert json.loads(reply.body)["error"]


@pytest.mark.parametrize("kind", ["system", "cuda"])
def test_shared_memory_is_not_there(server, kind):
    path = f"/v2/{kind}sharedmemory/status"
    reply = requests.get(server.url + path, timeout=PATIENCE)
    assert reply.status_code == 501
    assert path in reply.json()["error"]


@pytest.mark.parametrize("first", [True, False])
def test_one_input_too_many_is_named(server, iris, first):
    more = {"name": "z", "shape": [1, 1], "datatype": "FP32", "data": [1.0]}
    good = json.loads(ROW)["inputs"]
    body = {"inputs": [more, *good] if first else [*good, more]}
    reply = requests.post(server.url + INFER, json=body, timeout=PATIENCE)
    assert reply.status_code == 400
    assert "'z'" in reply.json()["error"]
    reply = requests.post(server.url + INFER, json=iris.request, timeout=PATIENCE)
    assert_same(tensor(reply.json()["outputs"][0]), iris.answer)


@pytest.mark.parametrize("datatype", ["FP16", "BF16"])
def test_halves_in_json_as_triton_says_it(start, models, datatype):
    server = serve(start, models, "--profile", "triton")
    body = json.loads(ROW)
    body["inputs"][0]["datatype"] = datatype
    reply = requests.post(server.url + INFER, json=body, timeout=PATIENCE)
    assert reply.status_code == 400
    assert f"receiving {datatype} data via JSON" in reply.json()["error"]


@pytest.mark.parametrize("form", ["structured", "binary", "structured, its attributes as headers too"])
def test_an_event_needs_no_time(server, iris, form):
    attributes = {"specversion": "1.0", "type": "org.example.request", "source": "tests", "id": "1"}
    data = {"instances": iris.json_rows}
    structured, headers, body = form != "binary", {}, data
    if form != "structured":
        headers = {f"ce-{name}": value for name, value in attributes.items()}
    if structured:
        headers, body = {**headers, "Content-Type": "application/cloudevents+json"}, {**attributes, "data": data}
    reply = requests.post(server.url + PREDICT, data=json.dumps(body), headers=headers, timeout=PATIENCE)
    assert reply.status_code == 200, reply.text
    assert (reply.json()["data"] if structured else reply.json()) == iris.predictions
