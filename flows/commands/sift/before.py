"""Marks the media of another run before it, and leaves out what a condition names (`--sift`)."""

import json

from artifacts.disk.regular_files import open_regular
from artifacts.wording import counted
from flows.commands.sift.marks import parse_keep
from flows.commands.sift.run import sift
from flows.core.console.display import Display
from flows.core.job.prepare import out_folder
from flows.core.options.commands import RunOptions
from flows.core.options.vectors import PLACE, SiftConfig
from flows.execution.run import LauncherMaker
from flows.outputs.folder.foreign_files import LEFT_OUT_FILE


def sift_before(
    config: RunOptions, condition: str, display: Display, make_launcher: LauncherMaker
) -> frozenset[str]:
    """Mark the media of another run in a folder of its output, and return the places of the files
    that the condition leaves out, and of those that cannot be marked. Raises PenstockError."""
    shared = {
        n: getattr(config, n)
        for n in ("sources", "recursive", "extensions", "limit", "min_age", "store", "replace")
    }
    parse_keep(condition, option="--sift")
    folder = out_folder(config) / PLACE
    sifting = SiftConfig(
        **shared, retry_failed=config.retry_failed, keep=condition, out=str(folder)
    )
    result = sift(sifting, display, make_launcher)
    with open_regular(result.out / LEFT_OUT_FILE) as file:
        places = frozenset(json.loads(line)["path"] for line in file)
    if places:
        display.print_line(
            f"{counted(len(places), 'file')} left out by --sift: {result.out / LEFT_OUT_FILE}"
            f"{result.of_nulls}"
        )
    if result.unmarked:
        display.print_line(
            f"{counted(len(result.unmarked), 'file')} that failed left out: "
            f"{result.out / 'failures.jsonl'}"
        )
    return places | result.unmarked
