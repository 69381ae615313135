"""The quality thresholds that a quantized checkpoint must pass against its original, and their
check."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from artifacts.disk.json_records import json_of, read_json_file
from artifacts.disk.json_shapes import Json
from artifacts.disk.json_types import Count, Number, Text
from artifacts.errors import PenstockError

PARITY = "parity.json"
"""File beside a checkpoint that Penstock exported: the result of its comparison."""
FRAMES = 64
"""Fewest frames for a verdict."""
KEPT, DIGITS = 200, 6
"""Most captions or chunks with a figure of their own, and its digits."""


@dataclass(frozen=True, kw_only=True, slots=True)
class VectorFigures:
    """How near the features of the checkpoint are to those of the original."""

    rows: Count
    """Compared rows of features."""
    cosine: Number
    centred_mean: Number
    """Mean of the cosines after the mean of all features is taken away."""
    centred_least: Number
    neighbours: Number
    """Share of the nearest rows that are the same."""
    chunks: Count
    by_chunk: dict[Text, Number]
    """Chunk → mean of its centred cosines."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TextFigures:
    """How near the logits of the checkpoint are to those of the original, on its captions."""

    captions: Count
    tokens: Count
    token_agreement: Number
    """Share of tokens that the checkpoint and the original choose alike."""
    divergence: Number
    """Kullback-Leibler divergence in nats per token."""
    captions_as_native: Number
    """Share of captions for which the checkpoint and the original choose the same tokens."""
    by_caption: dict[Text, Number]
    """Caption → its divergence in nats per token."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rounding:
    """How the weights of a calibrated checkpoint were rounded."""

    to_nearest: dict[Text, Text] = field(default_factory=dict)
    """Path of each weight that is rounded to nearest → why."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Figures:
    """What was measured of a checkpoint; None: that group was not."""

    features: VectorFigures | None = None
    texts: VectorFigures | None = None
    text: TextFigures | None = None
    rounding: Rounding | None = None

    def measured(self, gate: "ParityThreshold") -> float | None:
        """Return the figure that a threshold is for; None: it was not measured."""
        group = getattr(self, gate.group)
        return None if group is None else getattr(group, gate.name)


@dataclass(frozen=True, kw_only=True, slots=True)
class Parity(Figures):
    """The verdict on a checkpoint, as `parity.json` has it."""

    recipe: dict[str, Any]
    """What decides the checkpoint, besides the samples."""
    frames: Count
    """Frames of the media that were compared."""
    gates: dict[Text, Number]
    """Threshold → its bound."""
    passed: bool
    missed: tuple[Text, ...]
    """Each figure that missed its bound, with both."""

    def __post_init__(self) -> None:
        measured = {gate.key for gate in GATES if self.measured(gate) is not None}
        if unknown := sorted(self.gates.keys() - measured):
            raise ValueError(f"its gates name {unknown[0][:40]}, which has no figure")

    def to_json(self) -> dict[str, Any]:
        """Return it as `parity.json` has it."""
        return {name: value for name, value in json_of(self).items() if value is not None}


@dataclass(frozen=True, kw_only=True, slots=True)
class ParityThreshold:
    """One measured figure and its threshold."""

    group: str
    name: str
    bound: float
    is_minimum: bool
    label: str

    @property
    def key(self) -> str:
        """Return its name in `parity.json`."""
        return f"{self.group}.{self.name}"

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


def verdict_in(folder: Path) -> Parity | None:
    """Return the verdict on a checkpoint; None if there is none that can be read."""
    try:
        return read_json_file(Parity, folder / PARITY, "")
    except PenstockError:
        return None


def of_each(values: Mapping[str, float]) -> dict[str, float]:
    """Return the figure of each caption or chunk, the smallest first. Of more than KEPT, return an
    even selection with the first and the last."""
    ranked = sorted(values, key=lambda name: (values[name], name))
    if len(ranked) > KEPT:
        ranked = [ranked[at * (len(ranked) - 1) // (KEPT - 1)] for at in range(KEPT)]
    return {name: float(f"{values[name]:.{DIGITS}g}") for name in ranked}


def evaluate_parity(figures: Figures, frames: int, recipe: Mapping[str, Json]) -> Parity:
    """Return the verdict on a checkpoint by these figures."""
    measured = [(gate, value) for gate in GATES if (value := figures.measured(gate)) is not None]
    missed = [gate.describe(value) for gate, value in measured if not gate.passes(value)]
    if frames < FRAMES:
        missed.append(f"{frames} frames (≥ {FRAMES})")
    return Parity(
        features=figures.features,
        texts=figures.texts,
        text=figures.text,
        rounding=figures.rounding,
        recipe=dict(recipe),
        frames=frames,
        gates={gate.key: gate.bound for gate, _ in measured},
        passed=not missed,
        missed=tuple(missed),
    )
