"""Calibrates the answers of a run by what people decided. Runs no model."""

from collections.abc import Callable, Iterator, Mapping, Sequence

from artifacts.texts.calibration import LEAST, RAW, Calibrated, Decision, calibrated
from artifacts.texts.decisions import DecisionKey
from artifacts.texts.questions import Questions, probes_of, stated_scores
from artifacts.wording import counted
from flows.core.job.job_file import JobFile
from flows.core.job.prepare import Job
from flows.core.ledger.tasks import Task

Half = tuple[tuple[str, str], ...]
"""Parts of a model and their precisions."""
Calibrations = Mapping[tuple[str, Half], Calibrated]
"""Question and half → its calibration."""


def half_of(task: Task) -> Half:
    return tuple(sorted(task.variant.precision.items()))


def calibrations_of(
    job: Job,
    questions: Questions,
    labels: Mapping[DecisionKey, str],
    by_chunk: Callable[[Sequence[JobFile]], list[dict[str, Task]]],
) -> Calibrations:
    """Return what decisions make of each question and half. `by_chunk` returns the answered tasks
    of the chunks of a file by their probe."""
    contents = {key.content for key in labels}
    asked = probes_of(questions, one_token=job.model.served is not None)
    probes = [
        (q.name, probe, probe.digest, sent.text)
        for q in questions
        for probe, sent in zip(q.probes, asked[q.name], strict=True)
    ]
    decisions: dict[tuple[str, Half], dict[DecisionKey, Decision]] = {}
    for group in job.by_file if labels else []:
        content = group[0].medium.digest
        for tasks in by_chunk(group) if content in contents else []:
            for name, probe, digest, text in probes:
                if (task := tasks.get(text)) is None:
                    continue
                key = DecisionKey(content, task.chunk.start, task.chunk.end, digest)
                scores = tuple(stated_scores(job.ledger["answers"].meta(task["answers"])))
                if scores and (label := labels.get(key)) in probe.labels:
                    decision = Decision(scores, probe.labels.index(label), content)
                    decisions.setdefault((name, half_of(task)), {})[key] = decision
    return {of: calibrated([*by_key.values()]) for of, by_key in decisions.items()}


def lines_on(calibrations: Calibrations) -> Iterator[str]:
    """Yield what came of the decisions on each question, with the half if there are several."""
    for (name, half), one in calibrations.items():
        several = sum(other == name for other, _ in calibrations) > 1
        which = f"{name} ({', '.join(precision for _, precision in half)})" if several else name
        decided = counted(one.decisions, "decision")
        if one.decisions < LEAST:
            yield f"{which}: {decided}, which change no probability below {LEAST}"
            continue
        is_raw = one.calibration == RAW
        line = f"{which}: {'not better by' if is_raw else 'calibrated by'} {decided}"
        if one.held_out:
            errors = f"{one.raw_error:.2f} → {one.error:.2f}"
            errors = f"{one.raw_error:.2f}" if is_raw else errors
            held = f"{one.held_out:,} held-out decisions"
            line += f", calibration error {errors} on {held}"
        yield line
