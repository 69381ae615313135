"""Handles `/v1/jobs`: captions of media that take longer than a request may."""

from typing import Annotated, Literal

from fastapi import Query, Request
from fastapi.responses import Response
from pydantic import Field

from artifacts.disk.json_shapes import Json
from flows.interfaces.serve.jobs import UNFINISHED, JobFolder, JobSettings, ServedJob, path_below
from flows.interfaces.serve.refusals import HttpRefusal, bad_request, json_answer, shown_name
from flows.interfaces.serve.startup import Service
from flows.interfaces.serve.temp_store import TempStore
from flows.interfaces.serve.uploads import upload_of

MOST_ROWS = 1000
MOST_LISTED = 100
LAST_ROW = 1 << 53
"""Largest number that every JSON parser reads exactly."""
UPLOADED = "upload"


class JobParams(JobSettings):
    """The parameters of a new job: its medium, and its options."""

    path: str | None = Field(None, description="a file below a --root; without it, the body is it")


class JobRoutes:
    """Handles the jobs of one service."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def _queue(self) -> JobFolder:
        """Return the jobs of the service. Raises HttpRefusal if it has none."""
        if self._service.jobs is None:
            hint = "Start it with --caption-model M"
            raise HttpRefusal(404, "this server has no captioning model", hint)
        return self._service.jobs

    async def post(self, request: Request, params: Annotated[JobParams, Query()]) -> Response:
        """Queue a job about a file below a root, or about the image or clip in the body."""
        queue, config = self._queue(), self._service.config
        options = params.model_dump(exclude_none=True, exclude={"path"})
        if params.questions and not params.questions.lstrip().startswith("{"):
            raise bad_request("invalid questions: not a JSON object", "Send their tables as JSON")
        path = UPLOADED
        if params.path is not None:
            if request.headers.get("content-length", "0") != "0":
                raise bad_request("the job has a path and a body", "Send one of them")
            path = path_below(config.root, params.path)
        source = params.path or UPLOADED
        job = ServedJob(model=config.caption_model, source=source, path=path, options=options)
        async with queue.adding(job) as place:
            if params.path is None:
                upload = await upload_of(request, config.body_bytes, TempStore(place))
                named = upload.path.rename(place / f"{UPLOADED}{upload.path.suffix}")
                job.path = job.source = named.name
        return json_answer(shown(job), 202, {"location": f"/v1/jobs/{job.id}"})

    async def every(
        self,
        after: Annotated[str | None, Query(description="id of the last job that is known")] = None,
        limit: Annotated[int, Query(ge=1, le=MOST_LISTED)] = 20,
    ) -> Response:
        """List the jobs, oldest first, as OpenAI's lists are."""
        queue = self._queue()
        jobs = queue.listed()
        if after is not None:
            jobs = jobs[jobs.index(queue.of(after)) + 1 :]
        page = [shown(job) for job in jobs[:limit]]
        first, last = (page[0]["id"], page[-1]["id"]) if page else (None, None)
        ends: dict[str, Json] = {"first_id": first, "last_id": last}
        more = len(jobs) > limit
        return json_answer({"object": "list", "data": page, **ends, "has_more": more})

    async def one(
        self,
        job: str,
        after: Annotated[
            int, Query(description="rows that are known already", ge=0, le=LAST_ROW)
        ] = 0,
        limit: Annotated[int, Query(ge=1, le=MOST_ROWS)] = 100,
        rows: Annotated[Literal["captions", "answers"], Query()] = "captions",
    ) -> Response:
        """Return a job's state, how much each stage has made, and the rows so far."""
        queue = self._queue()
        served = queue.of(job)
        ended = served.state not in UNFINISHED  # before the rows are read: then they are all
        page = await queue.rows(served, rows, after, limit)
        following = after + len(page)
        is_last = ended and len(page) < limit
        stages = await queue.stages(served)
        progress: dict[str, Json] = {"stages": stages, "rows": page, "after": following}
        return json_answer({**shown(served), **progress, "complete": is_last})

    async def delete(self, job: str) -> Response:
        """Cancel a job, or remove one that has ended, with its upload and its rows."""
        queue = self._queue()
        served = queue.of(job)
        await queue.delete(served)
        return json_answer(shown(served))


def shown(job: ServedJob) -> dict[str, Json]:
    """Return a job as JSON."""
    return {
        "id": job.id,
        "object": "job",
        "state": job.state,
        "model": shown_name(job.model),
        "source": job.source,
        "options": job.options,
        "created": round(job.created),
        "ended": round(job.ended) or None,
        "error": job.error,
    }
