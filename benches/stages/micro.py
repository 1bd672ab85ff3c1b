"""Codec and batcher alone, in one process each."""

from stages import program
from stages.tables import number, rows_of, table


def run(options, _):
    """One after the other."""
    seconds = ["--seconds", options.micro_seconds, "--json"]
    result = {"codec": program.must_run(options, "codec", *seconds)}
    yield result
    result["batcher"] = program.must_run(options, "batcher", *seconds)
    yield result


def codec_table(timed):
    """A row for each kind of message, columns for each number of rows."""
    counts = sorted({row["rows"] for row in timed})
    kinds = {}
    for row in timed:
        kinds.setdefault((row["format"], row["direction"], row["columns"]), {})[row["rows"]] = row
    head = ["message"]
    for count in counts:
        head += [f"{rows_of(count)}: ns", "median", "MB/s"]
    rows = []
    for (form, direction, columns), by_count in kinds.items():
        cells = [f"{form}, {direction}, {columns} a row"]
        for count in counts:
            row = by_count.get(count, {})
            cells += [number(row.get(key)) for key in ("min_ns", "median_ns", "megabytes_per_second")]
        rows.append(cells)
    yield "### Codec\n"
    yield ("One thread, fastest and median run of many calls; MB of messages a second in the fastest. A request is "
           "rows of 50 features; a reply is timed as wide as that, and with one number a row.\n")
    yield table(head, rows)


def batcher_tables(batcher):
    """The path that does not queue, then the one that does."""
    yield "### Batcher\n"
    yield "Requests of one row to a predictor that does next to nothing.\n"
    yield table(
        ["not queued", "fastest ns", "median ns"],
        [[name, number(batcher[key]["min_ns"]), number(batcher[key]["median_ns"])]
         for name, key in (("the predictor's bare call", "direct"), ("through the batcher", "inline"))])
    yield table(
        ["queued: callers", "requests/s", "rows a batch", "p50 us", "p99 us"],
        [[str(row["callers"]), *(number(row[key]) for key in (
            "requests_per_second", "rows_per_batch", "p50_us", "p99_us"))] for row in batcher["queued"]])


def tables(result):
    """What there is."""
    if "codec" in result:
        yield from codec_table(result["codec"])
    if "batcher" in result:
        yield from batcher_tables(result["batcher"])


def targets(_):
    """None were set."""
    return []
