"""Inspects the adapter of a run and the layers that it changes. Imports no model library."""

import contextlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from artifacts.digests import digest_of
from artifacts.disk.paths import folder_named
from artifacts.errors import UsageError
from flows.core.checkpoint.model_digests import ModelDigests
from flows.core.checkpoint.profile_loading import io_errors_as_fault
from flows.core.options.commands import RunOptions
from stages.models.adapter_modules import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    LoraAdapter,
    modules_of,
    read_adapter,
)
from stages.models.hub.checkpoint import CONFIG, Checkpoint
from stages.models.profile import ModelProfile
from stages.models.published import FIELD, runs_as_published, states_as_published

NUMBER_BYTES = 4
"""Bytes per parameter of an adapter, which is kept in 32 bit whatever the half's precision."""
LABEL_DIGITS = 12
"""Hex digits of the digest that identify an adapter in captions and output."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AdapterUse:
    """The adapter that a half runs with."""

    folder: str
    digest: str
    """Digest of everything that determines what it adds."""
    modules: Mapping[str, str]
    """Path of each module that it changes: name in the adapter → name in the model."""
    parameters: int
    rows: int
    """Number of rows of the widest layer that it changes."""

    @property
    def bytes(self) -> int:
        return NUMBER_BYTES * self.parameters

    @property
    def label(self) -> str:
        """Return the name of the adapter in captions."""
        return f"adapter {self.digest[:LABEL_DIGITS]}"


def recorded_adapter(config: RunOptions) -> LoraAdapter | None:
    """Return the adapter that a run trains further or has merged, or None. Raises UsageError or
    EnvironmentFault."""
    name = config.groups.recorded_adapter.recorded_by
    return read_adapter(folder_named(name, "adapter")) if name else None


def read_noted_adapter(name: str, files: ModelDigests) -> LoraAdapter:
    """Return the adapter in a folder. Its files are noted before their headers are read. Raises
    UsageError or EnvironmentFault."""
    folder = folder_named(name, "adapter")
    for file in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
        with contextlib.suppress(OSError):  # `read_adapter` reports a missing file
            files.note(folder / file)
    return read_adapter(folder)


def adapter_for(
    adapter: LoraAdapter, config: RunOptions, profile: ModelProfile, digests: ModelDigests
) -> AdapterUse:
    """Return how a run uses its adapter. Raises UsageError if it does not fit the model."""
    if profile.route == "dual":
        raise UsageError(
            f"--adapter: not supported by {config.model} (a dual encoder; only captioning models "
            "take adapters)",
            hint="Remove --adapter, or give the model that it was trained on",
        )
    modules = modules_of(adapter, profile)
    matrices = [adapter.places[name] for of in adapter.low_rank.values() for name in (of.a, of.b)]
    return AdapterUse(
        folder=str(adapter.folder),
        digest=adapter_digest(adapter, digests),
        modules=modules,
        parameters=sum(math.prod(place.shape) for place in matrices),
        rows=max(low_rank.shape[0] for low_rank in adapter.low_rank.values()),
    )


def as_published_by(adapter: LoraAdapter | None, folder: Path) -> bool | None:
    """Return whether an adapter makes the model in a folder run as published: as it was trained.
    One that does not say counts as stock, unless the model's config.json states it. None: without
    an adapter, or with such a config.json, the checkpoint decides."""
    if adapter is None or (adapter.as_published is None and states_as_published(folder)):
        return None
    return bool(adapter.as_published)


def as_published_fields(as_published: bool) -> dict[str, bool]:
    """Return the recipe fields of results from a model that runs as published; none as stock."""
    return {"as_published": True} if as_published else {}


def base_digest(weights: Mapping[str, str]) -> str:
    """Return the digest that identifies a base by its weights (file → digest). It is empty if one
    is unknown. Files beside them do not count: a changed README makes no other base."""
    return digest_of(dict(weights)) if weights and all(weights.values()) else ""


def adapter_notes(
    adapter: LoraAdapter | None, checkpoint: Checkpoint, weights: Mapping[str, str]
) -> list[str]:
    """Return a note if the model runs as stock only because its adapter does not say how it was
    made, and one if the adapter was trained on other `weights` than the checkpoint's."""
    if adapter is None:
        return []
    folder, notes = checkpoint.folder, []
    is_stated = adapter.as_published is not None or states_as_published(folder)
    if not is_stated and runs_as_published(folder):
        notes.append(
            f"{adapter.folder} does not record whether it was made as published, so it runs as "
            f'stock; "{FIELD}": true in {folder / CONFIG} runs it otherwise'
        )
    base = base_digest(weights)
    if base and adapter.base_digest not in ("", base):
        notes.append(
            f"{adapter.folder} was trained on {adapter.base}, and the weights of {checkpoint.name} "
            "are others: captions may be worse; train it again, or give that model"
        )
    return notes


def adapter_digest(adapter: LoraAdapter, digests: ModelDigests) -> str:
    """Return the digest of an adapter's two files."""
    with io_errors_as_fault(str(adapter.folder)):
        files = [digests.of(adapter.folder / name) for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS)]
    return digest_of(files)
