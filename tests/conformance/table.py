"""The tables: requests to send, and differences that are accepted."""

import pathlib
import tomllib
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

HERE = pathlib.Path(__file__).resolve().parent


@dataclass
class Row:
    """One request. README.md says what each member means."""

    name: str
    path: str = ""
    method: str = ""
    headers: dict = field(default_factory=dict)
    body: str | None = None
    tail: dict | None = None
    header_length: int | None = None
    compress: str = ""
    rpc: str = ""
    message: str = "{}"
    raw: list = field(default_factory=list)
    repeat: int = 1
    wait: float = 0.0
    says: list = field(default_factory=list)
    only: list = field(default_factory=list)


def rows(peer):
    """Every request for one peer, in the order of the files and of the rows in them."""
    found = []
    for file in sorted((HERE / "requests" / peer).glob("*.toml")):
        found += [Row(**entry) for entry in tomllib.loads(file.read_text())["request"]]
    names = [row.name for row in found]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise SystemExit(f"request names are used twice: {sorted(twice)}")
    return found


@dataclass
class Accepted:
    """One accepted difference: in which requests, in which field, and why."""

    peer: str
    requests: list
    field: str
    reason: str
    theirs: object = None
    ours: object = None
    used: set = field(default_factory=set)

    def covers(self, row, difference):
        """Notes which of the row's patterns were needed, so that stale ones can be told."""
        if not fnmatchcase(difference.field, self.field):
            return False
        if self.theirs is not None and self.theirs != difference.theirs:
            return False
        if self.ours is not None and self.ours != difference.ours:
            return False
        matching = {pattern for pattern in self.requests if fnmatchcase(row.name, pattern)}
        self.used |= matching
        return bool(matching)

    def stale(self):
        return [pattern for pattern in self.requests if pattern not in self.used]


def accepted(peer):
    entries = tomllib.loads((HERE / "accepted.toml").read_text()).get("accepted", [])
    found = [Accepted(**entry) for entry in entries]
    for each in found:
        if each.field == "status" and (each.theirs is None or each.ours is None):
            raise SystemExit(f"an accepted status must say both statuses: {each.requests}")
    return [each for each in found if each.peer == peer]
