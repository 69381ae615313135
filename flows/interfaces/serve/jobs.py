"""Keeps jobs: captions of long videos, which clients post and ask about later.
A job is a folder with `job.json`, its upload if there is one, and the output folder of a run. What
`job.json` says outlives the server.
"""

import asyncio
import glob
import logging
import os
import re
import secrets
import shutil
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, Final, Literal

from artifacts.disk.faults import disk_faults
from artifacts.disk.files import write_json
from artifacts.disk.json_records import read_json_file
from artifacts.disk.json_shapes import Json, parse
from artifacts.disk.json_types import Count, Number, Text
from artifacts.disk.locks import holder, try_hold
from artifacts.disk.paths import is_utf8
from artifacts.disk.regular_files import open_regular
from artifacts.errors import PenstockError, UsageError
from artifacts.options import declared
from flows.core.media.media_file import IMAGE_SUFFIXES, VIDEO_SUFFIXES
from flows.core.options.commands import CaptionConfig
from flows.core.options.serving import ServeConfig
from flows.interfaces.serve.refusals import (
    HttpRefusal,
    bad_request,
    refusal_of,
    unavailable,
)
from flows.outputs.record.run_read import load_record

log = logging.getLogger(__name__)

State = Literal["queued", "in_progress", "cancelling", "completed", "failed", "cancelled"]
QUEUED: Final = "queued"
RUNNING: Final = "in_progress"
CANCELLING: Final = "cancelling"
UNFINISHED = (QUEUED, RUNNING, CANCELLING)
MOST_UNFINISHED = 100
MOST_ENDED = 1000
"""Ended jobs that are kept. The oldest ones are removed when more come."""
RETRY_SECONDS = 30.0
GAP_SECONDS = 0.01
NAME = re.compile(r"job-[0-9a-f]{16}")
RECORD, OUT = "job.json", "out"
OF_THE_SERVER = (
    *("store", "today", "memory", "vision_backend", "prepare_workers", "trust_remote_code"),
)
"""Options of a server that its jobs have, too."""
ROWS = {"captions": "captions.jsonl", "answers": "answers.jsonl"}


@dataclass(slots=True, kw_only=True)
class ServedJob:
    """One job, as `job.json` has it."""

    model: Text
    source: Text
    """The medium as the client named it."""
    path: Text
    options: dict[Text, Any]
    """Options of `penstock caption`."""
    id: Text = field(default_factory=lambda: f"job-{secrets.token_hex(8)}")
    created: Number = field(default_factory=time.time)
    ended: Number = 0.0
    """Both in seconds since the epoch; 0: it has not ended."""
    state: State = QUEUED
    error: Text = ""
    deaths: Count = 0
    """Times that its process was killed from outside."""

    @property
    def is_cancelling(self) -> bool:
        return self.state == CANCELLING


def path_below(roots: tuple[str, ...], given: str) -> str:
    """Return the real path of a media file below one of the roots. Raises HttpRefusal for any other
    path, with links followed, and for hidden ones."""
    hint = "Give the path of an image or a video below a --root of this server"
    reals = [Path(os.path.realpath(root)) for root in roots]
    try:
        path = Path(os.path.realpath(os.path.join(*reals[:1], given)))
    except (OSError, ValueError) as error:
        raise bad_request("the path is not valid", hint) from error
    below = [path.relative_to(root) for root in reals if path.is_relative_to(root)]
    is_shown = any(not any(part.startswith(".") for part in rest.parts) for rest in below)
    if not is_shown or ".." in Path(given).parts or not is_utf8(path):
        raise bad_request("the path is outside the folders of this server", hint)
    if path.suffix.lower() not in IMAGE_SUFFIXES | VIDEO_SUFFIXES or not path.is_file():
        raise bad_request("the path is no image or video", hint)
    return str(path)


class JobFolder:
    """The jobs of one server, which are kept in a folder."""

    def __init__(self, folder: Path, config: ServeConfig) -> None:
        """Read the jobs. Raises EnvironmentFault."""
        self._folder, self._config = folder, config
        self._arriving = 0
        """Jobs whose uploads are arriving."""
        self.changed = asyncio.Event()
        """Is set when a job is queued."""
        self._jobs: dict[str, ServedJob] = {}
        with disk_faults(folder):
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = try_hold(folder / "server.lock")
        if self._lock is not None:
            self._jobs = {job.id: job for job in sorted(self._read(), key=lambda job: job.created)}

    def _read(self) -> Iterator[ServedJob]:
        """Yield the jobs of the folder. One that was not acknowledged is deleted."""
        for place in filter(lambda place: NAME.fullmatch(place.name), self._folder.iterdir()):
            if not (place / RECORD).exists():
                shutil.rmtree(place, ignore_errors=True)
                continue
            try:
                job = read_json_file(ServedJob, place / RECORD, "Remove its folder")
            except PenstockError as error:
                log.warning("a job is left out: %s", error)
                continue
            if job.is_cancelling:
                job.state = "cancelled"
            yield replace(job, id=place.name)

    @property
    def jobs(self) -> list[ServedJob]:
        """Return all jobs, oldest first."""
        return list(self._jobs.values())

    def of(self, name: str) -> ServedJob:
        """Return a job. Raises HttpRefusal."""
        self._refuse()
        if (job := self._jobs.get(name)) is None:
            raise HttpRefusal(404, "there is no such job", "GET /v1/jobs lists the jobs")
        return job

    def place(self, job: ServedJob) -> Path:
        """Return the folder of a job."""
        return self._folder / job.id

    def _refuse(self) -> None:
        """Raise HttpRefusal if another server runs the jobs of this folder."""
        if self._lock is None:
            owner = holder(self._folder / "server.lock")
            why = f"the jobs of this server's folder are run by another server, {owner}"
            raise unavailable(why, "Start one of them with --jobs DIR")

    @asynccontextmanager
    async def adding(self, job: ServedJob) -> AsyncIterator[Path]:
        """Yield the folder of a new job, and queue it after the block, durably. Raises HttpRefusal
        if there are too many, or for options that the command refuses."""
        self._refuse()
        unfinished = [job for job in self.jobs if job.state in UNFINISHED]
        if len(unfinished) + self._arriving >= MOST_UNFINISHED:
            hint = "Post it again later, or delete one"
            raise HttpRefusal(429, f"{MOST_UNFINISHED} jobs wait", hint, RETRY_SECONDS)
        try:
            CaptionConfig(**self._values(job))
        except UsageError as error:
            raise refusal_of(error) from error
        place = self.place(job)
        self._arriving += 1
        try:
            await asyncio.to_thread(place.mkdir)
            yield place
            await self.save(job)
        except BaseException:
            await asyncio.to_thread(shutil.rmtree, place, ignore_errors=True)
            raise
        finally:
            self._arriving -= 1
        self._jobs[job.id] = job
        self.changed.set()
        ended = [job for job in self.jobs if job.state not in UNFINISHED]
        for old in ended[: max(0, len(ended) - MOST_ENDED)]:
            await self._remove(old)

    async def delete(self, job: ServedJob) -> None:
        """Cancel a job, or remove one that has ended."""
        if job.state not in UNFINISHED:
            await self._remove(job)
        elif job.state == QUEUED:
            await self.end(job, "cancelled")
        else:
            job.state = CANCELLING
            await self.save(job)

    async def _remove(self, job: ServedJob) -> None:
        self._jobs.pop(job.id, None)
        await asyncio.to_thread(shutil.rmtree, self.place(job), ignore_errors=True)

    async def save(self, job: ServedJob) -> None:
        """Write what `job.json` says, durably."""
        await asyncio.to_thread(write_json, self.place(job) / RECORD, asdict(job))

    async def end(self, job: ServedJob, state: State, error: str = "") -> None:
        """Note how a job ended."""
        job.state, job.error, job.ended = state, error, time.time()
        await self.save(job)

    async def rows(self, job: ServedJob, kind: str, after: int, most: int) -> list[Json]:
        """Return the rows that a job has made, after the first `after`. Those of a job that has not
        ended are the ones before the first gap: a run that was interrupted has others, and what
        fills a gap would move them."""
        return await asyncio.to_thread(self._rows, job, kind, after, most)

    def _rows(self, job: ServedJob, kind: str, after: int, most: int) -> list[Json]:
        rows, end, has_ended = list[Json](), 0.0, job.state not in UNFINISHED
        with suppress(FileNotFoundError), open_regular(self.place(job) / OUT / ROWS[kind]) as file:
            for at, line in enumerate(islice(file, after + most)):
                row: dict[str, Any] = parse(line.decode())
                if not has_ended and abs(row["start"] - end) > GAP_SECONDS:
                    break
                end = row["end"]
                if at >= after:
                    rows.append({**row, "source": job.source})
        return rows

    async def stages(self, job: ServedJob) -> list[Json]:
        """Return what each stage of a job has made, and of how much."""
        try:
            run = await asyncio.to_thread(load_record, self.place(job) / OUT)
        except PenstockError:  # the job has not begun
            return []
        return [{"name": s.name, "done": s.items + s.running, "total": s.total} for s in run.stages]

    def _values(self, job: ServedJob) -> dict[str, Any]:
        """Return the options of a job's command."""
        config = self._config
        values = {
            **{name: getattr(config, name) for name in OF_THE_SERVER},
            **job.options,
            "model": job.model,
            "out": str(self.place(job) / OUT),
            "sources": (glob.escape(job.path),),
        }
        return {name: values[name] for name in values if values[name] not in ("", None, False)}

    def words(self, job: ServedJob) -> list[str]:
        """Return the command of a job."""
        values = self._values(job)
        sources = values.pop("sources")
        given = [d for d in declared(CaptionConfig) if d.name in values]
        words = [word for option in given for word in option.words(values[option.name])]
        return ["caption", "--quiet", *words, "--", *sources]

    def close(self) -> None:
        """Leave the folder to another server."""
        if self._lock is not None:
            self._lock.close()
