"""What a family's whole model makes of pictures with sound, and what its three halves make of
them."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from artifacts.records.tensors import pack_tree, unpack_tree
from artifacts.schema import HalfName
from stages.models.encoding.batch import encode_batches
from stages.models.halves.features import Features, encode, is_content
from stages.models.halves.generate import generate
from stages.models.halves.load import load_half
from stages.models.halves.model_class import SOUNDS
from stages.models.halves.records import FeatureRecord, RowCount, merge_blank, merge_rows
from stages.models.halves.reloadable import ReloadableHalf
from stages.models.processors.side_inputs import Prepared
from tests.support.tiny_families.hearing import PLACES, hearing
from tests.support.tiny_families.parts import AUDIO
from tests.support.tiny_families.verdict import FAILING, GREEDY, size

JOINTLY = {
    "dots3_note:b2": 5e-4,
    "gemma3n:b2": 5e-4,
    "muse_spark:b2": 5e-4,
    "nemotron_h_omni:b2": 5e-4,
    "qwen3_omni_moe_thinker:b2": 5e-4,
}
"""Variants whose encoder rounds rows otherwise if it encodes them together, as the whole model
does, on some CPUs at least, and by how much at most."""
MASKS = ("feature_attention_mask", "chunk_sample_lengths")


@dataclass(frozen=True, kw_only=True, slots=True)
class Heard:
    """One variant: the whole model's outputs, and those of its halves."""

    whole: Any
    halves: Any
    """Each row's sound is encoded alone, as a run does."""
    jointly: Any
    """The sounds of a batch are encoded together, as the whole model does."""
    swapped: Any
    """The whole model's outputs for other sound."""
    bound: float
    """How much logits of the halves may differ from the whole model's."""
    bytes: int
    """Bytes of the whole model."""
    loaded: dict[HalfName, ReloadableHalf]

    @property
    def is_exact(self) -> bool:
        """Return whether the tokens are equal, and the logits within the bound; with sounds that
        are encoded together, they are equal in any case."""
        pairs = list(zip(self.halves.logits, self.whole.logits, strict=True))
        near = all(float((one - other).abs().max()) <= self.bound for one, other in pairs)
        together = all(map(torch.equal, self.jointly.logits, self.whole.logits))
        return near and together and torch.equal(self.halves.sequences, self.whole.sequences)


def half_of(folder: Path, half: HalfName) -> ReloadableHalf:
    def load(extra_modules: tuple[str, ...]) -> Any:
        return load_half(folder, half, extra_modules=extra_modules or None)

    return ReloadableHalf(half, load)


def of_sound(inputs: dict[str, Any]) -> dict[str, Any]:
    """The inputs of sound."""
    return {n: v for n, v in inputs.items() if n.removesuffix("_mask") in SOUNDS or n in MASKS}


def heard_by(half: ReloadableHalf, inputs: dict[str, Any], place: int) -> list[FeatureRecord]:
    """What is heard of each row alone, as it comes back from the store."""
    ids = inputs["input_ids"]
    counts = (ids == place).sum(1).tolist()
    sound = of_sound(inputs)
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


def with_sound(pictures: Features, heard: list[FeatureRecord]) -> Features:
    """The features of pictures and of sound together."""
    tokens = [one.count.tokens for one in heard]
    sound = Features(merge_rows(heard), heard[0].needs, merge_blank(heard), heard_tokens=tokens)
    return pictures.with_sound(sound)


def run_with_sound(variant: str, folder: Path) -> Heard:
    """Generate with the whole model of a variant, saved in this folder, and with its halves."""
    model, inputs = hearing(variant)
    model.save_pretrained(folder)
    model = type(model).from_pretrained(folder).eval()
    name = next(name for name in SOUNDS if name in inputs)
    with torch.inference_mode():
        whole = model.generate(**inputs, **GREEDY)
        swapped = model.generate(**{**inputs, name: inputs[name].flip(1)}, **GREEDY)
    whole_bytes = size(model)
    del model
    halves: tuple[HalfName, ...] = ("vision", "audio", "language")
    loaded = {half: half_of(folder, half) for half in halves}
    sound, place = of_sound(inputs), PLACES.get(variant.partition(":")[0], AUDIO)
    seen = {n: v for n, v in inputs.items() if n not in sound}
    pictures = loaded["vision"].call(lambda half: encode(half, seen))
    heard = heard_by(loaded["audio"], inputs, place)
    both = loaded["audio"].call(lambda half: encode(half, sound, "audio"))
    text = {n: v for n, v in inputs.items() if not is_content(n)}

    def generated(features: Features) -> Any:
        return loaded["language"].call(lambda half: generate(half, text, features, **GREEDY))

    return Heard(
        whole=whole,
        halves=generated(with_sound(pictures, heard)),
        jointly=generated(pictures.with_sound(both)),
        swapped=swapped,
        bound=JOINTLY.get(variant, 0.0),
        bytes=whole_bytes,
        loaded=loaded,
    )


def judged_with_sound(variant: str, folder: Path) -> str:
    """`exact`, `differs`, or why the whole model fails."""
    if variant in FAILING:
        return "fails: the whole model fails in transformers"
    return "exact" if run_with_sound(variant, folder).is_exact else "differs"
