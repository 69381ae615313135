"""Decides whether a file was deleted: nothing may be removed because a disk is away."""

import errno
import os
from collections import Counter
from collections.abc import Iterator

from artifacts.plurals import counted
from artifacts.remote.addresses import is_address

GONE = (errno.ENOENT, errno.ENOTDIR)
"""Errors of a file that is not there. Others are faults of its disk, or say that it may not be
seen."""


class GoneFiles:
    """Tells files that were deleted from those that cannot be seen now, and collects the latter."""

    def __init__(self) -> None:
        self._faults: dict[str, str] = {}
        """Folder → why it cannot be read; empty if it can."""
        self._unseen: Counter[tuple[str, str]] = Counter()
        """Folder and reason → its files that may be there."""

    def has(self, path: str) -> bool:
        """Return whether a file is not there, while its own folder is there, can be read and holds
        something else. Files far away are not asked for."""
        if is_address(path):
            return False
        folder = os.path.dirname(path)
        try:
            os.lstat(path)
        except OSError as error:
            if error.errno in GONE and not (fault := self._fault_of(folder)):
                return True
            why = fault if error.errno in GONE else os.strerror(error.errno or 0)
            self._unseen[folder, why] += 1
        return False

    def notes(self) -> Iterator[str]:
        """Yield a line for each folder whose files are kept because they cannot be seen."""
        for (folder, fault), count in self._unseen.items():
            yield (
                f"note: {counted(count, 'file')} of {folder} cannot be seen ({fault}) and may be "
                "there: their rows are kept. If they were deleted, remove the folder by its name"
            )

    def _fault_of(self, folder: str) -> str:
        if folder not in self._faults:
            try:
                with os.scandir(folder) as inside:  # an empty one may be where a disk belongs
                    self._faults[folder] = "" if next(inside, None) else "the folder is empty"
            except OSError as error:
                self._faults[folder] = os.strerror(error.errno or 0)
        return self._faults[folder]
