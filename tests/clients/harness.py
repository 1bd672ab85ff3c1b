"""A server process to test against, and the examples whose answers are known."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import time
from dataclasses import dataclass

import numpy as np
import requests

NUMPY = {
    "BOOL": np.bool_,
    "UINT8": np.uint8,
    "UINT16": np.uint16,
    "UINT32": np.uint32,
    "UINT64": np.uint64,
    "INT8": np.int8,
    "INT16": np.int16,
    "INT32": np.int32,
    "INT64": np.int64,
    "FP16": np.float16,
    "FP32": np.float32,
    "FP64": np.float64,
}

XGBOOST = ("iris", "breast-cancer")
LIGHTGBM = ("diabetes", "wine")

START_SECONDS = 30
STOP_SECONDS = 20


def free_ports(count):
    """`count` ports that nothing listens on now."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


@dataclass
class Endpoint:
    """Where a server listens."""

    http: str  # host:port
    grpc: str

    @property
    def url(self):
        return f"http://{self.http}"

    def ready(self):
        try:
            return requests.get(f"{self.url}/v2/health/ready", timeout=2).status_code == 200
        except requests.ConnectionError:
            return False


class Process(Endpoint):
    """A server we started: its log is kept, and how it ends is the caller's to check."""

    def __init__(self, command, ports, log, environment=None):
        super().__init__(http=f"127.0.0.1:{ports[0]}", grpc=f"127.0.0.1:{ports[1]}")
        self.command = [str(word) for word in command]
        self.log = pathlib.Path(log)
        with self.log.open("wb") as sink:
            self.child = subprocess.Popen(
                self.command,
                stdout=sink,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env={**os.environ, **(environment or {})},
            )

    def tail(self):
        text = self.log.read_text(errors="replace")[-4000:]
        return f"{' '.join(self.command)}\n{text}"

    def wait_ready(self, seconds=START_SECONDS):
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if self.child.poll() is not None:
                raise AssertionError(f"exited with {self.child.returncode} while starting\n{self.tail()}")
            if self.ready():
                return self
            time.sleep(0.05)
        self.kill()
        raise AssertionError(f"not ready after {seconds} s\n{self.tail()}")

    def wait(self, seconds=STOP_SECONDS):
        """The exit code, or an assertion if the process does not end by itself."""
        try:
            return self.child.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"still running after {seconds} s\n{self.tail()}") from None

    def stop(self, signum=signal.SIGTERM):
        if self.child.poll() is None:
            self.child.send_signal(signum)
        return self.wait()

    def kill(self):
        if self.child.poll() is None:
            self.child.kill()
            self.child.wait()


@dataclass
class Example:
    """A model of the example repository and one request with its exact answer."""

    name: str
    directory: pathlib.Path
    request: dict
    response: dict

    @classmethod
    def read(cls, repository, name):
        directory = pathlib.Path(repository) / name
        document = json.loads((directory / "expected.json").read_text())
        return cls(name, directory, document["request"], document["response"])

    @property
    def input(self):
        return self.request["inputs"][0]

    @property
    def output(self):
        return self.response["outputs"][0]

    @property
    def rows(self):
        return tensor(self.input)

    @property
    def answer(self):
        return tensor(self.output)

    @property
    def json_rows(self):
        """The rows as nested lists for JSON, a missing value as null."""
        return [[None if np.isnan(value) else float(value) for value in row] for row in self.rows]

    @property
    def predictions(self):
        """The answer in protocol v1: each value widened to a double, as KServe prints it."""
        return {"predictions": self.answer.astype(float).tolist()}

    @property
    def model_file(self):
        (file,) = (self.directory / "1").iterdir()
        return file

    def feature_names(self):
        """The names the model was trained with."""
        data = self.model_file.read_bytes()
        if self.model_file.suffix == ".ubj":
            return ubjson_strings(data, b"feature_names")
        if self.model_file.suffix == ".json":
            return json.loads(data)["learner"]["feature_names"]
        line = next(line for line in data.decode().splitlines() if line.startswith("feature_names="))
        return line.split("=", 1)[1].split()


def ubjson_strings(data, key):
    """The array of strings under `key`: `[`, perhaps `#L` and a count, then `SL`, a length and the bytes of each."""
    at = data.index(key) + len(key) + 1
    if data[at : at + 2] == b"#L":
        at += 10
    strings = []
    while data[at : at + 2] == b"SL":
        length = int.from_bytes(data[at + 2 : at + 10], "big")
        strings.append(data[at + 10 : at + 10 + length].decode())
        at += 10 + length
    return strings


def tensor(described):
    """The numpy array of a V2 JSON tensor."""
    data = np.array(described["data"], dtype=NUMPY[described["datatype"]])
    return data.reshape(described["shape"])


def assert_same(actual, expected):
    """Equal in datatype, shape and every bit."""
    assert actual.dtype == expected.dtype
    assert actual.shape == expected.shape
    assert actual.tobytes() == expected.tobytes(), f"{actual} is not {expected}"
