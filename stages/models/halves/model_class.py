"""Finds a checkpoint's model class. No weights are read, and a checkpoint's own code is run only
with the user's permission.
"""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from artifacts.errors import UsageError
from artifacts.packages import library_needs
from stages.models.halves.boundary import makes_vectors
from stages.models.halves.own_code import asks_for_trust, needs_trust
from stages.models.hub.checkpoint import is_original
from stages.models.hub.unsupported import refuse_unsupported
from stages.models.in_tree.registry import native_of

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel


def config_and_class(
    folder: Path, trusted: bool, as_published: bool | None = False
) -> tuple[Any, type[Any]]:
    """Return the checkpoint's configuration and its model class. An in-tree model run
    `as_published` reproduces its published code where that deviates from the formulas."""
    refuse_unsupported(folder, trusted)
    if (native := native_of(folder)) is not None:
        return native.load_config(folder, bool(as_published)), native.model_class()
    try:
        config = load_config(folder, trusted)
        return config, model_class(config, folder, trusted)
    except ImportError as error:
        if trusted:  # `own_code` says why
            raise
        raise library_needs(str(folder), error) from error


def skeleton_of(config: "PreTrainedConfig", cls: "type[PreTrainedModel]") -> "PreTrainedModel":
    """Build the whole model without storage."""
    with torch.device("meta"), with_packages(cls):
        return cls(config)


def load_config(folder: Path, trusted: bool) -> "PreTrainedConfig":
    """Load the model's configuration. Raises UsageError for an invalid one, and for remote code
    that is not trusted."""
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    if not trusted and is_original(folder):  # its model type would match one of transformers
        raise needs_trust(folder)
    try:
        return thinker_of(AutoConfig.from_pretrained(folder, trust_remote_code=trusted))
    except (StrictDataclassError, TypeError) as error:
        raise UsageError(
            f"{folder}/config.json cannot be used: {one_line(error)}",
            hint="Download the checkpoint again, or choose another",
        ) from error
    except (ValueError, KeyError, OSError) as error:
        if not trusted and asks_for_trust(error):
            raise needs_trust(folder) from error
        raise UsageError(
            f"{folder}/config.json describes no model that transformers knows",
            hint="Choose a model of the image-text-to-text kind: docs/models.md lists them",
        ) from error


def thinker_of(config: "PreTrainedConfig") -> "PreTrainedConfig":
    """Return the configuration of what sees, hears and writes: of an Omni model it is the thinker,
    without the talker. Other configurations are returned unchanged."""
    from transformers import PreTrainedConfig

    thinker = getattr(config, "thinker_config", None)
    if not isinstance(thinker, PreTrainedConfig):
        return config
    thinker.dtype = thinker.dtype or config.dtype
    stated = getattr(config, "quantization_config", None)
    if stated is not None and getattr(thinker, "quantization_config", None) is None:
        thinker.quantization_config = stated
    return thinker


def model_class(config: "PreTrainedConfig", folder: Path, trusted: bool) -> "type[PreTrainedModel]":
    """Return the model class for this configuration: a captioner, or a dual encoder. If both exist,
    the configuration's `architectures` decide."""
    remote = getattr(config, "auto_map", None) or {}
    classes = _stock_classes(config)
    _refuse_contradiction(config, classes, folder)
    named = [cls for cls in classes if cls.__name__ in (config.architectures or ())]
    # A checkpoint with a dual encoder's model type and its own class is another model.
    own = "AutoModel" in remote and not named
    stock = next((cls for cls in (*named, *classes) if not (own and makes_vectors(cls))), None)
    if stock is not None:
        return stock
    names = ["AutoModelForImageTextToText", "AutoModelForVision2Seq", "AutoModelForCausalLM"]
    names += ["AutoModel"] if classes else []
    reference = next((remote[name] for name in names if name in remote), None)
    if reference is None:
        raise UsageError(
            f"{folder} is a {config.model_type} model, which has no vision half",
            hint="Choose a model of the image-text-to-text kind: docs/models.md lists them",
        )
    if not trusted:
        raise needs_trust(folder)
    from transformers.dynamic_module_utils import get_class_from_dynamic_module

    return get_class_from_dynamic_module(reference, folder)


def _refuse_contradiction(config: Any, classes: list[type[Any]], folder: Path) -> None:
    """Refuse a configuration whose `architectures` name a class of transformers for another model
    type: its weights would be read as those of the wrong class. Raises UsageError."""
    from transformers.models.auto import modeling_auto as auto

    types = auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.items()
    stated = {name: kind for kind, name in types if name in (config.architectures or ())}
    if stated and classes and not stated.keys() & {cls.__name__ for cls in classes}:
        name, kind = next(iter(stated.items()))
        raise UsageError(
            f"{folder}/config.json contradicts itself: model_type is {config.model_type}, and "
            f"architectures name {name}, which is of {kind}",
            hint=f"Set model_type to {kind} in it, if the weights are of that class",
        )


def _stock_classes(config: "PreTrainedConfig") -> "list[type[PreTrainedModel]]":
    """Return transformers' own classes for a configuration, the captioning one first."""
    from transformers.models.auto import modeling_auto as auto

    mappings: tuple[Any, ...] = (
        auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
        auto.MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING,
    )
    classes = [mapping[type(config)] for mapping in mappings if type(config) in mapping]
    return [cls[0] if isinstance(cls, tuple) else cls for cls in classes]


@contextlib.contextmanager
def with_packages(cls: "type[PreTrainedModel]") -> Iterator[None]:
    """Turn the error about a missing package into one line. Errors about attention pass through:
    the caller that selected it reports them."""
    try:
        yield
    except ImportError as error:
        if "ttention" in str(error) or "flash" in str(error):
            raise
        raise library_needs(cls.__name__, error) from error


def one_line(error: Exception) -> str:
    """Return an error's message, short enough for use in another message."""
    return " ".join(str(error).split())[:200] or type(error).__name__


PIXELS = (
    "pixel_values",
    "pixel_values_images",
    "pixel_values_videos",
    "image_patches",
    "flattened_patches",
)
"""Argument names under which models take images."""
SOUNDS = ("input_features", "input_values", "audio_input_ids")
"""Argument names under which models take sound."""
CONTENT: Mapping[str, tuple[str, ...]] = {"vision": PIXELS, "audio": SOUNDS}
"""Half → argument names of what its encoder reads."""
USE_SOUND = "use_audio_in_video"
"""Argument of models that says whether the sound of videos is interleaved with them."""
INVERTED = {"gemma3n": "input_features_mask"}
"""Model type → the mask that its `forward` inverts for its method of sound."""
