"""Starts the peers and tensorgate, and makes sure that none of them outlives the run."""

import http.client
import importlib.util
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import time
from dataclasses import dataclass

HERE = pathlib.Path(__file__).resolve().parent
START_SECONDS = 90
STOP_SECONDS = 15


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


@dataclass
class Server:
    """A running server and the process group that it leads."""

    name: str
    http: int
    grpc: int
    child: subprocess.Popen
    log: pathlib.Path

    def wait_ready(self):
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if self.child.poll() is not None:
                raise SystemExit(f"{self.name} exited with {self.child.returncode} while starting\n{self.tail()}")
            if self.ready():
                return self
            time.sleep(0.1)
        raise SystemExit(f"{self.name} was not ready after {START_SECONDS} s\n{self.tail()}")

    def ready(self):
        connection = http.client.HTTPConnection("127.0.0.1", self.http, timeout=2)
        try:
            connection.request("GET", "/v2/health/ready")
            return connection.getresponse().status == 200
        except OSError:
            return False
        finally:
            connection.close()

    def tail(self):
        return self.log.read_text(errors="replace")[-3000:]

    def stop(self):
        """Asks, waits, then kills whatever is left of the group."""
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


def spawn(name, command, ports, folder, environment=None):
    log = folder / f"{name}.log"
    with log.open("wb") as sink:
        child = subprocess.Popen(
            [str(word) for word in command],
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(environment or {})},
            start_new_session=True,
        )
    return Server(name, ports[0], ports[1], child, log)


def start_kserve(repositories, folder):
    ports = free_ports(2)
    command = [sys.executable, HERE / "peers" / "kserve_server.py", repositories.kserve, *ports]
    return spawn("kserve", command, ports, folder)


def start_triton(repositories, folder):
    """The tritonserver inside nvidia-pytriton, with its Python backend and the stub for this interpreter."""
    packages = pathlib.Path(importlib.util.find_spec("pytriton").origin).parent.parent
    triton = packages / "pytriton" / "tritonserver"
    backends = folder / "backends"
    shutil.copytree(triton / "backends" / "python", backends / "python")
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    shutil.copy(triton / "python_backend_stubs" / version / "triton_python_backend_stub", backends / "python")
    http_port, grpc_port, metrics_port = ports = free_ports(3)
    libraries = [packages / "nvidia_pytriton.libs", sysconfig.get_config_var("LIBDIR")]
    command = [
        triton / "bin" / "tritonserver",
        f"--model-repository={repositories.triton}",
        f"--backend-directory={backends}",
        "--model-control-mode=explicit",
        "--load-model=*",
        f"--http-port={http_port}",
        f"--grpc-port={grpc_port}",
        f"--metrics-port={metrics_port}",
        "--allow-gpu-metrics=false",
    ]
    environment = {"LD_LIBRARY_PATH": ":".join(map(str, libraries)), "CONFORMANCE_PACKAGES": str(packages)}
    return spawn("triton", command, ports, folder, environment)


PEERS = {"kserve": start_kserve, "triton": start_triton}


def start_tensorgate(binary, profile, repositories, folder):
    ports = free_ports(2)
    command = [binary, "serve", "--profile", profile, "--model-repository", repositories.ours[profile]]
    return spawn(f"tensorgate-{profile}", [*command, "--http-port", ports[0], "--grpc-port", ports[1]], ports, folder)
