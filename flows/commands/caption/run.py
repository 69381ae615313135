"""Captions the media that meet `--sift` and `--keep`: marks them, answers questions about them, and
captions what is left."""

from artifacts.disk.regular_files import guard
from flows.core.console.display import Display
from flows.core.job.prepare import media_of, out_folder
from flows.core.job.young_files import files_by_age
from flows.core.machine.launch import DirectLauncher
from flows.core.options.commands import RunOptions
from flows.core.options.questions import AskConfig
from flows.execution import run
from flows.execution.run_observer import OnBegin
from flows.outputs.folder.owners import refuse_taking
from flows.outputs.run_result import RunResult


def caption(
    config: RunOptions,
    display: Display,
    make_launcher: run.LauncherMaker = DirectLauncher,
    on_begin: OnBegin | None = None,
) -> RunResult:
    """Caption as `flows.execution.run.caption` does, after leaving out what `--sift` says. Raises
    PenstockError; finished records stay."""
    left_out = frozenset[str]()
    guard(out_folder(config))
    if (answers := config.groups.answers).questions:
        from flows.commands.ask.keep import parse_keep

        parse_keep(answers.keep, AskConfig.before(config).every_question)  # before hours of marking
    if config.min_age and (config.groups.sift_first.sift or answers.questions):
        # Hours may pass until captions: a file that is too young for marks stays out of them, too.
        by_age = files_by_age(media_of(config)[0], config.min_age, config.out)
        left_out = frozenset(file.place for file in by_age.young if by_age.resting)
    if condition := config.groups.sift_first.sift:
        from flows.commands.sift.before import sift_before

        refuse_taking(config, "caption")  # before hours of marking
        left_out |= sift_before(config, condition, display, make_launcher)
    if answers.questions:
        from flows.commands.ask.before import answer_before

        refuse_taking(config, "caption")
        left_out = answer_before(config, display, make_launcher, left_out)
    return run.caption(config, display, make_launcher, on_begin, left_out)
