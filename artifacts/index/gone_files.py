"""Tells deleted files from those that a disk does not show now, and finds rows of deleted ones."""

import os
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

import numpy as np

from artifacts.disk.mounts import DELETED, Absence, MissingFiles
from artifacts.index.shard import Positions
from artifacts.index.snapshot import Snapshot
from artifacts.remote.addresses import is_address
from artifacts.texts.tables import text_stored
from artifacts.wording import counted


class GoneFiles:
    """Tells files that were deleted from those that cannot be seen now, and collects the latter."""

    def __init__(self, noted: Mapping[str, str]) -> None:
        """`noted` is as in `MissingFiles`."""
        self._missing = MissingFiles(noted)
        self._unseen: Counter[Absence] = Counter()
        """Folder that is away → its files that may be there."""

    def has(self, path: str) -> bool:
        """Return whether a file was deleted. Files far away are not looked up."""
        if is_address(path):
            return False
        absence = self._missing.absence_of(path, [os.path.dirname(path)])
        if absence not in (None, DELETED):
            self._unseen[absence] += 1
        return absence == DELETED

    def kept(self, index: Path) -> Iterator[tuple[Absence, int, str]]:
        """Yield each folder whose files an index keeps because they cannot be seen, their number,
        and what to do."""
        for absence, count in self._unseen.items():
            words = ["penstock", "index", "remove", absence.folder, "--index", str(index)]
            yield absence, count, f"If it was deleted or renamed: {shlex.join(words)}"

    def notes(self, index: Path) -> Iterator[str]:
        """Yield a line for each of these folders."""
        for absence, count, hint in self.kept(index):
            yield (
                f"note: the rows of {counted(count, 'file')} in {absence.folder} are kept, as its "
                f"disk may be away ({absence.reason}). {hint}"
            )


def rows_gone(snapshot: Snapshot, gone: GoneFiles) -> Positions:
    """Return the live rows whose files are no longer there."""
    deleted, live = np.zeros(snapshot.rows, np.bool_), snapshot.live()
    is_gone = cache(lambda path: gone.has(text_stored(path)))
    for start, batch in snapshot.batches(["path"]):
        for at, path in enumerate(batch.column("path").to_pylist(), start):
            deleted[at] = live[at] and is_gone(path)
    return np.flatnonzero(deleted)
