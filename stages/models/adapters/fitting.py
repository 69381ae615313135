"""Finds the modules of a model that an adapter changes, or the reason why it does not fit. Imports
no model library.

An adapter names modules as the model does, or as older versions of transformers did, which took the
names from the checkpoint's files.
"""

from collections.abc import Mapping

from artifacts.errors import UsageError
from stages.models.adapters.reading import (
    MERGE_FIRST,
    LoraAdapter,
    of_another_model,
)
from stages.models.profile import AdaptableLayer, ModelProfile, PartProfile


def modules_of(adapter: LoraAdapter, profile: ModelProfile) -> dict[str, str]:
    """Return the modules that an adapter changes: path in the adapter → path in the model.

    Raises UsageError for an adapter of another model, or one that changes anything but products of
    the language half."""
    if adapter.whole:
        raise _refused(adapter, f"holds {next(iter(adapter.whole))}, which was trained whole")
    language, vision = (_by_name(profile.parts[part]) for part in ("language", "vision"))
    found: dict[str, str] = {}
    for path, low_rank in adapter.low_rank.items():
        if low_rank.embedding:
            raise _refused(adapter, f"changes {path}, an embedding table")
        if path not in language and path in vision:
            raise _refused(adapter, f"changes {path}, which belongs to the vision half")
        if path not in language:
            raise of_another_model(adapter, f"changes {path}, which {profile.folder} does not have")
        layer = language[path]
        ours = (layer.rows, layer.columns)
        if low_rank.shape != ours:
            shapes = [" x ".join(map(str, shape)) for shape in (low_rank.shape, ours)]
            why = f"changes {path} of {shapes[0]}, which is {shapes[1]} in {profile.folder}"
            raise of_another_model(adapter, why)
        if layer.path in found.values():
            raise UsageError(
                f"{adapter.folder} changes {layer.path} twice, the second time as {path}",
                hint=MERGE_FIRST,
            )
        found[path] = layer.path
    return found


def _by_name(part: PartProfile) -> Mapping[str, AdaptableLayer]:
    """Return the layers of a part by each of their names; current names take precedence."""
    stored = {layer.stored: layer for layer in part.adaptable if layer.stored}
    return {**stored, **{layer.path: layer for layer in part.adaptable}}


def _refused(adapter: LoraAdapter, why: str) -> UsageError:
    return UsageError(
        f"{adapter.folder} {why}: only layers of the language half can be adapted at run time",
        hint=MERGE_FIRST,
    )
