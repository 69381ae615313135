"""The Prefect flow of a caption run: one task per stage, with progress and a table in the UI. The
sequence of stages is that of the plain command.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from prefect import State, flow
from prefect.settings import PREFECT_API_URL, temporary_settings

from artifacts.errors import EnvironmentFault
from flows.console.display import Display
from flows.deployments.config_checks import CaptionConfig, CaptionParameters
from flows.deployments.runs import CALLER, Caller, named_after_work, run_in_flow
from flows.deployments.server import FILE, OWN, client_settings, refuses_login
from flows.deployments.view import quiet_console
from flows.pipelines import CAPTION, product_of
from flows.results.run_result import RunResult
from flows.running.run import stopped_in_order
from flows.running.sift_first import caption


@flow(name="caption-videos", flow_run_name=named_after_work, persist_result=False)
def caption_videos(config: CaptionParameters) -> State[Any]:
    """Caption everything that `config` names; its fields are the command line's options.

    Relative paths are looked up in the flow's working directory, which for a deployment is the
    folder it was deployed from.
    """
    return run_in_flow(config, partial(caption, config), product_of(CAPTION))


def run_with_prefect(config: CaptionConfig, display: Display) -> RunResult:
    """Run the flow inside the command, which prints what the plain command prints. Raises
    PenstockError."""
    quiet_console(display.print_line)
    caller = Caller(display=display)
    token = CALLER.set(caller)
    try:
        with stopped_in_order(), temporary_settings(client_settings()):
            state = observed(partial(caption_videos, config, return_state=True), caller)
    finally:
        CALLER.reset(token)
    if caller.result is None:
        assert state is not None
        state.result()  # raises
    assert caller.result is not None
    return caller.result


def observed(run: Callable[[], State[Any]], caller: Caller) -> State[Any] | None:
    """Run the flow, and return its state, or None if the server vanished after the work was
    done."""
    try:
        return run()
    except Exception as error:  # from Prefect; the flow's own errors are in its state
        text = f"no response from the Prefect server at {PREFECT_API_URL.value()} ({error})"
        hint = "Start it, or unset PREFECT_API_URL; finished work is kept"
        if refuses_login(error):
            text = f"the Prefect server at {PREFECT_API_URL.value()} refuses the login"
            hint = f"Set PREFECT_API_AUTH_STRING to the login in {FILE} of its PREFECT_HOME; {OWN}"
        if caller.result is None:
            raise EnvironmentFault(text, hint=hint) from error
        caller.display.print_line(text)
        return None
