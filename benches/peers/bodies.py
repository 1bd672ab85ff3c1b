"""Requests of the Open Inference Protocol in its three encodings, and their answers.

Standard library only: the protobuf of a ModelInferRequest is a handful of tagged
fields, and needs no generated code.
"""

import array
import json
import struct
import sys

ENCODINGS = ("json", "binary", "grpc")
ITEM_SIZES = {"FP32": ("f", 4), "FP64": ("d", 8)}


def as_json(name, shape, values):
    """Numbers as text: the shortest that reads back as the same f32."""
    data = ",".join(shortest(value) for value in values)
    head = json.dumps({"name": name, "shape": shape, "datatype": "FP32"})
    return f'{{"id":"1","inputs":[{head[:-1]},"data":[{data}]}}]}}'.encode(), []


def shortest(value):
    """An f32 in as few digits as tell it from its neighbours; 6 to 9 do."""
    for digits in range(6, 10):
        text = f"{value:.{digits}g}"
        if struct.pack("<f", float(text)) == struct.pack("<f", value):
            return repr(float(text))
    raise ValueError(value)


def as_binary(name, shape, values):
    """A JSON header, then the tensor's bytes; the answer likewise."""
    raw = floats(values)
    tensor = {"name": name, "shape": shape, "datatype": "FP32"}
    tensor["parameters"] = {"binary_data_size": len(raw)}
    parameters = {"binary_data_output": True}
    header = json.dumps({"id": "1", "parameters": parameters, "inputs": [tensor]}).encode()
    headers = [
        "Content-Type: application/octet-stream",
        f"Inference-Header-Content-Length: {len(header)}",
    ]
    return header + raw, headers


def as_grpc(model, name, shape, values):
    """An encoded ModelInferRequest with raw contents."""
    dimensions = b"".join(varint(size) for size in shape)
    tensor = field(1, name.encode()) + field(2, b"FP32") + field(3, dimensions)
    parts = [field(1, model.encode()), field(3, b"1"), field(5, tensor), field(7, floats(values))]
    return b"".join(parts)


def floats(values):
    """Little-endian f32."""
    packed = array.array("f", values)
    if sys.byteorder == "big":
        packed.byteswap()
    return packed.tobytes()


def varint(number):
    """Seven bits a byte, the lowest first."""
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    out.append(number)
    return bytes(out)


def field(number, payload):
    """A length-delimited field."""
    return varint(number << 3 | 2) + varint(len(payload)) + payload


def fields(message):
    """(number, payload) of the length-delimited fields; others are skipped."""
    at = 0
    while at < len(message):
        tag, at = read_varint(message, at)
        kind = tag & 7
        if kind == 0:
            _, at = read_varint(message, at)
        elif kind == 2:
            length, at = read_varint(message, at)
            yield tag >> 3, message[at : at + length]
            at += length
        else:
            at += {1: 8, 5: 4}[kind]


def read_varint(message, at):
    """A number and the place behind it."""
    number = shift = 0
    while True:
        byte = message[at]
        at += 1
        number |= (byte & 127) << shift
        if byte < 128:
            return number, at
        shift += 7


def numbers(raw, datatype):
    """A tensor's bytes as a list."""
    code, size = ITEM_SIZES[datatype]
    return list(struct.unpack(f"<{len(raw) // size}{code}", raw))


def read_answer(encoding, body):
    """The first output's values."""
    if encoding == "grpc":
        return read_grpc(body)
    # The JSON of a binary answer ends where the first tensor begins.
    header, end = json.JSONDecoder().raw_decode(body.decode("latin-1"))
    output = header["outputs"][0]
    if "data" in output:
        return flatten(output["data"])
    return numbers(body[end : end + output["parameters"]["binary_data_size"]], output["datatype"])


def flatten(data):
    """Nested lists in order."""
    if not isinstance(data, list):
        return [data]
    return [value for part in data for value in flatten(part)]


def read_grpc(message):
    """ModelInferResponse: raw contents (6), or typed ones within an output (5)."""
    found = list(fields(message))
    output = next(payload for number, payload in found if number == 5)
    datatype = next(payload for number, payload in fields(output) if number == 2).decode()
    for number, payload in found:
        if number == 6:
            return numbers(payload, datatype)
    contents = next(payload for number, payload in fields(output) if number == 5)
    # fp32_contents is 6, fp64_contents 7: packed, which is little-endian bytes again.
    packed = next(payload for number, payload in fields(contents) if number in (6, 7))
    return numbers(packed, datatype)
