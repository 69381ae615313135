"""Stores the files and settings of a job's last rebuild, and compares them with current ones."""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from artifacts.keys import digest_of
from artifacts.packs import Record, RecordSet
from artifacts.records import read_record
from artifacts.store import Store
from flows.job.namespace_notes import settings_of
from flows.job.prepare import Job

KIND = "rebuilds"
Content = tuple[str, str]
"""Digest of a medium, and the prompt if features depend on it, else an empty text."""


class Reach(NamedTuple):
    """The features of some contents in one namespace."""

    frames: str
    """Namespace of the frames that they were encoded from."""
    features: str
    contents: frozenset[Content]

    def without(self, contents: Iterable[Content]) -> "Reach":
        return self._replace(contents=self.contents.difference(contents))

    def to_json(self) -> list[Any]:
        return [self.frames, self.features, sorted(self.contents)]


@dataclass(frozen=True, kw_only=True, slots=True)
class RebuildRecord:
    """A record of one rebuild, for the next one of the same job."""

    number: int
    frames: str
    features: str
    settings: Mapping[str, Any]
    """Settings that determine the features, from `settings_of`."""
    files: tuple[tuple[str, str, str], ...]
    """Absolute path, digest and prompt of each file; for the prompt, see `Content`."""
    past: tuple[Reach, ...] = ()
    """Features that this and earlier rebuilds may have made and no longer refer to."""
    seconds_a_chunk: float | None = None
    """Encoding time per chunk when this namespace was last extended."""

    @property
    def reach(self) -> Reach:
        contents = frozenset((digest, prompt) for _, digest, prompt in self.files)
        return Reach(frames=self.frames, features=self.features, contents=contents)

    def to_json(self) -> dict[str, Any]:
        fields = {name: getattr(self, name) for name in self.__slots__}
        return {**fields, "past": [reach.to_json() for reach in self.past]}


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """Counts of files, by path, that differ from the job's last rebuild."""

    unchanged: int = 0
    added: int = 0
    changed: int = 0
    removed: int = 0
    why: tuple[str, ...] = ()
    """Reasons why even unchanged files are encoded again; empty if they are not."""

    def line(self) -> str:
        names = ("unchanged", "added", "changed", "removed")
        return ", ".join(f"{getattr(self, name)} {name}" for name in names)


def job_digest(sources: Iterable[str], name: str) -> str:
    """Return the digest that names a job in its store. It does not depend on the job's model,
    sampling or files."""
    places = {os.path.abspath(os.path.expanduser(source)) for source in sources}
    return digest_of(["rebuild", sorted(places), name])


def last_record(store: Store, job: str) -> RebuildRecord | None:
    """Return the newest record of a job."""
    record_set = RecordSet(store, KIND, job)
    found = [read_record(RebuildRecord, record_set.meta(key)) for key in sorted(record_set.keys())]
    return max(found, key=lambda record: record.number, default=None)


def same(one: RebuildRecord | None, other: RebuildRecord) -> bool:
    """Return whether two records are equal but for their number."""
    return one is not None and replace(one, number=other.number) == other


def write_record(store: Store, job: str, record: RebuildRecord) -> None:
    """Publish a record, and drop the earlier ones."""
    record_set = RecordSet(store, KIND, job)
    before = record_set.keys()
    record_set.publish([Record(key=f"{record.number}", meta=record.to_json())])
    record_set.drop(before - {f"{record.number}"})


def other_records(store: Store, job: str) -> list[RebuildRecord]:
    """Return the newest record of every other job on the store."""
    jobs = {name.split("/")[2] for name in store.list(KIND)} - {job}
    return [record for other in sorted(jobs) if (record := last_record(store, other)) is not None]


def record_of(job: Job, last: RebuildRecord | None) -> RebuildRecord:
    """Return the record of the current job, before anything is removed."""
    namespaces = job.ledger.namespaces
    frames, features = (stage.writes for stage in job.pipeline)
    files = tuple(
        (f.file.place, f.medium.digest, f.medium.prompt if features in namespaces.prompted else "")
        for f in job.files
    )
    now = RebuildRecord(
        number=last.number + 1 if last else 1,
        frames=namespaces[frames],
        features=namespaces[features],
        settings=settings_of(job),
        files=files,
        seconds_a_chunk=last.seconds_a_chunk
        if last is not None and last.features == namespaces[features]
        else None,
    )
    return replace(now, past=merged(now.reach, [*last.past, last.reach]) if last else ())


def begun(last: RebuildRecord | None, now: RebuildRecord) -> RebuildRecord:
    """Return the record for the time of a rebuild. It assigns new features to this job, even if the
    rebuild never ends and the next one has other settings."""
    old = last or replace(now, files=())
    return replace(old, past=merged(old.reach, [*old.past, now.reach]), number=now.number)


def merged(now: Reach, past: Iterable[Reach]) -> tuple[Reach, ...]:
    """Return one reach per namespace, without current contents and without empty ones."""
    found: dict[str, Reach] = {}
    for reach in past:
        before = found.get(reach.features)
        contents = reach.contents | (before.contents if before else frozenset())
        found[reach.features] = reach._replace(contents=contents)
    if now.features in found:
        found[now.features] = found[now.features].without(now.contents)
    return tuple(reach for reach in found.values() if reach.contents)


def difference(last: RebuildRecord | None, now: RebuildRecord) -> Difference:
    """Return the difference from the last rebuild; without one, all files are added."""
    before, after = _by_path(last), _by_path(now)
    shared = before.keys() & after.keys()
    changed = sum(before[path].keys() != after[path].keys() for path in shared)
    return Difference(
        unchanged=len(shared) - changed,
        added=len(after.keys() - before.keys()),
        changed=changed,
        removed=len(before.keys() - after.keys()),
        why=tuple(reasons(last, now)) if last is not None else (),
    )


def _by_path(record: RebuildRecord | None) -> dict[str, dict[str, set[str]]]:
    """Return path → digest → prompts."""
    found: dict[str, dict[str, set[str]]] = {}
    for path, digest, prompt in record.files if record is not None else ():
        found.setdefault(path, {}).setdefault(digest, set()).add(prompt)
    return found


def reasons(last: RebuildRecord, record: RebuildRecord) -> list[str]:
    """Return why features of unchanged files cannot be reused."""
    if last.features == record.features:
        then = _by_path(last)
        prompts_changed = any(
            then.get(path, {}).get(digest, prompts) != prompts
            for path, digests in _by_path(record).items()
            for digest, prompts in digests.items()
        )
        text = "prompt changed, and this model's features depend on it"
        return [text] if prompts_changed else []
    before, now, found = last.settings, record.settings, []
    if before["model"] != now["model"]:
        found.append(f"model changed ({before['model']} → {now['model']})")
    elif before["commit"] != now["commit"]:
        short = [f"{commit}"[:7] for commit in (before["commit"], now["commit"])]
        found.append(f"revision changed ({short[0]} → {short[1]})")
    elif before["weights"] != now["weights"]:
        found.append("weights changed: the model's folder holds another checkpoint")
    if before["computing"] != now["computing"]:
        computing = [" ".join(values["computing"]) for values in (before, now)]
        found.append(f"precision or attention changed ({computing[0]} → {computing[1]})")
    for name, value in now["sampling"].items():
        old = before["sampling"].get(name)
        if old != value:
            found.append(f"sampling changed ({name.replace('_', ' ')} {old} → {value})")
    if before["output_versions"] != now["output_versions"]:
        found.append("output version changed: this version of Penstock encodes differently")
    return found or ["the processor's settings changed"]
