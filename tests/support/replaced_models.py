"""Models whose files are replaced under a run: a folder with a copy of the demo model, another one
of the same shape beside it, and launchers that exchange them at a given moment."""

import os
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from io import StringIO
from pathlib import Path
from typing import Any

from flows.console.display import Display
from flows.job.config import CaptionConfig
from flows.job.launch import StageCall
from flows.running.run import caption
from penstock_demo import CHECKPOINT, CLIPS
from stages.process.stage_process import Listener
from tests.support.inside import Ended, InsideLauncher, Ran
from tests.support.pipeline import Place

WEIGHTS = "model.safetensors"
TOKENS = 8


def other_weights(source: Path, target: Path, seed: int = 0) -> Path:
    """Write the same tensors with other numbers, in a file of the same size; returns its path."""
    import torch
    from safetensors.torch import load_file, save_file

    draw = torch.Generator().manual_seed(seed)
    tensors = load_file(source)
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and tensor.ndim > 1:
            noise = torch.randn(tensor.shape, generator=draw) * tensor.float().std()
            tensors[name] = (tensor.float() + 0.6 * noise).to(tensor.dtype)
    target.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, target, metadata={"format": "pt"})
    return target


@dataclass(frozen=True, kw_only=True, slots=True)
class Models:
    """A model in a folder, and others to put there in its place."""

    folder: Path
    """The model that runs are given."""
    first: Path
    """Copy of what it is at first."""
    second: Path
    """The same with other weights."""

    @classmethod
    def below(cls, root: Path, checkpoint: Path = CHECKPOINT) -> "Models":
        found = cls(folder=root / "model", first=root / "first", second=root / "second")
        for place in (found.folder, found.first, found.second):
            shutil.copytree(checkpoint, place)
        other_weights(checkpoint / WEIGHTS, found.second / WEIGHTS)
        return found

    def rename_in(self, source: Path, name: str = WEIGHTS) -> None:
        """Rename a copy of another model's file into its place."""
        shutil.copy(source / name, self.folder / f"{name}.new")
        os.replace(self.folder / f"{name}.new", self.folder / name)

    def overwrite(self, source: Path, name: str = WEIGHTS) -> None:
        """Write another file's bytes into the file as it is, and set its time back."""
        path = self.folder / name
        before = path.stat()
        with path.open("r+b") as file:
            file.write((source / name).read_bytes())
            file.truncate()
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))

    def move_out(self, name: str = WEIGHTS) -> Path:
        """Put the second model's file in its place by renaming, and return where the first is."""
        kept = self.folder.parent / f"kept-{name}"
        os.rename(self.folder / name, kept)
        shutil.copy(self.second / name, self.folder / name)
        return kept

    def move_back(self, kept: Path, name: str = WEIGHTS) -> None:
        os.replace(kept, self.folder / name)


@dataclass(kw_only=True, slots=True)
class Disturbed(InsideLauncher):
    """Runs stages in this process; before some of them something happens."""

    happens: dict[str, list[Callable[[], object]]] = field(default_factory=dict)
    """Stage → what happens before it starts, the first time, the second time and so on."""
    altered: Callable[[StageCall], StageCall] = lambda call: call
    """What each call is made to be."""

    def start(self, call: StageCall) -> Ended:
        if left := self.happens.get(call.name):
            left.pop(0)()
        return InsideLauncher.start(self, self.altered(call))

    def heard(self, listen: Listener) -> "Disturbed":
        """Make a run's launcher of it."""
        self.listen = listen
        return self


def place_in(root: Path, model: Path, clips: int = 1) -> Place:
    """A place with a few clips of the demo."""
    folder = root / "clips"
    folder.mkdir(exist_ok=True)
    for path in sorted(CLIPS.glob("*.mp4"))[:clips]:
        shutil.copy(path, folder)
    return Place(clips=folder, out=root / "out", store=root / "store", model=str(model))


def run_disturbed(
    place: Place,
    happens: dict[str, Sequence[Callable[[], object]]],
    altered: Callable[[StageCall], StageCall] = lambda call: call,
    **options: Any,
) -> Ran:
    """Caption a place's clips while things happen. Raises PenstockError."""
    told = {stage: [*each] for stage, each in happens.items()}
    launcher, heard = Disturbed(happens=told, altered=altered), StringIO()
    config = CaptionConfig(
        sources=(str(place.clips),),
        model=place.model,
        out=str(place.out),
        store=str(place.store),
        **{"max_new_tokens": TOKENS, "precision": "fp32", **options},
    )
    result = caption(config, Display(to=heard), launcher.heard)
    return Ran(result=result, said=heard.getvalue(), started=launcher.started)


def undisturbed(place: Place, model: Path, root: Path, **options: Any) -> bytes:
    """Return the captions that a model's own run writes, with a store of its own."""
    apart = replace(place, out=root / "out", store=root / "store", model=str(model))
    run_disturbed(apart, {}, **options)
    return (apart.out / "captions.jsonl").read_bytes()


def remove(path: Path) -> None:
    with suppress(FileNotFoundError):
        path.unlink()
