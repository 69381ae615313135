"""Runs the vision half on pixels or the audio half on sound and returns their features, or the
vectors and logits of a dual encoder.

The halves provide `get_image_features`, `get_video_features` and `get_audio_features`. Features are
stored as the model's own output records.

The halves of a dual encoder compute vectors, and the model's own `forward` computes the logits from
vectors on the text half. Stand-ins in place of the vision half return the image vectors. So the
module needs no formula: neither the name of the scale, nor whether there is a bias.
"""

import copy
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from artifacts.errors import UsageError
from artifacts.records.tensors import make_record
from artifacts.schema import HalfName
from stages.memory.meta_device import tensors
from stages.models.halves.boundary import IMAGE_METHOD, TEXT_METHOD, absent_paths
from stages.models.halves.model_class import CONTENT, INVERTED, SOUNDS
from stages.models.halves.recorded import (
    GRIDS,
    RECORDER,
    HostGrid,
    as_grid,
    shape_of,
    without_grids,
)
from stages.models.halves.records import FeatureRecord, merge_blank, merge_rows
from stages.models.halves.split_route import AUDIO, encoders
from stages.models.protocols import Half, Processor, Tree, module_of

if TYPE_CHECKING:
    from transformers.utils.generic import ModelOutput

UNREAD = ("last_hidden_state", "hidden_states", "attentions", "vision_outputs", "qformer_outputs")
"""Ends of the names of large fields that no language half reads if there is a `pooler_output`, or
features by level."""
LEVELS = "deepstack_features"
"""Field with the features that enter several layers of a language half."""


class Features(dict[str, Any]):
    """Modality -> the encoder's own output record, and all other inputs that the language half
    needs."""

    def __init__(
        self,
        outputs: Mapping[str, Tree],
        needs: Iterable[str] = (),
        blank: Mapping[str, Sequence[int]] | None = None,
        *,
        already_read: bool = False,
        heard_tokens: Sequence[int] | None = None,
    ) -> None:
        super().__init__(outputs)
        self.already_read = already_read
        """Whether the half has already read the features and continues from its cache."""
        self.blank = dict(blank or {})
        """Name of an input of pixels or sound → its shape, for models that require it in any
        case."""
        self.needs = frozenset(needs)
        """Names of the inputs besides pixels and sound that encoding had, such as grids. Decoding
        without one would give other tokens without an error, so it is refused."""
        self.heard_tokens = None if heard_tokens is None else list(heard_tokens)
        """Placeholders of sound in each row's prompt; None: as many as features together."""

    def to_tree(self) -> dict[str, Any]:
        blank = {name: list(shape) for name, shape in self.blank.items()}
        return {"features": dict(self), "needs": sorted(self.needs), "blank": blank}

    @classmethod
    def of(cls, rows: Sequence[FeatureRecord]) -> "Features":
        """Return the features of rows with equal `joins_with`, with what was heard of them."""
        features = cls(merge_rows(rows), rows[0].needs, merge_blank(rows))
        heard = [row.heard for row in rows if row.heard is not None]
        if not heard:
            return features
        tokens = [one.count.tokens for one in heard]
        return features.with_sound(
            cls(merge_rows(heard), heard[0].needs, merge_blank(heard), heard_tokens=tokens)
        )

    def with_sound(self, heard: "Features") -> "Features":
        """Return these features with those of the sound of the same rows."""
        return Features(
            {**self, **heard},
            self.needs | heard.needs,
            {**self.blank, **heard.blank},
            heard_tokens=heard.heard_tokens,
        )

    @classmethod
    def from_tree(cls, tree: Mapping[str, Any]) -> "Features":
        return cls(tree["features"], tree["needs"], tree["blank"])


def is_pixels(name: str) -> bool:
    """Return whether an input holds pixels or their mask, which only the vision half reads."""
    return "pixel" in name or name.endswith("patches")


def is_content(name: str) -> bool:
    """Return whether an input holds pixels, their mask, or sound, which only an encoder reads."""
    return is_pixels(name) or name in SOUNDS


def encode(half: Half, inputs: Mapping[str, Any], part: HalfName = "vision") -> Features:
    """Run the vision half on the pixels among a processor's outputs, or the audio half on the
    sound. Raises UsageError if there is nothing that it can encode."""
    outputs, shapes = {}, {}
    for encoder in encoders(half, part):
        given = {name: inputs[name] for name in encoder.names if inputs.get(name) is not None}
        content = [name for name in given if name in CONTENT[part]]
        if not content:
            continue
        shapes.update({name: tuple(given[name].shape) for name in content})
        if encoder.modality == AUDIO and (mask := INVERTED.get(half.config.model_type)) in given:
            given[mask] = ~given[mask]
        shape = shape_of(given) if RECORDER in half.__dict__ else None
        with torch.inference_mode():
            if half.__dict__.get(GRIDS):
                given = {name: as_grid(value, half.device) for name, value in given.items()}
            arguments = {
                encoder.names[name]: moved(value, half.device, half.dtype)
                for name, value in given.items()
            }
            compute = partial(_lean_output, encoder.function, lean if part == "vision" else once)
            if shape is not None:
                compute = partial(half.__dict__[RECORDER].call, compute, (encoder.modality, shape))
            outputs[encoder.modality] = compute(arguments)
    if not outputs:
        taken = [n for encoder in encoders(half, part) for n in encoder.names if n in CONTENT[part]]
        what = "pixels" if part == "vision" else "sound"
        raise UsageError(
            f"{type(half).__name__} received no {what} that it can encode",
            hint=f"It takes {' or '.join(taken)}, as its processor makes them",
        )
    needs = [n for n, value in inputs.items() if value is not None and not is_content(n)]
    return Features(outputs, needs, shapes)


def _lean_output(function: Any, reduce: Callable[[Any], Any], arguments: Mapping[str, Any]) -> Any:
    return reduce(_record(function(**arguments, return_dict=True), function))


def _record(output: Any, function: Any) -> Any:
    """Check that an output is a record whose fields the language half can read by name."""
    from transformers.utils.generic import ModelOutput

    if isinstance(output, ModelOutput):
        held = any(isinstance(tensor, HostGrid) for tensor in tensors(output))
        return make_record(type(output), without_grids(dict(output))) if held else output
    raise UsageError(
        f"{function.__qualname__} gives a {type(output).__name__}, not an output record",
        hint="Use a model that is part of transformers",
    )


def lean(record: "ModelOutput") -> "ModelOutput":
    """Return the output record without the fields that the language half never reads."""
    if record.get("pooler_output") is None and record.get(LEVELS) is None:
        return record
    read = {name: part for name, part in record.items() if not name.endswith(UNREAD)}
    return make_record(type(record), read)


def once(record: "ModelOutput") -> "ModelOutput":
    """Return the output record of sound without hidden states, and without a `pooler_output` that
    equals `last_hidden_state`: some language halves read the one, some the other."""
    fields = {n: v for n, v in record.items() if n not in ("hidden_states", "attentions")}
    last, pooled = fields.get("last_hidden_state"), fields.get("pooler_output")
    if last is not None and pooled is not None and torch.equal(last, pooled):
        fields.pop("pooler_output")
    return make_record(type(record), fields)


def twice(record: "ModelOutput") -> "ModelOutput":
    """Return the record with the field that `once` left out."""
    last = record.get("last_hidden_state")
    if last is None or record.get("pooler_output") is not None:
        return record
    return make_record(type(record), {**record, "pooler_output": last})


def count_tokens(record: Any) -> int | None:
    """Return the number of placeholders that an output record has features for; None if unknown."""
    pooled = record.get("pooler_output")
    if pooled is None:
        return None
    parts = [pooled] if isinstance(pooled, torch.Tensor) else pooled
    return sum(part.numel() // part.shape[-1] for part in parts)


def count_heard(record: Any) -> int | None:
    """Return the number of placeholders that an output record of sound has features for; None if
    unknown, as with models that fill up to a fixed number themselves."""
    if "audio_mel_mask" in record:
        return None
    mask = record.get("attention_mask")
    return count_tokens(twice(record)) if mask is None else int(mask.sum())


def refuse_other_count(half: Half, record: "ModelOutput", tokens: int) -> None:
    """Refuse an output record of one sound with another number of features than the prompt has
    places: transformers cuts what is too much without an error. Raises UsageError."""
    if (count := count_heard(record)) not in (None, tokens):
        raise UsageError(
            f"{type(half).__name__} makes {count} features of a sound with {tokens} placeholders",
            hint="Leave the sound out; please report this model",
        )


def placeholder_ids(config: Any, kinds: Sequence[str] = ("image", "video")) -> set[int]:
    """Return the ids of the tokens that stand in for the features of these modalities."""
    names = [f"{kind}_token_{end}" for kind in kinds for end in ("id", "index")]
    ids = {getattr(config, name, None) for name in names}
    return {value for value in ids if isinstance(value, int)}


def moved(value: Any, device: torch.device, floats: torch.dtype | None = None) -> Any:
    """Move the tensors inside any nesting, and cast floating ones if `floats` is given."""
    if isinstance(value, torch.Tensor):
        cast = floats if floats is not None and value.is_floating_point() else value.dtype
        return value.to(device=device, dtype=cast, non_blocking=True)
    if isinstance(value, list | tuple):
        return type(value)(moved(part, device, floats) for part in value)
    return value


BLANK = {"pixel_values": (1, 3, 1, 1), "pixel_attention_mask": (1, 1), "spatial_shapes": (1, 2)}
"""Shapes of the images that `forward` receives when they are not used."""

LONGEST = 1 << 16
"""A tokenizer's limit of this many tokens or more means that it has no limit."""


def image_vectors(half: Half, inputs: Mapping[str, Any]) -> torch.Tensor:
    """Return one vector per image from the model's own method, not normalized."""
    vectors = encode(half, inputs)
    return one_each(vectors["image"], half, len(next(v for n, v in inputs.items() if is_pixels(n))))


def text_vectors(half: Half, inputs: Mapping[str, Any]) -> torch.Tensor:
    """Return one vector per text from the model's own method, not normalized."""
    with torch.inference_mode():
        vectors = getattr(half, TEXT_METHOD)(**_texts(half, TEXT_METHOD, inputs))
    return one_each(vectors, half, len(inputs["input_ids"]))


def max_text_tokens(processor: Processor, half: Half) -> int:
    """Return the maximum tokens per text, from the tokenizer and the half's positions; 0 if neither
    states it."""
    config = getattr(half.config, "text_config", half.config)
    stated = [
        getattr(processor.tokenizer, "model_max_length", None),
        getattr(config, "max_position_embeddings", None),
    ]
    limits = [limit for limit in stated if isinstance(limit, int) and 0 < limit < LONGEST]
    return min(limits, default=0)


def one_each(made: "torch.Tensor | ModelOutput", half: Half, count: int) -> torch.Tensor:
    """Return the vectors in an output record. Raises UsageError unless there are `count` vectors,
    one per image or text."""
    vectors = made if isinstance(made, torch.Tensor) else getattr(made, "pooler_output", None)
    if isinstance(vectors, torch.Tensor) and vectors.ndim == 2 and len(vectors) == count:
        return vectors
    shape = list(vectors.shape) if isinstance(vectors, torch.Tensor) else "none"
    raise UsageError(
        f"{type(half).__name__} gives vectors of shape {shape} for {count} inputs, not one each",
        hint="Choose a model of the CLIP kind: docs/embed.md lists them",
    )


def logits(half: Half, inputs: Mapping[str, Tree], vectors: torch.Tensor) -> torch.Tensor:
    """Return the model's logits, one row per image and one column per text. `half` is the text
    half, `inputs` belong to the texts, `vectors` to the images."""
    model = _handing_over(half, moved(vectors, half.device, half.dtype))
    taken = inspect.signature(type(half).forward).parameters
    blank = {n: torch.zeros(s, device=half.device) for n, s in BLANK.items() if n in taken}
    with torch.inference_mode():
        outputs_of_model = model(**blank, **_texts(half, "forward", inputs), return_dict=True)
    per_image: torch.Tensor = outputs_of_model.logits_per_image
    return per_image


def _texts(half: Half, method: str, inputs: Mapping[str, Tree]) -> dict[str, Tree]:
    """Return the inputs of texts that a method of the half takes."""
    taken = inspect.signature(getattr(type(half), method)).parameters
    return {n: moved(v, half.device) for n, v in inputs.items() if n in taken and not is_pixels(n)}


def _handing_over(half: Half, vectors: torch.Tensor) -> nn.Module:
    """Return a copy of the text half with the same weights, and stand-ins for the missing
    modules."""
    from transformers.modeling_outputs import BaseModelOutputWithPooling

    class Encoder(nn.Module):
        def forward(self, *_: Tree, **__: Tree) -> BaseModelOutputWithPooling:
            states = vectors[:, None]
            return BaseModelOutputWithPooling(last_hidden_state=states, pooler_output=vectors)

    class Projection(nn.Module):
        def forward(self, made: Any, *_: Any, **__: Any) -> Any:
            return made if isinstance(made, torch.Tensor) else made.pooler_output

    model = copy.copy(module_of(half))
    model._modules = dict(model._modules)
    for at, name in enumerate(absent_paths(module_of(half), "language")):
        model._modules[name] = Projection() if at else Encoder()
    return model


__all__ = ["IMAGE_METHOD", "image_vectors", "logits", "max_text_tokens", "one_each", "text_vectors"]
