"""The quality gates that a quantized checkpoint must pass against its original, and their check."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.models.published import PARITY as PARITY

"""File of a checkpoint that says how far it is from its original."""
FRAMES = 64
"""Least frames that a checkpoint is judged by."""
KEPT, DIGITS = 200, 6
"""Captions or chunks whose figure is told by itself, and the digits of it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ParityThreshold:
    """One measured figure and its threshold."""

    group: str
    name: str
    bound: float
    is_minimum: bool
    label: str

    def passes(self, value: float) -> bool:
        return value >= self.bound if self.is_minimum else value <= self.bound

    def describe(self, value: float) -> str:
        """Return the figure in words, with what it has to be."""
        return f"{self.label} {value:.5g} ({'≥' if self.is_minimum else '≤'} {self.bound:g})"


def _of_vectors(group: str) -> tuple[ParityThreshold, ...]:
    """Return the gates of what is compared by its direction."""
    figures = {
        "centred_mean": (0.99, f"centred cosine of {group}"),
        "centred_least": (0.95, f"least centred cosine of {group}"),
        "neighbours": (0.95, f"share of the same 10 neighbours of {group}"),
    }
    return tuple(
        ParityThreshold(group=group, name=name, bound=bound, is_minimum=True, label=label)
        for name, (bound, label) in figures.items()
    )


GATES = (
    *_of_vectors("features"),
    *_of_vectors("texts"),
    ParityThreshold(
        group="text",
        name="token_agreement",
        bound=0.995,
        is_minimum=True,
        label="share of the same tokens",
    ),
    ParityThreshold(
        group="text",
        name="divergence",
        bound=0.005,
        is_minimum=False,
        label="Kullback-Leibler divergence in nats a token",
    ),
)
"""Figures that decide. By how many of the captions are the same as the original's is told, and
decides nothing: one word in a hundred may be as good as another."""


def verdict_in(folder: Path) -> dict[str, Any]:
    """Return the verdict of a checkpoint; empty where there is none."""
    try:
        found: dict[str, Any] = json.loads((folder / PARITY).read_text(encoding="utf-8"))
        return found if isinstance(found, dict) else {}
    except (OSError, ValueError):
        return {}


def of_each(values: Mapping[str, float]) -> dict[str, float]:
    """Return the figure of each caption or chunk, the smallest first; of very many those that lie
    evenly among them, with the first and the last."""
    ranked = sorted(values, key=lambda name: (values[name], name))
    if len(ranked) > KEPT:
        ranked = [ranked[at * (len(ranked) - 1) // (KEPT - 1)] for at in range(KEPT)]
    return {name: float(f"{values[name]:.{DIGITS}g}") for name in ranked}


def evaluate_parity(figures: Mapping[str, Mapping[str, Any]], frames: int) -> dict[str, Any]:
    """Return the verdict as `parity.json` has it; `figures` are those of each group that was
    measured."""
    gates = [gate for gate in GATES if gate.group in figures]
    missed = [
        gate.describe(figures[gate.group][gate.name])
        for gate in gates
        if not gate.passes(figures[gate.group][gate.name])
    ]
    if frames < FRAMES:
        missed.append(f"{frames} frames were seen (≥ {FRAMES})")
    return {
        **figures,
        "frames": frames,
        "gates": {f"{gate.group}.{gate.name}": gate.bound for gate in gates},
        "passed": not missed,
        "missed": missed,
    }
