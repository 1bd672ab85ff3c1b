"""Where keys are asked for, nothing but health and metrics is told without one, however the request is spelt.

The routes are read out of the server's source and the gRPC methods are asked of the server, so that what is added
later is covered without anyone remembering it here. Requests are written by hand: libraries tidy up paths.
"""

import os
import pathlib
import re
import shutil
import time

import grpc
import pytest
from conftest import starter, stop_all
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from harness import free_ports
from wire import Http1, Http2, block, request

SOURCE = pathlib.Path(__file__).parents[2] / "server" / "src" / "rest" / "mod.rs"
ROUTES = re.findall(r'\.route\(\s*"([^"]+)"', SOURCE.read_text())
OPEN = ("/v2/health/live", "/v2/health/ready", "/metrics", "/health", "/ping")
METHODS = ("GET", "POST", "HEAD", "OPTIONS", "PUT", "DELETE")
KEY, OTHER = "correct-Horse", "battery-Staple"
BEARER = f"Authorization: Bearer {KEY}"
RELOAD_SECONDS = 10

REFLECTION = [f"grpc.reflection.{version}.ServerReflection" for version in ("v1", "v1alpha")]
HEALTH = "grpc.health.v1.Health"
SERVER_METADATA = "/inference.GRPCInferenceService/ServerMetadata"


def filled(route, model="iris"):
    """A path of the route that is about `model`."""
    values = {"model": model, "*model": model, "version": "1", "repository": "default", "*rest": "status"}
    return re.sub(r"\{([^}]+)\}", lambda found: values[found[1]], route)


def serve(start, models, keys, *arguments):
    listen = ["--http-port", "{http}", "--grpc-port", "{grpc}"]
    return start("serve", "--model-repository", models, *listen, "--api-keys-file", keys, *arguments)


@pytest.fixture(scope="module")
def guarded(binary, models, tmp_path_factory):
    """One server that asks for keys; nothing here changes it."""
    folder = tmp_path_factory.mktemp("keys")
    for name in ("iris", "breast-cancer"):
        shutil.copytree(models / name, folder / "models" / name)
    (folder / "keys").write_text(f"# two clients\n{OTHER}\n\n  {KEY}  \n")
    start, started = starter(binary, folder)
    try:
        server = serve(start, folder / "models", folder / "keys", "--metrics-port", (port := free_ports(1)[0]))
        server.metrics = f"127.0.0.1:{port}"
        yield server
        stop_all(started)
    finally:
        for each in started:
            each.kill()


def test_the_routes_were_found():
    """A route table that moved would leave the tests below with nothing to ask."""
    assert len(ROUTES) > 20
    assert {*OPEN, "/v2/models/{model}/infer", "/v1/models/{*model}"} <= set(ROUTES)
    assert len(ROUTES) == SOURCE.read_text().count(".route("), "each route is written as a literal"


# What is shown for a key, and the answer that nothing may differ from.
NO_KEYS = {
    "no key": [],
    "wrong key": ["Authorization: Bearer wrong"],
    "wrong x-api-key": ["x-api-key: wrong"],
    "key in other case": [f"Authorization: Bearer {KEY.upper()}"],
    "x-api-key in other case": [f"x-api-key: {KEY.lower()}"],
    "empty bearer": ["Authorization: Bearer "],
    "bearer alone": ["Authorization: Bearer"],
    "empty x-api-key": ["x-api-key:"],
    "nothing before the key": [f"Authorization: {KEY}"],
    "another scheme": [f"Authorization: Basic {KEY}"],
    "start of the key": [f"Authorization: Bearer {KEY[:-1]}"],
    "more than the key": [f"Authorization: Bearer {KEY}{KEY}"],
    "both keys": [f"Authorization: Bearer {KEY},{OTHER}"],
    "comment of the file": ["x-api-key: # two clients"],
    "key as a cookie": [f"Cookie: Authorization=Bearer {KEY}; x-api-key={KEY}"],
    "two wrong keys": ["Authorization: Bearer wrong", "x-api-key: wrong"],
    "poisoned host": ["Host: 127.0.0.1/v2/health/live?"],
    "host of another": ["Host: example.com/metrics"],
    "forwarded": ["X-Original-URL: /metrics", "X-Rewrite-URL: /v2/health/live", "X-Forwarded-Prefix: /metrics"],
    "method of another": ["X-HTTP-Method-Override: GET"],
}


def encoded(path):
    """Every letter as %xx."""
    return "".join(f"%{ord(each):02x}" if each.isalpha() else each for each in path)


# What is made of a path: none of these is the path of an open route, whatever they would be tidied up to.
SPELLINGS = {
    "double slash": lambda path: "/" + path,
    "dot": lambda path: "/." + path,
    "dots out of an open route": lambda path: "/v2/health/live/../../.." + path,
    "encoded dots": lambda path: "/metrics/%2e%2e" + path,
    "encoded slash": lambda path: "/metrics%2f.." + path,
    "encoded letters": encoded,
    "capitals": lambda path: path.upper(),
    "slash at the end": lambda path: path + "/",
    "parameters": lambda path: path + ";/metrics",
    "null": lambda path: path + "%00/metrics",
    "backslash": lambda path: path.replace("/", "\\/"),
    "no slash": lambda path: path[1:] or "v2",
}

# The path is the route's own, spelt in another way; open routes stay open.
SAME = {
    "absolute form": lambda path: "http://127.0.0.1" + path,
    "query": lambda path: path + "?x=/v2/health/live",
}


def told(client, method, target, headers, opened=False):
    """What is wrong with the answer, if anything: 401 with our message is right, as is refusing to parse it at all."""
    reply = client.ask(request(method, target, headers), head=method == "HEAD")
    if opened:
        return None if reply is not None and reply.status in (200, 405) else (method, target, headers, reply)
    unread = reply is None or (reply.status in (400, 404) and (not reply.body or b"Host header" in reply.body))
    refused = reply is not None and reply.status == 401 and (method == "HEAD" or b"API key" in reply.body)
    return None if unread or refused else (method, target, headers, reply)


@pytest.mark.parametrize("port", ["http", "grpc"])
@pytest.mark.parametrize("case", NO_KEYS)
def test_every_route_asks_for_a_key(guarded, case, port):
    """On both ports: either serves REST."""
    with Http1(getattr(guarded, port)) as client:
        asked = [(route in OPEN, filled(route), method) for route in ROUTES for method in METHODS]
        answers = [told(client, method, path, NO_KEYS[case], opened) for opened, path, method in asked]
    # A host that cannot be one may be refused on open routes too.
    hosts = [each for each in answers if each and each[1] in OPEN and "Host" in str(each[2])]
    wrong = [each for each in answers if each and not (each in hosts and getattr(each[3], "status", 400) == 400)]
    assert not wrong, wrong[:5]


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_no_spelling_of_a_path_goes_around_the_key(guarded, spelling):
    """Not of a closed route, and an open one that is not spelt as it should be is not open."""
    with Http1(guarded.http) as client:
        for route in ROUTES:
            target = SPELLINGS[spelling](filled(route))
            for method in METHODS:
                if target != filled(route):
                    assert not (wrong := told(client, method, target, [])), wrong


@pytest.mark.parametrize("spelling", SAME)
def test_the_form_of_the_target_changes_nothing(guarded, spelling):
    with Http1(guarded.http) as client:
        for route in ROUTES:
            for method in METHODS:
                target = SAME[spelling](filled(route))
                assert not (wrong := told(client, method, target, [], opened=route in OPEN)), wrong


@pytest.mark.parametrize("path", ["/nothing", "/v2/nothing/here", "/v3", "/favicon.ico", "/.well-known/x", "*"])
def test_what_is_not_there_asks_for_a_key(guarded, path):
    """Without a key nobody learns which paths exist."""
    with Http1(guarded.http) as client:
        for method in (*METHODS, "PATCH", "TRACE", "INVENTED"):
            assert not (wrong := told(client, method, path, [])), wrong


def test_connect_asks_for_a_key(guarded):
    with Http1(guarded.http) as client:
        for target in ("127.0.0.1:80", guarded.http, "v2:1"):
            assert not (wrong := told(client, "CONNECT", target, [])), wrong


@pytest.mark.parametrize(
    "headers",
    [
        [BEARER],
        [f"Authorization: bEARER  {KEY}"],
        [f"x-api-key: {KEY}"],
        [f"X-API-KEY: {OTHER}"],
        ["Authorization: Basic d3Jvbmc=", f"x-api-key: {KEY}"],
        ["Authorization: Bearer wrong", f"x-api-key: {KEY}"],
        [BEARER, "x-api-key: wrong"],
    ],
)
def test_a_key_opens_every_route(guarded, headers):
    """About a model that is not there, so that nothing is unloaded on the way."""
    with Http1(guarded.http) as client:
        for route in ROUTES:
            for method in METHODS:
                path = filled(route, "no-such-model")
                reply = client.ask(request(method, path, headers), head=method == "HEAD")
                assert reply is not None, (method, path)
                assert reply.status != 401, (method, path, reply)
        reply = client.ask(request("GET", "/v2/models", headers))
        assert reply.status == 200
        assert b"iris" in reply.body


def test_the_refusal_says_what_is_missing_and_no_more(guarded):
    with Http1(guarded.http) as client:
        reply = client.ask(request("POST", "/v2/models/iris/infer", body=b"{}"))
        assert reply.status == 401
        assert reply.headers["content-type"].startswith("application/json")
        assert b"iris" not in reply.body
        assert client.ask(request("GET", "/v2/health/live")).status == 200, "the connection is still good"


def test_keys_are_not_in_the_log(guarded):
    with Http1(guarded.http) as client:
        for headers in ([BEARER], ["x-api-key: " + KEY.upper()]):
            client.ask(request("GET", "/v2/models/iris?key=1", headers))
    assert KEY.lower() not in guarded.log.read_text(errors="replace").split("\n", 1)[-1].lower()


def test_the_metrics_port_serves_nothing_else(guarded):
    with Http1(guarded.metrics) as client:
        for route in ROUTES:
            for headers in ([], [BEARER], [BEARER, "Content-Type: application/grpc"]):
                reply = client.ask(request("GET", filled(route), headers))
                assert reply is not None
                assert reply.status == (200 if route in OPEN and len(headers) < 2 else 404), (route, headers, reply)


# ----------------------------------------------------------------------------------------------------------------- gRPC


@pytest.fixture
def channel(guarded):
    with grpc.insecure_channel(guarded.grpc) as each:
        yield each


class WithKey(grpc.StreamStreamClientInterceptor):
    """Shows the key with every call of a reflection client, which has no argument for it."""

    def intercept_stream_stream(self, continuation, details, requests):
        details = details._replace(metadata=[("authorization", f"Bearer {KEY}")])
        return continuation(details, requests)


def methods(channel):
    """Every method that the server has, as reflection tells who has a key; health apart."""
    database = ProtoReflectionDescriptorDatabase(grpc.intercept_channel(channel, WithKey()))
    pool, found = DescriptorPool(database), []
    for service in {*database.get_services(), *REFLECTION} - {HEALTH}:
        names = ["ServerReflectionInfo"]
        if service not in REFLECTION:
            names = [method.name for method in pool.FindServiceByName(service).methods]
        found += [f"/{service}/{name}" for name in names]
    return sorted(found)


def code(channel, path, metadata=()):
    """How a call with an empty message ends, and what it brought."""
    call = channel.stream_stream(path)(iter([b""]), metadata=metadata, timeout=20)
    try:
        return grpc.StatusCode.OK, list(call)
    except grpc.RpcError as error:
        return error.code(), []


BAD_METADATA = {
    "no key": [],
    "wrong key": [("authorization", "Bearer wrong")],
    "wrong x-api-key": [("x-api-key", "wrong")],
    "key in other case": [("authorization", f"Bearer {KEY.upper()}")],
    "empty bearer": [("authorization", "Bearer ")],
    "no scheme": [("authorization", KEY)],
    "binary key": [("x-api-key-bin", KEY.encode())],
    "host of another": [("host", "grpc.health.v1.Health")],
}


@pytest.mark.parametrize("case", BAD_METADATA)
def test_every_grpc_method_asks_for_a_key(channel, case):
    found = methods(channel)
    assert len(found) > 15
    assert SERVER_METADATA in found
    invented = ["/inference.GRPCInferenceService/Invented", "/grpc.reflection.v1.ServerReflection/Invented"]
    for path in [*found, *invented]:
        assert code(channel, path, BAD_METADATA[case]) == (grpc.StatusCode.UNAUTHENTICATED, []), path


@pytest.mark.parametrize("metadata", [("authorization", f"Bearer {KEY}"), ("x-api-key", OTHER)])
def test_a_key_opens_every_grpc_method(channel, metadata):
    for path in methods(channel):
        assert code(channel, path, [metadata])[0] is not grpc.StatusCode.UNAUTHENTICATED, path
    assert code(channel, SERVER_METADATA, [metadata])[0] is grpc.StatusCode.OK


def test_grpc_health_needs_no_key(channel):
    health = health_pb2_grpc.HealthStub(channel)
    assert health.Check(health_pb2.HealthCheckRequest(), timeout=10).status == health_pb2.HealthCheckResponse.SERVING
    watching = health.Watch(health_pb2.HealthCheckRequest(), timeout=10)
    assert next(watching).status == health_pb2.HealthCheckResponse.SERVING
    watching.cancel()


def test_reflection_without_a_key_lists_nothing(channel):
    for service in REFLECTION:
        ask = channel.stream_stream(
            f"/{service}/ServerReflectionInfo",
            request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
            response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
        )
        with pytest.raises(grpc.RpcError) as caught:
            list(ask(iter([reflection_pb2.ServerReflectionRequest(list_services="")]), timeout=10))
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED


def asked_over_http2(address, head, body=bytes(5)):
    """A stream's status and data, whatever became of it."""
    with Http2(address) as client:
        client.open(1, head, end=not body)
        if body:
            client.upload(1, body, end=True)
        stream = client.ended(1)
        assert stream.ended or client.gone, "a request was left without an answer"
        return (stream.status, stream.data)


@pytest.mark.parametrize(
    "path",
    [
        "inference.GRPCInferenceService/ServerMetadata",
        "/" + SERVER_METADATA,
        "/." + SERVER_METADATA,
        "/grpc.health.v1.Health/.." + SERVER_METADATA,
        "/grpc.health.v1.Health/../inference.GRPCInferenceService/ServerMetadata",
        "/inference.GRPCInferenceService/%53erverMetadata",
        "/inference%2eGRPCInferenceService/ServerMetadata",
        SERVER_METADATA + "/",
        SERVER_METADATA + "?/grpc.health.v1.Health/Check",
        "http://127.0.0.1" + SERVER_METADATA,
        "",
        "*",
    ],
)
@pytest.mark.parametrize("port", ["http", "grpc"])
def test_no_spelling_of_a_grpc_path_goes_around_the_key(guarded, path, port):
    """No message comes back, whatever the path is taken for."""
    headers = [("content-type", "application/grpc"), ("te", "trailers")]
    for method in ("POST", "GET"):
        status, data = asked_over_http2(getattr(guarded, port), block(method, path, headers))
        assert data == b"", (status, data)


AS_GRPC = ["application/grpc", "application/grpc+json", "application/grpc-web", "application/GRPC"]


@pytest.mark.parametrize("kind", AS_GRPC)
def test_rest_paths_as_grpc_tell_nothing(guarded, kind):
    """What is asked as gRPC is answered by gRPC, which has none of these paths; it must not answer with REST's data."""
    for route in ROUTES:
        if route in OPEN:
            continue
        status, data = asked_over_http2(guarded.http, block("POST", filled(route), [("content-type", kind)]))
        assert status == 401 or data == b"", (route, status, data)
        with Http1(guarded.http) as client:
            for method in METHODS:
                reply = client.ask(request(method, filled(route), [f"Content-Type: {kind}"]), head=method == "HEAD")
                refused = reply is None or reply.status == 401 or reply.body == b""
                assert refused, (method, route, reply)


@pytest.mark.parametrize("kind", ["application/json", "text/plain", "application/x-grpc", ""])
def test_grpc_paths_as_rest_ask_for_a_key(guarded, channel, kind):
    """What is not asked as gRPC is REST, where no such path is open; not even health's."""
    for path in [*methods(channel), f"/{HEALTH}/Check"]:
        status, _ = asked_over_http2(guarded.grpc, block("POST", path, [("content-type", kind)]))
        assert status == 401, path
        with Http1(guarded.grpc) as client:
            assert client.ask(request("POST", path, [f"Content-Type: {kind}"])).status == 401, path


def test_rest_over_http2_asks_for_a_key(guarded):
    """The authority and a second host are as little heard as in HTTP/1.1."""
    for route in ROUTES:
        for authority in ("127.0.0.1", "metrics", "127.0.0.1:80"):
            head = block("GET", filled(route), [("host", "/v2/health/live")], authority)
            status, data = asked_over_http2(guarded.http, head, body=b"")
            assert status == (200 if route in OPEN else 401), (route, authority, status, data)
        target = filled(route)[1:] or "v2"
        status, data = asked_over_http2(guarded.http, block("GET", target), body=b"")
        assert status in (None, 400, 401), (target, status, data)


# ------------------------------------------------------------------------------------------------- the file of the keys


@pytest.fixture
def changing(start, own_repository, tmp_path):
    """A server of the test's own and its file of keys."""
    keys = tmp_path / "keys"
    keys.write_text(KEY + "\n")
    return serve(start, own_repository, keys), keys


def opens(server, key):
    """Is the key taken, by REST and by gRPC alike? Asked again where the file was read between the two."""
    for _ in range(3):
        with Http1(server.http) as client:
            rest = client.ask(request("GET", "/v2/models", [f"Authorization: Bearer {key}"])).status
        with grpc.insecure_channel(server.grpc) as channel:
            rpc = code(channel, SERVER_METADATA, [("authorization", f"Bearer {key}")])[0]
        if (rest, rpc) in ((200, grpc.StatusCode.OK), (401, grpc.StatusCode.UNAUTHENTICATED)):
            return rest == 200
    raise AssertionError(f"REST says {rest}, gRPC says {rpc}")


def becomes(server, key, wanted):
    deadline = time.monotonic() + RELOAD_SECONDS
    while opens(server, key) is not wanted:
        assert time.monotonic() < deadline, f"key is {'still refused' if wanted else 'still taken'}\n{server.tail()}"
        time.sleep(0.1)


def replace(path, text):
    """As Kubernetes changes a mounted secret: a new file in the old one's place."""
    path.with_suffix(".new").write_text(text)
    os.replace(path.with_suffix(".new"), path)


@pytest.mark.parametrize("write", [pathlib.Path.write_text, replace])
def test_new_keys_are_taken_and_old_ones_refused(changing, write):
    server, keys = changing
    assert opens(server, KEY)
    assert not opens(server, OTHER)
    write(keys, OTHER + "\n")
    becomes(server, OTHER, True)
    assert not opens(server, KEY)


def test_an_older_file_is_taken_too(changing):
    """A secret that is rolled back brings a date of the past with it."""
    server, keys = changing
    keys.with_suffix(".old").write_text(OTHER)
    os.utime(keys.with_suffix(".old"), (1_000_000_000, 1_000_000_000))
    os.replace(keys.with_suffix(".old"), keys)
    becomes(server, OTHER, True)
    assert not opens(server, KEY)


def test_a_secret_of_kubernetes_is_followed(start, own_repository, tmp_path):
    """There the file is a link to a link, and what changes is the link in the middle; dates may well be the same."""
    for name, key in (("first", KEY), ("second", OTHER)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "keys").write_text(key)
        os.utime(tmp_path / name / "keys", (1_700_000_000, 1_700_000_000))
    (tmp_path / "..data").symlink_to("first")
    (tmp_path / "keys").symlink_to("..data/keys")
    server = serve(start, own_repository, tmp_path / "keys")
    assert opens(server, KEY)
    (tmp_path / "..new").symlink_to("second")
    os.replace(tmp_path / "..new", tmp_path / "..data")
    becomes(server, OTHER, True)
    assert not opens(server, KEY)


SPOILT = {
    "empty": lambda path: path.write_text(""),
    "blank and comments": lambda path: path.write_text("\n  \n# nobody\n"),
    "not text": lambda path: path.write_bytes(b"\xff\xfe\x00"),
    "gone": lambda path: path.unlink(),
    "a directory": lambda path: (path.unlink(), path.mkdir()),
    "a link to nowhere": lambda path: (path.unlink(), path.symlink_to("nowhere")),
}


@pytest.mark.parametrize("case", SPOILT)
def test_a_file_that_cannot_be_used_changes_nothing(changing, case):
    """Old keys stay, nothing opens, the log says so once, and the next good file is taken."""
    server, keys = changing
    SPOILT[case](keys)
    time.sleep(2.5)
    assert server.log.read_text().count("API keys cannot be read") == 1
    assert [key for key in ("", "# nobody", OTHER, KEY) if opens(server, key)] == [KEY]
    shutil.rmtree(keys) if keys.is_dir() else keys.unlink(missing_ok=True)
    keys.write_text(OTHER)
    becomes(server, OTHER, True)
    assert not opens(server, KEY)


def test_a_file_without_keys_does_not_start(start, own_repository, tmp_path):
    """Rather no server than an open one."""
    (tmp_path / "keys").write_text("# none yet\n")
    for path in (tmp_path / "keys", tmp_path / "nowhere"):
        words = ["--http-port", "{http}", "--grpc-port", "{grpc}", "--api-keys-file", path]
        server = start("serve", "--model-repository", own_repository, *words, ready=False)
        assert server.wait() not in (0, 101)
        assert path.name in server.tail().split("\n", 1)[1]
