"""Sends the same requests to a peer and to tensorgate and compares what the answers mean.

    TENSORGATE_BIN=path python run.py [kserve] [triton] [--only GLOB]
    python run.py [kserve] [triton] --record FOLDER       asks the peers alone and writes down what they answer

Exit code 1 when an answer differs in a way that accepted.toml does not list, or when accepted.toml lists what no
longer differs.
"""

import argparse
import contextlib
import os
import pathlib
import re
import signal
import sys
import tempfile
import time
from fnmatch import fnmatchcase

import fixture
import servers
import table
from meaning import differences, meaning
from wire import send


def arguments():
    parser = argparse.ArgumentParser(description="differential run against KServe and Triton")
    parser.add_argument("peers", nargs="*", help="kserve, triton; both when none is named")
    parser.add_argument("--only", default="*", help="requests whose name matches")
    parser.add_argument("--record", type=pathlib.Path, help="folder for the peers' answers; tensorgate is not asked")
    parsed = parser.parse_args()
    parsed.peers = parsed.peers or list(servers.PEERS)
    unknown = set(parsed.peers) - set(servers.PEERS)
    if unknown:
        parser.error(f"no such peer: {', '.join(sorted(unknown))}")
    parsed.binary = os.environ.get("TENSORGATE_BIN")
    if not parsed.record and not parsed.binary:
        parser.error("TENSORGATE_BIN is not set")
    return parsed


def ask(server, rows):
    """Each row's name with the meaning of its answer."""
    answers = {}
    for row in rows:
        answers[row.name] = meaning(send(server, row))
        time.sleep(row.wait)
    return answers


def missing_words(row, text):
    return [word for word in row.says if word.lower() not in text.lower()]


def check(row, theirs, ours, accepted):
    """The complaints about one row; accepted differences are none."""
    complaints = []
    for difference in differences(row, theirs, ours):
        # Not any(): every accepted entry that covers it counts as used.
        covering = [each for each in accepted if each.covers(row, difference)]
        if not covering:
            complaints.append(f"{difference.field}: theirs {difference.theirs!r}, ours {difference.ours!r}")
    for who, answer in (("they do", theirs), ("we do", ours)):
        words = missing_words(row, answer.text)
        if words:
            complaints.append(f"{who} not say {words}: {answer.text[:200]!r}")
    return complaints


def compare(peer, rows, answers, accepted):
    """Prints what differs and returns how many rows passed and failed."""
    failed = 0
    for row in rows:
        complaints = check(row, answers[peer][row.name], answers["ours"][row.name], accepted)
        failed += bool(complaints)
        if complaints:
            print(f"FAIL {peer}: {row.name}")
            for complaint in complaints:
                print(f"     {complaint}")
    return len(rows) - failed, failed


def stale(peer, accepted):
    """Accepted differences that no row showed are failures too: the list must stay true."""
    count = 0
    for each in accepted:
        for pattern in each.stale():
            count += 1
            print(f"FAIL {peer}: accepted.toml lists {each.field!r} for {pattern!r}, but nothing differs there")
    return count


def plain(text):
    """An error without what differs between machines and runs: XGBoost's time, source line and stack trace."""
    return re.sub(r"\[\d\d:\d\d:\d\d\] \S+:\d+: ", "", text.split("Stack trace")[0]).strip()


def record(peer, rows, answers, folder):
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for row in rows:
        answer = answers[row.name]
        fields = {key: value for key, value in sorted(answer.fields.items()) if key not in ("status", "error")}
        shown = plain(answer.text) or ", ".join(f"{key}={value!r}" for key, value in fields.items())
        lines.append(f"{row.name}\n    {answer.fields['status']}  {' '.join(shown.split())[:400]}")
    (folder / f"{peer}.txt").write_text("\n".join(lines) + "\n")


def run_peer(peer, options, repositories, folder):
    """One peer beside tensorgate in the profile of the same name: (passed, failed)."""
    rows = [row for row in table.rows(peer) if fnmatchcase(row.name, options.only)]
    with contextlib.ExitStack() as stack:
        started = {peer: servers.PEERS[peer](repositories, folder)}
        stack.callback(started[peer].stop)
        if not options.record:
            started["ours"] = servers.start_tensorgate(options.binary, peer, repositories, folder)
            stack.callback(started["ours"].stop)
        answers = {who: ask(server.wait_ready(), rows) for who, server in started.items()}
        for who, server in started.items():
            if server.child.poll() is not None:
                print(f"{who} ended during the run\n{server.tail()}")
                return 0, len(rows)
    if options.record:
        record(peer, rows, answers[peer], options.record)
        return len(rows), 0
    accepted = table.accepted(peer)
    passed, failed = compare(peer, rows, answers, accepted)
    return passed, failed + (stale(peer, accepted) if options.only == "*" else 0)


def main():
    # A terminated run must still stop its servers.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    options = arguments()
    passed = failed = 0
    with tempfile.TemporaryDirectory(prefix="conformance-") as folder:
        folder = pathlib.Path(folder)
        repositories = fixture.build(folder)
        for peer in options.peers:
            counts = run_peer(peer, options, repositories, folder)
            passed, failed = passed + counts[0], failed + counts[1]
    print(f"{passed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
