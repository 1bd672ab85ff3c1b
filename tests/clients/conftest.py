"""Starts the server under test.

TENSORGATE_BIN     the binary
TENSORGATE_MODELS  the example repository, each model of trees with its expected.json
TENSORGATE_HTTP, TENSORGATE_GRPC
                   host:port of a server that already runs: tests that need no server of their own use it instead
TENSORGATE_ONNXRUNTIME_LIB
                   the library that servers load ONNX models with; without it that of the package onnxruntime
"""

import importlib.util
import os
import pathlib
import shutil

import pytest
import sdk  # noqa: F401  (first: it settles which protobuf pool each SDK gets)
from harness import LIGHTGBM, XGBOOST, Endpoint, Example, Process, free_ports

BINARY = os.environ.get("TENSORGATE_BIN")
MODELS = os.environ.get("TENSORGATE_MODELS")
RUNNING = os.environ.get("TENSORGATE_HTTP")

EXAMPLES = [*XGBOOST, *(pytest.param(name, marks=pytest.mark.lightgbm) for name in LIGHTGBM)]


def pytest_configure(config):
    if not MODELS or not (BINARY or RUNNING):
        raise pytest.UsageError("set TENSORGATE_BIN and TENSORGATE_MODELS")
    package = importlib.util.find_spec("onnxruntime")
    if package and not os.environ.get("TENSORGATE_ONNXRUNTIME_LIB"):
        (library,) = (pathlib.Path(package.origin).parent / "capi").glob("libonnxruntime.so.*")
        os.environ["TENSORGATE_ONNXRUNTIME_LIB"] = str(library)


@pytest.fixture(scope="session")
def models():
    return pathlib.Path(MODELS)


@pytest.fixture(scope="session")
def binary():
    if not BINARY:
        pytest.skip("TENSORGATE_BIN is not set: no server can be started")
    return pathlib.Path(BINARY).absolute()


def starter(binary, folder):
    """A function that starts servers, and the list of those it started."""
    started = []

    def start(*arguments, environment=None, program=None, ready=True):
        """`{http}` and `{grpc}` in the arguments and the environment stand for free ports."""
        ports = free_ports(2)
        fill = {"http": ports[0], "grpc": ports[1]}
        words = [str(word).format(**fill) for word in arguments]
        variables = {key: str(value).format(**fill) for key, value in (environment or {}).items()}
        # Nobody routes requests here who would have to notice that a server is going.
        variables = {"TENSORGATE_DRAIN_DELAY": "0s", **variables}
        log = folder / f"server-{len(started)}.log"
        process = Process([program or binary, *words], ports, log, variables)
        started.append(process)
        return process.wait_ready() if ready else process

    return start, started


def stop_all(started):
    """Every server that still runs must end well when it is asked to."""
    alive = [each for each in started if each.child.poll() is None]
    codes = [(each.stop(), each) for each in alive]
    for code, each in codes:
        assert code == 0, f"exit code {code} after SIGTERM\n{each.tail()}"


@pytest.fixture(scope="session")
def server(request, tmp_path_factory, models):
    """The one server that most tests share; none of them changes it."""
    if RUNNING:
        yield Endpoint(RUNNING, os.environ.get("TENSORGATE_GRPC", ""))
        return
    start, started = starter(request.getfixturevalue("binary"), tmp_path_factory.mktemp("shared"))
    try:
        yield start("serve", "--model-repository", models, "--http-port", "{http}", "--grpc-port", "{grpc}")
    finally:
        stop_all(started)


@pytest.fixture(scope="session")
def onnx_server(binary, tmp_path_factory):
    """The one server over ONNX models that their tests share; none of them changes it."""
    # It makes the models, with libraries that take seconds to import.
    import onnx_service

    with onnx_service.shared(binary, tmp_path_factory.mktemp("onnx")) as server:
        yield server


@pytest.fixture
def start(binary, tmp_path):
    """Starts servers for one test and expects each to exit with 0 on SIGTERM."""
    function, started = starter(binary, tmp_path)
    try:
        yield function
        stop_all(started)
    finally:
        for each in started:
            each.kill()


@pytest.fixture
def own_repository(models, tmp_path):
    """A copy of the example repository that the test may change, XGBoost only."""
    repository = tmp_path / "models"
    for name in XGBOOST:
        shutil.copytree(models / name, repository / name)
    return repository


@pytest.fixture
def own_server(start, own_repository):
    """A server over `own_repository`, for tests that load, unload or stop."""
    return start("serve", "--model-repository", own_repository, "--http-port", "{http}", "--grpc-port", "{grpc}")


@pytest.fixture(params=EXAMPLES)
def example(request, models):
    """Each example model in turn."""
    return Example.read(models, request.param)


@pytest.fixture
def iris(models):
    """The example with a class dimension: four features, three classes."""
    return Example.read(models, "iris")
