"""Lets the program continue after its terminal was closed."""

import contextlib
import errno
import os
import termios
from collections.abc import Iterator

STREAMS = (1, 2)
"""Descriptors of the standard output and the standard error."""


def silence_closed_terminal() -> bool:
    """Redirect output to a closed terminal to /dev/null. Return whether a terminal was closed."""
    gone = [descriptor for descriptor in STREAMS if _is_gone(descriptor)]
    for descriptor in gone:
        nowhere = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        os.dup2(nowhere, descriptor)
        os.close(nowhere)
    return bool(gone)


@contextlib.contextmanager
def ignoring_closed_terminal() -> Iterator[None]:
    """Ignore write errors in the block if the terminal was closed meanwhile."""
    try:
        yield
    except OSError as error:
        if error.errno != errno.EIO or not silence_closed_terminal():
            raise


def _is_gone(descriptor: int) -> bool:
    try:
        termios.tcgetattr(descriptor)
    except termios.error as error:
        return bool(error.args[0] == errno.EIO)  # other streams give another error
    return False
