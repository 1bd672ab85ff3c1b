"""Graphs that are in order and odd: values that are missing, rows that meet though each is answered alone, shapes of
which nothing is known. Those that every server of the tests has are in `onnx_models.py`.
"""

import numpy as np
import onnx
from onnx import TensorProto as T
from onnx import helper
from onnx_models import NODE, PORT, Model, constant, floats, over_rows, proto, unchecked, weights

# To the end, as exporters write it.
INT_MAX = 2**31 - 1


def absent():
    """Its output has a value where the flag is set, and none otherwise."""
    kind = helper.make_tensor_type_proto(T.FLOAT, ["N", 2])
    maybe = helper.make_optional_type_proto(kind)

    def branch(name, node):
        return helper.make_graph([node], name, [], [helper.make_value_info(node.output[0], maybe)])

    nodes = [
        NODE("Squeeze", ["flag"], ["f"]),
        NODE(
            "If",
            ["f"],
            ["y"],
            then_branch=branch("then", NODE("Optional", ["x"], ["some"])),
            else_branch=branch("else", NODE("Optional", [], ["none"], type=kind)),
        ),
        NODE("Identity", ["x"], ["z"]),
    ]
    inputs = [PORT("x", T.FLOAT, ["N", 2]), PORT("flag", T.BOOL, [1])]
    made = unchecked(nodes, inputs, [helper.make_value_info("y", maybe), PORT("z", T.FLOAT, ["N", 2])])
    onnx.checker.check_model(made, full_check=True)
    return Model("absent", made, ask_absent, batched=False)


def ask_absent(random, rows, flag=True):
    return {"x": floats(random, rows, 2), "flag": np.array([flag])}


def patient():
    """As many steps as the row that wants most of them. Rows are apart, and are what they were before."""
    body = helper.make_graph(
        [
            NODE("Identity", ["go"], ["on"]),
            NODE("MatMul", ["state", "w"], ["product"]),
            NODE("Tanh", ["product"], ["next"]),
        ],
        "body",
        [PORT("step", T.INT64, []), PORT("go", T.BOOL, []), PORT("state", T.FLOAT, None)],
        [PORT("on", T.BOOL, []), PORT("next", T.FLOAT, None)],
        [constant("w", weights(np.random.default_rng(3), 256, 256))],
    )
    nodes = [
        NODE("ReduceMax", ["steps"], ["most"], keepdims=0),
        NODE("Loop", ["most", "", "x"], ["z"], body=body),
        # Nothing that is folded: for all that is known, a step may give what is no number.
        NODE("Mul", ["z", "nought"], ["nothing"]),
        NODE("Add", ["x", "nothing"], ["y"]),
    ]
    made = proto(
        nodes,
        [PORT("steps", T.INT64, ["N", 1]), PORT("x", T.FLOAT, ["N", 256])],
        [PORT("y", T.FLOAT, ["N", 256])],
        [constant("nought", 0, np.float32)],
    )
    return Model("patient", made, lambda random, rows: ask_patient(random, rows, 3))


def ask_patient(random, rows, steps):
    return {"steps": np.full((rows, 1), steps, np.int64), "x": floats(random, rows, 256)}


def spread(first="N", second="M"):
    """Two tables one on the other; of different names, they may have different numbers of rows."""
    made = proto(
        [NODE("Add", ["a", "b"], ["y"])],
        [PORT("a", T.FLOAT, [first, 2]), PORT("b", T.FLOAT, [second, 2])],
        [PORT("y", T.FLOAT, ["Y", 2])],
    )

    def ask(random, rows, others=None):
        return {"a": floats(random, rows, 2), "b": floats(random, others or rows, 2)}

    return Model("spread", made, ask)


# ---------------------------------------------------------------------------------------- rows that meet, in their ways


def head():
    """The first row is added to those behind it, which a single one has none of: they go on to the greatest number."""
    bounds = {"none": [0], "one": [1], "end": [INT_MAX]}
    nodes = [
        NODE("Slice", ["x", "none", "one"], ["first"]),
        NODE("Slice", ["x", "one", "end"], ["rest"]),
        NODE("Add", ["rest", "first"], ["moved"]),
        NODE("Concat", ["first", "moved"], ["y"], axis=0),
    ]
    return over_rows("head", nodes, initializers=[constant(name, value, np.int64) for name, value in bounds.items()])


def halves():
    """The second half comes first; of one row, the second half is empty."""
    nodes = [
        NODE("Shape", ["x"], ["rows"], start=0, end=1),
        NODE("Div", ["rows", "two"], ["half"]),
        NODE("Sub", ["rows", "half"], ["rest"]),
        NODE("Concat", ["rest", "half"], ["sizes"], axis=0),
        NODE("Split", ["x", "sizes"], ["a", "b"], axis=0),
        NODE("Concat", ["b", "a"], ["y"], axis=0),
    ]
    return over_rows("halves", nodes, initializers=[constant("two", [2], np.int64)])


def times():
    """A recurrent net whose steps are the rows: each has seen those before it."""
    random = np.random.default_rng(21)
    nodes = [
        NODE("Unsqueeze", ["x", "one"], ["steps"]),
        NODE("RNN", ["steps", "w", "r"], ["all"], hidden_size=3),
        NODE("Squeeze", ["all", "middle"], ["y"]),
    ]
    constants = [
        constant("one", [1], np.int64),
        constant("middle", [1, 2], np.int64),
        constant("w", weights(random, 1, 3, 3)),
        constant("r", weights(random, 1, 3, 3)),
    ]
    return over_rows("times", nodes, initializers=constants)


def states():
    """A recurrent net over one step, whose first state is the mean of the batch."""
    random = np.random.default_rng(22)
    nodes = [
        NODE("Unsqueeze", ["x", "none"], ["step"]),
        NODE("ReduceMean", ["x", "none"], ["mean"], keepdims=1),
        NODE("Shape", ["x"], ["shape"]),
        NODE("Expand", ["mean", "shape"], ["means"]),
        NODE("Unsqueeze", ["means", "none"], ["state"]),
        NODE("RNN", ["step", "w", "r", "", "", "state"], ["all"], hidden_size=3),
        NODE("Squeeze", ["all", "front"], ["y"]),
    ]
    constants = [
        constant("none", [0], np.int64),
        constant("front", [0, 1], np.int64),
        constant("w", weights(random, 1, 3, 3)),
        constant("r", weights(random, 1, 3, 3)),
    ]
    return over_rows("states", nodes, initializers=constants)


def peaks():
    """Rows are measured against the greatest number of all, once that is beyond any that a trial makes up."""
    nodes = [
        NODE("ReduceMax", ["x"], ["most"], keepdims=0),
        NODE("Max", ["most", "floor"], ["scale"]),
        NODE("Div", ["x", "scale"], ["y"]),
    ]
    return over_rows("peaks", nodes, initializers=[constant("floor", 1000, np.float32)])


MEETING = (head, halves, times, states, peaks)

# ----------------------------------------------------------------------------------------------------- shapes and names


def one(name, inputs, outputs, node, initializers=(), batched=False):
    return Model(name, unchecked([node], inputs, outputs, initializers), None, batched=batched)


def doubled(name, shape, output=None):
    """x and x, of any shape that fits `shape`; None says nothing of it."""
    ports = [PORT("x", T.FLOAT, shape)], [PORT("y", T.FLOAT, output or shape)]
    return one(name, *ports, NODE("Add", ["x", "x"], ["y"]))


def product():
    """Of two matrices that nothing is known of but their ranks."""
    ports = [PORT(name, T.FLOAT, [f"{name}1", f"{name}2"]) for name in "ab"]
    return one("product", ports, [PORT("y", T.FLOAT, ["y1", "y2"])], NODE("MatMul", ["a", "b"], ["y"]))


def nothing():
    """Takes nothing, and always says the same."""
    value = constant("value", [1.5, 2.5], np.float32)
    return one("nothing", [], [PORT("y", T.FLOAT, [2])], NODE("Constant", [], ["y"], value=value))


def words():
    """By number; the first is no UTF-8."""
    table = helper.make_tensor("table", T.STRING, [2], [b"\xff\xfe", b"ok"])
    ports = [PORT("x", T.INT64, ["N"])], [PORT("y", T.STRING, ["N"])]
    return one("words", *ports, NODE("Gather", ["table", "x"], ["y"]), [table])


def classes():
    """A table, the sum of all that is in it, and what a list of fixed length has."""
    nodes = [
        NODE("Identity", ["x"], ["table"]),
        NODE("ReduceSum", ["x"], ["sum"], keepdims=0),
        NODE("ReduceSum", ["x", "rows"], ["list"], keepdims=0),
    ]
    outputs = [PORT("table", T.FLOAT, ["N", 3]), PORT("sum", T.FLOAT, []), PORT("list", T.FLOAT, [3])]
    made = proto(nodes, [PORT("x", T.FLOAT, ["N", 3])], outputs, [constant("rows", [0], np.int64)])
    return Model("classes", made, lambda random, rows: {"x": floats(random, rows, 3)}, batched=False)
