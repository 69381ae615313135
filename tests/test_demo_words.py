import random

import pytest

from penstock_demo.words import (
    parse,
    score,
)
from penstock_demo.world import caption, sample_clip, sample_still

CLIP = "A small red circle moves left slowly while a large blue star appears on a dark background."


def test_every_caption_parses_back_to_its_sentence() -> None:
    rng = random.Random(0)
    for _ in range(500):
        for spec in (sample_clip(rng, "any"), sample_still(rng, "any")):
            assert parse(caption(spec)) == spec.sentence


@pytest.mark.parametrize(
    "text",
    ["", "A red circle.", CLIP[:-1], CLIP + " Truly.", CLIP.replace("red", "beige")],
)
def test_text_outside_the_grammar_fails_to_parse(text: str) -> None:
    assert parse(text) is None


def test_score_is_told_attribute_by_attribute() -> None:
    said = CLIP.replace("circle", "square").replace("left", "right").replace("dark", "light")
    hits = score(said, CLIP)
    assert hits["exact"] == [False]
    assert hits["size"] == [True, True]
    assert hits["shape"] == [False, True]
    assert hits["action"] == [True, True]
    assert hits["direction"] == [False]
    assert hits["speed"] == [True]
    assert hits["structure"] == [True]
    assert hits["background"] == [False]


def test_nonsense_scores_nothing_but_is_counted() -> None:
    hits = score("nonsense", CLIP)
    assert not any(any(found) for found in hits.values())
    assert len(hits["colour"]) == 2


def test_score_against_a_reference_outside_the_grammar_fails() -> None:
    with pytest.raises(ValueError, match="reference='nonsense'"):
        score(CLIP, "nonsense")
