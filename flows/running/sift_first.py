"""Captions the media that meet `--sift`: marks them, then captions what is left."""

from artifacts.regular_files import guard
from flows.console.display import Display
from flows.job.prepare import out_folder
from flows.machine.launch import DirectLauncher
from flows.options.commands import RunOptions, SiftFirstOptions
from flows.results.owners import refuse_taking
from flows.results.run_result import RunResult
from flows.running import run
from flows.running.run_observer import OnBegin


def caption(
    config: RunOptions,
    display: Display,
    make_launcher: run.LauncherMaker = DirectLauncher,
    on_begin: OnBegin | None = None,
) -> RunResult:
    """Caption as `flows.running.run.caption` does, after leaving out what `--sift` says. Raises
    PenstockError; finished records stay."""
    left_out = frozenset[str]()
    guard(out_folder(config))
    if condition := SiftFirstOptions.of(config).sift:
        from flows.running.sift import sift_before

        refuse_taking(config, "caption")  # before hours of marking
        left_out = sift_before(config, condition, display, make_launcher)
    return run.caption(config, display, make_launcher, on_begin, left_out)
