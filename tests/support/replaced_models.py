"""A model in a folder that is replaced by another while a run in this process uses it."""

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from artifacts.records.keys import hash_file
from flows.core.machine.launch import StageCall
from penstock_demo import CHECKPOINT, CLIPS
from stages.process.stage_process import Listener
from tests.support.inside import Ended, InsideLauncher, Ran, run_through
from tests.support.pipeline import Place

WEIGHTS = "model.safetensors"
TOKENS = 8


def other_weights(source: Path, target: Path) -> None:
    """Write the same tensors with other numbers, in a file of the same size."""
    import torch
    from safetensors.torch import load_file, save_file

    draw = torch.Generator().manual_seed(0)
    tensors = load_file(source)
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and tensor.ndim > 1:
            noise = torch.randn(tensor.shape, generator=draw) * tensor.float().std()
            tensors[name] = (tensor.float() + 0.6 * noise).to(tensor.dtype)
    save_file(tensors, target, metadata={"format": "pt"})


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

    def rename_in(self, source: Path) -> None:
        """Rename a copy of another model's file into its place."""
        shutil.copy(source / WEIGHTS, self.folder / "new")
        os.replace(self.folder / "new", self.folder / WEIGHTS)

    def overwrite(self, source: Path) -> None:
        """Write another file's bytes into the file as it is, and set its time back."""
        path = self.folder / WEIGHTS
        before = path.stat()
        with path.open("r+b") as file:
            file.write((source / WEIGHTS).read_bytes())
            file.truncate()
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))

    def link_to_blob(self, source: Path) -> None:
        """Have the file lead into a cache like a hub's, to another model's file."""
        path = self.folder / WEIGHTS
        blob = self.folder.with_name("blobs") / hash_file(source / WEIGHTS)
        blob.parent.mkdir(exist_ok=True)
        shutil.copy(source / WEIGHTS, blob)
        path.unlink()
        path.symlink_to(blob)


@dataclass(kw_only=True, slots=True)
class Disturbed(InsideLauncher):
    """Runs stages in this process; before some of them something happens."""

    happens: dict[str, list[Callable[[], object]]] = field(default_factory=dict)
    """Stage → what happens before it starts, the first time, the second time and so on."""
    altered: Callable[[StageCall], StageCall] = lambda call: call
    """What each call is made to be."""

    def start(self, call: StageCall) -> Ended:
        if not getattr(call.job, "requests", "") and (left := self.happens.get(call.name)):
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
    messages = {stage: [*each] for stage, each in happens.items()}
    launcher = Disturbed(happens=messages, altered=altered)
    return run_through(
        launcher, place, **{"max_new_tokens": TOKENS, "precision": "fp32", **options}
    )


def captions(place: Place) -> list[str]:
    return [line["caption"] for line in place.captions()]
