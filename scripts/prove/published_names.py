"""Writes the weights of a small model under the names that published files have.

The names come from transformers' own way of saving in the form it read. Where a published folder
has an index, its names decide: a tensor that the index lacks is not written, and one that it has
under another name is written under that name.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.builders.plan_cases import INDEX

NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


@dataclass(frozen=True, kw_only=True, slots=True)
class Naming:
    """How the tensors of a model are called in published files."""

    names: Mapping[str, str]
    """Name by transformers' own saving → name in the files."""
    unpublished: tuple[str, ...] = ()
    """Patterns of names that the model saves and the index lacks."""
    unread: tuple[str, ...] = ()
    """Patterns of names that the index has and the model does not save."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Kind:
    """What transformers runs of a configuration."""

    config: Any
    cls: Any
    """A class with `from_pretrained`, and `_from_config`."""
    makes_vectors: bool = False
    prefix: str = ""
    """What the names of its tensors begin with in the files of a larger model."""

    @classmethod
    def of(cls, config: Any) -> "Kind":
        """Return the dual encoder, the thinker of an Omni model, or what writes text."""
        import transformers as hf

        library: Any = hf
        vectors = library.MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING
        texts = library.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
        if (thinker := getattr(config, "thinker_config", None)) is not None:
            prefix = type(config).__name__.removesuffix("Config")
            part = getattr(library, f"{prefix}ThinkerForConditionalGeneration")
            return cls(config=thinker, cls=part, prefix="thinker.")
        for mapping in (texts, vectors, library.MODEL_FOR_MULTIMODAL_LM_MAPPING):
            if type(config) in mapping:
                known = mapping[type(config)]
                return cls(config=config, cls=known, makes_vectors=mapping is vectors)
        raise ValueError(f"transformers has no class for {config.model_type}")

    def build(self, **options: Any) -> Any:
        return self.cls._from_config(self.config, **options)


def pattern_of(name: str) -> str:
    """Return a name with `{}` for each number of a layer or an expert."""
    return NUMBER.sub("{}", name)


def index_of(folder: Path) -> tuple[str, ...]:
    """Return the names of a folder's index; empty without one."""
    path = folder / INDEX
    if not path.exists():
        return ()
    return tuple(json.loads(path.read_text(encoding="utf-8"))["weight_map"])


def saved_tensors(model: Any, prefix: str = "") -> dict[str, Any]:
    """Return the tensors that transformers saves of a model, in the form of older files. One that
    several modules share stands once. All names begin with the prefix."""
    from transformers.core_model_loading import revert_weight_conversion

    tied = set(getattr(model, "all_tied_weights_keys", None) or {})
    every = model.state_dict(keep_vars=True)
    held = {name: tensor for name, tensor in every.items() if name not in tied}
    saved = revert_weight_conversion(model, held)
    return {f"{prefix}{name}": tensor for name, tensor in saved.items()}


def naming_of(model: Any, saved: Mapping[str, Any], index: tuple[str, ...]) -> Naming:
    """Return how published files call the saved tensors of a model."""
    if not index:
        return Naming(names={name: name for name in saved})
    published = {pattern_of(name) for name in index}
    there = {pattern_of(name) for name in saved}
    others = _same_place(model, there - published, published - there)
    names = {}
    for name in saved:
        pattern = pattern_of(name)
        if pattern in published:
            names[name] = name
        elif pattern in others:
            names[name] = others[pattern].format(*NUMBER.findall(name))
    written = {*others.values(), *(there & published)}
    return Naming(
        names=names,
        unpublished=tuple(sorted(there - published - set(others))),
        unread=tuple(sorted(published - written)),
    )


def _same_place(model: Any, saved: set[str], published: set[str]) -> dict[str, str]:
    """Return saved pattern → published pattern, where transformers loads both into one place."""
    places = {_loaded_as(model, pattern): pattern for pattern in published}
    matches = {pattern: places.get(_loaded_as(model, pattern)) for pattern in saved}
    return {pattern: other for pattern, other in matches.items() if other is not None}


def _loaded_as(model: Any, pattern: str) -> str:
    """Return what transformers calls a tensor of the files when it loads it."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    transforms = get_model_conversion_mapping(model)
    renamings = [transform for transform in transforms if isinstance(transform, WeightRenaming)]
    converters = [transform for transform in transforms if isinstance(transform, WeightConverter)]
    held = model.state_dict()
    place, _ = rename_source_key(
        pattern.replace("{}", "0"), renamings, converters, model.base_model_prefix, held
    )
    return str(place)


def write_weights(model: Any, folder: Path, index: tuple[str, ...], prefix: str = "") -> Naming:
    """Write a model's tensors under published names, and return those."""
    from safetensors.torch import save_file

    saved = saved_tensors(model, prefix)
    naming = naming_of(model, saved, index)
    tensors = {new: saved[old].detach().clone().contiguous() for old, new in naming.names.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return naming
