"""Connections beyond the bound, connections that files do not suffice for, and clients that are silent under TLS.

Times are there to pass, or are long enough never to, but where it is said.
"""

import contextlib
import datetime
import pathlib
import re
import signal
import ssl
import time

import grpc
import pytest
import requests

# A dependency of kserve.
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from sdk import service_pb2, service_pb2_grpc
from test_drain import eventually
from test_limits import LISTEN, PATIENCE, full, serve, told  # noqa: F401
from wire import GRPC, Http1, Http2, block, closed_after, connect, request

# Kept for as long as a test takes.
KEPT = ["--idle-timeout", "1h", "--header-timeout", "1h"]
LIVE = request("GET", "/v2/health/live")
CHECK = "/grpc.health.v1.Health/Check"


def holder(server, kind=Http1):
    """A client that has a place. Those that asked whether the server is ready may not have left theirs yet."""
    for _ in range(1000):
        with contextlib.suppress(OSError):
            client = kind(server.http)
            client.socket.settimeout(PATIENCE)
            client.socket.sendall(request("GET", "/v2"))
            reply = client.reply()
            if reply is not None and reply.status == 200:
                return client
            client.socket.close()
        time.sleep(0.01)
    raise AssertionError(f"no place, a thousand times\n{server.tail()}")


# ---------------------------------------------------------------------------------------------------------- the reserve


def test_whoever_was_refused_has_the_next_place(start, models):
    server = serve(start, models, "--max-connections", 1, *KEPT)
    with requests.Session() as session:

        def asked():
            return session.get(server.url + "/v2", timeout=PATIENCE)

        with holder(server):
            refused = asked()
            assert refused.status_code == 429
            assert refused.headers["Connection"].lower() == "close"
        eventually(lambda: asked().status_code == 200, "let in", server)


def test_whoever_was_refused_has_the_next_place_over_grpc(start, models):
    server = serve(start, models, "--max-connections", 1, *KEPT)
    with grpc.insecure_channel(server.grpc) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)

        def asked():
            try:
                return stub.ServerReady(service_pb2.ServerReadyRequest(), timeout=PATIENCE).ready
            except grpc.RpcError as error:
                return error.code()

        with holder(server):
            eventually(lambda: asked() is grpc.StatusCode.RESOURCE_EXHAUSTED, "refused", server)
        eventually(lambda: asked() is True, "let in", server)


def test_the_refused_leave_the_reserve_to_probes(full):  # noqa: F811
    """However many they are, and however often they come again."""
    refused = 0
    for _ in range(3):
        clients = [Http1(full.http) for _ in range(40)]
        for each in clients:
            with contextlib.suppress(ConnectionError):
                each.socket.sendall(request("GET", "/v2"))
        for each in clients:
            # Those beyond the reserve are closed without a word.
            if (reply := each.reply()) is not None:
                assert (reply.status, reply.headers["connection"].lower()) == (429, "close")
                assert each.reply() is None
                refused += 1
        assert told(full.http, LIVE).status == 200
        for each in clients:
            each.socket.close()
    assert refused


def test_no_probe_keeps_a_place_for_ever(full):  # noqa: F811
    """Even one that asks for nothing but health, time and again, goes to another connection now and then."""
    said = []
    with Http1(full.http) as client:
        while "close" not in said and len(said) < 500:
            # On a machine that is too busy it may have been idle for too long: then it connects again.
            reply = client.ask(LIVE)
            assert reply is not None
            assert reply.status == 200
            said.append(reply.headers.get("connection", "").lower())
            time.sleep(0.1)
    assert "close" in said


def test_no_check_keeps_a_place_for_ever(full):  # noqa: F811
    """Its message never comes."""
    with Http2(full.grpc) as client:
        assert client.until(lambda: client.window > 65535), "not let in"
        client.open(1, block("POST", CHECK, GRPC), end=False)
        client.until(lambda: client.gone, PATIENCE)
        assert client.gone


# ---------------------------------------------------------------------------------------------------------------- files


def limited(start, binary, models, limit):
    """A server under a limit of open files, as a shell sets it."""
    words = ["serve", "--model-repository", models, "--load-model", "iris", *LISTEN, *KEPT]
    return start("-c", f'ulimit {limit}; exec "$@"', "sh", binary, *words, program="sh")


def test_connections_are_as_few_as_files_allow(start, binary, models):
    """So that whoever comes then is told, and probes are answered."""
    server = limited(start, binary, models, "-n 128")
    told_so = re.compile(r"max-connections is lowered from 4096 to \d+: 128 files")
    eventually(lambda: told_so.search(server.log.read_text(errors="replace")), "told", server)
    with contextlib.ExitStack() as open_ones:
        statuses = []
        for _ in range(150):
            client = open_ones.enter_context(Http1(server.http))
            with contextlib.suppress(ConnectionError):
                client.socket.sendall(request("GET", "/v2"))
            reply = client.reply()
            statuses.append(reply and reply.status)
        assert {200, 429} <= set(statuses) <= {200, 429, None}, statuses
        assert told(server.http, LIVE).status == 200
    eventually(lambda: told(server.http, request("GET", "/v2")).status == 200, "let in", server)


def test_with_hardly_a_connection_it_does_not_start(start, binary, models):
    words = ["serve", "--model-repository", models, *LISTEN]
    server = start("-c", 'ulimit -n 64; exec "$@"', "sh", binary, *words, program="sh", ready=False)
    assert server.wait() == 2
    log = server.log.read_text(errors="replace")
    assert re.search(r"no more than 64 files may be open \(ulimit -n\).* allow \d+ or more", log), log


def test_as_many_files_as_the_system_allows(start, binary, models):
    server = limited(start, binary, models, "-S -n 64")
    limits = pathlib.Path(f"/proc/{server.child.pid}/limits").read_text()
    (line,) = (line for line in limits.splitlines() if line.startswith("Max open files"))
    soft, hard = line.split()[3:5]
    assert soft == hard


# ------------------------------------------------------------------------------------------------------------------ TLS


@pytest.fixture
def secure(start, models, tmp_path):
    """Starts servers over TLS."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now, day = datetime.datetime.now(datetime.timezone.utc), datetime.timedelta(days=1)
    made = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    made = made.serial_number(x509.random_serial_number()).not_valid_before(now - day).not_valid_after(now + day)
    made = made.sign(key, hashes.SHA256())
    pem = serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (tmp_path / "tls.crt").write_bytes(made.public_bytes(pem))
    (tmp_path / "tls.key").write_bytes(private)
    words = ["serve", "--model-repository", models, "--load-model", "iris", *LISTEN]
    words += ["--tls-cert", tmp_path / "tls.crt", "--tls-key", tmp_path / "tls.key"]

    def begin(*flags):
        server = start(*words, *flags, ready=False)
        eventually(lambda: asked(server) == 200, "live", server)
        return server

    return begin


def encrypted(client):
    """The same client, its hands shaken."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    client.socket = context.wrap_socket(client.socket)
    return client


def https1(address):
    return encrypted(Http1(address))


def asked(server):
    """The status of liveness on a new connection; None where there is no answer."""
    with contextlib.suppress(OSError), https1(server.http) as client:
        client.socket.sendall(LIVE)
        reply = client.reply()
        return reply and reply.status
    return None


def test_silent_handshakes_are_ended(secure):
    """This is about time: the default would be ten seconds."""
    server = secure("--handshake-timeout", "1s", *KEPT)
    for words in (b"", b"\x16\x03\x01\x02\x00\x01"):
        silent = connect(server.http)
        silent.sendall(words)
        took = closed_after(silent, 9)
        assert took is not None, "still open"
        assert took > 0.5, "at once"
        silent.close()


def test_silent_handshakes_leave_the_reserve_to_probes(secure):
    server = secure("--max-connections", 1, "--handshake-timeout", "1h", *KEPT)
    with holder(server, https1):
        silent = [connect(server.http) for _ in range(40)]
        eventually(lambda: asked(server) == 200, "live", server)
        for each in silent:
            each.close()


def test_a_handshake_that_is_under_way_is_finished(secure):
    """Across the moment at which the listener closes, as a request is that is under way then."""
    for _ in range(3):
        server = secure("--drain-delay", "1s")
        begun = Http1(server.http)
        server.child.send_signal(signal.SIGTERM)
        with contextlib.suppress(ConnectionError):
            while True:
                connect(server.http).close()
                time.sleep(0.01)
        reply = None
        # It is given a second, for which a machine may be too busy.
        with contextlib.suppress(OSError), encrypted(begun) as client:
            client.socket.sendall(LIVE)
            reply = client.reply()
        assert server.wait(PATIENCE) == 0
        if reply is not None:
            break
    assert reply is not None
    assert reply.status == 200
