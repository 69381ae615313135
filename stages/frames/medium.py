"""One file to cut, and whether it still is the file that was known; decodes nothing."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from artifacts.errors import MediaError
from artifacts.regular import NotAFile
from artifacts.stamps import CHANGED, CHANGED_HINT, CHANGED_MESSAGE, Stamp, stamp_of


@dataclass(frozen=True, kw_only=True, slots=True)
class MediumToCut:
    """One file to cut."""

    path: Path
    digest: str
    """Content digest, 64 hex digits."""
    kind: str
    """`video` or `image`."""
    wanted: frozenset[int] | None
    """Indexes of the chunks to make; None: all of them."""
    stamp: Stamp | None = None
    """Stamp of the file when its content was digested; None: whatever is there is taken."""

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "MediumToCut":
        wanted = None if value.get("wanted") is None else frozenset(value["wanted"])
        stamp = Stamp(*value["stamp"]) if value.get("stamp") else None
        return cls(**{**value, "path": Path(value["path"]), "wanted": wanted, "stamp": stamp})

    def check(self) -> None:
        """Raise MediaError when the file is not the one any more whose digest this is."""
        check_unchanged(self.path, self.stamp)


def check_unchanged(path: Path, stamp: Stamp | None) -> None:
    """Raise MediaError when a file does not have the stamp that it had. Raises OSError."""
    try:
        same = stamp is None or stamp_of(path) == stamp
    except NotAFile:
        same = False
    if not same:
        raise MediaError(f"{path}: {CHANGED_MESSAGE}", kind=CHANGED, hint=CHANGED_HINT)
