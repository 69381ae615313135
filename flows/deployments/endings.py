"""Says how a flow ends, in a state and in a table of the UI. Knows no flow."""

from collections.abc import Sequence
from typing import Any, Protocol

from prefect import State
from prefect.states import Cancelled, Completed, Failed

from artifacts.captions import Failure
from artifacts.errors import Interrupted, PenstockError, UsageError
from flows.console.lines import printable
from flows.deployments.page import RunPage
from flows.deployments.patience import await_server
from flows.deployments.view import plain, show, table
from flows.job.prepare import NothingToDo

INTERRUPTED = "Interrupted"
"""Name of the state of a run that was ended from outside without being asked."""


class Outcome(Protocol):
    """The end of a run, whatever it made."""

    @property
    def failures(self) -> Sequence[Failure]: ...

    def line(self) -> str: ...

    def row(self) -> dict[str, Any]:
        """Return what was made, as a row of a table."""


def ended(result: Outcome, key: str, page: RunPage, *, nothing_hint: str) -> State[Any]:
    """Return the state of a flow that no error ended, and show a table. The table is of what
    failed, or of the result's row. Where nothing was made because all failed, `nothing_hint` says
    what to read."""
    await_server()
    page.end()
    row = {n: plain(v) if isinstance(v, str) else v for n, v in result.row().items()}
    show(table(result.failures) or [row], result.line(), key)
    if result.failures and nothing_hint:
        nothing = UsageError(result.line(), hint=nothing_hint)
        return Failed(message=printable(str(nothing)), data=nothing)
    return Completed(message=printable(result.line()))


def ended_by(error: PenstockError, key: str, page: RunPage) -> State[Any]:
    """Return the state of a flow that an error ended, told as soon as the server answers.
    `Interrupted` is what flows/deployments/sweep.py starts again."""
    await_server()
    page.end()
    if isinstance(error, NothingToDo):
        show(table(error.failures), str(error), key)
    message = printable(str(error))
    if isinstance(error.__cause__, KeyboardInterrupt):
        return Cancelled(message=message, data=error)
    name = INTERRUPTED if isinstance(error, Interrupted) else "Failed"
    return Failed(name=name, message=message, data=error)
