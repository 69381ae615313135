"""`penstock ask` with a model that a server runs: the probabilities that the server states, made
once, and one line for a server that states none."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

import penstock
from flows.interfaces.cli.main import main
from tests.support.builders.endpoint import StandIn, message_of, running
from tests.support.builders.table_server import TableServer, choice_of, prompt_in
from tests.support.media import write_numbered
from tests.support.pipeline import Place, kill_at, read_lines

WATERMARK, SHARP, SHOT, KIND, CAR = "a watermark", "How sharp", "framed", "What kind", "a car"
QUESTIONS: dict[str, Any] = {
    "watermark": "Is there a watermark?",
    "sharp": {"text": "How sharp is it?", "score": 3},
    "shot": {"text": "How is it framed?", "labels": ["close-up", "wide shot"]},
    "form": {"text": "What kind is it?", "labels": ["photo", "drawing"]},
    "things": {"text": "Is there {}?", "tags": ["a car", "a dog"]},
}
TABLE: dict[str, Any] = {
    "*": {
        WATERMARK: {"Yes": 0.1, "No": 0.7, "yes": 0.2},
        SHARP: {"1": 0.1, " 2": 0.2, "3": 0.5},
        SHOT: {"A": 0.6, "B": 0.2, "close": 0.2},
        KIND: {"photo": 0.8},
        CAR: {"Yes": 0.9, "No": 0.1},
        "a dog": {" Yes": 0.2, "Yes": 0.05, " No": 0.6},
    }
}


@pytest.fixture
def place(tmp_path: Path) -> Place:
    pictures = write_numbered(tmp_path / "pictures", 4)
    return Place(clips=pictures, out=tmp_path / "out", store=tmp_path / "store", verb="ask")


def words(place: Place, address: str, questions: dict[str, Any], *more: str) -> list[str]:
    path = place.out.with_name("questions.json")
    path.write_text(json.dumps(questions))
    where = ["--out", str(place.out), "--store", str(place.store), "--questions", str(path)]
    return ["ask", str(place.clips), *where, "--model", "openai:m", "--endpoint", address, *more]


def rows(place: Place) -> list[dict[str, Any]]:
    return read_lines(place.out / "answers.jsonl")


def test_answers_are_the_probabilities_that_the_server_states(place: Place, capsys: Any) -> None:
    server = TableServer(place.clips, TABLE)
    with running(server) as address:
        options = ("--format", "parquet", "--keep", "watermark < 0.2")
        assert main(words(place, address, QUESTIONS, "--dry-run")) == 0
        assert "about 4 chunks and 4 frames" in capsys.readouterr().out
        assert main(words(place, address, QUESTIONS, *options)) == 0
        assert len(server.requests) == 6 * 4
        renamed = {f"{name}_2": question for name, question in QUESTIONS.items()}
        assert main(words(place, address, renamed)) == 0
        assert len(server.requests) == 6 * 4
        more = {**QUESTIONS["things"], "tags": ["a tree", "a dog", "a car"]}
        assert main(words(place, address, {"things": more})) == 0
        assert "made for further prompts: answers 4, frames 4" in capsys.readouterr().err
    assert len(server.requests) == 7 * 4
    for request in server.requests:
        own = {name: request[name] for name in ("max_tokens", "logprobs", "top_logprobs")}
        assert own == {"max_tokens": 1, "logprobs": True, "top_logprobs": 20}
        assert request["temperature"] == 0
    letters = next(prompt_in(r) for r in server.requests if SHOT in prompt_in(r))
    assert letters.splitlines()[1:3] == ["A) close-up", "B) wide shot"]


def test_rows_have_the_answers_and_say_what_is_a_bound(place: Place) -> None:
    with running(TableServer(place.clips, TABLE)) as address:
        assert main(words(place, address, QUESTIONS, "--format", "csv,parquet")) == 0
    bound = 0.99 * 0.2 / 19
    for row in rows(place):
        answers = row["answers"]
        assert answers["watermark"] == {
            "type": "yes-no", "answer": "No", "p": 0.125, "mass": 0.8
        }  # fmt: skip
        assert answers["sharp"]["score"] == pytest.approx((0.1 + 0.4 + 1.5) / 0.8, abs=1e-6)
        assert answers["shot"]["probabilities"] == {"close-up": 0.75, "wide shot": 0.25}
        assert answers["form"]["bounded"] is True and answers["form"]["answer"] == "photo"
        assert answers["form"]["p"] == pytest.approx(0.8 / (0.8 + bound), abs=1e-6)
        assert answers["things"]["probabilities"] == {"a car": 0.9, "a dog": 0.25}
        assert [name for name, own in answers.items() if "bounded" in own] == ["form"]
    table = pq.read_table(place.out / "answers.parquet")
    assert [name for name in table.column_names if "bounded" in name] == ["form_bounded"]
    assert table["form_bounded"].to_pylist() == [True] * 4
    with running(TableServer(place.clips, TABLE)) as address:
        where = {"out": str(place.out) + "-api", "store": str(place.store)}
        served = {"model": "openai:m", "endpoint": [address]}
        answers = penstock.ask(place.clips, questions=QUESTIONS, **where, **served)  # type: ignore[arg-type]
        assert answers.table().column_names == table.column_names


def test_labels_that_the_server_does_not_state_are_no_answer(place: Place, capsys: Any) -> None:
    first = min(path.name for path in place.clips.iterdir())
    row = {"zz": {}, CAR: {}, "a dog": {"Yes": 0.9}, KIND: {"photo": 0.8, "drawing": 0.1}}
    table = {"*": row, first: {**row, "zz": {"No": 0.1, "Yes": 0.8}, CAR: {"Yes": 0.9}}}
    own = {name: QUESTIONS[name] for name in ("form", "things")} | {"zz": "Is it zz?"}
    options = ("--format", "csv", "--keep", "zz >= 0.5 and zz_bounded = 0")
    with running(TableServer(place.clips, table)) as address:
        assert main(words(place, address, own, *options)) == 0
        assert [line["media_path"] for line in read_lines(place.out / "kept.jsonl")] == [first]
        output = capsys.readouterr()
        assert "zz: the server stated none of the labels 3 times" in output.err
        assert ", 6 unknown: the server stated none of their labels" in output.out
        for keep in ("not things like '%car%'", "zz_bounded = 1", "zz < 0.5"):
            assert main(words(place, address, own, "--keep", keep)) == 0
            assert read_lines(place.out / "kept.jsonl") == []
    whole, *unknown = rows(place)
    assert whole["answers"]["zz"]["p"] > 0.8 and "unanswered" not in whole
    assert [row["unanswered"] for row in unknown] == [["zz"]] * 3
    assert {row["answers"]["things"]["tags"][0] for row in unknown} == {"a dog"}


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ((200, message_of("x")), "gives no log probabilities (unsupported)"),
        ((200, {"choices": [choice_of({}, filled=0)]}), "gives no log probabilities"),
        ((400, {"error": "logprobs are not supported"}), "gives no log probabilities"),
        ((200, {"choices": [choice_of({"Yes": 3.0})]}), "a log probability that is none"),
    ],
)
def test_a_server_without_log_probabilities_is_one_line(
    place: Place, capsys: Any, answer: Any, message: str
) -> None:
    stand_in = StandIn()
    stand_in.answer = lambda *_: answer
    with running(stand_in) as address:
        assert main(words(place, address, {"watermark": "Is there one?"})) == 5
    lines = [line for line in capsys.readouterr().err.splitlines() if "log prob" in line]
    assert len(lines) == 1 and message in lines[0]
    assert len(stand_in.requests) <= 8 and rows(place) == []


@pytest.mark.parametrize("score", [math.nan, "many", 3.0])
def test_a_log_probability_that_is_none_fails_its_own_answer(place: Place, score: Any) -> None:
    server = TableServer(place.clips, TABLE)
    with running(server) as address:
        assert main(words(place, address, {"watermark": QUESTIONS["watermark"]})) == 0

    def answer(request: dict[str, Any], digest: str, before: int) -> Any:
        status, planted = server.planted(request, digest, before)
        if CAR in prompt_in(request):
            planted["choices"] = [choice_of({"Yes": 0.5})]
            planted["choices"][0]["logprobs"]["content"][0]["top_logprobs"][0]["logprob"] = score
        return status, planted

    server.answer = answer
    with running(server) as address:
        questions = {"watermark": QUESTIONS["watermark"], "car": "Is there a car?"}
        assert main(words(place, address, questions)) == 1
    assert [row["unanswered"] for row in rows(place)] == [["car"]] * 4
    failures = read_lines(place.out / "failures.jsonl")
    expected = f"the server states a log probability that is none: {score}"
    assert [expected in json.dumps(failure) for failure in failures] == [True] * 4


def test_labels_beyond_the_alphabet_are_refused_before_the_run(place: Place, capsys: Any) -> None:
    labels = [f"label number {at}" for at in range(27)]
    questions = {"shot": {"text": "Which?", "labels": labels}}
    assert main(words(place, "http://127.0.0.1:9/v1", questions)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "shot: a server answers these labels by letters, and 27 labels are more than 26" in line


@pytest.mark.parametrize("victim", ["child", "group"])
def test_answers_are_the_same_after_a_kill(place: Place, victim: str) -> None:
    server = TableServer(place.clips, TABLE)
    with running(server) as address:
        assert main(words(place, address, QUESTIONS)) == 0
        other = replace(place, out=place.out / "other", store=place.store / "other")
        other = replace(other, model="openai:m")
        given = words(other, address, QUESTIONS)
        kill_at(other, "ask_probes", 7, victim, *given[given.index("--questions") :])
        assert main(given) == 0
    assert rows(other) == rows(place)
    assert len(server.requests) < 3 * 6 * 4


def test_captions_of_a_server_have_its_answers(place: Place, capsys: Any) -> None:
    first, *others = sorted(path.name for path in place.clips.iterdir())
    of_all, of_one = {WATERMARK: {"Yes": 0.1, "No": 0.8}}, {WATERMARK: {"Yes": 0.9, "No": 0.1}}
    table = {**TABLE, "*": {**TABLE["*"], **of_all}, first: {**TABLE["*"], **of_one}}
    more = ["--keep", "watermark < 0.2", "--suffix", ", {answer.things}", "--format", "kohya,csv"]
    with running(TableServer(place.clips, table)) as address:
        words_of_caption = ["caption", *words(place, address, QUESTIONS, *more)[1:]]
        assert main(words_of_caption) == 0
        assert main([*words_of_caption, "--dry-run"]) == 0
    captions = read_lines(place.out / "captions.jsonl")
    assert [row["media_path"] for row in captions] == others
    assert all(row["caption"].endswith(", a car") for row in captions)
    metadata = json.loads((place.out / "kohya" / "metadata.json").read_text())
    assert [entry["caption"].endswith(", a car") for entry in metadata.values()] == [True] * 3
    assert "answer_form_bounded" in (place.out / "captions.csv").read_text().splitlines()[0]
