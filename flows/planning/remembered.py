"""Keeps the rungs that stages were found to fit on in the store, where the next run starts. It
knows neither plan nor ladder."""

import time
from collections.abc import Mapping
from typing import Any

from artifacts.keys import digest_of
from artifacts.packs import Record
from artifacts.record_union import record_sets_of
from artifacts.store import Store
from flows.planning.rungs import Rung

KIND = "rungs"
OUTPUT_VERSION = 3
"""Number that rises when stages come to take another amount of memory on the same rung."""
SLACK = 1.05
"""Factor by which a budget may be larger and still count as too small: what is free differs a
little from run to run."""
KEPT_SECONDS = 30 * 86400.0
"""Seconds after which it is tried again: something else may have been in the way."""


class Remembered:
    """The rungs known of one run's stages. `about` is, of each stage, all that decides what it
    takes: the device, the half, the size of a chunk."""

    def __init__(self, store: Store, about: Mapping[str, Any], budget: int) -> None:
        namespaces = [digest_of(["rungs", OUTPUT_VERSION, s, of]) for s, of in about.items()]
        opened = record_sets_of(store, *((KIND, namespace) for namespace in namespaces))
        self._record_sets = dict(zip(about, opened, strict=True))
        self._budget = budget

    def rungs(self, stage: str) -> list[Rung]:
        """Return rungs on which a stage fitted when it had as much memory as now, or more. On
        better rungs it will not fit."""
        return [Rung.from_json(meta["rung"]) for meta in self._metas(stage).values()]

    def keep(self, rung: Rung) -> None:
        """Keep that a stage fits on this rung, and did not on better ones."""
        record_set = self._record_sets[rung.stage]
        record_set.refresh()
        before = self._metas(rung.stage)
        meta = {"rung": rung.to_json(), "budget": self._budget, "time": round(time.time())}
        key = digest_of(meta)
        record_set.publish([Record(key=key, meta=meta)])
        # What was learned with more memory stays true of that, but says no more of this.
        record_set.drop(
            k for k in before if k != key and record_set.meta(k)["budget"] <= self._budget
        )

    def _metas(self, stage: str) -> dict[str, dict[str, Any]]:
        """Return what was learned of a stage that still counts, by its key."""
        record_set = self._record_sets[stage]
        metas = {key: record_set.meta(key) for key in sorted(record_set.keys())}
        return {
            key: meta
            for key, meta in metas.items()
            if time.time() - float(meta["time"]) < KEPT_SECONDS
            and self._budget <= float(meta["budget"]) * SLACK
        }
