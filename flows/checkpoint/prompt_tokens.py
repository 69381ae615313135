"""Counts the tokens of a prompt with a checkpoint's tokenizer. Loads no model."""

import threading
from pathlib import Path
from typing import Any

TOKENIZER = "tokenizer.json"


def most_tokens(text: str) -> int:
    """Return the tokens that a text is at the most: a token is a byte at the least."""
    return len(text.encode("utf-8", "replace"))


class PromptTokens:
    """The tokenizer of one checkpoint, loaded on first use."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / TOKENIZER
        self._tokenizer: Any = None
        self._lock = threading.Lock()

    def count(self, text: str) -> int:
        """Return how many tokens a text is; 0 where only the half can say."""
        from tokenizers import Tokenizer

        with self._lock:
            try:
                self._tokenizer = self._tokenizer or Tokenizer.from_file(str(self._path))
                return len(self._tokenizer.encode(text, add_special_tokens=False).ids)
            except Exception:  # what cannot be read here is of a kind that the half reads
                return 0
