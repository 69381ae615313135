"""Keeps the rows of media that an earlier run into the folder read, and that are away now.

1. Each run notes the mount points of its media in `run.json`.
2. A medium of `media.jsonl` is away if the sources lack it and it was not deleted
   (`artifacts.disk.mounts`), if it cannot be read, or if its server does not answer. If a file that
   is new in the folder has its content, it was moved.
3. The job gets these media with the content and the prompts that they had, so that all outputs have
   what the store has of them. Nothing more is made of them.
"""

import os
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, NoReturn, TypeVar

from artifacts.disk.json_records import read_json_file, read_jsonl_file
from artifacts.disk.json_types import Text
from artifacts.disk.mounts import DELETED, Absence, MissingFiles, noted_mounts
from artifacts.disk.paths import folder_named
from artifacts.disk.stamps import Stamp
from artifacts.errors import EnvironmentFault, PenstockError, UsageError
from artifacts.remote.addresses import RemoteFile
from artifacts.remote.media_cache import UNREACHABLE
from artifacts.texts.captions import Failure
from artifacts.wording import counted, first_of
from flows.core.job.job_file import JobFile
from flows.core.ledger.ledger import Ledger
from flows.core.ledger.tasks import Medium
from flows.core.media.media_file import MediaFile, kind_of, source_failure
from flows.core.media.output_rows import CaptionRow, MediaRow
from flows.core.options.commands import RunOptions
from flows.core.options.text import OwnerOptions

AWAY = "away"
"""Kind of the failure of a folder whose media are away."""
HINT = "Mount or restore it and run the same command again; --replace drops these rows"
Name = tuple[str, str]
"""`media_path` and `source` of a medium."""
Key = TypeVar("Key")
R = TypeVar("R")


@dataclass(kw_only=True, slots=True)
class NotedMounts:
    """The mount points that a run noted → their file systems."""

    mounts: dict[Text, Text]


def mounts_in(out: Path) -> dict[str, str]:
    """Return the mount points that the last run into a folder noted → their file systems."""
    noted = recorded_in(out, NotedMounts)
    return noted.mounts if noted else {}


def mounts_now(out: Path, files: Iterable[JobFile]) -> dict[str, str]:
    """Return what a run into a folder notes: the mount points of its media, and earlier ones."""
    folders = {str(job_file.file.path.parent) for job_file in files if not job_file.away}
    return noted_mounts(mounts_in(out), folders)


def recorded_in(out: Path, kind: type[R]) -> R | None:
    """Return fields of the record of the last run into a folder; None without such ones."""
    with suppress(PenstockError):
        return read_json_file(kind, out / "run.json", "")
    return None


def unread_sources(failures: Iterable[Failure], files: Iterable[JobFile]) -> int:
    """Return how many of these failures are of sources that are neither away nor among the files of
    the job."""
    names = {job_file.file.media_path for job_file in files}
    return sum(f.error != AWAY and f.media_path not in names for f in failures)


class EarlierMedium(NamedTuple):
    """A medium that an earlier run into the folder read, without a prompt."""

    job_file: JobFile
    rows: int
    """Number of its rows in the outputs."""
    folders: list[str]
    """The folder of its source, and the first one below it that holds the file."""

    @property
    def place(self) -> str:
        return self.job_file.file.place

    @property
    def name(self) -> Name:
        return self.job_file.file.media_path, self.job_file.file.source

    @property
    def digest(self) -> str:
        return self.job_file.medium.digest


def _earlier_medium(row: MediaRow) -> EarlierMedium:
    """Return the medium of a line of `media.jsonl`."""
    path, kind = row.path, kind_of(row.media_path)
    remote = None
    if row.address:
        remote = RemoteFile(address=row.address, size=row.bytes or 0, version="")
    file = MediaFile(
        path=Path(path), media_path=row.media_path, source=row.source, kind=kind, remote=remote
    )
    stamp = None
    if row.bytes is not None:
        stamp = Stamp(size=row.bytes, modified=row.modified or 0, inode=0)
    medium = Medium(digest=row.content, path=path, kind=kind, prompt="", stamp=stamp)
    folders = [os.path.dirname(path)]  # also for a name that UTF-8 does not hold
    if path.endswith(inside := f"/{file.media_path}"):
        folders = [path.removesuffix(inside) or "/"]
        first, below, _ = file.media_path.partition("/")
        folders += [os.path.join(folders[0], first)] * bool(below)
    job_file = JobFile(file=file, medium=medium, away=True)
    return EarlierMedium(job_file, row.captions, folders)


class AwayMedia:
    """The media of an output folder that are away."""

    def __init__(
        self,
        config: RunOptions,
        files: Iterable[MediaFile],
        failures: Iterable[Failure],
        left_out: Set[str] = frozenset(),
    ) -> None:
        """`files` and `failures` are those that the sources name now, without those `left_out`."""
        self._out = folder_named(config.out, "out")
        self._replaces = config.groups.owner.replace
        self._earlier: list[EarlierMedium] = []
        self._absences: dict[str, Absence] = {}
        """Path or address of a medium → why it is away."""
        if not isinstance(config, OwnerOptions):
            return
        with suppress(PenstockError):
            rows = read_jsonl_file(MediaRow, self._out / "media.jsonl", "")
            self._earlier = [_earlier_medium(row) for row in rows if row.content]
        places = {file.place for file in files}
        # A source that was moved has the same names below another path.
        new_names = self._new((file.place, (file.media_path, file.source)) for file in files)
        unreachable = {f.media_path for f in failures if f.error == UNREACHABLE}
        missing = MissingFiles(mounts_in(self._out))
        for medium in self._earlier if not self._replaces else ():
            place = medium.place
            if not medium.rows or place in left_out or place in places:
                continue
            if _take(new_names, medium.name):
                continue
            absence = Absence(place, "no answer") if place in unreachable else None
            if medium.job_file.file.remote is None:
                absence = missing.absence_of(place, medium.folders)
            if absence is not None and absence != DELETED:
                self._absences[place] = absence

    @property
    def contents(self) -> frozenset[str]:
        """Return the digests of the media that have rows in the folder."""
        return frozenset(medium.digest for medium in self._earlier if medium.rows)

    def fault(self) -> EnvironmentFault:
        """Return the error of a run that would need what is away."""
        absence = next(iter(self._absences.values()))
        media = counted(len(self._absences), "file")
        return EnvironmentFault(
            f"{absence.folder} is away ({absence.reason}): {media} of {self._out} cannot be "
            "captioned again",
            hint="Mount or restore it, or run the same `penstock caption` with --replace first, "
            "which drops their rows",
        )

    def refuse(self, file: MediaFile) -> NoReturn:
        """Raise UsageError for a medium that has rows in the folder and no records in the store."""
        absence = self._absences[file.place]
        raise UsageError(
            f"{absence.folder} is away ({absence.reason}), and the store has no records of "
            f"{file.media_path} in these settings: this run would drop its rows from {self._out}",
            hint="Mount or restore it, run as before, give another --out, or --replace drops them",
        )

    def __bool__(self) -> bool:
        return bool(self._absences)

    def media(self, files: Iterable[MediaFile], readable: Sequence[JobFile]) -> list[EarlierMedium]:
        """Return the media that are away, in their order, once it is known which `files` of the
        sources can be read."""
        readable_places = {job_file.file.place for job_file in readable}
        for file in files if not self._replaces else ():
            if file.place not in readable_places:
                folder = file.place if file.remote else os.path.dirname(file.place)
                self._absences[file.place] = Absence(folder, "not all of it can be read")
        new_contents = self._new_contents(readable)
        return [
            medium
            for medium in self._earlier
            if medium.rows
            and medium.place in self._absences
            and not self._has_moved(medium, new_contents)
        ]

    def failures(self, away: Iterable[EarlierMedium], failures: Sequence[Failure]) -> list[Failure]:
        """Return a failure for each folder that is away, then those of other sources."""
        by_absence: defaultdict[Absence, list[EarlierMedium]] = defaultdict(list)
        for medium in away:
            by_absence[self._absences[medium.place]].append(medium)
        of_folders = []
        for absence, media in by_absence.items():
            rows = counted(sum(medium.rows for medium in media), "row")
            message = f"{absence.reason}: {rows} of {counted(len(media), 'file')} kept"
            source = media[0].job_file.file.source
            of_folders.append(source_failure(source, absence.folder, AWAY, message, HINT))
        folders = {absence.folder for absence in by_absence}
        return of_folders + [
            failure
            for failure in failures
            if folders.isdisjoint((failure.media_path, os.path.abspath(failure.media_path)))
        ]

    def job_files(
        self, away: Sequence[EarlierMedium], present: Sequence[JobFile], ledger: Ledger
    ) -> tuple[JobFile, ...]:
        """Return the files of the job, those that are away before what followed them. Raises
        UsageError if the store lacks records of their rows."""
        last, by_place = ledger.pipeline[-1].writes, dict[str, list[JobFile]]()
        prompts = self._prompts(away) if last == "captions" else {}
        others = {(job_file.medium.digest, job_file.medium.prompt) for job_file in present}
        for medium in away:
            file = medium.job_file.file
            job_files = [
                replace(
                    medium.job_file,
                    file=replace(file, name=name),
                    medium=replace(medium.job_file.medium, prompt=prompt),
                )
                for name, prompt in prompts.get(medium.name, [("", "")])
            ]
            if len(job_files) > 1:  # some may be of another file with this name in another folder
                job_files = [
                    job_file for job_file in job_files if _rows(ledger, job_file)
                ] or job_files
            by_place[file.place] = job_files
            if sum(_rows(ledger, job_file) for job_file in job_files) < (
                medium.rows if prompts else 1
            ):
                self.refuse(file)
            for job_file in job_files:
                if (job_file.medium.digest, job_file.medium.prompt) in others:
                    continue
                for task in ledger.tasks([job_file.medium]):
                    if not ledger.is_done(task):
                        refusal = {"kind": AWAY, "message": "it is away", "hint": HINT}
                        ledger.unfit[task.identity] = refusal
        return tuple(self.in_order(present, by_place))

    def gone_note(self, files: Sequence[JobFile], writes: str) -> list[str]:
        """Return a note on the rows that this run leaves out, of media that did not move. `writes`:
        the kind of its records."""
        places = {job_file.file.place for job_file in files}
        new_contents = self._new_contents(files)
        gone = [
            medium
            for medium in self._earlier
            if medium.rows
            and medium.place not in places
            and not self._has_moved(medium, new_contents)
        ]
        if not gone:
            return []
        is_captions = writes == "captions"
        place = self._out / "captions.jsonl" if is_captions else self._out
        count = sum(medium.rows for medium in gone)
        rows = counted(count, "caption" if is_captions else "row")
        names = first_of([medium.name[0] for medium in gone])
        return [
            f"not in {place} any more: {rows} of {counted(len(gone), 'file')} that this run does "
            f"not read ({names})"
        ]

    def _new_contents(self, files: Iterable[JobFile]) -> Counter[str]:
        return self._new((job_file.file.place, job_file.medium.digest) for job_file in files)

    def _new(self, keys: Iterable[tuple[str, Key]]) -> Counter[Key]:
        """Return how many files that are new in the folder have each key. `keys`: places of files,
        with their keys."""
        earlier = {medium.place for medium in self._earlier}
        return Counter(key for place, key in dict(keys).items() if place not in earlier)

    def _has_moved(self, medium: EarlierMedium, new_contents: Counter[str]) -> bool:
        """Return whether a file that is new stands for an earlier one, and count it as taken. Files
        below a mount point that is not mounted, or that cannot be read, have not moved."""
        absence = self._absences.get(medium.place, DELETED)
        return absence.may_have_moved and _take(new_contents, medium.digest)

    def _prompts(self, away: Sequence[EarlierMedium]) -> dict[Name, list[tuple[str, str]]]:
        """Return the names and prompts of the captions of each medium."""
        by_name = {medium.name: dict[tuple[str, str], None]() for medium in away}
        with suppress(PenstockError):
            path = self._out / "captions.jsonl"
            for row in read_jsonl_file(CaptionRow, path, "") if away else ():
                if (prompts := by_name.get((row.media_path, row.source))) is not None:
                    prompts[row.name, row.prompt] = None
        return {name: [*prompts] for name, prompts in by_name.items()}

    def in_order(
        self, present: Iterable[JobFile], away: Mapping[str, list[JobFile]]
    ) -> Iterable[JobFile]:
        """Yield the files of the job, those that are away (by their place) before what followed
        them."""
        order = {medium.place: at for at, medium in enumerate(self._earlier)}
        waiting = deque(away)
        for job_file in present:
            at = order.get(job_file.file.place, -1)
            while waiting and order[waiting[0]] < at:
                yield from away[waiting.popleft()]
            yield job_file
        for place in waiting:
            yield from away[place]


def _take(counter: Counter[Key], key: Key) -> bool:
    """Take one of a key from a counter, and return whether there was one."""
    if counter[key] < 1:
        return False
    counter[key] -= 1
    return True


def _rows(ledger: Ledger, job_file: JobFile) -> int:
    """Return how many rows the store has of a file with its prompt."""
    last = ledger.pipeline[-1].writes
    return sum(task[last] in ledger[last] for task in ledger.tasks([job_file.medium]))
