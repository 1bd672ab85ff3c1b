"""Shapes that a file states of what it computes: false ones change no answer and end nothing, honest ones are described.

ONNX Runtime believes such shapes; most graphs here end a process that opens or runs them as they are.
"""

import numpy as np
import onnx_models
import pytest
import requests
from onnx_models import NODE, PORT, T, constant, helper
from onnx_service import Oracle, described, index, load, over_grpc, over_rest, post, same, serving, until, write

FLAGS = {"auto": [], "never": ["--isolation", "never"], "probed": ["--probe", "always"]}


def ones(name, *shape, kind=np.float32):
    return constant(name, np.ones(shape), kind)


def stated(name, *shape):
    return PORT(name, T.FLOAT, list(shape))


def graph(nodes, inputs, initializers=(), between=(), outputs=None):
    made = outputs or [helper.make_empty_tensor_value_info("y")]
    proto = onnx_models.unchecked(nodes, inputs, made, initializers, [("com.microsoft", 1)])
    proto.graph.value_info.extend(between)
    return proto


def lstm(of, out="y"):
    return NODE("LSTM", [of, "w", "r"], [out], hidden_size=2)


def filled(of, out="e", size="s"):
    """As large as `of` is."""
    return [NODE("Shape", [of], [size]), NODE("ConstantOfShape", [size], [out])]


WEIGHTS = [ones("w", 1, 8, 4), ones("r", 1, 8, 2)]
X = stated("x", "a", "b", 4)


def between():
    return graph([NODE("Relu", ["x"], ["t"]), *filled("t"), lstm("e")], [X], WEIGHTS, [stated("t", 3, 0, 4)])


def of_an_output():
    outputs = [stated("t", 3, 0, 4), helper.make_empty_tensor_value_info("y")]
    return graph([NODE("Relu", ["x"], ["t"]), *filled("t"), lstm("e")], [X], WEIGHTS, outputs=outputs)


def of_a_branch():
    """In a branch that the trial does not take."""
    inner = [NODE("Relu", ["x"], ["t"]), *filled("t"), lstm("e", "one")]
    made = helper.make_empty_tensor_value_info
    then = helper.make_graph(inner, "then", [], [made("one")], value_info=[stated("t", 1, 0, 4)])
    other = helper.make_graph([lstm("x", "other")], "other", [], [made("other")])
    nodes = [
        NODE("ReduceSum", ["x"], ["sum"], keepdims=0),
        NODE("Greater", ["sum", "many"], ["c"]),
        NODE("If", ["c"], ["y"], then_branch=then, else_branch=other),
    ]
    return graph(nodes, [X], [*WEIGHTS, constant("many", 20, np.float32)])


def of_a_loop():
    """What goes from turn to turn."""
    inner = [NODE("Identity", ["go"], ["goes"]), *filled("state"), lstm("e", "one"), NODE("Identity", ["state"], ["kept"])]
    inputs = [PORT("turn", T.INT64, []), PORT("go", T.BOOL, []), stated("state", 3, 0, 4)]
    made = helper.make_empty_tensor_value_info
    body = helper.make_graph(inner, "body", inputs, [PORT("goes", T.BOOL, []), made("kept"), made("one")])
    return graph([NODE("Loop", ["n", "", "x"], ["z", "y"], body=body)], [X], [*WEIGHTS, constant("n", 2, np.int64)])


def joined(between):
    """ONNX Runtime makes one node of these where it takes their inputs for alike."""
    nodes = [
        NODE("Relu", ["z"], ["t"]),
        NODE("Relu", ["x"], ["u"]),
        NODE("Add", ["u", "t"], ["sum"]),
        NODE("LayerNormalization", ["sum", "scale", "bias"], ["y"], axis=-1),
    ]
    inputs = [stated("x", "b", "s", 64), stated("z", "c", "d", 64)]
    return graph(nodes, inputs, [ones("scale", 64), ones("bias", 64)], between)


def by_name():
    return joined([stated("t", "b", "s", 64), stated("u", "b", "s", 64)])


def by_number():
    return joined([stated("t", 1, 3, 64), stated("u", 1, 3, 64)])


def of_a_scan():
    """The body of a Scan states what there is to make room for: as many dimensions are needed, their lengths are not."""
    body = helper.make_graph([NODE("Relu", ["row"], ["one"])], "body", [stated("row", 0, 9)], [stated("one", 0, 9)])
    return graph([NODE("Scan", ["x"], ["y"], body=body, num_scan_inputs=1)], [X])


FALSE = {each.__name__.replace("_", "-"): each for each in (
    between, of_an_output, of_a_branch, of_a_loop, by_name, by_number, of_a_scan)}
ASKED = {
    name: [{"x": np.ones(shape, np.float32)} for shape in ((3, 2, 4), (1, 7, 4), (2, 1, 4))] for name in FALSE
} | {
    name: [
        {"x": np.ones(x, np.float32), "z": np.ones(z, np.float32)}
        for x, z in (((2, 3, 64), (2, 3, 64)), ((1, 3, 64), (0, 3, 64)), ((1, 1, 64), (1, 0, 64)), ((1, 3, 64), (2, 3, 64)))
    ]
    for name in ("by-name", "by-number")
}


@pytest.fixture(scope="module", params=FLAGS)
def server(request, binary, tmp_path_factory):
    """Half of the models are there at the start, the others come later."""
    folder = tmp_path_factory.mktemp(f"stated-{request.param}")
    names = list(FALSE)
    made = {name: onnx_models.Model(name, FALSE[name](), None) for name in names}
    for name in names[::2]:
        write(made[name], folder / "models")
    with serving(binary, folder, *FLAGS[request.param]) as server:
        for name in names[1::2]:
            write(made[name], folder / "models")
            answer = load(server, name)
            assert answer.ok, answer.text
        yield server


@pytest.mark.parametrize("name", FALSE)
def test_false_shapes_end_nothing(server, name):
    assert index(server)[name]["state"] == "READY"
    for feeds in ASKED[name]:
        answer = post(server, name, described(feeds))
        assert answer.status_code in (200, 400), answer.text
        assert server.child.poll() is None
    # A request that is in order is answered, whatever the file states.
    answer = post(server, name, described(ASKED[name][0]))
    assert answer.ok, answer.text


def test_answers_do_not_follow_false_shapes(server):
    """They are those of the same graph without them."""
    x = ASKED["between"][1]["x"]
    plain = graph([NODE("Relu", ["x"], ["t"]), *filled("t"), lstm("e")], [X], WEIGHTS)
    right = Oracle(onnx_models.Model("plain", plain, None)).answer({"x": x})
    found = over_grpc(server, "between", {"x": x})
    same(found, right)


def test_a_scan_gives_what_it_computes(server):
    x = np.arange(-12, 12, dtype=np.float32).reshape(3, 2, 4)
    same(over_grpc(server, "of-a-scan", {"x": x}), {"y": np.maximum(x, 0)})


# ----------------------------------------------------------------------------------------------- inputs that are stated


@pytest.mark.parametrize("isolation", ["auto", "always"])
def test_an_input_that_is_stated_to_be_empty(binary, tmp_path, isolation):
    """Its first run ends a process, which is not the server's."""
    write(onnx_models.Model("empty", graph([lstm("x")], [stated("x", "a", 0, 4)], WEIGHTS), None), tmp_path / "models")
    write(onnx_models.Model("other", graph([NODE("Relu", ["x"], ["y"])], [X]), None), tmp_path / "models")
    with serving(binary, tmp_path, "--isolation", isolation, ready=False) as server:
        states = until(lambda: requested(server))
        assert states["empty"]["state"] == "UNAVAILABLE", states
        assert "SIGABRT" in states["empty"]["reason"]
        assert post(server, "other", described(ASKED["between"][0])).ok


RESHAPED = """
backend: "onnxruntime"
max_batch_size: 0
input [
  { name: "x" data_type: TYPE_FP32 dims: [ -1, -1, 64 ] },
  { name: "z" data_type: TYPE_FP32 dims: [ 1, -1 ] reshape { shape: [ -1, 1, 64 ] } }
]
"""


def requested(server):
    """What there is, once all of it was tried."""
    try:
        states = index(server)
    except requests.ConnectionError:
        return None
    return None if any(each["state"] == "LOADING" for each in states.values()) else states


def test_an_empty_input_in_another_shape(binary, tmp_path):
    """A dimension of one name is held against the shape in which the graph takes it."""
    nodes = [
        NODE("Add", ["x", "z"], ["sum"]),
        NODE("LayerNormalization", ["sum", "scale", "bias"], ["y"], axis=-1),
    ]
    inputs = [stated("x", "b", "s", 64), stated("z", "b", "s", 64)]
    proto = graph(nodes, inputs, [ones("scale", 64), ones("bias", 64)])
    write(onnx_models.Model("reshaped", proto, None), tmp_path / "models", config={"config.pbtxt": RESHAPED})
    with serving(binary, tmp_path) as server:
        for shape, size, status in ((1, 64, 200), (1, 0, 400), (0, 0, 200), (0, 64, 400)):
            feeds = {"x": np.ones((shape, 1, 64), np.float32), "z": np.ones((1, size), np.float32)}
            answer = post(server, "reshaped", described(feeds))
            assert answer.status_code == status, (shape, size, answer.text)
            assert server.child.poll() is None
            assert answer.ok or "dimension 'b' is 0 in one place" in answer.json()["error"]


# ------------------------------------------------------------------------------------------------------- honest shapes


def test_stated_outputs_are_described(binary, tmp_path):
    """Where ONNX Runtime cannot tell, by what the file says; where it can, by what it finds."""
    nodes = [NODE("Reshape", ["x", "to"], ["y"]), NODE("Relu", ["x"], ["z"])]
    inputs = [X, PORT("to", T.INT64, [2])]
    proto = graph(nodes, inputs, outputs=[stated("y", "rows", 7), stated("z", "p", "q", 4)])
    write(onnx_models.Model("described", proto, None), tmp_path / "models")
    with serving(binary, tmp_path) as server:
        outputs = {each["name"]: each["shape"] for each in requests.get(f"{server.url}/v2/models/described").json()["outputs"]}
        assert outputs == {"y": [-1, 7], "z": [-1, -1, 4]}


# ------------------------------------------------------------------------------------------------------ a whole decoder

HEADS, GROUPS, WIDTH, LAYERS, WORDS = 4, 2, 16, 2, 50


def decoder():
    """Two layers with ONNX Runtime's grouped attention and joined norms, as its exporters write decoders."""
    random, size = np.random.default_rng(7), HEADS * WIDTH
    angles = np.outer(np.arange(64), np.arange(8) / 8)
    weights = [
        constant("embedding", random.standard_normal((WORDS, size)) * 0.3, np.float32),
        constant("head", random.standard_normal((size, WORDS)) * 0.3, np.float32),
        constant("cosines", np.cos(angles), np.float32),
        constant("sines", np.sin(angles), np.float32),
        constant("one", 1, np.int64),
        constant("axis", [1], np.int64),
    ]
    nodes = [
        NODE("ReduceSum", ["attention_mask", "axis"], ["lengths"], keepdims=0),
        NODE("Sub", ["lengths", "one"], ["lasts"]),
        NODE("Cast", ["lasts"], ["seqlens"], to=T.INT32),
        NODE("Shape", ["attention_mask"], ["mask"]),
        NODE("Gather", ["mask", "one"], ["longest"], axis=0),
        NODE("Cast", ["longest"], ["total"], to=T.INT32),
        NODE("Gather", ["embedding", "input_ids"], ["h0"]),
    ]
    inputs = [PORT("input_ids", T.INT64, ["batch", "steps"]), PORT("attention_mask", T.INT64, ["batch", "total"])]
    outputs = [stated("logits", "batch", "steps", WORDS)]
    for layer in range(LAYERS):
        for part, wide in (("q", size), ("k", GROUPS * WIDTH), ("v", GROUPS * WIDTH)):
            weights.append(constant(f"w{part}{layer}", random.standard_normal((size, wide)) * 0.2, np.float32))
            nodes.append(NODE("MatMul", [f"h{layer}", f"w{part}{layer}"], [f"{part}{layer}"]))
        weights.append(constant(f"wo{layer}", random.standard_normal((size, size)) * 0.2, np.float32))
        weights.append(ones(f"norm{layer}", size))
        past = [f"past_key_values.{layer}.{part}" for part in ("key", "value")]
        present = [f"present.{layer}.{part}" for part in ("key", "value")]
        inputs += [stated(name, "batch", GROUPS, "past", WIDTH) for name in past]
        outputs += [stated(name, "batch", GROUPS, "total", WIDTH) for name in present]
        taken = [f"q{layer}", f"k{layer}", f"v{layer}", *past, "seqlens", "total", "cosines", "sines"]
        wishes = {"num_heads": HEADS, "kv_num_heads": GROUPS, "do_rotary": 1}
        nodes += [
            NODE("GroupQueryAttention", taken, [f"o{layer}", *present], domain="com.microsoft", **wishes),
            NODE("MatMul", [f"o{layer}", f"wo{layer}"], [f"p{layer}"]),
            NODE(
                "SkipSimplifiedLayerNormalization",
                [f"h{layer}", f"p{layer}", f"norm{layer}"],
                [f"h{layer + 1}"],
                domain="com.microsoft",
            ),
        ]
    nodes.append(NODE("MatMul", [f"h{LAYERS}", "head"], ["logits"]))
    return graph(nodes, inputs, weights, outputs=outputs)


def step(ids, before=None):
    """What a decoder takes for these tokens after what it gave `before`."""
    rows, steps = ids.shape
    held = 0 if before is None else before["present.0.key"].shape[2]
    feeds = {"input_ids": ids, "attention_mask": np.ones((rows, held + steps), np.int64)}
    for layer in range(LAYERS):
        for part in ("key", "value"):
            none = np.zeros((rows, GROUPS, 0, WIDTH), np.float32)
            value = none if before is None else before[f"present.{layer}.{part}"]
            feeds[f"past_key_values.{layer}.{part}"] = value
    return feeds


@pytest.mark.parametrize("isolation", ["auto", "always"])
def test_a_decoder_with_grouped_attention(binary, tmp_path, isolation):
    model = onnx_models.Model("decoder", decoder(), None)
    write(model, tmp_path / "models")
    right = Oracle(model)
    with serving(binary, tmp_path, "--isolation", isolation) as server:
        for ids in ([[3, 4, 5, 6]], [[1, 2, 3], [4, 5, 6]]):
            first = step(np.array(ids))
            expected = right.answer(first)
            then = step(np.full((len(ids), 1), 7), expected)
            after = right.answer(then)
            for ask in (over_rest, over_grpc, lambda *given: over_rest(*given, binary=False)):
                same(ask(server, "decoder", first), expected, 1e-5)
                same(ask(server, "decoder", then), after, 1e-5)
        # Masks that say anything are answered or refused.
        for mask in (np.ones((1, 1)), np.full((1, 4), 10**6), np.full((1, 4), -(2**40)), np.ones((1, 0))):
            feeds = {**step(np.array([[7]]), right.answer(step(np.array([[3, 4, 5]])))), "attention_mask": mask.astype(int)}
            assert post(server, "decoder", described(feeds)).status_code in (200, 400)
        assert server.child.poll() is None
        assert post(server, "decoder", described(step(np.array([[3]])))).ok
