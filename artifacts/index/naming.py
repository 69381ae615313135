"""Finds index rows by file, by folder or by key."""

import os
from collections.abc import Sequence
from functools import cache

import numpy as np

from artifacts.errors import UsageError
from artifacts.gone_files import GoneFiles
from artifacts.index.nearest import Positions
from artifacts.index.snapshot import Kept, Snapshot
from artifacts.tables import stored_text, text_stored

NAMED = ("key", "path", "media_path")
"""Columns by which a row is named."""


def rows_named(snapshot: Snapshot, names: Sequence[str]) -> Positions:
    """Return the live rows of these files, folders and keys. Raises UsageError when there is none
    of one of them."""
    wanted = dict.fromkeys(names)
    kept, known = _of_files_and_keys(snapshot, list(wanted))
    folders = [name for name in wanted if name not in known]
    for name in folders:
        inside = _of_folder(snapshot, name) & snapshot.live()
        if not inside.any():
            raise UsageError(
                f"no row of {snapshot.folder} is of {name}",
                hint="Give a file or a folder as it was given to the index, or a key; nothing was "
                "removed",
            )
        kept |= inside
    return np.flatnonzero(kept)


def rows_gone(snapshot: Snapshot, gone: GoneFiles) -> Positions:
    """Return the live rows whose files are no longer there."""
    kept, live = np.zeros(snapshot.rows, np.bool_), snapshot.live()
    is_gone = cache(lambda path: gone.has(text_stored(path)))
    for start, batch in snapshot.batches(["path"]):
        for at, path in enumerate(batch.column("path").to_pylist(), start):
            kept[at] = live[at] and is_gone(path)
    return np.flatnonzero(kept)


def _of_files_and_keys(snapshot: Snapshot, names: Sequence[str]) -> tuple[Kept, set[str]]:
    """Return which live rows bear one of these names, and the names that any does."""
    import pyarrow as pa
    import pyarrow.compute as pc

    spelled = {stored_text(each): name for name in names for each in (os.path.abspath(name), name)}
    live, kept, known = snapshot.live(), np.zeros(snapshot.rows, np.bool_), set[str]()
    values = pa.array(list(spelled))
    for start, batch in snapshot.batches(NAMED):
        here = slice(start, start + len(batch))
        for name in NAMED:
            column = batch.column(name)
            found = pc.is_in(column, values).to_numpy(zero_copy_only=False) & live[here]
            kept[here] |= found
            known.update(spelled[text] for text in column.filter(found).unique().to_pylist())
    return kept, known


def _of_folder(snapshot: Snapshot, name: str) -> Kept:
    import pyarrow.compute as pc

    kept = np.zeros(snapshot.rows, np.bool_)
    folder = stored_text(os.path.join(os.path.abspath(name), ""))
    for start, batch in snapshot.batches(["path"]):
        found = pc.starts_with(batch.column("path"), folder).to_numpy(zero_copy_only=False)
        kept[start : start + len(batch)] = found
    return kept
