"""Bringing a store below a size: the least recently used goes first, what running jobs need stays;
knows no job but by what it holds."""

import contextlib
import os
from collections import Counter
from collections.abc import Container, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from artifacts.claims import FOLDER as CLAIMS
from artifacts.pack_object import QUARANTINE
from artifacts.store import STALE_SECONDS, TEMPORARY, FolderStore
from flows.job.holds import running_jobs
from flows.upkeep.cache import Pack, packs

LARGE = ("frames", "features")
"""Kinds that take nearly all the space; the others are small, and go only when these are gone."""
KEPT = ("rebuilds", "scopes", "rungs")
"""Kinds that are never given up: a few kB which say what the rest is, and what fits."""


@dataclass(kw_only=True, slots=True)
class Collection:
    """What was deleted, or would be."""

    before: int
    """Bytes of all files in the store."""
    limit: int
    """Bytes that it was to be brought to."""
    packs: Counter[str] = field(default_factory=Counter)
    """Kind → packs deleted."""
    bytes: int = 0
    """Bytes deleted."""
    held: int = 0
    """Bytes that running jobs need."""
    jobs: list[str] = field(default_factory=list)
    """Those jobs, in words."""

    @property
    def after(self) -> int:
        return self.before - self.bytes


def collect(store: FolderStore, limit: int, *, dry_run: bool) -> Collection:
    """Delete what was not used for the longest time until at most `limit` bytes are left, and first
    what is no use: half-written and damaged files."""
    jobs = running_jobs(store)
    made = Collection(before=sum(size for _, size in _files(store.root)), limit=limit)
    held = frozenset[str]().union(*(job.scopes for job in jobs))
    for path, size in _rubbish(store, held):
        made.bytes += size
        made.packs["rubbish"] += 1
        if not dry_run:
            path.unlink(missing_ok=True)
    made.jobs = [job.who for job in jobs]
    for pack in sorted(packs(store), key=_order):
        if pack.scope in held:
            made.held += pack.stat.size
        elif pack.kind not in KEPT and made.after > limit:
            _delete(store, pack, made, dry_run)
    return made


def _order(pack: Pack) -> tuple[bool, float, str]:
    return pack.kind not in LARGE, pack.stat.modified, pack.name


def _delete(store: FolderStore, pack: Pack, made: Collection, dry_run: bool) -> None:
    if not dry_run:
        found = store.stat(pack.name)
        if found is not None and found.modified > pack.stat.modified:
            return  # used since it was listed
        if any(pack.scope in job.scopes for job in running_jobs(store)):
            made.held += pack.stat.size
            return
        store.delete(pack.name)
    made.bytes += pack.stat.size
    made.packs[pack.kind] += 1


def _rubbish(store: FolderStore, held: Container[str]) -> Iterator[tuple[Path, int]]:
    yield from _files(store.root / QUARANTINE)
    for path, size in _files(store.root / CLAIMS):
        if path.name not in held:  # which is the scope
            yield path, size
    now = store.now()
    for path, size in _files(store.root / TEMPORARY):
        with contextlib.suppress(FileNotFoundError):
            if path.lstat().st_mtime < now - STALE_SECONDS:
                yield path, size


def _files(folder: Path) -> Iterator[tuple[Path, int]]:
    for place, _, names in os.walk(folder):
        for name in names:
            path = Path(place, name)
            with contextlib.suppress(FileNotFoundError):
                yield path, path.lstat().st_size
