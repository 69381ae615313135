"""How sure the model was: runs say it of every caption, and of no text that a person wrote."""

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from artifacts.texts.captions import CONFIDENCE
from flows.commands.review.captions import ReviewedCaptions
from flows.outputs.media_rows import captioned_media
from tests.support.inside import run_inside
from tests.support.pipeline import Place

PLAIN = {"precision": "fp32"}


@pytest.fixture
def place(here: Path) -> Place:
    return Place(clips=here / "videos", out=here / "out", store=here / "store")


def numbers(line: Mapping[str, Any]) -> list[Any]:
    return [line[field] for field in CONFIDENCE]


@pytest.mark.slow
def test_captions_have_scores_and_corrections_have_none(place: Place) -> None:
    run_inside(place, format=("csv",), **PLAIN)
    lines = place.captions()
    assert all(None not in numbers(line) for line in lines)
    with (place.out / "captions.csv").open(newline="") as table:
        assert float(next(csv.DictReader(table))["margin"]) == lines[0]["margin"]
    shown = captioned_media(place.out, place.out)[0][0]["captions"][0]
    assert numbers(shown._asdict()) == numbers(lines[0])

    captions = ReviewedCaptions(place.out)
    key = next(iter(captions.folder.rows))
    assert numbers(captions.folder.rows[key]) == numbers(lines[0])
    changes = [{"of": key, "caption": "A small red ball rolls left.", "review": ""}]
    captions.apply({"id": key, "does": "correct", "changes": changes})
    captions.close()
    assert run_inside(place, **PLAIN).started == []
    corrected, *rest = place.captions()
    assert numbers(corrected) == [None] * 3, "nothing describes the model's text"
    assert rest == lines[1:]
