"""While a server starts, and while it leaves: what it says, and what it answers.

Nothing here looks at how long something took: only at what never comes, and at what should not.
"""

import contextlib
import json
import os
import pty
import queue
import re
import select
import shutil
import signal
import socket
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
import requests
import tiny_llm
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from harness import STOP_SECONDS, assert_same, free_ports, tensor
from openai_service import GREEDY, LONG, LONG_CONTEXT, MESSAGES, TEXT, running, sampled
from sdk import service_pb2, service_pb2_grpc
from wire import INFER, ROW, Http1, request

LISTEN = ["--http-port", "{http}", "--grpc-port", "{grpc}"]
# What nothing comes near that ever comes: seconds.
PATIENCE = 60


def eventually(condition, what, server):
    """Waits until `condition()` is true of a server that runs."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert server.child.poll() is None, server.tail()
        assert time.monotonic() < deadline, f"never {what}\n{server.tail()}"
        time.sleep(0.02)


def status(server, path):
    """None where nobody listens."""
    try:
        return requests.get(server.url + path, timeout=PATIENCE).status_code
    except requests.ConnectionError:
        return None


def is_ready(server):
    return status(server, "/v2/health/ready") == 200


def assert_iris(server, iris, name="iris"):
    reply = requests.post(f"{server.url}/v2/models/{name}/infer", json=iris.request, timeout=PATIENCE)
    assert reply.status_code == 200, reply.text
    assert_same(tensor(reply.json()["outputs"][0]), iris.answer)


# -------------------------------------------------------------------------------------------------------------- leaving


def connected(server):
    client = Http1(server.http)
    client.socket.settimeout(PATIENCE)
    return client


ASKED = [request("POST", INFER, body=ROW), request("GET", "/v2/health/live"), request("GET", "/v2/models/nothing")] * 2


def test_kept_connections_are_told_to_close(start, models):
    """While new ones are still taken: whoever keeps a connection would otherwise not notice before it is gone."""
    server = start(models, *LISTEN, "--drain-delay", "10s")
    clients = [connected(server) for _ in ASKED]
    before, after, closed = [], [], []
    for each, asked in zip(clients, ASKED):
        each.socket.sendall(asked)
        before.append(each.reply())
    server.child.send_signal(signal.SIGTERM)
    eventually(lambda: status(server, "/v2/health/ready") == 503, "unready", server)
    late = [connected(server) for _ in ASKED]
    for each, asked in zip(clients + late, ASKED * 2):
        each.socket.sendall(asked)
        after.append(each.reply())
    for each in clients + late:
        closed.append(each.reply() is None)
        each.socket.close()
    assert server.wait(PATIENCE) == 0
    assert None not in before + after, "a request was not answered"
    assert [each.status for each in before + after] == [200, 200, 404] * 6
    assert {each.headers.get("connection", "keep-alive").lower() for each in before} == {"keep-alive"}
    assert {each.headers.get("connection", "keep-alive").lower() for each in after} == {"close"}
    assert all(closed)


class Keeping(threading.Thread):
    """Posts every few milliseconds over one connection, and another when it is told that this one closes, until nobody
    listens any more."""

    def __init__(self, server):
        super().__init__()
        self.server = server
        self.answers, self.closes, self.lost = [], 0, []

    def run(self):
        client, last, doubt = None, None, None
        while True:
            if client is None:
                try:
                    client, last = connected(self.server), None
                except ConnectionError:
                    return
                # Somebody listens still: what came to nothing on a new connection was not for want of that.
                self.lost += [doubt] if doubt else []
                doubt = None
            asked = time.monotonic()
            try:
                client.socket.sendall(request("POST", INFER, body=ROW))
                reply = client.reply()
            except ConnectionError:
                reply = None
            if reply is not None:
                self.answers.append(reply.status)
                last = time.monotonic()
            elif last is None:
                # It may have waited to be accepted when the listener closed.
                doubt = "a new connection was closed without an answer"
            elif asked - last < 1:
                self.lost.append("a kept connection was closed without an answer")
            # Else this client slept for as long as a server waits for it to be told.
            told = reply is not None and reply.headers.get("connection", "").lower() == "close"
            self.closes += told
            if told or reply is None:
                client.socket.close()
                client = None
            time.sleep(0.003)


def test_clients_that_keep_connections_lose_nothing(start, models):
    """Across SIGTERM every request is answered, until the listener closes."""
    server = start(models, *LISTEN, "--drain-delay", "2s")
    clients = [Keeping(server) for _ in range(10)]
    for each in clients:
        each.start()
    eventually(lambda: all(len(each.answers) > 10 for each in clients), "busy", server)
    code = server.stop()
    for each in clients:
        each.join()
    assert code == 0
    assert [each.lost for each in clients] == [[]] * 10
    assert {status for each in clients for status in each.answers} == {200}
    assert any(each.closes for each in clients), "nobody was told to connect elsewhere"


def inference(channel):
    message = service_pb2.ModelInferRequest(model_name="iris", raw_input_contents=[bytes(16)])
    message.inputs.add(name="input-0", datatype="FP32", shape=[1, 4])
    return service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelStreamInfer, message


def reflection(channel):
    message = reflection_pb2.ServerReflectionRequest(list_services="")
    return reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo, message


@pytest.mark.parametrize("count", [1, 20])
@pytest.mark.parametrize("service", [inference, reflection])
def test_a_silent_stream_does_not_keep_the_server(start, models, service, count):
    """What has arrived on it is answered, and its end is a good one."""
    server, said = start(models, *LISTEN, "--drain-delay", "1s", "--drain-timeout", "1h"), queue.Queue()
    with grpc.insecure_channel(server.grpc) as channel:
        call, message = service(channel)
        stream = call(iter(said.get, None), timeout=PATIENCE)
        said.put(message)
        first = next(stream)
        for _ in range(count - 1):
            said.put(message)
        server.child.send_signal(signal.SIGTERM)
        answers = [first, *stream]
        assert stream.code() is grpc.StatusCode.OK
        said.put(None)
        assert server.wait(PATIENCE) == 0
    assert len(answers) == count
    assert not any(getattr(each, "error_message", "") for each in answers)


@pytest.mark.parametrize("verb", ["", "load", "unload"])
def test_answers_that_take_too_long_are_told_so(start, tmp_path, verb):
    """A stream by an event, as with every other error; a whole answer, and a request that only waits, by their status.
    Whether or not their model was replaced meanwhile, or taken out of service."""
    tiny_llm.make(tmp_path / "models" / "tiny", context=LONG_CONTEXT)
    words = ["--max-num-seqs", "2", "--drain-timeout", "1s"]
    server = start("serve", "--model-repository", tmp_path / "models", *LISTEN, *words)
    asked = {**GREEDY, "max_tokens": LONG, "ignore_eos": True}

    def ask(path, **more):
        return requests.post(f"{server.url}/v1/{path}", json={**asked, **more}, timeout=PATIENCE)

    def waiting():
        return sampled(server, "vllm:num_requests_waiting", model_name="tiny")

    with ThreadPoolExecutor(4) as pool:
        streams = [pool.submit(ask, "completions", prompt=TEXT, stream=True)]
        eventually(lambda: running(server) == 1, "running", server)
        wholes = [pool.submit(ask, "chat/completions", messages=MESSAGES)]
        eventually(lambda: running(server) == 2, "running", server)
        wholes.append(pool.submit(ask, "completions", prompt=TEXT))
        eventually(lambda: waiting() == 1, "waiting", server)
        streams.append(pool.submit(ask, "chat/completions", messages=MESSAGES, stream=True))
        eventually(lambda: waiting() == 2, "waiting", server)
        if verb:
            managed = requests.post(f"{server.url}/v2/repository/models/tiny/{verb}", json={}, timeout=PATIENCE)
            assert managed.status_code == 200
            assert requests.get(f"{server.url}/load", timeout=PATIENCE).json() == {"server_load": 4}
        server.child.send_signal(signal.SIGTERM)
        streams, wholes = [[each.result() for each in futures] for futures in (streams, wholes)]
    assert server.wait(PATIENCE) == 0
    assert [each.status_code for each in streams + wholes] == [200, 200, 503, 503]
    errors = [each.json()["error"] for each in wholes]
    for each in streams:
        events = [line.removeprefix("data: ") for line in each.text.splitlines() if line]
        assert events[-1] == "[DONE]"
        errors.append(json.loads(events[-2])["error"])
    assert all("shutting down" in each["message"] for each in errors)
    assert all(int(each.headers["Retry-After"]) > 0 for each in wholes)


# ------------------------------------------------------------------------------------------------------------- starting


def test_many_models_do_not_take_a_thread_each(start, iris, tmp_path):
    count, most = 60, 2 * os.cpu_count() + 24
    for number in range(count):
        shutil.copytree(iris.directory / "1", tmp_path / "models" / f"iris-{number}" / "1")
    server = start("serve", "--model-repository", tmp_path / "models", *LISTEN, ready=False)
    seen = []

    def ready():
        seen.append(len(os.listdir(f"/proc/{server.child.pid}/task")))
        return is_ready(server)

    eventually(ready, "ready", server)
    seen.append(len(os.listdir(f"/proc/{server.child.pid}/task")))
    assert max(seen) <= most, seen
    index = requests.post(f"{server.url}/v2/repository/index", timeout=PATIENCE).json()
    assert sorted(each["name"] for each in index) == sorted(f"iris-{number}" for number in range(count))
    assert {each["state"] for each in index} == {"READY"}
    for number in (0, count - 1):
        assert_iris(server, iris, f"iris-{number}")


def test_models_are_known_before_it_is_their_turn(start, iris, tmp_path):
    """One is loaded after the other: the last is not ready for a while, which is something else than not there."""
    for number in range(60):
        shutil.copytree(iris.directory / "1", tmp_path / "models" / f"iris-{number:02}" / "1")
    server = start("serve", "--model-repository", tmp_path / "models", "--nthread", 1, *LISTEN, ready=False)
    seen = set()

    def ready():
        seen.update(status(server, path) for path in ("/v2/models/iris-59/ready", "/v1/models/iris-59"))
        return is_ready(server)

    eventually(ready, "ready", server)
    assert seen <= {None, 503, 200}


@pytest.fixture
def awaiting(start, tmp_path):
    """A server of a model that is not there yet."""
    words = ["--model-name", "iris", "--model-dir", tmp_path / "not-yet-here", *LISTEN]
    server = start(*words, environment={"MODEL_INIT_MODE": "async"}, ready=False)
    eventually(lambda: status(server, "/v2/health/live") == 200, "live", server)
    return server


def index(server):
    entries = requests.post(f"{server.url}/v2/repository/index", timeout=PATIENCE).json()
    return {each["name"]: each for each in entries}


def test_what_is_waited_for_is_in_the_log(awaiting):
    def told():
        lines = awaiting.log.read_text(errors="replace").splitlines()
        return any("waiting" in line.lower() and "not-yet-here" in line for line in lines)

    eventually(told, "told", awaiting)


def test_what_is_waited_for_is_known(awaiting):
    """It is not ready, which is something else than not there, and the index says why."""
    eventually(lambda: "iris" in index(awaiting), "listed", awaiting)
    assert index(awaiting)["iris"]["state"] == "UNAVAILABLE"
    assert index(awaiting)["iris"]["reason"]
    for path in ("/v1/models/iris", "/v2/models/iris/ready"):
        assert status(awaiting, path) == 503
    reply = requests.post(awaiting.url + INFER, data=ROW, timeout=PATIENCE)
    assert reply.status_code == 503
    assert int(reply.headers["Retry-After"]) > 0
    assert not is_ready(awaiting)


def test_what_is_waited_for_serves_when_it_comes(awaiting, iris, tmp_path):
    shutil.copytree(iris.directory / "1", tmp_path / "staged")
    (tmp_path / "staged").rename(tmp_path / "not-yet-here")
    eventually(lambda: is_ready(awaiting), "ready", awaiting)
    assert_iris(awaiting, iris)
    assert requests.get(f"{awaiting.url}/v1/models/iris", timeout=PATIENCE).json() == {"name": "iris", "ready": True}
    assert list(index(awaiting)) == ["iris"]
    assert index(awaiting)["iris"]["state"] == "READY"
    assert not index(awaiting)["iris"].get("reason")


def test_what_is_waited_for_is_neither_loaded_nor_unloaded(awaiting, iris, tmp_path):
    """Whoever asks for that changes nothing: it serves when it comes."""
    eventually(lambda: "iris" in index(awaiting), "listed", awaiting)
    before = index(awaiting)
    for verb, expected in [("load", 503), ("unload", 200), ("load", 503)]:
        url = f"{awaiting.url}/v2/repository/models/iris/{verb}"
        reply = requests.post(url, json={}, timeout=PATIENCE)
        assert reply.status_code == expected, reply.text
        assert index(awaiting) == before
    shutil.copytree(iris.directory / "1", tmp_path / "staged")
    (tmp_path / "staged").rename(tmp_path / "not-yet-here")
    eventually(lambda: is_ready(awaiting), "ready", awaiting)
    assert_iris(awaiting, iris)


def of_mlserver(uri, **more):
    """What KServe's controller gives to MLServer."""
    return {
        "MLSERVER_MODEL_IMPLEMENTATION": "mlserver_xgboost.XGBoostModel",
        "MLSERVER_HTTP_PORT": "{http}",
        "MLSERVER_GRPC_PORT": "{grpc}",
        "MLSERVER_MODEL_NAME": "foo",
        "MLSERVER_MODEL_URI": uri,
        **more,
    }


@pytest.mark.parametrize("prefix", ["", "file://"])
def test_mlserver_names_the_file(start, iris, tmp_path, prefix):
    """`MLSERVER_MODEL_URI` may be the model's file, and not its directory: then nothing else there is meant."""
    directory = tmp_path / "mnt"
    (directory / "7").mkdir(parents=True)
    shutil.copy(iris.model_file, directory / "a.json")
    (directory / "b.json").write_text('{"learner": 3}')
    assert_iris(start(environment=of_mlserver(f"{prefix}{directory / 'a.json'}")), iris, "foo")


def test_the_file_that_mlserver_names_may_come_late(start, iris, tmp_path):
    (tmp_path / "mnt").mkdir()
    environment = of_mlserver(tmp_path / "mnt" / "a.json", MODEL_INIT_MODE="async")
    server = start(environment=environment, ready=False)
    eventually(lambda: status(server, "/v1/models/foo") == 503, "told of", server)
    (tmp_path / "mnt" / "b.json").write_text('{"learner": 3}')
    shutil.copy(iris.model_file, tmp_path / "mnt" / "staged")
    (tmp_path / "mnt" / "staged").rename(tmp_path / "mnt" / "a.json")
    eventually(lambda: is_ready(server), "ready", server)
    assert_iris(server, iris, "foo")


# ------------------------------------------------------------------------------------------ what is said on a terminal


@contextlib.contextmanager
def on_a_terminal(binary, *words):
    """Starts a server as a person would; the command that it says can be pasted, as its words."""
    master, slave = pty.openpty()
    ports = free_ports(2)
    command = [binary, *words, "--http-port", ports[0], "--grpc-port", ports[1], "--drain-delay", "0s"]
    child = subprocess.Popen(
        [str(word) for word in command], stdin=subprocess.DEVNULL, stdout=slave, stderr=slave, close_fds=True
    )
    os.close(slave)
    try:
        said, deadline, line = b"", time.monotonic() + PATIENCE, None
        while line is None:
            assert time.monotonic() < deadline, f"no command to paste\n{said.decode(errors='replace')}"
            if select.select([master], [], [], 0.1)[0]:
                try:
                    said += os.read(master, 1 << 16)
                except OSError:
                    raise AssertionError(f"it ended\n{said.decode(errors='replace')}") from None
            line = re.search(rb"^\s*(curl .*?)\r?\n", said, re.MULTILINE)
        yield said.decode(), pasted(line[1].decode())
        child.terminate()
        assert child.wait(STOP_SECONDS) == 0
    finally:
        if child.poll() is None:
            child.kill()
            child.wait()
        os.close(master)


def pasted(line):
    """The words that a shell makes of a curl command; it is not run, as not every machine has one."""
    script = "curl() { printf '%s\\0' \"$@\"; }\n" + line
    run = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False)
    assert run.returncode == 0, (line, run.stderr)
    assert not run.stderr, (line, run.stderr)
    return run.stdout.split("\0")[:-1]


def target(words):
    (url,) = (word for word in words if word.startswith("http"))
    return url


def post(words):
    """What curl would do."""
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    for flag, value in zip(words, words[1:]):
        if flag == "-H":
            headers.update([value.split(": ", 1)])
    data = words[words.index("-d") + 1]
    return requests.post(target(words), data=data, headers=headers, timeout=PATIENCE)


def assert_works(words):
    reply = post(words)
    assert reply.status_code == 200, reply.text
    assert reply.json()["predictions"]


def test_the_command_works(binary, models):
    with on_a_terminal(binary, models) as (_, words):
        assert_works(words)


def test_the_command_brackets_ipv6(binary, models):
    with socket.socket(socket.AF_INET6) as probe:
        try:
            probe.bind(("::1", 0))
        except OSError:
            pytest.skip("there is no IPv6 here")
    with on_a_terminal(binary, models, "--host", "::1") as (_, words):
        assert target(words).startswith("http://[::1]:")
        assert_works(words)


def works_for(binary, example, name):
    with on_a_terminal(binary, "--model-dir", example.directory, "--model-name", name) as (_, words):
        assert_works(words)
        return target(words)


@pytest.mark.parametrize("name", ["it's", "$(false)"])
def test_the_command_quotes_names(binary, iris, name):
    works_for(binary, iris, name)


@pytest.mark.parametrize("name", ["a b", "a/b", "100%", 'a"b', "{a,b}", "[1-2]", "a?b"])
def test_the_command_escapes_names(binary, iris, name):
    """curl takes a URL as it is, and braces and brackets for several."""
    url = works_for(binary, iris, name)
    assert re.fullmatch(r"http://[\w.]+:\d+/([\w.~!$&'()*+,;=:@/-]|%[0-9A-Fa-f]{2})+", url), url


def test_the_command_asks_for_a_key(binary, models, tmp_path):
    """And does not tell it: whoever looks over a shoulder would have it."""
    (tmp_path / "keys").write_text("correct-Horse\n")
    with on_a_terminal(binary, models, "--api-keys-file", tmp_path / "keys") as (said, words):
        shown = words[words.index("-H") + 1]
        assert re.match(r"(?i)(authorization: bearer|x-api-key:)", shown), shown
        assert "correct-Horse" not in said
