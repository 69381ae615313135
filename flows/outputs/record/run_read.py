"""Reads a run record, which a user may have changed. Writes none."""

import os
import re
import socket
from collections.abc import Iterable
from pathlib import Path

from artifacts.disk.json_records import read_json_file
from artifacts.disk.regular_files import guard, refuse_links
from artifacts.errors import PenstockError, UsageError
from flows.core.machine.processes import is_alive
from flows.core.machine.versions import seconds_of
from flows.outputs.marker import MARKER
from flows.outputs.record.run_record import RUN_RECORD, RunEntry, RunRecord

PUBLISHED = re.compile(r'\{"time": (\d+\.?\d*),')
"""The time in a line of a stage's journal."""
CAPTION_FOLDER = "Name the --out folder of `penstock caption`"


def runs_below(out: Path) -> list[Path]:
    """Return the output folders of other runs in a folder."""
    return sorted(marker.parent for marker in out.glob(f"*/{MARKER}"))


def load_record(out: Path) -> RunRecord:
    """Return the record of the last run into a folder. The state is `died` if the record says
    `running` but its process is gone. Raises UsageError or EnvironmentFault, also for a link among
    the outputs."""
    path = out / RUN_RECORD
    if not os.path.lexists(path):
        hint = "Name the --out folder of a run"
        # The run of an index has no marker: its folder is not the output folder of a command.
        below = runs_below(out) or sorted(record.parent for record in out.glob(f"*/{RUN_RECORD}"))
        hint += f", such as {below[0]}" if below else ""
        raise UsageError(
            f"no run has written to {out}",
            hint=f"{hint}; one that has just begun writes there after it has read its sources",
        )

    guard(out)
    for file in out.glob("*.json*"):  # an archive may hold links to outputs of other runs
        refuse_links(file)
    record = read_json_file(RunRecord, path, "Run the command again")
    is_here = record.host in ("", socket.gethostname())
    if record.state == "running" and is_here and not is_alive(record.pid):
        record.state = "died"
        _count_published(out, record)
    return record


def _count_published(out: Path, record: RunRecord) -> None:
    """Count what the stages of a killed run published after its record was last written."""
    began = seconds_of(record.started)
    for stage in record.stages:
        published = 0
        for journal in out.glob(f"logs/{stage.name}[.-]*items.jsonl"):
            refuse_links(journal)
            with journal.open(encoding="utf-8", errors="replace") as lines:
                times = filter(None, map(PUBLISHED.match, lines))
                published += sum(float(match[1]) >= began for match in times)
        stage.running = max(stage.running, published - stage.items)


def same_work_in(out: Path, keys: Iterable[str]) -> bool:
    """Return whether the last run into a folder needed one of these keys of items, so that another
    run continues it."""
    try:
        return not frozenset(load_record(out).keys).isdisjoint(keys)
    except PenstockError:
        return False


def history_in(out: Path) -> list[RunEntry]:
    """Return the entries of the runs into a folder, those of killed ones too. It is a report: what
    cannot be read, or was copied from another folder, has none."""
    try:
        record = load_record(out)
    except PenstockError:
        return []
    return record.entries() if record.out == str(out) else []
