"""Tracks the fallback rung of each stage, and steps down when memory runs out.

How it works:

1. Each stage has a list of rungs and a position in it. The first rung is the cheapest way to run
   the stage; later ones need less memory.
2. A stage starts on the rung that an earlier run of the same setup fell back to. Such results
   expire after 30 days, and apply only if the memory budget is at most 5 % larger. Otherwise the
   stage starts on the planned rung.
3. A process may shrink its own batches after an out-of-memory error. Its event moves the stage to
   the first lower rung that has batches as small and is otherwise the same.
4. If the process ends because of memory, the stage moves to the first lower rung that can help.
   Smaller batches are skipped if loading the weights ran out of memory. A smaller batch that still
   holds all items, or a prefill size that no prompt exceeds, is skipped, too.
5. If no lower rung is left, CannotFit is raised with advice on what to change. A run never moves a
   stage up again.
6. The first item made on a lower rung proves that the rung fits. The rung is then stored for later
   runs, together with the budget.
7. A single item that does not fit next to others is tried alone, with batch 1, on the rung in force
   and on each lower one.
8. Every move is reported as a log line and as an entry under `rungs` in `run.json`.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from artifacts.errors import CannotFit, EnvironmentFault
from artifacts.keys import digest_of
from artifacts.packs import Record
from artifacts.record_union import record_sets_of
from artifacts.store import Store
from flows.console.units import gib
from flows.planning.rungs import Rung
from stages.process.events import BatchShrunk, Event, Item

KIND = "rungs"
OUTPUT_VERSION = 3
"""Number that rises when stages come to take another amount of memory on the same rung."""
SLACK = 1.05
"""Factor by which a budget may be larger and still count as too small: what is free differs a
little from run to run."""
KEPT_SECONDS = 30 * 86400.0
"""Seconds after which it is tried again: something else may have been in the way."""


class Remembered:
    """The stored rungs of a run's stages. `about` holds, per stage, everything that determines its
    memory use: the device, the half, and the size of a chunk."""

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


Told = Callable[[Mapping[str, Any], str], None]
"""A listener that is given an entry of the record's `rungs`, and the same in words."""


class Ladder:
    """The rungs of every stage. Thread-safe, because each stage sends its events from a thread of
    its own."""

    def __init__(
        self,
        rungs: Mapping[str, Sequence[Rung]],
        remembered: Remembered,
        *,
        budget_bytes: int,
        tell: Told,
    ) -> None:
        """Put each stage on the rung that is remembered; `rungs` are those of each stage, cheapest
        first."""
        self.rungs = rungs
        self.advise: Callable[[str], str] = lambda stage: ""
        """Function that says what would make a stage fit that does not."""
        self.instead: Callable[[Rung], int] = lambda rung: rung.batch
        """Function that tells the batch in place of a rung's slots, where there are none."""
        self._remembered = remembered
        self._budget = budget_bytes
        self._tell = tell
        self._lock = threading.RLock()
        self._at: dict[str, int] = {}
        self._started: dict[str, str] = {}
        """Stage → why it does not start on the first rung; until that is told."""
        self._unproven: set[str] = set()
        """Stages that have made nothing yet on the rung they are on."""
        for stage, all_of_them in rungs.items():
            known = [index_of(all_of_them, rung) for rung in remembered.rungs(stage)]
            self._at[stage] = max(known, default=0)
            if self._at[stage]:
                self._started[stage] = "remembered"

    def known(self) -> dict[str, Rung]:
        """Return stage → the rung on which it was found to fit by an earlier run."""
        with self._lock:
            return {s: self.rung(s) for s, why in self._started.items() if why == "remembered"}

    def start(self, planned: Mapping[str, Rung]) -> None:
        """Put stages where they are expected to fit; what is known of them goes before that."""
        with self._lock:
            for stage, rung in planned.items():
                at = self.rungs[stage].index(rung)
                if at and stage not in self._started:
                    self._at[stage], self._started[stage] = at, "planned"

    def rung(self, stage: str) -> Rung:
        """Return the rung in force."""
        with self._lock:
            return self.rungs[stage][self._at[stage]]

    def begin(self, stage: str) -> None:
        """Hear that a process of the stage is about to start."""
        with self._lock:
            reason = self._started.pop(stage, "")
            if reason:
                why = {"remembered": "it fitted before", "planned": "more is not expected to fit"}
                self._say(self.rung(stage), reason, f"starting with {{}}: {why[reason]}")

    def listen(self, stage: str, event: Event) -> None:
        """Hear an event of a stage."""
        if stage not in self.rungs:
            return
        if isinstance(event, BatchShrunk):
            self._shrink(stage, event)
        elif isinstance(event, Item):
            self.note_success(stage)

    def note_success(self, stage: str) -> None:
        """Hear that something was made on the rung in force."""
        with self._lock:
            if stage in self._unproven:
                self._unproven.discard(stage)
                with contextlib.suppress(EnvironmentFault):  # a full disk ends the run soon enough
                    self._remembered.keep(self.rung(stage))

    def down(
        self, stage: str, error: CannotFit, *, largest: int, tokens: int, ready: bool = True
    ) -> None:
        """Go down, as the stage's process ended for want of memory. It had `largest` items at once
        at the most, of at most so many `tokens` if that is known; `ready` is whether its weights
        were loaded by then. Raises CannotFit at the ladder's end."""
        with self._lock:
            before = self.rung(stage)
            rest = self.rungs[stage][self._at[stage] + 1 :]
            lower = [
                rung
                for rung in rest
                # Fewer items at once do not help who could not even hold the weights.
                if (ready or weights(rung) != weights(before))
                and (rung.batch < largest or replace(rung, batch=before.batch) != before)
                and (not 0 < tokens <= rung.prefill or replace(rung, prefill=0) != before)
            ]
            if not lower:
                raise self.nothing_fits(stage, error) from error
            reason = "killed" if "kill" in error.message.lower() else "out of memory"
            self._go(lower[0], reason, error.message, failed=largest)

    def single_item_rungs(self, stage: str) -> list[Rung]:
        """Return the rungs for a single item that did not fit, from the one in force downwards."""
        with self._lock:
            rest = self.rungs[stage][self._at[stage] :]
            rungs = (replace(rung, batch=1, block=min(rung.block, 1)) for rung in rest)
            return list(dict.fromkeys(rungs))

    def tell_single_items(self, rung: Rung, names: Sequence[str], error: str) -> None:
        """Tell that items are run on a rung which the others do not need."""
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        text = f"{names[0]}{more} did not fit; trying it alone with {{}}"
        self._say(rung, "item alone", text, error)

    def nothing_fits(self, stage: str, error: CannotFit) -> CannotFit:
        """Return the error at the ladder's end."""
        rung = self.rung(stage)
        return CannotFit(
            f"the {stage} stage does not fit{self._in_budget()}, not even with {rung.name} "
            f"({error.message})",
            hint=f"Nothing finished is lost; give {self.advise(stage) or 'more with --memory'}",
        )

    def _shrink(self, stage: str, event: BatchShrunk) -> None:
        """Go down, as the stage's process goes on with smaller batches, or smaller blocks of
        them."""
        with self._lock:
            before = self.rung(stage)
            batch, block = event.batch, event.block or before.block
            for rung in self.rungs[stage][self._at[stage] + 1 :]:
                same = replace(rung, batch=before.batch, block=before.block) == before
                if same and rung.batch <= batch and rung.block <= block:
                    self._go(rung, "out of memory", event.error, event.failed)
                    break

    def _go(self, rung: Rung, reason: str, error: str, failed: int) -> None:
        stage = rung.stage
        before = replace(self.rung(stage), batch=min(failed, self.rung(stage).batch))
        self._at[stage] = self.rungs[stage].index(rung)
        self._started.pop(stage, None)
        self._unproven.add(stage)
        text = f"{shown(before, rung)} did not fit{self._in_budget()}; going on with {{}}"
        self._say(rung, reason, text, error, other=before)

    def _say(
        self, rung: Rung, reason: str, text: str, error: str = "", other: Rung | None = None
    ) -> None:
        entry = {
            "stage": rung.stage,
            "rung": rung.to_json(),
            "name": rung.name,
            "reason": reason,
            "error": error,
        }
        name = rung.name if other is None else shown(rung, other)
        self._tell(entry, f"{rung.stage}: {text.format(name)}")

    def _in_budget(self) -> str:
        return f" in {gib(self._budget)}" if self._budget else ""


def weights(rung: Rung) -> tuple[str, bool]:
    """Return the fields of a rung that decide how much its weights take."""
    return rung.precision, rung.offload


def shown(rung: Rung, other: Rung) -> str:
    """Return a rung in words: `batch 4` where only that differs from another, else all it is."""
    return rung.size_name if replace(rung, batch=other.batch) == other else rung.name


def index_of(rungs: Sequence[Rung], found: Rung) -> int:
    """Return where a rung stands, or the first below it. Another run's ladder may have other
    batches."""
    like = [i for i, r in enumerate(rungs) if replace(r, batch=found.batch) == found]
    below = [i for i in like if rungs[i].batch <= found.batch]
    return min(below, default=max(like, default=0))
