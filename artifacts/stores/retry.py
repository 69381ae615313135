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
"""Seconds, at most, before an answer is asked for again. obstore has been as patient before, with
what it takes for safe to ask again."""
NOTHING = "status code: 404"
FINAL = (
    exceptions.InvalidPathError,
    exceptions.NotSupportedError,
    exceptions.PermissionDeniedError,
    exceptions.UnauthenticatedError,
    exceptions.UnknownConfigurationKeyError,
)
"""What is not otherwise when it is asked again."""
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
    """Ask until there is an answer about what lies at a place. Raises EnvironmentFault, and
    FileNotFoundError if that may be one."""
    for wait in (*(WAITS if waits is None else waits), None):
        try:
            return ask()
        except FileNotFoundError:
            if may_lack:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), place) from None
            why = "there is nothing"
            break
        except BaseError as error:
            why = reason(error)
            if isinstance(error, exceptions.InvalidPathError):
                raise InvalidName(f"{place} gives no answer ({why})", hint=hint) from None
            if isinstance(error, FINAL) or NOTHING in why or wait is None:
                break
            time.sleep(wait * random.uniform(0.5, 1))
    # Not from what was caught: its words hold addresses, which may let their readers in.
    raise Unanswered(f"{place} gives no answer ({why})", hint=hint)


def reason(error: Exception) -> str:
    """Return what an error says at last, in one line and without the addresses in it."""
    words = " ".join(str(error).partition("\n\nDebug source:")[0].split())
    return ADDRESS.sub("…", words).rpartition(" - ")[2].partition(": <")[0][:200].rstrip(": ")
