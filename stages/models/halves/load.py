"""Loads one half of a model through its own `from_pretrained`. Knows neither pictures nor text.

The class is subclassed so that its `__init__` leaves out the other half. The loader finds no place
for those tensors and never reads them; its renaming, dtype and quantization work as ever.
"""

import contextlib
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

from artifacts.errors import EnvironmentFault, UsageError
from artifacts.schema import Part
from stages.models.halves.boundary import CUT, absent_paths, cut, pieces_called
from stages.models.halves.dual import makes_vectors
from stages.models.halves.ranges import reading_ranges
from stages.models.hub.faults import PICKLES, to_convert
from stages.models.hub.originals import is_original
from stages.models.hub.partial import weights_here
from stages.models.hub.resolve import fetch_rest, resolve_model
from stages.models.natives.registry import native_of, nothing_otherwise

MISSHAPEN = ("ignore_mismatched_sizes", "size mismatch")
"""Words of the loader about weights that have no place in the model."""


def load_half(
    path: str | Path, keep: Part, *, pieces: Iterable[str] | None = None, **options: Any
) -> Any:
    """Load one half of the model at `path` (a folder or hub id), or the whole, in eval mode.

    `pieces` are paths in the other half that this one needs too; None leaves it to the model's
    classes, which tell what the half calls of the other one. `options` are those of
    `from_pretrained`: dtype, attn_implementation, device_map, trust_remote_code, revision,
    quantization_config; `as_published` has it computed as the published code does where that is
    known to be otherwise than its formulas say; `stored_quantization` takes the place of what a
    quantized checkpoint's config.json says of it. Raises UsageError when the model cannot be cut or
    is not to be trusted, EnvironmentFault when its weights are not all there.
    """
    given = {**options, "pieces": None if pieces is None else tuple(pieces)}
    trusted = bool(options.get("trust_remote_code", False))
    folder = resolve_model(path, options.pop("revision", None))
    config, cls = config_and_class(folder, trusted, options.pop("as_published", False))
    refuse_pickle(folder, trusted)
    if (stored := options.pop("stored_quantization", None)) is not None:
        config.quantization_config = stored
    options.setdefault("use_safetensors", None if trusted else True)
    places = {str(place) for place in (options.get("device_map") or {"": "cpu"}).values()}
    on_host = places <= {"cpu", "disk"}
    with (
        _whole_weights(folder),
        _with_packages(cls),
        weights_here(folder) as there,
        reading_ranges() if on_host else contextlib.nullcontext(),
    ):
        model, found = half_class(cls, keep, given["pieces"]).from_pretrained(
            there, config=config, output_loading_info=True, **options
        )
    missing = sorted(found["missing_keys"])
    if missing and fetch_rest(folder):  # a piece of the other half is wanted, whose file was not
        del model, found
        return load_half(path, keep, **given)
    if missing:
        raise EnvironmentFault(
            f"{folder} lacks {len(missing)} tensors of the {_named(keep)}, such as {missing[0]}",
            hint="Download or save the checkpoint again",
        )
    return model.eval()


@contextlib.contextmanager
def _whole_weights(folder: Path) -> Iterator[None]:
    """Turn the loader's errors at unreadable weights into EnvironmentFault. So too where weights
    have other shapes than the configuration says."""
    from safetensors import SafetensorError

    try:
        yield
    except SafetensorError as error:
        raise EnvironmentFault(
            f"the weights in {folder} cannot be read: {one_line(error)}",
            hint="Download it again (with git: git lfs pull)",
        ) from error
    except RuntimeError as error:
        if not any(word in str(error) for word in MISSHAPEN):
            raise  # such as memory that ran out, which is not the checkpoint's fault
        raise EnvironmentFault(
            f"the weights in {folder} do not have the shapes that its config.json says",
            hint="Download the checkpoint again: its files are of different versions",
        ) from error


@contextlib.contextmanager
def _with_packages(cls: type[Any]) -> Iterator[None]:
    """Turn the error of a model that lacks a package into one line. Errors about attention are told
    by who chose it."""
    try:
        yield
    except ImportError as error:
        if "ttention" in str(error) or "flash" in str(error):
            raise
        raise EnvironmentFault(
            f"{cls.__name__} needs a package that is not installed, or a newer one: "
            f"{one_line(error)}",
            hint="Install it, and run the same command again",
        ) from error


def _named(part: Part) -> str:
    return "model" if part == "whole" else f"{part} half"


def half_class(cls: type[Any], keep: Part, pieces: tuple[str, ...] | None) -> type[Any]:
    """Make a subclass of `cls` that leaves out the other half when it is built. It keeps `pieces`,
    or else those that the half calls."""

    def __init__(self: Any, config: Any, *args: Any, **kwargs: Any) -> None:
        cls.__init__(self, config, *args, **kwargs)
        paths = absent_paths(self, keep, pieces_called(self, keep) if pieces is None else pieces)
        cut(self, paths)
        known = set(self._keys_to_ignore_on_load_unexpected or ())
        self._keys_to_ignore_on_load_unexpected = known | _patterns(self.base_model_prefix, paths)

    own = {"__init__": __init__, "__module__": cls.__module__, CUT: cls}
    return type(cls.__name__, (cls,), own)


def _patterns(prefix: str, paths: list[str]) -> set[str]:
    """Return names under which a checkpoint may hold what was left out: it may leave out the prefix
    too."""
    names = {*paths, *(path.removeprefix(f"{prefix}.") for path in paths if prefix)}
    return {rf"^{re.escape(name)}(\.|$)" for name in names}


def config_and_class(
    folder: Path, trusted: bool, as_published: bool = False
) -> tuple[Any, type[Any]]:
    """Return the checkpoint's configuration, and the class of its model, which computes
    `as_published` where its published code does otherwise than its formulas say."""
    if (native := native_of(folder)) is not None:
        return native.load_config(folder, as_published), native.model_class()
    if as_published:
        raise nothing_otherwise(folder)
    config = load_config(folder, trusted)
    return config, model_class(config, folder, trusted)


def skeleton_of(config: Any, cls: type[Any]) -> Any:
    """Build the whole model without storage."""
    with torch.device("meta"), _with_packages(cls):
        return cls(config)


def load_config(folder: Path, trusted: bool) -> Any:
    """Load the model's configuration. Raises UsageError for one that makes no sense, and for remote
    code that is not trusted."""
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    if not trusted and is_original(folder):  # else it is taken for transformers' own
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
    """Return the class that stands for models of this configuration: one that captions, or a dual
    encoder. Where there is one of each, the configuration says which it is of."""
    remote = getattr(config, "auto_map", None) or {}
    classes = _stock_classes(config)
    named = [cls for cls in classes if cls.__name__ in (config.architectures or ())]
    # What calls itself by the type of a dual encoder, and brings its own class, is another model.
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
    """Return transformers' own classes for a configuration: first the one that captions."""
    from transformers.models.auto import modeling_auto as auto

    mappings: tuple[Any, ...] = (
        auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
        auto.MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING,
    )
    found = [mapping[type(config)] for mapping in mappings if type(config) in mapping]
    return [cls[0] if isinstance(cls, tuple) else cls for cls in found]


def asks_for_trust(error: Exception) -> bool:
    """Tell whether loading failed because it would have run code that came with the checkpoint."""
    return any(words in str(error) for words in ("trust_remote_code", "custom code"))


def one_line(error: Exception) -> str:
    """Return an error's words, short enough to be part of a message."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def needs_trust(folder: Path) -> UsageError:
    return UsageError(
        f"{folder} brings its own Python code, which would run on this machine",
        hint="Read it, and if you trust it add --trust-remote-code",
    )


def refuse_pickle(folder: Path, trusted: bool) -> None:
    """Refuse a model without weights, or with pickles alone. Raises UsageError."""
    if any(folder.glob("*.safetensors")) or (folder / "model.safetensors.index.json").exists():
        return
    pickles = sorted(path for path in folder.iterdir() if path.suffix in PICKLES)
    if not pickles:
        raise UsageError(
            f"{folder} holds no weights (*.safetensors)",
            hint="Download or save the checkpoint again",
        )
    if not trusted or native_of(folder) is not None:
        raise UsageError(
            f"{folder} has its weights only as pickles ({pickles[0].name}), which can run code",
            hint=f"Use one saved as safetensors, or {to_convert(str(folder))}",
        )
