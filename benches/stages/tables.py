"""What the stages found, as Markdown."""

HYPER = "bare hyper"
OURS = "tensorgate"
MB = 1e6


def table(head, rows):
    """Numbers to the right."""
    rule = ["---"] + ["---:"] * (len(head) - 1)
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, rule, *rows]) + "\n"


def number(value):
    """Three digits or more."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def times(value, base):
    """How many times."""
    return f"{number(value / base)}x" if value and base else "-"


def rows_of(count):
    """So many rows."""
    return f"{count:,} row" if count == 1 else f"{count:,} rows"


def name_of(server):
    """Ours stands out."""
    return f"**{server}**" if server == OURS else server


class Target:
    """Something to be reached: a bound, and what was measured."""

    def __init__(self, what, wanted, measured, met):
        self.row = [what, wanted, measured, "yes" if met else "**no**"]


def at_least(what, bound, value, unit=""):
    """More is better. None where nothing was measured."""
    if value is None:
        return []
    return [Target(what, f"at least {number(bound)}{unit}", f"{number(value)}{unit}", value >= bound)]


def at_most(what, bound, value, unit=""):
    """Less is better. None where nothing was measured."""
    if value is None:
        return []
    return [Target(what, f"at most {number(bound)}{unit}", f"{number(value)}{unit}", value <= bound)]


def targets_table(targets):
    """A row for each target."""
    if not targets:
        return []
    return [table(["to be reached", "bound", "measured", "met"], [target.row for target in targets])]


def head(result):
    """When, where, by which command, and what else the machine did."""
    machine = result["machine"]
    before, after = (" ".join(f"{load:.2f}" for load in result[key]) for key in ("load_before", "load_after"))
    state = [] if result["finished"] else [
        f"**Not finished**: {result.get('failure', 'interrupted')}. What follows was measured until then.\n"]
    return [
        f"## {result['stage'].capitalize()}\n", *state,
        f"Measured {result['date']} at commit {result['commit']}, in {result['seconds']:.0f} s.\n",
        f"* Machine: {machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB, "
        f"Linux {machine['kernel']}; {machine['flags']}",
        f"* Command: `{result['command']}`",
        f"* What else ran: load average {before} at the start, {after} at the end; just before the start, with "
        f"nothing of ours running, {result['busy_before']:.2f} of {machine['cores']} cores were busy and "
        f"{result['stolen_before']:.2f} taken by other guests of the host\n",
    ]
