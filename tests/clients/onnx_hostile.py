"""ONNX files that mean harm: they reach for other files, are broken, or crash, hang and balloon ONNX Runtime 1.31.

Each is written into a model's directory. None harms who only reads it; those of `NATIVE` must not be opened with
`onnxruntime` in a process that is to live.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto as T
from onnx import helper
from onnx_models import NODE, PORT, constant, unchecked

# Values of the one tensor that lies outside, and the bytes that they take.
SHAPE = [4, 3]
BYTES = 48
X, Y = PORT("x", T.FLOAT, ["N", 4]), PORT("y", T.FLOAT, ["N", 3])


@dataclass
class Hostile:
    """`write` makes the file in a directory; `secret` is a file outside of it that is large enough. The reason why the
    model is not served has one of `words` in it."""

    write: Callable
    words: tuple


def save(folder, proto):
    data = proto if isinstance(proto, bytes) else proto.SerializeToString()
    (folder / "model.onnx").write_bytes(data)


# -------------------------------------------------------------------------------------------------------- external data


def external(location, offset=None, length=None, shape=SHAPE, kind=T.FLOAT):
    """A tensor whose values lie in `location`."""
    tensor = onnx.TensorProto(name="w", data_type=kind, dims=shape, data_location=T.EXTERNAL)
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        if value is not None:
            tensor.external_data.add(key=key, value=str(value))
    return tensor


def product(tensor):
    return unchecked([NODE("MatMul", ["x", "w"], ["y"])], [X], [Y], [tensor])


def at(location, **more):
    """External data at a path that may name the secret as `{secret}` or, from the model's directory, `{back}`."""

    def write(folder, secret):
        back = os.path.relpath(secret, folder)
        save(folder, product(external(location.format(secret=secret, back=back), **more)))

    return write


def beside(make, **more):
    """External data in `weights.bin`, which `make(path, secret)` makes."""

    def write(folder, secret):
        make(folder / "weights.bin", secret)
        save(folder, product(external("weights.bin", **more)))

    return write


def enough(path, _secret):
    path.write_bytes(bytes(BYTES))


def linked_folder(folder, secret):
    (folder / "inner").symlink_to(secret.parent)
    save(folder, product(external(f"inner/{secret.name}")))


def in_a_branch(folder, secret):
    """The tensor belongs to a branch of an If."""
    inner = external(os.path.relpath(secret, folder))
    branches = [
        helper.make_graph(
            [NODE("Identity", ["w"], [f"{name}_y"])], name, [], [PORT(f"{name}_y", T.FLOAT, SHAPE)], [inner]
        )
        for name in ("then", "else")
    ]
    choice = NODE("If", ["yes"], ["w2"], then_branch=branches[0], else_branch=branches[1])
    nodes = [choice, NODE("MatMul", ["x", "w2"], ["y"])]
    save(folder, unchecked(nodes, [X], [Y], [constant("yes", True)]))


def in_an_attribute(folder, secret):
    """It is the value of a Constant."""
    value = external(os.path.relpath(secret, folder))
    save(folder, unchecked([NODE("Constant", [], ["w"], value=value), NODE("MatMul", ["x", "w"], ["y"])], [X], [Y]))


def in_a_function(folder, secret):
    """It is the value of a Constant in a function of the file."""
    value = external(os.path.relpath(secret, folder))
    inner = [NODE("Constant", [], ["w"], value=value), NODE("MatMul", ["x", "w"], ["y"])]
    function = helper.make_function("own", "Product", ["x"], ["y"], inner, [helper.make_opsetid("", 21)])
    call = NODE("Product", ["x"], ["y"], domain="own")
    save(folder, unchecked([call], [X], [Y], opsets=[("own", 1)], functions=[function]))


def sparse(folder, secret):
    """It holds the values of a sparse tensor."""
    made = product(constant("other", np.ones(3, np.float32)))
    made.graph.ClearField("initializer")
    values = external(os.path.relpath(secret, folder), shape=[2])
    indices = constant("w_indices", [0, 5], np.int64)
    made.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, SHAPE))
    save(folder, made)


FILES = {
    "traversal": Hostile(at("../../../../../../../etc/passwd"), ("..",)),
    "traversal-to-a-file": Hostile(at("{back}"), ("..",)),
    "traversal-inside": Hostile(at("inner/../weights.bin"), ("..",)),
    "absolute": Hostile(at("{secret}"), ("absolute",)),
    "backslashes": Hostile(at("..\\..\\secret.bin"), ("backslash",)),
    "address": Hostile(at("*/_ORT_MEM_ADDR_/*", offset=4096, length=BYTES), ("'*'",)),
    "nowhere": Hostile(at(""), ("empty",)),
    "itself": Hostile(at("model.onnx"), (".onnx",)),
    "missing": Hostile(at("weights.bin"), ("weights.bin",)),
    "symlink": Hostile(beside(lambda path, secret: path.symlink_to(secret)), ("symbolic link",)),
    "linked-folder": Hostile(linked_folder, ("symbolic link",)),
    "hard-link": Hostile(beside(lambda path, secret: os.link(secret, path)), ("hard link",)),
    "pipe": Hostile(beside(lambda path, _: os.mkfifo(path)), ("regular file",)),
    "folder": Hostile(beside(lambda path, _: path.mkdir()), ("regular file",)),
    "device": Hostile(at("/dev/zero"), ("absolute",)),
    "far-offset": Hostile(beside(enough, offset=1 << 40), ("48 bytes",)),
    "just-over": Hostile(beside(enough, offset=4), ("48 bytes",)),
    "overflowing-offset": Hostile(beside(enough, offset=2**64 - 16), ("offset",)),
    "negative-offset": Hostile(beside(enough, offset=-16), ("offset",)),
    "offset-in-words": Hostile(beside(enough, offset="eight"), ("offset",)),
    "long-length": Hostile(beside(enough, length=1 << 40), ("length",)),
    "short-length": Hostile(beside(enough, length=8), ("length",)),
    "large-shape": Hostile(beside(enough, shape=[1 << 20, 1 << 20]), ("48 bytes", "bytes of it")),
    "overflowing-shape": Hostile(beside(enough, shape=[1 << 40, 1 << 40]), ("dimensions",)),
    "negative-shape": Hostile(beside(enough, shape=[-4, -3]), ("dimensions",)),
    "text-outside": Hostile(beside(enough, kind=T.STRING), ("text",)),
    "in-a-branch": Hostile(in_a_branch, ("..",)),
    "in-an-attribute": Hostile(in_an_attribute, ("..",)),
    "in-a-function": Hostile(in_a_function, ("..",)),
    "sparse": Hostile(sparse, ("..",)),
}

# --------------------------------------------------------------------------------------------------------- broken files


def plain():
    return product(constant("w", np.ones(SHAPE, np.float32)))


def bytes_of(make):
    return lambda folder, _: save(folder, make())


def changed(change):
    """A good model with something set to what it cannot be."""

    def make():
        made = plain()
        change(made)
        return made

    return bytes_of(make)


def cut(share):
    def make():
        data = plain().SerializeToString()
        return data[: int(len(data) * share)]

    return bytes_of(make)


def custom_operator():
    return unchecked([NODE("Steal", ["x"], ["y"], domain="com.example")], [X], [Y], opsets=[("com.example", 1)])


def compiled():
    """A node that names another file, which an execution provider would load."""
    node = NODE("EPContext", ["x"], ["y"], domain="com.microsoft", embed_mode=0, ep_cache_context="../secret.bin")
    return unchecked([node], [X], [Y], opsets=[("com.microsoft", 1)])


def chain_of_functions(length):
    """Each calls the next: ONNX Runtime overflows its stack."""
    sets = [helper.make_opsetid("", 21), helper.make_opsetid("own", 1)]

    def body(number):
        last = number + 1 == length
        return NODE("Abs", ["x"], ["y"]) if last else NODE(f"f{number + 1}", ["x"], ["y"], domain="own")

    functions = [helper.make_function("own", f"f{n}", ["x"], ["y"], [body(n)], sets) for n in range(length)]
    call = NODE("f0", ["x"], ["y"], domain="own")
    return unchecked([call], [X], [PORT("y", T.FLOAT, ["N", 4])], opsets=[("own", 1)], functions=functions)


def doubling_functions(length):
    """Each calls the next twice: a small file that grows into 2 to the power of `length` nodes."""
    sets = [helper.make_opsetid("", 21), helper.make_opsetid("own", 1)]

    def body(number):
        if number + 1 == length:
            return [NODE("Abs", ["x"], ["y"])]
        name = f"f{number + 1}"
        return [NODE(name, ["x"], ["z"], domain="own"), NODE(name, ["z"], ["y"], domain="own")]

    functions = [helper.make_function("own", f"f{n}", ["x"], ["y"], body(n), sets) for n in range(length)]
    call = NODE("f0", ["x"], ["y"], domain="own")
    return unchecked([call], [X], [PORT("y", T.FLOAT, ["N", 4])], opsets=[("own", 1)], functions=functions)


def nested(depth):
    """A message in a message in a message: graphs within attributes, written by hand."""
    inner = b""
    for _ in range(depth):
        for tag in (b"\x32", b"\x2a", b"\x0a"):  # attribute.g, node.attribute, graph.node
            inner = tag + varint(len(inner)) + inner
    return b"\x08\x0a\x3a" + varint(len(inner)) + inner + b"\x42\x02\x10\x15"


def varint(value):
    out = b""
    while value > 127:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])


def huge_initializer():
    tensor = onnx.TensorProto(name="w", data_type=T.FLOAT, dims=[1 << 31, 1 << 31])
    return product(tensor)


BROKEN = {
    "empty": Hostile(bytes_of(lambda: b""), ("byte", "graph")),
    "cut": Hostile(cut(0.6), ("byte", "graph")),
    "cut-by-a-byte": Hostile(bytes_of(lambda: plain().SerializeToString()[:-1]), ("byte", "graph")),
    "zeros": Hostile(bytes_of(lambda: bytes(4096)), ("byte", "graph")),
    "text": Hostile(bytes_of(lambda: b"This is no model.\n" * 100), ("byte", "graph")),
    "length-beyond-the-end": Hostile(bytes_of(lambda: b"\x08\x0a\x3a\xff\xff\xff\xff\x0f"), ("byte", "graph")),
    "own-format": Hostile(bytes_of(lambda: b"\x18\x00\x00\x00ORTM" + bytes(64)), (".ort",)),
    "no-graph": Hostile(changed(lambda made: made.ClearField("graph")), ("graph",)),
    "no-opset": Hostile(changed(lambda made: made.ClearField("opset_import")), ("opset",)),
    "future-format": Hostile(changed(lambda made: setattr(made, "ir_version", 9999)), ("version",)),
    "future-opset": Hostile(changed(lambda made: setattr(made.opset_import[0], "version", 9999)), ("opset",)),
    "no-such-operator": Hostile(changed(lambda made: setattr(made.graph.node[0], "op_type", "NoSuch")), ("NoSuch",)),
    "no-such-input": Hostile(changed(lambda made: made.graph.node[0].input.__setitem__(0, "zz")), ("zz",)),
    "two-graphs": Hostile(bytes_of(lambda: plain().SerializeToString() * 2), ("twice",)),
    "nested": Hostile(bytes_of(lambda: nested(2000)), ("nested",)),
    "huge-initializer": Hostile(bytes_of(huge_initializer), ("dimensions",)),
    "custom-operator": Hostile(bytes_of(custom_operator), ("com.example",)),
    "compiled": Hostile(bytes_of(compiled), ("compiled",)),
    "functions-in-a-chain": Hostile(bytes_of(lambda: chain_of_functions(5000)), ("deep",)),
    "functions-in-a-circle": Hostile(bytes_of(lambda: circle()), ("circle",)),
    "functions-that-double": Hostile(bytes_of(lambda: doubling_functions(60)), ("nodes",)),
}


def circle():
    made = chain_of_functions(3)
    made.functions[2].node[0].op_type, made.functions[2].node[0].domain = "f0", "own"
    return made


# ---------------------------------------------------------------------- files that are in order, and ONNX Runtime fails


def with_constant(nodes, initializers, opsets=()):
    """x plus the scalar float `t` that `nodes` compute of nothing but constants: when the file is loaded."""
    nodes = [*nodes, NODE("Add", ["x", "t"], ["y"])]
    return unchecked(nodes, [PORT("x", T.FLOAT, ["N"])], [PORT("y", T.FLOAT, ["N"])], initializers, opsets)


def overflow():
    """The one quotient that no register holds: the processor stops the process (SIGFPE) while the file is loaded."""
    nodes = [
        NODE("Div", ["least", "minus"], ["q"]),
        NODE("Cast", ["q"], ["f"], to=T.FLOAT),
        NODE("ReduceSum", ["f"], ["t"], keepdims=0),
    ]
    return with_constant(nodes, [constant("least", [-(2**31)], np.int32), constant("minus", [-1], np.int32)])


def overflow_in_every_run():
    """The same where the numbers come from the size of an input: loading goes well."""
    nodes = [
        NODE("Size", ["x"], ["size"]),
        NODE("Mul", ["size", "zero"], ["nothing"]),
        NODE("Add", ["nothing", "least"], ["a"]),
        NODE("Add", ["nothing", "minus"], ["b"]),
        NODE("Div", ["a", "b"], ["q"]),
        NODE("Cast", ["q"], ["t"], to=T.FLOAT),
    ]
    numbers = {"zero": 0, "least": -(2**63), "minus": -1}
    return with_constant(nodes, [constant(name, value, np.int64) for name, value in numbers.items()])


def deep_tree(depth=50_000):
    """A tree that is a chain: ONNX Runtime reads it by recursion, and its stack overflows (SIGSEGV)."""
    ids = list(range(2 * depth + 1))
    node = NODE(
        "TreeEnsembleRegressor",
        ["x"],
        ["y"],
        domain="ai.onnx.ml",
        n_targets=1,
        nodes_treeids=[0] * len(ids),
        nodes_nodeids=ids,
        nodes_featureids=[0] * len(ids),
        nodes_modes=["BRANCH_LEQ"] * depth + ["LEAF"] * (depth + 1),
        nodes_values=[float(i % 97) for i in ids],
        nodes_truenodeids=[i + 1 if i < depth else 0 for i in ids],
        nodes_falsenodeids=[depth + 1 + i if i < depth else 0 for i in ids],
        target_treeids=[0],
        target_nodeids=[depth],
        target_ids=[0],
        target_weights=[1.0],
    )
    return unchecked([node], [PORT("x", T.FLOAT, ["N", 1])], [PORT("y", T.FLOAT, ["N", 1])], opsets=[("ai.onnx.ml", 3)])


def filled(name, output, shape, value):
    """A node that makes a tensor of one value."""
    return NODE("ConstantOfShape", [shape], [output], value=helper.make_tensor(name, T.FLOAT, [1], [value]))


def hours():
    """Thousands of products of large matrices, all of them constants: loading takes hours."""
    count = 2000
    nodes = [filled("v", "z0", "shape", 1e-3)]
    nodes += [NODE("MatMul", [f"z{i}", "z0"], [f"z{i + 1}"]) for i in range(count)]
    nodes.append(NODE("ReduceSum", [f"z{count}"], ["t"], keepdims=0))
    return with_constant(nodes, [constant("shape", [4096, 4096], np.int64)])


def endless():
    """A loop of all the turns that can be counted: no run ends."""
    body = helper.make_graph(
        [NODE("Identity", ["go"], ["on"]), NODE("Identity", ["state"], ["next"])],
        "body",
        [PORT("turn", T.INT64, []), PORT("go", T.BOOL, []), PORT("state", T.FLOAT, ["N"])],
        [PORT("on", T.BOOL, []), PORT("next", T.FLOAT, ["N"])],
    )
    loop = NODE("Loop", ["turns", "", "x"], ["y"], body=body)
    ports = [PORT("x", T.FLOAT, ["N"])], [PORT("y", T.FLOAT, ["N"])]
    return unchecked([loop], *ports, [constant("turns", 2**62, np.int64)])


def skipping():
    """One node that nothing ends: it skips more words than there are, one after another."""
    node = NODE(
        "TfIdfVectorizer",
        ["ids"],
        ["y"],
        max_gram_length=2,
        min_gram_length=1,
        max_skip_count=2**40,
        mode="TF",
        ngram_counts=[0, 1],
        ngram_indexes=[0, 1],
        pool_int64s=[1, 2, 3],
    )
    return unchecked([node], [PORT("ids", T.INT64, ["N"])], [PORT("y", T.FLOAT, ["M"])])


def balloon(gigabytes=64):
    """Constants of a quarter of a gigabyte each, out of a file of kilobytes, while it is loaded."""
    count = 4 * gigabytes
    nodes = [filled(f"v{i}", f"z{i}", "shape", 1.0 + i) for i in range(count)]
    nodes.append(NODE("Sum", ["x", *(f"z{i}" for i in range(count))], ["y"]))
    initializers = [constant("shape", [256, 1 << 18], np.int64)]
    return unchecked(nodes, [PORT("x", T.FLOAT, [1])], [PORT("y", T.FLOAT, None)], initializers)


def balloon_in_every_run(gigabytes):
    """One tensor, whose size depends on nothing, but which is too large to be made while loading."""
    nodes = [filled("v", "z", "shape", 1.0), NODE("ReduceMax", ["z"], ["t"], keepdims=0)]
    return with_constant(nodes, [constant("shape", [gigabytes, 1 << 28], np.int64)])


# Quotients that no register holds: ONNX Runtime alone dies of them on x86 (SIGFPE).
QUOTIENTS = {"overflow": bytes_of(overflow), "overflow-in-every-run": bytes_of(overflow_in_every_run)}

CRASH, HANG, SWELL = ("SIG",), ("--probe-timeout",), ("memory",)
NATIVE = {
    "deep-tree": Hostile(bytes_of(deep_tree), CRASH),
    "hours": Hostile(bytes_of(hours), HANG),
    "skipping": Hostile(bytes_of(skipping), HANG),
    "balloon": Hostile(bytes_of(balloon), SWELL),
    "balloon-in-every-run": Hostile(bytes_of(lambda: balloon_in_every_run(6)), SWELL),
    # More than a process may have that is not given much.
    "larger-balloon-in-every-run": Hostile(bytes_of(lambda: balloon_in_every_run(12)), SWELL),
}
