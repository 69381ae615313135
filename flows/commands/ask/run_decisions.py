"""Finds the decisions of people that are in force for a run, and keeps those of a table."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from artifacts.records.provenance import anybody, proof_by
from artifacts.texts.decisions import (
    DECISION,
    DECISIONS,
    DecisionKey,
    DecisionRow,
    keep_decisions,
    kept_decisions,
    labels_of,
    probe_of,
)
from artifacts.texts.questions import Questions
from artifacts.wording import counted
from flows.core.job.prepare import Job

SAME_SECONDS = 0.01
"""Difference of two times that a table may have rounded."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunDecisions:
    """The decisions that are in force for a run."""

    labels: dict[DecisionKey, str]
    notes: tuple[str, ...] = ()
    """What does not count."""


def decided_in(job: Job, questions: Questions, table: Sequence[DecisionRow]) -> RunDecisions:
    """Return the decisions of the journal in a run's folder, with those of a table, which are added
    to it. Raises EnvironmentFault."""
    trusts = job.config.groups.trust.trust_folder
    proof = anybody if trusts else proof_by(job.store.url, DECISION)
    kept, unproved = kept_decisions(job.out, proof)
    placed = _placed(job, questions, table)
    history = {(row.key, row.answer) for row in kept}
    new = [row for row in placed if row.key and (row.key, row.answer) not in history]
    keep_decisions(job.out, new, job.store.url)
    away = sum(row.key is None for row in placed)
    notes = [f"{counted(away, 'decision')} of --decisions about no chunk or question of this run"]
    notes += [
        f"{counted(unproved, 'line')} of {job.out / DECISIONS} that no command of this user on "
        "this machine wrote, which do not count: name the file with --decisions"
    ]
    shown = zip(notes, (away, unproved), strict=True)
    return RunDecisions(
        labels=labels_of((*kept, *new)), notes=tuple(note for note, count in shown if count)
    )


def _placed(job: Job, questions: Questions, table: Sequence[DecisionRow]) -> list[DecisionRow]:
    """Return the rows of a table with what each is about, if a single chunk and a question are."""
    by_name = {question.name: question for question in questions}
    of_path: dict[str, list[int]] = {}
    for at, row in enumerate(table):
        if row.key is None:
            of_path.setdefault(row.media_path, []).append(at)
    candidates: dict[int, set[DecisionRow]] = {}
    for group in job.by_file if of_path else []:
        file, medium = group[0].file, group[0].medium
        places = of_path.get(file.media_path, [])
        chunks = [task.chunk for task in job.ledger.tasks([medium])] if places else []
        for at in places:
            row = table[at]
            question = by_name.get(row.question)
            probe = probe_of(question, row.tag) if question is not None else None
            start = row.start
            here = [c for c in chunks if start is None or abs(c.start - start) < SAME_SECONDS]
            if probe is None or len(here) != 1 or row.source not in ("", file.source):
                continue
            placed_row = replace(
                row, start=here[0].start, end=here[0].end, content=medium.digest, probe=probe.digest
            )
            candidates.setdefault(at, set()).add(placed_row)
    placed = list[DecisionRow]()
    for at, row in enumerate(table):
        own = {candidate.key: candidate for candidate in candidates.get(at, ())}
        placed.append(next(iter(own.values())) if len(own) == 1 else row)
    return placed
