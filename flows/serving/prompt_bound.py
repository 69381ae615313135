"""Refuses prompts longer than the context before any work is done for them. Loads no model.

Only long prompts are counted, on a thread. The half itself counts tokens of images and templates,
and refuses with the same message.
"""

import asyncio
from pathlib import Path

from flows.checkpoint.prompt_tokens import PromptTokens, max_prompt_tokens
from flows.serving.refusals import exceeded


class PromptBound:
    """The context length of one model, and its tokenizer."""

    def __init__(self, folder: Path, context: int) -> None:
        """Take the folder of a checkpoint and its context length in tokens; 0: unknown."""
        self._context = context
        self._tokens = PromptTokens(folder)

    async def check(self, prompt: str, new: int, *, whole: bool = True) -> None:
        """Raise HttpRefusal for a prompt that exceeds the context together with `new` tokens. If
        the answer may be cut (not `whole`), only its first token has to fit."""
        needed = new if whole else 1
        if not self._context or max_prompt_tokens(prompt) + needed <= self._context:
            return
        count = await asyncio.to_thread(self._tokens.count, prompt)
        if count + needed > self._context:
            raise exceeded(
                f"the model's context is {self._context:,} tokens: the prompt needs {count:,}, and "
                f"the answer up to {new:,}",
                "Shorten the prompt, or request a shorter answer",
            )
