"""Python API for typed questions about media."""

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Unpack

from artifacts.disk.json_records import read_jsonl_file
from artifacts.texts.decisions import read_decisions
from artifacts.texts.stored_answers import AnswerRow
from artifacts.texts.tables import table_of
from flows.commands.ask import pipeline_of
from flows.commands.ask.answers import AnswersWritten, flat_row, kinds_of
from flows.commands.ask.keep import parse_keep
from flows.commands.ask.run import ask as run_ask
from flows.core.options.formats import ANSWERS
from flows.core.options.questions import AskConfig
from penstock.arguments import Progress, Sources, anchored, config_for, display_for
from penstock.background import FinishedRecords, check_start
from penstock.keywords import AskOptions

if TYPE_CHECKING:
    from pyarrow import Table


class Answers(FinishedRecords[AnswerRow, AnswersWritten]):
    """A running `ask` job, and an iterator over the lines of its `answers.jsonl`."""


def ask(sources: Sources, *, progress: Progress = "auto", **options: Unpack[AskOptions]) -> Answers:
    """Start a run that answers questions, as `penstock ask`. `questions` may be a dict, too. Raises
    PenstockError."""
    config = anchored(config_for(sources, options, AskConfig, AskOptions.__annotations__))
    check_start(config, pipeline_of(config.model), "ask")
    questions = config.every_question
    parse_keep(config.keep, questions)  # reports now what cannot be read
    read_decisions(config.decisions, questions)

    def table(written: AnswersWritten) -> "Table":
        rows = [*_rows(written)]
        answers = (answer for row in rows for answer in row.answers.items())
        bounded = {name for name, answer in answers if answer.bounded}
        kinds = kinds_of(questions, bounded, written.calibrated)
        return table_of((flat_row(row, kinds) for row in rows), kinds)

    return Answers(config.out, display_for(progress), partial(run_ask, config), _rows, table)


def _rows(written: AnswersWritten) -> Iterator[AnswerRow]:
    yield from read_jsonl_file(AnswerRow, written.out / ANSWERS, "Run it again")
