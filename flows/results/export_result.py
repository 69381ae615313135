"""Moves an evaluated checkpoint to its final path, and reports the result of the export. Runs no
model.
"""

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from artifacts.captions import Failure
from artifacts.errors import UsageError
from artifacts.files import read_kept, write_json
from artifacts.owned_folders import refuse_foreign
from artifacts.shapes import (
    MapOf,
    OptionalField,
    ShapeError,
    anything,
    check,
    count,
    number,
    read_json,
    text,
)
from flows.console.units import size
from flows.options.export_config import EXPORTED, NATIVE, REJECTED, RUNS, ExportRequest
from flows.results.run_record import RUN_RECORD
from stages.export.jobs import GRAPHS
from stages.export.parity import GATES, PARITY, evaluate_parity, verdict_in
from stages.models.graphs import FOLDER
from stages.models.hub.checkpoint import CONFIG
from stages.models.shards import NOTE

VECTORS = ("features", "texts")
PLACING, FORMAT = "placing.json", 1
"""File, among the runs, of the names that are being moved into place, and its format."""
FIGURES = (*VECTORS, "text")
"""What figures are of."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Exported:
    """The end of an export."""

    out: Path
    """Folder of the checkpoint, in its place or among the rejected."""
    parity: Mapping[str, Any]
    accepted: bool
    """Whether it is in its place."""
    before: bool = False
    """Whether it was there before."""

    @property
    def failures(self) -> list[Failure]:
        return []

    @property
    def exit_code(self) -> int:
        """Return 0 when the checkpoint is in its place, 1 when it was rejected."""
        return 0 if self.accepted else 1

    @property
    def bytes(self) -> int:
        """Return the bytes of its weights, or of the graphs that were made of them."""
        graphs = self.parity.get("recipe", {}).get("kind") in GRAPHS
        paths = (self.out / FOLDER).glob("*.onnx*") if graphs else self.out.glob("*.safetensors")
        return sum(path.stat().st_size for path in paths)

    @property
    def made(self) -> int:
        """Return how many checkpoints are in their place."""
        return int(self.accepted)

    def line(self) -> str:
        """Return the outcome for people, in one line."""
        before = ", there before" if self.before else ""
        return f"{self.out}: {size(self.bytes)}{before}; {figures_line(self.parity)}"

    def row(self) -> dict[str, Any]:
        """Return the outcome as a row of a table."""
        told = {
            f"{name}.{each}": value
            for name in FIGURES
            for each, value in self.parity.get(name, {}).items()
            if isinstance(value, int | float)
        }
        folder = {"folder": str(self.out), "size": size(self.bytes), "taken": self.accepted}
        return {**folder, **told, "missed": "; ".join(self.parity["missed"])}

    def to_json(self) -> dict[str, Any]:
        """Return the outcome for programs."""
        told = {"out": str(self.out), "bytes": self.bytes, "accepted": self.accepted}
        return {**told, "parity": dict(self.parity), "exit_code": self.exit_code}


def figures_line(parity: Mapping[str, Any]) -> str:
    """Return what was measured of a checkpoint, in words."""
    told = []
    if (text := parity.get("text")) is not None:
        told.append(
            f"{text['token_agreement']:.2%} of {text['tokens']:,} tokens as the original, "
            f"divergence {text['divergence']:.2g} nats, "
            f"{text['captions_as_native']:.1%} of captions the same"
        )
    for what in VECTORS:
        if (near := parity.get(what)) is not None:
            told.append(
                f"{what} {near['centred_mean']:.4f} (least {near['centred_least']:.3f}), "
                f"{near['neighbours']:.1%} of the same neighbours"
            )
    return "; ".join(told)


def refuse_foreign_folder(asked: ExportRequest) -> None:
    """Refuse a folder that holds anything but an export. Raises UsageError."""
    records = (PARITY, f"{REJECTED}/{NOTE}", f"{REJECTED}/{CONFIG}")
    refuse_foreign(asked.folder, (REJECTED, RUNS), records)


def placed_before(folder: Path, recipe: Mapping[str, Any]) -> Exported | None:
    """Return the checkpoint that is in its place already. Raises UsageError where another one
    is."""
    if not (folder / CONFIG).exists():
        return None
    parity = verdict_in(folder)
    if parity.get("recipe") != dict(recipe):
        raise UsageError(
            f"{folder} holds another checkpoint, or one that was made otherwise",
            hint="Give a new folder, or remove that one",
        )
    return Exported(out=folder, parity=parity, accepted=True, before=True)


def was_judged(asked: ExportRequest, recipe: Mapping[str, Any]) -> bool:
    """Tell whether a checkpoint that is accepted waits among the rejected."""
    waits = asked.accept and (asked.work / CONFIG).exists()
    return waits and verdict_in(asked.work).get("recipe") == dict(recipe)


def forget_begun(asked: ExportRequest) -> None:
    """Remove what was written of a model that changed meanwhile."""
    for folder in (asked.work, asked.merged):
        if (folder / NOTE).exists():
            shutil.rmtree(folder, ignore_errors=True)


def note_parity(
    folder: Path, recipe: Mapping[str, Any], figures: Mapping[str, Any], frames: int
) -> None:
    """Write the verdict into the folder of a checkpoint that waits. Raises EnvironmentFault."""
    write_json(folder / PARITY, {"recipe": dict(recipe), **evaluate_parity(figures, frames)})


def put_into_place(asked: ExportRequest) -> Exported:
    """Move a checkpoint that passed, or is accepted, to where it was asked for: its configuration
    last, without which it is no model to anybody."""
    parity = verdict_in(asked.work)
    if not (parity["passed"] or asked.accept):
        return Exported(out=asked.work, parity=parity, accepted=False)
    paths = sorted(asked.work.iterdir(), key=lambda path: (path.name == CONFIG, path.name))
    note = asked.runs / PLACING
    begun = read_kept(note, FORMAT)
    ours = begun["names"] if begun else []  # of a move that was broken off
    for path in paths:
        if path.name not in ours and os.path.lexists(asked.folder / path.name):
            raise UsageError(
                f"{asked.folder / path.name} is there already, and no file of this checkpoint",
                hint="Move it away, and run the same command again: the checkpoint is kept",
            )
    asked.runs.mkdir(exist_ok=True)
    names = sorted({*ours, *(path.name for path in paths)})
    write_json(note, {"format": FORMAT, "names": names})
    for path in paths:
        if path.is_dir() and path.name in ours:
            shutil.rmtree(asked.folder / path.name, ignore_errors=True)
        path.replace(asked.folder / path.name)
    note.unlink()
    shutil.rmtree(asked.work)
    return Exported(out=asked.folder, parity=parity, accepted=True)


AGAIN = "Export into a new folder: penstock export MODEL --to KIND --out DIR"
NEARNESS = {
    "rows": count,
    **dict.fromkeys(("cosine", "centred_mean", "centred_least", "neighbours"), number),
    "by_chunk": OptionalField(MapOf(number)),
    "chunks": OptionalField(count),
}
READ_FIGURES: dict[str, dict[str, Any]] = {
    "features": NEARNESS,
    "texts": NEARNESS,
    "text": {
        **dict.fromkeys(("captions", "tokens"), count),
        **dict.fromkeys(("token_agreement", "divergence", "captions_as_native"), number),
        "by_caption": OptionalField(MapOf(number)),
    },
}
SHAPE = {
    "recipe": MapOf(anything),
    "frames": count,
    "gates": MapOf(number),
    "passed": lambda value: isinstance(value, bool),
    "missed": [text],
    **{name: OptionalField(shape) for name, shape in READ_FIGURES.items()},
}
"""Shape of `parity.json`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportFound:
    """The state of an export as read from its folder."""

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
    check(parity, {"gates": MapOf(number)})
    known = {f"{gate.group}.{gate.name}" for gate in GATES}
    for name in parity["gates"]:
        if name not in known or name.split(".")[0] not in parity:
            raise ShapeError(f"its gates name {name[:40]}, which it has no figure of")
    return parity
