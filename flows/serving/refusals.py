"""The answers to requests that get none, each with its status; knows no server."""

from artifacts.errors import PenstockError

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

    def to_json(self) -> dict[str, str]:
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
