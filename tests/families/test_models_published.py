"""Stock families are run as their weights were made: by the release of transformers that wrote
config.json, unless a command, an adapter or an export says otherwise. Videos have the sizes that
their authors gave them, and plan and run count the same tokens."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from flows.core.plan.workloads import ChunkFrames, workload_of
from stages.models import describe, load_half
from stages.models.pixel_bounds import PixelBounds
from stages.models.processors.blank_clips import Clip
from stages.models.processors.input_sizes import resized
from stages.models.processors.loading import load_processor
from stages.models.processors.pixel_limit import bounds_of
from stages.models.processors.prepare import prepare, rebuild
from stages.models.processors.processor_calls import text_ids
from stages.models.profile import ModelProfile
from stages.models.published import (
    FIELD,
    is_before,
    published_bounds,
    runs_as_published,
    stating_as_published,
)
from tests.support.builders.plan_cases import kept_folder, plan_case
from tests.support.by_hand import model
from tests.support.clips import clips, profile_of
from tests.support.families import change_config, checkpoint, copy_of


@pytest.mark.parametrize(
    ("version", "positions", "outer_pair"),
    [
        *((before, True, True) for before in ("4.41.2", "4.57.0.dev0", "5.2.9")),
        *((between, False, True) for between in ("5.3.0.dev0", "5.3.0", "5.9.1")),
        *((after, False, False) for after in ("5.10.0.dev0", "5.10.1", "6.0")),
        *((unread, False, False) for unread in ("newest", "", None, 4.41)),
    ],
)
def test_the_release_that_wrote_a_config_decides(
    version: object, positions: bool, outer_pair: bool, tmp_path: Path
) -> None:
    assert is_before(version, "5.3") is positions
    assert is_before(version, "5.10") is outer_pair
    for kind, expected in (("qwen2_5_vl", positions), ("qwen3_vl", outer_pair), ("llava", False)):
        config = {"model_type": kind, "transformers_version": version}
        (tmp_path / "config.json").write_text(json.dumps(config))
        assert runs_as_published(tmp_path) is expected


def test_what_is_asked_goes_before_what_a_checkpoint_says_and_that_before_its_release(
    tmp_path: Path,
) -> None:
    path = tmp_path / "config.json"
    old = {"model_type": "qwen2_vl", "transformers_version": "4.45.0"}
    path.write_text(json.dumps(old))
    assert runs_as_published(tmp_path)
    assert not runs_as_published(tmp_path, as_published=False)
    path.write_bytes(stating_as_published(path.read_bytes(), as_published=False))
    assert json.loads(path.read_bytes()) == {**old, FIELD: False}
    assert not runs_as_published(tmp_path)
    assert runs_as_published(tmp_path, as_published=True)
    path.write_text(json.dumps({**old, "transformers_version": "5.23.0", FIELD: True}))
    assert runs_as_published(tmp_path)


def test_a_config_that_nobody_would_run_otherwise_keeps_its_bytes() -> None:
    content = b'{"model_type":  "llava"}'
    assert stating_as_published(content, as_published=False) is content
    content = b'{"model_type":  "qwen2_vl", "transformers_version": "5.23.0"}'
    assert stating_as_published(content, as_published=False) is content
    made = stating_as_published(content, as_published=True)
    assert json.loads(made)[FIELD] is True
    assert json.loads(stating_as_published(made, as_published=False))[FIELD] is False


def test_an_older_qwen_places_the_question_behind_a_long_video(tmp_path: Path) -> None:
    folder = copy_of("qwen2_5_vl", tmp_path / "model", transformers_version="4.49.0")
    ids = torch.zeros(1, 15 + 15 + 10, dtype=torch.long)
    types = torch.tensor([[0] * 15 + [2] * 15 + [0] * 10])
    grid = {"video_grid_thw": torch.tensor([[15, 2, 2]])}
    found = {}
    for way, as_published in (("rule", None), ("stock", False)):
        half: Any = load_half(folder, "language", as_published=as_published)
        count = half.model.get_rope_index
        found[way], _ = count(ids, types, **grid, second_per_grid_ts=torch.tensor([2.0]))
    assert found["stock"][0, 0, 30] < found["stock"][0, 0, 15:30].max()
    assert found["rule"][0, 0, 30] == found["stock"][0, 0, 15:30].max() + 1
    assert torch.equal(found["rule"][..., :30], found["stock"][..., :30])


def test_an_older_qwen3_writes_no_pair_around_a_video_and_its_rows_serve_both(
    tmp_path: Path,
) -> None:
    folder = copy_of("qwen3_vl", tmp_path / "model", transformers_version="4.57.0.dev0")
    stock, published = (load_processor(folder, as_published=way) for way in (False, None))
    (clip,) = clips("video", 1, frames=6)
    marks = ["<|vision_start|>", "<|vision_end|>"]
    start, end = stock.tokenizer.convert_tokens_to_ids(marks)
    row = prepare(stock, clip)
    written = [text_ids(rebuild(each, [row], ["What?"])) for each in (stock, published)]
    before, after = (ids[0].tolist() for ids in written)
    assert before.count(start) == before.count(end) == after.count(start) + 1
    first, last = before.index(start), len(before) - 1 - before[::-1].index(end)
    assert after == [*before[:first], *before[first + 1 : last], *before[last + 1 :]]
    assert prepare(published, clip).replacements == row.replacements
    picture = clips("image", 1)[0]
    alike = [text_ids(rebuild(p, [prepare(p, picture)], ["What?"])) for p in (stock, published)]
    assert torch.equal(*alike)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
def test_a_profile_says_whether_a_model_is_run_as_published(family: str, tmp_path: Path) -> None:
    folder = copy_of(family, tmp_path / "model", transformers_version="4.49.0")
    profile = describe(folder)
    assert profile.as_published and profile.language.as_published
    assert not describe(folder, as_published=False).as_published
    stock = profile_of(checkpoint(family))
    assert not stock.as_published and stock.language.as_published


HEIGHTS = {360: (360, 640), 720: (720, 1280), 1080: (1080, 1920), 2160: (2160, 3840)}
PUBLISHED = {360: 4_485, 720: 10_800, 1080: 10_800, 2160: 10_800}
STOCK = {360: 4_485, 720: 17_940, 1080: 40_365, 2160: 158_235}
"""Lines of a video → tokens of 30 frames."""
FRAMES = 30


@pytest.fixture(scope="module")
def folder() -> Path:
    """The published Qwen2.5-VL-7B, which transformers 4.41.2 wrote."""
    found = kept_folder(plan_case("qwen2.5-vl-7b-instruct"))
    return change_config(found, transformers_version="4.41.2")


described = cache(describe)


def clip_of(frames: int, size: tuple[int, int]) -> Clip:
    times = tuple(map(float, range(frames)))
    shown = np.zeros((frames, *size, 3), np.uint8)
    return Clip(frames=shown, times=times, seconds=float(frames), kind="video")


def planned(profile: ModelProfile, lines: int, frames: int = FRAMES) -> int:
    """The tokens of a chunk's frames, as a plan counts them."""
    shown = HEIGHTS[lines]
    stored = profile.fit_video.size(*shown)
    workload = workload_of(model(profile), "video", 1, ChunkFrames(frames, stored, shown), "x")
    return workload.tokens - workload.text_tokens


def made(folder: Path, profile: ModelProfile, lines: int, frames: int) -> int:
    """The tokens of a chunk's frames, as a run makes them of what is stored."""
    processor = load_processor(folder, as_published=profile.as_published)
    stored = profile.fit_video.size(*HEIGHTS[lines])
    return prepare(processor, clip_of(frames, stored), "x").count.tokens


def bounds(folder: Path, as_published: bool | None, square: int) -> PixelBounds:
    """How a processor bounds videos, a square of 1280 pixels of which is so many tokens."""
    found = bounds_of(load_processor(folder, as_published=as_published), 1280, square)
    assert found is not None
    return found


def test_thirty_frames_have_as_many_tokens_as_the_authors_script_makes(folder: Path) -> None:
    published, stock = bounds(folder, None, 365), bounds(folder, False, 1058)
    assert {lines: published.tokens(FRAMES, *size) for lines, size in HEIGHTS.items()} == PUBLISHED
    assert {lines: stock.tokens(FRAMES, *size) for lines, size in HEIGHTS.items()} == STOCK
    assert published.size(FRAMES, 1080, 1920) == (560, 1008)
    assert bounds(folder, True, 365) == published


@pytest.mark.slow
@pytest.mark.parametrize("lines", [360, 2160])
def test_plan_and_run_agree_on_tokens(folder: Path, lines: int) -> None:
    published = described(folder)
    found = made(folder, published, lines, FRAMES)
    assert found == PUBLISHED[lines] == planned(published, lines)
    few = 4  # the tokens of stock grow with the frames, and their pixels fill the memory
    stock = described(folder, as_published=False)
    assert abs(planned(stock, lines, few) / made(folder, stock, lines, few) - 1) < 0.01


@pytest.mark.slow
@pytest.mark.parametrize(
    ("params", "size"),
    [
        ({"as_published": None}, (560, 1008)),
        ({"as_published": False}, (1092, 1932)),
        ({"as_published": True, "max_pixels": 200_704}, (336, 588)),
        ({"as_published": True, "max_pixels": 12_845_056}, (1092, 1932)),
        ({"as_published": True, "max_video_pixels": 4 * 200_704}, (336, 588)),
    ],
)
def test_a_frame_of_full_hd_is_seen_as_published_unless_asked_otherwise(
    params: dict[str, Any], size: tuple[int, int], folder: Path
) -> None:
    sizes, _ = resized(load_processor(folder, **params), clip_of(4, (1080, 1920)))
    assert set(sizes) == {size}


def test_bounds_are_those_of_qwen_vl_utils(folder: Path) -> None:
    """The rule of qwen-vl-utils 0.0.14, `fetch_video`, for its own range of frames."""
    found = bounds(folder, True, 365)
    for frames in (2, 4, 30, 64, 300, 400, 768):
        shared = 128_000 * 28 * 28 * 0.9 / frames * 2
        most = max(min(768 * 784, shared), int(128 * 784 * 1.05))
        assert found.edges(frames) == (128 * 784, int(most))


@pytest.mark.slow
def test_a_processor_with_other_tokens_is_left_as_it_is() -> None:
    tiny = checkpoint("qwen2_5_vl")
    published, stock = (load_processor(tiny, as_published=way) for way in (True, False))
    assert dict(published.video_processor.size) == dict(stock.video_processor.size)
    assert describe(tiny, as_published=True).vision.as_published == ""


@pytest.mark.parametrize("model_type", ["qwen3_vl", "ernie4_5_vl_moe", "llava"])
def test_families_without_other_sizes_have_no_bounds(model_type: str, tmp_path: Path) -> None:
    config = {"model_type": model_type, "transformers_version": "4.41.2"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert published_bounds(tmp_path) is None
    assert published_bounds(tmp_path, as_published=True) is None
