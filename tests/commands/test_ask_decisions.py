"""`penstock ask --decisions`: probabilities are calibrated by what people decided, without a model,
and decisions stay when media and questions get other names."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from artifacts.texts.decisions import DECISIONS
from flows.interfaces.cli.main import main
from penstock_demo.clips import write_clips
from tests.support.pipeline import Place, read_lines

CLIPS = 44
STAR = {"text": "Is there a star?"}
QUESTIONS: dict[str, Any] = {
    "star": STAR,
    "shape": {"text": "Which shape is it?", "labels": ["ring", "star", "cross"]},
    "things": {"text": "Is there {} in it?", "tags": ["a star", "a ring"]},
}


@pytest.fixture(scope="module")
def answered(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """Clips with answers in a store; tests change nothing of it but the output folder."""
    root = tmp_path_factory.mktemp("decisions")
    write_clips(root / "clips", CLIPS, seed=5)
    place = Place(clips=root / "clips", out=root / "out", store=root / "store", verb="ask")
    (root / "questions.json").write_text(json.dumps(QUESTIONS))
    assert main(["ask", *words(place), "--questions", str(root / "questions.json")]) == 0
    return place


def words(place: Place) -> list[str]:
    where = ["--out", str(place.out), "--store", str(place.store), "--model", "demo"]
    return [str(place.clips), *where, "--precision", "fp32"]


def asked(place: Place, capsys: Any, questions: dict[str, Any], *more: str) -> list[dict[str, Any]]:
    """Run the command in this process; returns its events. No model runs."""
    path = place.out.with_name("asked.json")
    path.write_text(json.dumps(questions))
    capsys.readouterr()
    assert main(["ask", *words(place), "--questions", str(path), "--json", *more]) == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert not [event for event in events if event["event"] == "item"]
    return events


def rows(place: Place) -> list[dict[str, Any]]:
    return read_lines(place.out / "answers.jsonl")


def in_other(answered: Place, tmp_path: Path) -> Place:
    return Place(clips=answered.clips, out=tmp_path / "out", store=answered.store, verb="ask")


def table(place: Place, lines: list[dict[str, Any]]) -> str:
    path = place.out.with_name("decisions.csv")
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["media_path", "start", "question", "tag", "answer"])
        writer.writeheader()
        writer.writerows(lines)
    return str(path)


def half_are(names: list[str], question: str, **more: str) -> list[dict[str, Any]]:
    """Decisions that half of the media are so, whatever their probability."""
    return [
        {"media_path": name, "question": question, "answer": ("Yes", "No")[at % 2], **more}
        for at, name in enumerate(names)
    ]


def test_decisions_calibrate_and_the_raw_probability_stays(
    answered: Place, tmp_path: Path, capsys: Any
) -> None:
    place = in_other(answered, tmp_path)
    asked(place, capsys, QUESTIONS)
    before = {row["media_path"]: row["answers"] for row in rows(place)}
    names = sorted(before)
    decisions = half_are(names, "star") + half_are(names[:12], "things", tag="a ring")
    decisions += [
        {"media_path": name, "question": "shape", "start": 0.0, "answer": "ring"}
        for name in names[:4]
    ]
    given = ["--decisions", table(place, decisions), "--format", "csv"]
    end = asked(place, capsys, QUESTIONS, *given, "--keep", "star > 0.3")[-1]
    by_name = {one["question"]: one for one in end["calibrations"]}
    assert [by_name[name]["decisions"] for name in QUESTIONS] == [CLIPS, 4, 12]
    assert by_name["star"]["held_out"] == CLIPS // 2 and by_name["things"]["held_out"] == 0
    assert by_name["star"]["error"] < by_name["star"]["raw_error"]
    assert by_name["shape"]["calibration"] == {"slope": 1.0, "shift": 0.0}
    for row in rows(place):
        old, new = before[row["media_path"]], row["answers"]
        assert new["star"]["raw"] == old["star"]["p"] and 0.3 < new["star"]["p"] < 0.7
        assert new["shape"] == old["shape"]
        assert new["things"]["raw_probabilities"] == old["things"]["probabilities"]
        assert new["star"]["mass"] == old["star"]["mass"]
    assert end["kept"] == CLIPS > sum(old["star"]["p"] > 0.3 for old in before.values())
    with open(place.out / "answers.csv", newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    assert {name for name in lines[0] if name.endswith("_raw")} == {"star_raw"}
    assert [float(line["star_raw"]) for line in lines] == [
        before[line["media_path"]]["star"]["p"] for line in lines
    ]


def test_decisions_stay_under_other_names_and_the_later_one_counts(
    answered: Place, tmp_path: Path, capsys: Any
) -> None:
    place = in_other(answered, tmp_path)
    names = sorted(path.name for path in place.clips.iterdir())
    path = table(place, half_are(names, "star"))
    first = asked(place, capsys, {"star": STAR}, "--decisions", path)[-1]["calibrations"]
    assert len(read_lines(place.out / DECISIONS)) == CLIPS
    moved = Place(clips=tmp_path / "moved", out=place.out, store=place.store, verb="ask")
    moved.clips.mkdir()
    for name in names:
        (moved.clips / f"x{name}").hardlink_to(place.clips / name)
    again = asked(moved, capsys, {"renamed": STAR}, "--replace")[-1]["calibrations"]
    assert again == [{**one, "question": "renamed"} for one in first]
    tag = {"tagged": {"text": "Is there {}?", "tags": ["a star"]}}
    assert asked(moved, capsys, tag)[-1]["calibrations"][0]["decisions"] == CLIPS
    last = read_lines(place.out / DECISIONS)[-1]
    other = table(place, half_are(names, "star")[:-1])
    asked(place, capsys, {"star": STAR}, "--decisions", other, "--replace")
    assert read_lines(place.out / DECISIONS)[-1] == last  # nothing new was decided
    changed = [{"media_path": names[0], "question": "star", "answer": "No"}]
    asked(place, capsys, {"star": STAR}, "--decisions", table(place, changed))
    assert read_lines(place.out / DECISIONS)[-1]["answer"] == "No"
    assert len(read_lines(place.out / DECISIONS)) == CLIPS + 1


def test_what_does_not_count_is_named(answered: Place, tmp_path: Path, capsys: Any) -> None:
    place = in_other(answered, tmp_path)
    names = sorted(path.name for path in place.clips.iterdir())
    more: list[dict[str, Any]] = [
        {"media_path": "gone.mp4", "question": "star", "answer": "Yes"},
        {"media_path": names[0], "question": "star", "start": 3, "answer": "Yes"},
    ]
    path = table(place, half_are(names[:2], "star") + more)
    end = asked(place, capsys, {"star": STAR}, "--decisions", path)[-1]
    assert "2 decisions of --decisions about no chunk" in end["warnings"][0]
    assert end["calibrations"][0]["decisions"] == 2
    line = {**read_lines(place.out / DECISIONS)[0], "source": "never noted", "answer": "No"}
    with (place.out / DECISIONS).open("a") as file:
        file.write(json.dumps(line) + "\n")
    end = asked(place, capsys, {"star": STAR})[-1]
    assert "1 line of" in end["warnings"][0] and "--decisions" in end["warnings"][0]
    given = ["--decisions", str(place.out / DECISIONS)]
    assert asked(place, capsys, {"star": STAR}, *given)[-1]["calibrations"][0]["decisions"] == 2


def test_a_wrong_table_is_refused_before_anything_runs(
    answered: Place, tmp_path: Path, capsys: Any
) -> None:
    place = in_other(answered, tmp_path)
    path = table(place, [{"media_path": "a", "question": "star", "answer": "maybe"}])
    for more in ([], ["--dry-run"]):
        given = ["--question", f"star={STAR['text']}", "--decisions", path, *more]
        assert main(["ask", *words(place), *given]) == 2
        assert "'Maybe' is no answer to star" in capsys.readouterr().err
    assert not place.out.exists()


def test_the_last_lines_say_what_decisions_came_to(
    answered: Place, tmp_path: Path, capsys: Any
) -> None:
    place = in_other(answered, tmp_path)
    names = sorted(path.name for path in place.clips.iterdir())
    path = table(place, half_are(names, "star") + half_are(names[:3], "things", tag="a ring"))
    questions = place.out.with_name("q.json")
    questions.write_text(json.dumps(QUESTIONS))
    capsys.readouterr()
    given = ["--questions", str(questions), "--decisions", path]
    assert main(["ask", *words(place), *given]) == 0
    star, things, last = capsys.readouterr().out.splitlines()[-3:]
    assert star.startswith(f"star: calibrated by {CLIPS} decisions, calibration error 0.")
    assert star.endswith(f"on {CLIPS // 2} held-out decisions") and " → 0." in star
    assert things == "things: 3 decisions, which change no probability below 5"
    assert "answers about" in last
