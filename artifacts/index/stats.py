"""Counts what an index holds."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from artifacts.index.manifest import Manifest, read_manifest
from artifacts.index.shard import SHARD_ROWS


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
        "measured": {sort: asdict(method) for sort, method in manifest.measured.items()},
        "measured_rows": manifest.measured_rows,
    }
