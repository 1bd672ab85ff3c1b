"""Graphs that are in order and whose answers are not always such as the protocol has: tables of many classes, lists of
tensors that differ, more memory than there is; and what is said of that when they are loaded."""

import time

import grpc
import numpy as np
import onnx_odd
import onnx_service
import pytest
import requests
from onnx import TensorProto as T
from onnx import helper
from onnx_models import NODE, PORT, Model, constant, unchecked
from onnx_service import described, over_grpc, over_rest, post, predict, same, serving, write
from sdk import service_pb2, service_pb2_grpc

# More than a request may have of a model that has fewer.
WIDE = 300


def sequence(name, rank=None):
    """An output that is a list of floats."""
    kind = helper.make_tensor_type_proto(T.FLOAT, rank and [None] * rank)
    return helper.make_value_info(name, helper.make_sequence_type_proto(kind))


def table(name, keys, **classes):
    """What a classifier says of its classes: maps."""
    kind = helper.make_map_type_proto(keys, helper.make_tensor_type_proto(T.FLOAT, []))
    output = helper.make_value_info("y", helper.make_sequence_type_proto(kind))
    (names,) = classes.values()
    made = unchecked(
        [NODE("ZipMap", ["x"], ["y"], domain="ai.onnx.ml", **classes)],
        [PORT("x", T.FLOAT, ["N", len(names)])],
        [output],
        opsets=[("ai.onnx.ml", 3)],
    )
    return Model(name, made, None, classes=tuple(names))


def classes(count):
    """Their order is not that of their names, which is a map's."""
    return table(f"classes-{count}", T.STRING, classlabels_strings=[f"class {7 * n % count:05}" for n in range(count)])


def lists():
    """As MultiOutputClassifier over labels of different numbers of classes."""
    inputs = [PORT("x", T.FLOAT, ["N", 3]), PORT("z", T.FLOAT, ["M", 3])]
    node = NODE("SequenceConstruct", ["x", "z"], ["y"])
    return onnx_odd.one("lists", inputs, [sequence("y")], node)


def always_lists():
    """The same where no request makes it a tensor."""
    inputs = [PORT("x", T.FLOAT, ["N", 3]), PORT("z", T.FLOAT, ["N", 2])]
    return onnx_odd.one("always-lists", inputs, [sequence("y")], NODE("SequenceConstruct", ["x", "z"], ["y"]))


def wide():
    """A column for each feature, as tables have them, and one output for each."""
    names = [str(number) for number in range(WIDE)]
    nodes = [
        NODE("Concat", [f"x{name}" for name in names], ["all"], axis=1),
        *(NODE("Neg", [f"x{name}"], [f"y{name}"]) for name in names),
    ]
    inputs = [PORT(f"x{name}", T.FLOAT, ["N", 1]) for name in names]
    outputs = [PORT("all", T.FLOAT, ["N", WIDE]), *(PORT(f"y{name}", T.FLOAT, ["N", 1]) for name in names)]
    return Model("wide", unchecked(nodes, inputs, outputs), None)


def hungry():
    """Takes as much memory as a request says."""
    nodes = [NODE("ConstantOfShape", ["n"], ["a"]), NODE("ReduceSum", ["a"], ["y"], keepdims=0)]
    return Model("hungry", unchecked(nodes, [PORT("n", T.INT64, [2])], [PORT("y", T.FLOAT, [])]), None)


def never():
    """Rows of three are never seven."""
    node = NODE("Reshape", ["x", "seven"], ["y"])
    ports = [PORT("x", T.FLOAT, ["N", 3])], [PORT("y", T.FLOAT, [7])]
    return onnx_odd.one("never", *ports, node, [constant("seven", [7], np.int64)])


def unstated():
    """Says nothing of what it gives."""
    nodes = [NODE("Shape", ["x"], ["s"]), NODE("Add", ["s", "s"], ["ss"]), NODE("Expand", ["n", "ss"], ["y"])]
    inputs = [PORT("x", T.FLOAT, ["N", 3])]
    made = unchecked(nodes, inputs, [PORT("y", T.FLOAT, None)], [constant("n", [1.5], np.float32)])
    return Model("unstated", made, None, batched=False)


MODELS = [
    lambda: classes(400),
    lambda: classes(4000),
    lambda: table("twice", T.INT64, classlabels_int64s=[5, -3, 5]),
    lists,
    always_lists,
    wide,
    hungry,
    never,
    unstated,
]


@pytest.fixture(scope="module")
def server(binary, tmp_path_factory):
    folder = tmp_path_factory.mktemp("answers")
    for make in MODELS:
        write(make(), folder / "models")
    with serving(binary, folder) as server:
        yield server


def floats(*shape):
    return np.random.default_rng(6).standard_normal(shape).astype(np.float32)


def warned(server, name):
    """What the log says of a model as it was loaded."""
    return [line for line in server.log.read_text().splitlines() if "WARN" in line and f'"{name}"' in line]


# --------------------------------------------------------------------------------------------------------------- tables


def test_a_table_has_the_order_of_the_classes(server):
    x = floats(3, 400)
    same(over_rest(server, "classes-400", {"x": x}), {"y": x})
    same(over_grpc(server, "classes-400", {"x": x}), {"y": x})
    same(over_rest(server, "classes-400", {"x": x[:0]}), {"y": x[:0]})


def seconds(server, classes, rows):
    feeds = {"x": floats(rows, classes)}
    spent = []
    for _ in range(3):
        start = time.monotonic()
        same(over_rest(server, f"classes-{classes}", feeds), {"y": feeds["x"]})
        spent.append(time.monotonic() - start)
    return min(spent)


def test_many_classes_take_as_long_as_many_rows(server):
    """As many numbers in either; searching a row for each of its classes takes ten times as long."""
    assert seconds(server, 4000, 60) < 4 * seconds(server, 400, 600) + 0.1


def test_classes_of_one_name(server):
    reply = post(server, "twice", described({"x": floats(2, 3)}))
    assert reply.status_code == 501, reply.text
    assert "output 'y': two of its classes are called '5'" in reply.json()["error"]
    assert any("two of its classes" in line for line in warned(server, "twice")), server.tail()


# ---------------------------------------------------------------------------------------------------------------- lists


def test_a_list_of_tensors_that_differ(server):
    x, z = floats(2, 3), floats(1, 3)
    for _ in range(2):
        reply = post(server, "lists", described({"x": x, "z": z}))
        assert reply.status_code == 501, reply.text
        assert "output 'y': its tensors differ in shape" in reply.json()["error"]
        same(over_rest(server, "lists", {"x": x, "z": x}), {"y": np.stack([x, x])})
    assert not warned(server, "lists"), server.tail()


def test_a_list_that_is_never_a_tensor(server):
    """It serves, since its other outputs might; whoever loads it is told."""
    assert onnx_service.index(server)["always-lists"]["state"] == "READY"
    assert any("its tensors differ in shape" in line for line in warned(server, "always-lists")), server.tail()


# ----------------------------------------------------------------------------------------------------------- many ports


def test_as_many_tensors_as_the_model_has(server):
    whole = floats(2, WIDE)
    feeds = {f"x{number}": whole[:, number : number + 1] for number in range(WIDE)}
    expected = {f"y{number}": -feeds[f"x{number}"] for number in range(WIDE)}
    backwards = dict(reversed(feeds.items()))
    for ask in (over_rest, over_grpc):
        same(ask(server, "wide", feeds, outputs=["all"]), {"all": whole})
        same(ask(server, "wide", backwards, outputs=["all"]), {"all": whole})
        same(ask(server, "wide", feeds, outputs=list(expected)), expected)
    reply = predict(server, "wide", {"inputs": {name: array.tolist() for name, array in feeds.items()}})
    assert reply.status_code == 200, reply.text


def test_more_tensors_than_the_model_has(server):
    feeds = {f"x{number}": floats(2, 1) for number in range(WIDE + 1)}
    reply = post(server, "wide", described(feeds))
    assert reply.status_code == 400, reply.text
    assert f"more than {WIDE} tensors in a request" in reply.json()["error"]
    # What has few takes no more than before.
    reply = post(server, "never", described({f"x{number}": floats(1, 3) for number in range(257)}))
    assert reply.status_code == 400, reply.text
    assert "more than 256 tensors in a request" in reply.json()["error"]
    del feeds["x7"]
    reply = post(server, "wide", described(feeds))
    assert reply.status_code == 400, reply.text
    assert f"'x{WIDE}'" in reply.json()["error"]
    reply = post(server, "wide", described({name: array for name, array in feeds.items() if name != f"x{WIDE}"}))
    assert reply.status_code == 400, reply.text
    assert 'missing required input(s) ["x7"]' in reply.json()["error"]


# --------------------------------------------------------------------------------------------------------------- memory


def test_memory_that_is_not_there(server):
    """The reason is told; the next request is answered."""
    reply = post(server, "hungry", described({"n": np.array([200_000, 200_000], np.int64)}))
    assert reply.status_code == 500, reply.text
    for words in ("not enough memory", "160000000000"):
        assert words in reply.json()["error"]
    request = service_pb2.ModelInferRequest(model_name="hungry")
    request.inputs.add(name="n", datatype="INT64", shape=[2]).contents.int64_contents.extend([200_000, 200_000])
    with grpc.insecure_channel(server.grpc) as channel, pytest.raises(grpc.RpcError) as caught:
        service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(request, timeout=60)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "not enough memory" in caught.value.details()
    same(over_rest(server, "hungry", {"n": np.array([2, 3], np.int64)}), {"y": np.zeros((), np.float32)})


# ---------------------------------------------------------------------------------------- what is said at the beginning


def test_a_model_that_always_fails(server):
    assert onnx_service.index(server)["never"]["state"] == "READY"
    (line,) = warned(server, "never")
    assert "its first run, on made up inputs, failed" in line and "Reshape" in line


@pytest.mark.parametrize(("name", "rank"), [("unstated", 2), ("lists", 3)])
def test_an_output_of_which_nothing_is_stated(server, name, rank):
    """How many dimensions it has is seen when it is loaded."""
    (output,) = requests.get(f"{server.url}/v2/models/{name}").json()["outputs"]
    assert output["shape"] == [-1] * rank
