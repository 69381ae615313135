"""The text that a run puts around the captions of its model: trigger, prefix and suffix.

In a prefix and a suffix, `{answer.NAME}` stands for the answer to the question of that name about
the same chunk. One whose placeholders are all empty, as where no tag counts, is left out as a
whole.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from artifacts.errors import UsageError
from artifacts.texts.questions import QuestionAnswer

PLACEHOLDER = re.compile(r"\{answer\.([^{}]*)\}")
SPACES = re.compile(r"\s+")


Answers = Mapping[str, QuestionAnswer]
"""Name of a question → its answer about a chunk."""


def filled(affix: str, answers: Answers) -> str:
    """Return a prefix or a suffix with answers in place of their placeholders."""
    if not (names := PLACEHOLDER.findall(affix)):
        return affix
    texts = {name: answers[name].text if name in answers else "" for name in names}
    return PLACEHOLDER.sub(lambda of: texts[of[1]], affix) if any(texts.values()) else ""


def check_placeholders(option: str, affix: str, questions: Mapping[str, object]) -> None:
    """Raise UsageError for an answer to a question that nobody put."""
    for name in PLACEHOLDER.findall(affix):
        if name not in questions:
            known = ", ".join(questions)
            hint = f"Known are {known}" if known else "Name a file of questions with --questions"
            raise UsageError(f"{option}: there is no question {name!r} to answer", hint=hint)


@dataclass(frozen=True, kw_only=True, slots=True)
class FixedText:
    """The text that a run put before and after its captions."""

    prefixes: tuple[str, ...] = ()
    suffix: str = ""

    @classmethod
    def of(cls, trigger: str, prefix: str, suffix: str) -> "FixedText":
        """Return the text of a run with these options."""
        prefixes = (f"{trigger}, " if trigger else "", prefix)
        return cls(prefixes=tuple(filter(None, prefixes)), suffix=suffix)

    def about(self, answers: Answers) -> "FixedText":
        """Return the text around the caption of a chunk with these answers."""
        prefixes = tuple(filled(prefix, answers) for prefix in self.prefixes)
        return replace(self, prefixes=prefixes, suffix=filled(self.suffix, answers))

    def around(self, caption: str) -> str:
        """Return a caption of the model with this text."""
        return "".join((*self.prefixes, caption, self.suffix))

    def parts(self, caption: str) -> tuple[str, str, str]:
        """Return the text before the model's caption, the caption, and the text after it."""
        text = caption
        for head in self.prefixes:  # files with one line per caption have other spaces
            text = text.removeprefix(head if text.startswith(head) else SPACES.sub(" ", head))
        before = caption[: len(caption) - len(text)]
        tail = self.suffix if text.endswith(self.suffix) else SPACES.sub(" ", self.suffix).rstrip()
        text = text.removesuffix(tail)
        return before, text, caption[len(before) + len(text) :]
