"""Gets ONNX Runtime's library: python onnxruntime.py FOLDER

The official wheel, pinned by its hash in onnxruntime.txt beside this file, holds a library that needs no Python. That
library is laid into FOLDER as libonnxruntime.so, with its licence and those of what it contains. The Makefile,
Dockerfile.cpu and Dockerfile.cuda all use this, so that what is tested is what is shipped. Needs pip, or venv, which
brings it.
"""

import importlib.util
import pathlib
import platform
import re
import subprocess
import sys
import tempfile
import zipfile

PINNED = pathlib.Path(__file__).resolve().parent / "onnxruntime.txt"
LIBRARY = "libonnxruntime.so"
WANTED = {
    rf"onnxruntime/capi/{re.escape(LIBRARY)}\.\d+\.\d+\.\d+": LIBRARY,
    "onnxruntime/LICENSE": "LICENSE",
    r"onnxruntime/ThirdPartyNotices\.txt": "ThirdPartyNotices.txt",
}
# The Python of the wheels whose hashes are pinned; which one runs this does not matter.
PYTHON = ["--implementation", "cp", "--python-version", "3.11", "--abi", "cp311"]
MACHINES = ("x86_64", "aarch64")


def pip(scratch):
    """How to call pip: as it is here, or out of an environment of its own."""
    if importlib.util.find_spec("pip"):
        return [sys.executable, "-m", "pip"]
    subprocess.run([sys.executable, "-m", "venv", scratch / "venv"], check=True)
    return [scratch / "venv/bin/python", "-m", "pip"]


def download(scratch, machine):
    """The wheel for this machine; pip refuses one of another hash."""
    words = ["download", "--quiet", "--disable-pip-version-check", "--require-hashes", "--no-deps",
             "--only-binary", ":all:", *PYTHON, "--platform", f"manylinux_2_28_{machine}",
             "--dest", scratch, "--requirement", PINNED]  # fmt: skip
    subprocess.run([str(word) for word in [*pip(scratch), *words]], check=True)
    (wheel,) = scratch.glob("*.whl")
    return wheel


def unpack(wheel, folder):
    """What is wanted, under plain names; each has to be there once."""
    with zipfile.ZipFile(wheel) as archive:
        for pattern, name in WANTED.items():
            found = [each for each in archive.namelist() if re.fullmatch(pattern, each)]
            if len(found) != 1:
                raise SystemExit(f"{wheel.name}: expected one {pattern}, found {found or 'none'}")
            (folder / name).write_bytes(archive.read(found[0]))


def main():
    if len(sys.argv) != 2:
        raise SystemExit(__doc__.splitlines()[0])
    machine = platform.machine()
    if sys.platform != "linux" or machine not in MACHINES:
        raise SystemExit(f"there is no pinned ONNX Runtime for {sys.platform} on {machine}; let "
                         "TENSORGATE_ONNXRUNTIME_LIB name a libonnxruntime of 1.24 or later")  # fmt: skip
    folder = pathlib.Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        scratch = pathlib.Path(scratch)
        try:
            unpack(download(scratch, machine), folder)
        except subprocess.CalledProcessError as error:
            raise SystemExit(f"ONNX Runtime could not be fetched: pip ended with {error.returncode}") from None


if __name__ == "__main__":
    main()
