"""The Prefect flow of a rebuild of stored features. All decisions are those of the plain
command.
"""

from typing import Any

from prefect import State, flow, get_run_logger

from artifacts.errors import PenstockError
from flows.console.display import Display
from flows.deployments.config_checks import RebuildParameters, confine
from flows.deployments.page import RunPage
from flows.deployments.runs import ended_by, ended_when_cancelled, final_state
from flows.deployments.tasks import PrefectLauncher
from flows.deployments.view import RunLog
from flows.upkeep.rebuild import RebuildOptions, rebuild

TABLE = "penstock-rebuild"


@flow(name="rebuild-features", persist_result=False)
def rebuild_features(
    config: RebuildParameters, name: str = "", prune: bool = False, dry_run: bool = False
) -> State[Any]:
    """Encode what of the features that `config` needs is missing in the store.

    Args:
        config: The options of `penstock cache rebuild`.
        name: Tells apart jobs over the same sources, such as those of two models.
        prune: Remove what earlier rebuilds of this job made and nothing refers to any more.
        dry_run: Say in the log what would be done, and do nothing.
    """
    display = Display(to=RunLog(get_run_logger()))
    options = RebuildOptions(name=name, prune=prune, dry_run=dry_run)
    page = RunPage()
    try:
        confine(config, out=False)
        with ended_when_cancelled():
            result = rebuild(config, options, display, PrefectLauncher, page.begin)
    except PenstockError as error:
        return ended_by(error, TABLE, page)
    except BaseException:
        page.end()  # or it would say for good that the run is going on
        raise
    if dry_run:
        for line in result.plan_lines():
            display.print_line(line)
    hint = "" if result.files else "The table of the run says why of each file"
    return final_state(result, TABLE, page, nothing_hint=hint)
