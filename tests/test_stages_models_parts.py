"""The parts of a picture as an encoder of pictures takes them."""

from typing import Any

import numpy as np
import pytest
import torch

from stages.models.processors import pictures
from stages.models.processors.clip import Clip
from tests.support.families import hf


def clip_of(high: int, wide: int) -> Clip:
    rows, columns = np.mgrid[:high, :wide]
    waves = 127 + 60 * np.sin(rows / 90) + 60 * np.cos(columns / 70)
    frame = np.stack([waves, 255 - waves, waves / 2], 2).astype(np.uint8)
    return Clip(frames=frame[None], times=(0.0,), seconds=0.0, kind="image")


def test_a_very_large_part_is_seen_as_it_would_be_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    size: Any = {"height": 32, "width": 32}
    processor = hf.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=size)
    clip, boxes = clip_of(701, 1003), [(0, 0, 1003, 701), (100, 100, 400, 400)]
    whole = pictures.prepare_parts(processor, clip, boxes).inputs["pixel_values"]
    monkeypatch.setattr(pictures, "LARGE", 50_000)
    seen: list[tuple[int, int]] = []
    monkeypatch.setattr(pictures, "STRIP", 50)

    def told(**given: Any) -> Any:
        seen.extend(image.size for image in given["images"])
        return processor(**given)

    divided = pictures.prepare_parts(told, clip, boxes).inputs["pixel_values"]
    assert seen == [(251, 175), (150, 150)]
    assert whole.shape == divided.shape == (2, 3, 32, 32)
    assert torch.allclose(whole, divided, atol=0.03)
