"""What two stages say with the processors of many families is what their whole models say when they
are called as documented."""

from pathlib import Path

import pytest
import torch

from stages.models.halves.inject_features import new_tokens
from stages.models.processors.prepare import Clip, load_processor
from tests.support.checkpoints import whole_checkpoint
from tests.support.clips import PROMPTS, clips, joint_model, profile_of
from tests.support.processors import KINDS, plain_call
from tests.support.waves import Wave

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


FAMILIES = ("blip_2", "gemma3", "git", "glm4v", "internvl", "llava_next", "paligemma")
QUICK = ("git", "blip_2")
"""One that is run whole, and one that asks its tower by queries."""
slow = pytest.mark.slow
GOES_ON = {"blip_2", "git", "paligemma"}
"""Families that write what follows a prompt, which may be empty."""


def whole_says(family: str, batch: list[Clip], prompts: tuple[str, ...]) -> list[str]:
    folder = whole_checkpoint(family)
    processor = load_processor(folder)
    inputs = plain_call(family, processor, batch, prompts)
    if family == "git":  # its tokenizer ends a prompt, which its captions begin with
        assert (inputs["input_ids"][:, -1] == processor.tokenizer.eos_token_id).all()
        texts = ("input_ids", "attention_mask", "token_type_ids")
        inputs = {n: v[:, :-1] if n in texts else v for n, v in inputs.items()}
    with torch.inference_mode():
        tokens = joint_model(folder).generate(**inputs, do_sample=False, max_new_tokens=8)
    new = new_tokens(tokens, inputs["input_ids"])
    return [text.strip() for text in processor.batch_decode(new, skip_special_tokens=True)]


@pytest.mark.parametrize(
    ("family", "kind"),
    [
        *((family, "video") for family in QUICK),
        *(pytest.param(name, "video", marks=slow) for name in FAMILIES if name not in QUICK),
        *(pytest.param(name, "image", marks=slow) for name in ("glm4v", "internvl")),
    ],
)
def test_two_stages_say_what_the_whole_model_says(family: str, kind: str, tmp_path: Path) -> None:
    batch, prompts = clips(kind, 2), PROMPTS[:2]
    profile = profile_of(whole_checkpoint(family))
    assert profile.images_a_prompt == (not KINDS[family].many)
    assert profile.goes_on == (family in GOES_ON)
    wave = Wave(
        tmp_path / "store",
        whole_checkpoint(family),
        [batch],
        route=profile.route,
        attention=profile.language.attention,
    )
    wave.encode()
    wave.decode(prompts)
    found = [caption["caption"] for caption in wave.captions()]
    assert found == whole_says(family, batch, prompts)
    assert len(set(found)) == 2
