"""The exception tree of all errors that Penstock raises on purpose.

PenstockError
├── UsageError        bad option, no source at all, no such model        exit 2
│   ├── MissingPackage  a package that is not installed
│   ├── ControlWord   a text holds a word that a model reads as something else
│   ├── Diverged      the loss of a training is NaN or infinity
│   └── NoFeatures    features of a training example are neither stored nor can be made
├── CannotFit         the model does not fit the memory budget           exit 3
│   └── OutOfMemory   a stage process exceeded its memory limit
├── Interrupted       stopped by a signal; the same command resumes      exit 4
│   └── Killed        a stage process got signal 9 from outside the run
├── EnvironmentFault  disk, store, driver, network                       exit 5
│   ├── StageDied     a stage process ended without finishing
│   ├── ModelChanged  a model file differs from the one that was planned with
│   ├── HalfChecked     a check has decided how a half computes, and the run is planned again
│   └── Unanswered    a remote server sent no response, or an incomplete one
├── NothingYet        all files were written a moment ago; a later run takes them   exit 0
├── MediaError        one file cannot be captioned; the others can       exit 1
└── NotFinite         a model computes NaN or infinity of one item       exit 1
"""

import re
from itertools import takewhile
from pathlib import Path
from traceback import extract_tb
from typing import Any

SECRETS = re.compile(
    r"(?<=://)[^/\s@]+(?=@)"
    r"|\bhf_[A-Za-z0-9]{16,}"
    r"|(?i:(?<=[?&;]token=)|(?<=[_-]token=)|(?<=[?&;]sig=)|(?<=signature=)|(?<=credential=)"
    r"|(?<=accesskeyid=)|(?<=password=)|(?<=api_key=)|(?<=secret=))[^&\s]+"
)
"""User and password in a URL, tokens of the hub, secret parameters of a URL."""

ROOTS = tuple(
    str(Path(__file__).parents[1] / name) for name in ("penstock", "flows", "stages", "artifacts")
)
"""Where this program's code lies."""


def redacted(text: str) -> str:
    """Return a text without credentials. It goes to logs, records and servers."""
    return SECRETS.sub("…", text)


def plain(text: str) -> str:
    """Return a text with `?` for control codes and direction marks, which a terminal obeys. A file
    name may hold them."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def with_hint(message: str, hint: str) -> str:
    """Return a message followed by its hint. A message from another program may already end with a
    full stop."""
    end = "" if message.endswith((".", "?", "!")) else "."
    return f"{message}{end} {hint}" if hint else message


class PenstockError(Exception):
    """An error with a next step: `message` states what failed and where, `hint` what to do about
    it."""

    exit_code: int = 1
    """With which the command ends, as in the tree above."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        # A path or an option may hold what no log can: lone surrogates.
        message, hint = (
            redacted(text).encode(errors="backslashreplace").decode() for text in (message, hint)
        )
        super().__init__(message, hint)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return plain(with_hint(self.message, self.hint))

    def _render_traceback_(self) -> list[str]:
        """Return the lines that a notebook shows: the caller's own line, and the error."""
        frames = extract_tb(self.__traceback__)
        callers = [*takewhile(lambda frame: not frame.filename.startswith(ROOTS), frames)]
        lines = [f"line {frame.lineno}: {frame.line}" for frame in callers[-1:]]
        return [*lines, f"{type(self).__name__}: {self}"]

    def __reduce__(self) -> tuple[Any, ...]:
        """Let other processes raise it, with the fields of its class."""
        return Exception.__new__, (type(self), *self.args), self.__dict__


class UsageError(PenstockError):
    """The command names something that does not exist, or combines options that contradict each
    other."""

    exit_code = 2


class NothingYet(PenstockError):
    """All files of a run were written less than `--min-age` ago. It wrote nothing, and no earlier
    output changed."""

    exit_code = 0


def excluding(*options: str) -> UsageError:
    return UsageError(f"{' and '.join(options)} exclude each other", hint="Leave one of them out")


class MissingPackage(UsageError):
    """A package that the command needs is not installed; `hint` names the extra that brings it."""


class ControlWord(UsageError):
    """A text holds a word that a model reads as something else than text."""


class Diverged(UsageError):
    """The loss or the gradient of a training step is NaN or infinity."""


class NoFeatures(UsageError):
    """The features of a training example are neither stored nor can be made."""


class CannotFit(PenstockError):
    """No way to run the model stays within the memory budget."""

    exit_code = 3


class OutOfMemory(CannotFit):
    """A stage process ran out of memory and ended. A smaller batch may fit."""

    def __init__(
        self, message: str, *, hint: str = "", items: int = 0, peak_bytes: int = 0
    ) -> None:
        super().__init__(message, hint=hint)
        self.items = items
        """Number of items published before."""
        self.peak_bytes = peak_bytes
        """Largest observed memory use in bytes, beyond the process's imports."""


class Interrupted(PenstockError):
    """The run was stopped from outside. Finished work is kept."""

    exit_code = 4


class Killed(Interrupted):
    """A stage process was ended by signal 9, sent by a user or by the kernel's out-of-memory
    killer."""

    def __init__(self, message: str, *, hint: str = "", items: int = 0) -> None:
        super().__init__(message, hint=hint)
        self.items = items
        """Number of items published before."""


class EnvironmentFault(PenstockError):
    """The machine is at fault: a full disk, a store that cannot be written, a driver, or the
    network."""

    exit_code = 5


class StageDied(EnvironmentFault):
    """A stage's process ended without finishing its work."""

    def __init__(self, message: str, *, hint: str = "", return_code: int | None = None) -> None:
        super().__init__(message, hint=hint)
        self.return_code = return_code


class ModelChanged(EnvironmentFault):
    """A file that determines the model's output differs from the one that the run was
    planned with."""


class HalfChecked(EnvironmentFault):
    """A stage has tried how a half may compute and stored the result, so the run must be planned
    again."""


class Unanswered(EnvironmentFault):
    """A remote server did not respond, or sent an incomplete response."""


class MediaError(PenstockError):
    """One media file cannot be used. `kind` is a stable identifier for programs, such as
    `no-video`."""

    def __init__(self, message: str, *, kind: str, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.kind = kind


class NotFinite(PenstockError):
    """A model computes NaN or infinity of one item, or seems to, so there is no result."""

    kind = "not-finite"
    """A stable identifier for programs."""
