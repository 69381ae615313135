import random

import numpy as np
import pytest

from penstock_demo.batches import is_readable, make_batch
from penstock_demo.render import render_frames
from penstock_demo.tracks import place
from penstock_demo.world import FRAME_SIZES, Split, sample_clip


@pytest.mark.parametrize("split", ["trained", "never"])
def test_splits_keep_the_pairs_apart(split: Split) -> None:
    rng = random.Random(1)
    assert all(sample_clip(rng, split).is_trained == (split == "trained") for _ in range(300))


def test_things_stay_within_the_frame_and_apart() -> None:
    rng = random.Random(3)
    for _ in range(300):
        spec = sample_clip(rng, "any")
        width, height = 64 * spec.aspect**0.5, 64 / spec.aspect**0.5
        for step in range(11):
            for track in spec.tracks:
                x, y, _ = place(track, step / 10)
                assert track.radius < x < width - track.radius
                assert track.radius < y < height - track.radius


@pytest.mark.parametrize("count", [6, 7, 11, 16])
def test_six_frames_and_more_show_every_action(count: int) -> None:
    rng = random.Random(4)
    times = [index / count for index in range(count)]
    assert all(is_readable(sample_clip(rng, "any"), times) for _ in range(300))


def test_two_frames_do_not_show_every_action_fails() -> None:
    rng = random.Random(4)
    assert not all(is_readable(sample_clip(rng, "any"), (0.0, 0.5)) for _ in range(100))


def test_frames_have_the_asked_size_and_show_what_moves() -> None:
    rng = random.Random(5)
    for height, width in FRAME_SIZES:
        spec = sample_clip(rng, "any")
        while not any(track.legs for track in spec.tracks):
            spec = sample_clip(rng, "any")
        frames = render_frames(spec, (0.0, 0.99), height, width)
        assert frames.shape == (2, height, width, 3)
        assert frames.dtype == np.uint8
        assert (frames[0] != frames[1]).any()


def test_a_batch_has_one_shape_and_an_even_number_of_frames() -> None:
    rng = random.Random(6)
    noise = np.zeros(1 << 21, np.float32)
    counts = set()
    for _ in range(8):
        batch = make_batch(rng, noise)
        clips, times, height, width, _ = batch.frames.shape
        counts.add(times)
        assert times % 2 == 0
        assert len(batch.captions) == len(batch.backgrounds) == clips
        assert batch.classes.shape == (clips, 3, times // 2, height // 16, width // 16)
        assert batch.motion.shape[2:] == batch.classes.shape[2:]
    assert len(counts) > 2
