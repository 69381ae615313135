"""Refuses prompts that no context holds, before anything is made for them; loads no model.

Only long ones are counted, on a thread: a token is a byte at the least. What pictures and templates
add is counted by the half, which refuses by the same words.
"""

import asyncio
import threading
from pathlib import Path
from typing import Any

from flows.serving.refusals import exceeded

TOKENIZER = "tokenizer.json"


class PromptBound:
    """The context of one model, and its tokenizer."""

    def __init__(self, folder: Path, context: int) -> None:
        """Take the folder of a checkpoint, and how many tokens it reads; 0: nobody knows."""
        self._path = folder / TOKENIZER
        self._context = context
        self._tokenizer: Any = None
        self._lock = threading.Lock()

    async def check(self, prompt: str, new: int) -> None:
        """Raise Refused for a prompt after which so many tokens exceed the context."""
        if not self._context or len(prompt.encode("utf-8", "replace")) + new <= self._context:
            return
        count = await asyncio.to_thread(self._count, prompt)
        if count + new > self._context:
            raise exceeded(
                f"the model's context is {self._context:,} tokens, and the prompt is {count:,}, an "
                f"answer up to {new:,}",
                "Ask in fewer words, or for a shorter answer",
            )

    def _count(self, prompt: str) -> int:
        """Return how many tokens a prompt is; 0 where only the half can say."""
        from tokenizers import Tokenizer

        with self._lock:
            try:
                self._tokenizer = self._tokenizer or Tokenizer.from_file(str(self._path))
                return len(self._tokenizer.encode(prompt, add_special_tokens=False).ids)
            except Exception:  # what cannot be read here is of a kind that the half reads
                return 0
