"""`penstock caption --questions` on the demo: answers in rows, tables and texts, what they leave
out, and the words of people and of trainings without them."""

import json
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from PIL import Image

from flows.commands.check.fix import DEFAULTS
from flows.commands.review.captions import ReviewedCaptions
from flows.commands.tune.training_data import examples_in
from flows.core.options.commands import CaptionConfig
from flows.interfaces.cli.main import main
from penstock_demo.clips import write_clips
from tests.commands.test_ask import FORMS, PROMPT, made
from tests.support.pipeline import Place, kill_at, read_lines

QUESTIONS: dict[str, Any] = {
    "begins": {"text": PROMPT, "labels": FORMS, "instruction": ""},
    "tags": {"text": "Is there {}?", "tags": ["a star", "a ring"], "threshold": 0.0},
    "none": {"text": "Is there {}?", "tags": ["a star"], "threshold": 1.0},
    "sharp": {"text": "How sharp is it?", "score": 5},
}
SUFFIX = ", {answer.tags}"


@pytest.fixture
def place(tmp_path: Path) -> Place:
    write_clips(tmp_path / "clips", 3, seed=3)
    clips, out, store = (tmp_path / name for name in ("clips", "out", "store"))
    (tmp_path / "questions.json").write_text(json.dumps(QUESTIONS))
    return Place(clips=clips, out=out, store=store, verb="caption")


def caption(place: Place, capsys: Any, *more: str) -> list[dict[str, Any]]:
    """Caption with the questions in this process; returns its events."""
    where = ["--out", str(place.out), "--store", str(place.store), "--model", "demo"]
    questions = ["--questions", str(place.out.with_name("questions.json"))]
    assert main(["caption", str(place.clips), *where, *questions, "--json", *more]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def rows(place: Place) -> list[dict[str, Any]]:
    return read_lines(place.out / "captions.jsonl")


def test_answers_are_in_rows_tables_and_texts_and_cost_nothing_again(
    place: Place, capsys: Any
) -> None:
    first = caption(place, capsys, "--suffix", SUFFIX, "--format", "txt,parquet,csv")
    assert made(first) == {"frames": 3, "encode": 3, "answer": 12, "decode": 3}
    answered = {row["features"]: row for row in read_lines(place.out / "answers" / "answers.jsonl")}
    table = pq.read_table(place.out / "captions.parquet").to_pylist()
    for row, line in zip(rows(place), table, strict=True):
        answers = answered[row["features"]]["answers"]
        for answer in answers.values():
            answer.pop("probabilities", None)
        assert row["answers"] == answers
        assert row["caption"].endswith(", a star, a ring")
        text = (place.out / row["media_path"]).with_suffix(".txt").read_text()
        assert text.strip() == row["caption"]
        assert line["answer_begins"] == answers["begins"]["answer"]
        assert line["answer_tags"] == ["a star", "a ring"] and line["answer_none"] == []
        assert line["answer_sharp"] == answers["sharp"]["score"]
        assert line["answer_sharp_mass"] == answers["sharp"]["mass"]
    other = caption(place, capsys, "--prefix", "{answer.sharp}/5: ", "--suffix", ", {answer.none}")
    assert made(other) == {}
    for row in rows(place):
        assert row["caption"].startswith(f"{row['answers']['sharp']['score']:.0f}/5: A ")
        assert row["caption"].endswith("."), "an affix whose placeholders are all empty is left out"


def test_what_does_not_meet_the_condition_is_not_captioned(place: Place, capsys: Any) -> None:
    caption(place, capsys)
    begun = [row["answers"]["begins"]["answer"] for row in rows(place)]
    assert len({*begun}) == 3
    place = replace(place, out=place.out.with_name("kept"))
    assert made(caption(place, capsys, "--keep", f"begins = '{begun[1]}'")) == {}
    assert [row["answers"]["begins"]["answer"] for row in rows(place)] == begun[1:2]
    left_out = read_lines(place.out / "answers" / "left_out.jsonl")
    assert [row["why"] for row in left_out] == [f"begins {begun[0]}", f"begins {begun[2]}"]
    where = ["--out", str(place.out), "--store", str(place.store), "--model", "demo"]
    questions = ["--questions", str(place.out.with_name("questions.json"))]
    keep = ["--keep", "begins = 'A purple cow'"]
    assert main(["caption", str(place.clips), *where, *questions, *keep]) == 2
    assert "no file meets --keep. Read answers/left_out.jsonl" in capsys.readouterr().err


def test_the_words_of_people_and_of_trainings_are_without_them(place: Place, capsys: Any) -> None:
    caption(place, capsys)
    bare = [row["caption"] for row in rows(place)]
    affixes = ["--prefix", "[{answer.begins}] ", "--suffix", SUFFIX]
    caption(place, capsys, *affixes, "--format", "csv,parquet")
    shown = [row["caption"] for row in rows(place)]
    assert not {*bare} & {*shown}
    for name in ("captions.jsonl", "captions.csv", "captions.parquet"):
        assert [one.caption for one in examples_in(str(place.out / name))] == bare, name
    with closing(ReviewedCaptions(place.out)) as captions:
        said = [row["said"] for row in captions.folder.rows.values()]
        assert said == bare
        key = next(iter(captions.folder.rows))
        text = shown[0].replace(bare[0], "One star.")
        change = {"of": key, "caption": text, "review": "accepted"}
        captions.apply({"id": "1", "does": "correct", "changes": [change]})
    caption(place, capsys, "--suffix", SUFFIX)
    first = rows(place)[0]
    assert first["caption"] == "One star., a star, a ring"
    assert first["original"] == bare[0] + ", a star, a ring"


def test_a_text_beside_its_medium_is_trained_without_them(place: Place, capsys: Any) -> None:
    place.clips.joinpath("photo.png").parent.mkdir(exist_ok=True)
    Image.new("RGB", (96, 96), "red").save(place.clips / "photo.png")
    caption(place, capsys)
    bare = {row["media_path"]: row["caption"] for row in rows(place)}
    caption(place, capsys, "--suffix", SUFFIX, "--format", "txt", "--beside")
    capsys.readouterr()
    from artifacts.records.store import open_store

    examples = examples_in(str(place.clips), store=open_store(str(place.store)))
    assert {one.path.name: one.caption for one in examples} == bare


def test_captions_that_are_made_shorter_are_made_without_them() -> None:
    options = CaptionConfig(sources=(".",), question={"dog": "A dog?"}, suffix="{answer.dog}")
    assert options.questions and options.suffix
    assert {"questions", "keep", "prefix", "suffix"} <= {*DEFAULTS}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--suffix", "{answer.dog}"], "--suffix: there is no question 'dog' to answer"),
        (["--keep", "dog > 0.5"], "--keep is about answers, and no question is given"),
        (["--question", "dog=A dog?", "--keep", "cat > 0.5"], "--keep cannot be read at 'cat'"),
        (["--question", "dog=A dog?", "--prefix", "{answer.}"], "there is no question ''"),
    ],
)
def test_what_makes_no_sense_is_one_line_before_any_work(
    options: list[str], message: str, place: Place, capsys: Any
) -> None:
    where = ["--out", str(place.out), "--store", str(place.store), "--model", "demo"]
    assert main(["caption", str(place.clips), *where, *options]) == 2
    (line,) = (x for x in capsys.readouterr().err.splitlines() if x.startswith("penstock: "))
    assert message in line
    assert not place.out.exists()


def test_its_plan_has_both(place: Place, capsys: Any) -> None:
    where = ["--out", str(place.out), "--store", str(place.store), "--model", "demo"]
    words = ["caption", str(place.clips), *where, "--question", "dog=A dog?", "--dry-run"]
    assert main(words) == 0
    table = [line.split()[0] for line in capsys.readouterr().out.splitlines() if "batch" in line]
    assert "answer" in table
    assert main([*words, "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert [stage["stage"] for stage in plan["answers"]["memory"]["stages"]][-1] == "answer"
    assert [stage["stage"] for stage in plan["memory"]["stages"]][-1] == "decode"
    assert main(["plan", "--model", "demo", "--store", str(place.store), "--for", "ask"]) == 0
    assert "\n  answer " in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["answer", "decode"])
def test_a_killed_run_ends_with_the_same_rows(stage: str, place: Place, capsys: Any) -> None:
    whole = replace(place, out=place.out / "whole", store=place.store / "whole")
    whole.out.mkdir(parents=True)
    whole.out.with_name("questions.json").write_text(json.dumps(QUESTIONS))
    caption(whole, capsys, "--suffix", SUFFIX)
    questions = ["--questions", str(place.out.with_name("questions.json")), "--suffix", SUFFIX]
    kill_at(place, stage, 2, "group", *questions)
    caption(place, capsys, "--suffix", SUFFIX)
    assert rows(place) == rows(whole)
