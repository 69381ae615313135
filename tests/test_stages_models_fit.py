"""Frames are stored no larger than a processor sees them, and never smaller."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from artifacts.schema import FrameFit
from stages.models.processors.fit import ASPECTS, COMMON, black, probe, resized
from stages.models.processors.prepare import Clip, load_processor, prepare
from tests.support.families import BUILDERS, checkpoint
from tests.support.processors import processor_folder

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
ODD = (0.35, 0.43, 0.6, 0.87, 0.97, 1.29, 1.9, 2.9)
"""Heights / widths that no probe has."""
WAYS = (
    *("emu3", "gemma3", "qwen2_vl"),
    *(pytest.param(n, marks=pytest.mark.slow) for n in ("idefics3", "internvl", "llava_next")),
    *(pytest.param(n, marks=pytest.mark.slow) for n in ("pix2struct", "pixtral")),
)
"""Families that resize in different ways."""
OWN_WAYS = {"emu3"}
"""Families whose processors keep frames of the size that is tried."""


def needed(processor: Any, clip: Clip) -> float:
    """The part of its size that a frame must keep."""
    height, width = clip.frames.shape[1:3]
    sizes, _ = resized(processor, clip, wait=True)
    return max(max(h / float(height), w / float(width)) for h, w in sizes)


@pytest.mark.parametrize("family", WAYS)
def test_no_frame_is_stored_smaller_than_it_is_seen(family: str) -> None:
    processor = load_processor(processor_folder(family))
    fit = probe(processor, "video").fit
    assert bool(fit.long_edges) == (family not in OWN_WAYS)
    for aspect in ODD if fit.long_edges else ():
        clip = black(processor, "video", aspect, 640)
        height, width = clip.frames.shape[1:3]
        stored = fit.size(height, width)
        least = needed(processor, clip)
        assert stored[0] >= math.floor(least * height), aspect
        assert stored[1] >= math.floor(least * width), aspect
        assert max(stored) < 640 or family == "pix2struct", aspect


def test_frames_of_common_aspects_are_fitted_exactly() -> None:
    processor = load_processor(checkpoint("qwen2_5_vl"))
    fit = probe(processor, "image").fit
    for aspect in COMMON:
        clip = black(processor, "image", aspect, 1280)
        height, width = clip.frames.shape[1:3]
        least = needed(processor, clip)
        assert max(fit.size(height, width)) == math.ceil(least * 1280 - 1e-6), aspect


def test_frames_of_aspects_beyond_those_tried_keep_their_size() -> None:
    fit = probe(load_processor(checkpoint("llava")), "image").fit
    assert fit.size(100, 1000) == (100, 1000) and fit.size(1000, 100) == (1000, 100)
    assert min(ASPECTS) <= 1 / 3 and max(ASPECTS) >= 3 - 1e-9


def test_what_is_done_to_tiles_needs_no_larger_frame() -> None:
    processor = load_processor(checkpoint("smolvlm"))
    fit = probe(processor, "image").fit
    for height, width in ((1080, 1920), (1000, 1920), (700, 1280), (1234, 777)):
        assert 64 <= max(fit.size(height, width)) < 74


@pytest.mark.parametrize("shape", [(700, 1280), pytest.param((1280, 740), marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "family",
    [
        *("llava", "qwen2_5_vl", "pixtral"),
        *(pytest.param(n, marks=pytest.mark.slow) for n in ("smolvlm", "llava_next", "mllama")),
    ],
)
def test_a_fitted_frame_comes_out_as_the_whole_one(family: str, shape: tuple[int, int]) -> None:
    folder = checkpoint(family) if family in BUILDERS else processor_folder(family)
    processor = load_processor(folder)
    fit = probe(processor, "image").fit
    frames = [np.zeros((1, *size, 3), np.uint8) for size in (shape, fit.size(*shape))]
    rows = [Clip(frames=f, times=(0.0,), seconds=0.0, kind="image") for f in frames]
    whole, fitted = (prepare(processor, row).inputs["pixel_values"] for row in rows)
    assert np.shape(whole) == np.shape(fitted) and max(fit.size(*shape)) < max(shape) / 4


def test_a_processor_that_cuts_pieces_out_of_a_frame_as_it_is_gets_it_whole() -> None:
    processor = load_processor(processor_folder("git"))
    compute = type(processor).__call__

    class Cutting(type(processor)):  # type: ignore[misc]
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            outputs = compute(self, *args, **kwargs)
            pieces = [picture.size[0] // 64 for row in kwargs["images"] for picture in row]
            outputs["pixel_pieces"] = torch.zeros(sum(pieces), 64, 64)
            return outputs

    assert probe(processor, "image").fit != FrameFit()
    processor.__class__ = Cutting
    assert probe(processor, "image").fit == FrameFit()
