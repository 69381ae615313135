"""Runs a job that answers questions, from its configuration to its exit code."""

from functools import partial

from artifacts.errors import UsageError
from artifacts.texts.decisions import read_decisions
from artifacts.texts.questions import Questions, refuse_same
from flows.commands.ask import pipeline_of
from flows.commands.ask.answers import AnswersWritten, answer_paths, write_answers
from flows.commands.ask.keep import parse_keep
from flows.core.checkpoint.prompt_tokens import PromptTokens
from flows.core.console.display import Display
from flows.core.job.prepare import Job
from flows.core.job.replan import replanned_once
from flows.core.machine.launch import DirectLauncher
from flows.core.options.questions import AskConfig
from flows.execution.run import LauncherMaker, prepared
from flows.execution.run_observer import OnBegin, RunObserver
from flows.outputs.folder.owners import refuse_taking


def ask(
    config: AskConfig,
    display: Display,
    make_launcher: LauncherMaker = DirectLauncher,
    on_begin: OnBegin | None = None,
    left_out: frozenset[str] = frozenset(),
) -> AnswersWritten:
    """Answer the questions of the configuration about all its media, except those in the places of
    `left_out`. `on_begin` is as in `caption`. Raises PenstockError; finished records stay."""

    questions = config.every_question
    parse_keep(config.keep, questions)  # reports now what cannot be read
    decisions = read_decisions(config.decisions, questions)

    def attempt() -> AnswersWritten:
        refuse_taking(config, "ask")
        observer = RunObserver(display, on_begin, "ask")
        pipeline = pipeline_of(config.model)
        with prepared(config, observer, make_launcher, pipeline, left_out=left_out) as (
            job,
            launcher,
        ):
            check(questions, job)
            outputs = answer_paths(job)
            with observer.pipeline_for_job(job, launcher, outputs=outputs) as runner:
                write = partial(
                    write_answers, job, questions, decisions, config.keep, config.format
                )
                return runner.compute_outputs(write, lambda end: end.rows)

    return replanned_once(attempt, display.print_line)


def check(questions: Questions, job: Job) -> None:
    """Raise UsageError for a model whose features are of one question each, and for labels of a
    question that it reads as the same."""
    if job.model.profile.prompted:
        raise UsageError(
            f"{job.model.name} encodes media together with the question, so each question would "
            "encode everything again",
            hint="Choose a model that encodes media by themselves: docs/models.md",
        )
    if job.model.served is not None:
        return
    tokens = PromptTokens(job.model.folder)
    for question in questions:
        if question.type != "tags":
            ids = {label: of for label in question.labels if (of := tokens.ids(label))}
            refuse_same(ids, ids.values(), f"{question.name}: ")
