"""Divides a run into waves, and keeps it within `--max-store`: what fits into a wave, and which
packs go before it.

A medium needs room for its frames and features until its captions are made, and for small records
that stay; vectors stay, because a run writes them all in the end. What the limit leaves beside what
must stay is the room of one wave. Before a wave, packs go until it fits, the least recently used
first, except those with a record that this run or another job has yet to read.
"""

import math
from collections import Counter
from collections.abc import Iterator, Sequence, Set
from itertools import count, islice, takewhile

from artifacts.errors import CannotFit
from artifacts.keys import item_key
from artifacts.packs import Pack, packs, sizes_in
from artifacts.plurals import counted
from flows.console.lines import rounded_up, size, written
from flows.job.prepare import Job
from flows.ledger.ledger import MOST_RATIO, cut_waves, has_own_bytes, waves_of
from flows.ledger.tasks import Medium, Task, keys_of
from flows.machine.leases import Lease, running_jobs
from flows.options.model import StoreSizeOptions
from flows.pipelines import LARGE
from flows.planning.sizes import MAX_WAVE_BYTES, Estimate, wave_limit
from stages import hear, sound

SMALL_BYTES = 4096
"""Bytes in the store for one chunk besides frames and features: its caption, and its parts of
indexes and of the headers of packs. The demo's take 1,300."""

TO_BE_MADE, OTHERS = "yet to be made", "of lists"
"""What stays in a store beside its kinds: what this run adds for good, and files of no kind."""


class StoreLimit:
    """What a limit leaves of the store for one job."""

    def __init__(
        self, job: Job, limit: int, expected: Sequence[Estimate], lease: Lease | None = None
    ) -> None:
        """Take the job, its limit in bytes, an estimate of each of its media, and the lease of its
        run; without one, nothing is deleted."""
        self._job, self._ledger, self._lease, self.bytes = job, job.ledger, lease, limit
        pairs = zip(job.media, expected, strict=True)
        self._expected = {(medium.digest, medium.prompt): each for medium, each in pairs}
        self._first = job.pipeline[0]
        self._kinds = [stage.writes for stage in job.pipeline if stage.writes in LARGE]
        """Kinds of its large records."""
        read = {kind for stage in job.pipeline for kind in stage.reads}
        self._stays = {*self._kinds} - read
        """Kinds that this run reads in the end."""
        needs = [self._needs(medium) for medium in job.media]
        kept = self._look(job.media)[0]
        kept[TO_BE_MADE] += sum(staying for _, staying in needs)
        self._room = max(1, limit - kept.total())
        """Bytes of a wave beside all that is stored now and still to be read."""
        self.wave_bytes = max(1, self._room // 2)
        """Maximum bytes of a wave of several media: the next one is cut beside it."""
        self._passing = sum(passing for passing, _ in needs)
        self._largest = 0
        stored, seen = Counter[str](), set[str]()
        for medium, (passing, _) in zip(reversed(job.media), reversed(needs), strict=True):
            stored += self._stored(medium, seen)
            self._largest = max(self._largest, stored.total() + passing)
        self._base = kept - stored
        """Bytes that stay until the run ends, by kind."""

    def refusal(self) -> CannotFit | None:
        """Return why the limit is too small; None if it is not."""
        enough = self._base.total() + self._largest <= self.bytes
        return None if enough else self._too_small(self._base, self._largest)

    def notes(self) -> list[str]:
        """Return a note on what the limit costs, if it costs anything."""
        if self._stays or self._passing <= self._room:
            return []
        return [
            f"--max-store {size(self.bytes)}: features are deleted when their captions are made "
            "and room is needed, so another prompt encodes again"
        ]

    def cut(self, waves: Sequence[list[Medium]]) -> list[list[Medium]]:
        """Divide waves that an earlier run recorded with more room."""
        found = []
        for wave in waves:
            left = iter(wave)
            lengths = cut_waves([self._needs(medium)[0] for medium in wave], self._room)
            found += [list(islice(left, length)) for length in lengths]
        return found

    def make_room(self, waves: Sequence[list[Medium]]) -> bool:
        """Delete packs until the first of these waves fits, which are left to be made. Return
        whether the next one fits beside it. Raises CannotFit, EnvironmentFault."""
        kept, free = self._look([medium for wave in waves for medium in wave])
        sizes = [sum(sum(self._needs(medium)) for medium in wave) for wave in waves[:2]]
        needed, both = sizes[0], kept.total() + sum(sizes) <= self.bytes
        most = self.bytes - (sum(sizes) if both else needed)
        total = kept.total() + sum(pack.stat.size for pack in free)
        for pack in free:
            if total <= most:
                break
            if pack.is_used_again(self._job.store):
                kept[pack.kind] += pack.stat.size
            else:
                self._job.store.delete(pack.name)
                total -= pack.stat.size
        self._ledger.refresh()
        if total + needed > self.bytes:
            raise self._too_small(kept, needed)
        return both and total <= most

    def _look(self, pending: Sequence[Medium]) -> tuple[Counter[str], list[Pack]]:
        """Return the bytes by kind that must stay in the store while these media are to be made,
        and the packs that need not, least recently used first."""
        store = self._job.store
        stored = dict(store.stats())
        self._ledger.refresh()  # afterwards, so that it has all of these packs
        others = self._lease.others() if self._lease is not None else running_jobs(store)
        elsewhere = frozenset[str]().union(*(job.namespaces for job in others))
        own = {n for variant in self._ledger.variants for n in variant.of.values()}
        kept = self._own_packs(pending, elsewhere)
        large = (pack for pack in packs(stored) if pack.kind in LARGE and pack.name not in kept)
        free = [pack for pack in large if pack.namespace not in elsewhere - own]
        kept_bytes, goes = Counter[str](), {pack.name for pack in free}
        for name, size_of in sizes_in(store, stored).items():
            kind, inside, _ = name.partition("/")
            kept_bytes[kind if inside else OTHERS] += 0 if name in goes else size_of
        free.sort(key=lambda pack: (pack.stat.modified, pack.name))
        return kept_bytes, free

    def _own_packs(self, pending: Sequence[Medium], elsewhere: Set[str]) -> set[str]:
        """Return the packs of this job's namespaces that hold a record which this job or, in the
        namespaces of jobs `elsewhere`, another one has yet to read."""
        media, kept = self._job.media, set[str]()
        left = {(medium.digest, medium.prompt) for medium in pending}
        tasks, of = self._ledger.tasks(media), {medium.digest for medium in media}
        to_make = [task for task in tasks if (task.medium.digest, task.medium.prompt) in left]
        for kind in self._kinds:
            needed = {task[kind] for task in to_make if kind in self._read(task)}
            needed |= keys_of(tasks, kind) if kind in self._stays else set()
            if kind == self._first.writes:
                needed.update(*map(self._unindexed, pending))
            for records in self._ledger[kind].record_sets:
                if (namespace := records.folder.rpartition("/")[2]) in elsewhere:
                    named = self._lease.needed_elsewhere(namespace, of) if self._lease else of
                    done = keys_of((t for t in tasks if t.medium.digest not in named), kind)
                    done -= needed
                    kept |= records.packs_of(records.keys() - done)
                kept |= records.packs_of(needed)
        return kept

    def _read(self, task: Task) -> Set[str]:
        """Return the kinds of a chunk's records that are yet to be read to make its last one."""
        if self._ledger.has_failed(task):
            return frozenset()
        left = [s for s in self._ledger.stages_of(task) if not self._ledger.has(task, s)]
        return {kind for stage in left for kind in stage.reads if kind in task.keys}

    def _unindexed(self, medium: Medium) -> Iterator[str]:
        """Yield the keys of the frames of a medium that is still cut, from the first on."""
        kind, ledger = self._first.writes, self._ledger
        keys = (item_key(ledger.variant[kind], medium.digest, at) for at in count())
        is_cut = ledger.media_index(medium) is not None
        return takewhile(lambda key: not is_cut and key in ledger[kind], keys)

    def _needs(self, medium: Medium) -> tuple[int, int]:
        """Return the bytes that a medium has yet to add until its last record is made, and those
        that it adds for good."""
        tasks = self._ledger.tasks([medium])
        expected = self._expected[medium.digest, medium.prompt]
        most = dict.fromkeys(self._kinds, expected.feature_bytes)
        most |= {self._first.writes: expected.frame_bytes}
        most |= {sound.STAGE.writes: expected.sound_bytes, hear.STAGE.writes: expected.heard_bytes}
        is_done = bool(tasks) and not any(map(self._read, tasks))
        left = {
            kind: max(0, size - sum(self._length(t, kind) for t in tasks))
            for kind, size in most.items()
            if kind in self._kinds and not self._is_made(tasks, kind)
        }
        small = 0 if is_done else SMALL_BYTES * expected.chunks
        stays = sum(left.pop(kind, 0) for kind in self._stays)
        return sum(left.values()), small + stays

    def _is_made(self, tasks: Sequence[Task], kind: str) -> bool:
        """Return whether no more records of a kind are added for these chunks."""
        stage, ledger = next(s for s in self._job.pipeline if s.writes == kind), self._ledger
        return bool(tasks) and all(ledger.has(t, stage) or ledger.has_failed(t) for t in tasks)

    def _length(self, task: Task, kind: str) -> int:
        records, key = self._ledger[kind], task.keys.get(kind, "")
        return records.place(key).length if key in records else 0

    def _stored(self, medium: Medium, seen: set[str]) -> Counter[str]:
        """Return the stored bytes that go when a medium is done, by kind, and add their keys to
        `seen`."""
        found = Counter[str]()
        for task in self._ledger.tasks([medium]):
            for kind in self._read(task) - self._stays:
                found[kind] += 0 if task[kind] in seen else self._length(task, kind)
                seen.add(task[kind])
        return found

    def _too_small(self, kept: Counter[str], wave: int) -> CannotFit:
        kinds = ", ".join(f"{size(of)} {kind}" for kind, of in kept.most_common() if of)
        return CannotFit(
            f"--max-store {size(self.bytes)} is too small: {size(kept.total())} must stay in "
            f"{self._job.store.url} ({kinds}), and the next files need {size(wave)} beside it",
            hint=f"Give --max-store {written(rounded_up(kept.total() + wave))} or more",
        )


def store_limit(
    job: Job, expected: Sequence[Estimate], lease: Lease | None = None
) -> StoreLimit | None:
    """Return what `--max-store` leaves for a job; None without the option."""
    limit = StoreSizeOptions.of(job.config).max_store
    return None if limit is None else StoreLimit(job, limit, expected, lease)


def wave_bytes(job: Job, limit: StoreLimit | None) -> int:
    """Return the maximum bytes of a wave of several media."""
    return wave_limit(job) if limit is None else min(wave_limit(job), limit.wave_bytes)


def planned_waves(
    job: Job, expected: Sequence[Estimate], limit: StoreLimit | None, *, records: bool = False
) -> tuple[list[list[Medium]], str]:
    """Return the waves of a run, and a line that says why there are several; empty if there is one,
    or if they are not due to a lack of room. `expected`: an estimate of each medium. A run
    `records` the waves."""
    ledger, media = job.ledger, job.media
    pairs = zip(media, expected, strict=True)
    tasks = ledger.tasks(media)
    done = {t.medium for t in tasks} - {t.medium for t in tasks if not ledger.is_done(t)}
    lengths = cut_waves([0 if m in done else e.bytes for m, e in pairs], wave_bytes(job, limit))
    as_recorded = not has_own_bytes(ledger, job.model, media)
    waves = waves_of(ledger, media, lengths, as_recorded=as_recorded, records=records)
    waves, room = waves if limit is None else limit.cut(waves), wave_limit(job)
    if limit is not None and limit.wave_bytes <= room:
        why = f"--max-store {size(limit.bytes)}"
    elif len(waves) > MOST_RATIO * len(lengths):
        why = "an earlier run began so, and captions of this engine depend on their batch"
    else:
        free = f"{size(job.store.free_bytes())} are free in {job.store.machine_folder}"
        why = free if room < MAX_WAVE_BYTES else ""
    if len(waves) < 2 or not why:
        return waves, ""
    files = counted(math.ceil(len(media) / len(waves)), "file")
    return waves, f"in about {counted(len(waves), 'wave')} of {files}: {why}"
