"""Prompts are prepared in host memory: nothing before the decoder waits for the card.

Tensors that say they are on a card show what takes numbers of the host beside theirs, or reads."""

from collections import Counter
from typing import Any

import pytest
import torch

from stages.decode.engines.inflight.prefill import PrefilledSequence, prefill_row
from stages.decode.engines.inflight.scheduler import RowRules, TokenSelection
from stages.models.halves.features import Features, encode
from tests.support.card_tensors import CardTensor, card, on_card
from tests.support.tiny_families import FAMILIES
from tests.support.tiny_families.in_slots import cast, greedy

QUICK = {"qwen2_5_vl", "qwen2_5_vl:video", "gemma3", "llava_onevision"}
WAITS = {
    "gemma4": 1, "gemma4:video": 1, "gemma3n": 1, "molmo2": 1, "idefics3": 1, "qwen3_vl": 4,
    "qwen3_5": 0, "instructblip": 5, "blip_2": 5,
}  # fmt: skip
"""Families whose model itself waits while it reads a prompt, or prepares it by itself: how often
at most. All others wait for nothing."""
FEW = (*sorted(QUICK), "llava", "internvl", "smolvlm", "paligemma", "glm4v", "mistral3", *WAITS)


def prompt_of(name: str) -> tuple[Any, dict[str, Any], Features]:
    """A model with an end token, a prompt, and features of its pictures."""
    torch.manual_seed(0)
    model, inputs = FAMILIES[name]()
    model, inputs = greedy(model.to(torch.bfloat16)), cast(inputs, torch.bfloat16)
    for part in model.modules():
        if (settings := getattr(part, "generation_config", None)) is not None:
            settings.eos_token_id, settings.repetition_penalty = [7], 1.2
    return model, inputs, encode(model, inputs)


def prefilled_on_card(
    model: Any, inputs: dict[str, Any], features: Features
) -> tuple[PrefilledSequence, Counter[str]]:
    """The sequence, and what waited, with its place."""
    with torch.inference_mode():
        model = on_card(model)
        for record in features.values():
            for field in list(record):
                record[field] = on_card(record[field])
        with card() as found:
            row = prefill_row(model, inputs, features, max_new_tokens=4, min_new_tokens=2)
            TokenSelection(8).first(RowRules(row.processors), row.ids, row.logits)
    return row, found.waits


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in QUICK else pytest.mark.slow) for n in FEW]
)
def test_a_prompt_waits_for_nothing_on_the_card(name: str) -> None:
    model, inputs, features = prompt_of(name)
    plain = prefill_row(model, inputs, features, max_new_tokens=4, min_new_tokens=2)
    row, waits = prefilled_on_card(model, inputs, features)
    assert waits.total() <= WAITS.get(name, 0), waits
    assert isinstance(row.logits, CardTensor) and torch.equal(row.logits.held, plain.logits)
    assert row.eos_token_ids == plain.eos_token_ids == {7}
