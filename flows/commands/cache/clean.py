"""Lists the contents of a store by model and age, and deletes unused packs."""

from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from artifacts.disk.files import delete_unlocked
from artifacts.disk.json_shapes import Json
from artifacts.errors import UsageError
from artifacts.index.words import FOLDER as WORDS
from artifacts.index.words import is_word_index
from artifacts.records.claims import FOLDER as CLAIMS
from artifacts.records.packs import QUARANTINE, Pack, half_written_in, packs, sizes_in
from artifacts.records.store import NAME, Store, prepare_store
from artifacts.records.stores.local import left_behind
from artifacts.records.stores.protocol import CATALOGS, ObjectStat
from artifacts.wording import first_of
from flows.core.checkpoint.gguf import COPIES
from flows.core.ledger.namespaces import notes
from flows.core.machine.leases import running_jobs
from flows.core.pipelines import LARGE
from stages.process.checks import KIND as CHECKS


@dataclass(frozen=True, kw_only=True, slots=True)
class Holding:
    """The packs of one kind and namespace."""

    kind: str
    namespace: str
    packs: int
    bytes: int
    used: float
    """Time of the last write or read of any pack, in seconds since the epoch."""
    settings: Mapping[str, Any]
    """Settings of the namespace, from `settings_of`; empty if they were not recorded."""

    def to_json(self) -> dict[str, Json]:
        """Return its fields as JSON, with `namespace` published as `scope`."""
        fields = {**asdict(self), "settings": dict(self.settings)}
        return {"scope" if name == "namespace" else name: fields[name] for name in fields}


def holdings(store: Store, stored: Mapping[str, ObjectStat] | None = None) -> list[Holding]:
    """Return the contents of a store by model, last used first. `stored`: its objects, if they are
    known."""
    groups: dict[tuple[str, str], list[Pack]] = {}
    for pack in packs(dict(store.stats()) if stored is None else stored):
        groups.setdefault((pack.kind, pack.namespace), []).append(pack)
    known = notes(store) if groups else None
    contents = [
        Holding(
            kind=kind,
            namespace=namespace,
            packs=len(group),
            bytes=sum(pack.stat.size for pack in group),
            used=max(pack.stat.modified for pack in group),
            settings=known.meta(namespace) if known is not None and namespace in known else {},
        )
        for (kind, namespace), group in groups.items()
    ]
    return sorted(contents, key=lambda h: (h.settings.get("model", "~"), -h.used, h.kind))


def sampling_text(sampling: Mapping[str, Json]) -> str:
    """Return a text such as `30 s, 1 fps, 32 frames at most`."""
    longest = "whole files" if sampling.get("whole") else f"{sampling['chunk_seconds']:g} s"
    pieces = f"shots up to {longest}" if sampling["shots"] else longest
    pieces = f"chapters up to {longest}" if sampling.get("chapters") else pieces
    ending = "" if sampling["deinterlace"] else ", with combs"
    if sampling["frames"] is not None:
        return f"{pieces}, {sampling['frames']} frames{ending}"
    return f"{pieces}, {sampling['fps']:g} fps, {sampling['max_frames']} frames at most{ending}"


KEPT = ("rebuilds", "namespaces", "rungs", CHECKS, "seconds")
"""Kinds that are never deleted: a few kB of settings, rebuild records, rungs, verdicts, times."""


@dataclass(kw_only=True, slots=True)
class Collection:
    """The files that were deleted, or would be in a dry run."""

    before: int
    """Bytes of all files in the store, with what killed processes left half-written."""
    limit: int
    """Requested maximum bytes of the store."""
    packs: Counter[str] = field(default_factory=Counter)
    """Kind → number of deleted packs."""
    bytes: int = 0
    """Number of deleted bytes."""
    held: int = 0
    """Bytes that running jobs need."""
    writing: int = 0
    """Bytes that living processes have half-written. They count for no size."""
    jobs: list[str] = field(default_factory=list)
    """Descriptions of those jobs."""

    @property
    def after(self) -> int:
        return self.before - self.bytes


def collect(store: Store, limit: int, *, dry_run: bool) -> Collection:
    """Delete half-written and damaged files. Then, until at most `limit` bytes are left, delete
    indexes of words, which searches make again without a model, and least recently used packs."""
    if not dry_run:
        delete_unlocked(store.local / WORDS, "")  # what killed searches left half-built
    jobs, stored = running_jobs(store), dict(store.stats())
    dead, writing = half_written_in(store)
    sizes = sizes_in(store, stored) | dead
    made = Collection(
        before=sum(sizes.values()),
        limit=limit,
        writing=writing,
        jobs=[job.description for job in jobs],
    )
    in_use = frozenset[str]().union(*(job.namespaces for job in jobs))
    useless = dict.fromkeys([*dead, *_rubbish(store, sizes, in_use)], "rubbish")
    indexes = dict.fromkeys(filter(is_word_index, sizes), "word indexes")
    for name, kind in (useless | indexes).items():
        if name in useless or made.after > limit:
            made.bytes += sizes[name]
            made.packs[kind] += 1
            if not dry_run:
                _remove(store, name, is_object=name in stored)
    for pack in sorted(
        packs(stored), key=lambda pack: (pack.kind not in LARGE, pack.stat.modified, pack.name)
    ):
        if pack.namespace in in_use:
            made.held += pack.stat.size
        elif pack.kind not in KEPT and made.after > limit:
            _delete(store, pack, made, dry_run)
    return made


def refuse_clearing(store: Store) -> None:
    """Raise UsageError if running jobs use a store."""
    if jobs := [job.description for job in running_jobs(store)]:
        raise UsageError(
            f"{store.url} is in use by {first_of(jobs)}",
            hint="Run it again when those jobs are done",
        )


def clear(store: Store) -> tuple[int, int]:
    """Delete all records of a store, whatever its format, and give it the format of today. Returns
    the number of deleted objects and their bytes. The number goes last, so that a store that was
    cleared in part is still refused. Corrections and what is noted of users' files stay. Raises
    UsageError if jobs use the store."""
    refuse_clearing(store)
    stored = dict(store.stats())
    dead, _ = half_written_in(store)
    sizes = sizes_in(store, stored) | dead
    names = [*(pack.name for pack in packs(stored)), *filter(is_word_index, sizes)]
    names += [*dead, *_rubbish(store, sizes, ())]
    for name in names:
        _remove(store, name, is_object=name in stored)
    store.delete(NAME)
    prepare_store(store)
    return len(names), sum(sizes[name] for name in names)


def _remove(store: Store, name: str, *, is_object: bool) -> None:
    if is_object:
        store.delete(name)
    else:
        (store.local / name).unlink(missing_ok=True)


def _delete(store: Store, pack: Pack, made: Collection, dry_run: bool) -> None:
    if not dry_run:
        if pack.is_used_again(store):
            return
        if any(pack.namespace in job.namespaces for job in running_jobs(store)):
            made.held += pack.stat.size
            return
        store.delete(pack.name)
    made.bytes += pack.stat.size
    made.packs[pack.kind] += 1


def _rubbish(store: Store, names: Iterable[str], in_use: Container[str]) -> Iterator[str]:
    """Yield the names of useless files that were written whole. `in_use`: namespaces that running
    jobs need."""
    unused = {path.name for path in left_behind(store.local, COPIES)}
    useless: dict[str, Callable[[str], bool]] = {
        QUARANTINE: lambda _: True,
        CLAIMS: lambda namespace: namespace not in in_use,
        COPIES: lambda copy: copy in unused,  # made again when needed
        CATALOGS: lambda namespace: namespace not in in_use,
    }
    for name in names:
        _, parent, basename = f"//{name}".rsplit("/", 2)
        folder = name.split("/")[0]
        # The parent folder of a header catalog is its namespace. The next reader rebuilds it.
        if folder in useless and useless[folder](parent if folder == CATALOGS else basename):
            yield name
