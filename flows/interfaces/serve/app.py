"""The ASGI application of a server: its routes, and the responses for unknown ones.

The module handles every route except those for captions, and writes /openapi.json: fields, types,
statuses and contents of bodies and answers.
"""

import asyncio
import logging
import mimetypes
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from http import HTTPStatus
from importlib.metadata import version
from typing import Annotated, Any, Literal, TypeVar
from urllib.parse import unquote_to_bytes

from fastapi import Depends, FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from fastapi.routing import APIRoute
from pydantic import BaseModel, Field, TypeAdapter
from starlette.background import BackgroundTask
from starlette.exceptions import HTTPException
from starlette.routing import Match, Route

from artifacts.disk.faults import is_full
from artifacts.disk.json_shapes import Json
from artifacts.errors import EnvironmentFault
from artifacts.index.shard import IndexRow
from artifacts.texts.labels import TextVectors
from flows.core.console.lines import quoted
from flows.core.options.vectors import SearchQuery
from flows.interfaces.serve.answers import AnswerRoutes
from flows.interfaces.serve.caption_routes import CaptionRoutes
from flows.interfaces.serve.chat import ChatCompletionRequest, ChatRoutes
from flows.interfaces.serve.embedding import EmbeddedMedium, vectors_json
from flows.interfaces.serve.guard import LIMITED, SENDER, extra_headers, in_time
from flows.interfaces.serve.job_routes import JobRoutes
from flows.interfaces.serve.jobs import State
from flows.interfaces.serve.page import page_of
from flows.interfaces.serve.refusals import (
    OPENAI,
    RETRY_SECONDS,
    HttpRefusal,
    IndexedMedia,
    IndexedMedium,
    ShownFile,
    bad_request,
    json_answer,
    shown_name,
    without_paths,
)
from flows.interfaces.serve.startup import Service
from flows.interfaces.serve.text_embeddings import EmbeddingRoutes, EmbeddingsRequest
from flows.interfaces.serve.tokens import COOKIE, Tokens, session_of
from flows.interfaces.serve.uploads import upload_of
from flows.outputs.thumbnails import thumbnail

LOG = logging.getLogger(__name__)
THUMBNAILS_AT_ONCE = 2
MAX_WHERE = 4000
"""Largest number of characters of a condition: with %-escapes they fit the head of a request."""
MAX_TOP = 1000
"""Largest number of labels or hits of an answer."""


Words = Annotated[str, Field(pattern=r"\S", max_length=2000)]
"""A text to search for."""


class SearchParams(BaseModel):
    """The parameters of a search besides what is searched for."""

    top: int = Field(10, ge=1, le=MAX_TOP)
    without: list[Words] = Field([], alias="not")
    where: str | None = Field(None, pattern=r"\S", max_length=MAX_WHERE)
    moments: bool = True


class TextSearchParams(SearchParams):
    """The parameters of a search for a text."""

    q: Words
    within: Literal["captions", "vectors", "both"] | None = Field(None, alias="in")


T = TypeVar("T")


class Routes:
    """The route handlers of one service."""

    def __init__(self, service: Service, tokens: Tokens) -> None:
        self._service = service
        self._version = version("penstock")
        self._tokens = tokens
        self._drawing = asyncio.Semaphore(THUMBNAILS_AT_ONCE)
        self._media = IndexedMedia(service.config.store)

    async def label(
        self,
        request: Request,
        labels: Annotated[str, Query(description="a,b: replaces the server's labels")] = "",
        top: Annotated[int, Query(description="labels per image", ge=1, le=MAX_TOP)] = 5,
        threshold: Annotated[float | None, Query(ge=-1, le=1)] = None,
    ) -> Response:
        """Label an image, or the frames of a clip."""
        began, service = time.monotonic(), self._service
        if service.labels is None:
            raise no_vectors()
        names = [name.strip() for name in labels.split(",")] if labels else []
        labelling_of = partial(service.labels.labelling, names, threshold, top)
        medium, labelling = await self._embed(request, labelling_of)
        answer = service.labels.answer(medium, labelling)
        return json_answer({**answer, "seconds": round(time.monotonic() - began, 4)})

    async def embed(
        self,
        request: Request,
        encoding: Literal["base64", "json"] = "base64",
        tiles: Annotated[bool, Query(description="also return one vector per tile")] = False,
    ) -> Response:
        """Compute the vector of an image, or of each frame of a clip."""
        began = time.monotonic()
        if self._service.media_embedder is None:
            raise no_vectors()
        medium, _ = await self._embed(request, _nothing)
        answer = vectors_json(medium, encoding, parts=tiles)
        assert self._service.job is not None
        fields: dict[str, Json] = {
            "model": shown_name(self._service.job.model.name),
            "precision": self._service.media_embedder.variant.precision["vision"],
            "cached": medium.cached,
            "seconds": round(time.monotonic() - began, 4),
        }
        return json_answer({**answer, **fields})

    async def search(
        self, request: Request, params: Annotated[TextSearchParams, Query()]
    ) -> Response:
        """Search the index by text."""
        return await self._search(request, params, [params.q], params.within)

    async def search_picture(
        self, request: Request, params: Annotated[SearchParams, Query()]
    ) -> Response:
        """Search the index by an uploaded image."""
        return await self._search(request, params, [])

    async def _search(
        self,
        request: Request,
        params: SearchParams,
        wanted: Sequence[str],
        within: str | None = None,
    ) -> Response:
        began, service = time.monotonic(), self._service
        if service.index is None or service.texts is None:
            raise HttpRefusal(404, "this server has no index", "Start it with --index DIR")
        texts = [*wanted, *params.without]
        filters = SearchQuery(
            what=next(iter(wanted), "-"),
            top=params.top,
            without=tuple(params.without),
            where=params.where,
            moments=params.moments,
            within=within or "",
        )
        await service.index.check()  # refuse before any computation
        warnings: list[Json] = []
        of_texts: list[TextVectors] = []
        if wanted and service.index.within(within) == "captions":
            hits = await service.index.search(None, "texts", [], filters)
        elif wanted:
            of_texts = await self._timed(request, self._text_vectors(texts))
            vector, *excluded = [one.vectors[0] for one in of_texts]
            hits = await service.index.search(vector, "texts", excluded, filters)
        else:
            medium, of_texts = await self._embed(request, partial(self._text_vectors, texts))
            excluded = [one.vectors[0] for one in of_texts]
            hits = await service.index.search(medium.vectors[0][0], "pictures", excluded, filters)
            warnings = [*medium.index.all_warnings]
        fields: dict[str, Json] = {"index": service.index.folder.name, "rows": service.index.rows}
        if cut := [text for one in of_texts for text in one.cut]:
            warnings.append(f"longer than the model reads, and cut: {quoted(cut[0])}")
        if warnings:
            fields["warnings"] = warnings
        seconds = round(time.monotonic() - began, 4)
        return json_answer({"hits": hits, **fields, "seconds": seconds})

    async def media(self, hit: str) -> Response:
        """Return the media file of a hit."""
        row, medium = await self._indexed(hit)
        kind = mimetypes.guess_type(row.path)[0] or "application/octet-stream"
        closing = BackgroundTask(lambda: medium.close())  # it stays open until then
        return ShownFile(medium.path, media_type=kind, background=closing)

    async def thumbnail(self, hit: str) -> Response:
        """Return a thumbnail of a hit."""
        row, medium = await self._indexed(hit)
        async with self._drawing:
            small = await asyncio.to_thread(thumbnail, medium.path, row.time)
        medium.close()
        if small is None:
            raise HttpRefusal(404, "the file of this hit cannot be read", "Check that it exists")
        return Response(
            small, media_type="image/jpeg", headers={"cache-control": "private, max-age=600"}
        )

    async def info(self) -> Response:
        """Describe the server: models, labels, index and limits."""
        service, config = self._service, self._service.config
        index = service.index
        return json_answer(
            {
                "version": self._version,
                "model": shown_name(service.job.model.name) if service.job else None,
                "labels": service.labels.names if service.labels else [],
                "index": {"folder": index.folder.name, "rows": index.rows} if index else None,
                "caption_model": shown_name(config.caption_model) or None,
                "token": bool(self._tokens),
                "limits": {
                    "body_bytes": config.body_bytes,
                    "pixels": config.pixels,
                    "clip_seconds": config.clip_seconds,
                    "queue": config.max_queue,
                    "deadline_seconds": config.deadline,
                },
            }
        )

    async def stats(self, since: Annotated[float, Query(allow_inf_nan=False)] = 0.0) -> Response:
        """Return the counts of the last ten minutes, one point per second."""
        halves: list[Json] = [
            {
                "name": half.name,
                "state": half.state,
                "memory_bytes": half.metrics.memory_bytes,
                "budget_bytes": half.peak_bytes,
                "batch": half.batches.max_size,
            }
            for half in self._service.halves
        ]
        points = self._service.metrics.points(since)
        return json_answer({"now": round(time.time(), 2), "points": points, "halves": halves})

    async def metrics(self) -> Response:
        """Return all metrics in Prometheus text format."""
        return Response(self._service.metrics.text(), media_type="text/plain; version=0.0.4")

    async def health(self) -> Response:
        """Report that the server is alive."""
        return json_answer({"status": "ok"})

    async def ready(self) -> Response:
        """Report whether requests are processed without waiting."""
        why = self._service.why_not_ready()
        if not why and not await asyncio.to_thread(self._service.temp_store.has_room):
            why = "the disk is full"
        if not why and self._service.index is not None:
            try:
                await self._service.index.check_searches()
            except HttpRefusal as refusal:
                why = without_paths(refusal.error)
        return json_answer({"ready": not why, "why": why}, 503 if why else 200)

    async def session(self, request: Request) -> Response:
        """Set the session cookie, which replaces the token in a browser."""
        answer = json_answer({"status": "ok"})
        if (token := self._tokens.get(request.scope[SENDER])) is not None:
            answer.set_cookie(COOKIE, session_of(token), httponly=True, samesite="strict", path="/")
        return answer

    async def _indexed(self, hit: str) -> tuple[IndexRow, IndexedMedium]:
        if self._service.index is None:
            raise HttpRefusal(404, "this server has no index", "Start it with --index DIR")
        row = await self._service.index.row(hit)
        return row, await self._media.opened(row)

    async def _text_vectors(self, texts: Sequence[str]) -> list[TextVectors]:
        assert self._service.texts is not None
        return [await self._service.texts.vectors([[word]]) for word in texts]

    async def _embed(
        self, request: Request, while_running: Callable[[], Awaitable[T]]
    ) -> tuple[EmbeddedMedium, T]:
        """Embed a request's upload. Return its vectors and the result of `while_running`, which is
        awaited first. Raises HttpRefusal."""
        service, media_embedder = self._service, self._service.media_embedder
        if media_embedder is None:
            raise no_vectors()
        upload = await upload_of(request, service.config.body_bytes, service.temp_store)

        async def work() -> tuple[EmbeddedMedium, T]:
            try:
                meanwhile = await while_running()
            except BaseException:
                upload.remove()
                raise
            return await media_embedder.embed(upload), meanwhile

        # The body must be read first: its messages would be taken for a disconnect.
        return await self._timed(request, work())

    async def _timed(self, request: Request, work: Awaitable[T]) -> T:
        return await in_time(request.receive, work, self._service.config.deadline)


async def _nothing() -> None:
    pass


def no_vectors() -> HttpRefusal:
    """Return the refusal of a server without a dual encoder."""
    return HttpRefusal(
        404, "this server has no model for vectors", "Start it with --model or --index"
    )


PARAMETER_ERRORS = {"missing": "it is missing", "string_pattern_mismatch": "the text is empty"}
"""Kind of pydantic's error → message, where its own would not help."""
IN_SCHEMA = "The parameters are in /openapi.json"


def app_of(service: Service, tokens: Tokens) -> FastAPI:
    """Return the ASGI application of a service."""
    app = DescribedApp(
        title="Penstock",
        version=version("penstock"),
        docs_url=None,
        redoc_url=None,
        description="Labels, vectors, search and captions of images and clips.",
        dependencies=[Depends(_refuse_unknown_parameters)],
    )
    routes = Routes(service, tokens)
    add = app.add_api_route
    add("/v1/label", routes.label, methods=["POST"], openapi_extra=MEDIUM_BODY)
    add("/v1/embed", routes.embed, methods=["POST"], openapi_extra=MEDIUM_BODY)
    captions = CaptionRoutes(service)
    chat = ChatRoutes(service, captions)
    add("/v1/caption", captions.caption, methods=["POST"], openapi_extra=MEDIUM_BODY)
    answers = AnswerRoutes(service, captions)
    add("/v1/answers", answers.answer, methods=["POST"], openapi_extra=ANSWERS_BODY)
    jobs = JobRoutes(service)
    add("/v1/jobs", jobs.post, methods=["POST"], status_code=202, openapi_extra=JOB_BODY)
    add("/v1/jobs", jobs.every, methods=["GET"])
    add("/v1/jobs/{job}", jobs.one, methods=["GET"])
    add("/v1/jobs/{job}", jobs.delete, methods=["DELETE"])
    add("/v1/chat/completions", chat.complete, methods=["POST"], openapi_extra=CHAT_BODY)
    embeddings = EmbeddingRoutes(service)
    add("/v1/embeddings", embeddings.embed, methods=["POST"], openapi_extra=EMBEDDINGS_BODY)
    add("/v1/models", chat.models, methods=["GET"])
    add("/v1/models/{name:path}", chat.model, methods=["GET"])
    add("/v1/search", routes.search, methods=["GET"])
    add("/v1/search", routes.search_picture, methods=["POST"], openapi_extra=MEDIUM_BODY)
    add("/v1/media/{hit}", routes.media, methods=["GET"])
    add("/v1/media/{hit}", routes.media, methods=["HEAD"], name="media_head")
    add("/v1/thumbnail/{hit}", routes.thumbnail, methods=["GET"])
    add("/v1/info", routes.info, methods=["GET"])
    add("/v1/stats", routes.stats, methods=["GET"])
    add("/v1/session", routes.session, methods=["POST"])
    add("/metrics", routes.metrics, methods=["GET"])
    add("/healthz", routes.health, methods=["GET"])
    add("/readyz", routes.ready, methods=["GET"])
    _add_page(app)
    _answer_head(app)
    app.add_exception_handler(HttpRefusal, _refused)
    app.add_exception_handler(HTTPException, _unknown)
    app.add_exception_handler(RequestValidationError, _invalid_parameter)
    app.add_exception_handler(EnvironmentFault, _fault)
    app.add_exception_handler(Exception, _internal_error)
    return app


def _answer_head(app: FastAPI) -> None:
    """Let every GET route answer HEAD as well. The web server leaves out the body."""
    for route in [route for route in app.routes if isinstance(route, APIRoute)]:
        if "GET" in (route.methods or ()):
            app.add_api_route(route.path, route.endpoint, methods=["HEAD"], include_in_schema=False)


async def _refuse_unknown_parameters(request: Request) -> None:
    """Raise HttpRefusal for a parameter of the address that is not among those that /openapi.json
    lists, is no UTF-8, or is there twice. OpenAI's clients add their own to its paths."""
    path, given = request.url.path, request.query_params
    if not path.startswith(LIMITED) or path.startswith(OPENAI):
        return
    method = "get" if request.method == "HEAD" else request.method.lower()
    try:
        unquote_to_bytes(request.scope["query_string"]).decode()
    except UnicodeDecodeError as error:
        why = "the parameters of the address are not UTF-8"
        raise HttpRefusal(400, why, "Percent-encode their UTF-8 bytes") from error
    operation = request.app.openapi()["paths"][request.scope["route"].path][method]
    described = [p for p in operation.get("parameters", ()) if p["in"] == "query"]
    known = {p["name"]: p["schema"].get("type") == "array" for p in described}
    for name in given:
        if name not in known:
            raise bad_request(f"unknown parameter {name[:80]!r}", IN_SCHEMA)
        if not known[name] and len(given.getlist(name)) > 1:
            raise bad_request(f"{name} is given more than once", "Give it once")


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, HttpRefusal)
    answer = json_answer(error.to_json(request.url.path), error.status)
    for name, value in extra_headers(error):
        answer.headers[name.decode()] = value.decode()
    return answer


async def _unknown(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    hint = "The routes are in /openapi.json" if error.status_code in (404, 405) else ""
    why = HttpRefusal(error.status_code, str(error.detail).lower(), hint, code="unknown_url")
    path = request.url.path
    # OpenAI clients also request routes that do not exist here.
    form = OPENAI[0] if error.status_code == 404 and path.startswith("/v1/") else path
    answer = json_answer(why.to_json(form), why.status)
    if error.status_code == 405:
        answer.headers["allow"] = ", ".join(_methods_at(request))
    return answer


def _methods_at(request: Request) -> list[str]:
    routes = [route for route in request.app.routes if isinstance(route, Route)]
    matching = (route for route in routes if route.matches(request.scope)[0] is not Match.NONE)
    return sorted({method for route in matching for method in route.methods or ()})


async def _invalid_parameter(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    name = next(iter(first["loc"][1:]), "")  # after where it was
    why = PARAMETER_ERRORS.get(first["type"], first["msg"])
    error = bad_request(f"invalid {name}: {why}", IN_SCHEMA)
    return await _refused(request, error)


async def _fault(request: Request, error: Exception) -> Response:
    """Answer that the machine is at fault, as when a disk is full."""
    assert isinstance(error, EnvironmentFault)
    LOG.warning("%s %s: %s", request.method, request.url.path, error)
    hint = "Ask again later, or have room made on the server"
    status, hint = (507, hint) if is_full(error) else (503, error.hint)
    refusal = HttpRefusal(status, error.message, hint, RETRY_SECONDS)
    return await _refused(request, refusal)


async def _internal_error(request: Request, error: Exception) -> Response:
    message = f"internal server error: {type(error).__name__}"
    return await _refused(request, HttpRefusal(500, message, "See the server's log"))


def _add_page(app: FastAPI) -> None:
    page = page_of()
    policy = {"content-security-policy": page.policy, "cache-control": "no-cache"}

    async def shown() -> Response:
        return Response(page.html, media_type="text/html; charset=utf-8", headers=policy)

    app.add_api_route("/", shown, methods=["GET"], include_in_schema=False)


MEDIA_TYPES = (
    *("application/octet-stream", "image/jpeg", "image/png", "image/webp"),
    *("video/mp4", "video/webm"),
)
"""Types of uploads, without wildcards for client generators. Others work, too."""
COMPONENTS = "#/components/schemas/"
Count = Annotated[int, Field(ge=0)]
Kind, Ended = Literal["image", "video"], Literal["stop", "length"]
Finished = Literal["stop", "length", "tool_calls"]
BINARY = {"type": "string", "format": "binary"}
BOX = ([Count], None)
MEDIUM = {"kind": Kind, "model": str, "cached": bool, "seconds": float, "warnings?": [str]}
SIZED = {**MEDIUM, "width": Count, "height": Count, "key": str, "precision": str}
SCORE = {
    "label": str, "score": float, "passed": bool, "why": str, "box": BOX,
    "threshold": (float, None), "whole?": float,
}  # fmt: skip
LABELS = {"labels": [SCORE], "top": str}
SPAN = {"start": float, "end": float}
VECTOR = (str, [float])
HIT = {
    "rank": Count, "score": float, "id": (str, None), "kind": Kind, "media_path": str,
    "time": ([float], None), "at": (float, None), "box": BOX, "copies": Count,
    "caption": str, "caption_time": ([float], None),
}  # fmt: skip
JOB = {
    "id": str, "object": Literal["job"],
    "state": State,
    "model": str, "source": str, "options": dict[str, Any], "created": Count,
    "ended": (Count, None), "error": str,
}  # fmt: skip
MODEL = {"id": str, "object": Literal["model"], "created": Count, "owned_by": str}
FUNCTION = {"name": str, "arguments": str}
CALL = {"id": str, "type": Literal["function"], "function": FUNCTION}
MESSAGE = {"role": Literal["assistant"], "content": (str, None), "tool_calls?": [CALL]}
TOKEN = {"token": str, "logprob": float, "bytes": [Count]}
LOGPROBS = {"content": [{**TOKEN, "top_logprobs": [TOKEN]}]}
CHOICE = {
    "index": Count, "message": MESSAGE, "finish_reason": Finished, "logprobs": (LOGPROBS, None),
}  # fmt: skip
USAGE = {"prompt_tokens": Count, "completion_tokens": Count, "total_tokens": Count}
REFUSAL = {"error": str, "hint": str}
CHAT_REFUSAL = {
    "error": {"message": str, "type": str, "param": (str, None), "code": (str, None)}
}  # fmt: skip
ANSWERS: Mapping[str, Any] = {
    "/v1/label": {
        **SIZED, "labels?": [SCORE], "top?": str, "frames?": [{"time": float, **LABELS}],
        "spans?": [{**SPAN, "labels": [str]}],
    },
    "/v1/embed": {
        **SIZED, "dimensions": Count, "encoding": Literal["base64", "json"], "embedding": VECTOR,
        "embeddings?": [{"embedding": VECTOR, "time?": float, "box?": BOX}],
    },
    "/v1/caption": {
        **MEDIUM, "precision": dict[str, str],
        "captions": [{**SPAN, "caption": str, "tokens": Count, "ended": Ended, "heard?": bool}],
    },
    "/v1/answers": {
        **MEDIUM, "precision": dict[str, str],
        "rows": [{**SPAN, "answers": dict[str, dict[str, Any]]}],
    },
    "/v1/search": {
        "hits": [HIT], "index": str, "rows": Count, "seconds": float, "warnings?": [str]
    },
    "/v1/chat/completions": {
        "id": str, "object": Literal["chat.completion"], "created": Count, "model": str,
        "choices": [CHOICE], "usage": USAGE, "warnings?": [str],
    },
    "/v1/embeddings": {
        "object": Literal["list"], "model": str, "usage": dict[str, Count],
        "data": [{"object": Literal["embedding"], "index": Count, "embedding": VECTOR}],
    },
    "/v1/models": {"object": Literal["list"], "data": [MODEL]},
    "/v1/models/{name}": MODEL,
    "/v1/jobs": {
        "object": Literal["list"], "data": [JOB], "first_id": (str, None), "last_id": (str, None),
        "has_more": bool,
    },
    "post /v1/jobs": JOB,
    "/v1/jobs/{job}": {
        **JOB, "stages?": [{"name": str, "done": Count, "failed": Count, "total": Count}],
        "rows?": [dict[str, Any]], "after?": Count, "complete?": bool
    },
    "/v1/info": {
        "version": str, "model": (str, None), "caption_model": (str, None), "labels": [str],
        "index": ({"folder": str, "rows": Count}, None), "token": bool,
        "limits": dict[str, float],
    },
    "/v1/stats": {
        "now": float, "points": [dict[str, float | None]], "halves": [dict[str, str | int]]
    },
    "/v1/session": {"status": Literal["ok"]},
    "/healthz": {"status": Literal["ok"]},
    "/readyz": {"ready": bool, "why": str},
}  # fmt: skip
"""Path, or a method and a path → fields of its answer as JSON."""
ACCEPTED = ("post /v1/jobs",)
"""Answers that come before the work."""
OTHER = {"/metrics": "text/plain", "/v1/thumbnail/{hit}": "image/jpeg", "/v1/media/{hit}": "*/*"}
"""Path → type of an answer that is not JSON."""
STREAMED = ("/v1/caption", "/v1/chat/completions")
ALWAYS = (400, 401, 403, 431, 500, 501)
REFUSED = {
    **{f"/v1/{name}": (404, 429, 503, 504) for name in ("chat/completions", "embeddings")},
    **{
        f"/v1/{name}": (404, 422, 429, 503, 504)
        for name in ("label", "embed", "caption", "search", "answers")
    },
    **{f"/v1/{name}": (404,) for name in ("models", "models/{name}")},
    **{f"/v1/{name}/{{hit}}": (404, 422, 503) for name in ("media", "thumbnail")},
    **{f"/v1/{name}": (422,) for name in ("info", "stats")},
    "/v1/session": (422, 429, 503),
    **{f"/v1/jobs{rest}": (404, 422, 429, 503, 507) for rest in ("", "/{job}")},
}
"""Path → statuses of its own refusals, besides those of bodies."""


def _schema(kind: Any) -> dict[str, Json]:
    """Return the JSON schema of a type: fields by name, where `?` marks those that may be missing;
    a list of one type; a tuple of alternatives."""
    if isinstance(kind, dict):
        fields = {name.rstrip("?"): _schema(field) for name, field in kind.items()}
        needed = [name for name in kind if not name.endswith("?")]
        return {"type": "object", "required": needed, "properties": fields}
    if isinstance(kind, list):
        return {"type": "array", "items": _schema(kind[0])}
    if isinstance(kind, tuple):
        return {"anyOf": [_schema(alternative) for alternative in kind]}
    return TypeAdapter(kind).json_schema()


def _content(schema: Mapping[str, Json], *types: str) -> dict[str, Json]:
    return {kind: {"schema": schema} for kind in types or ("application/json",)}


def _body(description: str, content: Mapping[str, Json]) -> dict[str, Json]:
    return {"requestBody": {"required": True, "description": description, "content": content}}


MEDIUM_BODY = _body(
    "the bytes of an image or a clip", _content({**BINARY, "minLength": 1}, *MEDIA_TYPES)
)
JOB_BODY: dict[str, Json] = {
    "requestBody": {
        "description": "the bytes of an image or a clip; none with `path`",
        "content": _content({**BINARY}, *MEDIA_TYPES),
    }
}
ANSWERS_BODY = _body(
    "an image or a clip as a base64 `data:` address, and questions as in a file of questions",
    _content(_schema({"media": str, "questions": dict[str, dict[str, Any]]})),
)
EMBEDDINGS_BODY = _body(
    "an embeddings request in OpenAI's form, with texts",
    _content(EmbeddingsRequest.model_json_schema()),
)
CHAT_BODY = _body(
    "a chat completion request in OpenAI's form, with one image or clip in it",
    _content({"$ref": f"{COMPONENTS}ChatCompletionRequest"}),
)


class DescribedApp(FastAPI):
    """An application whose description holds every answer. Its handlers write answers without
    FastAPI."""

    def openapi(self) -> dict[str, Json]:
        """Return the OpenAPI document."""
        if self.openapi_schema is None:
            document = super().openapi()
            request = ChatCompletionRequest.model_json_schema(ref_template=COMPONENTS + "{model}")
            schemas = {**request.pop("$defs"), request["title"]: request}
            document["components"] = {"schemas": schemas}
            for path, operations in document["paths"].items():
                for method, operation in operations.items():
                    operation["responses"] = _answers(path, operation.get("requestBody"), method)
        return super().openapi()


def _answers(path: str, body: Json, method: str) -> dict[str, Json]:
    is_chat = path.startswith(OPENAI)
    of_body = (408, 413, 507, 400 if is_chat else 415) if body else ()
    statuses = {*ALWAYS, *REFUSED.get(path, ()), *of_body}
    fields = ANSWERS.get(f"{method} {path}") or ANSWERS.get(path)
    content = _content(BINARY, OTHER[path]) if path in OTHER else _content(_schema(fields))
    if path in STREAMED:
        content |= _content(_schema({"data": str}), "text/event-stream")  # of each event
    # The head is refused before its path is known.
    forms = {status: CHAT_REFUSAL if is_chat and status != 431 else REFUSAL for status in statuses}
    by_status = {status: _content(_schema(form)) for status, form in forms.items()}
    by_status[202 if f"{method} {path}" in ACCEPTED else 200] = content
    if path == "/readyz":
        by_status[503] = content
    if path == "/v1/media/{hit}":  # with the header Range
        by_status |= {206: content, 416: _content(_schema(REFUSAL))}
    return {
        str(status): {"description": HTTPStatus(status).phrase, "content": of_status}
        for status, of_status in sorted(by_status.items())
    }
