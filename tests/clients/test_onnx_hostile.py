"""ONNX files that mean harm: none is served, each says why, and the server and its other models go on.

Those that ONNX Runtime itself fails on are loaded first in a process of their own, whose end is told. The bounds of
time and memory are small here, so that what hangs and swells is found out soon.
"""

import contextlib
import itertools
import pathlib
import resource
import subprocess
import threading
import time

import onnx_hostile
import onnx_models
import onnx_service
import pytest
import requests
import wire
from onnx_hostile import BROKEN, FILES, NATIVE
from onnx_service import described, index, load, over_rest, post, same, serving, until, write
from wire import MIB

# What a small model takes at most, in a build for debugging on a busy machine.
TIMEOUT, MEMORY = "3s", "512MiB"
PROBE = ["--probe-timeout", TIMEOUT, "--probe-memory", MEMORY]
GOOD = "trees"


def guard(server):
    """Should everything else fail, the machine does not."""
    resource.prlimit(server.child.pid, resource.RLIMIT_AS, (16 << 30, 16 << 30))


def lay(repository, cases, secret):
    for name, case in cases.items():
        folder = repository / name
        folder.mkdir(parents=True)
        case.write(folder, secret)


@pytest.fixture
def secret(tmp_path):
    """A file beside the repository, large enough to be taken for weights, and easily told in an answer."""
    path = tmp_path / "secret.bin"
    path.write_bytes(b"\x42\x42\x42\x42" * 1024)
    return path


@pytest.fixture
def good(tmp_path):
    """A repository with a model that is in order."""
    model = onnx_service.models()[GOOD]
    write(model, tmp_path / "models")
    return model


def serves(server, model):
    (feeds,) = model.asks(1)
    same(over_rest(server, model.name, feeds), onnx_service.oracle(model.name).answer(feeds))


def wrongly_said(found, cases):
    """Models of `cases` that are served, or whose reason does not say what it should."""
    wrong = []
    for name, case in cases.items():
        entry = found.get(name, {})
        reason = entry.get("reason", "")
        if entry.get("state") != "UNAVAILABLE" or not reason or not any(word in reason for word in case.words):
            wrong.append(f"{name}: {entry}, expected one of {case.words}")
    return "\n".join(wrong)


def settled(server, names):
    assert server.child.poll() is None, server.tail()
    try:
        found = index(server)
    except requests.ConnectionError:
        return None
    done = set(names) <= set(found) and all(each.get("state") in ("READY", "UNAVAILABLE") for each in found.values())
    return found if done else None


def children(server):
    """Processes that the server started and that are still there."""
    listed = pathlib.Path(f"/proc/{server.child.pid}/task").glob("*/children")
    return " ".join(path.read_text() for path in listed).split()


# ------------------------------------------------------------------------------------------------------------- at start


def test_at_start(binary, tmp_path, secret, good):
    """What reading the file tells needs no process of its own."""
    cases = FILES | BROKEN
    lay(tmp_path / "models", cases, secret)
    with serving(binary, tmp_path, *PROBE, ready=False) as server:
        found = until(lambda: settled(server, cases))
        assert found[GOOD]["state"] == "READY"
        serves(server, good)
        assert not wrongly_said(found, cases), wrongly_said(found, cases)
        for name in cases:
            assert requests.get(f"{server.url}/v2/models/{name}/ready").status_code == 503


def test_at_start_in_a_process_of_its_own(binary, tmp_path, secret, good):
    """--probe always: what crashes, hangs and swells is found out before it is loaded."""
    lay(tmp_path / "models", NATIVE, secret)
    with serving(binary, tmp_path, *PROBE, "--probe", "always", ready=False) as server:
        guard(server)
        found = until(lambda: settled(server, NATIVE), 120)
        serves(server, good)
        assert found[GOOD]["state"] == "READY"
        assert not wrongly_said(found, NATIVE), wrongly_said(found, NATIVE)
        until(lambda: not children(server))
        assert wire.memory(server.child.pid) < 2048 * MIB


def test_validate(binary, tmp_path, secret, good):
    """`tensorgate validate` says what the server would say, and lives to say it."""
    cases = {name: (FILES | BROKEN | NATIVE)[name] for name in ("hard-link", "cut", "custom-operator", "deep-tree")}
    lay(tmp_path / "models", cases, secret)
    words = [binary, "validate", tmp_path / "models"]
    run = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)
    assert run.returncode == 1, run.stderr
    lines = {line.split(" ", 1)[0]: line for line in run.stdout.splitlines()}
    assert "ok" in lines[GOOD]
    for name, case in cases.items():
        assert "refused" in lines[name]
        assert any(word in lines[name] for word in case.words), lines[name]


# ---------------------------------------------------------------------------------------------------------- at run time


@pytest.fixture(scope="module")
def running(binary, tmp_path_factory):
    """A server that others use while they are loaded."""
    folder = tmp_path_factory.mktemp("running")
    write(onnx_service.models()[GOOD], folder / "models")
    with serving(binary, folder, *PROBE) as server:
        guard(server)
        server.folder = folder
        (folder / "secret.bin").write_bytes(b"\x42\x42\x42\x42" * 1024)
        yield server


def loaded(server, name, case):
    """Lays a file, loads it, and says what the server told, and that the file is gone again."""
    folder = server.folder / "models" / name
    folder.mkdir()
    case.write(folder, server.folder / "secret.bin")
    return load(server, name)


@pytest.mark.parametrize("name", [*FILES, *BROKEN])
def test_at_run_time(running, name):
    case = (FILES | BROKEN)[name]
    reply = loaded(running, name, case)
    assert reply.status_code in (400, 503), reply.text
    entry = index(running)[name]
    assert not wrongly_said({name: entry}, {name: case}), entry
    assert any(word in reply.json()["error"] for word in case.words), reply.text
    serves(running, onnx_service.models()[GOOD])


@pytest.mark.parametrize("name", NATIVE)
def test_natively_at_run_time(running, name):
    """Meanwhile others are answered, each of them right."""
    model, stop, answered, wrong = onnx_service.models()[GOOD], threading.Event(), [], []

    def use():
        while not stop.is_set():
            try:
                serves(running, model)
                answered.append(time.monotonic())
            except Exception as error:  # noqa: BLE001  (reported below)
                wrong.append(error)

    using = threading.Thread(target=use)
    using.start()
    wire.forget_peak(running.child.pid)
    before = wire.memory(running.child.pid, "VmRSS")
    try:
        reply = loaded(running, name, NATIVE[name])
    finally:
        stop.set()
        using.join()
    assert not wrong, wrong[0]
    gaps = [later - earlier for earlier, later in itertools.pairwise(answered)]
    assert max(gaps, default=0) < 3
    assert reply.status_code in (400, 503), reply.text
    entry = index(running)[name]
    assert not wrongly_said({name: entry}, {name: NATIVE[name]}), entry
    assert wire.memory(running.child.pid) - before < 256 * MIB
    until(lambda: not children(running))


def test_a_model_that_serves_goes_on_when_its_next_file_is_bad(binary, tmp_path, secret, good):
    with serving(binary, tmp_path, *PROBE) as server:
        guard(server)
        for name in ("deep-tree", "hard-link", "cut"):
            folder = tmp_path / "models" / GOOD / "1"
            for each in folder.iterdir():
                each.unlink()
            (FILES | BROKEN | NATIVE)[name].write(folder, secret)
            reply = load(server, GOOD)
            assert reply.status_code in (400, 503), reply.text
            entry = index(server)[GOOD]
            assert entry["state"] == "READY"
            assert any(word in entry["reason"] for word in (FILES | BROKEN | NATIVE)[name].words), entry
            serves(server, good)


# ------------------------------------------------------------------------------ files that change while they are loaded

# Enough for a graph whose first run takes two seconds, on a busy machine.
PATIENCE = 20


@pytest.fixture(scope="module")
def careful(binary, tmp_path_factory):
    folder = tmp_path_factory.mktemp("careful")
    write(onnx_service.models()[GOOD], folder / "models")
    with serving(binary, folder, "--probe-timeout", f"{PATIENCE}s", "--probe-memory", MEMORY) as server:
        guard(server)
        server.folder = folder
        yield server


@contextlib.contextmanager
def loading(server, name, data, beside=None):
    """A model that takes a while to be tried, being loaded: its folder, and the reply once there is one. `beside` are
    more files."""
    folder = server.folder / "models" / name
    folder.mkdir()
    for file, more in {"model.onnx": data, **(beside or {})}.items():
        (folder / file).write_bytes(more)
    replies = []
    thread = threading.Thread(target=lambda: replies.append(load(server, name)))
    thread.start()
    try:
        until(lambda: children(server), 10)
        yield folder, replies
    finally:
        thread.join()


def endless():
    return onnx_hostile.endless().SerializeToString()


def put(folder, write):
    """Lays a file in the place of the graph, at once."""
    beside = folder.parent.parent / f"{folder.name}.new"
    beside.mkdir(exist_ok=True)
    write(beside, None)
    (beside / "model.onnx").replace(folder / "model.onnx")


def test_a_file_that_is_replaced_while_it_is_tried_is_tried_itself(careful):
    """Not the one that was tried is loaded, which would end the server."""
    with loading(careful, "replaced", endless()) as (folder, replies):
        put(folder, NATIVE["deep-tree"].write)
    assert replies[0].status_code in (400, 503), replies[0].text
    entry = index(careful)["replaced"]
    assert not wrongly_said({"replaced": entry}, {"replaced": NATIVE["deep-tree"]}), entry
    serves(careful, onnx_service.models()[GOOD])
    assert careful.child.poll() is None, careful.tail()


def test_a_file_that_was_replaced_once_is_served(careful):
    model = onnx_service.models()[GOOD]
    with loading(careful, "written-once-more", endless()) as (folder, replies):
        put(folder, lambda beside, _: (beside / "model.onnx").write_bytes(model.data))
    assert replies[0].status_code == 200, replies[0].text
    (feeds,) = model.asks(1)
    same(over_rest(careful, "written-once-more", feeds), onnx_service.oracle(GOOD).answer(feeds))


def test_files_that_never_stay_the_same(careful):
    """Written again and again, with the same bytes or not: it is not loaded, and the reason says why."""
    with loading(careful, "written", endless()) as (folder, replies):
        while not replies:
            (folder / "model.onnx").write_bytes(endless())
            time.sleep(0.05)
    assert replies[0].status_code in (400, 503), replies[0].text
    assert "changed while it was loaded" in replies[0].json()["error"]
    assert str(careful.folder) not in replies[0].json()["error"]
    # It does now.
    assert load(careful, "written").status_code == 200
    serves(careful, onnx_service.models()[GOOD])


@pytest.mark.parametrize("file", ["model.toml", "weights.bin"])
def test_settings_and_weights_are_files_of_the_model_too(careful, file):
    made = onnx_hostile.endless()
    if file == "weights.bin":
        made.graph.initializer.append(onnx_hostile.external(file))
    data = b"\n" if file == "model.toml" else bytes(onnx_hostile.BYTES)
    with loading(careful, f"with-{len(file)}", made.SerializeToString(), {file: data}) as (folder, replies):
        while not replies:
            (folder / file).write_bytes(data)
            time.sleep(0.05)
    assert replies[0].status_code in (400, 503), replies[0].text
    assert "changed while it was loaded" in replies[0].json()["error"]


def test_the_process_has_a_bound_on_processor_time(careful):
    """A little above that on time, should nobody be there to look at the clock."""
    with loading(careful, "timed", endless()):
        found = until(lambda: processor_limits(careful), 10)
    assert all(PATIENCE < int(seconds) <= PATIENCE + 10 for limits in found for seconds in limits), found


def processor_limits(server):
    """Bounds, soft and hard, of children that have set theirs."""
    found = []
    for child in children(server):
        with contextlib.suppress(OSError):
            lines = pathlib.Path(f"/proc/{child}/limits").read_text().splitlines()
            (line,) = (line for line in lines if line.startswith("Max cpu time"))
            found.append(line.split()[3:5])
    return [limits for limits in found if "unlimited" not in limits]


def test_nothing_of_the_secret_is_told(running):
    """Neither an answer nor the log has what lies in a file that was reached for."""
    log = running.log.read_text(errors="replace")
    text = requests.post(f"{running.url}/v2/repository/index").text
    for words in (log, text):
        assert "BBBBBBBB" not in words
        assert "root:" not in words


# -------------------------------------------------------------------------------- files that are in order, and requests


def served(binary, folder, nodes, inputs, outputs, initializers=()):
    made = onnx_models.unchecked(nodes, inputs, outputs, initializers)
    model = onnx_models.Model("subject", made, None)
    write(model, folder / "models")
    write(onnx_service.models()[GOOD], folder / "models")
    return serving(binary, folder, *PROBE)


@pytest.mark.parametrize("operator", ["Div", "Mod"])
def test_quotients_that_are_none(binary, tmp_path, operator):
    """By zero, and of the least number by -1, which no register holds. ONNX Runtime checks the first; the other one
    stops the process, unless somebody takes care of it."""
    kind = onnx_models.T.INT32
    ports = [onnx_models.PORT(name, kind, ["N"]) for name in "ab"]
    node = onnx_models.NODE(operator, ["a", "b"], ["q"])
    with served(binary, tmp_path, [node], ports, [onnx_models.PORT("q", kind, ["N"])]) as server:
        for a, b in ((7, 0), (-(2**31), -1), (7, 2)):
            inputs = [
                {"name": name, "shape": [1], "datatype": "INT32", "data": [value]}
                for name, value in (("a", a), ("b", b))
            ]
            reply = post(server, "subject", inputs)
            assert reply.status_code in (200, 400, 500), reply.text
            assert server.child.poll() is None, server.tail()
        assert reply.json()["outputs"][0]["data"] == [3 if operator == "Div" else 1]
        serves(server, onnx_service.models()[GOOD])


@pytest.mark.parametrize("name", onnx_hostile.QUOTIENTS)
def test_quotients_that_are_none_within_a_graph(running, name):
    """While it is loaded, or in every run: the model serves."""
    folder = running.folder / "models" / name / "1"
    folder.mkdir(parents=True)
    onnx_hostile.QUOTIENTS[name](folder, None)
    reply = load(running, name)
    assert reply.status_code == 200, reply.text
    assert index(running)[name]["state"] == "READY"
    serves(running, onnx_service.models()[GOOD])


def test_a_request_for_more_memory_than_there_is(binary, tmp_path):
    """A tensor of the size that the request says: it fails, and nothing else does."""
    shape = onnx_models.PORT("shape", onnx_models.T.INT64, [2])
    made = onnx_hostile.filled("v", "z", "shape", 1.0)
    peak = onnx_models.NODE("ReduceMax", ["z"], ["y"], keepdims=0)
    with served(binary, tmp_path, [made, peak], [shape], [onnx_models.PORT("y", onnx_models.T.FLOAT, [])]) as server:
        guard(server)
        for rows in (1 << 20, 1 << 40, 2**62):
            reply = post(
                server, "subject", [{"name": "shape", "shape": [2], "datatype": "INT64", "data": [rows, 1 << 20]}]
            )
            assert reply.status_code in (400, 429, 500, 503), reply.text
            assert server.child.poll() is None, server.tail()
        reply = post(server, "subject", [{"name": "shape", "shape": [2], "datatype": "INT64", "data": [2, 3]}])
        assert reply.json()["outputs"][0]["data"] == [1.0]
        serves(server, onnx_service.models()[GOOD])


def test_a_model_that_never_ends(binary, tmp_path, good, secret):
    """It is refused, or every request of it ends at its deadline and the others are answered."""
    lay(tmp_path / "models", {"forever": onnx_hostile.Hostile(onnx_hostile.bytes_of(onnx_hostile.endless), ())}, secret)
    with serving(binary, tmp_path, *PROBE, ready=False) as server:
        found = until(lambda: settled(server, ["forever"]))
        if found["forever"]["state"] == "READY":
            inputs = described({"x": onnx_models.floats(onnx_models.np.random.default_rng(0), 2)})
            for _ in range(4):
                reply = post(server, "forever", inputs, headers={"x-request-timeout-ms": "300"}, timeout=30)
                assert reply.status_code == 504, reply.text
        serves(server, good)
