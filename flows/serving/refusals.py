"""The answers to requests that get none, each with its status; knows no server."""

from typing import Any

from artifacts.errors import PenstockError

OPENAI = ("/v1/chat/", "/v1/models")
"""Paths that clients of OpenAI ask."""
RETRY_SECONDS = 5
"""After so long it may be asked again, where nothing better is known."""


class Refused(Exception):
    """A request that is not answered: status, what is wrong, what to do about it."""

    def __init__(self, status: int, error: str, hint: str = "", retry: float | None = None) -> None:
        super().__init__(error)
        self.status = status
        self.error = error
        self.hint = hint
        self.retry = retry
        """Seconds after which it may be asked again; None: it need not be."""

    def to_json(self, path: str = "") -> dict[str, Any]:
        """Return what is told of it; below some paths as OpenAI's clients read it."""
        if path.startswith(OPENAI):
            told = {"message": f"{self.error}. {self.hint}".strip(), "code": None, "param": None}
            return {"error": {**told, "type": "invalid_request_error"}}
        return {"error": self.error, "hint": self.hint}


def bad(error: str, hint: str = "") -> Refused:
    """Return the refusal of what cannot be read, or means nothing."""
    return Refused(422, error, hint)


def unavailable(error: str, hint: str = "", retry: float = RETRY_SECONDS) -> Refused:
    """Return the refusal of what could be answered at another time."""
    return Refused(503, error, hint, retry)


def refusal_of(error: PenstockError, status: int = 422) -> Refused:
    """Return one of our own errors as a refusal."""
    return Refused(status, error.message, error.hint)
