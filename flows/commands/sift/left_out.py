"""What an earlier marking left out, for the plan of a run with --sift."""

import os
from contextlib import suppress

from artifacts.disk.json_records import read_jsonl_file
from artifacts.errors import PenstockError
from artifacts.wording import counted
from flows.core.job.prepare import out_folder
from flows.core.options.commands import RunOptions
from flows.core.options.vectors import PLACE
from flows.outputs.folder.foreign_files import LEFT_OUT_FILE
from flows.outputs.record.run_read import load_record


def left_out_before(config: RunOptions) -> tuple[frozenset[str], str]:
    """Return the places of the files that the last marking in the output folder left out by the
    same `--sift`, and a note for the plan: that it has the files before the filter where nothing
    was marked by that condition. Raises UsageError."""
    if not (condition := config.groups.sift_first.sift):
        return frozenset(), ""
    from flows.commands.sift.marks import LeftOutRow, parse_keep
    from flows.outputs.media_rows import failed_media

    parse_keep(condition, option="--sift")
    folder = out_folder(config) / PLACE
    note = "files and chunks are those before the filter (--sift): marks come first"
    with suppress(PenstockError):
        record = load_record(folder)
        if record.state == "running":
            note = "files and chunks are those before the filter (--sift): it is running"
        elif record.keep == condition and record.state == "done":
            rows = read_jsonl_file(LeftOutRow, folder / LEFT_OUT_FILE, "Sift again")
            left = frozenset(row.path for row in rows)
            note = f"{counted(len(left), 'file')} left out by --sift, as marked before"
            if failed := failed_media(folder):
                note += f"; {counted(len(failed), 'file')} that failed then, too"
            sources = [(os.path.abspath(row.source), row.media_path) for row in failed]
            return left.union(
                *((source, os.path.join(source, path)) for source, path in sources)
            ), note
    return frozenset(), note
