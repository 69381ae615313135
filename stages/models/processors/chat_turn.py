"""Writes the text of one turn, media first; knows no family.

A checkpoint's own chat template writes it. Without one the words that stand for pictures come
first and the prompt after them, or the prompt alone where the processor itself places the pictures
or the model has no place for them in its text: then the prompt is what the text begins with.
"""

from typing import Any

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


def write(processor: Any, form: str, channel: str, media: int, prompt: str) -> str:
    """Write the text of one turn with so many pictures or videos."""
    kind = channel.removesuffix("s")
    if form == PARTS:
        parts = [*({"type": kind} for _ in range(media)), {"type": "text", "text": prompt}]
        return _templated(processor, [{"role": "user", "content": parts}])
    words = token(processor, kind) * media
    if form == WORDS:
        content = f"{words}\n{prompt}" if words else prompt
        return _templated(processor, [{"role": "user", "content": content}])
    return form.replace("{media}", words).replace("{prompt}", prompt)


def _templated(processor: Any, turns: list[dict[str, Any]]) -> str:
    writer = processor if processor.chat_template else processor.tokenizer
    text: str = writer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    return text
