"""Finds the answer in what a model generated: the text behind its reasoning."""

from collections.abc import Mapping
from typing import Any

TAGS = {
    "<think>": "</think>",
    "[THINK]": "[/THINK]",  # Mistral
    "<|channel>": "<channel|>",  # Gemma 4
    "◁think▷": "◁/think▷",  # Kimi-VL
    "<|START_THINKING|>": "<|END_THINKING|>",  # Cohere
}
"""Opening tag → closing tag, as chat templates of supported families write them."""


def has_tags(text: str) -> bool:
    """Return whether a text holds a tag of reasoning."""
    return any(tag in text for pair in TAGS.items() for tag in pair)


def ends_inside(text: str) -> str:
    """Return the opening tag that a text does not close; empty if it closes all."""
    inside = (each for each in TAGS if text.rfind(each) > text.rfind(TAGS[each]))
    return next(inside, "")


def behind_reasoning(prompt: str, answer: str) -> str:
    """Return an answer as it follows a prompt: behind an empty reasoning if the prompt ends inside
    of an open tag, and the answer does not close it itself."""
    closing = TAGS.get(ends_inside(prompt), "")
    return f"\n{closing}\n\n{answer}" if closing and closing not in answer else answer


def answer_in(text: str, *, opened: bool = False) -> str | None:
    """Return a model's answer without its reasoning; None if the reasoning never ended. `opened`:
    the prompt ended inside of an open tag."""
    ends = [(text.rfind(closing), closing) for closing in TAGS.values()]
    at, closing = max(ends)
    if at >= 0:
        return text[at + len(closing) :].strip()
    return None if opened or text.lstrip().startswith((*TAGS,)) else text.strip()


def answer_of(stored: Mapping[str, Any], *, opened: bool) -> str | None:
    """Return the answer in the record of a caption; None if the reasoning never ended. `opened`:
    the model's prompts end inside of an open tag. A record that states this itself counts more."""
    text, at = str(stored["caption"]), stored.get("answer_at")
    if at is not None:
        return answer_in(text[at:])
    return answer_in(text, opened=stored.get("opened", opened))
