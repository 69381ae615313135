"""Finds the export that a folder is of, and reads how its checkpoint was judged, which people or
another version may have changed. It writes nothing."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from artifacts.shapes import Each, Left, Misshapen, anything, check, count, number, read_json, text
from flows.options.export_config import EXPORTED, NATIVE, REJECTED, RUNS
from flows.results.exported import figures_line
from flows.results.run_record import RUN_RECORD
from stages.export.parity import GATES, PARITY

AGAIN = "Export into a new folder: penstock export MODEL --to KIND --out DIR"
NEARNESS = {
    "rows": count,
    **dict.fromkeys(("cosine", "centred_mean", "centred_least", "neighbours"), number),
    "by_chunk": Left(Each(number)),
    "chunks": Left(count),
}
FIGURES: dict[str, dict[str, Any]] = {
    "features": NEARNESS,
    "texts": NEARNESS,
    "text": {
        **dict.fromkeys(("captions", "tokens"), count),
        **dict.fromkeys(("token_agreement", "divergence", "captions_as_native"), number),
        "by_caption": Left(Each(number)),
    },
}
SHAPE = {
    "recipe": Each(anything),
    "frames": count,
    "gates": Each(number),
    "passed": lambda value: isinstance(value, bool),
    "missed": [text],
    **{name: Left(shape) for name, shape in FIGURES.items()},
}
"""Shape of `parity.json`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportFound:
    """An export, as far as it has come."""

    checkpoint: Path
    """Folder of the checkpoint: in its place, or where it waits."""
    placed: bool
    """Whether it is in its place."""
    parity: dict[str, Any] | None
    """Its verdict; None: it is not judged yet."""
    runs: tuple[Path, ...]
    """Folders of its runs that have a record: of the original's, then of the checkpoint's."""

    @property
    def latest(self) -> Path | None:
        """Return the folder of the run that was last at work."""
        return max(self.runs, key=lambda run: (run / RUN_RECORD).stat().st_mtime, default=None)

    def verdict(self) -> str:
        """Return in a line what became of the checkpoint."""
        if self.parity is None:
            return "the checkpoint is not judged yet"
        missed = "; ".join(self.parity["missed"])
        if not self.placed:
            return f"rejected: not reached: {missed}. It is kept in {self.checkpoint}"
        figures = figures_line(self.parity)
        if self.parity["passed"]:
            return f"passed: {figures}"
        return f"accepted, and not passed: {missed}; {figures}"


def export_in(out: Path) -> ExportFound | None:
    """Return the export that a folder is of, or whose rejected checkpoint it is; None for any
    other. Raises EnvironmentFault."""
    if os.path.lexists(out / RUN_RECORD):
        return None
    top = out.parent if out.name == REJECTED else out
    runs = (top / RUNS / name for name in (NATIVE, EXPORTED))
    found = tuple(run for run in runs if (run / RUN_RECORD).is_file())
    places = (place for place in (top, top / REJECTED) if os.path.lexists(place / PARITY))
    place = next(places, None)
    if place is None and not found:
        return None
    parity = None if place is None else read_json(place / PARITY, SHAPE, AGAIN, _known)
    checkpoint = place or top / REJECTED
    return ExportFound(checkpoint=checkpoint, placed=checkpoint == top, parity=parity, runs=found)


def _known(parity: dict[str, Any]) -> dict[str, Any]:
    """Return a verdict whose gates are all known, and of figures that it has. Raises Misshapen."""
    check(parity, {"gates": Each(number)})
    known = {f"{gate.group}.{gate.name}" for gate in GATES}
    for name in parity["gates"]:
        if name not in known or name.split(".")[0] not in parity:
            raise Misshapen(f"its gates name {name[:40]}, which it has no figure of")
    return parity
