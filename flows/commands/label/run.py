"""Runs a labelling job, from its configuration to its exit code."""

from collections.abc import Collection
from dataclasses import replace

import numpy as np

from artifacts.errors import UsageError
from artifacts.wording import counted
from flows.commands.label.files import LabelsWritten, label_paths, write_labels
from flows.commands.label.label_set import LabelSet, label_set
from flows.commands.label.rows import (
    Examples,
    LabelContext,
    label_chunks,
    label_rules,
    learned_threshold,
    read_examples,
)
from flows.commands.label.tags import tagger_context
from flows.core.checkpoint.tagger import read_tagger
from flows.core.console.display import Display
from flows.core.job.prepare import Job
from flows.core.job.replan import replanned_once
from flows.core.machine.launch import DirectLauncher
from flows.core.options.vectors import LabelConfig, LabelOptions
from flows.core.pipelines import LABEL, TAG, Pipeline
from flows.execution.pipeline_runner import PipelineRunner
from flows.execution.run import LauncherMaker, prepared
from flows.execution.run_observer import OnBegin, RunObserver
from flows.outputs.folder.owners import refuse_taking
from flows.outputs.vectors import vector_tasks


def requested_labels(options: LabelOptions) -> tuple[LabelSet, Examples]:
    """Return the requested labels, and those that users gave some of the images: thresholds are
    learned from them. Raises PenstockError."""
    if options.tagger:
        tagger = read_tagger(options.tagger)
        return tagger_context(tagger, options.threshold, options.top).labels, {}
    labels = label_set(options.labels, options.templates)
    return labels, read_examples(options.examples, labels.names)


def label(
    config: LabelConfig,
    display: Display,
    make_launcher: LauncherMaker = DirectLauncher,
    on_begin: OnBegin | None = None,
) -> LabelsWritten:
    """Label all images of the configuration. `on_begin` is as in `caption`. Raises PenstockError;
    finished records stay."""
    labels, examples = requested_labels(config)

    def attempt() -> LabelsWritten:
        refuse_taking(config, "label")
        observer = RunObserver(display, on_begin, "label")
        with prepared(config, observer, make_launcher, pipeline_of(config)) as (job, launcher):
            outputs, doing = label_paths(job), "labelling into"
            refuse_foreign(examples, {job_file.file.media_path for job_file in job.files})
            with observer.pipeline_for_job(job, launcher, doing, outputs=outputs) as runner:
                if job.model.tagger is not None:
                    labelling = tagger_context(job.model.tagger, config.threshold, config.top)
                else:
                    labelling = context_of(config, labels, job, runner)

                def write() -> LabelsWritten:
                    learned = learn_thresholds(job, labelling, examples, config.threshold)
                    return write_labels(job, learned)

                return runner.compute_outputs(write, lambda end: end.labelled)

    return replanned_once(attempt, display.print_line)


def pipeline_of(options: LabelOptions) -> Pipeline:
    """Return the stages of a labelling run."""
    return TAG if options.tagger else LABEL


def context_of(
    options: LabelOptions, labels: LabelSet, job: Job, runner: PipelineRunner
) -> LabelContext:
    """Return the labels with their vectors. They come first, so that an unreadable label is found
    before hours of work."""
    texts = runner.text_vectors(
        labels.texts,
        # Looking up the stored records of 10,000 images takes a second.
        while_running=lambda: job.ledger.tasks(job.media),
    )
    rules = label_rules(labels, texts, options.threshold)
    return LabelContext(labels=labels, texts=texts, rules=rules, top=options.top)


def learn_thresholds(
    job: Job, labelling: LabelContext, examples: Examples, threshold: float | None
) -> LabelContext:
    """Return the context with thresholds learned from the examples, if there are any. `threshold`:
    that of the command."""
    if not examples:
        return labelling
    shown = (
        (file, task)
        for file, task in vector_tasks(job)
        if task.medium.kind == "image" and file.media_path in examples
    )
    scored = [
        (examples[chunk.file.media_path], chunk.scores[0])
        for chunk in label_chunks(job, labelling, shown)
    ]
    if not scored:
        return labelling  # no example could be read; each is listed as a failure
    scores = np.asarray([row for _, row in scored], np.float64)
    learned: dict[str, float] = {}
    for at, name in enumerate(labelling.labels.names):
        cut = learned_threshold(scores[:, at], np.asarray([name in has for has, _ in scored]))
        if cut is not None:
            learned[name] = cut
    rules = label_rules(labelling.labels, labelling.texts, threshold, learned)
    return replace(labelling, rules=rules)


def refuse_foreign(examples: Examples, media_paths: Collection[str]) -> None:
    """Check that at least one example is among the images. Raises UsageError."""
    if examples and not any(name in media_paths for name in examples):
        raise UsageError(
            f"no image of --examples is among the sources ({counted(len(examples), 'example')})",
            hint="Name images as labels.jsonl does: by their path below the source folder",
        )
