"""`--summary`: chapters and a summary of each video after its captions, said by the language half
alone, once, and again only where what they are of has changed."""

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from artifacts.errors import UsageError
from flows.cli.main import main
from tests.support.checkpoints import whole_checkpoint
from tests.support.families import checkpoint
from tests.support.inside import run_inside
from tests.support.long_context import with_context
from tests.support.media import picture, write_numbered, write_video
from tests.support.pipeline import Place, kill_at, read_lines

TOKENS = 8
CONTEXT = 400


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """Two videos, of eight chunks and of one, and a picture."""
    clips = write_numbered(tmp_path / "clips", 1)
    write_video(clips / "long.mp4", ticks=range(240))
    write_video(clips / "short.mp4", ticks=range(20))
    return Place(clips=clips, out=tmp_path / "out", store=tmp_path / "store")


def run(place: Place, **options: Any) -> Any:
    asked = {"chunk": 1.0, "max_frames": 1, "max_new_tokens": TOKENS, "summary": True, **options}
    return run_inside(place, **asked)


def summaries(place: Place) -> list[dict[str, Any]]:
    return read_lines(place.out / "summaries.jsonl")


def test_each_video_has_chapters_and_a_summary_that_fit_a_small_context(
    place: Place, tmp_path: Path
) -> None:
    model = with_context(checkpoint("qwen2_5_vl"), CONTEXT, tmp_path / "small")
    place = replace(place, model=str(model))
    first = run(place)
    assert first.started[-2:] == ["decode", "summarize"] and first.result.summaries == 2
    assert "2 summaries in " in first.result.line()
    long, short = summaries(place)
    assert (long["media_path"], short["media_path"]) == ("long.mp4", "short.mp4")
    assert long["levels"][0] > 1 and long["levels"][-1] == 1 and short["levels"] == [1]
    chapters = long["chapters"]
    assert (chapters[0]["start"], chapters[-1]["end"]) == (0.0, 8.0)
    assert all(a["end"] == b["start"] for a, b in pairwise(chapters))
    assert place.stages()["summarize"]["items"] == sum(long["levels"]) + 1
    told = json.loads((place.out / "run.json").read_text())
    assert told["summaries"] == 2 and told["outputs"]["summaries"].endswith("summaries.jsonl")
    memory = {each["stage"]: each["rung"] for each in told["plan"]["memory"]["stages"]}
    assert memory["summarize"]["context"] == CONTEXT

    before = (place.out / "summaries.jsonl").read_bytes()
    assert run(place).started == []
    assert (place.out / "summaries.jsonl").read_bytes() == before
    assert run(place, summary_prompt="What is it about?").started == ["summarize"]
    assert place.stages()["summarize"]["items"] == 2, "the chapters are there"
    assert "summaries.jsonl" in " ".join(run(place, summary=False).result.warnings)
    assert run(place, prompt="Who is it?").started == ["decode", "summarize"]
    assert run(place).started == []
    assert (place.out / "summaries.jsonl").read_bytes() == before


@pytest.mark.slow
def test_of_several_prompts_the_first_is_summarized(place: Place) -> None:
    place = replace(place, model=str(checkpoint("qwen2_5_vl")))
    run(place, prompt="Who is it?")
    alone = summaries(place)
    assert run(place, prompts={"who": "Who is it?", "where": "Where is it?"}).started == ["decode"]
    assert summaries(place) == alone


@pytest.mark.parametrize("family", ["blip", pytest.param("instructblip", marks=pytest.mark.slow)])
def test_a_model_that_says_nothing_without_a_picture_is_refused_before_work(
    place: Place, family: str
) -> None:
    with pytest.raises(UsageError) as caught:
        run(replace(place, model=str(whole_checkpoint(family))))
    assert "cannot summarize: it needs an image to answer" in str(caught.value)
    assert "\n" not in str(caught.value) and not place.out.exists()


@pytest.mark.slow
@pytest.mark.parametrize("family", ["blip_2", "florence2", "mllama", "internvl"])
def test_a_family_of_each_route_summarizes(place: Place, family: str) -> None:
    place = replace(place, model=str(whole_checkpoint(family)))
    run(place)
    said = summaries(place)
    assert len(said) == 2 and all(row["summary"] for row in said)
    assert run(place).started == []


@pytest.mark.slow
def test_a_run_that_is_killed_while_it_summarizes_ends_with_the_same_bytes(tmp_path: Path) -> None:
    clips = tmp_path / "clips"
    clips.mkdir()
    for name in ("a", "b"):
        write_video(
            clips / f"{name}.mp4",
            ticks=range(500 + 40 * (name == "b")),
            draw=lambda index, height, width: picture(index // 20, height, width),
        )
    more = ("--chunk", "0.5", "--max-frames", "2", "--summary")
    whole = Place(clips=clips, out=tmp_path / "whole", store=tmp_path / "store-whole")
    assert whole.run(*more).returncode == 0
    wanted = (whole.out / "summaries.jsonl").read_bytes()
    assert [row["levels"] for row in summaries(whole)] == [[2, 1], [2, 1]]
    for item, victim in ((1, "child"), (3, "group"), (5, "server")):
        name = f"{victim}-{item}"
        place = Place(clips=clips, out=tmp_path / name, store=tmp_path / f"store-{name}")
        kill_at(place, "summarize", item, victim, *more)
        assert place.run(*more).returncode == 0
        assert (place.out / "summaries.jsonl").read_bytes() == wanted
        assert max(place.journal("summarize").values()) == 1
        assert place.stored("summaries") == whole.stored("summaries")


@pytest.mark.slow
def test_a_plan_names_the_stage(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    asked = [str(place.clips), "--model", "demo", "--store", str(place.store), "--summary"]
    assert main(["plan", *asked]) == 0
    assert "\n  summarize" in capsys.readouterr().out
    assert main(["caption", *asked, "--dry-run", "--out", str(place.out)]) == 0
    assert "contexts of 2,048 tokens" in capsys.readouterr().out
