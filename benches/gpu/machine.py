"""The machine with a GPU: what was carried there, the card, servers and their clients. Standard library alone."""

import contextlib
import ctypes
import gzip
import http.client
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
CARRIED = ROOT / "gpu"
# What `make gpu` builds and packs.
PROGRAMS = ["tensorgate", "tensorgate-benches", "test-kernels", "test-llm"]
# How folders begin that are removed at the end; the process that made one is told after it.
SCRATCH = "tensorgate-gpu-"
SHARED = pathlib.Path("/dev/shm")
LIBC, PR_SET_PDEATHSIG = ctypes.CDLL(None), 1
# What was started, and has not been ended.
CHILDREN = []


def refuse(reason):
    """Ends the run: nothing can be found out here."""
    print(reason, file=sys.stderr)
    sys.exit(2)


def card():
    """The first GPU: its name, memory in MiB and driver. Without one the run ends."""
    ask = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader,nounits", "--id=0"]
    try:
        said = subprocess.run(ask, capture_output=True, text=True, timeout=60, check=True).stdout
        name, memory, driver = (part.strip() for part in said.splitlines()[0].split(","))
    except (OSError, subprocess.SubprocessError, IndexError, ValueError):
        refuse("there is no NVIDIA GPU on this machine: nvidia-smi does not run, or shows none")
    return {"name": name, "memory_mib": int(memory), "driver": driver}


def unpack(folder):
    """The carried programs, ready to run, by name."""
    if missing := [name for name in PROGRAMS if not (CARRIED / f"{name}.gz").exists()]:
        refuse(f"{CARRIED} lacks {', '.join(missing)}: `make gpu` builds it where Rust is; then carry it here")
    programs = {}
    for name in PROGRAMS:
        programs[name] = pathlib.Path(folder) / name
        with gzip.open(CARRIED / f"{name}.gz") as source, programs[name].open("wb") as target:
            shutil.copyfileobj(source, target)
        programs[name].chmod(0o755)
    return programs


def commit():
    """What the carried programs were built of."""
    path = CARRIED / "commit"
    return path.read_text("utf-8").strip() if path.exists() else "unknown"


def output(default):
    """Where results go: $OUT where it is set."""
    folder = pathlib.Path(os.environ.get("OUT") or default)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def start(command, **options):
    """A child in a group of its own, which `stop` ends. It is killed with this process, however that ends."""
    def with_parent():
        LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)

    child = subprocess.Popen(command, start_new_session=True, preexec_fn=with_parent, **options)  # noqa: PLW1509
    CHILDREN.append(child)
    return child


def kill(child):
    """Ends a child and its children, which hold the card's memory, too."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)


def stop(child):
    """Ends a child. One that a driver does not let go is not waited for."""
    kill(child)
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.wait(5)
    CHILDREN.remove(child)


def begin():
    """Removes what killed runs left behind. From here on a signal to end kills all children and removes all folders."""
    for place in [pathlib.Path(tempfile.gettempdir()), SHARED]:
        for folder in place.glob(f"{SCRATCH}*-*"):
            owner = re.match(rf"{SCRATCH}(\d+)-", folder.name)
            if owner and not pathlib.Path("/proc", owner[1]).exists():
                shutil.rmtree(folder, ignore_errors=True)
    endings = [signal.SIGTERM, signal.SIGINT]

    def end(number, _):
        for each in endings:
            signal.signal(each, signal.SIG_IGN)
        for child in CHILDREN:
            kill(child)
        sys.exit(128 + number)

    for each in endings:
        signal.signal(each, end)


@contextlib.contextmanager
def scratch(least=0):
    """A folder that is removed at the end, in memory where so many bytes are free there, else on a disk."""
    where = SHARED if least and SHARED.is_dir() and shutil.disk_usage(SHARED).free > least else None
    prefix = f"{SCRATCH}{os.getpid()}-"
    with tempfile.TemporaryDirectory(prefix=prefix, dir=where, ignore_cleanup_errors=True) as folder:
        if least and shutil.disk_usage(folder).free < least:
            raise RuntimeError(f"{folder} has not the {least / 1e9:.0f} GB that the model takes")
        yield pathlib.Path(folder)


def port():
    """One that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class Server:
    """A running server; `with` ends it."""

    def __init__(self, program, folder, *arguments, environment=None):
        self.port, self.log = port(), pathlib.Path(folder) / f"server-{time.monotonic_ns()}.log"
        command = [program, "serve", "--host", "127.0.0.1", "--http-port", str(self.port), "--grpc-port", "off",
                   "--drain-delay", "0s", "--log-format", "json", *arguments]
        self.began = time.perf_counter()
        with self.log.open("wb") as log:
            self.process = start(command, stdout=log, stderr=log, env=os.environ | (environment or {}))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(5)
        stop(self.process)

    def said(self):
        """All that it has logged."""
        return self.log.read_text("utf-8", "replace")

    def runs_graphs(self):
        """An error where steps could not be captured: the server goes on without."""
        if "kernel by kernel" in self.said():
            raise RuntimeError(self.said()[-2000:])

    def connect(self, timeout=30):
        """A connection to it."""
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)

    def ready(self, seconds):
        """Waits until all of its models are ready."""
        while time.perf_counter() - self.began < seconds:
            if self.process.poll() is not None:
                raise RuntimeError(f"the server ended: {self.said()[-2000:]}")
            with contextlib.suppress(OSError, http.client.HTTPException), contextlib.closing(self.connect(5)) as link:
                link.request("GET", "/v2/health/ready")
                if link.getresponse().status == 200:
                    return self
            if "model cannot be loaded" in self.said():
                raise RuntimeError(self.said()[-2000:])
            time.sleep(0.002)
        raise RuntimeError(f"the server was not ready after {seconds} s: {self.said()[-2000:]}")

    def get(self, path):
        """The text of an answer."""
        with contextlib.closing(self.connect()) as link:
            link.request("GET", path)
            return link.getresponse().read().decode()

    def post(self, path, body):
        """The JSON of an answer that must be good."""
        with contextlib.closing(self.connect()) as link:
            link.request("POST", path, json.dumps(body), {"content-type": "application/json"})
            answer = link.getresponse()
            text = answer.read().decode()
            if answer.status != 200:
                raise RuntimeError(f"{path}: {answer.status}: {text[:500]}")
            return json.loads(text)

    def stream(self, path, body):
        """The events of a stream, as they come."""
        with contextlib.closing(self.connect()) as link:
            link.request("POST", path, json.dumps(body | {"stream": True}), {"content-type": "application/json"})
            answer = link.getresponse()
            if answer.status != 200:
                raise RuntimeError(f"{path}: {answer.status}: {answer.read().decode()[:500]}")
            for line in answer:
                if line.startswith(b"data: {"):
                    yield json.loads(line[6:])
