"""--max-pixels keeps every picture and every frame to so many pixels, by the processor's own limit,
and --max-video-pixels all frames of a chunk together; plans reckon with both and name values that
fit."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from artifacts.errors import UsageError
from flows.core.checkpoint.frame_room import frames_of_size
from flows.core.checkpoint.models import check_pixels
from flows.core.options.commands import CaptionConfig
from flows.core.plan.plan import Plan, plan_of
from flows.core.plan.view import verdict
from flows.core.plan.workloads import ChunkFrames, workload_of
from penstock_demo import CHECKPOINT
from stages.models import describe
from stages.models.processors.blank_clips import Clip
from stages.models.processors.input_sizes import resized
from stages.models.processors.loading import load_processor, takes_videos
from stages.models.processors.pixel_limit import min_pixels_of
from stages.models.processors.prepare import prepare
from tests.support.builders.plan_cases import kept_folder, plan_case
from tests.support.by_hand import model
from tests.support.clips import clips, profile_of
from tests.support.families import checkpoint
from tests.support.inside import InsideLauncher
from tests.support.keys import namespaces
from tests.support.processors import KINDS, processor_folder

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

TOKEN = 64
"""Pixels of a token of the tiny processors."""
OTHERS = ("glm4v", "qwen2_vl", "video_llama_3", "qwen2_5_vl", "qwen3_omni_moe")
SLOW = (pytest.param(name, marks=pytest.mark.slow) for name in OTHERS)
LIMITED = ("qwen3_vl", "qwen2_5_omni", *SLOW)
FREE = ("gemma3", "llava_next", "pixtral", "idefics3", "internvl", "llava")
SHAPES = ((1, 333, 500), (2, 200, 300), (5, 200, 300), (8, 480, 270), (8, 30, 30), (3, 64, 160))


def processor_of(family: str, **limits: Any) -> Any:
    folder = processor_folder(family) if family in KINDS else checkpoint(family)
    return load_processor(folder, **limits)


def sizes(processor: Any, frames: int, height: int, width: int) -> set[tuple[int, int]]:
    kind: Any = "image" if frames == 1 else "video"
    (clip,) = clips(kind, 1, height=height, width=width, frames=frames)
    return set(resized(processor, clip)[0])


@pytest.mark.parametrize("most", [5 * TOKEN, 40 * TOKEN, 300 * TOKEN])
@pytest.mark.parametrize("family", LIMITED)
def test_no_frame_is_seen_in_more_pixels(family: str, most: int) -> None:
    processor = processor_of(family, max_pixels=most)
    for shape in SHAPES:
        seen = [high * wide for high, wide in sizes(processor, *shape)]
        assert min(seen) > 0 and max(seen) <= most


@pytest.mark.parametrize("total", [40 * TOKEN, 400 * TOKEN])
@pytest.mark.parametrize("family", LIMITED)
def test_all_frames_together_are_seen_in_no_more_pixels(family: str, total: int) -> None:
    processor = processor_of(family, max_video_pixels=total)
    for frames in (2, 3, 4, 5, 8, 16):
        for high, wide in sizes(processor, frames, 200, 300):
            assert 0 < high * wide * frames <= total


@pytest.mark.parametrize("family", FREE)
def test_a_processor_without_such_a_limit_is_left_as_it_is(family: str) -> None:
    plain, request = processor_of(family), processor_of(family, max_pixels=4096)
    assert min_pixels_of(plain) == 0
    (clip,) = clips("image", 1, height=80, width=60)
    before, after = (prepare(each, clip).inputs for each in (plain, request))
    assert all(torch.equal(before[n], after[n]) for n in before if "pixel" in n)


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl"])
def test_pixels_are_those_of_the_processor_called_with_that_size(family: str) -> None:
    most = 6 * TOKEN
    plain, request = processor_of(family), processor_of(family, max_pixels=most)
    assert takes_videos(plain)
    parts = (plain.image_processor, "pixel_values"), (plain.video_processor, "pixel_values_videos")
    for kind, (part, name) in zip(("image", "video"), parts, strict=True):
        (clip,) = clips(kind, 1, height=96, width=64)
        least = min(part.size["shortest_edge"], most)
        shown: Any = {"size": {"shortest_edge": least, "longest_edge": most}}
        frames = [clip.frames] if kind == "video" else list(clip.frames)
        more = {"do_sample_frames": False} if kind == "video" else {}
        expected = part(frames, return_tensors="pt", **shown, **more)[name]
        assert torch.equal(prepare(request, clip).inputs[name], expected)
        assert expected.shape != prepare(plain, clip).inputs[name].shape


@pytest.mark.parametrize("family", ["qwen3_vl", pytest.param("glm4v", marks=pytest.mark.slow)])
def test_every_frame_counts_for_itself_where_a_video_is_limited_as_a_whole(family: str) -> None:
    most = 9 * TOKEN
    processor = processor_of(family, max_pixels=most)
    whole = processor.video_processor.size["longest_edge"]
    for count in (2, 8):
        ((high, wide),) = sizes(processor, count, 96, 96)
        assert whole >= most * count and high * wide == most


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
def test_a_frame_is_kept_to_the_smaller_of_both_limits_and_is_a_token_at_the_least(
    family: str,
) -> None:
    most, total = 20 * TOKEN, 80 * TOKEN
    both = processor_of(family, max_pixels=most, max_video_pixels=total)
    alone = processor_of(family, max_pixels=most)
    assert sizes(both, 2, 96, 96) == sizes(alone, 2, 96, 96) == {(32, 32)}
    assert sizes(both, 16, 96, 96) == {(16, 16)}  # 80 / 16 = 5 tokens of a square
    assert sizes(both, 1, 96, 96) == sizes(alone, 1, 96, 96)
    least = processor_of(family, max_video_pixels=TOKEN)
    assert {*sizes(least, 2, 90, 160), *sizes(least, 300, 90, 160)} == {(8, 8)}


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
def test_images_and_short_videos_are_as_without_it(family: str) -> None:
    plain, request = processor_of(family), processor_of(family, max_video_pixels=64 * TOKEN)
    assert sizes(request, 1, 96, 96) == sizes(plain, 1, 96, 96)
    assert sizes(request, 2, 32, 32) == sizes(plain, 2, 32, 32)
    assert sizes(request, 16, 96, 96) != sizes(plain, 16, 96, 96)


def test_more_than_the_processor_allows_may_be_asked_for_where_it_limits_a_video() -> None:
    plain = processor_of("qwen3_vl")
    own = plain.video_processor.size["longest_edge"]
    edge = 8 * (round((own / 8) ** 0.5 / 8) + 4)
    before = sizes(plain, 8, edge, edge)
    assert before != {(edge, edge)}
    more = processor_of("qwen3_vl", max_video_pixels=8 * edge**2)
    assert sizes(more, 8, edge, edge) == {(edge, edge)}


def config_of(**options: Any) -> CaptionConfig:
    return CaptionConfig(**{"sources": (), "model": "demo", "precision": "fp32", **options})


@pytest.mark.slow
def test_limits_are_in_keys_only_where_they_are_given() -> None:
    plain = profile_of(CHECKPOINT)
    fewer = describe(CHECKPOINT, max_pixels=4 * plain.least_pixels)
    assert (plain.max_pixels, plain.max_video_pixels) == (0, 0)
    assert fewer.max_pixels == 4 * plain.least_pixels
    assert fewer.image_tokens < plain.image_tokens
    assert fewer.frame_tokens < plain.frame_tokens
    some = replace(fewer, max_pixels=9 * plain.least_pixels)
    found = [namespaces(profile, "plain") for profile in (plain, some, fewer)]
    # Where nothing else differs the limit alone does.
    video = ({"max_video_pixels": most} for most in (90_000, 40_000))
    limits: list[dict[str, Any]] = [{}, *video, {"max_pixels": 90_000}]
    alone = [namespaces(replace(plain, **limit), "plain") for limit in limits]
    assert len({each["frames"] for each in alone}) == 1
    for kind in ("features", "captions"):
        assert len({each[kind] for each in found}) == 3
        assert len({each[kind] for each in alone}) == 4


@pytest.mark.slow
def test_who_asks_for_what_cannot_be_is_told(tmp_path: Path) -> None:
    free = profile_of(checkpoint("llava"))
    check_pixels(config_of(), free)
    for name in ("max_pixels", "max_video_pixels"):
        option = f"--{name.replace('_', '-')}"
        with pytest.raises(UsageError, match=f"{option}: not supported") as caught:
            check_pixels(config_of(**{name: 4096}), free)
        assert "--max-frames" in caught.value.hint and "\n" not in caught.value.message
        with pytest.raises(UsageError, match=f"invalid {option} 0"):
            config_of(**{name: 0})
    config = config_of(model=str(checkpoint("llava")), store=str(tmp_path), max_pixels=4096)
    with pytest.raises(UsageError, match="has no pixel limit"):
        plan_of(config, InsideLauncher())


@pytest.mark.slow
def test_limits_below_a_token_are_refused_and_a_token_is_taken() -> None:
    tiny = describe(CHECKPOINT, max_pixels=1, max_video_pixels=1)
    for most in (1, 100, 255):
        for named, given in (
            ("--max-video-pixels", {"max_video_pixels": most}),
            ("--max-pixels", {"max_pixels": most, "max_video_pixels": most}),
        ):
            words = rf"^{named} {most} is too small \(one token of demo covers 256 pixels"
            with pytest.raises(UsageError, match=words) as caught:
                check_pixels(config_of(**given), tiny)
            assert caught.value.hint == "Give 16384 or more"
    least: dict[str, Any] = {"max_pixels": 256, "max_video_pixels": 256}
    check_pixels(config_of(**least), replace(tiny, **least))


def planned(folder: Path, store: Path, **options: Any) -> Plan:
    config = config_of(model=str(folder), store=str(store), **options)
    return plan_of(config, InsideLauncher())


@pytest.mark.slow
@pytest.mark.parametrize("gib", [8, 10])
@pytest.mark.parametrize("precision", ["nf4", "native"])
def test_a_plan_names_frames_and_pixels_that_really_fit(
    gib: int, precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flows.core.checkpoint.precision.cpu_has_bfloat16", lambda: True)
    folder = kept_folder(plan_case("qwen2.5-vl-7b-instruct"))
    requests: dict[str, Any] = {"precision": precision, "memory": gib << 30}
    plan = planned(folder, tmp_path, **requests)
    assert plan.refusal is not None
    _, instead = verdict(plan)
    named = [(option, int(value)) for option, value in re.findall(r"--(max-\w+) (\d+)", instead)]
    assert {"max-frames", "max-pixels"} == {option for option, _ in named}
    if precision == "native":
        requests["language_precision"] = re.findall(r"--language-precision (\w+)", instead)[0]
    for option, value in named:
        again = planned(folder, tmp_path, **requests, **{option.replace("-", "_"): value})
        assert again.refusal is None
        assert all(choice.fits for choice in again.stage_plans.values()), (option, value)


@pytest.mark.slow
def test_a_plan_reckons_with_it_as_the_run_does() -> None:
    folder = kept_folder(plan_case("qwen2.5-vl-7b-instruct"))
    for total, frames in ((3_000_000, 30), (3_000_000, 7), (1_000_000, 16)):
        profile = describe(folder, as_published=False, max_video_pixels=total)
        for shown in ((360, 640), (1080, 1920), (1280, 720)):
            stored = profile.fit_video.size(*shown)
            frame = ChunkFrames(frames, stored, shown)
            workload = workload_of(model(profile), "video", 1, frame, "x")
            planned = workload.tokens - workload.text_tokens
            processor = load_processor(folder, max_video_pixels=total)
            pixels = np.zeros((frames, *stored, 3), np.uint8)
            times = tuple(map(float, range(frames)))
            clip = Clip(frames=pixels, times=times, seconds=float(frames), kind="video")
            found = prepare(processor, clip, "x").count.tokens
            assert abs(planned / found - 1) < 0.01, (total, frames, shown)
            assert found * 784 * 2 <= total + 2 * 784 * found / frames


@pytest.mark.slow
def test_the_context_counts_frames_as_small_as_they_are_then_seen() -> None:
    folder = kept_folder(plan_case("qwen2.5-vl-7b-instruct"))
    config = json.loads((folder / "config.json").read_text())
    config["max_position_embeddings"] = 8192
    (folder / "config.json").write_text(json.dumps(config))
    plain = describe(folder, as_published=False)
    few = describe(folder, as_published=False, max_video_pixels=3_000_000)
    assert (frames_of_size(plain, (720, 1280)) or 0) < 30
    assert frames_of_size(few, (720, 1280)) is None
