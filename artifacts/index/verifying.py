"""Checks every byte of an index, and reports damage and its repair. Changes nothing."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from artifacts.index.manifest import IndexFile, Manifest, read_manifest
from artifacts.index.rows import COLUMNS, open_rows
from artifacts.index.shard import SHARD_ROWS
from artifacts.keys import hash_file

REMAKE = "`penstock index compact` makes it again from the vectors"
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
    EnvironmentFault for a damaged book."""
    manifest = read_manifest(folder)
    for shard in manifest.shards:
        sound = True
        for sort, file in shard.files.items():
            for damage in _of_file(folder, sort, file):
                sound = False
                yield damage
        if sound:
            yield from _of_rows(folder / shard.files["rows"].name, shard.rows)
    for file in filter(None, (manifest.deleted, manifest.texts)):
        yield from _of_file(folder, "", file)


def _of_file(folder: Path, sort: str, file: IndexFile) -> Iterator[IndexDamage]:
    path, hint = folder / file.name, REMAKE if sort == "bits" else REBUILD
    try:
        size = path.stat().st_size
        found = hash_file(path) if size == file.bytes else ""
    except OSError as error:
        yield IndexDamage(path=path, what=f"cannot be read ({error.strerror})", hint=hint)
        return
    if size != file.bytes:
        yield IndexDamage(path=path, what=f"has {size:,} bytes of {file.bytes:,}", hint=hint)
    elif found != file.sha256:
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


def stats_of(folder: Path) -> dict[str, Any]:
    """Return what an index holds, in numbers, for people and programs. Raises PenstockError."""
    manifest: Manifest = read_manifest(folder)
    return {
        "folder": str(folder),
        "model": manifest.maker.model,
        "precision": manifest.maker.precision,
        "width": manifest.maker.width,
        "made_by": manifest.made_by,
        "rows": manifest.live_rows,
        "removed": manifest.deleted_rows,
        "shards": len(manifest.shards),
        "small_shards": sum(shard.rows < SHARD_ROWS for shard in manifest.shards),
        "bytes": sum(file.bytes for file in manifest.files()),
        "bytes_a_row": sum(file.bytes for file in manifest.files()) // max(manifest.rows, 1),
        "measured": {sort: asdict(found) for sort, found in manifest.measured.items()},
        "measured_rows": manifest.measured_rows,
    }
