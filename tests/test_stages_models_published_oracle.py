"""Positions as published, compared with the first releases of transformers themselves, whose files
are fetched when this runs."""

import random

import pytest

from tests.support.position_prompts import (
    Medium,
    Prompt,
    as_published,
    first_release,
    stock,
    why_not,
)

pytestmark = pytest.mark.slow
PROMPTS = 300
RATES = (0.25, 0.5, 2 / 3, 1.0, 1.5, 2.0, 4.0, 0.083, 2 / 2.997)
"""Seconds between two steps of a video."""
FAMILIES = ("qwen2_vl", "qwen2_5_vl")


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
    return Prompt(family=rng.choice(FAMILIES), parts=tuple(parts), padding=padding)


def test_random_prompts_are_placed_as_the_first_releases_place_them() -> None:
    if reason := why_not(*FAMILIES):
        pytest.skip(reason)
    rng = random.Random(3)
    prompts = [drawn(rng) for _ in range(PROMPTS)]
    first = [first_release(prompt) for prompt in prompts]
    found = [as_published(prompt) for prompt in prompts]
    differing = [prompt for prompt, a, b in zip(prompts, found, first, strict=True) if a != b]
    assert not differing, differing[:3]
    today = [stock(prompt) for prompt in prompts]
    changed = [prompt for prompt, a, b in zip(prompts, today, first, strict=True) if a != b]
    assert len(changed) > PROMPTS // 2, "or the prompts are too short to tell"
    assert {prompt.family for prompt in changed} == {*FAMILIES}
    rates = {p.seconds for prompt in changed for p in prompt.parts if isinstance(p, Medium)}
    assert {*RATES} <= rates
