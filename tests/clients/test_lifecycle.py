"""Start, readiness, metrics, drain and exit."""

import http.client
import json
import shutil
import signal
import socket
import subprocess
import threading
import time

import grpc
import pytest
import requests
from harness import free_ports
from prometheus_client.parser import text_string_to_metric_families
from sdk import service_pb2, service_pb2_grpc
from test_drain import eventually

SERVE = ["--http-port", "{http}", "--grpc-port", "{grpc}"]


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_exits_with_zero(own_server, signum):
    before = time.monotonic()
    assert own_server.stop(signum) == 0
    assert time.monotonic() - before < 10, "an idle server has nothing to wait for"


def test_idle_connections_do_not_hold_it_up(own_server):
    host, port = own_server.http.split(":")
    connection = http.client.HTTPConnection(host, int(port))
    connection.request("GET", "/v2/health/live")
    connection.getresponse().read()
    silent = socket.create_connection((host, int(port)))
    with grpc.insecure_channel(own_server.grpc) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        assert stub.ServerLive(service_pb2.ServerLiveRequest(), timeout=10).live
        before = time.monotonic()
        assert own_server.stop() == 0
        assert time.monotonic() - before < 15
    silent.close()
    connection.close()


def test_request_in_flight_is_answered(own_server, iris):
    """The signal comes while the body is still being sent."""
    host, port = own_server.http.split(":")
    body = json.dumps(iris.request).encode()
    connection = http.client.HTTPConnection(host, int(port), timeout=20)
    connection.putrequest("POST", "/v2/models/iris/infer")
    connection.putheader("Content-Type", "application/json")
    connection.putheader("Content-Length", str(len(body)))
    connection.endheaders(body[:10])
    time.sleep(0.3)
    own_server.child.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    connection.send(body[10:])
    reply = connection.getresponse()
    assert reply.status == 200
    assert json.loads(reply.read())["outputs"][0]["data"]
    connection.close()
    assert own_server.wait() == 0


def test_no_request_is_lost_while_stopping(own_server, iris):
    """Under load every request that was accepted is answered; afterwards connections are refused."""
    broken, answered, stop = [], [], threading.Event()

    def work():
        while not stop.is_set():
            try:
                reply = requests.post(f"{own_server.url}/v2/models/iris/infer", json=iris.request, timeout=20)
            except requests.ConnectionError as error:
                if "Connection refused" not in str(error) and "reset" not in str(error):
                    broken.append(str(error))
                return
            (answered if reply.status_code in (200, 503) else broken).append(reply.status_code)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for each in threads:
        each.start()
    time.sleep(0.5)
    assert own_server.stop() == 0
    stop.set()
    for each in threads:
        each.join()
    assert answered
    assert not broken


def test_unready_before_it_leaves(start, own_repository):
    """Without a word about draining: readiness says no while new connections are still answered."""
    server = start(own_repository, *SERVE, environment={"TENSORGATE_DRAIN_DELAY": ""})
    before = time.monotonic()
    server.child.send_signal(signal.SIGTERM)
    time.sleep(0.5)
    assert requests.get(f"{server.url}/v2/health/ready", timeout=2).status_code == 503
    assert requests.get(f"{server.url}/v2/health/live", timeout=2).status_code == 200
    assert server.wait() == 0
    assert 4 < time.monotonic() - before < 15


def test_failed_reload_serves_on_and_says_why(own_server, own_repository, iris):
    (own_repository / "iris" / "1" / iris.model_file.name).write_text('{"learner": 3}')
    reply = requests.post(f"{own_server.url}/v2/repository/models/iris/load", json={})
    assert reply.status_code == 503, reply.text
    index = {each["name"]: each for each in requests.post(f"{own_server.url}/v2/repository/index").json()}
    assert index["iris"]["state"] == "READY"
    assert iris.model_file.name in index["iris"]["reason"]
    assert requests.post(f"{own_server.url}/v2/models/iris/infer", json=iris.request).status_code == 200


def test_unloaded_models_are_not_listed(own_server):
    assert requests.post(f"{own_server.url}/v2/repository/models/iris/unload", json={}).status_code == 200
    assert "iris" not in requests.get(f"{own_server.url}/v1/models").json()["models"]
    assert "iris" not in requests.get(f"{own_server.url}/v2/models").json()["models"]


def told_of(server, model):
    """The lines of metrics that tell of a model."""
    return [line for line in requests.get(f"{server.url}/metrics").text.splitlines() if f'"{model}"' in line]


def logged(server, text):
    """How often the log has it."""
    return server.log.read_text(errors="replace").count(text)


def listed(server):
    return {each["name"]: each["state"] for each in requests.post(f"{server.url}/v2/repository/index").json()}


def test_what_was_unloaded_leaves_nothing_behind(own_server, own_repository, iris):
    """Metrics end with it, the index forgets it with its directory, and the log tells of it."""

    def unload(model):
        assert requests.post(f"{own_server.url}/v2/repository/models/{model}/unload", json={}).status_code == 200

    assert requests.post(f"{own_server.url}/v2/models/iris/infer", json=iris.request).status_code == 200
    assert told_of(own_server, "iris")
    unload("iris")
    eventually(lambda: not told_of(own_server, "iris"), "forgotten by metrics", own_server)
    assert listed(own_server) == {"iris": "UNAVAILABLE", "breast-cancer": "READY"}
    shutil.rmtree(own_repository / "iris")
    assert listed(own_server) == {"breast-cancer": "READY"}
    eventually(lambda: logged(own_server, "model unloaded") == 1, "logged", own_server)
    assert logged(own_server, "asked for over the API") == 1
    assert not logged(own_server, "no model serves any more")
    unload("breast-cancer")
    eventually(lambda: logged(own_server, "no model serves any more"), "logged", own_server)


def test_what_a_polled_repository_lacks_is_logged(start, own_repository, tmp_path):
    poll = ["--model-control-mode", "poll", "--repository-poll-secs", "1"]
    server = start("serve", "--model-repository", own_repository, *SERVE, *poll)
    shutil.rmtree(own_repository / "iris")
    eventually(lambda: logged(server, "gone from the repository"), "logged", server)
    assert listed(server) == {"breast-cancer": "READY"}
    eventually(lambda: not told_of(server, "iris"), "forgotten by metrics", server)
    own_repository.rename(tmp_path / "elsewhere")
    eventually(lambda: logged(server, "the model repository cannot be read"), "logged", server)
    (tmp_path / "elsewhere").rename(own_repository)
    eventually(lambda: logged(server, "the model repository can be read again"), "logged", server)
    assert listed(server) == {"breast-cancer": "READY"}
    assert logged(server, "model unloaded") == 1


def test_where_none_serves_the_log_does_not_say_ready(start, own_repository, iris):
    shutil.rmtree(own_repository / "breast-cancer")
    (own_repository / "iris" / "1" / iris.model_file.name).write_text("{")
    server = start("serve", "--model-repository", own_repository, *SERVE, ready=False)
    eventually(lambda: logged(server, "no model serves"), "logged", server)
    (line,) = (line for line in server.log.read_text().splitlines() if "no model serves" in line)
    assert "WARN" in line
    assert "ready" not in line
    assert requests.get(f"{server.url}/v2/health/ready").status_code == 503


def test_validate_names_what_it_did_not_recognise(binary, tmp_path):
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / "model.json").write_text('{"version":[3,0')
    run = subprocess.run([binary, "validate", tmp_path], capture_output=True, text=True, check=False)
    assert run.returncode == 1
    assert "model.json is there, but" in run.stdout


def test_empty_repository_is_ready(start, tmp_path):
    (tmp_path / "models").mkdir()
    server = start("serve", "--model-repository", tmp_path / "models", *SERVE)
    listed = requests.get(f"{server.url}/v1/models").json()
    assert listed["models"] == []
    assert requests.get(f"{server.url}/v2/models").json()["models"] == []


def test_directory_as_argument(start, own_repository):
    """`serve DIR`, and `serve` may be left out."""
    for words in (["serve", own_repository], [own_repository]):
        server = start(*words, *SERVE)
        assert requests.get(f"{server.url}/v2/models/iris/ready").status_code == 200


def test_broken_model_does_not_take_the_others_down(start, own_repository):
    """It is listed with its reason, and the others serve."""
    broken = own_repository / "broken" / "1"
    broken.mkdir(parents=True)
    (broken / "model.json").write_text('{"learner": 3}')
    server = start("serve", "--model-repository", own_repository, *SERVE, ready=False)
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            if requests.get(f"{server.url}/v2/models/iris/ready", timeout=2).status_code == 200:
                break
        except requests.ConnectionError:
            assert server.child.poll() is None, server.tail()
        time.sleep(0.05)
    index = {each["name"]: each for each in requests.post(f"{server.url}/v2/repository/index").json()}
    assert index["iris"]["state"] == "READY"
    assert index["broken"]["state"] == "UNAVAILABLE"
    assert index["broken"]["reason"]
    assert requests.get(f"{server.url}/v2/models/broken/ready").status_code == 503


def test_missing_repository(start, tmp_path):
    server = start("serve", "--model-repository", tmp_path / "nowhere", *SERVE, ready=False)
    assert server.wait() not in (0, 101), "a wrong directory is an error, not a panic"
    assert "nowhere" in server.tail().split("\n", 1)[1]


def test_port_in_use(start, own_repository, own_server):
    port = own_server.http.split(":")[1]
    server = start(
        "serve", "--model-repository", own_repository, "--http-port", port, "--grpc-port", "{grpc}", ready=False
    )
    assert server.wait() not in (0, 101)
    assert port in server.tail().split("\n", 1)[1]


def test_unknown_own_flag(start, own_repository):
    """In our own command line a misspelt flag is an error that names it."""
    server = start("serve", "--model-repository", own_repository, "--htp-port", "1", ready=False)
    assert server.wait() not in (0, 101)
    assert "--htp-port" in server.tail().split("\n", 1)[1]


@pytest.mark.parametrize("flag", ["--version", "--help"])
def test_help_and_version(start, flag):
    server = start(flag, ready=False)
    assert server.wait() == 0
    assert "tensorgate" in server.log.read_text().lower()


def test_ports_are_released(start, own_repository):
    """A restart can listen on the same ports at once."""
    ports = free_ports(2)
    for _ in range(2):
        server = start("serve", own_repository, "--http-port", ports[0], "--grpc-port", ports[1], ready=False)
        server.http, server.grpc = (f"127.0.0.1:{port}" for port in ports)
        server.wait_ready()
        requests.get(f"{server.url}/v2")
        assert server.stop() == 0


def test_metrics(server, iris):
    """KServe's histogram, on the serving port, counting each request once."""

    def count():
        reply = requests.get(f"{server.url}/metrics")
        assert reply.status_code == 200
        assert reply.headers["Content-Type"].startswith("text/plain")
        lines = [line for line in reply.text.splitlines() if line.startswith("request_predict_seconds_count{")]
        ours = [line for line in lines if 'model_name="iris"' in line]
        return float(ours[0].rsplit(" ", 1)[1]) if ours else 0.0

    before = count()
    for _ in range(3):
        assert requests.post(f"{server.url}/v2/models/iris/infer", json=iris.request).status_code == 200
    assert count() - before == 3


def test_metrics_parse(server):
    text = requests.get(f"{server.url}/metrics").text
    families = {each.name: each.type for each in text_string_to_metric_families(text)}
    for name in ("request_preprocess_seconds", "request_postprocess_seconds", "request_predict_seconds"):
        assert families[name] == "histogram"
    assert families["process_cpu_seconds"] == "counter"
    assert "unknown" not in families.values()


def test_readiness_of_each_surface(server):
    assert requests.get(f"{server.url}/v2/health/ready").json() == {"ready": True}
    assert requests.get(f"{server.url}/v2/health/live").json() == {"live": True}
    assert requests.get(f"{server.url}/v2/models/iris/ready").json() == {"name": "iris", "ready": True}
