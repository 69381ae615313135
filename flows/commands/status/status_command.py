"""Implements `penstock status`: prints the progress of a run from its record, during the run and
after.
"""

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path

from artifacts.disk.paths import required_path
from flows.core.console.display import failed_line
from flows.core.console.lines import duration, print_lines, size, table_lines
from flows.core.machine.versions import seconds_of
from flows.outputs.record.product import product_in, run_of
from flows.outputs.record.rounds import COLUMNS as ROUND_COLUMNS
from flows.outputs.record.rounds import cells as round_cells
from flows.outputs.record.rounds import rounds_in
from flows.outputs.record.run_read import load_record, runs_below
from flows.outputs.record.run_record import RunRecord
from flows.outputs.run_status import (
    COLUMNS,
    StageStatus,
    advice,
    cells,
    output_paths,
    run_status,
    seconds_left,
    stages_of,
)
from flows.outputs.run_wording import description_lines
from flows.outputs.unwritten import count_unwritten, unwritten_line


def status_command(given: argparse.Namespace) -> int:
    """Print the progress of a run or a product, and return 0. Raises UsageError if
    there is none, EnvironmentFault."""
    out = Path(required_path(given.out))
    if given.json:
        print(json.dumps(run_status(out), indent=1))
        return 0
    print_lines(*status_lines(out))
    return 0


def status_lines(out: Path) -> Iterator[str]:
    """Yield what the command prints of a folder. Raises UsageError, EnvironmentFault."""
    product = product_in(out)
    if product is not None:
        yield from product.lines()
    run = run_of(product, out)
    if run is None:
        return
    record = load_record(run)
    yield from lines(record, stages_of(record, time.time()))
    if count := count_unwritten(run):
        yield unwritten_line(run, count)
    if rounds := rounds_in(out):
        yield from table_lines(ROUND_COLUMNS, map(round_cells, rounds), right=ROUND_COLUMNS[:3])
    yield from other_runs(out)


def other_runs(out: Path) -> list[str]:
    """Return a line that names the runs below the folder of a run, if there are any."""
    below = runs_below(out)
    return [f"other runs: {', '.join(map(str, below))}"] if below else []


def lines(record: RunRecord, stages: list[StageStatus]) -> Iterator[str]:
    yield headline(record, seconds_left(record, stages))
    if advice(record):
        yield advice(record)
    yield from description_lines(record)
    yield from table_lines(COLUMNS, map(cells, stages), right=COLUMNS[1:-1])
    for stage in stages:
        for device, of in stage.devices.items():  # only where several GPUs share the stage
            worked = f" in {duration(of.seconds)}" if of.seconds else ""
            yield (
                f"{stage.name} on {device}: {of.items:,}{worked}, "
                f"GPU memory at most {size(of.peak_device_bytes)}"
            )
    paths = output_paths(record)
    widest = max(map(len, paths), default=0)
    yield from (f"{place:{widest}s}  {path}" for place, path in paths.items())
    for failure in record.failures:
        yield failed_line(failure.media_path, failure.message, failure.hint)
    rest = record.media.failed - len(record.failures)
    if rest > 0:
        yield f"… and {rest} more in {record.outputs.get('failures', 'failures.jsonl')}"


def headline(record: RunRecord, left: float | None) -> str:
    """Return one line: the state, its age, the seconds that are left, and the process."""
    state, ago = record.state, duration(max(0.0, time.time() - seconds_of(record.updated)))
    if state == "running":
        since = duration(max(0.0, time.time() - seconds_of(record.started)))
        process = f"process {record.pid} on {record.host}"
        end = "" if left is None else f", about {duration(left)} left"
        return f"running for {since}{end}, {process}; record written {ago} ago"
    error = f": {record.error}" if record.error else ""
    if state == "died":
        return f"died: process {record.pid} is gone; record written {ago} ago"
    return f"{state} {ago} ago{error}"


def add_status(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("out", metavar="OUT", nargs="?", default="penstock-out")
    parser.add_argument("--json", action="store_true", help="print the run record as JSON")
