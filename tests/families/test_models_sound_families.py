"""What every family that sees and hears makes of three halves: vision, audio, language."""

from pathlib import Path

import pytest
import torch

from artifacts.errors import UsageError
from artifacts.schema import HalfName
from stages.models.halves.boundary import hears, modules_called, within
from stages.models.halves.features import encode, is_content
from stages.models.halves.generate import generate
from stages.models.halves.model_class import config_and_class, skeleton_of
from stages.models.halves.reloadable import ReloadableHalf
from tests.support.tiny_families.hearing import HEARING, PLACES, SOUND, hearing
from tests.support.tiny_families.parts import AUDIO
from tests.support.tiny_families.sound_verdict import (
    half_of,
    heard_by,
    of_sound,
    run_with_sound,
    with_sound,
)
from tests.support.tiny_families.verdict import FAILING, GREEDY


@pytest.mark.in_turn
@pytest.mark.parametrize("variant", [v for v in HEARING if v not in FAILING])
def test_three_halves_give_what_the_whole_model_gives(variant: str, tmp_path: Path) -> None:
    run = run_with_sound(variant, tmp_path)
    assert torch.equal(run.halves.sequences, run.whole.sequences)
    for one, other in zip(run.halves.logits, run.whole.logits, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=run.bound)
    assert all(map(torch.equal, run.jointly.logits, run.whole.logits))
    assert run.is_exact
    pairs = zip(run.swapped.logits, run.whole.logits, strict=True)
    assert any(not torch.equal(one, other) for one, other in pairs)
    _assert_apart(tmp_path, run.bytes, run.loaded)


def _assert_apart(folder: Path, whole: int, halves: dict[HalfName, ReloadableHalf]) -> None:
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
    heard = heard_by(half_of(tmp_path, "audio"), inputs, place)
    pictures = half_of(tmp_path, "vision").call(
        lambda half: encode(half, {n: v for n, v in inputs.items() if n not in of_sound(inputs)})
    )
    features = with_sound(pictures, heard)
    at = int((inputs["input_ids"][0] == place).nonzero()[0])
    shape = inputs["input_ids"].shape
    short = {
        n: torch.cat([v[:, :at], v[:, at + 1 :]], 1) if getattr(v, "shape", 0) == shape else v
        for n, v in inputs.items()
        if not is_content(n)
    }
    language = half_of(tmp_path, "language")
    with pytest.raises(UsageError, match="placeholders of sound"):
        language.call(lambda half: generate(half, short, features, **GREEDY))


def test_a_model_without_an_audio_encoder_does_not_hear(tmp_path: Path) -> None:
    from tests.support.tiny_families import FAMILIES

    for family, ears in (("gemma4", False), ("inkling", True)):
        FAMILIES[family]()[0].save_pretrained(tmp_path / family)
        skeleton = skeleton_of(*config_and_class(tmp_path / family, False))
        assert hears(skeleton) is ears
