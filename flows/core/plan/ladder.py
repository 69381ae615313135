"""Lists the fallback rungs of each stage, and steps down when memory runs out.

How it works:

1. Each stage has a list of rungs and a position in it. The first rung is the cheapest mode of the
   stage; later ones need less memory.
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
7. A single item that does not fit with others is tried alone, with batch 1, on the current rung and
   on each lower one.
8. Every move is reported as a log line and as an entry under `rungs` in `run.json`.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

from artifacts.digests import digest_of
from artifacts.disk.json_records import read_record
from artifacts.disk.json_shapes import Json
from artifacts.errors import CannotFit, EnvironmentFault
from artifacts.records.packs import Record, record_sets_of
from artifacts.records.store import Store
from artifacts.wording import counted
from flows.core.console.lines import gib
from flows.core.job.plan_record import RungRecord
from flows.core.machine.versions import now
from flows.core.pipelines import STAGES
from stages.memory.oom_retry import smaller
from stages.process.events import Answered, BatchShrunk, Event, TooLarge
from stages.tune import ADAMW8, PAGED_ADAMW8

MLP_CHUNKS = (1024, 256)
"""Positions that pass an MLP at once, if all positions of a prompt or of frames are too many."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rung:
    """One way to run one stage."""

    stage: str
    batch: int
    """Maximum chunks per batch; of the frames stage, files decoded at once."""
    prefill: int = 0
    """Positions computed at once; 0: all. Encode: size of an MLP chunk. Decode: size of a prefill
    chunk."""
    kv: str = ""
    """Placement of the KV cache: empty (on the device), `offloaded` (in host memory), or
    `quantized` (on the device, which changes some words)."""
    precision: str = ""
    """Precision of the half, as in PartSettings; empty for frames."""
    offload: bool = False
    """Whether weights stay in host memory (on disk for a CPU and for the encode stage) and are
    loaded layer by layer."""
    packed: bool = False
    """Whether layers that another program quantized stay packed, and are unpacked one by one when
    they compute."""
    block: int = 0
    """Encode stage with offload: maximum chunks whose batches pass a layer while it is loaded."""
    in_slots: bool = False
    """Decode stage: whether each chunk has a slot, which the next chunk takes when it is done."""
    context: int = 0
    """Summarize stage: maximum tokens of prompt and answer together."""
    rank: int = 0
    """Tune stage: rank of the adapter; 0: no training."""
    caption: int = 0
    """Tune stage: approximate maximum tokens of a caption."""
    recompute: bool = False
    """Whether layers are recomputed for the backward pass (gradient checkpointing)."""
    optimizer: str = ""
    """Tune stage: optimizer."""

    @property
    def name(self) -> str:
        """Return the rung as text: `batch 4, int8`."""
        if "frames" in STAGES[self.stage].reads and STAGES[self.stage].part is None:
            return f"{counted(self.batch, 'request')} at once"
        if STAGES[self.stage].part is None:
            return f"{self.batch} file{'s' if self.batch > 1 else ''} at once"
        past = f" past up to {self.block} at a time" if self.block > self.batch else ""
        pieces = [
            self.size_name,
            self.precision,
            f"prefill chunks of {self.prefill}" if self.prefill else "",
            f"KV cache {self.kv}" if self.kv else "",
            f"contexts of {self.context:,} tokens" if self.context else "",
            "unpacked layer by layer" if self.packed else "",
            "weights offloaded" if self.offload and not self.block else "",
            f"streamed layer by layer{past}" if self.block else "",
            "gradient checkpointing" if self.recompute else "",
            "8-bit moments" if self.optimizer in (ADAMW8, PAGED_ADAMW8) else "",
        ]
        return ", ".join(filter(None, pieces))

    @property
    def size_name(self) -> str:
        """Return the batch size as text: `batch 4`, or `4 slots`."""
        return counted(self.batch, "slot") if self.in_slots else f"batch {self.batch}"


def sizes(largest: int) -> list[int]:
    """Return the largest size, then the powers of two below it, so that sub-batches nest."""
    nested = [largest]
    while nested[-1] > 1:
        nested.append(smaller(nested[-1]))
    return nested


KIND = "rungs"
OUTPUT_VERSION = 5
"""Version, raised when stages come to use another amount of memory on the same rung."""
BUDGET_TOLERANCE = 1.05
"""Factor by which a budget may be larger and still count as the same: free memory varies between
runs."""
KEPT_SECONDS = 30 * 86400.0
"""Seconds after which a stored rung expires: something else may have used memory at that time."""


class Remembered:
    """The stored rungs of a run's stages. `about` holds, per stage, everything that determines its
    memory use: the device, the half, and the size of a chunk."""

    def __init__(self, store: Store, about: Mapping[str, Json], budget: int) -> None:
        namespaces = [digest_of(["rungs", OUTPUT_VERSION, s, of]) for s, of in about.items()]
        opened = record_sets_of(store, *((KIND, namespace) for namespace in namespaces))
        self._record_sets = dict(zip(about, opened, strict=True))
        self._budget = budget

    def rungs(self, stage: str) -> list[Rung]:
        """Return rungs to which a stage fell back with as much memory as now, or more. It did not
        fit on better rungs."""
        return [read_record(Rung, meta["rung"]) for meta in self._metas(stage).values()]

    def keep(self, rung: Rung) -> None:
        """Store that a stage fits on this rung, but not on better ones."""
        record_set = self._record_sets[rung.stage]
        record_set.refresh()
        before = self._metas(rung.stage)
        meta = {"rung": asdict(rung), "budget": self._budget, "time": round(time.time())}
        key = digest_of(meta)
        record_set.publish([Record(key=key, meta=meta)])
        # Results for a larger budget stay valid. Those for this budget or less are superseded.
        record_set.drop(
            k for k in before if k != key and record_set.meta(k)["budget"] <= self._budget
        )

    def _metas(self, stage: str) -> dict[str, dict[str, Json]]:
        """Return the stored results of a stage that still apply, by key."""
        record_set = self._record_sets[stage]
        metas = {key: record_set.meta(key) for key in sorted(record_set.keys())}
        return {
            key: meta
            for key, meta in metas.items()
            if time.time() - float(meta["time"]) < KEPT_SECONDS
            and self._budget <= float(meta["budget"]) * BUDGET_TOLERANCE
        }


OnMove = Callable[[RungRecord, str], None]
"""Callback with an entry of the record's `rungs`, and the same as a log line."""


class Ladder:
    """The rungs of every stage. Thread-safe: each stage sends its events on its own thread."""

    def __init__(
        self,
        rungs: Mapping[str, Sequence[Rung]],
        remembered: Remembered,
        *,
        budget_bytes: int,
        on_move: OnMove,
    ) -> None:
        """Put each stage on its stored rung. `rungs`: the rungs of each stage, cheapest first."""
        self.rungs = rungs
        self._remembered = remembered
        self._budget = budget_bytes
        self._on_move = on_move
        self._lock = threading.RLock()
        self._at: dict[str, int] = {}
        self._sharing: dict[str, Callable[[str], object]] = {}
        """Stage whose process shares the device → what is called when it runs out of memory."""
        self._started: dict[str, str] = {}
        """Stage → why it does not start on the first rung; removed once it is logged."""
        self._unproven: set[str] = set()
        """Stages without a finished item on their current rung."""
        for stage, stage_rungs in rungs.items():
            known = [index_of(stage_rungs, rung) for rung in remembered.rungs(stage)]
            self._at[stage] = max(known, default=0)
            if self._at[stage]:
                self._started[stage] = "remembered"

    def known(self) -> dict[str, Rung]:
        """Return stage → rung on which it fitted in an earlier run."""
        with self._lock:
            return {s: self.rung(s) for s, why in self._started.items() if why == "remembered"}

    def start(self, planned: Mapping[str, Rung]) -> None:
        """Put stages on their planned rungs, except those with a stored rung."""
        with self._lock:
            for stage, rung in planned.items():
                at = self.rungs[stage].index(rung)
                if at and stage not in self._started:
                    self._at[stage], self._started[stage] = at, "planned"

    def rung(self, stage: str) -> Rung:
        with self._lock:
            return self.rungs[stage][self._at[stage]]

    def begin(self, stage: str, on_oom: Callable[[str], object] | None = None) -> None:
        """Log why the stage does not start on its first rung; called before each process.

        A process that shares the device has `on_oom`. It is called with the error when memory runs
        out, in place of a step down: alone the stage may fit.
        """
        with self._lock:
            self._sharing.pop(stage, None)
            if on_oom is not None:
                self._sharing[stage] = on_oom
            reason = self._started.pop(stage, "")
            if reason:
                why = {"remembered": "it fitted before", "planned": "more is not expected to fit"}
                self._log_move(self.rung(stage), reason, f"starting with {{}}: {why[reason]}")

    def on_event(self, stage: str, event: Event) -> None:
        if stage not in self.rungs:
            return
        if isinstance(event, BatchShrunk | TooLarge) and stage in self._sharing:
            self._sharing[stage](event.error)
        elif isinstance(event, BatchShrunk):
            self._shrink(stage, event)
        elif isinstance(event, Answered):
            self.note_success(stage)

    def note_success(self, stage: str) -> None:
        """Store the current rung as fitting after its first finished item."""
        with self._lock:
            if stage in self._unproven:
                self._unproven.discard(stage)
                with contextlib.suppress(EnvironmentFault):  # a full disk ends the run soon enough
                    self._remembered.keep(self.rung(stage))

    def step_down(
        self,
        stage: str,
        error: CannotFit,
        *,
        largest: int,
        tokens: int,
        ready: bool = True,
        advise: Callable[[str], str] = lambda stage: "",
    ) -> None:
        """Step down after the stage's process ran out of memory.

        `largest`: maximum items in a batch. `tokens`: maximum tokens of an item; 0: unknown.
        `ready`: whether the weights were loaded. `advise` returns what would make a stage fit;
        empty: unknown. Raises CannotFit at the end of the ladder.
        """
        with self._lock:
            before = self.rung(stage)
            weights = (before.precision, before.offload, before.packed)
            rest = self.rungs[stage][self._at[stage] + 1 :]
            lower = [
                rung
                for rung in rest
                # A smaller batch cannot help if loading the weights ran out of memory.
                if (ready or (rung.precision, rung.offload, rung.packed) != weights)
                and (rung.batch < largest or replace(rung, batch=before.batch) != before)
                and (not 0 < tokens <= rung.prefill or replace(rung, prefill=0) != before)
            ]
            if not lower:
                raise self.nothing_fits(stage, error, advise(stage)) from error
            reason = "killed" if "kill" in error.message.lower() else "out of memory"
            self._move_to(lower[0], reason, error.message, failed=largest)

    def single_item_rungs(self, stage: str) -> list[Rung]:
        """Return the rungs for a single item that did not fit, from the current one downwards."""
        with self._lock:
            rest = self.rungs[stage][self._at[stage] :]
            rungs = (replace(rung, batch=1, block=min(rung.block, 1)) for rung in rest)
            return list(dict.fromkeys(rungs))

    def log_single_items(self, rung: Rung, names: Sequence[str], error: str) -> None:
        """Log that items run alone on a rung that the others do not need."""
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        text = f"{names[0]}{more} did not fit; trying it alone with {{}}"
        self._log_move(rung, "item alone", text, error)

    def nothing_fits(self, stage: str, error: CannotFit, advice: str) -> CannotFit:
        """Return the error for the end of the ladder, with `advice` if there is any."""
        rung = self.rung(stage)
        return CannotFit(
            f"the {stage} stage does not fit{self._in_budget()}, not even with {rung.name} "
            f"({error.message})",
            hint=f"Finished work is kept; give {advice or 'more with --memory'}",
        )

    def _shrink(self, stage: str, event: BatchShrunk) -> None:
        """Step down after the stage's process reduced its batches or blocks itself."""
        with self._lock:
            before = self.rung(stage)
            batch, block = event.batch, event.block or before.block
            for rung in self.rungs[stage][self._at[stage] + 1 :]:
                same = replace(rung, batch=before.batch, block=before.block) == before
                if same and rung.batch <= batch and rung.block <= block:
                    self._move_to(rung, "out of memory", event.error, event.failed)
                    break

    def _move_to(self, rung: Rung, reason: str, error: str, failed: int) -> None:
        stage = rung.stage
        before = replace(self.rung(stage), batch=min(failed, self.rung(stage).batch))
        self._at[stage] = self.rungs[stage].index(rung)
        self._started.pop(stage, None)
        self._unproven.add(stage)
        text = f"{describe_rung(before, rung)} did not fit{self._in_budget()}; continuing with {{}}"
        self._log_move(rung, reason, text, error, other=before)

    def _log_move(
        self, rung: Rung, reason: str, text: str, error: str = "", other: Rung | None = None
    ) -> None:
        entry = RungRecord(
            stage=rung.stage,
            rung=asdict(rung),
            name=rung.name,
            reason=reason,
            error=error,
            time=now(),
        )
        name = rung.name if other is None else describe_rung(rung, other)
        self._on_move(entry, f"{rung.stage}: {text.format(name)}")

    def _in_budget(self) -> str:
        return f" in {gib(self._budget)}" if self._budget else ""


def describe_rung(rung: Rung, other: Rung) -> str:
    """Describe a rung: only `batch 4` if nothing else differs from `other`, else all of it."""
    return rung.size_name if replace(rung, batch=other.batch) == other else rung.name


def index_of(rungs: Sequence[Rung], stored: Rung) -> int:
    """Return the index of a rung, or of the first one below it. The ladder of another run may have
    other batch sizes."""
    like = [i for i, r in enumerate(rungs) if replace(r, batch=stored.batch) == stored]
    below = [i for i in like if rungs[i].batch <= stored.batch]
    return min(below, default=max(like, default=0))
