"""Runs a job on a thread of this process, while its stages work in processes of their own.

The calling program keeps its main thread, its signals and its event loop: a notebook and an async
program use the same functions as a script.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Generic, Protocol, Self, TypeVar

from artifacts.errors import Interrupted, PenstockError
from flows.core.console.display import Display
from flows.core.console.lines import duration
from flows.core.job.prepare import check_names, out_folder
from flows.core.machine.launch import DirectLauncher, StageCall, StageHandle
from flows.core.options.commands import RunOptions
from flows.core.options.packages import check_packages
from flows.core.pipelines import Pipeline
from flows.execution.run import LauncherMaker, refuse_file, stopped_in_order
from flows.outputs.folder.owners import refuse_taking
from stages.process.fork_client import ForkServer
from stages.process.stage_process import Listener

if TYPE_CHECKING:
    from pyarrow import Table

STOPPING = "stopping; finished work is kept, run the cell again"
STOPPED = "stopped; finished work is kept, the same call goes on"
AGAIN_SECONDS = 0.2
"""Seconds between two attempts to stop a run, which may have started a process meanwhile."""
Row = TypeVar("Row")


class Ending(Protocol):
    """The result of a run."""

    def line(self) -> str: ...


End = TypeVar("End", bound=Ending)


def check_start(config: RunOptions, pipeline: Pipeline, command: str) -> None:
    """Raise at the call what can be known before a run begins in the background: PenstockError."""
    check_names(config, pipeline)
    check_packages(config)
    refuse_file(out_folder(config))
    refuse_taking(config, command)


class BackgroundRun(Iterator[Row], Generic[Row, End]):
    """A running job, and an iterator over its records. An error that ended the run is raised after
    the last record; another loop gives all records again. Leaving the `with` block or calling
    `close()` stops an unfinished run in order; the same call resumes it."""

    def __init__(self, out: str, display: Display) -> None:
        self._out = out
        self._display = display
        self._result: End | None = None
        self._error: BaseException | None = None
        self._is_over = False
        """Whether all records were given."""
        self._launcher = StoppableLauncher()
        self._began = time.monotonic()
        self._ended = threading.Event()
        """Set at the end of the run. An interrupted `Thread.join` counts the thread as ended, up to
        Python 3.12; ipykernel then closes its socket, and the next progress line fails."""
        threading.Thread(target=self._work, name="penstock", daemon=True).start()

    def __iter__(self) -> Self:
        if self._is_over:
            self._is_over = False
            self._begin_again()
        return self

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def result(self) -> End:
        """Wait for the end of the run and return its result: `failures`, `exit_code` and the
        folder `out`. Raises the error that ended the run, and Interrupted."""
        with self._closed_on_interrupt():
            self._ended.wait()
        if isinstance(self._error, PenstockError):
            raise self._error.with_traceback(None) from None  # not the frames of the thread
        if self._error is not None:
            raise self._error
        assert self._result is not None
        return self._result

    def close(self) -> None:
        """Stop an unfinished run in order. Finished items stay stored."""
        while not self._ended.is_set():
            self._display.end(STOPPING)
            self._launcher.stop()
            self._ended.wait(AGAIN_SECONDS)

    @contextlib.contextmanager
    def _closed_on_interrupt(self) -> Iterator[None]:
        """Close the run if waiting for it is interrupted. Raises Interrupted."""
        try:
            with stopped_in_order():
                yield
        except BaseException:
            self.close()
            raise

    def __repr__(self) -> str:
        return f"{type(self).__name__.lower()} of {self._out}: {self._state}"

    def _ipython_display_(self) -> None:
        """Show nothing of a run while its line does: an output that is saved would stay."""
        if self._ended.is_set() or not self._display.has_line:
            raise NotImplementedError  # IPython then shows the usual

    @property
    def _state(self) -> str:
        """Say how the run ended, or that it is running."""
        if self._error is not None and self._launcher.is_stopped:
            return STOPPED
        if self._error is not None:
            return f"ended with an error: {self._error}"
        return "running" if self._result is None else self._result.line()

    def pandas(self) -> Any:
        """Return `table()` as a DataFrame. Needs pandas."""
        return self.table().to_pandas()

    def table(self) -> "Table":
        """Return all records as a pyarrow table, once the run has ended. Raises the error that
        ended the run."""
        raise NotImplementedError

    def _run(self) -> End:
        """Run the job and return its result."""
        raise NotImplementedError

    def _begin_again(self) -> None:
        """Give all records once more, of a run that has ended."""
        raise NotImplementedError

    def _finish(self) -> None:
        """Called on the thread when the run has ended, in whatever way."""

    def _launch(self, listen: Listener) -> "StoppableLauncher":
        self._launcher.launcher = DirectLauncher(listen)
        return self._launcher

    def _work(self) -> None:
        try:
            self._result = self._run()
            seconds = time.monotonic() - self._began
            self._display.end(f"{self._result.line()}; {duration(seconds)}")
        except BaseException as error:  # result() raises it
            self._error = error
            self._display.end(self._state)
        finally:
            self._finish()
            self._ended.set()


class FinishedRecords(BackgroundRun[Row, End]):
    """A running job whose records are read from its output files when it has ended."""

    def __init__(
        self,
        out: str,
        display: Display,
        run: Callable[[Display, LauncherMaker], End],
        read: Callable[[End], Iterator[Row]],
        table: Callable[[End], "Table"],
    ) -> None:
        self._job, self._read, self._table = run, read, table
        self._records: Iterator[Row] | None = None
        super().__init__(out, display)

    def __next__(self) -> Row:
        if self._records is None:
            self._records = self._read(self.result())
        try:
            return next(self._records)
        except StopIteration:
            self._is_over = True
            raise

    def _begin_again(self) -> None:
        self._records = None

    def table(self) -> "Table":
        return self._table(self.result())

    table.__doc__ = BackgroundRun.table.__doc__

    def _run(self) -> End:
        return self._job(self._display, self._launch)


class StoppableLauncher:
    """A launcher that starts no process after it was stopped."""

    def __init__(self) -> None:
        self.launcher = DirectLauncher(lambda *_: None)
        self._started: list[StageHandle] = []
        self._fork_server: ForkServer | None = None
        self.is_stopped = False

    def start(self, call: StageCall) -> StageHandle:
        self._fork_server = call.fork_server or self._fork_server
        if not self.is_stopped:
            running = self.launcher.start(call)
            self._started = [*self._started[-1:], running]
        if self.is_stopped:  # perhaps meanwhile
            self.stop()
            raise Interrupted("stopped", hint="Finished work is kept; the same call goes on")
        return running

    def stop(self) -> None:
        """Stop all at once. `start` may be waiting for a fork server that imports libraries."""
        self.is_stopped = True
        if self._fork_server is not None:
            self._fork_server.kill()
        for running in self._started:
            running.stop()
