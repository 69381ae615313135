"""Moves an evaluated checkpoint to its final path, and reports the result of the export. Runs no
model.
"""

import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from artifacts.disk.files import read_kept, refuse_foreign, replace_file, write_json
from artifacts.disk.json_records import read_json_file
from artifacts.disk.json_shapes import Json
from artifacts.errors import UsageError
from artifacts.texts.captions import Failure
from flows.commands.export.options import EXPORTED, NATIVE, REJECTED, RUNS, ExportConfig
from flows.commands.export.report import parity_facts
from flows.core.console.lines import size
from flows.outputs.record.run_record import RUN_RECORD
from stages.export import GRAPHS
from stages.export.parity import PARITY, Figures, Parity, evaluate_parity, verdict_in
from stages.models.graphs import FOLDER
from stages.models.hub.checkpoint import CONFIG
from stages.models.shards import NOTE

EXPORT_AGAIN = "Export into a new folder: penstock export MODEL --to KIND --out DIR"
PLACING, FORMAT = "placing.json", 1
"""File, in the folder of runs, with the names that are being moved into place; and its format."""
FIGURES = ("features", "texts", "text")
"""Groups of figures in `parity.json`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Exported:
    """The result of an export."""

    out: Path
    """Folder of the checkpoint: its final folder, or the one of rejected checkpoints."""
    parity: Parity
    accepted: bool
    """Whether it is in its final folder."""
    before: bool = False
    """Whether it was there before this export."""

    @property
    def failures(self) -> list[Failure]:
        return []

    @property
    def exit_code(self) -> int:
        """Return 0 if the checkpoint was accepted, 1 if it was rejected."""
        return 0 if self.accepted else 1

    @property
    def bytes(self) -> int:
        """Return the bytes of its weight files, or of its ONNX graphs."""
        graphs = self.parity.recipe.get("kind") in GRAPHS
        if graphs:
            return sum(path.stat().st_size for path in (self.out / FOLDER).glob("*.onnx*"))
        return sum(path.stat().st_size for path in self.out.glob("*.safetensors"))

    @property
    def made(self) -> int:
        """Return the number of accepted checkpoints."""
        return int(self.accepted)

    def line(self) -> str:
        before = ", already exported" if self.before else ""
        return f"{self.out}: {size(self.bytes)}{before}; {figures_line(self.parity)}"

    __repr__ = line

    def row(self) -> dict[str, Json]:
        written = self.parity.to_json()
        figures: dict[str, Json] = {
            f"{name}.{figure}": value
            for name in FIGURES
            for figure, value in written.get(name, {}).items()
            if isinstance(value, int | float)
        }
        folder: dict[str, Json] = {"folder": str(self.out), "size": size(self.bytes)}
        missed = "; ".join(self.parity.missed)
        return {**folder, "taken": self.accepted, **figures, "missed": missed}

    def to_json(self) -> dict[str, Json]:
        fields: dict[str, Json] = {"out": str(self.out), "bytes": self.bytes}
        fields |= {"accepted": self.accepted, "parity": self.parity.to_json()}
        return {**fields, "exit_code": self.exit_code}


def figures_line(parity: Parity) -> str:
    """Return the figures of a checkpoint as one line of text."""
    parts = []
    if (text := parity.text) is not None:
        parts.append(
            f"{text.token_agreement:.2%} of {text.tokens:,} tokens as the original, "
            f"divergence {text.divergence:.2g} nats, "
            f"{text.captions_as_native:.1%} of captions the same"
        )
    for group, scores in (("features", parity.features), ("texts", parity.texts)):
        if scores is not None:
            parts.append(
                f"{group} {scores.centred_mean:.4f} (minimum {scores.centred_least:.3f}), "
                f"{scores.neighbours:.1%} of the same neighbours"
            )
    return "; ".join(parts)


def refuse_foreign_folder(request: ExportConfig) -> None:
    """Refuse a folder that holds anything but an export. Raises UsageError."""
    records = (PARITY, f"{REJECTED}/{NOTE}", f"{REJECTED}/{CONFIG}")
    refuse_foreign(request.folder, (REJECTED, RUNS), records)


def placed_before(folder: Path, recipe: Mapping[str, Json]) -> Exported | None:
    """Return the checkpoint that an earlier export placed. Raises UsageError if the folder holds
    another one."""
    if not (folder / CONFIG).exists():
        return None
    parity = verdict_in(folder)
    if parity is None or parity.recipe != dict(recipe):
        raise UsageError(
            f"{folder} holds another checkpoint, or one made with other settings",
            hint="Give a new folder, or remove that one",
        )
    return Exported(out=folder, parity=parity, accepted=True, before=True)


def awaits_acceptance(request: ExportConfig, recipe: Mapping[str, Json]) -> bool:
    """Return whether a checkpoint of an earlier command only has to be moved: it was rejected, and
    `--accept` is given, or its move was interrupted."""
    waits = (request.accept or is_being_placed(request)) and (request.work / CONFIG).exists()
    verdict = _verdict(request) if waits else None
    return verdict is not None and verdict.recipe == dict(recipe)


def is_being_placed(request: ExportConfig) -> bool:
    """Return whether a move into place was interrupted."""
    return (request.runs / PLACING).exists()


def _verdict(request: ExportConfig) -> Parity | None:
    """Return the verdict on a checkpoint that is not placed, or not placed whole."""
    moved = verdict_in(request.folder) if is_being_placed(request) else None
    return verdict_in(request.work) or moved


def remove_unfinished(request: ExportConfig) -> None:
    """Remove the unfinished checkpoint of a model that changed meanwhile."""
    for folder in (request.work, request.merged):
        if (folder / NOTE).exists():
            shutil.rmtree(folder, ignore_errors=True)


def note_parity(folder: Path, recipe: Mapping[str, Json], figures: Figures, frames: int) -> None:
    """Write the verdict into the folder of an unplaced checkpoint. Raises EnvironmentFault."""
    write_json(folder / PARITY, evaluate_parity(figures, frames, recipe).to_json())


def move_into_place(request: ExportConfig, *, resumed: bool = False) -> Exported:
    """Move a checkpoint that passed, or is accepted, to the requested folder; `resumed`: a move
    that had begun. The configuration moves last: without it, no program loads the folder as a
    model."""
    parity = _verdict(request) or read_json_file(Parity, request.work / PARITY, EXPORT_AGAIN)
    if not (parity.passed or request.accept or resumed):
        return Exported(out=request.work, parity=parity, accepted=False)
    paths = sorted(request.work.iterdir(), key=lambda path: (path.name == CONFIG, path.name))
    note = request.runs / PLACING
    begun = read_kept(note, FORMAT)
    ours = begun["names"] if begun else []  # of an interrupted move
    for path in paths:
        if path.name not in ours and os.path.lexists(request.folder / path.name):
            raise UsageError(
                f"{request.folder / path.name} exists, and is not a file of this checkpoint",
                hint="Move it away, then run the same command again: the checkpoint is kept",
            )
    request.runs.mkdir(exist_ok=True)
    names = sorted({*ours, *(path.name for path in paths)})
    write_json(note, {"format": FORMAT, "names": names})
    for path in paths:
        if path.is_dir() and path.name in ours:
            shutil.rmtree(request.folder / path.name, ignore_errors=True)
        replace_file(path, request.folder / path.name)
    note.unlink()
    shutil.rmtree(request.work)
    return Exported(out=request.folder, parity=parity, accepted=True)


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportFound:
    """The state of an export as read from its folder."""

    checkpoint: Path
    """Folder of the checkpoint: its final folder, or the one of rejected checkpoints."""
    placed: bool
    """Whether it is in its final folder."""
    parity: Parity | None
    """Its verdict; None: not evaluated yet."""
    runs: tuple[Path, ...]
    """Folders of its runs that have a record: the original's first, then the checkpoint's."""

    @property
    def run(self) -> Path | None:
        """Return the folder of the run that wrote last; None: there is none yet."""
        return max(self.runs, key=lambda run: (run / RUN_RECORD).stat().st_mtime, default=None)

    @property
    def reported_run(self) -> Path:
        """Return the folder of the original's run. Raises UsageError without one."""
        if not self.runs:
            out = self.checkpoint
            raise UsageError(
                f"{out} has no record of the runs that compared the checkpoint with its original",
                hint=f"Name the folder of the export, or see its parity: `penstock status {out}`",
            )
        return self.runs[0]

    def lines(self) -> Iterator[str]:
        """Yield the verdict, and the folder of the last run."""
        yield self.verdict()
        if self.run is not None:
            yield f"last run, into {self.run}:"

    def to_json(self) -> dict[str, Json]:
        state: dict[str, Json] = {"verdict": self.verdict(), "folder": str(self.checkpoint)}
        parity = None if self.parity is None else self.parity.to_json()
        return {"checkpoint": {**state, "placed": self.placed, "parity": parity}}

    def about(self) -> Iterator[tuple[str, str]]:
        """Yield the checkpoint's folder and format."""
        yield "checkpoint", str(self.checkpoint)
        if recipe := self.parity.recipe if self.parity is not None else {}:
            parts = recipe.get("parts")
            of = f" of {', '.join(map(str, parts))}" if isinstance(parts, list) else ""
            group = f", {recipe['group']} columns per scale" if recipe.get("group") else ""
            yield "written as", f"{recipe.get('kind', '?')}{of}{group}"

    def sections(self) -> dict[str, Json]:
        """Return its parity, once it is evaluated."""
        return {"parity": parity_facts(self.verdict(), self.parity)} if self.parity else {}

    def verdict(self) -> str:
        """Return the verdict on the checkpoint in one line."""
        if self.parity is None:
            return "the checkpoint is not evaluated yet"
        missed = "; ".join(self.parity.missed)
        if not self.placed:
            return f"rejected: {missed}; kept in {self.checkpoint}"
        figures = figures_line(self.parity)
        if self.parity.passed:
            return f"passed: {figures}"
        return f"accepted without passing: {missed}; {figures}"


def export_in(out: Path) -> ExportFound | None:
    """Return the export in a folder, or the one whose rejected checkpoint the folder holds. None
    for any other folder. Raises EnvironmentFault."""
    if os.path.lexists(out / RUN_RECORD):
        return None
    top = out.parent if out.name == REJECTED else out
    runs = (top / RUNS / name for name in (NATIVE, EXPORTED))
    recorded = tuple(run for run in runs if (run / RUN_RECORD).is_file())
    folders = (
        placed_folder
        for placed_folder in (top, top / REJECTED)
        if os.path.lexists(placed_folder / PARITY)
    )
    placed_folder = next(folders, None)
    if placed_folder is None and not recorded:
        return None
    parity = (
        None
        if placed_folder is None
        else read_json_file(Parity, placed_folder / PARITY, EXPORT_AGAIN)
    )
    checkpoint = placed_folder or top / REJECTED
    return ExportFound(
        checkpoint=checkpoint, placed=checkpoint == top, parity=parity, runs=recorded
    )
