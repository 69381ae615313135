"""A window of stored features is what its frames give alone, of one chunk and across two."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from stages.answer import WINDOWED
from stages.decode.protocol import read_features
from stages.models.loading import ModelJob
from stages.models.processors.time_windows import NoWindows, cut_window, joined
from tests.support.clips import clips
from tests.support.trees import tensors_in
from tests.support.waves import FEATURES, encoded_wave, folder_of

FIRST, LAST = 2, 6
QUICK = ("demo", "llava")


@pytest.mark.parametrize(
    "family",
    [
        *QUICK,
        *(pytest.param(name, marks=pytest.mark.slow) for name in WINDOWED if name not in QUICK),
    ],
)
def test_a_window_is_its_frames_encoded_alone(tmp_path: Path, family: str) -> None:
    whole = clips("video", 1, frames=8)[0]
    half = replace(whole, seconds=whole.seconds / 2)
    alone = replace(half, frames=whole.frames[FIRST:LAST], times=whole.times[:4])
    head = replace(half, frames=whole.frames[:4], times=whole.times[:4])
    tail = replace(half, frames=whole.frames[4:], times=whole.times[:4])
    batches = [whole], [alone], [head], [tail]
    wave = encoded_wave(tmp_path, folder_of(family), *batches, dtype="float32")
    kept = wave.record_set("features", FEATURES)
    rows = [read_features(kept, f"features-{at}") for at in range(len(batches))]
    processor = ModelJob(model=str(folder_of(family)), dtype="float32").processor()
    for row, clip in (joined(rows[:1], [whole]), joined(rows[2:], [head, tail])):
        window = cut_window(processor, row, clip, FIRST, LAST)
        assert (window.count, window.replacements) == (rows[1].count, rows[1].replacements)
        pairs = zip(tensors_in(window.features), tensors_in(rows[1].features), strict=True)
        assert all(torch.equal(left, right) for left, right in pairs)
        sides = zip(tensors_in({"": window.side}), tensors_in({"": rows[1].side}), strict=True)
        assert all(torch.equal(left, right) for left, right in sides)


def test_features_with_a_token_for_all_frames_are_refused(tmp_path: Path) -> None:
    whole = clips("video", 1, frames=8)[0]
    wave = encoded_wave(tmp_path, folder_of("llava_onevision"), [whole], dtype="float32")
    row = read_features(wave.record_set("features", FEATURES), "features-0")
    processor = ModelJob(model=str(folder_of("llava_onevision")), dtype="float32").processor()
    with pytest.raises(NoWindows, match="no windows of time"):
        cut_window(processor, row, whole, FIRST, LAST)
