"""Keeps the rows of media that an earlier run into the folder read, and that are away now.

1. Each run notes the mount points of its media in `run.json`.
2. A medium of `media.jsonl` is away if the sources lack it and it was not deleted
   (`artifacts.mounts`), if it cannot be read, or if its server does not answer. If a file that is
   new in the folder has its content, it was moved.
3. The job gets these media with the content that they had, so that all outputs have what the store
   has of them. Nothing more is made of them.
"""

import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import unquote_to_bytes

from artifacts.captions import Failure
from artifacts.errors import PenstockError, UsageError
from artifacts.json_shapes import MapOf, OptionalField, count, read_json, read_jsonl, text
from artifacts.mounts import MissingFiles
from artifacts.paths import folder_named
from artifacts.plurals import counted
from artifacts.remote.addresses import RemoteFile
from artifacts.remote.media_cache import UNREACHABLE
from artifacts.stamps import Stamp
from flows.job.media_digests import JobFile
from flows.ledger.ledger import Ledger
from flows.ledger.prompts import Prompts
from flows.ledger.tasks import Medium
from flows.media.media_files import MediaFile, kind_of, source_failure
from flows.options.commands import RunOptions
from flows.options.text import OwnerOptions

AWAY = "away"
"""Kind of the failure of a folder whose media are away."""
HINT = "Mount or restore it and run the same command again; --replace drops these rows"
ENTRY = {
    **dict.fromkeys(("media_path", "source", "url"), text),
    "captions": count,
    **dict.fromkeys(("content", "address"), OptionalField(text)),
    **dict.fromkeys(("bytes", "modified"), OptionalField(count)),
}
ROW = {**dict.fromkeys(("media_path", "source", "prompt"), text), "name": OptionalField(text)}


def mounts_in(out: Path) -> dict[str, str]:
    """Return the mount points that the last run into a folder noted → their file systems."""
    noted: dict[str, str] = {}
    with suppress(PenstockError, LookupError):
        noted = read_json(out / "run.json", {"mounts": MapOf(text)}, "")["mounts"]
    return noted


@dataclass(frozen=True, kw_only=True, slots=True)
class Earlier:
    """One medium of an earlier run into the folder."""

    file: MediaFile
    rows: int
    digest: str
    stamp: Stamp | None

    @classmethod
    def of(cls, line: Mapping[str, Any]) -> "Earlier":
        path, size = os.fsdecode(unquote_to_bytes(line["url"].removeprefix("file://"))), None
        remote = None
        if address := line.get("address"):
            remote = RemoteFile(address=address, size=line.get("bytes", 0), version="")
        elif "bytes" in line:
            size = Stamp(size=line["bytes"], modified=line.get("modified", 0), inode=0)
        file = MediaFile(
            path=Path(path),
            media_path=line["media_path"],
            source=line["source"],
            kind=kind_of(line["media_path"]),
            remote=remote,
        )
        return cls(file=file, rows=line["captions"], digest=line.get("content", ""), stamp=size)

    @property
    def name(self) -> tuple[str, str]:
        return self.file.media_path, self.file.source

    @property
    def folders(self) -> list[str]:
        """Return the folder of its source, and the first one below it that holds the file."""
        path, inside = str(self.file.path), f"/{self.file.media_path}"
        root = path.removesuffix(inside) or "/"
        if root == path:  # a name that UTF-8 does not hold
            return [os.path.dirname(path)]
        first, below, _ = inside[1:].partition("/")
        return [root, *([os.path.join(root, first)] if below else [])]

    def job_file(self, prompt: str, entry: MediaFile) -> JobFile:
        medium = Medium(
            digest=self.digest,
            path=str(self.file.path),
            kind=self.file.kind,
            prompt=prompt,
            stamp=self.stamp,
        )
        return JobFile(file=entry, medium=medium, away=True)


class AwayMedia:
    """The media of an output folder that are away."""

    def __init__(
        self,
        config: RunOptions,
        files: Sequence[MediaFile],
        failures: Iterable[Failure],
        left_out: Set[str] = frozenset(),
    ) -> None:
        """`files` and `failures` are those that the sources name now, without those `left_out`."""
        self._out = folder_named(config.out, "out")
        self._retry_failed = config.retry_failed
        self._earlier: list[Earlier] = []
        self._why: dict[str, tuple[str, str]] = {}
        """Path or address of a medium → the folder that is away, and why."""
        if not isinstance(config, OwnerOptions) or config.replace:
            return
        with suppress(PenstockError):
            self._earlier = [*map(Earlier.of, read_jsonl(self._out / "media.jsonl", ENTRY, ""))]
        missing, named = MissingFiles(mounts_in(self._out)), set[str | tuple[str, str]]()
        for file in files:
            named |= {file.place, (file.media_path, file.source)}
        silent = {each.media_path for each in failures if each.error == UNREACHABLE}
        for each in self._earlier:
            place = each.file.place
            if not each.rows or not each.digest or place in left_out or {place, each.name} & named:
                continue
            if each.file.remote is not None:
                why = (place, "no answer") if place in silent else None
            else:
                why = missing.why_away(place, each.folders)
            if why is not None:
                self._why[place] = why

    def __bool__(self) -> bool:
        return bool(self._why)

    def found(self, files: Iterable[MediaFile], readable: Sequence[JobFile]) -> list[Earlier]:
        """Return the media that are away, in their order, once it is known which `files` of the
        sources can be read."""
        known = {each.file.place for each in self._earlier}
        there = {each.file.place for each in readable}
        moved = {each.medium.digest for each in readable if each.file.place not in known}
        for place, file in {file.place: file for file in files}.items():
            if place in known and place not in there:
                folder = place if file.remote else os.path.dirname(place)
                self._why[place] = (folder, "not all of it can be read")
        away = (each for each in self._earlier if each.file.place in self._why and each.rows)
        return [each for each in away if each.digest and each.digest not in moved]

    def failures(self, away: Iterable[Earlier], failures: Sequence[Failure]) -> list[Failure]:
        """Return a failure for each folder that is away, then those of sources but of the same
        folders."""
        rows, files, sources = Counter[tuple[str, str]](), Counter[tuple[str, str]](), {}
        for each in away:
            why = self._why[each.file.place]
            rows[why] += each.rows
            files[why] += 1
            sources.setdefault(why, each.file.source)
        found = []
        for (folder, why), of in files.items():
            kept = f"{counted(rows[folder, why], 'row')} of {counted(of, 'file')}"
            text = f"{why}: {kept} kept"
            found.append(source_failure(sources[folder, why], folder, AWAY, text, HINT))
        folders = {folder for folder, _ in files}
        others = (
            f for f in failures if not {f.media_path, os.path.abspath(f.media_path)} & folders
        )
        return [*found, *others]

    def job_files(
        self,
        away: Sequence[Earlier],
        present: Sequence[JobFile],
        ledger: Ledger,
        prompts: Prompts,
    ) -> tuple[JobFile, ...]:
        """Return the files of the job, those that are away where they were among the others. Raises
        UsageError if the store lacks records of their rows."""
        is_prompted = ledger.pipeline[-1].writes == "captions"
        recorded = self._recorded(away) if is_prompted else {}
        entries: dict[tuple[str, str], list[JobFile]] = {}
        for each in away:
            by_command = [each.job_file(p, f) for f, p in prompts.of(each.file, each.digest)]
            by_row = [
                each.job_file(prompt, replace(each.file, name=name))
                for name, prompt in recorded.get(each.name, ())
            ]
            least = each.rows if is_prompted else 1
            chosen = (some for some in (by_command, by_row) if _stored(some, ledger) >= least)
            if (files := next(chosen, None)) is None:
                self._refuse(each)
            entries[each.name] = files
        others = {(f.medium.digest, f.medium.prompt) for f in present}
        for file in (file for some in entries.values() for file in some):
            if (file.medium.digest, file.medium.prompt) not in others:
                self._close(file.medium, ledger)
        return self._in_order(present, entries)

    def _refuse(self, each: Earlier) -> NoReturn:
        folder, why = self._why[each.file.place]
        raise UsageError(
            f"{folder} is away ({why}), and the store has no records of {each.file.media_path} in "
            f"these settings: this run would drop its rows from {self._out}",
            hint="Mount or restore it, run as before, give another --out, or --replace to drop them",
        )

    def _recorded(self, away: Sequence[Earlier]) -> dict[tuple[str, str], list[tuple[str, str]]]:
        """Return media path and source → names and prompts of the captions there are."""
        found: defaultdict[tuple[str, str], dict[tuple[str, str], None]] = defaultdict(dict)
        names = {each.name for each in away}
        with suppress(PenstockError):
            for row in read_jsonl(self._out / "captions.jsonl", ROW, "") if away else ():
                if (name := (row["media_path"], row["source"])) in names:
                    found[name][row.get("name", ""), row["prompt"]] = None
        return {name: [*of] for name, of in found.items()}

    def _close(self, medium: Medium, ledger: Ledger) -> None:
        """Let nothing more be made of a medium in this run."""
        why = {"kind": AWAY, "message": "it is away", "hint": HINT}
        for task in ledger.tasks([medium]):
            if not ledger.is_done(task) and (self._retry_failed or not ledger.has_failed(task)):
                ledger.unfit[task.identity] = why

    def _in_order(
        self, present: Sequence[JobFile], entries: Mapping[tuple[str, str], list[JobFile]]
    ) -> tuple[JobFile, ...]:
        here = {(each.file.media_path, each.file.source) for each in present}
        after: defaultdict[tuple[str, str] | None, list[JobFile]] = defaultdict(list)
        last: tuple[str, str] | None = None
        for each in self._earlier:
            after[last] += entries.get(each.name, ())
            last = each.name if each.name in here else last
        found = after.pop(None, [])
        for at, file in enumerate(present):
            found.append(file)
            following = present[at + 1].file.identity if at + 1 < len(present) else None
            if following != file.file.identity:
                found += after.pop((file.file.media_path, file.file.source), ())
        return tuple(found)


def _stored(files: Iterable[JobFile], ledger: Ledger) -> int:
    last = ledger.pipeline[-1].writes
    tasks = (task for file in files for task in ledger.tasks([file.medium]))
    return sum(task[last] in ledger[last] for task in tasks)
