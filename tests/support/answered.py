"""A folder of answers about the demo's clips, and a studio that shows it."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from artifacts.texts.decisions import DECISIONS
from flows.interfaces.cli.main import main
from penstock_demo.clips import write_clips
from tests.support.pipeline import Place, read_lines
from tests.support.studios import OpenStudio

CLIPS = 24
QUESTIONS: dict[str, Any] = {
    "star": {"text": "Is there a star?"},
    "shape": {"text": "Which shape is it?", "labels": ["ring", "star", "cross"]},
    "things": {"text": "Is there {} in it?", "tags": ["a star", "a ring"], "threshold": 0.2},
}


def answered_clips(root: Path) -> Place:
    """Answer QUESTIONS about CLIPS clips."""
    write_clips(root / "clips", CLIPS, seed=5)
    (root / "questions.json").write_text(json.dumps(QUESTIONS))
    place = Place(clips=root / "clips", out=root / "out/answers", store=root / "store", verb="ask")
    assert run_again(place) == 0
    return place


def run_again(place: Place) -> int:
    where = ["--out", str(place.out), "--store", str(place.store), "--model", "demo"]
    questions = str(place.clips.with_name("questions.json"))
    return main(["ask", str(place.clips), *where, "--questions", questions])


@contextmanager
def studio_of(place: Place) -> Iterator[OpenStudio]:
    """A studio at these answers, on which nothing is decided yet."""
    (place.out / DECISIONS).unlink(missing_ok=True)
    studio = OpenStudio(place.clips, place.out.parent, place.store).start()
    yield studio
    studio.end()


def answers(place: Place) -> list[dict[str, Any]]:
    return [row["answers"] for row in read_lines(place.out / "answers.jsonl")]
