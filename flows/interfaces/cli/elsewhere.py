"""Runs of commands elsewhere than in this process: as a Prefect flow, or on a Ray cluster. Commands
get this module with their arguments, and import neither."""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from artifacts.errors import EnvironmentFault, PenstockError
from artifacts.packages import require_extra

if TYPE_CHECKING:
    from flows.core.console.display import Display
    from flows.core.options.commands import CaptionConfig
    from flows.outputs.run_result import RunResult


def on_cluster(*given: Any, **options: Any) -> Any:
    """Run a command on a Ray cluster, as `flows.interfaces.ray.run.run_on_cluster` does."""
    from flows.interfaces.ray.run import run_on_cluster

    return run_on_cluster(*given, **options)


def with_prefect(*given: Any) -> "RunResult":
    """Caption as a Prefect flow in this process, as `run_with_prefect` does."""
    return leave_after(partial(_flow(), *given))


def _flow() -> "Callable[[CaptionConfig, Display], RunResult]":
    """Import the flow. Raises EnvironmentFault if Prefect, which reads its settings meanwhile,
    refuses one."""
    require_extra("prefect", "--prefect")
    try:
        from flows.interfaces.prefect.commands import run_with_prefect
    except ValueError as error:
        from flows.core.console.lines import shortened

        text = shortened(" ".join(str(error).split()), 200)
        raise EnvironmentFault(
            f"Prefect refuses its settings: {text}",
            hint="Correct or unset the PREFECT_ variable of that name, or the profile",
        ) from error
    return run_with_prefect


def leave_after(run: Callable[[], "RunResult"]) -> "RunResult":
    """Run a flow inside this process. Exit soon after it ends, without waiting for Prefect's
    threads."""
    from flows.commands.shared.exit_report import CRASHED
    from flows.interfaces.prefect.crashed import leave_within

    try:
        result = run()
    except PenstockError as error:
        leave_within(error.exit_code)
        raise
    except Exception:
        leave_within(CRASHED)
        raise
    leave_within(result.exit_code)
    return result
