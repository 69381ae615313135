"""Captions of a half whose prompts go to an encoder: in slots each is what it is alone."""

import shutil
from pathlib import Path
from typing import Any

import torch

from stages.models.processors.prepare import load_processor
from tests.support.checkpoints import whole_checkpoint
from tests.support.clips import PROMPTS, clips
from tests.support.families import decisive, hf
from tests.support.tiny_families.queries import T5
from tests.support.waves import Wave

OTHER = "dd" * 32


def with_an_encoder(folder: Path) -> Path:
    """BLIP-2 with a reader of the T5 kind, its processor that of the one there is."""
    shutil.copytree(whole_checkpoint("blip_2"), folder)
    words = len(load_processor(folder).tokenizer)
    before: Any = hf.AutoConfig.from_pretrained(folder)
    config = hf.Blip2Config(
        vision_config=before.vision_config.to_dict(),
        qformer_config=before.qformer_config.to_dict(),
        text_config=T5 | {"vocab_size": words, "eos_token_id": 1},
        num_query_tokens=before.num_query_tokens,
        image_token_index=before.image_token_index,
    )
    torch.manual_seed(0)
    decisive(hf.Blip2ForConditionalGeneration(config)).save_pretrained(folder)
    return folder


def test_captions_of_encoded_prompts_in_slots_are_those_of_each_alone(tmp_path: Path) -> None:
    every = clips("image", 8)
    model = with_an_encoder(tmp_path / "model")
    wave = Wave(tmp_path / "store", model, [[clip] for clip in every])
    wave.encode()
    wave.decode(PROMPTS, tokens=16)
    wave.settings["engine"] = "inflight"
    wave.batches = [[one for batch in wave.batches for one in batch]]
    told = wave.decode(PROMPTS, OTHER, tokens=16)
    assert any(event.get("aligned") for event in told)
    plain, seated = (
        [(one["caption"], one["tokens"], one["ended"]) for one in wave.captions(*scope)]
        for scope in ((), (OTHER,))
    )
    assert seated == plain
    assert len({caption for caption, *_ in plain}) > 1
