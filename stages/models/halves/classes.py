"""Finds the model class and the configuration of a checkpoint. Reads no weights.

A checkpoint's own code is run only with the user's permission.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from artifacts.errors import EnvironmentFault, UsageError
from stages.models.halves.dual import makes_vectors
from stages.models.hub.originals import is_original
from stages.models.hub.unsupported import refuse_unsupported
from stages.models.in_tree.registry import native_of


def config_and_class(
    folder: Path, trusted: bool, as_published: bool | None = False
) -> tuple[Any, type[Any]]:
    """Return the checkpoint's configuration and its model class. An in-tree model run
    `as_published` reproduces its published code where that deviates from the formulas."""
    refuse_unsupported(folder, trusted)
    if (native := native_of(folder)) is not None:
        return native.load_config(folder, bool(as_published)), native.model_class()
    config = load_config(folder, trusted)
    return config, model_class(config, folder, trusted)


def skeleton_of(config: Any, cls: type[Any]) -> Any:
    """Build the whole model without storage."""
    with torch.device("meta"), with_packages(cls):
        return cls(config)


def load_config(folder: Path, trusted: bool) -> Any:
    """Load the model's configuration. Raises UsageError for an invalid one, and for remote code
    that is not trusted."""
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    if not trusted and is_original(folder):  # its model type would match one of transformers
        raise needs_trust(folder)
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=trusted)
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


def model_class(config: Any, folder: Path, trusted: bool) -> type[Any]:
    """Return the model class for this configuration: a captioner, or a dual encoder. If both exist,
    the configuration's `architectures` decide."""
    remote = getattr(config, "auto_map", None) or {}
    classes = _stock_classes(config)
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


def _stock_classes(config: Any) -> list[type[Any]]:
    """Return transformers' own classes for a configuration, the captioning one first."""
    from transformers.models.auto import modeling_auto as auto

    mappings: tuple[Any, ...] = (
        auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
        auto.MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING,
    )
    found = [mapping[type(config)] for mapping in mappings if type(config) in mapping]
    return [cls[0] if isinstance(cls, tuple) else cls for cls in found]


@contextlib.contextmanager
def with_packages(cls: type[Any]) -> Iterator[None]:
    """Turn the error about a missing package into one line. Errors about attention pass through:
    the caller that selected it reports them."""
    try:
        yield
    except ImportError as error:
        if "ttention" in str(error) or "flash" in str(error):
            raise
        raise EnvironmentFault(
            f"{cls.__name__} needs a package that is missing or too old: {one_line(error)}",
            hint="Install it, and run the same command again",
        ) from error


def asks_for_trust(error: Exception) -> bool:
    """Return whether loading failed because it would have run code from the checkpoint."""
    return any(phrase in str(error) for phrase in ("trust_remote_code", "custom code"))


def needs_trust(folder: Path) -> UsageError:
    return UsageError(
        f"{folder} brings its own Python code, which would run on this machine",
        hint="Read it, and if you trust it add --trust-remote-code",
    )


def one_line(error: Exception) -> str:
    """Return an error's message, short enough for use in another message."""
    return " ".join(str(error).split())[:200] or type(error).__name__
