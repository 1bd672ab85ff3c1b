"""How long servers take from exec to their first good answer, and their memory then."""

import re
import sys
import urllib.request

import servers

from stages import program
from stages.tables import MB, OURS, at_most, name_of, number, table


def run(options, folder):
    """One server after the other: many starts of ours, few of those that take seconds."""
    result = {"ready": {}, "model_file_bytes": options.model.stat().st_size}
    for name in servers.chosen(options):
        server = servers.make(name, options, folder)
        starts = options.starts if name == OURS else options.peer_starts
        report, failure = program.run(
            options, "ready", "--url", server.url(server.ready), "--repeat", starts,
            "--timeout", servers.START_SECONDS, "--json", "--", *server.argv())
        print(name, failure or f"{report['median_ms']:.1f} ms", file=sys.stderr)
        result["ready"][name] = {"failure": failure.splitlines()[0]} if failure else {**report, "starts": starts}
        if name == OURS and not failure:
            result["model_loaded_bytes"] = loaded_bytes(servers.make(name, options, folder), folder)
        yield result


def loaded_bytes(server, folder):
    """What the model takes in memory, as the server counts it."""
    with servers.Running(server, folder / "loaded.log"):
        with urllib.request.urlopen(server.url("/metrics"), timeout=5) as answer:
            text = answer.read().decode()
    found = re.search(r"^tensorgate_model_bytes\{[^}]*\} (\S+)$", text, re.MULTILINE)
    return float(found[1]) if found else None


def over_the_model(result, resident):
    """Memory beside the model: its file or its loaded form, whichever is smaller."""
    sizes = [result["model_file_bytes"], result.get("model_loaded_bytes")]
    return resident - min(size for size in sizes if size)


def tables(result):
    """A row for each server."""
    loaded = result.get("model_loaded_bytes")
    yield (f"From exec to the first 200. The model's file has {number(result['model_file_bytes'] / MB)} MB"
           + (f"; loaded, the model takes {number(loaded / MB)} MB, as the server counts" if loaded else "") + ".\n")
    rows = []
    for name, found in result["ready"].items():
        if "failure" in found:
            rows.append([name, found["failure"], "-", "-", "-", "-"])
            continue
        resident = found["resident_bytes"]
        rows.append([
            name_of(name), str(found["starts"]), number(found["min_ms"]), number(found["median_ms"]),
            number(resident / MB), number(over_the_model(result, resident) / MB)])
    yield table(["server", "starts", "fastest ms", "median ms", "MB then", "MB over the model"], rows)


def targets(result):
    """Time, and memory."""
    ours = result["ready"].get(OURS, {})
    if "median_ms" not in ours:
        return []
    over = over_the_model(result, ours["resident_bytes"]) / MB
    return [
        *at_most("from exec to ready, median", 50, ours["median_ms"], " ms"),
        *at_most("resident memory over the model, when ready", 40, over, " MB"),
    ]
