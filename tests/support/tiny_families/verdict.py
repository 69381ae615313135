"""Runs a saved tiny model as a whole and in two stages, features going through the forms they have
on disk, and says whether both give the same tokens and logits to the last bit."""

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from artifacts.errors import PenstockError
from artifacts.records.tensors import pack_tree, unpack_tree
from artifacts.schema import HalfName
from stages.models.halves.boundary import HALVES, modules_called
from stages.models.halves.features import Features, encode, is_pixels, placeholder_ids
from stages.models.halves.generate import UNDIVIDED, generate
from stages.models.halves.load import load_half
from stages.models.halves.model_class import config_and_class, one_line, skeleton_of
from stages.models.halves.records import CannotSplit, FeatureRecord, RowCount, merge_rows, split
from stages.models.halves.reloadable import ReloadableHalf
from stages.models.halves.split_route import choose_route
from tests.support.tiny_families import FAMILIES

GREEDY: dict[str, Any] = {
    "do_sample": False,
    "num_beams": 1,
    "max_new_tokens": 8,
    "min_new_tokens": 8,
    "return_dict_in_generate": True,
    "output_logits": True,
}
UNCUT = {"blip", "git", "kosmos-2", "mllama", "pix2struct", "vision-encoder-decoder"}
"""Families that have no place where they could be cut."""
FAILING = {"nemotron_h_omni:video", "nemotron_h_omni:video:b2"}
"""Variants on which transformers' own model fails: it joins as a list what is one tensor."""
MIXED = (":mixed", ":uneven", ":textrow")
SINGLE = [
    name
    for name in FAMILIES
    if name.split(":")[0] not in UNCUT
    and not name.endswith((":b2", *MIXED))
    and name not in FAILING
]
"""Variants of one row and one medium that are cut."""
MEDIA = {"uneven": (2, 1), "textrow": (1, 0)}
"""Pictures in each row, where it is not one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """What came of one variant of a family."""

    variant: str
    model_type: str
    class_name: str
    route: str
    why: str
    result: str
    """`exact`, `joint`, `differs`, `refused: …`, or `fails: …` where the whole model does."""
    takes: tuple[str, ...] = ()
    """Kinds of media that its class or its processor takes."""
    extra_modules: tuple[str, ...] = ()
    """What a half turned out to need of the other."""
    foreseen: tuple[str, ...] = ()
    """What the classes say that a half needs of the other."""
    by_row: bool = True
    """Whether a batch's features say which row they belong to."""
    loaded: tuple[int, int, int] = (0, 0, 0)
    """Bytes of the vision half, the language half and the whole model."""


def judge(variant: str, folder: Path) -> Verdict:
    """Build the variant, save it to `folder`, and compare."""
    torch.manual_seed(0)
    model, inputs = FAMILIES[variant]()
    model.save_pretrained(folder)
    config, cls = config_and_class(folder, trusted=False)
    skeleton = skeleton_of(config, cls)
    choice = choose_route(skeleton)
    facts: dict[str, Any] = {
        "variant": variant,
        "model_type": config.model_type,
        "class_name": cls.__name__,
        "route": choice.route,
        "why": choice.why,
        "takes": media_taken(cls, config.model_type),
    }
    whole = load_half(folder, "whole")
    stock = cls.from_pretrained(folder).eval()
    try:
        with torch.inference_mode():
            expected = stock.generate(**inputs, **GREEDY)
    except (TypeError, ValueError, RuntimeError, AttributeError) as error:
        return Verdict(**facts, result=f"fails: {type(error).__name__}: {one_line(error)}")
    if choice.route == "joint":
        given = Features({UNDIVIDED: {n: v for n, v in inputs.items() if is_pixels(n)}})
        same = _equal(generate(whole, inputs, given, **GREEDY), expected)
        return Verdict(**facts, result="joint" if same else "differs")
    facts["foreseen"] = tuple(p for half in HALVES for p in modules_called(skeleton, half))
    try:
        return _staged(folder, inputs, expected, facts, size(whole))
    except PenstockError as error:
        return Verdict(**facts, result=f"refused: {error.message}")


def media_taken(cls: Any, model_type: str) -> tuple[str, ...]:
    """Kinds of media that a class, or the processor that goes with it, takes."""
    from transformers.models.auto import processing_auto

    library: Any = processing_auto
    name = library.PROCESSOR_MAPPING_NAMES.get(model_type)
    processor = library.processor_class_from_name(name) if name else None
    parts = [] if processor is None else processor.get_attributes()
    known = (*cls.input_modalities, *(part.removesuffix("_processor") for part in parts))
    return tuple(kind for kind in ("image", "video") if kind in known)


def kind_of(variant: str, takes: tuple[str, ...]) -> str:
    """`image` or `video` for a single medium; empty for what is mixed."""
    if variant.endswith((*MIXED, ":b2")):
        return ""
    return "video" if "video" in variant.split(":")[1:] or "image" not in takes else "image"


def untried(family: str, takes: tuple[str, ...]) -> set[str]:
    """Kinds of media that a family takes and no variant shows it."""
    variants = [name for name in FAMILIES if name.partition(":")[0] == family]
    return set(takes) - {kind_of(variant, takes) for variant in variants}


def _staged(
    folder: Path, inputs: dict[str, Any], expected: Any, facts: dict[str, Any], whole: int
) -> Verdict:
    halves = {half: ReloadableHalf(half, functools.partial(_load, folder, half)) for half in HALVES}
    features = halves["vision"].call(lambda half: encode(half, inputs))
    kept, by_row = through_disk(features, rows_of(facts["variant"], inputs, whole_config(folder)))
    found = halves["language"].call(lambda half: generate(half, inputs, kept, **GREEDY))
    same = _equal(found, expected) and _equal(by_themselves(folder, inputs), expected)
    vision, language = (size(halves[half].model) for half in HALVES)
    return Verdict(
        **facts,
        result="exact" if same else "differs",
        extra_modules=tuple(piece for half in HALVES for piece in halves[half].extra_modules),
        by_row=by_row,
        loaded=(vision, language, whole),
    )


def by_themselves(folder: Path, inputs: Mapping[str, Any]) -> Any:
    """What the two halves say as other programs run them: by themselves."""
    features = encode(load_half(folder, "vision"), inputs)
    return generate(load_half(folder, "language"), inputs, features, **GREEDY)


def _load(folder: Path, half: HalfName, extra_modules: tuple[str, ...]) -> Any:
    return load_half(folder, half, extra_modules=extra_modules)


def through_disk(features: Features, rows: list[RowCount]) -> tuple[Features, bool]:
    """The features cut into rows, packed, unpacked and joined again; and whether they could be
    cut."""
    try:
        records = stored_rows(features, rows)
    except CannotSplit:
        records = stored_rows(features, rows[:1])
    assert len({record.joins_with(n) for n, record in enumerate(records)}) == 1
    return Features(merge_rows(records), features.needs, features.blank), len(records) == len(rows)


def stored_rows(features: Features, rows: Sequence[RowCount]) -> list[FeatureRecord]:
    """A record of each row, packed and unpacked. Raises CannotSplit."""
    parts = {name: split(output, rows) for name, output in features.items()}
    records = [
        FeatureRecord(
            features={name: by_row[at] for name, (by_row, _) in parts.items()},
            rules={name: rule for name, (_, rule) in parts.items()},
            needs=(),
            channel="images",
            side={},
            replacements=(),
            count=count,
        )
        for at, count in enumerate(rows)
    ]
    return [FeatureRecord.from_tree(unpack_tree(*_json(record.to_tree()))) for record in records]


def _json(tree: Mapping[str, Any]) -> tuple[dict[str, Any], bytes]:
    meta, payload = pack_tree(tree)
    return json.loads(json.dumps(meta)), payload


def rows_of(variant: str, inputs: Mapping[str, Any], config: Any) -> list[RowCount]:
    ids = inputs["input_ids"]
    places = torch.isin(ids, torch.tensor(sorted(placeholder_ids(config)))).sum(1).tolist()
    media = MEDIA.get(variant.rpartition(":")[2], (1,) * len(places))
    return [RowCount(tokens=t, media=m) for t, m in zip(places, media, strict=True)]


def whole_config(folder: Path) -> Any:
    return config_and_class(folder, trusted=False)[0]


def size(model: Any) -> int:
    return sum(weight.numel() * weight.element_size() for weight in model.parameters())


def _equal(found: Any, expected: Any) -> bool:
    pairs = zip(found.logits, expected.logits, strict=True)
    same = torch.equal(found.sequences, expected.sequences)
    return same and all(torch.equal(left, right) for left, right in pairs)
