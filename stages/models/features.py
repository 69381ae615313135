"""Runs each half at the boundary that the model itself offers; knows nothing of how features are
kept.

The vision half answers `get_image_features` and `get_video_features`; the language half takes their
outputs as `generate(mm_encoder_outputs=…)`. Features travel as the model's own output records.
"""

import inspect
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch

from artifacts.errors import UsageError
from artifacts.tensors import make_record

PIXELS = ("pixel_values", "pixel_values_images", "pixel_values_videos", "image_patches")
"""The names under which models take pictures."""
UNREAD = (
    "last_hidden_state",
    "hidden_states",
    "attentions",
    "vision_outputs",
    "qformer_outputs",
)
"""Fields that no language half reads when there is a `pooler_output`, and that are as large."""


class Features(dict[str, Any]):
    """Modality -> the encoder's own output record, and what else the language half has to be
    given."""

    def __init__(self, outputs: Mapping[str, Any], needs: Iterable[str] = ()) -> None:
        super().__init__(outputs)
        self.needs = frozenset(needs)
        """Names of the inputs besides pixels that were there at encoding, such as grids; decoding
        without one gives other tokens with no error, so it is refused."""


def is_pixels(name: str) -> bool:
    """Whether an input holds pixels or their mask, which only the vision half reads."""
    return name.startswith("pixel_") or name in PIXELS


def encode(half: Any, inputs: Mapping[str, Any]) -> Features:
    """What the vision half makes of the pixels among a processor's outputs."""
    require_protocol(half)
    outputs = {}
    for modality, function, names in _encoders(half):
        given = {name: inputs[name] for name in names if inputs.get(name) is not None}
        if not any(name in given for name in PIXELS):
            continue
        moved = {name: _to(value, half.device, half.dtype) for name, value in given.items()}
        with torch.inference_mode():
            outputs[modality] = lean(function(**moved, return_dict=True))
    if not outputs:
        raise UsageError(
            f"{type(half).__name__} was given no pixels that it can encode",
            hint=f"It takes {' or '.join(half.input_modalities)}",
        )
    needs = [n for n, value in inputs.items() if value is not None and not is_pixels(n)]
    return Features(outputs, needs)


def generate(
    half: Any, inputs: Mapping[str, Any], features: Mapping[str, Any], **options: Any
) -> torch.Tensor:
    """The tokens that `generate` of the whole model gives for these inputs, prompt included.

    `inputs` are all outputs of the processor besides pixels. Raises UsageError when features or
    inputs are missing.
    """
    require_protocol(half)
    text = {
        name: _to(value, half.device)
        for name, value in inputs.items()
        if not is_pixels(name) and value is not None
    }
    if absent := sorted(getattr(features, "needs", frozenset()) - set(text)):
        raise UsageError(
            f"decoding needs {', '.join(absent)}, as encoding had",
            hint="Pass every output of the processor besides the pixels",
        )
    _check_placeholders(half, text["input_ids"], features)
    # `generate` changes the records it is given in place, so it gets shallow copies.
    outputs = {
        modality: make_record(type(record), {n: _to(v, half.device) for n, v in record.items()})
        for modality, record in features.items()
    }
    with torch.inference_mode():
        tokens: torch.Tensor = half.generate(**text, mm_encoder_outputs=outputs, **options)
    return tokens


def lean(record: Any) -> Any:
    """The output record without the fields that the language half never reads."""
    if record.get("pooler_output") is None:
        return record
    return make_record(type(record), {n: v for n, v in record.items() if n not in UNREAD})


def count_tokens(record: Any) -> int | None:
    """For how many placeholders an output record has features; None when it does not say."""
    pooled = record.get("pooler_output")
    if pooled is None:
        return None
    parts = [pooled] if isinstance(pooled, torch.Tensor) else pooled
    return sum(part.numel() // part.shape[-1] for part in parts)


def placeholder_ids(config: Any) -> set[int]:
    """Ids of the tokens that stand where a picture's features go."""
    names = [f"{kind}_token_{end}" for kind in ("image", "video") for end in ("id", "index")]
    found = {getattr(config, name, None) for name in names}
    return {value for value in found if isinstance(value, int)}


def _encoders(half: Any) -> Iterator[tuple[str, Any, list[str]]]:
    for modality in ("image", "video"):
        function = getattr(half.base_model, f"get_{modality}_features", None)
        if function is not None and modality in half.input_modalities:
            names = [n for n in inspect.signature(function).parameters if n != "kwargs"]
            yield modality, function, names


def require_protocol(half: Any) -> None:
    """Raises UsageError for a model whose `generate` does not take encoder outputs."""
    from transformers import GenerationMixin

    accepted = "mm_encoder_outputs" in inspect.signature(half.forward).parameters
    stock = getattr(type(half), "generate", None) is GenerationMixin.generate
    if not (accepted and stock and any(True for _ in _encoders(half))):
        raise UsageError(
            f"{type(half).__name__} cannot take features that were computed before",
            hint="Choose another model, such as SmolVLM2, LLaVA-OneVision or Qwen2.5-VL",
        )


def _check_placeholders(half: Any, ids: torch.Tensor, features: Mapping[str, Any]) -> None:
    """Missing features would leave placeholders as they are and give wrong text with no error."""
    wanted = sorted(placeholder_ids(half.config))
    standing = int(torch.isin(ids, torch.tensor(wanted, device=ids.device)).sum())
    counts = [count_tokens(record) for record in features.values()]
    held = sum(count for count in counts if count is not None)
    if (None not in counts and standing != held) or (standing and not features):
        raise UsageError(
            f"{standing} placeholders stand in the prompt and there are features for {held}",
            hint="Encode the same media with the same processor again",
        )


def _to(value: Any, device: torch.device, floats: torch.dtype | None = None) -> Any:
    """Tensors inside any nesting, moved; floating ones also cast when `floats` is given."""
    if isinstance(value, torch.Tensor):
        cast = floats if floats is not None and value.is_floating_point() else value.dtype
        return value.to(device=device, dtype=cast, non_blocking=True)
    if isinstance(value, list | tuple):
        return type(value)(_to(part, device, floats) for part in value)
    return value
