"""Keeps a run within `--max-store`: what fits into a wave, and which records go before it.

How it works:

1. A medium needs room for its frames and features until its captions are made, and for small
   records that stay. Vectors stay, too, because a run writes them all in the end.
2. What a run must leave in the store is the rest: small records, and what it or another job has yet
   to read. What the limit leaves beside it is the room of one wave.
3. Before a wave, packs of frames, features, vectors and thumbnails go until it fits, the least
   recently used first. A pack stays if it holds a record that is still to be read.
4. If the room is too small for one medium, the run is refused, with a limit that is enough.
"""

from collections.abc import Iterator, Sequence, Set
from itertools import count, islice, takewhile

from artifacts.errors import CannotFit
from artifacts.keys import item_key
from artifacts.stored_packs import Pack, packs, sizes_in
from flows.console.units import rounded_up, size, written
from flows.job.prepare import Job
from flows.ledger.tasks import Medium, Task
from flows.ledger.waves import cut_waves
from flows.machine.leases import Lease, running_jobs
from flows.options.model import StoreSizeOptions
from flows.pipelines import LARGE
from flows.planning.sizes import Estimate

WAVES_AT_ONCE = 2
"""Waves that are in the store together: the frames of the next one are cut beside a wave."""
SMALL_BYTES = 4096
"""Bytes in the store for one chunk besides frames and features: its caption, and its parts of
indexes and of the headers of packs."""


class StoreLimit:
    """What a limit leaves of the store for one job."""

    def __init__(
        self, job: Job, limit: int, expected: Sequence[Estimate], lease: Lease | None = None
    ) -> None:
        """Take the job, its limit in bytes, an estimate of each of its media, and the lease of its
        run; without one, nothing is deleted."""
        self._job, self._lease = job, lease
        self.bytes = limit
        self._expected = {
            (medium.digest, medium.prompt): each
            for medium, each in zip(job.media, expected, strict=True)
        }
        first, second = job.pipeline[:2]
        self._kinds = (first.writes, second.writes)
        self._stays = {job.pipeline[-1].writes} & LARGE
        """Kinds that this run reads in the end."""
        media, seen = job.media, set[str]()
        kept = self._look(media)[0] + sum(self._staying(medium) for medium in media)
        self._largest = later = 0
        for medium in reversed(media):
            later += self._stored(medium, seen)
            self._largest = max(self._largest, later + self._passing(medium))
        self._base = kept - later
        """Bytes that stay until the run ends."""
        self._room = max(1, limit - kept)
        """Bytes of a wave beside all that is stored now and still to be read."""

    @property
    def wave_bytes(self) -> int:
        """Return the maximum bytes of a wave of several media."""
        return max(1, self._room // WAVES_AT_ONCE)

    def refusal(self) -> CannotFit | None:
        """Return why the limit is too small; None if it is not."""
        if self._base + self._largest <= self.bytes:
            return None
        return self._too_small(self._base, self._largest)

    def notes(self) -> list[str]:
        """Return a note on what the limit costs, if it costs anything."""
        passing = sum(self._passing(medium) for medium in self._job.media)
        if self._stays or self._base + passing <= self.bytes:
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
            lengths = cut_waves([self._passing(medium) for medium in wave], self._room)
            found += [list(islice(left, length)) for length in lengths]
        return found

    def make_room(self, waves: Sequence[list[Medium]]) -> bool:
        """Delete packs until the first of these waves fits, which are left to be made. Return
        whether the frames of the next one fit beside it. Raises CannotFit, EnvironmentFault."""
        kept, free = self._look([medium for wave in waves for medium in wave])
        needed = sum(self._passing(medium) + self._staying(medium) for medium in waves[0])
        ahead = sum(self._left(medium)[0] for wave in waves[1:2] for medium in wave)
        total = kept + sum(pack.stat.size for pack in free)
        for pack in free:
            if total + needed + ahead <= self.bytes:
                break
            total -= self._delete(pack)
        self._job.ledger.refresh()
        if total + needed > self.bytes:
            raise self._too_small(total, needed)
        return total + needed + ahead <= self.bytes

    def _delete(self, pack: Pack) -> int:
        """Delete a pack unless it was used since it was listed. Return its size if it is gone."""
        found = self._job.store.stat(pack.name)
        if found is not None and found.modified > pack.stat.modified:
            return 0
        self._job.store.delete(pack.name)
        return pack.stat.size

    def _look(self, pending: Sequence[Medium]) -> tuple[int, list[Pack]]:
        """Return the bytes that must stay in the store while these media are to be made, and the
        packs that need not, least recently used first."""
        store = self._job.store
        stored = dict(store.stats())
        self._job.ledger.refresh()  # afterwards, so that it has all of these packs
        others = self._lease.others() if self._lease is not None else running_jobs(store)
        elsewhere = frozenset[str]().union(*(job.namespaces for job in others))
        kept = self._own_packs(pending, elsewhere)
        own = {n for variant in self._job.ledger.variants for n in variant.of.values()}
        free = [
            pack
            for pack in packs(stored)
            if pack.kind in LARGE
            and pack.name not in kept
            and (pack.namespace in own or pack.namespace not in elsewhere)
        ]
        total = sum(sizes_in(store, stored).values())
        free.sort(key=lambda pack: (pack.stat.modified, pack.name))
        return total - sum(pack.stat.size for pack in free), free

    def _own_packs(self, pending: Sequence[Medium], elsewhere: frozenset[str]) -> set[str]:
        """Return the packs of this job's namespaces that hold a record which this job or, in the
        namespaces of jobs `elsewhere`, another one has yet to read."""
        ledger, media = self._job.ledger, self._job.media
        left = {(medium.digest, medium.prompt) for medium in pending}
        needed: dict[str, set[str]] = {kind: set() for kind in (*self._kinds, *self._stays)}
        for task in ledger.tasks(media):
            is_pending = (task.medium.digest, task.medium.prompt) in left
            for kind in self._read(task, is_pending=is_pending):
                needed[kind].add(task[kind])
        for medium in pending:
            needed[self._kinds[0]].update(self._unindexed(medium))
        kept: set[str] = set()
        for kind, keys in needed.items():
            for records in ledger[kind].record_sets:
                namespace = records.folder.rpartition("/")[2]
                if namespace in elsewhere:
                    done = {t[kind] for t in self._unneeded(namespace)} - keys
                    kept |= records.packs_of(records.keys() - done)
                kept |= records.packs_of(keys)
        return kept

    def _read(self, task: Task, *, is_pending: bool) -> Set[str]:
        """Return the kinds of a chunk's records that this job has yet to read."""
        ledger, (first, second, *_) = self._job.ledger, self._job.pipeline
        if not is_pending or ledger.has(task, self._job.pipeline[-1]) or ledger.has_failed(task):
            return self._stays
        is_encoded = ledger.has(task, second)
        return {second.writes if is_encoded else first.writes, second.writes} | self._stays

    def _unneeded(self, namespace: str) -> list[Task]:
        """Return the chunks of this job in media whose records no other job needs."""
        if self._lease is None:
            return []
        media = self._job.media
        needed = self._lease.needed_elsewhere(namespace, {medium.digest for medium in media})
        return self._job.ledger.tasks(medium for medium in media if medium.digest not in needed)

    def _unindexed(self, medium: Medium) -> Iterator[str]:
        """Return the keys of the frames of a medium that is still cut, from the first on."""
        kind, ledger = self._kinds[0], self._job.ledger
        keys = (item_key(ledger.namespaces[kind], medium.digest, at) for at in count())
        is_cut = ledger.media_index(medium) is not None
        return iter(()) if is_cut else takewhile(lambda key: key in ledger[kind], keys)

    def _left(self, medium: Medium) -> tuple[int, int]:
        """Return the bytes of frames and of features, or vectors, that a medium has yet to add."""
        ledger, tasks = self._job.ledger, self._job.ledger.tasks([medium])
        second = self._job.pipeline[1]
        if tasks and all(ledger.has(task, second) or ledger.has_failed(task) for task in tasks):
            return 0, 0
        each = self._expected[medium.digest, medium.prompt]
        first, made = (
            sum(ledger[kind].place(t[kind]).length for t in tasks if t[kind] in ledger[kind])
            for kind in self._kinds
        )
        return max(0, each.frame_bytes - first), max(0, each.feature_bytes - made)

    def _stored(self, medium: Medium, seen: set[str]) -> int:
        """Return the stored bytes that go when a medium is done, and add their keys to `seen`."""
        total, ledger = 0, self._job.ledger
        for task in ledger.tasks([medium]):
            for kind in self._read(task, is_pending=True) - self._stays:
                if (key := task[kind]) in ledger[kind] and key not in seen:
                    seen.add(key)
                    total += ledger[kind].place(key).length
        return total

    def _passing(self, medium: Medium) -> int:
        """Return the bytes that a medium adds until its last record is made."""
        frames, made = self._left(medium)
        return frames + (0 if self._stays else made)

    def _staying(self, medium: Medium) -> int:
        """Return the bytes that a medium adds for good."""
        ledger, tasks = self._job.ledger, self._job.ledger.tasks([medium])
        last = self._job.pipeline[-1]
        if tasks and all(ledger.has(task, last) or ledger.has_failed(task) for task in tasks):
            return 0
        chunks = self._expected[medium.digest, medium.prompt].chunks
        return SMALL_BYTES * chunks + (self._left(medium)[1] if self._stays else 0)

    def _too_small(self, kept: int, wave: int) -> CannotFit:
        return CannotFit(
            f"--max-store {size(self.bytes)} is too small: {size(kept)} must stay in "
            f"{self._job.store.url}, and the next files need {size(wave)} beside it",
            hint=f"Give --max-store {written(rounded_up(kept + wave))} or more",
        )


def store_limit(
    job: Job, expected: Sequence[Estimate], lease: Lease | None = None
) -> StoreLimit | None:
    """Return what `--max-store` leaves for a job; None without the option."""
    limit = StoreSizeOptions.of(job.config).max_store
    return None if limit is None else StoreLimit(job, limit, expected, lease)
