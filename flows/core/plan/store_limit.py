"""Divides a run into waves, and keeps it within `--max-store`: what fits into a wave, and which
packs go before it.

A medium needs room for its frames and features until its captions are made, and for small records
that stay; vectors stay, because a run writes them all in the end. What the limit leaves beside what
must stay is the room of one wave: of what the wave has stored, and of what it has yet to make.

Before a wave, files go until it fits: indexes of words, which the next search makes again; then
packs that nobody has yet to read, the least recently used first; then those that later waves of
this run have yet to read, the last wave's first. These waves make them again, so a run that was
killed needs no more room than before, and neither does another prompt.

A medium that needs more than there is room fails by name, and the others are made. A limit that has
room for none of them is refused.
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence, Set
from itertools import chain, islice
from typing import Any

from artifacts.errors import CannotFit
from artifacts.index.words import is_word_index
from artifacts.records.packs import Pack, packs, sizes_in
from artifacts.wording import counted, first_of
from flows.core.console.lines import rounded_up, size, written
from flows.core.job.prepare import Job
from flows.core.ledger.tasks import Medium, Task, keys_of
from flows.core.ledger.waves import MOST_RATIO, cut_waves, has_own_bytes, waves_of
from flows.core.machine.leases import Lease, RunningJob, running_jobs
from flows.core.pipelines import LARGE
from flows.core.plan.sizes import Estimate
from stages import hear, sound

SHARE_OF_FREE = 4
"""Divisor of the store's free space: a wave may take this fraction of it."""
MAX_WAVE_BYTES = 64 << 30
"""Maximum bytes of a wave, regardless of the disk."""
SMALL_BYTES = 4096
"""Bytes in the store for one chunk besides frames and features: its caption, and its parts of
indexes and of the headers of packs. The demo's take 1,300."""
BEGUN = 2
"""Divisor of it for a chunk that is cut: it has its parts of indexes and of some headers."""

TOO_LARGE = "max-store"
"""Kind of the failure of a medium that `--max-store` has no room for."""
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
        self._expected = {(medium.digest, medium.prompt): estimate for medium, estimate in pairs}
        self._first = job.pipeline[0]
        self._kinds = [stage.writes for stage in job.pipeline if stage.writes in LARGE]
        """Kinds of its large records."""
        read = {kind for stage in job.pipeline for kind in stage.reads}
        self._stays = {*self._kinds} - read
        """Kinds that this run reads in the end."""
        bytes_by_kind, free, indexes = self._look(())
        packed = sum(pack.stat.size for pack in free)
        self._now = bytes_by_kind.total() + packed + sum(indexes.values())
        """Bytes of the store now."""
        needs = {medium: self._needs(medium) for medium in job.media}
        needed = {m: self._stored(m) + going for m, (going, _) in needs.items()}
        now = bytes_by_kind.total()
        # What does not fit alone is not made, so that its small records take no room of the others.
        alone = {m.digest for m, of in needed.items() if of and now + needs[m][1] + of > limit}
        self._staying = now + sum(n for m, (_, n) in needs.items() if m.digest not in alone)
        """Bytes that stay until the run ends."""
        bytes_by_kind[TO_BE_MADE] += sum(stays for _, stays in needs.values())
        self._base = bytes_by_kind
        """The same by kind, if all media are made."""
        self.room = max(1, limit - self._staying)
        """Bytes of a wave beside them."""
        self.wave_bytes = max(1, self.room // 2)
        """Maximum bytes of a wave of several media: the next one is cut beside it."""
        self._too_large = {
            m.digest: of
            for m, of in needed.items()
            if of and (m.digest in alone or self._staying + of > limit)
        }
        """Content digest of what needs more than there is room → its bytes until it is done."""
        fitting = [medium for medium in job.media if not self._is_too_large(medium)]
        self._fits_any = any(needed[medium] for medium in fitting)
        stored: dict[tuple[str, str], int] = {}
        for medium in fitting:
            stored |= self._keys_to_read(medium)
        missing = [needs[medium][0] for medium in fitting]
        self.is_short = sum(stored.values()) + sum(missing) > self.room
        """Whether frames and features of all media do not fit at once: some that are stored may be
        deleted before they are read."""

    def refusal(self) -> CannotFit | None:
        """Return why the limit has room for none of the media that are left to be made; None if it
        has room for some, or none is left."""
        if not self._too_large or self._fits_any:
            return None
        return self._too_small(self._base, max(self._too_large.values()))

    def failures(self) -> dict[tuple[str, int, str], dict[str, Any]]:
        """Return the reasons why media that are too large fail in this run, as the ledger keeps
        them."""
        reasons = {}
        for digest, needed in self._too_large.items():
            error = self._too_small(self._base, needed, "this file needs")
            why = {"kind": TOO_LARGE, "message": error.message, "hint": error.hint}
            reasons[digest, -1, ""] = {"stage": self._first.name, **why}
        return reasons

    def line(self, waves: Sequence[Sequence[Medium]]) -> str:
        """Return what the limit does in a run of these waves."""
        text = f"at most {size(self.bytes)}, {size(self._now)} stored now"
        if not (largest := max((sum(map(self._whole, wave)) for wave in waves), default=0)):
            return f"{text}; nothing is left to encode, and nothing is deleted"
        kept_bytes = size(self._staying)
        goes = "; what others no longer need goes first" if self.is_short else ""
        return f"{text}; {kept_bytes} stay, and a wave takes up to {size(largest)} beside it{goes}"

    def notes(self) -> list[str]:
        """Return notes on what the limit costs, if it costs anything."""
        option, lines = f"--max-store {size(self.bytes)}", list[str]()
        if not self._stays and self.is_short:
            lines.append(
                f"{option}: features are deleted when their captions are made and room is needed, "
                "so another prompt encodes again"
            )
        if self._too_large:
            names = {f.file.media_path: 0 for f in self._job.files if self._is_too_large(f.medium)}
            enough = rounded_up(self._base.total() + max(self._too_large.values()))
            lines.append(
                f"{option} has no room for {counted(len(names), 'file')}, which will fail "
                f"({first_of([*names])}); --max-store {written(enough)} is enough"
            )
        return lines

    def cut(self, waves: Sequence[list[Medium]]) -> list[list[Medium]]:
        """Divide the waves that an earlier run recorded with more room, and leave out what is too
        large. Return the waves with the most stored bytes first: a wave that runs before them may
        delete these bytes."""
        divided = []
        for recorded in waves:
            wave = [medium for medium in recorded if not self._is_too_large(medium)]
            left = iter(wave)
            lengths = cut_waves([self._whole(medium) for medium in wave], self.room)
            divided += [list(islice(left, length)) for length in lengths]
        return sorted(divided, key=lambda wave: -sum(map(self._stored, wave)))

    def make_room(self, waves: Sequence[list[Medium]]) -> bool:
        """Delete packs until the first of these waves fits, which are left to be made. Return
        whether the next one fits beside it. Raises CannotFit, EnvironmentFault."""
        bytes_by_kind, free, indexes = self._look(waves[0])
        following = [(at, wave) for at, wave in enumerate(waves)][::-1]
        later = {pack: at for at, wave in following for pack in self._packs_to_read(wave)}
        free.sort(key=lambda pack: later.get(pack.name, math.inf), reverse=True)
        sizes = [sum(sum(self._needs(medium)) for medium in wave) for wave in waves[:2]]
        read = sum(pack.stat.size for pack in free if pack.name in later)
        needed, both = sizes[0], bytes_by_kind.total() + read + sum(sizes) <= self.bytes
        most = self.bytes - (sum(sizes) if both else needed)
        total = bytes_by_kind.total() + sum(pack.stat.size for pack in free)
        for name in indexes if total + sum(indexes.values()) > most else ():
            (self._job.store.local / name).unlink(missing_ok=True)
        for pack in free:
            if total <= most:
                break
            if pack.is_used_again(self._job.store):
                bytes_by_kind[pack.kind] += pack.stat.size
            else:
                self._job.store.delete(pack.name)
                total -= pack.stat.size
        self._ledger.refresh()
        if total + needed > self.bytes:
            raise self._too_small(bytes_by_kind, needed)
        return both and total <= most

    def _is_too_large(self, medium: Medium) -> bool:
        return medium.digest in self._too_large

    def _look(self, wave: Sequence[Medium]) -> tuple[Counter[str], list[Pack], dict[str, int]]:
        """Return the bytes by kind that must stay in the store while these media are to be made,
        the packs that need not, least recently used first, and the bytes of indexes of words."""
        store = self._job.store
        stored = dict(store.stats())
        self._ledger.refresh()  # afterwards, so that it has all of these packs
        elsewhere = frozenset[str]().union(
            *(job.namespaces for job in others_of(self._job, self._lease))
        )
        own = namespaces_of(self._job)
        names = self._packs_to_read(wave) | self._packs_of_run(elsewhere)
        large = (pack for pack in packs(stored) if pack.kind in LARGE and pack.name not in names)
        free = [pack for pack in large if pack.namespace not in elsewhere - own]
        kept_bytes, goes = Counter[str](), {pack.name for pack in free}
        sizes = sizes_in(store, stored)
        indexes = {name: sizes.pop(name) for name in [*filter(is_word_index, sizes)]}
        for name, size_of in sizes.items():
            kind, inside, _ = name.partition("/")
            kept_bytes[kind if inside else OTHERS] += 0 if name in goes else size_of
        free.sort(key=lambda pack: (pack.stat.modified, pack.name))
        return kept_bytes, free, indexes

    def _packs_to_read(self, media: Iterable[Medium]) -> set[str]:
        """Return the packs with a record that these media have yet to read."""
        read = [kind_and_key for medium in media for kind_and_key in self._keys_to_read(medium)]
        return {self._ledger[kind].place(key).pack for kind, key in read}

    def _packs_of_run(self, elsewhere: Set[str]) -> set[str]:
        """Return the packs of this job's namespaces that hold a record which it reads in the end
        or, in the namespaces of jobs `elsewhere`, another one has yet to read."""
        media, kept = self._job.media, set[str]()
        tasks, of = [*map(self._ledger.begun_tasks, media)], {medium.digest for medium in media}
        for kind in self._kinds:
            stay = keys_of(chain(*tasks), kind) if kind in self._stays else ()
            for records in self._ledger[kind].record_sets:
                kept |= records.packs_of(stay)
                if (namespace := records.folder.rpartition("/")[2]) in elsewhere:
                    named = self._lease.needed_elsewhere(namespace, of) if self._lease else of
                    unnamed = (t for t in chain(*tasks) if t.medium.digest not in named)
                    kept |= records.packs_of(records.keys() - keys_of(unnamed, kind))
        return kept

    def _read(self, task: Task) -> Set[str]:
        """Return the kinds of a chunk's records that are yet to be read to make its last one."""
        if self._ledger.has_failed(task):
            return frozenset()
        stages = [s for s in self._ledger.stages_of(task) if not self._ledger.has(task, s)]
        return {kind for stage in stages for kind in stage.reads if kind in task.keys}

    def _keys_to_read(self, medium: Medium) -> dict[tuple[str, str], int]:
        """Return the bytes of the stored records that a medium has yet to read, by kind and key:
        of a video that is still cut, all frames."""
        ledger, lengths = self._ledger, dict[tuple[str, str], int]()
        cut = set[str]() if ledger.media_index(medium) is not None else {self._first.writes}
        for task in ledger.begun_tasks(medium):
            for kind in (self._read(task) | cut) & {*self._kinds}:
                if (key := task[kind]) in ledger[kind]:
                    lengths[kind, key] = ledger[kind].place(key).length
        return lengths

    def _stored(self, medium: Medium) -> int:
        """Return the stored bytes that go when a medium is done."""
        read = self._keys_to_read(medium).items()
        return sum(length for (kind, _), length in read if kind not in self._stays)

    def _whole(self, medium: Medium) -> int:
        """Return the bytes of a medium that go when it is done: stored, or yet to be made."""
        return self._stored(medium) + self._needs(medium)[0]

    def _needs(self, medium: Medium) -> tuple[int, int]:
        """Return the bytes that a medium has yet to add until its last record is made, and those
        that it adds for good."""
        tasks = self._ledger.begun_tasks(medium)
        expected = self._expected[medium.digest, medium.prompt]
        most = dict.fromkeys(self._kinds, expected.feature_bytes)
        most |= {self._first.writes: self._frame_bytes(medium, expected)}
        most |= {sound.STAGE.writes: expected.sound_bytes, hear.STAGE.writes: expected.heard_bytes}
        left = {kind: self._left(medium, tasks, kind, most[kind]) for kind in self._kinds}
        stays = sum(left.pop(kind, 0) for kind in self._stays)
        has_index = self._ledger.media_index(medium) is not None
        unread = 0 if has_index else max(0, expected.chunks - len(tasks))
        small = SMALL_BYTES * unread + SMALL_BYTES // BEGUN * sum(map(self._is_left, tasks))
        return sum(left.values()), small + stays

    def _frame_bytes(self, medium: Medium, expected: Estimate) -> int:
        """Return the bytes of all frames of a medium. An image whose features are stored is
        expected to need none, but these features may go before they are read."""
        if expected.frame_bytes or expected.reuses_features:
            return expected.frame_bytes
        chunks = [task.whole for task in self._ledger.tasks([medium])]
        return sum(3 * len(chunk.times) * chunk.height * chunk.width for chunk in chunks)

    def _left(self, medium: Medium, tasks: Sequence[Task], kind: str, most: int) -> int:
        """Return the bytes of a kind that a medium has yet to add, of `most` with all chunks;
        `tasks` are those that are known."""
        ledger = self._ledger
        stage = next(stage for stage in self._job.pipeline if stage.writes == kind)
        if ledger.media_index(medium) is None:
            return max(0, most - sum(self._length(task, kind) for task in tasks))
        left = [t for t in tasks if not ledger.has(t, stage) and not ledger.has_failed(t)]
        images = sum(len(task.whole.times) for task in tasks)
        return math.ceil(most * sum(len(task.whole.times) for task in left) / max(1, images))

    def _is_left(self, task: Task) -> bool:
        return not self._ledger.is_done(task) and not self._ledger.has_failed(task)

    def _length(self, task: Task, kind: str) -> int:
        records, key = self._ledger[kind], task.keys.get(kind, "")
        return records.place(key).length if key in records else 0

    def _too_small(
        self, kept: Counter[str], wave: int, what: str = "the next files need"
    ) -> CannotFit:
        return _too_small(self._job, self._lease, self.bytes, kept, wave, what)


def _too_small(
    job: Job, lease: Lease | None, limit: int, kept: Counter[str], wave: int, what: str
) -> CannotFit:
    """Return the error for bytes of the store that must stay, by kind, and those of a wave."""
    kinds = ", ".join(f"{size(of)} {kind}" for kind, of in kept.most_common() if of)
    enough = f"--max-store {written(rounded_up(kept.total() + wave))} or more"
    advice, own = f"Give {enough}", namespaces_of(job)
    sharing = [other.description for other in others_of(job, lease) if other.namespaces & own]
    if sharing:  # it keeps the frames of files that both need
        advice = f"Wait until the other run has ended ({sharing[0]}), or give {enough}"
    return CannotFit(
        f"--max-store {size(limit)} is too small: {size(kept.total())} must stay in "
        f"{job.store.url} ({kinds}), and {what} {size(wave)} beside it",
        hint=advice,
    )


def namespaces_of(job: Job) -> set[str]:
    """Return the cache namespaces of a job, in all its variants."""
    return {n for variant in job.ledger.variants for n in variant.of.values()}


def others_of(job: Job, lease: Lease | None) -> list[RunningJob]:
    """Return the other jobs that run on the store of a job with this lease."""
    return running_jobs(job.store) if lease is None else lease.others()


def store_limit(
    job: Job, expected: Sequence[Estimate], lease: Lease | None = None
) -> StoreLimit | None:
    """Return what `--max-store` leaves for a job; None without the option."""
    limit = job.config.groups.store_size.max_store
    return None if limit is None else StoreLimit(job, limit, expected, lease)


def wave_limit(job: Job) -> int:
    """Return the maximum bytes of a wave on the store's disk."""
    return max(1, min(MAX_WAVE_BYTES, job.store.free_bytes() // SHARE_OF_FREE))


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
    if done.issuperset(media):
        return [[*media]], ""
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
