"""Writes the JSON answers of all servers, their error responses, and names without paths.

The servers are those of `penstock serve`, the studio and the review. Each HTTP error response has
its status. Display names of models, indexes and files hide their paths from clients. Servers also
get access here to the media files that they display.
"""

import asyncio
import json
import os
import re
import threading
import weakref
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

from starlette.responses import FileResponse, MalformedRangeHeader, Response

from artifacts.disk.json_shapes import Json
from artifacts.disk.regular_files import open_regular
from artifacts.disk.stamps import stamp_of
from artifacts.errors import PenstockError, with_hint
from artifacts.index.shard import IndexRow
from artifacts.records.keys import ContentDigests, content_key
from artifacts.records.store import open_store
from artifacts.remote.ahead import run_detached
from artifacts.remote.media_cache import local_path
from flows.core.checkpoint.models import digests_in
from flows.core.options.store import default_store
from flows.interfaces.serve.temp_store import PREFIX
from stages.process.events import NO_ROOM, NOT_ANSWERED, NOT_STORED, TOO_LONG, UNSUPPORTED, Failed

LOCAL = ("/", ".", "~")
"""Prefixes of a model's folder, in contrast to hub ids."""
PATH = re.compile(r"(?<![\w:/.])/(?!v1/|static/)(?:[^\s/'\",;:()]+/)+([^\s/'\",;:()]+)")
"""An absolute path in a text, except the routes of this server."""
UPLOAD = re.compile(rf"(?:/[^\s/]+)*/{PREFIX}[^\s/]+/\d+\.\w+")
"""The path of what a request sent: no client has such a file."""


def shown_name(place: str) -> str:
    """Return the display name of a model or an index: of a folder, its last part."""
    return Path(place).expanduser().resolve().name if place.startswith(LOCAL) else place


def without_paths(text: str) -> str:
    """Return a text with absolute paths cut to their last part, and without those of uploads."""
    return PATH.sub(r"\1", UPLOAD.sub("the file", text))


OPENAI = ("/v1/chat/", "/v1/models", "/v1/embeddings")
"""Paths of OpenAI's API."""
STATUS = {NO_ROOM: 507, NOT_STORED: 503, NOT_ANSWERED: 503}
"""Kind of failure of an item that is not its own fault → HTTP status."""
RETRY_SECONDS = 5
"""Default of the Retry-After header in seconds."""


class HttpRefusal(Exception):
    """A refused request: status, error and hint."""

    def __init__(
        self,
        status: int,
        error: str,
        hint: str = "",
        retry: float | None = None,
        *,
        code: str | None = None,
        param: str | None = None,
    ) -> None:
        super().__init__(error)
        self.status = status
        self.error = error
        self.hint = hint
        self.retry = retry
        """Seconds after which a retry makes sense; None: never."""
        self.code = code
        """OpenAI's error code; None: it has none."""
        self.param = param
        """The invalid parameter of a chat request; None: no single one."""

    def to_json(self, path: str = "") -> dict[str, Json]:
        """Return the error as JSON; below OpenAI's paths, in OpenAI's form."""
        error, hint = without_paths(self.error), without_paths(self.hint)
        if path.startswith(OPENAI):
            kind = "invalid_request_error" if self.status < 500 else "server_error"
            message = with_hint(error, hint)
            fields = {"message": message, "type": kind, "param": self.param, "code": self.code}
            return {"error": fields}
        return {"error": error, "hint": hint}


def bad_request(error: str, hint: str = "", code: str | None = None) -> HttpRefusal:
    """Return the refusal of an invalid request."""
    return HttpRefusal(422, error, hint, code=code)


def unavailable(error: str, hint: str = "", retry: float = RETRY_SECONDS) -> HttpRefusal:
    """Return the refusal of a request that may succeed later."""
    return HttpRefusal(503, error, hint, retry)


def refusal_of(error: PenstockError, status: int = 422) -> HttpRefusal:
    """Return a refusal for one of Penstock's own errors."""
    return HttpRefusal(status, error.message, error.hint)


def unsupported(param: str, error: str, hint: str = "Leave it out") -> HttpRefusal:
    """Return the refusal of a chat parameter that Penstock does not support."""
    return HttpRefusal(400, error, hint, code="unsupported_parameter", param=param)


def invalid(param: str, error: str, hint: str = "") -> HttpRefusal:
    """Return the refusal of an invalid value of a chat parameter."""
    return HttpRefusal(400, error, hint, code="invalid_value", param=param)


def invalid_message(code: str, error: str, hint: str) -> HttpRefusal:
    """Return the refusal of the messages of a chat request."""
    return HttpRefusal(400, error, hint, code=code, param="messages")


def exceeded(error: str, hint: str) -> HttpRefusal:
    """Return the refusal of a prompt longer than the model's context."""
    return invalid_message("context_length_exceeded", error, hint)


def refusal_of_failure(event: Failed) -> HttpRefusal:
    """Return a refusal for an item that a stage could not process."""
    if event.kind in STATUS:
        return HttpRefusal(STATUS[event.kind], event.message, event.hint, RETRY_SECONDS)
    if event.kind == TOO_LONG:
        return exceeded(event.message, event.hint)
    if event.kind != UNSUPPORTED:
        return bad_request(event.message, event.hint)
    # Of the settings, only the schema depends on the model's tokenizer.
    if "--schema" not in event.message:
        return unsupported("messages", event.message, event.hint)
    error = event.message.replace("--schema", "the schema")
    return unsupported("response_format", error, "Describe the form in the prompt")


async def shown_file(place: str) -> Path | None:
    """Return the local path of a file, or None. A remote file is fetched on a thread that does not
    delay the server's shutdown."""
    try:
        path = await asyncio.wrap_future(run_detached(local_path, place))
    except (PenstockError, OSError, ValueError):
        return None
    # Opening a FIFO would block.
    return path if await asyncio.to_thread(path.is_file) else None


class ShownFile(FileResponse):
    """A file, or a range of it. What is no range of bytes is ignored (RFC 9110, 14.2)."""

    @classmethod
    def _parse_range_header(cls, http_range: str, file_size: int) -> list[tuple[int, int]]:
        try:
            return super()._parse_range_header(http_range, file_size)
        except MalformedRangeHeader:
            return []


class IndexedMedium:
    """An open file with the content that was indexed, whatever happens to its path meanwhile."""

    def __init__(self, file: int) -> None:
        self.path = Path(f"/proc/self/fd/{file}")
        self.close = weakref.finalize(self, os.close, file)


class IndexedMedia:
    """Opens the media of an index, unless their content is another one than was indexed: a file may
    have been replaced, or be a link now."""

    def __init__(self, store: str) -> None:
        self._store = store
        self._reading: dict[str, threading.Lock] = {}

    @cached_property
    def _digests(self) -> ContentDigests:
        return digests_in(open_store(self._store or default_store()))

    async def opened(self, row: IndexRow) -> IndexedMedium:
        """Return the file of a row. Raises HttpRefusal. It is read only if its stamp is new; that
        does not delay the server's shutdown."""
        return await asyncio.wrap_future(run_detached(self._opened, row))

    def _opened(self, row: IndexRow) -> IndexedMedium:
        kind, why = "image" if row.time is None else "video", "has changed since it was indexed"
        try:
            path = os.path.realpath(local_path(row.path))
            with self._reading.setdefault(path, threading.Lock()):
                content = self._digests.content(Path(path))
            with open_regular(path) as file:
                is_same = stamp_of(file.fileno()) == content.stamp
                if is_same and content_key(content.digest, kind) == row.digest:
                    return IndexedMedium(os.dup(file.fileno()))
        except (PenstockError, OSError, ValueError):
            why = "cannot be read"
        raise HttpRefusal(404, f"the file of this hit {why}", "Run penstock index build again")


JSON = "application/json"
LONE = re.compile("[\ud800-\udfff]")
"""Half of a surrogate pair, as in a file's name that is not UTF-8."""


def json_bytes(value: Json) -> bytes:
    """Return a value as JSON in UTF-8. Letters that it cannot hold become replacement
    characters."""
    written = json.dumps(value, ensure_ascii=False, allow_nan=False)
    try:
        return written.encode()
    except UnicodeEncodeError:
        return LONE.sub("\ufffd", written).encode()


def json_answer(
    value: Json, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """Return a JSON response."""
    return Response(json_bytes(value), status, headers, media_type=JSON)
