"""Whole runs: every caption says how sure the model was, and `--confidence` scores what was written
before or corrected, without captioning anything anew."""

import csv
import random
import re
from pathlib import Path
from typing import Any

import pytest

from artifacts.captions import CONFIDENCE
from flows.results.report.media import captioned_media
from flows.reviewing.captions import ReviewedCaptions
from penstock_demo.clips import write_clips
from penstock_demo.words import COLOURS, DIRECTIONS
from stages.decode.confidence import Confidence
from tests.support.inside import run_inside
from tests.support.pipeline import Place, kill_at

PLAIN = {"precision": "fp32"}


@pytest.fixture
def place(here: Path) -> Place:
    return Place(clips=here / "videos", out=here / "out", store=here / "store")


def numbers(line: dict[str, Any]) -> list[Any]:
    return [line[field] for field in CONFIDENCE]


def correct(place: Place, **texts: str) -> None:
    """Correct captions by the key of their row."""
    captions = ReviewedCaptions(place.out)
    try:
        for key, text in texts.items():
            changes = [{"of": key, "caption": text, "review": ""}]
            captions.apply({"id": key, "does": "correct", "changes": changes})
    finally:
        captions.close()


def rows_of(place: Place) -> dict[str, dict[str, Any]]:
    captions = ReviewedCaptions(place.out)
    captions.close()
    return captions.rows


def swapped(text: str, rng: random.Random) -> str:
    """The text with another colour or direction in place of one that it has."""
    found = [
        (match, words)
        for words in (COLOURS, DIRECTIONS)
        for match in re.finditer(rf"\b({'|'.join(words)})\b", text)
    ]
    match, words = rng.choice(found)
    other = rng.choice([word for word in words if word != match[0]])
    return text[: match.start()] + other + text[match.end() :]


def test_captions_of_before_and_corrections_are_scored_on_request(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as before:
        before.setattr(Confidence, "fields", lambda *_: {})
        run_inside(place, **PLAIN)
    old = place.captions()
    assert [numbers(line) for line in old] == [[None] * 3] * len(old)
    again = run_inside(place, format=("csv", "parquet"), **PLAIN)
    assert again.started == [] and place.captions() == old
    with (place.out / "captions.csv").open(newline="") as table:
        assert next(csv.DictReader(table))["margin"] == ""

    ran = run_inside(place, confidence=True, format=("csv",), **PLAIN)
    assert ran.started == ["score"]
    scored = place.captions()
    fresh = Place(clips=place.clips, out=place.out.parent / "fresh", store=place.store / "other")
    run_inside(fresh, **PLAIN)
    for line, other in zip(scored, fresh.captions(), strict=True):
        assert {**line, **dict.fromkeys(CONFIDENCE)} == {**other, **dict.fromkeys(CONFIDENCE)}
        assert numbers(line) == pytest.approx(numbers(other), abs=2e-3)
    with (place.out / "captions.csv").open(newline="") as table:
        assert float(next(csv.DictReader(table))["margin"]) == scored[0]["margin"]

    key, row = next(iter(rows_of(place).items()))
    assert numbers(row) == numbers(scored[0])
    assert captioned_media(place.out, place.out)[0]["captions"][0][5:] == numbers(scored[0])
    correct(place, **{key: swapped(row["said"], random.Random(1))})
    run_inside(fresh, **PLAIN)  # the store of the other folder has no edit
    assert None not in numbers(fresh.captions()[0])
    correct(fresh, **{key: swapped(row["said"], random.Random(1))})
    for each in (place, fresh):
        run_inside(each, **PLAIN)
        assert numbers(each.captions()[0]) == [None] * 3, "nothing describes the model's text"
    ran = run_inside(place, confidence=True, prefix=">> ", **PLAIN)
    assert ran.started == ["score"]
    one, *rest = place.captions()
    assert one["margin"] < 0 < scored[0]["margin"] and one["original"]
    wrong = one["caption"].removeprefix(">> ")[one["margin_at"] :].split()[0]
    assert wrong in (*COLOURS, *DIRECTIONS) and wrong not in one["original"].split()
    assert [numbers(line) for line in rest] == [numbers(line) for line in scored[1:]]
    assert run_inside(place, confidence=True, **PLAIN).started == []


@pytest.mark.slow
def test_what_cannot_be_scored_is_named_and_stays_unknown(place: Place) -> None:
    run_inside(place, **PLAIN)
    lines = place.captions()
    correct(place, **{next(iter(rows_of(place))): "A large red circle."})
    for pack in (place.store / "features").rglob("*"):
        if pack.is_file():
            pack.unlink()
    ran = run_inside(place, confidence=True, **PLAIN)
    assert ran.started == [] and "1 caption could not be scored" in " ".join(ran.result.warnings)
    assert numbers(place.captions()[0]) == [None] * 3
    assert place.captions()[1:] == lines[1:]


@pytest.mark.slow
def test_a_planted_wrong_word_is_among_the_most_doubtful(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One caption in ten has another colour or direction than the model said."""
    write_clips(tmp_path / "clips", 80, 11)
    place = Place(clips=tmp_path / "clips", out=tmp_path / "out", store=tmp_path / "store")
    assert place.run().returncode == 0
    rng = random.Random(3)
    rows = rows_of(place)
    planted = rng.sample([*rows], len(rows) // 10)
    correct(place, **{key: swapped(rows[key]["said"], rng) for key in planted})
    assert place.run("--confidence").returncode == 0
    ranked = sorted(rows_of(place).values(), key=lambda row: row["margin"])
    doubtful = {row["key"] for row in ranked[: len(ranked) // 5]}
    found = len(doubtful.intersection(planted))
    with capsys.disabled():
        print(f"\n{found} of {len(planted)} planted words are in the most doubtful fifth")
    assert found >= 0.8 * len(planted)


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["child", "group"])
def test_a_killed_scoring_resumes_to_the_same(
    victim: str, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stages.decode.scoring.PUBLISH_SECONDS", 0.0)
    run_inside(place, **PLAIN)
    rng = random.Random(2)
    correct(place, **{key: swapped(row["said"], rng) for key, row in rows_of(place).items()})
    status = kill_at(place, "score", 1, victim, "--confidence", "--precision", "fp32")
    assert status == (0 if victim == "child" else -9)
    assert place.run("--confidence", "--precision", "fp32").returncode == 0
    lines, kept = place.captions(), place.stored("scores")
    assert len(kept) == len(lines) and all(line["margin"] < 0 for line in lines)
