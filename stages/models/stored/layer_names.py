"""Finds the quantized layers of a checkpoint."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from artifacts.disk.json_shapes import Json
from artifacts.errors import UsageError
from stages.models.hub.headers import Header
from stages.models.hub.quantized import settings_in
from stages.models.stored.layouts import Places, StoredLayer, recognized

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel


def stored_settings(config: "PreTrainedConfig") -> dict[str, Json] | None:
    """Return the settings of a checkpoint that was saved quantized; None for others."""
    settings = settings_in(config.to_dict())
    return None if settings is None else dict(settings)


def model_names(skeleton: "PreTrainedModel", names: Sequence[str]) -> list[str | None]:
    """Return the loader's name of each stored tensor; None for tensors that do not belong to the
    model."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    mapping = get_model_conversion_mapping(skeleton)
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    places = skeleton.state_dict()
    prefix = skeleton.base_model_prefix
    loader_names: list[str | None] = []
    for stored in names:
        name, _ = rename_source_key(stored, renamings, converters, prefix, places)
        if name not in places and stored in places:
            name = stored
        loader_names.append(name if name in places else None)
    return loader_names


def stored_layers(skeleton: "PreTrainedModel", headers: Sequence[Header]) -> dict[str, StoredLayer]:
    """Return the quantized layers that belong to the model: name of the weight → layer. Raises what
    `recognized` does."""

    def places_of(names: Sequence[str]) -> Places:
        shapes = {
            path: tuple(parameter.shape)
            for path, parameter in skeleton.named_parameters(remove_duplicate=False)
            if parameter.is_floating_point()
        }
        plain = [h.name for h in headers if h.name.endswith(".weight") and h.name not in names]
        paths = dict(zip([*names, *plain], model_names(skeleton, [*names, *plain]), strict=True))
        stored = {name: path for name in names if (path := paths[name]) and path in shapes}
        for name, path in paths.items():
            other = next((o for o in stored if o != name and stored[o] == path), "")
            if other:
                raise UsageError(
                    f"{name} and {other} are both the weight of one layer ({path})",
                    hint="Remove one of them from the files",
                )
        return {name: (path, shapes[path]) for name, path in stored.items()}

    return recognized(headers, stored_settings(skeleton.config) or {}, places_of)
