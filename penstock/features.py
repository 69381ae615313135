"""Brings features of files up to date, from Python."""

from typing import Unpack

from flows.console.display import Display
from flows.options.rebuild import RebuildConfig
from flows.upkeep.rebuild import RebuildOptions, RebuildResult
from flows.upkeep.rebuild import rebuild as run
from penstock.arguments import checked
from penstock.keywords import FeatureOptions
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
