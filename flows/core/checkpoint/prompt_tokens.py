"""Counts the tokens of prompts with a checkpoint's tokenizer."""

import threading
from pathlib import Path
from typing import Any

TOKENIZER = "tokenizer.json"


def max_prompt_tokens(text: str) -> int:
    """Return an upper bound of a text's tokens: each token has at least one byte."""
    return len(text.encode("utf-8", "replace"))


class PromptTokens:
    """The tokenizer of one checkpoint, loaded on first use."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / TOKENIZER
        self._tokenizer: Any = None
        self._lock = threading.Lock()

    def count(self, text: str) -> int:
        """Return the number of tokens of a text, or 0 if only the half's processor can count
        them."""
        return len(self.ids(text))

    def ids(self, text: str) -> list[int]:
        """Return the tokens of a text; none if only the half's processor knows them."""
        from tokenizers import Tokenizer

        with self._lock:
            try:
                if self._tokenizer is None:
                    self._tokenizer = Tokenizer.from_file(str(self._path))
                    # Some files say to which length texts are cut or filled.
                    self._tokenizer.no_truncation()
                    self._tokenizer.no_padding()
                return [*self._tokenizer.encode(text, add_special_tokens=False).ids]
            except Exception:  # other tokenizer formats are read by the half
                return []
