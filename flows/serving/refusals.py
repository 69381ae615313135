"""The HTTP error responses, each with its status."""

from typing import Any

from artifacts.errors import PenstockError, with_hint
from flows.serving.shown_names import without_paths
from stages.process.events import TOO_LONG, UNSUPPORTED, Failed

OPENAI = ("/v1/chat/", "/v1/models")
"""Paths that clients of OpenAI ask."""
RETRY_SECONDS = 5
"""After so long it may be asked again, where nothing better is known."""


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
        """Seconds after which it may be asked again; None: it need not be."""
        self.code = code
        """What is wrong, as OpenAI's clients know it; None: they have no word for it."""
        self.param = param
        """Parameter of a chat request that is at fault; None: none is."""

    def to_json(self, path: str = "") -> dict[str, Any]:
        """Return what is told of it; below some paths as OpenAI's clients read it."""
        error, hint = without_paths(self.error), without_paths(self.hint)
        if path.startswith(OPENAI):
            kind = "invalid_request_error" if self.status < 500 else "server_error"
            message = with_hint(error, hint)
            told = {"message": message, "type": kind, "param": self.param, "code": self.code}
            return {"error": told}
        return {"error": error, "hint": hint}


def bad_request(error: str, hint: str = "") -> HttpRefusal:
    """Return the refusal of what cannot be read, or means nothing."""
    return HttpRefusal(422, error, hint)


def unavailable(error: str, hint: str = "", retry: float = RETRY_SECONDS) -> HttpRefusal:
    """Return the refusal of what could be answered at another time."""
    return HttpRefusal(503, error, hint, retry)


def refusal_of(error: PenstockError, status: int = 422) -> HttpRefusal:
    """Return one of our own errors as a refusal."""
    return HttpRefusal(status, error.message, error.hint)


def unsupported(param: str, error: str, hint: str = "Leave it out") -> HttpRefusal:
    """Return the refusal of what a chat request asks for and nothing here can do."""
    return HttpRefusal(400, error, hint, code="unsupported_parameter", param=param)


def invalid(param: str, error: str, hint: str = "") -> HttpRefusal:
    """Return the refusal of a value that a parameter of a chat request cannot have."""
    return HttpRefusal(400, error, hint, code="invalid_value", param=param)


def exceeded(error: str, hint: str) -> HttpRefusal:
    """Return the refusal of a prompt that is longer than the model's context."""
    return HttpRefusal(400, error, hint, code="context_length_exceeded", param="messages")


def refusal_of_failure(event: Failed) -> HttpRefusal:
    """Return what a stage says of an item that it could not make, as a refusal."""
    if event.kind == TOO_LONG:
        return exceeded(event.message, event.hint)
    if event.kind != UNSUPPORTED:
        return bad_request(event.message, event.hint)
    # Of its settings only the schema is followed by what a model's tokenizer can or cannot do.
    error = event.message.replace("--schema", "the schema")
    return unsupported("response_format", error, "Ask for it in words")
