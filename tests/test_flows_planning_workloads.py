"""What a job's chunks are in pixels and tokens is what the processors make of them."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import transformers

from flows.planning.workloads import workload_of
from stages.models.processors.fit import bytes_of, pixels_a_video, probe
from stages.models.processors.prepare import Clip, prepare
from stages.models.profile import ModelProfile
from tests.support.by_hand import PROFILE, model
from tests.support.plan_processors import qwen2_5_vl

hf: Any = transformers


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


@cache
def made(make: Callable[[], Any]) -> tuple[Any, ModelProfile]:
    """A processor, and a card with what it says."""
    processor = make()
    return processor, profile_of(processor)


def profile_of(processor: Any) -> ModelProfile:
    image, video = probe(processor, "image"), probe(processor, "video")
    return replace(
        PROFILE,
        modalities=("image", "video"),
        fit_video=video.fit,
        fit_image=image.fit,
        image_tokens=image.tokens,
        frame_tokens=video.tokens,
        image_pixel_bytes=image.pixel_bytes,
        frame_pixel_bytes=video.pixel_bytes,
        image_sizes=image.smaller,
        frame_sizes=video.smaller,
        pixels_a_video=pixels_a_video(processor),
    )


@pytest.mark.parametrize(
    ("make", "frames", "height", "width"),
    [
        (qwen2_5_vl, 2, 360, 640),
        pytest.param(qwen3_vl, 7, 256, 256, marks=pytest.mark.slow),
    ],
)
def test_chunks_are_as_the_processor_gives(make: Any, frames: int, height: int, width: int) -> None:
    processor, profile = made(make)
    stored = profile.fit_video.size(height, width)
    clip = Clip(
        frames=np.zeros((frames, *stored, 3), np.uint8),
        times=tuple(map(float, range(frames))),
        seconds=float(frames),
        kind="video",
    )
    row = prepare(processor, clip, "x")
    numbers = bytes_of(row.inputs["pixel_values_videos"]) // 4
    workload = workload_of(model(profile), "video", 1, frames, stored, (height, width), "x")
    tokens = workload.tokens - workload.text_tokens
    # Sizes are rounded to whole patches, and small videos may be enlarged.
    assert 0.95 < workload.units / numbers < 1.25
    assert 0.95 < tokens / row.count.tokens < 1.25


def test_only_a_processor_that_counts_frames_limits_a_video() -> None:
    assert pixels_a_video(qwen2_5_vl()) == 0
    assert pixels_a_video(qwen3_vl()) == dict(qwen3_vl().video_processor.size)["longest_edge"]
