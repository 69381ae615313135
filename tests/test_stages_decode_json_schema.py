"""Forms of captions: what is read of a schema, what is refused, and that an answer closed at any
place ends within the bytes that were reckoned."""

import json
import random
from typing import Any

import jsonschema
import pytest
from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper

from artifacts.errors import UsageError
from stages.decode.closing import BETWEEN, IN_TEXT, JsonPosition, ranks
from stages.decode.generation import SamplingParams
from stages.decode.json_schema import canonical, columns_of, grammar_of, plain_text_of, rest_of
from stages.decode.schema_bounds import longest
from tests.support.forms import NAMES, SIX, TAGS, VALUES, random_form, text_of

END = 256
FORMS = 250
"""Random forms that answers are closed of."""


class Bytes:
    """A tokenizer of bytes, as llguidance takes one."""

    eos_token_id, bos_token_id = END, None
    special_token_ids = (END,)
    tokens = (*(bytes([byte]) for byte in range(END)), b"<end>")

    def __call__(self, text: str | bytes) -> list[int]:
        return list(text.encode() if isinstance(text, str) else text)


def test_answers_closed_at_any_place_end_in_time_and_are_valid() -> None:
    tokens, rng = LLTokenizer(TokenizerWrapper(Bytes())), random.Random(5)
    for _ in range(FORMS):
        form = random_form(rng)
        text = canonical(text_of(form))
        matcher = LLMatcher(tokens, grammar_of(text), log_level=0)
        for more in (0, 1, rng.randint(2, 60)):
            said = babbled(matcher, text, rest_of(text).tokens + more, rng)
            jsonschema.Draft202012Validator(form).validate(json.loads(said))


def babbled(matcher: LLMatcher, text: str, limit: int, rng: random.Random) -> bytes:
    """An answer of bytes at random, with the end within so many tokens. It closes only where it
    has to, so that a bound that is too small would show."""
    matcher.reset()
    position, said = JsonPosition(rest_of(text)), b""
    first, between, avoided = ranks(IN_TEXT), ranks(BETWEEN), rng.choice([b"", b'"}]'])
    while not position.done:
        assert len(said) + 1 < limit, (text, said)
        mask = matcher.compute_bitmask()
        allowed = [byte for byte in range(END) if mask[byte // 8] >> byte % 8 & 1]
        if position.must_close(limit - len(said)):
            rank = first if position.in_text else between
            byte = min(allowed, key=lambda each: rank[each])
        else:
            byte = rng.choice([b for b in allowed if b not in avoided] or allowed)
        assert matcher.consume_token(byte)
        position.feed(bytes([byte]))
        said += bytes([byte])
    return said


def test_a_canonical_text_sorts_all_but_the_order_in_which_fields_are_said() -> None:
    form = {"required": ["z"], "type": "object", "properties": {"z": {"type": "null"}, "a": {}}}
    form["properties"] = {"z": {"type": "string", "maxLength": 4}, "a": {"const": {"y": 1, "x": 2}}}
    text = canonical(json.dumps(form, indent=3))
    assert text == (
        '{"properties":{"z":{"maxLength":4,"type":"string"},"a":{"const":{"x":2,"y":1}}},'
        '"required":["z"],"type":"object"}'
    )
    assert canonical(text) == text


def test_the_longest_text_of_a_value_is_no_shorter_than_the_value() -> None:
    for value in (*VALUES, *NAMES, [], {}, 1e22, "\x7f\n"):
        assert longest(value) >= len(json.dumps(value, ensure_ascii=False).replace(" ", ""))
    assert longest(1e-7) == len("0.0000001") and longest("\n") == len('"\\u000a"') + 1


@pytest.mark.parametrize(
    ("form", "words"),
    [
        ("{", "is not JSON"),
        ("[1]", "is not an object"),
        ('{"type": "object", "properties": {"a": {"minimum": NaN}}}', "NaN"),
        ({"type": "array", "items": {"type": "string"}}, "not an object schema"),
        ({"type": "object"}, "not an object schema"),
        ({"a": True}, "`a`: not an object with keywords"),
        ({"a": {}}, "`a`: it has no type"),
        ({"a": {"type": "text"}}, "unknown type text"),
        ({"a": {"type": "array"}}, "has no items"),
        ({"a": {"type": "array", "items": {"type": "string"}, "uniqueItems": True}}, "uniqueItems"),
        ({"a": {"type": "string", "pattern": "a+"}}, "unbounded"),
        ({"a": {"type": "string", "format": "email"}}, "email"),
        ({"a": {"type": "string", "minLength": -1}}, "minLength is -1"),
        ({"a": {"type": "number", "multipleOf": 0.1}}, "multipleOf"),
        ({"a": {"type": "number", "exclusiveMinimum": 0}}, "exclusiveMinimum"),
        ({"a": {"type": "integer", "multipleOf": 3}}, "never be found"),
        ({"a": {"type": "integer", "minimum": "1"}}, "not a number"),
        ({"a": {"type": "integer", "minimum": 5, "maximum": 4}}, "is not supported"),
        ({"a": {"enum": []}}, "no values"),
        ({"a": {"anyOf": []}}, "is empty"),
        ({"a": {"anyOf": [{"type": "null"}], "minLength": 1}}, "is not allowed next to"),
        ({"a": {"$ref": "#/properties/a"}}, "refers to itself"),
        ({"a": {"$ref": "#/$defs/none"}}, "does not exist"),
        ({"a": {"$ref": "http://b/c"}}, "outside of the file"),
        ({"a": {"type": "object", "patternProperties": {}}}, "patternProperties"),
        ({"a": {"type": "object", "properties": {}, "required": ["b"]}}, "b is required"),
        ({"a": {"type": "object", "additionalProperties": {"type": "null"}}}, "additional"),
    ],
)
def test_a_form_that_cannot_be_kept_to_is_refused_in_one_line(form: Any, words: str) -> None:
    if isinstance(form, dict) and "type" not in form:
        form = {"type": "object", "properties": form, "required": [*form]}
    with pytest.raises(UsageError) as caught:
        canonical(form if isinstance(form, str) else text_of(form))
    assert words in caught.value.message and caught.value.hint
    assert "--schema" in caught.value.message and "\n" not in str(caught.value)


def test_a_form_that_is_nested_too_deep_is_refused() -> None:
    with pytest.raises(UsageError, match="deep"):
        canonical('{"a":' * 100_000 + "1" + "}" * 100_000)


def test_columns_hold_what_properties_and_references_are() -> None:
    nullable, huge = {"type": ["string", "null"]}, {"type": "integer", "maximum": 10**30}
    more = {"either": {"anyOf": [{"type": "integer"}, {"type": "number"}]}, "maybe": nullable}
    more |= {"large": huge, "parts": {"type": "array", "items": {"type": "integer"}}}
    more |= {"mixed": {"enum": ["a", 1]}, "none": {"type": "null"}, "big": {"const": 10**30}}
    more |= {"pointed": {"$ref": "#/$defs/one"}}
    form = {"type": "object", "properties": SIX["properties"] | more}
    form = {"$ref": "#/$defs/all", "$defs": {"all": form, "one": {"enum": ["x", "y"]}}}
    assert columns_of(canonical(text_of(form))) == {
        "title": "text", "kind": "text", "tags": "texts", "people": "count", "score": "number",
        "outdoors": "truth", "either": "number", "maybe": "text", "large": "text", "parts": "text",
        "mixed": "text", "none": "text", "big": "text", "pointed": "text",
    }  # fmt: skip


def test_an_answer_of_one_text_or_list_of_them_can_be_read_as_words() -> None:
    one = {"type": "object", "properties": {"a": {"type": "string"}}}
    assert plain_text_of(canonical(text_of(TAGS)), {"tags": ["a dog", "grass"]}) == "a dog, grass"
    assert plain_text_of(canonical(text_of(one)), {"a": "a dog"}) == "a dog"
    assert plain_text_of(canonical(text_of(one)), {}) == ""
    assert plain_text_of(canonical(text_of(SIX)), {"title": "a"}) is None


def test_a_form_is_in_the_key_exactly_when_it_is_given() -> None:
    text = canonical(text_of(TAGS))
    assert (
        SamplingParams(schema="").non_defaults == {} and SamplingParams(schema="").key_fields == []
    )
    assert SamplingParams(schema=text).non_defaults == {"schema": text}
    assert SamplingParams.from_fields({"schema": text}) == SamplingParams(schema=text)
    assert SamplingParams().is_prefix_stable and not SamplingParams(schema=text).is_prefix_stable


@pytest.mark.parametrize("other", [{"beams": 2}, {"start_with": "A"}])
def test_what_a_form_excludes_is_refused(other: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="--schema and --"):
        SamplingParams(schema=canonical(text_of(TAGS)), **other)
