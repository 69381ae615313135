"""What the decode stage is told; imports no model library."""

from dataclasses import dataclass

from stages.models.half_job import HalfJob

DEFAULT_ENGINE = "transformers"


@dataclass(frozen=True, kw_only=True, slots=True)
class DecodeJob(HalfJob):
    """Chunks to be captioned, all of them in one way."""

    store: str
    features_scope: str
    scope: str
    """Of the captions."""
    batches: list[list[dict[str, str]]]
    """Of each chunk `key`, `features` (their key), `kind` and `prompt`."""
    max_new_tokens: int
    kv: str = ""
    """Where the KV cache is kept: `offloaded`, `quantized`, or empty."""
    engine: str = DEFAULT_ENGINE
    """What makes the captions: a name of `ENGINES`."""
