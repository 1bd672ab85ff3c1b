"""`tensorgate-benches`, and the rows it is given."""

import json
import struct
import subprocess

FEATURES = 50


def run(options, *arguments):
    """Runs our program and reads its report; none, and why, where it fails."""
    command = [str(options.benches), *map(str, arguments)]
    with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        try:
            out, err = child.communicate()
        except BaseException:
            # Asked, not killed: it may have a server of its own to end.
            child.terminate()
            raise
    report = json.loads(out) if out.strip() else None
    failure = (err.strip() or f"ended with {child.returncode}") if child.returncode else None
    if failure and isinstance(report, dict) and report.get("errors"):
        failure += f" {report['errors']}"
    return report, failure


def must_run(options, *arguments):
    """The same where a failure ends the stage."""
    report, failure = run(options, *arguments)
    if failure:
        raise RuntimeError(f"{arguments[0]}: {failure.splitlines()[0]}")
    return report


class Rows:
    """Rows without missing values, which JSON cannot carry, and their predictions."""

    def __init__(self, models, model):
        x = (models / "x.f32.bin").read_bytes()
        y = (models / model / "expected.bin").read_bytes()
        rows = list(struct.iter_unpack(f"<{FEATURES}f", x))
        predictions = [value for (value,) in struct.iter_unpack("<f", y)]
        pairs = zip(rows, predictions, strict=True)
        self.pairs = [(row, value) for row, value in pairs if all(v == v for v in row)]

    def take(self, count):
        """Some rows, over and over if there are too few, and their predictions."""
        taken = [self.pairs[i % len(self.pairs)] for i in range(count)]
        return [v for row, _ in taken for v in row], [value for _, value in taken]
