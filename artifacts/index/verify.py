"""Checks every byte of an index, and reports damage and its repair. Changes nothing."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from artifacts.index.manifest import IndexFile, read_manifest
from artifacts.index.search import lengths_of
from artifacts.index.shard import COLUMNS, open_rows
from artifacts.records.keys import hash_file
from artifacts.wording import counted

REMAKE = "`penstock index compact` makes it again from the vectors"
CHECKED_ROWS = 1 << 14
"""Vectors whose lengths are checked at once."""
REBUILD = "build the index anew in another folder: what the store has is not made again"


@dataclass(frozen=True, kw_only=True, slots=True)
class IndexDamage:
    """One file of an index that differs from what was written."""

    path: Path
    what: str
    hint: str

    def line(self) -> str:
        return f"{self.path} {self.what}. {self.hint[0].upper()}{self.hint[1:]}"


def verify_index(folder: Path) -> Iterator[IndexDamage]:
    """Yield what is damaged. Raises UsageError where there is no index that can be read, and
    EnvironmentFault for a damaged manifest."""
    manifest = read_manifest(folder)
    for shard in manifest.shards:
        sound = True
        for sort, file in shard.files.items():
            for damage in _of_file(folder, sort, file):
                sound = False
                yield damage
        if sound:
            yield from _of_rows(folder / shard.files["rows"].name, shard.rows)
            yield from _of_vectors(folder / shard.files["embeddings"].name, manifest.maker.width)
    for file in filter(None, (manifest.deleted, manifest.texts)):
        yield from _of_file(folder, "", file)


def _of_file(folder: Path, sort: str, file: IndexFile) -> Iterator[IndexDamage]:
    path, hint = folder / file.name, REMAKE if sort == "bits" else REBUILD
    try:
        size = path.stat().st_size
        digest = hash_file(path) if size == file.bytes else ""
    except OSError as error:
        yield IndexDamage(path=path, what=f"cannot be read ({error.strerror})", hint=hint)
        return
    if size != file.bytes:
        yield IndexDamage(path=path, what=f"has {size:,} bytes of {file.bytes:,}", hint=hint)
    elif digest != file.sha256:
        yield IndexDamage(path=path, what="holds other bytes than were written", hint=hint)


def _of_rows(path: Path, count: int) -> Iterator[IndexDamage]:
    try:
        metadata = open_rows(path).metadata
        columns = tuple(metadata.schema.names)
    except (OSError, ValueError) as error:
        yield IndexDamage(path=path, what=f"is no table ({error})", hint=REBUILD)
        return
    if metadata.num_rows != count or columns != COLUMNS:
        yield IndexDamage(
            path=path, what=f"has {metadata.num_rows:,} rows of {count:,}", hint=REBUILD
        )


def _of_vectors(path: Path, width: int) -> Iterator[IndexDamage]:
    """Yield what a search would refuse: vectors with NaN, or of another length than 1. Zeros are
    those of a picture without a direction."""
    if path.stat().st_size % (2 * width):
        yield IndexDamage(path=path, what=f"holds no vectors of {width} numbers", hint=REBUILD)
        return
    vectors = np.memmap(path, np.float16, "r").reshape(-1, width)
    broken = 0
    for at in range(0, len(vectors), CHECKED_ROWS):
        broken += len(lengths_of(vectors[at : at + CHECKED_ROWS])[1])
    if broken:
        what = f"has {counted(broken, 'vector')} of another length than 1"
        yield IndexDamage(path=path, what=what, hint=REBUILD)
