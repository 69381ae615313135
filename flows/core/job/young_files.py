"""Leaves files out of a run that were written a moment ago (`--min-age`).

A file is young if its content was written, or it came to its place, less than that ago. An earlier
run into the folder may have read it as it is now: then it is not young. So a link to it or a
`chmod`, which change the time of its inode alone, take no row away.
"""

import os
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from artifacts.disk.json_records import read_jsonl_file
from artifacts.disk.paths import folder_named
from artifacts.errors import NothingYet, PenstockError
from artifacts.texts.captions import Failure
from artifacts.wording import counted, first_of
from flows.core.console.lines import duration
from flows.core.media.media_file import MediaFile
from flows.core.media.output_rows import MediaRow

DAY = 86400.0
"""A time further ahead is that of a wrong clock, and says nothing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FilesByAge:
    """The files of a run."""

    resting: list[MediaFile]
    """Those that it takes."""
    young: list[MediaFile]
    """Those that it leaves out."""
    min_age: float
    """Age in seconds that divides them."""

    @property
    def note(self) -> str:
        """Return the note that counts and names young files; empty if there are none."""
        names = list(dict.fromkeys(file.media_path for file in self.young))
        if not names:
            return ""
        written = f"written in the last {duration(self.min_age)}"
        return f"left out: {counted(len(names), 'file')} {written} ({first_of(names)})"

    def nothing_yet(self, failures: Sequence[Failure]) -> NothingYet | None:
        """Return the end of a run that has no other files; None if none is young, or if sources
        cannot be read (`failures`)."""
        if not self.young or failures:
            return None
        hint = "The same command takes them later"
        return NothingYet(f"nothing to do yet; {self.note}", hint=hint)


def files_by_age(files: Iterable[MediaFile], min_age: float | None, out: str) -> FilesByAge:
    """Divide the files of a run into the folder `out` by `--min-age` in seconds; None or 0: none is
    young."""
    by_age = FilesByAge(resting=[], young=[], min_age=min_age or 0.0)
    now, read = time.time(), set[tuple[str, int | None, int | None]]()
    if not min_age:
        return replace(by_age, resting=[*files])
    with suppress(PenstockError):
        rows = read_jsonl_file(MediaRow, folder_named(out, "out") / "media.jsonl", "")
        read = {(row.path, row.bytes, row.modified) for row in rows if row.url}
    for file in files:
        is_young = False
        with suppress(OSError):  # the run says what is wrong with it
            if file.remote is None:
                stat = os.stat(file.path)
                is_read = (file.place, stat.st_size, stat.st_mtime_ns) in read
                is_young = not is_read and is_young_at(now, min_age, stat)
        (by_age.young if is_young else by_age.resting).append(file)
    return by_age


def is_young_at(now: float, min_age: float, stat: os.stat_result) -> bool:
    """Return whether a file was written or came less than `min_age` seconds before `now`."""
    return any(now - min_age < at < now + DAY for at in (stat.st_mtime, stat.st_ctime))
