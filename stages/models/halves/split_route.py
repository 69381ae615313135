"""Chooses the split strategy by which a model runs in two stages.

The choice follows from the model's classes and configuration. No weights are read, and a
checkpoint's own code is run only with the user's permission. The strategies are:

    protocol  `generate` takes encoder outputs as `mm_encoder_outputs`
    replay    `generate` calls the model's own `get_*_features`, which then return stored records
    splice    features go into the embeddings at the placeholders; the reader generates
    joint     no boundary: the whole model sees pixels and prompt in the second stage
    dual      no text: each half makes vectors, of images or of texts
"""

import inspect
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from artifacts.errors import UsageError
from artifacts.schema import HalfName, Route
from stages.models.halves.boundary import (
    class_of,
    makes_vectors,
    names_in,
    owner_path,
    reader_path,
    refuse_no_vectors,
)
from stages.models.protocols import ModelOrHalf, module_of

MODALITIES = ("image", "video")
AUDIO = "audio"
"""The modality of sound."""
AS_IMAGES = {"pixel_values_videos": "pixel_values"}
"""Argument names for a video in a method for images, in models without a video method."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RouteChoice:
    """The split strategy of a model, and why it was chosen."""

    route: Route
    why: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Encoder:
    """One method of a model that makes features from pixels or sound."""

    modality: str
    """`image`, `video` or `audio`."""
    function: Any
    names: Mapping[str, str]
    """Input of the model → the method's argument name."""


def choose_route(model: ModelOrHalf) -> RouteChoice:
    """Choose the split strategy of `model`, which may be a skeleton. Raises UsageError for a model
    that neither captions images nor makes vectors of them."""
    name = type(model).__name__
    if makes_vectors(class_of(module_of(model))):
        return RouteChoice(route="dual", why=f"{name} makes vectors of pictures and of texts")
    refuse(type(model))
    if not any(True for _ in encoders(model)):
        return RouteChoice(
            route="joint", why=f"{name} has no get_image_features or get_video_features"
        )
    stock = not overrides_generate(model)
    if stock and not model.config.is_encoder_decoder and takes_outputs(model):
        return RouteChoice(route="protocol", why=f"generate of {name} takes mm_encoder_outputs")
    if _asks_for_features(model):
        return RouteChoice(route="replay", why=f"generate of {name} asks get_*_features")
    if not stock and "masked_scatter" in names_in(_generate_of(model)) and _reader(model):
        return RouteChoice(route="splice", why=f"{name} scatters features into the embeddings")
    return RouteChoice(
        route="joint", why=f"{name} joins pixels and text where nothing can come between"
    )


def encoders(model: ModelOrHalf, part: HalfName = "vision") -> Iterator[Encoder]:
    """Yield the methods that run the vision half or the audio half. They are those of the base
    model, which `generate` uses, or else those of the module that owns them."""
    if (owner := owner_path(module_of(model))) is None:
        return
    modules = (model.base_model, model.get_submodule(owner))
    seen = [modality for modality in MODALITIES if modality in model.input_modalities]
    for modality in seen if part == "vision" else [AUDIO]:
        if function := _method(modules, f"get_{modality}_features"):
            names = [n for n in inspect.signature(function).parameters if n != "kwargs"]
            taken: Mapping[str, str] = dict(zip(names, names, strict=True))
        elif modality == "video" and _sees_videos_as_images(model, modules[1]):
            function, taken = _method(modules, "get_image_features"), AS_IMAGES
        if function is not None:
            yield Encoder(modality=modality, function=function, names=taken)


def depends_on_prompt(model: ModelOrHalf) -> bool:
    """Return whether features depend on the prompt's tokens, so that another prompt needs other
    features."""
    return any(name.endswith("input_ids") for e in encoders(model) for name in e.names)


def takes_outputs(model: ModelOrHalf) -> bool:
    return _reads(model.forward, ["mm_encoder_outputs"])


def overrides_generate(model: ModelOrHalf) -> bool:
    from transformers import GenerationMixin

    return _generate_of(model) is not GenerationMixin.generate


def _generate_of(model: ModelOrHalf) -> Any:
    return getattr(type(model), "generate", None)


def refuse(cls: Any) -> None:
    """Refuse a model class that does not caption images. Raises UsageError."""
    from transformers import GenerationMixin

    if not issubclass(cls, GenerationMixin):
        refuse_no_vectors(cls)
    if not set(MODALITIES) & set(cls.input_modalities):
        raise UsageError(
            f"{cls.__name__} takes no pictures: it has no vision half",
            hint="Choose a model of the image-text-to-text kind: docs/models.md lists them",
        )


def _sees_videos_as_images(model: ModelOrHalf, owner: Any) -> bool:
    """Return whether the model's own `forward` passes videos to its method for images, and reads
    the result as a video's."""
    own = _reads(model.forward, AS_IMAGES) and takes_outputs(model)
    return own and "get_image_features" in names_in(type(owner).forward)


def _method(modules: Iterable[Any], name: str) -> Any:
    return next((getattr(module, name) for module in modules if hasattr(module, name)), None)


def _reads(function: Any, names: Iterable[str]) -> bool:
    return set(names) <= inspect.signature(function).parameters.keys()


def _asks_for_features(model: ModelOrHalf) -> bool:
    """Return whether the code that `generate` runs calls `get_*_features`."""
    feature_methods = {f"get_{modality}_features" for modality in MODALITIES}
    if overrides_generate(model):
        names = names_in(_generate_of(model))
        if not names & {*feature_methods, "super"}:
            return False
        if names & feature_methods or takes_outputs(model):
            return True
    owner = model.get_submodule(owner_path(module_of(model)) or "")
    return any(feature_methods & names_in(type(module).forward) for module in (model, owner))


def _reader(model: ModelOrHalf) -> nn.Module | None:
    """Return the module that reads features, if it can generate by itself."""
    path = reader_path(module_of(model), owner_path(module_of(model)) or "")
    reader = None if path is None else model.get_submodule(path)
    return reader if reader is not None and hasattr(type(reader), "generate") else None
