"""Finds the placeholder tokens that stand for pictures and videos in a prompt."""

from collections.abc import Sequence
from typing import Any

from stages.models.protocols import Processor

PLACES = ("image_token", "video_token", "boi_token", "audio_token")
"""Attribute names under which processors and tokenizers keep placeholders."""


def token(processor: Processor, kind: str) -> str:
    """Return the placeholder of an `image`, a `video` or `audio` in a prompt; empty if there is
    none."""
    return _word(getattr(processor, f"{kind}_token", None))


def placeholder_tokens(processor: Processor) -> set[str]:
    """Return the strings that a prompt must not contain: the model reads them as placeholders."""
    parts = (processor, processor.tokenizer)
    tokens = {_word(getattr(part, name, None)) for part in parts for name in PLACES}
    tokens |= {str(processor.tokenizer.convert_ids_to_tokens(i)) for i in declared_ids(processor)}
    return {word for word in tokens if word} - {_word(processor.tokenizer.bos_token)}


def declared_ids(processor: Processor, kinds: Sequence[str] = ("image", "video")) -> set[int]:
    """Return the token ids that the processor declares as placeholders of these kinds."""
    ids: set[int] = set()
    for kind in kinds:
        number = getattr(processor, f"{kind}_token_id", None)
        if number is None and (word := token(processor, kind)):
            number = processor.tokenizer.convert_tokens_to_ids(word)
        if isinstance(number, int):
            ids.add(number)
    return ids


def count_places(processor: Processor, ids: list[int], media: int) -> int:
    """Return how many features belong in a row of these token ids.

    Some processors declare a token that stands once for a whole image, and write another token per
    feature. That token is the most frequent one among the added tokens.
    """
    known = declared_ids(processor)
    declared = sum(ids.count(number) for number in known)
    if declared > media or not known:
        return declared
    tokens = processor.tokenizer
    added = set(tokens.added_tokens_decoder) - known
    added -= {tokens.pad_token_id, tokens.bos_token_id, tokens.eos_token_id}
    return max(declared, *(ids.count(number) for number in added & set(ids)), 0)


def _word(value: Any) -> str:
    """Return a token's text; some processors keep it with its settings."""
    return str(getattr(value, "content", value) or "")
