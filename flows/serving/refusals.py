"""The HTTP error responses, each with its status."""

from typing import Any

from artifacts.errors import PenstockError, with_hint
from flows.serving.shown_names import without_paths
from stages.process.events import NO_ROOM, NOT_STORED, TOO_LONG, UNSUPPORTED, Failed

OPENAI = ("/v1/chat/", "/v1/models")
"""Paths of OpenAI's API."""
STATUS = {NO_ROOM: 507, NOT_STORED: 503}
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

    def to_json(self, path: str = "") -> dict[str, Any]:
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
    error = event.message.replace("--schema", "the schema")
    return unsupported("response_format", error, "Describe the form in the prompt")
