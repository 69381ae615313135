import os
from pathlib import Path
from typing import Any

import pytest

from artifacts.errors import EnvironmentFault, UsageError
from artifacts.json_shapes import (
    EmptyOr,
    MapOf,
    Nullable,
    OptionalField,
    ShapeError,
    check,
    count,
    moment,
    number,
    parse,
    read_json,
    read_jsonl,
    text,
)

SHAPE = {
    "name": text,
    "bytes": count,
    "at": OptionalField(number),
    "began": Nullable(moment),
    "points": [(number, number)],
    "more": OptionalField(MapOf(text)),
    "plan": OptionalField(EmptyOr({"model": text})),
}
GOOD: dict[str, Any] = {"name": "a", "bytes": 1, "began": None, "points": []}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"at": -1.5, "began": "2026-01-01T00:00:00+00:00"},
        {"points": [[1, 2.5], [0, 0]], "more": {"x": "y"}, "plan": {}, "unknown": [[]]},
        {"plan": {"model": "m"}},
    ],
)
def test_what_has_the_shape_passes(changes: dict[str, Any]) -> None:
    check({**GOOD, **changes}, SHAPE)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"name": None}, "it.name is not a text"),
        ({"name": "\ud800"}, "it.name is not a text"),
        ({"bytes": True}, "it.bytes is not a count"),
        ({"bytes": -1}, "it.bytes is not a count"),
        ({"bytes": 1.0}, "it.bytes is not a count"),
        ({"bytes": 10**30}, "it.bytes is not a count"),
        ({"at": "1"}, "it.at is not a number"),
        ({"at": float("inf")}, "it.at is not a number"),
        ({"began": "yesterday"}, "it.began is not a moment"),
        ({"began": 5}, "it.began is not a moment"),
        ({"points": {}}, "it.points is not the expected list"),
        ({"points": [[1]]}, r"it.points\[0\] is not the expected list"),
        ({"points": [[1, "2"]]}, r"it.points\[0\]\[1\] is not a number"),
        ({"more": []}, "it.more is not an object"),
        ({"more": {"x": 1}}, "it.more.x is not a text"),
        ({"plan": {"mode": "m"}}, "it.plan: model is missing"),
    ],
)
def test_what_has_another_shape_is_told_by_its_place(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ShapeError, match=says):
        check({**GOOD, **changes}, SHAPE)


@pytest.mark.parametrize(
    "line", ["", "{", "NaN", "[Infinity]", "[" * 100_000, "[" * 40 + "]" * 40, "9" * 5000, "\0"]
)
def test_what_is_no_json_of_ours_is_no_value(line: str) -> None:
    with pytest.raises(ValueError):
        parse(line)


def test_lines_are_read_as_far_as_they_are_known(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    assert read_jsonl(path, {"name": text}, "") == []
    path.write_text('{"name": "a\u2028b", "more": 1}\n\n{"name": "c"}\n')
    assert read_jsonl(path, {"name": text}, "") == [{"name": "a\u2028b"}, {"name": "c"}]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"\xff\n", "it is not UTF-8 text"),
        (b'{"name": "a"}\n[]\n', "at line 2: it is not an object"),
        (b'{"name": "a"}\n{"name"\n', "at line 2: invalid JSON"),
        (b'{"name": 1}\n', "at line 1: it.name is not a text"),
        (b"[" * 200_000, "at line 1: it is nested too deeply"),
    ],
)
def test_a_file_of_other_lines_is_named(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    with pytest.raises(EnvironmentFault, match=says) as caught:
        read_jsonl(path, {"name": text}, "Make it anew")
    assert str(path) in caught.value.message
    assert caught.value.hint == "Make it anew"


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    os.mkfifo(path)
    with pytest.raises(EnvironmentFault, match="it is a FIFO, not a file"):
        read_jsonl(path, {"name": text}, "")
    with pytest.raises(EnvironmentFault, match="it is a FIFO, not a file"):
        read_json(path, {"name": text}, "", dict)
    with pytest.raises(UsageError, match="does not exist"):
        read_json(tmp_path / "gone.json", {"name": text}, "", dict)
