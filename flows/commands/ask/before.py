"""Answers the questions of a run of captions before it, from the same features."""

from artifacts.wording import counted
from flows.commands.ask.run import ask
from flows.core.console.display import Display
from flows.core.options.commands import RunOptions
from flows.core.options.questions import AskConfig
from flows.execution.run import LauncherMaker
from flows.outputs.folder.foreign_files import LEFT_OUT_FILE


def answer_before(
    config: RunOptions, display: Display, make_launcher: LauncherMaker, left_out: frozenset[str]
) -> frozenset[str]:
    """Answer the questions of a run of captions. Return the places of the files that `--keep`
    leaves out, with those of `left_out`. Raises PenstockError."""
    answers = ask(AskConfig.before(config), display, make_launcher, left_out=left_out)
    display.print_line(answers.line())
    for note in answers.notes():
        display.print_line(f"note: {note}")
    if answers.left_out:
        display.print_line(
            f"{counted(len(answers.left_out), 'file')} left out by --keep: "
            f"{answers.out / LEFT_OUT_FILE}"
        )
    return left_out | answers.left_out
