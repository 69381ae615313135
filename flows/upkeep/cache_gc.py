"""Brings a store below a size; knows no job but by what it holds. The least recently used goes
first, what running jobs need stays."""

import contextlib
import os
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from artifacts.claims import FOLDER as CLAIMS
from artifacts.pack_object import QUARANTINE
from artifacts.store import Store
from artifacts.stores.heads import CATALOGS
from artifacts.stores.local import TEMPORARY, left_behind
from flows.machine.leases import running_jobs
from flows.pipelines import KEPT as KEPT_PIPELINES
from flows.upkeep.cache import Pack, objects, packs

LARGE = frozenset(stage.writes for pipeline in KEPT_PIPELINES for stage in pipeline)
"""Kinds that take nearly all the space; the others are small, and go only when these are gone."""
KEPT = ("rebuilds", "scopes", "rungs")
"""Kinds that are never given up: a few kB which say what the rest is, and what fits."""


@dataclass(kw_only=True, slots=True)
class Collection:
    """The files deleted, or to be deleted."""

    before: int
    """Bytes of all files in the store."""
    limit: int
    """Bytes that the store was to be brought to."""
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


def collect(store: Store, limit: int, *, dry_run: bool) -> Collection:
    """Delete what was not used for longest until at most `limit` bytes are left. What is no use
    goes first: half-written and damaged files."""
    jobs, stored = running_jobs(store), objects(store)
    # In a folder store, objects and the files beside them are among each other, under one name.
    sizes = _files(store.local) | {name: stat.size for name, stat in stored.items()}
    made = Collection(before=sum(sizes.values()), limit=limit, jobs=[job.who for job in jobs])
    held = frozenset[str]().union(*(job.namespaces for job in jobs))
    for name in _rubbish(store, sizes, held):
        made.bytes += sizes[name]
        made.packs["rubbish"] += 1
        if dry_run:
            continue
        if name in stored:
            store.delete(name)
        else:
            (store.local / name).unlink(missing_ok=True)
    for pack in sorted(
        packs(stored), key=lambda pack: (pack.kind not in LARGE, pack.stat.modified, pack.name)
    ):
        if pack.namespace in held:
            made.held += pack.stat.size
        elif pack.kind not in KEPT and made.after > limit:
            _delete(store, pack, made, dry_run)
    return made


def _delete(store: Store, pack: Pack, made: Collection, dry_run: bool) -> None:
    if not dry_run:
        found = store.stat(pack.name)
        if found is not None and found.modified > pack.stat.modified:
            return  # used since it was listed
        if any(pack.namespace in job.namespaces for job in running_jobs(store)):
            made.held += pack.stat.size
            return
        store.delete(pack.name)
    made.bytes += pack.stat.size
    made.packs[pack.kind] += 1


def _rubbish(store: Store, names: Iterable[str], held: Container[str]) -> Iterator[str]:
    """Yield the names of what is no use to anybody. `held` are the namespaces that running jobs
    need."""
    dead = {path.name for path in left_behind(store.local)}
    useless: dict[str, Callable[[str], bool]] = {
        QUARANTINE: lambda _: True,
        CLAIMS: lambda namespace: namespace not in held,
        TEMPORARY: lambda half: half in dead,
        CATALOGS: lambda namespace: namespace not in held,
    }
    for name in names:
        _, above, last = f"//{name}".rsplit("/", 2)
        folder = name.split("/")[0]
        # A catalog has its namespace's name above it; who opens that next makes another.
        if folder in useless and useless[folder](above if folder == CATALOGS else last):
            yield name


def _files(folder: Path) -> dict[str, int]:
    """Return the bytes of every file below a folder, by its path from there."""
    found = {}
    for place, _, names in os.walk(folder):
        for path in (Path(place, name) for name in names):
            with contextlib.suppress(FileNotFoundError):
                found[path.relative_to(folder).as_posix()] = path.lstat().st_size
    return found
