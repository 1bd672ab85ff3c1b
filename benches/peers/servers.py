"""tensorgate and the servers it is compared with, on one XGBoost model.

    python servers.py NAME --model MODEL.json [--tensorgate BINARY] ...

prints the command that run.py would start, having made the files it needs. Every
server reads the same model file and listens on free loopback ports.

| name | what |
|---|---|
| tensorgate | ours |
| mlserver | MLServer and its XGBoost runtime, as installed: one worker process |
| mlserver-batching | the same with adaptive batching (32 requests or 1 ms), one OpenMP thread |
| mlserver-inline | the same without the worker process, one OpenMP thread |
| kserve | KServe's Python server, predicting as its xgbserver does |
| triton | Triton and its Python backend, the model in Python |
| triton-batching | the same with dynamic batching: 32 requests or 1 ms |
"""

import argparse
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
# The conformance suite's peers: what a server answers there is what it is timed with here.
CONFORMANCE_PEERS = HERE.parent.parent / "tests" / "conformance" / "peers"
MODEL = "bench"
START_SECONDS = 120
STOP_SECONDS = 15


@dataclass
class Server:
    """How to start a server."""

    name: str
    command: list
    http: int
    grpc: int
    environment: dict = field(default_factory=dict)
    ready: str = "/v2/health/ready"

    def argv(self):
        """The command with its environment, for other programs to start."""
        variables = [f"{name}={value}" for name, value in self.environment.items()]
        return [*(["env", *variables] if variables else []), *map(str, self.command)]

    def url(self, path):
        """An address of its HTTP side."""
        return f"http://127.0.0.1:{self.http}{path}"


@dataclass
class Options:
    """What all servers are made from."""

    model: Path
    folder: Path
    tensorgate: Path | None = None
    mlserver_python: Path | None = None
    peers_python: Path | None = None


def free_ports(count):
    """Ports nobody listens on. Somebody might before we do; then a start fails loudly."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


def readable_by_all(model, target):
    """Copies a model with its base score as XGBoost before 3.1 spells it.

    2.1, which KServe and Triton users have, reads `[0.5]` without complaint and
    predicts from another base.
    """
    document = json.loads(model.read_text(encoding="utf-8"))
    parameters = document["learner"]["learner_model_param"]
    parameters["base_score"] = parameters["base_score"].strip("[]")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(document, separators=(",", ":")), encoding="utf-8")


def tensorgate(options, name):
    """Ours, every setting at its default."""
    readable_by_all(options.model, options.folder / MODEL / "1" / "model.json")
    http, grpc = free_ports(2)
    command = [
        options.tensorgate, "serve", "--model-repository", options.folder,
        "--http-port", http, "--grpc-port", grpc,
    ]
    return Server(name, command, http, grpc)


def mlserver(options, name, settings=None, model_settings=None, environment=None):
    """MLServer on a folder with its two settings files."""
    readable_by_all(options.model, options.folder / "model.json")
    http, grpc, metrics = free_ports(3)
    ports = {"http_port": http, "grpc_port": grpc, "metrics_port": metrics}
    server = {"host": "127.0.0.1", **ports, **(settings or {})}
    model = {
        "name": MODEL,
        "implementation": "mlserver_xgboost.XGBoostModel",
        "parameters": {"uri": "./model.json"},
        **(model_settings or {}),
    }
    for file, content in (("settings.json", server), ("model-settings.json", model)):
        (options.folder / file).write_text(json.dumps(content), encoding="utf-8")
    command = [options.mlserver_python.parent / "mlserver", "start", options.folder]
    environment = {"MLSERVER_METRICS_DIR": options.folder / "metrics", **(environment or {})}
    return Server(name, command, http, grpc, environment, f"/v2/models/{MODEL}/ready")


def kserve(options, name):
    """KServe's model server; one process, as its runtime starts it."""
    readable_by_all(options.model, options.folder / MODEL / "1" / "model.json")
    http, grpc = free_ports(2)
    script = CONFORMANCE_PEERS / "kserve_server.py"
    command = [options.peers_python, script, options.folder, http, grpc]
    return Server(name, command, http, grpc)


TRITON_CONFIG = """name: "{name}"
backend: "python"
max_batch_size: 16384
input [{{ name: "input__0" data_type: TYPE_FP32 dims: [ -1 ] }}]
output [{{ name: "output__0" data_type: TYPE_FP32 dims: [ 1 ] reshape: {{ shape: [ ] }} }}]
instance_group [{{ kind: KIND_CPU count: 1 }}]
"""
TRITON_BATCHING = "dynamic_batching { max_queue_delay_microseconds: 1000 }\n"


def triton(options, name, more=""):
    """The Triton that nvidia-pytriton carries, with the Python backend."""
    repository, backends = options.folder / "models", options.folder / "backends"
    version = repository / MODEL / "1"
    readable_by_all(options.model, version / "xgboost.json")
    shutil.copy(CONFORMANCE_PEERS / "triton_model.py", version / "model.py")
    config = TRITON_CONFIG.format(name=MODEL) + more
    (repository / MODEL / "config.pbtxt").write_text(config, encoding="utf-8")
    find = (
        "import pytriton, sysconfig\n"
        "print(pytriton.__path__[0])\nprint(sysconfig.get_config_var('LIBDIR'))")
    found = subprocess.run(
        [options.peers_python, "-c", find], check=True, capture_output=True, text=True)
    package, libraries = map(Path, found.stdout.split("\n")[:2])
    home = package / "tritonserver"
    shutil.copytree(home / "backends" / "python", backends / "python")
    stub = next((home / "python_backend_stubs").glob("3.11/triton_python_backend_stub"))
    shutil.copy(stub, backends / "python")
    http, grpc, metrics = free_ports(3)
    command = [
        home / "bin" / "tritonserver", f"--model-repository={repository}",
        f"--backend-directory={backends}", f"--http-port={http}", f"--grpc-port={grpc}",
        f"--metrics-port={metrics}", "--allow-gpu-metrics=false",
    ]
    environment = {
        "LD_LIBRARY_PATH": f"{package.parent / 'nvidia_pytriton.libs'}:{libraries}",
        "CONFORMANCE_PACKAGES": package.parent,
    }
    return Server(name, command, http, grpc, environment)


ADAPTIVE = {"max_batch_size": 32, "max_batch_time": 0.001}
# XGBoost otherwise wakes all cores for one row.
ONE_THREAD = {"OMP_NUM_THREADS": 1}
SERVERS = {
    "tensorgate": tensorgate,
    "mlserver": mlserver,
    "mlserver-batching": lambda o, n: mlserver(o, n, None, ADAPTIVE, ONE_THREAD),
    "mlserver-inline": lambda o, n: mlserver(o, n, {"parallel_workers": 0}, None, ONE_THREAD),
    "kserve": kserve,
    "triton": triton,
    "triton-batching": lambda o, n: triton(o, n, TRITON_BATCHING),
}


class Running:
    """A started server, with the group of processes that it leads."""

    def __init__(self, server, log):
        self.server, self.log = server, log
        with log.open("wb") as sink:
            self.child = subprocess.Popen(
                list(map(str, server.command)), stdin=subprocess.DEVNULL, stdout=sink,
                stderr=subprocess.STDOUT, start_new_session=True,
                env={**os.environ, **{k: str(v) for k, v in server.environment.items()}})

    def __enter__(self):
        """Waits until it is ready."""
        try:
            self.wait()
        except BaseException:
            # Nobody calls __exit__ where __enter__ failed or was interrupted.
            self.stop()
            raise
        return self

    def wait(self):
        """Until it says that it is ready."""
        deadline = time.monotonic() + START_SECONDS
        while not self.is_ready():
            if self.child.poll() is not None or time.monotonic() > deadline:
                tail = self.log.read_text(errors="replace")[-2000:]
                raise RuntimeError(f"{self.server.name} did not start:\n{tail}")
            time.sleep(0.1)

    def __exit__(self, *_):
        """Ends it."""
        self.stop()

    def is_ready(self):
        """Does it say so?"""
        try:
            with urllib.request.urlopen(self.server.url(self.server.ready), timeout=5) as answer:
                return answer.status == 200
        except (urllib.error.URLError, OSError):
            return False

    def input_name(self):
        """The model's first input, or any name where the server does not tell."""
        try:
            url = self.server.url(f"/v2/models/{MODEL}")
            with urllib.request.urlopen(url, timeout=5) as answer:
                return json.load(answer)["inputs"][0]["name"]
        except (urllib.error.URLError, KeyError, IndexError, TypeError):
            return "input-0"

    def stop(self):
        """Asks, waits, then kills what is left of the group."""
        if self.child.poll() is None:
            self.child.send_signal(signal.SIGTERM)
            try:
                self.child.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                pass
        try:
            os.killpg(self.child.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.child.wait()


def add_arguments(parser):
    """Where the servers are."""
    parser.add_argument("--tensorgate", type=Path, help="our binary")
    parser.add_argument(
        "--mlserver-python", type=Path, help="interpreter with mlserver and mlserver-xgboost")
    parser.add_argument(
        "--peers-python", type=Path,
        help="interpreter with tests/conformance/requirements.txt: kserve, nvidia-pytriton")


def available(options):
    """Names of the servers whose programs were given."""
    given = {
        "tensorgate": options.tensorgate, "mlserver": options.mlserver_python,
        "kserve": options.peers_python, "triton": options.peers_python,
    }
    return [name for name in SERVERS if given[name.split("-")[0]]]


def chosen(options):
    """Those of them that were asked for; no choice is all."""
    return [name for name in available(options) if not options.server or name in options.server]


def make(name, arguments, folder):
    """Prepares a server's files under a new folder."""
    folder = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=folder))
    options = Options(
        arguments.model.resolve(), folder, arguments.tensorgate,
        arguments.mlserver_python, arguments.peers_python)
    return SERVERS[name](options, name)


def main():
    """Prints one server's command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=SERVERS)
    parser.add_argument("--model", type=Path, required=True, help="model.json")
    add_arguments(parser)
    options = parser.parse_args()
    print(shlex.join(make(options.name, options, None).argv()))


if __name__ == "__main__":
    main()
