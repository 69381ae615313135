"""--max-video-pixels keeps all frames of a chunk together to so many pixels, beside --max-pixels;
plans reckon with it."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from artifacts.errors import UsageError
from flows.console.display import Display
from flows.job.config import CaptionConfig
from flows.job.context import frames_of_size
from flows.job.pixel_limits import check_pixels
from flows.planning.workloads import workload_of
from flows.results.run_result import RunResult
from flows.running.run import caption
from penstock_demo import CHECKPOINT
from stages.models import describe
from stages.models.processors.clip import Clip
from stages.models.processors.fit import resized
from stages.models.processors.loading import load_processor
from stages.models.processors.prepare import prepare
from tests.support.by_hand import model
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
LIMITED = ("qwen2_vl", "qwen2_5_vl", "glm4v", "qwen3_vl", "video_llama_3")
FREE = ("llava", pytest.param("llava_onevision", marks=pytest.mark.slow))


def processor_of(family: str, **limits: Any) -> Any:
    folder = processor_folder(family) if family in KINDS else checkpoint(family)
    return load_processor(folder, **limits)


def sizes(processor: Any, frames: int, height: int, width: int) -> set[tuple[int, int]]:
    kind: Any = "image" if frames == 1 else "video"
    (clip,) = clips(kind, 1, height=height, width=width, frames=frames)
    return set(resized(processor, clip)[0])


@pytest.mark.parametrize("total", [40 * TOKEN, 400 * TOKEN])
@pytest.mark.parametrize(
    "family",
    [pytest.param(f, marks=[] if "qwen" in f else pytest.mark.slow) for f in LIMITED],
)
def test_all_frames_together_are_seen_in_no_more_pixels(family: str, total: int) -> None:
    processor = processor_of(family, max_video_pixels=total)
    for frames in (2, 3, 4, 5, 8, 16):
        for high, wide in sizes(processor, frames, 200, 300):
            assert 0 < high * wide * frames <= total


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
def test_a_frame_is_kept_to_the_smaller_of_both_limits(family: str) -> None:
    most, total = 20 * TOKEN, 80 * TOKEN
    both = processor_of(family, max_pixels=most, max_video_pixels=total)
    alone = processor_of(family, max_pixels=most)
    assert sizes(both, 2, 96, 96) == sizes(alone, 2, 96, 96) == {(32, 32)}
    assert sizes(both, 16, 96, 96) == {(16, 16)}  # 80 / 16 = 5 tokens of a square
    assert sizes(both, 1, 96, 96) == sizes(alone, 1, 96, 96)


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
def test_images_and_short_videos_are_as_without_it(family: str) -> None:
    plain, asked = processor_of(family), processor_of(family, max_video_pixels=64 * TOKEN)
    assert sizes(asked, 1, 96, 96) == sizes(plain, 1, 96, 96)
    assert sizes(asked, 2, 32, 32) == sizes(plain, 2, 32, 32)
    assert sizes(asked, 16, 96, 96) != sizes(plain, 16, 96, 96)


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


def test_the_limit_is_in_keys_of_features_only_where_it_is_given() -> None:
    plain = describe(CHECKPOINT)
    assert plain.max_video_pixels == 0
    video = ({"max_video_pixels": most} for most in (90_000, 40_000))
    limits: list[dict[str, Any]] = [{}, *video, {"max_pixels": 90_000}]
    found = [namespaces(replace(plain, **limit), "plain") for limit in limits]
    assert len({each["frames"] for each in found}) == 1
    for kind in ("features", "captions"):
        assert len({each[kind] for each in found}) == 4


@pytest.mark.parametrize("family", FREE)
def test_a_model_without_such_a_limit_refuses_it_in_one_line(family: str) -> None:
    free = describe(checkpoint(family))
    check_pixels(config_of(), free)
    with pytest.raises(UsageError, match="no limit of pixels that --max-video-pixels") as caught:
        check_pixels(config_of(max_video_pixels=4096), free)
    assert "--max-frames" in caught.value.hint and "\n" not in caught.value.message


def test_limits_below_a_token_are_refused_and_a_token_is_taken() -> None:
    tiny = describe(CHECKPOINT, max_pixels=1, max_video_pixels=1)
    for most in (1, 100, 255):
        for named, given in (
            ("--max-video-pixels", {"max_video_pixels": most}),
            ("--max-pixels", {"max_pixels": most, "max_video_pixels": most}),
        ):
            words = f"^{named} is {most}, and one token of demo has 256"
            with pytest.raises(UsageError, match=words) as caught:
                check_pixels(config_of(**given), tiny)
            assert caught.value.hint == "Give 16384 or more"
    least: dict[str, Any] = {"max_pixels": 256, "max_video_pixels": 256}
    check_pixels(config_of(**least), describe(CHECKPOINT, **least))


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
def test_a_frame_becomes_a_token_where_the_limit_leaves_it_less(family: str) -> None:
    processor = processor_of(family, max_video_pixels=TOKEN)
    assert {*sizes(processor, 2, 90, 160), *sizes(processor, 300, 90, 160)} == {(8, 8)}


def test_a_limit_of_nothing_is_refused() -> None:
    with pytest.raises(UsageError, match="--max-video-pixels is 0"):
        config_of(max_video_pixels=0)


@pytest.mark.slow
def test_a_plan_reckons_with_it_as_the_run_does() -> None:
    folder = kept_folder(plan_case("qwen2.5-vl-7b-instruct"))
    for total, frames in ((3_000_000, 30), (3_000_000, 7), (1_000_000, 16)):
        profile = describe(folder, as_published=False, max_video_pixels=total)
        for shown in ((360, 640), (1080, 1920), (1280, 720)):
            stored = profile.fit_video.size(*shown)
            workload = workload_of(model(profile), "video", 1, frames, stored, shown, "x")
            planned = workload.tokens - workload.text_tokens
            processor = load_processor(folder, max_video_pixels=total)
            clip = Clip(
                frames=np.zeros((frames, *stored, 3), np.uint8),
                times=tuple(map(float, range(frames))),
                seconds=float(frames),
                kind="video",
            )
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


def started_by(config: CaptionConfig, launcher: InsideLauncher) -> RunResult:
    return caption(config, Display(quiet=True), lambda _: launcher)


@pytest.mark.slow
def test_a_run_with_it_encodes_anew_and_its_record_says_so(tmp_path: Path) -> None:
    write_video(tmp_path / "clip.mp4", ticks=range(50), gop=25)
    said = {}
    for name, most in (("plain", None), ("fewer", 64 * 64), ("again", None)):
        config = config_of(
            sources=(str(tmp_path / "clip.mp4"),),
            store=str(tmp_path / "store"),
            out=str(tmp_path / name),
            max_video_pixels=most,
            max_new_tokens=8,
        )
        launcher = InsideLauncher()
        assert started_by(config, launcher).failures == []
        said[name] = (tmp_path / name / "captions.jsonl").read_text()
        record = json.loads((tmp_path / name / "run.json").read_text())
        assert record["plan"].get("max_video_pixels") == most
        assert ("encode" in launcher.started) == (name != "again")
    assert said["plain"] == said["again"]
