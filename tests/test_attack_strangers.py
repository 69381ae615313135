"""Schemas, label files and adapters from strangers: each is taken or refused in a line, soon and
within memory, and none means something else than it meant elsewhere."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from artifacts.errors import PenstockError
from flows.media.labels import label_set
from stages.decode.json_schema import canonical, check_room, follows
from stages.models.adapters.reading import read_adapter
from tests.support.adapters import matrices, write_adapter

pytestmark = [pytest.mark.slow, pytest.mark.timeout(60)]  # each takes seconds

LETTERS = 400
"""A refusal is one line that can be read."""


def refused(call: Any, words: str) -> None:
    with pytest.raises(PenstockError) as found:
        call()
    said = str(found.value)
    assert words in said and "\n" not in said and len(said) < LETTERS + 200, said


def of(value: dict[str, Any], **more: Any) -> str:
    return json.dumps({"type": "object", "properties": {"a": value}, "required": ["a"], **more})


def doubling(levels: int) -> str:
    def both(to: str) -> dict[str, Any]:
        return {"type": "object", "properties": {"x": {"$ref": to}, "y": {"$ref": to}}}

    defs = {f"d{n}": both(f"#/$defs/d{n + 1}") for n in range(levels)}
    return of({"$ref": "#/$defs/d0"}, **{"$defs": {**defs, f"d{levels}": {"type": "string"}}})


def chained(count: int) -> str:
    defs: dict[str, Any] = {f"d{n}": {"$ref": f"#/$defs/d{n + 1}"} for n in range(count)}
    return of({"$ref": "#/$defs/d0"}, **{"$defs": {**defs, f"d{count}": {"type": "string"}}})


def nested(levels: int) -> str:
    found: dict[str, Any] = {"type": "string"}
    for _ in range(levels):
        found = {"type": "object", "properties": {"a": found}}
    return of(found)


SCHEMAS: dict[str, tuple[str, str]] = {
    "references that double": (doubling(30), "after its references are expanded"),
    "a chain of references": (chained(20_000), "follow each other"),
    "a reference to itself": (of({"$ref": "#/properties/a"}), "refers to itself"),
    "nested 300 times": (nested(300), "is not supported"),
    "nested 100,000 times": ('{"a":' * 100_000, "nested too deep"),
    "a huge bound": (of({"type": "integer", "minimum": 10**400}), "number out of range"),
    "no number": ('{"type":"object","properties":{"a":{"type":"number","minimum":NaN}}}', "NaN"),
    "a pattern that explodes": (
        of({"type": "string", "maxLength": 10**9, "pattern": "(.*a){30}"}),
        "is not supported",
    ),
    "a pattern of a class 100,000 times": (
        of({"type": "string", "maxLength": 30, "pattern": "\\p{L}{100000}"}),
        "is not supported",
    ),
    "a pattern of 200,000 brackets": (
        of({"type": "string", "maxLength": 9, "pattern": "(" * 200_000 + ")" * 200_000}),
        "is not supported",
    ),
}


@pytest.mark.parametrize("name", SCHEMAS)
def test_a_schema_that_is_too_much_is_refused_in_a_line(name: str) -> None:
    text, words = SCHEMAS[name]
    refused(lambda: canonical(text), words)


@pytest.mark.parametrize(
    "value",
    [
        {"type": "array", "items": {"type": "string"}, "minItems": 10**9},
        {"type": "string", "minLength": 10**9},
    ],
    ids=["items", "letters"],
)
def test_an_answer_that_cannot_be_short_is_refused_before_a_model_is_loaded(
    value: dict[str, Any],
) -> None:
    text = canonical(of(value))
    refused(lambda: check_room(text, 4096), "may not be enough")


CORRECTIONS: dict[str, tuple[str, dict[str, Any], str]] = {
    "words and a mark": ("^([a-z]+,? ?)+$", {}, "a" * 45 + "!"),
    "nested stars": ("^(a*)*$", {}, "a" * 4000 + "b"),
    "two ways": ("^(a|aa)+$", {}, "a" * 4000 + "b"),
    "anything twice": ("^(.*)(.*)(.*)(.*)(.*)x$", {}, "a" * 4000),
    "a pattern beside enum": ("^(a+)+$", {"enum": ["a" * 45 + "!"]}, "a" * 45 + "!"),
    "a long text": ("^(\\w+ ?)+$", {"maxLength": 10**6}, "word " * 40_000 + "!"),
}


@pytest.mark.parametrize("name", CORRECTIONS)
def test_one_correction_never_stops_a_review(name: str) -> None:
    pattern, more, said = CORRECTIONS[name]
    text = of({"type": "string", "maxLength": 5000, "pattern": pattern, **more})
    assert not follows(text, json.dumps({"a": said}))
    if name == "words and a mark":
        assert follows(text, json.dumps({"a": said[:-1]}))


ODD = ('{"a": 1' + "0" * 400 + "}", '{"a": 1e400}', '{"a": ' + "[" * 50_000, '{"a": "\\ud800"}')


@pytest.mark.parametrize("said", ODD)
def test_an_odd_correction_is_answered(said: str) -> None:
    number = of({"type": "integer", "multipleOf": 0.5, "minimum": 0, "maximum": 9})
    assert not follows(number, said)
    assert not follows(of({"type": "string", "pattern": "^a$", "maxLength": 3}), said)


def laughs() -> str:
    lines = ["a: &a [x, x, x]"]
    for n in range(1, 20):
        name, nine = chr(97 + n), ", ".join([f"*{chr(96 + n)}"] * 9)
        lines.append(f"{name}: &{name} [{nine}]")
    return "\n".join(lines)


LABELS: dict[str, tuple[str, str]] = {
    "aliases of aliases": (laughs(), "expand to more than"),
    "an alias within itself": ("a: &a [*a]\n", "contains itself"),
    "an alias of nothing": ("a: *b\n", "undefined alias"),
    "nested 3,000 times": ("[" * 3000, "cannot be parsed"),
    "a number of 6,000 digits": ("? 0x" + "f" * 900 + "\n: x\n", "neither a list of labels"),
    "prompts within prompts": ("a: [[[x]]]\n", "is no text"),
    "a parent that is a list": ("a: {parent: [b]}\n", "is no text"),
    "code": ("a: !!python/object/apply:os.system [x]\n", "cannot be parsed"),
}


@pytest.mark.parametrize("name", LABELS)
def test_a_file_of_labels_is_refused_in_a_line(name: str, tmp_path: Path) -> None:
    text, words = LABELS[name]
    (tmp_path / "l.yaml").write_text(text)
    refused(lambda: label_set(str(tmp_path / "l.yaml")), words)


def test_aliases_that_people_write_are_understood(tmp_path: Path) -> None:
    text = "dog: &d [a dog, a puppy]\ncat: *d\nold: &o {prompts: [x]}\nnew: {<<: *o, group: g}\n"
    (tmp_path / "l.yaml").write_text(text)
    known = yaml.safe_load(text)
    assert [label.prompts for label in label_set(str(tmp_path / "l.yaml")).labels] == [
        tuple(known["dog"]), tuple(known["cat"]), ("x",), ("x",)
    ]  # fmt: skip


def test_a_long_line_of_parents_is_gone_through_once(tmp_path: Path) -> None:
    count = 20_000
    told: dict[str, Any] = {f"l{n}": {"parent": f"l{n + 1}"} for n in range(count)}
    (tmp_path / "l.json").write_text(json.dumps({**told, f"l{count}": None}))
    assert len(label_set(str(tmp_path / "l.json")).labels) == count + 1


LONG = "model." + "a" * 60 + ".x"
ADAPTERS: dict[str, tuple[dict[str, Any], str]] = {
    "a rank pattern that explodes": ({"rank_pattern": {"(a+)+": 8, "(a|aa)+b": 2}}, ""),
    "an alpha pattern that explodes": ({"alpha_pattern": {"(.*a){25}c": 8}}, ""),
    "a look-behind": ({"rank_pattern": {"(?<=a)x": 8}}, "cannot be matched"),
    "a pattern repeated without end": (
        {"alpha_pattern": {"((a{1,1000}){1,1000}){1,1000}": 3}},
        "cannot be matched",
    ),
    "a pattern of a million letters": ({"rank_pattern": {"a|" * 500_000: 1}}, "characters"),
    "10,000 patterns": ({"rank_pattern": {f"m{n}": 1 for n in range(10_000)}}, "4,096"),
    "100 expressions": ({"rank_pattern": {f"m{n}*": 1 for n in range(100)}}, "64 expressions"),
    "patterns in a list": ({"rank_pattern": ["q_proj"]}, "rank_pattern"),
    "a rank that is a text": ({"rank_pattern": {"x": "8"}}, "no valid r"),
    "a rank of 400 digits": ({"r": 10**400}, "no valid r"),
    "an alpha that is no number": ({"lora_alpha": float("nan")}, "no valid lora_alpha"),
    "modules_to_save that is a text": ({"modules_to_save": "lm_head"}, "not a list of names"),
    "modules_to_save of numbers": ({"modules_to_save": [5]}, "not a list of names"),
}


@pytest.mark.parametrize("name", ADAPTERS)
def test_the_settings_of_an_adapter_are_read_or_refused_in_a_line(
    name: str, tmp_path: Path
) -> None:
    changes, words = ADAPTERS[name]
    shapes = {LONG: (6, 5), f"{LONG}.{'a' * 40}!": (6, 5)}
    folder = write_adapter(tmp_path / "adapter", matrices(shapes), **changes)
    if words:
        refused(lambda: read_adapter(folder), words)
    else:
        assert {found.scale for found in read_adapter(folder).low_rank.values()} == {2.0}


def test_patterns_of_peft_mean_what_they_mean_there(tmp_path: Path) -> None:
    """Of PEFT, which of the patterns is the first that meets a module decides."""
    from peft import LoraConfig, get_peft_model

    patterns = {r"0\.q": 2, "1.q": 3, r".*\.v": 6}

    class Block(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.v = torch.nn.Linear(8, 8), torch.nn.Linear(8, 8)

    model: Any = torch.nn.Sequential(Block(), Block(), Block())
    config = LoraConfig(r=4, lora_alpha=4, target_modules=["q", "v"], rank_pattern=patterns)
    wrapped = get_peft_model(model, config)
    wrapped.save_pretrained(str(tmp_path))
    theirs = {
        path.removeprefix("base_model.model."): module.scaling["default"]
        for path, module in wrapped.named_modules()
        if hasattr(module, "scaling")
    }
    ours = {path: found.scale for path, found in read_adapter(tmp_path).low_rank.items()}
    assert ours == theirs and len({*ours.values()}) == 4
