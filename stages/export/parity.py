"""The quality thresholds that a quantized checkpoint must pass against its original, and their
check."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PARITY = "parity.json"
"""File beside a checkpoint that Penstock exported: the result of its comparison."""
FRAMES = 64
"""Fewest frames for a verdict."""
KEPT, DIGITS = 200, 6
"""Most captions or chunks with a figure of their own, and its digits."""


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
        """Return the figure with its label and threshold."""
        return f"{self.label} {value:.5g} ({'≥' if self.is_minimum else '≤'} {self.bound:g})"


def _of_vectors(group: str) -> tuple[ParityThreshold, ...]:
    """Return the thresholds of features that are compared by direction."""
    figures = {
        "centred_mean": (0.99, f"centred cosine of {group}"),
        "centred_least": (0.95, f"lowest centred cosine of {group}"),
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
        label="Kullback-Leibler divergence in nats per token",
    ),
)
"""Figures that decide. The share of captions equal to the original's is reported, but decides
nothing, because a different word may be as good."""


def verdict_in(folder: Path) -> dict[str, Any]:
    """Return the verdict of a checkpoint; empty if there is none."""
    try:
        verdict: dict[str, Any] = json.loads((folder / PARITY).read_text(encoding="utf-8"))
        return verdict if isinstance(verdict, dict) else {}
    except (OSError, ValueError):
        return {}


def of_each(values: Mapping[str, float]) -> dict[str, float]:
    """Return the figure of each caption or chunk, the smallest first. Of more than KEPT, return an
    even selection with the first and the last."""
    ranked = sorted(values, key=lambda name: (values[name], name))
    if len(ranked) > KEPT:
        ranked = [ranked[at * (len(ranked) - 1) // (KEPT - 1)] for at in range(KEPT)]
    return {name: float(f"{values[name]:.{DIGITS}g}") for name in ranked}


def evaluate_parity(figures: Mapping[str, Mapping[str, Any]], frames: int) -> dict[str, Any]:
    """Return the verdict for `parity.json`; `figures` holds those of each measured group."""
    gates = [gate for gate in GATES if gate.group in figures]
    missed = [
        gate.describe(figures[gate.group][gate.name])
        for gate in gates
        if not gate.passes(figures[gate.group][gate.name])
    ]
    if frames < FRAMES:
        missed.append(f"{frames} frames (≥ {FRAMES})")
    return {
        **figures,
        "frames": frames,
        "gates": {f"{gate.group}.{gate.name}": gate.bound for gate in gates},
        "passed": not missed,
        "missed": missed,
    }
