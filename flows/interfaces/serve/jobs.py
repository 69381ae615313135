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
from typing import IO, Annotated, Any, Final, Literal

from pydantic import BaseModel, Field, ValidationError

from artifacts.disk.faults import disk_faults
from artifacts.disk.files import write_json
from artifacts.disk.json_records import read_json_file
from artifacts.disk.json_shapes import Json, parse
from artifacts.disk.json_types import Count, Number, Text
from artifacts.disk.locks import holder, try_hold
from artifacts.disk.paths import is_utf8
from artifacts.disk.regular_files import open_regular
from artifacts.errors import EnvironmentFault, PenstockError, UsageError
from artifacts.options import declared
from flows.core.media.media_file import MEDIA_SUFFIXES
from flows.core.options.commands import CaptionConfig
from flows.core.options.serving import ServeConfig
from flows.interfaces.serve.refusals import HttpRefusal, bad_request, refusal_of, unavailable
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
OUTSIDE = "the path is outside the folders of this server"
GAP_SECONDS = 0.01
NAME = re.compile(r"job-[0-9a-f]{16}")
RECORD, OUT = "job.json", "out"
OF_THE_SERVER = (
    *("store", "today", "memory", "vision_backend", "prepare_workers", "trust_remote_code"),
)
"""Options of a server that its jobs have, too."""
ROWS = {"captions": "captions.jsonl", "answers": "answers/answers.jsonl"}
Words = Annotated[str, Field(pattern=r"\S", max_length=20_000)]


class JobSettings(BaseModel):
    """Options of `penstock caption` that a job may have."""

    prompt: Words | None = None
    system: Words | None = None
    chunk: float | None = Field(None, gt=0, allow_inf_nan=False, description="seconds per chunk")
    fps: float | None = Field(None, gt=0, allow_inf_nan=False)
    frames: int | None = Field(None, ge=1, description="frames per chunk")
    max_frames: int | None = Field(None, ge=1)
    max_new_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, allow_inf_nan=False)
    top_p: float | None = Field(None, gt=0, le=1)
    seed: int | None = None
    sound: Literal["auto", "on", "off"] | None = None
    questions: Words | None = Field(None, description="JSON, as in a file of questions")


@dataclass(slots=True, kw_only=True)
class ServedJob:
    """One job, as `job.json` has it."""

    model: Text
    source: Text
    """The medium as the client named it."""
    path: Text
    """Its real path; of an upload, the name in the job's folder."""
    options: dict[Text, Any]
    """Those of `JobSettings`."""
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
    try:
        path = Path(os.path.realpath(os.path.join(*_reals(roots)[:1], given)))
    except (OSError, ValueError) as error:
        raise bad_request("the path is not valid", hint) from error
    if not _is_shown(path, roots) or ".." in Path(given).parts or not is_utf8(path):
        raise bad_request(OUTSIDE, hint)
    if not os.path.isfile(path):  # a name may be too long
        raise bad_request("there is no such file", hint)
    if path.suffix.lower() not in MEDIA_SUFFIXES:
        raise bad_request("the path is no image or video", hint)
    return str(path)


def _reals(roots: tuple[str, ...]) -> list[Path]:
    return [Path(os.path.realpath(root)) for root in roots]


def _is_shown(path: Path, roots: tuple[str, ...]) -> bool:
    """Return whether a real path is below a root, and no part of it there is hidden."""
    below = [path.relative_to(root) for root in _reals(roots) if path.is_relative_to(root)]
    return any(not any(part.startswith(".") for part in rest.parts) for rest in below)


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
        self._lock: IO[str] | None = None
        with disk_faults(folder):
            folder.mkdir(parents=True, exist_ok=True)
        self.claim()

    def claim(self) -> bool:
        """Return whether the jobs of the folder are this server's, which they become when no other
        server has them. Raises EnvironmentFault."""
        if self._lock is None:
            with disk_faults(self._folder):
                lock = try_hold(self._folder / "server.lock")
                if lock is not None:
                    jobs = sorted(self._read(), key=lambda job: job.created)
                    self._jobs = {job.id: job for job in jobs}
            self._lock = lock  # last: requests are refused until the jobs are known
        return self._lock is not None

    def _read(self) -> Iterator[ServedJob]:
        """Yield the jobs of the folder. One that was not acknowledged is deleted."""
        for place in filter(lambda place: NAME.fullmatch(place.name), self._folder.iterdir()):
            if not (place / RECORD).exists():
                shutil.rmtree(place, ignore_errors=True)
                continue
            try:
                job = read_json_file(ServedJob, place / RECORD, "Remove its folder")
                _check_options(job, place)
            except PenstockError as error:
                log.warning("a job is left out: %s", error)
                continue
            if job.is_cancelling:
                job.state = "cancelled"
            yield replace(job, id=place.name)

    def listed(self) -> list[ServedJob]:
        """Return all jobs for a client, oldest first. Raises HttpRefusal."""
        self._refuse()
        return self.jobs

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
            with disk_faults(self._folder):
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
        """Cancel a job, or remove one that has ended. Raises EnvironmentFault if that cannot be
        noted; then the job goes on."""
        before = job.state
        if before not in UNFINISHED:
            return await self._remove(job)
        try:
            if before == QUEUED:
                await self.end(job, "cancelled")
            else:
                job.state = CANCELLING
                await self.save(job)
        except EnvironmentFault:
            job.state, job.ended = before, 0.0
            raise

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
        """Return what each stage of a job has made, of how much, and how many items failed."""
        try:
            run = await asyncio.to_thread(load_record, self.place(job) / OUT)
        except PenstockError:  # the job has not begun
            return []
        return [
            {"name": s.name, "done": s.done_of(s.total), "failed": s.failed, "total": s.total}
            for s in run.stages
        ]

    def why_not(self, job: ServedJob) -> str:
        """Return why the medium of a job may not be read, by the roots and links of now; empty: it
        may be."""
        place = Path(os.path.realpath(self.place(job)))
        path = Path(os.path.realpath(place / job.path))
        return "" if path.parent == place or _is_shown(path, self._config.root) else OUTSIDE

    def _values(self, job: ServedJob) -> dict[str, Any]:
        """Return the options of a job's command."""
        config = self._config
        values = {
            **{name: getattr(config, name) for name in OF_THE_SERVER},
            **job.options,
            "model": job.model,
            "out": str(self.place(job) / OUT),
            "sources": (glob.escape(str(self.place(job) / job.path)),),
        }
        return {name: values[name] for name in values if values[name] not in ("", None, False)}

    def words(self, job: ServedJob) -> list[str]:
        """Return the command of a job."""
        values = self._values(job)
        sources = values.pop("sources")
        options = [d for d in declared(CaptionConfig) if d.name in values]
        words = [word for option in options for word in option.words(values[option.name])]
        return ["caption", "--quiet", *words, "--", *sources]

    def close(self) -> None:
        """Leave the folder to another server."""
        if self._lock is not None:
            self._lock.close()


def _check_options(job: ServedJob, place: Path) -> None:
    """Raise UsageError if a job has options that no client can give: then no server wrote it."""
    try:
        JobSettings.model_validate(job.options, strict=True, extra="forbid")
    except ValidationError as error:
        name = error.errors()[0]["loc"][0]
        why = f"{place / RECORD}: no job has the option {name}, or not with this value"
        raise UsageError(why, hint="Remove its folder") from error
