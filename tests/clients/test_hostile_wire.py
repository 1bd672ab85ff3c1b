"""Connections that mean harm: floods of HTTP/2 frames, clients that take for ever, framing that misleads.

Traffic is to 127.0.0.1 and bounded in count and time. Meanwhile another client must be answered, and the server's
memory must stay within what its limits allow.
"""

import json
import threading
import time

import pytest
import wire
from wire import (
    GRPC,
    INFER,
    MIB,
    MODEL_INFER,
    ROW,
    Http1,
    Http2,
    block,
    closed_after,
    connect,
    frame,
    pour,
    request,
    unharmed,
    well,
)

TIMEOUTS = ["--header-timeout", "1s", "--body-timeout", "1s", "--idle-timeout", "1s", "--request-timeout", "4s"]
# What "closed after a second" may take on a busy machine: connections are looked at once a second.
PATIENCE = 8


@pytest.fixture(scope="module")
def servers(binary, models, tmp_path_factory):
    with wire.attacked(binary, models, tmp_path_factory.mktemp("wire")) as start:
        yield start


@pytest.fixture(scope="module")
def target(servers):
    """The server that is attacked: short timeouts, small limits."""
    server = servers(*TIMEOUTS)
    well(server)
    return server


@pytest.fixture(scope="module", autouse=True)
def stalled(servers):
    """Readers that never read, who begin before all else: how long they may is not a flag, and it is a minute."""
    server, begun = servers(*TIMEOUTS), time.monotonic()
    wire.forget_peak(server.child.pid)
    before = wire.memory(server.child.pid, "VmRSS")
    first = connect(server.http, receive_buffer=4096)
    pour(first, request("GET", "/metrics") * 20_000, seconds=2)
    second = Http2(server.http, {wire.INITIAL_WINDOW_SIZE: 0}, receive_buffer=4096)
    for number in range(1, 200, 2):
        second.open(number, block("GET", "/metrics"))
    ended, stop = {}, threading.Event()

    def watch():
        # The second answers pings, as whoever means to stay would.
        while not stop.is_set() and not second.gone:
            second.receive(0.5)
        ended["HTTP/2"] = time.monotonic() - begun

    watching = threading.Thread(target=watch)
    watching.start()
    yield server, begun, before, first, ended
    stop.set()
    watching.join()
    first.close()
    second.socket.close()


# -------------------------------------------------------------------------------------------------------- HTTP/2 floods

COUNT = 50_000


def reset_flood():
    """CVE-2023-44487: open, take back, open."""
    head = block("POST", INFER)
    for number in range(1, 2 * COUNT, 2):
        yield frame(wire.HEADERS, wire.END_HEADERS, number, head) + frame(wire.RST_STREAM, 0, number, bytes(4))


def provoked_reset_flood():
    """CVE-2025-8671: the server is made to take back what the client opened, by a window update of nothing."""
    head = block("POST", INFER)
    for number in range(1, 2 * COUNT, 2):
        yield frame(wire.HEADERS, wire.END_HEADERS, number, head) + frame(wire.WINDOW_UPDATE, 0, number, bytes(4))


def continuation_flood():
    """A header block without an end."""
    yield frame(wire.HEADERS, 0, 1, block("GET", "/v2"))
    piece = frame(wire.CONTINUATION, 0, 1, wire.literal("x-a", "b" * 8000))
    for _ in range(COUNT // 10):
        yield piece


def empty_continuation_flood():
    """Without an end and without bytes that a limit could count."""
    yield frame(wire.HEADERS, 0, 1, block("GET", "/v2"))
    for _ in range(COUNT):
        yield frame(wire.CONTINUATION, 0, 1)


def list_bomb():
    """A large header is put into the table once and named by one byte ever after."""
    entry = wire.literal("x-a", "b" * 3000, indexed=True)
    yield frame(wire.HEADERS, wire.END_STREAM | wire.END_HEADERS, 1, block("GET", "/v2") + entry)
    for number in range(3, 400, 2):
        named = block("GET", "/v2") + b"\xbe" * 16_000
        yield frame(wire.HEADERS, wire.END_STREAM | wire.END_HEADERS, number, named)


def settings_flood():
    for value in range(COUNT):
        yield wire.settings({wire.INITIAL_WINDOW_SIZE: value})


def table_flood():
    """The table is made small and large, which the server must acknowledge each time."""
    for value in range(COUNT):
        yield wire.settings({1: value % 2 * 4096})


def priority_flood():
    for number in range(1, 2 * COUNT, 2):
        yield frame(2, 0, number, b"\0\0\0\0\x10")


def stream_flood():
    """As many requests as there is room for, none of which has a body yet, and more."""
    head = block("POST", INFER)
    for number in range(1, 20_000, 2):
        yield frame(wire.HEADERS, wire.END_HEADERS, number, head)


FLOODS = {
    "resets": reset_flood,
    "provoked resets": provoked_reset_flood,
    "continuation": continuation_flood,
    "empty continuation": empty_continuation_flood,
    "list of headers": list_bomb,
    "settings": settings_flood,
    "table size": table_flood,
    "pings": lambda: (frame(wire.PING, 0, 0, n.to_bytes(8, "big")) for n in range(COUNT)),
    "window updates": lambda: (frame(wire.WINDOW_UPDATE, 0, 0, b"\0\0\0\1") for _ in range(COUNT)),
    "priorities": priority_flood,
    "unknown frames": lambda: (frame(200, 255, 1, b"x" * 100) for _ in range(COUNT)),
    "streams": stream_flood,
}


@pytest.mark.parametrize("port", ["http", "grpc"])
@pytest.mark.parametrize("flood", FLOODS)
def test_flood(target, flood, port):
    """By one who never reads an answer: the connection is closed or held at bay, and nobody else notices."""
    frames = list(FLOODS[flood]())
    with unharmed(target, 48 * MIB), Http2(getattr(target, port)) as client:
        for at in range(0, len(frames), 2000):
            if not pour(client.socket, b"".join(frames[at : at + 2000]), seconds=1):
                break
    well(target)


@pytest.mark.parametrize("flood", ["continuation", "empty continuation", "resets", "list of headers"])
def test_flood_ends_the_connection_or_the_stream(target, flood):
    """None of it is ever answered as a request that was meant."""
    with Http2(target.http) as client:
        for each in FLOODS[flood]():
            client.send(each)
            if client.gone:
                break
        client.until(lambda: client.gone, 3)
        statuses = {number: each.status for number, each in client.streams.items() if number > 1 and each.headers}
        assert 200 not in statuses.values()
        assert client.gone or all(each in (431, 400) for each in statuses.values()), statuses


# ------------------------------------------------------------------------------------------------------ taking for ever


def drip(each, data, pause=0.2, seconds=PATIENCE):
    """Sends a byte at a time until the other side answers or closes; what it said, None if it said nothing by then."""
    deadline, answer = time.monotonic() + seconds, b""
    for at in range(len(data)):
        each.settimeout(pause)
        try:
            each.sendall(data[at : at + 1])
            answer = each.recv(1 << 16)
            return answer
        except TimeoutError:
            if time.monotonic() > deadline:
                return None
        except OSError:
            return b""
    return None


HEAD = request("GET", "/v2/health/live", ["X-Long: " + "x" * 1000])
BEGUN = frame(wire.HEADERS, 0, 1, block("GET", "/v2"))

SILENT = {
    "nothing": b"",
    "half a request line": b"GET /v2/hea",
    "half a head": HEAD[:60],
    "empty lines": b"\r\n\r\n",
    "half a preface": wire.PREFACE[:10],
    "a preface": wire.PREFACE,
    "a preface and settings": wire.PREFACE + wire.settings(),
    "half a frame": wire.PREFACE + wire.settings() + BEGUN[:20],
    "half a header block": wire.PREFACE + wire.settings() + BEGUN,
}


@pytest.mark.parametrize("port", ["http", "grpc"])
def test_a_head_that_does_not_come(target, port):
    """Many connections that begin and say no more are all closed by --header-timeout."""
    with unharmed(target, 48 * MIB):
        opened = [(case, connect(getattr(target, port))) for case in SILENT for _ in range(20)]
        for case, each in opened:
            pour(each, SILENT[case])
        left = time.monotonic() + PATIENCE
        open_still = [case for case, each in opened if closed_after(each, max(left - time.monotonic(), 0.01)) is None]
        for _, each in opened:
            each.close()
    assert not open_still, sorted(set(open_still))


DRIPPED = {
    "a request line": HEAD,
    "a header": HEAD[60:],
    "empty lines": b"\r\n" * 1000,
    "a preface": wire.PREFACE + wire.settings() * 100,
    "a header block": BEGUN + frame(wire.CONTINUATION, 0, 1, wire.literal("x", "y" * 1000)),
}
BEFORE = {"a header": HEAD[:60], "a header block": wire.PREFACE + wire.settings()}


@pytest.mark.parametrize("case", DRIPPED)
def test_a_head_that_drips(target, case):
    """A byte now and then does not buy more time."""
    each = connect(target.http)
    pour(each, BEFORE.get(case, b""))
    if case == "a header block":
        each.recv(1 << 16)
        time.sleep(0.2)
        each.setblocking(False)
        try:
            each.recv(1 << 16)
        except OSError:
            pass
    answer = drip(each, DRIPPED[case])
    each.close()
    assert answer is not None, "the connection is open still"
    assert b" 200 " not in answer


PROMISED = {
    "length": request("POST", INFER, [f"Content-Length: {len(ROW) + 1000}"]),
    "chunks": request("POST", INFER, ["Transfer-Encoding: chunked"]),
    "chunk": request("POST", INFER, ["Transfer-Encoding: chunked"], b"1000\r\n{"),
}


@pytest.mark.parametrize("case", PROMISED)
def test_a_body_that_stops(target, case):
    """Its client is told, and then closed."""
    each = connect(target.http)
    pour(each, PROMISED[case])
    assert closed_after(each, PATIENCE) is not None
    each.close()


@pytest.mark.parametrize("case", ["length", "chunk"])
def test_a_body_that_drips(target, case):
    """No pause is long enough for --body-timeout, so --request-timeout is what ends it."""
    each = connect(target.http)
    pour(each, PROMISED[case])
    answer = drip(each, b" " * 1000)
    each.close()
    assert answer is not None, "a request outlives --request-timeout as long as a byte comes now and then"
    assert b" 200 " not in answer


BODIES = {
    "nothing": b"",
    "half a prefix": b"\0\0",
    "a prefix": b"\0" + (MIB).to_bytes(4, "big"),
    "half a message": b"\0" + (MIB).to_bytes(4, "big") + bytes(1000),
}


@pytest.mark.parametrize("case", BODIES)
def test_a_message_that_stops(target, case):
    """gRPC has the same timeouts as REST: the call ends, though the client answers pings."""
    with Http2(target.grpc) as client:
        client.open(1, block("POST", MODEL_INFER, GRPC), end=False)
        client.upload(1, BODIES[case])
        assert client.ended(1, PATIENCE).ended or client.gone, "the call waits for its message still"


def test_a_message_that_drips(target):
    with Http2(target.grpc) as client:
        client.open(1, block("POST", MODEL_INFER, GRPC), end=False)
        client.upload(1, BODIES["a prefix"])
        deadline = time.monotonic() + PATIENCE
        while not client.stream(1).ended and not client.gone and time.monotonic() < deadline:
            client.upload(1, b" ")
            client.receive(0.2)
        assert client.stream(1).ended or client.gone, "the call outlives --request-timeout"


def test_a_rest_body_over_http2_that_stops(target):
    with Http2(target.http) as client:
        client.open(1, block("POST", INFER), end=False)
        assert client.ended(1, PATIENCE).status == 400


def test_idle_connections(target):
    """They end by --idle-timeout, also where many requests came before."""
    first = Http1(target.http)
    assert first.ask(request("GET", "/v2")).status == 200
    second = Http2(target.http)
    second.open(1, block("GET", "/v2"))
    assert second.ended(1).status == 200
    assert closed_after(first.socket, PATIENCE) is not None
    assert second.until(lambda: second.gone, PATIENCE)
    first.socket.close()
    second.socket.close()


def test_a_used_connection_that_drips_its_next_head(target):
    each = connect(target.http)
    pour(each, request("GET", "/v2/health/live"))
    assert b" 200 " in each.recv(1 << 16)
    assert drip(each, HEAD) is not None
    each.close()


# --------------------------------------------------------------------------------------------- heads that are too large

LARGE = {
    "one header": request("GET", "/v2", ["X-Large: " + "x" * 200_000]),
    "many headers": request("GET", "/v2", [f"X-{n}: 1" for n in range(10_000)]),
    "a name": request("GET", "/v2", ["X" * 200_000 + ": 1"]),
    "a path": request("GET", "/v2/" + "x" * 200_000),
    "a query": request("GET", "/v2?" + "x" * 200_000),
    "a method": request("G" * 200_000, "/v2"),
    "a chunk's extension": request(
        "POST", INFER, ["Transfer-Encoding: chunked"], b"1;" + b"x" * 200_000 + b"\r\n \r\n0\r\n\r\n"
    ),
    "trailers": request(
        "POST", INFER, ["Transfer-Encoding: chunked"], b"0\r\n" + b"x: %s\r\n" % (b"y" * 200_000) + b"\r\n"
    ),
}


@pytest.mark.parametrize("case", LARGE)
def test_a_large_head(target, case):
    """431 or its like, or no answer."""
    with unharmed(target, 48 * MIB), Http1(target.http) as client:
        pour(client.socket, LARGE[case])
        reply = client.reply()
        assert reply is None or reply.status in (400, 414, 431), reply
    well(target)


def test_a_large_head_over_http2(target):
    with unharmed(target, 48 * MIB), Http2(target.http) as client:
        client.open(1, block("GET", "/v2", [(f"x-{n}", "y" * 3000) for n in range(10)]))
        client.open(3, block("GET", "/v2"))
        assert client.ended(1).status in (None, 431)
        assert client.gone or client.ended(3).status == 200


# --------------------------------------------------------------------------------------------------- one request or two

SECOND = request("GET", "/v2/models/iris")


def post(headers, body):
    return request("POST", INFER, headers, body)


CHUNKED = b"%x\r\n%s\r\n0\r\n\r\n" % (len(ROW), ROW)
ONE = f"Content-Length: {len(ROW)}"
BOTH = f"Content-Length: {len(ROW) + len(SECOND)}"

# Each may be taken for one request or for two, and the proxy in front may take it for the other.
TWOFOLD = {
    "both, chunked last": post([BOTH, "Transfer-Encoding: chunked"], CHUNKED + SECOND),
    "both, length last": post(["Transfer-Encoding: chunked", "Content-Length: 5"], CHUNKED + SECOND),
    "two lengths": post([ONE, BOTH], ROW + SECOND),
    "two lengths, the longer first": post([BOTH, ONE], ROW + SECOND),
    "two lengths in one": post([f"{ONE}, {len(ROW) + len(SECOND)}"], ROW + SECOND),
    "folded length": post(["Content-Length:", f" {len(ROW)}"], ROW + SECOND),
    "folded header": post(["X-Folded: 1", f" {BOTH}", ONE], ROW + SECOND),
    "folded encoding": post([ONE, "Transfer-Encoding:", " chunked"], ROW + SECOND),
    "space before the colon": post([f"Content-Length : {len(ROW)}"], ROW + SECOND),
    "space before the name": post([f" Content-Length: {len(ROW)}"], ROW + SECOND),
    "length with a sign": post([f"Content-Length: +{len(ROW)}"], ROW + SECOND),
    "length in hexadecimal": post([f"Content-Length: 0x{len(ROW):x}"], ROW + SECOND),
    "length that overflows": post([f"Content-Length: {2**64 + len(ROW)}"], ROW + SECOND),
    "negative length": post(["Content-Length: -1"], ROW + SECOND),
    "chunked with a tail": post(["Transfer-Encoding: chunkedx"], CHUNKED + SECOND),
    "chunked, but not last": post(["Transfer-Encoding: chunked, identity"], CHUNKED + SECOND),
    "chunked after a tab": post(["Transfer-Encoding: \x0bchunked", BOTH], CHUNKED + SECOND),
    "identity": post(["Transfer-Encoding: identity", ONE], ROW + SECOND),
    "chunked in HTTP/1.0": post(["Transfer-Encoding: chunked"], CHUNKED + SECOND).replace(b"HTTP/1.1", b"HTTP/1.0", 1),
    "bare line feeds": post([ONE, f"X: 1\n{BOTH}"], ROW + SECOND),
    "null in a header": post([ONE, "X: \0"], ROW + SECOND),
    "chunk ends early": post(["Transfer-Encoding: chunked"], b"5\r\n" + ROW + b"\r\n0\r\n\r\n" + SECOND),
    "chunk size and a space": post(["Transfer-Encoding: chunked"], CHUNKED.replace(b"\r\n", b"\x0b\r\n", 1) + SECOND),
    "line feed ends a chunk": post(["Transfer-Encoding: chunked"], CHUNKED.replace(b"0\r\n\r\n", b"0\n\n") + SECOND),
    "extension with a line feed": post(["Transfer-Encoding: chunked"], b"1;\n" + CHUNKED + SECOND),
}


@pytest.mark.parametrize("case", TWOFOLD)
def test_one_request_is_not_answered_as_two(target, case):
    """It is refused, or answered once and then the connection ends; the second is never heard."""
    each = connect(target.http)
    pour(each, TWOFOLD[case])
    heard, deadline = b"", time.monotonic() + PATIENCE
    try:
        while piece := each.recv(1 << 16):
            heard += piece
            each.settimeout(max(deadline - time.monotonic(), 0.01))
    except TimeoutError:
        raise AssertionError(f"open still after {heard!r}") from None
    except OSError:
        pass
    each.close()
    assert heard.count(b"HTTP/1.") <= 1, heard
    assert b"platform" not in heard


def test_two_requests_are_answered_as_two(target):
    """What the above would look like: the same second request, where nothing is ambiguous."""
    with Http1(target.http) as client:
        pour(client.socket, post([ONE], ROW) + SECOND)
        assert client.reply().status == 200
        assert b"platform" in client.reply().body


# --------------------------------------------------------------------------------------------------------- at long last


@pytest.mark.parametrize("version", ["HTTP/1.1", "HTTP/2"])
def test_readers_that_never_read(stalled, version):
    """They are closed after a minute, and cost little until then."""
    server, begun, before, first, ended = stalled
    assert server.child.poll() is None
    left = begun + 66 - time.monotonic()
    if version == "HTTP/2":
        while version not in ended and time.monotonic() < begun + 66:
            time.sleep(0.2)
        assert version in ended, "the connection is open still"
    else:
        # Only what lies in buffers comes, and then the end; what was not taken in time is not sent any more.
        time.sleep(max(left, 0))
        assert closed_after(first, 3) is not None, "the connection is open still"
    well(server)
    grown = wire.memory(server.child.pid) - before
    assert grown < 64 * MIB, f"memory grew by {grown >> 20} MiB"
