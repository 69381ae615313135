"""The job description of the decode stage. Imports no model library."""

from dataclasses import dataclass, field
from typing import NamedTuple

from stages.decode.generation import SamplingParams
from stages.models.half_job import HalfJob

OWN, FALLBACK, COMPILED = "own", "fallback", "compiled"
"""Engines that may answer an item: that of the job, its fallback, and that with compiled steps."""


class DecodeItem(NamedTuple):
    """A chunk to caption."""

    key: str
    """Key of the caption."""
    features: str
    """Key of the features."""
    prompt: str
    instead: str = ""
    """Key of the fallback engine's caption, in the fallback namespace."""
    settings: str = ""
    """RequestSettings of a server request as text; empty: the job's settings apply."""
    to_context: bool = False
    """Whether the client sets no token limit: the answer may fill the context."""
    again: bool = False
    """Whether this is the retry of a caption that repeated itself."""
    kind: str = ""
    """`video` or `image`."""
    compiled: str = ""
    """Key of the caption by compiled steps, in the job's `compiled_namespace`."""

    @property
    def keys(self) -> dict[str, str]:
        """Return the keys of its answers by these engines."""
        keys = {OWN: self.key, FALLBACK: self.instead, COMPILED: self.compiled}
        return {engine: key for engine, key in keys.items() if key}


@dataclass(frozen=True, kw_only=True, slots=True)
class DecodeJob:
    """Chunks to caption with the same settings."""

    half: HalfJob
    store: str
    features_namespace: str
    namespace: str
    """Cache namespace of the captions."""
    other_features: list[str] = field(default_factory=list)
    """Cache namespaces of features that requests of a pipe may name, too."""
    batches: list[list[DecodeItem]]
    max_new_tokens: int
    prefill: int = 0
    """Tokens of a prompt that the language half prefills per chunk; 0: all."""
    kv: str = ""
    """Place of the KV cache: `offloaded`, `quantized`, or empty."""
    engine: str
    """Engine, or choice between engines, that generates the captions."""
    instead: str = ""
    """Cache namespace of the fallback engine's captions; empty: the same namespace. Items hold the
    keys in their field `instead`."""
    compiled_namespace: str = ""
    """Cache namespace of captions by compiled steps, which are tried if they pass the engine check;
    empty: they are not tried."""
    batch_instead: int = 0
    """Maximum batch size of the fallback engine, which needs other memory; 0: unchanged."""
    live: str = ""
    """Pipe with batches to caption as they arrive; empty: caption `batches`."""
    slots: int = 0
    """Sequences that are decoded at once; 0: the batch size."""
    rung_slots: int = 0
    """Slots that the plan allows, however few items are left; 0: unknown."""
    rows_namespace: str = ""
    """Cache namespace of the half's number of rows per step; empty on a CPU."""
    generation: SamplingParams = field(default_factory=SamplingParams)
    """Sampling parameters."""
    said_before: dict[str, int] = field(default_factory=dict)
    """Key of an item → tokens of its chunk's caption under the previous prompt, if known."""
