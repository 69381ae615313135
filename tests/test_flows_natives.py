"""Whole runs of models that are computed by code of our own, from clips to captions and vectors,
and plans at full size."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks._plan_cases import make_folder, plan_case
from flows.cli.main import main
from penstock_demo import CLIPS
from stages.decode.engines.inflight.pool_shape import columns_for
from stages.models import load_half
from stages.models.in_tree.cogvlm2.processor import of_video
from stages.models.processors.loading import load_processor
from tests.support.cogvlm2 import PLAIN, published
from tests.support.embedding import embed, vectors, write_images
from tests.support.evaclip import LAYOUTS
from tests.support.evaclip import make_folder as make_evaclip
from tests.support.inside import Ran, run_inside
from tests.support.media import write_video
from tests.support.pipeline import Place
from tests.support.whole_model import frames_of

TOKENS = 12
PROMPT = "Describe this video in detail."
pytestmark = pytest.mark.slow


@pytest.fixture
def place(tmp_path: Path) -> Place:
    clips = tmp_path / "clips"
    clips.mkdir()
    return Place(
        clips=clips, out=tmp_path / "out", store=tmp_path / "store", model=str(published())
    )


def take(place: Place, count: int) -> None:
    for path in sorted(CLIPS.glob("*.mp4"))[:count]:
        (place.clips / path.name).symlink_to(path)


def run_here(place: Place, **options: Any) -> Ran:
    return run_inside(place, max_new_tokens=TOKENS, **options)


def said_by_the_whole(frames: np.ndarray[Any, Any], prompt: str) -> str:
    """What the whole model says of one chunk, its prompt put together token by token."""
    words = load_processor(published()).tokenizer
    ids = [PLAIN]
    for number in range(len(frames)):
        ids += [PLAIN + 2] * 6 + words.encode(str(number), add_special_tokens=False)
    ids += words.encode(f"Question: {prompt} Answer:", add_special_tokens=False)
    whole = load_half(published(), "whole", dtype=torch.float32)
    made = whole.generate(
        input_ids=torch.tensor([ids]),
        attention_mask=torch.ones(1, len(ids), dtype=torch.long),
        pixel_values_videos=of_video(frames, 56),
        video_frame_counts=torch.tensor([len(frames)]),
        max_new_tokens=TOKENS,
        do_sample=False,
    )
    text: str = words.decode(made[0, len(ids) :], skip_special_tokens=True)
    return text.strip()


def test_the_command_captions_clips_as_the_whole_model_does(place: Place) -> None:
    take(place, 3)
    ended = place.run("--max-new-tokens", str(TOKENS), "--keep-frames")
    assert ended.returncode == 0, ended.stderr
    rows = place.captions()
    assert len(rows) == 3
    for row, (_, frames) in zip(rows, frames_of(place), strict=True):
        assert row["frames"] == [float(second) for second in range(len(frames))]
        assert row["caption"] == said_by_the_whole(frames, PROMPT)
    assert len({row["caption"] for row in rows}) == 3


def test_pictures_are_captioned_by_both_models(place: Place) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (2, 90, 120, 3), dtype=np.uint8)
    for number, pixels in enumerate(noise):
        Image.fromarray(pixels).save(place.clips / f"{number}.png")
    for model in (place.model, str(published(experts=True))):
        run_here(replace(place, model=model))
        assert len(place.captions()) == 2 and not place.failures()
    assert len({row["caption"] for row in place.captions()}) == 2


def test_chunks_are_no_longer_than_what_is_seen_of_them_and_of_others_it_is_told(
    place: Place,
) -> None:
    write_video(place.clips / "long.mp4", ticks=range(0, 30 * 60, 15))
    ran = run_here(place)
    rows = place.captions()
    assert [(row["start"], row["end"]) for row in rows] == [(0, 24), (24, 48), (48, 60)]
    assert [len(row["frames"]) for row in rows] == [24, 24, 12]
    assert "are not seen" not in ran.said
    ran = run_here(place, chunk=60.0)
    assert len(place.captions()) == 1
    assert (
        "sees 24 frames of a chunk: of 60 in 60 s at 1 per second, 36 are not seen; --chunk 24 "
        "shows them all"
    ) in ran.said


def test_the_published_sizes_are_planned_from_headers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = make_folder(plan_case("cogvlm2-llama3-caption"), tmp_path / "model")
    words = ["plan", "--model", str(model), "--store", str(tmp_path / "store"), "--json"]

    def planned(*options: str) -> dict[str, Any]:
        code = main([*words, "--precision", "bf16", *options])
        found: dict[str, Any] = json.loads(capsys.readouterr().out)
        assert found["fits"] == (code == 0)
        return found

    found = planned("--memory", "24GiB", "--what-fits")
    assert found["fits"] and found["route"] == "protocol"
    assert found["halves"]["vision"]["parameters"] == 4_477_269_248
    assert found["halves"]["language"]["parameters"] == 8_030_261_248
    encode, decode = found["memory"]["stages"][1:]
    assert not encode["by_dimensions"] and not decode["by_dimensions"]
    # 24 frames of 66 places and the byte or two of their numbers, then the prompt.
    assert decode["load"]["tokens"] - decode["load"]["text_tokens"] == 24 * 66
    assert decode["kv_bytes"] == 8 * columns_for(decode["load"]["tokens"] + 256) * 32 * 2 * 1024 * 2
    table = {
        row: {size for size, held in cells.items() if held}
        for row, cells in found["what_fits_gpu"].items()
    }
    assert "24GiB" in table["native"] and "12GiB" not in table["native"]
    assert {"12GiB", "8GiB"} <= table["nf4"] and "4GiB" in table["auto"]
    assert planned("--memory", "12GiB", "--language-precision", "nf4")["fits"]
    assert not planned("--memory", "12GiB")["fits"]


def test_pictures_get_the_vectors_of_the_whole_model(tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    write_images(folder)
    # As one that was converted from the original file: no tokenizer, and none is needed.
    # It sees 56 pixels, for which none of the pictures is decoded smaller.
    model = make_evaclip(tmp_path / "model", LAYOUTS["8B-448"], words=False)
    assert embed(folder, model, tmp_path) == 0
    processor: Any = load_processor(model)
    images = [Image.open(path) for path in sorted(folder.iterdir())]
    with torch.inference_mode():
        whole = load_half(model, "whole", dtype=torch.float32)
        expected = whole.get_image_features(**processor(images=images, return_tensors="pt"))
    assert np.array_equal(vectors(tmp_path), expected.pooler_output.numpy())
