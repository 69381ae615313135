"""Captions the media that meet `--sift`: marks them, then captions what is left."""

import os
from contextlib import suppress

from artifacts.disk.json_shapes import read_jsonl, string
from artifacts.disk.regular_files import guard
from artifacts.errors import PenstockError
from artifacts.wording import counted
from flows.core.console.display import Display
from flows.core.job.prepare import out_folder
from flows.core.machine.launch import DirectLauncher
from flows.core.options.commands import RunOptions, SiftFirstOptions
from flows.core.options.vectors import PLACE
from flows.execution import run
from flows.execution.run_observer import OnBegin
from flows.outputs.folder.foreign_files import LEFT_OUT_FILE
from flows.outputs.folder.owners import refuse_taking
from flows.outputs.record.run_read import load_record
from flows.outputs.run_result import RunResult


def left_out_before(config: RunOptions) -> tuple[frozenset[str], str]:
    """Return the places of the files that the last marking in the output folder left out by the
    same `--sift`, and a note for the plan: that it has the files before the filter where nothing
    was marked by that condition. Raises UsageError."""
    if not (condition := SiftFirstOptions.of(config).sift):
        return frozenset(), ""
    from flows.commands.sift.marks import parse_keep
    from flows.outputs.media_rows import failed_media

    parse_keep(condition, option="--sift")
    folder = out_folder(config) / PLACE
    note = "files and chunks are those before the filter (--sift): marks come first"
    with suppress(PenstockError):
        record = load_record(folder)
        if record["state"] == "running":
            note = "files and chunks are those before the filter (--sift): it is running"
        elif record.get("keep") == condition and record["state"] == "done":
            rows = read_jsonl(folder / LEFT_OUT_FILE, {"path": string}, "Sift again")
            left = frozenset(row["path"] for row in rows)
            note = f"{counted(len(left), 'file')} left out by --sift, as marked before"
            if failed := failed_media(folder):
                note += f"; {counted(len(failed), 'file')} that failed then, too"
            sources = [(os.path.abspath(row["source"]), row["media_path"]) for row in failed]
            return left.union(
                *((source, os.path.join(source, path)) for source, path in sources)
            ), note
    return frozenset(), note


def caption(
    config: RunOptions,
    display: Display,
    make_launcher: run.LauncherMaker = DirectLauncher,
    on_begin: OnBegin | None = None,
) -> RunResult:
    """Caption as `flows.execution.run.caption` does, after leaving out what `--sift` says. Raises
    PenstockError; finished records stay."""
    left_out = frozenset[str]()
    guard(out_folder(config))
    if condition := SiftFirstOptions.of(config).sift:
        from flows.commands.sift.run import sift_before

        refuse_taking(config, "caption")  # before hours of marking
        left_out = sift_before(config, condition, display, make_launcher)
    return run.caption(config, display, make_launcher, on_begin, left_out)
