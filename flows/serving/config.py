"""Holds what a server is asked to do. It knows nothing of how it is done."""

from dataclasses import dataclass

from artifacts.errors import UsageError
from artifacts.tiles import AUTO, check_tiles
from flows.job.config import TORCH, CaptionConfig, check_above_zero
from flows.serving.hosts import LOOPBACK

LARGEST_CAPTION_BATCH = 8
"""The same of what is captioned."""
LARGEST_BATCH = 32
"""Works of a batch where nobody says, if so many fit."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ServeConfig:
    """One server. Fields have the names of the command line's options."""

    model: str = ""
    """Hub id, folder or `demo` of a model that makes vectors; empty: that of the index, or none."""
    caption_model: str = ""
    """The same of a model that captions; empty: none."""
    index: str = ""
    """Folder of an index to search in."""
    labels: str = ""
    """File with a label a line, or YAML or JSON; or `a,b,c`."""
    templates: str = ""
    """File of texts with {} for a label."""
    store: str = ""
    tiles: str = AUTO
    """Squares that pictures are cut in."""
    memory: int | None = None
    """Bytes that all halves together may take of the device."""
    vision_backend: str = TORCH
    trust_remote_code: bool = False
    host: str = "127.0.0.1"
    port: int = 8000
    token_file: str = ""
    """File with a token that every request must bring."""
    idle: float = 15.0
    """Minutes without work after which a half gives the device back."""
    max_batch: int = 0
    """Most pictures of a batch; 0: as many as fit, up to LARGEST_BATCH."""
    max_wait: float = 0.010
    """Seconds that an idle half may wait for requests that are on the way."""
    max_queue: int = 256
    """Requests that are being answered at once, those whose bodies are on the way among them."""
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

    def __post_init__(self) -> None:
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
        check_above_zero(self, ("idle", "max_queue", "deadline"))
        for name in ("max_batch", "max_wait"):
            if not 0 <= getattr(self, name) < float("inf"):
                option = name.replace("_", "-")
                raise UsageError(f"--{option} is {getattr(self, name)}", hint="Give 0 or more")
        if not 0 <= self.port < 1 << 16:
            raise UsageError(f"--port is {self.port}", hint="Give 0 to 65535; 0 takes a free one")
        if self.host not in LOOPBACK and not self.token_file:
            raise UsageError(
                f"--host {self.host} lets others in, and there is no token",
                hint="Add --token-file F with a secret in F, or leave --host out",
            )
        check_tiles(self.tiles)

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

    def vectors_config(self, model: str) -> CaptionConfig:
        """Return how vectors are made."""
        return CaptionConfig(
            sources=(),
            model=model or "demo",
            store=self.store,
            memory=self.memory,
            tiles=self.tiles,
            vision_backend=self.vision_backend,
            batch_size=self.max_batch or LARGEST_BATCH,
            trust_remote_code=self.trust_remote_code,
        )
