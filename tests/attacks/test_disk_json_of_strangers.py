"""Texts from outside: JSON of a shape, patterns, and secrets in messages."""

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from artifacts.disk.json_records import read_json_file, read_jsonl_file, typed
from artifacts.disk.json_shapes import ShapeError, parse
from artifacts.disk.json_types import Count, Number, Text
from artifacts.disk.patterns import MAX_LETTERS, ends_with, string_follows
from artifacts.errors import EnvironmentFault, UsageError, redacted
from flows.core.console.display import failed_line
from flows.interfaces.serve.refusals import OPENAI, bad_request
from stages.decode.json_schema import follows


@dataclass(kw_only=True, slots=True)
class Planned:
    model: Text


@dataclass(kw_only=True, slots=True)
class Row:
    name: Text
    bytes: Count
    at: Number = 0.0
    points: tuple[tuple[Number, Number], ...] = ()
    more: dict[Text, Text] = field(default_factory=dict)
    plan: Planned | None = None
    phase: Literal["raw", "done"] = "raw"


GOOD: dict[str, Any] = {"name": "a", "bytes": 1}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"at": -1.5, "phase": "done"},
        {"points": [[1, 2.5], [0, 0]], "more": {"x": "y"}, "unknown": [[]]},
        {"plan": {"model": "m"}},
    ],
)
def test_what_is_as_declared_passes(changes: dict[str, Any]) -> None:
    assert typed(Row, {**GOOD, **changes}).name == "a"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"name": None}, "name: expected text, got null"),
        ({"name": "\ud800"}, "name: expected Unicode text"),
        ({"bytes": True}, "bytes: expected whole number, got true or false"),
        ({"bytes": -1}, "bytes: expected whole number >= 0"),
        ({"bytes": 1.5}, "bytes: expected whole number, got number"),
        ({"bytes": 10**30}, "bytes: "),
        ({"at": "1"}, "at: expected number, got text"),
        ({"at": float("inf")}, "at: expected number < "),
        ({"points": {}}, "points: expected list, got object"),
        ({"points": [[1]]}, r"points\[0\]: expected list of length 2"),
        ({"points": [[1, "2"]]}, r"points\[0\]\[1\]: expected number, got text"),
        ({"more": []}, "more: expected object, got list"),
        ({"more": {"x": 1}}, "expected text, got whole number"),
        ({"plan": {"mode": "m"}}, "plan: object missing required field `model`"),
        ({"phase": "cooked"}, "phase: invalid enum value 'cooked'"),
        ({"phase": "a | b - at `$.x"}, r"phase: invalid enum value 'a \| b - at `\$.x'"),
        ({"phase": "x" * 9999}, "phase: invalid enum value '.{100,200}$"),
    ],
)
def test_what_is_not_is_told_by_its_place(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ShapeError, match=says):
        typed(Row, {**GOOD, **changes})


@pytest.mark.parametrize(
    "line", ["", "{", "NaN", "[Infinity]", "[" * 100_000, "[" * 40 + "]" * 40, "9" * 5000, "\0"]
)
def test_what_is_no_json_of_ours_is_no_value(line: str) -> None:
    with pytest.raises(ValueError):
        parse(line)


@dataclass(kw_only=True, slots=True)
class Named:
    name: Text


def test_lines_are_read_as_far_as_they_are_known(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    assert read_jsonl_file(Named, path, "") == []
    path.write_text('{"name": "a\u2028b", "more": 1}\n\n{"name": "c"}\n')
    assert [row.name for row in read_jsonl_file(Named, path, "")] == ["a\u2028b", "c"]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"\xff\n", "it is not UTF-8 text"),
        (b'{"name": "a"}\n[]\n', "at line 2: expected object, got list"),
        (b'{"name": "a"}\n{"name"\n', "at line 2: invalid JSON"),
        (b'{"name": 1}\n', "at line 1: name: expected text, got whole number"),
        (b'{"name": "\\ud800"}\n', "at line 1: name: expected Unicode text"),
        (b"[" * 200_000, "at line 1: it is nested too deeply"),
    ],
)
def test_a_file_of_other_lines_is_named(tmp_path: Path, content: bytes, says: str) -> None:
    (path := tmp_path / "rows.jsonl").write_bytes(content)
    with pytest.raises(EnvironmentFault, match=says) as caught:
        read_jsonl_file(Named, path, "Make it anew")
    assert str(path) in caught.value.message
    assert caught.value.hint == "Make it anew"


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    os.mkfifo(path)
    with pytest.raises(EnvironmentFault, match="it is a FIFO, not a file"):
        read_jsonl_file(Named, path, "")
    with pytest.raises(EnvironmentFault, match="it is a FIFO, not a file"):
        read_json_file(Named, path, "")
    with pytest.raises(UsageError, match="does not exist"):
        read_json_file(Named, tmp_path / "gone.json", "")


LIST = {"type": "string", "maxLength": 100, "pattern": "^([a-z]+,? ?)+$"}


def schema(**properties: object) -> str:
    return json.dumps({"type": "object", "properties": properties, "required": [*properties]})


@pytest.mark.parametrize(
    ("expression", "path", "met"),
    [
        ("q_proj", "model.layers.0.q_proj", True),
        ("q_proj", "model.layers.0.lq_proj", False),
        (r"layers\.1\.q_proj", "layers.1.q_proj", True),
        ("layers.1.q_proj", "model.layers.11.q_proj", False),
        (r"layers\.(0|2)\..*", "model.layers.2.q_proj", True),
        (r"layers\.\d+\.[qv]_proj", "model.layers.31.v_proj", True),
        (r"layers\.\d+\.[qv]_proj", "model.layers.31.k_proj", False),
        ("(a+)+", "a" * 60 + "!", False),
    ],
)
def test_an_expression_meets_the_end_of_a_path(expression: str, path: str, met: bool) -> None:
    assert ends_with(expression, path) is met


ANCHORED = (
    *("^q_proj", "^model.layers.1.q_proj", "^layers.1.q_proj", "q_proj$", r"q_proj\$"),
    *(r"^model\.layers\.1\.q_proj$", r"^model\.layers\.\d+\.[qv]_proj", "k_proj|^model.*q_proj"),
    *(r"^layers\.\d+\.q_proj|k_proj$", "^(model|vision).layers.1.[^|^]_proj"),
    "[|^]_proj|[]^|]_proj",
)


@pytest.mark.parametrize("expression", ANCHORED)
def test_an_expression_with_anchors_meets_the_paths_that_it_meets_in_peft(expression: str) -> None:
    from peft.utils.other import get_pattern_key

    paths = ["q_proj", "layers.1.q_proj", "model.layers.1.q_proj", "model.layers.1.k_proj"]
    theirs = {path: get_pattern_key([expression], path) == expression for path in paths}
    assert {path: ends_with(expression, path) for path in paths} == theirs


@pytest.mark.parametrize(
    "expression", ["(?=q)q_proj", "(^q|k)_proj", "a^q", "[a-", "(.)\\1", "a" * (MAX_LETTERS + 1)]
)
def test_an_expression_that_cannot_be_matched_in_bounded_time_fails(expression: str) -> None:
    with pytest.raises(ValueError):
        ends_with(expression, "q_proj")


def test_a_correction_is_matched_by_the_engine_that_captions_are_made_with() -> None:
    text = schema(tags=LIST)
    assert not follows(text, json.dumps({"tags": "a" * 45 + "!"}))
    assert follows(text, json.dumps({"tags": "red, blue"}, indent=2))
    assert not follows(text, json.dumps({"tags": "a" * 101}))
    assert not follows(schema(day={"type": "string", "format": "date"}), '{"day": "soon"}')
    assert follows(schema(day={"type": "string", "format": "date"}), '{"day": "2026-01-31"}')


def test_every_letter_of_a_text_is_matched_as_it_is() -> None:
    for letter in map(chr, [*range(0x100), 0x2028, 0x1F600]):
        assert string_follows({"type": "string", "pattern": "(?s)^.$"}, letter), repr(letter)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("no https://user:pa55@host/a.mp4", "no https://…@host/a.mp4"),
        ("postgresql+asyncpg://me:pa55@db/x", "postgresql+asyncpg://…@db/x"),
        ("bearer hf_AbCdEfGhIjKlMnOpQrStUv", "bearer …"),
        ("http://h/a?token=pa55&x=1", "http://h/a?token=…&x=1"),
        ("http://h/a?X-Amz-Signature=pa55", "http://h/a?X-Amz-Signature=…"),
        ("mail@example.org has a@b.mp4", "mail@example.org has a@b.mp4"),
        ("https://host/a@b.mp4", "https://host/a@b.mp4"),
    ],
)
def test_what_lets_readers_in_elsewhere_is_left_out(text: str, message: str) -> None:
    assert redacted(text) == message
    assert str(UsageError(text, hint=text)) == f"{message}. {message}"


@pytest.mark.parametrize("end", [".", "?", "!"])
def test_a_message_that_ends_a_sentence_gets_no_second_full_stop(end: str) -> None:
    assert str(UsageError(f"no such role{end}", hint="Mend it")) == f"no such role{end} Mend it"
    assert failed_line("a.mp4", f"no{end}", "Mend it") == f"failed: a.mp4: no{end} Mend it"
    message: Any = bad_request(f"no{end}", "Mend it").to_json(OPENAI[0])["error"]
    assert message["message"] == f"no{end} Mend it"
