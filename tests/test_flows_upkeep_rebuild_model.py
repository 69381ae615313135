"""Rebuilds with the demo model and real child processes: a year of a library in one scenario, and
the store under a run that is going on."""

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from flows.cli.main import main
from penstock_demo import CHECKPOINT
from penstock_demo.clips import write_clips
from tests.support.pipeline import PENSTOCK, ROOT, Place

KEPT = ("touched.mp4", "replaced.mp4", "deleted.mp4")


class Library:
    """A folder of three clips and a store, rebuilt by the command line."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder = folder
        self.clips = folder / "clips"
        self.model = CHECKPOINT
        self._capsys = capsys
        drawn = write_clips(folder / "drawn", 5, seed=3)
        self.drawn = [folder / "drawn" / clip.file for clip in drawn]
        self.clips.mkdir()
        for name, clip in zip(KEPT, self.drawn, strict=False):
            shutil.copy(clip, self.clips / name)

    def rebuild(self, *more: str) -> dict[str, Any]:
        """What the last line of a rebuild says."""
        where = ["--store", str(self.folder / "store"), "--model", str(self.model)]
        assert main(["cache", "rebuild", str(self.clips), *where, "--json", *more]) == 0
        said: dict[str, Any] = json.loads(self._capsys.readouterr().out.splitlines()[-1])
        return said

    def packs(self) -> dict[str, bytes]:
        return {str(path): path.read_bytes() for path in self.folder.rglob("*.pack")}

    def features(self) -> set[str]:
        return {str(path) for path in (self.folder / "store" / "features").rglob("*.pack")}

    def train(self) -> None:
        """Another checkpoint of the same architecture, in a folder of its own."""
        other = self.folder / "model"
        shutil.copytree(CHECKPOINT, other)
        for path in other.glob("*.safetensors"):
            weights = load_file(path)
            for name, weight in weights.items():
                if "visual" in name:
                    weights[name] = weight + torch.ones((), dtype=weight.dtype)
            save_file(weights, path, metadata={"format": "pt"})
        self.model = other


@pytest.mark.slow
def test_only_what_changed_is_encoded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    library = Library(tmp_path, capsys)
    first = library.rebuild()
    assert (first["encoded"], first["difference"]["added"]) == (3, 3)
    features = library.features()

    os.utime(library.clips / "touched.mp4")
    touched = library.rebuild()
    assert (touched["encoded"], touched["difference"]["unchanged"]) == (0, 3)
    assert library.features() == features

    shutil.copy(library.drawn[3], library.clips / "replaced.mp4")
    replaced = library.rebuild()
    assert (replaced["encoded"], replaced["difference"]["changed"]) == (1, 1)
    # Chunks that are made together may lie in one pack.
    assert features < library.features() and len(library.features()) == len(features) + 1

    (library.clips / "deleted.mp4").unlink()
    deleted = library.rebuild("--prune")
    assert (deleted["encoded"], deleted["difference"]["removed"]) == (0, 1)
    assert (deleted["removed"], len(library.features())) == (2, 2)

    before = library.packs()
    sampled = library.rebuild("--fps", "1", "--dry-run")
    assert sampled["missing"]["chunks"] == 2
    assert sampled["difference"]["why"] == ["sampling changed (fps 2.0 → 1.0)"]
    assert library.packs() == before

    library.train()
    trained = library.rebuild("--prune")
    assert (trained["encoded"], trained["removed"]) == (2, 2)
    assert trained["difference"]["why"][0].startswith("model changed")
    assert not library.features() & set(before)
    assert library.rebuild("--prune")["encoded"] == 0


@pytest.mark.slow
def test_the_flow_makes_the_bytes_of_the_plain_command(tmp_path: Path) -> None:
    from prefect.testing.utilities import prefect_test_harness

    from flows.deployments.rebuild import rebuild_features
    from flows.job.command_config import RebuildConfig

    write_clips(tmp_path / "clips", 2, seed=6)
    plain = Place(clips=tmp_path / "clips", out=tmp_path / "out", store=tmp_path / "plain")
    where = [str(plain.clips), "--model", "demo", "--store", str(plain.store)]
    subprocess.run([*PENSTOCK, "cache", "rebuild", *where], cwd=ROOT, check=True)
    flow = Place(clips=plain.clips, out=plain.out, store=tmp_path / "flow")
    config = RebuildConfig(sources=(str(flow.clips),), model="demo", store=str(flow.store))
    with prefect_test_harness(server_startup_timeout=120):
        for encoded in (2, 0):
            state = rebuild_features(config, prune=True, return_state=True)
            assert state.is_completed()
            assert f"encoded {encoded} chunks" in str(state.message)
        (plain.clips / "late.txt").write_text("no medium")
        nothing = RebuildConfig(sources=(str(flow.clips / "*.txt"),), store=str(flow.store))
        assert rebuild_features(nothing, return_state=True).is_failed()
    assert flow.stored("features") == plain.stored("features")
    assert len(flow.stored("features")) == 2
