"""Sends one row of the table to one server and returns what came back, undigested."""

import gzip
import http.client
import json
import socket
import zlib
from dataclasses import dataclass, field

import grpc
import numpy as np
from google.protobuf import json_format
from tritonclient.grpc import service_pb2, service_pb2_grpc

TIMEOUT = 30

NUMPY = {
    "BOOL": np.bool_,
    "UINT8": np.uint8,
    "UINT16": np.uint16,
    "UINT32": np.uint32,
    "UINT64": np.uint64,
    "INT8": np.int8,
    "INT16": np.int16,
    "INT32": np.int32,
    "INT64": np.int64,
    "FP16": np.float16,
    "FP32": np.float32,
    "FP64": np.float64,
}

COMPRESS = {"gzip": gzip.compress, "deflate": zlib.compress}
DECOMPRESS = {"gzip": gzip.decompress, "deflate": zlib.decompress}

INFERENCE = "inference.GRPCInferenceService"
LENGTH = "Inference-Header-Content-Length"


@dataclass
class Answer:
    """A status (number over REST, name over gRPC) and a body: bytes over REST, messages over gRPC."""

    status: object
    headers: dict = field(default_factory=dict)
    body: object = None
    error: str = ""


def packed(tensor):
    ((datatype, values),) = tensor.items()
    return np.array(values, dtype=NUMPY[datatype]).tobytes()


def send(server, row):
    return over_grpc(server, row) if row.rpc else over_rest(server, row)


def rest_body(row):
    """The body to send and the headers that describe it."""
    if row.body is None and row.tail is None:
        return None, {}
    head = (row.body or "").encode()
    headers = {"Content-Type": "application/json"}
    if row.tail is not None:
        length = len(head) if row.header_length is None else row.header_length
        headers = {"Content-Type": "application/octet-stream", LENGTH: str(length)}
    data = head + (packed(row.tail) if row.tail is not None else b"")
    if row.compress:
        data = COMPRESS[row.compress](data)
        headers["Content-Encoding"] = row.compress
    return data, headers


def over_rest(server, row):
    data, headers = rest_body(row)
    headers |= row.headers
    method = row.method or ("GET" if data is None else "POST")
    connection = http.client.HTTPConnection("127.0.0.1", server.http, timeout=TIMEOUT)
    try:
        connection.putrequest(method, row.path, skip_accept_encoding=True)
        for name, value in headers.items():
            if value:
                connection.putheader(name, value)
        if data is not None:
            connection.putheader("Content-Length", str(len(data)))
        connection.endheaders(data)
        reply = connection.getresponse()
        body = reply.read()
        received = {name.lower(): value for name, value in reply.getheaders()}
    except (OSError, http.client.HTTPException, socket.timeout) as error:
        return Answer("no reply", error=str(error))
    finally:
        connection.close()
    encoding = received.get("content-encoding", "identity")
    if encoding in DECOMPRESS:
        body = DECOMPRESS[encoding](body)
    return Answer(reply.status, received, body)


def grpc_request(row, kind):
    message = json_format.ParseDict(json.loads(row.message), kind())
    for tensor in row.raw:
        message.raw_input_contents.append(packed(tensor))
    return message


def over_grpc(server, row):
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc}") as channel:
        try:
            return Answer("OK", body=call(channel, row))
        except grpc.RpcError as error:
            return Answer(error.code().name, error=error.details() or "")


def call(channel, row):
    """The messages of the reply, always as a list."""
    if "/" in row.rpc:
        bare = channel.unary_unary(f"/{row.rpc}")
        return [bare(b"", timeout=TIMEOUT)]
    stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
    if row.rpc == "ModelStreamInfer":
        messages = [grpc_request(row, service_pb2.ModelInferRequest) for _ in range(row.repeat)]
        return list(stub.ModelStreamInfer(iter(messages), timeout=TIMEOUT))
    message = grpc_request(row, getattr(service_pb2, f"{row.rpc}Request"))
    return [getattr(stub, row.rpc)(message, timeout=TIMEOUT)]
