"""The job of comparing features; imports no library."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class FeaturesJob:
    """Records that two checkpoints made of the same chunks."""

    store: str
    kind: str
    """The kind of records: `features`, or `embeddings` of a dual encoder."""
    namespace: str
    """Namespace of those of the original."""
    other: str
    """Namespace of those that are compared with them."""
    pairs: list[list[str]]
    """The two keys of each chunk."""
