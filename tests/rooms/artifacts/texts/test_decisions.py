"""Decisions of people as tables give them, and as a folder's journal keeps them."""

import json
from pathlib import Path
from typing import Any

import pytest

from artifacts.errors import UsageError
from artifacts.records.provenance import anybody, proof_by
from artifacts.texts.decisions import (
    DECISION,
    DECISIONS,
    DecisionRow,
    keep_decisions,
    kept_decisions,
    probe_of,
    read_decisions,
)
from artifacts.texts.questions import read_questions

QUESTIONS = read_questions(
    json.dumps(
        {
            "sharp": "Is it sharp?",
            "shot": {"text": "How is it framed?", "labels": ["close-up", "wide shot"]},
            "quality": {"text": "How good is it?", "score": 5},
            "things": {"text": "Is there {}?", "tags": ["a car", "a dog"]},
        }
    ),
    "q.json",
)


def table(folder: Path, name: str, text: str) -> str:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_tables_of_both_forms_say_the_same(tmp_path: Path) -> None:
    given: list[dict[str, Any]] = [
        {"media_path": "a.jpg", "question": "sharp", "answer": "yes"},
        {"media_path": "b, c.mp4", "start": 4.5, "question": "shot", "answer": "wide shot"},
        {"media_path": "a.jpg", "question": "quality", "answer": 4},
        {"media_path": "a.jpg", "question": "things", "tag": "a dog", "answer": "NO"},
        {"media_path": "a.jpg", "question": "another", "answer": "of another file"},
    ]
    lines = table(tmp_path, "d.jsonl", "".join(json.dumps(row) + "\n" for row in given) + "\n")
    rows = read_decisions(lines, QUESTIONS)
    assert [row.answer for row in rows] == ["Yes", "wide shot", "4", "No", "of another file"]
    assert [row.start for row in rows] == [None, 4.5, None, None, None]
    columns = ("media_path", "start", "question", "tag", "answer", "mine")
    cells = [[str(row.get(name, "")) for name in columns] for row in given]
    quoted = [",".join(f'"{cell}"' for cell in row) for row in (columns, *cells)]
    path = table(tmp_path, "d.CSV", "\ufeff" + "\r\n".join(quoted))
    assert read_decisions(path, QUESTIONS) == rows
    assert read_decisions("", QUESTIONS) == []


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("d.csv", "media_path,question\na,sharp", "line 2: object missing required field"),
        ("d.csv", "media_path,question,answer\na,sharp,maybe", "'Maybe' is no answer to sharp"),
        ("d.csv", "media_path,question,answer\na,shot,closeup", "(close-up, wide shot)"),
        ("d.csv", "media_path,question,answer\na,quality,6", "'6' is no answer"),
        ("d.csv", "media_path,question,answer\na,things,Yes", "it names no tag"),
        ("d.csv", "media_path,question,tag,answer\na,things,x,Yes", "things has no tag 'x'"),
        ("d.csv", "media_path,start,question,answer\na,3s,sharp,Yes", "start is no number: 3s"),
        ("d.csv", "media_path,start,question,answer\na,nan,sharp,Yes", "line 2: start"),
        ("d.csv", "media_path,question,answer\na,sharpe,Yes", "no line is about a question"),
        ("d.csv", 'media_path,question,answer\n"a', "line 2 cannot be read"),
        ("d.csv", "", "no line is about a question"),
        ("d.jsonl", '{"media_path": "a"', "line 1"),
        ("d.jsonl", "\n[1]", "line 2: it is no object"),
        ("d.jsonl", '{"media_path": 3, "question": "sharp", "answer": "Yes"}', "media_path"),
        ("d.jsonl", '{"media_path": "a", "question": "quality", "answer": true}', "answer"),
    ],
)
def test_a_wrong_table_is_refused_in_one_line(
    name: str, text: str, message: str, tmp_path: Path
) -> None:
    path = table(tmp_path, name, text)
    with pytest.raises(UsageError) as refused:
        read_decisions(path, QUESTIONS)
    assert message in refused.value.message and path in refused.value.message
    assert "\n" not in refused.value.message and refused.value.hint


def test_a_file_that_is_gone_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--decisions .*gone\.csv cannot be read"):
        read_decisions(str(tmp_path / "gone.csv"), QUESTIONS)


def decision(answer: str, **changes: Any) -> DecisionRow:
    probe = probe_of(QUESTIONS[0])
    assert probe is not None
    known = {"media_path": "a\udce9.jpg", "question": "sharp", "start": 0.0, "content": "c"}
    return DecisionRow(**{**known, "answer": answer, "probe": probe.digest, **changes})


def test_a_journal_holds_what_this_user_decided(tmp_path: Path) -> None:
    assert kept_decisions(tmp_path, anybody) == ([], 0)
    keep_decisions(tmp_path, [decision("Yes"), decision("No", content="d")], "")
    path = tmp_path / DECISIONS
    with path.open("a") as file:
        file.write('{"media_path": "a", "question": "sharp", "ans')  # torn by a crash
    keep_decisions(tmp_path, [decision("No")], "")
    foreign = {**decision("Yes").to_json(), "content": "e"}
    with path.open("a") as file:
        file.write(json.dumps(foreign) + "\n")
    rows, unproved = kept_decisions(tmp_path, proof_by("", DECISION))
    assert [row.answer for row in rows] == ["Yes", "No", "No"] and unproved == 2
    assert rows[0] == decision("Yes") and rows[0].key == rows[2].key != rows[1].key
    assert len(kept_decisions(tmp_path, anybody)[0]) == 4


def test_a_probe_is_the_same_under_another_name_of_its_question() -> None:
    (again,) = read_questions(json.dumps({"crisp": "Is it sharp?"}), "q.json")
    first, second = (probe_of(question) for question in (QUESTIONS[0], again))
    assert first is not None and second is not None and first.digest == second.digest
    things = QUESTIONS[-1]
    car, dog = (probe_of(things, tag) for tag in things.labels)
    assert car is not None and dog is not None and car.digest != dog.digest
    assert probe_of(things, "a cat") is None
