"""How long servers take from exec to their first good answer, and their memory then."""

import re
import sys
import time
import urllib.request
from pathlib import Path

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
            again = servers.make(name, options, folder)
            with servers.Running(again, folder / "memory.log") as running:
                result["model_loaded_bytes"] = loaded_bytes(running)
                # What loading needed goes back to the system some seconds later.
                time.sleep(options.settle)
                result["settled_bytes"] = resident_bytes(running.child.pid)
        yield result


def loaded_bytes(running):
    """What the model takes in memory, as our server counts it."""
    with urllib.request.urlopen(running.server.url("/metrics"), timeout=5) as answer:
        text = answer.read().decode()
    found = re.search(r"^tensorgate_model_bytes\{[^}]*\} (\S+)$", text, re.MULTILINE)
    return float(found[1]) if found else None


def resident_bytes(pid):
    """Of one process."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    return int(re.search(r"^VmRSS:\s+(\d+) kB$", status, re.MULTILINE)[1]) * 1024


def over_the_model(result, resident):
    """Memory beside the model: its file or its loaded form, whichever is smaller."""
    sizes = [result["model_file_bytes"], result.get("model_loaded_bytes")]
    return resident - min(size for size in sizes if size)


def tables(result):
    """A row for each server."""
    loaded = result.get("model_loaded_bytes")
    yield (f"From exec to the first 200. The model's file has {number(result['model_file_bytes'] / MB)} MB"
           + (f"; loaded, the model takes {number(loaded / MB)} MB, as the server counts" if loaded else "") + ".\n")
    if "settled_bytes" in result:
        yield (f"Left alone after that, tensorgate has {number(result['settled_bytes'] / MB)} MB resident: it gives back "
               "what loading needed.\n")
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
    found = at_most("from exec to ready, median", 50, ours["median_ms"], " ms")
    moments = {"the moment it is ready": ours["resident_bytes"], "left alone after that": result.get("settled_bytes")}
    for moment, resident in moments.items():
        over = over_the_model(result, resident) / MB if resident else None
        found += at_most(f"resident memory over the model, {moment}", 40, over, " MB")
    return found
