"""What a half expects at each word of a caption is, of any family, what it says step by step."""

from typing import Any

import pytest
import torch

from stages.decode.generate_kwargs import make_greedy
from stages.decode.teacher_forcing import (
    ForcedCaption,
    forced_logits,
    forced_logits_stepwise,
    is_bidirectional,
)
from stages.models.encoding.batch import encode_batches
from stages.models.halves.features import Features, placeholder_ids
from stages.models.halves.inject_features import generate, new_tokens, prompt_in
from stages.models.halves.load import load_half
from stages.models.processors.clip import Clip
from stages.models.processors.loading import load_processor
from stages.models.processors.prepare import drop_end_token, prepare, rebuild
from tests.support.checkpoints import MODELS, whole_checkpoint
from tests.support.families import checkpoint
from tests.support.media import picture

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
PROMPT = "Say it."
TOKENS = 6


def said_by(family: str) -> tuple[Any, Any, ForcedCaption]:
    """A language half, its processor, and a caption that it says of a picture."""
    folder = whole_checkpoint(family) if family in MODELS else checkpoint(family)
    processor, vision = load_processor(folder, False), load_half(folder, "vision")
    half = load_half(folder, "language")
    make_greedy(half, processor)
    for seed in range(9):
        clip = Clip(kind="image", frames=picture(seed, 64, 64)[None], times=(0.0,), seconds=0.0)
        row = encode_batches(vision, [[prepare(processor, clip)]])[0][0]
        inputs = drop_end_token(half, rebuild(processor, [row], [PROMPT]))
        features = Features(row.features, row.needs, row.blank)
        made = generate(half, inputs, features, max_new_tokens=TOKENS)
        ids = new_tokens(made, prompt_in(half, inputs)).cpu()
        # Random weights may say a picture's own word.
        if ids.shape[1] > 1 and not set(ids[0].tolist()) & set(placeholder_ids(half.config)):
            break
    return half, processor, ForcedCaption(row, PROMPT, ids)


QUICK = ("llava", "florence2", "paligemma")
"""By protocol, with an encoder, and one that looks ahead."""
SLOW = (
    *("qwen2_5_vl", "blip_2", "gemma3", "glm4v", "instructblip", "internvl", "llama4"),
    *("llava_next", "llava_onevision", "perception_lm", "qwen3_vl", "smolvlm"),
)


@pytest.mark.parametrize(
    "family", [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]
)
def test_it_expects_what_it_says(family: str) -> None:
    half, processor, caption = said_by(family)
    asked = caption._replace(ids=caption.ids[:, :-1])
    by_steps = forced_logits_stepwise(half, processor, asked)
    assert by_steps.argmax(-1).tolist() == caption.ids[0].tolist()
    ahead = is_bidirectional(half, processor, asked)
    assert ahead == (family == "paligemma")
    if not ahead:
        torch.testing.assert_close(
            forced_logits(half, processor, asked), by_steps, rtol=0, atol=1e-4
        )
