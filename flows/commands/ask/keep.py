"""Selects the media of a run of questions that meet a condition on their answers."""

from collections.abc import Sequence
from dataclasses import dataclass

from artifacts.disk.json_shapes import Json
from artifacts.errors import UsageError
from artifacts.index.where import WORDS, Condition, Table, batch_of, values_shown
from artifacts.texts.answer_columns import VALUE, columns_of, values_of_answer
from artifacts.texts.calibration import Calibration
from artifacts.texts.questions import Questions, answer_of
from flows.core.media.media_file import MediaFile

NAMES = {"media_path": "text", "source": "text"}
SPAN = {"start": "number", "end": "number"}
FIXED = {**NAMES, **SPAN, "kind": "text"}
"""Columns that are no answers."""


def texts_of(questions: Questions) -> list[str]:
    """Return the columns of a condition that hold text."""
    own = columns_of(questions, tags="text")
    return [*NAMES, "kind", *(name for name, kind in own.items() if kind == "text")]


def kept_columns(questions: Questions) -> dict[str, str]:
    """Return the columns of answers that a condition may name."""
    return columns_of(questions, bounded=[one.name for one in questions])


def parse_keep(text: str | None, questions: Questions) -> Condition | None:
    """Return the condition of `--keep`; None without one. Raises UsageError."""
    columns = (*NAMES, "kind", *kept_columns(questions))
    for question in questions:
        others = columns_of(
            tuple(one for one in questions if one is not question),
            bounded=[one.name for one in questions],
            calibrated=[one.name for one in questions],
        )
        if question.name in WORDS | FIXED.keys() | others.keys():
            hint = "Give it another name: it is a word of conditions, or a column of the table"
            raise UsageError(f"a question cannot be named {question.name}", hint=hint)
    if text is None:
        return None
    first = questions[0]
    example = {"number": "< 0.2", "text": "like '%a%'"}[VALUE[first.type]]
    return Condition(
        text,
        Table(
            columns=columns,
            texts=texts_of(questions),
            option="--keep",
            example=f'"{first.name} {example}"',
        ),
    )


class MediumAnswers:
    """The answers about all chunks of one file."""

    def __init__(self, file: MediaFile) -> None:
        self.file = file
        self._scores: dict[str, list[list[Sequence[float]]]] = {}
        """Question → log probabilities by chunk, probe and label."""
        self._bounded: set[str] = set()
        """Questions with a bound in place of a log probability."""
        self._calibrations: dict[str, list[Calibration]] = {}
        """Question → how they are calibrated, by chunk."""

    @property
    def is_answered(self) -> bool:
        """Return whether any question is answered about the file."""
        return bool(self._scores)

    def add(
        self,
        name: str,
        scores: list[Sequence[float]],
        calibration: Calibration,
        *,
        is_bounded: bool,
    ) -> None:
        """Add the log probabilities of a question about the next chunk; some probe has some."""
        self._scores.setdefault(name, []).append(scores)
        self._calibrations.setdefault(name, []).append(calibration)
        self._bounded.update([name] if is_bounded else ())

    def values(self, questions: Questions) -> dict[str, Json]:
        """Return the columns of a condition: an answer about a video is that of the mean
        probabilities of its chunks. Tags are null if one of them is unknown: a condition that
        excludes it would be met."""
        values: dict[str, Json] = {
            **dict.fromkeys(kept_columns(questions)),
            "media_path": self.file.media_path,
            "source": self.file.source,
            "kind": self.file.kind,
        }
        for question in questions:
            if of_chunks := self._scores.get(question.name):
                by = self._calibrations[question.name]
                answer = answer_of(question, *of_chunks, calibrations=by)
                own = values_of_answer(question.name, answer)
                own[f"{question.name}_bounded"] = int(question.name in self._bounded)
                if answer.tags is not None:
                    is_whole = len(answer.probabilities or {}) == len(question.labels)
                    own[question.name] = ", ".join(answer.tags) if is_whole else None
                values |= {name: own[name] for name in own.keys() & values.keys()}
        return values


@dataclass(frozen=True, kw_only=True, slots=True)
class Selected:
    """The lines of the two lists."""

    kept: list[dict[str, Json]]
    left_out: list[dict[str, Json]]


def select(
    media: Sequence[MediumAnswers], condition: Condition | None, questions: Questions
) -> Selected:
    """Return the lines of the files that have answers and meet a condition, and of the others with
    their values."""
    rows = [medium.values(questions) for medium in media]
    named = condition.columns if condition else ()
    keeps = [medium.is_answered for medium in media]
    if condition is not None and rows:
        meets = condition.of(batch_of(rows, texts_of(questions))).tolist()
        keeps = [one and other for one, other in zip(keeps, meets, strict=True)]
    lines: list[dict[str, Json]] = [
        {"media_path": m.file.media_path, "source": m.file.source, "path": m.file.place}
        for m in media
    ]
    return Selected(
        kept=[line for line, keep in zip(lines, keeps, strict=True) if keep],
        left_out=[
            {**line, "why": values_shown(row, named) if medium.is_answered else "no answer"}
            for line, row, keep, medium in zip(lines, rows, keeps, media, strict=True)
            if not keep
        ],
    )
