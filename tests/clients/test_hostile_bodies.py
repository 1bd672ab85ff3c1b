"""Bodies that mean harm: too much, packed too well, nested too deep, too many digits.

Traffic is to 127.0.0.1 and bounded in count and time. Meanwhile another client must be answered, and the server's
memory must stay within what its limits allow.
"""

import gzip
import json
import re
import threading
import zlib

import grpc
import pytest
import wire
from sdk import service_pb2, service_pb2_grpc
from test_drain import eventually
from wire import (
    BUDGET,
    GRPC,
    INFER,
    LIMIT,
    MIB,
    MODEL_INFER,
    ROW,
    Http1,
    Http2,
    block,
    frame,
    pour,
    request,
    unharmed,
    well,
)

# A body may double while it grows, and again while it is unpacked.
ROOM = 5 * LIMIT
# The same for all bodies that are held at a time; ten times the budget is sent.
HELD = 4 * BUDGET


@pytest.fixture(scope="module")
def servers(binary, models, tmp_path_factory):
    with wire.attacked(binary, models, tmp_path_factory.mktemp("bodies")) as start:
        yield start


@pytest.fixture(scope="module")
def target(servers):
    """The server that is attacked."""
    server = servers("--body-timeout", "3s", "--request-timeout", "10s")
    well(server)
    return server


def refused(reply, *statuses):
    assert reply is not None
    assert reply.status in statuses, reply
    assert isinstance(json.loads(reply.body)["error"], str)


# --------------------------------------------------------------------------------------------------------- large bodies


def test_a_body_of_very_many_chunks(target):
    """A byte each: they cost what they weigh."""
    spaces = b"1\r\n \r\n" * 200_000
    body = spaces + b"%x\r\n%s\r\n0\r\n\r\n" % (len(ROW), ROW)
    with unharmed(target, 32 * MIB), Http1(target.http) as client:
        assert client.ask(request("POST", INFER, ["Transfer-Encoding: chunked"], body)).status == 200


def test_a_body_of_very_many_frames(target):
    """The same over HTTP/2, where a flood of them may also end the connection."""
    for count in (1000, 50_000):
        with unharmed(target, 32 * MIB), Http2(target.http) as client:
            client.open(1, block("POST", INFER), end=False)
            client.send(frame(wire.DATA, 0, 1, b" ") * count)
            client.send(frame(wire.DATA, wire.END_STREAM, 1, ROW))
            assert client.ended(1).status == 200 or (client.gone and count > 1000)


def test_empty_frames(target):
    """They fill no window and end no pause; somebody has to count them."""
    with unharmed(target, 32 * MIB), Http2(target.http) as client:
        client.open(1, block("POST", INFER), end=False)
        for _ in range(50):
            client.send(frame(wire.DATA, 0, 1) * 10_000)
        stream = client.ended(1)
        assert stream.ended or client.gone
    well(target)


FRAMINGS = {
    "said": lambda: request("POST", INFER, [f"Content-Length: {LIMIT + 1}"]),
    "said, and waiting to go on": lambda: request(
        "POST", INFER, [f"Content-Length: {LIMIT + 1}", "Expect: 100-continue"]
    ),
    "one chunk": lambda: request(
        "POST", INFER, ["Transfer-Encoding: chunked"], b"%x\r\n" % (2 * LIMIT) + b" " * (LIMIT + 1)
    ),
    "many chunks": lambda: request(
        "POST", INFER, ["Transfer-Encoding: chunked"], (b"10000\r\n" + b" " * 65536 + b"\r\n") * (LIMIT // 65536 + 1)
    ),
}


@pytest.mark.parametrize("framing", FRAMINGS)
@pytest.mark.parametrize("path", [INFER, "/v1/models/iris:predict"])
def test_a_body_over_the_limit(target, framing, path):
    with unharmed(target, ROOM), Http1(target.http) as client:
        pour(client.socket, FRAMINGS[framing]().replace(INFER.encode(), path.encode(), 1))
        refused(client.reply(), 413)
    well(target)


@pytest.mark.parametrize("size", ["f" * 16, "f" * 17, "f" * 4000, "-1", "0x10", "1_0", ""])
def test_a_chunk_whose_size_is_none(target, size):
    """Or overflows: the request is not answered as if it were whole."""
    body = size.encode() + b"\r\n" + ROW + b"\r\n0\r\n\r\n"
    with unharmed(target, 32 * MIB), Http1(target.http) as client:
        pour(client.socket, request("POST", INFER, ["Transfer-Encoding: chunked"], body))
        reply = client.reply()
        assert reply is None or reply.status in (400, 413), reply


def answered(server, status):
    """How often REST has answered so."""
    with Http1(server.http) as client:
        text = client.ask(request("GET", "/metrics")).body.decode()
    (count,) = re.findall(rf'^tensorgate_answers_total{{protocol="rest",code="{status}"}} (\d+)$', text, re.MULTILINE)
    return int(count)


@pytest.mark.parametrize("headers", [["Content-Length: 1000"], ["Transfer-Encoding: chunked"]])
def test_who_leaves_in_the_midst_of_a_body(target, headers):
    """Is told apart from who sends one that is wrong."""
    before = {status: answered(target, status) for status in (400, 499)}
    with Http1(target.http) as client:
        client.socket.sendall(request("POST", INFER, headers, b"10\r\n{"))
    eventually(lambda: answered(target, 499) > before[499], "counted", target)
    assert answered(target, 400) == before[400]
    with Http1(target.http) as client:
        client.socket.sendall(request("POST", INFER, ["Transfer-Encoding: chunked"], b"x\r\n"))
        assert client.reply().status == 400
    eventually(lambda: answered(target, 400) > before[400], "counted", target)


def test_a_message_over_the_limit(target):
    """gRPC has the same limit as REST."""
    with unharmed(target, ROOM), grpc.insecure_channel(target.grpc, [("grpc.max_send_message_length", -1)]) as channel:
        message = service_pb2.ModelInferRequest(model_name="iris", raw_input_contents=[bytes(LIMIT + 1)])
        with pytest.raises(grpc.RpcError) as caught:
            service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(message, timeout=30)
        assert caught.value.code() in (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.OUT_OF_RANGE)


UPLOADS, UPLOAD = 24, 20 * MIB


@pytest.fixture(scope="module")
def patient(servers):
    """Bodies may pause here, so that many of them can be half sent at a time."""
    return servers("--body-timeout", "20s")


def test_parallel_uploads_share_a_budget(patient):
    """Some are refused at once, and what was held is given back."""
    head = request("POST", INFER, [f"Content-Length: {UPLOAD + len(ROW)}"])
    with unharmed(patient, HELD):
        clients = [Http1(patient.http) for _ in range(UPLOADS)]
        spaces = b" " * UPLOAD
        sending = [threading.Thread(target=pour, args=(each.socket, head + spaces)) for each in clients]
        for each in sending:
            each.start()
        for each in sending:
            each.join()
        for each in clients:
            pour(each.socket, ROW)
        answers = [each.reply() for each in clients]
        for each in clients:
            each.socket.close()
    # A connection that is cut while its client still sends may lose the answer on the way.
    statuses = [each.status for each in answers if each]
    assert set(statuses) <= {200, 429}, statuses
    assert 200 in statuses
    assert 429 in statuses
    for _ in range(4):
        with Http1(patient.http) as client:
            assert client.ask(head + spaces + ROW).status == 200, "the budget was not given back"


def test_parallel_messages_share_a_budget(patient):
    """The same over gRPC, on one connection, each message all but its last byte."""
    with unharmed(patient, HELD), Http2(patient.grpc) as client:
        client.until(lambda: client.window != 65535 or client.credit != 65535, 1)
        for number in range(1, 2 * UPLOADS, 2):
            client.open(number, block("POST", MODEL_INFER, GRPC), end=False)
            client.upload(number, b"\0" + UPLOAD.to_bytes(4, "big") + bytes(UPLOAD - 1), seconds=5)
        ended = [each.ended for each in client.streams.values()]
        assert not ended[0], "what fits is waited for"
        assert any(ended), "what does not fit is refused"
        assert not client.gone, "and nothing else"
    well(patient)


# ------------------------------------------------------------------------------------------------------ packed too well


def bomb(window, gigabytes):
    """Zeros, packed a thousandfold: the same packed megabytes over and over. It has no end, as nobody comes so far."""
    packer = zlib.compressobj(9, zlib.DEFLATED, window)
    first = packer.compress(bytes(MIB)) + packer.flush(zlib.Z_FULL_FLUSH)
    again = packer.compress(bytes(16 * MIB)) + packer.flush(zlib.Z_FULL_FLUSH)
    return first + again * (gigabytes * 64)


BOMBS = {
    "gzip": (lambda: bomb(31, 10), 413),
    "deflate": (lambda: bomb(15, 10), 413),
    # Just over the limit, whole and well-formed.
    "gzip ": (lambda: gzip.compress(b" " * LIMIT + ROW), 413),
    "deflate ": (lambda: zlib.compress(b" " * LIMIT + ROW), 413),
    "gzip, gzip": (lambda: gzip.compress(gzip.compress(ROW)), 501),
}


@pytest.mark.parametrize("case", BOMBS)
def test_packed_bodies(target, case):
    """Unpacking stops at the limit; memory and time are those of a body that large."""
    make, status = BOMBS[case]
    body, before = make(), wire.processor_seconds(target.child.pid)
    with unharmed(target, ROOM), Http1(target.http) as client:
        pour(client.socket, request("POST", INFER, [f"Content-Encoding: {case.strip()}"], body))
        refused(client.reply(), status)
    assert wire.processor_seconds(target.child.pid) - before < 5


def test_a_body_of_very_many_packed_nothings(target):
    """Members of gzip that are empty: as much work as others, and no bytes that a limit could count."""
    body, before = gzip.compress(b"") * 1_000_000, wire.processor_seconds(target.child.pid)
    with unharmed(target, ROOM), Http1(target.http) as client:
        client.socket.settimeout(30)
        client.socket.sendall(request("POST", INFER, ["Content-Encoding: gzip"], body))
        refused(client.reply(), 400, 413)
    assert wire.processor_seconds(target.child.pid) - before < 2


def test_a_packed_message(target):
    """gRPC, by a real client: a message three times as large as the limit, packed well below it."""
    options = [("grpc.max_send_message_length", -1)]
    message = service_pb2.ModelInferRequest(model_name="iris", raw_input_contents=[bytes(3 * LIMIT)])
    with (
        unharmed(target, ROOM),
        grpc.insecure_channel(target.grpc, options, compression=grpc.Compression.Gzip) as channel,
        pytest.raises(grpc.RpcError) as caught,
    ):
        service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(message, timeout=30)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.mark.parametrize(("encoding", "window"), [("gzip", 31), ("deflate", 15)])
def test_a_packed_message_of_gigabytes(target, encoding, window):
    body, before = bomb(window, 10), wire.processor_seconds(target.child.pid)
    with unharmed(target, ROOM), Http2(target.grpc) as client:
        client.open(1, block("POST", MODEL_INFER, [*GRPC, ("grpc-encoding", encoding)]), end=False)
        client.upload(1, b"\1" + len(body).to_bytes(4, "big") + body, end=True)
        stream = client.ended(1)
        assert stream.ended
        assert stream.data == b""
    assert wire.processor_seconds(target.child.pid) - before < 5


def test_parallel_packed_messages_share_the_budget(patient):
    """Good ones, and held until they are computed: what counts is what they hold, not what came over the wire."""
    rows, answers = 1_000_000, []
    message = service_pb2.ModelInferRequest(model_name="iris", raw_input_contents=[bytes(16 * rows)])
    message.inputs.add(name="input-0", datatype="FP32", shape=[rows, 4])
    options = [("grpc.max_receive_message_length", -1), ("grpc.use_local_subchannel_pool", 1)]

    def ask():
        with grpc.insecure_channel(patient.grpc, options, compression=grpc.Compression.Gzip) as channel:
            try:
                service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(message, timeout=60)
                answers.append(grpc.StatusCode.OK)
            except grpc.RpcError as error:
                answers.append(error.code())

    asking = [threading.Thread(target=ask) for _ in range(16)]
    # Those that are computed have outputs and replies besides, each three quarters of a message; without a budget all
    # sixteen together would take twice this.
    with unharmed(patient, 2 * HELD, answer=10):
        for each in asking:
            each.start()
        for each in asking:
            each.join()
    assert set(answers) <= {grpc.StatusCode.OK, grpc.StatusCode.RESOURCE_EXHAUSTED}, answers
    assert grpc.StatusCode.OK in answers
    well(patient)


# ------------------------------------------------------------------------------------- nested too deep, too many digits


def tensor(data=b"[5.1,3.5,1.4,0.2]", shape=b"[1,4]", datatype=b"FP32", more=b""):
    head = b'{"name":"input-0","shape":%s,"datatype":"%s"%s,"data":' % (shape, datatype, more)
    return b'{"inputs":[' + head + data + b"}]}"


def deep(count):
    return b"[" * count + b"]" * count


DEEP = {
    "data": lambda count: tensor(deep(count)),
    "shape": lambda count: tensor(shape=deep(count)),
    "parameters": lambda count: tensor(more=b',"parameters":{"x":' + deep(count) + b"}"),
    "member that nobody knows": lambda count: ROW[:-1] + b',"x":' + deep(count) + b"}",
    "objects": lambda count: ROW[:-1] + b',"x":' + b'{"a":' * count + b"1" + b"}" * (count + 1),
    "mixed": lambda count: ROW[:-1] + b',"x":' + b'[{"a":' * count + b"1" + b"}]" * count + b"}",
    "whole body": deep,
    "never closed": lambda count: b"[" * count,
    "v1 instances": lambda count: b'{"instances":' + deep(count) + b"}",
    "v1 member that nobody knows": lambda count: b'{"instances":[[1,2,3,4]],"x":' + deep(count) + b"}",
}


@pytest.mark.parametrize("case", DEEP)
def test_depth(target, case):
    path = "/v1/models/iris:predict" if case.startswith("v1") else INFER
    for count in (10_000, 1_000_000):
        with unharmed(target, ROOM), Http1(target.http) as client:
            refused(client.ask(request("POST", path, body=DEEP[case](count))), 400)


DIGITS = 20 * MIB
NUMBERS = {
    "beyond every float": b"1e400",
    "below every float": b"-1e400",
    "beyond every exponent": b"1e" + b"9" * 1000,
    "next to nothing": b"1e-" + b"9" * 1000,
    "many digits": b"1" * DIGITS,
    "many digits of a fraction": b"0." + b"3" * DIGITS,
    "many zeros": b"0." + b"0" * DIGITS + b"1e%d" % DIGITS,
    "many digits of an exponent": b"1e" + b"0" * DIGITS + b"1",
}


@pytest.mark.parametrize("case", NUMBERS)
def test_numbers(target, case):
    """Read as the float that they are nearest to or refused, for each datatype, and in the time that bytes take."""
    before = wire.processor_seconds(target.child.pid)
    with unharmed(target, ROOM), Http1(target.http) as client:
        for body, path in [
            *((tensor(b"[%s,1,1,1]" % NUMBERS[case], datatype=each), INFER) for each in (b"FP32", b"INT64")),
            (tensor(shape=b"[%s,4]" % NUMBERS[case]), INFER),
            (tensor(more=b',"parameters":{"binary_data_size":%s}' % NUMBERS[case]), INFER),
            (b'{"instances":[[%s,1,1,1]]}' % NUMBERS[case], "/v1/models/iris:predict"),
        ]:
            reply = client.ask(request("POST", path, body=body))
            assert reply.status in (200, 400), reply
            assert json.loads(reply.body), "an answer is JSON"
            length = len(reply.body)
            assert length < 10_000, "an error does not repeat all that was sent"
    assert wire.processor_seconds(target.child.pid) - before < 10


LONG = b"x" * (10 * MIB)
TEXTS = {
    "datatype": tensor(datatype=LONG),
    "shape": tensor(shape=b'["%s",4]' % LONG),
    "datum": tensor(data=b'["%s",1,1,1]' % LONG),
    "output": ROW[:-1] + b',"outputs":[{"name":"%s"}]}' % LONG,
    "input twice": ROW.replace(b"input-0", LONG)[:-2] + b"," + ROW.replace(b"input-0", LONG)[11:],
    "whole body": b'"%s"' % LONG,
    "no JSON": LONG,
}


@pytest.mark.parametrize("case", TEXTS)
def test_long_texts(target, case):
    """An error names what is wrong; it does not send back all of it."""
    with unharmed(target, ROOM), Http1(target.http) as client:
        reply = client.ask(request("POST", INFER, body=TEXTS[case]))
        refused(reply, 400)
        length = len(reply.body)
    assert length < 10_000


@pytest.mark.parametrize("field", ["model_name", "model_version", "datatype", "output"])
def test_long_texts_in_a_message(target, field):
    """In gRPC an error travels in a header, and a client that cannot take it never learns which error it was."""
    message, long = service_pb2.ModelInferRequest(model_name="iris", raw_input_contents=[bytes(16)]), LONG.decode()
    message.inputs.add(name="input-0", datatype=long if field == "datatype" else "FP32", shape=[1, 4])
    if field == "output":
        message.outputs.add(name=long)
    elif field != "datatype":
        setattr(message, field, long)
    with (
        unharmed(target, ROOM),
        grpc.insecure_channel(target.grpc, [("grpc.max_send_message_length", -1)]) as channel,
        pytest.raises(grpc.RpcError) as caught,
    ):
        service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(message, timeout=30)
    assert caught.value.code() in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND), caught.value.details()
    assert len(caught.value.details()) < 10_000
