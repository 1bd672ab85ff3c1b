"""Started the way the KServe operator starts the servers that tensorgate replaces.

Argument lists and environment are those of KServe's stock runtimes; only ports and paths are ours.
"""

import json
import shutil
import time

import pytest
import requests
from harness import Example, assert_same, tensor
from sdk import triton_grpc, triton_http


def single(example, tmp_path, filename):
    """A model directory as the storage initializer leaves it: the file alone, no versions."""
    directory = tmp_path / "mnt"
    directory.mkdir()
    shutil.copy(example.model_file, directory / filename)
    return directory


def assert_answers(server, example, name, output="output-0"):
    """v1, v2 and gRPC agree with the expected answer; the model answers under `name`."""
    v1 = requests.post(f"{server.url}/v1/models/{name}:predict", json={"instances": example.json_rows})
    assert v1.json() == example.predictions
    v2 = requests.post(f"{server.url}/v2/models/{name}/infer", json=example.request)
    assert v2.status_code == 200, v2.text
    assert v2.json()["outputs"][0]["name"] == output
    assert_same(tensor(v2.json()["outputs"][0]), example.answer)
    with triton_grpc.InferenceServerClient(server.grpc) as client:
        ask = triton_grpc.InferInput("input-0", example.input["shape"], example.input["datatype"])
        ask.set_data_from_numpy(example.rows)
        assert_same(client.infer(name, [ask]).as_numpy(output), example.answer)


XGBSERVER = ["--model_name=iris", "--model_dir={dir}", "--http_port={{http}}", "--grpc_port={{grpc}}", "--nthread=1"]


def fill(arguments, directory):
    return [word.format(dir=directory) for word in arguments]


@pytest.mark.parametrize("filename", ["model.json", "model.bst"])
def test_xgbserver(start, iris, tmp_path, filename):
    """The extension does not decide what a file is: `.bst` may hold any of XGBoost's encodings."""
    directory = single(iris, tmp_path, filename)
    assert_answers(start(*fill(XGBSERVER, directory)), iris, "iris")


def test_xgbserver_named_by_the_operator(start, iris, tmp_path):
    directory = single(iris, tmp_path, "model.json")
    server = start(*fill(XGBSERVER, directory), "--model_name=my-service")
    assert_answers(server, iris, "my-service")
    assert requests.get(f"{server.url}/v1/models/iris").status_code == 404, "the last --model_name counts"
    assert requests.get(f"{server.url}/v1/models").json()["models"] == ["my-service"]


@pytest.mark.lightgbm
def test_lgbserver(start, models, tmp_path):
    wine = Example.read(models, "wine")
    directory = single(wine, tmp_path, "model.bst")
    server = start(
        "--model_name=wine", f"--model_dir={directory}", "--http_port={http}", "--grpc_port={grpc}", "--nthread=1"
    )
    assert_answers(server, wine, "wine")


def test_predictiveserver(start, iris, tmp_path):
    directory = single(iris, tmp_path, "model.json")
    assert_answers(start(*fill(XGBSERVER, directory), "--framework=xgboost"), iris, "iris")


KSERVE_FLAGS = """
--workers=1 --max_threads=4 --max_asyncio_workers=4 --enable_grpc=true --enable_docs_url=false
--enable_latency_logging=true --configure_logging=true --event-loop=auto --timeout-keep-alive=65
--predictor_protocol=v1 --predictor_use_ssl=false --predictor_request_timeout_seconds=600
--predictor_request_retries=0 --grpc_max_send_message_length=8388608 --grpc_max_receive_message_length=8388608
--some_flag_of_a_later_release=1
""".split()


def test_every_kserve_flag(start, iris, tmp_path):
    """The unknown one at the end is ignored, as argparse's parse_known_args does."""
    directory = single(iris, tmp_path, "model.json")
    assert_answers(start(*fill(XGBSERVER, directory), *KSERVE_FLAGS), iris, "iris")


def test_kserve_flags_as_two_words(start, iris, tmp_path):
    directory = single(iris, tmp_path, "model.json")
    words = [part for word in fill(XGBSERVER, directory) for part in word.split("=", 1)]
    assert_answers(start(*words), iris, "iris")


def test_kserve_flags_with_dashes(start, iris, tmp_path):
    """argparse takes them, and so do people; what nobody knows is named, and no error."""
    directory = single(iris, tmp_path, "model.json")
    words = [word.replace("_", "-") for word in XGBSERVER]
    server = start(*fill(words, directory), "--some-new-flag=3")
    assert_answers(server, iris, "iris")
    assert "unknown and ignored: --some-new-flag" in server.tail()


@pytest.mark.parametrize("variable", ["OTEL_EXPORTER_OTLP_ENDPOINT=localhost:4317", "OTEL_EXPORTER_OTLP_ENDPOINT=x://y",
                                      "MODEL_INIT_MODE=eager"])  # fmt: skip
def test_variables_of_the_cluster_stop_nobody(start, iris, tmp_path, variable):
    name, value = variable.split("=")
    directory = single(iris, tmp_path, "model.json")
    server = start(*fill(XGBSERVER, directory), "--timeout-keep-alive=0", environment={name: value})
    assert_answers(server, iris, "iris")
    assert ("it is not read" in server.tail()) == (value in ("x://y", "eager"))


def test_a_collector_that_nobody_can_check_stops_nobody(start, iris, tmp_path):
    """Set for the whole cluster, that is; who names it to this server is told."""
    directory = single(iris, tmp_path, "model.json")
    endpoint = "https://127.0.0.1:9"
    missing = {"OTEL_EXPORTER_OTLP_CERTIFICATE": str(tmp_path / "missing.pem")}
    server = start(*fill(XGBSERVER, directory), environment={"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, **missing})
    assert_answers(server, iris, "iris")
    assert "missing.pem" in server.tail() and "no traces are sent" in server.tail()
    refused = start(*fill(XGBSERVER, directory), f"--otlp-endpoint={endpoint}", environment=missing, ready=False)
    assert refused.wait() == 2
    assert "OTEL_EXPORTER_OTLP_CERTIFICATE" in refused.tail()


def test_one_port_for_both(start, iris, tmp_path):
    directory = single(iris, tmp_path, "model.json")
    server = start(*fill(XGBSERVER, directory), "--grpc_port={http}")
    server.grpc = server.http
    assert_answers(server, iris, "iris")


def test_grpc_can_be_disabled(start, iris, tmp_path):
    directory = single(iris, tmp_path, "model.json")
    server = start(*fill(XGBSERVER, directory), "--enable_grpc=false")
    assert requests.get(f"{server.url}/v1/models/iris").json()["ready"] is True
    with triton_grpc.InferenceServerClient(server.grpc) as client:
        with pytest.raises(Exception, match="(?i)unavailable|connect"):
            client.is_server_live(client_timeout=2)


def test_kserve_environment(start, iris, tmp_path):
    """What the operator and Knative inject must not confuse the server."""
    directory = single(iris, tmp_path, "model.json")
    environment = {
        "INFERENCE_SERVICE_NAME": "iris",
        "K_SERVICE": "iris",
        "K_REVISION": "iris-00001",
        "K_CONFIGURATION": "iris",
        "PORT": "8080",
        "PROTOCOL": "v1",
        "PREDICT_PROBA": "true",
    }
    assert_answers(start(*fill(XGBSERVER, directory), environment=environment), iris, "iris")


def test_modelcar_waits_for_the_directory(start, iris, tmp_path):
    """MODEL_INIT_MODE=async: live at once, ready when the sidecar has linked the directory."""
    later = tmp_path / "later"
    server = start(*fill(XGBSERVER, later), environment={"MODEL_INIT_MODE": "async"}, ready=False)
    assert_live(server)
    assert not server.ready()
    shutil.copytree(single(iris, tmp_path, "model.json"), tmp_path / "staged")
    (tmp_path / "staged").rename(later)
    server.wait_ready()
    assert_answers(server, iris, "iris")


def test_modelcar_fills_the_directory_late(start, iris, tmp_path):
    """An empty directory is no model: the server stays unready until there is one, and then takes it."""
    later = tmp_path / "later"
    later.mkdir()
    server = start(*fill(XGBSERVER, later), environment={"MODEL_INIT_MODE": "async"}, ready=False)
    assert_live(server)
    time.sleep(1)
    assert not server.ready()
    shutil.copy(single(iris, tmp_path, "model.json") / "model.json", later / "model.json")
    server.wait_ready()
    assert_answers(server, iris, "iris")


def assert_live(server):
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            assert requests.get(f"{server.url}/v2/health/live", timeout=2).status_code == 200
            return
        except requests.ConnectionError:
            assert server.child.poll() is None, server.tail()
            time.sleep(0.05)
    raise AssertionError(f"never live\n{server.tail()}")


def test_multi_model_agent(start, iris, tmp_path):
    """Starts over an empty directory; the agent puts a model there and asks for it."""
    directory = tmp_path / "mnt"
    directory.mkdir()
    arguments = [word for word in fill(XGBSERVER, directory) if "model_name" not in word]
    server = start(*arguments)
    (directory / "iris").mkdir()
    shutil.copy(iris.model_file, directory / "iris" / "model.json")
    reply = requests.post(f"{server.url}/v2/repository/models/iris/load", json={})
    assert reply.status_code == 200, reply.text
    assert_answers(server, iris, "iris")


def triton_repository(example, tmp_path):
    repository = tmp_path / "triton"
    version = repository / "iris" / "1"
    version.mkdir(parents=True)
    shutil.copy(example.model_file, version / "xgboost.json")
    columns, classes = example.rows.shape[1], example.answer.shape[-1]
    (repository / "iris" / "config.pbtxt").write_text(f"""
name: "iris"
backend: "fil"
max_batch_size: 32768
input [{{ name: "input__0" data_type: TYPE_FP32 dims: [ {columns} ] }}]
output [{{ name: "output__0" data_type: TYPE_FP32 dims: [ {classes} ] }}]
instance_group [{{ kind: KIND_CPU }}]
parameters [
  {{ key: "model_type" value: {{ string_value: "xgboost_json" }} }},
  {{ key: "is_classifier" value: {{ string_value: "true" }} }},
  {{ key: "predict_proba" value: {{ string_value: "true" }} }}
]
""")
    return repository


TRITONSERVER = [
    "--model-store={dir}",
    "--grpc-port={{grpc}}",
    "--http-port={{http}}",
    "--allow-grpc=true",
    "--allow-http=true",
    "--allow-metrics=false",
]


def assert_triton_answers(server, iris):
    with triton_http.InferenceServerClient(server.http) as client:
        assert client.is_model_ready("iris")
        ask = triton_http.InferInput("input__0", list(iris.rows.shape), "FP32")
        ask.set_data_from_numpy(iris.rows)
        assert_same(client.infer("iris", [ask]).as_numpy("output__0"), iris.answer)
    with triton_grpc.InferenceServerClient(server.grpc) as client:
        ask = triton_grpc.InferInput("input__0", list(iris.rows.shape), "FP32")
        ask.set_data_from_numpy(iris.rows)
        assert_same(client.infer("iris", [ask]).as_numpy("output__0"), iris.answer)


def test_tritonserver_as_first_word(start, iris, tmp_path):
    repository = triton_repository(iris, tmp_path)
    assert_triton_answers(start("tritonserver", *fill(TRITONSERVER, repository)), iris)


def test_tritonserver_as_program_name(start, binary, iris, tmp_path):
    link = tmp_path / "tritonserver"
    link.symlink_to(binary)
    repository = triton_repository(iris, tmp_path)
    assert_triton_answers(start(*fill(TRITONSERVER, repository), program=link), iris)


TRITON_FLAGS = """
--model-control-mode=explicit --load-model=iris --strict-readiness=true --exit-timeout-secs=30
--http-thread-count=8 --grpc-infer-allocation-pool-size=8 --log-verbose=0 --log-info=true --log-format=default
--allow-gpu-metrics=false --allow-cpu-metrics=false --rate-limit=off --pinned-memory-pool-byte-size=268435456
--cuda-memory-pool-byte-size=0:67108864 --min-supported-compute-capability=6.0 --buffer-manager-thread-count=0
--backend-config=python,shm-default-byte-size=1048576 --backend-directory=/opt/tritonserver/backends
--disable-auto-complete-config --grpc-keepalive-time=7200000 --grpc-keepalive-timeout=20000
""".split()


def test_tritonserver_flags(start, iris, tmp_path):
    repository = triton_repository(iris, tmp_path)
    assert_triton_answers(start("tritonserver", *fill(TRITONSERVER, repository), *TRITON_FLAGS), iris)


def test_tritonserver_explicit_without_models(start, iris, tmp_path):
    """What the controller adds for an InferenceService without storageUri: nothing is loaded until asked for."""
    repository = triton_repository(iris, tmp_path)
    server = start("tritonserver", *fill(TRITONSERVER, repository), "--model-control-mode=explicit")
    with triton_http.InferenceServerClient(server.http) as client:
        assert not client.is_model_ready("iris")
        client.load_model("iris")
    assert_triton_answers(server, iris)


def test_tritonserver_of_two_repositories(start, iris, tmp_path):
    repository = triton_repository(iris, tmp_path)
    other = tmp_path / "other"
    shutil.copytree(repository / "iris", other / "rose")
    config = other / "rose" / "config.pbtxt"
    config.write_text(config.read_text().replace('name: "iris"', 'name: "rose"'))
    server = start("tritonserver", *fill(TRITONSERVER, repository), f"--model-repository={other}")
    assert_triton_answers(server, iris)
    with triton_http.InferenceServerClient(server.http) as client:
        assert client.is_model_ready("rose")


# What a server that follows another answers where the two differ: path, body, and (status, word of the body) of each.
BAD = b'{"inputs":['
SHORT = {"inputs": [{"name": "input-0", "shape": [1, 4], "datatype": "FP32", "data": [1.0]}]}
DIFFERENCES = {
    "live": ("GET", "/v2/health/live", None, (200, "live"), (200, None)),
    "ready": ("GET", "/v2/health/ready", None, (200, "ready"), (200, None)),
    "model ready": ("GET", "/v2/models/iris/ready", None, (200, "iris"), (200, None)),
    "failed model ready": ("GET", "/v2/models/broken/ready", None, (503, "broken"), (400, "not ready")),
    "failed model": ("GET", "/v2/models/broken", None, (503, "broken"), (404, "no available versions")),
    "unknown model": ("GET", "/v2/models/zz", None, (404, "does not exist"), (404, "unknown model: 'zz'")),
    "no JSON": ("POST", "/v2/models/iris/infer", BAD, (422, "detail"), (500, "failed to parse")),
    "no inputs": ("POST", "/v2/models/iris/infer", {}, (422, "detail"), (500, "inputs")),
    "too few values": ("POST", "/v2/models/iris/infer", SHORT, (500, "data"), (500, "data")),
    "V1, no JSON": ("POST", "/v1/models/iris:predict", BAD, (400, "Unrecognized"), (400, "Unrecognized")),
    "V1, ragged": ("POST", "/v1/models/iris:predict", {"instances": [[1], [1, 2]]}, (500, "error"), (400, "error")),
    "load unknown": ("POST", "/v2/repository/models/zz/load", {}, (503, "not ready"), (500, "failed to load 'zz'")),
    "unload unknown": ("POST", "/v2/repository/models/zz/unload", {}, (404, "zz"), (200, None)),
    "statistics of unknown": ("GET", "/v2/models/zz/stats", None, (404, "zz"), (400, "requested model 'zz'")),
    "version": ("GET", "/v2/models/iris/versions/1", None, (501, "versioning"), (200, "iris")),
    "no route": ("GET", "/nothing", None, (404, "detail"), (404, "error")),
    "slash at the end": ("GET", "/v2/models/iris/", None, (200, "iris"), (404, "error")),
}


@pytest.mark.parametrize("profile", ["kserve", "triton"])
def test_profiles(start, own_repository, profile):
    broken = own_repository / "broken"
    broken.mkdir()
    (broken / "model.json").write_text('{"learner": 3}')
    server = start(own_repository, f"--profile={profile}", "--http-port={http}", "--grpc-port={grpc}")
    wrong = []
    for name, (method, path, body, *answers) in DIFFERENCES.items():
        status, word = answers[profile == "triton"]
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        reply = requests.request(method, server.url + path, data=data, headers={"Content-Type": "application/json"})
        right = word in reply.text if word else reply.text == ""
        if reply.status_code != status or not right:
            wrong.append(f"{name}: {reply.status_code} {reply.text!r}, expected {status} and {word!r}")
    assert not wrong, "\n".join(wrong)
    listed = requests.get(f"{server.url}/v1/models").json()
    assert ("data" in listed) == (profile == "triton")


MLSERVER = {
    "MLSERVER_MODEL_IMPLEMENTATION": "mlserver_xgboost.XGBoostModel",
    "MLSERVER_HTTP_PORT": "{http}",
    "MLSERVER_GRPC_PORT": "{grpc}",
    "MLSERVER_MODEL_NAME": "iris",
}


def test_mlserver_environment(start, iris, tmp_path):
    directory = single(iris, tmp_path, "model.json")
    server = start(environment={**MLSERVER, "MLSERVER_MODEL_URI": directory})
    assert requests.get(f"{server.url}/v2/models/iris/ready").status_code == 200
    reply = requests.post(f"{server.url}/v2/models/iris/infer", json=iris.request)
    assert reply.status_code == 200, reply.text
    (output,) = reply.json()["outputs"]
    assert_same(tensor(output).reshape(iris.answer.shape), iris.answer)


def test_flags_win_over_the_environment(start, iris, tmp_path):
    directory = single(iris, tmp_path, "model.json")
    environment = {**MLSERVER, "MLSERVER_MODEL_URI": "/nowhere", "MLSERVER_HTTP_PORT": "1", "MLSERVER_GRPC_PORT": "1"}
    assert_answers(start(*fill(XGBSERVER, directory), environment=environment), iris, "iris")
