"""`penstock ask` on the demo: answers by its probabilities, made once, selected, written as tables,
and the same after a kill."""

import csv
import json
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from flows.commands.ask.run import ask
from flows.core.console.display import Display
from flows.core.options.questions import AskConfig
from flows.interfaces.cli.main import main
from penstock_demo import CHECKPOINT, DUAL_CHECKPOINT
from penstock_demo.clips import write_clips
from penstock_demo.words import COLOURS, SHAPES, SIZES
from stages.answer.label_scores import LabelScores, ProbeInput
from tests.support.checkpoints import whole_checkpoint
from tests.support.inside import InsideLauncher
from tests.support.pipeline import Place, kill_at, read_lines

PROMPT = "Describe this video in detail."
FORMS = [f"A {size} {colour} {shape}" for size in SIZES for colour in COLOURS for shape in SHAPES]
"""How every sentence of the demo begins."""
QUESTIONS: dict[str, Any] = {
    "begins": {"text": PROMPT, "labels": FORMS, "instruction": ""},
    "things": {"text": "Is there {} in it?", "tags": ["a star", "a ring"]},
    "sharp": {"text": "How sharp is it?", "score": 5},
}


@pytest.fixture
def place(tmp_path: Path) -> Place:
    write_clips(tmp_path / "clips", 3, seed=3)
    folders = (tmp_path / name for name in ("clips", "out", "store"))
    clips, out, store = folders
    return Place(clips=clips, out=out, store=store, verb="ask")


def file_of(place: Place, **changes: Any) -> str:
    path = place.out.with_name("questions.json")
    path.write_text(json.dumps({**QUESTIONS, **changes}))
    return str(path)


def asked(place: Place, capsys: Any, *more: str) -> list[dict[str, Any]]:
    """Run the command in this process; returns its events."""
    where = ["--out", str(place.out), "--store", str(place.store), "--model", "demo"]
    assert main(["ask", str(place.clips), *where, "--json", *more]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def made(events: Sequence[dict[str, Any]]) -> dict[str, int]:
    """Items that each stage made."""
    stages = [event["stage"] for event in events if event["event"] == "item"]
    return {stage: stages.count(stage) for stage in dict.fromkeys(stages)}


def rows(place: Place) -> list[dict[str, Any]]:
    return read_lines(place.out / "answers.jsonl")


def test_a_further_tag_is_one_answer_a_chunk_and_another_name_is_none(
    place: Place, capsys: Any
) -> None:
    first = asked(place, capsys, "--questions", file_of(place))
    assert made(first) == {"frames": 3, "encode": 3, "answer": 12}
    before = rows(place)
    assert [row["answers"].keys() for row in before] == [QUESTIONS.keys()] * 3
    tags = {**QUESTIONS["things"], "tags": ["a cross", *QUESTIONS["things"]["tags"]]}
    assert made(asked(place, capsys, "--questions", file_of(place, things=tags))) == {"answer": 3}
    after = rows(place)
    for old, new in zip(before, after, strict=True):
        assert new["answers"]["begins"] == old["answers"]["begins"]
        known = old["answers"]["things"]["probabilities"]
        assert known.items() <= new["answers"]["things"]["probabilities"].items()
    renamed = {"again": QUESTIONS["sharp"], "begins": QUESTIONS["begins"]}
    path = place.out.with_name("renamed.json")
    path.write_text(json.dumps(renamed))
    assert made(asked(place, capsys, "--questions", str(path))) == {}
    assert [row["answers"]["again"] for row in rows(place)] == [
        row["answers"]["sharp"] for row in before
    ]


def test_files_are_selected_by_their_answers_and_tables_hold_them(
    place: Place, capsys: Any
) -> None:
    keep = ("--keep", "begins like '%ring' or begins_mass < 0.5", "--format", "csv,parquet")
    end = asked(place, capsys, "--questions", file_of(place), *keep)[-1]
    answers = {row["media_path"]: row["answers"] for row in rows(place)}
    wanted = {
        name
        for name, of in answers.items()
        if of["begins"]["answer"].endswith("ring") or of["begins"]["mass"] < 0.5
    }
    kept = {row["media_path"] for row in read_lines(place.out / "kept.jsonl")}
    left = {row["media_path"]: row["why"] for row in read_lines(place.out / "left_out.jsonl")}
    assert kept == wanted and kept | left.keys() == answers.keys() and end["kept"] == len(kept)
    for name, why in left.items():
        assert answers[name]["begins"]["answer"] in why
    with open(place.out / "answers.csv", newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    table = pq.read_table(place.out / "answers.parquet").to_pylist()
    for row, line, typed in zip(rows(place), lines, table, strict=True):
        own = row["answers"]
        assert typed["begins"] == line["begins"] == own["begins"]["answer"]
        assert typed["sharp"] == float(line["sharp"]) == own["sharp"]["score"]
        assert typed["things"] == json.loads(line["things"]) == own["things"]["tags"]
        assert typed["begins_mass"] == own["begins"]["mass"]


def test_what_is_left_out_names_the_values_of_any_spelling(place: Place, capsys: Any) -> None:
    asked(place, capsys, "--question", "a=b?", "--keep", "(a<0)and media_path like'%'")
    for row, left in zip(rows(place), read_lines(place.out / "left_out.jsonl"), strict=True):
        assert left["why"] == f"a {row['answers']['a']['p']}, media_path {row['media_path']}"


def test_a_file_without_an_answer_is_never_kept(place: Place, capsys: Any) -> None:
    (place.clips / "broken.mp4").write_bytes(b"no video")
    where = ["--out", str(place.out), "--store", str(place.store), "--model", "demo"]
    keep = ["--question", "a=b?", "--keep", "a is null or a >= 0"]
    assert main(["ask", str(place.clips), *where, *keep]) == 1
    capsys.readouterr()
    assert len(read_lines(place.out / "kept.jsonl")) == 3
    (left,) = read_lines(place.out / "left_out.jsonl")
    assert (left["media_path"], left["why"]) == ("broken.mp4", "no answer")


def test_labels_that_the_model_would_not_say_are_named(place: Place, capsys: Any) -> None:
    end = asked(place, capsys, "--question", "car=Is there a car?")[-1]
    assert end["small_mass"] == 3 and "car: the model hardly wants" in end["warnings"][0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "no question given"),
        (["--question", "car"], "the name is missing"),
        (["--question", "a=b", "--question", "a=c"], "the name is there twice"),
        (["--question", "path is=x"], "invalid name"),
        (["--question", "a={previous}?"], "{previous} is not possible"),
        (["--question", "a=b", "--keep", "b < 1"], "a column (media_path, source, kind, a"),
        (["--question", "start=b", "--keep", "start < 1"], "cannot be named start"),
        (["--question", "start=b", "--dry-run"], "cannot be named start"),
        (["--question", "a=b", "--question", "a_mass=c"], "cannot be named a_mass"),
        (["--questions", "gone.toml"], "cannot be read"),
    ],
)
def test_a_wrong_command_is_refused_in_one_line(
    options: list[str], message: str, place: Place, capsys: Any
) -> None:
    where = ["--out", str(place.out), "--store", str(place.store), "--model", "demo"]
    assert main(["ask", str(place.clips), *where, *options]) == 2
    (line,) = (x for x in capsys.readouterr().err.splitlines() if x.startswith("penstock: "))
    assert message in line
    assert not place.out.exists()


def test_a_model_whose_features_are_of_one_question_is_refused(place: Place, capsys: Any) -> None:
    model = str(whole_checkpoint("instructblip"))
    where = ["--out", str(place.out), "--store", str(place.store), "--model", model]
    assert main(["ask", str(place.clips), *where, "--question", "a=b?"]) == 2
    assert "encodes media together with the question" in capsys.readouterr().err


def lines_of(capsys: Any) -> list[str]:
    """The lines that end a refused run."""
    return [x for x in capsys.readouterr().err.splitlines() if x.startswith("penstock: ")]


@pytest.mark.parametrize("more", [[], ["--dry-run"]])
def test_labels_that_are_the_same_tokens_are_refused_before_anything_runs(
    more: list[str], place: Place, tmp_path: Path, capsys: Any
) -> None:
    model = shutil.copytree(CHECKPOINT, tmp_path / "model")
    tokenizer = json.loads((model / "tokenizer.json").read_text())
    tokenizer["normalizer"] = {"type": "Lowercase"}
    (model / "tokenizer.json").write_text(json.dumps(tokenizer))
    labels = {"cat": {"text": "Which?", "labels": ["A cat", "a dog", "a CAT"]}}
    place.out.with_name("labels.json").write_text(json.dumps(labels))
    where = ["--out", str(place.out), "--store", str(place.store), "--model", str(model)]
    given = ["--questions", str(place.out.with_name("labels.json")), *more]
    assert main(["ask", str(place.clips), *where, *given]) == 2
    (line,) = lines_of(capsys)
    assert "cat: the model reads the labels 'A cat' and 'a CAT' as the same tokens" in line
    assert not (place.store / "features").exists()


def test_a_question_without_room_is_named_in_its_row(place: Place, capsys: Any) -> None:
    path = place.out.with_name("long.json")
    path.write_text(json.dumps({"long": "word " * 30_000, "short": "Is it?"}))
    where = ["--out", str(place.out), "--store", str(place.store), "--model", "demo"]
    assert main(["ask", str(place.clips), *where, "--questions", str(path)]) == 1
    assert [row["unanswered"] for row in rows(place)] == [["long"]] * 3
    assert all(row["answers"].keys() == {"short"} for row in rows(place))
    failures = read_lines(place.out / "failures.jsonl")
    assert {row["error"] for row in failures} == {"too-long"} and len(failures) == 3
    assert "context is 2,048 tokens" in failures[0]["message"]


WITHOUT_BLANKS: dict[str, Any] = {
    "animal": {"text": "これはどちらですか", "labels": ["犬", "猫", "犬と猫"]},
    "things": {"text": "มี{}ในภาพนี้ไหม", "tags": ["รถยนต์", "ดาวสีแดง"]},
    "sharp": {"text": "清晰度如何", "score": 3},
}


def test_questions_in_scripts_without_blanks_are_answered(place: Place, capsys: Any) -> None:
    path = place.out.with_name("scripts.json")
    path.write_text(json.dumps(WITHOUT_BLANKS, ensure_ascii=False), encoding="utf-8")
    asked(place, capsys, "--questions", str(path), "--format", "csv")
    for row in rows(place):
        assert "unanswered" not in row
        assert row["answers"]["animal"]["probabilities"].keys() == {"犬", "猫", "犬と猫"}
        assert row["answers"]["things"]["probabilities"].keys() == {"รถยนต์", "ดาวสีแดง"}


def test_a_half_without_logits_is_refused(place: Place, capsys: Any) -> None:
    where = ["--out", str(place.out), "--store", str(place.store), "--model", str(DUAL_CHECKPOINT)]
    assert main(["ask", str(place.clips), *where, "--question", "a=b?"]) == 2
    (line,) = lines_of(capsys)
    assert "makes vectors of images and texts" in line and not place.out.exists()


def test_weights_of_nan_end_the_run_in_one_line_that_names_them(
    place: Place, tmp_path: Path, capsys: Any
) -> None:
    name, model = "model.norm.weight", shutil.copytree(CHECKPOINT, tmp_path / "model")
    tensors = load_file(model / "model.safetensors")
    tensors[name][0] = math.nan
    with safe_open(model / "model.safetensors", "pt") as file:
        metadata = file.metadata()
    save_file(tensors, model / "model.safetensors", metadata=metadata)
    where = ["--out", str(place.out), "--store", str(place.store), "--model", str(model)]
    assert main(["ask", str(place.clips), *where, "--question", "a=b?"]) == 5
    (line,) = lines_of(capsys)
    assert f"{name} in the weights of {model} holds NaN" in line


def test_an_answer_of_nan_is_named_in_its_row(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    of = LabelScores.of

    def is_nan(self: LabelScores, half: Any, probe: ProbeInput) -> Any:
        scores, labels = of(self, half, probe)
        return [math.nan if "NaN" in probe.prompt else score for score in scores], labels

    monkeypatch.setattr(LabelScores, "of", is_nan)
    question = {"first": "Is it?", "odd": "Is it NaN?", "last": "Was it?"}
    config = AskConfig(
        sources=(str(place.clips),),
        question=question,
        out=str(place.out),
        store=str(place.store),
        model="demo",
    )
    display = Display(quiet=True)
    written = ask(config, display, make_launcher=lambda listen: InsideLauncher(listen=listen))
    display.close()
    assert [row["unanswered"] for row in rows(place)] == [["odd"]] * 3
    assert {failure.error for failure in written.failures} == {"not-finite"}


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["child", "group"])
def test_a_killed_run_ends_with_the_same_answers(victim: str, place: Place, capsys: Any) -> None:
    whole = Place(clips=place.clips, out=place.out / "whole", store=place.store / "whole")
    asked(whole, capsys, "--questions", file_of(place))
    kill_at(place, "answer", 5, victim, "--questions", file_of(place))
    if victim == "group":
        assert sum(made(asked(place, capsys, "--questions", file_of(place))).values()) < 12
    assert rows(place) == rows(whole)


@pytest.mark.slow
def test_the_demo_knows_what_it_sees(place: Place, capsys: Any) -> None:
    truths = write_clips(place.clips, 60, seed=11)
    path = place.out.with_name("begins.json")
    path.write_text(json.dumps({"begins": QUESTIONS["begins"]}))
    asked(place, capsys, "--questions", str(path), "--precision", "fp32")
    answers = [row["answers"]["begins"] for row in rows(place)]
    for words in (COLOURS, SHAPES):
        pairs = [
            (sum(p for form, p in answer["probabilities"].items() if word in form.split()), is_it)
            for answer, truth in zip(answers, truths, strict=True)
            for word in words
            for is_it in [word in truth.caption.split()[2:4]]
        ]
        assert area_under_curve(pairs) >= 0.999
        assert calibration_error(pairs) <= 0.02
    assert all(answer["mass"] > 0.9 for answer in answers)


def area_under_curve(pairs: Sequence[tuple[float, bool]]) -> float:
    """The share of pairs of a right and a wrong one in which the right one has the larger p."""
    right, wrong = ([p for p, is_it in pairs if is_it is said] for said in (True, False))
    wins = [(r > w) + (r == w) / 2 for r in right for w in wrong]
    return sum(wins) / len(wins)


def calibration_error(pairs: Sequence[tuple[float, bool]], bins: int = 10) -> float:
    """The mean difference between p and how often it is so, over bins of p."""
    error = 0.0
    for at in range(bins):
        here = [(p, is_it) for p, is_it in pairs if min(bins - 1, math.floor(p * bins)) == at]
        error += abs(sum(p for p, _ in here) - sum(is_it for _, is_it in here)) / len(pairs)
    return error
