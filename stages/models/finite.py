"""Judges whether numbers are finite: what a half computes, and the weights in its files.

A number that is NaN or infinite is never a result. What a half computes is judged before it is
published. Weights are judged when a result is not finite, to say what is at fault: to judge all of
them while they are loaded would take a CPU 1.2 to 1.6 times as long as to read them.
"""

import math
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import torch

from artifacts.errors import NotFinite
from artifacts.schema import HalfName
from stages.models.half_job import HalfJob
from stages.models.hub.checkpoint import weight_names
from stages.models.hub.resolve import resolve_model
from stages.process.events import SUSPECTED

PIECE = 1 << 24
"""Numbers of a stored tensor that are judged at once."""
MASKED = ("bias", "mask")
"""How names of tensors end that may hold negative infinity: buffers that are added to scores."""


def is_finite(values: torch.Tensor) -> bool:
    """Return whether all numbers of a tensor are finite, by one reduction on its device."""
    if not values.numel() or not values.is_floating_point():
        return True
    return all(math.isfinite(float(end)) for end in torch.aminmax(values))


def not_finite(job: HalfJob, half: HalfName = "language", *, seen: bool = True) -> NotFinite:
    """Return the error for an item whose results are NaN or infinite. `seen`: the numbers were
    checked; otherwise the model wrote no text up to the token limit, which suggests it."""
    folder = resolve_model(Path(job.model), job.revision)
    if tensor := damaged_weight(folder):
        return NotFinite(
            f"{tensor} in the weights of {folder} holds NaN or infinity",
            hint="Download the checkpoint again, or have it made again",
        )
    hint = "Give --precision fp32, or bf16 if the GPU supports it"
    if half == "audio":
        hint = "Leave the sound out, or use a GPU that supports bf16"
    elif job.gguf and half == "language":
        hint = "Use another GGUF file, or leave --language-gguf out"
    elif job.dtype == "float32":
        hint = "Use another model, or leave this file out"
    if seen:
        return NotFinite(f"the {half} half computes NaN or infinity", hint=hint)
    error = NotFinite("the caption is empty up to --max-new-tokens", hint=hint)
    error.kind = SUSPECTED
    return error


@cache
def damaged_weight(folder: Path) -> str:
    """Return the name of the first tensor in a model's safetensors files that holds NaN or
    infinity; empty if none does."""
    from safetensors import safe_open

    for path in (folder / name for name in weight_names(folder)):
        if not path.exists():  # another half's, which was not downloaded
            continue
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 (no mapping)
                if _is_damaged(name, file.get_tensor(name)):
                    return str(name)
    return ""


def _is_damaged(name: str, tensor: torch.Tensor) -> bool:
    if not tensor.is_floating_point():
        return False
    pieces: Iterable[torch.Tensor] = tensor.reshape(-1).split(PIECE)
    if tensor.dtype.itemsize == 1:
        pieces = (piece.float() for piece in pieces)
    for piece in pieces:
        least, most = map(float, torch.aminmax(piece)) if piece.numel() else (0.0, 0.0)
        masks = least == -math.inf and most < math.inf and name.endswith(MASKED)
        if not (masks or (math.isfinite(least) and math.isfinite(most))):
            return True
    return False
