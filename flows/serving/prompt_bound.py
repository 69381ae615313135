"""Refuses prompts longer than the context before any work is done for them. Loads no model.

Only long prompts are counted, on a thread. The half itself counts tokens of images and templates,
and refuses with the same message.
"""

import asyncio
from pathlib import Path

from flows.checkpoint.prompt_tokens import PromptTokens, most_tokens
from flows.serving.refusals import exceeded


class PromptBound:
    """The context length of one model, and its tokenizer."""

    def __init__(self, folder: Path, context: int) -> None:
        """Take the folder of a checkpoint, and how many tokens it reads; 0: nobody knows."""
        self._context = context
        self._tokens = PromptTokens(folder)

    async def check(self, prompt: str, new: int, *, whole: bool = True) -> None:
        """Raise Refused for a prompt after which so many tokens exceed the context; where not the
        `whole` answer has to fit, for one that leaves no room for a first token."""
        needed = new if whole else 1
        if not self._context or most_tokens(prompt) + needed <= self._context:
            return
        count = await asyncio.to_thread(self._tokens.count, prompt)
        if count + needed > self._context:
            raise exceeded(
                f"the model's context is {self._context:,} tokens, and the prompt is {count:,}, an "
                f"answer up to {new:,}",
                "Ask in fewer words, or for a shorter answer",
            )
