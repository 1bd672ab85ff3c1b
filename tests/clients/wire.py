"""HTTP/1.1 and HTTP/2 written by hand, for what no client library would send, and what it costs the server.

Libraries tidy up paths, refuse broken framing and answer the server's settings. Here bytes go out as they are given.
"""

import contextlib
import json
import pathlib
import socket
import threading
import time
from dataclasses import dataclass, field

from conftest import starter, stop_all

SECONDS = 10
MIB = 1 << 20


def connect(address, receive_buffer=None):
    """A socket to host:port; a small `receive_buffer` keeps what is not read from vanishing into the kernel."""
    host, port = address.split(":")
    each = socket.socket()
    if receive_buffer:
        each.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    each.settimeout(SECONDS)
    each.connect((host, int(port)))
    return each


def closed_after(each, seconds):
    """How long it took the other side to close, its last words unread; None if it had not after `seconds`."""
    before = time.monotonic()
    try:
        while (left := before + seconds - time.monotonic()) > 0:
            each.settimeout(left)
            if not each.recv(1 << 16):
                return time.monotonic() - before
    except TimeoutError:
        return None
    except OSError:
        return time.monotonic() - before
    return None


def pour(each, data, seconds=SECONDS):
    """Sends what the other side takes within `seconds`; False if it did not take all."""
    each.settimeout(seconds)
    try:
        each.sendall(data)
    except OSError:
        return False
    return True


# ------------------------------------------------------------------------------------------------------------- HTTP/1.1


@dataclass
class Reply:
    status: int
    headers: dict
    body: bytes


class Http1:
    """One connection; requests and answers take turns."""

    def __init__(self, address, receive_buffer=None):
        self.address = address
        self.socket = connect(address, receive_buffer)
        self.read = b""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()

    def _more(self):
        piece = self.socket.recv(1 << 16)
        if not piece:
            raise EOFError
        self.read += piece

    def _line(self):
        while b"\r\n" not in self.read:
            self._more()
        line, self.read = self.read.split(b"\r\n", 1)
        return line

    def _bytes(self, count):
        while len(self.read) < count:
            self._more()
        data, self.read = self.read[:count], self.read[count:]
        return data

    def _chunks(self):
        body = b""
        while size := int(self._line().split(b";")[0], 16):
            body += self._bytes(size)
            self._bytes(2)
        while self._line():
            pass
        return body

    def reply(self, head=False):
        """The next answer; None if the connection ends instead. `head`: it has no body, whatever its length says."""
        try:
            status = int(self._line().split(b" ")[1])
            headers = {}
            while line := self._line():
                name, value = line.split(b":", 1)
                headers[name.decode().lower()] = value.strip().decode()
            if status == 100:
                return self.reply(head)
            if head or status in (204, 304):
                body = b""
            elif headers.get("transfer-encoding") == "chunked":
                body = self._chunks()
            else:
                body = self._bytes(int(headers.get("content-length", 0)))
        except (EOFError, ConnectionError):
            return None
        return Reply(status, headers, body)

    def ask(self, request, head=False):
        """Sends bytes and reads the answer; reconnects first where the server closed after the last one."""
        for _ in range(2):
            try:
                self.socket.sendall(request)
                reply = self.reply(head)
            except ConnectionError:
                reply = None
            if reply is not None:
                return reply
            self.socket.close()
            self.socket, self.read = connect(self.address), b""
        return None


def request(method, target, headers=(), body=b""):
    """The bytes of a request. `headers` are whole lines; a body gets its length unless they say how it is framed."""
    lines = [f"{method} {target} HTTP/1.1", *headers]
    names = {line.split(":", 1)[0].lower() for line in headers}
    if "host" not in names:
        lines.insert(1, "Host: 127.0.0.1")
    if not names & {"content-length", "transfer-encoding"} and (body or method in ("POST", "PUT")):
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


# --------------------------------------------------------------------------------------------------------------- HTTP/2

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9
END_STREAM = ACK = 1
END_HEADERS = 4
INITIAL_WINDOW_SIZE = 4


def frame(kind, flags=0, stream=0, payload=b""):
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def settings(values=()):
    pairs = (key.to_bytes(2, "big") + value.to_bytes(4, "big") for key, value in dict(values).items())
    return frame(SETTINGS, payload=b"".join(pairs))


def number(value, bits, first):
    """HPACK's integers."""
    most = (1 << bits) - 1
    if value < most:
        return bytes([first | value])
    out, value = bytearray([first | most]), value - most
    while value >= 128:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes(out) + bytes([value])


def literal(name, value, indexed=False):
    """A header in HPACK, spelt out; `indexed` puts it into the other side's table."""
    text = b"".join(number(len(each), 7, 0) + each for each in (name.encode(), value.encode()))
    return (b"\x40" if indexed else b"\x00") + text


def block(method, path, headers=(), authority="127.0.0.1"):
    """A request's header block."""
    pseudo = [(":method", method), (":scheme", "http"), (":path", path), (":authority", authority)]
    return b"".join(literal(name, value) for name, value in [*pseudo, *headers])


# Huffman codes of the digits, which is how a status comes that the static table lacks.
_DIGITS = {f"{n:05b}": str(n) for n in range(3)} | {f"{22 + n:06b}": str(n) for n in range(3, 10)}
_STATIC = {8: 200, 9: 204, 10: 206, 11: 304, 12: 400, 13: 404, 14: 500}


def status(headers):
    """`:status`, which comes first in an answer's header block."""
    if headers[0] & 0x80:
        return _STATIC[headers[0] & 127]
    assert headers[0] & 15 in range(8, 15), headers.hex()
    text = headers[2 : 2 + (headers[1] & 127)]
    if not headers[1] & 0x80:
        return int(text)
    bits, digits, code = "".join(f"{byte:08b}" for byte in text), "", ""
    for bit in bits:
        code += bit
        if code in _DIGITS:
            digits, code = digits + _DIGITS[code], ""
    return int(digits[:3])


@dataclass
class Stream:
    """What came on a stream."""

    headers: list = field(default_factory=list)
    data: bytes = b""
    ended: bool = False
    reset: bool = False
    credit: int = 65535

    @property
    def status(self):
        return status(self.headers[0]) if self.headers else None


class Http2:
    """A connection in the clear, with its windows kept as the server grants them."""

    def __init__(self, address, values=(), receive_buffer=None):
        self.socket = connect(address, receive_buffer)
        self.read = b""
        self.streams = {}
        self.credit = self.window = 65535
        self.gone = False
        self.send(PREFACE + settings(values))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()

    def send(self, data):
        if not self.gone and not pour(self.socket, data):
            self.gone = True

    def stream(self, number):
        return self.streams.setdefault(number, Stream(credit=self.window))

    def open(self, number, head, end=True):
        self.stream(number)
        self.send(frame(HEADERS, END_HEADERS | (END_STREAM if end else 0), number, head))

    def _take(self, kind, flags, number, payload):
        stream = self.stream(number) if number else None
        if kind == SETTINGS and not flags & ACK:
            for at in range(0, len(payload), 6):
                value = int.from_bytes(payload[at + 2 : at + 6], "big")
                if int.from_bytes(payload[at : at + 2], "big") == INITIAL_WINDOW_SIZE:
                    for each in self.streams.values():
                        each.credit += value - self.window
                    self.window = value
            self.send(frame(SETTINGS, ACK))
        elif kind == PING and not flags & ACK:
            self.send(frame(PING, ACK, 0, payload))
        elif kind == WINDOW_UPDATE and stream:
            stream.credit += int.from_bytes(payload, "big")
        elif kind == WINDOW_UPDATE:
            self.credit += int.from_bytes(payload, "big")
        elif kind == GOAWAY:
            self.gone = True
        elif kind == HEADERS:
            stream.headers.append(payload)
            stream.ended |= bool(flags & END_STREAM)
        elif kind == DATA:
            stream.data += payload
            stream.ended |= bool(flags & END_STREAM)
        elif kind == RST_STREAM:
            stream.reset = stream.ended = True

    def receive(self, seconds):
        """What comes next; False if nothing does within `seconds`. `gone` says whether the server has left."""
        self.socket.settimeout(max(seconds, 0.001))
        try:
            piece = self.socket.recv(1 << 16)
        except TimeoutError:
            return False
        except OSError:
            piece = b""
        if not piece:
            self.gone = True
            return False
        self.read += piece
        while len(self.read) >= 9 and len(self.read) >= (end := 9 + int.from_bytes(self.read[:3], "big")):
            kind, flags, number = self.read[3], self.read[4], int.from_bytes(self.read[5:9], "big") & 0x7FFFFFFF
            payload, self.read = self.read[9:end], self.read[end:]
            self._take(kind, flags, number, payload)
        return True

    def until(self, condition, seconds=SECONDS):
        """Reads until `condition()` or the server leaves; whether it came true."""
        deadline = time.monotonic() + seconds
        while not condition() and not self.gone and (left := deadline - time.monotonic()) > 0:
            self.receive(left)
        return bool(condition())

    def ended(self, number, seconds=SECONDS):
        """The stream once it has ended, or as it is when the server leaves or time is up."""
        self.until(lambda: self.stream(number).ended, seconds)
        return self.stream(number)

    def upload(self, number, data, end=False, seconds=SECONDS):
        """Sends a body as the windows allow; False if the server ended the stream or left first."""
        stream, at, deadline = self.stream(number), 0, time.monotonic() + seconds
        while at < len(data) and not stream.ended and not self.gone and time.monotonic() < deadline:
            count = min(16384, len(data) - at, stream.credit, self.credit)
            if count <= 0:
                self.receive(deadline - time.monotonic())
                continue
            last = END_STREAM if end and at + count == len(data) else 0
            self.send(frame(DATA, last, number, data[at : at + count]))
            at, stream.credit, self.credit = at + count, stream.credit - count, self.credit - count
        return at == len(data)


# -------------------------------------------------------------------------------------------------------- what it costs


def memory(pid, what="VmHWM"):
    """Bytes resident, at most since the last `forget_peak` or with `VmRSS` now."""
    for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{what}:"):
            return int(line.split()[1]) << 10
    raise AssertionError(f"{what} of {pid} is not known")


def forget_peak(pid):
    pathlib.Path(f"/proc/{pid}/clear_refs").write_text("5")


def processor_seconds(pid):
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / 100


@contextlib.contextmanager
def unharmed(server, growth, answer=3.0):
    """Meanwhile other clients are answered within `answer` seconds, and memory grows by no more than `growth` bytes."""
    pid = server.child.pid
    forget_peak(pid)
    before = memory(pid, "VmRSS")
    slowest, wrong, stop = [0.0], [], threading.Event()

    def ask():
        first = True
        while first or not stop.is_set():
            first, start = False, time.monotonic()
            try:
                with Http1(server.http) as client:
                    reply = client.ask(request("GET", "/v2/health/live"))
                if reply is None or reply.status != 200:
                    wrong.append(reply)
            except OSError as error:
                wrong.append(error)
            slowest[0] = max(slowest[0], time.monotonic() - start)
            stop.wait(0.02)

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        yield
    finally:
        stop.set()
        asking.join()
    assert server.child.poll() is None, server.tail()
    assert not wrong, f"another client was told {wrong[:3]}"
    assert slowest[0] < answer, f"another client waited {slowest[0]:.1f} s"
    grown = memory(pid) - before
    assert grown < growth, f"memory grew by {grown >> 20} MiB"


# ---------------------------------------------------------------------------------------------- the server under attack

LIMIT = 24 * MIB
BUDGET = 48 * MIB
INFER = "/v2/models/iris/infer"
MODEL_INFER = "/inference.GRPCInferenceService/ModelInfer"
GRPC = [("content-type", "application/grpc"), ("te", "trailers")]
ROW = b'{"inputs":[{"name":"input-0","shape":[1,4],"datatype":"FP32","data":[5.1,3.5,1.4,0.2]}]}'


@contextlib.contextmanager
def attacked(binary, models, folder):
    """Starts servers with small limits, and expects each of them to end well after all that is done to it."""
    start, started = starter(binary, folder)
    limits = ["--max-body-size", LIMIT, "--inflight-bytes", BUDGET, "--drain-timeout", "2s", "--load-model", "iris"]
    words = ["serve", "--model-repository", models, "--http-port", "{http}", "--grpc-port", "{grpc}", *limits]
    try:
        yield lambda *more: start(*words, *more)
        stop_all(started)
    finally:
        for each in started:
            each.kill()


def well(server):
    """It still does what it is for."""
    with Http1(server.http) as client:
        reply = client.ask(request("POST", INFER, body=ROW))
        assert reply is not None
        assert reply.status == 200, reply
        assert json.loads(reply.body)["outputs"]
