"""ONNX models over time: deadlines and callers that leave end a run, memory comes back, and a library that is missing
leaves everything else as it is."""

import contextlib
import json
import os
import pathlib
import shutil
import threading
import time

import grpc
import onnx_models
import onnx_odd
import onnx_service
import pytest
import requests
import wire
from onnx_service import described, index, load, over_rest, post, same, serving, stats, unload, until, write
from sdk import service_pb2, service_pb2_grpc
from wire import MIB, Http1, request

FOREVER = 50_000_000
SLOW_URL = "/v2/models/slow/infer"
# One run at a time, which waits until everybody is there.
PATIENT = "batching.max_delay_us = 300000\n[[instance_group]]\ncount = 1\n"


@pytest.fixture(scope="module")
def nets():
    return onnx_service.models()


def right(server, model, rows=3):
    (feeds,) = model.asks(1, rows)
    same(over_rest(server, model.name, feeds), onnx_service.oracle(model.name).answer(feeds), 1e-5)


# ------------------------------------------------------------------------------------------- runs that nobody waits for


@pytest.fixture(scope="module")
def busy(binary, tmp_path_factory, nets):
    folder = tmp_path_factory.mktemp("busy")
    for name in ("slow", "trees"):
        write(nets[name], folder / "models")
    write(onnx_odd.patient(), folder / "models", config={"model.toml": PATIENT})
    with serving(binary, folder, "--drain-timeout", "2s") as server:
        yield server


def steps(count):
    return described(onnx_models.ask_slow(count))


def rests(server):
    """Does the server do next to nothing, for a while?"""
    before = wire.processor_seconds(server.child.pid)
    time.sleep(0.5)
    return wire.processor_seconds(server.child.pid) - before < 0.15


def assert_free(server, nets):
    until(lambda: rests(server), 20)
    reply = post(server, "slow", steps(10), timeout=20)
    assert reply.status_code == 200, reply.text
    right(server, nets["trees"])


def test_slow_is_right(busy):
    feeds = onnx_models.ask_slow(200)
    same(over_rest(busy, "slow", feeds), onnx_service.oracle("slow").answer(feeds), 1e-5)


@pytest.mark.parametrize("callers", [1, 8])
def test_a_deadline_ends_a_run(busy, nets, callers):
    statuses = []

    def ask():
        reply = post(busy, "slow", steps(FOREVER), headers={"x-request-timeout-ms": "400"}, timeout=30)
        statuses.append((reply.status_code, reply.json().get("error")))

    asking = [threading.Thread(target=ask) for _ in range(callers)]
    before = time.monotonic()
    for each in asking:
        each.start()
    for each in asking:
        each.join()
    assert [status for status, _ in statuses] == [504] * callers, statuses
    assert all("deadline" in error for _, error in statuses)
    assert time.monotonic() - before < 10
    assert_free(busy, nets)


def test_a_timeout_in_the_request_ends_a_run(busy, nets):
    """Triton's: in microseconds."""
    reply = post(busy, "slow", steps(FOREVER), parameters={"timeout": 400_000}, timeout=30)
    assert reply.status_code == 504, reply.text
    assert_free(busy, nets)


def message(count):
    asked = service_pb2.ModelInferRequest(model_name="slow")
    for name, array in onnx_models.ask_slow(count).items():
        asked.inputs.add(name=name, datatype=onnx_service.datatype(array), shape=array.shape)
        asked.raw_input_contents.append(array.tobytes())
    return asked


def test_a_deadline_of_grpc_ends_a_run(busy, nets):
    with grpc.insecure_channel(busy.grpc) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        with pytest.raises(grpc.RpcError) as caught:
            stub.ModelInfer(message(FOREVER), timeout=0.5)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert_free(busy, nets)


def runs(server):
    """It computes."""
    before = wire.processor_seconds(server.child.pid)
    time.sleep(0.3)
    return wire.processor_seconds(server.child.pid) - before > 0.1


def test_who_cancels_ends_a_run(busy, nets):
    with grpc.insecure_channel(busy.grpc) as channel:
        call = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer.future(message(FOREVER), timeout=60)
        until(lambda: runs(busy), 10)
        call.cancel()
        assert_free(busy, nets)


@pytest.mark.parametrize("callers", [1, 8])
def test_who_leaves_ends_a_run(busy, nets, callers):
    body = json.dumps({"inputs": steps(FOREVER)}).encode()
    clients = [Http1(busy.http) for _ in range(callers)]
    for each in clients:
        each.socket.sendall(request("POST", SLOW_URL, ["Content-Type: application/json"], body))
    until(lambda: runs(busy), 10)
    for each in clients:
        each.socket.close()
    assert_free(busy, nets)


def leaving(server, callers):
    """Clients that ask for something without end, which is computed together."""
    random, clients = onnx_models.np.random.default_rng(8), []
    for _ in range(callers):
        body = json.dumps({"inputs": described(onnx_odd.ask_patient(random, 1, FOREVER))}).encode()
        clients.append(Http1(server.http))
        headers = ["Content-Type: application/json"]
        clients[-1].socket.sendall(request("POST", "/v2/models/patient/infer", headers, body))
    until(lambda: runs(server), 10)
    return clients


def asked_at_once(server, callers):
    """Runs that so many requests take, which all end soon."""
    random = onnx_models.np.random.default_rng(9)
    feeds = [onnx_odd.ask_patient(random, 1, 2) for _ in range(callers)]
    before, wrong = stats(server, "patient")["execution_count"], []

    def ask(each):
        try:
            same(over_rest(server, "patient", each), {"y": each["x"]}, 1e-5)
        except Exception as error:  # noqa: BLE001  (reported below)
            wrong.append(error)

    asking = [threading.Thread(target=ask, args=(each,)) for each in feeds]
    for each in asking:
        each.start()
    for each in asking:
        each.join()
    assert not wrong, wrong[0]
    return stats(server, "patient")["execution_count"] - before


def test_a_run_of_several_ends_when_the_last_has_left(busy, nets):
    assert asked_at_once(busy, 6) < 6
    clients = leaving(busy, 6)
    for each in clients[:-1]:
        each.socket.close()
    time.sleep(1)
    assert runs(busy)
    clients[-1].socket.close()
    until(lambda: rests(busy), 20)
    assert asked_at_once(busy, 6) < 6
    right(busy, nets["trees"])


def test_health_is_answered_while_loops_run(busy, nets):
    """As many runs as there may be, and more that wait for theirs."""
    headers = {"x-request-timeout-ms": "6000"}
    asking = [
        threading.Thread(target=post, args=(busy, "slow", steps(FOREVER)), kwargs={"headers": headers, "timeout": 60})
        for _ in range(8)
    ]
    for each in asking:
        each.start()
    try:
        until(lambda: runs(busy), 10)
        end = time.monotonic() + 2
        while time.monotonic() < end:
            for path in ("/v2/health/live", "/v2/health/ready", "/v2/models/slow/ready", "/metrics"):
                before = time.monotonic()
                assert requests.get(busy.url + path, timeout=10).status_code == 200
                assert time.monotonic() - before < 1, path
        with grpc.insecure_channel(busy.grpc) as channel:
            before = time.monotonic()
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            assert stub.ServerLive(service_pb2.ServerLiveRequest(), timeout=10).live
            assert time.monotonic() - before < 1
        assert any(each.is_alive() for each in asking)
    finally:
        for each in asking:
            each.join()
    assert_free(busy, nets)


def test_others_are_answered_meanwhile(busy, nets):
    waiting = threading.Thread(
        target=post, args=(busy, "slow", steps(FOREVER)), kwargs={"headers": {"x-request-timeout-ms": "2000"}}
    )
    waiting.start()
    try:
        until(lambda: runs(busy), 10)
        for _ in range(20):
            before = time.monotonic()
            right(busy, nets["trees"])
            assert time.monotonic() - before < 2
        assert waiting.is_alive()
    finally:
        waiting.join()


def test_unloading_and_stopping_during_a_run(binary, tmp_path, nets):
    """An unloaded model finishes what it was asked, or what it was asked ends in time; so does the server."""
    write(nets["slow"], tmp_path / "models")
    with serving(binary, tmp_path, "--drain-timeout", "1s") as server:
        replies = []

        def ask(timeout):
            headers = {"x-request-timeout-ms": timeout}
            # Who is cut off gets no reply.
            with contextlib.suppress(requests.ConnectionError):
                replies.append(post(server, "slow", steps(FOREVER), headers=headers, timeout=60).status_code)

        first = threading.Thread(target=ask, args=("1000",))
        first.start()
        until(lambda: runs(server), 10)
        assert unload(server, "slow").status_code == 200
        first.join()
        assert replies[0] in (503, 504)
        assert load(server, "slow").status_code == 200
        second = threading.Thread(target=ask, args=("50000",))
        second.start()
        until(lambda: runs(server), 10)
        before = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - before < 15
        second.join()
        assert 200 not in replies


# ------------------------------------------------------------------------------------------------ loading and unloading


def held(server):
    """Memory, threads and open files of the server."""
    process = pathlib.Path(f"/proc/{server.child.pid}")
    memory = wire.memory(server.child.pid, "VmRSS")
    return memory, len(list((process / "task").iterdir())), len(list((process / "fd").iterdir()))


def cycle(server, names, count, each=lambda: None):
    for _ in range(count):
        for name in names:
            reply = load(server, name)
            assert reply.status_code == 200, reply.text
        each()
        for name in names:
            reply = unload(server, name)
            assert reply.status_code == 200, reply.text


def gone(server, names):
    states = index(server)
    return all(states[name].get("state") in (None, "", "UNAVAILABLE") for name in names)


CYCLES = {
    # Models, times that warm up, times that count, and the bound. The allocator may keep the weights of a large one a
    # few times; small ones are loaded 200 times each.
    "small": (["convolutional", "zipmap-names", "same-bytes"], 20, 180, 24 * MIB),
    "large": (["large"], 20, 50, 100 * MIB),
}


@pytest.mark.parametrize("case", CYCLES)
def test_loading_and_unloading_does_not_grow(binary, tmp_path, nets, case):
    names, before, count, bound = CYCLES[case]
    for name in names:
        write(nets[name], tmp_path / "models", "folder" if nets[name].external else "version")
    (feeds,) = nets[names[0]].asks(1)
    answer = onnx_service.oracle(names[0]).answer(feeds)
    with serving(binary, tmp_path, "--probe", "never") as server:

        def ask():
            same(over_rest(server, names[0], feeds), answer, 1e-5)

        cycle(server, names, before, ask)
        until(lambda: gone(server, names))
        memory, threads, files = held(server)
        cycle(server, names, count, ask)
        until(lambda: gone(server, names))
        until(lambda: held(server)[1] <= threads + 2 and held(server)[2] <= files + 4, 10)
        grown = held(server)[0] - memory
        assert grown < bound, f"memory grew by {grown >> 20} MiB"


def test_loading_in_a_process_of_its_own_leaves_nothing(binary, tmp_path, nets):
    write(nets["zipmap-names"], tmp_path / "models")
    with serving(binary, tmp_path) as server:
        cycle(server, ["zipmap-names"], 3)
        _, threads, files = held(server)
        cycle(server, ["zipmap-names"], 10)
        until(lambda: held(server)[1] <= threads + 2 and held(server)[2] <= files + 4, 10)
        listed = pathlib.Path(f"/proc/{server.child.pid}/task").glob("*/children")
        assert "".join(path.read_text() for path in listed) == ""


def test_memory_comes_back(binary, tmp_path, nets):
    write(nets["large"], tmp_path / "models", "folder")
    with serving(binary, tmp_path, "--probe", "never") as server:
        cycle(server, ["large"], 3)
        assert load(server, "large").status_code == 200
        right(server, nets["large"])
        loaded = held(server)[0]
        assert unload(server, "large").status_code == 200
        until(lambda: loaded - held(server)[0] > 15 * MIB, 10)


def test_nobody_notices_a_reload(binary, tmp_path, nets):
    """While callers ask, the model is loaded anew, again and again."""
    write(nets["pipeline"], tmp_path / "models")
    (feeds,) = nets["pipeline"].asks(1)
    answer, stop, wrong, count = onnx_service.oracle("pipeline").answer(feeds), threading.Event(), [], []
    with serving(binary, tmp_path, "--probe", "never") as server:

        def use():
            while not stop.is_set():
                try:
                    same(over_rest(server, "pipeline", feeds), answer, 1e-5)
                    count.append(1)
                except Exception as error:  # noqa: BLE001  (reported below)
                    wrong.append(error)

        using = [threading.Thread(target=use) for _ in range(4)]
        for each in using:
            each.start()
        for _ in range(20):
            assert load(server, "pipeline").status_code == 200
        stop.set()
        for each in using:
            each.join()
    assert not wrong, wrong[0]
    assert count


# ---------------------------------------------------------------------------------------------------------- the library


def test_without_the_library(binary, tmp_path, nets, own_repository, iris):
    """Its models say how to get it, and all others serve."""
    write(nets["trees"], own_repository)
    wanted = ["--onnxruntime-lib", "/nonexistent/libonnxruntime.so"]
    environment = {"TENSORGATE_ONNXRUNTIME_LIB": "", "LD_LIBRARY_PATH": ""}
    with serving(binary, tmp_path, *wanted, environment=environment, ready=False) as server:
        until(lambda: server_says(server, "iris") == 200)
        entry = until(lambda: index(server)["trees"].get("reason") and index(server)["trees"])
        assert entry["state"] == "UNAVAILABLE"
        reply = load(server, "trees")
        assert reply.status_code in (400, 503), reply.text
        for told in (entry["reason"], reply.json()["error"], index(server)["trees"]["reason"]):
            for word in ("libonnxruntime.so: there is no such file", "--onnxruntime-lib", "onnxruntime"):
                assert word in told
            # Where it was looked for, the log alone has.
            assert "/nonexistent" not in told
        assert "/nonexistent/libonnxruntime.so: there is no such file" in server.log.read_text()
        assert requests.post(f"{server.url}/v2/models/iris/infer", json=iris.request).status_code == 200


def server_says(server, name):
    try:
        return requests.get(f"{server.url}/v2/models/{name}/ready", timeout=5).status_code
    except requests.ConnectionError:
        assert server.child.poll() is None, server.tail()
        return None


@pytest.mark.parametrize("kind", ["text", "another library", "folder"])
def test_a_library_that_is_none(binary, tmp_path, nets, own_repository, kind):
    """It is named, and what is wrong with it."""
    write(nets["trees"], own_repository)
    path = tmp_path / "libonnxruntime.so"
    if kind == "text":
        path.write_text("no library")
    elif kind == "folder":
        path.mkdir()
    else:
        package = pathlib.Path(os.environ["TENSORGATE_ONNXRUNTIME_LIB"]).parent
        others = [*package.glob("libonnxruntime_providers_shared.so"), *pathlib.Path("/lib").glob("*/libm.so.6")]
        shutil.copy(others[0], path)
    with serving(binary, tmp_path, "--onnxruntime-lib", path, ready=False) as server:
        until(lambda: server_says(server, "iris") == 200)
        entry = until(lambda: index(server)["trees"].get("reason") and index(server)["trees"])
        assert entry["state"] == "UNAVAILABLE"
        assert path.name in entry["reason"]
        assert str(tmp_path) not in entry["reason"]
        assert str(path) in server.log.read_text()


def test_the_library_by_its_flag(binary, tmp_path, nets):
    library = os.environ["TENSORGATE_ONNXRUNTIME_LIB"]
    write(nets["trees"], tmp_path / "models")
    environment = {"TENSORGATE_ONNXRUNTIME_LIB": ""}
    with serving(binary, tmp_path, "--onnxruntime-lib", library, environment=environment) as server:
        right(server, nets["trees"])
        assert stats(server, "trees")["inference_count"] == 3


def test_the_library_beside_the_binary(binary, tmp_path, nets):
    """As a distribution lays it."""
    place = tmp_path / "bin"
    place.mkdir()
    shutil.copy(binary, place / "tensorgate")
    shutil.copy(os.environ["TENSORGATE_ONNXRUNTIME_LIB"], place / "libonnxruntime.so")
    write(nets["trees"], tmp_path / "models")
    environment = {"TENSORGATE_ONNXRUNTIME_LIB": "", "LD_LIBRARY_PATH": ""}
    with serving(place / "tensorgate", tmp_path, environment=environment) as server:
        right(server, nets["trees"])


def test_external_data_that_is_overwritten_changes_nothing_that_serves(binary, tmp_path, nets):
    root = write(nets["large"], tmp_path / "models", "folder")
    weights = root / "1" / "model.onnx" / "weights.bin"
    with serving(binary, tmp_path) as server:
        for data in (bytes(weights.stat().st_size), b""):
            right(server, nets["large"])
            with weights.open("r+b") as file:
                file.truncate(len(data))
                file.write(data)
            right(server, nets["large"])
        assert server.child.poll() is None
        assert load(server, "large").status_code != 200
        right(server, nets["large"])
