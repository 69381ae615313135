"""Maps a checkpoint's tensor names to the model's, as the loader does."""

from collections.abc import Sequence
from typing import Any


def model_names(skeleton: Any, names: Sequence[str]) -> list[str | None]:
    """Return the loader's name of each stored tensor; None for tensors that do not belong to the
    model."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import (
        WeightConverter,
        WeightRenaming,
        rename_source_key,
    )

    mapping = get_model_conversion_mapping(skeleton)
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    places = skeleton.state_dict()
    prefix = skeleton.base_model_prefix
    found: list[str | None] = []
    for stored in names:
        name, _ = rename_source_key(stored, renamings, converters, prefix, places)
        if name not in places and stored in places:
            name = stored
        found.append(name if name in places else None)
    return found
