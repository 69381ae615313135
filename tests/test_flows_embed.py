"""`penstock embed`: vectors of pictures and of videos' frames, by the vision half of a dual encoder
alone."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from flows.cli.main import main
from tests.support.dual_encoders import save_clip
from tests.support.families import hf
from tests.support.media import write_video

SIZES = ((60, 80), (80, 60), (100, 100), (40, 200), (64, 64), (300, 200))


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, draw = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for number, (high, wide) in enumerate(SIZES):
        pixels = draw.integers(0, 255, (high, wide, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"p{number}.png")
    return folder


def embed(sources: Path, model: Path, place: Path, *more: str) -> int:
    where = ["--store", str(place / "store"), "--out", str(place / "out")]
    return main(["embed", str(sources), "--model", str(model), *where, *more])


def rows(place: Path) -> list[dict[str, Any]]:
    from pyarrow.parquet import read_table

    found: list[dict[str, Any]] = read_table(place / "out" / "embeddings.parquet").to_pylist()
    return found


def vectors(place: Path) -> Any:
    return np.load(place / "out" / "embeddings.npy", mmap_mode="r")


def items(place: Path) -> dict[str, int]:
    record = json.loads((place / "out" / "run.json").read_text())
    return {stage["name"]: stage["items"] for stage in record["stages"]}


def test_pictures_get_the_vectors_of_the_whole_model(
    pictures: Path, clip: Path, tmp_path: Path
) -> None:
    assert embed(pictures, clip, tmp_path) == 0
    names = sorted(path.name for path in pictures.iterdir())
    assert [row["media_path"] for row in rows(tmp_path)] == names
    assert all(row["time"] is None and row["box"] is None for row in rows(tmp_path))
    processor: Any = hf.AutoProcessor.from_pretrained(clip)
    images = [Image.open(pictures / name) for name in names]
    with torch.inference_mode():
        whole = hf.CLIPModel.from_pretrained(clip).eval()
        wanted = whole.get_image_features(**processor(images=images, return_tensors="pt"))
    assert np.array_equal(vectors(tmp_path), wanted.pooler_output.numpy())
    assert items(tmp_path) == {"frames": 6, "embed": 6}


def test_a_second_run_makes_nothing_and_writes_the_same(
    pictures: Path, clip: Path, tmp_path: Path
) -> None:
    embed(pictures, clip, tmp_path)
    before = (tmp_path / "out" / "embeddings.npy").read_bytes()
    assert embed(pictures, clip, tmp_path) == 0
    assert items(tmp_path) == {"frames": 0, "embed": 0}
    assert (tmp_path / "out" / "embeddings.npy").read_bytes() == before


def test_a_video_gives_a_frame_a_second(clip: Path, tmp_path: Path) -> None:
    video = write_video(tmp_path / "long.mp4", ticks=range(0, 40 * 30, 3), gop=50)
    assert embed(video, clip, tmp_path) == 0
    times = [row["time"] for row in rows(tmp_path)]
    assert len(times) == len(vectors(tmp_path)) == 40
    assert np.allclose(np.diff(times), 1, atol=0.2) and times[0] < 1
    assert embed(video, clip, tmp_path, "--fps", "4") == 0
    assert len(vectors(tmp_path)) == 160


def test_a_captioner_is_refused_with_what_to_do(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert embed(pictures, Path("demo"), tmp_path) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "writes captions" in said and "penstock caption" in said


def test_a_dual_encoder_is_refused_to_caption(
    pictures: Path, clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ["--store", str(tmp_path / "store"), "--out", str(tmp_path / "out")]
    assert main(["caption", str(pictures), "--model", str(clip), *where]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "writes no captions" in said and "penstock embed" in said


def test_a_text_model_is_refused(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text('{"model_type": "llama"}')
    assert embed(pictures, tmp_path / "model", tmp_path) == 2
    assert "no vision half" in capsys.readouterr().err
