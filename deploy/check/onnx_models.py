"""ONNX models to see the image answer with, written byte by byte: nothing has to be installed for that.

Each lies in a directory of its own as the example models do: 1/model.onnx and expected.json.
"""

import json
import struct

FLOAT, STRING = 1, 8  # of TensorProto.DataType
OPSET = 18


def varint(number):
    """Seven bits a byte, the lowest first."""
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    out.append(number)
    return bytes(out)


def field(number, value):
    """One field: a number, or bytes and text with their length."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    value = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(value)) + value


def tensor_type(name, kind, dimensions):
    """A ValueInfoProto; a dimension that is text may be of any size."""
    sizes = b"".join(field(1, field(2 if isinstance(each, str) else 1, each)) for each in dimensions)
    return field(1, name) + field(2, field(1, field(1, kind) + field(2, sizes)))


def node(kind, inputs, outputs, attributes=()):
    """A NodeProto; attributes are whole numbers or text."""
    ends = b"".join(field(1, each) for each in inputs) + b"".join(field(2, each) for each in outputs)
    settings = b"".join(field(5, field(1, name) + setting(value)) for name, value in attributes)
    return ends + field(3, kind.lower()) + field(4, kind) + settings


def setting(value):
    """The value of an AttributeProto, and its kind."""
    return field(3, value) + field(20, 2) if isinstance(value, int) else field(4, value) + field(20, 3)


def constant(name, values):
    """A TensorProto of floats in one row."""
    return field(1, len(values)) + field(2, FLOAT) + field(8, name) + field(9, struct.pack(f"<{len(values)}f", *values))


def model(nodes, inputs, outputs, constants=()):
    """A ModelProto."""
    parts = ((1, nodes), (5, constants), (11, inputs), (12, outputs))
    graph = b"".join(field(number, each) for number, several in parts for each in several) + field(2, "graph")
    return field(1, 8) + field(2, "image-check") + field(7, graph) + field(8, field(1, "") + field(2, OPSET))


def tensor(name, datatype, shape, data):
    """A tensor of a request or an answer."""
    return {"name": name, "datatype": datatype, "shape": shape, "data": data}


def added():
    """Adds a row to each row."""
    graph = model(
        [node("Add", ["x", "row"], ["y"])],
        [tensor_type("x", FLOAT, ["n", 4])],
        [tensor_type("y", FLOAT, ["n", 4])],
        [constant("row", [1, 2, 3, 4])],
    )
    asked = tensor("x", "FP32", [2, 4], [0.5, 0, 0, 0, -1, -2, -3, -4])
    return graph, asked, tensor("y", "FP32", [2, 4], [1.5, 2, 3, 4, 0, 0, 0, 0])


def lowered():
    """Makes letters small, as models of texts do: that takes a locale, which is a matter of the image."""
    letters = node("StringNormalizer", ["x"], ["y"], [("case_change_action", "LOWER"), ("is_case_sensitive", 1)])
    graph = model([letters], [tensor_type("x", STRING, ["n"])], [tensor_type("y", STRING, ["n"])])
    return graph, tensor("x", "BYTES", [2], ["Straße", "ÉTÉ Σ"]), tensor("y", "BYTES", [2], ["straße", "été σ"])


def write(folder):
    """Writes all; returns their directories."""
    for name, make in (("onnx-added", added), ("onnx-lowered", lowered)):
        graph, asked, answer = make()
        version = folder / name / "1"
        version.mkdir(parents=True)
        (version / "model.onnx").write_bytes(graph)
        expected = {"request": {"inputs": [asked]}, "response": {"outputs": [answer]}}
        (version.parent / "expected.json").write_text(json.dumps(expected))
        # The server's user may read them under any umask.
        for each in (folder, version.parent, version, version / "model.onnx"):
            each.chmod(0o755)
        yield version.parent
