"""One checkpoint with its clips, and every run that was measured on it.

A budget is what a process may take above its libraries, weights included.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from artifacts.keys import digest_of
from artifacts.packs import RecordSet
from artifacts.store import open_store
from benchmarks._models import FRAMES, publish_clips
from benchmarks._modes import Outcome, perform, run_mode

BATCHES = (1, 2, 4, 8, 16)
Member = dict[str, str]
"""What a job says of one clip."""
Runner = Callable[[str, dict[str, Any], int | None], Outcome]
"""Runs a mode over a job within a budget of bytes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One batch."""

    seconds: float
    """Wall seconds a clip."""
    cpu_seconds: float
    """CPU seconds a clip, of all threads."""
    peak: int
    """Bytes."""


@dataclass(kw_only=True, slots=True)
class Bench:
    """One checkpoint with its clips, and all that was measured on it."""

    model: Path
    store: str
    members: list[Member]
    tokens: int
    """New tokens a caption."""
    batches: tuple[int, ...] = BATCHES
    runner: Runner = run_mode
    steps: dict[tuple[str, int], list[Step]] = field(default_factory=dict)
    """(mode, batch) → what it took, one a round."""
    starts: dict[str, list[float]] = field(default_factory=dict)
    """Mode → seconds of a process outside its steady state: start, import and load."""
    lived: dict[tuple[str, int], int] = field(default_factory=dict)
    """(mode, batch) → a budget in bytes within which it was seen to live."""
    features: str = ""
    """Namespace of the features that decoding reads: those of the first encoding."""
    _namespaces: int = 0

    def run(
        self,
        mode: str,
        cut: Sequence[Sequence[Member]],
        budget: int | None = None,
        **changes: Any,
    ) -> Outcome:
        """One run of a mode over batches of members, published where nothing is yet."""
        self._namespaces += 1
        namespace = digest_of(["namespace", self._namespaces])
        if mode == "encode" and not self.features:
            self.features = namespace
        job = {
            "store": self.store,
            "model": str(self.model),
            "device": "cpu",
            "dtype": "bfloat16",
            "attention": "sdpa",
            "frames_namespace": FRAMES,
            "features_namespace": self.features,
            "namespace": namespace,
            "max_new_tokens": self.tokens,
            "batches": [[_entry(mode, member) for member in batch] for batch in cut],
        }
        return self.runner(mode, {**job, **changes}, budget)

    def ladder(self, mode: str) -> None:
        """One process that takes a batch of each size in turn, each larger than the last; the
        first batch warms it up and does not count."""
        sizes, cut, at = (1, *self.batches), [], 0
        for size in sizes:
            cut.append(self.members[at : at + size])
            at += size
        outcome = self.run(mode, cut)
        self.starts.setdefault(mode, []).append(outcome.whole_seconds - outcome.seconds)
        before, end = outcome.marks[0], 0
        for size in self.batches:
            end += size
            mark = outcome.marks[end]
            seconds, cpu = ((mark[i] - before[i]) / size for i in (0, 1))
            step = Step(seconds=seconds, cpu_seconds=cpu, peak=mark[2])
            self.steps.setdefault((mode, size), []).append(step)
            before = mark

    def peak(self, mode: str, size: int) -> int:
        """The highest memory of a batch of that size in any round, in bytes."""
        return max(step.peak for step in self.steps[mode, size])

    def largest(self, mode: str, budget: int) -> int:
        """The largest batch that lives within the budget; 0 when none does. It is tried for real,
        also where the peak says that it would not fit."""
        fitting = [size for size in self.batches if self.peak(mode, size) <= budget]
        for size in sorted(fitting, reverse=True) or [self.batches[0]]:
            if budget >= self.lived.get((mode, size), budget + 1):
                return size
            if not self.run(mode, [self.members[:size]], budget).died:
                self.lived[mode, size] = budget
                return size
        return 0


def batches_of(members: Sequence[Member], size: int) -> list[list[Member]]:
    """The members in order, so many together."""
    return [list(members[i : i + size]) for i in range(0, len(members), size)]


def features_of(model: Path, dtype: str, store: str, frames: list[int]) -> dict[str, Any]:
    """Key → features of clips with so many frames each, made by the real stage."""
    from stages.decode.stored import read_features

    members = publish_clips(store, frames)
    bench = Bench(
        model=model,
        store=store,
        members=members,
        tokens=1,
        runner=lambda mode, job, _: perform(mode, {**job, "dtype": dtype}),
    )
    bench.run("encode", batches_of(members, 1))
    record_set = RecordSet(open_store(store), "features", bench.features)
    return {key: read_features(record_set, key) for key in sorted(record_set.keys())}


def _entry(mode: str, member: Member) -> Member:
    features = digest_of(["features", member["frames"]])
    key = features if mode == "encode" else digest_of(["caption", member["frames"]])
    return {**member, "key": key, "features": features}
