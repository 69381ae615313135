"""What is left of a job in items, how long it takes by what earlier runs noted, and how many tokens
a processor gives."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers

from flows.core.console.display import Display
from flows.core.job.prepare import prepare
from flows.core.options.commands import CaptionConfig
from flows.core.plan.sizes import estimates
from flows.core.plan.times import UNKNOWN, note_seconds, remaining_items, seconds_an_item, times_of
from flows.core.plan.workloads import ChunkFrames, workload_of
from flows.execution.run import caption
from stages import decode, frames
from stages.models.processors.blank_clips import Clip
from stages.models.processors.input_sizes import bytes_of, pixels_per_video, probe
from stages.models.processors.prepare import prepare as prepare_clip
from tests.support import by_hand
from tests.support.builders.processors import qwen2_5_vl
from tests.support.media import write_videos
from tests.support.stand_ins import Stages, config_in

CLIPS = 4
hf: Any = transformers


@pytest.fixture
def config(tmp_path: Path) -> CaptionConfig:
    clips = write_videos(tmp_path / "clips", CLIPS, frames=30)
    return config_in(tmp_path, clips, max_new_tokens=10)


def left(config: CaptionConfig) -> dict[str, int]:
    job = prepare(config, Stages())
    return remaining_items(job, estimates(job))


def test_items_are_left_until_they_are_made(config: CaptionConfig) -> None:
    assert left(config) == {"frames": CLIPS, "encode": CLIPS, "decode": CLIPS}
    two = replace(config, prompts={"who": "Who?", "where": "Where?"})
    assert left(two) == {"frames": CLIPS, "encode": CLIPS, "decode": 2 * CLIPS}
    caption(config, Display(quiet=True), Stages().launcher)
    assert left(config) == {"frames": 0, "encode": 0, "decode": 0}


def test_a_plan_has_the_time_that_the_last_run_took_an_item(config: CaptionConfig) -> None:
    job = prepare(config, Stages())
    unknown = {"frames": None, "encode": None, "decode": None}
    assert times_of(job, estimates(job)) == (unknown, UNKNOWN)
    caption(config, Display(quiet=True), Stages().launcher)
    assert json.loads((Path(config.out) / "run.json").read_text())["plan"]["seconds"] == unknown
    assert seconds_an_item(job, decode.STAGE) is not None, "the run noted none"
    note_seconds(job, decode.STAGE, 2, 6.0)

    again = prepare(replace(config, prompt="Who?"), Stages())
    each, text = times_of(again, estimates(again))
    assert each == {"frames": 0.0, "encode": 0.0, "decode": 3.0 * CLIPS} and text == "decode 12 s"
    each, _ = times_of(again, estimates(again), lambda stage: 2)
    assert each is not None and each["decode"] == 1.5 * CLIPS
    done, summary = prepare(config, Stages()), prepare(replace(config, summary=True), Stages())
    assert times_of(done, estimates(done))[1] == "no time: nothing is left to make"
    assert times_of(summary, estimates(summary))[1] == "summarize unknown"
    other = prepare(replace(config, fps=1.0), Stages())
    assert times_of(other, estimates(other))[1] == UNKNOWN, "another sampling"


def test_the_newest_note_counts_and_is_alone(config: CaptionConfig) -> None:
    job = prepare(config, Stages())
    for seconds in (3.0, 1.0, 8.0):
        note_seconds(job, decode.STAGE, 2, seconds)
    note_seconds(job, decode.STAGE, 0, 5.0)  # a run that made nothing says nothing
    assert seconds_an_item(job, decode.STAGE) == 4.0
    assert seconds_an_item(job, frames.STAGE) is None
    assert len([*job.store.list("seconds")]) == 1


def qwen3_vl() -> Any:
    """Whose processor makes the frames of a video the smaller the more there are."""
    patches = {"patch_size": 16, "temporal_patch_size": 2, "merge_size": 2}
    other = qwen2_5_vl()
    return hf.Qwen3VLProcessor(
        image_processor=hf.Qwen2VLImageProcessor(**patches),
        tokenizer=other.tokenizer,
        video_processor=hf.Qwen3VLVideoProcessor(cap_pixels_per_frame=False, **patches),
        chat_template=other.tokenizer.chat_template,
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "frames", "height", "width"),
    [(qwen2_5_vl, 2, 360, 640), (qwen3_vl, 7, 256, 256)],
)
def test_chunks_are_as_the_processor_gives(make: Any, frames: int, height: int, width: int) -> None:
    processor = make()
    probed = probe(processor, "video")
    profile = replace(
        by_hand.PROFILE,
        modalities=("image", "video"),
        fit_video=probed.fit,
        frame_tokens=probed.tokens,
        frame_pixel_bytes=probed.pixel_bytes,
        frame_sizes=probed.smaller,
        pixels_per_video=pixels_per_video(processor),
    )
    stored = profile.fit_video.size(height, width)
    pixels, times = np.zeros((frames, *stored, 3), np.uint8), tuple(map(float, range(frames)))
    clip = Clip(frames=pixels, times=times, seconds=float(frames), kind="video")
    row = prepare_clip(processor, clip, "x")
    numbers = bytes_of(row.inputs["pixel_values_videos"]) // 4
    of_chunk = ChunkFrames(frames, stored, (height, width))
    workload = workload_of(by_hand.model(profile), "video", 1, of_chunk, "x")
    tokens = workload.tokens - workload.text_tokens
    # Sizes are rounded to whole patches, and small videos may be enlarged.
    assert 0.95 < workload.units / numbers < 1.25
    assert 0.95 < tokens / row.count.tokens < 1.25


def test_only_a_processor_that_counts_frames_limits_a_video() -> None:
    assert pixels_per_video(qwen2_5_vl()) == 0
    assert pixels_per_video(qwen3_vl()) == dict(qwen3_vl().video_processor.size)["longest_edge"]
