"""One checkpoint with its clips, and every run that was measured on it; knows no table.

A budget is what a process may take above its libraries, weights included.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from artifacts.keys import digest_of
from benchmarks._models import FRAMES
from benchmarks._modes import Outcome, run_mode

BATCHES = (1, 2, 4, 8, 16)
Member = dict[str, str]
"""What a job says of one clip."""
Runner = Callable[[str, dict[str, Any], int | None], Outcome]
"""Runs a mode over a job within a budget of bytes."""


@dataclass(kw_only=True, slots=True)
class Bench:
    """One checkpoint with its clips, and all that was measured on it."""

    model: Path
    store: str
    members: list[Member]
    clips: int
    """How many are captioned in a timed run; the others serve to measure peaks."""
    tokens: int
    """New tokens a caption."""
    batches: tuple[int, ...] = BATCHES
    runner: Runner = run_mode
    found: dict[tuple[str, int], list[Outcome]] = field(default_factory=dict)
    """(mode, batch) → outcomes, one a round."""
    features: str = ""
    """Scope of the features that decoding reads: those of the first encoding."""
    _scopes: int = 0

    def run(
        self,
        mode: str,
        cut: Sequence[Sequence[Member]],
        budget: int | None = None,
        **changes: Any,
    ) -> Outcome:
        """One run of a mode over batches of members, published where nothing is yet."""
        self._scopes += 1
        scope = digest_of(["scope", self._scopes])
        if mode == "encode" and not self.features:
            self.features = scope
        job = {
            "store": self.store,
            "model": str(self.model),
            "device": "cpu",
            "dtype": "bfloat16",
            "attention": "sdpa",
            "frames_scope": FRAMES,
            "features_scope": self.features,
            "scope": scope,
            "max_new_tokens": self.tokens,
            "batches": [[_entry(mode, member) for member in batch] for batch in cut],
        }
        return self.runner(mode, {**job, **changes}, budget)

    def peaks(self, mode: str) -> dict[int, int]:
        """Batch → peak memory of one batch of that size, in bytes; all in one process, growing."""
        sizes, at = list(self.batches), 0
        cut = []
        for size in sizes:
            cut.append(self.members[at : at + size])
            at += size
        peaks = self.run(mode, cut).peaks
        ends = [sum(sizes[: i + 1]) - 1 for i in range(len(sizes))]
        return {size: peaks[end] for size, end in zip(sizes, ends, strict=True)}

    def timed(self, mode: str, batch: int, budget: int | None = None) -> Outcome:
        """One more run over the clips, in batches of one size."""
        outcome = self.run(mode, batches_of(self.members[: self.clips], batch), budget)
        if not outcome.died:
            self.found.setdefault((mode, batch), []).append(outcome)
        return outcome

    def largest(self, mode: str, budget: int, peaks: dict[int, int]) -> int:
        """The largest batch that lives within the budget; 0 when none does. It is tried for real,
        also where the peak says that it would not fit."""
        fitting = [size for size in self.batches if peaks[size] <= budget]
        for size in sorted(fitting, reverse=True) or [self.batches[0]]:
            if (mode, size) in self.found and size in fitting:
                return size
            if not self.timed(mode, size, budget).died:
                return size
        return 0


def batches_of(members: Sequence[Member], size: int) -> list[list[Member]]:
    """The members in order, so many together."""
    return [list(members[i : i + size]) for i in range(0, len(members), size)]


def _entry(mode: str, member: Member) -> Member:
    features = digest_of(["features", member["frames"]])
    key = features if mode == "encode" else digest_of(["caption", member["frames"]])
    return {**member, "key": key, "features": features}
