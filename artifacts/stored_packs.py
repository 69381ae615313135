"""Lists the pack files of a store, and the sizes of all that it holds."""

import contextlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from artifacts.packs import QUARANTINE
from artifacts.stores.protocol import ObjectStat, Store

PACK = ".pack"


@dataclass(frozen=True, kw_only=True, slots=True)
class Pack:
    """One pack file of a store."""

    name: str
    stat: ObjectStat

    @property
    def kind(self) -> str:
        return self.name.split("/")[0]

    @property
    def namespace(self) -> str:
        return self.name.split("/")[2]


def packs(stored: Mapping[str, ObjectStat]) -> list[Pack]:
    """Return the packs among the objects of a store, without quarantined ones."""
    return [
        Pack(name=name, stat=stat)
        for name, stat in stored.items()
        if name.endswith(PACK) and name.count("/") >= 3 and not name.startswith(f"{QUARANTINE}/")
    ]


def sizes_in(store: Store, stored: Mapping[str, ObjectStat]) -> dict[str, int]:
    """Return the bytes of all files and objects by name. In a folder store, objects are files, too:
    merging by name counts each once."""
    found = {}
    for place, _, names in os.walk(store.local):
        for path in (Path(place, name) for name in names):
            with contextlib.suppress(FileNotFoundError):
                found[path.relative_to(store.local).as_posix()] = path.lstat().st_size
    return found | {name: stat.size for name, stat in stored.items()}
