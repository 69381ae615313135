"""Lets the program continue after its terminal was closed. Writes nothing itself."""

import contextlib
import errno
import os
import termios
from collections.abc import Iterator

STREAMS = (1, 2)
"""Descriptors of the standard output and the standard error."""


def forget_terminal() -> bool:
    """Let what is still to be said to a closed terminal go nowhere; returns whether one was."""
    gone = [descriptor for descriptor in STREAMS if _is_gone(descriptor)]
    for descriptor in gone:
        nowhere = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        os.dup2(nowhere, descriptor)
        os.close(nowhere)
    return bool(gone)


@contextlib.contextmanager
def outliving_the_terminal() -> Iterator[None]:
    """Let writing within be no error where the terminal was closed meanwhile."""
    try:
        yield
    except OSError as error:
        if error.errno != errno.EIO or not forget_terminal():
            raise


def _is_gone(descriptor: int) -> bool:
    try:
        termios.tcgetattr(descriptor)
    except termios.error as error:
        return bool(error.args[0] == errno.EIO)  # of what never was one, it is another error
    return False
