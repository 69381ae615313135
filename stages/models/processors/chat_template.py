"""Formats one chat turn with media first; the same code serves all families.

The checkpoint's own chat template formats it. Without a template, the image placeholders come first
and the prompt after them. The prompt stands alone if the processor places the images itself, or if
the model has no placeholders in its text. Then the text begins with the prompt.

Templates take the content as a list of parts, as one string, or as either. A template that expects
a string may print a list in Python's notation. So a form is accepted only if its output contains a
test prompt verbatim: in a printed list the quotation marks differ. The form of a system text is
found separately in the same way.
"""

from typing import Any

from artifacts.errors import UsageError
from stages.models.processors.loading import known, token
from stages.models.processors.vision_pair import without_outer_pair

PARTS = "parts"
"""The chat template receives a list of images and text."""
STRING = "words"
"""The chat template receives one string, as templates of language models expect."""
PROMPT = "prompt"
"""The chat template receives only the prompt as a string, and places the image itself."""
TEMPLATED = (PARTS, STRING, PROMPT)
PLAIN = ("{prompt}", "{media}\n{prompt}")
"""Forms for a checkpoint without a chat template."""
WITH_PLACEHOLDERS = "{media}{prompt}"
"""Replaces the first form for a processor that wants the placeholders written out, although it can
insert them itself."""
TRIAL = "Say 'what', and \"how\"."
"""A text with both quotation marks; a printed list escapes one of them."""


def forms(processor: Any) -> tuple[str, ...]:
    """Return the forms in which a turn may be written; the first that works is used."""
    if processor.chat_template:
        return (PARTS, STRING)
    return (STRING, *PLAIN) if processor.tokenizer.chat_template else PLAIN


def last_forms(processor: Any) -> tuple[str, ...]:
    """Return the forms that are tried if none of the others works."""
    return (PROMPT,) if processor.chat_template or processor.tokenizer.chat_template else ()


def write(
    processor: Any, form: str, channel: str, media: int, prompt: str, system: str = ""
) -> str:
    """Write the text of one turn with `media` images or videos, after a `system` text. Raises
    UsageError if the form has no place for a system text."""
    if form not in TEMPLATED:
        if system:
            raise without_system()
        placeholders = token(processor, channel.removesuffix("s")) * media
        return form.replace("{media}", placeholders).replace("{prompt}", prompt)
    question = _question(processor, form, channel, media, prompt)
    if not system:
        return _templated(processor, [question])
    if not (way := system_form(processor, form)):
        raise without_system()
    text = _templated(processor, [_system(way, system), question])
    if system.strip() not in text:
        raise without_system()
    return text


def exact(processor: Any, form: str, channel: str) -> bool:
    """Return whether this form keeps a question verbatim, with its image placeholder at most once
    and no other kind of medium."""
    if form not in TEMPLATED:
        return True
    text = _templated(processor, [_question(processor, form, channel, 1, TRIAL)])
    word = token(processor, channel.removesuffix("s"))
    if TRIAL not in text or (form != PARTS and word and text.count(word) > 1):
        return False
    others = {token(processor, kind) for kind in ("image", "video")} - {word, ""}
    return form != PROMPT or not any(other in text for other in others)


def system_form(processor: Any, form: str) -> str:
    """Return the form that keeps a system text verbatim before a question in `form`: `parts` or
    `words`; empty if there is none."""
    return known(processor, f"form of a system text before {form}", lambda: _find(processor, form))


def without_system() -> UsageError:
    return UsageError(
        "the chat template of this model has no place for --system",
        hint="Put that text at the start of --prompt",
    )


def _find(processor: Any, form: str) -> str:
    ways = {PARTS: (PARTS, STRING), STRING: (STRING,), PROMPT: (STRING,)}.get(form, ())
    return next((way for way in ways if TRIAL in _render_system(processor, form, way, TRIAL)), "")


def _render_system(processor: Any, form: str, way: str, system: str) -> str:
    """Return a turn with a system text in this form; empty if the template refuses it."""
    if form == STRING and way == PARTS:
        return ""
    question = _question(processor, form, "images", 0, "What?")
    try:
        return _templated(processor, [_system(way, system), question])
    except Exception:  # a template may refuse a role in any way
        return ""


def _question(processor: Any, form: str, channel: str, media: int, prompt: str) -> dict[str, Any]:
    kind = channel.removesuffix("s")
    content: Any = prompt
    if form == PARTS:
        content = [*({"type": kind} for _ in range(media)), {"type": "text", "text": prompt}]
    elif form == STRING and (placeholders := token(processor, kind) * media):
        content = f"{placeholders}\n{prompt}"
    return {"role": "user", "content": content}


def _system(way: str, text: str) -> dict[str, Any]:
    return {"role": "system", "content": [{"type": "text", "text": text}] if way == PARTS else text}


def _templated(processor: Any, turns: list[dict[str, Any]]) -> str:
    writer = processor if processor.chat_template else processor.tokenizer
    text: str = writer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    return without_outer_pair(processor, text)
