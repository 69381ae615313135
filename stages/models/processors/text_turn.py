"""Formats a turn of text only, in the form that the checkpoint uses for turns with media.

The tokenizer reads it, not the processor: many processors take no text without an image.
"""

from typing import Any

from stages.models.processors.calling import begins_itself
from stages.models.processors.chat_template import write
from stages.models.processors.input_layout import layout_of
from stages.models.processors.prepare import channel_of, drop_end_token


def text_turn(processor: Any, prompt: str, system: str = "") -> str:
    """Return the text of a turn without media, after a `system` text. Raises UsageError if there is
    no place for a system text."""
    layout = layout_of(processor, channel_of(processor, "image"))
    return write(processor, layout.form, layout.channel, 0, prompt, system).lstrip("\n")


def text_inputs(
    processor: Any, model: Any, prompt: str, system: str = "", *, length: int = 0
) -> dict[str, Any]:
    """Return the inputs [1, tokens] of a model's `generate` for a turn without media, padded on the
    left to `length` tokens."""
    layout = layout_of(processor, channel_of(processor, "image"))
    text = text_turn(processor, prompt, system)
    begins = {"add_special_tokens": False} if begins_itself(processor, layout, text) else {}
    filling = {"padding": "max_length", "max_length": length} if length else {}
    made = processor.tokenizer([text], return_tensors="pt", **filling, **begins)
    return drop_end_token(model, dict(made))
