"""Every error Penstock raises on purpose.

PenstockError
├── UsageError        bad option, no source at all, no such model        exit 2
├── CannotFit         the model does not fit the memory budget           exit 3
│   └── OutOfMemory   a stage's process took more than it could have
├── Interrupted       stopped by a signal; the same command resumes      exit 4
│   └── Killed        a stage's process got signal 9, from nobody in the run
├── EnvironmentFault  disk, store, driver, network                       exit 5
│   ├── StageDied     a stage's process ended without finishing
│   ├── ModelChanged  a file of the model is not the one that was planned with
│   └── Unanswered    a server far away gives no answer, or half of one
└── MediaError        one file cannot be captioned; the others can       exit 1
"""

import re
from typing import ClassVar

SECRETS = re.compile(
    r"(?<=://)[^/\s@]+(?=@)"
    r"|\bhf_[A-Za-z0-9]{16,}"
    r"|(?i:(?<=[?&;]token=)|(?<=[_-]token=)|(?<=[?&;]sig=)|(?<=signature=)|(?<=credential=)"
    r"|(?<=accesskeyid=)|(?<=password=)|(?<=api_key=)|(?<=secret=))[^&\s]+"
)
"""User and password of an address, a token of the hub, secret parameters of an address."""


def redacted(text: str) -> str:
    """Return text without what lets its readers in elsewhere: it goes to logs, records and
    servers."""
    return SECRETS.sub("…", text)


def with_hint(message: str, hint: str) -> str:
    """Return a message with its hint behind it, as sentences: what other programs said may end
    with its own full stop."""
    end = "" if message.endswith((".", "?", "!")) else "."
    return f"{message}{end} {hint}" if hint else message


class PenstockError(Exception):
    """An error with a next step: `message` says what and where, `hint` what to do about it."""

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        message, hint = redacted(message), redacted(hint)
        super().__init__(message, hint)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return with_hint(self.message, self.hint)


class UsageError(PenstockError):
    """The command asks for something that does not exist or makes no sense."""

    exit_code = 2


class CannotFit(PenstockError):
    """No way of running the model keeps within the memory budget."""

    exit_code = 3


class OutOfMemory(CannotFit):
    """A stage's process got no more memory, and ended; fewer items at once may do."""

    def __init__(
        self, message: str, *, hint: str = "", items: int = 0, peak_bytes: int = 0
    ) -> None:
        super().__init__(message, hint=hint)
        self.items = items
        """Number of items that the process had published before."""
        self.peak_bytes = peak_bytes
        """The most bytes that it was seen to take, above what its imports take."""


class Interrupted(PenstockError):
    """The run was stopped from outside; what is done stays done."""

    exit_code = 4


class Killed(Interrupted):
    """A stage's process was ended by signal 9: by somebody, or by the kernel for want of memory."""

    def __init__(self, message: str, *, hint: str = "", items: int = 0) -> None:
        super().__init__(message, hint=hint)
        self.items = items
        """Number of items that the process had published before."""


class EnvironmentFault(PenstockError):
    """The machine is in the way: a full disk, a store that cannot be written, a driver, the
    network."""

    exit_code = 5


class StageDied(EnvironmentFault):
    """A stage's process ended without finishing its work."""

    def __init__(self, message: str, *, hint: str = "", return_code: int | None = None) -> None:
        super().__init__(message, hint=hint)
        self.return_code = return_code


class ModelChanged(EnvironmentFault):
    """A file that decides what a model makes is not the one that a run was planned with."""


class Unanswered(EnvironmentFault):
    """A server far away gives no answer, or half of one."""


class MediaError(PenstockError):
    """One media file cannot be used; `kind` is a stable word for programs, such as `no-video`."""

    def __init__(self, message: str, *, kind: str, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.kind = kind
