"""What every family that sees and hears makes of three halves: vision, audio, language."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from artifacts.errors import UsageError
from artifacts.schema import Half
from artifacts.tensors import pack_tree, unpack_tree
from stages.models.encoding.batch import encode_batches
from stages.models.halves.boundary import hears, modules_called, within
from stages.models.halves.features import Features, encode, is_content
from stages.models.halves.load import ReloadableHalf, load_half
from stages.models.halves.offload import generate
from stages.models.halves.records import FeatureRecord, RowCount, merge_blank, merge_rows
from stages.models.halves.routes import SOUNDS, config_and_class, skeleton_of
from stages.models.processors.side_inputs import Prepared
from tests.support.tiny_families.hearing import HEARING, PLACES, SOUND, hearing
from tests.support.tiny_families.parts import AUDIO
from tests.support.tiny_families.verdict import FAILING, GREEDY, size

HALVES: tuple[Half, ...] = ("vision", "audio", "language")
JOINTLY = {
    "dots3_note:b2": 5e-4,
    "gemma3n:b2": 5e-4,
    "nemotron_h_omni:b2": 5e-4,
    "qwen3_omni_moe_thinker:b2": 5e-4,
}
"""Variants whose encoder rounds rows otherwise if it encodes them together, as the whole model
does, and by how much at most."""


def _half(folder: Path, half: Half) -> ReloadableHalf:
    def load(extra_modules: tuple[str, ...]) -> Any:
        return load_half(folder, half, extra_modules=extra_modules or None)

    return ReloadableHalf(half, load)


def _heard(half: ReloadableHalf, inputs: dict[str, Any], place: int) -> list[FeatureRecord]:
    """What is heard of each row alone, as it comes back from the store."""
    ids = inputs["input_ids"]
    counts = (ids == place).sum(1).tolist()
    sound = _of_sound(inputs)
    rows = [
        Prepared(
            inputs={name: value[row : row + 1] for name, value in sound.items()},
            channel="audio",
            side={},
            replacements=(),
            count=RowCount(tokens=counts[row], media=1),
        )
        for row in range(len(ids))
    ]
    made = half.call(lambda model: encode_batches(model, [rows], part="audio"))[0]
    found = [pack_tree(record.to_tree()) for record in made]
    return [FeatureRecord.from_tree(unpack_tree(json.loads(json.dumps(m)), p)) for m, p in found]


def _joined(heard: list[FeatureRecord]) -> Features:
    tokens = [one.count.tokens for one in heard]
    return Features(merge_rows(heard), heard[0].needs, merge_blank(heard), heard_tokens=tokens)


def _of_sound(inputs: dict[str, Any]) -> dict[str, Any]:
    """The inputs of sound."""
    masks = ("feature_attention_mask", "chunk_sample_lengths")
    return {n: v for n, v in inputs.items() if n.removesuffix("_mask") in SOUNDS or n in masks}


@pytest.mark.parametrize("variant", [v for v in HEARING if v not in FAILING])
def test_three_halves_give_what_the_whole_model_gives(variant: str, tmp_path: Path) -> None:
    model, inputs = hearing(variant)
    family = variant.partition(":")[0]
    place = PLACES.get(family, AUDIO)
    model.save_pretrained(tmp_path)
    model = type(model).from_pretrained(tmp_path).eval()
    with torch.inference_mode():
        expected = model.generate(**inputs, **GREEDY)
        name = next(name for name in SOUNDS if name in inputs)
        deaf = model.generate(**{**inputs, name: inputs[name].flip(1)}, **GREEDY)
    whole = size(model)
    del model
    seen = {n: v for n, v in inputs.items() if n not in _of_sound(inputs)}
    vision = _half(tmp_path, "vision")
    pictures = vision.call(lambda half: encode(half, seen))
    audio = _half(tmp_path, "audio")
    heard = _heard(audio, inputs, place)
    features = pictures.with_sound(_joined(heard))
    language = _half(tmp_path, "language")
    text = {n: v for n, v in inputs.items() if not is_content(n)}
    found: Any = language.call(lambda half: generate(half, text, features, **GREEDY))

    assert torch.equal(found.sequences, expected.sequences)
    bound = JOINTLY.get(variant, 0.0)
    for one, other in zip(found.logits, expected.logits, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=bound)
    if variant in JOINTLY:
        both = audio.call(lambda half: encode(half, _of_sound(inputs), "audio"))
        together = pictures.with_sound(both)
        found = language.call(lambda half: generate(half, text, together, **GREEDY))
        assert all(map(torch.equal, found.logits, expected.logits))
    assert any(not torch.equal(a, b) for a, b in zip(deaf.logits, expected.logits, strict=True))
    _assert_apart(tmp_path, whole, dict(zip(HALVES, (vision, audio, language), strict=True)))


def _assert_apart(folder: Path, whole: int, halves: dict[Half, ReloadableHalf]) -> None:
    """No half holds weights of another, but for the modules that it calls."""
    skeleton = skeleton_of(*config_and_class(folder, False))
    names: list[dict[str, int]] = []
    for keep, half in halves.items():
        called = (*half.extra_modules, *modules_called(skeleton, keep))
        weights = half.model.named_parameters()
        names.append({n: w.nbytes for n, w in weights if not any(within(n, c) for c in called)})
    sizes = [sum(found.values()) for found in names]
    assert all(sizes) and sum(sizes) <= whole
    assert len({name for found in names for name in found}) == sum(map(len, names))


@pytest.mark.parametrize("family", SOUND)
def test_another_number_of_features_than_places_fails(family: str, tmp_path: Path) -> None:
    model, inputs = hearing(family)
    place = PLACES.get(family, AUDIO)
    model.save_pretrained(tmp_path)
    heard = _heard(_half(tmp_path, "audio"), inputs, place)
    pictures = _half(tmp_path, "vision").call(
        lambda half: encode(half, {n: v for n, v in inputs.items() if n not in _of_sound(inputs)})
    )
    features = pictures.with_sound(_joined(heard))
    at = int((inputs["input_ids"][0] == place).nonzero()[0])
    shape = inputs["input_ids"].shape
    short = {
        n: torch.cat([v[:, :at], v[:, at + 1 :]], 1) if getattr(v, "shape", 0) == shape else v
        for n, v in inputs.items()
        if not is_content(n)
    }
    language = _half(tmp_path, "language")
    with pytest.raises(UsageError, match="placeholders of sound"):
        language.call(lambda half: generate(half, short, features, **GREEDY))


def test_a_model_without_an_audio_encoder_does_not_hear(tmp_path: Path) -> None:
    from tests.support.tiny_families import FAMILIES

    for family, ears in (("gemma4", False), ("inkling", True)):
        FAMILIES[family]()[0].save_pretrained(tmp_path / family)
        skeleton = skeleton_of(*config_and_class(tmp_path / family, False))
        assert hears(skeleton) is ears
