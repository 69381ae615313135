"""Forms of captions as JSON Schemas: one of six fields, one of tags, and any number at random."""

import json
import random
from typing import Any

from llguidance import LLMatcher

from stages.decode.schema_bounds import BETWEEN, IN_TEXT, JsonPosition, ranks

END = 256

SIX: dict[str, Any] = {
    "type": "object",
    "properties": {
        "title": {"type": "string"},
        "kind": {"enum": ["clip", "photo", "drawing"]},
        "tags": {"type": "array", "items": {"type": "string"}},
        "people": {"type": "integer"},
        "score": {"type": "number", "minimum": 0, "maximum": 1},
        "outdoors": {"type": "boolean"},
    },
    "required": ["title", "kind", "tags", "people", "score", "outdoors"],
}
TAGS: dict[str, Any] = {
    "type": "object",
    "properties": {"tags": {"type": "array", "items": {"type": "string"}, "minItems": 1}},
    "required": ["tags"],
}
SHORT: dict[str, Any] = {
    "type": "object",
    "properties": {
        "kind": {"enum": ["clip", "photo"]},
        "word": {"type": "string", "maxLength": 3},
        "count": {"type": "integer", "minimum": 0, "maximum": 99},
    },
    "required": ["kind", "word", "count"],
}
"""A form that every answer fills within some tokens, whoever says it."""
NAMES = ("a", "bb", "Ä/ö", 'q"x', "name", "ti\\tle", "z z")
VALUES = ("a", "ab", "some\nthing", 'é"\\', 1, 2.5, None, True, [1, "x"], {"k": {"z": 1}}, -3, 1e-7)
PATTERNS = ("^[a-c]{2,4}x$", "^(ab|cde)*$", "[0-9]+z", "^é+$", "^a.*b$")


def random_form(rng: random.Random, depth: int = 0) -> dict[str, Any]:
    """A form of an object, with others in it."""
    names = rng.sample(NAMES, rng.randint(1, 4))
    return {
        "type": "object",
        "properties": {name: _value(rng, depth) for name in names},
        "required": rng.sample(names, rng.randint(0, len(names))),
    }


def text_of(form: Any) -> str:
    return json.dumps(form)


def _value(rng: random.Random, depth: int) -> dict[str, Any]:
    flat = ["string", "integer", "number", "enum", "const", "boolean"]
    kind = rng.choice([*flat, "string", "array", "object", "any"] if depth < 3 else flat)
    if kind == "any":
        return {"anyOf": [_value(rng, depth + 1) for _ in range(rng.randint(1, 3))]}
    if kind == "object":
        return random_form(rng, depth + 1)
    if kind == "enum":
        return {"enum": rng.sample(VALUES, rng.randint(1, 4))}
    if kind == "const":
        return {"const": rng.choice(VALUES)}
    found: dict[str, Any] = {"type": kind}
    if kind == "array":
        found |= {"items": _value(rng, depth + 1), "minItems": rng.randint(0, 3)}
    return found | {"string": _text, "integer": _whole, "number": _number}.get(kind, _any)(rng)


def _any(_: random.Random) -> dict[str, Any]:
    return {}


def _text(rng: random.Random) -> dict[str, Any]:
    pattern = {"pattern": rng.choice(PATTERNS), "maxLength": rng.randint(6, 12)}
    formed = {"format": rng.choice(["date", "time", "date-time", "uuid"])}
    return rng.choice([{}, {"minLength": rng.randint(0, 9)}, {"maxLength": 4}, pattern, formed])


def _whole(rng: random.Random) -> dict[str, Any]:
    low = {rng.choice(["minimum", "exclusiveMinimum"]): rng.randint(-2000, 2000)}
    high = {rng.choice(["maximum", "exclusiveMaximum"]): rng.randint(2100, 10**7)}
    return rng.choice([{}, low, high, low | high, low | high | {"multipleOf": rng.randint(1, 20)}])


def _number(rng: random.Random) -> dict[str, Any]:
    least = rng.choice([0, 0.5, -3, -0.551, 1e-6, 1500, 0.55])
    low, high = {"minimum": least}, {"maximum": least + rng.choice([0.001, 0.5, 3, 1e-5, 1e6])}
    return rng.choice([{}, low, high, low | high])


class Bytes:
    """A tokenizer of bytes, as llguidance takes one."""

    eos_token_id, bos_token_id = END, None
    special_token_ids = (END,)
    tokens = (*(bytes([byte]) for byte in range(END)), b"<end>")

    def __call__(self, text: str | bytes) -> list[int]:
        return list(text.encode() if isinstance(text, str) else text)


def babbled(matcher: LLMatcher, rng: random.Random) -> bytes:
    """An answer whose first bytes are at random; from some byte on it takes those that close it."""
    matcher.reset()
    position, texts, free = JsonPosition(), b"", rng.randint(0, 80)
    first, between, avoided = ranks(IN_TEXT), ranks(BETWEEN), rng.choice([b"", b'"}]'])
    while not position.done:
        mask = matcher.compute_bitmask()
        allowed = [byte for byte in range(END) if mask[byte // 8] >> byte % 8 & 1]
        if len(texts) >= free:
            rank = first if position.in_text else between
            byte = min(allowed, key=lambda each: rank[each])
        else:
            byte = rng.choice([b for b in allowed if b not in avoided] or allowed)
        assert matcher.consume_token(byte)
        position.feed(bytes([byte]))
        texts += bytes([byte])
    return texts
