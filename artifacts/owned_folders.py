"""Refuses to write into folders that other programs or people write into."""

import os
from collections.abc import Collection, Sequence
from pathlib import Path

from artifacts.errors import UsageError
from artifacts.files import HALF


def refuse_foreign(folder: Path, own: Collection[str], records: Sequence[str]) -> None:
    """Refuse a folder with other content than a command's own. It is its own where one of its
    `records` lies in it, by their paths there, or nothing but entries of the names in `own`. Raises
    UsageError."""
    try:
        names = sorted(os.listdir(folder))
    except FileNotFoundError:
        return
    except NotADirectoryError as error:
        raise UsageError(
            f"{folder} is not a folder, or a file is in the place of one above it",
            hint="Give a new folder",
        ) from error
    except OSError:  # for the run to find out
        return
    others = [name for name in names if name not in own and not name.startswith(HALF)]
    if others and not any((folder / record).is_file() for record in records):
        raise UsageError(
            f"{folder} holds other files ({others[0]})",
            hint="Give a new folder, or remove that one",
        )
