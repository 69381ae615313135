"""The job of the decode stage, as its process is told it; imports no model library."""

from dataclasses import dataclass, field
from typing import Any

from stages.models.half_job import HalfJob


@dataclass(frozen=True, kw_only=True, slots=True)
class DecodeJob(HalfJob):
    """Chunks to be captioned, all of them in one way."""

    store: str
    features_namespace: str
    namespace: str
    """Namespace of the captions."""
    batches: list[list[dict[str, str]]]
    """`key`, `features` (their key), `kind` and `prompt` of each chunk."""
    max_new_tokens: int
    prefill: int = 0
    """Tokens of a prompt that the language half reads at once; 0: all."""
    kv: str = ""
    """Place of the KV cache: `offloaded`, `quantized`, or empty."""
    engine: str
    """Choice of what makes the captions."""
    instead: str = ""
    """Namespace of the captions of the second choice, which members have under a key `instead`;
    empty: the same as of the first."""
    batch_instead: int = 0
    """Most chunks of a batch of the second choice, which takes other memory; 0: as they are."""
    live: str = ""
    """Pipe of batches to be captioned as they are told; empty: those of `batches`."""
    slots: int = 0
    """Rows that are said at once; 0: as many as a batch has."""
    generation: dict[str, Any] = field(default_factory=dict)
    """How words are chosen, of `Generation` what is not as by default."""
    said_before: dict[str, int] = field(default_factory=dict)
    """Key of a member → tokens that were said of its chunk under another prompt, where some
    were."""
    beyond_context: bool = False
    """Whether prompts that exceed the model's context are read all the same."""
