"""The job description of the decode stage. Imports no model library."""

from dataclasses import dataclass, field
from typing import NamedTuple

from stages.decode.generation import SamplingParams
from stages.models.half_job import HalfJob


class DecodeItem(NamedTuple):
    """A chunk to caption."""

    key: str
    """Key of the caption."""
    features: str
    """Key of the features."""
    prompt: str
    instead: str = ""
    """Key of the caption of the second choice."""
    settings: str = ""
    """Text of the RequestSettings of a request that has some; empty: the job's apply."""
    to_context: bool = False
    """Whether its client asks for no limit: its answer ends where the context does."""
    again: bool = False
    """Whether it is said once more, because it went round in circles."""
    kind: str = ""
    """`video` or `image`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DecodeJob:
    """Chunks to caption with the same settings."""

    half: HalfJob
    store: str
    features_namespace: str
    namespace: str
    """Namespace of the captions."""
    batches: list[list[DecodeItem]]
    max_new_tokens: int
    prefill: int = 0
    """Tokens of a prompt that the language half reads at once; 0: all."""
    kv: str = ""
    """Place of the KV cache: `offloaded`, `quantized`, or empty."""
    engine: str
    """Choice of what makes the captions."""
    instead: str = ""
    """Namespace of the captions of the second choice, whose keys items have as `instead`;
    empty: the same as of the first."""
    batch_instead: int = 0
    """Most chunks of a batch of the second choice, which takes other memory; 0: as they are."""
    live: str = ""
    """Pipe of batches to be captioned as they are told; empty: those of `batches`."""
    slots: int = 0
    """Rows that are said at once; 0: as many as a batch has."""
    generation: SamplingParams = field(default_factory=SamplingParams)
    """How words are chosen."""
    said_before: dict[str, int] = field(default_factory=dict)
    """Key of a member → tokens that were said of its chunk under another prompt, where some
    were."""
    beyond_context: bool = False
    """Whether prompts that exceed the model's context are read all the same."""
