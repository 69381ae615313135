"""Lists what a store holds, by model and age; changes nothing."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from artifacts.pack_object import QUARANTINE
from artifacts.store import ObjectStat, Store
from flows.job.namespace_notes import notes

PACK = ".pack"


@dataclass(frozen=True, kw_only=True, slots=True)
class Pack:
    """One object of records in a store."""

    name: str
    stat: ObjectStat

    @property
    def kind(self) -> str:
        return self.name.split("/")[0]

    @property
    def namespace(self) -> str:
        return self.name.split("/")[2]


def objects(store: Store) -> dict[str, ObjectStat]:
    """Return all objects in a store, by name."""
    return dict(store.stats())


def packs(stored: Mapping[str, ObjectStat]) -> list[Pack]:
    """Return every pack that is in its place among the objects of a store."""
    return [
        Pack(name=name, stat=stat)
        for name, stat in stored.items()
        if name.endswith(PACK) and name.count("/") >= 3 and not name.startswith(f"{QUARANTINE}/")
    ]


@dataclass(frozen=True, kw_only=True, slots=True)
class Holding:
    """The packs that a store has of one kind and namespace."""

    kind: str
    namespace: str
    packs: int
    bytes: int
    used: float
    """Time when any of it was last written or read: seconds since the epoch."""
    settings: Mapping[str, Any]
    """Settings that it is of, as `settings_of` says; empty when they were not written down."""

    def to_json(self) -> dict[str, Any]:
        """Return its fields as they are published, where a namespace is called a scope."""
        fields = {**asdict(self), "settings": dict(self.settings)}
        return {"scope" if name == "namespace" else name: fields[name] for name in fields}


def holdings(store: Store) -> list[Holding]:
    """Return what is stored, by model, the last used first."""
    groups: dict[tuple[str, str], list[Pack]] = {}
    for pack in packs(objects(store)):
        groups.setdefault((pack.kind, pack.namespace), []).append(pack)
    known = notes(store) if groups else None
    found = [
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
    return sorted(found, key=lambda h: (h.settings.get("model", "~"), -h.used, h.kind))


def sampling_text(sampling: Mapping[str, Any]) -> str:
    """Return a line such as `30 s, 1 fps, 32 frames at most`."""
    longest = "whole files" if sampling.get("whole") else f"{sampling['chunk_seconds']:g} s"
    last = ", the last one among them" if sampling.get("last_frame") else ""
    pieces = f"shots up to {longest}" if sampling["shots"] else longest
    if sampling["frames"] is not None:
        return f"{pieces}, {sampling['frames']} frames{last}"
    return f"{pieces}, {sampling['fps']:g} fps, {sampling['max_frames']} frames at most{last}"
