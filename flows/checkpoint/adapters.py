"""Inspects the adapter of a run and the layers that it changes. Imports no model library."""

import contextlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from artifacts.errors import UsageError
from artifacts.keys import digest_of
from artifacts.paths import folder_named
from flows.checkpoint.model_files import ModelDigests
from flows.checkpoint.profile_loading import readable
from flows.options.commands import RunOptions
from flows.options.model import AdapterOptions
from stages.models.adapters.fitting import modules_of
from stages.models.adapters.reading import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    LoraAdapter,
    read_adapter,
)
from stages.models.profile import ModelProfile
from stages.models.published import is_export_without_way, is_published_way

NUMBER_BYTES = 4
"""Bytes that a number of an adapter takes, which is kept in 32 bit beside whatever half."""
SHOWN = 12
"""Digits of a digest by which people are told which adapter it is."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AdapterUse:
    """The adapter that a half runs with."""

    folder: str
    digest: str
    """Digest of all that decides what it adds."""
    modules: Mapping[str, str]
    """Path of each module that it changes, as it names it → as the model does."""
    parameters: int
    rows: int
    """Rows of the widest layer that it changes."""

    @property
    def bytes(self) -> int:
        return NUMBER_BYTES * self.parameters

    @property
    def label(self) -> str:
        """Return the words by which captions name it."""
        return f"adapter {self.digest[:SHOWN]}"


def parse_adapter(config: RunOptions, files: ModelDigests) -> LoraAdapter | None:
    """Return the adapter that a run asks for, as its headers have it; None: it asks for none. Its
    files are noted before. Raises UsageError or EnvironmentFault."""
    adapters = AdapterOptions.of(config)
    return adapter_noted(adapters.adapter, files) if adapters.adapter else None


def adapter_noted(name: str, files: ModelDigests) -> LoraAdapter:
    """Return the adapter in a folder, its files noted before their headers are read. Raises
    UsageError or EnvironmentFault."""
    folder = folder_named(name, "adapter")
    for file in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
        with contextlib.suppress(OSError):  # of what is missing, the reader tells
            files.note(folder / file)
    return read_adapter(folder)


def adapter_for(
    adapter: LoraAdapter, config: RunOptions, profile: ModelProfile, digests: ModelDigests
) -> AdapterUse:
    """Return how a run uses its adapter. Raises UsageError for one that does not fit the model."""
    if profile.route == "dual":
        raise UsageError(
            f"--adapter is given, and {config.model} makes vectors: only what captions is adapted",
            hint="Leave --adapter out, or give the model that it was trained on",
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


def way_of(asked: bool | None, adapter: LoraAdapter | None) -> bool | None:
    """Return whether a model is asked to be run as published: by the command, else as its adapter
    was trained, which is as stock where it does not say; None: the checkpoint decides."""
    if asked is not None or adapter is None:
        return asked
    return bool(adapter.as_published)


def way_recipe(as_published: bool) -> dict[str, bool]:
    """Return what the recipe of something made of a model says of the way that it is run; nothing
    as stock."""
    return {"as_published": True} if as_published else {}


def way_notes(asked: bool | None, adapter: LoraAdapter | None, folder: Path) -> list[str]:
    """Return what people should know of a model that is run as stock because what it was made from
    does not say."""
    if asked is not None:
        return []
    silent = folder if is_export_without_way(folder) else None
    if adapter is not None:
        unsaid = adapter.as_published is None and is_published_way(folder)
        silent = adapter.folder if unsaid else None
    if silent is None:
        return []
    return [
        f"{silent} does not say whether it was made as published, so it is run as stock; "
        "--as-published runs it otherwise"
    ]


def adapter_digest(adapter: LoraAdapter, digests: ModelDigests) -> str:
    """Return the digest of an adapter's two files."""
    with readable(str(adapter.folder)):
        files = [digests.of(adapter.folder / name) for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS)]
    return digest_of(files)
