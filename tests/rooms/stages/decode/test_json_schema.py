"""What a JSON Schema says is obeyed or refused: `jsonschema` judges answers at random under every
keyword, at every kind of place."""

import json
import random
from collections.abc import Iterable, Iterator
from itertools import product
from typing import Any

import jsonschema
import pytest
from jsonschema_specifications import REGISTRY
from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper

from artifacts.errors import UsageError
from stages.decode.json_schema import canonical, grammar_of, ignored_note
from stages.decode.schema_columns import columns_of
from tests.support.forms import Bytes, babbled

DRAFTS = (
    "https://json-schema.org/draft/2020-12/meta/",
    "https://json-schema.org/draft/2019-09/meta/",
    "http://json-schema.org/draft-07/schema",
)
JUDGES = (jsonschema.Draft202012Validator, jsonschema.Draft7Validator)
EXAMPLES: dict[str, tuple[Any, ...]] = {
    "$anchor": ("name",), "$comment": ("c",), "$defs": ({"x": {"type": "null"}},),
    "$dynamicAnchor": ("name",), "$dynamicRef": ("#name",), "$id": ("http://x.org/a",),
    "$recursiveAnchor": (True,), "$recursiveRef": ("#",), "$ref": ("#/$defs/none", "#name"),
    "$schema": ("https://json-schema.org/draft/2020-12/schema",), "$vocabulary": ({},),
    "additionalItems": (False,), "additionalProperties": (False, {"type": "null"}),
    "allOf": ([{"required": ["a"]}, {"maxLength": 1}],),
    "anyOf": ([{"required": ["a"]}, {"maxLength": 1}], [{"type": "null"}]),
    "const": ({"a": 1}, "xy", 3), "contains": ({"const": 5},), "contentEncoding": ("base64",),
    "contentMediaType": ("application/json",), "contentSchema": ({"type": "null"},),
    "default": (1,), "definitions": ({"x": {"type": "null"}},), "dependencies": ({"a": ["b"]},),
    "dependentRequired": ({"a": ["b"]},), "dependentSchemas": ({"a": {"required": ["b"]}},),
    "deprecated": (True,), "description": ("d",), "else": ({"type": "null"},),
    "enum": ([{"a": 1}, {"a": 2}], ["x", 7], [[1], {"b": "x"}]), "examples": ([1],),
    "exclusiveMaximum": (3,), "exclusiveMinimum": (7,), "format": ("date", "email"),
    "if": ({"required": ["a"]},), "items": ({"type": "null"}, [{"type": "null"}]),
    "maxContains": (1,), "maxItems": (1,), "maxLength": (2,), "maxProperties": (1,),
    "maximum": (4,), "minContains": (2,), "minItems": (2,), "minLength": (3,),
    "minProperties": (2,), "minimum": (6,), "multipleOf": (7,), "not": ({"required": ["a"]},),
    "oneOf": ([{"required": ["a"]}, {"required": ["b"]}], [{"type": "null"}]),
    "pattern": ("^a+$",), "patternProperties": ({"a": {"const": 3}},),
    "prefixItems": ([{"type": "null"}],), "properties": ({"c": {"const": 1}},),
    "propertyNames": ({"maxLength": 1, "pattern": "b"},), "readOnly": (True,),
    "required": (["a"], ["c"]), "then": ({"required": ["b"]},), "title": ("t",),
    "type": ("null", ["object", "null"]), "unevaluatedItems": (False,),
    "unevaluatedProperties": (False,), "uniqueItems": (True,), "writeOnly": (True,),
}  # fmt: skip
"""Keyword → values, of which most forbid something that the schemas below allow."""
OBJECT: dict[str, Any] = {
    "type": "object",
    "properties": {"a": {"type": "integer"}, "b": {"type": "string", "maxLength": 2}},
}
PLACES: dict[str, dict[str, Any]] = {
    "object": OBJECT,
    "string": {"type": "string", "maxLength": 4},
    "integer": {"type": "integer", "minimum": -20, "maximum": 20},
    "number": {"type": "number", "minimum": 0, "maximum": 9},
    "array": {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 9}},
    "enum": {"enum": ["x", "xyz", 3, 8, [1], [1, 1], {"a": 1}, {"a": 1, "b": "x"}, None]},
    "const": {"const": "xyz"},
    "anyOf": {"anyOf": [{"type": "string", "maxLength": 4}, {"type": "boolean"}]},
    "reference": {"$ref": "#/$defs/x"},
    "types": {"type": ["integer", "string", "null"], "maxLength": 4},
}
TOKENS = LLTokenizer(TokenizerWrapper(Bytes()))


SOME = ("object", "integer", "enum", "reference")


def schemas(places: Iterable[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Keyword → schema: each value of each keyword beside what a schema of each kind says."""
    for word, values in EXAMPLES.items():
        for value in values:
            yield word, {**OBJECT, word: value}
            for place in places:
                # A keyword of the place is replaced, and `$defs` are where references point to.
                node = PLACES[place] | {word: value}
                for member in (node, {"type": "array", "items": node}):
                    whole = {"type": "object", "properties": {"m": member}, "required": ["m"]}
                    yield word, whole | {"$defs": {"x": {"type": "string", "maxLength": 4}}}


def answer_of(schema: dict[str, Any], rng: random.Random) -> str:
    text = canonical(json.dumps(schema))
    matcher = LLMatcher(TOKENS, grammar_of(text), log_level=0)
    return babbled(matcher, rng).decode()


def is_valid(judge: Any, schema: dict[str, Any], answer: str) -> bool:
    try:
        return bool(judge(schema).is_valid(json.loads(answer)))
    except jsonschema.exceptions._WrappedReferencingError:  # refers to another place than ours
        return False


def test_every_keyword_of_json_schema_is_among_the_examples() -> None:
    words: set[str] = set()
    for address in REGISTRY:
        if address.startswith(DRAFTS):
            words |= REGISTRY.contents(address).get("properties", {}).keys()
    assert words == EXAMPLES.keys()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("places", "answers"),
    [(SOME, 1), ((*PLACES,), 5)],
    ids=["some places", "all places"],
)
def test_an_answer_is_valid_or_its_schema_is_refused(places: Iterable[str], answers: int) -> None:
    rng, wrong = random.Random(1), []
    refused = obeyed = 0
    for word, schema in schemas(places):
        try:
            made = [answer_of(schema, rng) for _ in range(answers)]
        except UsageError as error:
            refused += 1
            assert error.message.startswith("--schema") and error.hint
            continue
        obeyed += 1
        for answer, judge in product(made, JUDGES):
            if not is_valid(judge, schema, answer):
                wrong.append((word, json.dumps(schema), answer))
    assert refused > 95 and obeyed > 95
    assert not wrong, f"{len(wrong)} answers are invalid, such as {wrong[:9]}"


@pytest.mark.parametrize("word", ["enum", "const", "anyOf", "oneOf", "not", "allOf", "if"])
def test_a_keyword_is_refused_by_name_at_its_place(word: str) -> None:
    inner = {"type": "array", "items": {**OBJECT, word: EXAMPLES[word][0]}}
    member = {"type": "object", "properties": {"m": inner}}
    for schema, place in ((OBJECT | {word: EXAMPLES[word][0]}, ""), (member, " at `m.[]`")):
        with pytest.raises(UsageError) as caught:
            canonical(json.dumps(schema))
        assert caught.value.message.startswith(f"--schema{place}: ")
        assert word in caught.value.message or "next to enum" in caught.value.message


def test_an_enum_keeps_the_values_that_the_keywords_next_to_it_accept() -> None:
    node = {"type": ["string", "integer"], "maxLength": 2, "pattern": "^a", "maximum": 4}
    node |= {"enum": ["a", "abc", "b", 3, 5, None, True, ["a"]], "minItems": 7}
    schema = {"type": "object", "properties": {"m": node}, "required": ["m"]}
    rng = random.Random(2)
    assert {answer_of(schema, rng) for _ in range(40)} == {'{"m":"a"}', '{"m":3}'}
    node["maximum"], node["maxLength"] = 2, 0
    with pytest.raises(UsageError, match="at `m`: no value of enum"):
        canonical(json.dumps(schema))


@pytest.mark.parametrize(
    "name",
    [
        *("width {cm}", "{", "}", "{}[]", "a:b,c", 'q"', "\\", "\\{", "", " ", "\n", "\0"),
        *("\x7f", "é{😀"),
    ],
)
def test_the_name_of_a_property_may_hold_any_character(name: str) -> None:
    members = {name: {"type": "integer"}, f"{name}2": {"enum": ["{", "}"]}}
    members["n"] = {"type": "object", "properties": {name: {"type": "string"}}, "required": [name]}
    schema = {"type": "object", "properties": members, "required": [*members]}
    rng = random.Random(3)
    for _ in range(5):
        answer = json.loads(answer_of(schema, rng))
        assert jsonschema.Draft202012Validator(schema).is_valid(answer), answer
        assert [*answer] == [*members] == [*columns_of(canonical(json.dumps(schema)))]


def test_words_of_others_restrict_nothing_and_are_named_once() -> None:
    node = {"nullable": True, "x-order": 1, "$ref": "#/$defs/x"}
    choice = {"anyOf": [{"type": "null", "example": None}], "discriminator": {"minLength": 1}}
    schema: dict[str, Any] = {"type": "object"}
    schema |= {"properties": {"m": node, "n": choice}, "required": ["m", "n"]}
    schema |= {"strict": True, "$defs": {"x": {"type": "string", "x-order": 2, "title": "t"}}}
    answer = answer_of(schema, random.Random(4))
    assert jsonschema.Draft202012Validator(schema).is_valid(json.loads(answer))
    note = ignored_note(canonical(json.dumps(schema)))
    assert "strict, " in note and note.count("x-order") == 1 and "title" not in note
    assert all(word in note for word in ("discriminator", "example"))
    assert not ignored_note(canonical(json.dumps(OBJECT)))
