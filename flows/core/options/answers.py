"""The option group of typed questions, which `ask` and `caption` have."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Annotated

from artifacts.disk.files import encoded
from artifacts.disk.paths import text_named
from artifacts.errors import UsageError
from artifacts.option_texts import named_texts
from artifacts.options import Option, OptionGroup
from artifacts.texts.questions import EXAMPLE, Questions, canonical, read_questions
from flows.core.options.formats import GIVE_CONDITION, QUESTIONS

ADD_ONE = 'Add --question sharp="Is it sharp?"'
MAX_BYTES = 1 << 20
"""Largest size of a file of questions in bytes."""


@dataclass(frozen=True, kw_only=True)
class AnswerOptions(OptionGroup):
    """The questions of a run."""

    questions: Annotated[
        str, Option("file of questions: TOML or JSON", QUESTIONS, "F", path=True, or_text=True)
    ] = ""
    """File of questions in TOML or JSON, or its JSON: yes-no, labels, a score, tags."""
    question: Annotated[
        dict[str, str],
        Option(
            "a question of yes or no; repeatable",
            QUESTIONS,
            "NAME=TEXT",
            parse=partial(named_texts, "--question", 'watermark="Is there a watermark?"'),
            repeated=True,
        ),
    ] = field(default_factory=dict)
    """Name → a question of yes or no."""
    decisions: Annotated[
        str,
        Option("true answers of people: csv or jsonl, to calibrate by", QUESTIONS, "F", path=True),
    ] = ""
    """Table of true answers, as csv or JSON lines, that probabilities are calibrated by."""
    keep: Annotated[
        str | None,
        Option(
            'files that are kept: "watermark < 0.2"', QUESTIONS, "EXPR", not_empty=GIVE_CONDITION
        ),
    ] = None
    """Condition on the answers that files must meet to be in kept.jsonl; None: all are."""

    def __post_init__(self) -> None:
        super().__post_init__()
        questions = self._questions_given()
        object.__setattr__(self, "questions", canonical(questions) if questions else "")
        object.__setattr__(self, "question", {})

    def _questions_given(self) -> Questions:
        questions = questions_in(self.questions, self.question)
        about = "--keep" if self.keep else "--decisions" * bool(self.decisions)
        if about and not questions:
            raise UsageError(f"{about} is about answers, and no question is given", hint=ADD_ONE)
        return questions

    @cached_property
    def every_question(self) -> Questions:
        """Return all questions, those of the file first."""
        return read_questions(self.questions, "--questions") if self.questions else ()


def questions_in(given: str, by_name: Mapping[str, str]) -> Questions:
    """Return the questions of a file, or of its JSON, and those of yes or no. Raises UsageError."""
    is_content = not given or given.lstrip().startswith("{")
    text = given if is_content else text_named(given, "questions", MAX_BYTES, EXAMPLE)
    source = "--questions" if is_content else f"--questions {given}"
    questions = read_questions(text, source) if given else ()
    if by_name:
        tables = {name: {"text": text} for name, text in by_name.items()}
        questions += read_questions(encoded(tables), "--question")
    names = [one.name for one in questions]
    if again := next((name for at, name in enumerate(names) if name in names[:at]), ""):
        raise UsageError(f"two questions are named {again}", hint="Give each its own name")
    if previous := next((one.name for one in questions if "{previous}" in one.text), ""):
        hint = "Leave it out: a run of questions has no captions"
        raise UsageError(f"{previous}: {{previous}} is not possible in a question", hint=hint)
    return questions
