"""Refuses to write into folders that other programs or people write into."""

import os
from collections.abc import Collection, Sequence
from pathlib import Path

from artifacts.errors import UsageError
from artifacts.files import HALF


def refuse_foreign(folder: Path, own: Collection[str], records: Sequence[str]) -> None:
    """Raise UsageError for a folder with foreign content. A folder is our own if one of the files
    `records` is in it, or if it has no entries besides `own`."""
    try:
        names = sorted(os.listdir(folder))
    except FileNotFoundError:
        return
    except NotADirectoryError as error:
        raise UsageError(
            f"{folder} is not a folder, or a file is in the place of a parent folder",
            hint="Give a new folder",
        ) from error
    except OSError:  # the run will report it
        return
    others = [name for name in names if name not in own and not name.startswith(HALF)]
    if others and not any((folder / record).is_file() for record in records):
        shown = min(others, key=lambda name: (name.startswith("."), name))
        raise UsageError(f"{folder} holds other files ({shown})", hint="Give a new folder")
