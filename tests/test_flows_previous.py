"""Chunks that are asked about with the caption before: in order, beside other videos, resumed, and
once only."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from artifacts.errors import Interrupted
from flows.job.ledger import Ledger
from flows.job.prepare import prepare
from penstock_demo.clips import write_clips
from tests.support.inside import run_inside
from tests.support.media import write_video
from tests.support.pipeline import Place
from tests.support.saying import Saying, lines, make, run

ASKED = "Before: [{previous}] And now?"


def chains(rows: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """The lines of each file, in order."""
    found: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        found.setdefault(row["media_path"], []).append(row)
    return [*found.values()]


def check(rows: list[dict[str, Any]]) -> None:
    for chain in chains(rows):
        said = ""
        for row in chain:
            assert row["prompt"] == ASKED.replace("{previous}", said)
            said = row["caption"]


def test_a_chunk_is_asked_about_with_the_caption_before(tmp_path: Path) -> None:
    config = make(tmp_path)
    stages = Saying()
    assert not run(config, stages, prompt=ASKED).failures
    rows = lines(config)
    check(rows)
    assert [len(chain) for chain in chains(rows)] == [1, 3, 1]
    asked = [call for call in stages.calls if call.name == "decode"]
    assert [sum(map(len, call.arguments["batches"])) for call in asked] == [3, 1, 1]
    again = Saying()
    run(config, again, prompt=ASKED)
    assert [call.name for call in again.calls if call.name != "cut"] in ([], ["describe"])
    assert lines(config) == rows


def test_a_chain_that_is_broken_goes_on(tmp_path: Path) -> None:
    config, broken = make(tmp_path), 0
    while True:
        stages = Saying()
        stages.stop_after = {"decode": 2}
        try:
            run(config, stages, prompt=ASKED)
            break
        except Interrupted:
            broken += 1
    assert broken == 1
    rows = lines(config)
    assert [len(chain) for chain in chains(rows)] == [1, 3, 1]
    check(rows)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    clips = tmp_path / "clips"
    write_clips(clips, 2, seed=5)
    write_video(clips / "video.mp4", ticks=range(120))
    return Place(clips=clips, out=tmp_path / "out", store=tmp_path / "store")


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["auto", "transformers"])
def test_the_demo_is_asked_in_a_chain(place: Place, engine: str) -> None:
    options = {"chunk": 2.0, "max_new_tokens": 16, "engine": engine}
    first = run_inside(place, prompt=ASKED, **options)
    assert "one after the other" in first.said
    rows = place.captions()
    check(rows)
    assert max(len(chain) for chain in chains(rows)) >= 3
    assert run_inside(place, prompt=ASKED, **options).started == []
    assert place.captions() == rows


def test_who_makes_no_captions_waits_for_none(tmp_path: Path) -> None:
    config = make(tmp_path)
    run(config, prompt="?")
    job = prepare(replace(config, prompt=ASKED), Saying())
    asked = Ledger(job.store, job.pipeline[:2], *job.ledger.variants)
    assert all(task.previous == "" for task in asked.tasks(job.media))
    assert any(task.waits for task in job.ledger.tasks(job.media))
