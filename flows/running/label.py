"""Runs a labelling job, from its configuration to its exit code."""

from collections.abc import Collection
from dataclasses import dataclass, field, replace

import numpy as np

from artifacts.errors import UsageError
from artifacts.words import counted
from flows.console.display import Display
from flows.job.prepare import Job, out_folder
from flows.job.replanning import replanned_once
from flows.machine.launch import DirectLauncher
from flows.media.labels import LabelSet, label_set
from flows.options.commands import RunOptions
from flows.options.vectors import TOP, LabelOptions
from flows.pipelines import LABEL
from flows.results.foreign_files import refuse_replacing
from flows.results.labels.judging import Examples, examples_of, judge_of, learned_threshold
from flows.results.labels.rows import LabelContext, judged
from flows.results.labels.writing import LabelsWritten, label_places, write_labels
from flows.results.vectors import made_vectors
from flows.running.run import LauncherMaker, prepared
from flows.running.run_observer import OnBegin, RunObserver


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelRequest:
    """The labels that a command requests."""

    labels: LabelSet
    threshold: float | None = None
    """Least score of a label that has none of its own; None: by the rule of the model."""
    top: int = TOP
    examples: Examples = field(default_factory=dict)
    """Labels that people gave some of the pictures: thresholds are learned from them."""

    def __post_init__(self) -> None:
        if self.top < 1:
            raise UsageError(f"--top is {self.top}", hint="Give 1 or more")
        if self.threshold is not None and not -1 <= self.threshold <= 1:
            raise UsageError(f"--threshold is {self.threshold}", hint="Give a number from -1 to 1")


def labels_for(config: LabelOptions) -> LabelRequest:
    """Return the labels that a configuration asks for. Raises PenstockError."""
    labels = label_set(config.labels, config.templates)
    return LabelRequest(
        labels=labels,
        examples=examples_of(config.examples, labels.names),
        threshold=config.threshold,
        top=config.top,
    )


def label(
    config: RunOptions,
    asked: LabelRequest,
    display: Display,
    make_launcher: LauncherMaker = DirectLauncher,
    on_begin: OnBegin | None = None,
) -> LabelsWritten:
    """Give labels to everything the configuration names, with `on_begin` as `caption` has it.
    Raises PenstockError; what is finished stays done."""

    def attempt() -> LabelsWritten:
        refuse_replacing(out_folder(config), config, LABEL)
        watch = RunObserver(display, on_begin)
        with prepared(config, watch, make_launcher, LABEL) as (job, launcher):
            outputs, doing = label_places(job), "labelling into"
            refuse_foreign(asked.examples, {file.media_path for file in job.files})
            written: list[LabelsWritten] = []
            with watch.working(job, launcher, doing, outputs=outputs) as (sequence, record, _):
                # First, so that a label that cannot be read is known before hours of work.
                texts = sequence.texts.make(
                    asked.labels.texts,
                    # To look up what is there of 10,000 pictures takes a second.
                    meanwhile=lambda: job.ledger.tasks(job.media),
                )
                labelling = LabelContext(
                    labels=asked.labels,
                    texts=texts,
                    judge=judge_of(asked.labels, texts, asked.threshold),
                    top=asked.top,
                )

                def write(last: bool) -> None:
                    if last:
                        written.append(write_labels(job, learn_thresholds(job, labelling, asked)))
                        record.value["rows"] = written[-1].labelled
                        record.fails(written[-1].failures)

                sequence.fill(write)
            return written[-1]

    return replanned_once(attempt, display.say)


def learn_thresholds(job: Job, labelling: LabelContext, asked: LabelRequest) -> LabelContext:
    """Return the same with thresholds that the examples teach, where there are any."""
    if not asked.examples:
        return labelling
    shown = (
        (file, task)
        for file, task in made_vectors(job)
        if task.medium.kind == "image" and file.media_path in asked.examples
    )
    found = [
        (asked.examples[each.file.media_path], each.scores[0])
        for each in judged(job, labelling, shown)
    ]
    if not found:
        return labelling  # none of them could be read: each is told as failed
    scores = np.asarray([row for _, row in found], np.float64)
    learned: dict[str, float] = {}
    for at, name in enumerate(asked.labels.names):
        cut = learned_threshold(scores[:, at], np.asarray([name in has for has, _ in found]))
        if cut is not None:
            learned[name] = cut
    judge = judge_of(asked.labels, labelling.texts, asked.threshold, learned)
    return replace(labelling, judge=judge)


def refuse_foreign(examples: Examples, pictures: Collection[str]) -> None:
    """Refuse examples of which none is among the pictures. Raises UsageError."""
    if examples and not any(name in pictures for name in examples):
        raise UsageError(
            f"none of the {counted(len(examples), 'picture')} of --examples is among the sources",
            hint="Name them as labels.jsonl does: by their path below the folder that is given",
        )
