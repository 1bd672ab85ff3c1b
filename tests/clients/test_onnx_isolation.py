"""Models in processes of their own: what ends such a process ends nothing else, and it is started again."""

import pathlib
import queue
import signal
import threading
import time

import numpy as np
import onnx_models
import pytest
import requests
import tritonclient.grpc
from onnx_models import NODE, PORT, T, constant, helper
from onnx_service import (
    NAMES,
    WAYS,
    Oracle,
    described,
    index,
    load,
    models,
    oracle,
    post,
    same,
    serving,
    unload,
    until,
    write,
)


def ones(name, *shape, kind=np.float32):
    return constant(name, np.ones(shape), kind)


def model(name, nodes, shapes, initializers=(), outputs=("y",)):
    """Of float inputs with these dimensions by name."""
    inputs = [PORT(each, T.FLOAT, list(shape)) for each, shape in shapes.items()]
    made = [helper.make_empty_tensor_value_info(each) for each in outputs]
    proto = onnx_models.unchecked(nodes, inputs, made, initializers, [("com.microsoft", 1)])
    return onnx_models.Model(name, proto, None)


def starving():
    """What is left behind the first of a batch may be nothing, over which an LSTM ends the process."""
    nodes = [NODE("Slice", ["x", "one", "end", "one"], ["t"]), NODE("LSTM", ["t", "w", "r"], ["y"], hidden_size=2)]
    bounds = [constant("one", [1], np.int64), constant("end", [2**31 - 1], np.int64)]
    weights = [ones("w", 1, 8, 4), ones("r", 1, 8, 2)]
    return model("starving", nodes, {"x": ["steps", "batch", 4]}, [*bounds, *weights])


def product():
    return model("product", [NODE("MatMul", ["x", "w"], ["y"])], {"x": ["a", "b", 4]}, [ones("w", 4, 2)])


def kernels():
    """A convolution whose weights a request brings: without elements it never ends."""
    return model("kernels", [NODE("Conv", ["x", "z"], ["y"])], {"x": ["a", 2, "b", "c"], "z": [4, 2, "d", "e"]})


def decoder(name, node):
    """Of keys and values of earlier steps, which the first step does not have."""
    past = {f"past_key_values.0.{each}": ["batch", 1, "past", 16] for each in ("key", "value")}
    joined = [
        NODE("Concat", [f"past_key_values.0.{each}", each], [f"present.0.{each}"], axis=2) for each in ("key", "value")
    ]
    steps = {each: ["batch", 1, "steps", 16] for each in ("query", "key", "value")}
    return model(name, [*joined, *node], steps | past, outputs=("y", "present.0.key", "present.0.value"))


def by_einsum():
    nodes = [
        NODE("Einsum", ["query", "present.0.key"], ["scores"], equation="bhqd,bhkd->bhqk"),
        NODE("Softmax", ["scores"], ["weights"]),
        NODE("Einsum", ["weights", "present.0.value"], ["y"], equation="bhqk,bhkd->bhqd"),
    ]
    return decoder("by-einsum", nodes)


def by_einsum_of_the_past():
    """Of what is remembered alone."""
    return decoder("of-the-past", [NODE("Einsum", ["past_key_values.0.key"], ["y"], equation="bhkd->bkd")])


def x(batch, steps=2, value=1):
    return {"x": np.full((steps, batch, 4), value, np.float32)}


@pytest.fixture(scope="module")
def server(binary, tmp_path_factory):
    folder = tmp_path_factory.mktemp("isolated")
    for each in (starving(), product(), by_einsum(), by_einsum_of_the_past()):
        write(each, folder / "models")
    apart = {"model.toml": '[onnx]\nisolation = "always"\n'}
    write(kernels(), folder / "models", config=apart)
    with serving(binary, folder) as running:
        yield running


def processes(server):
    """Children of the server that compute models."""
    children = pathlib.Path(f"/proc/{server.child.pid}/task").glob("*/children")
    found = {int(child) for listed in children for child in listed.read_text().split()}
    return {child for child in found if b"__worker" in pathlib.Path(f"/proc/{child}/cmdline").read_bytes()}


def ends(server, name):
    """How often the process of a model ended, which is told of from its start on."""
    prefix = f'tensorgate_model_process_ends_total{{model="{name}"}} '
    lines = requests.get(f"{server.url}/metrics", timeout=60).text.splitlines()
    (line,) = (line for line in lines if line.startswith(prefix))
    return int(line.removeprefix(prefix))


def test_a_graph_that_may_end_the_process_has_its_own(server):
    assert all(each["state"] == "READY" for each in index(server).values())
    # Those of the other two are told apart from it by what may be in a request.
    assert len(processes(server)) == 3
    expected = Oracle(starving()).answer(x(3))
    for way in WAYS.values():
        same(way(server, "starving", x(3)), expected)
    assert requests.get(f"{server.url}/v2/models/starving", timeout=60).json()["inputs"] == [
        {"name": "x", "datatype": "FP32", "shape": [-1, -1, 4]}
    ]


def test_what_ends_the_process_is_told_and_ends_nothing_else(server):
    before = ends(server, "starving")
    for _ in range(3):
        reply = post(server, "starving", described(x(1)))
        assert reply.status_code == 400, reply.text
        assert "ONNX Runtime ended the model's process with SIG" in reply.json()["error"]
        assert server.child.poll() is None
        assert post(server, "product", described(x(1))).status_code == 200
        # Whoever asks while it is started again waits.
        same(WAYS["binary"](server, "starving", x(3)), Oracle(starving()).answer(x(3)))
    assert ends(server, "starving") == before + 3
    assert requests.get(f"{server.url}/v2/models/starving/ready", timeout=60).status_code == 200
    assert requests.get(f"{server.url}/v2/health/ready", timeout=60).status_code == 200


def test_others_get_their_answers_whatever_ends_their_process(server):
    answers = []

    def ask(value):
        for batch in range(2, 10):
            expected = Oracle(starving()).answer(x(batch, value=value))
            same(WAYS["grpc"](server, "starving", x(batch, value=value)), expected, 1e-5)
        answers.append(value)

    others = [threading.Thread(target=ask, args=(value,)) for value in range(4)]
    for each in others:
        each.start()
    refused = [post(server, "starving", described(x(1))).status_code for _ in range(5)]
    for each in others:
        each.join()
    assert sorted(answers) == [0, 1, 2, 3]
    assert refused == [400] * 5


def test_a_process_that_somebody_kills_is_started_again(server):
    """Nobody notices who asks right then."""
    before = ends(server, "starving")
    killed = processes(server)
    for process in killed:
        signal.pidfd_send_signal(pathlib.os.pidfd_open(process), signal.SIGKILL)
    assert post(server, "starving", described(x(3))).status_code == 200
    until(lambda: len(processes(server) - killed) == len(killed))
    assert post(server, "starving", described(x(3))).status_code == 200
    assert ends(server, "starving") == before + 1


def test_a_process_that_hears_nothing_is_replaced(server):
    """However many calls it has."""
    stopped = processes(server)
    for process in stopped:
        signal.pidfd_send_signal(pathlib.os.pidfd_open(process), signal.SIGSTOP)
    late = {"x-request-timeout-ms": "300"}
    asked = [
        threading.Thread(target=post, args=(server, "starving", described(x(3))), kwargs={"headers": late})
        for _ in range(4)
    ]
    for each in asked:
        each.start()
    for each in asked:
        each.join()
    assert post(server, "starving", described(x(3)), timeout=60).status_code == 200
    for process in stopped & processes(server):
        signal.pidfd_send_signal(pathlib.os.pidfd_open(process), signal.SIGCONT)


def test_a_server_that_was_stopped_for_a_while_goes_on(server):
    before = ends(server, "starving")
    feeds = x(400, steps=4000)
    answers = []
    asked = threading.Thread(target=lambda: answers.append(WAYS["binary"](server, "starving", feeds)["y"].shape))
    asked.start()
    time.sleep(0.05)
    for wanted in (signal.SIGSTOP, signal.SIGCONT):
        server.child.send_signal(wanted)
        time.sleep(0.1)
    asked.join()
    assert answers == [(4000, 1, 399, 2)]
    assert ends(server, "starving") == before


def test_a_call_that_never_ends_ends_with_its_process(server):
    feeds = {"x": np.ones((1, 2, 3, 3), np.float32), "z": np.ones((4, 2, 0, 3), np.float32)}
    fine = feeds | {"z": np.ones((4, 2, 3, 3), np.float32)}
    start = time.monotonic()
    reply = post(server, "kernels", described(feeds), headers={"x-request-timeout-ms": "500"})
    assert reply.status_code == 504, reply.text
    assert time.monotonic() - start < 5
    # It computes on for a moment, and then no more.
    assert post(server, "kernels", described(fine)).status_code == 200
    until(lambda: ends(server, "kernels") == 2)
    assert post(server, "kernels", described(fine)).status_code == 200
    assert requests.get(f"{server.url}/v2/health/live", timeout=60).status_code == 200


@pytest.mark.parametrize("made", [by_einsum(), by_einsum_of_the_past()], ids=lambda made: made.name)
def test_decoders_begin_without_a_past(server, made):
    def feeds(past):
        lengths = dict.fromkeys(("query", "key", "value"), 3) | {f"past_key_values.0.{each}": past for each in ("key", "value")}
        return {name: np.full((1, 1, length, 16), 0.5, np.float32) for name, length in lengths.items()}

    same(WAYS["binary"](server, made.name, feeds(2)), Oracle(made).answer(feeds(2)), 1e-5)
    reply = post(server, made.name, described(feeds(0)))
    assert server.child.poll() is None
    if made.name == "by-einsum":
        same(WAYS["binary"](server, made.name, feeds(0)), Oracle(made).answer(feeds(0)), 1e-5)
    else:
        # What ONNX Runtime makes of it is up to it.
        assert reply.status_code in (200, 400), reply.text
    # Others are not empty at any step.
    nothing = feeds(0) | {"query": np.ones((1, 1, 0, 16), np.float32)}
    assert post(server, made.name, described(nothing)).status_code in (200, 400)
    assert server.child.poll() is None
    assert post(server, made.name, described(feeds(2))).status_code == 200


@pytest.fixture(scope="module")
def apart(binary, tmp_path_factory):
    """Every model, in a process of its own."""
    folder = tmp_path_factory.mktemp("apart")
    for each in models().values():
        write(each, folder / "models", "folder" if each.external else "version")
    with serving(binary, folder, "--isolation", "always") as running:
        yield running


@pytest.mark.parametrize("name", [name for name in NAMES if name != "slow"])
def test_answers_are_those_of_the_library(apart, name):
    for rows in (1, 3):
        (feeds,) = models()[name].asks(1, rows, seed=rows)
        expected = oracle(name).answer(feeds)
        for way in ("binary", "grpc"):
            same(WAYS[way](apart, name, feeds), expected, 1e-5)


def test_what_was_asked_for_is_no_warning(server, apart):
    def told(running, name):
        lines = (line for line in running.log.read_text().splitlines() if f'"{name}"' in line)
        return {level for line in lines for level in ("INFO", "WARN") if "process of its own" in line and level in line}

    assert told(apart, "forest") == told(server, "kernels") == {"INFO"}
    assert told(server, "starving") == {"WARN"}


def test_a_stream_that_is_faster_than_its_model_is_held_back(binary, tmp_path):
    """Its messages are small, and thousands of them come before they are read."""
    made = models()["trees"]
    write(made, tmp_path / "models", "version")
    (feeds,) = made.asks(1, 1, seed=1)
    with serving(binary, tmp_path, "--isolation", "always", "--max-batch-delay", "2ms") as running:
        answers, count = queue.Queue(), 3000
        with tritonclient.grpc.InferenceServerClient(running.grpc) as client:
            inputs = [tritonclient.grpc.InferInput(name, each.shape, "FP32") for name, each in feeds.items()]
            for each, value in zip(inputs, feeds.values()):
                each.set_data_from_numpy(value)
            client.start_stream(callback=lambda result, error: answers.put((result, error)))
            for number in range(count):
                client.async_stream_infer("trees", inputs, request_id=str(number))
            for number in range(count):
                result, error = answers.get(timeout=60)
                assert error is None, f"{number} were answered, then {error}"
                assert result.get_response().id == str(number)
            client.stop_stream()


def ranging():
    """As many numbers as a request says."""
    nodes = [NODE("Range", ["none", "n", "one"], ["y"])]
    bounds = [constant("none", 0, np.int64), constant("one", 1, np.int64)]
    ports = [PORT("n", T.INT64, [])], [PORT("y", T.INT64, ["length"])]
    return onnx_models.Model("ranging", onnx_models.unchecked(nodes, *ports, bounds), None)


def test_a_graph_whose_requests_say_how_large_a_tensor_is_has_its_own(binary, tmp_path):
    for each in (ranging(), product()):
        write(each, tmp_path / "models")
    with serving(binary, tmp_path) as running:
        assert len(processes(running)) == 1
        same(WAYS["binary"](running, "ranging", {"n": np.array(5, np.int64)}), {"y": np.arange(5)})
        reply = post(running, "ranging", described({"n": np.array(2**50, np.int64)}))
        assert reply.status_code in (400, 500), reply.text
        assert running.child.poll() is None
        assert post(running, "product", described(x(1))).status_code == 200


def test_a_process_ends_with_its_model(binary, tmp_path):
    root = write(product(), tmp_path / "models")
    flags = ["--isolation", "always", "--model-control-mode", "explicit", "--load-model", "*"]
    with serving(binary, tmp_path, *flags) as running:
        first = processes(running)
        assert len(first) == 1
        assert load(running, "product").status_code == 200
        second = until(lambda: processes(running) - first)
        until(lambda: processes(running) == second)
        assert unload(running, "product").status_code == 200
        until(lambda: not processes(running))
        assert load(running, "product").status_code == 200
        # Without its file it does not come back, which is told.
        (root / "1" / "model.onnx").rename(root / "elsewhere.onnx")
        signal.pidfd_send_signal(pathlib.os.pidfd_open(*processes(running)), signal.SIGKILL)
        ready = f"{running.url}/v2/models/product/ready"
        until(lambda: requests.get(ready, timeout=60).status_code == 503)
        assert index(running)["product"]["state"] == "UNAVAILABLE"
        assert post(running, "product", described(x(1))).status_code == 503
        (root / "elsewhere.onnx").rename(root / "1" / "model.onnx")
        assert load(running, "product").status_code == 200
        assert post(running, "product", described(x(1))).status_code == 200
        left = processes(running)
    # Nor does one outlive the server.
    until(lambda: not any(pathlib.Path(f"/proc/{process}").exists() for process in left))
