"""The position of every token as published: all that follows a medium stands behind it. Literals
of the installed transformers and of the first releases; neither weights nor network are needed."""

import random
from itertools import pairwise

import pytest
import torch

from stages.models.halves.text_positions import place_behind
from tests.support.position_prompts import (
    INSTALLED,
    Medium,
    Positions,
    Prompt,
    as_published,
    first_release,
    stock,
    stock_tensors,
    why_not,
)

HIGH, WIDE = 26, 46
"""Patches of a 360p frame."""
HEAD, TAIL = 15, 10
"""Words before the first medium, and after the last."""
QWEN2, QWEN2_5, ERNIE = "qwen2_vl", "qwen2_5_vl", "ernie4_5_vl_moe"


def of_video(family: str, steps: int, seconds: float = 1.0) -> Prompt:
    merge = 2 if family == ERNIE else 1
    video = Medium(steps=steps, height=HIGH, width=WIDE, video=True, seconds=seconds)
    return Prompt(family=family, parts=(HEAD, video, TAIL), temporal_merge=merge)


def ranges(prompt: Prompt, found: Positions) -> list[tuple[int, int]]:
    """Return the first and last step of time of each part."""
    bounds = pairwise([*prompt.starts(), prompt.length()])
    return [(int(found.ids[0, a:b].min()), int(found.ids[0, a:b].max())) for a, b in bounds]


VIDEOS = [
    (QWEN2_5, 12, 1.0, 37, (38, 48), (38, 48)),
    (QWEN2_5, 13, 1.0, 39, (40, 50), (38, 48)),
    (QWEN2_5, 30, 1.0, 73, (74, 84), (38, 74)),
    (QWEN2_5, 120, 1.0, 253, (254, 264), (38, 254)),
    (QWEN2_5, 15, 2.0, 71, (72, 82), (38, 72)),
    (QWEN2_5, 45, 2 / 3, 73, (74, 84), (38, 74)),
    (QWEN2_5, 60, 0.5, 74, (75, 85), (38, 75)),
    (QWEN2, 12, 1.0, 26, (38, 48), (38, 48)),
    (QWEN2, 30, 1.0, 44, (45, 55), (38, 48)),
    (QWEN2, 120, 1.0, 134, (135, 145), (38, 135)),
    (ERNIE, 30, 1.0, 29, (38, 48), (38, 48)),
    (ERNIE, 180, 1.0, 104, (105, 115), (38, 105)),
]
"""Family, steps (frames of Ernie), seconds between two -> last step of the video's time, then where
the text after it begins and the first generated token stands: as published, and as stock."""


@pytest.mark.parametrize(("family", "steps", "seconds", "last", "published", "today"), VIDEOS)
def test_text_stands_behind_a_video_of_any_length(
    family: str,
    steps: int,
    seconds: float,
    last: int,
    published: tuple[int, int],
    today: tuple[int, int],
) -> None:
    prompt = of_video(family, steps, seconds)
    after = prompt.starts()[-1]
    for found, expected in ((as_published(prompt), published), (stock(prompt), today)):
        assert ranges(prompt, found)[1] == (HEAD, last)
        assert (int(found.ids[0, after]), found.next) == expected
        assert found.ids[:, after:].tolist() == [list(range(expected[0], expected[0] + TAIL))] * 3


def test_a_second_video_stands_behind_the_first() -> None:
    video = Medium(steps=30, height=HIGH, width=WIDE, video=True)
    prompt = Prompt(family=QWEN2_5, parts=(HEAD, video, 2, video, TAIL))
    found, today = as_published(prompt), stock(prompt)
    assert [ranges(prompt, found)[at] for at in (1, 3)] == [(15, 73), (76, 134)]
    assert [ranges(prompt, today)[at] for at in (1, 3)] == [(15, 73), (40, 98)]
    assert (ranges(prompt, found)[4][0], found.next) == (135, 145)
    assert (ranges(prompt, today)[4][0], today.next) == (63, 99)


def test_a_picture_stands_behind_a_video_and_a_video_behind_a_picture() -> None:
    parts = (
        *(HEAD, Medium(steps=1, height=HIGH, width=WIDE)),
        *(2, Medium(steps=30, height=HIGH, width=WIDE, video=True)),
        *(2, Medium(steps=1, height=20, width=20), TAIL),
    )
    prompt = Prompt(family=QWEN2_5, parts=parts)
    found, today = as_published(prompt), stock(prompt)
    assert [ranges(prompt, found)[at] for at in (1, 3, 5)] == [(15, 15), (40, 98), (101, 101)]
    assert ranges(prompt, today)[5] == (65, 65)
    assert (ranges(prompt, found)[6][0], found.next) == (111, 121)
    assert (ranges(prompt, today)[6][0], today.next) == (75, 99)


@pytest.mark.parametrize("family", [QWEN2, QWEN2_5])
def test_pictures_stand_where_transformers_puts_them(family: str) -> None:
    sizes = ((HIGH, WIDE), (WIDE, HIGH), (20, 20))
    media = [Medium(steps=1, height=high, width=wide) for high, wide in sizes]
    prompt = Prompt(family=family, parts=(HEAD, media[0], 2, media[1], 2, media[2], TAIL))
    found = as_published(prompt)
    assert found == stock(prompt)
    assert [ranges(prompt, found)[at][0] for at in (1, 3, 5, 6)] == [15, 40, 65, 75]
    assert found.next == 85


FIRST_LENGTHS = [((26, 46), 13, 7, 24), ((40, 72), 19, 10, 37)]
"""Patches of a frame -> the least steps at which something moves: Qwen2.5-VL at 2 frames a second
and at 1, Qwen2-VL."""


@pytest.mark.parametrize(("size", "two_a_second", "one_a_second", "untimed"), FIRST_LENGTHS)
def test_something_moves_from_one_length_on(
    size: tuple[int, int], two_a_second: int, one_a_second: int, untimed: int
) -> None:
    for family, seconds, first in (
        (QWEN2_5, 1.0, two_a_second),
        (QWEN2_5, 2.0, one_a_second),
        (QWEN2, 1.0, untimed),
    ):
        for steps in (first - 1, first):
            video = Medium(steps=steps, height=size[0], width=size[1], video=True, seconds=seconds)
            prompt = Prompt(family=family, parts=(HEAD, video, TAIL))
            assert (as_published(prompt) != stock(prompt)) == (steps == first)


def test_what_was_moved_once_stays() -> None:
    """So that the rule disappears when transformers is corrected."""
    prompts = [of_video(family, 64) for family in (QWEN2, QWEN2_5, ERNIE)]
    for prompt in prompts:
        given = (prompt.types(), prompt.attended())
        once = place_behind(stock_tensors(prompt)[0], *given)
        again = place_behind(once[0], *given)
        assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))
        assert not torch.equal(once[0], stock_tensors(prompt)[0])


@pytest.mark.parametrize("family", sorted({*INSTALLED} - {QWEN2, QWEN2_5, ERNIE}))
def test_where_each_frame_is_a_medium_of_its_own_nothing_moves(family: str) -> None:
    rng = random.Random(family)
    for steps in (1, 4, 40):
        high, wide = (2 * rng.randint(1, 12) for _ in range(2))
        frame = Medium(steps=1, height=high, width=wide, video=True)
        frames = [part for _ in range(steps) for part in (rng.randint(2, 7), frame)]
        picture = Medium(steps=1, height=wide, width=8)
        prompt = Prompt(family=family, parts=(4, picture, *frames, TAIL), padding=steps)
        assert as_published(prompt) == stock(prompt)
        assert int(prompt.attended().sum()) == as_published(prompt).ids[0].numel()


def test_rows_of_a_batch_are_moved_apart_and_their_padding_is_left() -> None:
    prompts = [of_video(QWEN2_5, steps) for steps in (30, 8)]
    longest = max(prompt.length() for prompt in prompts)
    padded = [Prompt(family=QWEN2_5, parts=p.parts, padding=longest - p.length()) for p in prompts]
    positions = torch.cat([stock_tensors(prompt)[0] for prompt in padded], 1)
    types, attended = (
        torch.cat([getattr(prompt, name)() for prompt in padded]) for name in ("types", "attended")
    )
    moved, deltas = place_behind(positions, types, attended)
    for row, (prompt, alone) in enumerate(zip(padded, prompts, strict=True)):
        found = prompt.read((moved[:, row : row + 1], deltas[row]))
        assert found == as_published(alone)
        before = moved[:, row, : prompt.padding]
        assert torch.equal(before, positions[:, row, : prompt.padding])
    assert deltas.shape == (2, 1)


RATES = (0.25, 0.5, 2 / 3, 1.0, 1.5, 2.0, 4.0, 0.083, 2 / 2.997)
"""Seconds between two steps of a video."""


def drawn(rng: random.Random) -> Prompt:
    """Words, and one to three pictures and videos, some of them behind padding."""
    parts: list[int | Medium] = [rng.randint(1, 20)]
    for _ in range(rng.randint(1, 3)):
        if rng.random() < 0.5:
            high, wide = (2 * rng.randint(1, 20) for _ in range(2))
            parts.append(Medium(steps=1, height=high, width=wide))
        else:
            high, wide = (2 * rng.randint(1, 6) for _ in range(2))
            steps, seconds = rng.randint(1, 50), rng.choice(RATES)
            parts.append(Medium(steps=steps, height=high, width=wide, video=True, seconds=seconds))
        parts.append(rng.randint(1, 9))
    padding = rng.choice((0, rng.randint(1, 9)))
    return Prompt(family=rng.choice((QWEN2, QWEN2_5)), parts=tuple(parts), padding=padding)


@pytest.mark.slow
def test_random_prompts_are_placed_as_the_first_releases_place_them() -> None:
    if reason := why_not(QWEN2, QWEN2_5):
        pytest.skip(reason)
    rng = random.Random(3)
    prompts = [drawn(rng) for _ in range(300)]
    first = [first_release(prompt) for prompt in prompts]
    found = [as_published(prompt) for prompt in prompts]
    differing = [prompt for prompt, a, b in zip(prompts, found, first, strict=True) if a != b]
    assert not differing, differing[:3]
    today = [stock(prompt) for prompt in prompts]
    changed = [prompt for prompt, a, b in zip(prompts, today, first, strict=True) if a != b]
    assert len(changed) > 150, "or the prompts are too short to tell"
    assert {prompt.family for prompt in changed} == {QWEN2, QWEN2_5}
    rates = {p.seconds for prompt in changed for p in prompt.parts if isinstance(p, Medium)}
    assert {*RATES} <= rates
