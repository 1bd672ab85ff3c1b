"""What image-check.sh does with the laid-out image: `check` drives, `enter` becomes the server's process.

Everything is mounted in a mount namespace of the server's own, so that nothing is left behind whatever happens. Where
mounts are not permitted, a copy of the model without write permission takes their place, and the output says so.
"""

import ctypes
import http.client
import json
import math
import os
import pathlib
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time

import onnx_models

DEPLOY = pathlib.Path(__file__).resolve().parent.parent
ROOT = DEPLOY.parent
RUNTIME = DEPLOY / "runtimes/tensorgate-xgboost.yaml"
SERVER = "/usr/local/bin/tensorgate"
ONNX_LIBRARY = "/usr/local/bin/libonnxruntime.so"
NONROOT = 65532
# Modelcars run the server as 1010; OpenShift as a number out of the namespace's range.
OTHERS = (1010, 1000680000)
READY_SECONDS = 30
GRACE_SECONDS = 30  # what KServe gives a pod


# The server's process.


def mounted(*arguments):
    return subprocess.run(["mount", *map(str, arguments)], stderr=subprocess.DEVNULL).returncode == 0


def lay_out(image, model):
    """Mounts what a container runtime would; False if it may not."""
    if not mounted("--bind", image, image):
        return False
    done = mounted("--bind", model, image / "mnt/models") and mounted("-o", "remount,bind,ro", image / "mnt/models")
    done = done and mounted("-t", "proc", "-o", "nosuid,nodev,noexec", "proc", image / "proc")
    done = done and mounted("-t", "tmpfs", "-o", "mode=0755,size=64k", "tmpfs", image / "dev")
    for name, minor in (("null", 3), ("zero", 5), ("full", 7), ("random", 8), ("urandom", 9)):
        os.mknod(image / "dev" / name, 0o666 | stat.S_IFCHR, os.makedev(1, minor))
        os.chmod(image / "dev" / name, 0o666)
    # ONNX Runtime reads there which cores there are. Where it may not be mounted, that shows in the log and does no harm.
    mounted("-t", "sysfs", "-o", "ro,nosuid,nodev,noexec", "sysfs", image / "sys")
    return done and mounted("-o", "remount,bind,ro", image)


def lay_out_copy(image, model):
    """Instead of mounts: files that the server's user can read and not write."""
    shutil.rmtree(image / "mnt/models")
    shutil.copytree(model, image / "mnt/models")
    for path in [image, *image.rglob("*")]:
        if not path.is_symlink():
            path.chmod(path.stat().st_mode & ~0o222)


def privileges_away(uid):
    libc = ctypes.CDLL(None, use_errno=True)
    for capability in range(64):
        libc.prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP; past the last one it fails, which is as well
    if libc.prctl(38, 1, 0, 0, 0):  # PR_SET_NO_NEW_PRIVS
        raise SystemExit("no_new_privs is refused")
    os.setgroups([])
    os.setgid(uid)
    os.setuid(uid)


def refuses_writes():
    for directory in ("/", "/mnt/models", "/tmp", "/usr/local/bin", "/etc"):
        try:
            os.close(os.open(f"{directory}/.written", os.O_CREAT | os.O_WRONLY))
        except OSError:
            continue
        raise SystemExit(f"{directory} is writable: this is not how a pod would run the server")


def enter(image, model, uid, arguments):
    image, model = pathlib.Path(image), pathlib.Path(model)
    environment = {"PATH": "/usr/local/bin", "INFERENCE_SERVICE_NAME": "image-check", **environment_of()}
    if int(uid) == OTHERS[0]:
        # Where nobody is: it does not start if there are no authorities to check a certificate with.
        environment["TENSORGATE_OTLP_ENDPOINT"] = "https://127.0.0.1:9"
    if lay_out(image, model):
        how = "mounted read-only"
    else:
        lay_out_copy(image, model)
        how = "no mounts here: copied without write permission"
    os.chroot(image)
    os.chdir("/")
    privileges_away(int(uid))
    refuses_writes()
    print(f"image-check: {time.monotonic()} {how}", flush=True)
    os.execve(SERVER, [SERVER, *arguments], environment)


# The check.


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


def arguments_of(name, http_port, grpc_port):
    """The flags of the runtime's manifest, as KServe fills them in, with this run's ports behind them."""
    flags = re.findall(r"^ +- (--\S+)$", RUNTIME.read_text(), re.M)
    return [*(each.replace("{{.Name}}", name) for each in flags), f"--http_port={http_port}", f"--grpc_port={grpc_port}"]


def environment_of():
    """The variables of the runtime's manifest."""
    return dict(re.findall(r"^ +- name: (TENSORGATE_\w+)\n +value: (\S+)$", RUNTIME.read_text(), re.M))


class Server:
    def __init__(self, image, model, name, uid):
        self.http, self.grpc = free_ports(2)
        self.log = tempfile.TemporaryFile()
        inside = [sys.executable, __file__, "enter", image, model, uid, *arguments_of(name, self.http, self.grpc)]
        spaces = ["unshare", "--mount", "--pid", "--fork"]
        if subprocess.run([*spaces, "true"], stderr=subprocess.DEVNULL).returncode:
            spaces = []
        self.child = subprocess.Popen([*spaces, *map(str, inside)], stdout=self.log, stderr=subprocess.STDOUT)
        self.spaces = bool(spaces)

    def pid(self):
        """The server's process as seen from here: the only child of unshare, or unshare while it has none."""
        children = pathlib.Path(f"/proc/{self.child.pid}/task/{self.child.pid}/children")
        return int([self.child.pid, *(children.read_text().split() if self.spaces else ())][-1])

    def request(self, method, path, body=None):
        connection = http.client.HTTPConnection("127.0.0.1", self.http, timeout=10)
        try:
            connection.request(method, path, body, {"Content-Type": "application/json"} if body else {})
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def wait_ready(self):
        deadline = time.monotonic() + READY_SECONDS
        while time.monotonic() < deadline:
            if self.child.poll() is not None:
                raise AssertionError(f"exited with {self.child.returncode} while starting")
            try:
                if self.request("GET", "/v2/health/ready")[0] == 200:
                    return time.monotonic()
            except OSError:
                pass
            time.sleep(0.002)
        raise AssertionError(f"not ready after {READY_SECONDS} s")

    def peak_bytes(self):
        status = pathlib.Path(f"/proc/{self.pid()}/status").read_text()
        return int(re.search(r"^VmHWM:\s+(\d+) kB", status, re.M)[1]) * 1024

    def no_privileges(self):
        status = pathlib.Path(f"/proc/{self.pid()}/status").read_text()
        for name in ("CapPrm", "CapEff", "CapBnd", "CapAmb"):
            assert int(re.search(rf"^{name}:\s+(\w+)", status, re.M)[1], 16) == 0, f"the server has capabilities: {name}"
        assert re.search(r"^NoNewPrivs:\s+1", status, re.M), "the server may gain privileges"

    def stop(self, still):
        """SIGTERM: unready at once, `still` works on a new connection, and in the end it exits with 0."""
        began = time.monotonic()
        os.kill(self.pid(), signal.SIGTERM)
        time.sleep(0.3)
        assert self.request("GET", "/v2/health/ready")[0] == 503, "still ready after SIGTERM"
        assert self.request("GET", "/v2/health/live")[0] == 200, "not live while it drains"
        still()
        try:
            code = self.child.wait(GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still there {GRACE_SECONDS} s after SIGTERM") from None
        assert code == 0, f"exit status {code} after SIGTERM"
        return time.monotonic() - began

    def close(self):
        """Not by way of unshare: the kernel forgets --kill-child when a process changes its uid."""
        if self.child.poll() is None:
            os.kill(self.pid(), signal.SIGKILL)
            self.child.wait()

    def output(self):
        self.log.seek(0)
        return self.log.read().decode(errors="replace")


def same(one, other):
    if one is None or other is None or isinstance(other, str):
        return one == other
    return math.isclose(one, other, rel_tol=1e-6, abs_tol=1e-9)


def infer(server, name, expected):
    status, body = server.request("POST", f"/v2/models/{name}/infer", json.dumps(expected["request"]))
    assert status == 200, f"infer answered {status}: {body[:200]!r}"
    outputs = {each["name"]: each for each in json.loads(body)["outputs"]}
    for want in expected["response"]["outputs"]:
        got = outputs[want["name"]]
        assert got["shape"] == want["shape"], f"shape {got['shape']}, expected {want['shape']}"
        assert got["datatype"] == want["datatype"], f"datatype {got['datatype']}, expected {want['datatype']}"
        assert len(got["data"]) == len(want["data"]) and all(map(same, got["data"], want["data"])), "other numbers"


def greets_in_http2(port):
    """gRPC's port answers HTTP/2's preface with a SETTINGS frame (type 4)."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0)))
        frame = connection.recv(9)
        assert len(frame) >= 4 and frame[3] == 4, f"the gRPC port answered {frame!r}"


def measured(server):
    """The server exports every metric that deploy/autoscaling scales on."""
    text = "".join(path.read_text() for path in sorted((DEPLOY / "autoscaling").glob("*.yaml")))
    names = sorted(set(re.findall(r"\b(?:tensorgate|nv_inference|request_predict)_\w+", text)))
    status, body = server.request("GET", "/metrics")
    assert status == 200, f"/metrics answered {status}"
    have = set(re.findall(r"^([a-zA-Z_:][\w:]*)", body.decode(), re.M))
    missing = [each for each in names if each not in have]
    assert not missing, f"/metrics lacks {', '.join(missing)}"


def serve_once(image, directory, uid):
    expected = json.loads((directory / "expected.json").read_text())
    server = Server(image, directory / "1", directory.name, uid)
    try:
        ready = server.wait_ready()
        assert server.request("GET", "/v2/health/live")[0] == 200, "not live"
        if server.spaces:
            server.no_privileges()
        infer(server, directory.name, expected)
        greets_in_http2(server.grpc)
        measured(server)
        peak = server.peak_bytes()
        stopped = server.stop(lambda: infer(server, directory.name, expected))
        began, how = re.search(r"^image-check: (\S+) (.*)$", server.output(), re.M).groups()
        print(f"ok   {directory.name} as {uid}: ready in {(ready - float(began)) * 1e3:.0f} ms, peak {peak / 1e6:.1f} MB, "
              f"left {stopped:.1f} s after SIGTERM ({how})")  # fmt: skip
        return True
    except (AssertionError, OSError, KeyError, ValueError, http.client.HTTPException) as error:
        print(f"FAIL {directory.name} as {uid}: {error}")
        print("".join(f"     | {line}\n" for line in server.output().splitlines()[-20:]), end="")
        return False
    finally:
        server.close()


def files_of(image):
    return [path for path in image.rglob("*") if path.is_file() and not path.is_symlink()]


def sizes(image, bare):
    files = files_of(image)
    for path in sorted(files, key=lambda each: -each.stat().st_size):
        print(f"{path.stat().st_size:>12,}  /{path.relative_to(image)}")
    for path in sorted(each for each in image.rglob("*") if each.is_symlink()):
        print(f"{'link':>12}  /{path.relative_to(image)} -> {os.readlink(path)}")
    total = sum(path.stat().st_size for path in files)
    without = sum(path.stat().st_size for path in files_of(bare))
    binary = (image / SERVER[1:]).stat().st_size
    print(f"image {total / 1e6:.1f} MB, without ONNX Runtime {without / 1e6:.1f} MB, binary {binary / 1e6:.1f} MB")


def embedded(member):
    """What the sources of a member compile in, and what it is read from: (source, path in the repository) each."""
    for source in sorted((ROOT / member).rglob("*.rs")):
        if "target" in source.relative_to(ROOT).parts:
            continue
        for name in re.findall(r'\binclude_(?:str|bytes)!\(\s*"([^"]+)"', source.read_text()):
            path = pathlib.Path(os.path.normpath(source.parent / name))
            yield source.relative_to(ROOT), path.relative_to(ROOT) if path.is_relative_to(ROOT) else path


def dockerfile_complaints(text):
    """A Dockerfile copies every member of the workspace and all that they compile in, before it builds; its last stage
    is what closure.sh laid out. One with the kernels for GPUs has their compiler, which stays behind."""
    members = re.search(r"^members = \[(.*?)\]", (ROOT / "Cargo.toml").read_text(), re.M | re.S)[1]
    members = re.findall(r'"([^"]+)"', members)
    before = text.split("cargo build")[0]
    copied = [pathlib.Path(path) for path, same in re.findall(r"^COPY (\S+) (\S+)$", before, re.M) if path == same]
    wrong = [f"{each} is not copied" for each in members if pathlib.Path(each) not in copied]
    for source, path in (found for each in members for found in embedded(each)):
        if not any(path.is_relative_to(each) for each in copied):
            wrong.append(f"{path}, which {source} compiles in, is not copied")
    last = text.split("FROM scratch")[-1]
    if re.findall(r"^(?:COPY|ADD|RUN) .*", last, re.M) != ["COPY --from=build /image /"]:
        wrong.append("the last stage is not /image alone")
    besides = " libdl.so.2 librt.so.1 libpthread.so.0" if "--features cuda" in text else ""
    if f"closure.sh /tensorgate /image /onnxruntime/libonnxruntime.so{besides}\n" not in text:
        wrong.append(f"closure.sh is not called with the server and ONNX Runtime's library{besides and ', and' + besides}")
    if f"USER {NONROOT}:{NONROOT}" not in last or f'["{SERVER}"]' not in last:
        wrong.append("USER or ENTRYPOINT is another")
    if "--features cuda" in text:
        needs = ["COPY .ci/nvcc.txt /pinned/\n", "-r /pinned/nvcc.txt\n", "COPY --from=nvcc /cuda /cuda\n", "ENV NVCC=/cuda/"]
        wrong += [f"'{line.strip()}' is missing, and with it the compiler of the kernels" for line in needs if line not in text]
    return wrong


def dockerfile_agrees():
    wrong = dockerfile_complaints((ROOT / "Dockerfile.cpu").read_text())
    print(f"FAIL Dockerfile.cpu: {'; '.join(wrong)}" if wrong else "ok   Dockerfile.cpu makes these files, and runs them so")
    return not wrong


def check(image, models, bare, work):
    image, models = pathlib.Path(image).resolve(), pathlib.Path(models).resolve()
    sizes(image, pathlib.Path(bare))
    # The mount points that a container runtime adds.
    for name in ("proc", "dev", "sys"):
        (image / name).mkdir()
    directories = sorted(path.parent for path in models.glob("*/expected.json"))
    if not directories:
        raise SystemExit(f"{models} has no model with an expected.json")
    if (image / ONNX_LIBRARY[1:]).exists():
        directories += onnx_models.write(pathlib.Path(work))
    else:
        print("skipped: no library was given (deploy/check/image-check.sh: ONNX models)")
    runs = [(each, NONROOT) for each in directories] + [(directories[0], uid) for uid in OTHERS]
    results = [dockerfile_agrees()] + [serve_once(image, directory, uid) for directory, uid in runs]
    print(f"{sum(results)} passed, {len(results) - sum(results)} failed")
    return 0 if all(results) else 1


if __name__ == "__main__":
    if sys.argv[1] == "enter":
        enter(sys.argv[2], sys.argv[3], sys.argv[4], sys.argv[5:])
    sys.exit(check(*sys.argv[2:]))
