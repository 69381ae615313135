"""The rungs that stages were found to fit on, kept in the store: the next run starts there; knows
neither plan nor ladder."""

import time
from collections.abc import Mapping
from typing import Any

from artifacts.keys import digest_of
from artifacts.packs import Record, RecordSet
from artifacts.store import Store
from flows.planning.rungs import Rung

KIND = "rungs"
OUTPUT_VERSION = 2
"""Raised when stages come to take another amount of memory on the same rung."""
SLACK = 1.05
"""What was too much for a budget is taken to be too much for one so many times as large: what is
free differs a little from run to run."""
KEPT_SECONDS = 30 * 86400.0
"""After so long it is tried again: something else may have been in the way."""


class Remembered:
    """What is known of one run's stages. `about` is, of each stage, all that decides what it takes:
    the device, the half, the size of a chunk."""

    def __init__(self, store: Store, about: Mapping[str, Any], budget: int) -> None:
        self._store = store
        self._scopes = {s: digest_of(["rungs", OUTPUT_VERSION, s, of]) for s, of in about.items()}
        self._budget = budget

    def rungs(self, stage: str) -> list[Rung]:
        """Where a stage was found to fit when it had as much memory as now, or more: on better
        rungs it will not."""
        return [Rung.from_json(meta["rung"]) for meta in self._metas(stage).values()]

    def keep(self, rung: Rung) -> None:
        """A stage fits on this rung, and did not on better ones."""
        record_set = RecordSet(self._store, KIND, self._scopes[rung.stage])
        before = self._metas(rung.stage)
        meta = {"rung": rung.to_json(), "budget": self._budget, "time": round(time.time())}
        key = digest_of(meta)
        record_set.publish([Record(key=key, meta=meta)])
        # What was learned with more memory stays true of that, but says no more of this.
        record_set.drop(
            k for k in before if k != key and record_set.meta(k)["budget"] <= self._budget
        )

    def _metas(self, stage: str) -> dict[str, dict[str, Any]]:
        """What was learned of a stage that still counts, by its key."""
        record_set = RecordSet(self._store, KIND, self._scopes[stage])
        metas = {key: record_set.meta(key) for key in sorted(record_set.keys())}
        return {
            key: meta
            for key, meta in metas.items()
            if time.time() - float(meta["time"]) < KEPT_SECONDS
            and self._budget <= float(meta["budget"]) * SLACK
        }
