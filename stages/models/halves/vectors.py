"""Computes vectors with the halves of a dual encoder, and logits from vectors.

The model's own `forward` computes the logits on the text half. Stand-ins in place of the vision
half return the image vectors. So the module needs no formula: neither the name of the scale, nor
whether there is a bias.
"""

import copy
import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from artifacts.errors import UsageError
from stages.models.halves.boundary import absent_paths
from stages.models.halves.dual import IMAGE_METHOD, TEXT_METHOD
from stages.models.halves.features import encode, is_pixels, moved

BLANK = {"pixel_values": (1, 3, 1, 1), "pixel_attention_mask": (1, 1), "spatial_shapes": (1, 2)}
"""Shapes of the images that `forward` receives when they are not used."""

LONGEST = 1 << 16
"""A tokenizer's limit of this many tokens or more means that it has no limit."""


def image_vectors(half: Any, inputs: Mapping[str, Any]) -> torch.Tensor:
    """Return one vector per image from the model's own method, not normalized."""
    made = encode(half, inputs)
    return one_each(made["image"], half, len(next(v for n, v in inputs.items() if is_pixels(n))))


def text_vectors(half: Any, inputs: Mapping[str, Any]) -> torch.Tensor:
    """Return one vector per text from the model's own method, not normalized."""
    with torch.inference_mode():
        made = getattr(half, TEXT_METHOD)(**_texts(half, TEXT_METHOD, inputs))
    return one_each(made, half, len(inputs["input_ids"]))


def max_text_tokens(processor: Any, half: Any) -> int:
    """Return the maximum tokens per text, from the tokenizer and the half's positions; 0 if neither
    states it."""
    config = getattr(half.config, "text_config", half.config)
    stated = [
        getattr(processor.tokenizer, "model_max_length", None),
        getattr(config, "max_position_embeddings", None),
    ]
    limits = [limit for limit in stated if isinstance(limit, int) and 0 < limit < LONGEST]
    return min(limits, default=0)


def one_each(made: Any, half: Any, count: int) -> torch.Tensor:
    """Return the vectors in an output record. Raises UsageError unless there are `count` vectors,
    one per image or text."""
    found = made if isinstance(made, torch.Tensor) else getattr(made, "pooler_output", None)
    if isinstance(found, torch.Tensor) and found.ndim == 2 and len(found) == count:
        return found
    shape = list(found.shape) if isinstance(found, torch.Tensor) else "none"
    raise UsageError(
        f"{type(half).__name__} gives vectors of shape {shape} for {count} inputs, not one each",
        hint="Choose a model of the CLIP kind: docs/embed.md lists them",
    )


def logits(half: Any, inputs: Mapping[str, Any], vectors: torch.Tensor) -> torch.Tensor:
    """Return the model's logits, one row per image and one column per text. `half` is the text
    half, `inputs` belong to the texts, `vectors` to the images."""
    model = _handing_over(half, moved(vectors, half.device, half.dtype))
    taken = inspect.signature(type(half).forward).parameters
    blank = {n: torch.zeros(s, device=half.device) for n, s in BLANK.items() if n in taken}
    with torch.inference_mode():
        made = model(**blank, **_texts(half, "forward", inputs), return_dict=True)
    found: torch.Tensor = made.logits_per_image
    return found


def _texts(half: Any, method: str, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the inputs of texts that a method of the half takes."""
    taken = inspect.signature(getattr(type(half), method)).parameters
    return {n: moved(v, half.device) for n, v in inputs.items() if n in taken and not is_pixels(n)}


def _handing_over(half: Any, vectors: torch.Tensor) -> Any:
    """Return a copy of the text half with the same weights, and stand-ins for the missing
    modules."""
    from transformers.modeling_outputs import BaseModelOutputWithPooling

    class Encoder(nn.Module):
        def forward(self, *_: Any, **__: Any) -> Any:
            states = vectors[:, None]
            return BaseModelOutputWithPooling(last_hidden_state=states, pooler_output=vectors)

    class Projection(nn.Module):
        def forward(self, made: Any, *_: Any, **__: Any) -> Any:
            return made if isinstance(made, torch.Tensor) else made.pooler_output

    model = copy.copy(half)
    model._modules = dict(half._modules)
    for at, name in enumerate(absent_paths(half, "language")):
        model._modules[name] = Projection() if at else Encoder()
    return model


__all__ = ["IMAGE_METHOD", "image_vectors", "logits", "max_text_tokens", "one_each", "text_vectors"]
