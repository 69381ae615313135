"""Options for the store and for limits of memory and processes."""

import os
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated

from artifacts.disk.paths import user_cache
from artifacts.option_texts import SIZE_TEXT, parse_size
from artifacts.options import Option, OptionGroup
from artifacts.records.eight_bits import FORMS
from flows.core.options.formats import FILES, MEMORY, MODEL
from stages.process.host_memory import cores

STORE_HELP = "folder, or s3://BUCKET/FOLDER [$PENSTOCK_STORE, else the user's cache folder]"
STORE_OPTION = Option(STORE_HELP, MODEL, "DIR", path=True)


def default_store() -> str:
    """Return `$PENSTOCK_STORE`, or a folder in the user's cache."""
    return os.environ.get("PENSTOCK_STORE") or str(user_cache())


MEMORY_OPTION = Option(
    "memory limit per stage, e.g. 8GiB [free memory]",
    MEMORY,
    "SIZE",
    above=0,
    text=SIZE_TEXT,
    parse=partial(parse_size, option="--memory"),
)
MAX_STORE_OPTION = replace(
    MEMORY_OPTION,
    help="largest size of the store during the run, e.g. 15GB [no limit]",
    heading=MODEL,
    parse=partial(parse_size, option="--max-store"),
)
PREPARE_WORKERS = 4
"""Most threads that prepare frames, unless more are requested."""
PREPARE_WORKERS_OPTION = Option(
    f"threads that prepare images [1; on a GPU the cores, up to {PREPARE_WORKERS}]",
    MEMORY,
    "N",
    above=0,
)


@dataclass(frozen=True, kw_only=True)
class StoreOptions(OptionGroup):
    """The location of the store."""

    store: Annotated[str, STORE_OPTION] = ""
    """Folder or bucket of the store; empty: `$PENSTOCK_STORE` or the user's cache."""

    @property
    def store_url(self) -> str:
        return self.store or default_store()


@dataclass(frozen=True, kw_only=True)
class StoreSizeOptions(OptionGroup):
    """The size of the store."""

    max_store: Annotated[int | None, MAX_STORE_OPTION] = None
    """Largest size of the store in bytes during the run: media are processed in waves that fit, and
    features that no job needs any more are deleted. None: no limit."""


@dataclass(frozen=True, kw_only=True)
class FeatureFormOptions(OptionGroup):
    """The form of stored features."""

    features_as: Annotated[
        str,
        Option(
            f"store features in about half their bytes: {'|'.join(FORMS)} [as computed]",
            MODEL,
            "F",
            values=("", *FORMS),
        ),
    ] = ""
    """Form in which features are stored: `int8-64` takes about half the bytes, and may change
    captions. Empty: as they are computed."""


@dataclass(frozen=True, kw_only=True)
class MemoryOptions(OptionGroup):
    """The memory limits of a stage."""

    memory: Annotated[int | None, MEMORY_OPTION] = None
    """Memory budget of a stage in bytes, on the GPU or else the host, beyond its imports. None: the
    free memory, minus a reserve."""


@dataclass(frozen=True, kw_only=True)
class ResourceOptions(MemoryOptions, StoreOptions):
    """Store location and resource limits of a run. Of these, only the batch size can affect
    captions."""

    batch_size: Annotated[int, Option("chunks per batch [8]", MEMORY, "N", above=0)] = 8
    """Chunks per batch. The encode stage takes fewer if they have many frames."""
    prepare_workers: Annotated[int | None, PREPARE_WORKERS_OPTION] = None
    """Threads that read and prepare frames for the encoder. None: 1 for an encoder on a CPU, and as
    many as cores for one on a GPU, up to PREPARE_WORKERS."""
    retry_failed: Annotated[bool, Option("retry media that failed before", FILES)] = False
    """Retry media that failed before."""
    check_media: Annotated[
        bool, Option("read all media again, to see whether one has changed", FILES)
    ] = False
    """Read all media again, to see whether one has changed whose size and time are the same."""
    keep_frames: Annotated[bool, Option("keep stored frames after encoding", FILES)] = False
    """Keep stored frames after encoding."""

    def readers(self, device: str) -> int:
        """Return the number of threads that prepare frames for an encoder on this device. On a CPU
        they would take cores from it."""
        automatic = 1 if device == "cpu" else min(PREPARE_WORKERS, cores())
        return self.prepare_workers or automatic
