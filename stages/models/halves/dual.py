"""Finds the boundary between the halves of a dual encoder, from its class. Loads nothing.

A dual encoder makes one vector of an image and one of a text, each with its own encoder. What only
`get_image_features` reaches is the vision half. What `get_image_features` never reaches is the text
half, called `language` as in other models. The cut runs between the model's direct children,
because some of them read a child's weight without calling that child. The model's own parameters,
such as the scale of its logits, are in both halves.
"""

from torch import nn

from artifacts.errors import UsageError
from artifacts.schema import Half
from stages.models.halves.bytecode import names_in, reached

IMAGE_METHOD, TEXT_METHOD = "get_image_features", "get_text_features"
"""Names of the methods by which a dual encoder makes vectors."""
VIDEO_METHOD = "get_video_features"
HINT = "Choose a model of the CLIP kind: docs/embed.md lists them"


def makes_vectors(cls: type) -> bool:
    """Return whether a class is a dual encoder: it makes vectors of both, and generates no text."""
    from transformers import GenerationMixin

    methods = all(hasattr(cls, name) for name in (IMAGE_METHOD, TEXT_METHOD))
    return methods and not issubclass(cls, GenerationMixin)


def units_absent(model: nn.Module, cls: type, keep: Half) -> list[str]:
    """Return the model's own parts that a half does not need; `cls` is the whole model's class."""
    by_image_method, by_text_method = (
        reached(cls, [name], names_in) for name in (IMAGE_METHOD, TEXT_METHOD)
    )
    units = [name for name, _ in model.named_children()]
    if keep == "vision":
        return [name for name in units if name not in by_image_method]
    return [name for name in units if name in by_image_method - by_text_method]


def refuse_no_vectors(cls: type) -> None:
    """Refuse a class that neither generates text nor is a dual encoder of images. Raises
    UsageError."""
    if hasattr(cls, VIDEO_METHOD):
        raise UsageError(
            f"{cls.__name__} makes a vector of a whole video ({VIDEO_METHOD}), and none of a "
            "picture",
            hint=HINT,
        )
    missing = [f"no {name}" for name in (IMAGE_METHOD, TEXT_METHOD) if not hasattr(cls, name)]
    raise UsageError(
        f"{cls.__name__} does not write text token by token, nor make one vector of a picture and "
        f"one of a text (it has {' and '.join(missing)})",
        hint="Choose a model that captions (docs/models.md) or one of the CLIP kind "
        "(docs/embed.md)",
    )
