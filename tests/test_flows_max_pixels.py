"""--max-pixels keeps every picture and every frame to so many pixels, by the processor's own limit;
plans name it among what would make a run fit, with a value that does."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from artifacts.errors import UsageError
from flows.console.display import Display
from flows.job.config import CaptionConfig
from flows.job.pixel_limits import check_pixels
from flows.planning.plan import Plan, plan_of
from flows.planning.plan_view import verdict
from flows.running.run import caption
from penstock_demo import CHECKPOINT
from stages.models import describe
from stages.models.processors.fit import resized
from stages.models.processors.loading import load_processor, takes_videos
from stages.models.processors.pixel_limit import least_pixels
from stages.models.processors.prepare import prepare
from tests.support.clips import clips
from tests.support.families import checkpoint
from tests.support.inside import InsideLauncher
from tests.support.keys_before import namespaces
from tests.support.media import write_video
from tests.support.plan_cases import kept_folder, plan_case
from tests.support.processors import KINDS, processor_folder

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

TOKEN = 64
"""Pixels of a token of the tiny processors."""
LIMITED = ("glm4v", "qwen2_vl", "video_llama_3", "qwen2_5_vl", "qwen3_vl")
FREE = ("gemma3", "llava_next", "pixtral", "idefics3", "internvl", "llava")
SIZES = ((1, 333, 500), (2, 200, 300), (5, 200, 300), (8, 480, 270), (8, 30, 30), (3, 64, 160))


def processor_of(family: str, most: int = 0) -> Any:
    folder = processor_folder(family) if family in KINDS else checkpoint(family)
    return load_processor(folder, max_pixels=most)


@pytest.mark.parametrize("most", [5 * TOKEN, 40 * TOKEN, 300 * TOKEN])
@pytest.mark.parametrize(
    "family",
    [pytest.param(f, marks=[] if f == "qwen3_vl" else pytest.mark.slow) for f in LIMITED],
)
def test_no_frame_is_seen_in_more_pixels(family: str, most: int) -> None:
    processor = processor_of(family, most)
    for count, height, width in SIZES:
        kind: Any = "image" if count == 1 else "video"
        (clip,) = clips(kind, 1, height=height, width=width, frames=count)
        for high, wide in resized(processor, clip)[0]:
            assert 0 < high * wide <= most


@pytest.mark.parametrize("family", FREE)
def test_a_processor_without_such_a_limit_is_left_as_it_is(family: str) -> None:
    plain, asked = processor_of(family), processor_of(family, 4096)
    assert least_pixels(plain) == 0
    (clip,) = clips("image", 1, height=80, width=60)
    before, after = (prepare(each, clip).inputs for each in (plain, asked))
    assert all(torch.equal(before[n], after[n]) for n in before if "pixel" in n)


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl"])
def test_pixels_are_those_of_the_processor_called_with_that_size(family: str) -> None:
    most = 6 * TOKEN
    plain, asked = processor_of(family), processor_of(family, most)
    assert takes_videos(plain)
    for kind, part, name in (
        ("image", plain.image_processor, "pixel_values"),
        ("video", plain.video_processor, "pixel_values_videos"),
    ):
        (clip,) = clips(kind, 1, height=96, width=64)
        least = min(part.size["shortest_edge"], most)
        shown: Any = {"size": {"shortest_edge": least, "longest_edge": most}}
        frames = [clip.frames] if kind == "video" else list(clip.frames)
        more = {"do_sample_frames": False} if kind == "video" else {}
        wanted = part(frames, return_tensors="pt", **shown, **more)[name]
        assert torch.equal(prepare(asked, clip).inputs[name], wanted)
        assert wanted.shape != prepare(plain, clip).inputs[name].shape


@pytest.mark.parametrize("family", ["qwen3_vl", pytest.param("glm4v", marks=pytest.mark.slow)])
def test_every_frame_counts_for_itself_where_a_video_is_limited_as_a_whole(family: str) -> None:
    most = 9 * TOKEN
    processor = processor_of(family, most)
    whole = processor.video_processor.size["longest_edge"]
    for count in (2, 8):
        (clip,) = clips("video", 1, height=96, width=96, frames=count)
        ((high, wide),) = set(resized(processor, clip)[0])
        assert whole >= most * count and high * wide == most


def config_of(**options: Any) -> CaptionConfig:
    return CaptionConfig(**{"sources": (), "model": "demo", "precision": "fp32", **options})


def test_the_limit_is_in_keys_only_where_it_is_given() -> None:
    plain = describe(CHECKPOINT)
    some, fewer = (describe(CHECKPOINT, max_pixels=count * plain.least_pixels) for count in (9, 4))
    assert (plain.max_pixels, fewer.max_pixels) == (0, 4 * plain.least_pixels)
    assert fewer.image_tokens < some.image_tokens < plain.image_tokens
    assert fewer.frame_tokens < some.frame_tokens < plain.frame_tokens
    found = [namespaces(profile, "plain") for profile in (plain, some, fewer)]
    for kind in ("features", "captions"):
        assert len({each[kind] for each in found}) == 3
    # Where nothing else differs the limit alone does.
    same = namespaces(replace(plain, max_pixels=123456), "plain")
    assert same["frames"] == found[0]["frames"] and same["features"] != found[0]["features"]


def test_who_asks_for_what_cannot_be_is_told(tmp_path: Path) -> None:
    limited, free = describe(CHECKPOINT), describe(checkpoint("llava"))
    check_pixels(config_of(max_pixels=limited.least_pixels), limited)
    check_pixels(config_of(), free)
    with pytest.raises(UsageError, match="one token of demo has") as caught:
        check_pixels(config_of(max_pixels=limited.least_pixels - 1), limited)
    assert str(64 * limited.least_pixels) in caught.value.hint
    with pytest.raises(UsageError, match="has no limit of pixels that --max-pixels") as caught:
        check_pixels(config_of(max_pixels=4096), free)
    assert "--max-frames" in caught.value.hint
    with pytest.raises(UsageError, match="--max-pixels is 0"):
        config_of(max_pixels=0)
    with pytest.raises(UsageError, match="has no limit of pixels"):
        plan_of(
            config_of(model=str(checkpoint("llava")), store=str(tmp_path), max_pixels=4096),
            InsideLauncher(),
        )


def planned(folder: Path, store: Path, **options: Any) -> Plan:
    config = config_of(model=str(folder), store=str(store), **options)
    return plan_of(config, InsideLauncher())


@pytest.mark.slow
@pytest.mark.parametrize("gib", [8, 10])
@pytest.mark.parametrize("precision", ["nf4", "native"])
def test_a_plan_names_frames_and_pixels_that_really_fit(
    gib: int, precision: str, tmp_path: Path
) -> None:
    folder = kept_folder(plan_case("qwen2.5-vl-7b-instruct"))
    asked: dict[str, Any] = {"precision": precision, "memory": gib << 30}
    plan = planned(folder, tmp_path, **asked)
    assert plan.refusal is not None
    _, instead = verdict(plan)
    named = [(option, int(value)) for option, value in re.findall(r"--(max-\w+) (\d+)", instead)]
    assert {"max-frames", "max-pixels"} == {option for option, _ in named}
    if precision == "native":
        asked["language_precision"] = re.findall(r"--language-precision (\w+)", instead)[0]
    for option, value in named:
        again = planned(folder, tmp_path, **asked, **{option.replace("-", "_"): value})
        assert again.refusal is None
        assert all(choice.fits for choice in again.choices.values()), (option, value)


def started_by(config: CaptionConfig) -> list[str]:
    """The stages that a run starts in which nothing fails."""
    launcher = InsideLauncher()
    assert caption(config, Display(quiet=True), lambda _: launcher).failures == []
    return launcher.started


@pytest.mark.slow
def test_a_run_with_fewer_pixels_says_other_words_and_keeps_both(tmp_path: Path) -> None:
    write_video(tmp_path / "clip.mp4", ticks=range(50), gop=25)
    said = {}
    for name, most in (("plain", None), ("fewer", 64 * 64), ("again", None)):
        config = config_of(
            sources=(str(tmp_path / "clip.mp4"),),
            store=str(tmp_path / "store"),
            out=str(tmp_path / name),
            max_pixels=most,
            max_new_tokens=8,
        )
        started = started_by(config)
        said[name] = (tmp_path / name / "captions.jsonl").read_text()
        assert (f'"max_pixels": {most}' in (tmp_path / name / "run.json").read_text()) == bool(most)
        assert ("encode" in started) == (name != "again")
    assert said["plain"] == said["again"]
