"""Options of `penstock serve`."""

import re
from dataclasses import dataclass, replace
from typing import Annotated

from artifacts.disk.paths import folder_named
from artifacts.errors import UsageError
from artifacts.option_texts import number
from artifacts.options import Option, OptionGroup
from artifacts.tiles import AUTO, check_tiles
from flows.core.options.commands import CaptionConfig
from flows.core.options.model import TODAY_OPTION, TRUST_HELP, DateOptions, PassOptions
from flows.core.options.precision import BACKEND_OPTION, TORCH
from flows.core.options.store import (
    MEMORY_OPTION,
    PREPARE_WORKERS_OPTION,
    MemoryOptions,
    StoreOptions,
)
from flows.core.options.vectors import CAPTIONS_OPTION, LABELS_OPTION, TEMPLATES_OPTION, EmbedConfig

LOOPBACK = ("127.0.0.1", "::1", "localhost")
"""Addresses that only this machine reaches."""


ADDRESS = "serving on "
"""Start of the line that a server prints when it listens."""
LARGEST_CAPTION_BATCH = 8
"""Default batch size for captioning."""
LARGEST_BATCH = 32
"""Default batch size for vectors, if it fits in memory."""
SERVED = "models and data"
BATCHES = "memory and batches"
NETWORK = "network"
JOBS = "jobs"
UNITS = {"": 1.0, "s": 1.0, "ms": 0.001}


def parse_batch(text: str) -> int:
    """Parse `--max-batch`: images per batch; 0: what fits. Raises UsageError."""
    if text == "auto":
        return 0
    try:
        size = int(number(text, int))
    except ValueError:
        size = 0
    if size < 1:
        raise UsageError(
            f"invalid --max-batch {text!r}: not a number", hint="Give auto, or 1 or more"
        )
    return size


def parse_wait(text: str) -> float:
    """Parse `--max-wait`, such as 10ms, into seconds. Raises UsageError."""
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*(ms|s|)", text.strip())
    if match is None:
        raise UsageError(f"invalid --max-wait {text!r}: not a time", hint="Give 10ms, or 0.01s")
    return float(match[1]) * UNITS[match[2]]


SHARED_MEMORY_OPTION = replace(
    MEMORY_OPTION, help="memory limit of all halves, e.g. 8GiB [free memory]", heading=BATCHES
)


@dataclass(frozen=True, kw_only=True)
class ServedOptions(StoreOptions, DateOptions):
    """The models of a server and their default prompts."""

    index: Annotated[str, Option("folder of an index to search", SERVED, "DIR", path=True)] = ""
    """Folder of an index to search."""
    captions: Annotated[str, replace(CAPTIONS_OPTION, heading=SERVED)] = ""
    """Folder of a run whose captions are searched together with the index."""
    labels: Annotated[str, replace(LABELS_OPTION, heading=SERVED)] = ""
    """File with one label per line, or YAML or JSON; or `a,b,c`."""
    templates: Annotated[str, replace(TEMPLATES_OPTION, heading=SERVED)] = ""
    """File of prompt templates with {} for a label."""
    model: Annotated[str, Option("dual encoder (CLIP) [the index's]", SERVED, "M", path=True)] = ""
    """Hub id, folder or `demo` of a dual encoder; empty: that of the index, or none."""
    caption_model: Annotated[
        str, Option("captioning model: hub id, folder [none]", SERVED, "M", path=True)
    ] = ""
    """Hub id, folder or `demo` of a captioning model; empty: none."""
    today: Annotated[str, replace(TODAY_OPTION, heading=SERVED)] = ""
    """Date as YYYY-MM-DD for chat templates that ask for today's."""
    tiles: Annotated[str, Option("image tiles: off, auto, N [%(default)s]", SERVED, "T")] = AUTO
    """Tiles that images are cut into."""
    trust_remote_code: Annotated[bool, Option(TRUST_HELP, SERVED)] = False
    """Allow the checkpoint's own code to run, and pickled weights to be loaded."""
    vision_backend: Annotated[str, replace(BACKEND_OPTION, heading=BATCHES)] = TORCH
    """Backend of the vision half."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.model or self.index or self.caption_model):
            raise UsageError(
                "there is nothing to serve",
                hint="Give --model, --index or --caption-model; to try it: --model demo",
            )
        if (self.labels or self.templates) and not (self.model or self.index):
            raise UsageError(
                "--labels: no model to compare images with them",
                hint="Add --model with a dual encoder such as CLIP (docs/embed.md)",
            )
        if self.captions and not self.index:
            raise UsageError("--captions: there is no index", hint="Give --index DIR, too")
        check_tiles(self.tiles)


@dataclass(frozen=True, kw_only=True)
class BatchOptions(MemoryOptions):
    """Resource limits of the halves, and the batching of requests."""

    memory: Annotated[int | None, SHARED_MEMORY_OPTION] = None
    """Device memory in bytes for all halves together."""
    idle: Annotated[
        float, Option("idle time before a model is unloaded [15]", BATCHES, "MINUTES", above=0)
    ] = 15.0
    """Minutes without requests after which a half is unloaded."""
    max_batch: Annotated[
        int,
        Option("maximum images per batch [what fits]", BATCHES, "N", least=0, parse=parse_batch),
    ] = 0
    """Largest number of images in a batch; 0: as many as fit, up to LARGEST_BATCH."""
    max_wait: Annotated[
        float,
        Option(
            "time an idle worker waits to fill a batch [10ms]",
            BATCHES,
            "TIME",
            least=0,
            parse=parse_wait,
        ),
    ] = 0.010
    """Seconds that an idle half may wait for expected requests."""
    max_queue: Annotated[
        int, Option("maximum concurrent requests [%(default)s]", BATCHES, "N", above=0)
    ] = 256
    """Requests handled at once, including those whose bodies are still arriving."""
    prepare_workers: Annotated[int | None, replace(PREPARE_WORKERS_OPTION, heading=BATCHES)] = None
    """Threads that prepare images for each vision half. None: 1 on a CPU, more on a GPU."""


@dataclass(frozen=True, kw_only=True)
class NetworkOptions(OptionGroup):
    """The listening address, and access control."""

    host: Annotated[str, Option("address to listen on [%(default)s]", NETWORK, "H")] = "127.0.0.1"
    """Address to listen on."""
    port: Annotated[
        int, Option("port; 0: any free port [%(default)s]", NETWORK, "P", least=0, most=65535)
    ] = 8000
    """Port to listen on; 0: any free port."""
    token_file: Annotated[
        str, Option("tokens: every request sends one", NETWORK, "F", path=True)
    ] = ""
    """File with a token that every request must send, or with a name and a token on each line."""
    access_log: Annotated[
        str, Option("file to log requests in; -: standard error", NETWORK, "F", path=True)
    ] = ""
    """File that gets a line per request; `-`: standard error; empty: none."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.host not in LOOPBACK and not self.token_file:
            raise UsageError(
                f"--host {self.host} is reachable by others, and there is no token",
                hint="Add --token-file F with a secret in F, or leave --host out",
            )


@dataclass(frozen=True, kw_only=True)
class JobOptions(OptionGroup):
    """The jobs of a server."""

    root: Annotated[
        tuple[str, ...],
        Option("folder of media that jobs may name", JOBS, "DIR", path=True, repeated=True),
    ] = ()
    """Folders whose media jobs may name; none: uploads only."""
    jobs: Annotated[str, Option("folder of the jobs [in the store]", JOBS, "DIR", path=True)] = ""
    """Folder in which jobs are kept; empty: one in the store."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for root in self.root:
            folder_named(root, "root")


@dataclass(frozen=True, kw_only=True)
class RequestLimits(OptionGroup):
    """Limits of one request. They are not command-line options."""

    body_bytes: int = 64 << 20
    """Largest body in bytes."""
    pixels: int = 50_000_000
    """Largest number of pixels of an image."""
    clip_seconds: float = 600.0
    """Longest clip in seconds."""
    deadline: float = 30.0
    """Seconds until a request without captions times out."""
    caption_deadline: float = 300.0
    """Seconds until a caption request times out."""


@dataclass(frozen=True, kw_only=True)
class LiveCaptionConfig(PassOptions, CaptionConfig):
    """A server's captioning job."""

    in_batches: bool = True


@dataclass(frozen=True, kw_only=True)
class LiveEmbedConfig(PassOptions, EmbedConfig):
    """A server's embedding job."""

    in_batches: bool = True


@dataclass(frozen=True, kw_only=True)
class ServeConfig(RequestLimits, JobOptions, NetworkOptions, BatchOptions, ServedOptions):
    """One server. Fields have the names of the command line's options."""

    def caption_config(self) -> LiveCaptionConfig:
        """Return the configuration of the captioning job."""
        return LiveCaptionConfig(
            sources=(),
            model=self.caption_model,
            store=self.store,
            today=self.today,
            memory=self.memory,
            vision_backend=self.vision_backend,
            batch_size=self.max_batch or LARGEST_CAPTION_BATCH,
            slots=self.max_batch or LARGEST_CAPTION_BATCH,
            trust_remote_code=self.trust_remote_code,
            prepare_workers=self.prepare_workers,
        )

    def vectors_config(self, model: str) -> LiveEmbedConfig:
        """Return the configuration of the embedding job."""
        return LiveEmbedConfig(
            sources=(),
            model=model or "demo",
            store=self.store,
            memory=self.memory,
            tiles=self.tiles,
            vision_backend=self.vision_backend,
            batch_size=self.max_batch or LARGEST_BATCH,
            trust_remote_code=self.trust_remote_code,
            prepare_workers=self.prepare_workers,
        )
