"""ONNX models over protocol v1: rows of one input, rows as objects, columns by name, as TensorFlow Serving has them."""

import numpy as np
import onnx_service
import pytest
from onnx_service import predict

# What v1 can say: no half precision, no scalars.
PLAIN = ["convolutional", "trees", "zipmap", "similar", "running", "fixed", "large", "regressor", "plain", "forest",
         "zipmap-numbers", "zipmap-names", "columns", "same-bool", "same-int64", "same-uint8", "same-fp32", "same-fp64",
         "same-bytes", "same-int8", "same-uint16", "same-int32", "same-uint32", "same-int16"]  # fmt: skip
SEVERAL = ["pipeline", "mixed", "transformer"]


@pytest.fixture(scope="module")
def nets():
    return onnx_service.models()


def widened(array):
    """Values as JSON has them: floats of 32 bits as the doubles that they are."""
    return (array.astype(np.float64) if array.dtype.kind == "f" else array).tolist()


def predictions(name, feeds):
    """One output as it is; of several, an object for each row."""
    outputs = {key: widened(array) for key, array in onnx_service.oracle(name).answer(feeds).items()}
    if len(outputs) == 1:
        return next(iter(outputs.values()))
    return [dict(zip(outputs, row)) for row in zip(*outputs.values(), strict=True)]


def rows(feeds):
    columns = {name: widened(array) for name, array in feeds.items()}
    return [dict(zip(columns, row)) for row in zip(*columns.values(), strict=True)]


def assert_answer(reply, expected):
    assert reply.status_code == 200, reply.text
    assert reply.json() == {"predictions": expected}


@pytest.mark.parametrize("key", ["instances", "inputs"])
@pytest.mark.parametrize("name", PLAIN)
def test_the_one_input(onnx_server, nets, name, key):
    (feeds,) = nets[name].asks(1)
    (values,) = feeds.values()
    assert_answer(predict(onnx_server, name, {key: widened(values)}), predictions(name, feeds))


@pytest.mark.parametrize("name", [*PLAIN, *SEVERAL])
def test_rows_by_name(onnx_server, nets, name):
    (feeds,) = nets[name].asks(1)
    assert_answer(predict(onnx_server, name, {"instances": rows(feeds)}), predictions(name, feeds))


@pytest.mark.parametrize("name", [*PLAIN, *SEVERAL, "joined"])
def test_columns_by_name(onnx_server, nets, name):
    (feeds,) = nets[name].asks(1)
    body = {"inputs": {key: widened(array) for key, array in feeds.items()}}
    assert_answer(predict(onnx_server, name, body), predictions(name, feeds))


def test_values_in_place_of_lists_of_one(onnx_server, nets):
    """`"price": 3` where the graph has `[3]`: what people write."""
    (feeds,) = nets["pipeline"].asks(1)
    plain = [{name: values[0] for name, values in row.items()} for row in rows(feeds)]
    assert_answer(predict(onnx_server, "pipeline", {"instances": plain}), predictions("pipeline", feeds))


def test_whole_numbers_for_floats(onnx_server):
    reply = predict(onnx_server, "same-fp32", {"instances": [[1, 2, 3]]})
    assert_answer(reply, [[1.0, 2.0, 3.0]])


@pytest.mark.parametrize("name", ["same-int64", "same-uint64"])
def test_large_whole_numbers(onnx_server, name):
    """Beyond what a float holds."""
    values = [[2**63 - 1, 2**53 + 1, 1]]
    assert_answer(predict(onnx_server, name, {"instances": values}), values)


def test_the_largest_whole_number(onnx_server):
    values = [[2**64 - 1, 2**63, 0]]
    assert_answer(predict(onnx_server, "same-uint64", {"instances": values}), values)


def test_what_may_be_left_out(onnx_server):
    assert_answer(predict(onnx_server, "optional", {"instances": [[1, 2]]}), [[2.0, 6.0]])
    body = {"inputs": {"x": [[1, 2]], "scale": [5, 7]}}
    assert_answer(predict(onnx_server, "optional", body), [[5.0, 14.0]])


def test_scalars_by_name(onnx_server):
    """There are no rows: one object."""
    reply = predict(onnx_server, "scalar", {"inputs": {"a": 2, "b": 3.5}})
    assert_answer(reply, {"y": 7.0, "z": 7.0})


WINE = {"review": "a", "colour": "red", "price": 1}
REFUSED = {
    "no name for several": ("pipeline", {"instances": [[1, 2, 3, 4]]}, ["review", "colour", "price", "age"]),
    "a name missing in all": ("mixed", {"instances": [{"x": [1, 2, 3, 4]}]}, ["count"]),
    "a name missing in one": ("pipeline", {"instances": [WINE | {"age": 2}, WINE]}, ["age"]),
    "an unknown name": ("same-fp32", {"instances": [{"z": [1, 2, 3]}]}, ["z", "x"]),
    "text for numbers": ("same-fp32", {"instances": [["a", "b", "c"]]}, ["x"]),
    "numbers for text": ("same-bytes", {"instances": [[1, 2, 3]]}, ["x", "text"]),
    "a fraction for whole numbers": ("same-int64", {"instances": [[1, 2, 3.5]]}, ["x", "INT64", "3.5"]),
    "beyond the type": ("same-int8", {"instances": [[1, 2, 300]]}, ["x", "INT8", "300"]),
    "ragged": ("same-fp32", {"instances": [[1, 2, 3], [1, 2]]}, ["x", "3", "2"]),
    "too wide": ("same-fp32", {"instances": [[1, 2, 3, 4]]}, ["x", "4", "3"]),
    "too few dimensions": ("convolutional", {"instances": [[1, 2]]}, ["image", "[1,2]"]),
    "nothing": ("same-fp32", {}, ["instances"]),
    "no list": ("same-fp32", {"instances": 3}, ["instances"]),
    "objects and lists": ("same-fp32", {"instances": [{"x": [1, 2, 3]}, [1, 2, 3]]}, ["instances[1]"]),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refused(onnx_server, case):
    name, body, words = REFUSED[case]
    reply = predict(onnx_server, name, body)
    assert reply.status_code == 400, reply.text
    for word in words:
        assert word in reply.json()["error"]
