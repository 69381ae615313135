"""Retries requests to a service until they succeed or a time limit is reached."""

import errno
import os
import random
import re
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from obstore import exceptions
from obstore.exceptions import BaseError

from artifacts.errors import Unanswered

WAITS = (0.1, 0.4, 1.6, 6.4)
"""Longest waits in seconds before each retry. obstore itself has retried safe requests before."""
NOTHING = "status code: 404"
FINAL = (
    exceptions.InvalidPathError,
    exceptions.NotSupportedError,
    exceptions.PermissionDeniedError,
    exceptions.UnauthenticatedError,
    exceptions.UnknownConfigurationKeyError,
)
"""Errors that a retry cannot change."""
ADDRESS = re.compile(r"\w+://\S+")
HINT = (
    "See that the bucket is there and the network is up, and that the variables of its service "
    "say who may use it; the same command then goes on"
)

Answer = TypeVar("Answer")


class InvalidName(Unanswered):
    """A listing contains a name that obstore rejects."""


def with_retries(
    place: str,
    ask: Callable[[], Answer],
    *,
    may_lack: bool = False,
    waits: Sequence[float] | None = None,
    hint: str = HINT,
) -> Answer:
    """Call `ask` until it succeeds, with waits in between. Raises EnvironmentFault, and
    FileNotFoundError if `may_lack`."""
    for wait in (*(WAITS if waits is None else waits), None):
        try:
            return ask()
        except FileNotFoundError:
            if may_lack:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), place) from None
            why = "not found"
            break
        except BaseError as error:
            why = reason(error)
            if isinstance(error, exceptions.InvalidPathError):
                raise InvalidName(f"no response from {place} ({why})", hint=hint) from None
            if isinstance(error, FINAL) or NOTHING in why or wait is None:
                break
            time.sleep(wait * random.uniform(0.5, 1))
    # Not chained: messages of the caught error contain URLs, which may contain credentials.
    raise Unanswered(f"no response from {place} ({why})", hint=hint)


def reason(error: Exception) -> str:
    """Return the cause in an error's message, in one line and without URLs."""
    words = " ".join(str(error).partition("\n\nDebug source:")[0].split())
    return ADDRESS.sub("…", words).rpartition(" - ")[2].partition(": <")[0][:200].rstrip(": ")
