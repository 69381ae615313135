"""Chooses the layers, the rank and the alpha of an adapter.

A training that continues from an adapter keeps all three: the same weights under another alpha
would have another effect. The module imports no model library.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from artifacts.errors import UsageError
from stages.models.adapter_modules import PREFIX, LoraAdapter, read_adapter

SCALE = 2
"""Alpha of a new adapter, as a multiple of its rank."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AdapterLayout:
    """The layers that an adapter changes."""

    ranks: Mapping[str, int]
    """Path of a layer → rank."""
    alphas: Mapping[str, float]
    """Path of a layer → alpha."""

    @property
    def rank(self) -> int:
        """Return the most common rank."""
        return int(most_common(self.ranks.values()))


def most_common(numbers: Iterable[float]) -> float:
    """Return the most common number, the first of several."""
    return Counter(numbers).most_common(1)[0][0]


def new_layout(paths: Iterable[str], rank: int) -> AdapterLayout:
    ranks = dict.fromkeys(sorted(paths), rank)
    return AdapterLayout(ranks=ranks, alphas=dict.fromkeys(ranks, float(SCALE * rank)))


def layout_in(folder: Path, rank: int) -> AdapterLayout:
    """Return the layout of the adapter in a folder, from which a training with that rank continues.
    Raises UsageError if the ranks differ."""
    layout = layout_of(folder)
    if layout.rank != rank:
        raise UsageError(
            f"--lora-rank is {rank}, but the adapter in {folder} has rank {layout.rank}",
            hint=f"Give --lora-rank {layout.rank} with --resume, or another --out",
        )
    return layout


def layout_of(folder: Path) -> AdapterLayout:
    """Return the layout of the adapter in a folder. Raises UsageError if no training can continue
    from it."""
    adapter = read_adapter(folder)
    _refuse_beyond(adapter)
    ranks = {path: adapter.places[of.a].shape[0] for path, of in adapter.low_rank.items()}
    alphas = {path: round(of.scale * ranks[path], 9) for path, of in adapter.low_rank.items()}
    return AdapterLayout(ranks=ranks, alphas=alphas)


def _refuse_beyond(adapter: LoraAdapter) -> None:
    """Raise UsageError for an adapter that a training could not write again unchanged."""
    odd = next(iter(adapter.whole.values()), "")
    tables = [path for path, of in adapter.low_rank.items() if of.embedding]
    named = [of.a for of in adapter.low_rank.values() if not of.a.startswith(PREFIX)]
    if odd or tables or named:
        raise UsageError(
            f"the adapter in {adapter.folder} holds {odd or [*tables, *named][0]}, which cannot be "
            "trained further",
            hint="Use another --out, and train a new adapter",
        )
