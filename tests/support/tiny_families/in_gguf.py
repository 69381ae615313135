"""Runs the language half of a tiny model in llama.cpp, and compares its logits with those of the
whole model in torch, token by token."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from stages.decode.engines.inflight.prefill import prefill_row
from stages.decode.engines.inflight.slot_check import choose_layout, reference_of
from stages.models.gguf import ROWS
from stages.models.gguf.half import load_with_gguf
from stages.models.halves.features import encode
from stages.models.halves.generate import generate
from stages.models.halves.load import load_half
from stages.models.halves.model_class import config_and_class, skeleton_of
from tests.support.builders.gguf_writer import write_gguf
from tests.support.tiny_families.for_gguf import VARIANTS
from tests.support.tiny_families.in_slots import LIMITS, LONGER, alone, greedy, in_slots, longer

TOKENS = 24
FILE = "language.gguf"


class Judged(NamedTuple):
    """How close llama.cpp comes to torch."""

    agreeing: int
    """Tokens, of TOKENS, that would be selected alike."""
    worst: float
    """Largest difference of a logit, relative to the standard deviation of its step."""


class Dictated:
    """Forces given tokens, one per step."""

    def __init__(self, tokens: Sequence[int]) -> None:
        self._tokens = iter(tokens)

    def __call__(self, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        forced = torch.full_like(scores, -torch.inf)
        forced[:, next(self._tokens)] = 0.0
        return forced


def written(variant: str, folder: Path, kind: str = "f32") -> tuple[Any, Any]:
    """Save a variant in `folder/whole`, and its language half in FILE beside it. Return the whole
    model and its inputs. Raises UsageError for one that is not mapped."""
    torch.manual_seed(3)
    model, inputs = VARIANTS[variant]()
    model = _with_norms(model).float().eval()
    model.generation_config.eos_token_id = None
    model.save_pretrained(folder / "whole")
    write_gguf(folder / "whole", folder / FILE, kind)
    return model, inputs


def loaded(folder: Path) -> Any:
    """Return the language half that was saved in a folder, with its decoder in llama.cpp."""
    config, cls = config_and_class(folder / "whole", False)
    half = load_with_gguf(
        folder / FILE,
        config,
        skeleton_of(config, cls),
        lambda paths: load_half(folder / "whole", "language", without=paths, dtype=torch.float32),
    )
    half.generation_config.eos_token_id = None
    return half


def judged_in_slots(variant: str, folder: Path) -> str:
    """Return `same` if sequences in slots generate the tokens that each generates alone and the
    engine check passes, else why not."""
    model, _ = written(variant, folder)
    half, items = loaded(folder), []
    for seed, more in enumerate(LONGER):
        torch.manual_seed(seed)
        inputs = VARIANTS[variant]()[1]
        items.append((longer(inputs, more), encode(model, inputs)))
    greedy(half)
    row, other = (prefill_row(half, *items[at], max_new_tokens=8) for at in (0, 3))
    reference = reference_of(half, *items[0])
    tried = choose_layout(ROWS, row, other, reference, (ROWS,))
    if tried.reason:
        return tried.reason
    found = in_slots(half, items, tried.layout)
    expected = [alone(half, item, limit) for item, limit in zip(items, LIMITS, strict=True)]
    return "same" if found == expected else "differs"


def judged_in_gguf(variant: str, folder: Path) -> Judged:
    """Return how close a variant comes. Raises UsageError for one that is not mapped."""
    model, inputs = written(variant, folder)
    half = loaded(folder)
    options: dict[str, Any] = {"max_new_tokens": TOKENS, "do_sample": False, "pad_token_id": 0}
    options |= {"output_logits": True, "return_dict_in_generate": True}
    with torch.inference_mode():
        made = model.generate(**inputs, **options)
    expected = torch.stack(made.logits)[:, 0].float()
    text = made.sequences[0][-TOKENS:].tolist()
    features = encode(model, inputs)
    found: Any = generate(half, inputs, features, logits_processor=[Dictated(text)], **options)
    logits = torch.stack(found.logits)[:, 0].float()
    worst = ((logits - expected).abs().amax(-1) / expected.std(-1)).max()
    agreeing = int((logits.argmax(-1) == expected.argmax(-1)).sum())
    return Judged(agreeing=agreeing, worst=float(worst))


def _with_norms(model: Any) -> Any:
    """Make the weights of norms random: those of a new model are all ones, and hide mistakes."""
    draw = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1 and "norm" in name and name.endswith("weight"):
                parameter.add_(torch.randn(parameter.shape, generator=draw) * 0.2)
    return model
