"""Stores text vectors and the linear map from their cosines to logits. Runs no model."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from artifacts.packs import Record

if TYPE_CHECKING:  # numpy, which captions need not
    from artifacts.vectors import Vectors

Groups = Sequence[Sequence[str]]
"""Texts in groups with the same meaning."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TextVectors:
    """The vectors of groups of texts."""

    vectors: "Vectors"
    """Shape (groups, dimensions), each of length 1."""
    scale: float
    """The model's logit of an image and a text is `scale * cosine + bias`."""
    bias: float
    cut: tuple[str, ...]
    """Texts that exceed the model's length limit."""
    precision: str


def text_vectors_in(record: Record, groups: Groups, precision: str) -> TextVectors:
    """Return the vectors of these groups from a record."""
    from artifacts.vectors import vectors_in

    texts, meta = [text for group in groups for text in group], record.meta
    return TextVectors(
        vectors=vectors_in(record),
        scale=float(meta["scale"]),
        bias=float(meta["bias"]),
        cut=tuple(texts[at] for at in meta["cut"]),
        precision=precision,
    )
