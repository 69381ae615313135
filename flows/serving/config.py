"""Options of `penstock serve`."""

import re
from dataclasses import dataclass, replace
from typing import Annotated

from artifacts.errors import UsageError
from artifacts.options import Option, OptionGroup
from artifacts.tiles import AUTO, check_tiles
from flows.options.commands import CaptionConfig
from flows.options.model import (
    BACKEND_OPTION,
    MEMORY_OPTION,
    TORCH,
    TRUST_HELP,
    MemoryOptions,
    StoreOptions,
)
from flows.options.vectors import LABELS_OPTION, TEMPLATES_OPTION, EmbedConfig
from flows.serving.hosts import LOOPBACK

LARGEST_CAPTION_BATCH = 8
"""The same of what is captioned."""
LARGEST_BATCH = 32
"""Works of a batch where nobody says, if so many fit."""
SERVED = "what is served"
BATCHES = "memory and batches"
NETWORK = "network"
UNITS = {"": 1.0, "s": 1.0, "ms": 0.001}


def parse_batch(text: str) -> int:
    """Return the pictures of `--max-batch`; 0: what fits. Raises UsageError."""
    if text == "auto":
        return 0
    if not text.isdecimal() or not int(text):
        raise UsageError(f"--max-batch {text} is no number", hint="Give auto, or 1 or more")
    return int(text)


def parse_wait(text: str) -> float:
    """Return the seconds of `--max-wait`, such as 10ms. Raises UsageError."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(ms|s|)", text.strip())
    if found is None:
        raise UsageError(f"--max-wait {text} is no time", hint="Give 10ms, or 0.01s")
    return float(found[1]) * UNITS[found[2]]


SHARED_MEMORY_OPTION = replace(
    MEMORY_OPTION, help="all halves take at most so much: 8GiB [what is free]", heading=BATCHES
)


@dataclass(frozen=True, kw_only=True)
class ServedOptions(StoreOptions):
    """The models of a server and their default prompts."""

    index: Annotated[str, Option("an index to search in", SERVED, "DIR")] = ""
    """Folder of an index to search in."""
    labels: Annotated[str, replace(LABELS_OPTION, heading=SERVED)] = ""
    """File with a label a line, or YAML or JSON; or `a,b,c`."""
    templates: Annotated[str, replace(TEMPLATES_OPTION, heading=SERVED)] = ""
    """File of texts with {} for a label."""
    model: Annotated[str, Option("CLIP kind: hub id, folder, demo [the index's]", SERVED, "M")] = ""
    """Hub id, folder or `demo` of a model that makes vectors; empty: that of the index, or none."""
    caption_model: Annotated[str, Option("one that captions [no captions]", SERVED, "M")] = ""
    """The same of a model that captions; empty: none."""
    tiles: Annotated[str, Option("off|auto|N: parts of pictures [%(default)s]", SERVED, "T")] = AUTO
    """Squares that pictures are cut in."""
    trust_remote_code: Annotated[bool, Option(TRUST_HELP, SERVED)] = False
    """Allow code that comes with the checkpoint to run, and pickled weights to be loaded."""
    vision_backend: Annotated[str, replace(BACKEND_OPTION, heading=BATCHES)] = TORCH
    """What computes the vision half."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.model or self.index or self.caption_model):
            raise UsageError(
                "there is nothing to serve",
                hint="Give --model, --index or --caption-model; to try it: --model demo",
            )
        if (self.labels or self.templates) and not (self.model or self.index):
            raise UsageError(
                "--labels are given, and no model that compares pictures with them",
                hint="Add --model, a model of the CLIP kind (docs/embed.md)",
            )
        check_tiles(self.tiles)


@dataclass(frozen=True, kw_only=True)
class BatchOptions(MemoryOptions):
    """Resource limits of the halves, and the batching of requests."""

    memory: Annotated[int | None, SHARED_MEMORY_OPTION] = None
    """Bytes that all halves together may take of the device."""
    idle: Annotated[
        float, Option("then the GPU is given back [15]", BATCHES, "MINUTES", above=0)
    ] = 15.0
    """Minutes without work after which a half gives the device back."""
    max_batch: Annotated[
        int,
        Option("most pictures of a batch [what fits]", BATCHES, "N", least=0, parse=parse_batch),
    ] = 0
    """Most pictures of a batch; 0: as many as fit, up to LARGEST_BATCH."""
    max_wait: Annotated[
        float,
        Option(
            "an idle half waits for others [10ms]",
            BATCHES,
            "TIME",
            least=0,
            parse=parse_wait,
        ),
    ] = 0.010
    """Seconds that an idle half may wait for requests that are on the way."""
    max_queue: Annotated[int, Option("requests at once [%(default)s]", BATCHES, "N", above=0)] = 256
    """Requests that are being answered at once, those whose bodies are on the way among them."""


@dataclass(frozen=True, kw_only=True)
class NetworkOptions(OptionGroup):
    """The listening address, and access control."""

    host: Annotated[str, Option("address to listen on [%(default)s]", NETWORK, "H")] = "127.0.0.1"
    """Address to listen on."""
    port: Annotated[int, Option("0: a free one [%(default)s]", NETWORK, "P")] = 8000
    """Port to listen on; 0 takes a free one."""
    token_file: Annotated[str, Option("every request must bring what it holds", NETWORK, "F")] = ""
    """File with a token that every request must bring."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.port < 1 << 16:
            raise UsageError(f"--port is {self.port}", hint="Give 0 to 65535; 0 takes a free one")
        if self.host not in LOOPBACK and not self.token_file:
            raise UsageError(
                f"--host {self.host} lets others in, and there is no token",
                hint="Add --token-file F with a secret in F, or leave --host out",
            )


@dataclass(frozen=True, kw_only=True)
class RequestLimits(OptionGroup):
    """Limits of one request. No option sets them."""

    body_bytes: int = 64 << 20
    """Largest body."""
    pixels: int = 50_000_000
    """Most pixels of a picture."""
    clip_seconds: float = 600.0
    """Longest clip."""
    deadline: float = 30.0
    """Seconds in which a request is answered, if no words are made for it."""
    caption_deadline: float = 300.0
    """Seconds in which a caption is."""


@dataclass(frozen=True, kw_only=True)
class ServeConfig(RequestLimits, NetworkOptions, BatchOptions, ServedOptions):
    """One server. Fields have the names of the command line's options."""

    @property
    def needs_vectors(self) -> bool:
        """Return whether anything is answered by vectors."""
        return bool(self.model or self.index)

    def caption_config(self) -> CaptionConfig:
        """Return how captions are made."""
        return CaptionConfig(
            sources=(),
            model=self.caption_model,
            store=self.store,
            memory=self.memory,
            vision_backend=self.vision_backend,
            batch_size=self.max_batch or LARGEST_CAPTION_BATCH,
            trust_remote_code=self.trust_remote_code,
        )

    def vectors_config(self, model: str) -> EmbedConfig:
        """Return how vectors are made."""
        return EmbedConfig(
            sources=(),
            model=model or "demo",
            store=self.store,
            memory=self.memory,
            tiles=self.tiles,
            vision_backend=self.vision_backend,
            batch_size=self.max_batch or LARGEST_BATCH,
            trust_remote_code=self.trust_remote_code,
        )
