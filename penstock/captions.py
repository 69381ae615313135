"""Python API for captioning: iterate over captions as they are made, or collect them as a table.

The run works on a thread and its stages in processes, as with the command. It writes the same files
and reuses the same stored records. Each caption is read from the store when its stage reports it.
Leaving the `with` block or calling `close()` stops the run in order; the same call resumes it.
"""

import html
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Unpack

from artifacts.records.packs import RecordSet
from artifacts.texts.captions import Caption
from artifacts.texts.tables import table_of
from artifacts.wording import counted
from flows.commands.caption import run as sift_first
from flows.core.console.display import Display
from flows.core.job.prepare import Job
from flows.core.ledger.tasks import Task
from flows.core.machine.launch import Launcher
from flows.core.media.media_file import MediaFile
from flows.core.options.commands import CaptionConfig
from flows.core.pipelines import CAPTION
from flows.outputs.captions import (
    caption_of,
    captions_by_file,
    captions_of,
    kinds_of,
    properties_of,
    table_rows,
)
from flows.outputs.record.record_writer import RecordWriter, remember
from flows.outputs.record.recorded_command import words_of
from flows.outputs.run_result import RunResult
from penstock.arguments import Progress, Sources, anchored, config_for, display_for
from penstock.background import BackgroundRun, check_start
from penstock.cells import FEW, shown_of
from penstock.keywords import CaptionOptions
from stages.process.events import Answered, Event
from stages.process.stage_process import Listener

if TYPE_CHECKING:
    from pyarrow import Table

FIRST = ("media_path", "start", "end", "caption")
"""Columns that a table in memory begins with."""


def caption(
    sources: Sources, *, progress: Progress = "auto", **options: Unpack[CaptionOptions]
) -> "Captions":
    """Start a run over files, folders, globs, addresses or lists. With `progress=True` it is shown
    as by the command. Raises UsageError for options that make no sense, and where no source names a
    medium."""
    config = config_for(sources, options, CaptionConfig, CaptionOptions.__annotations__)
    return Captions(anchored(config), display_for(progress))


class Captions(BackgroundRun[Caption, RunResult]):
    """A running captioning job. Iterating yields stored captions first, then each new one as soon
    as it is stored. An error that ended the run is raised after the last caption."""

    def __init__(self, config: CaptionConfig, display: Display) -> None:
        check_start(config, CAPTION, "caption")
        self._config = config
        self._rows: SimpleQueue[Caption | None] = SimpleQueue()
        self._given: set[tuple[int, float]] = set()
        """Captions given already: position of file and prompt in the job, and start of the chunk in
        seconds. Keys differ between engines, and two names of one prompt share them."""
        self._feed: _Feed | None = None
        super().__init__(config.out, display)

    def __next__(self) -> Caption:
        with self._closed_on_interrupt():
            row = self._rows.get()
        if row is not None:
            return row
        self._rows.put(None)
        self.result()
        self._is_over = True
        raise StopIteration

    def __repr__(self) -> str:
        if self._result is not None:
            return repr(shown_of(Path(self._result.out), FEW))
        return f"{super().__repr__()}, {counted(len(self._given), 'caption')}"

    def _repr_html_(self) -> str:
        if self._result is not None:
            return shown_of(Path(self._result.out), FEW)._repr_html_()
        return html.escape(repr(self))

    def stop(self) -> None:
        """Same as `close()`."""
        self.close()

    def table(self) -> "Table":
        """Return all captions as a pyarrow table, in the order of the files, once the run has
        ended. Of one prompt, `original` is what the model wrote of a corrected caption. Raises the
        error that ended the run."""
        self.result()
        assert self._feed is not None
        job = self._feed.job
        rows = chain.from_iterable(captions_by_file(job))
        kinds = kinds_of(job)
        shown = {name: kinds[name] for name in FIRST if name in kinds} | kinds
        if "caption" in kinds:
            shown.setdefault("original", "text")
        return table_of(table_rows(rows, kinds, properties_of(job)), shown)

    def _run(self) -> RunResult:
        def launch(listen: Listener) -> Launcher:
            def on_event(stage: str, event: Event) -> None:
                listen(stage, event)
                if not isinstance(event, Answered) or self._feed is None:
                    return
                for key in event.keys if stage == self._feed.stage else ():
                    for place, row in self._feed.rows(key):
                        self._give(place, row)

            return self._launch(on_event)

        result = sift_first.caption(self._config, self._display, launch, self._begin)
        self._give_rest()
        return result

    def _finish(self) -> None:
        self._rows.put(None)

    def _begin_again(self) -> None:
        self._rows.get()  # the end
        self._given.clear()
        self._give_rest()
        self._finish()

    def _begin(self, job: Job, writer: RecordWriter) -> None:
        remember(words_of(self._config), job, writer)
        if self._feed is not None and self._feed.job.model.digests != job.model.digests:
            self._given.clear()  # the files will hold captions of the changed model alone
        self._feed = _Feed(job)
        self._give_rest()

    def _give_rest(self) -> None:
        assert self._feed is not None
        job, first = self._feed.job, 0
        for group in job.by_file:
            pairs = [
                (place, row)
                for place, job_file in enumerate(group, first)
                for row in captions_of(job, job_file)
            ]
            for place, row in sorted(pairs, key=lambda pair: pair[1].start):  # as in the file
                self._give(place, row)
            first += len(group)

    def _give(self, place: int, row: Caption) -> None:
        if (place, row.start) not in self._given:
            self._given.add((place, row.start))
            self._rows.put(row)


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
        """Yield the caption of each file that holds the chunk, with its place in the job."""
        if key not in self._known:
            self._look_again()
        for place, file, task in self._known.get(key, ()):
            namespace = task.variant[self._kind]
            if namespace not in self._record_sets:
                self._record_sets[namespace] = RecordSet(self.job.store, self._kind, namespace)
            record_set = self._record_sets[namespace]
            if key not in record_set:
                record_set.refresh()
            if key in record_set:
                row = caption_of(self.job, file, task, record_set.meta(key))
                if row is not None:
                    yield place, row

    def _look_again(self) -> None:
        self._known.clear()
        for place, of in enumerate(self.job.files):
            for task in self.job.ledger.tasks([of.medium]):
                for same in self.job.ledger.equivalent_tasks(task):
                    self._known.setdefault(same[self._kind], []).append((place, of.file, same))
