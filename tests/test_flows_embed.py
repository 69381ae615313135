"""`penstock embed`: vectors of pictures and of videos' frames, by the vision half of a dual encoder
alone."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from flows.cli.main import main
from penstock_demo import CHECKPOINT
from tests.support.dual_encoders import names, save, save_clip
from tests.support.embedding import embed, items, rows, vectors, write_pictures
from tests.support.families import hf
from tests.support.media import write_video
from tests.support.pipeline import read_lines

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("pictures"))


def test_pictures_get_the_vectors_of_the_whole_model(
    pictures: Path, clip: Path, tmp_path: Path
) -> None:
    assert embed(pictures, clip, tmp_path) == 0
    found = sorted(path.name for path in pictures.iterdir())
    assert [row["media_path"] for row in rows(tmp_path)] == found
    assert all(row["time"] is None and row["box"] is None for row in rows(tmp_path))
    processor: Any = hf.AutoProcessor.from_pretrained(clip)
    images = [Image.open(pictures / name) for name in found]
    with torch.inference_mode():
        whole = hf.CLIPModel.from_pretrained(clip).eval()
        wanted = whole.get_image_features(**processor(images=images, return_tensors="pt"))
    assert np.array_equal(vectors(tmp_path), wanted.pooler_output.numpy())
    assert items(tmp_path) == {"frames": 6, "embed": 6}


@pytest.mark.parametrize(
    "name",
    [
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("align", "altclip", "blip", "chinese_clip", "clipseg", "siglip", "siglip2")
        ),
    ],
)
def test_other_classes_give_the_vectors_of_their_own_processor_and_model(
    name: str, pictures: Path, tmp_path: Path
) -> None:
    model = save(name, tmp_path / "model")
    assert embed(pictures, model, tmp_path) == 0
    processor: Any = hf.AutoProcessor.from_pretrained(model)
    images = [Image.open(path) for path in sorted(pictures.iterdir())]
    whole: Any = getattr(hf, names()[name]).from_pretrained(model).eval()
    with torch.inference_mode():
        wanted = whole.get_image_features(**processor(images=images, return_tensors="pt"))
    assert np.array_equal(vectors(tmp_path), wanted.pooler_output.numpy())


def test_the_code_of_the_page_gives_the_logits_of_the_whole_model(
    pictures: Path, clip: Path
) -> None:
    page = (ROOT / "docs" / "embed.md").read_text()
    code = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    assert len(code) == 1
    processor: Any = hf.AutoProcessor.from_pretrained(clip)
    images = [Image.open(path) for path in sorted(pictures.iterdir())]
    labels = ["a cat", "a much longer label"]
    names = {"folder": clip, "processor": processor, "images": images, "labels": labels}
    exec(code[0], names)  # as it is printed
    inputs = processor(images=images, text=labels, padding=True, return_tensors="pt")
    with torch.inference_mode():
        whole = hf.CLIPModel.from_pretrained(clip).eval()(**inputs)
    assert torch.equal(names["scores"], whole.logits_per_image)


@pytest.mark.slow
def test_a_second_run_makes_nothing_and_writes_the_same(
    pictures: Path, clip: Path, tmp_path: Path
) -> None:
    embed(pictures, clip, tmp_path)
    before = (tmp_path / "out" / "embeddings.npy").read_bytes()
    assert embed(pictures, clip, tmp_path) == 0
    assert items(tmp_path) == {"frames": 0, "embed": 0}
    assert (tmp_path / "out" / "embeddings.npy").read_bytes() == before


@pytest.mark.slow
def test_a_video_gives_a_frame_a_second(clip: Path, tmp_path: Path) -> None:
    video = write_video(tmp_path / "long.mp4", ticks=range(0, 40 * 30, 3), gop=50)
    assert embed(video, clip, tmp_path) == 0
    times = [row["time"] for row in rows(tmp_path)]
    assert len(times) == len(vectors(tmp_path)) == 40
    assert np.allclose(np.diff(times), 1, atol=0.2) and times[0] < 1
    assert embed(video, clip, tmp_path, "--fps", "4") == 0
    assert len(vectors(tmp_path)) == 160


@pytest.mark.slow
def test_a_captioner_is_refused_with_what_to_do(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert embed(pictures, CHECKPOINT, tmp_path) == 2
    said = capsys.readouterr().err
    assert said.count("penstock: ") == 1 and said.count("\n") <= 2  # one says what is read first
    assert "writes captions" in said and "penstock caption" in said


@pytest.mark.slow
def test_a_dual_encoder_is_refused_to_caption(
    pictures: Path, clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ["--store", str(tmp_path / "store"), "--out", str(tmp_path / "out")]
    assert main(["caption", str(pictures), "--model", str(clip), *where]) == 2
    said = capsys.readouterr().err
    assert said.count("penstock: ") == 1 and said.count("\n") <= 2
    assert "writes no captions" in said and "penstock embed" in said


@pytest.mark.slow
def test_a_text_model_is_refused(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text('{"model_type": "llama"}')
    assert embed(pictures, tmp_path / "model", tmp_path) == 2
    assert "no vision half" in capsys.readouterr().err


@pytest.mark.slow
def test_a_file_that_is_no_picture_is_named_and_the_others_are_embedded(
    clip: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    Image.new("RGB", (40, 40), "red").save(folder / "a.png")
    (folder / "b.png").write_text("no picture")
    assert embed(folder, clip, tmp_path) == 1
    assert len(vectors(tmp_path)) == 1
    (failure,) = read_lines(tmp_path / "out" / "failures.jsonl")
    assert failure["media_path"] == "b.png" and failure["stage"] == "frames"
