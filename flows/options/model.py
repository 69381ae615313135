"""Options for the checkpoint, its precision, and resource limits."""

import os
from dataclasses import dataclass, replace
from typing import Annotated

from artifacts.options import Option, OptionGroup
from artifacts.schema import Part
from artifacts.user_folders import user_cache
from flows.console.units import parse_size
from flows.options.headings import FILES, MEMORY, MODEL
from stages.decode.engines import AUTO
from stages.models.graphs.providers import BACKENDS

PRECISIONS = ("native", "auto", "fp32", "bf16", "fp16", "int8", "nf4")
"""The values of `--precision`; `auto` is native, and less when that does not fit. int8 and nf4
quantize the vision half only when its own option says so."""
DEMO_MODEL = "demo"
TORCH = "torch"
VISION_BACKENDS = (TORCH, *BACKENDS, AUTO)
"""The values of `--vision-backend`."""
STORE_HELP = "folder, or s3://BUCKET/FOLDER [$PENSTOCK_STORE or the user's cache folder]"
TRUST_HELP = "run code that comes with the checkpoint"
GIVE_MODEL = "Give a folder, a hub id, or demo"
MODEL_OPTION = Option("hub id, folder, or `demo`", MODEL, "M", not_empty=GIVE_MODEL)
DEFAULT_MODEL_OPTION = replace(MODEL_OPTION, help=f"{MODEL_OPTION.help} [%(default)s]")
AS_PUBLISHED_OPTION = Option(
    "run the model as it was published",
    MODEL,
    opposite=("--as-stock", "as transformers runs it [by its release]"),
)
PRECISION_OPTION = Option(f"{'|'.join(PRECISIONS)} [%(default)s]", MEMORY, "P", values=PRECISIONS)


def default_store() -> str:
    """Return `$PENSTOCK_STORE`, or a folder in the user's cache."""
    return os.environ.get("PENSTOCK_STORE") or str(user_cache())


def memory_size(text: str) -> int:
    """Return the bytes of a value of `--memory`. Raises UsageError."""
    return parse_size(text, "--memory")


BACKEND_OPTION = Option(
    f"{'|'.join(VISION_BACKENDS)}: graphs of the model compute it [%(default)s]",
    MEMORY,
    "B",
    values=VISION_BACKENDS,
)
MEMORY_OPTION = Option(
    "a stage takes at most so much: 8GiB [what is free]",
    MEMORY,
    "SIZE",
    above=0,
    parse=memory_size,
)


@dataclass(frozen=True, kw_only=True)
class ModelOptions(OptionGroup):
    """The checkpoint of a run."""

    model: Annotated[str, MODEL_OPTION]
    """Hub id, folder, or `demo`."""
    revision: Annotated[str | None, Option("branch, tag or commit of a hub id", MODEL, "R")] = None
    """Branch, tag or commit of a hub id; None: its default branch."""
    as_published: Annotated[bool | None, AS_PUBLISHED_OPTION] = None
    """Run the model as its authors published it where that is known to be otherwise; False: as the
    installed transformers runs it, or a native as its formulas say. None: as an adapter or an
    export was made, else as published where an older transformers wrote its config.json."""
    trust_remote_code: Annotated[bool, Option(TRUST_HELP, MODEL)] = False
    """Allow code that comes with the checkpoint to run, and pickled weights to be loaded."""


@dataclass(frozen=True, kw_only=True)
class PrecisionOptions(OptionGroup):
    """The precision of a model, and the backend of its vision half."""

    precision: Annotated[str, PRECISION_OPTION] = "native"
    """Precision of both halves; `native` is the checkpoint's own, `auto` the same as long as it
    fits. `int8` and `nf4` mean the language half alone."""
    vision_backend: Annotated[str, BACKEND_OPTION] = TORCH
    """What computes the vision half: `torch`, or graphs of the checkpoint by `onnx` or `tensorrt`;
    `auto`: those where they passed and are faster here."""

    def names(self, part: Part) -> bool:
        """Return whether an option sets the precision of this part alone."""
        return HalfPrecisionOptions.of(self).named(part) is not None

    def precision_of(self, part: Part) -> str:
        """Return the precision of a part: that of its own option, else that of all parts."""
        return HalfPrecisionOptions.of(self).named(part) or self.precision

    def may_fall_back(self, part: Part) -> bool:
        """Return whether a part may be run in whatever fits."""
        return self.precision_of(part) == "auto"


@dataclass(frozen=True, kw_only=True)
class HalfPrecisionOptions(OptionGroup):
    """Precision options per half of a model."""

    vision_precision: Annotated[
        str | None,
        Option("of the vision half [--precision, unquantized]", MEMORY, "P", values=PRECISIONS),
    ] = None
    """Precision of the vision half, if not the same."""
    language_precision: Annotated[
        str | None, Option("of the language half [--precision]", MEMORY, "P", values=PRECISIONS)
    ] = None
    """Precision of the language half, if not the same."""

    def named(self, part: Part) -> str | None:
        """Return the precision that an option sets for this part alone."""
        return {"vision": self.vision_precision, "language": self.language_precision}.get(part)


@dataclass(frozen=True, kw_only=True)
class AdapterOptions(OptionGroup):
    """The adapter of the language half."""

    adapter: Annotated[str, Option("folder of a LoRA (PEFT)", MODEL, "A")] = ""
    """Folder of a LoRA adapter (PEFT) with which the language half runs; empty: none."""


@dataclass(frozen=True, kw_only=True)
class StoreOptions(OptionGroup):
    """The location of the store."""

    store: Annotated[str, Option(STORE_HELP, MODEL, "DIR")] = ""
    """Folder or bucket of the store; empty: `$PENSTOCK_STORE` or the user's cache."""

    @property
    def store_url(self) -> str:
        return self.store or default_store()


@dataclass(frozen=True, kw_only=True)
class MemoryOptions(OptionGroup):
    """The memory limits of a stage."""

    memory: Annotated[int | None, MEMORY_OPTION] = None
    """Bytes that a stage may take, of the GPU or else of the host, above what its imports take;
    None: what is free, but for a reserve."""


@dataclass(frozen=True, kw_only=True)
class ResourceOptions(MemoryOptions, StoreOptions):
    """Store location and resource limits of a run. Only captions computed in batches depend on one
    of them, the batch size."""

    batch_size: Annotated[int, Option("chunks a batch [8]", MEMORY, "N", above=0)] = 8
    """Chunks a batch; encode takes fewer when they hold many frames."""
    retry_failed: Annotated[bool, Option("try media again that failed before", FILES)] = False
    """Try media again that failed before."""
    keep_frames: Annotated[bool, Option("keep the stored frames after encoding", FILES)] = False
    """Keep the stored frames after encoding."""
