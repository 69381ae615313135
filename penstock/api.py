"""Python API to plan a run, to bring stored features up to date, and to look at a run."""

from os import PathLike
from pathlib import Path
from typing import Any, Unpack

from flows.console.display import Display
from flows.machine.launch import DirectLauncher
from flows.options.commands import CaptionConfig
from flows.options.rebuild import RebuildConfig
from flows.planning.plan import figures, plan_of
from flows.results.report.write import write_report
from flows.results.run_status import run_status
from flows.upkeep.rebuild import RebuildOptions, RebuildResult
from flows.upkeep.rebuild import rebuild as run
from penstock.arguments import checked
from penstock.keywords import CaptionOptions, FeatureOptions
from penstock.options import Sources, config_for


def rebuild(
    sources: Sources,
    *,
    name: str = "",
    prune: bool = False,
    dry_run: bool = False,
    progress: bool = False,
    **options: Unpack[FeatureOptions],
) -> RebuildResult:
    """Encode what of the sources has no features. `name`, `prune` and `dry_run` are as with the
    command `penstock cache rebuild`. Raises PenstockError."""
    given = {"name": name, "prune": prune, "dry_run": dry_run}
    asked = RebuildOptions(**checked(RebuildOptions, given))
    config = config_for(sources, options, RebuildConfig, FeatureOptions.__annotations__)
    return run(config, asked, Display(quiet=not progress))


def plan(sources: Sources = (), **options: Unpack[CaptionOptions]) -> dict[str, Any]:
    """Return what a run would take of memory, disk and time, and whether it `fits`. Without
    sources, it is what a standard chunk would. Nothing is run. Raises PenstockError."""
    display = Display(quiet=True)
    config = config_for(sources, options, CaptionConfig, CaptionOptions.__annotations__)
    return figures(plan_of(config, DirectLauncher(display.on_event), display.print_line))


def status(out: str | PathLike[str] = "penstock-out") -> dict[str, Any]:
    """Return the progress or the end of the run in a folder, as `penstock status --json`. Raises
    PenstockError."""
    return run_status(Path(out))


def report(out: str | PathLike[str] = "penstock-out", to: str | PathLike[str] = "") -> Path:
    """Write the HTML report of a run, and return its path. Empty `to`: `report.html` in the
    folder. Raises PenstockError."""
    return write_report(Path(out), Path(to) if to else None)
