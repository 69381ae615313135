"""Writes the text of one turn, media first; knows no family.

A checkpoint's own chat template writes it. Without one the words that stand for pictures come
first and the prompt after them, or the prompt alone where the processor itself places the pictures
or the model has no place for them in its text: then the prompt is what the text begins with.
"""

from typing import Any

from artifacts.errors import UsageError
from stages.models.processors.loading import token

PARTS = "parts"
"""The chat template is given a list of pictures and text."""
WORDS = "words"
"""The chat template is given one string, as templates of language models expect."""
PLAIN = ("{prompt}", "{media}\n{prompt}")
"""Forms for a checkpoint without a chat template."""
SPELLED = "{media}{prompt}"
"""The form taken for the first of them where a processor wants the words written that it would put
there itself."""


def forms(processor: Any) -> tuple[str, ...]:
    """Return the forms in which a turn may be written; the first that works is the one to take."""
    if processor.chat_template:
        return (PARTS, WORDS)
    return (WORDS, *PLAIN) if processor.tokenizer.chat_template else PLAIN


def write(
    processor: Any, form: str, channel: str, media: int, prompt: str, system: str = ""
) -> str:
    """Write the text of one turn with so many pictures or videos, after a `system` text. Raises
    UsageError where there is no place for that."""
    kind = channel.removesuffix("s")
    if form == PARTS:
        parts = [*({"type": kind} for _ in range(media)), {"type": "text", "text": prompt}]
        before = [_system([{"type": "text", "text": system}])] if system else []
        return _templated(processor, [*before, {"role": "user", "content": parts}], system)
    words = token(processor, kind) * media
    if form == WORDS:
        content = f"{words}\n{prompt}" if words else prompt
        before = [_system(system)] if system else []
        return _templated(processor, [*before, {"role": "user", "content": content}], system)
    if system:
        raise _without_system()
    return form.replace("{media}", words).replace("{prompt}", prompt)


def _system(content: Any) -> dict[str, Any]:
    return {"role": "system", "content": content}


def _templated(processor: Any, turns: list[dict[str, Any]], system: str) -> str:
    writer = processor if processor.chat_template else processor.tokenizer
    try:
        text: str = writer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    except Exception as error:  # a template may refuse a role in any way
        if system:
            raise _without_system() from error
        raise
    if system.strip() not in text:
        raise _without_system()
    return text


def _without_system() -> UsageError:
    return UsageError(
        "the chat template of this model has no place for --system",
        hint="Put that text at the head of --prompt",
    )
