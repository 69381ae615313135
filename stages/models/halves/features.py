"""Runs the vision half on pixels and returns its features.

The vision half provides `get_image_features` and `get_video_features`. Features are stored as the
model's own output records.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from artifacts.errors import UsageError
from artifacts.tensors import make_record
from stages.models.halves.routes import PIXELS, encoders

UNREAD = (
    "last_hidden_state",
    "hidden_states",
    "attentions",
    "vision_outputs",
    "qformer_outputs",
)
"""Names of large fields that no language half reads if there is a `pooler_output`."""


class Features(dict[str, Any]):
    """Modality -> the encoder's own output record, and all other inputs that the language half
    needs."""

    def __init__(
        self,
        outputs: Mapping[str, Any],
        needs: Iterable[str] = (),
        blank: Mapping[str, Sequence[int]] | None = None,
        *,
        already_read: bool = False,
    ) -> None:
        super().__init__(outputs)
        self.already_read = already_read
        """Whether the half has already read the features and continues from its cache."""
        self.blank = dict(blank or {})
        """Name of a pixel input → its shape, for models that require pixels in any case."""
        self.needs = frozenset(needs)
        """Names of the inputs besides pixels that encoding had, such as grids. Decoding without
        one would give other tokens without an error, so it is refused."""

    def to_tree(self) -> dict[str, Any]:
        blank = {name: list(shape) for name, shape in self.blank.items()}
        return {"features": dict(self), "needs": sorted(self.needs), "blank": blank}

    @classmethod
    def from_tree(cls, tree: Mapping[str, Any]) -> "Features":
        return cls(tree["features"], tree["needs"], tree["blank"])


def is_pixels(name: str) -> bool:
    """Return whether an input holds pixels or their mask, which only the vision half reads."""
    return "pixel" in name or name.endswith("patches")


def encode(half: Any, inputs: Mapping[str, Any]) -> Features:
    """Run the vision half on the pixels among a processor's outputs. Raises UsageError if there are
    no pixels that it can encode."""
    outputs, shapes = {}, {}
    for encoder in encoders(half):
        given = {name: inputs[name] for name in encoder.names if inputs.get(name) is not None}
        pixels = [name for name in given if name in PIXELS]
        if not pixels:
            continue
        shapes.update({name: tuple(given[name].shape) for name in pixels})
        arguments = {
            encoder.names[name]: moved(value, half.device, half.dtype)
            for name, value in given.items()
        }
        with torch.inference_mode():
            output = encoder.function(**arguments, return_dict=True)
        outputs[encoder.modality] = lean(_record(output, encoder.function))
    if not outputs:
        taken = [name for encoder in encoders(half) for name in encoder.names if name in PIXELS]
        raise UsageError(
            f"{type(half).__name__} received no pixels that it can encode",
            hint=f"It takes {' or '.join(taken)}, as its processor makes them",
        )
    needs = [n for n, value in inputs.items() if value is not None and not is_pixels(n)]
    return Features(outputs, needs, shapes)


def _record(output: Any, function: Any) -> Any:
    """Check that an output is a record whose fields the language half can read by name."""
    from transformers.utils.generic import ModelOutput

    if isinstance(output, ModelOutput):
        return output
    raise UsageError(
        f"{function.__qualname__} gives a {type(output).__name__}, not an output record",
        hint="Use a model that is part of transformers",
    )


def lean(record: Any) -> Any:
    """Return the output record without the fields that the language half never reads."""
    if record.get("pooler_output") is None:
        return record
    return make_record(type(record), {n: v for n, v in record.items() if n not in UNREAD})


def count_tokens(record: Any) -> int | None:
    """Return the number of placeholders that an output record has features for; None if unknown."""
    pooled = record.get("pooler_output")
    if pooled is None:
        return None
    parts = [pooled] if isinstance(pooled, torch.Tensor) else pooled
    return sum(part.numel() // part.shape[-1] for part in parts)


def placeholder_ids(config: Any) -> set[int]:
    """Return the ids of the tokens that stand in for an image's features."""
    names = [f"{kind}_token_{end}" for kind in ("image", "video") for end in ("id", "index")]
    found = {getattr(config, name, None) for name in names}
    return {value for value in found if isinstance(value, int)}


def moved(value: Any, device: torch.device, floats: torch.dtype | None = None) -> Any:
    """Move the tensors inside any nesting, and cast floating ones if `floats` is given."""
    if isinstance(value, torch.Tensor):
        cast = floats if floats is not None and value.is_floating_point() else value.dtype
        return value.to(device=device, dtype=cast, non_blocking=True)
    if isinstance(value, list | tuple):
        return type(value)(moved(part, device, floats) for part in value)
    return value
