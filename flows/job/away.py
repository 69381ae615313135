"""Keeps the rows of media that an earlier run into the folder read, and that are away now.

1. Each run notes the mount points of its media in `run.json`.
2. A medium of `media.jsonl` is away if the sources lack it and it was not deleted
   (`artifacts.mounts`), if it cannot be read, or if its server does not answer. If a file that is
   new in the folder has its content, it was moved.
3. The job gets these media with the content and the prompts that they had, so that all outputs have
   what the store has of them. Nothing more is made of them.
"""

import os
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, NoReturn
from urllib.parse import unquote_to_bytes

from artifacts.captions import Failure
from artifacts.errors import EnvironmentFault, PenstockError, UsageError
from artifacts.json_shapes import MapOf, OptionalField, Shape, count, read_json, read_jsonl, text
from artifacts.mounts import EMPTY, MissingFiles, may_have_moved, noted_mounts
from artifacts.paths import folder_named
from artifacts.plurals import counted, first_of
from artifacts.remote.addresses import RemoteFile
from artifacts.remote.media_cache import UNREACHABLE
from artifacts.stamps import Stamp
from flows.job.media_digests import JobFile
from flows.ledger.ledger import Ledger
from flows.ledger.tasks import Medium
from flows.media.media_files import MediaFile, kind_of, source_failure
from flows.options.commands import RunOptions
from flows.options.text import OwnerOptions

AWAY = "away"
"""Kind of the failure of a folder whose media are away."""
HINT = "Mount or restore it and run the same command again; --replace drops these rows"
NAMES = dict.fromkeys(("media_path", "source"), text)
ENTRY = {
    **NAMES,
    **dict.fromkeys(("url", "content"), text),
    "captions": count,
    "address": OptionalField(text),
    **dict.fromkeys(("bytes", "modified"), OptionalField(count)),
}
ROW = {**NAMES, "prompt": text, "name": OptionalField(text)}
Name = tuple[str, str]
"""`media_path` and `source` of a medium."""


def mounts_in(out: Path) -> dict[str, str]:
    """Return the mount points that the last run into a folder noted → their file systems."""
    noted: dict[str, str] = recorded_in(out, "mounts", MapOf(text)) or {}
    return noted


def mounts_now(out: Path, files: Iterable[JobFile]) -> dict[str, str]:
    """Return what a run into a folder notes: the mount points of its media, and earlier ones."""
    return noted_mounts(mounts_in(out), {str(f.file.path.parent) for f in files if not f.away})


def recorded_in(out: Path, name: str, shape: Shape) -> Any:
    """Return what the last run into a folder recorded under a name; None if that is no `shape`."""
    with suppress(PenstockError):
        return read_json(out / "run.json", {name: shape}, "")[name]
    return None


class Earlier(NamedTuple):
    """One medium of an earlier run into the folder, without a prompt."""

    of: JobFile
    rows: int
    folders: list[str]
    """The folder of its source, and the first one below it that holds the file."""

    @property
    def name(self) -> Name:
        return self.of.file.media_path, self.of.file.source


def _earlier(line: Mapping[str, Any]) -> Earlier:
    path = os.fsdecode(unquote_to_bytes(line["url"].removeprefix("file://")))
    address, size = line.get("address"), line.get("bytes")
    remote = RemoteFile(address=address, size=size or 0, version="") if address else None
    kind, names = kind_of(line["media_path"]), {name: line[name] for name in NAMES}
    file = MediaFile(path=Path(path), kind=kind, remote=remote, **names)
    stamp = None if size is None else Stamp(size=size, modified=line.get("modified", 0), inode=0)
    medium = Medium(digest=line["content"], path=path, kind=kind, prompt="", stamp=stamp)
    folders = [os.path.dirname(path)]  # also for a name that UTF-8 does not hold
    if path.endswith(inside := f"/{file.media_path}"):
        folders = [path.removesuffix(inside) or "/"]
        first, below, _ = file.media_path.partition("/")
        folders += [os.path.join(folders[0], first)] * bool(below)
    return Earlier(JobFile(file=file, medium=medium, away=True), line["captions"], folders)


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
        self._replaces = OwnerOptions.of(config).replace
        self._earlier: list[Earlier] = []
        self._why: dict[str, tuple[str, str]] = {}
        """Path or address of a medium → the folder that is away, and why."""
        if not isinstance(config, OwnerOptions):
            return
        with suppress(PenstockError):
            self._earlier = [*map(_earlier, read_jsonl(self._out / "media.jsonl", ENTRY, ""))]
        named, known = {file.place for file in files}, {e.of.file.place for e in self._earlier}
        # A source that was moved has the same names below another path.
        new = {file.place: (file.media_path, file.source) for file in files}
        moved = Counter(name for place, name in new.items() if place not in known)
        silent = {each.media_path for each in failures if each.error == UNREACHABLE}
        missing = MissingFiles(mounts_in(self._out))
        for each in self._earlier if not self._replaces else ():
            place, why = each.of.file.place, None
            if not each.rows or place in left_out or place in named:
                continue
            if moved[each.name] > 0:
                moved[each.name] -= 1
                continue
            if each.of.file.remote is None:
                why = missing.why_away(place, each.folders)
            elif place in silent:
                why = (place, "no answer")
            if why is not None:
                self._why[place] = why

    @property
    def contents(self) -> frozenset[str]:
        """Return the contents of which the folder has rows."""
        return frozenset(each.of.medium.digest for each in self._earlier if each.rows)

    def fault(self) -> EnvironmentFault:
        """Return the error of a run that would need what is away."""
        folder, why = next(iter(self._why.values()))
        media = counted(len(self._why), "file")
        return EnvironmentFault(
            f"{folder} is away ({why}): {media} of {self._out} cannot be captioned again",
            hint="Mount or restore it, or run the same `penstock caption` with --replace first, "
            "which drops their rows",
        )

    def refuse(self, file: MediaFile) -> NoReturn:
        """Raise UsageError for a medium of whose rows the store has no records."""
        folder, why = self._why[file.place]
        raise UsageError(
            f"{folder} is away ({why}), and the store has no records of {file.media_path} in these "
            f"settings: this run would drop its rows from {self._out}",
            hint="Mount or restore it, run as before, give another --out, or --replace drops them",
        )

    def __bool__(self) -> bool:
        return bool(self._why)

    def found(self, files: Iterable[MediaFile], readable: Sequence[JobFile]) -> list[Earlier]:
        """Return the media that are away, in their order, once it is known which `files` of the
        sources can be read."""
        there, moved = {each.file.place for each in readable}, self._moved(readable)
        for file in files if not self._replaces else ():
            if file.place not in there:
                folder = file.place if file.remote else os.path.dirname(file.place)
                self._why[file.place] = (folder, "not all of it can be read")
        away = (each for each in self._earlier if each.of.file.place in self._why and each.rows)
        return [each for each in away if not self._has_moved(each, moved)]

    def failures(self, away: Iterable[Earlier], failures: Sequence[Failure]) -> list[Failure]:
        """Return a failure for each folder that is away, then those of other sources."""
        by_folder: defaultdict[tuple[str, str], list[Earlier]] = defaultdict(list)
        for each in away:
            by_folder[self._why[each.of.file.place]].append(each)
        found = []
        for (folder, why), media in by_folder.items():
            kept = f"{counted(sum(each.rows for each in media), 'row')} of "
            message = f"{why}: {kept}{counted(len(media), 'file')} kept"
            found.append(source_failure(media[0].of.file.source, folder, AWAY, message, HINT))
        folders = {folder for folder, _ in by_folder}
        named = ((each, {each.media_path, os.path.abspath(each.media_path)}) for each in failures)
        return [*found, *(each for each, names in named if not names & folders)]

    def job_files(
        self, away: Sequence[Earlier], present: Sequence[JobFile], ledger: Ledger
    ) -> tuple[JobFile, ...]:
        """Return the files of the job, those that are away before what followed them. Raises
        UsageError if the store lacks records of their rows."""
        last, found = ledger.pipeline[-1].writes, dict[str, list[JobFile]]()
        prompts = self._prompts(away) if last == "captions" else {}
        others = {(each.medium.digest, each.medium.prompt) for each in present}
        for each in away:
            file, medium = each.of.file, each.of.medium
            files = [
                replace(each.of, file=replace(file, name=n), medium=replace(medium, prompt=prompt))
                for n, prompt in prompts.get(each.name, [("", "")])
            ]
            if len(files) > 1:  # some may be of another file with this name, as of two folders
                files = [of for of in files if _is_stored(ledger, of)] or files
            found[file.place] = files
            tasks = [(task, of) for of in files for task in ledger.tasks([of.medium])]
            stored = sum(task[last] in ledger[last] for task, _ in tasks)
            if stored < (each.rows if prompts else 1):
                self.refuse(file)
            for task, of in tasks:
                if (of.medium.digest, of.medium.prompt) not in others and not ledger.is_done(task):
                    why_not = {"kind": AWAY, "message": "it is away", "hint": HINT}
                    ledger.unfit[task.identity] = why_not
        return tuple(self.in_order(present, found))

    def gone_note(self, files: Sequence[JobFile], writes: str) -> list[str]:
        """Return a note on the rows that this run leaves out, of media that did not move. `writes`:
        the kind of its records."""
        here, moved = {each.file.place for each in files}, self._moved(files)
        left = (each for each in self._earlier if each.rows and each.of.file.place not in here)
        gone = [each for each in left if not self._has_moved(each, moved)]
        if not gone:
            return []
        is_captions = writes == "captions"
        place = self._out / "captions.jsonl" if is_captions else self._out
        rows = counted(sum(each.rows for each in gone), "caption" if is_captions else "row")
        names = first_of([each.of.file.media_path for each in gone])
        return [
            f"not in {place} any more: {rows} of {counted(len(gone), 'file')} that this run does "
            f"not read ({names})"
        ]

    def _moved(self, files: Iterable[JobFile]) -> Counter[str]:
        """Return the contents of files that are new in the folder, and how many have each."""
        known = {each.of.file.place for each in self._earlier}
        new = {each.file.place: each.medium.digest for each in files}
        return Counter(digest for place, digest in new.items() if place not in known)

    def _has_moved(self, earlier: Earlier, moved: Counter[str]) -> bool:
        """Return whether a file that is new stands for an earlier one, and count it as taken. Files
        below a mount point that is not mounted, or that cannot be read, have not moved."""
        _, why = self._why.get(earlier.of.file.place, ("", EMPTY))
        is_taken = may_have_moved(why) and moved[earlier.of.medium.digest] > 0
        moved[earlier.of.medium.digest] -= is_taken
        return is_taken

    def _prompts(self, away: Sequence[Earlier]) -> dict[Name, list[tuple[str, str]]]:
        """Return the names and prompts of the captions of each medium."""
        found = {each.name: dict[tuple[str, str], None]() for each in away}
        with suppress(PenstockError):
            for row in read_jsonl(self._out / "captions.jsonl", ROW, "") if away else ():
                if (prompts := found.get((row["media_path"], row["source"]))) is not None:
                    prompts[row.get("name", ""), row["prompt"]] = None
        return {name: [*prompts] for name, prompts in found.items()}

    def in_order(
        self, present: Iterable[JobFile], away: Mapping[str, list[JobFile]]
    ) -> Iterable[JobFile]:
        """Yield the files of the job, those that are away (by their place) before what followed
        them."""
        order = {each.of.file.place: at for at, each in enumerate(self._earlier)}
        left = deque(away)
        for file in present:
            at = order.get(file.file.place, -1)
            while left and order[left[0]] < at:
                yield from away[left.popleft()]
            yield file
        for name in left:
            yield from away[name]


def _is_stored(ledger: Ledger, of: JobFile) -> bool:
    """Return whether the store has a record of a file with its prompt."""
    last = ledger.pipeline[-1].writes
    return any(task[last] in ledger[last] for task in ledger.tasks([of.medium]))
