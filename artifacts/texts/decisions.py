"""What people decided on answers to questions: tables of theirs, and the journal of a run's folder.

A decision names a chunk, a question and the true answer. A table names the chunk by its path and
start. A line of the journal `decisions.jsonl` also has the digests of the medium's content and of
the probe, and belongs to these: it stays when the file or the question gets another name. The
journal is append-only, and a later line overrides an earlier one. A line counts if a note proves
that this user wrote it, because anyone may write into an output folder.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from artifacts.disk.faults import fault_of
from artifacts.disk.files import append_lines
from artifacts.disk.json_records import typed
from artifacts.disk.json_shapes import BYTES, Json, parse
from artifacts.disk.json_types import Number, Text
from artifacts.disk.paths import text_named
from artifacts.disk.regular_files import open_below, read_bytes
from artifacts.errors import UsageError
from artifacts.records.provenance import Proof, note
from artifacts.schema import values_of
from artifacts.texts.questions import YES_NO, Question, QuestionProbe, Questions
from artifacts.texts.tables import read_csv

DECISIONS = "decisions.jsonl"
"""Name of the journal in a run's folder."""
DECISION = "decision"
"""Purpose of the notes."""
EXAMPLE = "It has media_path, question and answer, for a chunk of a video start, for tags tag"
FIELDS = ("media_path", "source", "start", "question", "tag", "answer", "content", "end", "probe")


class DecisionKey(NamedTuple):
    """What a decision is about."""

    content: str
    """Digest of the medium's content."""
    start: float
    end: float
    """Seconds of the chunk."""
    probe: str
    """Digest of the probe."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DecisionRow:
    """The true answer to a question about a chunk."""

    media_path: str
    question: Text
    answer: Text
    """The label of the probe: `Yes` or `No`, one of `labels`, or a number; empty: it was taken
    back."""
    tag: Text = ""
    """The tag that it is about."""
    source: str = ""
    """Source of the medium; empty: any."""
    start: Number | None = None
    """Start of the chunk in seconds; None: the only one."""
    end: Number = 0.0
    content: Text = ""
    """As in the key; empty: not known."""
    probe: Text = ""

    @property
    def key(self) -> DecisionKey | None:
        """Return what it is about; None if that is not known yet."""
        if not self.content or not self.probe or self.start is None:
            return None
        return DecisionKey(self.content, self.start, self.end, self.probe)

    def to_json(self) -> dict[str, Json]:
        return values_of(self)


def read_decisions(path: str, questions: Questions) -> list[DecisionRow]:
    """Read a table of decisions, as csv or JSON lines. Raises UsageError for a line that cannot be
    read, for a wrong answer to one of these questions, and if no line is about any of them."""
    if not path:
        return []
    text, where = text_named(path, "decisions", BYTES, EXAMPLE), f"--decisions {path}"
    lines = _csv_lines if path.lower().endswith(".csv") else _json_lines
    by_name, rows = {question.name: question for question in questions}, list[DecisionRow]()
    for at, values in lines(text, where):
        try:
            row = typed(DecisionRow, {n: v for n, v in values.items() if n in FIELDS})
            rows.append(_checked(row, by_name.get(row.question)))
        except ValueError as error:
            raise UsageError(f"{where} at line {at}: {error}", hint=EXAMPLE) from error
    probes = {probe.digest for question in questions for probe in question.probes}
    if not any(row.probe in probes or row.question in by_name for row in rows):
        hint = f"In the column question give {' or '.join([*by_name][:5])}"
        raise UsageError(f"{where}: no line is about a question of this run", hint=hint)
    return rows


def _csv_lines(text: str, where: str) -> Iterator[tuple[int, dict[str, Json]]]:
    """Yield the number and the values of each row. Raises UsageError."""
    for at, cells in read_csv(text, where)[1]:
        values: dict[str, Json] = {name: cell for name, cell in cells.items() if cell.strip()}
        for name in {"start", "end"} & values.keys():
            try:
                values[name] = float(str(values[name]))
            except ValueError as error:
                raise UsageError(
                    f"{where} at line {at}: {name} is no number: {values[name]}",
                    hint="Give seconds, such as 12.5",
                ) from error
        yield at, values


def _json_lines(text: str, where: str) -> Iterator[tuple[int, dict[str, Json]]]:
    """Yield the number and the values of each line. A number of a score may be a number. Raises
    UsageError."""
    for at, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                values = parse(line)
                if not isinstance(values, dict):
                    raise ValueError("it is no object")
            except ValueError as error:
                raise UsageError(f"{where} at line {at}: {error}", hint=EXAMPLE) from error
            answer = values.get("answer")
            is_number = isinstance(answer, int) and not isinstance(answer, bool)
            yield at, values | ({"answer": str(answer)} if is_number else {})


def _checked(row: DecisionRow, question: Question | None) -> DecisionRow:
    """Return a decision with its answer as a label of the question has it. Raises ValueError."""
    if question is None or not row.answer:
        return row
    tag = row.tag.strip()
    if question.type == "tags" and tag not in question.labels:
        raise ValueError(f"{row.question} has no tag {tag!r}" if tag else "it names no tag")
    labels = YES_NO if question.type == "tags" else question.labels
    answer = row.answer.strip()
    if labels == YES_NO:
        answer = answer.capitalize()
    if answer not in labels:
        some = ", ".join(labels[:5]) + ", …" * (len(labels) > 5)
        raise ValueError(f"{answer[:80]!r} is no answer to {row.question} ({some})")
    return replace(row, answer=answer, tag=tag if question.type == "tags" else "")


def probe_of(question: Question, tag: str = "") -> QuestionProbe | None:
    """Return the probe of a question, or of one of its tags; None if there is no such tag."""
    if question.type != "tags":
        return question.probes[0]
    return question.probes[question.labels.index(tag)] if tag in question.labels else None


def kept_decisions(folder: Path, proof: Proof) -> tuple[list[DecisionRow], int]:
    """Return the decisions of a folder's journal that are proved, and how many lines are not.
    Raises EnvironmentFault."""
    try:
        content = read_bytes(path := folder / DECISIONS, BYTES)
    except FileNotFoundError:
        return [], 0
    except OSError as error:
        raise fault_of(error, path) from error
    rows, unproved = list[DecisionRow](), 0
    for line in filter(None, content.split(b"\n")):
        try:
            values = parse(line.decode())
            is_proved = isinstance(values, dict) and proof(values)
            rows += [typed(DecisionRow, values)] if is_proved else []
        except ValueError:  # torn by a crash
            is_proved = False
        unproved += not is_proved
    return rows, unproved


def labels_of(rows: Iterable[DecisionRow]) -> dict[DecisionKey, str]:
    """Return the decisions that are in force, the later ones of those about the same."""
    labels = {row.key: row.answer for row in rows}
    return {key: label for key, label in labels.items() if key and label}


def keep_decisions(folder: Path, rows: Sequence[DecisionRow], store: str) -> None:
    """Append decisions to a folder's journal, and note before that they are this user's, in `store`
    too. Raises EnvironmentFault."""
    if not rows:
        return
    written = [row.to_json() for row in rows]
    for values in written:
        note(DECISION, values, store)
    path = folder / DECISIONS
    try:
        file = open_below(path, os.O_RDWR | os.O_APPEND | os.O_CREAT)
        with os.fdopen(file, "ab"):
            append_lines(file, written)
    except OSError as error:
        raise fault_of(error, path) from error
