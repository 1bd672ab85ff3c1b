"""Inputs without elements. ONNX Runtime 1.31 ends its process on some, in operators that recur or turn tensors: those
are refused, the server goes on, and graphs of other operators answer them. All of it in the server's own process."""

import contextlib

import numpy as np
import onnx_models
import pytest
import requests
from onnx_models import NODE, PORT, T, constant, helper
from onnx_service import described, index, post, serving, until, write

RECURRENT = {
    "lstm": ("LSTM", 8, {}),
    "gru": ("GRU", 6, {}),
    "bidirectional": ("LSTM", 8, {"direction": "bidirectional"}),
}


def ones(name, *shape, kind=np.float32):
    return constant(name, np.ones(shape), kind)


def model(name, nodes, shapes, initializers=()):
    """Of float inputs with these dimensions by name, and the output y."""
    inputs = [PORT(each, T.FLOAT, list(shape)) for each, shape in shapes.items()]
    outputs = [helper.make_empty_tensor_value_info("y")]
    made = onnx_models.unchecked(nodes, inputs, outputs, initializers, [("com.microsoft", 1)])
    return onnx_models.Model(name, made, None)


def recurrent(name):
    op, gates, more = RECURRENT[name]
    ways = 2 if more else 1
    node = NODE(op, ["x", "w", "r"], ["y"], hidden_size=2, **more)
    weights = [ones("w", ways, gates, 4), ones("r", ways, gates, 2)]
    return model(name, [node], {"x": ["steps", "batch", 4]}, weights)


def batch_first():
    """As PyTorch exports it: an empty batch is all that it takes."""
    nodes = [
        NODE("Transpose", ["x"], ["t"], perm=[1, 0, 2]),
        NODE("LSTM", ["t", "w", "r"], ["l"], hidden_size=2),
        NODE("Squeeze", ["l", "one"], ["q"]),
        NODE("Transpose", ["q"], ["y"], perm=[1, 0, 2]),
    ]
    weights = [ones("w", 1, 8, 4), ones("r", 1, 8, 2), constant("one", [1], np.int64)]
    return model("batch-first", nodes, {"x": ["batch", "steps", 4]}, weights)


def einsum(name, equation, other):
    node = NODE("Einsum", ["x", "z"], ["y"], equation=equation)
    return model(name, [node], {"x": ["a", "b", "c"], "z": other})


def of_microsoft(name, node, last, initializers=()):
    return model(name, [node], {"x": ["a", "b", last]}, initializers)


def quantised():
    """An input of numbers that are quantised as they come."""
    units = [ones("w", 1, 4, 8, kind=np.uint8), ones("r", 1, 2, 8, kind=np.uint8)]
    scales = [ones(name, 1) for name in ("ws", "rs")] + [ones(name, 1, kind=np.uint8) for name in ("wz", "rz")]
    inputs = ["x", "w", "r", "", "", "", "", "", "ws", "wz", "rs", "rz"]
    node = NODE("DynamicQuantizeLSTM", inputs, ["y"], domain="com.microsoft", hidden_size=2)
    return of_microsoft("quantised", node, 4, units + scales)


def attention():
    nodes = [
        NODE("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
        NODE("QAttention", ["q", "w", "b", "scale", "scale"], ["y"], domain="com.microsoft", num_heads=2),
    ]
    weights = [ones("w", 4, 12, kind=np.uint8), ones("b", 12), constant("scale", 1, np.float32)]
    return model("attention", nodes, {"x": ["a", "b", 4]}, [*weights, constant("zero", 0, np.uint8)])


def scan():
    """Over the second dimension, which is made the first one."""
    ports = [PORT(name, T.FLOAT, None) for name in ("state", "part")]
    body = helper.make_graph(
        [NODE("Add", ["state", "part"], ["next"]), NODE("Identity", ["next"], ["sum"])],
        "body",
        ports,
        [PORT(name, T.FLOAT, None) for name in ("next", "sum")],
    )
    more = {"num_scan_inputs": 1, "scan_input_axes": [1], "scan_output_axes": [1]}
    nodes = [
        NODE("ReduceSum", ["x", "one"], ["first"], keepdims=0),
        NODE("Scan", ["first", "x"], ["last", "y"], body=body, **more),
    ]
    return model("scan", nodes, {"x": ["a", "b"]}, [constant("one", [1], np.int64)])


def unique():
    """Of rows that are none."""
    return model("unique", [NODE("Unique", ["x"], ["y"], axis=0)], {"x": ["a", "b"]})


def rows_of_two():
    node = NODE("FeatureVectorizer", ["x", "z"], ["y"], domain="ai.onnx.ml", inputdimensions=[3, 4])
    return model("rows-of-two", [node], {"x": ["a", 3], "z": ["a", 4]})


def standard_attention():
    """Of the standard, since its version 23."""
    node = NODE("Attention", ["x", "x", "x"], ["y"], q_num_heads=2, kv_num_heads=2)
    made = model("standard-attention", [node], {"x": ["a", "b", 8]})
    made.proto.opset_import[0].version = 23
    return made


def kernels():
    """A convolution whose weights a request brings: it never ends."""
    return model("kernels", [NODE("Conv", ["x", "z"], ["y"])], {"x": ["a", 2, "b", "c"], "z": [4, 2, "d", "e"]})


def deadly():
    heads = NODE("MultiHeadAttention", ["x", "x", "x"], ["y"], domain="com.microsoft", num_heads=2)
    inverse = NODE("Inverse", ["x"], ["y"], domain="com.microsoft")
    return [
        *[recurrent(name) for name in RECURRENT],
        batch_first(),
        einsum("einsum", "abc,acb->ab", ["a", "c", "b"]),
        einsum("products", "abc,adc->abd", ["a", "d", "c"]),
        of_microsoft("heads", heads, "c"),
        of_microsoft("inverse", inverse, "c"),
        quantised(),
        attention(),
        standard_attention(),
        scan(),
        unique(),
        rows_of_two(),
        kernels(),
    ]


MODELS = {each.name: each for each in deadly()}


def may_starve():
    """What is left behind the first step may be nothing."""
    nodes = [NODE("Slice", ["x", "one", "end"], ["t"]), NODE("LSTM", ["t", "w", "r"], ["y"], hidden_size=2)]
    bounds = [constant("one", [1], np.int64), constant("end", [2**31 - 1], np.int64)]
    weights = [ones("w", 1, 8, 4), ones("r", 1, 8, 2)]
    return model("starving", nodes, {"x": ["steps", "batch", 4]}, [*bounds, *weights])


def residual():
    """A sum that ONNX Runtime joins to what follows it, since the names say that both are of one shape."""
    nodes = [NODE("Add", ["x", "z"], ["sum"]), NODE("LayerNormalization", ["sum", "scale", "bias"], ["y"])]
    return model("residual", nodes, {"x": ["a", "b", 4], "z": ["a", "b", 4]}, [ones("scale", 4), ones("bias", 4)])


def product():
    return model("product", [NODE("MatMul", ["x", "w"], ["y"])], {"x": ["a", "b", 4]}, [ones("w", 4, 2)])


@pytest.fixture(scope="module")
def running(binary, tmp_path_factory):
    folder = tmp_path_factory.mktemp("empty")
    for each in [*MODELS.values(), may_starve(), product(), residual()]:
        write(each, folder / "models")
    # In processes of their own all of this would be asked of ONNX Runtime: see test_onnx_isolation.py.
    with serving(binary, folder, "--isolation", "never", ready=False) as server:
        until(lambda: settled(server))
        yield server


def settled(server):
    with contextlib.suppress(requests.ConnectionError):
        found = index(server)
        return set(MODELS) <= set(found) and all(each["state"] in ("READY", "UNAVAILABLE") for each in found.values())
    return False


def feeds(made, length, zero=()):
    """Ones: each dimension that has a name is so long, or 0."""

    def shape(port):
        dims = port.type.tensor_type.shape.dim
        return [dim.dim_value or (0 if dim.dim_param in zero else length) for dim in dims]

    shapes = {port.name: shape(port) for port in made.proto.graph.input}
    return {name: np.ones(shape, np.float32) for name, shape in shapes.items()}


@pytest.mark.parametrize("name", MODELS)
def test_inputs_without_elements_are_refused(running, name):
    made = MODELS[name]
    names = sorted({dim.dim_param for port in made.proto.graph.input for dim in port.type.tensor_type.shape.dim} - {""})
    length = 8 if name == "heads" else 3
    for zero in [*names, names]:
        reply = post(running, name, described(feeds(made, length, zero)))
        assert running.child.poll() is None, running.tail()
        assert reply.status_code == 400, (zero, reply.text)
        assert "this model takes no input without elements, since ONNX Runtime's " in reply.json()["error"]
    wrong = feeds(made, length) if name != "inverse" else {"x": np.eye(3, dtype=np.float32)[None]}
    reply = post(running, name, described(wrong))
    assert reply.status_code == 200, reply.text


def test_a_graph_that_may_empty_a_tensor_itself_is_warned_of(running):
    assert index(running)["starving"]["state"] == "READY"
    assert "its input 't' may be empty though the inputs of a request are not" in running.log.read_text()
    reply = post(running, "starving", described(feeds(may_starve(), 3)))
    assert reply.status_code == 200, reply.text


@pytest.mark.parametrize("zero", ["a", "b", "ab"])
def test_graphs_of_other_operators_answer(running, zero):
    made = feeds(product(), 3, zero)
    reply = post(running, "product", described(made))
    assert reply.status_code == 200, reply.text
    (output,) = reply.json()["outputs"]
    assert output["shape"] == [*made["x"].shape[:2], 2] and output["data"] == []


def test_lengths_of_one_name_are_empty_together(running):
    """Else the sum has one side that the other does not know of."""
    for zero in ("a", "b", "ab"):
        (output,) = post(running, "residual", described(feeds(residual(), 3, zero))).json()["outputs"]
        assert output["data"] == []
        mixed = feeds(residual(), 3, zero)
        for name in mixed:
            reply = post(running, "residual", described({**mixed, name: np.ones((3, 3, 4), np.float32)}))
            assert running.child.poll() is None, running.tail()
            assert reply.status_code == 400, reply.text
    assert post(running, "residual", described(feeds(residual(), 3))).status_code == 200
