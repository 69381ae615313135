"""A model is exported with an adapter in it, and judged by what it says with that."""

import json
import shutil
from pathlib import Path

import pytest

from artifacts.errors import UsageError
from flows.cli.main import main
from flows.console.display import Display
from flows.options.commands import CaptionConfig
from flows.options.export_config import ExportRequest
from flows.running.export import export
from flows.running.run import caption
from penstock_demo import CHECKPOINT
from penstock_demo.clips import write_clips
from stages.export.parity import PARITY
from tests.support.adapters import linears_of, loaded, matrices, write_adapter
from tests.support.pipeline import read_lines

SAMPLES = 4


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One that changes what the demo says, without which it makes no sense any more."""
    shapes = {p: s for p, s in linears_of(loaded(CHECKPOINT)).items() if "language_model" in p}
    return write_adapter(tmp_path_factory.mktemp("adapter"), matrices(shapes, strength=0.14))


def captions(folder: Path, model: str, clips: Path, store: Path) -> list[str]:
    told = CaptionConfig(
        sources=(str(clips),), model=model, store=str(store), out=str(folder), precision="native"
    )
    caption(told, Display(quiet=True))
    return [row["caption"] for row in read_lines(folder / "captions.jsonl")]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_model_is_exported_with_its_adapter(
    tmp_path: Path, adapter: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clips, store, out = tmp_path / "clips", tmp_path / "store", tmp_path / "made"
    write_clips(clips, SAMPLES, seed=5)
    words = ["export", "demo", "--to", "nf4", "--out", str(out), "--adapter", str(adapter)]
    words += ["--calibrate", str(clips), "--store", str(store), "--samples", str(SAMPLES)]
    assert main(words) == 1  # so it babbles, in few bits otherwise: all is kept
    merged = out / "parity" / "merged"
    kept = {path.name: path.stat().st_mtime_ns for path in merged.iterdir()}
    assert "config.json" in kept and not (out / "config.json").exists()
    assert main([*words, "--accept"]) == 0
    assert (out / "config.json").exists() and not merged.exists()
    parity = json.loads((out / PARITY).read_text())
    assert len(parity["recipe"]["adapter"]) == 64
    assert parity["text"]["token_agreement"] > 0.7
    said = captions(tmp_path / "said", str(out), clips, store)
    plain = captions(tmp_path / "plain", "demo", clips, store)
    assert any(a != b for a, b in zip(said, plain, strict=True))
    capsys.readouterr()
    assert main(words) == 0
    assert "already exported" in capsys.readouterr().out and not merged.exists()
    other = shutil.copytree(adapter, tmp_path / "other")
    (other / "adapter_config.json").write_text(
        (other / "adapter_config.json").read_text().replace("8.0", "9.0")
    )
    words[words.index(str(adapter))] = str(other)
    assert main(words) == 2
    assert "holds another checkpoint" in capsys.readouterr().err


def test_what_is_wrong_with_an_adapter_is_said_before_the_model_is_looked_at(
    tmp_path: Path,
) -> None:
    (tmp_path / "empty").mkdir()
    config = CaptionConfig(sources=("nowhere.mp4",), model="demo", store=str(tmp_path / "store"))
    for name, match in (("empty", "has no adapter_config.json"), ("a\0b", "is not a valid path")):
        with pytest.raises(UsageError, match=match):
            path = str(tmp_path / name)
            asked = ExportRequest(kind="nf4", folder=tmp_path / "made", adapter=path)
            export(config, asked, Display(quiet=True))
    assert not (tmp_path / "made").exists()
    # What a store has is not of the model with its adapter.
    with pytest.raises(UsageError, match="without this adapter"):
        ExportRequest(kind="nf4", folder=tmp_path, adapter="a", calibrated=True, stored=True)
