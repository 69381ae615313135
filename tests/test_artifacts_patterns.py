"""Patterns from outside are matched as before, and none of them for ever."""

import json

import pytest

from artifacts.patterns import MAX_LETTERS, ends_with, string_follows
from stages.decode.json_schema import follows

LIST = {"type": "string", "maxLength": 100, "pattern": "^([a-z]+,? ?)+$"}


def schema(**properties: object) -> str:
    told = {"type": "object", "properties": properties, "required": [*properties]}
    return json.dumps(told)


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


@pytest.mark.parametrize("expression", ["(?=q)q_proj", "[a-", "(.)\\1", "a" * (MAX_LETTERS + 1)])
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
