"""Python API for captioning: iterate over captions as they are made, or collect them as a table.

The run works on a thread and its stages in processes, as with the command. It writes the same files
and reuses the same stored records. Each caption is read from the store when its stage reports it.
Ending the iteration or leaving the `with` block stops the run in order; the same call resumes it.
"""

import threading
from collections.abc import Iterator
from itertools import chain
from queue import SimpleQueue
from types import TracebackType
from typing import Any, Self, Unpack

from artifacts.captions import Caption
from artifacts.errors import Interrupted
from artifacts.packs import RecordSet
from artifacts.tables import schema_of, table_of
from flows.console.display import Display
from flows.job.prepare import Job
from flows.ledger.tasks import Task
from flows.machine.launch import DirectLauncher, StageCall, StageHandle
from flows.media.media_files import MediaFile
from flows.options.commands import CaptionConfig, RunOptions
from flows.results.captions import caption_of, captions_by_file
from flows.results.run_record import RunRecord
from flows.results.run_result import RunResult
from flows.results.table_rows import kinds_of, properties_of, table_rows
from flows.running import run
from penstock.keywords import CaptionOptions
from penstock.options import Sources, config_for
from stages.process.events import Event, Item
from stages.process.stage_process import Listener


def caption(
    sources: Sources, *, progress: bool = False, **options: Unpack[CaptionOptions]
) -> "Captions":
    """Start a run over files, folders, globs, addresses or lists; with `progress` it is shown as by
    the command. Raises UsageError for options that make no sense."""
    return Captions(
        config_for(sources, options, CaptionConfig, CaptionOptions.__annotations__),
        Display(quiet=not progress),
    )


class Captions(Iterator[Caption]):
    """A running captioning job. Iterating yields stored captions first, then each new one as soon
    as it is made. An error that ended the run is raised after the last caption."""

    def __init__(self, config: RunOptions, display: Display) -> None:
        config.check_sources()
        self._config = config
        self._display = display
        self._made: SimpleQueue[Caption | None] = SimpleQueue()
        self._given: set[tuple[int, float]] = set()
        """Captions given already: place of the file among the job's, and where the caption
        starts."""
        self._feed: _Feed | None = None
        self._result: RunResult | None = None
        self._error: BaseException | None = None
        self._launcher = _Stoppable()
        self._thread = threading.Thread(target=self._run, name="penstock", daemon=True)
        self._thread.start()

    def __next__(self) -> Caption:
        try:
            row = self._made.get()
        except BaseException:
            self.stop()
            raise
        if row is not None:
            return row
        self._made.put(None)
        self.result()
        raise StopIteration

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def result(self) -> RunResult:
        """Return how the run ended, once it has: its `failures`, `warnings` and `exit_code`. Raises
        what stopped it."""
        self._thread.join()
        if self._error is not None:
            raise self._error
        assert self._result is not None
        return self._result

    def stop(self) -> None:
        """End the run in order, unless it has ended; what is made stays made."""
        self._launcher.stop()
        self._thread.join()

    def table(self) -> Any:
        """Return all captions as a pyarrow table, in the order of the files, once the run has
        ended. Raises what stopped it."""
        self.result()
        assert self._feed is not None
        job = self._feed.job
        rows = chain.from_iterable(captions_by_file(job))
        kinds = kinds_of(job)
        return table_of(table_rows(rows, kinds, properties_of(job)), schema_of(kinds))

    def pandas(self) -> Any:
        """Return the same as a DataFrame, where pandas is installed."""
        return self.table().to_pandas()

    def _run(self) -> None:
        try:
            self._result = run.caption(self._config, self._display, self._launch, self._begin)
            self._give_rest()
        except BaseException as error:  # it is raised where the captions are asked for
            self._error = error
        finally:
            self._made.put(None)

    def _launch(self, listen: Listener) -> "_Stoppable":
        def hear(stage: str, event: Event) -> None:
            listen(stage, event)
            if isinstance(event, Item) and self._feed is not None and stage == self._feed.stage:
                for place, row in self._feed.rows(event.key):
                    self._give(place, row)

        self._launcher.launcher = DirectLauncher(hear)
        return self._launcher

    def _begin(self, job: Job, _: RunRecord) -> None:
        self._feed = _Feed(job)
        self._give_rest()

    def _give_rest(self) -> None:
        assert self._feed is not None
        for place, rows in enumerate(captions_by_file(self._feed.job)):
            for row in rows:
                self._give(place, row)

    def _give(self, place: int, row: Caption) -> None:
        if (place, row.start) not in self._given:
            self._given.add((place, row.start))
            self._made.put(row)


class _Feed:
    """Captions by their keys, as another process publishes them."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.stage = job.pipeline[-1].name
        """The stage that makes them."""
        self._kind = job.pipeline[-1].writes
        self._record_sets: dict[str, RecordSet] = {}
        self._known: dict[str, list[tuple[int, MediaFile, Task]]] = {}

    def rows(self, key: str) -> Iterator[tuple[int, Caption]]:
        """Yield the caption of each file that holds the chunk, with the file's place."""
        if key not in self._known:
            self._look_again()
        for place, file, task in self._known.get(key, ()):
            namespace = task.namespaces[self._kind]
            if namespace not in self._record_sets:
                self._record_sets[namespace] = RecordSet(self.job.store, self._kind, namespace)
            record_set = self._record_sets[namespace]
            if key not in record_set:
                record_set.refresh()
            if key in record_set:
                yield place, caption_of(self.job, file, task, record_set.meta(key))

    def _look_again(self) -> None:
        self._known.clear()
        files = zip(self.job.files, self.job.contents, strict=True)
        for place, (file, medium) in enumerate(files):
            for task in self.job.ledger.tasks([medium]):
                for each in self.job.ledger.equivalent_tasks(task):
                    self._known.setdefault(each[self._kind], []).append((place, file, each))


class _Stoppable:
    """A launcher that starts no process after it was stopped."""

    def __init__(self) -> None:
        self.launcher = DirectLauncher(lambda *_: None)
        self._lock = threading.Lock()
        self._started: list[StageHandle] = []
        self._stopped = False

    def start(self, call: StageCall) -> StageHandle:
        with self._lock:
            if self._stopped:
                again = "Nothing finished is lost; the same call goes on"
                raise Interrupted("stopped", hint=again)
            running = self.launcher.start(call)
            self._started = [*self._started[-1:], running]
            return running

    def stop(self) -> None:
        with self._lock:
            self._stopped = True
            for running in self._started:
                running.stop()
