"""Runs a labelling job, from its configuration to its exit code."""

from collections.abc import Collection
from dataclasses import dataclass, field, replace

import numpy as np

from artifacts.errors import UsageError
from artifacts.plurals import counted
from flows.console.display import Display
from flows.job.pass_mode import replanned_once
from flows.job.prepare import Job
from flows.machine.launch import DirectLauncher
from flows.media.labels import LabelSet, label_set
from flows.options.commands import RunOptions
from flows.options.vectors import TOP, LabelOptions
from flows.pipelines import LABEL
from flows.results.label_files import LabelsWritten, label_paths, write_labels
from flows.results.label_rows import (
    Examples,
    LabelContext,
    label_chunks,
    label_rules,
    learned_threshold,
    read_examples,
)
from flows.results.owners import refuse_taking
from flows.results.vectors import vector_tasks
from flows.running.run import LauncherMaker, prepared
from flows.running.run_observer import OnBegin, RunObserver


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelRequest:
    """The labels that a command requests."""

    labels: LabelSet
    threshold: float | None = None
    """Lowest score of a label without a threshold of its own; None: the rule of the model
    applies."""
    top: int = TOP
    examples: Examples = field(default_factory=dict)
    """Labels that users gave some of the images; thresholds are learned from them."""


def label_request(config: LabelOptions) -> LabelRequest:
    """Return the labels that a configuration requests. Raises PenstockError."""
    labels = label_set(config.labels, config.templates)
    return LabelRequest(
        labels=labels,
        examples=read_examples(config.examples, labels.names),
        threshold=config.threshold,
        top=config.top,
    )


def label(
    config: RunOptions,
    request: LabelRequest,
    display: Display,
    make_launcher: LauncherMaker = DirectLauncher,
    on_begin: OnBegin | None = None,
) -> LabelsWritten:
    """Label all images of the configuration. `on_begin` is as in `caption`. Raises PenstockError;
    finished records stay."""

    def attempt() -> LabelsWritten:
        refuse_taking(config, "label")
        observer = RunObserver(display, on_begin, "label")
        with prepared(config, observer, make_launcher, LABEL) as (job, launcher):
            outputs, doing = label_paths(job), "labelling into"
            refuse_foreign(request.examples, {each.file.media_path for each in job.files})
            with observer.pipeline_for_job(job, launcher, doing, outputs=outputs) as runner:
                # The labels come first, so that an unreadable label is found before hours of work.
                texts = runner.text_vectors(
                    request.labels.texts,
                    # Looking up the stored records of 10,000 images takes a second.
                    while_running=lambda: job.ledger.tasks(job.media),
                )
                labelling = LabelContext(
                    labels=request.labels,
                    texts=texts,
                    rules=label_rules(request.labels, texts, request.threshold),
                    top=request.top,
                )

                def write() -> LabelsWritten:
                    return write_labels(job, learn_thresholds(job, labelling, request))

                return runner.compute_outputs(write, lambda end: end.labelled)

    return replanned_once(attempt, display.print_line)


def learn_thresholds(job: Job, labelling: LabelContext, request: LabelRequest) -> LabelContext:
    """Return the context with thresholds learned from the examples, if there are any."""
    if not request.examples:
        return labelling
    shown = (
        (file, task)
        for file, task in vector_tasks(job)
        if task.medium.kind == "image" and file.media_path in request.examples
    )
    found = [
        (request.examples[each.file.media_path], each.scores[0])
        for each in label_chunks(job, labelling, shown)
    ]
    if not found:
        return labelling  # no example could be read; each is listed as a failure
    scores = np.asarray([row for _, row in found], np.float64)
    learned: dict[str, float] = {}
    for at, name in enumerate(request.labels.names):
        cut = learned_threshold(scores[:, at], np.asarray([name in has for has, _ in found]))
        if cut is not None:
            learned[name] = cut
    rules = label_rules(request.labels, labelling.texts, request.threshold, learned)
    return replace(labelling, rules=rules)


def refuse_foreign(examples: Examples, media_paths: Collection[str]) -> None:
    """Check that at least one example is among the images. Raises UsageError."""
    if examples and not any(name in media_paths for name in examples):
        raise UsageError(
            f"no image of --examples is among the sources ({counted(len(examples), 'example')})",
            hint="Name images as labels.jsonl does: by their path below the source folder",
        )
