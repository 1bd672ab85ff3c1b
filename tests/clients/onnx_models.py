"""Models made with the `onnx` package, each with requests that fit it. Everything is seeded.

A `Model` says what it takes and what must hold when it is served; its right answers come from `onnxruntime`, which
`onnx_service.py` asks. Those of scikit-learn are in `onnx_sklearn.py`, those that mean harm in `onnx_hostile.py`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto as T
from onnx import helper, numpy_helper

# What onnxruntime 1.24 reads, and all later ones: the newest of the `onnx` package may be newer than the library's.
IR_VERSION, OPSET = 10, 21

NODE = helper.make_node
PORT = helper.make_tensor_value_info


@dataclass
class Model:
    """A file, and requests that it answers."""

    name: str
    proto: onnx.ModelProto
    # Inputs by name for about so many rows, of a random generator.
    ask: Callable
    # May requests be computed together?
    batched: bool = True
    # Names of the classes of an output that a ZipMap makes, in order.
    classes: tuple = ()
    # Tensors that lie in a file beside it.
    external: bool = False

    @property
    def data(self):
        return self.proto.SerializeToString()

    def asks(self, count, rows=3, seed=0):
        """That many requests that differ."""
        random = np.random.default_rng(seed)
        return [self.ask(random, rows) for _ in range(count)]


def constant(name, values, kind=None):
    return numpy_helper.from_array(np.ascontiguousarray(np.asarray(values, kind)), name)


def proto(nodes, inputs, outputs, initializers=(), opsets=(), **more):
    """A model of one graph, which must be as the standard has it."""
    made = unchecked(nodes, inputs, outputs, initializers, opsets, **more)
    onnx.checker.check_model(made, full_check=True)
    return made


def unchecked(nodes, inputs, outputs, initializers=(), opsets=(), **more):
    graph = helper.make_graph(nodes, "graph", inputs, outputs, list(initializers))
    opsets = [helper.make_opsetid("", OPSET), *(helper.make_opsetid(*each) for each in opsets)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="tests", **more)


def weights(random, *shape):
    """Small enough that layers of them stay tame."""
    return (random.standard_normal(shape) / np.sqrt(shape[-1])).astype(np.float32)


def floats(random, *shape):
    return random.standard_normal(shape).astype(np.float32)


# ----------------------------------------------------------------------------------------------------------------- nets


def convolutional():
    """Images to ten logits."""
    random = np.random.default_rng(1)
    initializers = [
        constant("w1", weights(random, 8, 3, 3, 3)),
        constant("b1", weights(random, 8)),
        constant("w2", weights(random, 16, 8, 3, 3)),
        constant("b2", weights(random, 16)),
        constant("w3", weights(random, 10, 16)),
        constant("b3", weights(random, 10)),
    ]
    nodes = [
        NODE("Conv", ["image", "w1", "b1"], ["c1"], pads=[1] * 4),
        NODE("Relu", ["c1"], ["r1"]),
        NODE("MaxPool", ["r1"], ["p1"], kernel_shape=[2, 2], strides=[2, 2]),
        NODE("Conv", ["p1", "w2", "b2"], ["c2"], pads=[1] * 4),
        NODE("Relu", ["c2"], ["r2"]),
        NODE("GlobalAveragePool", ["r2"], ["p2"]),
        NODE("Flatten", ["p2"], ["flat"]),
        NODE("Gemm", ["flat", "w3", "b3"], ["logits"], transB=1),
    ]
    made = proto(
        nodes,
        [PORT("image", T.FLOAT, ["batch", 3, 16, 16])],
        [PORT("logits", T.FLOAT, ["batch", 10])],
        initializers,
    )
    return Model("convolutional", made, lambda random, rows: {"image": floats(random, rows, 3, 16, 16)})


VOCABULARY, WIDTH, HEADS, POSITIONS = 50, 16, 2, 32


def transformer():
    """Two layers of an encoder: ids and a mask, of any length up to POSITIONS."""
    random = np.random.default_rng(2)
    initializers = [
        constant("words", weights(random, VOCABULARY, WIDTH)),
        constant("places", weights(random, POSITIONS, WIDTH)),
        constant("split", [0, 0, HEADS, WIDTH // HEADS], np.int64),
        constant("join", [0, 0, WIDTH], np.int64),
        constant("root", np.sqrt(WIDTH / HEADS), np.float32),
        constant("far", -1e9, np.float32),
        constant("one", 1, np.float32),
        constant("zero", [0], np.int64),
        constant("axes", [1, 2], np.int64),
        constant("last", [2], np.int64),
        constant("second", [1], np.int64),
    ]
    nodes = [
        NODE("Gather", ["words", "ids"], ["embedded"]),
        NODE("Shape", ["ids"], ["length"], start=1, end=2),
        NODE("Slice", ["places", "zero", "length"], ["placed"]),
        NODE("Add", ["embedded", "placed"], ["layer0"]),
        # 0 where the mask is 1, and far below everything where it is 0.
        NODE("Cast", ["mask"], ["present"], to=T.FLOAT),
        NODE("Sub", ["one", "present"], ["absent"]),
        NODE("Mul", ["absent", "far"], ["bias2"]),
        NODE("Unsqueeze", ["bias2", "axes"], ["bias"]),
    ]
    for layer in range(2):
        more_nodes, more_initializers = encoder_layer(random, layer)
        nodes += more_nodes
        initializers += more_initializers
    nodes += [
        NODE("Identity", ["layer2"], ["hidden"]),
        NODE("Unsqueeze", ["present", "last"], ["present3"]),
        NODE("Mul", ["hidden", "present3"], ["kept"]),
        NODE("ReduceSum", ["kept", "second"], ["sum"], keepdims=0),
        NODE("ReduceSum", ["present", "second"], ["count"], keepdims=1),
        NODE("Div", ["sum", "count"], ["pooled"]),
    ]
    made = proto(
        nodes,
        [PORT(name, T.INT64, ["batch", "sequence"]) for name in ("ids", "mask")],
        [PORT("hidden", T.FLOAT, ["batch", "sequence", WIDTH]), PORT("pooled", T.FLOAT, ["batch", WIDTH])],
        initializers,
    )
    return Model("transformer", made, ask_transformer)


def encoder_layer(random, layer):
    """Attention and a feed-forward net, each with its norm, from `layerN` to `layerN+1`."""

    def at(name):
        return f"{name}.{layer}"

    initializers, nodes = [], []
    for name in "qkvo":
        initializers.append(constant(at(f"w{name}"), weights(random, WIDTH, WIDTH)))
    initializers += [
        constant(at("up"), weights(random, WIDTH, 4 * WIDTH)),
        constant(at("down"), weights(random, 4 * WIDTH, WIDTH)),
        *(constant(at(name), 1 + weights(random, WIDTH)) for name in ("scale1", "scale2")),
        *(constant(at(name), weights(random, WIDTH)) for name in ("shift1", "shift2")),
    ]
    for name, order in (("q", [0, 2, 1, 3]), ("k", [0, 2, 3, 1]), ("v", [0, 2, 1, 3])):
        nodes += [
            NODE("MatMul", [f"layer{layer}", at(f"w{name}")], [at(name)]),
            NODE("Reshape", [at(name), "split"], [at(f"{name}4")]),
            NODE("Transpose", [at(f"{name}4")], [at(f"{name}h")], perm=order),
        ]
    nodes += [
        NODE("MatMul", [at("qh"), at("kh")], [at("product")]),
        NODE("Div", [at("product"), "root"], [at("scores")]),
        NODE("Add", [at("scores"), "bias"], [at("masked")]),
        NODE("Softmax", [at("masked")], [at("chances")], axis=-1),
        NODE("MatMul", [at("chances"), at("vh")], [at("mixed")]),
        NODE("Transpose", [at("mixed")], [at("back")], perm=[0, 2, 1, 3]),
        NODE("Reshape", [at("back"), "join"], [at("joined")]),
        NODE("MatMul", [at("joined"), at("wo")], [at("attended")]),
        NODE("Add", [f"layer{layer}", at("attended")], [at("sum1")]),
        NODE("LayerNormalization", [at("sum1"), at("scale1"), at("shift1")], [at("norm1")], axis=-1),
        NODE("MatMul", [at("norm1"), at("up")], [at("wide")]),
        NODE("Gelu", [at("wide")], [at("bent")]),
        NODE("MatMul", [at("bent"), at("down")], [at("narrow")]),
        NODE("Add", [at("norm1"), at("narrow")], [at("sum2")]),
        NODE("LayerNormalization", [at("sum2"), at("scale2"), at("shift2")], [f"layer{layer + 1}"], axis=-1),
    ]
    return nodes, initializers


def ask_transformer(random, rows, length=None):
    length = length or int(random.integers(2, 12))
    mask = np.ones((rows, length), np.int64)
    for row in range(rows):
        mask[row, int(random.integers(1, length + 1)) :] = 0
    return {"ids": random.integers(0, VOCABULARY, (rows, length)), "mask": mask}


# -------------------------------------------------------------------------------------------------------------- forests


def trees():
    """Two stumps in the form that ai.onnx.ml has had since its version 5."""
    node = NODE(
        "TreeEnsemble",
        ["x"],
        ["y"],
        domain="ai.onnx.ml",
        n_targets=2,
        nodes_featureids=[0, 1],
        nodes_splits=numpy_helper.from_array(np.array([0.5, -0.25], np.float32)),
        nodes_modes=numpy_helper.from_array(np.array([0, 0], np.uint8)),
        nodes_truenodeids=[0, 2],
        nodes_falsenodeids=[1, 3],
        nodes_trueleafs=[1, 1],
        nodes_falseleafs=[1, 1],
        leaf_targetids=[0, 1, 1, 0],
        leaf_weights=numpy_helper.from_array(np.array([1.5, -2, 0.125, 8], np.float32)),
        tree_roots=[0, 1],
        post_transform=0,
        aggregate_function=1,
    )
    made = proto([node], [PORT("x", T.FLOAT, ["N", 2])], [PORT("y", T.FLOAT, ["N", 2])], opsets=[("ai.onnx.ml", 5)])
    return Model("trees", made, lambda random, rows: {"x": floats(random, rows, 2)})


def zipmap():
    """Classes in an order of their own: that of the columns before maps are made of them."""
    classes = ["pear", "apple", "fig"]
    random = np.random.default_rng(7)
    nodes = [
        NODE("MatMul", ["x", "w"], ["z"]),
        NODE("Softmax", ["z"], ["p"], axis=1),
        NODE("ZipMap", ["p"], ["chances"], domain="ai.onnx.ml", classlabels_strings=classes),
    ]
    chances = helper.make_tensor_value_info("chances", T.FLOAT, None)
    maps = helper.make_map_type_proto(T.STRING, helper.make_tensor_type_proto(T.FLOAT, None))
    chances.type.CopyFrom(helper.make_sequence_type_proto(maps))
    inputs, initializers = [PORT("x", T.FLOAT, ["N", 4])], [constant("w", weights(random, 4, 3))]
    made = unchecked(nodes, inputs, [chances], initializers, [("ai.onnx.ml", 3)])
    return Model("zipmap", made, lambda random, rows: {"x": floats(random, rows, 4)}, classes=tuple(classes))


# ---------------------------------------------------------------------------------------------------------------- types

# Triton's name, ONNX's, and numpy's.
KINDS = {
    "BOOL": (T.BOOL, np.bool_),
    "UINT8": (T.UINT8, np.uint8),
    "UINT16": (T.UINT16, np.uint16),
    "UINT32": (T.UINT32, np.uint32),
    "UINT64": (T.UINT64, np.uint64),
    "INT8": (T.INT8, np.int8),
    "INT16": (T.INT16, np.int16),
    "INT32": (T.INT32, np.int32),
    "INT64": (T.INT64, np.int64),
    "FP16": (T.FLOAT16, np.float16),
    "BF16": (T.BFLOAT16, ml_dtypes.bfloat16),
    "FP32": (T.FLOAT, np.float32),
    "FP64": (T.DOUBLE, np.float64),
    "BYTES": (T.STRING, np.object_),
}

WORDS = np.array(["", "a", "Grüße", "日本語", "two words", 'quote " and \\', "line\nbreak", "\x01", "x" * 300], object)


def values(datatype, random, *shape):
    """Values that use the whole range of a type."""
    kind = KINDS[datatype][1]
    if datatype == "BYTES":
        return random.choice(WORDS, shape).astype(object)
    if datatype == "BOOL":
        return random.integers(0, 2, shape).astype(bool)
    if datatype.startswith(("INT", "UINT")):
        bounds = np.iinfo(kind)
        return random.integers(bounds.min, bounds.max, shape, dtype=kind, endpoint=True)
    return random.standard_normal(shape).astype(kind)


def same(datatype):
    """Gives back what it was given."""
    kind = KINDS[datatype][0]
    made = proto([NODE("Identity", ["x"], ["y"])], [PORT("x", kind, ["N", 3])], [PORT("y", kind, ["N", 3])])
    return Model(f"same-{datatype.lower()}", made, lambda random, rows: {"x": values(datatype, random, rows, 3)})


def mixed():
    """Inputs of several types, and outputs of several ranks and types."""
    nodes = [
        NODE("Cast", ["count"], ["number"], to=T.FLOAT),
        NODE("Mul", ["x", "number"], ["product"]),
        NODE("ReduceSum", ["product", "axis"], ["sum"], keepdims=0),
        NODE("ArgMax", ["x"], ["best"], axis=1, keepdims=1),
        NODE("Identity", ["word"], ["echo"]),
        NODE("Not", ["flag"], ["other"]),
    ]
    inputs = [
        PORT("x", T.FLOAT, ["N", 4]),
        PORT("count", T.INT32, ["N", 1]),
        PORT("word", T.STRING, ["N"]),
        PORT("flag", T.BOOL, ["N", 1]),
    ]
    outputs = [
        PORT("sum", T.FLOAT, ["N"]),
        PORT("best", T.INT64, ["N", 1]),
        PORT("echo", T.STRING, ["N"]),
        PORT("other", T.BOOL, ["N", 1]),
    ]

    def ask(random, rows):
        return {
            "x": floats(random, rows, 4),
            "count": random.integers(-9, 9, (rows, 1)).astype(np.int32),
            "word": values("BYTES", random, rows),
            "flag": values("BOOL", random, rows, 1),
        }

    return Model("mixed", proto(nodes, inputs, outputs, [constant("axis", [1], np.int64)]), ask)


def scalar():
    """Tensors without dimensions."""
    made = proto(
        [NODE("Mul", ["a", "b"], ["y"]), NODE("ReduceSum", ["y"], ["z"], keepdims=0)],
        [PORT("a", T.FLOAT, []), PORT("b", T.FLOAT, [])],
        [PORT("y", T.FLOAT, []), PORT("z", T.FLOAT, [])],
    )
    return Model("scalar", made, lambda random, _: {"a": floats(random), "b": floats(random)}, batched=False)


def optional():
    """`scale` may be left out: the file has a value for it."""
    made = proto(
        [NODE("Mul", ["x", "scale"], ["y"])],
        [PORT("x", T.FLOAT, ["N", 2]), PORT("scale", T.FLOAT, [2])],
        [PORT("y", T.FLOAT, ["N", 2])],
        [constant("scale", [2, 3], np.float32)],
    )
    return Model("optional", made, lambda random, rows: {"x": floats(random, rows, 2)}, batched=False)


# ------------------------------------------------------------------------------------ what must not be put into a batch


def fixed():
    """Always four rows."""
    made = proto([NODE("Relu", ["x"], ["y"])], [PORT("x", T.FLOAT, [4, 3])], [PORT("y", T.FLOAT, [4, 3])])
    return Model("fixed", made, lambda random, _: {"x": floats(random, 4, 3)}, batched=False)


def over_rows(name, nodes, width=3, output=None, initializers=()):
    """A model of x whose rows are not independent."""
    made = proto(
        nodes,
        [PORT("x", T.FLOAT, ["N", width])],
        [PORT("y", T.FLOAT, output or ["N", width])],
        initializers,
    )
    return Model(name, made, lambda random, rows: {"x": floats(random, rows, width)}, batched=False)


def softmax():
    return over_rows("softmax", [NODE("Softmax", ["x"], ["y"], axis=0)])


def running():
    """Sums of all rows before: of zeros they are zeros, however many."""
    return over_rows("running", [NODE("CumSum", ["x", "axis"], ["y"])], initializers=[constant("axis", 0, np.int64)])


def centred():
    """Of rows that are all alike, nothing is left."""
    nodes = [NODE("ReduceMean", ["x", "axes"], ["mean"], keepdims=1), NODE("Sub", ["x", "mean"], ["y"])]
    return over_rows("centred", nodes, initializers=[constant("axes", [0], np.int64)])


def similar():
    """Each row with each."""
    nodes = [NODE("Transpose", ["x"], ["t"], perm=[1, 0]), NODE("MatMul", ["x", "t"], ["y"])]
    return over_rows("similar", nodes, output=["N", "N"])


def reversed_rows():
    """The first row comes last."""
    nodes = [NODE("Slice", ["x", "start", "end", "axis", "step"], ["y"])]
    bounds = {"start": -1, "end": -(2**31), "axis": 0, "step": -1}
    constants = [constant(name, [value], np.int64) for name, value in bounds.items()]
    return over_rows("reversed", nodes, initializers=constants)


def joined():
    """Rows of two inputs one after another, and not as many of each."""
    made = proto(
        [NODE("Concat", ["a", "b"], ["y"], axis=0)],
        [PORT("a", T.FLOAT, ["A", 2]), PORT("b", T.FLOAT, ["B", 2])],
        [PORT("y", T.FLOAT, ["Y", 2])],
    )

    def ask(random, rows):
        return {"a": floats(random, rows, 2), "b": floats(random, int(random.integers(1, 4)), 2)}

    return Model("joined", made, ask, batched=False)


# ------------------------------------------------------------------------------------------------------- slow and large


def slow():
    """A million steps take minutes, none take nothing. What is being computed can be stopped between two of them."""
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
        NODE("Squeeze", ["steps"], ["count"]),
        NODE("Loop", ["count", "", "x"], ["z"], body=body),
        NODE("ReduceSum", ["z"], ["y"], keepdims=0),
    ]
    made = proto(nodes, [PORT("steps", T.INT64, [1]), PORT("x", T.FLOAT, [64, 256])], [PORT("y", T.FLOAT, [])])
    return Model("slow", made, lambda random, rows: ask_slow(rows), batched=False)


def ask_slow(steps):
    return {"steps": np.array([steps], np.int64), "x": np.ones((64, 256), np.float32)}


def large(megabytes=20):
    """One matrix, which nothing packs."""
    rows = megabytes * 1024 * 1024 // 4 // 1024
    made = proto(
        [NODE("MatMul", ["x", "w"], ["y"])],
        [PORT("x", T.FLOAT, ["N", rows])],
        [PORT("y", T.FLOAT, ["N", 1024])],
        [constant("w", weights(np.random.default_rng(4), rows, 1024))],
    )
    return Model("large", made, lambda random, count: {"x": floats(random, count, rows)}, external=True)


def sequence():
    """Its output is a list of tensors."""
    made = proto(
        [NODE("SplitToSequence", ["x"], ["y"], axis=0)],
        [PORT("x", T.FLOAT, ["N", 3])],
        [helper.make_tensor_sequence_value_info("y", T.FLOAT, None)],
    )
    return Model("sequence", made, lambda random, rows: {"x": floats(random, rows, 3)})


def all_models():
    """Those that are served together."""
    nets = (convolutional, transformer, trees, zipmap, mixed, scalar, optional)
    others = (fixed, softmax, running, centred, similar, reversed_rows, joined, slow, large, sequence)
    made = [make() for make in (*nets, *others)]
    return [*made, *(same(datatype) for datatype in KINDS)]
