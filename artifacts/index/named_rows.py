"""Finds the rows of an index by file, by folder or by key."""

import os
from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

from artifacts.disk.paths import required_path
from artifacts.errors import UsageError
from artifacts.index.shard import Positions
from artifacts.index.snapshot import Kept, Snapshot
from artifacts.texts.tables import stored_text, text_stored

KINDS = ("path", "folder", "key", "media_path")
"""What a name may be, in this order: a name in one folder may also be the `media_path` of others'
files."""
SHOWN = 5
"""Paths that are listed of a name that several files have."""


def rows_named(snapshot: Snapshot, names: Sequence[str]) -> Positions:
    """Return the live rows of these names. A name stands for the first that it is of: the path or
    address of a file, a folder, a key, the `media_path` of one file. Raises UsageError for an empty
    name, one that no row has, and a `media_path` of several files."""
    selected = np.zeros(snapshot.rows, np.bool_)
    unmatched = list(dict.fromkeys(required_path(name, "name") for name in names))
    for kind in KINDS if names else ():
        rows, paths_of = _rows_of(snapshot, kind, unmatched)
        for name, paths in paths_of.items() if kind == "media_path" else ():
            if len(paths) > 1:
                listed = ", ".join(paths[:SHOWN]) + ", …" * (len(paths) > SHOWN)
                raise UsageError(
                    f"{name} is the name of several files of {snapshot.folder}: {listed}",
                    hint="Give the path of each that is meant; nothing was removed",
                )
        selected |= rows
        unmatched = [name for name in unmatched if name not in paths_of]
    if unmatched:
        raise UsageError(
            f"no row of {snapshot.folder} is of {unmatched[0]}",
            hint="Give a file or a folder as it was given to the index, or a key; nothing was "
            "removed",
        )
    return np.flatnonzero(selected)


def _rows_of(
    snapshot: Snapshot, kind: str, names: Sequence[str]
) -> tuple[Kept, dict[str, list[str]]]:
    """Return which live rows one of these names stands for as one of KINDS, and those names, each
    with the first paths."""
    import pyarrow as pa
    import pyarrow.compute as pc

    column, spelled = "path" if kind == "folder" else kind, defaultdict[str, list[str]](list)
    for name in names:
        for text in {os.path.abspath(name), name} if column == "path" else (name,):
            value = os.path.join(text, "") if kind == "folder" else text
            spelled[stored_text(value)].append(name)
    live, selected = snapshot.live(), np.zeros(snapshot.rows, np.bool_)
    paths_of: dict[str, list[str]] = {}
    for start, batch in snapshot.batches(list({"path", column})):
        values, of = batch.column(column), dict(spelled)
        if kind == "folder":
            values = pc.replace_substring_regex(values, r"[^/]*\z", "")
            of = {value: _above(value, spelled) for value in values.unique().to_pylist()}
        wanted = pa.array([value for value, ours in of.items() if ours], pa.string())
        block = slice(start, start + len(batch))
        rows = pc.is_in(values, wanted).to_numpy(zero_copy_only=False) & live[block]
        selected[block] = rows
        pairs = (cells.filter(rows).to_pylist() for cells in (values, batch.column("path")))
        for value, path in zip(*pairs, strict=True):
            for paths in (paths_of.setdefault(name, []) for name in of[value]):
                if len(paths) <= SHOWN and text_stored(path) not in paths:
                    paths.append(text_stored(path))
    return selected, paths_of


def _above(folder: str, spelled: Mapping[str, list[str]]) -> list[str]:
    """Return the names of a folder and of those above it; each ends with a slash."""
    ends = (at + 1 for at, letter in enumerate(folder) if letter == "/")
    return [name for end in ends for name in spelled.get(folder[:end], ())]
