"""Writes the answers of a run, one row for each chunk or image. Runs no model."""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from statistics import median

from artifacts.disk.files import json_text, write_text
from artifacts.disk.json_records import json_of
from artifacts.disk.json_shapes import Json
from artifacts.texts.answer_columns import columns_of, values_of_answer
from artifacts.texts.calibration import RAW
from artifacts.texts.captions import write_jsonl
from artifacts.texts.decisions import DecisionRow
from artifacts.texts.questions import (
    LEAST_MASS,
    QuestionAnswer,
    Questions,
    answer_of,
    canonical,
    probes_of,
    stated_scores,
)
from artifacts.texts.stored_answers import AnswerRow
from artifacts.texts.tables import TABLES
from artifacts.wording import counted
from flows.commands.ask.calibrate import Calibrations, calibrations_of, half_of, lines_on
from flows.commands.ask.keep import NAMES, SPAN, MediumAnswers, parse_keep, select
from flows.commands.ask.run_decisions import decided_in
from flows.core.job.job_file import JobFile
from flows.core.job.prepare import Job
from flows.core.ledger.tasks import Task
from flows.core.media.generated_files import GeneratedFiles
from flows.core.media.media_file import MediaFile
from flows.core.options.formats import ANSWERS, MEDIA, QUESTIONS_FILE
from flows.outputs.folder.foreign_files import KEPT_FILE, LEFT_OUT_FILE
from flows.outputs.marker import write_proved
from flows.outputs.run_result import RunEnd
from flows.outputs.write import failures_of, media_line, warned_files


@dataclass(kw_only=True, slots=True)
class AnswersWritten(RunEnd):
    """The result of a run that answered questions."""

    rows: int = 0
    """Number of chunks and images with at least one answer."""
    kept: int | None = None
    """Number of files that meet `--keep`; None: there is no condition."""
    left_out: frozenset[str] = frozenset()
    """Places of the files that do not meet `--keep`."""
    masses: dict[str, list[float]] = field(default_factory=dict)
    """Question → the mass of each of its answers."""
    unstated: Counter[str] = field(default_factory=Counter)
    """Question → number of its answers without any, because the server stated no label; of tags,
    each counts."""
    calibrations: Calibrations = field(default_factory=dict)
    """What decisions of people make of the probabilities."""
    uncounted: tuple[str, ...] = ()
    """What of the decisions does not count."""

    @property
    def calibrated(self) -> set[str]:
        """Return the questions whose probabilities are calibrated."""
        return {name for (name, _), one in self.calibrations.items() if one.calibration != RAW}

    @property
    def made(self) -> int:
        """Return the number of answers."""
        return sum(map(len, self.masses.values()))

    @property
    def unsure(self) -> int:
        """Return the number of answers whose labels are hardly what the model wants to say."""
        return sum(mass < LEAST_MASS for masses in self.masses.values() for mass in masses)

    def to_json(self) -> dict[str, Json]:
        made: dict[str, Json] = {"rows": self.rows, "answers": self.made, "small_mass": self.unsure}
        made |= {"unstated": self.unstated.total()} if self.unstated else {}
        made |= {} if self.kept is None else {"kept": self.kept}
        if self.calibrations:
            made["calibrations"] = [
                {"question": name, "precision": dict(half), **json_of(one)}
                for (name, half), one in self.calibrations.items()
            ]
        return self.outcome({**made, "warnings": [*self.notes()]})

    def row(self) -> dict[str, Json]:
        counts = {"files": self.files, "rows": self.rows, "answers": self.made}
        return {**counts, "folder": str(self.out)}

    def lines(self) -> Iterator[str]:
        """Yield what decisions came to, and the last line."""
        yield from lines_on(self.calibrations)
        yield self.line()

    def line(self) -> str:
        about = counted(self.rows, "chunk or image")
        line = f"{counted(self.made, 'answer')} about {about} in {self.out / ANSWERS}"
        if self.unsure:
            line += f", {self.unsure:,} of them with a mass below {LEAST_MASS:g}"
        if self.unstated:
            line += f", {self.unstated.total():,} unknown: the server stated none of their labels"
        if self.kept is not None:
            line += (
                f", {self.kept:,} of {counted(self.files, 'file')} kept in {self.out / KEPT_FILE}"
            )
        return f"{line}{self.failed_suffix()}"

    __repr__ = line

    def notes(self) -> Iterator[str]:
        """Yield a note for each question that the model hardly answers with its labels, and for
        decisions that do not count."""
        yield from self.uncounted
        for name, count in self.unstated.items():
            yield (
                f"{name}: the server stated none of the labels {count:,} times: these answers are "
                "unknown, so they give no tag and meet no comparison. Ask in other words, or "
                "choose a model that follows instructions"
            )
        for name, masses in self.masses.items():
            if masses and (middle := median(masses)) < LEAST_MASS:
                yield (
                    f"{name}: the model hardly wants to answer with these labels (median mass "
                    f"{middle:.2g} of 1), so their probabilities mean little. Ask in other words, "
                    "or choose a model that follows instructions"
                )


def answer_paths(job: Job) -> dict[str, str]:
    names = {"answers": ANSWERS, "failures": "failures.jsonl", "logs": "logs"}
    return {name: str(job.out / file) for name, file in names.items()}


class AnswerRows:
    """The rows of a run, which are counted while they are read."""

    def __init__(self, job: Job, questions: Questions) -> None:
        self._job = job
        self._questions = questions
        by_name = probes_of(questions, one_token=job.model.served is not None)
        self._probes = {name: [probe.text for probe in own] for name, own in by_name.items()}
        self.calibrations: Calibrations = {}
        self.chunks: Counter[MediaFile] = Counter()
        """Number of answered probes of each file, under each of its probes."""
        self.lines: Counter[MediaFile] = Counter()
        """Number of rows of each file."""
        self.masses: dict[str, list[float]] = {}
        """Question → the mass of each of its answers."""
        self.unstated: Counter[str] = Counter()
        """Question → number of its probes for which the server stated no log probability."""
        self.bounded: set[str] = set()
        """Questions with an answer in which a bound stands for a probability."""
        self.media: list[MediumAnswers] = []
        """The answers of each file."""

    def __iter__(self) -> Iterator[AnswerRow]:
        self.media, self.chunks, self.lines = [], Counter(), Counter()
        self.unstated = Counter()
        self.masses = {question.name: [] for question in self._questions}
        for group in self._job.by_file:
            file = group[0].file
            self.media.append(MediumAnswers(file))
            for tasks in self.by_chunk(group):
                if answers := self._answers(tasks):
                    self.lines[file] += 1
                    yield self._row(file, next(iter(tasks.values())), answers)

    def by_chunk(self, group: Sequence[JobFile]) -> list[dict[str, Task]]:
        """Return for each chunk of a file the tasks that have a record, by their probe."""
        kept, ledger = self._job.ledger["answers"], self._job.ledger
        by_index: dict[int, dict[str, Task]] = {}
        for job_file in group:
            for task in ledger.tasks([job_file.medium]):
                of_chunk = by_index.setdefault(task.chunk.index, {})
                if task["answers"] in kept:
                    self.chunks[job_file.file] += 1
                    of_chunk[job_file.file.prompt or ""] = task
        return [by_index[index] for index in sorted(by_index)]

    def _answers(self, tasks: Mapping[str, Task]) -> dict[str, QuestionAnswer]:
        """Return the answers to the questions whose probes all have records, if at least one probe
        has log probabilities."""
        kept, answers = self._job.ledger["answers"], dict[str, QuestionAnswer]()
        for question in self._questions:
            texts = self._probes[question.name]
            own = [tasks[text] for text in texts if text in tasks]
            if len(own) == len(texts):
                metas = [kept.meta(task["answers"]) for task in own]
                scores = [*map(stated_scores, metas)]
                if unstated := sum(not of_probe for of_probe in scores):
                    self.unstated[question.name] += unstated
                if not any(scores):
                    continue
                is_bounded = any(meta.get("bounded") for meta in metas)
                by = self.calibrations.get((question.name, half_of(own[0])))
                calibration = by.calibration if by is not None else RAW
                answer = answer_of(
                    question, scores, calibrations=[calibration], is_bounded=is_bounded
                )
                self.bounded.update([question.name] if is_bounded else ())
                answers[question.name] = answer
                self.media[-1].add(question.name, scores, calibration, is_bounded=is_bounded)
                self.masses[question.name].append(answer.mass)
        return answers

    def _row(self, file: MediaFile, task: Task, answers: Mapping[str, QuestionAnswer]) -> AnswerRow:
        return AnswerRow(
            media_path=file.media_path,
            source=file.source,
            start=task.chunk.start,
            end=task.chunk.end,
            answers=dict(answers),
            unanswered=tuple(q.name for q in self._questions if q.name not in answers),
            model=self._job.model.name,
            precision=dict(task.variant.precision),
            features=task.seen,
        )


def write_answers(
    job: Job,
    questions: Questions,
    decisions: Sequence[DecisionRow],
    keep: str | None,
    formats: Sequence[str],
) -> AnswersWritten:
    """Write the answers about all chunks with records, calibrated by these decisions and by those
    of the folder. Raises EnvironmentFault."""
    rows, own = AnswerRows(job, questions), GeneratedFiles(job.store, out=job.out)
    decided = decided_in(job, questions, decisions)
    rows.calibrations = calibrations_of(job, questions, decided.labels, rows.by_chunk)
    lines = (json_text(row.to_json()) + "\n" for row in rows)
    own.renew(job.out / ANSWERS, partial(write_text, pieces=lines))
    own.renew(job.out / QUESTIONS_FILE, partial(write_text, pieces=[canonical(questions)]))
    selected = select(rows.media, parse_keep(keep, questions), questions)
    for name, files in ((KEPT_FILE, selected.kept), (LEFT_OUT_FILE, selected.left_out)):
        own.renew(job.out / name, partial(write_text, pieces=[json_text(r) + "\n" for r in files]))
    written = AnswersWritten(
        out=job.out,
        files=job.requested,
        failures=failures_of(job),
        warned=warned_files(job),
        chunks=rows.chunks,
        rows=rows.lines.total(),
        masses=rows.masses,
        unstated=rows.unstated,
        calibrations=rows.calibrations,
        uncounted=decided.notes,
        kept=None if keep is None else len(selected.kept),
        left_out=frozenset(str(line["path"]) for line in selected.left_out)
        if keep
        else frozenset(),
    )
    for form in formats:
        if form in TABLES:
            kinds = kinds_of(questions, rows.bounded, written.calibrated)
            flat = (flat_row(row, kinds) for row in rows)
            own.renew(job.out / f"answers.{form}", partial(TABLES[form], rows=flat, kinds=kinds))
    write_jsonl(job.out / "failures.jsonl", written.failures)
    firsts = [group[0] for group in job.by_file]
    media = (media_line(f.file, rows.lines[f.file], f.medium) for f in firsts)
    write_proved(job.out, {MEDIA: media}, job.store.url)
    return written


def kinds_of(
    questions: Questions, bounded: Collection[str], calibrated: Collection[str]
) -> dict[str, str]:
    """Return the columns of a table of answers, and their types. `bounded` and `calibrated`: names
    of questions with answers that are."""
    return {**NAMES, **SPAN, **columns_of(questions, bounded=bounded, calibrated=calibrated)}


def flat_row(row: AnswerRow, kinds: Mapping[str, str]) -> dict[str, Json]:
    """Return the row of a table. What a chunk lacks is null."""
    flat: dict[str, Json] = dict.fromkeys(kinds)
    flat |= {name: getattr(row, name) for name in (*NAMES, *SPAN)}
    for name, answer in row.answers.items():
        flat |= values_of_answer(name, answer)
    return flat
