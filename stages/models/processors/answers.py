"""Tokenizes answers as they follow the generation prompt of a chat template.

Some templates end the generation prompt before the space that stands between role and answer in a
conversation. A model writes that space itself, mostly as part of its first word, so an answer that
is tokenized alone has another first token than the model ever wrote.
"""

from typing import Any

from artifacts.reasoning import behind_reasoning
from stages.models.processors.chat_template import write
from stages.models.processors.input_layout import layout_of
from stages.models.processors.loading import known
from stages.models.processors.prepare import channel_of

QUESTION, ANSWER = "What?", "Answered."


def answer_ids(processor: Any, text: str) -> list[int]:
    """Return the tokens of an answer, or of its beginning. They are those of the text alone, unless
    the template's own conversation has a blank before it, and both together begin with the tokens
    of the prompt."""
    prompt, blank = known(processor, "blank before answers", lambda: _before_answer(processor))
    if blank and text:
        begins, whole = (_ids(processor, each) for each in (prompt, f"{prompt}{blank}{text}"))
        if whole[: len(begins)] == begins:
            return whole[len(begins) :]
    return _ids(processor, text)


def whole_answer_ids(processor: Any, text: str) -> list[int]:
    """Return the tokens of a whole answer, such as a caption to train on. Where the template opens
    a tag of reasoning, the answer stands behind an empty one."""
    return answer_ids(processor, f"{before_whole(processor, text)}{text}")


def before_whole(processor: Any, text: str) -> str:
    """Return what ends the reasoning that a template opens, before a whole answer; empty if it
    opens none, or the answer ends it itself."""
    prompt = known(processor, "generation prompt", lambda: _generation_prompt(processor))
    return behind_reasoning(prompt, text).removesuffix(text)


def answer_blank(processor: Any) -> str:
    """Return the blank before answers; empty if answers have the same tokens without it."""
    same = answer_ids(processor, ANSWER) == _ids(processor, ANSWER)
    return "" if same else _before_answer(processor)[1]


def _before_answer(processor: Any) -> tuple[str, str]:
    """Return a generation prompt, and the blank between it and the answer in a conversation."""
    writer = processor if processor.chat_template else processor.tokenizer
    for parts in (True, False):
        turns = [
            {"role": role, "content": [{"type": "text", "text": text}] if parts else text}
            for role, text in (("user", QUESTION), ("assistant", ANSWER))
        ]
        given = {"tokenize": False}
        try:
            prompt = writer.apply_chat_template(turns[:1], add_generation_prompt=True, **given)
            before, answer, _ = writer.apply_chat_template(turns, **given).partition(ANSWER)
        except Exception:  # no template, or one that refuses this form in any way
            continue
        if answer and before.startswith(prompt):
            blank = before.removeprefix(prompt)
            return prompt, "" if blank.strip() else blank
    return "", ""


def _generation_prompt(processor: Any) -> str:
    """Return what a template writes behind a question."""
    layout = layout_of(processor, channel_of(processor, "image"))
    return write(processor, layout.form, layout.channel, 0, QUESTION).rpartition(QUESTION)[2]


def _ids(processor: Any, text: str) -> list[int]:
    found: list[int] = processor.tokenizer(text, add_special_tokens=False)["input_ids"]
    return found
