"""Checkpoints with the tensors of LLaVA-1.5 and random weights, of any size, written shard by shard
and never held whole."""

import functools
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.builders import processors as plan_processors
from tests.support.builders.card_models import hf
from tests.support.builders.plan_cases import plan_case
from tests.support.builders.words import ALPHABET, LLAVA_TEMPLATE, byte_tokenizer

SHARD_BYTES = 1 << 30
"""Weights in a file, and in memory, at the most."""
POOL = (1 << 24) + 43
"""Random numbers that all weights are taken from in turn: fresh ones for seven billion take
minutes. A prime: rows of a matrix do not repeat."""
SPREAD = 0.02
PUBLISHED = (
    ("model.language_model.", "language_model.model."),
    ("model.vision_tower.", "vision_tower.vision_model."),
    ("model.multi_modal_projector.", "multi_modal_projector."),
    ("lm_head.", "language_model.lm_head."),
)
"""How the class begins the names of its tensors, and how the published files do."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Llava:
    """What differs from the published model of 7 billion parameters."""

    text: dict[str, int]
    """Of the language half, as `config.json` calls it."""
    vision: dict[str, int]
    """Of the tower."""
    image: int
    """Pixels of a side of a picture as the tower sees it: (image / 14)² tokens."""


SEVEN_B = Llava(text={}, vision={}, image=336)
"""12.6 GiB of language, 0.6 of vision."""
SMALL = Llava(
    text={"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 8}
    | {"num_attention_heads": 16},
    vision={"num_hidden_layers": 6},
    image=168,
)
"""0.37 GiB of language, 0.15 of vision; 144 tokens a picture."""
TINY = Llava(
    text={"hidden_size": 256, "intermediate_size": 8192, "num_hidden_layers": 2}
    | {"num_attention_heads": 4},
    vision={"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3}
    | {"num_attention_heads": 4},
    image=224,
)
"""57 MiB, and as much for what is computed of two clips: does it run at all?"""


def build(folder: Path, shape: Llava, tokens: int) -> Path:
    """Write a checkpoint of that shape in bf16; a caption has so many tokens."""
    folder.mkdir(parents=True)
    config = config_of(shape)
    places: dict[str, str] = {}
    total = 0
    for number, shard in enumerate(_shards(shapes_of(config)), 1):
        name = f"model-{number:05d}.safetensors"
        total += _write(folder / name, shard, start=number * POOL // 7 % POOL)
        places |= dict.fromkeys(shard, name)
    index = {"metadata": {"total_size": total}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps(config))
    _processor(shape, int(config["text_config"]["vocab_size"])).save_pretrained(folder)
    ending = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 32001, "min_new_tokens": tokens}
    (folder / "generation_config.json").write_text(json.dumps(ending))
    return folder


def config_of(shape: Llava) -> dict[str, Any]:
    """The published `config.json` with what the shape changes, in bf16."""
    made: dict[str, Any] = json.loads(json.dumps(plan_case("llava-1.5-7b-hf").config))
    made["text_config"] |= shape.text | {"torch_dtype": "bfloat16"}
    made["vision_config"] |= shape.vision | {"image_size": shape.image}
    return made | {"torch_dtype": "bfloat16"}


def shapes_of(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Published name → shape of each tensor, from the class itself, without data."""
    import torch

    kind = hf.LlavaConfig.from_dict(config)
    with torch.device("meta"):
        model = hf.LlavaForConditionalGeneration(kind)
    return {_published(name): tuple(w.shape) for name, w in model.named_parameters()}


def _published(name: str) -> str:
    old, new = next(pair for pair in PUBLISHED if name.startswith(pair[0]))
    return new + name.removeprefix(old)


def _shards(shapes: dict[str, tuple[int, ...]]) -> Iterator[dict[str, tuple[int, ...]]]:
    """A half never shares a file with the other one."""
    held: dict[str, tuple[int, ...]] = {}
    held_bytes = 0
    for name, shape in sorted(shapes.items()):
        size = 2 * math.prod(shape)
        language = name.startswith("language_model.")
        other = bool(held) and next(iter(held)).startswith("language_model.") != language
        if held and (other or held_bytes + size > SHARD_BYTES):
            yield held
            held, held_bytes = {}, 0
        held[name] = shape
        held_bytes += size
    yield held


@functools.cache
def _pool() -> Any:
    import torch

    generator = torch.Generator().manual_seed(0)
    return (torch.randn(POOL, generator=generator) * SPREAD).to(torch.bfloat16)


def _write(path: Path, shapes: dict[str, tuple[int, ...]], start: int) -> int:
    """Write one file of random weights, from there on in the pool; returns their bytes."""
    import torch
    from safetensors.torch import save_file

    pool, at = _pool(), start
    weights: dict[str, torch.Tensor] = {}
    for name, shape in shapes.items():
        count = math.prod(shape)
        if len(shape) == 1:
            fill = torch.zeros if name.endswith("bias") else torch.ones
            weights[name] = fill(shape, dtype=torch.bfloat16)
            continue
        weights[name] = torch.empty(shape, dtype=torch.bfloat16)
        flat, done = weights[name].view(-1), 0
        while done < count:
            piece = pool[at : at + count - done]
            flat[done : done + len(piece)] = piece
            done, at = done + len(piece), (at + len(piece)) % POOL
    save_file(weights, path, metadata={"format": "pt"})
    return sum(weight.nbytes for weight in weights.values())


def _processor(shape: Llava, vocabulary: int) -> Any:
    """Pictures as the published one cuts them; bytes are words, and so is every other number, so
    that a caption of any numbers can be read."""
    known = plan_processors.LLAVA_TOKENS | {letter: 1000 + at for at, letter in enumerate(ALPHABET)}
    taken = set(known.values())
    known |= {f"Ġw{at}": at for at in range(vocabulary) if at not in taken}
    words = byte_tokenizer(
        known,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        additional_special_tokens=["<image>"],
    )
    words.chat_template = LLAVA_TEMPLATE
    return plan_processors.llava(words, shape.image)
