"""Answers in the studio: what its page is given, which decisions it takes, and what the next run
makes of them."""

import re
import signal
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from artifacts.texts.decisions import DECISIONS
from tests.support.answered import CLIPS, answered_clips, answers, run_again, studio_of
from tests.support.pipeline import PENSTOCK, ROOT, Place
from tests.support.studios import OpenStudio


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return answered_clips(tmp_path_factory.mktemp("answers"))


@pytest.fixture
def opened(place: Place) -> Iterator[OpenStudio]:
    with studio_of(place) as studio:
        yield studio


def test_decisions_of_the_page_are_those_of_the_command(
    opened: OpenStudio, place: Place, capsys: Any
) -> None:
    data = opened.get("answers/rows")
    names = [(probe["question"], probe["tag"]) for probe in data["probes"]]
    assert names == [("star", ""), ("shape", ""), ("things", "a star"), ("things", "a ring")]
    assert [one["p"] for one in opened.get("answers/probes/0")["answers"]] == [
        answer["star"]["p"] for answer in answers(place)
    ]
    assert [probe["threshold"] for probe in data["probes"]] == [0.5, 0.5, 0.2, 0.2]
    decided = {"revision": data["revision"], "probe": 0}
    for row in range(CLIPS):
        opened.done("answers/decisions", {**decided, "row": row, "answer": ("Yes", "No")[row % 2]})
    opened.done("answers/decisions", {**decided, "row": 0, "answer": ""})
    again = opened.get("answers/probes/0")["answers"]
    assert [one.get("decided") for one in again][:3] == [None, "No", "Yes"]
    assert run_again(place) == 0
    assert f"star: calibrated by {CLIPS - 1} decisions" in capsys.readouterr().out
    assert all("raw" in answer["star"] for answer in answers(place))
    late = opened.post("answers/decisions", {**decided, "row": 1, "answer": "Yes"})
    assert late.status == 422 and b"written anew" in late.body
    (place.out / DECISIONS).unlink()
    assert run_again(place) == 0


@pytest.mark.parametrize(
    "changes",
    [
        {"row": CLIPS},
        {"row": -1},
        {"row": True},
        {"probe": 9},
        {"answer": "Maybe"},
        {"answer": None},
        {"revision": ""},
    ],
)
def test_a_decision_on_nothing_is_refused(
    changes: dict[str, Any], opened: OpenStudio, place: Place
) -> None:
    revision = opened.get("answers/rows")["revision"]
    given = {"revision": revision, "row": 0, "probe": 0, "answer": "Yes", **changes}
    assert opened.post("answers/decisions", given).status == 422
    given = {"revision": revision, "row": 0, "probe": 0, "answer": "Yes"}
    foreign = opened.post("answers/decisions", given, Origin="http://elsewhere.example")
    assert foreign.status == 403 and not (place.out / DECISIONS).exists()


def test_a_folder_without_answers_says_so(studio: OpenStudio) -> None:
    assert not studio.get("start")["has_answers"]
    assert studio.ask("GET", "answers/rows").status == 422
    assert studio.ask("GET", "answers/probes/0").status == 422
    assert studio.ask("GET", "answers/small/0").status == 422


def test_review_opens_the_answers_of_a_folder(place: Place) -> None:
    command = [*PENSTOCK, "review", str(place.out), "--port", "0"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert re.fullmatch(r"review at http://127\.0\.0\.1:\d+/[0-9a-f]{32}/answers/\n", line)
        process.send_signal(signal.SIGTERM)
        process.stdout.read()
    assert process.returncode == 0
