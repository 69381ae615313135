"""Captions of a form: what is read of a schema and what is refused; every caption is whole and
valid, on both engines, or a failure, and each word is the likeliest of those that may come."""

import json
import random
from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Any

import jsonschema
import llguidance
import llguidance.hf
import numpy as np
import pytest
import torch
from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper
from transformers import LogitsProcessorList

from artifacts.errors import UsageError
from penstock_demo import CHECKPOINT
from stages.decode.constraint import SchemaLogitsProcessor, Vocabulary, answer_text, vocabulary_of
from stages.decode.generate_kwargs import GenerateKwargs, SeededSampler
from stages.decode.generation import DecodeItem, SamplingParams
from stages.decode.json_schema import canonical, grammar_of
from stages.decode.schema_columns import columns_of, plain_text_of
from stages.models.processors.loading import load_processor
from tests.support.clips import clips, half_model, joint_inputs, joint_model
from tests.support.families import BUILDERS, checkpoint
from tests.support.forms import SHORT, SIX, TAGS, Bytes, babbled, random_form, text_of
from tests.support.tiny_tokenizers import joined_tokenizer
from tests.support.waves import OTHER, Wave, encoded_wave, folder_of

FORM = canonical(text_of(SIX))
PROMPTS = ("Describe.", "What happens in it?")
ENGINES = ("transformers", "inflight")
SHORT_TEXTS: dict[str, Any] = {
    "type": "object",
    "properties": {
        "title": {"type": "string", "maxLength": 40},
        "tags": {"type": "array", "items": {"type": "string", "maxLength": 12}, "maxItems": 3},
    },
    "required": ["title", "tags"],
}
HOT: dict[str, Any] = {"temperature": 1.5, "top_k": 0, "seed": 3}
WAYS: dict[str, dict[str, Any]] = {"the likeliest": {}, "by chance": HOT}
"""Name → how words are chosen."""
QUICK = {("demo", "inflight", "the likeliest"), ("qwen2_5_vl", "transformers", "by chance")}
CASES = [
    pytest.param(*case, marks=[] if case in QUICK else pytest.mark.slow)
    for case in [
        *product(("demo",), ENGINES, WAYS),
        *product(BUILDERS, ("inflight",), ("by chance",)),
        ("qwen2_5_vl", "transformers", "by chance"),
    ]
]


def wave_of(folder: Path, store: Path, number: int = 3) -> Wave:
    return encoded_wave(store, folder, clips("image", number))


def captions_of(
    wave: Wave, engine: str, namespace: str, limit: int, form: str, **request: Any
) -> list[dict[str, Any]]:
    """The records of the captions."""
    generation = SamplingParams(schema=form, **request).non_defaults
    wave.settings |= {"engine": engine, "generation": generation}
    wave.decode(PROMPTS, namespace, tokens=limit)
    return wave.captions(namespace)


def check(records: list[dict[str, Any]], limit: int, form: Mapping[str, Any] = SHORT) -> None:
    for record in records:
        text = record["caption"]
        jsonschema.Draft202012Validator(form).validate(json.loads(text))
        assert record["ended"] == "stop" and record["tokens"] <= limit
        assert "\n" not in text and '": ' not in text and '", ' not in text.replace('\\"', "")


@pytest.mark.in_turn
@pytest.mark.parametrize(("name", "engine", "way"), CASES)
def test_every_caption_is_valid(name: str, engine: str, way: str, tmp_path: Path) -> None:
    form, wave = canonical(text_of(SHORT)), wave_of(folder_of(name), tmp_path)
    records = captions_of(wave, engine, OTHER, 100, form, **WAYS[way])
    check(records, 100)
    assert all(record["generation"]["schema"] == form for record in records)


@pytest.mark.in_turn
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("more", [{}, {"retry_loops": True}], ids=["once", "again"])
def test_json_that_was_cut_is_a_failure_and_no_caption(
    engine: str, more: dict[str, Any], tmp_path: Path
) -> None:
    wave = wave_of(CHECKPOINT, tmp_path, 2)
    generation = SamplingParams(schema=FORM, **more).non_defaults
    wave.settings |= {"engine": engine, "generation": generation}
    for _ in range(2):  # the second run makes nothing
        events = wave.decode(PROMPTS, OTHER, tokens=24)
        assert not [*wave.record_set("captions", OTHER).keys()]
    assert not [event for event in events if event["event"] == "Failed"]
    failures = wave.record_set("failures", OTHER)
    for number in range(2):
        meta = failures.meta(f"caption-{number}")
        assert (meta["kind"], "larger --max-new-tokens" in meta["hint"]) == ("cut", True)
        assert meta["message"] == "the JSON was cut after 24 tokens, at --max-new-tokens 24"


def test_masks_inside_of_texts_are_those_of_a_matcher_that_tries_every_token() -> None:
    tokenizer = joined_tokenizer(6000, random.Random(5))
    vocabulary, form = Vocabulary(tokenizer), canonical(text_of(SHORT_TEXTS))
    plain = llguidance.hf.from_tokenizer(tokenizer, slices=[])
    matcher = LLMatcher(plain, grammar_of(form), log_level=0)
    answer = {"title": "tea at noon, so \u00e9t\u00e9 and sun", "tags": ["heron", "the red road"]}
    text = json.dumps(answer, separators=(",", ":"), ensure_ascii=False)
    tokens = plain.tokenize_bytes(text.encode())
    processor = SchemaLogitsProcessor(vocabulary, form, {tokenizer.eos_token_id})
    rows, width = [processor.new_row() for _ in range(3)], len(vocabulary.bytes)
    for at, token in enumerate(tokens):
        masks = processor.masks_of(rows, [tokens[:at]] * 3, width)
        allowed = np.unpackbits(masks.allowed, axis=1, bitorder="little")[:, :width]
        expected = np.frombuffer(matcher.compute_bitmask(), np.uint8)
        assert (allowed == np.unpackbits(expected, bitorder="little")[:width]).all(), text[:at]
        assert matcher.consume_token(token)
    assert len(tokens) > 25


@pytest.mark.slow
def test_a_caption_is_what_a_loop_by_hand_says(tmp_path: Path) -> None:
    folder, form = checkpoint("qwen2_5_vl"), canonical(text_of(SHORT))
    wave = wave_of(folder, tmp_path, 2)
    clip = wave.batches[0][0][1]
    processor: Any = load_processor(folder, trusted=False)
    model, tokenizer = joint_model(folder), processor.tokenizer
    inputs = joint_inputs(processor, [clip], [PROMPTS[0]])
    words, vocabulary = b"", vocabulary_of(tokenizer)
    matcher = llguidance.LLMatcher(vocabulary.tokens, grammar_of(form))
    while not matcher.is_stopped():
        with torch.inference_mode():
            made = model.generate(
                **inputs, do_sample=False, max_new_tokens=1, output_logits=True,
                return_dict_in_generate=True,
            )  # fmt: skip
        order = made.logits[0][0].argsort(descending=True).tolist()
        known = (each for each in order if each < vocabulary.tokens.vocab_size)
        token = next(each for each in known if matcher.validate_tokens([each]))
        assert matcher.consume_token(token)
        words += vocabulary.bytes[token]
        new = torch.tensor([[token]])
        length = inputs["input_ids"].shape
        for key, value in inputs.items():
            if value.shape == length:
                more = new if key == "input_ids" else torch.full_like(new, key == "attention_mask")
                inputs[key] = torch.cat([value, more.to(value.dtype)], 1)
    for engine, namespace in zip(ENGINES, ("cc" * 32, OTHER), strict=True):
        records = captions_of(wave, engine, namespace, 100, form)
        assert records[0]["caption"] == words.decode()
        check(records, 100)


@pytest.mark.slow
def test_other_ways_of_choosing_go_on_and_the_form_wins(tmp_path: Path) -> None:
    demo, form = wave_of(CHECKPOINT, tmp_path), canonical(text_of(SHORT))
    avoided: dict[str, Any] = {"avoid": (*'{}":,', "clip", "photo"), "repetition_penalty": 1.5}
    for engine, namespace in zip(ENGINES, ("c1" * 32, "c2" * 32), strict=True):
        check(captions_of(demo, engine, namespace, 100, form, **avoided), 100)
    again = captions_of(demo, "inflight", "c3" * 32, 100, form, no_repeat_ngram=1, **HOT)
    check(again, 100)


def test_the_form_comes_before_chance() -> None:
    processor: Any = load_processor(CHECKPOINT, trusted=False)
    choosing = GenerateKwargs(SamplingParams(schema=FORM, **HOT), 100)
    members = [DecodeItem("", "f", "p")]
    options = choosing.options(half_model(CHECKPOINT, "language"), processor, members)
    found = options["logits_processor"]
    assert isinstance(found, LogitsProcessorList)
    assert isinstance(found[0], SchemaLogitsProcessor) and isinstance(found[-1], SeededSampler)


def test_rows_that_were_said_otherwise_begin_anew() -> None:
    processor: Any = load_processor(CHECKPOINT, trusted=False)
    vocabulary, end = vocabulary_of(processor.tokenizer), processor.tokenizer.eos_token_id
    structure = SchemaLogitsProcessor(vocabulary, FORM, {end})
    scores = torch.zeros(1, len(vocabulary.bytes) + 3)
    first = structure(torch.zeros(1, 4, dtype=torch.long), scores)
    assert vocabulary.bytes[int(first.argmax())] == b"{" and (first == 0).sum() == 1
    for text in (b"{", b'{"', b"{"):
        ids = [0, 0, 0, 0, *vocabulary.tokens.tokenize_bytes(text)]
        found = structure(torch.tensor([ids]), scores)
        assert torch.isfinite(found).any() and torch.isneginf(found[0, end])


def test_a_tokenizer_that_cannot_spell_a_form_is_refused() -> None:
    with pytest.raises(UsageError, match="Only fast tokenizers") as caught:
        Vocabulary(object())
    assert "\n" not in str(caught.value)


def test_what_is_cut_in_the_middle_is_read_as_it_is() -> None:
    processor: Any = load_processor(CHECKPOINT, trusted=False)
    vocabulary = vocabulary_of(processor.tokenizer)
    row = vocabulary.tokens.tokenize_bytes(b'{"title":"a  b , c')
    assert answer_text(vocabulary, row) == '{"title":"a  b , c'


@pytest.mark.slow
def test_answers_to_random_forms_are_valid() -> None:
    tokens, rng = LLTokenizer(TokenizerWrapper(Bytes())), random.Random(5)
    for _ in range(250):
        form = random_form(rng)
        text = canonical(text_of(form))
        matcher = LLMatcher(tokens, grammar_of(text), log_level=0)
        for _ in range(3):
            texts = babbled(matcher, rng)
            jsonschema.Draft202012Validator(form).validate(json.loads(texts))


def test_a_canonical_text_sorts_all_but_the_order_in_which_fields_are_said() -> None:
    form = {"required": ["z"], "type": "object", "properties": {"z": {"type": "null"}, "a": {}}}
    form["properties"] = {"z": {"type": "string", "maxLength": 4}, "a": {"const": {"y": 1, "x": 2}}}
    text = canonical(json.dumps(form, indent=3))
    assert text == (
        '{"properties":{"z":{"maxLength":4,"type":"string"},"a":{"const":{"x":2,"y":1}}},'
        '"required":["z"],"type":"object"}'
    )
    assert canonical(text) == text


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
        ({"a": {"type": "string", "format": "email"}}, "email"),
        ({"a": {"type": "string", "minLength": -1}}, "minLength is -1"),
        ({"a": {"type": "number", "multipleOf": 0.1}}, "multipleOf"),
        ({"a": {"type": "number", "exclusiveMinimum": 0}}, "exclusiveMinimum"),
        ({"a": {"type": "integer", "multipleOf": 3}}, "never be found"),
        ({"a": {"type": "integer", "minimum": "1"}}, "not a number"),
        ({"a": {"type": "integer", "minimum": 5, "maximum": 4}}, "is not supported"),
        ({"a": {"enum": []}}, "no values"),
        ({"a": {"anyOf": []}}, "is empty"),
        ({"a": {"oneOf": [{"type": "integer"}, {"type": "number"}]}}, "several schemas of a oneOf"),
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
    for items in ({"type": "integer"}, {"type": ["string", "null"]}, {"enum": ["x", 3]}):
        boxes = {"type": "object", "properties": {"a": {"type": "array", "items": items}}}
        assert plain_text_of(canonical(text_of(boxes)), {"a": [3]}) is None


def test_a_form_is_in_the_key_exactly_when_it_is_given() -> None:
    text = canonical(text_of(TAGS))
    assert SamplingParams(schema="").non_defaults == {}
    assert SamplingParams(schema="").key_fields == []
    assert SamplingParams(schema=text).non_defaults == {"schema": text}
    assert SamplingParams(schema=text) == SamplingParams(schema=text)
    assert SamplingParams(schema=text).is_prefix_stable


def test_what_a_form_excludes_is_refused() -> None:
    with pytest.raises(UsageError, match="--schema and --"):
        SamplingParams(schema=canonical(text_of(TAGS)), start_with="A")
