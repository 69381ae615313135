"""Tells programs what a run would take."""

from typing import Any, Unpack

from flows.console.display import Display
from flows.machine.launch import DirectLauncher
from flows.options.commands import CaptionConfig
from flows.planning.plan import figures, plan_of
from penstock.keywords import CaptionOptions
from penstock.options import Sources, config_for


def plan(sources: Sources = (), **options: Unpack[CaptionOptions]) -> dict[str, Any]:
    """Return what a run would take of memory, disk and time, and whether it `fits`. Without
    sources, it is what a standard chunk would. Nothing is run. Raises PenstockError."""
    display = Display(quiet=True)
    config = config_for(sources, options, CaptionConfig, CaptionOptions.__annotations__)
    return figures(plan_of(config, DirectLauncher(display.listen), display.say))
