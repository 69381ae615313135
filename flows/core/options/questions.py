"""Options of `penstock ask`: typed questions, which become the prompts of its run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Annotated

from artifacts.disk.files import encoded
from artifacts.disk.paths import text_named
from artifacts.errors import UsageError
from artifacts.options import Option, OptionGroup
from artifacts.texts.questions import EXAMPLE, Questions, canonical, read_questions
from flows.core.options.commands import DEFAULT_MODEL, RunOptions
from flows.core.options.formats import FILES, GIVE_CONDITION, QUESTIONS
from flows.core.options.groups import Groups, groups_of
from flows.core.options.media import SoundOptions, VideoSamplingOptions
from flows.core.options.model import DEFAULT_MODEL_OPTION, AdapterOptions, GpuOptions
from flows.core.options.precision import HalfPrecisionOptions
from flows.core.options.store import StoreSizeOptions
from flows.core.options.text import OwnerOptions
from flows.core.options.vectors import PARENT, TABLE_FORMATS, own_folder

MAX_BYTES = 1 << 20
"""Largest size of a file of questions in bytes."""


def parse_questions(given: Sequence[str]) -> dict[str, str]:
    """Parse `--question NAME=TEXT` into texts by name, in order. Raises UsageError."""
    questions: dict[str, str] = {}
    for option in given:
        name, equals, text = option.partition("=")
        if not equals or name in questions:
            fault = "the name is there twice" if equals else "the name is missing"
            hint = 'Write NAME=TEXT: watermark="Is there a watermark?"'
            raise UsageError(f"--question {option!r}: {fault}", hint=hint)
        questions[name] = text
    return questions


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
            parse=parse_questions,
            repeated=True,
        ),
    ] = field(default_factory=dict)
    """Name → a question of yes or no."""
    keep: Annotated[
        str | None,
        Option(
            'files that are kept: "watermark < 0.2"', QUESTIONS, "EXPR", not_empty=GIVE_CONDITION
        ),
    ] = None
    """Condition on the answers that files must meet to be in kept.jsonl; None: all are."""

    @cached_property
    def every_question(self) -> Questions:
        """Return all questions, those of the file first."""
        return read_questions(self.questions, "--questions") if self.questions else ()


@dataclass(frozen=True, kw_only=True)
class AskConfig(
    OwnerOptions,
    AnswerOptions,
    AdapterOptions,
    StoreSizeOptions,
    GpuOptions,
    HalfPrecisionOptions,
    SoundOptions,
    VideoSamplingOptions,
    RunOptions,
):
    """One run that answers questions."""

    takes_listed_prompts = False
    model: Annotated[str, DEFAULT_MODEL_OPTION] = DEFAULT_MODEL
    """Hub id, folder, or `demo`."""
    out: Annotated[str, own_folder("answers")] = f"{PARENT}/answers"
    """Output folder."""
    format: Annotated[
        tuple[str, ...],
        Option("formats besides jsonl: csv, parquet", FILES, "F,F", values=TABLE_FORMATS),
    ] = ()
    """Formats besides jsonl."""

    def __post_init__(self) -> None:
        super().__post_init__()
        questions = questions_in(self.questions, self.question)
        object.__setattr__(self, "questions", canonical(questions))
        object.__setattr__(self, "question", {})

    @cached_property
    def groups(self) -> Groups:
        """Return the groups; the probes of the questions are the prompts of the run."""
        groups = groups_of(self)
        texts = dict.fromkeys(p.text for one in self.every_question for p in one.probes)
        prompts = {f"probe-{at}": text for at, text in enumerate(texts)}
        return replace(groups, prompts=replace(groups.prompts, prompts=prompts))

    @property
    def engines(self) -> str:
        """Return no engine: an answer is no generated text."""
        return ""


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
    if not questions:
        raise UsageError("no question given", hint='Add --question sharp="Is it sharp?"')
    if previous := next((one.name for one in questions if "{previous}" in one.text), ""):
        hint = "Leave it out: a run of questions has no captions"
        raise UsageError(f"{previous}: {{previous}} is not possible in a question", hint=hint)
    return questions
