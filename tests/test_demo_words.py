import random
from itertools import product

import pytest

from penstock_demo.words import (
    ACTIONS,
    BACKGROUNDS,
    COLOURS,
    NEVER_TRAINED,
    SHAPES,
    SIZES,
    Structure,
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


def test_pictures_and_clips_have_their_own_grammar() -> None:
    picture = parse("A small red circle and a large blue star on a dark background.")
    assert picture is not None
    assert picture.structure is Structure.STILL
    assert picture.actions == ()
    clip = parse(CLIP)
    assert clip is not None
    assert clip.structure is Structure.WHILE


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


def test_a_fifth_of_the_combinations_is_never_trained_and_spread_evenly() -> None:
    pairs = list(product(COLOURS, SHAPES))
    assert len(SIZES) * len(pairs) * len(ACTIONS) * len(BACKGROUNDS) >= 500
    assert len(NEVER_TRAINED) / len(pairs) >= 0.2
    for colour in COLOURS:
        assert sum(pair[0] == colour for pair in NEVER_TRAINED) <= 2
    for shape in SHAPES:
        assert sum(pair[1] == shape for pair in NEVER_TRAINED) <= 2
